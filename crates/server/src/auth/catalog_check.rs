//! Whether this node's copy of the catalog is current, so that it has the revocations of tokens.
//!
//! A node of a cluster looks tokens up in its own copy. If that hears nothing of the catalog's leader, it lacks
//! revocations, and nothing in it shows that. So while issued tokens are in use, one task asks the leader once a second
//! up to where the catalog goes, and waits until the copy is there ([`CatalogCheck`]). All requests share the result.
//! Nothing is asked while no issued token is in use.
//!
//! | what | age of the last successful check |
//! |---|---|
//! | a request begins | at most [`MAX_AGE`]; it waits for a newer check, [`WAIT_TIMEOUT`] at most |
//! | a request or a session goes on | at most [`MAX_AGE_UNDER_WAY`]: an election takes a second or two, and does not end all sessions |
//!
//! The root token does not depend on the catalog, and what needs `admin.read` alone is answered from the copy as it is:
//! whoever looks for the cause has to see the status. A node that is in no cluster has the only copy.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use esker_node::{Client, FairBudget, HostProblems, SharePolicy};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// How long ago the copy may have been current for a request to begin.
const MAX_AGE: Duration = Duration::from_secs(2);
/// The same for what is under way: a few elections, as for contact with the leader of a stream.
const MAX_AGE_UNDER_WAY: Duration = Duration::from_secs(5);
/// How long a request waits for a check before it is refused: two election timeouts.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that wait at one time. Each holds its head, some KiB; beyond it requests are refused at once. A token has
/// three times as many as are free at most.
const MAX_WAITING: usize = 8192;
/// The time from the beginning of one check to that of the next.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time of a check. One that has not succeeded by then proves nothing that is of use.
const CHECK_TIMEOUT: Duration = MAX_AGE_UNDER_WAY;
/// Pause after a check that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long checks go on after the last use of an issued token: whoever sends one request a second does not wait for
/// a check with each.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The code of the problem while tokens cannot be checked.
pub(crate) const PROBLEM: &str = "access_tokens_unchecked";

/// Waits until this node has applied what the catalog had committed at the time of the call; the reason if that could
/// not be learned.
type ReadCatalog =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// The checks of a node's copy of the catalog.
pub(crate) struct CatalogCheck {
    read: ReadCatalog,
    last: watch::Sender<Last>,
    uses: Mutex<Uses>,
    waiting: FairBudget,
    problems: HostProblems,
}

/// The outcome of checks.
#[derive(Clone, Debug, Default)]
struct Last {
    /// When the last successful one began: the copy has what was committed then.
    current_at: Option<Instant>,
    /// Why the last one failed, if it did.
    failure: Option<String>,
}

impl Last {
    fn is_within(&self, age: Duration) -> bool {
        self.current_at.is_some_and(|at| at.elapsed() <= age)
    }
}

/// Who needs checks.
#[derive(Debug, Default)]
struct Uses {
    /// Requests and sessions of issued tokens that are under way.
    under_way: usize,
    /// When the last one began or ended.
    used_at: Option<Instant>,
    /// Whether the task runs.
    is_checking: bool,
}

/// The use of an issued token: the copy is checked while one is held.
pub(crate) struct InUse(Arc<CatalogCheck>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut uses = self.0.uses();
        uses.under_way = uses.under_way.saturating_sub(1);
        uses.used_at = Some(Instant::now());
    }
}

impl CatalogCheck {
    /// Checks that `read` does. Within a runtime of tokio.
    pub(crate) fn new<F>(
        read: impl Fn() -> F + Send + Sync + 'static,
        problems: HostProblems,
    ) -> Arc<CatalogCheck>
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Arc::new(CatalogCheck {
            read: Box::new(move || Box::pin(read())),
            last: watch::Sender::default(),
            uses: Mutex::default(),
            waiting: FairBudget::new(MAX_WAITING, SharePolicy::OverFree),
            problems,
        })
    }

    /// Begins the use of an issued token.
    pub(super) fn begin(self: &Arc<Self>) -> InUse {
        self.use_now(1);
        InUse(self.clone())
    }

    /// Waits until the copy is known to have been current a moment ago. Returns whether it had to wait: what was looked
    /// up before may be outdated then.
    ///
    /// # Errors
    ///
    /// The reason why that is not known.
    pub(super) async fn wait(self: &Arc<Self>, client: Client) -> Result<bool, String> {
        self.use_now(0);
        if self.last.borrow().is_within(MAX_AGE) {
            return Ok(false);
        }
        let place = self.waiting.try_take(client, 1);
        let _place = place.map_err(|_| unchecked("too many requests wait for that"))?;
        let mut last = self.last.subscribe();
        // The outcome is looked at again when there is a new one.
        let current = last.wait_for(|last| last.is_within(MAX_AGE));
        match timeout(WAIT_TIMEOUT, current).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(_)) | Err(_) => Err(self.why()),
        }
    }

    /// Whether what is under way may go on. To be called while an [`InUse`] is held.
    ///
    /// # Errors
    ///
    /// The reason why it is not known whether the copy is current.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_current = self.last.borrow().is_within(MAX_AGE_UNDER_WAY);
        match is_current {
            true => Ok(()),
            false => Err(self.why()),
        }
    }

    /// The same where this process stood still, or may have: the check that was due meanwhile has its time first.
    ///
    /// # Errors
    ///
    /// The reason why it is not known whether the copy is current.
    pub(super) async fn wait_under_way(&self) -> Result<(), String> {
        // There are no more that wait than sessions.
        let mut last = self.last.subscribe();
        let current = last.wait_for(|last| last.is_within(MAX_AGE_UNDER_WAY));
        match timeout(WAIT_TIMEOUT, current).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.why()),
        }
    }

    fn why(&self) -> String {
        let last = self.last.borrow();
        unchecked(last.failure.as_deref().unwrap_or("it has not answered"))
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        // Nothing that holds it leaves it half changed.
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a use, and starts the task if it does not run.
    fn use_now(self: &Arc<Self>, under_way: usize) {
        let mut uses = self.uses();
        uses.under_way += under_way;
        uses.used_at = Some(Instant::now());
        if !std::mem::replace(&mut uses.is_checking, true) {
            tokio::spawn(run(Arc::downgrade(self)));
        }
    }

    /// Whether the task may end; notes that it does.
    fn is_idle(&self) -> bool {
        let mut uses = self.uses();
        let is_used =
            uses.under_way > 0 || uses.used_at.is_some_and(|at| at.elapsed() < IDLE_TIMEOUT);
        // The problem stays until it is known to be over.
        let is_idle = !is_used && self.last.borrow().failure.is_none();
        uses.is_checking = !is_idle;
        is_idle
    }

    /// Checks once.
    async fn round(&self, begun: Instant) {
        let read = timeout_at(begun + CHECK_TIMEOUT, (self.read)()).await;
        let read = read.unwrap_or_else(|_| Err("it has not answered in time".to_owned()));
        self.last.send_modify(|last| match read {
            Ok(()) => {
                *last = Last {
                    current_at: Some(begun),
                    failure: None,
                };
            }
            Err(why) => last.failure = Some(why),
        });
        let is_current = self.last.borrow().is_within(MAX_AGE);
        match is_current {
            true => self.problems.clear(PROBLEM),
            false => self.problems.set(
                PROBLEM,
                self.why(),
                "see why this node does not reach the leader of partition 0 (`esker cluster status`): the network \
                 between the nodes, or a majority that is not there; until then use another node, or the root token",
            ),
        }
    }
}

/// Why issued tokens are refused.
fn unchecked(why: &str) -> String {
    format!(
        "access tokens cannot be checked, because this node does not know whether it has all revocations: {why}"
    )
}

/// Checks while issued tokens are in use.
async fn run(check: Weak<CatalogCheck>) {
    loop {
        let begun = Instant::now();
        let Some(check) = check.upgrade() else {
            return;
        };
        check.round(begun).await;
        if check.is_idle() {
            return;
        }
        let has_failed = check.last.borrow().failure.is_some();
        drop(check);
        match has_failed {
            true => sleep(RETRY_PAUSE).await,
            false => sleep_until(begun + CHECK_INTERVAL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A catalog whose leader can be cut off, and that counts how often it was asked.
    #[derive(Clone, Default)]
    struct Catalog {
        is_cut_off: Arc<AtomicBool>,
        rounds: Arc<AtomicUsize>,
        problems: HostProblems,
    }

    impl Catalog {
        fn check(&self) -> Arc<CatalogCheck> {
            let catalog = self.clone();
            let read = move || {
                catalog.rounds.fetch_add(1, Ordering::SeqCst);
                let is_cut_off = catalog.is_cut_off.load(Ordering::SeqCst);
                async move {
                    match is_cut_off {
                        true => Err("no majority".to_owned()),
                        false => Ok(()),
                    }
                }
            };
            CatalogCheck::new(read, self.problems.clone())
        }

        fn rounds(&self) -> usize {
            self.rounds.load(Ordering::SeqCst)
        }

        fn cut_off(&self, is_cut_off: bool) {
            self.is_cut_off.store(is_cut_off, Ordering::SeqCst);
        }

        fn problems(&self) -> Vec<&'static str> {
            self.problems.list().iter().map(|it| it.code).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_requests_share_a_check_a_second_and_there_is_none_without_requests() {
        let catalog = Catalog::default();
        let check = catalog.check();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(catalog.rounds(), 0, "no token is in use");
        assert_eq!(
            check.wait(Client::default()).await,
            Ok(true),
            "the first one waits"
        );
        for _ in 0..1000 {
            let in_use = check.begin();
            assert_eq!(check.wait(Client::default()).await, Ok(false));
            check.check().unwrap();
            drop(in_use);
            sleep(Duration::from_millis(10)).await;
        }
        let rounds = catalog.rounds();
        assert!(
            (10..=12).contains(&rounds),
            "{rounds} rounds in ten seconds"
        );
        sleep(Duration::from_secs(60)).await;
        let left = catalog.rounds() - rounds;
        assert!(left <= 3, "{left} rounds without use");
        assert_eq!(
            check.wait(Client::default()).await,
            Ok(true),
            "what was known is too old"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_silent_is_checked_for_as_long_as_it_is_open() {
        let catalog = Catalog::default();
        let check = catalog.check();
        check.wait(Client::default()).await.unwrap();
        let session = check.begin();
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            check.check().unwrap();
        }
        drop(session);
        sleep(Duration::from_secs(60)).await;
        check.check().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_leader_of_the_catalog_requests_are_refused_and_sessions_end() {
        let catalog = Catalog::default();
        let check = catalog.check();
        let session = check.begin();
        check.wait(Client::default()).await.unwrap();
        assert!(catalog.problems().is_empty());
        catalog.cut_off(true);
        sleep(MAX_AGE + RETRY_PAUSE).await;
        let begun = Instant::now();
        let why = check.wait(Client::default()).await.unwrap_err();
        assert!(why.contains("no majority"), "{why}");
        assert!(begun.elapsed() <= WAIT_TIMEOUT, "it does not wait for ever");
        assert_eq!(catalog.problems(), [PROBLEM]);
        sleep(MAX_AGE_UNDER_WAY).await;
        check.check().unwrap_err();
        // The problem does not stay behind, also if no token is used any more.
        drop(session);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(catalog.problems(), [PROBLEM]);
        catalog.cut_off(false);
        sleep(CHECK_INTERVAL).await;
        assert!(catalog.problems().is_empty());
        assert_eq!(check.wait(Client::default()).await, Ok(false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_of_the_catalog_makes_requests_wait_and_ends_no_session() {
        let catalog = Catalog::default();
        let check = catalog.check();
        let _session = check.begin();
        check.wait(Client::default()).await.unwrap();
        catalog.cut_off(true);
        sleep(Duration::from_secs(3)).await;
        check.check().unwrap();
        let waits = tokio::spawn({
            let check = check.clone();
            async move { check.wait(Client::default()).await }
        });
        sleep(Duration::from_secs(1)).await;
        catalog.cut_off(false);
        assert_eq!(waits.await.unwrap(), Ok(true));
        check.check().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_never_answers_holds_nobody_for_ever() {
        let check = CatalogCheck::new(std::future::pending, HostProblems::default());
        let begun = Instant::now();
        check.wait(Client::default()).await.unwrap_err();
        assert!(begun.elapsed() <= WAIT_TIMEOUT);
    }
}
