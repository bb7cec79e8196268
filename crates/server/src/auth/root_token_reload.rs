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
use crate::file_poll::{self, Follower, Outcome, Texts};

/// How often the file is read. Two readings have to agree, within two seconds.
const RELOAD_INTERVAL: Duration = Duration::from_millis(800);
/// The code of a file that cannot be used.
pub(crate) const NOT_RELOADED: &str = "root_token_not_reloaded";

static TEXTS: Texts = Texts {
    code: NOT_RELOADED,
    reloads: "esker_root_token_reloads_total",
    files: "The root token file",
    instead: "the token of before stays",
};

/// Reads the file until `stop`. `used` is the hash of its token at the start.
pub(crate) async fn follow(
    path: PathBuf,
    used: TokenHash,
    authority: Arc<Authority>,
    problems: HostProblems,
    stop: CancellationToken,
) {
    let follower = RootTokenFollower {
        path,
        used,
        authority,
        candidate: None,
        outcome: Outcome::new(&TEXTS, problems),
    };
    file_poll::follow(follower, RELOAD_INTERVAL, stop).await;
}

struct RootTokenFollower {
    path: PathBuf,
    /// The token that is in force.
    used: TokenHash,
    authority: Arc<Authority>,
    /// Another token, which the last reading found.
    candidate: Option<TokenHash>,
    outcome: Outcome,
}

impl Follower for RootTokenFollower {
    fn poll(&mut self) {
        let candidate = self.candidate.take();
        match root_token::read(&self.path) {
            Err(error) => self.outcome.failed(error.to_string()),
            Ok(found) if is_same(&found.hash, &self.used) => self.outcome.unchanged(),
            Ok(found) if candidate.is_some_and(|it| is_same(&it, &found.hash)) => {
                self.authority.replace_root(found.hash);
                self.used = found.hash;
                tracing::info!("The root token was replaced: the one of before is refused");
                if let Some(warning) = found.warning {
                    tracing::warn!("{warning}");
                }
                self.outcome.replaced();
            }
            Ok(found) => self.candidate = Some(found.hash),
        }
    }

    fn outcome(&mut self) -> &mut Outcome {
        &mut self.outcome
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
        follower: RootTokenFollower,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let follower = RootTokenFollower {
                path: dir.path().join("root-token"),
                used: token::hash(OLD),
                authority: Arc::new(authority(Some(OLD), &Issued::default())),
                candidate: None,
                outcome: Outcome::new(&TEXTS, HostProblems::default()),
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
            let problems = self.follower.outcome.problems.list();
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
