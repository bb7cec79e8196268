//! What nodes ask of each other beside messages: who is admitted, calls and requests.

use std::convert::Infallible;

use tower::{ServiceExt as _, service_fn};

use super::super::grpc::{
    Admission, Admitted, Answering, CallAnswer, CallError, Calls, CertificateDer, Claim,
    EarlierProcesses, Gatekeeper, GrpcConfig, GrpcTransport, PeerBody, PeerRequests, Refusal,
    call_at, identify,
};
use super::grpc::ANY;
use super::*;

pub const LONG: Duration = Duration::from_secs(30);

pub fn claim(node: u64) -> Claim {
    Claim {
        cluster: ClusterId([3; 16]),
        node: NodeId(node),
        process: 77,
        earlier: EarlierProcesses::default(),
    }
}

/// Refuses the node 9, and counts what is admitted at present.
#[derive(Default)]
pub struct Door {
    inside: Arc<Mutex<Vec<Admission>>>,
}

struct Inside(Arc<Mutex<Vec<Admission>>>);

impl Admitted for Inside {}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.lock().pop();
    }
}

impl Gatekeeper for Door {
    fn admit(
        &self,
        claim: &Claim,
        what: Admission,
        _: &str,
        _: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal> {
        match claim.node.0 {
            9 => Err(Refusal("node 9 was removed".to_owned())),
            _ => {
                self.inside.lock().push(what);
                Ok(Box::new(Inside(self.inside.clone())))
            }
        }
    }
}

pub fn node(of: u64, secret: &str, door: Arc<Door>) -> GrpcTransport {
    GrpcTransport::bind(ANY, config(of, secret, Some(door))).unwrap()
}

pub fn config(of: u64, secret: &str, door: Option<Arc<Door>>) -> GrpcConfig {
    GrpcConfig {
        secret: Some(secret.to_owned()),
        claim: Some(claim(of)),
        gatekeeper: door.map(|door| door as Arc<dyn Gatekeeper>),
        ..GrpcConfig::default()
    }
}

/// Answers with the name and the body; refuses `no`, and cannot answer `later`.
pub struct Echo;

impl Calls for Echo {
    fn answer(&self, from: Claim, name: &str, body: Bytes) -> CallAnswer {
        let answer = match name {
            "no" => Err(CallError::Refused("that is refused".to_owned())),
            "later" => Err(CallError::Unavailable("not now".to_owned())),
            _ => Ok(Bytes::from(format!("{name} of {}: {body:?}", from.node))),
        };
        Box::pin(async { answer })
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_call_is_answered_with_what_the_other_node_says_or_why_it_does_not() {
    let (one, two) = (node(1, "s", Arc::default()), node(2, "s", Arc::default()));
    let _hears = (started(&one), started(&two));
    one.set_peer(NodeId(2), two.address().to_string());
    runtime().block_on(async {
        let call = async |name| one.call(NodeId(2), name, "x".into(), LONG).await;
        assert!(matches!(
            call("early").await,
            Err(CallError::Unavailable(_))
        ));
        two.answer_calls(Arc::new(Echo));
        assert_eq!(call("hello").await.unwrap(), r#"hello of 1: b"x""#);
        let no = call("no").await.unwrap_err();
        assert_eq!(no, CallError::Refused("that is refused".to_owned()));
        let later = call("later").await.unwrap_err();
        assert_eq!(later, CallError::Unavailable("not now".to_owned()));
        let unknown = one.call(NodeId(7), "hello", Bytes::new(), LONG).await;
        assert!(
            unknown
                .unwrap_err()
                .to_string()
                .contains("address of node 7")
        );
    });
}

#[test]
fn a_node_without_a_transport_calls_an_address() {
    let two = node(2, "s", Arc::default());
    let _hears = started(&two);
    two.answer_calls(Arc::new(Echo));
    let address = two.address().to_string();
    runtime().block_on(async {
        let config = config(5, "s", None);
        let answer = call_at(&address, &config, "hello", Bytes::new(), LONG).await;
        assert_eq!(answer.unwrap(), r#"hello of 5: b"""#);
        let wrong = GrpcConfig {
            secret: Some("other".to_owned()),
            ..config
        };
        let answer = call_at(&address, &wrong, "hello", Bytes::new(), LONG).await;
        assert!(
            matches!(&answer, Err(CallError::Stranger(why)) if why.contains("secret")),
            "{answer:?}"
        );
    });
}

/// Refuses everybody, as a gate does that is asked by a node of another cluster.
struct Shut;

impl Gatekeeper for Shut {
    fn admit(
        &self,
        _: &Claim,
        _: Admission,
        _: &str,
        _: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal> {
        Err(Refusal("not here".to_owned()))
    }
}

#[test]
fn only_a_node_of_the_same_cluster_refuses_in_its_name() {
    let shut = |cluster| {
        let claim = Claim {
            cluster,
            ..claim(2)
        };
        let config = GrpcConfig {
            claim: Some(claim),
            gatekeeper: Some(Arc::new(Shut)),
            ..config(2, "s", None)
        };
        (GrpcTransport::bind(ANY, config).unwrap(), claim)
    };
    let (own, other) = (shut(claim(1).cluster), shut(ClusterId([99; 16])));
    let _hears = (started(&own.0), started(&other.0));
    let why = || "not here".to_owned();
    for ((transport, shown), expected) in [
        (&own, CallError::Refused(why())),
        (&other, CallError::Stranger(why())),
    ] {
        let address = transport.address().to_string();
        runtime().block_on(async {
            let asks = config(1, "s", None);
            let called = call_at(&address, &asks, "hello", Bytes::new(), LONG).await;
            assert_eq!(called, Err(expected));
            assert_eq!(
                identify(&address, &asks).await,
                Answering::Node(Box::new(*shown))
            );
            // Who joins belongs to no cluster yet, and is refused by that which it asks.
            let joins = GrpcConfig {
                claim: Some(Claim {
                    cluster: ClusterId::default(),
                    ..claim(1)
                }),
                ..asks
            };
            let called = call_at(&address, &joins, "hello", Bytes::new(), LONG).await;
            assert_eq!(called, Err(CallError::Refused(why())));
            let wrong = config(1, "other", None);
            let answers = identify(&address, &wrong).await;
            assert!(
                matches!(&answers, Answering::OtherSecret(why) if why.contains("secret")),
                "{answers:?}"
            );
        });
    }
    let nobody = std::net::TcpListener::bind(ANY).unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let answers = runtime().block_on(identify(&address, &config(1, "s", None)));
    assert!(matches!(answers, Answering::Nobody(_)), "{answers:?}");
}

#[test]
fn who_is_refused_gets_the_reason_and_nothing_of_it_is_used() {
    let door = Arc::new(Door::default());
    let (nine, two) = (node(9, "s", Arc::default()), node(2, "s", door.clone()));
    let heard = (started(&nine), started(&two)).1;
    two.answer_calls(Arc::new(Echo));
    nine.set_peer(NodeId(2), two.address().to_string());
    runtime().block_on(async {
        let refused = nine.call(NodeId(2), "hello", Bytes::new(), LONG).await;
        assert_eq!(
            refused,
            Err(CallError::Refused("node 9 was removed".to_owned()))
        );
    });
    let one = node(1, "s", Arc::default());
    let _hears = started(&one);
    one.set_peer(NodeId(2), two.address().to_string());
    for number in 0..20 {
        nine.send(numbered(2, number));
    }
    super::grpc::send_until(&heard, &one, 2);
    assert!(
        heard
            .messages
            .lock()
            .iter()
            .all(|message| message.sender.node == NodeId(1))
    );
    assert_eq!(door.inside.lock().as_slice(), [Admission::Messages]);
    one.stop();
    wait_for("what is admitted ends with its stream", || {
        door.inside.lock().is_empty()
    });
}

#[test]
fn a_request_reaches_the_host_with_its_body_and_its_sender_and_without_the_secret() {
    let (one, two) = (node(1, "s", Arc::default()), node(2, "s", Arc::default()));
    let _hears = (started(&one), started(&two));
    one.set_peer(NodeId(2), two.address().to_string());
    let service = service_fn(|request: http::Request<PeerBody>| async move {
        let from: Claim = *request.extensions().get().unwrap();
        assert!(
            request
                .headers()
                .keys()
                .all(|name| !name.as_str().starts_with("esker-"))
        );
        let mut answer = http::Response::new(request.into_body());
        let node = from.node.to_string().parse().unwrap();
        answer.headers_mut().insert("from", node);
        Ok::<_, Infallible>(answer)
    });
    runtime().block_on(async {
        let send = async |body: &'static str| {
            let body = PeerBody::new(tonic::body::Body::new(body.to_owned()));
            let request = http::Request::post("http://node/some/path")
                .body(body)
                .unwrap();
            one.channel(NodeId(2))
                .unwrap()
                .oneshot(request)
                .await
                .unwrap()
        };
        let early = send("early").await;
        assert_eq!(early.headers()["grpc-status"], "14", "it is unavailable");
        two.serve_requests(PeerRequests::new(service));
        let answer = send("a body").await;
        assert_eq!(answer.headers()["from"], "1");
        let body = read(answer.into_body()).await;
        assert_eq!(body, b"a body");
    });
}

/// The length of the answer to a request with a body.
async fn send(one: Arc<GrpcTransport>, lane: u32, path: &'static str, bytes: usize) -> usize {
    let body = PeerBody::new(tonic::body::Body::new("x".repeat(bytes)));
    let uri = format!("http://node{path}");
    let request = http::Request::post(uri).body(body).unwrap();
    let channel = one.channel_in_lane(NodeId(2), lane).unwrap();
    let answer = channel.oneshot(request).await.unwrap();
    read(answer.into_body()).await.len()
}

#[test]
fn requests_that_are_not_read_hold_up_no_call_and_no_request_of_another_lane() {
    let (one, two) = (node(1, "s", Arc::default()), node(2, "s", Arc::default()));
    let _hears = (started(&one), started(&two));
    one.set_peer(NodeId(2), two.address().to_string());
    two.answer_calls(Arc::new(Echo));
    let service = service_fn(|request: http::Request<PeerBody>| async move {
        let body = request.into_body();
        // Held, and not read: as a session that waits for memory.
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(http::Response::new(body))
    });
    let echo = service_fn(|request: http::Request<PeerBody>| async move {
        Ok::<_, Infallible>(http::Response::new(request.into_body()))
    });
    let service = service_fn(move |request: http::Request<PeerBody>| async move {
        let is_unread = request.uri().path() == "/unread";
        match is_unread {
            true => service.oneshot(request).await,
            false => echo.oneshot(request).await,
        }
    });
    two.serve_requests(PeerRequests::new(service));
    let one = Arc::new(one);
    runtime().block_on(async {
        let mut unread = tokio::task::JoinSet::new();
        for _ in 0..80 {
            unread.spawn(send(one.clone(), 0, "/unread", 1 << 20));
        }
        // Until nothing moves in that lane.
        loop {
            let moves = send(one.clone(), 0, "/echo", 64 * 1024);
            if tokio::time::timeout(Duration::from_millis(300), moves)
                .await
                .is_err()
            {
                break;
            }
        }
        let called = one.call(NodeId(2), "hello", "x".into(), LONG).await;
        assert_eq!(called.unwrap(), r#"hello of 1: b"x""#);
        let other = tokio::time::timeout(LONG, send(one.clone(), 1, "/echo", 1 << 20));
        assert_eq!(other.await, Ok(1 << 20));
        unread.abort_all();
    });
}

async fn read(mut body: PeerBody) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| {
            tonic::codegen::Body::poll_frame(std::pin::Pin::new(&mut body), cx)
        });
        match frame.await {
            Some(Ok(frame)) => all.extend_from_slice(&frame.into_data().unwrap_or_default()),
            _ => return all,
        }
    }
}

/// Admits everybody until it is over, and then nobody.
#[derive(Clone, Default)]
struct Until(Arc<std::sync::atomic::AtomicBool>);

impl Admitted for Until {
    fn is_over(&self) -> Option<Refusal> {
        let is_over = self.0.load(std::sync::atomic::Ordering::SeqCst);
        is_over.then(|| Refusal("it is over".to_owned()))
    }
}

impl Gatekeeper for Until {
    fn admit(
        &self,
        _: &Claim,
        _: Admission,
        _: &str,
        _: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal> {
        match self.is_over() {
            Some(refusal) => Err(refusal),
            None => Ok(Box::new(self.clone())),
        }
    }
}

#[test]
fn a_stream_ends_before_the_next_message_once_what_admitted_it_does_not_hold() {
    let until = Until::default();
    let config_of_two = GrpcConfig {
        gatekeeper: Some(Arc::new(until.clone())),
        ..config(2, "s", None)
    };
    let (one, two) = (
        node(1, "s", Arc::default()),
        GrpcTransport::bind(ANY, config_of_two).unwrap(),
    );
    let said = started(&one);
    let heard = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    super::grpc::send_until(&heard, &one, 2);
    until.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let ended = |times: usize| {
        let before = said.unreachable.lock().len();
        wait_for("the stream ends", || {
            one.send(numbered(2, 9));
            std::thread::sleep(Duration::from_millis(5));
            said.unreachable.lock().len() >= before + times
        });
    };
    ended(1);
    let so_far = heard.messages.lock().len();
    ended(2);
    assert_eq!(heard.messages.lock().len(), so_far);
}
