//! Follows the files while the server runs: new ones are used once they fit each other, and a certificate
//! that ends is reported.
//!
//! The contents are compared, not the times of the files: copies keep times, and links of Kubernetes'
//! secrets change without the file.

use std::time::Duration;

use esker_node::HostProblems;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::expiry::{Expiry, ExpiryTexts, Validity};
use super::identity::Identity;
use super::{Tls, TlsError, self_signed};
use crate::file_poll::{self, Follower, Outcome, Texts};

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The code of a certificate that ends soon.
pub(super) const EXPIRES_SOON: &str = "tls_certificate_expires_soon";
/// The code of a certificate that clients refuse because of the time.
pub(super) const EXPIRED: &str = "tls_certificate_expired";
/// The code of files that cannot be used.
pub(super) const NOT_RELOADED: &str = "tls_not_reloaded";

static EXPIRY: ExpiryTexts = ExpiryTexts {
    expires_soon: EXPIRES_SOON,
    expired: EXPIRED,
    gauge: "esker_tls_certificate_expiry_timestamp_seconds",
    certificate: "the TLS certificate",
    refused: "clients refuse it",
    remedy: "replace the files of tls.certificate and tls.private-key; they are read again by themselves",
};

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
    expiry: Expiry,
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
            expiry: Expiry::new(&EXPIRY),
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
                self.expiry.begin_again();
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
        self.expiry.report(&self.tls.info(), now, problems);
    }
}
