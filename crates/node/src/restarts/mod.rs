//! Restarts that the node requests of its host.
//!
//! Two faults need a start: files of a partition that turn out to be damaged while others are served, and a
//! database that takes no write until it is opened again. Recovery at a start is the best tested code, so a
//! running node does not repeat any of it: once it is certain that a start can recover, it requests one from
//! its host ([`crate::Node::restart_wanted`]).
//!
//! It is certain once, for every damaged partition, the damage is noted durably, and a copy that leads to
//! the present has been found, fetched if necessary, and compared block by block (`recovery::search`). The
//! start uses what was fetched, so a long download costs no outage. Without such a copy the node continues
//! to serve: the start would fail, and the undamaged partitions would no longer be served. Preparing a copy has no
//! limit in time, because a large one takes long; where it makes no progress, log, health and status name what it
//! waits for ([`Activity`]).
//!
//! [`record`] bounds the number of restarts. No restart is made either where the path of the data directory
//! leads elsewhere by now: the start would not find what was acknowledged.

mod record;

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub(crate) use record::Restarts;
use record::{Preparation, shown};

use crate::blocking::blocking;
use crate::core::Inner;
use crate::recovery::{self, Activity};

/// How often a need for a restart is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Wait before preparing a copy is retried; it doubles after each failure, up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Longest wait before preparing a copy is retried.
const LAST_RETRY: Duration = Duration::from_secs(10 * 60);

/// Copies that were prepared, and the time of the next attempt.
#[derive(Default)]
struct Copies {
    /// Damaged partitions that a start can recover.
    ready: Vec<u64>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Copies {
    fn failed(&mut self) {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + doubled.min(LAST_RETRY));
    }

    fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
    }
}

/// Checks, for as long as the node runs, whether a restart is needed, and requests it when it is safe.
pub(crate) fn watch_for_needs(inner: &Arc<Inner>) {
    let stopping = inner.stopping.clone();
    let inner = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut copies = Copies::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stopping.cancelled() => return,
            }
            if inspect(&inner, &mut copies).await.is_none() {
                return;
            }
        }
    });
}

/// Checks the needs once. `None` once the node was dropped.
async fn inspect(inner: &Weak<Inner>, copies: &mut Copies) -> Option<()> {
    let inner = inner.upgrade()?;
    let restarts = &inner.restarts;
    if restarts.wanted.borrow().is_some() {
        return Some(());
    }
    let Some(need) = Need::of(&inner) else {
        restarts.hold_back(None);
        return Some(());
    };
    if restarts.unread().is_some() {
        let reading = inner.clone();
        let read = blocking(move || reading.restarts.read()).await;
        if let Err(why) = read {
            restarts.hold_back(Some(format!("{}; {why}", need.cause)));
            return Some(());
        }
    }
    if let Some(at) = restarts.not_before() {
        restarts.hold_back(Some(format!(
            "{}; {}; the next restart is made at {}",
            need.cause,
            restarts.lately().unwrap_or_default(),
            shown(at)
        )));
        return Some(());
    }
    // The message has no figures that change, because each new message is logged.
    if inner.shortage().is_some() {
        let cause = &need.cause;
        restarts.hold_back(Some(format!(
            "{cause}; the disk of the data directory is nearly full, and a start needs space"
        )));
        return Some(());
    }
    if restarts
        .retry_at
        .lock()
        .is_some_and(|at| at > Instant::now())
    {
        return Some(());
    }
    for partition in need.damaged {
        if copies.ready.contains(&partition) {
            continue;
        }
        if !copies.is_due() {
            return Some(());
        }
        tracing::info!(
            partition,
            "a copy of the damaged partition is being made ready"
        );
        let activity = Arc::<Activity>::default();
        *restarts.preparing.lock() = Some(Preparation {
            partition,
            since: Instant::now(),
            activity: activity.clone(),
        });
        let made = make_ready(&inner, partition, activity).await;
        *restarts.preparing.lock() = None;
        match made {
            Ok(source) => {
                tracing::info!(
                    partition,
                    source,
                    "a copy of the damaged partition is ready"
                );
                copies.ready.push(partition);
            }
            Err(why) => {
                copies.failed();
                let cause = &need.cause;
                restarts.hold_back(Some(format!(
                    "{cause}; partition {partition} has no copy that a start could use now: {why}"
                )));
                return Some(());
            }
        }
    }
    restarts.hold_back(None);
    restarts.wanted.send_replace(Some(need.cause));
    Some(())
}

/// Why a restart is needed.
struct Need {
    cause: String,
    damaged: Vec<u64>,
}

impl Need {
    fn of(inner: &Inner) -> Option<Need> {
        let partitions = 0..=u64::from(inner.options.partitions);
        let damaged: Vec<u64> = match inner.store.is_damaged() {
            true => partitions.filter(|p| inner.damage(*p).is_some()).collect(),
            false => Vec::new(),
        };
        let fatal = inner.store.fatal();
        let of_damage = damaged.first().map(|partition| {
            let why = inner.damage(*partition).unwrap_or_default();
            format!("files of partition {partition} are damaged ({why})")
        });
        let of_database = || {
            fatal.map(|why| format!("the database takes no writes until it is opened again: {why}"))
        };
        let cause = of_damage.or_else(of_database)?;
        Some(Need { cause, damaged })
    }
}

/// Notes the damage of a partition, and prepares a copy. Returns where the copy is from, or why there is
/// none.
async fn make_ready(
    inner: &Arc<Inner>,
    partition: u64,
    activity: Arc<Activity>,
) -> Result<String, String> {
    let why = inner.damage(partition).unwrap_or_default();
    let (noting, noted) = (inner.clone(), why.clone());
    activity.begin("noting the damage", 0);
    let making = async {
        blocking(move || noting.data_dir.report_damage(partition, &noted))
            .await
            .map_err(|e| format!("the damage cannot be noted: {e}"))?;
        let made = recovery::make_ready(inner, partition, why, activity.clone()).await;
        made.map(|source| source.to_string())
            .map_err(|e| e.to_string())
    };
    tokio::select! {
        made = making => made,
        never = log_stalls(partition, &activity) => match never {},
        () = inner.stopping.cancelled() => Err("the server is stopping".to_owned()),
    }
}

/// Logs once whenever the preparation of a copy hangs. Health and status show it meanwhile
/// ([`Restarts::held_back`]).
async fn log_stalls(partition: u64, activity: &Activity) -> Infallible {
    let mut was_stalled = false;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let stalled = activity.stalled();
        if let Some(stalled) = stalled
            && !was_stalled
        {
            tracing::error!(
                partition,
                step = activity.shown(),
                seconds = stalled.as_secs(),
                "making a copy of the damaged partition ready has made no progress: the disk or the repository does not answer"
            );
        }
        was_stalled = stalled.is_some();
    }
}
