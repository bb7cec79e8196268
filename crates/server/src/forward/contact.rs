//! The contact of this node with the leaders of partitions, for the answers that last.
//!
//! One task for each partition that has such answers looks for all of them, so an idle session costs no wake-ups. It
//! publishes who leads, and whether contact is lost: whether no round of ReadIndex has succeeded for
//! [`LOST_TIMEOUT`]. That a leader is known does not prove contact: a member without a vote keeps the leader that it had
//! last, and a leader that is cut off knows itself. The task ends when nobody waits for it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::peers::{Leader, Peers};

/// How often the leader of a partition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The time from one round of ReadIndex to the next.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// How long a node may be without a successful round until contact is lost: a few elections.
pub(super) const LOST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node that has lost its leadership has for its answers to what it got before.
const DEPOSED_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Contact {
    leader: Leader,
    is_lost: bool,
}

/// The partitions that somebody waits for.
pub(super) struct Contacts {
    peers: Arc<dyn Peers>,
    watched: Mutex<HashMap<u64, watch::Sender<Contact>>>,
}

impl Contacts {
    pub(super) fn new(peers: Arc<dyn Peers>) -> Arc<Contacts> {
        Arc::new(Contacts {
            peers,
            watched: Mutex::default(),
        })
    }

    /// Is done when this node has no contact with a majority of the partition. To be called when there is contact.
    pub(super) fn lost(self: &Arc<Self>, partition: u64) -> impl Future<Output = ()> + use<> {
        let mut contact = self.watch(partition);
        async move {
            if contact.wait_for(|contact| contact.is_lost).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Is done when a node has not been the leader of a partition for [`DEPOSED_TIMEOUT`], as far as this node knows. If
    /// it was named by another node, this one may not know of it yet.
    pub(super) fn deposed(
        self: &Arc<Self>,
        partition: u64,
        node: u64,
    ) -> impl Future<Output = ()> + use<> {
        let known = self.peers.leader(partition);
        let mut contact = self.watch(partition);
        let leads =
            move |contact: &Contact| contact.leader == Leader::At(node) || contact.leader == known;
        async move {
            loop {
                if contact.wait_for(|contact| !leads(contact)).await.is_err() {
                    std::future::pending().await
                }
                if timeout(DEPOSED_TIMEOUT, contact.wait_for(leads))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    }

    fn watch(self: &Arc<Self>, partition: u64) -> watch::Receiver<Contact> {
        let mut watched = self.watched();
        if let Some(sender) = watched.get(&partition) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Contact {
            leader: self.peers.leader(partition),
            is_lost: false,
        });
        watched.insert(partition, sender);
        tokio::spawn(self.clone().look(partition));
        receiver
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<u64, watch::Sender<Contact>>> {
        // Nothing that holds it leaves it half changed.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the contact with a partition for as long as somebody waits for it.
    async fn look(self: Arc<Self>, partition: u64) {
        let mut confirmed = Instant::now();
        let mut round = self.clone().round(partition);
        loop {
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                succeeded = &mut round => {
                    // What was committed when the round began is known here, and nothing later.
                    confirmed = succeeded.unwrap_or(confirmed);
                    round = self.clone().round(partition);
                }
            }
            let contact = Contact {
                leader: self.peers.leader(partition),
                is_lost: confirmed.elapsed() >= LOST_TIMEOUT,
            };
            let mut watched = self.watched();
            let Some(sender) = watched.get(&partition) else {
                return;
            };
            // With the lock: whoever comes now finds the task, or begins one.
            if sender.receiver_count() == 0 {
                watched.remove(&partition);
                return;
            }
            sender.send_if_modified(|known| std::mem::replace(known, contact) != contact);
        }
    }

    /// A round of ReadIndex after a pause; when it began, if it succeeded.
    fn round(
        self: Arc<Self>,
        partition: u64,
    ) -> Pin<Box<dyn Future<Output = Option<Instant>> + Send>> {
        Box::pin(async move {
            sleep(ROUND_INTERVAL).await;
            let begun = Instant::now();
            // A removed node may be in contact until it has left the group.
            if self.peers.refusal().is_some() || !self.peers.follows(partition) {
                return None;
            }
            let read = timeout(LOST_TIMEOUT, self.peers.read_index(partition)).await;
            matches!(read, Ok(Ok(()))).then_some(begun)
        })
    }
}
