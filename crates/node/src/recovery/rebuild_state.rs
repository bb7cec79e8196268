//! Makes the state store's partition from a JSON snapshot and the log.

use std::io;

use esker_partition::command::Kind;
use esker_partition::streams::{StreamOptions, StreamPartition};
use esker_partition::{PartitionId, Store};
use esker_raft::{GroupId, Lsn, StateMachine as _};

use super::context::{Context, cluster_init};
use crate::data_dir::MADE_OF_STATE;
use crate::error::StartError;
use crate::state::error::FileError;
use crate::state::files::{Files, name_of};

/// Bytes of the log that are read at a time.
const REPLAY_BYTES: u64 = 4 << 20;

/// Makes the partition from the JSON snapshot of a commit, and from the commits that the log has after it,
/// up to an LSN. Returns the number of these commits. Other streams are lost, so their entries in the log
/// are skipped. Blocking.
pub(super) fn from_state(
    cx: &Context,
    store: &Store,
    partition: u64,
    commit_ts: u64,
    up_to: u64,
) -> Result<u64, StartError> {
    let Context { data_dir, raft, .. } = cx;
    let broken = |why: String| not_usable(partition, commit_ts, why);
    let id = PartitionId(partition);
    let path = data_dir.snapshots();
    let files = Files::open(path.clone()).map_err(|source| StartError::Io {
        operation: "opening",
        path,
        source,
    })?;
    let checked = files.check(commit_ts);
    let (checked, _) = checked.map_err(|why| not_read(partition, commit_ts, &why))?;
    let lsn = checked.header.lsn;
    tracing::info!(
        source = "json",
        commit_ts,
        bytes = checked.bytes,
        keys = checked.keys,
        "Loading snapshot: {}",
        name_of(commit_ts)
    );
    // Until the lineage has begun, the rebuilt partition must not be mistaken for the lost one.
    data_dir.report_damage(partition, MADE_OF_STATE)?;
    store.drop_partition(id)?;
    store.create_partition(id, &cluster_init(data_dir))?;
    // The commits that follow in the log get the numbers that they had in that lineage.
    let part = store.partition_db(id);
    let lineage = part.lineage()?.after_forks(checked.header.forks);
    part.fork(&lineage, &[data_dir.identity.node_id])?;
    let mut rebuild = store.partition_db(id).rebuild_state()?;
    rebuild.commit_forks(checked.header.commit_forks);
    let read = files.read_into(commit_ts, |key, entry| rebuild.entry(key, entry))?;
    read.map_err(|why| not_read(partition, commit_ts, &why))?;
    rebuild.applied(lsn, 1)?;
    rebuild.finish(commit_ts)?;
    let log = raft.log().reader(GroupId(partition));
    let mut machine = StreamPartition::open(store, id, StreamOptions::default())?;
    let (mut next, mut commits) = (lsn + 1, 0u64);
    while next <= up_to {
        let entries = log
            .entries(Lsn(next), Lsn(up_to + 1), REPLAY_BYTES)
            .map_err(|e| match e.is_unreadable() {
                true => StartError::unreadable("the log", &e),
                false => broken(e.to_string()),
            })?
            .into_committed()
            .map_err(broken)?;
        let Some(last) = entries.last() else {
            return Err(broken(format!("the log has no entry at LSN {next}")));
        };
        next = last.lsn.0 + 1;
        let of_state = |mut entry: esker_raft::Committed| {
            let kind = entry.command.clone().map(Kind::from_bytes);
            let is_of_state = matches!(
                kind,
                Some(Ok(Kind::StateCommit(_)
                    | Kind::StatePrune(_)
                    | Kind::StateImport(_)))
            );
            commits += u64::from(matches!(kind, Some(Ok(Kind::StateCommit(_)))));
            entry.command = entry.command.filter(|_| is_of_state);
            entry
        };
        let entries: Vec<_> = entries.into_iter().map(of_state).collect();
        for step in entries.chunks(1024) {
            machine
                .apply(step, &mut Vec::new())
                .map_err(|e| broken(e.to_string()))?;
        }
    }
    drop(machine);
    store.partition_db(id).flush()?;
    Ok(commits)
}

/// The error for a JSON snapshot that was whole when it was chosen, and cannot be used now.
fn not_usable(partition: u64, commit_ts: u64, why: String) -> StartError {
    StartError::NothingUsable {
        partition,
        tried: format!("{}: {why}", name_of(commit_ts)),
        remedy: "Start again: another copy is tried".into(),
    }
}

/// The same if its file is damaged or absent. A file that cannot be read now may be whole.
fn not_read(partition: u64, commit_ts: u64, why: &FileError) -> StartError {
    match why {
        FileError::Unreadable(error) if error.kind() != io::ErrorKind::NotFound => {
            StartError::unreadable(name_of(commit_ts), error)
        }
        why => not_usable(partition, commit_ts, why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_snapshot_that_cannot_be_read_now_is_not_said_to_be_of_no_use() {
        let code = |why: FileError| not_read(1, 7, &why).code();
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::TimedOut] {
            assert_eq!(code(FileError::Unreadable(kind.into())), "unreadable");
        }
        let too_many_files = io::Error::from_raw_os_error(24);
        assert_eq!(code(FileError::Unreadable(too_many_files)), "unreadable");
        let gone = FileError::Unreadable(io::ErrorKind::NotFound.into());
        assert_eq!(code(gone), "nothing_usable");
        assert_eq!(
            code(FileError::Damaged("torn".to_owned())),
            "nothing_usable"
        );
    }
}
