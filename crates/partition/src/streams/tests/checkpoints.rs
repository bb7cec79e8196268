//! Checkpoints: what they cover, and their import into another database.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::*;
use crate::checkpoint::{self, Checkpoint};

/// Streams with much to reclaim for every possible reason: trims of few and of many batches, a deleted
/// stream, a dropped basin.
fn busy() -> Fixture {
    let mut partition = Fixture::with(eager());
    for name in ["few", "many", "gone", "kept"] {
        let stream = partition.create(name);
        for i in 0..300 {
            let body = format!("{name} {i}").repeat(20);
            partition
                .append(append(stream, 2000 + i, vec![rec(body)]))
                .unwrap();
        }
    }
    let few = partition.stream("few").id;
    let many = partition.stream("many").id;
    partition.apply(expire(few, 20, 3000));
    partition.apply(expire(many, 290, 3000));
    assert!(partition.delete("gone"));
    partition
}

#[test]
fn a_checkpoint_made_elsewhere_is_the_same_partition() {
    let mut partition = busy();
    partition.maintain_all();
    let checkpoint = partition.checkpoint();
    let digest = partition.partition_db().digest().unwrap();
    assert_eq!(checkpoint.meta.lsn, partition.applied());
    assert_eq!(checkpoint.meta.members.voters, [7]);
    assert_eq!(checkpoint.lineage(), Some(digest.lineage));
    let mut elsewhere = partition.imported(&checkpoint);
    assert_eq!(elsewhere.partition_db().digest().unwrap(), digest);
    assert_eq!(elsewhere.content(&[BASIN]), partition.content(&[BASIN]));
    // The import continues with the same entries.
    let kept = partition.stream("kept").id;
    partition
        .append(append(kept, 9000, vec![rec("more")]))
        .unwrap();
    partition.create("new");
    elsewhere.catch_up(&partition);
    assert_eq!(
        elsewhere.partition_db().digest().unwrap(),
        partition.partition_db().digest().unwrap()
    );
}

#[test]
fn a_digest_does_not_depend_on_what_was_reclaimed() {
    let mut partition = busy();
    let before = partition.partition_db().digest().unwrap();
    partition.maintain_all();
    partition.flush();
    partition.partition_db().compact().unwrap();
    let after = partition.partition_db().digest().unwrap();
    assert_eq!(before, after);
    // The digest covers what readers see.
    let kept = partition.stream("kept").id;
    partition
        .append(append(kept, 9000, vec![rec("more")]))
        .unwrap();
    assert_ne!(
        partition.partition_db().digest().unwrap().digest,
        after.digest
    );
}

#[test]
fn what_a_checkpoint_covers_is_read_from_its_files_while_appends_and_flushes_go_on() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let part = partition.partition_db();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoints = scope.spawn(|| {
            let made: Vec<Checkpoint> = (0..10)
                .map(|_| part.begin_checkpoint().take().unwrap())
                .collect();
            stop.store(true, Ordering::Relaxed);
            made
        });
        let flusher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                part.flush().unwrap();
            }
        });
        while !stop.load(Ordering::Relaxed) {
            let body = format!("{}", partition.applied());
            partition
                .append(append(stream, 2000, vec![rec(body)]))
                .unwrap();
        }
        flusher.join().unwrap();
        for checkpoint in checkpoints.join().unwrap() {
            let copy = partition.imported(&checkpoint);
            assert_eq!(copy.applied(), checkpoint.meta.lsn);
            // The first entry created the stream; the next ones are its records.
            let texts = copy.texts("s");
            assert_eq!(texts.len() as u64, checkpoint.meta.lsn - 1);
            let expected: Vec<_> = (1..checkpoint.meta.lsn).map(|i| i.to_string()).collect();
            assert_eq!(texts, expected);
        }
    });
}

#[test]
fn a_checkpoint_covers_what_was_applied_when_it_was_begun() {
    let mut partition = busy();
    let capture = partition.partition_db().begin_checkpoint();
    let begun = partition.applied();
    partition.create("later");
    let checkpoint = capture.take().unwrap();
    assert!(checkpoint.meta.lsn >= begun);
}

#[test]
fn nothing_new_makes_no_new_checkpoint() {
    let mut partition = busy();
    let first = partition.checkpoint();
    let again = partition.checkpoint();
    assert_eq!(first.dir, again.dir);
    partition.create("new");
    let next = partition.checkpoint();
    assert_ne!(first.dir, next.dir);
    let base = first.dir.parent().unwrap();
    assert_eq!(
        checkpoint::all(base).unwrap(),
        [next.dir.clone(), first.dir.clone()]
    );
    assert_eq!(
        checkpoint::newest(base).unwrap().map(|c| c.dir),
        Some(next.dir)
    );
}

#[test]
fn a_changed_byte_of_a_checkpoint_is_found() {
    let mut partition = busy();
    let checkpoint = partition.checkpoint();
    checkpoint.verify().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    // This works on a copy, because the files themselves belong to the database.
    for file in std::fs::read_dir(&checkpoint.dir).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, elsewhere.path().join(path.file_name().unwrap())).unwrap();
    }
    let copy = Checkpoint::open(elsewhere.path()).unwrap();
    copy.verify().unwrap();
    let path = copy.path_of(&copy.meta.files[0]).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = copy.verify().unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    // A shorter file is detected without a read of its contents.
    std::fs::write(&path, &bytes[1..]).unwrap();
    assert!(Checkpoint::open(elsewhere.path()).is_err());
    std::fs::remove_file(&path).unwrap();
    assert!(Checkpoint::open(elsewhere.path()).is_err());
}

#[test]
fn a_checkpoint_of_a_newer_version_is_left_alone() {
    let mut partition = busy();
    let checkpoint = partition.checkpoint();
    let path = checkpoint.dir.join("checkpoint.json");
    std::fs::write(&path, r#"{"format": 99, "whatever": true}"#).unwrap();
    let error = Checkpoint::open(&checkpoint.dir).unwrap_err();
    assert!(error.is_unreadable(), "it is no damage: {error}");
    assert!(error.to_string().contains("newer release"), "{error}");
}

#[test]
fn what_an_attempt_left_that_a_crash_ended_is_removed() {
    let mut partition = busy();
    let checkpoint = partition.checkpoint();
    let base = checkpoint.dir.parent().unwrap();
    let left = base.join("tmp-1-2").join("files");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("000001.sst"), "x").unwrap();
    checkpoint::remove_unfinished(base).unwrap();
    assert!(!left.exists());
    assert!(checkpoint.dir.exists());
}

#[test]
fn names_that_lead_out_of_a_checkpoint_are_refused() {
    let mut partition = busy();
    let checkpoint = partition.checkpoint();
    let path = checkpoint.dir.join("checkpoint.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let name = checkpoint.meta.files[0].name.clone();
    for evil in ["/../../x", "x", "/", "/a/b", "/.."] {
        std::fs::write(&path, text.replace(&name, evil)).unwrap();
        assert!(Checkpoint::open(&checkpoint.dir).is_err(), "{evil}");
    }
}

#[test]
fn a_checkpoint_made_apart_leaves_one_of_the_same_lsn_that_it_differs_from_as_it_is() {
    let mut partition = busy();
    let first = partition.checkpoint();
    let description = first.dir.join("checkpoint.json");
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&description, json.to_string()).unwrap();
    };
    // The description claims that other entries led to it.
    change(&|json| json["log_tail"]["entry"] = "0000000000000001".into());
    let other = Checkpoint::open(&first.dir).unwrap();
    let dir = tempfile::tempdir_in(first.dir.parent().unwrap()).unwrap();
    let (to, next) = (dir.path().join("1"), dir.path().join("2"));
    let apart = |partition: &Fixture, to: &Path, known: &[PathBuf]| {
        let capture = partition.partition_db().begin_checkpoint();
        capture.take_to(to, known).unwrap()
    };
    let made = apart(&partition, &to, std::slice::from_ref(&first.dir));
    assert_eq!(
        (made.dir.as_path(), made.meta.lsn),
        (to.as_path(), first.meta.lsn)
    );
    made.verify().unwrap();
    assert_eq!(made.meta.log_tail, first.meta.log_tail);
    let there = Checkpoint::open(&first.dir).unwrap();
    assert_eq!(there.meta, other.meta);
    there.verify().unwrap();
    // The same checkpoint is not created twice, and a damaged one is not used.
    assert_eq!(apart(&partition, &next, std::slice::from_ref(&to)).dir, to);
    std::fs::remove_file(to.join(made.meta.files[0].name.trim_start_matches('/'))).unwrap();
    assert_eq!(
        apart(&partition, &next, std::slice::from_ref(&to)).dir,
        next
    );
    // Among local snapshots, the new one takes the place of the other one.
    assert_eq!(partition.checkpoint().dir, first.dir);
    let there = Checkpoint::open(&first.dir).unwrap();
    assert_eq!(there.meta.log_tail, first.meta.log_tail);
}
