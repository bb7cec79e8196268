//! The queue never makes anybody wait, whatever the collector does.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use http::{HeaderMap, Request};
use opentelemetry::trace::{Span as _, Tracer as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use super::*;
use crate::config::Secret;

fn config(address: std::net::SocketAddr) -> TracesConfig {
    TracesConfig {
        endpoint: Some(format!("http://{address}")),
        sampled_per_thousand: 1000,
        ..TracesConfig::default()
    }
}

#[tokio::test]
async fn a_collector_that_hangs_delays_no_span_and_a_stop_by_its_time_limit_at_most() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It takes what is sent, and never answers.
    let collector = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            open.push(tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }));
        }
    });
    let traces = Traces::start(&config(address)).unwrap();
    let running = traces.running().unwrap();
    // More than the queue takes: those beyond it are dropped at once.
    for _ in 0..3 * queue::MAX_QUEUED {
        running.tracer.start("request").end();
    }
    assert!(running.queue.is_full());
    let begun = Instant::now();
    traces.stop(Duration::from_millis(200)).await;
    assert!(
        begun.elapsed() < collector::SEND_TIMEOUT,
        "{:?}",
        begun.elapsed()
    );
    // After a stop, spans are dropped, and another stop has nothing to wait for.
    running.tracer.start("request").end();
    traces.stop(Duration::from_secs(60)).await;
    collector.abort();
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_made_and_a_bad_header_is_refused() {
    let traces = Traces::start(&TracesConfig::default()).unwrap();
    assert!(traces.running().is_none());
    traces.stop(Duration::from_secs(60)).await;
    let bad = TracesConfig {
        header: Some(Secret::new("hush").unwrap()),
        ..config("127.0.0.1:1".parse().unwrap())
    };
    let error = Traces::start(&bad).err().unwrap();
    assert!(
        error.contains("traces.header") && !error.contains("hush"),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_that_is_forwarded_has_the_span_of_this_node_as_its_parent_sampled_or_not() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    // What is sent to another node.
    let seen = get(async |headers: HeaderMap| {
        let parent = headers.get("traceparent");
        parent.map_or_else(String::new, |it| it.to_str().unwrap().to_owned())
    });
    let ask = async |share: u32, forwards: bool, parent: &str| {
        let config = TracesConfig {
            sampled_per_thousand: share,
            ..config("127.0.0.1:1".parse().unwrap())
        };
        let traces = Traces::start(&config).unwrap();
        let layer = from_fn_with_state((traces, forwards), trace);
        let router = Router::new().route("/", seen.clone()).layer(layer);
        let mut request = Request::get("/");
        if !parent.is_empty() {
            request = request.header("traceparent", parent);
        }
        let request = request.body(Body::empty()).unwrap();
        let body = router.oneshot(request).await.unwrap().into_body();
        String::from_utf8(to_bytes(body, 1000).await.unwrap().to_vec()).unwrap()
    };
    for (share, flags) in [(0, "00"), (1000, "01")] {
        let (own, another) = (ask(share, true, "").await, ask(share, true, "").await);
        for parent in [&own, &another] {
            let parts: Vec<_> = parent.split('-').collect();
            let lengths: Vec<_> = parts.iter().map(|it| it.len()).collect();
            assert_eq!(lengths, [2, 32, 16, 2], "{parent}");
            assert_eq!((parts[0], parts[3]), ("00", flags), "{parent}");
        }
        assert_ne!(own, another);
        // The client decides, and its trace goes on.
        for flags in ["00", "01"] {
            let sent = format!("{PARENT}-{flags}");
            let below = ask(share, true, &sent).await;
            assert_eq!(below[..36], sent[..36], "{below}");
            assert_ne!(below[36..52], sent[36..52], "{below}");
            assert_eq!(&below[52..], format!("-{flags}"), "{below}");
            assert_eq!(ask(share, false, &sent).await, sent, "nobody else answers");
        }
    }
}
