//! Traces of requests, as a collector receives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Cluster, Http, Server, Setup, eventually, sdk};

const RECORDS: &str = "/v1/streams/orders/records";
/// A body and a name that no trace may contain.
const HUSH: &str = "hush-hush";

/// A collector of OpenTelemetry.
struct Collector {
    address: String,
    received: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    services: Vec<String>,
    /// Heads and bodies of all requests.
    bytes: Vec<u8>,
}

/// What a collector does with a request that it has read.
#[derive(Clone, Copy)]
enum Answers {
    Ok,
    Never,
}

impl Collector {
    async fn start(answers: Answers) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let received: Arc<Mutex<Received>> = Arc::default();
        let all = received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(collect(stream, all.clone(), answers));
            }
        });
        Collector { address, received }
    }

    fn spans(&self) -> Vec<Span> {
        self.received.lock().unwrap().spans.clone()
    }

    /// The span of a request, once it has arrived.
    async fn span(&self, name: &str) -> Span {
        eventually(&format!("a span {name}"), async || {
            self.spans().into_iter().find(|span| span.name == name)
        })
        .await
    }

    fn setup(&self) -> Setup {
        Setup::default()
            .set(&format!("traces.endpoint=http://{}", self.address))
            .set("traces.sampled-per-thousand=1000")
    }
}

/// Reads requests of HTTP/1.1 with a length, one after the other.
async fn collect(mut stream: TcpStream, received: Arc<Mutex<Received>>, answers: Answers) {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
        assert!(text.starts_with("post /v1/traces http/1.1"), "{text}");
        assert!(
            text.contains("content-type: application/x-protobuf"),
            "{text}"
        );
        let length = text.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        while bytes.len() < head + length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let rest = bytes.split_off(head + length);
        let request = ExportTraceServiceRequest::decode(&bytes[head..]).unwrap();
        {
            let mut received = received.lock().unwrap();
            received.bytes.extend_from_slice(&bytes);
            for of_resource in request.resource_spans {
                let resource = of_resource.resource.unwrap();
                let service = text_of(&resource.attributes, "service.name");
                received.services.extend(service);
                for scope in of_resource.scope_spans {
                    received.spans.extend(scope.spans);
                }
            }
        }
        bytes = rest;
        match answers {
            Answers::Ok => {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            Answers::Never => std::future::pending().await,
        }
    }
}

fn text_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|it| it.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

async fn append(http: &Http) {
    http.post(RECORDS)
        .basin("test-basin")
        .json(&json!({"records": [{"body": HUSH}]}))
        .send()
        .await
        .expect(200);
}

async fn with_a_stream(setup: Setup) -> Server {
    let server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    server
}

#[tokio::test]
async fn an_append_is_a_span_with_its_admission_its_sync_and_its_apply_below_it() {
    let collector = Collector::start(Answers::Ok).await;
    let setup = collector.setup().set("traces.service-name=tower");
    let server = with_a_stream(setup.set(&format!("traces.header=x-key: {HUSH}-key"))).await;
    server
        .http2()
        .post(RECORDS)
        .basin("test-basin")
        .header("authorization", &format!("Bearer {HUSH}"))
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .header("tracestate", &format!("key={HUSH}"))
        .json(&json!({"records": [{"body": HUSH}]}))
        .send()
        .await
        .expect(200);

    let name = "POST /v1/streams/{stream}/records";
    let span = eventually("the span of the append", async || {
        let spans = collector.spans();
        spans
            .into_iter()
            .find(|it| it.name == name && !it.parent_span_id.is_empty())
    })
    .await;
    assert_eq!(
        span.trace_id,
        0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes()
    );
    assert_eq!(span.parent_span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/streams/{stream}/records"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "2"),
    ] {
        assert_eq!(
            text_of(&span.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    let children = eventually("its children", async || {
        let spans = collector.spans().into_iter();
        let below = spans.filter(|it| it.parent_span_id == span.span_id);
        let below: BTreeMap<_, _> = below.map(|it| (it.name.clone(), it)).collect();
        (below.len() == 3).then_some(below)
    })
    .await;
    let (admission, log, apply) = (&children["admission"], &children["log"], &children["apply"]);
    let times = [
        span.start_time_unix_nano,
        admission.end_time_unix_nano,
        log.start_time_unix_nano,
        log.end_time_unix_nano,
        apply.end_time_unix_nano,
        span.end_time_unix_nano,
    ];
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(admission.start_time_unix_nano, span.start_time_unix_nano);
    assert_eq!(apply.start_time_unix_nano, log.end_time_unix_nano);

    let received = collector.received.lock().unwrap();
    assert!(received.services.iter().all(|service| service == "tower"));
    // The header of the configuration is sent; bodies, tokens and names are not.
    let text = String::from_utf8_lossy(&received.bytes);
    assert!(text.contains(&format!("x-key: {HUSH}-key")));
    assert!(!text.replace(&format!("{HUSH}-key"), "").contains(HUSH));
    assert!(!text.contains("test-basin") && !text.contains("orders"));
}

#[tokio::test]
async fn a_request_has_a_trace_if_its_parent_has_one_whatever_the_share_is() {
    let collector = Collector::start(Answers::Ok).await;
    let setup = Setup::default().set(&format!("traces.endpoint=http://{}", collector.address));
    let server = with_a_stream(setup.set("traces.sampled-per-thousand=0")).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    for (flags, path) in [("00", "/health"), ("01", "/ping")] {
        server
            .http1()
            .get(path)
            .header("traceparent", &format!("{parent}-{flags}"))
            .send()
            .await
            .expect(200);
    }
    // A client may invent a path, a method or a parent: none becomes a name.
    let http = server.http1();
    http.get("/no/such/path")
        .header("traceparent", "00-zz-zz-01")
        .send()
        .await
        .expect(400);
    collector.span("GET /ping").await;
    let names: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    assert!(!names.contains(&"GET /health".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| !name.contains("such")), "{names:?}");
}

#[tokio::test]
async fn a_collector_that_hangs_or_is_gone_delays_no_request_and_no_stop() {
    let hanging = Collector::start(Answers::Never).await;
    let gone = Collector {
        address: "127.0.0.1:9".to_owned(),
        received: Arc::default(),
    };
    for collector in [hanging, gone] {
        let mut server = with_a_stream(collector.setup()).await;
        let http = server.http1();
        for _ in 0..50 {
            append(&http).await;
        }
        // What it has not taken after some time is counted.
        eventually("spans that the collector did not take", async || {
            let text = server.http1().get("/metrics").send().await.text();
            let failed = text
                .lines()
                .find_map(|line| line.strip_prefix("esker_trace_spans_total{result=\"failed\"} "));
            failed.filter(|failed| *failed != "0").map(|_| ())
        })
        .await;
        append(&http).await;
        // Less than the time limit of one request to the collector, in addition to the rest.
        tokio::time::timeout(Duration::from_secs(10), server.stop())
            .await
            .expect("a stop");
    }
}

#[tokio::test]
async fn a_stop_sends_the_spans_that_have_ended() {
    let collector = Collector::start(Answers::Ok).await;
    let mut server = with_a_stream(collector.setup()).await;
    append(&server.http1()).await;
    server.stop().await;
    let names: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    assert!(
        names.contains(&"POST /v1/streams/{stream}/records".to_owned()),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_another_node_answers_is_one_trace_down_to_its_sync_there() {
    const NAME: &str = "POST /v1/streams/{stream}/records";
    let collector = Collector::start(Answers::Ok).await;
    let cluster = Cluster::start(&collector.setup().partitions(1)).await;
    let leader = cluster.keeper_of(1, 0).await;
    let gateway = (leader + 1) % cluster.count();
    let basin = sdk::basin(&cluster.client(gateway), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    // The client traces nothing. An append that came just before the leadership moved is another one.
    let (outer, inner) = eventually("an append is a span of two nodes", async || {
        append(&cluster.server(gateway).http1()).await;
        let spans = collector.spans();
        let appends: Vec<_> = spans.iter().filter(|it| it.name == NAME).collect();
        let outer = |inner: &&Span| {
            let of = appends
                .iter()
                .find(|it| it.span_id == inner.parent_span_id)?;
            Some((Span::clone(of), Span::clone(inner)))
        };
        appends.iter().find_map(outer)
    })
    .await;
    assert!(outer.parent_span_id.is_empty(), "{outer:?}");
    assert_eq!(outer.trace_id, inner.trace_id);
    let mut below = eventually("what it passed there", async || {
        let spans = collector.spans().into_iter();
        let below = spans.filter(|it| it.parent_span_id == inner.span_id);
        let below: Vec<_> = below.collect();
        (below.len() == 3).then_some(below)
    })
    .await;
    below.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<_> = below.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["admission", "apply", "log"]);
    assert!(below.iter().all(|it| it.trace_id == outer.trace_id));
    // It is the only one of its trace that nobody has sent on.
    let spans = collector.spans().into_iter();
    let whole: Vec<_> = spans.filter(|it| it.trace_id == outer.trace_id).collect();
    assert_eq!(whole.len(), 5, "{whole:?}");
}
