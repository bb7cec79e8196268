//! Resident memory of the server, after it has become idle.

use super::Load;
use crate::targets::{Metric, Reading};
use bench_harness::machine;

/// Reads the process's resident memory, now and at its highest.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let (now, highest) = machine::resident_bytes(load.server.pid())?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        Reading::new(Metric::Resident, mib(now)),
        Reading::new(Metric::ResidentHighest, mib(highest)),
    ])
}
