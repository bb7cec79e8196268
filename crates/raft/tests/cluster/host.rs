//! Nodes of a cluster in one process, and their state machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use esker_raft::engine::{ChangeRefused, Committed};
use esker_raft::store::DiskFaults;
use esker_raft::transport::memory::Network;
use esker_raft::{
    ApplyError, Capture, ChangeError, Config, Group, GroupId, GroupOptions, Lsn, Membership, Node,
    NodeId, ProposeError, RemoveFiles, Role, SnapshotData, SnapshotDir, SnapshotError,
    StateMachine, StoredSnapshot, Term, Transport,
};
use parking_lot::Mutex;

/// Longest wait: what takes longer hangs.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
pub const GROUP: GroupId = GroupId(4);
pub const TICK: Duration = Duration::from_millis(20);

/// What a test sees and controls of a state machine.
#[derive(Default)]
pub struct Knobs {
    pub lines: Mutex<Vec<String>>,
    /// Snapshots are directories of files, below this one.
    pub files_in: Mutex<Option<PathBuf>>,
    /// While it is set, captures do not end.
    pub captures_held: std::sync::atomic::AtomicBool,
    pub captures_fail: AtomicUsize,
    pub captures: AtomicUsize,
    pub writing: AtomicUsize,
    pub restored: AtomicU64,
    /// The state is durable, as in a database: it survives a restart.
    pub durable: std::sync::atomic::AtomicBool,
    database: Mutex<Option<Database>>,
    /// The longest time between two applies, since it was reset.
    pub last_apply: Mutex<Option<Instant>>,
    pub longest_gap: Mutex<Duration>,
}

#[derive(Clone)]
struct Database {
    lines: Vec<String>,
    at: (Lsn, Term),
    membership: Membership,
}

/// A state of lines, in memory or in a stand-in for a database.
pub struct Lines {
    knobs: Arc<Knobs>,
    lines: Vec<String>,
    at: (Lsn, Term),
    membership: Membership,
}

impl Lines {
    pub fn new(knobs: Arc<Knobs>) -> Lines {
        let found = match knobs.durable.load(Ordering::SeqCst) {
            true => knobs.database.lock().clone(),
            false => None,
        };
        let found = found.unwrap_or(Database {
            lines: Vec::new(),
            at: (Lsn(0), Term(0)),
            membership: Membership::default(),
        });
        *knobs.lines.lock() = found.lines.clone();
        Lines {
            knobs,
            lines: found.lines,
            at: found.at,
            membership: found.membership,
        }
    }

    fn save(&self) {
        if self.knobs.durable.load(Ordering::SeqCst) {
            *self.knobs.database.lock() = Some(Database {
                lines: self.lines.clone(),
                at: self.at,
                membership: self.membership.clone(),
            });
        }
    }
}

impl StateMachine for Lines {
    type Output = usize;
    type Capture = Captured;

    fn applied(&self) -> Lsn {
        self.at.0
    }

    fn membership(&self) -> Membership {
        self.membership.clone()
    }

    fn create(&mut self, founders: &Membership) {
        self.membership = founders.clone();
    }

    fn apply(&mut self, entries: &[Committed], outputs: &mut Vec<usize>) -> Result<(), ApplyError> {
        let now = Instant::now();
        if let Some(last) = self.knobs.last_apply.lock().replace(now) {
            let mut longest = self.knobs.longest_gap.lock();
            *longest = (*longest).max(now - last);
        }
        for entry in entries {
            assert_eq!(entry.lsn, self.at.0.next(), "no gap, none twice");
            self.at = (entry.lsn, entry.term);
            if let Some(command) = &entry.command {
                let line = String::from_utf8(command.to_vec()).unwrap();
                self.lines.push(line.clone());
                self.knobs.lines.lock().push(line);
                outputs.push(self.lines.len());
            }
            if let Some(membership) = &entry.membership {
                self.membership = (**membership).clone();
            }
        }
        self.save();
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Captured {
        let number = self.knobs.captures.fetch_add(1, Ordering::SeqCst);
        Captured {
            knobs: self.knobs.clone(),
            number,
            lines: self.lines.clone(),
            at: self.at,
            peers: self.membership.clone(),
        }
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        let text = match &snapshot.data {
            SnapshotData::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            SnapshotData::Files(SnapshotDir { path }) => {
                let mut names: Vec<_> = std::fs::read_dir(path).unwrap().collect();
                names.sort_by_key(|n| n.as_ref().unwrap().file_name());
                let read = |n: std::io::Result<std::fs::DirEntry>| {
                    std::fs::read_to_string(n.unwrap().path()).unwrap()
                };
                names.into_iter().map(read).collect()
            }
        };
        self.lines = text.lines().map(str::to_owned).collect();
        *self.knobs.lines.lock() = self.lines.clone();
        self.at = (snapshot.last_included_index, snapshot.term);
        self.membership = snapshot.peers;
        self.knobs.restored.fetch_add(1, Ordering::SeqCst);
        self.save();
        Ok(())
    }
}

pub struct Captured {
    knobs: Arc<Knobs>,
    number: usize,
    lines: Vec<String>,
    at: (Lsn, Term),
    peers: Membership,
}

impl Capture for Captured {
    fn write(self) -> Result<StoredSnapshot, SnapshotError> {
        let knobs = &self.knobs;
        knobs.writing.fetch_add(1, Ordering::SeqCst);
        while knobs.captures_held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        knobs.writing.fetch_sub(1, Ordering::SeqCst);
        let fails = (knobs.captures_fail)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if fails.is_ok() {
            return Err(SnapshotError("it fails, on purpose".to_owned()));
        }
        let text = |lines: &[String]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
        let files_in = knobs.files_in.lock().clone();
        let data = match files_in {
            None => SnapshotData::Bytes(text(&self.lines).into_bytes()),
            Some(base) => {
                let path = base.join(format!("capture-{}", self.number));
                std::fs::create_dir_all(&path).unwrap();
                for (n, lines) in self.lines.chunks(64).enumerate() {
                    std::fs::write(path.join(format!("{n:06}.part")), text(lines)).unwrap();
                }
                SnapshotData::Files(SnapshotDir { path })
            }
        };
        Ok(StoredSnapshot {
            last_included_index: self.at.0,
            term: self.at.1,
            peers: self.peers,
            data,
        })
    }
}

/// The transport of a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    Memory,
    #[cfg(feature = "grpc")]
    Grpc,
    /// With certificates of one authority.
    #[cfg(feature = "grpc")]
    Tls,
}

pub struct Running {
    pub node: Node,
    pub group: Group<usize>,
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub network: Network,
    pub nodes: BTreeMap<u64, Running>,
    pub knobs: BTreeMap<u64, Arc<Knobs>>,
    pub faults: BTreeMap<u64, DiskFaults>,
    pub adjust: Box<dyn Fn(&mut Config)>,
    pub by_files: bool,
    wire: Wire,
    founders: Vec<NodeId>,
    #[cfg(feature = "grpc")]
    pub addresses: BTreeMap<NodeId, String>,
    #[cfg(feature = "grpc")]
    pub authority: crate::tls::Authority,
    written: usize,
}

impl Cluster {
    /// A cluster whose founders run.
    pub fn start(wire: Wire, founders: &[u64]) -> Cluster {
        let mut cluster = Cluster::empty(wire, founders);
        for id in founders {
            cluster.run(*id);
        }
        cluster
    }

    pub fn empty(wire: Wire, founders: &[u64]) -> Cluster {
        Cluster {
            dir: tempfile::tempdir().unwrap(),
            network: Network::new(),
            nodes: BTreeMap::new(),
            knobs: BTreeMap::new(),
            faults: BTreeMap::new(),
            adjust: Box::new(|_| {}),
            by_files: false,
            wire,
            founders: founders.iter().copied().map(NodeId).collect(),
            #[cfg(feature = "grpc")]
            addresses: BTreeMap::new(),
            #[cfg(feature = "grpc")]
            authority: crate::tls::Authority::new(),
            written: 0,
        }
    }

    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    #[cfg(feature = "grpc")]
    fn grpc(&mut self, id: u64) -> Arc<dyn Transport> {
        use esker_raft::transport::grpc::{GrpcConfig, GrpcTransport};
        // No other cluster of this process gets them, also while their nodes do not run: all clusters have the same identity.
        for node in [1, 2, 3, 4].map(NodeId) {
            let free = || format!("127.0.0.1:{}", testkit::ports::free_port().unwrap());
            self.addresses.entry(node).or_insert_with(free);
        }
        let config = GrpcConfig {
            peers: self.addresses.clone(),
            secret: Some("open sesame".to_owned()),
            tls: (self.wire == Wire::Tls).then(|| self.authority.node("127.0.0.1")),
            ..GrpcConfig::default()
        };
        let listen = self.addresses[&NodeId(id)].parse().unwrap();
        let started = Instant::now();
        loop {
            match GrpcTransport::bind(listen, config.clone()) {
                Ok(transport) => return Arc::new(transport),
                Err(e) if started.elapsed() > WAIT_TIMEOUT => panic!("{listen}: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Starts a node, the first time or again.
    pub fn run(&mut self, id: u64) {
        let transport: Arc<dyn Transport> = match self.wire {
            Wire::Memory => self.network.transport(NodeId(id)),
            #[cfg(feature = "grpc")]
            Wire::Grpc | Wire::Tls => self.grpc(id),
        };
        let mut config = Config::new(NodeId(id), &self.data_dir(id));
        config.tick_interval = TICK;
        config.election_ticks = 20;
        config.snapshot_hint_threshold_entries = 0;
        config.snapshot_hint_threshold_bytes = 0;
        config.snapshot_chunk_size_bytes = 4096;
        config.snapshot_window_bytes = 16 * 1024;
        config.log.segment_size = 1024 * 1024;
        config.log.purge_threshold = 2 * 1024 * 1024;
        (self.adjust)(&mut config);
        let (node, _) = Node::start_among(config, transport).unwrap();
        let founders: &[NodeId] = match self.founders.contains(&NodeId(id)) {
            true => &self.founders,
            false => &[],
        };
        let mut options = GroupOptions::founded_by(GROUP, founders);
        options.sink = Some(Arc::new(RemoveFiles));
        options.faults = self.faults.entry(id).or_default().clone();
        let knobs = self.knobs.entry(id).or_default().clone();
        if self.by_files {
            let scratch = self
                .dir
                .path()
                .join(format!("scratch-{id}-{}", self.written));
            *knobs.files_in.lock() = Some(scratch);
        }
        let group = node.open_member(options, Lines::new(knobs)).unwrap();
        self.nodes.insert(id, Running { node, group });
    }

    /// Ends a node. It loses what is not durable.
    pub fn kill(&mut self, id: u64) {
        let running = self.nodes.remove(&id).unwrap();
        running.group.stop();
        running.node.stop();
    }

    pub fn group(&self, id: u64) -> &Group<usize> {
        &self.nodes[&id].group
    }

    pub fn leader(&self) -> u64 {
        let mut found = 0;
        wait_for("somebody leads", || {
            let leads = |(_, n): &(&u64, &Running)| {
                let status = n.group.status();
                status.role == Role::Leader && status.applied_term == status.term
            };
            let newest =
                (self.nodes.iter().filter(leads)).max_by_key(|(_, n)| n.group.status().term);
            found = newest.map_or(0, |(id, _)| *id);
            found != 0
        });
        found
    }

    /// Has the leader change the membership or the leadership, and asks again while that is refused: on a busy machine
    /// another one may lead by now, or an earlier change not be complete.
    #[track_caller]
    pub fn change(
        &self,
        what: &str,
        mut change: impl AsyncFnMut(u64, &Group<usize>) -> Result<(), ChangeError>,
    ) {
        use ChangeRefused::{AlreadyMember, NotALearner, NotAMember};
        let mut may_be_done = false;
        wait_for(what, || {
            let leader = self.leader();
            match block(change(leader, self.group(leader))) {
                Ok(()) => true,
                Err(ChangeError::Refused(AlreadyMember | NotALearner | NotAMember))
                    if may_be_done =>
                {
                    true
                }
                Err(ChangeError::TimedOut | ChangeError::Unknown) => {
                    may_be_done = true;
                    false
                }
                Err(
                    ChangeError::Refused(_)
                    | ChangeError::NotLeader { .. }
                    | ChangeError::Superseded,
                ) => false,
                Err(other @ ChangeError::Other(_)) => panic!("{what}: {other}"),
            }
        });
    }

    /// A member that does not lead.
    pub fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.nodes.keys().find(|id| **id != leader).unwrap()
    }

    /// Writes so many lines of so many bytes, waits for each, and retries those without effect. In the end
    /// each line is there once, also after an election meanwhile.
    pub fn write(&mut self, count: usize, bytes: usize) {
        let lines: Vec<_> = (0..count).map(|n| self.line(n, bytes)).collect();
        self.written += count;
        for batch in lines.chunks(64) {
            self.write_all(batch);
        }
    }

    fn line(&self, n: usize, bytes: usize) -> String {
        let head = format!("line-{}-", self.written + n);
        let rest = bytes.saturating_sub(head.len());
        // The content varies, so that a misplaced chunk shows.
        let pad = (0..rest).map(|at| char::from(b'a' + ((at * 7 + n * 3 + at / 26) % 26) as u8));
        head.chars().chain(pad).collect()
    }

    fn write_all(&self, lines: &[String]) {
        let started = Instant::now();
        let mut left: Vec<&String> = lines.iter().collect();
        while !left.is_empty() {
            assert!(
                started.elapsed() < WAIT_TIMEOUT,
                "writes do not get through"
            );
            let group = self.group(self.leader());
            let asked: Vec<_> = left
                .iter()
                .map(|l| group.propose(l.as_bytes().to_vec()))
                .collect();
            let (mut again, mut unknown) = (Vec::new(), Vec::new());
            for (line, asked) in left.iter().zip(asked) {
                let answer =
                    asked.and_then(|rx| rx.blocking_recv().unwrap_or(Err(ProposeError::Unknown)));
                match answer {
                    Ok(_) => {}
                    Err(e) if e.has_no_side_effects() => again.push(*line),
                    Err(_) => unknown.push(*line),
                }
            }
            if !unknown.is_empty() {
                // Their leader has changed. Entries that the next one lacks are lost.
                let there = self.committed_lines();
                again.extend(unknown.into_iter().filter(|line| !there.contains(line)));
            }
            left = again;
        }
    }

    /// Everything that was committed before this call, read from the present leader.
    fn committed_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        wait_for("the leader's lines", || {
            let leader = self.leader();
            let read = block(self.group(leader).read_index());
            lines = self.lines(leader);
            read.is_ok()
        });
        lines
    }

    pub fn lines(&self, id: u64) -> Vec<String> {
        self.knobs[&id].lines.lock().clone()
    }

    /// Waits until these members have applied everything that the leader has, and compares their states.
    pub fn assert_agreed(&self, ids: &[u64]) {
        let leader = self.leader();
        wait_for("everybody has everything", || {
            let last = self.group(leader).status().last;
            ids.iter()
                .all(|id| self.group(*id).status().applied == last)
        });
        for id in ids {
            let (one, other) = (self.lines(*id), self.lines(leader));
            assert_eq!(one.len(), other.len(), "member {id}");
            assert!(one == other, "member {id} has other lines");
        }
    }

    /// Has the leader take a snapshot, after which its log begins there.
    pub fn snapshot(&self, id: u64) -> Lsn {
        let taken = self.group(id).trigger_snapshot().blocking_recv().unwrap();
        taken.unwrap().last_included_index
    }

    /// While a follower is cut off or down, the others go on until their logs do not reach back to it.
    /// Returns the approximate size of the snapshot in bytes.
    pub fn leave_behind(&mut self, id: u64, count: usize, bytes: usize) {
        self.kill(id);
        self.write(count, bytes);
        let leader = self.leader();
        let covered = self.snapshot(leader);
        wait_for("the log is compacted", || {
            self.group(leader).status().log_start == covered
        });
        // Also on members that may lead later.
        let others: Vec<_> = self.nodes.keys().copied().collect();
        self.write(3, 10);
        for id in others {
            self.snapshot(id);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.nodes.values() {
            running.group.stop();
            running.node.stop();
        }
    }
}

/// Waits until the condition is true.
#[track_caller]
pub fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Makes up to ten attempts. On a busy machine a member may be silent for long enough that an election
/// follows; a bug makes it silent in every attempt.
#[track_caller]
pub fn observe_repeatedly(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let mut seen = Vec::new();
    while seen.len() < 10 {
        match look() {
            Ok(()) => return,
            Err(why) => seen.push(why),
        }
    }
    panic!("{what}: {seen:?}");
}

/// Waits for a future, up to the longest wait.
pub fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(WAIT_TIMEOUT, future).await })
        .expect("in time")
}

/// The test, over each transport.
#[macro_export]
macro_rules! over_each_wire {
    ($($name:ident)+) => {
        mod memory {
            $(#[test] fn $name() { super::$name($crate::host::Wire::Memory); })+
        }
        #[cfg(feature = "grpc")]
        mod grpc {
            $(#[test] fn $name() { super::$name($crate::host::Wire::Grpc); })+
        }
    };
}
