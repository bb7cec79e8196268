use super::log_place::has_log;
use super::*;

fn open(dir: &Path, partitions: u32) -> Result<DataDir, StartError> {
    LockedDir::open(dir)?.belonging_to(|| Identity::new("test", partitions), partitions)
}

fn made(dir: &Path) -> Identity {
    let mut made = open(dir, 8).unwrap();
    made.finish().unwrap();
    made.identity.clone()
}

#[test]
fn identity_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = made(dir.path());
    let again = open(dir.path(), 8).unwrap();
    assert_eq!(again.identity, first);
    assert!(!again.is_new);
}

#[test]
fn a_crash_while_it_is_made_keeps_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), 8).unwrap().identity.clone();
    let again = open(dir.path(), 8).unwrap();
    assert!(again.is_new);
    assert_eq!(again.identity, first);
}

#[test]
fn a_second_process_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path(), 8).unwrap();
    let error = open(dir.path(), 8).unwrap_err();
    let pid = std::process::id().to_string();
    assert!(
        matches!(&error, StartError::InUse { pid: p, .. } if *p == pid),
        "{error}"
    );
}

#[test]
fn a_refused_start_removes_what_it_has_made_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/data");
    LockedDir::open(&path).unwrap().leave();
    assert!(!dir.path().join("made").exists());
    // An existing directory stays.
    fs::create_dir_all(&path).unwrap();
    LockedDir::open(&path).unwrap().leave();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    // Its files and its identity stay as well.
    fs::write(path.join("mine"), "").unwrap();
    LockedDir::open(&path).unwrap().leave();
    assert!(path.join("mine").exists());
    let identity = made(&path);
    LockedDir::open(&path).unwrap().leave();
    assert_eq!(open(&path, 8).unwrap().identity, identity);
}

#[test]
fn a_lock_file_that_was_removed_since_it_was_opened_locks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOCK);
    let first = lock(dir.path()).unwrap();
    fs::remove_file(&path).unwrap();
    let _second = lock(dir.path()).unwrap();
    let is_same =
        |file: &File| file.metadata().unwrap().ino() == fs::metadata(&path).unwrap().ino();
    assert!(!is_same(&first));
}

#[test]
fn a_directory_that_is_gone_from_its_path_gets_no_note_of_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("data"), dir.path().join("away"));
    let data_dir = open(&path, 8).unwrap();
    data_dir.check_in_place(&path).unwrap();
    // As if it had been a mount: the directory below is empty, then another node's.
    fs::rename(&path, &away).unwrap();
    data_dir.check_in_place(&path).unwrap_err();
    fs::create_dir(&path).unwrap();
    fs::write(path.join(LOCK), "").unwrap();
    let error = data_dir.report_damage(1, "why").unwrap_err();
    assert!(matches!(error, StartError::DirectoryGone { .. }), "{error}");
    assert!(!path.join("damaged").exists());
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    data_dir.report_damage(1, "why").unwrap();
}

#[test]
fn damage_is_noted_by_several_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = open(dir.path(), 8).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let data_dir = data_dir.clone();
            scope.spawn(move || data_dir.report_damage(1, "why").unwrap());
        }
    });
    assert_eq!(data_dir.known_damage(1).unwrap().as_deref(), Some("why"));
}

#[test]
fn checkpoints_of_format_2_are_found_where_they_are_now() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity {
        format: 2,
        ..made(dir.path())
    };
    let path = dir.path().join("node.json");
    write_identity(&path, &identity).unwrap();
    let before = dir.path().join("snapshots");
    for file in ["3/lsn_5", "x"] {
        fs::create_dir_all(before.join(file)).unwrap();
    }
    // A crash came after some of them were moved.
    fs::create_dir_all(dir.path().join("checkpoints/1")).unwrap();
    let opened = open(dir.path(), 8).unwrap();
    assert!(!opened.checkpoints().join("3/lsn_5").exists());
    opened.bring_up_to_date(UNCHANGED_SINCE).unwrap();
    assert_eq!(opened.identity.format, FORMAT);
    assert!(opened.checkpoints().join("3/lsn_5").exists());
    assert!(before.join("x").exists());
    drop(opened);
    assert_eq!(
        open(dir.path(), 8).unwrap().identity.node_id,
        identity.node_id
    );
}

/// The format that a directory is marked with.
fn format_of(dir: &Path) -> u32 {
    let path = dir.join("node.json");
    read_identity(dir, &path).unwrap().unwrap().format
}

#[test]
fn a_directory_keeps_its_format_until_a_start_is_about_to_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let of_format = |format| {
        let identity = Identity {
            format,
            ..made(dir.path())
        };
        write_identity(&dir.path().join("node.json"), &identity).unwrap();
    };
    of_format(4);
    open(dir.path(), 9).unwrap_err();
    let opened = open(dir.path(), 8).unwrap();
    opened.bring_up_to_date(UNCHANGED_SINCE).unwrap();
    assert_eq!(format_of(dir.path()), 4);
    opened.clone().bring_up_to_date(FORMAT).unwrap();
    assert_eq!(format_of(dir.path()), FORMAT);
    drop(opened);
    // A database of format 3 is changed when it is opened.
    of_format(3);
    let opened = open(dir.path(), 8).unwrap();
    assert_eq!(format_of(dir.path()), 3);
    opened.bring_up_to_date(UNCHANGED_SINCE).unwrap();
    assert_eq!(format_of(dir.path()), FORMAT);
    // What the directory notes later is no step back.
    opened.note_peers(true).unwrap();
    assert_eq!(format_of(dir.path()), FORMAT);
}

#[test]
fn what_a_node_would_remove_of_its_own_makes_a_directory_somebody_elses() {
    for name in REMOVED {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("backup.sql"), "precious").unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        assert_eq!(error.code(), "data_dir_holds_others", "{error}");
        assert!(error.to_string().contains(&format!("{name}/")), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no LOCK");
        // An empty one is nobody's.
        fs::remove_file(dir.path().join(name).join("backup.sql")).unwrap();
        made(dir.path());
        // In a node's own directory they are its own.
        fs::write(dir.path().join(name).join("file"), "own").unwrap();
        open(dir.path(), 8).unwrap();
    }
}

#[test]
fn a_symlink_without_its_target_does_not_count_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let unmounted = |name: &str| {
        let link = dir.path().join(name);
        let _ = fs::remove_dir_all(&link);
        std::os::unix::fs::symlink(dir.path().join("not/mounted"), &link).unwrap();
    };
    let code = |error: StartError| {
        assert!(error.to_string().contains("target is missing"), "{error}");
        error.code()
    };
    member(dir.path(), true);
    unmounted("log");
    let locked = LockedDir::open(dir.path()).unwrap();
    assert_eq!(code(locked.member_without_log().unwrap_err()), "unreadable");
    drop(locked);
    unmounted("damaged");
    let opened = open(dir.path(), 8).unwrap();
    assert_eq!(code(opened.known_damage(1).unwrap_err()), "unreadable");
    unmounted("checkpoints");
    assert_eq!(code(copies_in(dir.path()).unwrap_err()), "unreadable");
}

#[test]
fn what_is_put_aside_does_not_take_the_place_of_a_link_that_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let aside = dir.path().join("damaged/db-1");
    fs::create_dir_all(aside.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(dir.path().join("not/mounted"), &aside).unwrap();
    let opened = open(dir.path(), 8).unwrap();
    fs::write(opened.db(), "").unwrap();
    assert!(opened.put_aside("db").unwrap().ends_with("db-2"));
    assert!(aside.is_symlink());
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let path = dir.path().join("node.json");
    fs::write(&path, r#"{"format": 99, "what": "ever"}"#).unwrap();
    let error = open(dir.path(), 8).unwrap_err();
    assert!(
        matches!(error, StartError::NewerFormat { found: 99, .. }),
        "{error}"
    );
}

#[test]
fn an_unreleased_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    fs::write(dir.path().join("node.json"), r#"{"format": 1}"#).unwrap();
    let error = open(dir.path(), 8).unwrap_err();
    assert!(matches!(error, StartError::OlderFormat { .. }), "{error}");
}

#[test]
fn what_is_put_aside_takes_no_earlier_one_s_place() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let data_dir = open(dir.path(), 8).unwrap();
    for number in 1..=3 {
        fs::create_dir(data_dir.db()).unwrap();
        let to = data_dir.put_aside("db").unwrap();
        assert!(to.ends_with(format!("damaged/db-{number}")));
        assert!(!data_dir.db().exists());
    }
}

#[test]
fn another_number_of_partitions_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let error = open(dir.path(), 9).unwrap_err();
    assert!(
        matches!(
            error,
            StartError::PartitionsChanged {
                made: 8,
                configured: 9,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn data_without_an_identity_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    fs::create_dir(&db).unwrap();
    fs::write(db.join("CURRENT"), "MANIFEST-000004\n").unwrap();
    let error = open(dir.path(), 8).unwrap_err();
    assert!(matches!(error, StartError::NoIdentity { .. }), "{error}");
    assert!(!dir.path().join("node.json.new").exists());
}

#[test]
fn disks_that_are_mounted_before_the_first_start_are_no_data() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["log", "db"] {
        fs::create_dir_all(dir.path().join(name).join("lost+found")).unwrap();
    }
    made(dir.path());
}

#[test]
fn what_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "text").unwrap();
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
    for (path, what) in [(&file, "is a file"), (&link, "target is missing")] {
        let error = open(path, 8).unwrap_err();
        assert!(matches!(error, StartError::NoDirectory { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn a_truncated_identity_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    fs::write(dir.path().join("node.json"), "{\"format\"").unwrap();
    let error = open(dir.path(), 8).unwrap_err();
    assert!(matches!(error, StartError::BadIdentity { .. }), "{error}");
}

#[test]
fn whether_there_are_other_nodes_survives_a_restart_and_is_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let identity = made(dir.path());
    let alone = open(dir.path(), 8).unwrap();
    assert!(!alone.has_peers());
    alone.note_peers(true).unwrap();
    assert!(alone.clone().has_peers());
    drop(alone);
    let member = open(dir.path(), 8).unwrap();
    assert!(member.has_peers());
    assert_eq!(member.identity.node_id, identity.node_id);
    member.note_peers(false).unwrap();
    drop(member);
    assert!(!open(dir.path(), 8).unwrap().has_peers());
    // Builds before that wrote it nowhere: a node that has joined has peers.
    let joined = Identity {
        joined: true,
        ..identity
    };
    assert!(joined.may_have_peers());
    let alone_again = Identity {
        has_peers: Some(false),
        ..joined
    };
    assert!(!alone_again.may_have_peers());
}

/// A member with a database, a checkpoint, and a log with or without a file.
fn member(dir: &Path, has_log: bool) -> Identity {
    let identity = made(dir);
    open(dir, 8).unwrap().note_peers(true).unwrap();
    for what in ["db/CURRENT", "checkpoints/1/lsn_5/x", "raft/incarnation"] {
        let path = dir.join(what);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "old").unwrap();
    }
    fs::create_dir_all(dir.join("log")).unwrap();
    if has_log {
        fs::write(dir.join("log/0000000000000001.raftlog"), "").unwrap();
    }
    identity
}

#[test]
fn a_member_that_lost_its_log_begins_again_as_another_node_and_loses_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let old = member(dir.path(), false);
    let open_again = || LockedDir::open(dir.path()).unwrap();
    let mut locked = open_again();
    let found = locked.member_without_log().unwrap().unwrap();
    assert_eq!(found.node_id, old.node_id);
    let new = Identity {
        joined: true,
        ..Identity::new("test", 8)
    };
    locked.begin_again(new.clone()).unwrap();
    drop(locked);
    // A crash comes before it is complete.
    let data_dir = open(dir.path(), 8).unwrap();
    assert_eq!(data_dir.identity, new);
    assert!(data_dir.is_new && data_dir.joins && data_dir.has_peers());
    for gone in ["db", "checkpoints", "raft", "log", "node.json"] {
        assert!(!dir.path().join(gone).exists(), "{gone}");
    }
    let aside = dir.path().join("damaged");
    for kept in ["db-1/CURRENT", "checkpoints-1/1/lsn_5/x"] {
        assert_eq!(fs::read(aside.join(kept)).unwrap(), b"old");
    }
    let identity = aside.join(format!("node-{}.json-1", old.node_id));
    assert!(
        fs::read_to_string(identity)
            .unwrap()
            .contains(&old.cluster_id)
    );
    drop(data_dir);
    assert!(open_again().member_without_log().unwrap().is_none());
}

#[test]
fn a_crash_while_a_member_begins_again_leaves_one_that_begins_again() {
    let new = || Identity {
        joined: true,
        ..Identity::new("test", 8)
    };
    // What a crash leaves after each step: so many of the directories are moved, with the new identity or without.
    for moved in 0..=3 {
        for is_written in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let old = member(dir.path(), false);
            for what in ["db", "checkpoints", "raft"].iter().take(moved) {
                fs::remove_dir_all(dir.path().join(what)).unwrap();
            }
            if is_written {
                write_identity(&dir.path().join("node.json.new"), &new()).unwrap();
            }
            let mut locked = LockedDir::open(dir.path()).unwrap();
            let found = locked.member_without_log().unwrap().unwrap();
            assert_eq!(found.node_id, old.node_id);
            let last = new();
            locked.begin_again(last.clone()).unwrap();
            drop(locked);
            assert_eq!(open(dir.path(), 8).unwrap().identity, last);
        }
    }
}

#[test]
fn only_a_complete_member_without_any_file_of_a_log_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    member(dir.path(), true);
    let is_one = || {
        let locked = LockedDir::open(dir.path()).unwrap();
        locked.member_without_log().unwrap().is_some()
    };
    assert!(!is_one());
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    assert!(is_one());
    open(dir.path(), 8).unwrap().note_peers(false).unwrap();
    assert!(!is_one(), "a node that is alone has nobody to join");
    // That the log cannot be read is not that it is missing.
    open(dir.path(), 8).unwrap().note_peers(true).unwrap();
    fs::write(dir.path().join("log"), "no directory").unwrap();
    let locked = LockedDir::open(dir.path()).unwrap();
    let error = locked.member_without_log().unwrap_err();
    assert_eq!(error.code(), "unreadable", "{error}");
}

#[test]
fn a_node_that_joins_asks_under_the_same_number_until_its_directory_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let draw = |before: Option<&Identity>| {
        let locked = LockedDir::open(dir.path()).unwrap();
        locked.draw_number("test", 8, before).unwrap()
    };
    let first = draw(None);
    assert_eq!(draw(None).node_id, first.node_id);
    LockedDir::open(dir.path())
        .unwrap()
        .forget_number()
        .unwrap();
    let drawn = draw(None);
    assert_ne!(drawn.node_id, first.node_id, "that one was refused");
    let locked = LockedDir::open(dir.path()).unwrap();
    let mut made = locked.belonging_to(|| drawn.clone(), 8).unwrap();
    made.finish().unwrap();
    drop(made);
    // Its log is lost.
    let again = draw(Some(&drawn));
    assert_ne!(again.node_id, drawn.node_id);
    assert_eq!(draw(Some(&drawn)).node_id, again.node_id);
    // What was drawn for another number does not count.
    assert_ne!(draw(Some(&first)).node_id, again.node_id);
    let again = draw(Some(&drawn));
    let mut locked = LockedDir::open(dir.path()).unwrap();
    locked.begin_again(again.clone()).unwrap();
    let mut made = locked.belonging_to(|| unreachable!(), 8).unwrap();
    assert_eq!(made.identity.node_id, again.node_id);
    made.finish().unwrap();
    assert!(!dir.path().join("joining.json").exists());
}

/// As of a directory that cannot be moved, because a disk is mounted there.
#[test]
fn what_is_on_a_disk_of_its_own_is_put_aside_on_that_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::create_dir_all(log.join("lost+found")).unwrap();
    assert_eq!(
        damage::put_contents_aside(&log).unwrap(),
        log,
        "it is empty"
    );
    for round in 1..=2 {
        fs::write(log.join("1.raftlog"), "damaged").unwrap();
        let aside = damage::put_contents_aside(&log).unwrap();
        assert_eq!(aside, log.join(format!("put-aside-{round}")));
        assert!(aside.join("1.raftlog").exists() && !has_log(&log).unwrap());
    }
    assert!(log.join("lost+found").exists());
}
