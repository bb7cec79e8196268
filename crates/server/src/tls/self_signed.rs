//! A certificate for trying out TLS, made by the server in its data directory.
//!
//! It is its own authority: a client that is given the certificate's file trusts this server and no other.
//! The key is made once and kept, so a client that trusts an earlier certificate trusts its successors, and whoever
//! remembers the key as well. It is written before the certificate, each by way of a temporary file; a crash between
//! the two leaves a key without a certificate, and the next start makes one for it.
//!
//! A key that cannot be read now, or is damaged, is never replaced: another one would lock out every client. A
//! certificate that is damaged, or empty, is made again for its key; one that cannot be read now is an error.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use super::TlsError;
use super::files::Files;
use super::identity::Identity;

/// How long a certificate is valid.
const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// The certificate is replaced when it has less than this left: sooner than a warning would be logged.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks of clients may be behind by as much.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);

/// The names that a certificate has to have: those of loopback, the addresses of the listeners, and the
/// machine's name.
pub(crate) fn names_of(listeners: &[SocketAddr]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let mut add = |name: String| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    for listener in listeners {
        let address: IpAddr = listener.ip().to_canonical();
        if !address.is_unspecified() {
            add(address.to_string());
        }
    }
    if let Some(name) = host_name() {
        add(name);
    }
    names
}

/// The machine's name, if it can be part of a certificate.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| fs::read_to_string("/etc/hostname"))
        .ok()?;
    let name = name.trim().to_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!name.is_empty() && name.len() <= 253 && name.chars().all(fits)).then_some(name)
}

/// Makes a certificate with these names, if there is none that serves for a while.
///
/// # Errors
///
/// Files that exist and cannot be read or used, and whatever hinders the writing. Nothing was replaced then.
pub(super) fn ensure(files: &Files, names: &[String]) -> Result<(), TlsError> {
    if !exists(&files.private_key).map_err(|e| files.key_error(e))? {
        let key = KeyPair::generate()
            .map_err(|e| files.key_error(format!("a key cannot be made: {e}")))?;
        return make(files, names, &key, true);
    }
    let own = Files {
        // The clients' authorities are another matter.
        client_ca: None,
        ..files.clone()
    };
    let key = || {
        let pem = own.read_key()?;
        let key = std::str::from_utf8(&pem).ok().map(KeyPair::from_pem);
        match key {
            Some(Ok(key)) => Ok(key),
            _ => Err(files.key_error(
                "it is damaged: restore it, or remove it and the certificate beside it to have others made, which \
                 clients have to be given",
            )),
        }
    };
    let has_certificate = exists(&files.certificate).map_err(|e| files.certificate_error(e))?;
    if !has_certificate || is_empty(&files.certificate) {
        return make(files, names, &key()?, false);
    }
    let contents = own.read()?;
    let serves = Identity::of(files, &contents).is_ok_and(|identity| {
        let info = &identity.info;
        let now = OffsetDateTime::now_utc();
        let has_names = names.iter().all(|name| info.names.contains(name));
        has_names && info.not_before <= now && info.not_after - now > RENEW_BEFORE
    });
    match serves {
        true => Ok(()),
        // Also one that does not fit the key, or is damaged: the key is what has to stay.
        false => make(files, names, &key()?, false),
    }
}

/// Whether there is something under a name. A symlink whose target is missing is something: what it leads to may be there
/// later.
fn exists(path: &Path) -> Result<bool, String> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("the file cannot be read: {error}")),
    }
}

/// Whether there is a file without contents: a copy that was cut off. It is damaged, and no reason to end the start.
fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() == 0)
}

/// Makes a certificate for this key and replaces the one that exists; writes the key, too, if it is new.
fn make(files: &Files, names: &[String], key: &KeyPair, is_new: bool) -> Result<(), TlsError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        files.certificate_error(format!("{what}: {error}"))
    };
    let not_made = |error: rcgen::Error| failed("a certificate cannot be made", &error);
    let mut params = CertificateParams::new(names.to_vec()).map_err(not_made)?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALIDITY;
    params
        .distinguished_name
        .push(DnType::CommonName, "esker self-signed");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(key).map_err(not_made)?;
    if let Some(dir) = files.certificate.parent() {
        fs::create_dir_all(dir).map_err(|e| failed("its directory cannot be created", &e))?;
    }
    let written = |error: std::io::Error| failed("it cannot be written", &error);
    if is_new {
        write(&files.private_key, 0o600, key.serialize_pem().as_bytes()).map_err(written)?;
    }
    write(&files.certificate, 0o644, certificate.pem().as_bytes()).map_err(written)
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
