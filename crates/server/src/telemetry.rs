//! Logs and metrics.

use std::fs::File;
use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogsConfig};
use crate::log_writer::LogWriter;
use crate::repeat_limiter::RepeatLimiter;

/// The target of lines about the log itself.
const TARGET: &str = module_path!();
/// How long a process that begins to serve, or ends, waits for its lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static WRITER: LazyLock<LogWriter> = LazyLock::new(|| {
    // A descriptor of its own: a blocked write must not hold the lock of `std::io::stderr`.
    let own = std::io::stderr().as_fd().try_clone_to_owned();
    let out: Box<dyn Write + Send> = match own {
        Ok(own) => Box::new(File::from(own)),
        Err(_) => Box::new(std::io::stderr()),
    };
    LogWriter::start(out)
});
static LIMITER: LazyLock<RepeatLimiter> = LazyLock::new(|| RepeatLimiter::new(TARGET));

/// Starts logging to standard error. `raft-engine` logs to the same output. Does nothing if logging was
/// started before.
///
/// Logging neither fails nor waits: lines that cannot be written are counted in
/// `esker_log_lines_lost_total`.
pub fn start_logs(config: &LogsConfig) {
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::registry().with(filter).with(&*LIMITER);
    let lines = fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(&*WRITER)
        .log_internal_errors(false);
    // Only the first call counts; a test may start several servers.
    let _ = match config.format {
        LogFormat::Text => subscriber.with(lines).try_init(),
        LogFormat::Json => subscriber.with(lines.json()).try_init(),
    };
}

/// Writes a line to standard error, in order with the log, without failing or waiting.
pub fn write_line(line: impl std::fmt::Display) {
    WRITER.line(format!("{line}\n").into_bytes());
}

/// Waits, for a second at most, until the lines of the log are written. For the end of a start, and of a process.
pub fn flush_logs() {
    WRITER.flush(FLUSH_TIMEOUT);
}

/// Work that is done every [`MAINTENANCE_INTERVAL`], and once at the start.
pub(crate) fn upkeep(metrics: &PrometheusHandle) {
    metrics.run_upkeep();
    let mut suppressed = 0;
    for place in LIMITER.suppressed(Instant::now()) {
        suppressed += place.lines;
        tracing::warn!(
            lines = place.lines,
            place = %format_args!("{}:{}", place.module, place.line),
            "Repeated log messages were left out"
        );
    }
    metrics::counter!("esker_log_lines_lost_total").absolute(WRITER.lost());
    metrics::counter!("esker_log_lines_suppressed_total").increment(suppressed);
}

/// Bounds of the buckets that durations are counted in, seconds.
const SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0,
    100.0,
];
/// Interval at which samples are put into their buckets, whether or not metrics are requested: until then
/// each sample takes memory.
pub(crate) const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(2);

/// The process's metrics; the first call installs the recorder.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            // A percentile over all time is of little use, and keeps every sample until metrics are
            // requested.
            let recorder = PrometheusBuilder::new()
                .set_buckets(&SECONDS)
                .expect("there are buckets")
                .build_recorder();
            let handle = recorder.handle();
            // If the host of this library has a recorder of its own, its metrics stay there.
            let _ = metrics::set_global_recorder(recorder);
            crate::metric_reference::describe();
            handle
        })
        .clone()
}
