//! Inspects the log's files before raft-engine opens them.
//!
//! raft-engine cuts its last file at the first broken batch, without reporting it, whether or not that
//! batch was acknowledged. Only bytes that were never synced may be cut. So this module reads every file
//! first, checks every checksum, and distinguishes three cases:
//!
//! - **clean**: valid batches, then nothing, or only zeros (preallocated space);
//! - **torn**: the one write that a crash can have interrupted is broken, and nothing follows it;
//!   it was never acknowledged, is reported in bytes, and can be [`cut`];
//! - **rot**: anything else. The log no longer holds what was acknowledged: an error, never a cut.
//!
//! # What a crash can leave behind
//!
//! The judgement rests on who syncs what, and when:
//!
//! - *Append queue* (`.raftlog`): the log writer makes one batch per write group and syncs it
//!   before the next. Only the last batch of the last file can be unsynced.
//! - *Rewrite queue* (`.rewrite`): written by purge alone, which by itself syncs too rarely to
//!   bound the loss (its counter of unsynced bytes starts again with every group). The log's
//!   [file system](super::fs) therefore syncs each of its batches: again, only the last one of
//!   the last file can be unsynced, and its originals are still in place, because purge deletes
//!   them after that.
//! - *Rotation* truncates the old file to its length and syncs it, creates the new one, writes and
//!   syncs its header, and only then uses it. A crash, or a disk that fills in between, leaves a
//!   **stub**: a last file no longer than a header, without a valid one. After a full disk the file
//!   *before* the stub may still be the one in use, so a stub does not count: it is to be removed,
//!   and the file before it is judged as the last. (raft-engine itself would restart a stub in the
//!   older format without signatures, and refuse a torn tail before it.)
//! - *Purge* deletes files oldest first, and the log's file system keeps that order even after a
//!   failed delete. A gap in the numbers is a file that somebody lost, never a half-done purge;
//!   raft-engine would silently ignore everything before it.
//!
//! Valid files do not make a complete log: if one was replaced by an older copy, entries are missing
//! between it and the next. raft-engine would panic there, so the inspection follows what each batch does
//! to its groups, by raft-engine's rules ([`spans`], [`groups`]). An older copy that leaves no such gap is
//! detected by the log's note of how far each file reached ([`extents`]).
//!
//! # What it cannot see
//!
//! The last batch, synced and then damaged, looks like a torn one. So do acknowledged batches replaced by
//! zeros up to the end of the last file, and files missing at either end of the queue look like files that
//! never were, as far as the log has not noted since that they were there: of the rewrite queue it has, of
//! the last append file it cannot. The caller compares the log with what the database has applied, which is
//! the second check. In the other direction the inspection is strict: a torn batch whose *payload* holds a
//! batch of this very file (a copy of the log, stored as a record) is called rot.
//!
//! # Cost
//!
//! Every byte is read once, which also warms the cache for raft-engine's own scan; from memory, about
//! 3 GB/s a thread. A thread for each processor reads a file, up to four; what batches do to their groups
//! is followed in the order of the files. Each thread holds one window of 1 MiB and what 64 Ki batches do,
//! and at a broken tail at most the largest batch. No lock is taken: call it when no engine has the
//! directory open.

mod batch;
mod extents;
#[cfg(test)]
pub(in crate::log) mod fixture;
mod groups;
mod items;
mod names;
mod spans;
mod tail;
#[cfg(test)]
mod tests;
mod walk;
mod window;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

pub(super) use batch::FILE_HEADER_LEN;
use extents::Reached;
use names::LogName;
use spans::{Change, Spans};
use walk::{Stop, Walk};

pub use super::extents::Queue;
use super::extents::RewriteEnd;

/// What one batch of the rewrite queue can hold beyond the largest write group, in bytes.
///
/// Purge closes a batch once it holds more than 128 KiB of entries. By then the last entry may be
/// as large as a write group allows, and each entry has added up to 4 bytes of index to the footer
/// (64 KiB, if they are tiny). That much, doubled.
const REWRITE_SLACK_BYTES: u64 = 2 * (128 + 64) * 1024;

/// The result of an inspection.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Files with a valid header, both queues. 0: there is no log here, or one whose very first
    /// file was never finished.
    pub files: usize,
    /// Valid bytes in these files, headers included, preallocated space not.
    pub bytes: u64,
    /// What has to be cut before raft-engine may open the log: at most a stub and a torn tail per queue.
    pub torn: Vec<TornTail>,
    /// Preallocated zeros behind the last batch of a queue: (file, where they start).
    padded: Vec<(PathBuf, u64)>,
    reached: Reached,
}

/// The remains of a write that was interrupted before it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The queue that it ends.
    pub queue: Queue,
    /// The file that it ends.
    pub path: PathBuf,
    /// Where the valid part of the file ends. 0: the file is a stub without a header.
    pub offset: u64,
    /// Bytes that are lost by cutting: from `offset` to the last byte that is not zero.
    pub bytes: u64,
}

/// Why the log must not be opened.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The operating system refused; nothing is known about the log. (A sector that cannot be
    /// read ends here, too.)
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was attempted: a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Acknowledged writes are damaged. Restore, or let this member rejoin as a new one.
    #[error("the log is damaged: {} at offset {offset}: {what}", path.display())]
    Rot {
        /// The damaged file.
        path: PathBuf,
        /// Where its valid part ends.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file of the log is gone, and with it acknowledged writes. Put it back, or restore.
    #[error("the log is incomplete: {} is missing: {why}", path.display())]
    MissingFile {
        /// The first missing file.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// The files are valid, and entries between them are missing: a file was replaced by an older copy, for
    /// instance from a backup that was copied over a newer directory. raft-engine would panic.
    #[error(
        "the log is incomplete: after entry {after} of partition {group}, {} goes on at offset {offset} with \
         entry {next}: a file before it was replaced by an older copy",
        path.display()
    )]
    Gap {
        /// The file that goes on.
        path: PathBuf,
        /// Where the batch begins.
        offset: u64,
        /// The group.
        group: u64,
        /// The last entry before the gap.
        after: u64,
        /// The first entry after it.
        next: u64,
    },
    /// A file is shorter than the log has noted: it was replaced by an older copy, or cut.
    #[error(
        "the log is incomplete: {} ends at offset {offset}, and the log noted that it reached {noted}: it was \
         replaced by an older copy, or cut",
        path.display()
    )]
    OlderCopy {
        /// The file.
        path: PathBuf,
        /// Where its valid part ends.
        offset: u64,
        /// How far it reached, at least.
        noted: u64,
    },
    /// A file is valid, but belongs to another copy of the log, which was written to independently.
    #[error(
        "the log is damaged: {} at offset {offset}: {what}: it is a file of another copy of this log",
        path.display()
    )]
    OtherCopy {
        /// The file.
        path: PathBuf,
        /// Where that shows.
        offset: u64,
        /// How.
        what: String,
    },
    /// A foreign file that raft-engine would misread. Move it away.
    #[error("{} does not belong into the log's directory: {why}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What raft-engine would make of it.
        why: &'static str,
    },
}

/// Reads the log in `dir` and judges it. Changes nothing.
///
/// `max_group_bytes` is the size of the largest batch that the log writer makes, *encoded*: the
/// payload, its index, a header of 16 bytes and two checksums. A broken tail of the append queue
/// that is longer than that is rot.
///
/// An absent or empty directory gives an empty inspection (`files` = 0); what that means is the
/// caller's decision. Files that raft-engine would not take for its own are ignored.
///
/// # Errors
///
/// See [`InspectError`]. Every variant means: do not open this log.
pub fn inspect(dir: &Path, max_group_bytes: u64) -> Result<Inspection, InspectError> {
    let (append, rewrite) = names::list(dir)?;
    // raft-engine creates the first append file before the first rewrite file, and keeps at
    // least one append file ever after.
    if let (true, Some(rewrite)) = (append.is_empty(), rewrite.first()) {
        return Err(InspectError::MissingFile {
            path: dir.join("*.raftlog"),
            why: format!("there is no append file beside {}", rewrite.path.display()),
        });
    }
    let mut found = Inspection::default();
    inspect_queue(&mut found, &append, max_group_bytes)?;
    inspect_queue(
        &mut found,
        &rewrite,
        max_group_bytes.saturating_add(REWRITE_SLACK_BYTES),
    )?;
    found.reached.check(dir)?;
    Ok(found)
}

/// Judges one queue's files, oldest first. `limit`: the largest torn tail, in bytes.
fn inspect_queue(
    found: &mut Inspection,
    files: &[LogName],
    limit: u64,
) -> Result<(), InspectError> {
    let Some((newest, before)) = files.split_last() else {
        return Ok(());
    };
    let files = match walk::stub_bytes(newest)? {
        Some(bytes) => {
            // The predecessor was in use when this file was created. Only the first file of a
            // queue has none.
            if before.is_empty() && newest.seq != names::FIRST_SEQ {
                return Err(InspectError::MissingFile {
                    path: newest.predecessor(),
                    why: format!("{} was never put to use", newest.path.display()),
                });
            }
            found.torn.push(newest.torn(0, bytes));
            before
        }
        None => files,
    };
    let queue = newest.queue;
    let last = files.last().map(|file| file.seq);
    let mut spans = Spans::new(queue);
    let Inspection {
        files: count,
        bytes,
        torn,
        padded,
        reached,
    } = found;
    let reached = std::cell::RefCell::new(reached);
    let take = |file: &LogName, at, changes: &[Change]| {
        let fits = spans.apply_batch(file.seq, changes);
        fits.map_err(|misfit| file.misfit(at, misfit))?;
        for change in changes {
            if let Change::Note(note) = change
                && !reached.borrow_mut().note(note)
            {
                let what = "the note of the files' extents cannot be read";
                return Err(file.rot(at, what.to_owned()));
            }
        }
        Ok(())
    };
    let end = |file: &LogName, walked: Walk| {
        let Walk {
            reader,
            valid,
            stop,
        } = walked;
        *count += 1;
        *bytes += valid;
        let key = (queue, file.seq);
        reached.borrow_mut().add(key, &file.path, valid);
        let Stop::Broken(broken) = stop else {
            return Ok(());
        };
        if Some(file.seq) != last {
            // Closed by rotation, truncated and synced: not even padding belongs here, and
            // zeros would hide acknowledged batches.
            return Err(file.rot(valid, format!("{} (files follow this one)", broken.what)));
        }
        match tail::judge(file, reader, valid, broken, limit)? {
            0 => padded.push((file.path.clone(), valid)),
            bytes => torn.push(file.torn(valid, bytes)),
        }
        Ok(())
    };
    walk::walk_all(files, take, end)
}

impl Inspection {
    /// Where the rewrite queue ends.
    pub(super) fn rewrite_end(&self) -> RewriteEnd {
        let end = RewriteEnd::default();
        if let Some((seq, valid)) = self.reached.rewrite_end() {
            end.set(seq, valid);
        }
        end
    }

    /// Bytes that [`Inspection::cut`] loses, none of them acknowledged.
    pub fn torn_bytes(&self) -> u64 {
        self.torn.iter().map(|torn| torn.bytes).sum()
    }

    /// Cuts everything torn, and the preallocated zeros after the last batches. raft-engine then has
    /// nothing left to cut, and can be configured (`AbsoluteConsistency`) to fail rather than cut.
    ///
    /// # Errors
    ///
    /// The first that the operating system gives, with the file's name. Inspect again before
    /// opening: what was cut stays cut.
    pub fn cut(&self) -> io::Result<()> {
        self.torn.iter().try_for_each(cut)?;
        self.padded
            .iter()
            .try_for_each(|(path, offset)| shorten(path, *offset))
    }
}

/// Cuts the torn tail: truncates the file at the offset and syncs it. A stub (offset 0) is
/// removed instead, because raft-engine would give an empty file a header of its oldest format.
///
/// # Errors
///
/// Those of the operating system, with the file's name.
pub fn cut(torn: &TornTail) -> io::Result<()> {
    if torn.offset > 0 {
        return shorten(&torn.path, torn.offset);
    }
    std::fs::remove_file(&torn.path)
        .and_then(|()| {
            torn.path
                .parent()
                .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        })
        .map_err(|e| named("remove", &torn.path, &e))
}

/// Truncates `path` to `len` bytes, durably.
fn shorten(path: &Path, len: u64) -> io::Result<()> {
    let open = OpenOptions::new().write(true).open(path);
    open.and_then(|file| file.set_len(len).and_then(|()| file.sync_all()))
        .map_err(|e| named("truncate", path, &e))
}

fn named(operation: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {operation} {}: {error}", path.display()),
    )
}
