//! Writers, snapshotters and readers of one stream, for a minute or so; what has to hold at any moment,
//! and when all faults have stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use esker_follow::endpoint::EndpointError;
use esker_follow::{Encoding, Error, External, Follower, Kind, Snapshots, TrimTo, View};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::{AppendRecord, CommandRecord, Header};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::by_hand::{self, Mistake};
use crate::fold::{Busy, Chain};
use crate::model::{Faults, Seen, Stream};
use crate::store::Store;

/// The share of lists that are behind, where lists are.
const LATE_LISTS: f64 = 0.3;

/// What kind of a world it is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub place: Place,
    pub padding: usize,
    pub encoding: Encoding,
    pub attempts: u32,
    pub writers: usize,
    pub lasts: Duration,
    /// Histories are cut off, and numbers are passed over.
    pub forks: bool,
    /// Nothing is lost when histories are cut off, and that happens so often that gaps are forgotten.
    pub loses_nothing: bool,
    /// How many milliseconds the list of the store is behind at most.
    pub list_lag: u64,
    /// The stream is created again.
    pub is_recreated: bool,
    /// Followers pass over snapshots of the one before.
    pub passes_over: bool,
    /// Somebody takes snapshots by hand, in the stream.
    pub by_hand: Option<Mistake>,
    /// Somebody reads by hand.
    pub reads_by_hand: Option<Mistake>,
    pub faults: Faults,
}

#[derive(Clone, Debug)]
pub enum Place {
    InStream,
    External { keep: usize, trim: Option<TrimTo> },
}

impl Plan {
    /// Anything.
    pub fn any(seed: u64) -> Plan {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        let forks = rng.random_bool(0.3);
        let is_recreated = !forks && rng.random_bool(0.1);
        let is_external = rng.random_bool(0.4);
        let loses_nothing = forks && rng.random_bool(0.4);
        let place = match is_external {
            false => Place::InStream,
            // A fork may go back to before what a few snapshots cover, and they are gone then.
            true => Place::External {
                keep: match forks && !loses_nothing {
                    true => 1000,
                    false => rng.random_range(1..=3),
                },
                trim: match rng.random_range(0..3) {
                    0 => None,
                    1 => Some(TrimTo::Oldest),
                    _ => Some(TrimTo::Newest),
                },
            },
        };
        // They take long: one in twenty.
        let is_large = seed % 20 == 7;
        let by_hand = !is_external && !forks && !is_recreated && rng.random_bool(0.6);
        let is_calm = rng.random_bool(0.2);
        let mut rare = |most: f64| match is_calm {
            true => 0.0,
            false => rng.random_range(0.0..most),
        };
        let faults = Faults {
            lost_answer: rare(0.3),
            lost_request: rare(0.2),
            late: rare(0.1),
            repeated: rare(0.3),
            broken_session: rare(0.1),
            broken_read: rare(0.05),
            outage: rare(0.02),
            delay: [0, 5, 50, 300][rng.random_range(0..4)],
            trim_delay: [0, 100, 3000, 20_000][rng.random_range(0..4)],
            piece: [1, 3, 20, 1000][rng.random_range(0..4)],
        };
        Plan {
            seed,
            place,
            padding: match is_large {
                true => rng.random_range(1_100_000..2_200_000),
                false => 0,
            },
            encoding: match rng.random_bool(0.5) {
                true => Encoding::Zstd,
                false => Encoding::None,
            },
            attempts: rng.random_range(0..=3),
            writers: rng.random_range(1..=3),
            lasts: Duration::from_secs(if is_large { 8 } else { 60 }),
            forks,
            loses_nothing,
            list_lag: match is_calm {
                true => 0,
                false => [0, 0, 500, 3000][rng.random_range(0..4)],
            },
            is_recreated,
            passes_over: is_recreated && rng.random_bool(0.7),
            by_hand: by_hand.then_some(Mistake::None),
            reads_by_hand: None,
            faults,
        }
    }

    /// A world for a mistake: snapshots in a stream that is only read, written and trimmed.
    pub fn with_mistake(seed: u64, mistake: Mistake) -> Plan {
        let mut plan = Plan::any(seed);
        let reads = matches!(
            mistake,
            Mistake::None
                | Mistake::RestoresTornOnes
                | Mistake::IgnoresGaps
                | Mistake::RepeatsOne
                | Mistake::LosesWhatIsBetween
        );
        plan.place = Place::InStream;
        plan.encoding = Encoding::None;
        plan.padding = 0;
        plan.forks = false;
        plan.loses_nothing = false;
        plan.is_recreated = false;
        plan.by_hand = Some(if reads { Mistake::None } else { mistake });
        plan.reads_by_hand = reads.then_some(mistake);
        plan
    }
}

/// What happened, all in all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub checked: u64,
    pub records: u64,
    pub taken: u64,
    pub anchored: u64,
    pub framed: u64,
    pub single: u64,
    pub external: u64,
    pub lost: u64,
    pub failed: u64,
    pub restored: u64,
    pub refused: u64,
    pub forks: u64,
    pub gaps: u64,
    /// Histories that were cut off twice with nothing in between, and snapshots of those in between.
    pub twice: u64,
    pub between: u64,
    /// Gaps that are not listed at the end.
    pub unlisted: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.checked += other.checked;
        self.records += other.records;
        self.taken += other.taken;
        self.anchored += other.anchored;
        self.framed += other.framed;
        self.single += other.single;
        self.external += other.external;
        self.lost += other.lost;
        self.failed += other.failed;
        self.restored += other.restored;
        self.refused += other.refused;
        self.forks += other.forks;
        self.gaps += other.gaps;
        self.twice += other.twice;
        self.between += other.between;
        self.unlisted += other.unlisted;
    }
}

#[derive(Clone)]
struct World {
    plan: Arc<Plan>,
    stream: Stream,
    store: Store,
    busy: Busy,
    tally: Arc<Mutex<Tally>>,
    broken: Arc<Mutex<Option<String>>>,
    /// Whether writers pause.
    is_silent: Arc<AtomicBool>,
    ends: Instant,
}

/// Runs a world to its end.
///
/// # Errors
///
/// Which promise was broken, and how.
pub fn run(plan: Plan) -> Result<Tally, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let outcome = runtime.block_on(live(plan));
    runtime.shutdown_background();
    outcome
}

async fn live(plan: Plan) -> Result<Tally, String> {
    let seed = plan.seed;
    let (fails, delay) = match plan.faults.broken_read > 0.0 {
        true => (0.05, plan.faults.delay),
        false => (0.0, plan.faults.delay),
    };
    let world = World {
        stream: Stream::with_faults(seed, plan.faults.clone()),
        store: Store::new(seed, fails, delay),
        busy: Busy::default(),
        tally: Arc::default(),
        broken: Arc::default(),
        is_silent: Arc::default(),
        ends: Instant::now() + plan.lasts,
        plan: Arc::new(plan),
    };
    let plan = world.plan.clone();
    world.store.lag(LATE_LISTS, plan.list_lag);
    // Only a snapshot of several fragments is written or restored by a thread that waits for the stream.
    let has_fragments = plan.padding > 0 || plan.by_hand.is_some();
    let patience = match has_fragments {
        true => Duration::from_micros(100),
        false => Duration::from_secs(10),
    };
    let pump = tokio::spawn(world.busy.clone().pump(patience));
    let rng = |role: u64| StdRng::seed_from_u64(seed ^ (role << 48));
    let mut roles = JoinSet::new();
    for i in 0..plan.writers as u64 {
        roles.spawn(world.clone().write(rng(i + 1), i));
    }
    for i in 0..2 {
        roles.spawn(world.clone().follow(rng(i + 10), true));
    }
    for i in 0..3 {
        roles.spawn(world.clone().follow(rng(i + 20), false));
    }
    if plan.forks || plan.is_recreated {
        roles.spawn(world.clone().upset(rng(30)));
    }
    if let Some(mistake) = plan.by_hand {
        roles.spawn(world.clone().snapshot_by_hand(rng(31), mistake));
    }
    if let Some(mistake) = plan.reads_by_hand {
        roles.spawn(world.clone().read_by_hand(rng(32), mistake));
    }
    while let Some(ended) = roles.join_next().await {
        if let Err(error) = ended {
            world.breaks(format!("a role panicked: {error}"));
        }
    }
    world.calm_down().await;
    pump.abort();
    let broken = world.broken.lock().take();
    match broken {
        Some(broken) => Err(format!("{broken}\n{plan:?}")),
        None => Ok(world.tally.lock().clone()),
    }
}

impl World {
    fn breaks(&self, how: String) {
        self.broken.lock().get_or_insert(how);
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.ends || self.broken.lock().is_some()
    }

    async fn write(self, mut rng: StdRng, writer: u64) {
        let busy = rng.random_range(20..800);
        let mut count = 0;
        while !self.is_over() {
            sleep(Duration::from_millis(rng.random_range(0..busy))).await;
            let mut batch = Vec::new();
            for _ in 0..rng.random_range(1..=4) {
                count += 1;
                let body = format!("{writer}-{count}");
                let record = AppendRecord::new(body).unwrap();
                batch.push(match rng.random_range(0..10) {
                    0 => record.with_headers([Header::new("kind", "x")]).unwrap(),
                    1 => CommandRecord::fence("".parse().unwrap()).into(),
                    _ => record,
                });
            }
            if self.is_silent.load(Ordering::Relaxed) {
                continue;
            }
            self.tally.lock().records += batch.len() as u64;
            let _ = self.stream.land(&batch, None);
            // Now and then it is silent for long enough that a snapshot wins its race.
            if rng.random_bool(0.05) {
                sleep(Duration::from_millis(rng.random_range(0..4000))).await;
            }
        }
    }

    async fn upset(self, mut rng: StdRng) {
        while !self.is_over() {
            let pause = match self.plan.loses_nothing {
                true => 1000..6000,
                false => 3000..25_000,
            };
            sleep(Duration::from_millis(rng.random_range(pause))).await;
            if self.is_over() {
                return;
            }
            if self.plan.is_recreated {
                self.recreate(&mut rng).await;
                continue;
            }
            if rng.random_bool(0.2) {
                self.fork_twice(&mut rng).await;
                continue;
            }
            if rng.random_bool(if self.plan.loses_nothing { 0.8 } else { 0.25 }) {
                self.tally.lock().gaps += 1;
                self.stream.pass_over(rng.random_range(1..1000));
                continue;
            }
            self.tally.lock().forks += 1;
            // Batches are lost as a whole. What comes last is lost most often.
            let batches = self.stream.batches();
            let back = match self.plan.loses_nothing {
                true => 0,
                false => rng.random_range(0..=batches.len().min(12)),
            };
            let at = match back {
                0 => self.stream.now_tail(),
                back => batches[batches.len() - back],
            };
            self.stream.fork(at);
        }
    }

    /// Creates the stream again, now and then with as many records as before, or once more soon after.
    async fn recreate(&self, rng: &mut StdRng) {
        self.tally.lock().forks += 1;
        let records = self.stream.now_tail().min(500);
        if rng.random_bool(0.5) {
            self.stream.delete();
            sleep(Duration::from_millis(rng.random_range(0..2000))).await;
        }
        self.stream.recreate();
        if rng.random_bool(0.5) {
            self.stream.data((0..records).map(|i| format!("again {i}")));
        }
        if rng.random_bool(0.5) {
            sleep(Duration::from_millis(rng.random_range(0..400))).await;
            self.stream.recreate();
            let records = rng.random_range(0..=records as usize);
            self.stream
                .data((0..records).map(|i| format!("once more {i}")));
        }
    }

    /// Cuts a history off, and the next one too before anything is appended to it. If snapshots are beside the
    /// stream, there may be one of the history in between, and none from before any more: the stream is
    /// trimmed for it only after that.
    async fn fork_twice(&self, rng: &mut StdRng) {
        self.tally.lock().twice += 1;
        self.is_silent.store(true, Ordering::Relaxed);
        self.stream.fork(self.stream.now_tail());
        let begins_at = self.stream.now_tail();
        let until = Instant::now() + Duration::from_millis(rng.random_range(0..8000));
        while Instant::now() < until && !self.store.has_cursor(begins_at).await {
            sleep(Duration::from_millis(5)).await;
        }
        let is_between = self.store.has_cursor(begins_at).await;
        self.tally.lock().between += u64::from(is_between);
        sleep(Duration::from_millis(rng.random_range(0..400))).await;
        // What a snapshotter has appended may be lost with it.
        let at = match rng.random_bool(0.5) || self.plan.loses_nothing {
            true => self.stream.now_tail(),
            false => begins_at,
        };
        self.stream.fork(at);
        self.is_silent.store(false, Ordering::Relaxed);
    }

    async fn snapshot_by_hand(self, mut rng: StdRng, mistake: Mistake) {
        let chain = Chain {
            busy: self.busy.clone(),
            ..Chain::default()
        };
        while !self.is_over() {
            sleep(Duration::from_millis(rng.random_range(100..6000))).await;
            by_hand::snapshot(&self.stream, &mut rng, mistake, &chain).await;
        }
    }

    async fn read_by_hand(self, mut rng: StdRng, mistake: Mistake) {
        while !self.is_over() {
            sleep(Duration::from_millis(rng.random_range(0..1000))).await;
            if let Some((cursor, state)) = by_hand::read(&self.stream, &mut rng, mistake).await {
                self.check(&View { cursor, state }, false);
            }
        }
    }

    fn chain(&self) -> Chain {
        Chain {
            padding: self.plan.padding,
            busy: self.busy.clone(),
            ..Chain::default()
        }
    }

    fn snapshots(&self) -> Snapshots {
        match &self.plan.place {
            Place::InStream => Snapshots::InStream,
            Place::External { keep, trim } => {
                let external = External::new(Arc::new(self.store.clone()), "snapshots/stream");
                let external = external.keep(*keep);
                Snapshots::External(match trim {
                    Some(to) => external.trim(*to),
                    None => external,
                })
            }
        }
    }

    /// Opens a follower, watches it, ends it in one way or another, and again.
    async fn follow(self, mut rng: StdRng, takes: bool) {
        while !self.is_over() {
            let mut builder = Follower::builder(self.stream.clone(), self.chain())
                .snapshots(self.snapshots())
                .encoding(self.plan.encoding)
                .attempts(self.plan.attempts);
            if self.plan.passes_over {
                builder = builder.pass_over_unusable();
            }
            if takes {
                builder = match rng.random_range(0..3) {
                    0 => builder.every_bytes(rng.random_range(20..200)),
                    1 => builder.every(Duration::from_millis(rng.random_range(500..5000))),
                    _ => builder.every_records(rng.random_range(1..40)),
                };
            }
            let impatient = Duration::from_millis(rng.random_range(100..20_000));
            let opening = match rng.random_bool(0.1) {
                // Dropped in mid-flight.
                true => timeout(impatient, builder.open()).await,
                false => Ok(builder.open().await),
            };
            match opening {
                Ok(Ok(follower)) => self.watch(&mut rng, follower).await,
                Ok(Err(error)) => self.refused(&error, false),
                Err(_) => {}
            }
            sleep(Duration::from_millis(rng.random_range(0..3000))).await;
        }
    }

    async fn watch(&self, rng: &mut StdRng, follower: Follower<Chain>) {
        if follower.restored().is_some() {
            self.tally.lock().restored += 1;
        }
        let until = Instant::now() + Duration::from_millis(rng.random_range(0..20_000));
        let until = until.min(self.ends);
        let Ok(mut views) = follower.watch().await else {
            self.refused(&follower.ended().await, true);
            return;
        };
        loop {
            tokio::select! {
                changed = views.changed() => if changed.is_err() { break },
                error = follower.ended() => {
                    self.refused(&error, true);
                    break;
                }
                () = tokio::time::sleep_until(until) => break,
            }
            let view = views.borrow_and_update().clone();
            self.check(&view, false);
            if rng.random_bool(0.02)
                && let Ok(Err(error)) = timeout(Duration::from_secs(5), follower.snapshot()).await
            {
                let _ = error;
            }
        }
        self.count(&follower);
        if rng.random_bool(0.5)
            && let Ok(closed) = timeout(Duration::from_secs(60), follower.close()).await
        {
            match closed {
                Ok(view) => self.check(&view, false),
                Err(error) => self.refused(&error, true),
            }
        }
    }

    fn count(&self, follower: &Follower<Chain>) {
        let status = follower.status();
        let mut tally = self.tally.lock();
        tally.taken += status.taken;
        tally.lost += status.lost;
        tally.failed += status.failed;
        if status.taken > 0
            && let Some(newest) = status.newest
        {
            tally.anchored += u64::from(newest.anchored);
            match newest.kind {
                Kind::Framed => tally.framed += 1,
                Kind::Single => tally.single += 1,
                Kind::External => tally.external += 1,
            }
        }
    }

    /// A state is the fold of all that was before its cursor.
    fn check(&self, view: &View<Chain>, is_last: bool) {
        self.tally.lock().checked += 1;
        let state: Vec<Seen> = view.state.seen.iter().copied().collect();
        let wanted = self.stream.history(view.cursor);
        if state == wanted {
            return;
        }
        // It may not have heard yet that this history was left.
        let left = self.stream.left(view.cursor);
        if !is_last && left.contains(&state) {
            return;
        }
        let at = state.iter().zip(&wanted).position(|(a, b)| a != b);
        let at = at.unwrap_or(state.len().min(wanted.len()));
        self.breaks(format!(
            "at cursor {} a state has {} records, and should have {}; the first that differs is {:?}, \
             and should be {:?}",
            view.cursor,
            state.len(),
            wanted.len(),
            state.get(at),
            wanted.get(at),
        ));
    }

    /// An error that a follower did not open or ended with.
    fn refused(&self, error: &Error, was_open: bool) {
        self.tally.lock().refused += 1;
        let is_behind = self.plan.list_lag > 0 && !was_open;
        let is_allowed = match error {
            // Its restore timed out.
            Error::Endpoint {
                why: EndpointError::Unavailable(_),
                ..
            }
            | Error::Store { .. } => !was_open && self.plan.faults.broken_read > 0.0,
            // There was no stream.
            Error::Endpoint {
                why: EndpointError::Refused(_),
                ..
            } => self.plan.is_recreated,
            // The list lacks the snapshot for which the stream was trimmed, again and again.
            Error::HistoryGone { .. } if is_behind => true,
            // No snapshot was taken while more gaps came than are remembered.
            Error::HistoryGone { tried, .. } if self.plan.loses_nothing && is_unlisted(tried) => {
                true
            }
            Error::HistoryGone { .. } | Error::Unusable { .. } => self.plan.is_recreated,
            _ => false,
        };
        if !is_allowed {
            self.breaks(format!("a follower ended: {error}"));
        }
    }

    /// All faults stop: whoever opens now has everything.
    async fn calm_down(&self) {
        if self.broken.lock().is_some() {
            return;
        }
        self.stream.set_faults(Faults::none());
        self.store.fail(0.0);
        self.store.lag(0.0, 0);
        self.tally.lock().unlisted += self.stream.unlisted() as u64;
        sleep(Duration::from_secs(30)).await;
        let mut builder = Follower::builder(self.stream.clone(), self.chain());
        if self.plan.passes_over {
            builder = builder.pass_over_unusable();
        }
        let opened = builder.snapshots(self.snapshots()).open().await;
        let follower = match opened {
            Ok(follower) => follower,
            Err(error) => return self.refused(&error, false),
        };
        match timeout(Duration::from_secs(60), follower.caught_up()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return self.refused(&error, true),
            Err(_) => return self.breaks("a reader does not catch up".to_owned()),
        }
        match follower.view().await {
            Ok(view) => {
                let tail = self.stream.now_tail();
                if view.cursor != tail {
                    let cursor = view.cursor;
                    self.breaks(format!("a reader is at {cursor}, and the tail at {tail}"));
                }
                self.check(&view, true);
            }
            Err(error) => self.refused(&error, true),
        }
    }
}

/// Whether a snapshot was passed over because its lineage is not listed.
fn is_unlisted(tried: &[String]) -> bool {
    let mut tried = tried.iter();
    tried.any(|why| why.contains("which the server does not list"))
}
