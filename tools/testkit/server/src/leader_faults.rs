//! Clients of a cluster whose leaders are lost while they work: what the clients share, and the faults.
//!
//! Each answer is noted with the time since the begin of the run; a checker of [`history`](crate::history)
//! searches for one order of events that explains all of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::eventually;

/// Faults of one run: a history of more takes long to read and to check.
const MAX_FAULTS: u64 = 6;
/// The variable with the number of faults in all, for a soak.
const ROUNDS: &str = "ESKER_CLUSTER_ROUNDS";

/// The numbers of faults of the runs of a test: one run of six, or as many as `ESKER_CLUSTER_ROUNDS` needs.
///
/// # Panics
///
/// If the variable has no number.
pub fn faults_of_runs() -> impl Iterator<Item = u64> {
    let all = std::env::var(ROUNDS).map_or(MAX_FAULTS, |rounds| rounds.parse().unwrap());
    let firsts = (0..all).step_by(MAX_FAULTS as usize);
    firsts.map(move |first| MAX_FAULTS.min(all - first))
}

/// What the clients of one run share.
pub struct ClientRun {
    began: Instant,
    stopped: AtomicBool,
    next: AtomicU64,
    /// Answers of each kind that a test counts.
    counted: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for ClientRun {
    fn default() -> Self {
        ClientRun {
            began: Instant::now(),
            stopped: AtomicBool::new(false),
            next: AtomicU64::new(1),
            counted: Mutex::default(),
        }
    }
}

impl ClientRun {
    /// The time since it began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A number that no client has had.
    pub fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts an answer of a kind.
    ///
    /// # Panics
    ///
    /// If a client has panicked while it counted.
    pub fn count(&self, kind: &'static str) {
        *self.counted.lock().unwrap().entry(kind).or_default() += 1;
    }

    /// Waits until clients have got more than so many answers of each kind. On a slow machine the faults are over before:
    /// with fewer answers, a run shows nothing.
    ///
    /// # Panics
    ///
    /// If they do not get them soon.
    pub async fn enough(&self, of_kinds: &[(&'static str, u64)]) {
        let what = format!("clients have got enough answers: {of_kinds:?}");
        eventually(&what, async || {
            let counted = self.counted.lock().unwrap();
            let has = |(kind, least): &(&'static str, u64)| {
                counted.get(kind).is_some_and(|it| it > least)
            };
            of_kinds.iter().all(has).then_some(())
        })
        .await;
    }

    /// Whether clients go on.
    pub fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    /// Ends what clients do.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Kills the leader of a partition or pauses it, in turn, at random moments; at last the partition has a leader for
    /// half a second.
    pub async fn lose_leaders(&mut self, partition: u64, faults: u64, rng: &mut impl Rng) {
        for fault in 0..faults {
            random_pause(rng, 200..1200).await;
            let asked = rng.random_range(self.all());
            let leader = self.leader_of(partition, asked).await;
            if fault % 2 == 0 {
                self.kill(leader);
                random_pause(rng, 0..3000).await;
                self.restart(leader).await;
            } else {
                self.signal(leader, Signal::STOP);
                random_pause(rng, 1500..3000).await;
                self.signal(leader, Signal::CONT);
            }
        }
        self.leader_of(partition, 0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn random_pause(rng: &mut impl Rng, milliseconds: Range<u64>) {
    let pause = Duration::from_millis(rng.random_range(milliseconds));
    tokio::time::sleep(pause).await;
}
