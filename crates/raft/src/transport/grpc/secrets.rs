//! The secrets of the cluster: the one that this node presents, and those that it accepts.
//!
//! While a secret is replaced, nodes have the old and the new one for some time: all accept both, so the order in
//! which nodes begin to present the new one does not matter.

use std::sync::Arc;

use parking_lot::RwLock;

/// Clones share what was replaced.
#[derive(Clone)]
pub(super) struct Secrets {
    current: Arc<RwLock<Arc<[String]>>>,
}

impl Secrets {
    /// The first one is presented, all are accepted. Without any, all callers are accepted.
    pub fn new(secrets: Vec<String>) -> Secrets {
        Secrets {
            current: Arc::new(RwLock::new(secrets.into())),
        }
    }

    /// Whether callers need one.
    pub fn are_required(&self) -> bool {
        !self.current.read().is_empty()
    }

    /// Presents and accepts others from now on.
    pub fn replace(&self, secrets: Vec<String>) {
        *self.current.write() = secrets.into();
    }

    /// The one that this node presents.
    pub fn presented(&self) -> Option<String> {
        self.current.read().first().cloned()
    }

    /// Whether a caller that presents this is accepted. The comparison takes the same time wherever the first
    /// difference is, so that the duration reveals nothing of a secret.
    pub fn accept(&self, given: &[u8]) -> bool {
        let current = self.current.read().clone();
        let equals = |secret: &String| {
            let differs = |(a, b): (&u8, &u8)| a ^ b;
            let pairs = given.iter().zip(secret.as_bytes());
            given.len() == secret.len() && pairs.map(differs).fold(0, |a, b| a | b) == 0
        };
        // All are compared, whichever fits.
        current.is_empty() || current.iter().fold(false, |fits, it| fits | equals(it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_secrets_are_accepted_the_first_is_presented_and_one_that_is_gone_is_refused() {
        let texts = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let secrets = Secrets::new(texts(&["old"]));
        let shared = secrets.clone();
        assert!(secrets.accept(b"old") && !secrets.accept(b"new") && !secrets.accept(b""));
        shared.replace(texts(&["new", "old"]));
        assert!(secrets.accept(b"old") && secrets.accept(b"new") && !secrets.accept(b"ne"));
        assert_eq!(secrets.presented().as_deref(), Some("new"));
        shared.replace(texts(&["new"]));
        assert!(!secrets.accept(b"old") && secrets.accept(b"new"));
    }

    #[test]
    fn without_a_secret_all_are_accepted() {
        let secrets = Secrets::new(Vec::new());
        assert!(secrets.accept(b"") && secrets.accept(b"any") && !secrets.are_required());
        assert_eq!(secrets.presented(), None);
    }
}
