//! Follows the file of the cluster's secret while the server runs.
//!
//! The file has one line, or two while a secret is replaced: a node presents the first and accepts both. To replace a
//! secret, the new one is added as the second line on all nodes, then made the first on all, and then the old one is
//! removed. At each moment every node accepts what any other presents, in whatever order the files are written.

use std::path::PathBuf;
use std::time::Duration;

use esker_node::{Cluster, HostProblems};
use tokio_util::sync::CancellationToken;

use super::cluster_options::read_secrets;
use crate::file_poll::{self, Follower, Outcome, Texts};

/// How often the file is read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// The code of a file that cannot be used.
pub(crate) const NOT_RELOADED: &str = "cluster_secret_not_reloaded";

static TEXTS: Texts = Texts {
    code: NOT_RELOADED,
    reloads: "esker_cluster_secret_reloads_total",
    files: "The file of `cluster.secret-file`",
    instead: "the secrets that were read before stay",
};

/// Reads the file until `stop`. `used` is what was in it at the start.
pub(super) async fn follow(
    path: PathBuf,
    used: Vec<String>,
    cluster: Cluster,
    problems: HostProblems,
    stop: CancellationToken,
) {
    let follower = SecretFollower {
        path,
        used,
        set: move |secret: String, others: Vec<String>| {
            cluster.set_secrets(secret, others);
        },
        outcome: Outcome::new(&TEXTS, problems),
    };
    file_poll::follow(follower, RELOAD_INTERVAL, stop).await;
}

struct SecretFollower<S> {
    path: PathBuf,
    used: Vec<String>,
    /// Uses others from now on: presents the first, and accepts all.
    set: S,
    outcome: Outcome,
}

impl<S> Follower for SecretFollower<S>
where
    S: FnMut(String, Vec<String>) + Send + 'static,
{
    fn poll(&mut self) {
        let found = match read_secrets(&self.path) {
            Ok(found) => found,
            Err(error) => return self.outcome.failed(error.to_string()),
        };
        if found == self.used {
            return self.outcome.unchanged();
        }
        let Some((first, others)) = found.split_first() else {
            return;
        };
        (self.set)(first.clone(), others.to_vec());
        tracing::info!(
            accepted = found.len(),
            "The secret of the cluster was read again: new connections between nodes use it"
        );
        self.used = found;
        self.outcome.replaced();
    }

    fn outcome(&mut self) -> &mut Outcome {
        &mut self.outcome
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn secrets_that_change_are_used_and_a_file_that_cannot_be_used_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let (old, new) = ("0".repeat(32), "1".repeat(32));
        write(&old, 0o600);
        let problems = HostProblems::default();
        let set = Arc::new(Mutex::new(Vec::new()));
        let noted = set.clone();
        let mut follower = SecretFollower {
            path: path.clone(),
            used: vec![old.clone()],
            set: move |first: String, others: Vec<String>| {
                noted.lock().unwrap().push((first, others));
            },
            outcome: Outcome::new(&TEXTS, problems.clone()),
        };
        follower.poll();
        assert!(set.lock().unwrap().is_empty() && problems.list().is_empty());
        write(&format!("{old}\n{new}\n"), 0o600);
        follower.poll();
        write(&format!("{new}\n{old}\n"), 0o600);
        follower.poll();
        for (text, mode, why) in [("short", 0o600, "at least 32"), (&*new, 0o644, "mode 644")] {
            write(text, mode);
            follower.poll();
            let problem = problems.list().pop().expect("a problem");
            assert_eq!(problem.code, NOT_RELOADED);
            assert!(problem.what.contains(why), "{problem:?}");
            assert!(!problem.what.contains(&new), "{problem:?}");
        }
        write(&new, 0o600);
        follower.poll();
        assert!(problems.list().is_empty());
        let expected = [
            (old.clone(), vec![new.clone()]),
            (new.clone(), vec![old]),
            (new, Vec::new()),
        ];
        assert_eq!(*set.lock().unwrap(), expected);
    }
}
