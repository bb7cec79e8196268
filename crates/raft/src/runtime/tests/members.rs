//! Groups of several members in one process, and a state machine with knobs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::Role;
use crate::transport::memory::Network;

pub const GROUP: GroupId = GroupId(7);

/// What a test sees of a state machine, and how it makes it behave.
#[derive(Default)]
pub struct Knobs {
    pub lines: Mutex<Vec<String>>,
    /// As long as it is set, an apply does not end.
    pub held: AtomicBool,
    /// So many restores fail.
    pub failing_restores: AtomicUsize,
}

/// Remembers lines, in memory.
struct Lines(Arc<Knobs>);

impl InMemoryState for Lines {
    type Output = usize;

    fn apply(&mut self, _lsn: Lsn, command: &[u8]) -> usize {
        while self.0.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut lines = self.0.lines.lock();
        lines.push(String::from_utf8(command.to_vec()).unwrap());
        lines.len()
    }

    fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(self.0.lines.lock().join("\n").into_bytes())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let failing = &self.0.failing_restores;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        if fails.is_ok() {
            return Err(SnapshotError("no space for it, on purpose".to_owned()));
        }
        let text = String::from_utf8(snapshot.to_vec()).unwrap();
        *self.0.lines.lock() = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

/// Members of one group, each on a node of its own.
pub struct Members {
    pub keep: tempfile::TempDir,
    pub network: Network,
    pub nodes: BTreeMap<u64, (Node, Group<usize>)>,
    pub knobs: BTreeMap<u64, Arc<Knobs>>,
    /// Of the disk under each node's log.
    pub faults: BTreeMap<u64, Faults>,
    pub adjust: fn(&mut NodeConfig),
    founders: Vec<NodeId>,
    written: Vec<String>,
}

impl Members {
    /// A state machine of a member.
    pub fn machine() -> impl crate::StateMachine<Output = usize> {
        InMemory::new(Lines(Arc::default()))
    }

    /// They found the group, and run.
    pub fn start(ids: &[u64]) -> Members {
        Members::start_with(ids, |_| {})
    }

    pub fn start_with(ids: &[u64], adjust: fn(&mut NodeConfig)) -> Members {
        let mut members = Members {
            keep: tempfile::tempdir().unwrap(),
            network: Network::new(),
            nodes: BTreeMap::new(),
            knobs: BTreeMap::new(),
            faults: BTreeMap::new(),
            adjust,
            founders: ids.iter().copied().map(NodeId).collect(),
            written: Vec::new(),
        };
        for id in ids {
            members.run(*id);
        }
        members
    }

    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.keep.path().join(format!("node-{id}"))
    }

    /// Where a member's snapshots are.
    pub fn snapshots_dir(&self, id: u64) -> PathBuf {
        self.data_dir(id).join(format!("raft/group-{GROUP}"))
    }

    /// Starts a node and its group, the first time or again.
    pub fn run(&mut self, id: u64) {
        let opened = self.try_run(id, GroupOptions::founded_by(GROUP, &self.founders));
        opened.unwrap();
    }

    pub fn try_run(&mut self, id: u64, options: GroupOptions) -> Result<(), NodeError> {
        let mut config = NodeConfig {
            tick_interval: Duration::from_millis(20),
            snapshot_hint_threshold_entries: 0,
            snapshot_hint_threshold_bytes: 0,
            ..NodeConfig::new(NodeId(id), &self.data_dir(id))
        };
        (self.adjust)(&mut config);
        let faults = self.faults.entry(id).or_default().clone();
        let transport = self.network.transport(NodeId(id));
        let (node, _) = Node::start_with(config, faults, Some(transport)).unwrap();
        let knobs = self.knobs.entry(id).or_default().clone();
        // What is in memory does not survive.
        knobs.lines.lock().clear();
        match node.open_member(options, InMemory::new(Lines(knobs))) {
            Ok(group) => {
                self.nodes.insert(id, (node, group));
                Ok(())
            }
            Err(error) => {
                node.stop();
                Err(error)
            }
        }
    }

    pub fn end(&mut self, id: u64) {
        let (node, group) = self.nodes.remove(&id).unwrap();
        group.stop();
        node.stop();
    }

    pub fn group(&self, id: u64) -> &Group<usize> {
        &self.nodes[&id].1
    }

    pub fn lines(&self, id: u64) -> Vec<String> {
        self.knobs[&id].lines.lock().clone()
    }

    /// All that was written so far, in order.
    pub fn written(&self) -> Vec<String> {
        self.written.clone()
    }

    pub fn leader(&self) -> u64 {
        let found = std::cell::Cell::new(0);
        wait_for("somebody leads", || {
            let leads = |(_, (_, group)): &(&u64, &(Node, Group<usize>))| {
                let status = group.status();
                status.role == Role::Leader && status.applied_term == status.term
            };
            let leaders = self.nodes.iter().filter(leads);
            let newest = leaders.max_by_key(|(_, (_, group))| group.status().term);
            found.set(newest.map_or(0, |(id, _)| *id));
            found.get() != 0
        });
        found.get()
    }

    pub fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.nodes.keys().find(|id| **id != leader).unwrap()
    }

    /// Writes so many lines, one after the other.
    pub fn write(&mut self, count: usize) {
        for _ in 0..count {
            let line = format!("line-{}", self.written.len());
            wait_for("it is written", || {
                let asked = self.group(self.leader()).propose(line.clone().into());
                match asked.and_then(|rx| rx.blocking_recv().unwrap_or(Err(ProposeError::Unknown)))
                {
                    Ok(_) => true,
                    Err(error) if error.has_no_side_effects() => false,
                    Err(error) => panic!("{line}: {error}"),
                }
            });
            self.written.push(line);
        }
    }

    /// All running members have everything.
    #[track_caller]
    pub fn assert_agreed(&self) {
        wait_for("everybody has everything", || {
            let last = self.group(self.leader()).status().last;
            let has = |(_, group): &(Node, Group<usize>)| group.status().applied == last;
            self.nodes.values().all(has)
        });
        for id in self.nodes.keys() {
            assert_eq!(self.lines(*id), self.written, "member {id}");
        }
    }

    pub fn snapshot(&self, id: u64) -> Lsn {
        let taken = self.group(id).snapshot().blocking_recv().unwrap();
        taken.unwrap().last_included_index
    }

    /// The others go so far without this one that their logs do not reach back to it.
    pub fn leave_behind(&mut self, away: u64, count: usize) {
        self.network.cut(&[NodeId(away)]);
        self.write(count);
        let others: Vec<_> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| *id != away)
            .collect();
        for id in others {
            self.snapshot(id);
            wait_for("the log is compacted", || {
                let status = self.group(id).status();
                status.log_start == status.floor
            });
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for knobs in self.knobs.values() {
            knobs.held.store(false, Ordering::SeqCst);
        }
        for (node, group) in self.nodes.values() {
            group.stop();
            node.stop();
        }
    }
}
