//! Follows the files while the server runs: new ones are used once they fit each other, and a certificate
//! that ends is reported.
//!
//! The contents are compared, not the times of the files: copies keep times, and links of Kubernetes'
//! secrets change without the file.

use std::time::Duration;

use esker_node::HostProblems;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::{CertificateInfo, Tls, TlsError, self_signed};
use crate::file_poll::{self, Follower, Outcome, Texts};

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// From when on the end of a certificate is a problem in the status.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often the end of a certificate is logged.
const WARN_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// The code of a certificate that ends soon.
pub(super) const EXPIRES_SOON: &str = "tls_certificate_expires_soon";
/// The code of a certificate that clients refuse because of the time.
pub(super) const EXPIRED: &str = "tls_certificate_expired";
/// The code of files that cannot be used.
pub(super) const NOT_RELOADED: &str = "tls_not_reloaded";

/// When a certificate is valid, at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    NotYet,
    Valid,
    EndsSoon,
    Expired,
}

impl Validity {
    /// Of a certificate at a time.
    pub fn of(info: &CertificateInfo, now: OffsetDateTime) -> Validity {
        if now > info.not_after {
            Validity::Expired
        } else if now < info.not_before {
            Validity::NotYet
        } else if info.not_after - now < WARN_BEFORE {
            Validity::EndsSoon
        } else {
            Validity::Valid
        }
    }

    fn is_accepted(self) -> bool {
        matches!(self, Validity::Valid | Validity::EndsSoon)
    }
}

static TEXTS: Texts = Texts {
    code: NOT_RELOADED,
    reloads: "esker_tls_reloads_total",
    files: "The TLS files",
    instead: "new connections use what was read before",
};

/// Reads the files until `stop`.
pub(super) async fn follow(
    tls: Tls,
    names: Vec<String>,
    problems: HostProblems,
    stop: CancellationToken,
) {
    let mut follower = TlsFollower::new(tls, names, problems);
    follower.report_validity(OffsetDateTime::now_utc());
    file_poll::follow(follower, RELOAD_INTERVAL, stop).await;
}

/// What the files hold, if that is something else than what is served.
///
/// # Errors
///
/// Why it cannot be used, or must not replace what is served.
pub(super) fn changed(tls: &Tls) -> Result<Option<Identity>, TlsError> {
    let files = &tls.files;
    let contents = files.read()?;
    let (served, digest) = tls.read(|it| (it.info.clone(), it.digest));
    if contents.digest() == digest {
        return Ok(None);
    }
    let identity = Identity::of(files, &contents)?;
    let now = OffsetDateTime::now_utc();
    let validity = Validity::of(&identity.info, now);
    if !validity.is_accepted() && Validity::of(&served, now).is_accepted() {
        return Err(files.certificate_error(match validity {
            Validity::NotYet => format!("it is not valid before {}", identity.info.start()),
            _ => format!("it expired on {}", identity.info.end()),
        }));
    }
    Ok(Some(identity))
}

pub(super) struct TlsFollower {
    pub tls: Tls,
    names: Vec<String>,
    pub outcome: Outcome,
    /// When the end of the certificate was logged last, and what about it.
    pub warned: Option<(Instant, Validity)>,
}

impl Follower for TlsFollower {
    fn poll(&mut self) {
        self.take_changes();
        self.report_validity(OffsetDateTime::now_utc());
    }

    fn outcome(&mut self) -> &mut Outcome {
        &mut self.outcome
    }
}

impl TlsFollower {
    pub fn new(tls: Tls, names: Vec<String>, problems: HostProblems) -> TlsFollower {
        TlsFollower {
            tls,
            names,
            outcome: Outcome::new(&TEXTS, problems),
            warned: None,
        }
    }

    /// Reads the files once, and uses them if they have changed and fit each other.
    pub fn take_changes(&mut self) {
        let taken = self.changed();
        match taken {
            Ok(None) => self.outcome.unchanged(),
            Ok(Some(identity)) => {
                let info = &identity.info;
                tracing::info!(
                    names = %info.names.join(", "),
                    not_after = %info.end(),
                    fingerprint = %info.fingerprint,
                    "The TLS certificate was read again: new connections use it"
                );
                self.tls.files.warn_of_permissions();
                self.tls.replace(identity);
                self.warned = None;
                self.outcome.replaced();
            }
            Err(error) => self.outcome.failed(error.to_string()),
        }
    }

    /// What the files hold, if that is something else than what is served.
    fn changed(&self) -> Result<Option<Identity>, TlsError> {
        let files = &self.tls.files;
        if files.self_signed {
            self_signed::ensure(files, &self.names)?;
        }
        changed(&self.tls)
    }

    /// Publishes until when the certificate is valid, and reports its end.
    pub fn report_validity(&mut self, now: OffsetDateTime) {
        let problems = &self.outcome.problems;
        let info = self.tls.info();
        metrics::gauge!("esker_tls_certificate_expiry_timestamp_seconds")
            .set(info.not_after.unix_timestamp() as f64);
        let validity = Validity::of(&info, now);
        let (code, what) = match validity {
            Validity::Valid => {
                problems.clear(EXPIRES_SOON);
                problems.clear(EXPIRED);
                return;
            }
            Validity::EndsSoon => (
                EXPIRES_SOON,
                format!("the TLS certificate expires on {}", info.end()),
            ),
            Validity::Expired => (
                EXPIRED,
                format!(
                    "the TLS certificate expired on {}: clients refuse it",
                    info.end()
                ),
            ),
            Validity::NotYet => (
                EXPIRED,
                format!(
                    "the TLS certificate is not valid before {}: clients refuse it, unless this machine's \
                     clock is behind",
                    info.start()
                ),
            ),
        };
        let remedy = "replace the files of tls.certificate and tls.private-key; they are read again by \
                      themselves";
        let other = if code == EXPIRED {
            EXPIRES_SOON
        } else {
            EXPIRED
        };
        problems.clear(other);
        let is_due = match self.warned {
            Some((at, of)) => of != validity || at.elapsed() >= WARN_INTERVAL,
            None => true,
        };
        if is_due {
            tracing::warn!("{what}: {remedy}");
            self.warned = Some((Instant::now(), validity));
        }
        problems.set(code, what, remedy);
    }
}
