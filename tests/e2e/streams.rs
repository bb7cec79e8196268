//! Streams: created, listed, deleted, and created by appends and reads.

use futures::TryStreamExt as _;
use s2_sdk::error::{AppendError, ErrorCode, ReadError};
use s2_sdk::types::{
    BasinConfig, CreateStreamInput, DeleteStreamInput, ListAllStreamsInput, ListStreamsInput,
    ReadInput, ReconfigureStreamInput, RetentionPolicy, StreamConfig, StreamInfo,
    StreamReconfiguration, TimestampingConfig, TimestampingMode,
};
use serde_json::json;

use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, stream_name};
use crate::support::{Server, Setup, frames};

fn names(streams: &[StreamInfo]) -> Vec<&str> {
    streams.iter().map(|stream| stream.name.as_ref()).collect()
}

#[tokio::test]
async fn a_created_stream_is_listed_until_it_is_deleted_and_its_name_is_free_at_once() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let info = basin
        .create_stream(CreateStreamInput::new(stream_name("orders")))
        .await
        .unwrap();
    let list = async || basin.list_streams(ListStreamsInput::new()).await.unwrap();
    let page = list().await;
    assert_eq!(names(&page.values), ["orders"]);
    assert_eq!(page.values[0].created_at, info.created_at);
    assert_eq!(page.values[0].deleted_at, None);
    sdk::append(&basin.stream(stream_name("orders")), ["first life"]).await;

    basin
        .delete_stream(DeleteStreamInput::new(stream_name("orders")))
        .await
        .unwrap();
    assert!(list().await.values.is_empty());
    let stream = sdk::stream(&basin, "orders").await;
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
    let ack = sdk::append(&stream, ["second life"]).await;
    assert_eq!(ack.start.seq_num, 0);
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["second life"]);
}

#[tokio::test]
async fn streams_of_all_partitions_are_listed_in_order_by_prefix_start_and_limit() {
    let server = Setup::default().partitions(5).start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let other = sdk::basin(&server.sdk(), "other-basin").await;
    sdk::stream(&other, "item-05-of-another-basin").await;
    // Names in UTF-8 order, of every length, with characters that sort before and after letters.
    let mut all: Vec<String> = (0..25).map(|i| format!("item-{i:02}")).collect();
    all.extend(["", "~", "/a", "é", "\u{1F600}"].map(|end| format!("odd{end}")));
    for name in all.iter().rev() {
        sdk::stream(&basin, name).await;
    }
    all.sort();
    let list = async |input| basin.list_streams(input).await.unwrap();

    let page = list(ListStreamsInput::new()).await;
    assert_eq!(names(&page.values), all);
    assert!(!page.has_more);

    let page = list(ListStreamsInput::new().with_prefix("item-1".parse().unwrap())).await;
    assert_eq!(names(&page.values), all[10..20]);

    for limit in [1, 7, 29, 30, 31] {
        let page = list(ListStreamsInput::new().with_limit(limit)).await;
        assert_eq!(names(&page.values), all[..limit.min(30)]);
        assert_eq!(page.has_more, limit < 30, "{limit}");
    }

    let mut seen = Vec::new();
    loop {
        let mut input = ListStreamsInput::new().with_limit(4);
        if let Some(last) = seen.last() {
            let last: &String = last;
            input = input.with_start_after(last.parse().unwrap());
        }
        let page = list(input).await;
        seen.extend(names(&page.values).iter().map(|n| (*n).to_owned()));
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, all);

    for (prefix, start, expected) in [
        ("item-", "item-21", &all[22..25]),
        ("item-", "item-24", &[][..]),
        ("item-", "aaa", &all[..25]),
        ("item-2", "item-1", &all[20..25]),
        ("item-", "zzz", &[]),
        ("nothing", "", &[]),
        ("odd", "odd", &all[26..]),
    ] {
        let input = ListStreamsInput::new()
            .with_prefix(prefix.parse().unwrap())
            .with_start_after(start.parse().unwrap());
        let page = list(input).await;
        assert_eq!(names(&page.values), expected, "{prefix} {start}");
        assert!(!page.has_more);
    }

    let streamed: Vec<StreamInfo> = basin
        .list_all_streams(ListAllStreamsInput::new().with_prefix("item-".parse().unwrap()))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(names(&streamed), all[..25]);

    // A limit of 0 or over 1000 means the default.
    for limit in [0, 1001] {
        let answer = server
            .http1()
            .get(&format!("/v1/streams?limit={limit}"))
            .basin("test-basin")
            .send()
            .await
            .expect(200);
        assert_eq!(answer.json()["streams"].as_array().unwrap().len(), 30);
    }
}

#[tokio::test]
async fn a_repeated_create_is_the_same_create_only_with_its_token_and_its_configuration() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let name = format!("token-{transport:?}");
        let create = async |token: Option<&str>, config| {
            let request = http.post("/v1/streams").basin("test-basin");
            let request = match token {
                Some(token) => request.header("s2-request-token", token),
                None => request,
            };
            request
                .json(&json!({"stream": name, "config": config}))
                .send()
                .await
        };
        let config = json!({"retention_policy": {"age": 60}});
        let first = create(Some("t"), config.clone()).await.expect(201);
        assert_eq!(first.header("s2-provision-result"), Some("created"));
        let again = create(Some("t"), config.clone()).await;
        assert!(again.status.is_success(), "{}", again.text());
        assert_eq!(again.header("s2-provision-result"), Some("noop"));
        assert_eq!(again.json(), first.json());

        let exists = "resource_already_exists";
        let other = json!({"retention_policy": {"age": 61}});
        create(Some("t"), other).await.refused(409, exists);
        create(Some("u"), config.clone()).await.refused(409, exists);
        create(None, config.clone()).await.refused(409, exists);

        // The basin's defaults are not part of the request.
        http.patch("/v1/basins/test-basin")
            .json(&json!({"default_stream_config": {"storage_class": format!("{transport:?}")}}))
            .send()
            .await
            .expect(200);
        let again = create(Some("t"), config.clone()).await;
        assert!(again.status.is_success(), "{}", again.text());

        // An ensure in between does not discard the token either.
        http.put(&format!("/v1/streams/{name}"))
            .basin("test-basin")
            .send()
            .await
            .expect(200);
        let again = create(Some("t"), config).await;
        assert!(again.status.is_success(), "{}", again.text());
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let missing = stream_name("missing");
    let not_found = Some(ErrorCode::StreamNotFound);
    let code = |error: &s2_sdk::error::RequestError| error.server_error().unwrap().known_code();

    let error = basin.get_stream_config(missing.clone()).await.unwrap_err();
    assert_eq!(code(&error), not_found);
    let error = basin
        .delete_stream(DeleteStreamInput::new(missing.clone()))
        .await
        .unwrap_err();
    assert_eq!(code(&error), not_found);
    basin
        .delete_stream(DeleteStreamInput::new(missing.clone()).with_ignore_not_found(true))
        .await
        .unwrap();
    let input = ReconfigureStreamInput::new(missing.clone(), StreamReconfiguration::new());
    let error = basin.reconfigure_stream(input).await.unwrap_err();
    assert_eq!(code(&error), not_found);
    let stream = basin.stream(missing);
    let error = stream.check_tail().await.unwrap_err();
    assert_eq!(code(error.request_error().unwrap()), not_found);
    let error = stream.read(ReadInput::new()).await.unwrap_err();
    assert_eq!(code(error.request_error().unwrap()), not_found);
    let error = stream.append(sdk::input(["lost"])).await.unwrap_err();
    assert_eq!(code(error.request_error().unwrap()), not_found);

    // Sessions get it as the status of the request.
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for request in [
            http.get("/v1/streams/missing/records?seq_num=0"),
            http.post("/v1/streams/missing/records"),
        ] {
            request
                .basin("test-basin")
                .header("content-type", "s2s/proto")
                .send()
                .await
                .refused(404, "stream_not_found");
        }
        http.get("/v1/streams/missing/records?seq_num=0")
            .basin("test-basin")
            .header("accept", "text/event-stream")
            .send()
            .await
            .refused(404, "stream_not_found");
        http.get("/v1/streams/missing/records/tail")
            .basin("no-such-basin")
            .send()
            .await
            .refused(404, "basin_not_found");
    }
}

#[tokio::test]
async fn an_append_makes_the_stream_if_the_basin_says_so() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let config = BasinConfig::new()
        .with_create_stream_on_append(true)
        .with_default_stream_config(
            StreamConfig::new().with_retention_policy(RetentionPolicy::Age(321)),
        );
    let basin = sdk::basin_with(&s2, "test-basin", config).await;

    // Once for each way to append; the first also has a configuration, which counts only at creation.
    let stream = basin.stream(stream_name("unary"));
    let own = StreamConfig::new()
        .with_timestamping(TimestampingConfig::new().with_mode(TimestampingMode::Arrival));
    let ack = stream
        .append(sdk::input(["one"]).with_stream_config(own))
        .await
        .unwrap();
    assert_eq!(ack.start.seq_num, 0);
    let other = StreamConfig::new()
        .with_timestamping(TimestampingConfig::new().with_mode(TimestampingMode::ClientRequire));
    stream
        .append(sdk::input(["two"]).with_stream_config(other))
        .await
        .unwrap();
    let kept = basin.get_stream_config(stream_name("unary")).await.unwrap();
    assert_eq!(kept.retention_policy, Some(RetentionPolicy::Age(321)));
    assert_eq!(
        kept.timestamping.unwrap().mode,
        Some(TimestampingMode::Arrival)
    );

    let http = server.http2();
    let mut session = frames::Session::<s2_api::v1::stream::proto::AppendAck>::open(
        http.post("/v1/streams/session/records")
            .basin("test-basin")
            .header("s2-stream-config", r#"{"retention_policy":{"age":9}}"#),
    )
    .await;
    session.send(frames::frame(&frames::input(["one"]))).await;
    assert_eq!(session.next().await.message().end.unwrap().seq_num, 1);
    let kept = basin
        .get_stream_config(stream_name("session"))
        .await
        .unwrap();
    assert_eq!(kept.retention_policy, Some(RetentionPolicy::Age(9)));

    // A read creates no stream here.
    let error = basin
        .stream(stream_name("read"))
        .check_tail()
        .await
        .unwrap_err();
    let code = error.request_error().unwrap().server_error().unwrap();
    assert_eq!(code.known_code(), Some(ErrorCode::StreamNotFound));
}

#[tokio::test]
async fn a_read_makes_the_stream_if_the_basin_says_so() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let config = BasinConfig::new().with_create_stream_on_read(true);
    let basin = sdk::basin_with(&s2, "test-basin", config).await;

    let own = StreamConfig::new().with_retention_policy(RetentionPolicy::Infinite);
    let error = basin
        .stream(stream_name("unary"))
        .read(ReadInput::new().with_stream_config(own))
        .await
        .unwrap_err();
    assert!(matches!(error, ReadError::ReadUnwritten(tail) if tail.seq_num == 0));
    let kept = basin.get_stream_config(stream_name("unary")).await.unwrap();
    assert_eq!(kept.retention_policy, Some(RetentionPolicy::Infinite));

    let tail = basin
        .stream(stream_name("tail"))
        .check_tail()
        .await
        .unwrap();
    assert_eq!(tail.seq_num, 0);
    basin.get_stream_config(stream_name("tail")).await.unwrap();

    let http = server.http1();
    http.get("/v1/streams/events/records?seq_num=0&count=1")
        .basin("test-basin")
        .header("accept", "text/event-stream")
        .send()
        .await
        .expect(416);
    basin
        .get_stream_config(stream_name("events"))
        .await
        .unwrap();

    // An invalid read creates nothing, and neither does an invalid append.
    http.get("/v1/streams/nothing/records?timestamp=5&until=5")
        .basin("test-basin")
        .send()
        .await
        .refused(422, "invalid");
    let error = basin
        .stream(stream_name("nothing"))
        .append(sdk::input(["lost"]))
        .await
        .unwrap_err();
    assert!(matches!(error, AppendError::Request(_)), "{error}");
    let error = basin.get_stream_config(stream_name("nothing")).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn many_appends_that_race_to_make_a_stream_all_land_in_the_same_one() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let config = BasinConfig::new().with_create_stream_on_append(true);
    let basin = sdk::basin_with(&s2, "test-basin", config).await;
    let stream = basin.stream(stream_name("raced"));
    let stream = &stream;
    let appends = (0..24).map(|i| async move { sdk::append(stream, [format!("{i}")]).await });
    let mut starts: Vec<u64> = futures::future::join_all(appends)
        .await
        .iter()
        .map(|ack| ack.start.seq_num)
        .collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..24).collect::<Vec<_>>());
    assert_eq!(sdk::read_all(stream).await.len(), 24);
}

#[tokio::test]
async fn a_stream_that_was_deleted_ends_the_sessions_on_it_and_never_shows_them_its_successor() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["first life"]).await;
    let http = server.http2();
    let mut reader = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    assert_eq!(reader.next().await.message().records.len(), 1);
    let mut appender = frames::append_session(&http, "test-basin", "orders").await;
    appender
        .send(frames::frame(&frames::input(["second"])))
        .await;
    appender.next().await.message();

    basin
        .delete_stream(DeleteStreamInput::new(stream_name("orders")))
        .await
        .unwrap();
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["second life"]).await;

    appender
        .send(frames::frame(&frames::input(["third"])))
        .await;
    let end = appender.rest().await.pop().unwrap();
    let frames::Output::Error(404, body) = end else {
        panic!("{end:?}");
    };
    assert_eq!(body["code"], "stream_not_found");
    let outputs = reader.rest().await;
    for output in &outputs {
        if let frames::Output::Message(batch) = output {
            for record in &batch.records {
                assert_ne!(&record.body[..], b"second life");
            }
        }
    }
    let Some(frames::Output::Error(404, body)) = outputs.last() else {
        panic!("{outputs:?}");
    };
    assert_eq!(body["code"], "stream_not_found");
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["second life"]);
}
