//! A transport between nodes in one process. Messages are encoded and decoded as on a real network; tests
//! can inject faults.
//!
//! Each node has two threads, one for messages of consensus and one for bulk, each with a bounded queue. A
//! message that does not fit is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Inbox, MAX_QUEUED_BYTES, MAX_QUEUED_CHUNKS, MAX_QUEUED_MESSAGES, Permit, Transport};
use crate::ids::NodeId;
use crate::message::Envelope;

/// Gets every message, may change it, and returns whether it arrives.
pub type Filter = Box<dyn FnMut(&mut Envelope) -> bool + Send>;

/// The network between nodes of one process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    nodes: Mutex<BTreeMap<NodeId, Arc<Endpoint>>>,
    conditions: Mutex<Conditions>,
}

/// What happens to messages.
struct Conditions {
    delay: Duration,
    lost_per_mille: u32,
    random: StdRng,
    cut: BTreeSet<NodeId>,
    filter: Option<Filter>,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions {
            delay: Duration::ZERO,
            lost_per_mille: 0,
            random: StdRng::seed_from_u64(0),
            cut: BTreeSet::new(),
            filter: None,
        }
    }
}

/// A node's end.
struct Endpoint {
    consensus: Queue,
    bulk: Queue,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Queue {
    state: Mutex<QueueState>,
    arrived: Condvar,
    max_messages: usize,
}

#[derive(Default)]
struct QueueState {
    messages: VecDeque<Queued>,
    bytes: usize,
    closed: bool,
}

struct Queued {
    due: Instant,
    bytes: Vec<u8>,
    _permit: Option<Permit>,
}

impl Network {
    /// A network without faults.
    pub fn new() -> Network {
        Network::default()
    }

    /// The transport of one node. A node that starts again takes a new one.
    pub fn transport(&self, node: NodeId) -> Arc<MemoryTransport> {
        Arc::new(MemoryTransport {
            node,
            shared: self.shared.clone(),
            endpoint: Arc::new(Endpoint {
                consensus: Queue::new(MAX_QUEUED_MESSAGES),
                bulk: Queue::new(MAX_QUEUED_CHUNKS),
                threads: Mutex::default(),
            }),
        })
    }

    /// Every message is delayed by this time.
    pub fn delay(&self, delay: Duration) {
        self.shared.conditions.lock().delay = delay;
    }

    /// Loses so many messages of a thousand, at random, by a generator with this seed.
    pub fn lose(&self, per_mille: u32, seed: u64) {
        let mut conditions = self.shared.conditions.lock();
        conditions.lost_per_mille = per_mille;
        conditions.random = StdRng::seed_from_u64(seed);
    }

    /// Drops all messages from and to these nodes. An empty slice ends that.
    pub fn cut(&self, nodes: &[NodeId]) {
        self.shared.conditions.lock().cut = nodes.iter().copied().collect();
    }

    /// Passes every message to this filter, also between nodes that are cut off; `None` removes it.
    pub fn filter(&self, filter: Option<Filter>) {
        self.shared.conditions.lock().filter = filter;
    }
}

/// The transport of one node. Made by [`Network::transport`].
pub struct MemoryTransport {
    node: NodeId,
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
}

impl Queue {
    fn new(max_messages: usize) -> Queue {
        Queue {
            state: Mutex::default(),
            arrived: Condvar::new(),
            max_messages,
        }
    }

    fn push(&self, queued: Queued) {
        let mut state = self.state.lock();
        let size = queued.bytes.len();
        let fits = state.messages.is_empty() || state.bytes + size <= MAX_QUEUED_BYTES;
        if state.closed || state.messages.len() >= self.max_messages || !fits {
            // The permit is dropped without the lock, because that may send another message.
            drop(state);
            return;
        }
        state.bytes += size;
        state.messages.push_back(queued);
        drop(state);
        self.arrived.notify_one();
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.messages);
        drop(state);
        self.arrived.notify_one();
        drop(left);
    }

    /// Waits for the next message that is due; `None` once the queue is closed.
    fn pop(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            match state.messages.front().map(|m| m.due) {
                None => self.arrived.wait(&mut state),
                Some(due) if due > Instant::now() => {
                    self.arrived.wait_until(&mut state, due);
                }
                Some(_) => {
                    let queued = state.messages.pop_front()?;
                    state.bytes -= queued.bytes.len();
                    drop(state);
                    return Some(queued.bytes);
                }
            }
        }
    }
}

impl MemoryTransport {
    fn deliver(&self, mut message: Envelope, permit: Option<Permit>, bulk: bool) {
        let due = {
            let mut conditions = self.shared.conditions.lock();
            let conditions = &mut *conditions;
            if let Some(filter) = &mut conditions.filter
                && !filter(&mut message)
            {
                return;
            }
            let cut = conditions.cut.contains(&self.node) || conditions.cut.contains(&message.to);
            let lost = conditions.lost_per_mille;
            if cut || (lost > 0 && conditions.random.random_range(0..1000) < lost) {
                return;
            }
            Instant::now() + conditions.delay
        };
        let to = self.shared.nodes.lock().get(&message.to).cloned();
        let Some(to) = to else {
            return;
        };
        let queue = if bulk { &to.bulk } else { &to.consensus };
        queue.push(Queued {
            due,
            bytes: message.encode(),
            _permit: permit,
        });
    }
}

impl Transport for MemoryTransport {
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()> {
        let mut threads = self.endpoint.threads.lock();
        for (name, bulk) in [("consensus", false), ("bulk", true)] {
            let (endpoint, inbox) = (self.endpoint.clone(), inbox.clone());
            let run = move || {
                let queue = match bulk {
                    true => &endpoint.bulk,
                    false => &endpoint.consensus,
                };
                while let Some(message) = queue.pop() {
                    let Some(inbox) = inbox.upgrade() else {
                        return;
                    };
                    // The sender is known by its place in the network, so nothing is proved, and nothing refused.
                    let _ = inbox.receive(message.into(), None);
                }
            };
            let thread = std::thread::Builder::new().name(format!("{name}-{}", self.node));
            threads.push(thread.spawn(run)?);
        }
        let mut nodes = self.shared.nodes.lock();
        nodes.insert(self.node, self.endpoint.clone());
        Ok(())
    }

    fn send(&self, message: Envelope) {
        self.deliver(message, None, false);
    }

    fn send_bulk(&self, message: Envelope, permit: Option<Permit>) {
        self.deliver(message, permit, true);
    }

    fn stop(&self) {
        let mut nodes = self.shared.nodes.lock();
        if (nodes.get(&self.node)).is_some_and(|n| Arc::ptr_eq(n, &self.endpoint)) {
            nodes.remove(&self.node);
        }
        drop(nodes);
        self.endpoint.consensus.close();
        self.endpoint.bulk.close();
        for thread in self.endpoint.threads.lock().drain(..) {
            // A delivered message may stop the transport from this very thread.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.stop();
    }
}
