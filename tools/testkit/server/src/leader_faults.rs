//! Clients of a cluster whose leaders are lost while they work: what the clients share, and the faults.
//!
//! Each fault happens once before one happens again, in a random order: processes that are killed and paused, networks
//! that are cut in one way or in both, a disk that is full, a clock that jumps.
//!
//! Each answer is noted with the time since the begin of the run; a checker of [`history`](crate::history)
//! searches for one order of events that explains all of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::SliceRandom as _;
use rustix::process::Signal;

use crate::clocks::Clocks;
use crate::cluster::Cluster;
use crate::eventually;
use crate::peer_links::Way;
use crate::server::Setup;
use crate::small_disk::{SmallDisk, with_small_files};

/// Faults of one run, one of each kind: a history of more takes long to read and to check.
const MAX_FAULTS: u64 = KINDS.len() as u64;
/// The variable with the number of faults in all, for a soak.
const ROUNDS: &str = "ESKER_CLUSTER_ROUNDS";
/// How long the ways are cut, and a disk is full, in milliseconds: about two to four election timeouts.
const LASTS: Range<u64> = 2000..4000;
/// The node whose disk can be full.
const SMALL_DISK_AT: usize = 2;
/// Its size in MiB.
const SMALL_DISK: u64 = 128;

/// The numbers of faults of the runs of a test: one run with each kind, or as many as `ESKER_CLUSTER_ROUNDS` needs.
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

/// What happens while clients work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The leader is killed, and started again.
    Kill,
    /// The leader is paused for longer than an election takes, and goes on: it believes that it leads.
    Pause,
    /// No other node hears the leader.
    LeaderUnheard,
    /// The leader hears no other node.
    LeaderDeaf,
    /// Both.
    LeaderCutOff,
    /// A node that follows is cut off in both ways.
    FollowerCutOff,
    /// The clock of the leader jumps by an hour or two.
    Clock,
    /// The disk of the leader is full.
    FullDisk,
}

const KINDS: [Kind; 8] = [
    Kind::Kill,
    Kind::Pause,
    Kind::LeaderUnheard,
    Kind::LeaderDeaf,
    Kind::LeaderCutOff,
    Kind::FollowerCutOff,
    Kind::Clock,
    Kind::FullDisk,
];

/// What faults need beside the cluster.
pub struct Faults {
    /// `None` where no clock can be set off.
    clocks: Option<Clocks>,
    /// `None` where none can be mounted.
    disk: Option<SmallDisk>,
}

impl Faults {
    /// Three nodes that vote in all partitions, and to which each fault can happen as far as this machine allows it.
    pub async fn cluster(base: &Setup) -> (Faults, Cluster) {
        let faults = Faults {
            clocks: Clocks::new(),
            disk: SmallDisk::mount(SMALL_DISK),
        };
        let mut cluster = Cluster::linked(&with_small_files(base.clone()));
        for at in 0..3 {
            let with_clock = |setup| match &faults.clocks {
                Some(clocks) => clocks.give(at, setup),
                None => setup,
            };
            match &faults.disk {
                Some(disk) if at == SMALL_DISK_AT => {
                    cluster.add_on(&disk.path("data"), with_clock).await;
                }
                _ => drop(cluster.add(with_clock).await),
            }
        }
        cluster.voting().await;
        cluster.settle_leaders().await;
        (faults, cluster)
    }

    /// So many faults happen to the leader of a partition and to other nodes, at random moments; at last the partition has
    /// a leader for half a second.
    pub async fn happen(
        &self,
        cluster: &mut Cluster,
        partition: u64,
        faults: u64,
        rng: &mut impl Rng,
    ) {
        let mut kinds = Vec::new();
        for _ in 0..faults {
            random_pause(rng, 200..1200).await;
            if kinds.is_empty() {
                kinds = self.kinds();
                kinds.shuffle(rng);
            }
            let kind = kinds.pop().unwrap();
            let asked = rng.random_range(cluster.all());
            let leader = cluster.leader_of(partition, asked).await;
            println!("{kind:?}, n{leader} leads");
            self.happens(kind, cluster, partition, leader, rng).await;
        }
        cluster.leader_of(partition, 0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// The kinds that are possible here.
    fn kinds(&self) -> Vec<Kind> {
        let is_possible = |kind: &Kind| match kind {
            Kind::Clock => self.clocks.is_some(),
            Kind::FullDisk => self.disk.is_some(),
            _ => true,
        };
        KINDS.into_iter().filter(is_possible).collect()
    }

    async fn happens(
        &self,
        kind: Kind,
        cluster: &mut Cluster,
        partition: u64,
        leader: usize,
        rng: &mut impl Rng,
    ) {
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let unheard: Vec<Way> = others.map(|other| (leader, other)).to_vec();
        let deaf: Vec<Way> = others.map(|other| (other, leader)).to_vec();
        match kind {
            Kind::Kill => {
                cluster.kill(leader);
                random_pause(rng, 0..3000).await;
                cluster.restart(leader).await;
            }
            Kind::Pause => {
                cluster.signal(leader, Signal::STOP);
                random_pause(rng, 1500..3000).await;
                cluster.signal(leader, Signal::CONT);
            }
            Kind::LeaderUnheard => cut(cluster, unheard, rng).await,
            Kind::LeaderDeaf => cut(cluster, deaf, rng).await,
            Kind::LeaderCutOff => cut(cluster, [unheard, deaf].concat(), rng).await,
            Kind::FollowerCutOff => {
                let [follower, third] = match rng.random() {
                    true => others,
                    false => [others[1], others[0]],
                };
                let to = [leader, third].map(|other| (follower, other));
                let from = [leader, third].map(|other| (other, follower));
                cut(cluster, [to, from].concat(), rng).await;
            }
            Kind::Clock => {
                // Nothing expires for that.
                let by = ["+1h", "-1h", "+2h", "-2h"][rng.random_range(0..4)];
                self.clocks.as_ref().unwrap().set_off(leader, by);
                random_pause(rng, LASTS).await;
            }
            Kind::FullDisk => {
                let disk = self.disk.as_ref().unwrap();
                cluster.lead(partition, SMALL_DISK_AT).await;
                disk.fill_up();
                random_pause(rng, LASTS).await;
                disk.clear();
            }
        }
    }
}

/// Cuts these ways for a while.
async fn cut(cluster: &Cluster, ways: Vec<Way>, rng: &mut impl Rng) {
    cluster.links().cut(ways);
    random_pause(rng, LASTS).await;
    cluster.links().heal();
}

async fn random_pause(rng: &mut impl Rng, milliseconds: Range<u64>) {
    let pause = Duration::from_millis(rng.random_range(milliseconds));
    tokio::time::sleep(pause).await;
}
