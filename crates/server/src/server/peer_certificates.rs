//! Follows the files of the certificates of nodes while the server runs: new connections between nodes use new ones
//! once they fit each other.
//!
//! Files of which one is written already and another is not, and a certificate that the other nodes would refuse,
//! change nothing. The end of this node's certificate is reported before it comes.

use std::time::Duration;

use esker_node::{Cluster, HostProblems, PeerTls};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::cluster_options::read_certificates;
use crate::config::ClusterConfig;
use crate::file_poll::{self, Follower, Outcome, Texts};
use crate::tls::certificate_info;
use crate::tls::expiry::{Expiry, ExpiryTexts};

/// How often the files are read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// The code of files that cannot be used.
pub(crate) const NOT_RELOADED: &str = "peer_certificate_not_reloaded";

/// The code of a certificate that ends soon.
pub(crate) const EXPIRES_SOON: &str = "peer_certificate_expires_soon";
/// The code of a certificate that other nodes refuse because of the time.
pub(crate) const EXPIRED: &str = "peer_certificate_expired";

static EXPIRY: ExpiryTexts = ExpiryTexts {
    expires_soon: EXPIRES_SOON,
    expired: EXPIRED,
    gauge: "esker_peer_certificate_expiry_timestamp_seconds",
    certificate: "the certificate of this node for other nodes",
    refused: "they refuse new connections",
    remedy: "replace the files of cluster.certificate and cluster.private-key; they are read again by themselves",
};

static TEXTS: Texts = Texts {
    code: NOT_RELOADED,
    reloads: "esker_peer_certificate_reloads_total",
    files: "The files of `cluster.certificate`",
    instead: "new connections between nodes use what was read before",
};

/// Reads the files until `stop`. `used` is what was in them at the start.
pub(super) async fn follow(
    config: ClusterConfig,
    used: PeerTls,
    cluster: Cluster,
    problems: HostProblems,
    stop: CancellationToken,
) {
    let mut follower = CertificateFollower {
        config,
        used,
        expiry: Expiry::new(&EXPIRY),
        set: move |tls: &PeerTls| cluster.set_certificates(tls).map_err(|e| e.to_string()),
        outcome: Outcome::new(&TEXTS, problems),
    };
    follower.report_validity(OffsetDateTime::now_utc());
    file_poll::follow(follower, RELOAD_INTERVAL, stop).await;
}

struct CertificateFollower<S> {
    config: ClusterConfig,
    used: PeerTls,
    expiry: Expiry,
    /// Uses others from now on, or says what is wrong with them.
    set: S,
    outcome: Outcome,
}

impl<S> Follower for CertificateFollower<S>
where
    S: FnMut(&PeerTls) -> Result<(), String> + Send + 'static,
{
    fn poll(&mut self) {
        self.take_changes();
        self.report_validity(OffsetDateTime::now_utc());
    }

    fn outcome(&mut self) -> &mut Outcome {
        &mut self.outcome
    }
}

impl<S> CertificateFollower<S>
where
    S: FnMut(&PeerTls) -> Result<(), String> + Send + 'static,
{
    /// Reads the files once, and uses them if they have changed and fit each other.
    fn take_changes(&mut self) {
        let found = match read_certificates(&self.config) {
            Ok(Some(found)) => found,
            // The configuration stays as it is.
            Ok(None) => return,
            Err(error) => return self.outcome.failed(error.to_string()),
        };
        if is_same(&found, &self.used) {
            return self.outcome.unchanged();
        }
        match (self.set)(&found) {
            Ok(()) => {
                tracing::info!(
                    "The certificate of this node was read again: new connections between nodes use it"
                );
                self.used = found;
                self.expiry.begin_again();
                self.outcome.replaced();
            }
            Err(why) => self.outcome.failed(why),
        }
    }

    /// Publishes until when the certificate in use is valid, and reports its end. What cannot be read here was refused
    /// before it came into use.
    fn report_validity(&mut self, now: OffsetDateTime) {
        if let Ok(info) = certificate_info(&self.used.certificate) {
            self.expiry.report(&info, now, &self.outcome.problems);
        }
    }
}

fn is_same(one: &PeerTls, other: &PeerTls) -> bool {
    (&one.ca, &one.certificate, &one.key) == (&other.ca, &other.certificate, &other.key)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_is_in_the_files_is_used_once_it_fits_and_a_mistake_is_reported_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        for name in ["certificate", "key", "ca"] {
            write(name, "1");
        }
        let config = ClusterConfig {
            certificate: Some(path("certificate")),
            private_key: Some(path("key")),
            ca: Some(path("ca")),
            ..ClusterConfig::default()
        };
        let problems = HostProblems::default();
        let set = Arc::new(Mutex::new(Vec::new()));
        let noted = set.clone();
        let mut follower = CertificateFollower {
            used: read_certificates(&config).unwrap().unwrap(),
            config,
            expiry: Expiry::new(&EXPIRY),
            set: move |tls: &PeerTls| match tls.certificate == tls.key {
                true => {
                    noted.lock().unwrap().push(tls.certificate.clone());
                    Ok(())
                }
                false => Err("it belongs to another certificate".to_owned()),
            },
            outcome: Outcome::new(&TEXTS, problems.clone()),
        };
        follower.poll();
        assert!(set.lock().unwrap().is_empty() && problems.list().is_empty());
        write("certificate", "2");
        follower.poll();
        let problem = problems.list().pop().expect("a problem");
        assert_eq!(problem.code, NOT_RELOADED);
        assert!(problem.what.contains("another certificate"), "{problem:?}");
        write("key", "2");
        follower.poll();
        assert_eq!(*set.lock().unwrap(), [b"2"]);
        assert!(problems.list().is_empty());
        std::fs::remove_file(path("ca")).unwrap();
        follower.poll();
        let problem = problems.list().pop().expect("a problem");
        assert!(problem.what.contains("cluster.ca"), "{problem:?}");
    }
}
