//! Conditional appends: expected sequence numbers and fencing tokens; and the command records that set tokens
//! and trim.

use bytes::Bytes;
use s2_api::v1::stream::proto;
use s2_sdk::error::{AppendConditionFailed, AppendError};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, Command, CommandRecord, FencingToken, ReadFrom,
    ReadInput, ReadStart,
};
use serde_json::{Value, json};

use crate::support::frames::{self, Output};
use crate::support::http::{Answer, TRANSPORTS};
use crate::support::sdk;
use crate::support::{Http, Server};

const RECORDS: &str = "/v1/streams/orders/records";

async fn orders(server: &Server) -> s2_sdk::S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

async fn post(http: &Http, body: Value) -> Answer {
    http.post(RECORDS)
        .basin("test-basin")
        .json(&body)
        .send()
        .await
}

async fn commands<C: Into<AppendRecord>>(
    stream: &s2_sdk::S2Stream,
    records: impl IntoIterator<Item = C>,
) -> Result<s2_sdk::types::AppendAck, AppendError> {
    let records = records.into_iter().map(Into::into);
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    stream.append(AppendInput::new(batch)).await
}

fn token(token: &str) -> FencingToken {
    token.parse().unwrap()
}

#[tokio::test]
async fn an_unexpected_sequence_number_is_refused_with_the_next_one_and_nothing_else() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let next = stream.check_tail().await.unwrap().seq_num;
        for wrong in [next + 1, next + 1000, u64::MAX] {
            let answer = post(
                &http,
                json!({"records": [{"body": "x"}], "match_seq_num": wrong}),
            )
            .await
            .expect(412);
            assert_eq!(answer.json(), json!({"seq_num_mismatch": next}));
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
        let ack = post(
            &http,
            json!({"records": [{"body": "x"}], "match_seq_num": next}),
        )
        .await
        .expect(200);
        assert_eq!(ack.json()["start"]["seq_num"], next);
        let answer = post(
            &http,
            json!({"records": [{"body": "x"}], "match_seq_num": next}),
        )
        .await
        .expect(412);
        assert_eq!(answer.json(), json!({"seq_num_mismatch": next + 1}));
        // An error is JSON for clients of protobuf, too.
        let mut input = frames::input(["x"]);
        input.match_seq_num = Some(next);
        let answer = http
            .post(RECORDS)
            .basin("test-basin")
            .header("accept", "application/protobuf")
            .proto(&input)
            .send()
            .await
            .expect(412);
        assert_eq!(answer.json(), json!({"seq_num_mismatch": next + 1}));
    }
    let error = stream
        .append(sdk::input(["x"]).with_match_seq_num(77))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(2))
    ));
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 2);
}

#[tokio::test]
async fn a_fencing_token_in_force_refuses_others_but_not_those_without() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let mine = || sdk::input(["mine"]).with_fencing_token(token("me"));
    // No token is in force: only the empty one matches.
    let error = stream.append(mine()).await.unwrap_err();
    assert!(matches!(
        error,
        AppendError::ConditionFailed(AppendConditionFailed::FencingTokenMismatch(t)) if t.is_empty()
    ));
    post(
        &server.http1(),
        json!({"records": [{"body": "empty"}], "fencing_token": ""}),
    )
    .await
    .expect(200);

    commands(&stream, [CommandRecord::fence(token("me"))])
        .await
        .unwrap();
    stream.append(mine()).await.unwrap();
    sdk::append(&stream, ["without"]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let answer = post(
            &http,
            json!({"records": [{"body": "x"}], "fencing_token": "other"}),
        )
        .await
        .expect(412);
        assert_eq!(answer.json(), json!({"fencing_token_mismatch": "me"}));
        // The token is checked before the sequence number.
        let answer = post(
            &http,
            json!({"records": [{"body": "x"}], "fencing_token": "", "match_seq_num": 999}),
        )
        .await
        .expect(412);
        assert_eq!(answer.json(), json!({"fencing_token_mismatch": "me"}));
        let answer = post(
            &http,
            json!({"records": [{"body": "x"}], "fencing_token": "me", "match_seq_num": 999}),
        )
        .await
        .expect(412);
        assert_eq!(answer.json(), json!({"seq_num_mismatch": 4}));
    }

    // A fence may itself be fenced; an empty one clears.
    let steal: AppendRecord = CommandRecord::fence(token("thief")).into();
    let batch = AppendRecordBatch::try_from_iter([steal]).unwrap();
    let error = stream
        .append(AppendInput::new(batch).with_fencing_token(token("thief")))
        .await
        .unwrap_err();
    assert!(matches!(error, AppendError::ConditionFailed(_)));
    let longest = "x".repeat(36);
    commands(&stream, [CommandRecord::fence(token(&longest))])
        .await
        .unwrap();
    assert!(stream.append(mine()).await.is_err());
    stream
        .append(sdk::input(["long"]).with_fencing_token(token(&longest)))
        .await
        .unwrap();
    post(
        &server.http1(),
        json!({"records": [{"headers": [["", "fence"]]}]}),
    )
    .await
    .expect(200);
    assert!(stream.append(mine()).await.is_err());
    let records = sdk::read_all(&stream).await;
    let fences = records.iter().filter(|r| r.is_command_record()).count();
    assert_eq!(fences, 3, "commands have sequence numbers, too");
}

#[tokio::test]
async fn a_fence_holds_from_its_own_batch_on() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    // Two fences in one batch: the last counts. The condition is checked before the batch.
    commands(
        &stream,
        [
            CommandRecord::fence(token("first")),
            CommandRecord::fence(token("second")),
        ],
    )
    .await
    .unwrap();
    let fence: AppendRecord = CommandRecord::fence(token("third")).into();
    let batch = AppendRecordBatch::try_from_iter([fence]).unwrap();
    stream
        .append(AppendInput::new(batch).with_fencing_token(token("second")))
        .await
        .unwrap();
    stream
        .append(sdk::input(["x"]).with_fencing_token(token("third")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_session_hears_of_a_failed_condition_as_its_end_and_in_the_same_words() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let next = stream.check_tail().await.unwrap().seq_num;
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        let mut right = frames::input(["right"]);
        right.match_seq_num = Some(next);
        let mut wrong = frames::input(["wrong"]);
        wrong.match_seq_num = Some(next);
        session.send(frames::frame(&right)).await;
        session.send(frames::frame(&wrong)).await;
        session.next().await.message();
        let end = session.next().await;
        assert_eq!(
            end,
            Output::Error(412, json!({"seq_num_mismatch": next + 1}))
        );

        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        let mut wrong = frames::input(["wrong"]);
        wrong.fencing_token = Some("nobody".to_owned());
        session.send(frames::frame(&wrong)).await;
        let end = session.next().await;
        assert_eq!(
            end,
            Output::Error(412, json!({"fencing_token_mismatch": ""}))
        );
    }
    assert_eq!(
        sdk::bodies(&sdk::read_all(&stream).await),
        ["right", "right"]
    );
}

#[tokio::test]
async fn of_many_who_expect_the_same_sequence_number_one_appends() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let stream = &stream;
    for round in 0..20 {
        let appends = (0..8).map(|i| async move {
            let input = sdk::input([format!("{round} {i}")]).with_match_seq_num(round);
            stream.append(input).await
        });
        let results = futures::future::join_all(appends).await;
        let mut winners = 0;
        for result in results {
            match result {
                Ok(ack) => {
                    assert_eq!(ack.start.seq_num, round);
                    winners += 1;
                }
                Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(next))) => {
                    assert_eq!(next, round + 1);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners, 1);
    }
    assert_eq!(sdk::read_all(stream).await.len(), 20);
}

/// Reads from the beginning. Returns the sequence numbers.
async fn kept(stream: &s2_sdk::S2Stream) -> Vec<u64> {
    sdk::seq_nums(&sdk::read_all(stream).await)
}

#[tokio::test]
async fn a_trim_is_exact_for_readers_at_once() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    // One batch of many records, so that the trim point lies inside it.
    sdk::append(&stream, (0..10).map(|i| format!("{i}"))).await;
    let trim = async |point| {
        let ack = commands(&stream, [CommandRecord::trim(point)]).await;
        ack.unwrap().start.seq_num
    };
    let at = trim(4).await;
    assert_eq!(at, 10);
    assert_eq!(kept(&stream).await, (4..=10).collect::<Vec<_>>());
    // A read below the trim point begins at the head without an error, whatever the start.
    let http = server.http1();
    for query in [
        "seq_num=0",
        "seq_num=3",
        "timestamp=0",
        "tail_offset=11",
        "tail_offset=7",
    ] {
        let answer = http
            .get(&format!("{RECORDS}?{query}&count=1"))
            .basin("test-basin")
            .send()
            .await
            .expect(200);
        assert_eq!(answer.json()["records"][0]["seq_num"], 4, "{query}");
    }
    // A smaller point changes nothing.
    trim(2).await;
    assert_eq!(kept(&stream).await, (4..=11).collect::<Vec<_>>());
    // A trim point beyond the tail trims everything before the command, and the command itself, but no more.
    trim(u64::MAX).await;
    assert_eq!(kept(&stream).await, Vec::<u64>::new());
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 13);
    sdk::append(&stream, ["still here"]).await;
    assert_eq!(kept(&stream).await, [13]);
    // A trim point at the command's own position keeps the command.
    let at = trim(14).await;
    assert_eq!(at, 14);
    assert_eq!(kept(&stream).await, [14]);
    let records = sdk::read_all(&stream).await;
    assert!(records[0].is_command_record());
    assert_eq!(&records[0].body[..], 14u64.to_be_bytes());
}

#[tokio::test]
async fn a_snapshot_and_the_trim_before_it_land_together_or_not_at_all() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["a", "b", "c"]).await;
    let replace = |cursor: u64, expected: u64| {
        let records: [AppendRecord; 2] = [
            CommandRecord::trim(cursor + 1).into(),
            AppendRecord::new(format!("snapshot at {cursor}")).unwrap(),
        ];
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        AppendInput::new(batch).with_match_seq_num(expected)
    };
    // Another client was faster: neither the trim nor the snapshot is appended.
    let error = stream.append(replace(2, 2)).await.unwrap_err();
    assert!(matches!(error, AppendError::ConditionFailed(_)));
    assert_eq!(kept(&stream).await, [0, 1, 2]);
    // The trim removes the command itself, too: the stream then begins with the snapshot.
    stream.append(replace(3, 3)).await.unwrap();
    let records = sdk::read_all(&stream).await;
    assert_eq!(sdk::seq_nums(&records), [4]);
    assert_eq!(sdk::bodies(&records), ["snapshot at 3"]);
    sdk::append(&stream, ["d"]).await;
    stream.append(replace(6, 6)).await.unwrap();
    assert_eq!(kept(&stream).await, [7]);
}

#[tokio::test]
async fn a_follower_sees_the_command_records_and_the_client_can_leave_them_out() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let fence: AppendRecord = CommandRecord::fence(token("me")).into();
    let trim: AppendRecord = CommandRecord::trim(0).into();
    let plain = AppendRecord::new("plain").unwrap();
    let batch = AppendRecordBatch::try_from_iter([fence, plain, trim]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    let start = ReadStart::new().with_from(ReadFrom::SeqNum(0));
    let all = stream
        .read(ReadInput::new().with_start(start.clone()))
        .await
        .unwrap();
    let commands: Vec<bool> = all.records.iter().map(|r| r.is_command_record()).collect();
    assert_eq!(commands, [true, false, true]);
    let some = stream
        .read(
            ReadInput::new()
                .with_start(start)
                .with_ignore_command_records(true),
        )
        .await
        .unwrap();
    assert_eq!(sdk::bodies(&some.records), ["plain"]);

    // In JSON, base64 and protobuf alike.
    let http = server.http2();
    let answer = http
        .get(&format!("{RECORDS}?seq_num=0"))
        .basin("test-basin")
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(answer["records"][0]["headers"], json!([["", "fence"]]));
    assert_eq!(answer["records"][0]["body"], "me");
    assert_eq!(answer["records"][2]["headers"], json!([["", "trim"]]));
    let batch: proto::ReadBatch = http
        .get(&format!("{RECORDS}?seq_num=2"))
        .basin("test-basin")
        .header("accept", "application/protobuf")
        .send()
        .await
        .expect(200)
        .proto();
    assert_eq!(batch.records[0].body, Bytes::from_static(&[0; 8]));
    let kind = Command::Trim { trim_point: 0 };
    assert!(format!("{kind:?}").contains("Trim"));
}
