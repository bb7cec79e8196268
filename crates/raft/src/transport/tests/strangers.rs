//! The listener and those who are no nodes: connections without number, silence, garbage; and nodes that do not answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::super::grpc::{CallError, GrpcConfig, GrpcTransport, call_at};
use super::grpc::{send_until, transport};
use super::*;

/// Places for strangers.
const MAX_STRANGERS: usize = 256;
/// How long a stranger may stay, and some.
const GONE: Duration = Duration::from_secs(40);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(GONE)).unwrap();
    stream
}

/// Whether the other end has closed the connection, or does within the time of the socket. What it sends is dropped.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return false,
            Err(_) => return true,
        }
    }
}

/// A HEADERS frame of the request POST /a, without the secret.
fn unauthorized_request(stream: u32) -> Vec<u8> {
    // POST and http by their index, the path literally, nothing indexed.
    let block = [0x83, 0x86, 0x04, 0x02, b'/', b'a'];
    let mut frame = vec![0, 0, block.len() as u8, 1, 0x5];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

#[test]
fn connections_without_number_are_closed_again_and_keep_no_node_out() {
    const ALL: usize = 1200;
    let (one, two) = (transport(None), transport(None));
    let _hears = started(&one);
    let heard = started(&two);
    let mut strangers = Vec::new();
    for number in 0..ALL {
        strangers.push(connect(two.address()));
        if number == ALL / 2 {
            one.set_peer(NodeId(2), two.address().to_string());
            send_until(&heard, &one, 2);
        }
        if number % 100 == 0 {
            // Not all at once: the kernel's queue is short.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // However fast they came, there were never more than there are places: others were closed.
    for stranger in &mut strangers[..ALL - MAX_STRANGERS] {
        assert!(is_closed(stranger), "it is open after {GONE:?}");
    }
    let most = two.most_strangers();
    assert!(most <= MAX_STRANGERS, "{most} were open at a time");
    heard.messages.lock().clear();
    send_until(&heard, &one, 2);
}

#[test]
fn whoever_sends_nothing_or_no_request_that_is_admitted_is_closed_in_time() {
    let two = transport(Some("sesame"));
    let _hears = started(&two);
    let silent = connect(two.address());
    let mut begun = connect(two.address());
    begun.write_all(&PREFACE[..10]).unwrap();
    let mut idle = connect(two.address());
    idle.write_all(PREFACE).unwrap();
    idle.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    let mut refused = idle.try_clone().unwrap();
    refused.write_all(&unauthorized_request(1)).unwrap();
    for mut stranger in [silent, begun, idle] {
        assert!(is_closed(&mut stranger), "it is open after {GONE:?}");
    }
}

#[test]
fn whoever_is_refused_again_and_again_is_closed_at_once() {
    let two = transport(Some("sesame"));
    let _hears = started(&two);
    let mut stranger = connect(two.address());
    stranger.write_all(PREFACE).unwrap();
    stranger.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    for stream in 0..100 {
        // It may be closed by then.
        let _ = stranger.write_all(&unauthorized_request(2 * stream + 1));
    }
    assert!(is_closed(&mut stranger));
}

#[test]
fn garbage_and_oversized_frames_end_their_connection_alone() {
    let (one, two) = (transport(None), transport(None));
    let _hears = started(&one);
    let heard = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard, &one, 2);
    let noise: Vec<u8> = (0..10_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A frame of 16 MiB, of which nothing is read; and one of a type that nobody knows.
    let oversized = [
        PREFACE,
        &settings,
        &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        &noise,
    ]
    .concat();
    let unknown_then_noise = [PREFACE, &settings, &noise].concat();
    let http1 = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n".to_vec();
    for garbage in [noise, oversized, unknown_then_noise, http1] {
        let mut stranger = connect(two.address());
        // It may be closed before all is sent.
        let _ = stranger.write_all(&garbage);
        assert!(is_closed(&mut stranger));
    }
    heard.messages.lock().clear();
    send_until(&heard, &one, 2);
}

#[test]
fn a_node_that_accepts_and_never_answers_is_waited_for_with_a_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = std::thread::spawn(move || {
        let mut all = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            all.push(stream);
            if all.len() == 3 {
                return all;
            }
        }
        all
    });
    let one = transport(None);
    let heard = started(&one);
    one.set_peer(NodeId(2), address.to_string());
    runtime().block_on(async {
        let longest = Duration::from_millis(300);
        let config = GrpcConfig::default();
        let called = call_at(
            &address.to_string(),
            &config,
            "hello",
            Bytes::new(),
            longest,
        )
        .await;
        assert!(
            matches!(called, Err(CallError::Unavailable(_))),
            "{called:?}"
        );
        // A request has no deadline of its own: the connection does.
        let request = http::Request::post("http://node/some/path")
            .body(tonic::body::Body::empty())
            .unwrap();
        let sent = tower::ServiceExt::oneshot(one.channel(NodeId(2)).unwrap(), request);
        let sent = tokio::time::timeout(GONE, sent).await;
        assert!(sent.expect("the connection ends").is_err());
    });
    // Messages neither wait for ever, nor are they lost without the group's knowledge.
    one.send(numbered(2, 1));
    wait_for("it is reported", || !heard.unreachable.lock().is_empty());
    drop(accepting.join().unwrap());
}

#[test]
fn a_transport_without_certificates_takes_none_later() {
    let one = GrpcTransport::bind(super::grpc::ANY, GrpcConfig::default()).unwrap();
    let set = one.set_tls(&super::super::grpc::TlsConfig::default());
    assert_eq!(set, Err(super::super::grpc::TlsError::Off));
}
