//! A note in the log of how far each of its files reached, by which older copies of files are detected.
//!
//! Each batch has a checksum, and the files of a queue are numbered without a gap. Neither distinguishes an
//! older copy of a file from the newest one: the copy ends earlier, after a complete batch. So the log
//! stores, under a key of the node, the length of each closed file and the least length of the file that a
//! purge copies entries to, each with a checksum of the last bytes before that length, which differ in
//! another copy of the log. The [inspection](super::inspect) before an open compares them with the files.
//!
//! A note stays true: a closed file never changes, the file that is copied to grows, and files are deleted
//! oldest first. So an older note demands less, and nothing wrong. The note is written with the first write
//! after an open, after a rotation before anything in the new file is acknowledged, and after each purge.
//! If a crash comes before that, files since the last note are not checked.
//!
//! Logs of earlier builds have no note and are not checked; earlier builds ignore the key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::LogBatch;
use raft_engine::internals::{FileId, FileNameExt, LogQueue};

use super::{NODE_REGION, RaftEngine, write_synced};

/// The key of the note.
pub(super) const KEY_EXTENTS: &[u8] = b"extents";
/// Version of a note, its first byte.
const VERSION: u8 = 1;
/// Bytes of one file in a note: queue, number, length, checksum.
const EXTENT_BYTES: usize = 1 + 8 + 8 + 4;
/// Most files in a note; the newest ones are noted. So many take 21 KiB. In a log with small files a note
/// takes at most an eighth of a file, so that notes do not fill the files.
const MAX_EXTENTS: usize = 1024;
/// Bytes before the noted end that the checksum covers.
const TAIL_BYTES: u64 = 4096;

/// One of the log's two sequences of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Queue {
    /// Write groups, in the order in which they were acknowledged.
    Append,
    /// Old entries that a purge copied out of append files, to be able to delete these.
    Rewrite,
}

/// A file of the log.
pub(super) type FileKey = (Queue, u64);

/// The least length of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes, header included, preallocated space not.
    pub(super) len: u64,
    /// CRC-32 of the last bytes before that, 4 KiB at most.
    pub(super) tail: u32,
}

impl Extent {
    /// The extent of a closed file, which has no preallocated space.
    fn of_whole(path: &Path) -> io::Result<Extent> {
        Extent::of(path, path.metadata()?.len())
    }

    /// The extent of the first `len` bytes of a file.
    pub(super) fn of(path: &Path, len: u64) -> io::Result<Extent> {
        let tail_len = len.min(TAIL_BYTES);
        let mut tail = vec![0; tail_len as usize];
        File::open(path)?.read_exact_at(&mut tail, len - tail_len)?;
        Ok(Extent {
            len,
            tail: crc32fast::hash(&tail),
        })
    }
}

/// Extents by file.
pub(super) type Extents = BTreeMap<FileKey, Extent>;

fn encode(extents: &Extents) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for ((queue, seq), extent) in extents {
        bytes.push(match queue {
            Queue::Append => 0,
            Queue::Rewrite => 1,
        });
        bytes.extend_from_slice(&seq.to_be_bytes());
        bytes.extend_from_slice(&extent.len.to_be_bytes());
        bytes.extend_from_slice(&extent.tail.to_be_bytes());
    }
    bytes
}

/// Decodes a note. Empty if a later build wrote it in another format; `None` if it is not a note.
pub(super) fn decode(bytes: &[u8]) -> Option<Extents> {
    let (version, extents) = bytes.split_first()?;
    if *version != VERSION {
        return Some(Extents::new());
    }
    if !extents.len().is_multiple_of(EXTENT_BYTES) {
        return None;
    }
    let one = |bytes: &[u8]| {
        let (queue, rest) = bytes.split_first()?;
        let queue = match queue {
            0 => Queue::Append,
            1 => Queue::Rewrite,
            _ => return None,
        };
        let (seq, rest) = rest.split_first_chunk()?;
        let (len, tail) = rest.split_first_chunk()?;
        let extent = Extent {
            len: u64::from_be_bytes(*len),
            tail: u32::from_be_bytes(tail.try_into().ok()?),
        };
        Some(((queue, u64::from_be_bytes(*seq)), extent))
    };
    extents.chunks_exact(EXTENT_BYTES).map(one).collect()
}

/// The durable end of the rewrite queue: number of the file, and bytes in it. While a batch is written it
/// may be within the batch; a batch that fails is cut off again.
#[derive(Clone, Default)]
pub(super) struct RewriteEnd(Arc<Mutex<(u64, u64)>>);

impl RewriteEnd {
    /// The file now ends at `len`.
    pub(super) fn set(&self, seq: u64, len: u64) {
        *self.0.lock() = (seq, len);
    }

    /// The file was cut to `len`.
    pub(super) fn cut(&self, seq: u64, len: u64) {
        let mut end = self.0.lock();
        if end.0 == seq {
            end.1 = end.1.min(len);
        }
    }

    fn get(&self) -> (u64, u64) {
        *self.0.lock()
    }
}

/// Writes notes when they are due.
pub(super) struct ExtentNotes {
    dir: PathBuf,
    max: usize,
    rewrite_end: RewriteEnd,
    noted: Mutex<Noted>,
}

/// The last note, and the state of the files at that time.
struct Noted {
    as_of: Option<AsOf>,
    extents: Extents,
    /// The end of the rewrite queue, between two purges.
    rewrite: (u64, u64),
    has_failed: bool,
}

/// A note is due when this has changed since the last one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct AsOf {
    /// The file that is written to.
    append: u64,
    rewrite: (u64, u64),
}

impl ExtentNotes {
    /// For the log in `dir`, whose last note is `noted`.
    pub(super) fn new(
        dir: &Path,
        segment_size: u64,
        rewrite_end: RewriteEnd,
        noted: Extents,
    ) -> ExtentNotes {
        let fit = usize::try_from(segment_size / 8).unwrap_or(usize::MAX) / EXTENT_BYTES;
        ExtentNotes {
            dir: dir.to_owned(),
            max: fit.clamp(8, MAX_EXTENTS),
            noted: Mutex::new(Noted {
                as_of: None,
                extents: noted,
                rewrite: rewrite_end.get(),
                has_failed: false,
            }),
            rewrite_end,
        }
    }

    /// A purge has ended: the entries that it copied count from now on.
    pub(super) fn purged(&self) {
        self.noted.lock().rewrite = self.rewrite_end.get();
    }

    /// Writes a note if one is due, and returns when it is durable. If that fails, it stays due; the last
    /// note stays true.
    pub(super) fn write_due(&self, engine: &RaftEngine, writing: &Mutex<()>) {
        let mut noted = self.noted.lock();
        let result = self.write(&mut noted, engine, writing);
        if let Err(error) = &result
            && !noted.has_failed
        {
            tracing::warn!(dir = %self.dir.display(), %error, "the extents of the log's files were not noted; it is tried again");
        }
        noted.has_failed = result.is_err();
    }

    fn write(
        &self,
        noted: &mut Noted,
        engine: &RaftEngine,
        writing: &Mutex<()>,
    ) -> raft_engine::Result<()> {
        let (first, append) = engine.file_span(LogQueue::Append);
        let rewrite = noted.rewrite;
        let as_of = AsOf { append, rewrite };
        if noted.as_of == Some(as_of) {
            return Ok(());
        }
        let (first_rewrite, _) = engine.file_span(LogQueue::Rewrite);
        let mut extents = Extents::new();
        let closed = newest(first..append, self.max / 2);
        let closed_rewrite = newest(first_rewrite..rewrite.0, self.max / 2 - 1);
        let closed = closed.map(|seq| (Queue::Append, seq));
        let closed_rewrite = closed_rewrite.map(|seq| (Queue::Rewrite, seq));
        let open = (rewrite.0 > 0).then_some((Queue::Rewrite, rewrite.0));
        for file in closed.chain(closed_rewrite).chain(open) {
            let was_closed = noted.as_of.is_some_and(|before| match file.0 {
                Queue::Append => file.1 < before.append,
                Queue::Rewrite => file.1 < before.rewrite.0,
            });
            let known = noted.extents.get(&file).filter(|_| was_closed).copied();
            let extent = match known {
                Some(known) => Ok(known),
                None if Some(file) == open => Extent::of(&self.path(file), rewrite.1),
                None => Extent::of_whole(&self.path(file)),
            };
            match extent {
                Ok(extent) => drop(extents.insert(file, extent)),
                // Purge has deleted it since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        if extents != noted.extents {
            let mut batch = LogBatch::default();
            batch.put(NODE_REGION, KEY_EXTENTS.to_vec(), encode(&extents))?;
            let _writing = writing.lock();
            write_synced(engine, &mut batch)?;
            noted.extents = extents;
        }
        noted.as_of = Some(as_of);
        Ok(())
    }

    fn path(&self, (queue, seq): FileKey) -> PathBuf {
        self.dir.join(file_name(queue, seq))
    }
}

/// The last `max` of them.
fn newest(seqs: std::ops::Range<u64>, max: usize) -> std::ops::Range<u64> {
    seqs.start.max(seqs.end.saturating_sub(max as u64))..seqs.end
}

pub(super) fn file_name(queue: Queue, seq: u64) -> String {
    let queue = match queue {
        Queue::Append => LogQueue::Append,
        Queue::Rewrite => LogQueue::Rewrite,
    };
    FileId::new(queue, seq).build_file_name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_decoded_as_encoded_and_one_of_a_later_version_demands_nothing() {
        let extent = |len| Extent { len, tail: 7 };
        let extents = Extents::from([
            ((Queue::Append, 3), extent(16_500)),
            ((Queue::Append, u64::MAX), extent(69)),
            ((Queue::Rewrite, 1), extent(u64::MAX)),
        ]);
        let bytes = encode(&extents);
        assert_eq!(decode(&bytes), Some(extents));
        for len in 0..bytes.len() {
            let is_whole = len % EXTENT_BYTES == 1;
            assert_eq!(decode(&bytes[..len]).is_some(), is_whole, "{len} bytes");
        }
        assert_eq!(decode(&[VERSION + 1, 5]), Some(Extents::new()));
        assert_eq!(decode(&[&[VERSION, 2][..], &[0; 20]].concat()), None);
    }

    #[test]
    fn of_many_files_the_newest_are_noted() {
        assert_eq!(newest(3..9, 100), 3..9);
        assert_eq!(newest(3..9, 2), 7..9);
        assert_eq!(newest(5..5, 2), 5..5);
    }
}
