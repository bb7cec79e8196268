//! The fixture of a test: a destination, access to its objects, and a directory for local files.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use esker_repository::destination::{Destination, DestinationOptions};
use esker_repository::env::{Env, System};
use esker_repository::{
    Checkpoint, Cluster, Digests, Kind, LineageId, Lsn, Options, PartitionId, Progress, Put,
    Repository, Restored, Retries, SnapshotDir, SnapshotMetadata, Verification, Which,
};
use futures::future::BoxFuture;
use serde_json::Value;
use testkit_s3::{Door, S3Server};
use time::OffsetDateTime;

use crate::support::Destinations as _;

/// The partition of all tests.
pub const PARTITION: PartitionId = PartitionId(7);
/// The lineage of all checkpoints, unless a test sets another one.
pub const LINEAGE: LineageId = LineageId(0xabcd);

/// The bucket and the prefix in S3.
const IN_BUCKET: &str = "bucket/some/prefix";

/// Where the objects are stored.
pub enum Backend {
    S3(S3Server),
    Directory,
}

pub struct Place {
    pub backend: Backend,
    pub destination: Destination,
    /// The partition's directory. Every object is a file in it, also on S3.
    pub dir: PathBuf,
    /// Directory for checkpoints and restored snapshots.
    pub work: tempfile::TempDir,
    pub clock: Clock,
}

/// The machine's clock, with an error.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    seconds: Arc<AtomicI64>,
    /// How far the clock that ages are computed with is behind.
    ages_behind: Arc<AtomicI64>,
}

impl Clock {
    pub fn jump(&self, days: i64) {
        self.seconds.fetch_add(days * 86_400, Ordering::SeqCst);
    }

    /// Simulates a jump ahead that is not trusted yet.
    pub fn let_ages_be_behind(&self, days: i64) {
        self.ages_behind.store(days * 86_400, Ordering::SeqCst);
    }

    pub fn wrong_by(days: i64) -> Clock {
        let clock = Clock::default();
        clock.jump(days);
        clock
    }
}

impl Env for Clock {
    fn now(&self) -> OffsetDateTime {
        System.now() + time::Duration::seconds(self.seconds.load(Ordering::SeqCst))
    }

    fn now_for_ages(&self) -> OffsetDateTime {
        self.now() - time::Duration::seconds(self.ages_behind.load(Ordering::SeqCst))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        System.sleep(duration)
    }

    fn random(&self) -> u64 {
        System.random()
    }
}

/// A temporary directory, in memory if possible: the disk is not tested, and would be synced a thousand
/// times.
pub fn tempdir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Waits until a condition is true, for as long as a busy machine may need.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(60), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Contents of files, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// `len` bytes that are different for each seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Files `000001.sst` and so on, of some hundred bytes each, one for each content.
pub fn some(contents: &[u64]) -> Files {
    let numbered = contents.iter().enumerate();
    numbered
        .map(|(i, content)| {
            let len = 500 + usize::try_from(*content).unwrap();
            (format!("{:06}.sst", i + 1), bytes(*content, len))
        })
        .collect()
}

/// All files below a directory, by path.
pub fn read_dir(dir: &Path) -> Files {
    fn walk(dir: &Path, prefix: &str, files: &mut Files) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), files);
            } else {
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    let mut files = Files::new();
    walk(dir, "", &mut files);
    files
}

/// Short waits: the store is not what is slow in these tests.
pub fn retries() -> Retries {
    Retries {
        attempts: 6,
        budget: 100,
        first_wait: Duration::from_millis(2),
        longest_wait: Duration::from_millis(20),
        silence: Duration::from_secs(10),
    }
}

pub fn cluster() -> Cluster {
    Cluster {
        name: "ours".to_owned(),
        fingerprint: Some(u64::MAX - 4),
        node_name: "n1".to_owned(),
    }
}

/// Incremental, three retained, and no minimum age, because safety must not depend on it.
pub fn options() -> Options {
    Options {
        cluster: Some(cluster()),
        kind: Kind::Incremental,
        num_retained: NonZeroU32::new(3),
        orphan_min_age: Duration::ZERO,
        retries: retries(),
        ..Options::default()
    }
}

pub fn full() -> Options {
    Options {
        kind: Kind::Full,
        ..options()
    }
}

fn directory(dir: &Path, hard_links: bool) -> Destination {
    let options = DestinationOptions {
        hard_links,
        ..DestinationOptions::default()
    };
    Destination::open(dir.to_str().unwrap(), &options).unwrap()
}

impl Place {
    pub async fn on_s3() -> Place {
        let server = S3Server::start().await;
        let destination = server.destination(IN_BUCKET);
        let dir = server.bucket("bucket").join("some/prefix/7");
        Place::new(Backend::S3(server), destination, dir)
    }

    pub fn in_a_directory() -> Place {
        Place::linked(true)
    }

    /// A local directory, with or without hard links.
    pub fn linked(hard_links: bool) -> Place {
        let work = tempdir();
        let dir = work.path().join("not/yet/there");
        let destination = directory(&dir, hard_links);
        Place {
            work,
            ..Place::new(Backend::Directory, destination, dir.join("7"))
        }
    }

    /// The same directory, opened with or without hard links.
    pub fn with_links(self, hard_links: bool) -> Place {
        let destination = directory(self.top(), hard_links);
        Place {
            destination,
            ..self
        }
    }

    fn new(backend: Backend, destination: Destination, dir: PathBuf) -> Place {
        Place {
            backend,
            destination,
            dir,
            work: tempdir(),
            clock: Clock::default(),
        }
    }

    /// The S3 server. Only for tests that run on S3.
    pub fn server(&self) -> &S3Server {
        match &self.backend {
            Backend::S3(server) => server,
            Backend::Directory => panic!("there is no server"),
        }
    }

    pub fn is_s3(&self) -> bool {
        matches!(self.backend, Backend::S3(_))
    }

    pub fn repository(&self) -> Repository {
        self.with(options())
    }

    pub fn with(&self, options: Options) -> Repository {
        self.with_clock(options, self.clock.clone())
    }

    pub fn with_clock(&self, options: Options, clock: Clock) -> Repository {
        Repository::with_env(&self.destination, PARTITION, options, Arc::new(clock))
    }

    /// A repository as another process opens it, with its own connections. If there is a door, they pass
    /// through it.
    pub async fn elsewhere(&self, options: Options) -> (Repository, Option<Door>) {
        let (destination, door) = match &self.backend {
            Backend::S3(server) => {
                let (destination, door) = server.destination_through_door(IN_BUCKET).await;
                (destination, Some(door))
            }
            Backend::Directory => (self.destination.clone(), None),
        };
        let clock = Arc::new(self.clock.clone());
        let repository = Repository::with_env(&destination, PARTITION, options, clock);
        (repository, door)
    }

    /// The destination as a new process opens it.
    pub fn opened_again(&self) -> Destination {
        match &self.backend {
            Backend::S3(server) => server.destination(IN_BUCKET),
            Backend::Directory => {
                let options = DestinationOptions::default();
                Destination::open(self.top().to_str().unwrap(), &options).unwrap()
            }
        }
    }

    /// The directory of the destination, which contains the partition's.
    pub fn top(&self) -> &Path {
        self.dir.parent().unwrap()
    }

    /// A checkpoint of these files at this LSN.
    pub fn checkpoint(&self, lsn: u64, files: &Files) -> Checkpoint {
        let dir = tempfile::tempdir_in(self.work.path()).unwrap().keep();
        for (name, content) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let mut checkpoint = Checkpoint::scan(&dir, Lsn(lsn), Digests::new()).unwrap();
        checkpoint.lineage = Some(LINEAGE);
        checkpoint
    }

    /// Puts files with the usual options.
    pub async fn put(&self, lsn: u64, files: &Files) -> Put {
        self.put_by(&self.repository(), lsn, files).await
    }

    pub async fn put_by(&self, repository: &Repository, lsn: u64, files: &Files) -> Put {
        let checkpoint = self.checkpoint(lsn, files);
        repository.put(&checkpoint, &Progress::new()).await.unwrap()
    }

    /// A path that does not exist yet.
    pub fn target(&self) -> PathBuf {
        tempfile::tempdir_in(self.work.path())
            .unwrap()
            .keep()
            .join("restored")
    }

    pub async fn restore(&self, which: Which) -> (Restored, Files) {
        let restored = self
            .repository()
            .restore(&which, &self.target(), &Progress::new())
            .await
            .unwrap();
        let files = read_dir(restored.dir());
        (restored, files)
    }

    /// The objects of the partition.
    pub fn objects(&self) -> Files {
        read_dir(&self.dir)
    }

    pub fn keys(&self) -> BTreeSet<String> {
        self.objects().into_keys().collect()
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Writes an object without the store.
    pub fn write(&self, key: &str, content: impl AsRef<[u8]>) {
        let path = self.path(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // The file is created again, because the old one may be a hard link of a checkpoint's.
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, content).unwrap();
    }

    /// Changes an object without the store.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = std::fs::read(self.path(key)).unwrap();
        change(&mut content);
        self.write(key, content);
    }

    pub fn remove(&self, key: &str) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    /// Reads an object as JSON.
    pub fn json(&self, key: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(key)).unwrap()).unwrap()
    }

    pub fn edit(&self, key: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(key);
        change(&mut value);
        self.write(key, value.to_string());
    }

    pub fn metadata(&self, dir: &SnapshotDir) -> SnapshotMetadata {
        serde_json::from_value(self.json(&dir.metadata())).unwrap()
    }

    /// The keys of a snapshot's files, in the order of their names.
    pub fn files_of(&self, dir: &SnapshotDir) -> Vec<String> {
        let metadata = self.metadata(dir);
        let files = metadata.files.iter();
        files.map(|file| metadata.key_of(file)).collect()
    }

    /// The keys that the current root needs: itself, descriptions and files.
    pub fn kept_keys(&self) -> BTreeSet<String> {
        let root = self.json("latest.json");
        let mut kept = BTreeSet::from(["latest.json".to_owned()]);
        for list in ["retained_snapshots", "pins", "abandoned"] {
            for entry in root[list].as_array().into_iter().flatten() {
                let dir = SnapshotDir::parse(entry["path"].as_str().unwrap()).unwrap();
                kept.insert(dir.metadata());
                kept.extend(self.files_of(&dir));
            }
        }
        kept
    }

    /// Verifies with a repository that was just opened, and reads all bytes.
    pub async fn verify(&self) -> Verification {
        let verified = self.repository().verify(true, &Progress::new()).await;
        verified.unwrap()
    }

    #[track_caller]
    pub fn assert_only_kept(&self) {
        let (there, kept) = (self.keys(), self.kept_keys());
        let more: Vec<_> = there.difference(&kept).collect();
        let lost: Vec<_> = kept.difference(&there).collect();
        assert!(
            more.is_empty() && lost.is_empty(),
            "there is more than is kept: {more:?}, or less: {lost:?}"
        );
    }
}

/// The only damage in a report: its key, its cause, and the snapshots that need it.
#[track_caller]
pub fn only_damage(report: &Verification) -> (&str, &str, &[String]) {
    let [one] = &report.damaged[..] else {
        panic!("one object is damaged, not {:?}", report.damaged);
    };
    (&one.key, &one.why, &one.hurts)
}
