//! The names that this program makes in the directories of a node's replicas.
//!
//! What has another name there is somebody else's: these directories may be links or mounts, with other things beside.
//! It may also be what a recovery has put aside: where a disk is mounted, that stays below the mount (`put-aside-1`).

/// Whether a name is one that the program makes.
pub(super) type IsOwn = fn(&str) -> bool;

/// What is deleted of a removed node, in this order.
pub(super) const REPLICAS: [(&str, IsOwn); 6] = [
    ("db", is_of_database),
    ("checkpoints", is_number),
    ("raft", is_of_transfers),
    ("restore", begins_with_partition),
    ("scratch", is_of_scratch),
    ("log", is_of_log),
];

/// What is deleted in the directories of a directory, if not all of it.
pub(super) fn inner_of(directory: &str) -> Option<IsOwn> {
    (directory == "checkpoints").then_some(is_of_checkpoints as IsOwn)
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|it| it.is_ascii_digit())
}

/// Those of RocksDB.
fn is_of_database(name: &str) -> bool {
    let is_numbered = |(stem, suffix): (&str, &str)| {
        is_number(stem)
            && ["sst", "log", "blob", "dbtmp", "sst.trash", "log.trash"].contains(&suffix)
    };
    let number_after = |prefix| name.strip_prefix(prefix).is_some_and(is_number);
    let options = name.strip_prefix("OPTIONS-");
    let options = options.map(|it| it.strip_suffix(".dbtmp").unwrap_or(it));
    ["CURRENT", "IDENTITY", "LOCK", "LOG"].contains(&name)
        || number_after("MANIFEST-")
        || number_after("LOG.old.")
        || options.is_some_and(is_number)
        || name.split_once('.').is_some_and(is_numbered)
}

/// Those of the checkpoints of one partition.
fn is_of_checkpoints(name: &str) -> bool {
    name.starts_with("lsn_") || name.starts_with("tmp-")
}

/// Those of what is sent to and fetched from other nodes.
fn is_of_transfers(name: &str) -> bool {
    let group = name.strip_prefix("group-");
    group.is_some_and(is_number) || ["incarnation", "incarnation.tmp"].contains(&name)
}

/// `3`, `3-lsn_…`.
fn begins_with_partition(name: &str) -> bool {
    is_number(name.split('-').next().unwrap_or_default())
}

fn is_of_scratch(name: &str) -> bool {
    begins_with_partition(name) || name == "state"
}

/// Those of raft-engine, and the marker.
fn is_of_log(name: &str) -> bool {
    let is_numbered = |(stem, suffix): (&str, &str)| {
        is_number(stem) && ["raftlog", "rewrite", "raftlog.reserved"].contains(&suffix)
    };
    ["LOCK", "esker.json", "esker.tmp"].contains(&name)
        || name.split_once('.').is_some_and(is_numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_makes_is_its_own_and_nothing_else_is() {
        let made: [(&str, &[&str]); 6] = [
            (
                "db",
                &[
                    "000012.sst",
                    "000013.log",
                    "000014.dbtmp",
                    "CURRENT",
                    "IDENTITY",
                    "LOCK",
                    "LOG",
                    "LOG.old.1700000000000000",
                    "MANIFEST-000005",
                    "OPTIONS-000007",
                    "OPTIONS-000008.dbtmp",
                ],
            ),
            ("checkpoints", &["0", "17"]),
            ("raft", &["group-0", "group-12", "incarnation"]),
            ("restore", &["3", "3-lsn_00000000000000000007"]),
            ("scratch", &["3-123", "state"]),
            (
                "log",
                &[
                    "0000000000000001.raftlog",
                    "0000000000000001.rewrite",
                    "0000000000000001.raftlog.reserved",
                    "LOCK",
                    "esker.json",
                ],
            ),
        ];
        let foreign = [
            "put-aside-1",
            "lost+found",
            "data",
            "backup.log",
            "x.raftlog",
            "MANIFEST-",
            "log",
            "",
        ];
        for ((name, is_own), (of, made)) in REPLICAS.into_iter().zip(made) {
            assert_eq!(name, of);
            for one in made {
                assert!(is_own(one), "{name}/{one}");
            }
            for one in foreign {
                assert!(!is_own(one), "{name}/{one}");
            }
        }
        let inner = inner_of("checkpoints").unwrap();
        assert!(inner("lsn_00000000000000000007") && inner("tmp-12-0") && !inner("put-aside-1"));
        assert!(inner_of("raft").is_none());
    }
}
