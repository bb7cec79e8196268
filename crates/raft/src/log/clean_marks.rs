//! Files that a purge must not delete, because one of them may have the only mark that the log of a group was emptied.
//!
//! [`begin_group`](super::SharedLog::begin_group) empties the log of a group by a mark in an append file. Copies of the
//! group's entries that an earlier purge has made stay in the rewrite queue, which is read first at an open. So before
//! raft-engine deletes the file with the mark, it copies the mark behind them. For that it takes all marks out of its
//! memory, and if the write fails, it does not put them back: the next purge would delete the file without having copied
//! the mark. After a restart, entries of an earlier history would be back behind the new start, as if they followed it.
//!
//! An open finds the marks in the files again. So once a purge has failed, the append files are kept from the first one
//! on that may have a mark, until the process ends. The log may exceed its bound by that. It is rare: a recovery begins
//! a group anew, at a start, and a purge has to fail after that, before the file is deleted.
//!
//! Marks of installed snapshots need none of it. What comes back up to the new start is compacted at each open. What
//! comes back behind it conflicts with the snapshot, because a member whose log agrees with a snapshot does not empty
//! it. The snapshot is committed, so those entries are not, and a majority has an entry of a later term: nobody is
//! elected because of them, and the leader replaces them.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use raft_engine::internals::{EventListener, FileSeq, LogQueue};

/// See the [module's head](self).
#[derive(Default)]
pub(super) struct CleanMarks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The append files that may have a mark: one for each group that was begun at most.
    files: BTreeSet<FileSeq>,
    /// Append files from this one on are kept.
    kept_from: Option<FileSeq>,
}

impl CleanMarks {
    /// A mark is about to be written to this append file, or to a later one.
    pub fn note(&self, file: FileSeq) {
        self.state.lock().files.insert(file);
    }

    /// A purge has ended. `first` is the oldest append file that is left.
    pub fn purged(&self, has_failed: bool, first: FileSeq) {
        let mut state = self.state.lock();
        // With the file, a purge has deleted the need for the mark: it was copied.
        state.files.retain(|file| *file >= first);
        if let (true, None, Some(file)) = (has_failed, state.kept_from, state.files.first()) {
            let file = *file;
            state.kept_from = Some(file);
            tracing::warn!(
                file,
                "log files could not be deleted soon after a partition has begun its log anew: those from this number \
                 on are kept until the next start"
            );
        }
    }
}

impl EventListener for CleanMarks {
    fn first_file_not_ready_for_purge(&self, queue: LogQueue) -> Option<FileSeq> {
        match queue {
            LogQueue::Append => self.state.lock().kept_from,
            LogQueue::Rewrite => None,
        }
    }
}
