//! The files of a certificate, its key and the clients' authorities.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::TlsError;
use crate::config::TlsConfig;

/// The directory of a self-signed certificate, in the data directory.
const SELF_SIGNED_DIR: &str = "tls";
/// Most bytes of a file: a chain takes some 10 KiB, all public authorities 300 KiB.
const MAX_FILE_SIZE: u64 = 1024 * 1024;

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub client_ca: Option<PathBuf>,
    /// Whether the server makes certificate and key itself.
    pub self_signed: bool,
}

/// What is in the files.
pub(super) struct Contents {
    pub certificate: Vec<u8>,
    pub private_key: Vec<u8>,
    pub client_ca: Option<Vec<u8>>,
}

impl Files {
    /// The files of a configuration with which TLS is enabled.
    pub fn of(config: &TlsConfig, data_dir: &Path) -> Files {
        let dir = data_dir.join(SELF_SIGNED_DIR);
        let file = |configured: &Option<PathBuf>, own: &str| match configured {
            Some(path) => path.clone(),
            None => dir.join(own),
        };
        Files {
            certificate: file(&config.certificate, "certificate.pem"),
            private_key: file(&config.private_key, "private-key.pem"),
            client_ca: config.client_ca.clone(),
            self_signed: config.self_signed,
        }
    }

    pub fn certificate_error(&self, cause: impl Into<String>) -> TlsError {
        TlsError {
            key: match self.self_signed {
                true => "tls.self-signed",
                false => "tls.certificate",
            },
            path: self.certificate.clone(),
            cause: cause.into(),
        }
    }

    pub fn key_error(&self, cause: impl Into<String>) -> TlsError {
        TlsError {
            key: match self.self_signed {
                true => "tls.self-signed",
                false => "tls.private-key",
            },
            path: self.private_key.clone(),
            cause: cause.into(),
        }
    }

    pub fn client_ca_error(&self, cause: impl Into<String>) -> TlsError {
        TlsError {
            key: "tls.client-ca",
            path: self.client_ca.clone().unwrap_or_default(),
            cause: cause.into(),
        }
    }

    /// Reads all of them.
    ///
    /// # Errors
    ///
    /// The first that cannot be read, or is empty or too large.
    pub fn read(&self) -> Result<Contents, TlsError> {
        let client_ca = self.client_ca.as_deref().map(read).transpose();
        Ok(Contents {
            certificate: read(&self.certificate).map_err(|e| self.certificate_error(e))?,
            private_key: read(&self.private_key).map_err(|e| self.key_error(e))?,
            client_ca: client_ca.map_err(|e| self.client_ca_error(e))?,
        })
    }

    /// Reads the key alone.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is empty or too large.
    pub fn read_key(&self) -> Result<Vec<u8>, TlsError> {
        read(&self.private_key).map_err(|e| self.key_error(e))
    }

    /// Warns if other users may read the key.
    pub fn warn_of_permissions(&self) {
        // A file that cannot be looked at is an error of reading it.
        let Ok(metadata) = std::fs::metadata(&self.private_key) else {
            return;
        };
        let mode = metadata.permissions().mode() & 0o777;
        if is_too_open(mode) {
            tracing::warn!(
                "every user of this machine may read or replace the key of the certificate, {} (mode \
                 {mode:o}): take the permission away with `chmod 600`, and get a new certificate if the \
                 machine has other users",
                self.private_key.display(),
            );
        }
    }
}

/// Whether users beyond the owner and the group may read the key, or others than the owner write it.
pub(super) fn is_too_open(mode: u32) -> bool {
    mode & 0o026 != 0
}

impl Contents {
    /// Identifies the contents.
    pub fn digest(&self) -> [u8; 32] {
        let mut sum = Sha256::new();
        let client_ca = self.client_ca.as_deref().unwrap_or_default();
        for part in [&self.certificate[..], &self.private_key, client_ca] {
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
        sum.finalize().into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("the file cannot be read: {error}");
    // A pipe would be waited for.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err("it is not a file".into());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    match bytes.len() as u64 {
        0 => Err("the file is empty".into()),
        1..=MAX_FILE_SIZE => Ok(bytes),
        _ => Err(format!("the file has more than {MAX_FILE_SIZE} bytes")),
    }
}
