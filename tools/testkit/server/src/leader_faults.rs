//! Clients of a cluster whose leaders are lost while they work: what the clients share, and the faults.
//!
//! Each answer is noted with the time since the begin of the run; a checker of [`history`](crate::history)
//! searches for one order of events that explains all of them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use crate::cluster::Cluster;

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
}

impl Default for ClientRun {
    fn default() -> Self {
        ClientRun {
            began: Instant::now(),
            stopped: AtomicBool::new(false),
            next: AtomicU64::new(1),
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
