//! The queue never makes anybody wait, whatever the collector does.

use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, Tracer as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

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
