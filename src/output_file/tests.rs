use super::*;

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut file = OutputFile::create(path, force)?;
    file.write_all(text.as_bytes())
        .map_err(|e| file.failure(&e))?;
    file.finish()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_there_when_it_is_whole_and_leaves_nothing_if_it_never_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut file = OutputFile::create(&path, false).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!path.exists());
    drop(file);
    assert!(names(dir.path()).is_empty());
    write(&path, "whole", false).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, NEW_MODE);
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn a_secret_is_for_its_owner_alone_also_where_a_file_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    for (before, force) in [("", false), ("before", true)] {
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut file = OutputFile::create(&path, force).unwrap();
        file.keep_secret().unwrap();
        file.write_all(b"secret").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, NEW_MODE);
    }
}

#[test]
fn a_file_that_exists_is_replaced_only_by_force_and_keeps_owner_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs::write(&path, "before").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    // Only root can change the owner of a file.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&path, Some(12345), Some(54321)).unwrap();
    }
    let owner = |path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let before = owner(&path);
    assert_eq!(
        write(&path, "after", false).unwrap_err().code,
        "file_exists"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    write(&path, "after", true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "after");
    assert_eq!(owner(&path), before);
    assert_eq!(names(dir.path()), ["out"]);
    // An empty file, as mktemp makes, has nothing to lose.
    fs::write(&path, "").unwrap();
    write(&path, "again", false).unwrap();
    assert_eq!(owner(&path), before);
}

/// Both files exist afterwards: the one that another process created or filled, and the new one beside it.
#[test]
fn what_others_write_to_the_path_meanwhile_is_kept_and_so_is_what_was_written() {
    for (is_there, force) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for round in 1..=2 {
            let _ = fs::remove_file(&path);
            if is_there {
                fs::write(&path, "").unwrap();
            }
            let mut file = OutputFile::create(&path, force).unwrap();
            file.write_all(format!("ours {round}").as_bytes()).unwrap();
            fs::write(&path, "theirs").unwrap();
            let failure = file.finish().unwrap_err();
            assert_eq!(failure.code, "file_exists");
            let kept = dir.path().join(["out.new", "out.new-2"][round - 1]);
            assert!(
                failure.message.ends_with(&kept.display().to_string()),
                "{}",
                failure.message
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
            assert_eq!(
                fs::read_to_string(&kept).unwrap(),
                format!("ours {round}"),
                "was there: {is_there}, force: {force}"
            );
        }
        assert_eq!(names(dir.path()), ["out", "out.new", "out.new-2"]);
    }
}

/// The same with `force`: the file is another one by now, or has other content.
#[test]
fn what_others_write_to_a_file_that_is_replaced_is_kept() {
    type Write = fn(&Path);
    let appended: Write = |path| {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b" and theirs").unwrap();
    };
    let replaced: Write = |path| {
        let other = path.with_extension("other");
        fs::write(&other, "theirs").unwrap();
        fs::rename(other, path).unwrap();
    };
    let overwritten: Write = |path| {
        fs::write(path, "theirs").unwrap();
        // The same length, and a time later than the resolution of any clock.
        let file = File::options().write(true).open(path).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.set_modified(later).unwrap();
    };
    for (others, theirs) in [
        (appended, "before and theirs"),
        (replaced, "theirs"),
        (overwritten, "theirs"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "before").unwrap();
        let mut file = OutputFile::create(&path, true).unwrap();
        file.write_all(b"ours").unwrap();
        others(&path);
        assert_eq!(file.finish().unwrap_err().code, "file_exists");
        assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        let kept = dir.path().join("out.new");
        assert_eq!(fs::read_to_string(kept).unwrap(), "ours");
        assert_eq!(names(dir.path()), ["out", "out.new"]);
        // Without further changes by others, the file is replaced, and no scratch file is left.
        write(&path, "again", true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "again");
        assert_eq!(names(dir.path()), ["out", "out.new"]);
    }
}

#[test]
fn an_empty_file_that_others_remove_meanwhile_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs::write(&path, "").unwrap();
    let mut file = OutputFile::create(&path, false).unwrap();
    file.write_all(b"ours").unwrap();
    fs::remove_file(&path).unwrap();
    file.finish().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn a_link_stays_and_what_it_points_to_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (link, path) = (dir.path().join("link"), dir.path().join("out"));
    std::os::unix::fs::symlink("out", &link).unwrap();
    write(&link, "new", false).unwrap();
    write(&link, "newer", true).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
    std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
    assert_eq!(
        write(&dir.path().join("loop"), "x", true).unwrap_err().code,
        "io"
    );
}

#[test]
fn a_named_scratch_file_does_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let named = || {
        let named = tempfile::Builder::new().tempfile_in(dir.path()).unwrap();
        Scratch::Named(named)
    };
    assert_eq!(named().name(&path).unwrap(), None);
    let kept = dir.path().join("out.new");
    assert_eq!(named().name(&path).unwrap(), Some(kept.clone()));
    assert_eq!(named().replace_found(&path, Found::Empty).unwrap(), None);
    fs::write(&path, "theirs").unwrap();
    let second = dir.path().join("out.new-2");
    assert_eq!(
        named().replace_found(&path, Found::Empty).unwrap(),
        Some(second.clone())
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    fs::remove_file(kept).unwrap();
    fs::remove_file(second).unwrap();
    fs::write(&path, "before").unwrap();
    named().replace(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    assert_eq!(names(dir.path()), ["out"]);
}
