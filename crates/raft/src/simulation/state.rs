//! The state machine of the simulated hosts, and the form of its snapshots on a disk.
//!
//! The state is the list of commands, each by the number of its proposal, and a digest of them, which must
//! be the same on all members at one LSN. A snapshot is this list, as bytes or as files of a few lines
//! each, so that two snapshots share most of their files.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::engine::{Committed, LogFloor, Membership};
use crate::ids::{CheckpointId, NodeId};
use crate::transfer::{Checksum, Content, FileEntry, Manifest, OFFER_FORMAT};

/// Commands in one file of a snapshot.
const LINES: usize = 12;

#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last entry that was applied.
    pub at: LogFloor,
    pub lines: Vec<u64>,
    pub digest: u64,
    /// Who belongs to the group, as of that entry.
    pub membership: Membership,
}

pub fn digest(before: u64, line: u64) -> u64 {
    xxh3_64_with_seed(&line.to_le_bytes(), before)
}

/// The number of the proposal of a command.
pub fn line_of(command: &[u8]) -> Option<u64> {
    let (number, _) = command.split_first_chunk::<8>()?;
    Some(u64::from_le_bytes(*number))
}

impl State {
    pub fn apply(&mut self, entry: &Committed) {
        self.at = LogFloor {
            lsn: entry.lsn,
            term: entry.term,
        };
        if let Some(line) = entry.command.as_ref().and_then(|c| line_of(c)) {
            self.lines.push(line);
            self.digest = digest(self.digest, line);
        }
        if let Some(membership) = &entry.membership {
            self.membership = (**membership).clone();
        }
    }

    /// From the files of a snapshot; `None` if their size is wrong.
    pub fn restore(manifest: &Manifest, files: &[Vec<u8>]) -> Option<State> {
        let bytes = files.concat();
        if bytes.len() as u64 != manifest.total_bytes() {
            return None;
        }
        let lines: Vec<_> = bytes.chunks_exact(8).filter_map(line_of).collect();
        Some(State {
            at: LogFloor {
                lsn: manifest.last_included_index,
                term: manifest.term,
            },
            digest: lines.iter().fold(0, |d, line| digest(d, *line)),
            lines,
            membership: manifest.peers.clone(),
        })
    }
}

/// A snapshot on a host's disk.
#[derive(Clone, Debug)]
pub struct Stored {
    pub manifest: Manifest,
    pub files: Vec<Vec<u8>>,
}

impl Stored {
    pub fn of(state: &State, source: u64, number: u64, in_files: bool) -> Stored {
        let lump = |lines: &[u64]| lines.iter().flat_map(|l| l.to_le_bytes()).collect();
        let mut files: Vec<Vec<u8>> = match in_files {
            true => state.lines.chunks(LINES).map(lump).collect(),
            false => vec![lump(&state.lines)],
        };
        let content = if in_files {
            // Empty files exist, too.
            files.push(Vec::new());
            let entry = |(n, file): (usize, &Vec<u8>)| FileEntry {
                name: format!("{n:06}.sst"),
                size: file.len() as u64,
                checksum: Checksum::of(file),
            };
            Content::Files(files.iter().enumerate().map(entry).collect())
        } else {
            Content::Bytes {
                size: files[0].len() as u64,
                checksum: Checksum::of(&files[0]),
            }
        };
        let mut checkpoint = [0; 16];
        checkpoint[..8].copy_from_slice(&source.to_be_bytes());
        checkpoint[8..].copy_from_slice(&number.to_be_bytes());
        let manifest = Manifest {
            format: OFFER_FORMAT,
            checkpoint: CheckpointId(checkpoint),
            source: NodeId(source),
            last_included_index: state.at.lsn,
            term: state.at.term,
            peers: state.membership.clone(),
            content,
        };
        Stored { manifest, files }
    }
}
