//! The state machine of all parts: numbered values in memory.
//!
//! Its snapshots are bytes, or files: the values in one, and beside it a *payload* of many others, which are
//! hard links. A payload represents a database of that size; with churn, each snapshot has one new file of
//! it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::engine::Committed;
use esker_raft::{
    ApplyError, Capture, Lsn, Membership, SnapshotData, SnapshotDir, SnapshotError, StateMachine,
    StoredSnapshot, Term,
};
use parking_lot::Mutex;

/// Values of a running state machine that the bench reads and sets.
#[derive(Default)]
pub struct Knobs {
    /// How long a capture sleeps before it writes.
    pub sleep: Mutex<Duration>,
    /// When entries were applied last, and the longest time between two applies.
    pub applies: Mutex<(Option<Instant>, Duration)>,
}

/// A directory of files that represents a database.
#[derive(Clone)]
pub struct Payload {
    /// The directory.
    pub dir: PathBuf,
    /// The directory in which snapshots are assembled, on the same file system.
    pub staging: PathBuf,
    /// Whether each snapshot has one new file.
    pub churn: bool,
}

/// Bytes of one file of a payload.
pub const PAYLOAD_FILE: u64 = 16 << 20;

/// Creates a payload of different files.
pub fn make_payload(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    for number in 0..bytes.div_ceil(PAYLOAD_FILE) {
        write_payload_file(&dir.join(format!("{number:06}")), number)?;
    }
    Ok(())
}

fn write_payload_file(path: &Path, seed: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; 1 << 20];
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..PAYLOAD_FILE >> 20 {
        for word in block.chunks_exact_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&x.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// See the [module's head](self).
pub struct Values {
    values: HashMap<u64, Bytes>,
    applied: Lsn,
    term: Term,
    membership: Membership,
    knobs: Arc<Knobs>,
    payload: Option<Payload>,
    snapshots: u64,
}

impl Values {
    pub fn new(knobs: Arc<Knobs>, payload: Option<Payload>) -> Values {
        Values {
            values: HashMap::new(),
            applied: Lsn(0),
            term: Term(0),
            membership: Membership::default(),
            knobs,
            payload,
            // Numbers of snapshots differ from those of the previous process.
            snapshots: u64::from(std::process::id()) << 32,
        }
    }
}

/// The command that sets a numbered value.
pub fn command(number: u64, value: &[u8]) -> Vec<u8> {
    let mut command = number.to_le_bytes().to_vec();
    command.extend_from_slice(value);
    command
}

impl StateMachine for Values {
    type Output = ();
    type Capture = Writing;

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn membership(&self) -> Membership {
        self.membership.clone()
    }

    fn create(&mut self, founders: &Membership) {
        self.membership = founders.clone();
    }

    fn apply(&mut self, entries: &[Committed], outputs: &mut Vec<()>) -> Result<(), ApplyError> {
        for entry in entries {
            if let Some(command) = &entry.command {
                if let Some((number, value)) = command.split_first_chunk::<8>() {
                    let value = Bytes::copy_from_slice(value);
                    self.values.insert(u64::from_le_bytes(*number), value);
                }
                outputs.push(());
            }
            if let Some(membership) = &entry.membership {
                self.membership = (**membership).clone();
            }
            (self.applied, self.term) = (entry.lsn, entry.term);
        }
        let now = Instant::now();
        let mut applies = self.knobs.applies.lock();
        if let Some(last) = applies.0 {
            applies.1 = applies.1.max(now - last);
        }
        applies.0 = Some(now);
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Writing {
        self.snapshots += 1;
        Writing {
            number: self.snapshots,
            // Values are shared: only the table is copied.
            values: self.values.clone(),
            last_included_index: self.applied,
            term: self.term,
            peers: self.membership.clone(),
            sleep: *self.knobs.sleep.lock(),
            payload: self.payload.clone(),
        }
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        let failed = |e: std::io::Error| SnapshotError(e.to_string());
        let bytes = match snapshot.data {
            SnapshotData::Bytes(bytes) => bytes,
            SnapshotData::Files(SnapshotDir { path }) => {
                fs::read(path.join("values")).map_err(failed)?
            }
        };
        let mut rest = &bytes[..];
        let mut values = HashMap::new();
        while let Some((head, more)) = rest.split_first_chunk::<16>() {
            let number = u64::from_le_bytes(*head.first_chunk().expect("16 bytes"));
            let length = u64::from_le_bytes(*head.last_chunk().expect("16 bytes")) as usize;
            let Some((value, more)) = more.split_at_checked(length) else {
                return Err(SnapshotError("the values end too early".to_owned()));
            };
            values.insert(number, Bytes::copy_from_slice(value));
            rest = more;
        }
        self.values = values;
        self.applied = snapshot.last_included_index;
        self.term = snapshot.term;
        self.membership = snapshot.peers;
        Ok(())
    }
}

/// A snapshot that has begun.
pub struct Writing {
    number: u64,
    values: HashMap<u64, Bytes>,
    last_included_index: Lsn,
    term: Term,
    peers: Membership,
    sleep: Duration,
    payload: Option<Payload>,
}

impl Writing {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in &self.values {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    fn files(&self, payload: &Payload) -> std::io::Result<PathBuf> {
        let dir = payload.staging.join(self.number.to_string());
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("values"), self.bytes())?;
        let mut names: Vec<_> = fs::read_dir(&payload.dir)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        if payload.churn && !names.is_empty() {
            let name = &names[self.number as usize % names.len()];
            let made = payload.staging.join(format!("{}.new", self.number));
            write_payload_file(&made, self.number)?;
            fs::rename(made, payload.dir.join(name))?;
        }
        for name in names {
            fs::hard_link(payload.dir.join(&name), dir.join(&name))?;
        }
        Ok(dir)
    }
}

impl Capture for Writing {
    fn write(self) -> Result<StoredSnapshot, SnapshotError> {
        std::thread::sleep(self.sleep);
        let data = match &self.payload {
            None => SnapshotData::Bytes(self.bytes()),
            Some(payload) => SnapshotData::Files(SnapshotDir {
                path: (self.files(payload)).map_err(|e| SnapshotError(e.to_string()))?,
            }),
        };
        Ok(StoredSnapshot {
            last_included_index: self.last_included_index,
            term: self.term,
            peers: self.peers,
            data,
        })
    }
}
