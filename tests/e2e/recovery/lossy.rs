//! Losses that cost something: `--bootstrap restore` accepts that, and a new line begins.

use s2_sdk::S2;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError};

use super::contents::{Contents, GAP, contents, stream};
use super::losses::{Harm, Loss, befall};
use super::past::{Past, caught_up, is_healthy, kept, lineages, new_line_is_kept, play, seen};
use super::place::{Kind, PARTITIONS, Scene};
use crate::support::{Setup, eventually, sdk};

/// What is restored, of the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// The state after this one, exactly.
    To(usize),
    /// At least that, and at most what was acknowledged.
    AtLeast(usize),
    /// One partition to the state after this one, the others to the one after.
    OneTo(usize),
}

const LOSSES: &[(Loss, Harm, Back)] = &[
    (Loss::Everything, Harm::Nothing, Back::To(3)),
    (Loss::Everything, Harm::NewestFlipped, Back::To(2)),
    (
        Loss::Everything,
        Harm::NewestWithoutDescription,
        Back::To(2),
    ),
    (Loss::Everything, Harm::AllButOldest, Back::To(1)),
    (Loss::Everything, Harm::OneNewest, Back::OneTo(2)),
    (Loss::Log, Harm::Nothing, Back::AtLeast(3)),
    (Loss::Log, Harm::Emptied, Back::AtLeast(3)),
    (Loss::LogDamaged, Harm::Nothing, Back::AtLeast(3)),
    (Loss::OldLog, Harm::Nothing, Back::AtLeast(3)),
    (Loss::LogAndDatabase, Harm::Nothing, Back::AtLeast(3)),
    (
        Loss::LogAndDatabaseAndLocalSnapshots,
        Harm::Nothing,
        Back::To(3),
    ),
    (
        Loss::LogAndDatabaseAndLocalSnapshots,
        Harm::AllButOldest,
        Back::To(1),
    ),
];

fn restore(setup: &Setup) -> Setup {
    setup.clone().bootstrap("restore")
}

async fn each_begins_a_new_line(destination: Kind, kind: &str) {
    let past = Past::new(destination, kind).await;
    let past = &past;
    let scenario = async |loss: Loss, harm: Harm, back: Back| {
        let context = format!("{destination:?}, {kind}, {loss:?}, {harm:?}");
        let scene = past.eager_copy().await;
        befall(&scene, loss, harm);
        let (mut server, after) = seen(&restore(&scene.setup), &scene).await;
        match back {
            Back::To(phase) => after.are(&past.phases[phase - 1].after_forks(1), &context),
            Back::OneTo(phase) => {
                after.are_between(&past.phases[phase - 1], &past.phases[phase], &context);
            }
            Back::AtLeast(phase) => {
                after.are_between(&past.phases[phase - 1], past.full(), &context);
            }
        }
        nothing_is_given_out_twice(&server.sdk(), &after, past.full(), &context).await;
        let appended = contents(&server.sdk()).await;
        goes_on_in_the_repository(&scene, past, harm, back, &context).await;
        caught_up(&server, &scene.place).await;
        // What is damaged in the repository is a problem until somebody removes it.
        if harm == Harm::Nothing {
            is_healthy(&server, &context).await;
        }
        let log = server.log();
        let lost = log.iter().filter(|line| line.contains("the log is lost"));
        assert!(lost.count() <= 1, "{context}: {log:#?}");

        server.kill();
        let (mut server, again) = seen(&scene.setup, &scene).await;
        again.are(&appended, &format!("{context}, started again"));
        if harm == Harm::Nothing {
            is_healthy(&server, &format!("{context}, started again")).await;
        }
        server.kill();

        // And all of that once more.
        befall(&scene, Loss::Everything, Harm::Nothing);
        let (server, twice) = seen(&restore(&scene.setup), &scene).await;
        twice.are(&appended.after_forks(1), &format!("{context}, lost twice"));
        drop(server);
    };
    play(
        LOSSES
            .iter()
            .map(|(loss, harm, back)| scenario(*loss, *harm, *back)),
    )
    .await;
}

/// Whoever was there before meets a gap or an error, and never other data.
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
    // A stream that is created again is another one.
    let basin = s2.basin(sdk::basin_name(super::past::BASIN));
    let anew = sdk::stream(&basin, "made-after-the-loss").await;
    let ack = sdk::append(&anew, ["first"]).await;
    assert_eq!(ack.start.seq_num, 0, "{context}");
}

async fn goes_on_in_the_repository(
    scene: &Scene,
    past: &Past,
    harm: Harm,
    back: Back,
    context: &str,
) {
    let old = lineages(&past.roots);
    for partition in 0..=PARTITIONS {
        let index = usize::try_from(partition).unwrap();
        // The newest snapshot is of the new line.
        let root = eventually("a snapshot of the new line", async || {
            let root = scene.place.root(partition)?;
            let newest = root.retained().first()?.clone();
            let metadata = scene.place.get(&format!("{newest}/metadata.json"))?;
            let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
            (metadata["lineage"] == root.json["lineage"] && root.lineage() != old[index])
                .then_some(root)
        })
        .await;
        if harm == Harm::Emptied {
            continue;
        }
        assert_eq!(
            root.json["parent"]["lineage"].as_str(),
            Some(&*old[index]),
            "{context}"
        );
        let dead: Vec<String> = match back {
            Back::To(phase) => past.roots[index].retained()[..3 - phase].to_vec(),
            Back::OneTo(_) if partition == 1 => past.roots[index].retained()[..1].to_vec(),
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
    let past = Past::new(Kind::Directory, "incremental").await;
    let scene = past.copy().await;
    befall(&scene, Loss::Everything, Harm::Nothing);
    let (server, _) = seen(&restore(&scene.setup), &scene).await;
    new_line_is_kept(&scene.place).await;
    let root = scene.place.root(2).unwrap();
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
    for lineage in [&past.roots[2].lineage(), &root.lineage()] {
        assert!(message.contains(lineage.as_str()), "{message}");
    }
    // It says nothing about what is in it.
    is_healthy(&server, "after all that").await;
}
