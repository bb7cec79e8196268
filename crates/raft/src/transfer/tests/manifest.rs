//! Which offers are not fetched.

use super::*;

fn with_names(names: &[&str]) -> Manifest {
    let mut manifest = manifest(&[]);
    let entry = |name: &&str| FileEntry {
        name: (*name).to_owned(),
        size: 1,
        checksum: Checksum(0),
    };
    manifest.content = Content::Files(names.iter().map(entry).collect());
    manifest
}

#[test]
fn names_stay_inside_the_directory() {
    for good in ["000001.sst", "MANIFEST-000004", "a/b/c/d", "..a", "a_b-c.d"] {
        assert_eq!(with_names(&[good]).validate(), Ok(()), "{good}");
    }
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let bad = [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "a\0b",
        "c:d",
        "a b",
        "ä",
        "a/b/c/d/e",
        "a\n",
        &long,
    ];
    for bad in bad {
        let refused = with_names(&[bad]).validate();
        assert!(
            matches!(refused, Err(InvalidManifest::Name(_))),
            "{bad:?}: {refused:?}"
        );
    }
}

#[test]
fn no_file_is_named_twice_nor_where_another_has_a_directory() {
    for names in [["a", "a"], ["a", "A"], ["a", "a/b"], ["x/y", "x/y/z"]] {
        let refused = with_names(&names).validate();
        assert!(
            matches!(refused, Err(InvalidManifest::Duplicate(_))),
            "{names:?}"
        );
    }
    assert_eq!(with_names(&["a-b", "a/b", "ab"]).validate(), Ok(()));
}

#[test]
fn absurd_offers_are_refused() {
    type Break = fn(&mut Manifest);
    let broken: [(Break, InvalidManifest); 9] = [
        (|m| m.format = 2, InvalidManifest::NewerFormat(2)),
        (|m| m.last_included_index = Lsn(0), InvalidManifest::Empty),
        (|m| m.term = Term(0), InvalidManifest::Empty),
        (
            |m| m.content = Content::Files(Vec::new()),
            InvalidManifest::NoFiles,
        ),
        (|m| m.peers.voters.clear(), InvalidManifest::Membership),
        (
            |m| m.peers.learners = vec![NodeId(0)],
            InvalidManifest::Membership,
        ),
        (
            |m| m.peers.voters = vec![NodeId(1); 2000],
            InvalidManifest::Membership,
        ),
        (
            |m| {
                let (size, checksum) = (MAX_SNAPSHOT_BYTES + 1, Checksum(0));
                m.content = Content::Bytes { size, checksum };
            },
            InvalidManifest::TooLarge,
        ),
        (
            |m| {
                if let Content::Files(files) = &mut m.content {
                    files.iter_mut().for_each(|f| f.size = u64::MAX / 2 + 1);
                }
            },
            InvalidManifest::TooLarge,
        ),
    ];
    for (break_it, why) in broken {
        let mut manifest = manifest(&[1, 2, 3]);
        assert_eq!(manifest.validate(), Ok(()));
        break_it(&mut manifest);
        assert_eq!(manifest.validate(), Err(why));
    }
}
