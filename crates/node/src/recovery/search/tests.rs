use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::acceptance::Accepted;
use super::super::cut_log::{cut_of, cut_of_any};
use super::super::inspect::{self, DatabaseFacts};
use super::*;
use crate::data_dir::{Identity, LockedDir};
use crate::options::NodeOptions;
use crate::snapshots::Archive;

/// The partition of the invented facts: not the state store's.
const PARTITION: u64 = 0;

/// A directory with an empty log, no copies, and an empty repository.
fn context(dir: &Path) -> Context {
    let options = NodeOptions {
        partitions: 1,
        ..NodeOptions::new(dir)
    };
    let locked = LockedDir::open(dir).unwrap();
    let data_dir = locked.belonging_to(|| Identity::new("test", 1), 1).unwrap();
    Context {
        archive: Archive::open(&options.snapshots, dir).unwrap(),
        raft: inspect::open_log(&options, &data_dir, false, None).unwrap(),
        peers: None,
        digests: Default::default(),
        store: options.store_in(&data_dir),
        activity: Arc::default(),
        accepted: Accepted::default(),
        joined: Arc::default(),
        snapshots_after: Arc::default(),
        survives: false,
        diverged: Arc::default(),
        attempts: Arc::default(),
        options: Arc::new(options),
        data_dir,
    }
}

fn lineage(cx: &Context) -> Lineage {
    let cluster = &cx.data_dir.identity.cluster_id;
    Lineage::first(cluster, 1, PartitionId(PARTITION))
}

/// A log with the entries after one LSN up to another, and a database at an LSN, if it can be used.
fn facts(cx: &Context, log: Option<(u64, u64)>, database: Option<u64>) -> PartitionFacts {
    let lineage = lineage(cx);
    let id = lineage.id();
    let facts_at = |lsn| DatabaseFacts {
        lsn,
        term: 1,
        lineage: id,
        tail: None,
    };
    PartitionFacts {
        partition: PARTITION,
        log: log.map(|(start, last)| LogFacts {
            start,
            start_term: 1,
            last,
            last_term: 1,
            commit: last,
            lineage,
        }),
        database: database
            .map(facts_at)
            .ok_or_else(|| "it is damaged".to_owned()),
        is_damaged: database.is_none(),
        cut: None,
    }
}

async fn find(cx: &Context, facts: &PartitionFacts) -> Result<RecoverySource, StartError> {
    let search = Search {
        // The entries of the log are invented, too.
        witness: None,
        ..Search::lossless(cx, facts)
    };
    search.find().await
}

#[tokio::test]
async fn a_database_that_the_log_goes_on_from_is_used_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    for lsn in [10, 15, 20] {
        let found = find(&cx, &facts(&cx, Some((10, 20)), Some(lsn)))
            .await
            .unwrap();
        assert_eq!(found.source, Source::Database);
        assert_eq!(found.fork, None);
    }
}

#[tokio::test]
async fn a_log_that_goes_back_to_the_beginning_replaces_a_damaged_database() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let found = find(&cx, &facts(&cx, Some((0, 20)), None)).await.unwrap();
    assert_eq!(found.source, Source::Log);
    assert_eq!(found.fork, None);
    // It is not tried again after it was found to be damaged.
    let (log, why) = (Source::Log, "why".to_owned());
    cx.attempts.rule_out(PARTITION, log, why);
    let refused = find(&cx, &facts(&cx, Some((0, 20)), None))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), "nothing_usable", "{refused}");
}

#[tokio::test]
async fn without_a_copy_that_connects_the_start_ends_and_names_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    for (log, database, tried) in [
        (Some((10, 20)), None, "it is damaged"),
        (Some((10, 20)), Some(9), "the log begins after 10"),
        (Some((10, 20)), Some(21), "it was cut or replaced"),
        (None, Some(15), LOG_IS_LOST),
    ] {
        let refused = find(&cx, &facts(&cx, log, database)).await.err().unwrap();
        assert_eq!(refused.code(), "nothing_usable", "{refused}");
        assert!(refused.to_string().contains(tried), "{refused}");
    }
}

#[tokio::test]
async fn a_partition_begins_empty_only_where_it_is_named_and_no_copy_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let accepted = |named: &[u64]| Accepted {
        loss: true,
        empty: named.iter().copied().collect::<BTreeSet<_>>(),
    };
    let mut cx = context(dir.path());
    cx.accepted = accepted(&[]);
    let lost = facts(&cx, None, None);
    let refused = find(&cx, &lost).await.err().unwrap();
    assert!(matches!(refused, StartError::NoCopy { .. }), "{refused}");
    cx.accepted = accepted(&[PARTITION]);
    let found = find(&cx, &lost).await.unwrap();
    assert_eq!(found.source, Source::Empty);
    assert!(found.fork.unwrap().empty);
    let connected = facts(&cx, Some((10, 20)), Some(15));
    let refused = find(&cx, &connected).await.err().unwrap();
    assert!(matches!(refused, StartError::CopyLeft { .. }), "{refused}");
}
#[tokio::test]
async fn a_member_gives_nothing_up_whatever_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(dir.path());
    cx.accepted.loss = true;
    cx.data_dir.finish().unwrap();
    cx.data_dir.note_peers(true).unwrap();
    for (log, database) in [(Some((10, 20)), Some(9)), (None, Some(15)), (None, None)] {
        let refused = find(&cx, &facts(&cx, log, database)).await.err().unwrap();
        assert_eq!(refused.code(), "nothing_usable", "{refused}");
        assert!(refused.to_string().contains("cluster.join"), "{refused}");
    }
    // What loses nothing is used as ever.
    let found = find(&cx, &facts(&cx, Some((0, 20)), None)).await.unwrap();
    assert_eq!(found.source, Source::Log);
    assert_eq!(found.fork, None);
}

#[tokio::test]
async fn a_members_log_may_end_before_a_snapshot_of_the_repository_and_not_before_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(dir.path());
    cx.data_dir.finish().unwrap();
    let id = lineage(&cx).id();
    let facts = facts(&cx, Some((10, 20)), None);
    let name = "lsn_00000000000000000025-snap_12JWcp9hiXocBv2yCYk5v5q";
    let archived = esker_repository::SnapshotDir::parse(name).unwrap();
    let copy = |source, lineage, lsn| Candidate {
        term: Some(3),
        ..Candidate::at(source, lineage, lsn)
    };
    let beyond = copy(Source::Repository(archived.clone()), id, 25);
    let restarts = |cx: &Context, copy: &Candidate| {
        let after = Search::lossless(cx, &facts).restart_after(copy);
        after.map(|after| (after.lsn.0, after.term.0))
    };
    assert_eq!(
        restarts(&cx, &beyond),
        None,
        "a node that is alone has all entries"
    );
    cx.data_dir.note_peers(true).unwrap();
    assert_eq!(restarts(&cx, &beyond), Some((25, 3)));
    let within = copy(Source::Repository(archived.clone()), id, 20);
    let other = copy(Source::Repository(archived), LineageId(77), 25);
    let local = copy(Source::Local("x".into()), id, 25);
    for copy in [within, other, local] {
        assert_eq!(restarts(&cx, &copy), None, "{copy:?}");
    }
}

/// Writes the description of a local snapshot; of its files there are none.
fn describe_local(cx: &Context, lineage: LineageId, lsn: u64, named: u64) -> PathBuf {
    let base = cx.data_dir.checkpoints().join(PARTITION.to_string());
    let dir = base.join(format!("lsn_{named:020}"));
    std::fs::create_dir_all(&dir).unwrap();
    let described = serde_json::json!({
        "format": 1, "partition": PARTITION, "lsn": lsn, "term": 1, "voters": [1], "learners": [],
        "lineage": lineage.to_string(), "comparator": "", "files": [],
    });
    std::fs::write(dir.join("checkpoint.json"), described.to_string()).unwrap();
    dir
}

#[test]
fn a_log_that_ends_before_a_copy_on_this_disk_does_not_have_everything() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let ours = lineage(&cx).id();
    let cut = |database| cut_of(&cx, &facts(&cx, Some((10, 20)), database)).unwrap();
    assert_eq!(cut(Some(20)), None);
    assert!(cut(Some(21)).unwrap().contains("the database has LSN 21"));
    // What is of another lineage, was replayed, or is not what its name says, shows nothing.
    describe_local(&cx, LineageId(7), 30, 30);
    describe_local(&cx, ours, 20, 20);
    describe_local(&cx, ours, 19, 29);
    assert_eq!(cut(Some(15)), None);
    let beyond = describe_local(&cx, ours, 25, 25);
    let why = cut(Some(15)).unwrap();
    assert!(why.contains("the local snapshot has LSN 25"), "{why}");
    // That it cannot be read now is no proof that it is not there.
    std::fs::remove_file(beyond.join("checkpoint.json")).unwrap();
    assert_eq!(cut(Some(15)), None, "damaged");
    std::fs::create_dir(beyond.join("checkpoint.json")).unwrap();
    let error = cut_of(&cx, &facts(&cx, Some((10, 20)), Some(15))).unwrap_err();
    assert_eq!(error.code(), "unreadable", "{error}");
}

#[test]
fn what_one_partition_shows_of_the_log_holds_for_all_until_their_lineages_have_begun() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let well = || facts(&cx, Some((10, 20)), Some(15));
    let cut = PartitionFacts {
        cut: Some("why".to_owned()),
        ..well()
    };
    let mut plan = Plan::default();
    assert_eq!(cut_of_any(&[well()], &plan), None);
    let shown = cut_of_any(&[well(), cut], &plan);
    assert_eq!(shown.as_deref(), Some("why"));
    // An earlier start has decided, and the copy that showed it may be gone.
    plan.log_is_cut = true;
    assert_eq!(cut_of_any(&[well()], &plan), None, "it was brought back");
    let fork = PlannedFork {
        lineage: lineage(&cx).id().to_string(),
        parent: LineageId(7).to_string(),
        lsn: 5,
        skipped: 0,
        between: Vec::new(),
        empty: false,
    };
    plan.forks.insert(PARTITION, fork);
    assert!(cut_of_any(&[well()], &plan).is_some());
}

#[tokio::test]
async fn in_a_cut_log_no_partition_goes_on_as_if_nothing_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(dir.path());
    // The partition itself shows it, or another one does.
    let own = PartitionFacts {
        cut: Some("the log is cut".to_owned()),
        ..facts(&cx, Some((10, 20)), Some(15))
    };
    let other = facts(&cx, Some((10, 20)), Some(15));
    for facts in [&own, &other] {
        let search = Search {
            witness: None,
            cut: Some("the log is cut"),
            ..Search::lossless(&cx, facts)
        };
        let refused = search.find().await.err().unwrap();
        assert_eq!(refused.code(), "nothing_usable", "{refused}");
        assert!(refused.to_string().contains("the log is cut"), "{refused}");
    }
    // What the log has is not given up, and a lineage begins behind it.
    let begun = PartitionFacts {
        database: Err("it is damaged".to_owned()),
        ..facts(&cx, Some((0, 20)), None)
    };
    cx.accepted.loss = true;
    let search = Search {
        witness: None,
        cut: Some("the log is cut"),
        ..Search::lossless(&cx, &begun)
    };
    let found = search.find().await.unwrap();
    assert_eq!(found.source, Source::Log);
    assert!(found.replays_log);
    let fork = found.fork.unwrap();
    assert_eq!((fork.lsn, fork.parent()), (20, Some(lineage(&cx).id())));
}

#[tokio::test]
async fn a_survivor_accepts_no_loss_of_what_it_has_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(dir.path());
    cx.data_dir.finish().unwrap();
    cx.data_dir.note_peers(true).unwrap();
    cx.survives = true;
    for (log, database) in [
        (Some((10, 20)), Some(9)),
        (Some((10, 20)), None),
        (None, Some(15)),
    ] {
        let refused = find(&cx, &facts(&cx, log, database)).await.err().unwrap();
        assert_eq!(refused.code(), "nothing_usable", "{refused}");
        assert!(
            refused.to_string().contains("--bootstrap restore"),
            "{refused}"
        );
    }
    let found = find(&cx, &facts(&cx, Some((0, 20)), None)).await.unwrap();
    assert_eq!((found.source, found.fork.unwrap().lsn), (Source::Log, 20));
}

#[test]
fn a_database_that_has_what_the_source_lacks_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let ours = lineage(&cx).id();
    let fork = PlannedFork {
        lineage: LineageId(9).to_string(),
        parent: ours.to_string(),
        lsn: 15,
        skipped: 0,
        between: Vec::new(),
        empty: false,
    };
    let kept = |database: u64, of: LineageId, fork: Option<&PlannedFork>| {
        let mut facts = facts(&cx, Some((10, 20)), Some(database));
        facts.database.as_mut().unwrap().lineage = of;
        let copy = Candidate::at(Source::Local("x".into()), ours, 15);
        let search = Search::lossless(&cx, &facts);
        let source = search.recovery_source(&copy, None, fork.cloned(), true);
        source.keeps_database
    };
    assert!(!kept(9, ours, None), "the log has all of it");
    assert!(!kept(15, ours, Some(&fork)), "the copy has all of it");
    assert!(kept(16, ours, Some(&fork)));
    assert!(
        kept(9, LineageId(7), None),
        "it is of a lineage that is not known"
    );
    assert!(kept(9, LineageId(7), Some(&fork)));
}

#[tokio::test]
async fn a_snapshot_of_a_later_term_than_a_members_log_wins_whatever_the_log_has_beyond_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(dir.path());
    cx.data_dir.finish().unwrap();
    cx.data_dir.note_peers(true).unwrap();
    let id = lineage(&cx).id();
    let name = "lsn_00000000000000000030-snap_12JWcp9hiXocBv2yCYk5v5q";
    let archived = esker_repository::SnapshotDir::parse(name).unwrap();
    let mut facts = facts(&cx, Some((10, 174)), Some(20));
    let log = facts.log.as_mut().unwrap();
    (log.last_term, log.commit) = (3, 25);
    let restarts = |facts: &PartitionFacts, lsn, term| {
        let copy = Candidate {
            term: Some(term),
            ..Candidate::at(Source::Repository(archived.clone()), id, lsn)
        };
        let after = Search::lossless(&cx, facts).restart_after(&copy);
        after.map(|after| (after.lsn.0, after.term.0))
    };
    assert_eq!(restarts(&facts, 30, 4), Some((30, 4)));
    assert_eq!(restarts(&facts, 30, 3), None, "the log has all of it");
    assert_eq!(restarts(&facts, 175, 3), Some((175, 3)));
    // What is known to be committed is not replaced.
    assert_eq!(restarts(&facts, 25, 4), None);
    facts.database.as_mut().unwrap().lsn = 30;
    assert_eq!(restarts(&facts, 30, 4), None);
}

#[tokio::test]
async fn a_lineage_without_the_others_begins_after_what_is_known_to_be_committed() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let begins = |commit, database, archived: &[u64], planned: Option<u64>, partition| {
        let mut facts = facts(&cx, Some((10, 174)), Some(database));
        facts.partition = partition;
        let mut log = facts.log.clone().unwrap();
        log.commit = commit;
        facts.log = Some(log.clone());
        let id = log.lineage.id();
        let planned = planned.map(|lsn| PlannedFork {
            lineage: LineageId(9).to_string(),
            parent: id.to_string(),
            lsn,
            skipped: 0,
            between: Vec::new(),
            empty: false,
        });
        let search = Search {
            planned: planned.as_ref(),
            ..Search::lossless(&cx, &facts)
        };
        let copy = |lsn: &u64| Candidate::at(Source::Database, id, *lsn);
        let shown = archived.iter().map(|lsn| search.committed_by(&copy(lsn)));
        let committed = shown.fold(search.committed(), u64::max);
        let source = search.recovery_source(&copy(&database), None, None, true);
        search.lineage_begins_after(&source, &log, committed)
    };
    assert_eq!(begins(25, 20, &[], None, 1), 25);
    assert_eq!(begins(25, 30, &[], None, 1), 30);
    assert_eq!(begins(25, 30, &[28, 40, 180], None, 1), 40);
    // What an earlier start has decided stays, unless more is known to be committed.
    assert_eq!(begins(25, 20, &[], Some(174), 1), 174);
    assert_eq!(begins(25, 30, &[], Some(29), 1), 30);
    // The partitions refer to the catalog's numbers.
    assert_eq!(begins(25, 20, &[], None, 0), 174);
}

mod member_copies;
