//! Ends what clients leave: a value of which no part is taken for a while is dropped or replaced.
//!
//! A [`Watchdog`] watches the values of one owner, such as a connection, with one task, which runs only while
//! there are any. A value is entered in a table and removed from it; neither starts a task nor sets a timer,
//! because most answers are taken at once, tens of thousands a second.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Two looks at the values are at least this share of the time limit apart, so that many values with different
/// deadlines do not cost a look each. A value ends later by that at most.
const LOOKS_PER_TIMEOUT: u32 = 8;

/// Watches the values of one owner, which have one time limit. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Watchdog(Arc<Shared>);

struct Shared {
    timeout: Duration,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    watched: HashMap<u64, Arc<dyn Watched>>,
    /// The task, while there is one.
    task: Option<AbortHandle>,
}

/// What is watched.
trait Watched: Send + Sync {
    /// Ends it if its time is over. Returns when it may be over at the earliest; `None` if there is nothing left
    /// to watch.
    fn look(&self, timeout: Duration, now: Instant) -> Option<Instant>;
}

/// An entry of the table, until this is dropped.
struct Watch {
    watchdog: Watchdog,
    number: u64,
}

impl Watchdog {
    /// A watchdog that ends values of which no part is taken for this long.
    pub(crate) fn new(timeout: Duration) -> Watchdog {
        Watchdog(Arc::new(Shared {
            timeout,
            table: Mutex::default(),
        }))
    }

    fn watch(&self, watched: Arc<dyn Watched>) -> Watch {
        let mut table = self.0.lock();
        let number = table.next;
        table.next += 1;
        table.watched.insert(number, watched);
        if table.task.is_none() {
            let task = tokio::spawn(run(Arc::downgrade(&self.0), self.0.timeout));
            table.task = Some(task.abort_handle());
        }
        Watch {
            watchdog: self.clone(),
            number,
        }
    }

    /// Whether its task runs.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        self.0.lock().task.is_some()
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("timeout", &self.0.timeout)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all values; returns when to look again, or `None` if there are none.
    fn look(&self) -> Option<Instant> {
        // Without the lock: a value that ends may be the owner of others.
        let all: Vec<_> = {
            let table = self.lock();
            let watched = table.watched.iter();
            watched.map(|(number, it)| (*number, it.clone())).collect()
        };
        let now = Instant::now();
        // A value that comes from now on has all of its time left.
        let mut next = now + self.timeout;
        let mut ended = Vec::new();
        for (number, watched) in all {
            match watched.look(self.timeout, now) {
                Some(deadline) => next = next.min(deadline),
                None => ended.push(number),
            }
        }
        let mut table = self.lock();
        for number in ended {
            table.watched.remove(&number);
        }
        if table.watched.is_empty() {
            table.task = None;
            return None;
        }
        Some(next.max(now + self.timeout / LOOKS_PER_TIMEOUT))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.lock().task.take() {
            task.abort();
        }
    }
}

async fn run(shared: Weak<Shared>, timeout: Duration) {
    let mut next = Instant::now() + timeout;
    loop {
        sleep_until(next).await;
        match shared.upgrade().and_then(|shared| shared.look()) {
            Some(later) => next = later,
            None => return,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let watched = self.watchdog.0.lock().watched.remove(&self.number);
        // Without the lock.
        drop(watched);
    }
}

/// A value that is dropped or replaced when its client has taken no part of it for a while.
pub(crate) struct Perishable<T> {
    slot: Arc<Mutex<Slot<T>>>,
    _watch: Watch,
}

/// The error of a value that was dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Left;

/// What becomes of a value that its client has left.
type AtStall<T> = Box<dyn FnOnce(T) -> Option<T> + Send>;

struct Slot<T> {
    value: Option<T>,
    at_stall: Option<AtStall<T>>,
    /// Whether the client waits for the value; otherwise the value waits for the client.
    awaited: bool,
    /// When the client last took part of it, or asked for more.
    used: Instant,
}

impl<T: Send + 'static> Perishable<T> {
    pub(crate) fn new(value: T, watchdog: &Watchdog) -> Perishable<T> {
        Perishable::with(value, watchdog, |_| None)
    }

    /// The same, but `at_stall` decides what is left of the value.
    pub(crate) fn with(
        value: T,
        watchdog: &Watchdog,
        at_stall: impl FnOnce(T) -> Option<T> + Send + 'static,
    ) -> Perishable<T> {
        let slot = Arc::new(Mutex::new(Slot {
            value: Some(value),
            at_stall: Some(Box::new(at_stall)),
            awaited: false,
            used: Instant::now(),
        }));
        Perishable {
            _watch: watchdog.watch(slot.clone()),
            slot,
        }
    }

    /// Takes the next part of the value.
    ///
    /// # Errors
    ///
    /// The value was dropped.
    pub(crate) fn poll_part<R>(
        &self,
        part: impl FnOnce(&mut T) -> Poll<R>,
    ) -> Poll<Result<R, Left>> {
        let mut slot = self.lock();
        let Some(value) = &mut slot.value else {
            return Poll::Ready(Err(Left));
        };
        let part = part(value);
        slot.awaited = part.is_pending();
        slot.used = Instant::now();
        part.map(Ok)
    }
}

impl<T> Perishable<T> {
    /// Accesses the value, if it is still there, without counting as a use of it.
    pub(crate) fn look<R>(&self, at: impl FnOnce(&T) -> R) -> Option<R> {
        self.lock().value.as_ref().map(at)
    }

    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Perishable<T> {
    fn drop(&mut self) {
        // The watchdog may look at it at this moment.
        self.lock().value.take();
    }
}

impl<T: Send> Watched for Mutex<Slot<T>> {
    fn look(&self, timeout: Duration, now: Instant) -> Option<Instant> {
        let mut slot = self.lock().unwrap_or_else(PoisonError::into_inner);
        slot.value.as_ref()?;
        let deadline = match slot.awaited {
            // The value waits for nobody, however long that takes.
            true => now + timeout,
            false => slot.used + timeout,
        };
        if deadline > now {
            return Some(deadline);
        }
        let at_stall = slot.at_stall.take()?;
        slot.value = slot.value.take().and_then(at_stall);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(8);

    fn take(value: &Perishable<&'static str>) -> Option<&'static str> {
        match value.poll_part(|value| Poll::Ready(*value)) {
            Poll::Ready(taken) => taken.ok(),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_ends_once_nothing_of_it_was_taken_for_the_time_limit_and_others_stay() {
        let watchdog = Watchdog::new(TIMEOUT);
        let left = Perishable::new("left", &watchdog);
        let replaced = Perishable::with("replaced", &watchdog, |_| Some("end"));
        let used = Perishable::new("used", &watchdog);
        let awaited = Perishable::new("awaited", &watchdog);
        assert!(awaited.poll_part(|_| Poll::<()>::Pending).is_pending());
        let second = Duration::from_secs(1);
        for _ in 0..TIMEOUT.as_secs() - 1 {
            tokio::time::sleep(second).await;
            assert_eq!(take(&used), Some("used"));
        }
        assert_eq!(left.look(|value| *value), Some("left"));
        // It may be noticed later by an eighth.
        for _ in 0..3 {
            tokio::time::sleep(second).await;
            assert_eq!(take(&used), Some("used"));
        }
        assert_eq!(take(&left), None);
        assert_eq!(take(&replaced), Some("end"));
        assert_eq!(awaited.look(|value| *value), Some("awaited"));
        tokio::time::sleep(4 * TIMEOUT).await;
        assert_eq!(take(&used), None);
        assert_eq!(take(&awaited), Some("awaited"), "the client waits for it");
        assert_eq!(take(&replaced), Some("end"), "it has ended already");
    }

    #[tokio::test(start_paused = true)]
    async fn one_task_watches_all_values_and_ends_when_there_are_none() {
        let watchdog = Watchdog::new(TIMEOUT);
        assert!(!watchdog.is_running());
        let before = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        for _ in 0..1000 {
            drop(Perishable::new("taken at once", &watchdog));
        }
        let all: Vec<_> = (0..1000).map(|_| Perishable::new("", &watchdog)).collect();
        let tasks = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        assert_eq!(tasks, before + 1);
        assert_eq!(watchdog.0.lock().watched.len(), 1000);
        drop(all);
        assert!(watchdog.0.lock().watched.is_empty());
        tokio::time::sleep(2 * TIMEOUT).await;
        assert!(!watchdog.is_running());
        // Later values are watched as well.
        let later = Perishable::new("later", &watchdog);
        tokio::time::sleep(2 * TIMEOUT).await;
        assert_eq!(take(&later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_ends_may_own_others_of_the_same_watchdog() {
        let watchdog = Watchdog::new(TIMEOUT);
        let inner = Perishable::new("inner", &watchdog);
        let outer = Perishable::new(inner, &watchdog);
        tokio::time::sleep(2 * TIMEOUT).await;
        assert!(outer.look(|_| ()).is_none());
    }
}
