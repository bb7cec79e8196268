//! Sessions that are under way when their token ends.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use s2_sdk::types::{ReadInput, ReadSessionConfig};
use serde_json::json;

use super::{REVOCATION, ROOT, World, all_of, appends_end};
use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, stream_name};
use crate::support::{events, frames, soon};

#[tokio::test]
async fn a_revocation_and_an_expiry_end_live_sessions() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["one"]).await;
    for transport in TRANSPORTS {
        for how in ["revoked", "expired"] {
            let more = match how {
                "expired" => {
                    // Long enough for a slow machine to open the sessions before.
                    let at = time::OffsetDateTime::now_utc() + 2 * REVOCATION;
                    let at = at.format(&time::format_description::well_known::Rfc3339);
                    json!({"expires_at": at.unwrap()})
                }
                _ => json!({}),
            };
            let id = format!("{how}-{transport:?}");
            let token = world.issue_as(ROOT, &id, all_of("test-basin"), more).await;
            let http = || world.http(transport, &token);
            let (for_events, for_reads, for_appends) = (http(), http(), http());
            let mut events =
                events::Events::open(&for_events, "test-basin", "orders", "seq_num=0", None).await;
            events.batch().await;
            let mut reads =
                frames::read_session(&for_reads, "test-basin", "orders", "seq_num=0").await;
            reads.batch().await;
            let mut appends = frames::append_session(&for_appends, "test-basin", "orders").await;
            appends.send(frames::frame(&frames::input(["x"]))).await;
            appends.next().await.message();
            let began = Instant::now();
            if how == "revoked" {
                world.revoke(&id).await;
            }
            let end = events.rest().await;
            let end = end.last().unwrap();
            assert_eq!(end.event, "error", "{end:?}");
            assert_eq!(end.json()["code"], "authn");
            for end in [reads.rest().await.pop(), appends_end(&mut appends).await] {
                let Some(frames::Output::Error(status, body)) = end else {
                    panic!("it ends with an error");
                };
                assert_eq!((status, &body["code"]), (401, &json!("authn")));
            }
            let took = began.elapsed();
            assert!(
                took < 3 * REVOCATION + Duration::from_secs(5),
                "{how}: {took:?}"
            );
        }
    }
    // The official client's session ends, too.
    let token = world.issue("live", all_of("test-basin")).await;
    let live = sdk::client_with_token(world.server.url(), &token);
    let live = live.basin(sdk::basin_name("test-basin"));
    let live = live.stream(stream_name("orders"));
    let mut session = live
        .read_session(ReadInput::new(), ReadSessionConfig::new())
        .await
        .unwrap();
    soon("a batch", session.next()).await.unwrap().unwrap();
    world.revoke("live").await;
    let ended = soon("the end", async {
        while let Some(next) = session.next().await {
            if let Err(error) = next {
                return Some(error);
            }
        }
        None
    });
    let error = ended.await.expect("an error");
    assert!(error.to_string().contains("access token"), "{error}");
}
