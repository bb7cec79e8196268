//! Logs and metrics.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogsConfig};

/// Starts logging to standard error. What `raft-engine` logs goes the same way. Does nothing if
/// logging was started before.
pub fn start_logs(config: &LogsConfig) {
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // Only the first call counts; a test may start several servers.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Bounds of the buckets that durations are counted in, seconds.
const SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0,
    100.0,
];
/// Samples are put into their buckets this often, whether or not somebody asks for metrics: until then each
/// takes memory.
pub(crate) const UPKEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// The process's metrics; the first call installs the recorder.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            // A percentile over all time says little, and keeps every sample until somebody looks.
            let recorder = PrometheusBuilder::new()
                .set_buckets(&SECONDS)
                .expect("there are buckets")
                .build_recorder();
            let handle = recorder.handle();
            // If the host of this library has a recorder of its own, its metrics stay there.
            let _ = metrics::set_global_recorder(recorder);
            handle
        })
        .clone()
}
