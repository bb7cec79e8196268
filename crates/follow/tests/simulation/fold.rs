//! A fold to which nothing can happen unnoticed: it has seen each record, in order, once.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use esker_follow::{ApplyError, Fold, SequencedRecord};
use imbl::Vector;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::model::Seen;

/// How many folds are being written or restored now, on threads of their own.
///
/// The runtime's paused clock stands still for as long as such a thread is there, and the thread may
/// wait for a stream that waits for the clock: [`Busy::pump`] moves the clock on then. How far it moves
/// depends on the machine and not on the seed, so it moves only where a thread may really wait.
#[derive(Clone, Default)]
pub struct Busy(Arc<watch::Sender<usize>>);

struct Working<'a>(&'a Busy);

impl Busy {
    fn work(&self) -> Working<'_> {
        self.0.send_modify(|busy| *busy += 1);
        Working(self)
    }

    /// Runs for ever. Moves the clock on when a thread has worked for longer than `patience`.
    pub async fn pump(self, patience: Duration) {
        let mut busy = self.0.subscribe();
        loop {
            if busy.wait_for(|busy| *busy > 0).await.is_err() {
                return;
            }
            // The thread may have something to do.
            let begun = std::time::Instant::now();
            while begun.elapsed() < patience && *self.0.borrow() > 0 {
                std::thread::sleep(Duration::from_micros(20));
            }
            if *self.0.borrow() == 0 {
                continue;
            }
            tokio::time::advance(Duration::from_millis(5)).await;
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|busy| *busy -= 1);
    }
}

/// All records that were seen.
#[derive(Clone, Default)]
pub struct Chain {
    pub seen: Vector<Seen>,
    /// Bytes that a snapshot has besides, which nothing makes smaller.
    pub padding: usize,
    pub busy: Busy,
}

impl Chain {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.seen.len() as u64).to_be_bytes().to_vec();
        for (position, body) in &self.seen {
            bytes.extend_from_slice(&position.to_be_bytes());
            bytes.extend_from_slice(&body.to_be_bytes());
        }
        bytes
    }

    pub fn read(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut number = || {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)?;
            Ok::<_, io::Error>(u64::from_be_bytes(bytes))
        };
        self.seen = Vector::new();
        for _ in 0..number()? {
            self.seen.push_back((number()?, number()?));
        }
        io::copy(from, &mut io::sink())?;
        Ok(())
    }
}

impl Fold for Chain {
    fn name(&self) -> &str {
        "chain"
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        let seen = (record.seq_num, xxh3_64(&record.body));
        self.seen.push_back(seen);
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let _working = self.busy.work();
        out.write_all(&self.to_bytes())?;
        let mut padding = vec![0; self.padding];
        SmallRng::seed_from_u64(self.seen.len() as u64).fill_bytes(&mut padding);
        out.write_all(&padding)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let busy = self.busy.clone();
        let _working = busy.work();
        self.read(from)
    }
}
