//! Reads as server-sent events.

use super::{RECORDS, orders};
use crate::support::events::Events;
use crate::support::http::TRANSPORTS;
use crate::support::{Server, sdk};

#[tokio::test]
async fn events_have_cumulative_ids_and_a_resumed_read_deducts_what_was_delivered() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let http = server.http1();
    // "x" has 9 metered bytes. Two connections end at the tail, the third at the limit.
    for limits in [
        "count=10",
        "bytes=90",
        "count=10&bytes=999",
        "count=99&bytes=95",
    ] {
        let base = stream.check_tail().await.unwrap().seq_num;
        let query = format!("seq_num={base}&{limits}");
        let mut last: Option<String> = None;
        let mut seen = Vec::new();
        for (more, total) in [(4, 4), (3, 7), (13, 10)] {
            sdk::append(&stream, vec!["x"; more]).await;
            let mut events =
                Events::open(&http, "test-basin", "orders", &query, last.as_deref()).await;
            let mut events = events.rest().await;
            assert_eq!(events.pop().unwrap().data, "[DONE]");
            for event in &events {
                assert_eq!(event.event, "batch");
                seen.extend(event.seq_nums());
                let id = event.id.clone().unwrap();
                let at = seen.last().unwrap();
                assert_eq!(id, format!("{at},{},{}", seen.len(), 9 * seen.len()));
                last = Some(id);
            }
            assert_eq!(seen, (base..base + total).collect::<Vec<_>>(), "{limits}");
        }
        let mut events = Events::open(&http, "test-basin", "orders", &query, last.as_deref()).await;
        let rest = events.rest().await;
        assert_eq!(rest.len(), 1, "the limit is used up: {rest:?}");
    }
    // Invented counters in the id are used as they are, and the largest ones do no harm.
    sdk::append(&stream, ["x", "x"]).await;
    let huge = format!("0,{},{}", usize::MAX - 1, usize::MAX);
    let mut events = Events::open(
        &http,
        "test-basin",
        "orders",
        "seq_num=0&wait=0",
        Some(&huge),
    )
    .await;
    let first = events.next().await.unwrap();
    assert_eq!(first.seq_nums()[0], 1);
    let id = first.id.unwrap();
    assert!(
        id.ends_with(&format!(",{},{}", usize::MAX, usize::MAX)),
        "{id}"
    );
    for bad in ["", "1", "1,2", "a,b,c", "1,2,-3", "1,2,3,4"] {
        http.get(&format!("{RECORDS}?seq_num=0"))
            .basin("test-basin")
            .header("accept", "text/event-stream")
            .header("last-event-id", bad)
            .send()
            .await
            .refused(400, "bad_header");
    }
}

#[tokio::test]
async fn a_follower_gets_a_ping_at_the_tail_and_records_as_they_come() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["a"]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let next = stream.check_tail().await.unwrap().seq_num;
        let query = format!("seq_num={}", next - 1);
        let mut events = Events::open(&http, "test-basin", "orders", &query, None).await;
        assert_eq!(events.next().await.unwrap().seq_nums(), [next - 1]);
        let ping = events.next().await.unwrap();
        assert_eq!(ping.event, "ping");
        assert_eq!(ping.json()["tail"]["seq_num"], next);
        assert!(ping.json()["timestamp"].as_u64().unwrap() > 1_000_000_000_000);
        sdk::append(&stream, ["b", "c"]).await;
        let event = events.batch().await;
        assert_eq!(event.seq_nums(), [next, next + 1]);
        assert_eq!(event.json()["tail"]["seq_num"], next + 2);
    }
}

#[tokio::test]
async fn the_format_of_bodies_is_the_one_asked_for() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, [vec![0xff, 0xfe]]).await;
    let mut exchange = server
        .http1()
        .get(&format!("{RECORDS}?seq_num=0&count=1"))
        .basin("test-basin")
        .header("accept", "text/event-stream")
        .header("s2-format", "base64")
        .open()
        .await;
    exchange.finish();
    let text = exchange.rest().await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(text.contains(r#""body":"//4=""#), "{text}");
}
