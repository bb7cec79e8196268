//! TLS of the listeners, over rustls with aws-lc-rs.
//!
//! # Roles
//!
//! - [`files`] reads the configured files; [`identity`] checks that they fit each other and makes what a
//!   handshake needs of them.
//! - [`self_signed`] makes a certificate for trying out.
//! - [`Tls`] is what listeners hold: the identity of new handshakes. [`reload`] replaces it when the files
//!   change. [`expiry`] reports a certificate that ends.
//! - [`handshake`] takes a connection through its handshake, and answers clients that speak no TLS.
//!
//! A certificate that has expired is served: clients refuse it, and those that do not check still get
//! their data. A server that ended because of it would serve nobody.
//!
//! Protocols: TLS 1.3 and 1.2; ALPN `h2` and `http/1.1`. rustls has no renegotiation, no compression and no
//! cipher suites without forward secrecy, and early data (0-RTT), which could be replayed, stays off.

pub(crate) mod expiry;
mod files;
pub(crate) mod handshake;
mod identity;
mod reload;
mod self_signed;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use esker_node::HostProblems;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::config::TlsConfig;
use files::Files;
pub use identity::CertificateInfo;
use identity::Identity;
pub(crate) use identity::certificate_info;

/// The codes of the problems that TLS reports in a status.
#[cfg(test)]
pub(crate) const PROBLEMS: [&str; 3] =
    [reload::EXPIRES_SOON, reload::EXPIRED, reload::NOT_RELOADED];

/// Why the server cannot serve TLS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TLS, `{key}` = {}: {cause}", path.display())]
pub struct TlsError {
    /// The key of the configuration.
    pub key: &'static str,
    /// The file that it names.
    pub path: PathBuf,
    /// What is wrong with the file, and what to do.
    pub cause: String,
}

/// The identity of new handshakes. Clones share it.
#[derive(Clone)]
pub(crate) struct Tls {
    current: Arc<RwLock<Identity>>,
    files: Arc<Files>,
}

impl Tls {
    /// Reads the configured files; `None` if no listener speaks TLS. A self-signed certificate is made in
    /// the data directory, if there is none that still serves: its lock must be held.
    ///
    /// # Errors
    ///
    /// What is wrong with which file.
    pub(crate) fn load(
        config: &TlsConfig,
        data_dir: &Path,
        names: &[String],
    ) -> Result<Option<Tls>, TlsError> {
        if !config.enabled() {
            return Ok(None);
        }
        let files = Files::of(config, data_dir);
        if config.self_signed {
            self_signed::ensure(&files, names)?;
        }
        files.warn_of_permissions();
        let identity = Identity::of(&files, &files.read()?)?;
        tracing::info!(
            names = %identity.info.names.join(", "),
            not_after = %identity.info.end(),
            fingerprint = %identity.info.fingerprint,
            "TLS with the certificate {}",
            files.certificate.display(),
        );
        Ok(Some(Tls {
            current: Arc::new(RwLock::new(identity)),
            files: Arc::new(files),
        }))
    }

    /// What the next handshake uses.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.read(|identity| identity.config.clone())
    }

    /// The certificate of the next handshake.
    pub(crate) fn info(&self) -> CertificateInfo {
        self.read(|identity| identity.info.clone())
    }

    /// The file of the certificate.
    pub(crate) fn certificate_path(&self) -> &Path {
        &self.files.certificate
    }

    /// Checks that a start could use the files as they are now, and would not serve a certificate that
    /// clients refuse instead of one that they accept.
    ///
    /// # Errors
    ///
    /// What is wrong with which file.
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        match self.files.self_signed {
            // A start makes another, if it has to.
            true => Ok(()),
            false => reload::changed(self).map(drop),
        }
    }

    /// Follows the files until `stop`.
    pub(crate) async fn follow(
        self,
        names: Vec<String>,
        problems: HostProblems,
        stop: CancellationToken,
    ) {
        reload::follow(self, names, problems, stop).await;
    }

    fn read<T>(&self, get: impl FnOnce(&Identity) -> T) -> T {
        get(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, identity: Identity) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }
}

pub(crate) use self_signed::names_of;
