//! Follows the file of the root token while the server runs: another token in it is used once two readings
//! in a row have found it, so that a file that is being written is not used.
//!
//! A file that is missing, cannot be read, is open to others or has no token changes nothing: the token of
//! before stays, and the server never runs without one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use esker_node::{HostProblems, TokenHash};
use tokio_util::sync::CancellationToken;

use super::authority::Authority;
use super::root_token;
use super::token::is_same;
use crate::file_poll;

/// How often the file is read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// The code of a file that cannot be used.
pub(crate) const NOT_RELOADED: &str = "root_token_not_reloaded";
/// Changes of the file, by `result`.
const RELOADS: &str = "esker_root_token_reloads_total";

/// Reads the file until `stop`. `used` is the hash of its token at the start.
pub(crate) async fn follow(
    path: PathBuf,
    used: TokenHash,
    authority: Arc<Authority>,
    problems: HostProblems,
    stop: CancellationToken,
) {
    for result in ["ok", "failed"] {
        metrics::counter!(RELOADS, "result" => result).increment(0);
    }
    let mut follower = Follower {
        path,
        used,
        authority,
        problems: problems.clone(),
        candidate: None,
        failure: None,
    };
    while tokio::time::timeout(RELOAD_INTERVAL, stop.cancelled())
        .await
        .is_err()
    {
        let on_timeout = || {
            let what = "the root token file cannot be read: its file system does not answer";
            tracing::warn!("{what}; the token that was read before stays");
            let remedy = "look at that file system; the file is read again by itself";
            problems.set(NOT_RELOADED, what.to_owned(), remedy);
        };
        let Some(reading) = file_poll::read(follower, Follower::poll, on_timeout).await else {
            return;
        };
        follower = reading.reader;
        if reading.hung {
            // What was wrong besides is reported again by the next reading.
            problems.clear(NOT_RELOADED);
            follower.failure = None;
        }
    }
}

struct Follower {
    path: PathBuf,
    /// The token that is in force.
    used: TokenHash,
    authority: Arc<Authority>,
    problems: HostProblems,
    /// Another token, which the last reading found.
    candidate: Option<TokenHash>,
    /// Why the file cannot be used, so that it is logged once.
    failure: Option<String>,
}

impl Follower {
    /// Reads the file once.
    fn poll(&mut self) {
        let candidate = self.candidate.take();
        match root_token::read(&self.path) {
            Err(error) => self.fail(error.to_string()),
            Ok(found) if is_same(&found.hash, &self.used) => self.succeed(),
            Ok(found) if candidate.is_some_and(|it| is_same(&it, &found.hash)) => {
                self.authority.replace_root(found.hash);
                self.used = found.hash;
                tracing::info!("The root token was replaced: the one of before is refused");
                if let Some(warning) = found.warning {
                    tracing::warn!("{warning}");
                }
                metrics::counter!(RELOADS, "result" => "ok").increment(1);
                self.succeed();
            }
            Ok(found) => self.candidate = Some(found.hash),
        }
    }

    fn succeed(&mut self) {
        if self.failure.take().is_some() {
            tracing::info!("The root token file can be used again");
            self.problems.clear(NOT_RELOADED);
        }
    }

    fn fail(&mut self, why: String) {
        if self.failure.as_ref() == Some(&why) {
            return;
        }
        tracing::warn!(error = %why, "The root token file cannot be used: the token of before stays");
        metrics::counter!(RELOADS, "result" => "failed").increment(1);
        self.problems.set(
            NOT_RELOADED,
            format!("the root token that was read before stays: {why}"),
            "correct the file; it is read again by itself",
        );
        self.failure = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::authority::tests::{Issued, authority};
    use crate::auth::{Principal, token};

    const OLD: &str = "the-old-root-token-of-this-test-alone";
    const NEW: &str = "the-new-root-token-of-this-test-alone";

    /// Makes the file unfit.
    type Spoil = Box<dyn Fn(&World)>;

    struct World {
        dir: tempfile::TempDir,
        follower: Follower,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let follower = Follower {
                path: dir.path().join("root-token"),
                used: token::hash(OLD),
                authority: Arc::new(authority(Some(OLD), &Issued::default())),
                problems: HostProblems::default(),
                candidate: None,
                failure: None,
            };
            let world = World { dir, follower };
            world.write(OLD, 0o600);
            world
        }

        fn write(&self, text: &str, mode: u32) {
            fs::write(&self.follower.path, text).unwrap();
            fs::set_permissions(&self.follower.path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn is_root(&self, text: &str) -> bool {
            let root = Principal::Root(token::hash(text));
            self.follower.authority.check(&root).is_ok()
        }

        fn problem(&self) -> Option<String> {
            let problems = self.follower.problems.list();
            problems.into_iter().next().map(|problem| {
                assert_eq!(problem.code, NOT_RELOADED);
                problem.what
            })
        }
    }

    #[test]
    fn a_new_token_is_used_when_two_readings_agree() {
        let mut world = World::new();
        world.write(&NEW[..33], 0o600);
        world.follower.poll();
        world.write(NEW, 0o600);
        world.follower.poll();
        assert!(
            world.is_root(OLD),
            "what was half written is not used, nor what was found once"
        );
        world.follower.poll();
        assert!(world.is_root(NEW) && !world.is_root(OLD) && !world.is_root(&NEW[..33]));
        assert_eq!(world.problem(), None);
        // Nothing has changed since.
        world.follower.poll();
        assert!(world.is_root(NEW) && world.follower.candidate.is_none());
    }

    #[test]
    fn a_file_that_cannot_be_used_keeps_the_token_and_is_a_problem_until_it_can() {
        let mut world = World::new();
        let directory = world.dir.path().to_owned();
        let cases: [(&str, Spoil); 5] = [
            (
                "does not exist",
                Box::new(|it| fs::remove_file(&it.follower.path).unwrap()),
            ),
            ("is empty", Box::new(|it| it.write("", 0o600))),
            (
                "12 characters",
                Box::new(|it| it.write("short-secret", 0o600)),
            ),
            ("mode 644", Box::new(|it| it.write(NEW, 0o644))),
            (
                "opening root token file",
                // A link to itself cannot be opened, by nobody.
                Box::new(move |it| {
                    fs::remove_file(&it.follower.path).unwrap();
                    let link = directory.join("root-token");
                    std::os::unix::fs::symlink(&link, &link).unwrap();
                }),
            ),
        ];
        for (says, spoil) in cases {
            spoil(&world);
            for _ in 0..3 {
                world.follower.poll();
                let problem = world.problem().unwrap();
                assert!(problem.contains(says), "{says}: {problem}");
                assert!(!problem.contains("secret"), "{problem}");
                assert!(world.is_root(OLD) && !world.is_root(NEW), "{says}");
                assert!(world.follower.authority.is_on(), "{says}");
            }
            let _ = fs::remove_file(&world.follower.path);
            world.write(OLD, 0o600);
            world.follower.poll();
            assert_eq!(world.problem(), None, "{says}");
        }
    }

    #[test]
    fn a_reading_that_fails_between_two_that_agree_makes_them_none() {
        let mut world = World::new();
        world.write(NEW, 0o600);
        world.follower.poll();
        world.write("", 0o600);
        world.follower.poll();
        world.write(NEW, 0o600);
        world.follower.poll();
        assert!(world.is_root(OLD));
        world.follower.poll();
        assert!(world.is_root(NEW));
    }
}
