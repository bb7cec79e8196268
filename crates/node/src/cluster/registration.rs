//! What the cluster answers to this node's registration, and for how long it has not taken it.
//!
//! A node is registered when the catalog, as far as this node has it, has the node as it is. It registers
//!
//! - while it is not registered,
//! - while the catalog has had no leader for some seconds: the others may have removed this node, and tell that only when
//!   they are asked,
//! - and while the cluster refuses it: only another answer lifts a refusal.
//!
//! A node that is refused serves nothing in the name of the cluster. So of a node that the catalog has, as it is or as it
//! was before it started, only a refusal by a node of its own cluster counts: at an address that the catalog or `cluster.join` has, another cluster may be by now, or a node
//! with another secret, and what those answer is no reason to leave.

use std::time::{Duration, Instant};

use esker_raft::transport::grpc::CallError;

/// Without a leader of the catalog for so long, this node registers again. Longer than an election takes.
const LEADERLESS: Duration = Duration::from_secs(3);
/// A node that is not registered for so long has a problem: longer than an election and a few attempts take.
const PROBLEM_AFTER: Duration = Duration::from_secs(20);
/// How often that is logged as long as it stays.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// Whether a node registers now. `leaderless` is for how long the catalog has had no leader that this node knows of.
pub(super) fn is_due(is_registered: bool, is_refused: bool, leaderless: Duration) -> bool {
    !is_registered || is_refused || leaderless >= LEADERLESS
}

/// Of two answers the one that counts for more: a refusal by the cluster, then one by a stranger. Of a node that was
/// removed, most others may be gone.
pub(super) fn weightier(before: CallError, now: CallError) -> CallError {
    let weight = |error: &CallError| match error {
        CallError::Unavailable(_) => 0,
        CallError::Stranger(_) => 1,
        CallError::Refused(_) => 2,
    };
    match weight(&before) > weight(&now) {
        true => before,
        false => now,
    }
}

/// What is known of this node's registration.
#[derive(Debug, Default)]
pub(super) struct Registration {
    refused: Option<String>,
    missing: Option<Missing>,
}

/// The catalog does not have this node as it is.
#[derive(Debug)]
struct Missing {
    since: Instant,
    why: String,
    logged: Option<Instant>,
}

impl Registration {
    /// Takes the last answer. `is_known` is whether the catalog has this node.
    pub fn note_answer(&mut self, answer: &Result<(), CallError>, is_known: bool) {
        let refusal = match answer {
            Err(CallError::Refused(why)) => Some(why),
            // A node that registers for the first time has nobody else to tell it what is wrong.
            Err(CallError::Stranger(why)) if !is_known => Some(why),
            _ => None,
        };
        if let Some(why) = refusal
            && self.refused.as_ref() != Some(why)
        {
            tracing::error!(why, "the cluster does not take this node");
        }
        self.refused = refusal.cloned();
        if let (Some(missing), Err(why)) = (&mut self.missing, answer) {
            missing.why = why.to_string();
        }
    }

    /// Takes whether this node is registered. Returns why it is not, if that is to be logged.
    pub fn note_registered(&mut self, now: Instant, is_registered: bool) -> Option<String> {
        if is_registered {
            self.missing = None;
            return None;
        }
        let missing = self.missing.get_or_insert_with(|| Missing {
            since: now,
            why: "no node has answered yet".to_owned(),
            logged: None,
        });
        let is_due = match missing.logged {
            None => now.saturating_duration_since(missing.since) >= PROBLEM_AFTER,
            Some(at) => now.saturating_duration_since(at) >= WARN_INTERVAL,
        };
        is_due.then(|| {
            missing.logged = Some(now);
            missing.why.clone()
        })
    }

    /// Why the cluster does not take this node, if that was the last answer.
    pub fn refusal(&self) -> Option<&String> {
        self.refused.as_ref()
    }

    /// Why this node has not been registered for long, if it has not.
    pub fn problem(&self, now: Instant) -> Option<String> {
        let missing = self.missing.as_ref()?;
        let waited = now.saturating_duration_since(missing.since);
        (waited >= PROBLEM_AFTER).then(|| missing.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(why: &str) -> Result<(), CallError> {
        Err(CallError::Refused(why.to_owned()))
    }

    fn stranger() -> Result<(), CallError> {
        Err(CallError::Stranger("another secret".to_owned()))
    }

    #[test]
    fn a_node_that_is_refused_asks_again_also_when_there_is_a_leader() {
        let leads = Duration::ZERO;
        assert!(!is_due(true, false, leads));
        assert!(is_due(true, true, leads), "only an answer lifts a refusal");
        assert!(is_due(false, false, leads));
        assert!(is_due(true, false, LEADERLESS));
        let mut registration = Registration::default();
        registration.note_answer(&refused("was removed"), true);
        assert_eq!(
            registration.refusal().map(String::as_str),
            Some("was removed")
        );
        registration.note_answer(&Ok(()), true);
        assert_eq!(registration.refusal(), None);
    }

    #[test]
    fn a_node_that_the_catalog_has_is_refused_by_its_own_cluster_alone() {
        let mut registration = Registration::default();
        registration.note_answer(&stranger(), true);
        assert_eq!(registration.refusal(), None);
        registration.note_answer(&stranger(), false);
        assert!(registration.refusal().is_some(), "it may have a wrong one");
        registration.note_answer(&stranger(), true);
        assert_eq!(registration.refusal(), None);
    }

    #[test]
    fn a_refusal_by_the_cluster_counts_for_more_than_any_other_answer() {
        let of = |answer: Result<(), CallError>| answer.unwrap_err();
        let away = || CallError::Unavailable("away".to_owned());
        let removed = || of(refused("removed"));
        for other in [away(), of(stranger())] {
            assert_eq!(weightier(removed(), other.clone()), removed());
            assert_eq!(weightier(other, removed()), removed());
        }
        assert_eq!(weightier(of(stranger()), away()), of(stranger()));
        assert_eq!(weightier(away(), of(stranger())), of(stranger()));
        let later = of(refused("by the last one"));
        assert_eq!(weightier(removed(), later.clone()), later);
    }

    #[test]
    fn a_node_that_is_not_registered_for_long_has_a_problem_and_logs_it_again_and_again() {
        let (mut registration, begun) = (Registration::default(), Instant::now());
        assert_eq!(registration.note_registered(begun, false), None);
        let taken = Err(CallError::Unavailable(
            "n2 has this address already".to_owned(),
        ));
        registration.note_answer(&taken, false);
        assert_eq!(registration.refusal(), None);
        let soon = begun + PROBLEM_AFTER / 2;
        assert_eq!(registration.note_registered(soon, false), None);
        assert_eq!(registration.problem(soon), None, "it may pass");
        let late = begun + PROBLEM_AFTER;
        let why = Some("n2 has this address already".to_owned());
        assert_eq!(registration.note_registered(late, false), why);
        assert_eq!(registration.problem(late), why);
        let between = late + WARN_INTERVAL / 2;
        assert_eq!(registration.note_registered(between, false), None);
        let again = late + WARN_INTERVAL;
        assert_eq!(registration.note_registered(again, false), why);
        assert_eq!(registration.note_registered(again, true), None);
        assert_eq!(registration.problem(again + PROBLEM_AFTER), None);
    }
}
