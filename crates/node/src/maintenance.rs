//! The threads of periodic maintenance.
//!
//! There are two: one flushes the database and bounds the log ([`crate::log_keeper`]); the other proposes
//! what has become due ([`crate::retention`]).

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::core::Inner;
use crate::log_keeper::keep_log_short;
use crate::retention::look_after_due;
use crate::signal::Signal;

/// The threads.
pub(crate) struct Maintenance {
    log_keeper: Arc<Signal>,
    retention: Arc<Signal>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Maintenance {
    pub fn start(inner: &Arc<Inner>) -> std::io::Result<Maintenance> {
        let log_keeper = inner.space.log_keeper.clone();
        let retention = Arc::new(Signal::default());
        let log = std::thread::Builder::new()
            .name("log-upkeep".to_owned())
            .spawn({
                let (inner, signal) = (Arc::downgrade(inner), log_keeper.clone());
                move || keep_log_short(&inner, &signal)
            })?;
        let due = std::thread::Builder::new()
            .name("retention".to_owned())
            .spawn({
                let interval = inner.options.retention_interval;
                let (inner, signal) = (Arc::downgrade(inner), retention.clone());
                move || look_after_due(&inner, &signal, interval)
            })?;
        Ok(Maintenance {
            log_keeper,
            retention,
            threads: Mutex::new(vec![log, due]),
        })
    }

    pub fn wake(&self) {
        self.log_keeper.wake();
        self.retention.wake();
    }

    /// Requests the end of the threads. They may wait for answers until the groups have stopped.
    pub fn ask_to_stop(&self) {
        self.log_keeper.stop();
        self.retention.stop();
    }

    /// Waits until they have ended.
    pub fn join(&self) {
        for thread in self.threads.lock().drain(..) {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
