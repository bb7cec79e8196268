//! Seeds, lanes, the time it may take, and how a failure is told.
//!
//! A *seed* makes a sequence of cases on streams of its own; a case draws from the seed and its own
//! number, and from what the streams hold. *Lanes* work on seeds side by side on one node. Only the
//! clock and the threads of the node differ between two runs of a seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use axum::body::Body;
use futures::FutureExt as _;
use http::{Method, Request};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use testkit::seeds;

use crate::model::{Stream, Timestamping};
use crate::reading::{self, Form};
use crate::world::{WAIT_TIMEOUT, World};
use crate::{appends, bodies, bombs, framing, names, queries, round_trips};

/// Seeds worked on side by side: appends of several share a sync, and streams must not mix.
const LANES: usize = 4;
/// Cases of a seed: few enough that a replay takes a moment, enough for the streams to fill.
const CASES: u64 = 80;
/// Streams of a seed: one of each way to give timestamps.
const STREAMS: usize = 3;
/// A case that takes longer has hung.
const CASE_TIMEOUT: Duration = Duration::from_secs(2 * WAIT_TIMEOUT.as_secs());
/// A long run tells how it goes this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Memory may grow by this much after the first fifth of a long run: it settles within seconds, and
/// what is left is noise of the allocators.
const GROWTH: u64 = 96 * 1024 * 1024;
/// How the names of the node's own threads begin.
const NODE_THREADS: &[&str] = &["apply-", "log-", "raft-", "re-", "retention", "rocksdb"];
/// The node's log is cut and its database compacted at a few MiB; this is room for their lag.
const DISK: u64 = 512 * 1024 * 1024;

/// What a seed makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of append sessions.
    Framing,
    /// Bodies and headers of appends.
    Appends,
    /// Names of streams and basins.
    Names,
    /// JSON bodies of all operations.
    Bodies,
    /// Queries of reads.
    Queries,
    /// Good appends and reads in every form.
    RoundTrips,
}

impl Kind {
    async fn case(self, lane: &mut Lane) {
        match self {
            Kind::Framing => framing::case(lane).await,
            Kind::Appends => appends::case(lane).await,
            Kind::Names => names::case(lane).await,
            Kind::Bodies => bodies::case(lane).await,
            Kind::Queries => queries::case(lane).await,
            Kind::RoundTrips => round_trips::case(lane).await,
        }
    }

    /// How many seeds it runs when nothing is said, 1 and up: a second or two.
    fn fixed_seeds(self) -> u64 {
        match self {
            // Everything is read eight times over.
            Kind::RoundTrips => 4,
            _ => 10,
        }
    }

    /// What must have come out at least once for the cases to be worth something.
    fn must_happen(self) -> Vec<String> {
        let fixed = match self {
            Kind::Framing => framing::MUST_HAPPEN,
            Kind::Appends => appends::MUST_HAPPEN,
            Kind::Names => names::MUST_HAPPEN,
            Kind::Bodies => return bodies::must_happen(),
            Kind::Queries => queries::MUST_HAPPEN,
            Kind::RoundTrips => round_trips::MUST_HAPPEN,
        };
        fixed.iter().map(|outcome| (*outcome).to_owned()).collect()
    }

    /// With fewer cases than this, what never happened says nothing.
    fn enough(self) -> u64 {
        match self {
            // Each of the operations has to be among them many times.
            Kind::Bodies => 700,
            _ => 300,
        }
    }
}

/// Where cases of one seed run.
pub struct Lane {
    /// What they talk to.
    pub world: Arc<World>,
    /// Draws for this case.
    pub rng: StdRng,
    /// The basin; it makes streams when they are appended to or read.
    pub basin: String,
    /// Streams as they must be.
    pub streams: Vec<Stream>,
    /// Which seed, and which case of it.
    pub place: (u64, u64),
    /// What was made that is of no use to a repetition.
    pub bombs: Arc<bombs::Bombs>,
    outcomes: BTreeMap<String, u64>,
}

impl Lane {
    /// Counts an outcome.
    pub fn count(&mut self, outcome: impl Into<String>) {
        *self.outcomes.entry(outcome.into()).or_default() += 1;
    }

    /// The number of one of the streams.
    pub fn any_stream(&mut self) -> usize {
        self.rng.random_range(0..self.streams.len())
    }

    /// A request in the lane's basin.
    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("s2-basin", &self.basin)
    }
}

/// Which seeds, and until when.
struct Plan {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    failed: AtomicBool,
    /// The first.
    failure: Mutex<Option<String>>,
    /// What the test is called.
    test: String,
}

impl Plan {
    fn next(&self) -> Option<u64> {
        if self.failed.load(Ordering::Relaxed) || self.until.is_some_and(|end| Instant::now() > end)
        {
            return None;
        }
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        (seed < self.end).then_some(seed)
    }

    fn fail(&self, what: String) {
        self.failed.store(true, Ordering::Relaxed);
        self.failure.lock().unwrap().get_or_insert(what);
    }
}

/// For how long this test may take fresh seeds.
pub fn seconds() -> Option<Duration> {
    const TESTS: u32 = 6;
    let all = seeds::number(seeds::SECONDS)?;
    Some(Duration::from_secs(all) / TESTS)
}

/// One test at a time: each takes the whole machine, and they measure memory.
pub fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

thread_local! {
    /// The last panic of this thread, with its place.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of threads of the node's own, which by themselves would fail no test.
static NODE_PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps panics for later, when the seed can be told with them.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            match std::thread::current().name() {
                // A lane, or what it waits for.
                Some("tokio-rt-worker") => {
                    LAST_PANIC.with_borrow_mut(|last| *last = panic.to_string());
                }
                Some(name) if NODE_THREADS.iter().any(|known| name.starts_with(known)) => {
                    let panics = format!("thread {name} {panic}");
                    let lock = NODE_PANICS.lock();
                    lock.unwrap_or_else(|p| p.into_inner()).push(panics);
                }
                _ => default(panic),
            }
        }));
    });
    NODE_PANICS.lock().unwrap().clear();
}

/// Runs the kind's seeds.
pub fn fuzz(kind: Kind) {
    let _alone = alone();
    watch_panics();
    let replay = seeds::chosen();
    let long = seconds().filter(|_| replay.is_none());
    let first = match (replay, long) {
        (Some(seed), _) => seed,
        (None, Some(_)) => seeds::random(),
        (None, None) => 1,
    };
    let wanted = seeds::number(seeds::SEEDS);
    let count = match (replay, long) {
        (Some(_), _) => wanted.unwrap_or(1),
        (None, Some(_)) => u64::MAX / 2,
        (None, None) => wanted.unwrap_or_else(|| kind.fixed_seeds()),
    };
    let plan = Arc::new(Plan {
        next: AtomicU64::new(first),
        end: first + count,
        until: long.map(|time| Instant::now() + time),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        // The harness names the thread after the test.
        test: std::thread::current().name().unwrap_or("?").to_owned(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let outcomes = runtime.block_on(run(kind, &plan));
    runtime.shutdown_timeout(WAIT_TIMEOUT);
    if let Some(what) = plan.failure.lock().unwrap().take() {
        panic!("{what}");
    }
    let cases = outcomes.get("cases");
    if cases.is_some_and(|cases| *cases >= kind.enough()) {
        for outcome in kind.must_happen() {
            assert!(
                outcomes.contains_key(&outcome),
                "{outcome:?} never happened: the cases of {kind:?} have become too tame"
            );
        }
    }
}

async fn run(kind: Kind, plan: &Arc<Plan>) -> BTreeMap<String, u64> {
    let started = Instant::now();
    let world = Arc::new(World::start().await);
    let bombs = Arc::new(bombs::Bombs::make().await);
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let (world, plan, bombs) = (world.clone(), plan.clone(), bombs.clone());
        lanes.push(tokio::spawn(async move {
            let mut lane = Lane {
                basin: format!("fuzz-lane-{number}"),
                streams: Vec::new(),
                rng: StdRng::seed_from_u64(0),
                place: (0, 0),
                outcomes: BTreeMap::new(),
                world,
                bombs,
            };
            make_basin(&lane).await;
            while let Some(seed) = plan.next() {
                if !run_seed(kind, seed, &mut lane, &plan).await {
                    break;
                }
            }
            lane
        }));
    }
    let lanes = futures::future::join_all(lanes);
    tokio::pin!(lanes);
    let mut watch = Watch::default();
    let lanes = loop {
        tokio::select! {
            lanes = &mut lanes => break lanes,
            () = tokio::time::sleep(REPORT_INTERVAL) => watch.look(kind, &world, started, plan),
        }
    };
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut kept = Vec::new();
    for lane in lanes {
        let lane = lane.expect("a lane itself panicked");
        for (outcome, times) in lane.outcomes {
            *outcomes.entry(outcome).or_default() += times;
        }
        kept.push((lane.basin, lane.streams));
    }
    let told: Vec<_> = outcomes.iter().map(|(o, n)| format!("{o} {n}")).collect();
    let took = started.elapsed().as_secs_f32();
    println!("{kind:?}: {took:.1} s: {}", told.join(", "));
    let world = Arc::into_inner(world).expect("the lanes have ended");
    if plan.failed.load(Ordering::Relaxed) {
        world.stop().await;
        return outcomes;
    }
    // What was acknowledged is there after a restart.
    let world = world.restart().await;
    for (basin, streams) in &mut kept {
        for stream in streams {
            reading::check_from(&world, basin, stream, 0, Form::Proto).await;
        }
    }
    world.stop().await;
    outcomes
}

async fn make_basin(lane: &Lane) {
    let config = json!({"create_stream_on_append": true, "create_stream_on_read": true});
    let request = lane
        .request(Method::POST, "/v1/basins")
        .header("content-type", "application/json")
        .body(Body::from(
            json!({"basin": lane.basin, "config": config}).to_string(),
        ))
        .unwrap();
    assert_eq!(lane.world.send(request).await.status, 201);
}

/// Runs a seed; whether all went well.
async fn run_seed(kind: Kind, seed: u64, lane: &mut Lane, plan: &Plan) -> bool {
    let mut place = "the streams' making".to_owned();
    let cases = async {
        replace_streams(kind, seed, lane).await;
        for case in 0..CASES {
            place = format!("case {case}");
            lane.place = (seed, case);
            lane.rng = StdRng::seed_from_u64(seed.rotate_left(32) ^ case);
            lane.count("cases");
            tokio::time::timeout(CASE_TIMEOUT, kind.case(lane))
                .await
                .unwrap_or_else(|_| panic!("it did not end within {CASE_TIMEOUT:?}"));
            let panics = NODE_PANICS.lock().unwrap().join("\n");
            assert!(panics.is_empty(), "the node panicked: {panics}");
        }
        place = "the last look at the streams".to_owned();
        let Lane {
            world,
            basin,
            streams,
            ..
        } = lane;
        for stream in streams {
            reading::check_from(world, basin, stream, 0, Form::Proto).await;
        }
        let health = Request::get("/health").body(Body::empty()).unwrap();
        assert_eq!(world.send(health).await.status, 200, "health");
    };
    let Err(panic) = AssertUnwindSafe(cases).catch_unwind().await else {
        return true;
    };
    let why = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    // What came over from another task was noted there, not here.
    let last = LAST_PANIC.take();
    let why = match last.contains(why) {
        true => &last,
        false => why,
    };
    let test = &plan.test;
    plan.fail(format!(
        "{kind:?}: seed {seed}, {place}: {why}\n\n{}\n",
        seeds::again(
            seed,
            &format!("-p esker-server --test fuzz -- --exact {test}")
        )
    ));
    false
}

/// Deletes the streams of the last seed, and makes those of this one.
async fn replace_streams(kind: Kind, seed: u64, lane: &mut Lane) {
    for stream in std::mem::take(&mut lane.streams) {
        let path = reading::stream_path(&stream.name);
        let request = lane.request(Method::DELETE, &path).body(Body::empty());
        assert_eq!(lane.world.send(request.unwrap()).await.status, 202);
    }
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..STREAMS {
        let (timestamping, mode) = [
            (Timestamping::ClientPrefer, "client-prefer"),
            (Timestamping::ClientRequire, "client-require"),
            (Timestamping::Arrival, "arrival"),
        ][number % 3];
        let uncapped = rng.random();
        let stream = Stream::new(&format!("{kind:?}/{seed}/{number}"), timestamping, uncapped);
        let config = json!({"timestamping": {"mode": mode, "uncapped": uncapped}});
        let request = lane
            .request(Method::POST, "/v1/streams")
            .header("content-type", "application/json")
            .body(Body::from(
                json!({"stream": stream.name, "config": config}).to_string(),
            ))
            .unwrap();
        assert_eq!(lane.world.send(request).await.status, 201);
        lane.streams.push(stream);
    }
}

/// Looks at memory and disk from time to time.
#[derive(Default)]
struct Watch {
    looks: Vec<u64>,
}

impl Watch {
    fn look(&mut self, kind: Kind, world: &World, started: Instant, plan: &Plan) {
        let Some(resident) = bombs::resident_bytes() else {
            return;
        };
        let disk = world.disk();
        let mib = |bytes: u64| bytes / (1024 * 1024);
        println!(
            "{kind:?}: {} s: resident {} MiB, disk {} MiB",
            started.elapsed().as_secs(),
            mib(resident),
            mib(disk)
        );
        self.looks.push(resident);
        let settled = self.looks[self.looks.len() / 5];
        if resident > settled + GROWTH {
            plan.fail(format!(
                "{kind:?}: memory grows: {} MiB after a fifth of the time, now {} MiB",
                mib(settled),
                mib(resident)
            ));
        }
        if disk > DISK {
            plan.fail(format!("{kind:?}: the disk fills: {} MiB", mib(disk)));
        }
    }
}
