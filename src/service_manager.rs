//! Reports to a service manager such as systemd (`Type=notify`): readiness, status, and pings of its watchdog.
//!
//! Nothing is sent unless the manager has set `NOTIFY_SOCKET`. A report that cannot be sent is logged, and the
//! server goes on: the manager then ends it by its own time limits.

use std::convert::Infallible;
use std::time::Duration;

use esker_server::Server;
use sd_notify::NotifyState;

/// Part of the watchdog's time after which a ping is due. Two may get lost, or be late on a busy machine.
const PINGS: u32 = 3;
/// Interval at which the status is looked at without a watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Reports that the server starts. Until [`ready`], pings show that the process runs.
pub async fn while_starting() -> Infallible {
    report(&[NotifyState::Status("starting")]);
    // After a restart by itself, the last ping is from before the stop.
    ping();
    loop {
        tokio::time::sleep(interval()).await;
        if runtime_takes_turns().await {
            ping();
        }
    }
}

/// Reports that the server serves.
pub fn ready(server: &Server) {
    let status = format!("serving at {}", server.address());
    report(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Pings the watchdog as long as the runtime takes turns and the node answers, and reports a status that changes.
/// It never ends.
pub async fn while_serving(server: &Server) -> Infallible {
    let mut last = None;
    loop {
        tokio::time::sleep(interval()).await;
        if !runtime_takes_turns().await {
            continue;
        }
        // The loops of the node turn. A node that takes no appends is alive, too: a restart would not give it a
        // healthy disk.
        if let Err(not_live) = server.node().liveness() {
            tracing::warn!(
                "no ping to the service manager's watchdog: {}",
                not_live.why
            );
            continue;
        }
        ping();
        let health = server.node().health().map_err(|not_ready| not_ready.why);
        if last.as_ref() != Some(&health) {
            let status = match &health {
                Ok(()) => format!("serving at {}", server.address()),
                Err(why) => format!("takes no appends: {why}"),
            };
            report(&[NotifyState::Status(&one_line(&status))]);
            last = Some(health);
        }
    }
}

/// Reports that the server stops.
pub fn stopping() {
    report(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: waiting for what is in flight"),
    ]);
}

/// Reports that the process starts again by itself, with the same process id. [`ready`] follows.
pub fn restarting(cause: &str) {
    let status = one_line(&format!("restarting: {cause}"));
    let now = NotifyState::monotonic_usec_now();
    match now {
        Ok(now) => report(&[NotifyState::Reloading, now, NotifyState::Status(&status)]),
        Err(_) => report(&[NotifyState::Reloading, NotifyState::Status(&status)]),
    }
    // The next one follows once the process has been replaced.
    ping();
}

/// A third of the watchdog's time.
fn interval() -> Duration {
    match sd_notify::watchdog_enabled() {
        Some(time) => (time / PINGS).max(Duration::from_millis(10)),
        None => STATUS_INTERVAL,
    }
}

/// Whether a worker of the runtime runs a new task in time.
async fn runtime_takes_turns() -> bool {
    let turn = tokio::spawn(async {});
    matches!(tokio::time::timeout(interval(), turn).await, Ok(Ok(())))
}

fn ping() {
    if sd_notify::watchdog_enabled().is_some() {
        report(&[NotifyState::Watchdog]);
    }
}

fn report(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot report to the service manager ($NOTIFY_SOCKET): {error}");
    }
}

/// A status is one line.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
