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
pub(super) struct LogFetcher(Arc<Running>);

/// The threads end with the last one who has this.
struct Running {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    /// Bounded by what the engines have under way: a few reads for each.
    jobs: Mutex<(VecDeque<Job>, bool)>,
    arrived: Condvar,
}

impl LogFetcher {
    pub fn start() -> std::io::Result<LogFetcher> {
        let fetcher = LogFetcher(Arc::new(Running {
            queue: Arc::default(),
            threads: Mutex::default(),
        }));
        for number in 0..THREADS {
            let queue = fetcher.0.queue.clone();
            let thread = std::thread::Builder::new()
                .name(format!("log-fetch-{number}"))
                .spawn(move || run(&queue));
            match thread {
                Ok(thread) => fetcher.0.threads.lock().push(thread),
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
        let queue = &self.0.queue;
        let mut jobs = queue.jobs.lock();
        let (waiting, is_closed) = &mut *jobs;
        if !*is_closed {
            waiting.push_back(Box::new(job));
            queue.arrived.notify_one();
        }
    }

    /// Ends the threads, after the reads that are under way.
    pub fn stop(&self) {
        self.0.queue.close();
        let threads = std::mem::take(&mut *self.0.threads.lock());
        for thread in threads {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn close(&self) {
        let dropped = {
            let mut jobs = self.jobs.lock();
            jobs.1 = true;
            std::mem::take(&mut jobs.0)
        };
        self.arrived.notify_all();
        drop(dropped);
    }
}

impl Drop for Running {
    /// Without waiting for the threads: one of them may have been the last that had this.
    fn drop(&mut self) {
        self.queue.close();
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
