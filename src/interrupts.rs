//! Ctrl-C and requests to terminate, in every command: the first ends the work in order and is reported, the
//! second ends the process at once.
//!
//! A dedicated thread receives the signals, so that none is lost whatever the command does. A command takes
//! each of them where it waits ([`Interrupts::next`], [`run`]). If it does not take one in time, because it
//! is blocked outside of such a wait (standard output that nobody reads, a FIFO without a reader), the thread
//! reports the end and ends the process.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit;
use crate::failure::Failure;

/// How long a command may take to take the first signal: longer than any step between two waits.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to take a later one.
const LATER_TIMEOUT: Duration = Duration::from_millis(300);
/// How long it may take to report its end after it has taken the second.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for the report of the thread: standard output may have no reader.
const REPORT_TIMEOUT: Duration = Duration::from_millis(300);

/// The error code of a command that a signal ended.
const INTERRUPTED: &str = "interrupted";

/// Signals that arrived.
static CAME: AtomicU32 = AtomicU32::new(0);
/// Signals that the command has taken.
static TAKEN: AtomicU32 = AtomicU32::new(0);
/// Listeners, nested: the innermost takes the next signal.
static LISTENERS: AtomicU32 = AtomicU32::new(0);
/// Wakes listeners that wait for a signal.
static NEWS: OnceLock<watch::Sender<()>> = OnceLock::new();
/// What an interruption leaves behind, for the report of the thread.
static LEFT: Mutex<String> = Mutex::new(String::new());
/// Whether the report is also printed as JSON.
static WANTS_JSON: AtomicBool = AtomicBool::new(false);

/// Sets whether failures are also printed as JSON.
pub fn report_as_json(wants_json: bool) {
    WANTS_JSON.store(wants_json, Ordering::Relaxed);
}

/// Runs a command to its end, or until it is interrupted. Then it fails, and the message has `left`, which
/// describes what the interruption leaves behind.
///
/// Background work is not waited for.
pub fn run(
    runtime: Runtime,
    left: &str,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    run_and_part(runtime, left, Duration::ZERO, work)
}

/// The same as [`run`]. If the command `follows`, it runs until it is interrupted, and the interruption
/// counts as success.
pub fn run_following(
    runtime: Runtime,
    left: &str,
    follows: bool,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    match run(runtime, left, work) {
        Err(failure) if follows && failure.code == INTERRUPTED => Ok(()),
        result => result,
    }
}

/// The same as [`run`], but waits up to `parting` for background work at the end.
pub fn run_and_part(
    runtime: Runtime,
    left: &str,
    parting: Duration,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen(left)?;
    let result = runtime.block_on(async {
        tokio::select! {
            // The command is polled first: a signal that it takes itself is not taken here.
            biased;
            done = work => done,
            () = interrupts.next() => Err(interrupted(left)),
        }
    });
    runtime.shutdown_timeout(parting);
    result
}

/// The failure of a command that a signal ended.
pub fn interrupted(left: &str) -> Failure {
    Failure::wrong(INTERRUPTED, format!("interrupted; {left}"))
}

/// A listener for signals that were not taken yet. Listeners nest: the one that was made last takes the next
/// signal, and has to be dropped first.
pub struct Interrupts {
    depth: u32,
    news: watch::Receiver<()>,
    /// The value of `LEFT` for the listener around this one.
    left_around: String,
}

impl Interrupts {
    /// Starts to listen. From now on, signals no longer end the process by default.
    ///
    /// # Errors
    ///
    /// `io` if they cannot be listened for.
    pub fn listen(left: &str) -> Result<Interrupts, Failure> {
        if NEWS.get().is_none() {
            spawn()?;
        }
        let news = NEWS.get_or_init(|| watch::Sender::new(())).subscribe();
        let mut current = LEFT.lock().unwrap_or_else(|e| e.into_inner());
        Ok(Interrupts {
            depth: LISTENERS.fetch_add(1, Ordering::SeqCst) + 1,
            news,
            left_around: std::mem::replace(&mut current, left.to_owned()),
        })
    }

    /// Waits for the next signal, and takes it. Cancel safe.
    pub async fn next(&mut self) {
        loop {
            let (came, taken) = (CAME.load(Ordering::SeqCst), TAKEN.load(Ordering::SeqCst));
            let is_innermost = LISTENERS.load(Ordering::SeqCst) == self.depth;
            if came > taken && is_innermost {
                let took =
                    TAKEN.compare_exchange(taken, taken + 1, Ordering::SeqCst, Ordering::SeqCst);
                if took.is_ok() {
                    return;
                }
            } else if self.news.changed().await.is_err() {
                // The thread never ends by itself.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        let mut left = LEFT.lock().unwrap_or_else(|e| e.into_inner());
        *left = std::mem::take(&mut self.left_around);
        drop(left);
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
        // The listener around this one may take a signal that this one did not.
        wake();
    }
}

fn wake() {
    if let Some(news) = NEWS.get() {
        news.send_replace(());
    }
}

/// Starts the thread.
fn spawn() -> Result<(), Failure> {
    let cannot = |e| Failure::wrong("io", format!("listening for signals: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cannot)?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(cannot)?,
            signal(SignalKind::terminate()).map_err(cannot)?,
        )
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let spawned = thread.spawn(move || {
        runtime.block_on(async {
            let mut deadline: Option<tokio::time::Instant> = None;
            let mut reports = false;
            loop {
                let overdue = async {
                    match deadline {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    () = overdue => {
                        let came = CAME.load(Ordering::SeqCst);
                        if reports || TAKEN.load(Ordering::SeqCst) < came {
                            end();
                        }
                        // After a second signal the process has to end.
                        reports = came > 1;
                        deadline = reports.then(|| tokio::time::Instant::now() + END_TIMEOUT);
                        continue;
                    }
                }
                let came = CAME.fetch_add(1, Ordering::SeqCst) + 1;
                wake();
                let timeout = if came == 1 {
                    FIRST_TIMEOUT
                } else {
                    LATER_TIMEOUT
                };
                let at = tokio::time::Instant::now() + timeout;
                // A later signal never extends the deadline.
                deadline = Some(deadline.map_or(at, |earlier| earlier.min(at)));
            }
        });
    });
    spawned.map(drop).map_err(cannot)?;
    Ok(())
}

/// Reports the interruption within the time limit, if possible, and ends the process.
fn end() -> ! {
    let (reported, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let left = LEFT.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let wants_json = WANTS_JSON.load(Ordering::Relaxed);
        let _: u8 = exit::report(Err(interrupted(&left)), wants_json);
        let _ = reported.send(());
    });
    let _ = wait.recv_timeout(REPORT_TIMEOUT);
    std::process::exit(1)
}
