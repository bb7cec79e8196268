//! Losses of data: `--bootstrap restore` accepts them, and a new lineage begins.

use s2_sdk::S2;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError};

use super::contents::{Contents, GAP, contents, stream};
use super::history::{
    History, caught_up, is_healthy, kept, lineages, run_concurrently, start_and_read,
    wait_for_new_lineage,
};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node, PARTITIONS};
use crate::support::{Setup, eventually, sdk};

/// Which phase is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// The state after this one, exactly.
    To(usize),
    /// At least the state after this one, and at most what was acknowledged.
    AtLeast(usize),
    /// One partition to the state after this one, the others to the one after.
    OneTo(usize),
}

const LOSSES: &[(Loss, RepositoryLoss, Back)] = &[
    (Loss::Everything, RepositoryLoss::Nothing, Back::To(3)),
    (Loss::Everything, RepositoryLoss::NewestFlipped, Back::To(2)),
    (
        Loss::Everything,
        RepositoryLoss::NewestWithoutDescription,
        Back::To(2),
    ),
    (Loss::Everything, RepositoryLoss::AllButOldest, Back::To(1)),
    (Loss::Everything, RepositoryLoss::OneNewest, Back::OneTo(2)),
    (Loss::Log, RepositoryLoss::Nothing, Back::AtLeast(3)),
    (Loss::Log, RepositoryLoss::Emptied, Back::AtLeast(3)),
    (Loss::LogDamaged, RepositoryLoss::Nothing, Back::AtLeast(3)),
    (Loss::OldLog, RepositoryLoss::Nothing, Back::AtLeast(3)),
    (
        Loss::LogAndDatabase,
        RepositoryLoss::Nothing,
        Back::AtLeast(3),
    ),
    (
        Loss::LogAndDatabaseAndLocalSnapshots,
        RepositoryLoss::Nothing,
        Back::To(3),
    ),
    (
        Loss::LogAndDatabaseAndLocalSnapshots,
        RepositoryLoss::AllButOldest,
        Back::To(1),
    ),
];

fn restore(setup: &Setup) -> Setup {
    setup.clone().bootstrap("restore")
}

async fn each_begins_a_new_line(destination: Kind, kind: &str) {
    let history = History::new(destination, kind).await;
    let history = &history;
    let scenario = async |loss: Loss, harm: RepositoryLoss, back: Back| {
        let context = format!("{destination:?}, {kind}, {loss:?}, {harm:?}");
        let node = history.eager_copy().await;
        inflict(&node, loss, harm);
        let (mut server, after) = start_and_read(&restore(&node.setup), &node).await;
        match back {
            Back::To(phase) => after.are(&history.phases[phase - 1].after_forks(1), &context),
            Back::OneTo(phase) => {
                after.are_between(&history.phases[phase - 1], &history.phases[phase], &context);
            }
            Back::AtLeast(phase) => {
                after.are_between(&history.phases[phase - 1], history.full(), &context);
            }
        }
        nothing_is_given_out_twice(&server.sdk(), &after, history.full(), &context).await;
        let appended = contents(&server.sdk()).await;
        goes_on_in_the_repository(&node, history, harm, back, &context).await;
        caught_up(&server, &node.target).await;
        // Damage in the repository is a problem until someone removes it.
        if harm == RepositoryLoss::Nothing {
            is_healthy(&server, &context).await;
        }
        let log = server.log();
        let lost = log.iter().filter(|line| line.contains("the log is lost"));
        assert!(lost.count() <= 1, "{context}: {log:#?}");

        server.kill();
        let (mut server, again) = start_and_read(&node.setup, &node).await;
        again.are(&appended, &format!("{context}, started again"));
        if harm == RepositoryLoss::Nothing {
            is_healthy(&server, &format!("{context}, started again")).await;
        }
        server.kill();

        // The same a second time.
        inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
        let (server, twice) = start_and_read(&restore(&node.setup), &node).await;
        twice.are(&appended.after_forks(1), &format!("{context}, lost twice"));
        drop(server);
    };
    run_concurrently(
        LOSSES
            .iter()
            .map(|(loss, harm, back)| scenario(*loss, *harm, *back)),
    )
    .await;
}

/// Checks that a reader from before the loss gets a gap or an error, never other data.
async fn nothing_is_given_out_twice(s2: &S2, after: &Contents, full: &Contents, context: &str) {
    let at = kept(0);
    let (now, before) = (&after.0[&at], &full.0[&at]);
    assert!(now.tail >= GAP, "{context}: the tail is {}", now.tail);
    let stream = stream(s2, &at);
    let lost = now.records.last().map_or(0, |r| r.seq + 1);
    for cursor in [lost, before.tail] {
        match stream.read(sdk::from_seq(cursor, 10)).await {
            Err(ReadError::ReadUnwritten(tail)) => assert_eq!(tail.seq_num, now.tail),
            Ok(batch) => assert!(batch.records.is_empty(), "{context}: {batch:?}"),
            Err(error) => panic!("{context}: {error}"),
        }
    }
    let late = sdk::input(["late"]).with_match_seq_num(before.tail);
    match stream.append(late).await {
        Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(tail))) => {
            assert_eq!(tail, now.tail, "{context}");
        }
        other => panic!("{context}: {other:?}"),
    }
    let ack = sdk::append(&stream, ["of the new line"]).await;
    assert_eq!(ack.start.seq_num, now.tail, "{context}");
    for cursor in [lost, before.tail, now.tail] {
        let batch = stream.read(sdk::from_seq(cursor, 10)).await.unwrap();
        assert_eq!(sdk::seq_nums(&batch.records), [now.tail], "{context}");
        assert_eq!(batch.records[0].body, "of the new line", "{context}");
    }
    // A stream that is created again is another stream.
    let basin = s2.basin(sdk::basin_name(super::history::BASIN));
    let created = sdk::stream(&basin, "made-after-the-loss").await;
    let ack = sdk::append(&created, ["first"]).await;
    assert_eq!(ack.start.seq_num, 0, "{context}");
}

async fn goes_on_in_the_repository(
    node: &Node,
    history: &History,
    harm: RepositoryLoss,
    back: Back,
    context: &str,
) {
    let old = lineages(&history.roots);
    for partition in 0..=PARTITIONS {
        let index = usize::try_from(partition).unwrap();
        // The newest snapshot is of the new lineage.
        let root = eventually("a snapshot of the new line", async || {
            let root = node.target.root(partition)?;
            let newest = root.retained().first()?.clone();
            let metadata = node.target.get(&format!("{newest}/metadata.json"))?;
            let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
            (metadata["lineage"] == root.json["lineage"] && root.lineage() != old[index])
                .then_some(root)
        })
        .await;
        if harm == RepositoryLoss::Emptied {
            continue;
        }
        assert_eq!(
            root.json["parent"]["lineage"].as_str(),
            Some(&*old[index]),
            "{context}"
        );
        let dead: Vec<String> = match back {
            Back::To(phase) => history.roots[index].retained()[..3 - phase].to_vec(),
            Back::OneTo(_) if partition == 1 => history.roots[index].retained()[..1].to_vec(),
            Back::OneTo(_) | Back::AtLeast(_) => Vec::new(),
        };
        assert_eq!(root.abandoned(), dead, "{context}: {root:?}");
    }
}

#[tokio::test]
async fn a_restore_from_a_directory_begins_a_line_in_which_nothing_is_given_out_twice() {
    each_begins_a_new_line(Kind::Directory, "incremental").await;
}

#[tokio::test]
async fn a_restore_from_s3_begins_a_line_in_which_nothing_is_given_out_twice() {
    each_begins_a_new_line(Kind::S3, "full").await;
}

#[tokio::test]
async fn a_snapshot_of_an_earlier_lineage_is_named_as_one_when_it_is_to_be_proven() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let (server, _) = start_and_read(&restore(&node.setup), &node).await;
    wait_for_new_lineage(&node.target).await;
    let root = node.target.root(2).unwrap();
    let prove = async |dir: &str| {
        let name = dir.trim_end_matches('/').rsplit('/').next().unwrap();
        let path = format!("/esker/v1/partitions/2/snapshots/{name}/prove");
        server.http1().post(&path).send().await
    };
    let retained = root.retained();
    assert!(retained.len() > 1, "{root:?}");
    prove(&retained[0]).await.expect(200);
    let answer = prove(&retained[1]).await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["code"], "earlier_lineage", "{answer}");
    let message = answer["message"].as_str().unwrap();
    for lineage in [&history.roots[2].lineage(), &root.lineage()] {
        assert!(message.contains(lineage.as_str()), "{message}");
    }
    // The status does not depend on the content.
    is_healthy(&server, "after all that").await;
}
