//! The configuration itself: plain values with their defaults.
//!
//! The comment on a field is its description in the documentation, and its `schemars` attributes
//! are its bounds: the same schema feeds the checks, the messages and `docs/operating/configuration.md`. A
//! key is therefore complete once it is a field here with a comment, bounds and a default.
//!
//! Attributes that the schema does not know by itself: `format` names the kind of a string
//! (`path`, `socket-address`, `cluster-name`, `log-filter`, `destination`, `endpoint`, `text`, `host-names`,
//! `origins`, `location`),
//! `x-minimum` and `x-maximum` are the bounds of sizes and durations, both inclusive, and `x-alias`
//! is a second name of a key or section. Every number has an upper bound, so that a slip of the
//! keyboard does not reserve more than a machine has.
//!
//! A key that may be unset is an `Option`; its comment explains what unset means.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use s2_common::location::LocationName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::cluster::ClusterConfig;
use super::snapshots::SnapshotsConfig;
use super::state::StateConfig;
use super::tls::TlsConfig;
use super::traces::TracesConfig;
use super::units::{ByteCount, HumanDuration};

/// Port of the one listener, unless `listen` says otherwise.
const DEFAULT_PORT: u16 = 7070;

/// The whole configuration of `esker server`.
///
/// A value that came from [`load`](super::load) has been checked. One that was put together in code
/// should be passed through [`validate`](Config::validate).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Directory of everything the server keeps: the durable log and the databases of its
    /// partitions. Created if it does not exist. A relative path is relative to the directory in
    /// which the server is started.
    #[serde(serialize_with = "as_text")]
    #[schemars(extend("format" = "path"))]
    pub data_dir: PathBuf,

    /// Address of the one listener, which serves the S2 API, the state service, the admin API and the
    /// metrics over HTTP/1.1 and HTTP/2. Port 0 takes any free port. An address that other machines can reach
    /// is refused unless requests need a token (`root-token-file`) or `insecure-no-auth` is set.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,

    /// File with the root token, as its only line: at least 32 visible ASCII characters, such as those of
    /// `openssl rand -hex 32`. Its holder may do everything, and issues access tokens to others: every
    /// request needs a token then, except `/health` and `/ping`. Unset, none does. Other users of the machine
    /// must not be able to read the file. It is read again when it changes.
    #[serde(serialize_with = "as_optional_text")]
    #[schemars(extend("format" = "path"))]
    pub root_token_file: Option<PathBuf>,

    /// Allows an address in `listen` or `state.listen` that is not a loopback address although no
    /// `root-token-file` is set: anyone who reaches the address can then read, write and delete everything.
    pub insecure_no_auth: bool,

    /// More names by which clients reach a listener that has a loopback address, separated by commas:
    /// those of a proxy in front of it that passes the `Host` header on, for example. Without a port.
    /// Unset, only loopback names (`localhost`, 127.0.0.1, `[::1]`) are accepted there, so that no
    /// web page can reach the server under a name of its own. Other listeners accept every name.
    #[schemars(extend("format" = "host-names"))]
    pub allowed_hosts: Option<String>,

    /// Web origins whose pages may send requests (CORS), separated by commas; `*` alone is every origin
    /// but `null`, the one of pages without an origin, which is never allowed. Pages send an access token
    /// in a header: there are no cookies. Unset, a request with an `Origin` header, which browsers send
    /// and other clients do not, is refused.
    #[schemars(extend("format" = "origins"))]
    pub allowed_origins: Option<String>,

    /// Serves the console, pages for people, at `/` of `listen`. They show what the access token with which
    /// somebody signs in may read, and change nothing. Without a `root-token-file` they are served on loopback
    /// addresses alone.
    pub console: bool,

    /// Name of the cluster. Snapshots carry it, so two clusters that could use the same repository
    /// should have different names.
    #[schemars(extend("format" = "cluster-name"))]
    pub cluster_name: String,

    /// Name of the one location of the S2 API that this server is: the default location, and that of all
    /// basins. A basin cannot be created in any other.
    #[schemars(with = "String", extend("format" = "location"))]
    pub location: LocationName,

    /// Number of stream partitions. Fixed when the data directory is created: a directory that was
    /// made with another number is refused. Partition 0, the catalog, comes on top.
    #[schemars(range(min = 1, max = 1024))]
    pub partitions: u32,

    /// Threads that serve connections. 0 is as many as there are processors. They do not read the database and
    /// do not write the log: other threads do. On a small machine fewer of them may answer small appends
    /// sooner, and serve readers of long streams slower.
    #[schemars(range(max = 1024))]
    pub worker_threads: u32,

    /// How long a server that was asked to stop waits for open requests before it ends them.
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1h"))]
    pub shutdown_grace: HumanDuration,

    /// TLS of the listeners: the files of the certificate, and whether clients need one.
    pub tls: TlsConfig,

    /// The cluster that this server is a node of: by which addresses its nodes reach each other, and how they
    /// prove that they belong to it.
    pub cluster: ClusterConfig,

    /// The durable log: one per server, shared by all partitions. What a restart replays, and how
    /// much disk the log takes, is set here.
    pub log: LogConfig,

    /// The databases (RocksDB) of the partitions.
    pub store: StoreConfig,

    /// Snapshots of the partitions, which bound what a recovery replays: where and when they are put,
    /// how many are retained, and how much log is kept for them.
    #[schemars(extend("x-alias" = "worker.snapshots"))]
    pub snapshots: SnapshotsConfig,

    /// The state store: transactional keys of agents. Where it is served, when it writes JSON snapshots,
    /// what transactions may take, and how much history is kept.
    pub state: StateConfig,

    /// What clients may take. Each limit bounds memory or connections, so that no client and no
    /// number of clients can exhaust the server.
    pub limits: LimitsConfig,

    /// The background rounds that delete records past their age, delete empty streams and give
    /// space back.
    pub retention: RetentionConfig,

    /// What the server writes about itself on standard error.
    pub logs: LogsConfig,

    /// Traces of requests, sent to a collector of OpenTelemetry.
    pub traces: TracesConfig,
}

/// The durable log (`[log]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// Size at which a segment file of the log is closed and the next one begun. Space is given
    /// back by whole segments.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1GiB"))]
    pub segment_size: ByteCount,

    /// Once the log is larger than this, segments are deleted although a little of them is still
    /// needed, which is copied. Segments of which nothing is needed are deleted at once. At least
    /// `segment-size`.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1TiB"))]
    pub purge_threshold: ByteCount,

    /// Most bytes that are gathered from all partitions into one write and one sync. Larger groups carry more per
    /// sync; smaller ones answer sooner. The minimum is enough for the largest batch.
    #[schemars(extend("x-minimum" = "2MiB", "x-maximum" = "256MiB"))]
    pub max_group_size: ByteCount,

    /// The database of a partition is flushed when it is this much of the log behind, so that a
    /// restart replays little: at most about this much per partition.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "64GiB"))]
    pub flush_after: ByteCount,
}

/// The databases of the partitions (`[store]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// Memory for blocks read from disk, shared by all partitions.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1TiB"))]
    pub block_cache: ByteCount,

    /// Memory in which one partition gathers writes before it flushes them to a file.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1GiB"))]
    pub write_buffer: ByteCount,

    /// Memory for such writes over all partitions; beyond it the partition with the most is
    /// flushed. At least `write-buffer`.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "256GiB"))]
    pub write_buffers_total: ByteCount,

    /// Most files that the databases keep open. The limit of the operating system (`ulimit -n`) must suffice for
    /// these and for `limits.connections`. A read opens all files of its partition that are not merged yet, most
    /// often some 30 and never more than 160: with fewer open at a time, their indexes are read again for each
    /// MiB.
    #[schemars(range(min = 64, max = 1_000_000))]
    pub max_open_files: u32,

    /// Most threads that flush and compact in the background; more than 7 count as 7.
    #[schemars(range(min = 1, max = 64))]
    pub background_jobs: u32,
}

/// Limits on what clients may take (`[limits]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitsConfig {
    /// Most bytes of appends that are received and not yet answered, over all connections; each partition has
    /// the same share of it. Beyond that, appends of sessions wait, and single ones and commits for 10 s, and
    /// are then refused. At least `append-session-inflight`.
    #[schemars(extend("x-minimum" = "2MiB", "x-maximum" = "1TiB"))]
    pub append_inflight: ByteCount,

    /// The same for a single append session. The minimum is enough for the largest batch.
    #[schemars(extend("x-minimum" = "2MiB", "x-maximum" = "1GiB"))]
    pub append_session_inflight: ByteCount,

    /// Most open connections, over all listeners: fewer if the limit of open files allows fewer. Beyond it, 16
    /// more are a reserve: health, metrics and the admin API are answered there, for 5 s each, and any other
    /// request waits there for 10 s until another connection ends. A client's address has at most 12 of the
    /// reserve. Further connections, up to 512 in all, wait for 10 s without being served; those beyond are
    /// closed at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: u32,

    /// Most bytes of a request body, after decompression. The minimum is enough for the largest batch (1 MiB of
    /// metered bytes) in JSON, where base64 makes it a third larger.
    #[schemars(extend("x-minimum" = "2MiB", "x-maximum" = "64MiB"))]
    pub request_body: ByteCount,

    /// Most bytes of request bodies that have arrived and are not yet answered, and of frames of append
    /// sessions that are not yet admitted, over all connections. A body whose length is known counts with all
    /// of it once a sixteenth has arrived. Beyond it, bodies wait for 10 s, and are then refused; sessions wait
    /// for as long as it takes. Those of at most 64 KiB have another 16 MiB of their own.
    #[schemars(extend("x-minimum" = "64MiB", "x-maximum" = "1TiB"))]
    pub request_bodies: ByteCount,

    /// Most bytes that clients may send ahead of what the server reads, over all connections of HTTP/2, beside 64
    /// KiB for each of them. A connection gets a part when it begins, 8 MiB at most: where there are few, each
    /// gets a large one.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1TiB"))]
    pub http2_windows: ByteCount,

    /// Newest records kept in memory per followed stream. A reader that falls further behind reads
    /// from the database until it has caught up: with 32 MiB, one of a stream that is written at 160
    /// MiB/s after a pause of 0.2 s.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "1GiB"))]
    pub follower_buffer: ByteCount,

    /// The same over all followed streams: beyond it, each keeps its newest batch alone.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "256GiB"))]
    pub follower_buffers_total: ByteCount,

    /// Most bytes that read sessions and single reads have read and that their clients have not yet
    /// received, over all connections. A quarter is for sessions at the tail of their streams
    /// alone. Beyond it, sessions wait for as long as it takes, and single reads are refused after
    /// 15 s at most.
    #[schemars(extend("x-minimum" = "32MiB", "x-maximum" = "1TiB"))]
    pub read_sessions: ByteCount,

    /// How long a connection may take to send the head of a request, and how long a body may be behind
    /// 16 KiB a second.
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub header_timeout: HumanDuration,

    /// How long a connection may be without a request under way before it is closed. One of HTTP/1.1 is
    /// closed after `header-timeout` if that is shorter: the head of its next request is awaited.
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "24h"))]
    pub idle_timeout: HumanDuration,

    /// How long a client may receive nothing of an answer that is ready before the answer is ended,
    /// and its connection if nothing else is under way there.
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "24h"))]
    pub stall_timeout: HumanDuration,
}

/// The background rounds over streams (`[retention]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetentionConfig {
    /// How often a partition looks for records past their age, for empty streams to delete and for
    /// space to give back.
    #[schemars(extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub interval: HumanDuration,

    /// Most streams examined per partition and round; the next round continues where this one ended.
    /// A partition of a million streams thus takes 4,000 rounds of the default size.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub streams_per_round: u32,
}

/// What the server writes about itself (`[logs]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogsConfig {
    /// Which messages are written: a level for everything, and levels for parts of the program,
    /// separated by commas. The levels are `off`, `error`, `warn`, `info`, `debug` and `trace`.
    #[schemars(extend("format" = "log-filter"))]
    pub level: String,

    /// Form of a message: a line of text for people, or a JSON object per line for programs.
    pub format: LogFormat,
}

/// Form of the messages that the server writes about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// A line of text for people.
    #[default]
    Text,
    /// A JSON object per line, for programs.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "esker-data".into(),
            listen: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
            root_token_file: None,
            insecure_no_auth: false,
            allowed_hosts: None,
            allowed_origins: None,
            console: true,
            cluster_name: "esker".into(),
            location: "esker:local".parse().expect("it follows the rules"),
            partitions: 8,
            worker_threads: 0,
            shutdown_grace: HumanDuration::from_secs(10),
            tls: TlsConfig::default(),
            cluster: ClusterConfig::default(),
            log: LogConfig::default(),
            store: StoreConfig::default(),
            snapshots: SnapshotsConfig::default(),
            state: StateConfig::default(),
            limits: LimitsConfig::default(),
            retention: RetentionConfig::default(),
            logs: LogsConfig::default(),
            traces: TracesConfig::default(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_size: ByteCount::mib(32),
            purge_threshold: ByteCount::mib(256),
            max_group_size: ByteCount::mib(4),
            // Nine partitions (eight and the catalog) of 28 MiB stay below the purge threshold.
            flush_after: ByteCount::mib(28),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            block_cache: ByteCount::mib(128),
            write_buffer: ByteCount::mib(32),
            write_buffers_total: ByteCount::mib(192),
            max_open_files: 512,
            background_jobs: 2,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            append_inflight: ByteCount::mib(128),
            append_session_inflight: ByteCount::mib(8),
            connections: 16_384,
            request_body: ByteCount::mib(4),
            request_bodies: ByteCount::mib(128),
            http2_windows: ByteCount::mib(256),
            follower_buffer: ByteCount::mib(32),
            follower_buffers_total: ByteCount::mib(64),
            read_sessions: ByteCount::mib(256),
            header_timeout: HumanDuration::from_secs(30),
            idle_timeout: HumanDuration::from_secs(600),
            stall_timeout: HumanDuration::from_secs(60),
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            interval: HumanDuration::from_secs(1),
            streams_per_round: 250,
        }
    }
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            level: "warn,esker=info".into(),
            format: LogFormat::default(),
        }
    }
}

/// Writes a path as text. Invalid UTF-8 becomes U+FFFD, which the checks then refuse: no file, variable
/// or message could name such a path.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The same of a path that may be unset.
fn as_optional_text<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}
