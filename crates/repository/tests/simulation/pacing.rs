//! Uploads with a limited rate, on a simulated clock: none is faster than its limit, and no time limit is
//! exceeded because of a low rate.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::metadata::FileMetadata;
use esker_repository::{
    Checkpoint, Cluster, Destination, Error, Kind, Lsn, Options, PartitionId, Progress,
    RateLimiter, Repository,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::path::Path;

use crate::clock::{Clock, Machine, run};
use crate::store::{PARTITION, SimStore, Trouble};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Files of zeros; one may be unreadable.
#[derive(Debug, Default)]
struct Zeros {
    unreadable: Option<&'static str>,
}

#[async_trait::async_trait]
impl Source for Zeros {
    async fn read_at(&self, name: &str, _offset: u64, len: usize) -> std::io::Result<Bytes> {
        match self.unreadable == Some(name) {
            true => Err(std::io::Error::other("a bad sector")),
            false => Ok(vec![0; len].into()),
        }
    }
}

/// A checkpoint of `/000000.sst` and so on, of these sizes.
fn checkpoint(source: Zeros, sizes: &[u64]) -> Checkpoint {
    let names = (0..).map(|number| format!("/{number:06}.sst"));
    let files = names.zip(sizes);
    let files = files.map(|(name, size)| FileMetadata::plain(name, *size));
    Checkpoint::new(Arc::new(source), files.collect(), Lsn(1))
}

fn limiter(per_second: u64) -> Option<RateLimiter> {
    NonZeroU64::new(per_second).map(RateLimiter::new)
}

struct World {
    clock: Clock,
    store: SimStore,
}

impl World {
    fn new() -> World {
        let clock = Clock::default();
        let store = SimStore::new(&clock, 1, Trouble { one_in: 0 });
        World { clock, store }
    }

    fn repository(&self, partition: PartitionId, rate_limiter: Option<RateLimiter>) -> Repository {
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(self.store.clone());
        let destination = Destination::of_store(store, Path::default(), "sim://".to_owned());
        let options = Options {
            cluster: Some(Cluster {
                name: "sim".to_owned(),
                fingerprint: Some(42),
                node_name: "n1".to_owned(),
            }),
            kind: Kind::Full,
            rate_limiter,
            ..Options::default()
        };
        let env = Machine::new(&self.clock, time::Duration::ZERO, 7);
        Repository::with_env(&destination, partition, options, env)
    }

    /// Runs tasks until all have ended. Returns the time that it took.
    fn run(&self, tasks: Vec<BoxFuture<'static, ()>>) -> Duration {
        let began = self.clock.now();
        run(&self.clock, tasks);
        self.clock.now() - began
    }
}

fn put(repository: Repository, sizes: &'static [u64]) -> BoxFuture<'static, ()> {
    async move {
        let checkpoint = checkpoint(Zeros::default(), sizes);
        let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
        assert_eq!(put.bytes_uploaded, sizes.iter().sum::<u64>());
    }
    .boxed()
}

#[test]
fn a_put_takes_as_long_as_its_bytes_at_this_pace_less_a_burst_and_hardly_longer() {
    let world = World::new();
    // Files smaller and larger than a burst, one transfer at a time and many: 20 MiB in all.
    let sizes = &[4 * MIB, MIB, KIB, 7 * MIB - KIB, MIB, MIB, 6 * MIB];
    let took = world.run(vec![put(world.repository(PARTITION, limiter(MIB)), sizes)]);
    assert!(took >= Duration::from_secs(19), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn without_a_pace_there_is_no_bound() {
    assert!(Options::default().rate_limiter.is_none());
    let world = World::new();
    let took = world.run(vec![put(world.repository(PARTITION, None), &[MIB; 20])]);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn uploads_that_are_given_one_pace_share_it() {
    let world = World::new();
    let limiter = limiter(MIB);
    let puts = [PARTITION, PartitionId(8)]
        .map(|partition| put(world.repository(partition, limiter.clone()), &[MIB; 10]));
    let took = world.run(puts.into());
    assert!(took >= Duration::from_secs(19), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn an_upload_of_three_days_is_not_taken_for_dead() {
    let world = World::new();
    let sweeper = world.repository(PARTITION, None);
    let clock = world.clock.clone();
    let sweeps = async move {
        for _ in 0..3 {
            clock.sleep(20 * HOUR).await;
            let sweep = sweeper.sweep().await.unwrap();
            assert_eq!((sweep.fenced, sweep.deleted), (0, 0));
        }
    };
    let slow = put(world.repository(PARTITION, limiter(8)), &[100 * KIB; 20]);
    let took = world.run(vec![slow, sweeps.boxed()]);
    assert!(took > 70 * HOUR, "{took:?}");
    assert!(took < 73 * HOUR, "{took:?}");
    let contents = world.store.contents.lock().unwrap();
    assert_eq!(contents.broken, None);
    assert_eq!(contents.committed.len(), 1);
}

#[test]
fn a_failure_is_not_kept_back_by_those_who_wait_for_their_turn() {
    let world = World::new();
    let repository = world.repository(PARTITION, limiter(1));
    let failure = Arc::new(Mutex::new(None));
    let failed = failure.clone();
    let fails = async move {
        let source = Zeros {
            unreadable: Some("/000000.sst"),
        };
        let checkpoint = checkpoint(source, &[1, MIB, MIB, MIB]);
        let put = repository.put(&checkpoint, &Progress::new()).await;
        *failed.lock().unwrap() = put.err();
    };
    let took = world.run(vec![fails.boxed()]);
    assert!(took < Duration::from_secs(60), "{took:?}");
    let failure = failure.lock().unwrap().take();
    assert!(matches!(failure, Some(Error::Io { .. })), "{failure:?}");
}
