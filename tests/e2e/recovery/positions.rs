//! The position of a stream, before and after losses: the owner of a state can determine whether the state is
//! of the stream's history.

use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use serde_json::{Value, json};

use super::contents::GAP;
use super::history::{quiet, wait_for_new_lineage};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node, PARTITIONS};
use crate::support::{Server, sdk};

const BASIN: &str = "states-basin";
const STREAM: &str = "state/of orders";
const ENCODED: &str = "state%2Fof%20orders";

/// Requests the position of a stream; its name is percent-encoded.
pub async fn position(server: &Server, basin: &str, stream: &str) -> Value {
    let path = format!("/esker/v1/streams/{stream}/position");
    let answer = server.http1().get(&path).basin(basin).send().await;
    answer.expect(200).json()
}

/// A fork in the form in which a position lists it.
pub fn fork(parent: &str, seq_num: u64, resumes_at: u64) -> Value {
    json!({ "parent": parent, "seq_num": seq_num, "resumes_at": resumes_at })
}

fn lineage(position: &Value) -> String {
    position["lineage"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_fork_is_listed_with_where_it_cut_a_history_off_and_where_numbers_go_on() {
    let node = Node::new(Kind::Directory, quiet()).await;
    let restore = node.setup.clone().bootstrap("restore");
    let mut server = node.setup.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), BASIN).await;
    let stream = sdk::stream(&basin, STREAM).await;
    let kept = sdk::append(&stream, (0..25).map(|i| format!("kept {i}"))).await;
    for partition in 0..=PARTITIONS {
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        server.http1().post(&path).send().await.expect(200);
    }

    let before = position(&server, BASIN, ENCODED).await;
    let listed = server.http1().get("/v1/streams").basin(BASIN).send().await;
    let created_at = listed.json()["streams"][0]["created_at"].clone();
    let first = lineage(&before);
    let expected = json!({
        "head": 0,
        "tail": 25,
        "tail_timestamp": kept.tail.timestamp,
        "created_at": created_at,
        "lineage": first,
        "forks": [],
        "gaps": [],
    });
    assert_eq!(before, expected);
    // These records have no copy.
    sdk::append(&stream, (0..15).map(|i| format!("lost {i}"))).await;
    let later = position(&server, BASIN, ENCODED).await;
    assert_eq!(
        (&later["tail"], lineage(&later)),
        (&json!(40), first.clone())
    );

    server.kill();
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let mut server = restore.start(&node.data()).await;
    let after = position(&server, BASIN, ENCODED).await;
    let second = lineage(&after);
    assert_ne!(second, first);
    let first_fork = fork(&first, 25, 25 + GAP);
    let mut expected = before.clone();
    expected["tail"] = json!(25 + GAP);
    expected["lineage"] = json!(second);
    expected["forks"] = json!([first_fork]);
    assert_eq!(after, expected);
    // The numbers continue there.
    let stream = server.sdk().basin(sdk::basin_name(BASIN));
    let stream = stream.stream(sdk::stream_name(STREAM));
    let ack = sdk::append(&stream, ["of the second line"]).await;
    assert_eq!(ack.start.seq_num, 25 + GAP);
    let read = stream.read(sdk::from_seq(24, 10)).await.unwrap();
    assert_eq!(sdk::seq_nums(&read.records), [24, 25 + GAP]);
    // A stream that is created now was not part of the fork.
    let basin = server.sdk().basin(sdk::basin_name(BASIN));
    sdk::stream(&basin, "late").await;
    let late = position(&server, BASIN, "late").await;
    assert_eq!((&late["tail"], &late["forks"]), (&json!(0), &json!([])));

    // The stream is trimmed up to the fork, by a new record: the fork is still listed, also after a kill.
    let trim: AppendRecord = CommandRecord::trim(25).into();
    let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
    stream.append(AppendInput::new(trim)).await.unwrap();
    server.kill();
    let mut server = node.setup.start(&node.data()).await;
    let trimmed = position(&server, BASIN, ENCODED).await;
    assert_eq!(trimmed["head"], json!(25 + GAP));
    assert_eq!(trimmed["tail"], json!(27 + GAP));
    assert_eq!(trimmed["forks"], json!([first_fork]));

    // Two more losses, with no append in between.
    for partition in 0..=PARTITIONS {
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        server.http1().post(&path).send().await.expect(200);
    }
    let mut lines = vec![second];
    for _ in 0..2 {
        server.kill();
        inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
        server = restore.start(&node.data()).await;
        wait_for_new_lineage(&node.target).await;
        lines.push(lineage(&position(&server, BASIN, ENCODED).await));
    }
    let thrice = position(&server, BASIN, ENCODED).await;
    let (cut, end) = (27 + GAP, 27 + 3 * GAP);
    // The second one had nothing of its own: its numbers continued one gap further up.
    let mut second_of_two = fork(&lines[1], cut, end);
    second_of_two["parent_resumed_at"] = json!(cut + GAP);
    let forks = [first_fork, fork(&lines[0], cut, end), second_of_two];
    assert_eq!(thrice["forks"], json!(forks));
    assert_eq!(thrice["tail"], json!(end));
    assert_eq!(lineage(&thrice), lines[2]);
    let stream = server.sdk().basin(sdk::basin_name(BASIN));
    let stream = stream.stream(sdk::stream_name(STREAM));
    let ack = sdk::append(&stream, ["of the fourth line"]).await;
    assert_eq!(ack.start.seq_num, end);
}
