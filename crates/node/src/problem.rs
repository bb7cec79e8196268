//! What is wrong with a node, or with the program around it: both are in the node's status.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A stable code.
    pub code: &'static str,
    /// The partitions that it affects; empty if it affects the node.
    pub partitions: Vec<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Codes of problems that are advice: they can wait. Some are there from the first day.
pub const ADVICE: [&str; 9] = [
    "repository_on_this_disk",
    "one_snapshot_retained",
    "unproven",
    "abandoned_snapshots",
    "snapshot_damaged",
    "snapshot_from_future",
    "restarted",
    "tls_certificate_expires_soon",
    "peer_certificate_expires_soon",
];

impl Problem {
    /// Whether it is advice, which can wait. Any other problem needs action.
    pub fn is_advice(&self) -> bool {
        ADVICE.contains(&self.code)
    }
}

/// Problems of the program around the node, such as a certificate that ends; one for each code. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct HostProblems {
    by_code: Arc<Mutex<BTreeMap<&'static str, Problem>>>,
}

impl HostProblems {
    /// Sets the problem with this code; replaces an earlier one.
    pub fn set(&self, code: &'static str, what: String, remedy: &'static str) {
        let problem = Problem {
            code,
            partitions: Vec::new(),
            what,
            remedy,
        };
        self.by_code.lock().insert(code, problem);
    }

    /// Removes the problem with this code, if there is one.
    pub fn clear(&self, code: &str) {
        self.by_code.lock().remove(code);
    }

    /// All of them.
    pub fn list(&self) -> Vec<Problem> {
        self.by_code.lock().values().cloned().collect()
    }
}
