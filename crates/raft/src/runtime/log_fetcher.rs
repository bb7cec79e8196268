//! The threads that read old entries of the log for all groups of a node, so that neither engines nor the threads
//! that step them wait for the disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Reads at the same time. A read is up to 8 MiB, so a few use what a disk can do, and they bound the memory for what
/// was read and is not sent yet.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// See the [module's head](self).
#[derive(Clone)]
pub(super) struct LogFetcher {
    queue: Arc<Queue>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

#[derive(Default)]
struct Queue {
    /// Bounded by what the engines have under way: a few reads for each.
    jobs: Mutex<(VecDeque<Job>, bool)>,
    arrived: Condvar,
}

impl LogFetcher {
    pub fn start() -> std::io::Result<LogFetcher> {
        let fetcher = LogFetcher {
            queue: Arc::default(),
            threads: Arc::default(),
        };
        for number in 0..THREADS {
            let queue = fetcher.queue.clone();
            let thread = std::thread::Builder::new()
                .name(format!("log-fetch-{number}"))
                .spawn(move || run(&queue));
            match thread {
                Ok(thread) => fetcher.threads.lock().push(thread),
                Err(error) => {
                    fetcher.stop();
                    return Err(error);
                }
            }
        }
        Ok(fetcher)
    }

    /// Runs a read soon; drops it once the node stops.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.queue.jobs.lock();
        let (waiting, is_closed) = &mut *jobs;
        if !*is_closed {
            waiting.push_back(Box::new(job));
            self.queue.arrived.notify_one();
        }
    }

    /// Ends the threads, after the reads that are under way.
    pub fn stop(&self) {
        {
            let mut jobs = self.queue.jobs.lock();
            jobs.0.clear();
            jobs.1 = true;
        }
        self.queue.arrived.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(queue: &Queue) {
    loop {
        let job = {
            let mut jobs = queue.jobs.lock();
            loop {
                if let Some(job) = jobs.0.pop_front() {
                    break job;
                }
                if jobs.1 {
                    return;
                }
                queue.arrived.wait(&mut jobs);
            }
        };
        job();
    }
}
