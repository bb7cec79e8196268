//! Reports the end of a certificate: a metric, a problem in the status, and a line in the log once a day.

use std::time::Duration;

use esker_node::HostProblems;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::CertificateInfo;

/// From when on the end of a certificate is a problem in the status.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often the end of a certificate is logged.
const WARN_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// When a certificate is valid, at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
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

    pub(super) fn is_accepted(self) -> bool {
        matches!(self, Validity::Valid | Validity::EndsSoon)
    }
}

/// How a certificate is called, and who refuses it once it has expired.
#[derive(Debug)]
pub(crate) struct ExpiryTexts {
    /// The code of the problem that it expires soon.
    pub expires_soon: &'static str,
    /// The code of the problem that it has expired, or is not valid yet.
    pub expired: &'static str,
    /// The gauge of when it expires.
    pub gauge: &'static str,
    /// `the TLS certificate`.
    pub certificate: &'static str,
    /// `clients refuse it`.
    pub refused: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// What was reported of the end of a certificate.
#[derive(Debug)]
pub(crate) struct Expiry {
    texts: &'static ExpiryTexts,
    /// When it was logged last, and what about it.
    warned: Option<(Instant, Validity)>,
}

impl Expiry {
    pub fn new(texts: &'static ExpiryTexts) -> Expiry {
        Expiry {
            texts,
            warned: None,
        }
    }

    /// There is another certificate: what was logged was about the one before.
    pub fn begin_again(&mut self) {
        self.warned = None;
    }

    /// Publishes until when a certificate is valid, and reports its end.
    pub fn report(&mut self, info: &CertificateInfo, now: OffsetDateTime, problems: &HostProblems) {
        let ExpiryTexts {
            expires_soon,
            expired,
            gauge,
            certificate,
            refused,
            remedy,
        } = self.texts;
        metrics::gauge!(*gauge).set(info.not_after.unix_timestamp() as f64);
        let validity = Validity::of(info, now);
        let (code, other, what) = match validity {
            Validity::Valid => {
                problems.clear(expires_soon);
                problems.clear(expired);
                return;
            }
            Validity::EndsSoon => (
                expires_soon,
                expired,
                format!("{certificate} expires on {}", info.end()),
            ),
            Validity::Expired => (
                expired,
                expires_soon,
                format!("{certificate} expired on {}: {refused}", info.end()),
            ),
            Validity::NotYet => (
                expired,
                expires_soon,
                format!(
                    "{certificate} is not valid before {}: {refused}, unless this machine's clock is behind",
                    info.start()
                ),
            ),
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
