//! What a handshake needs of the files: a checked certificate with its key, and the clients' authorities.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;
use super::files::{Contents, Files};

/// What ALPN offers, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// What an encrypted key contains.
const ENCRYPTED: [&[u8]; 2] = [b"ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];

/// A certificate that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The names and addresses that it is for.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: OffsetDateTime,
    /// Until when it and all certificates of its chain are valid.
    pub not_after: OffsetDateTime,
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint: String,
}

impl CertificateInfo {
    /// Until when it is valid, as RFC 3339.
    pub fn end(&self) -> String {
        text(self.not_after)
    }

    /// From when on it is valid, as RFC 3339.
    pub fn start(&self) -> String {
        text(self.not_before)
    }
}

fn text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// What handshakes use.
#[derive(Clone)]
pub(super) struct Identity {
    pub config: Arc<ServerConfig>,
    pub info: CertificateInfo,
    /// Of the files that it was made of.
    pub digest: [u8; 32],
}

impl Identity {
    /// Checks the contents of the files, and that they fit each other.
    ///
    /// # Errors
    ///
    /// What is wrong with which file.
    pub fn of(files: &Files, contents: &Contents) -> Result<Identity, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&contents.certificate).map_err(|e| files.certificate_error(e))?;
        let info = info(&chain).map_err(|e| files.certificate_error(e))?;
        let key = private_key(&contents.private_key).map_err(|e| files.key_error(e))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|e| files.key_error(format!("its key cannot be used: {e}")))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // The kind of key does not allow the comparison.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(files.key_error(format!(
                    "it is not the key of the certificate in {}, which has to be the first there",
                    files.certificate.display()
                )));
            }
            Err(e) => return Err(files.certificate_error(e.to_string())),
        }
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| files.certificate_error(e.to_string()))?;
        let builder = match &contents.client_ca {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let roots = roots(authorities).map_err(|e| files.client_ca_error(e))?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|e| files.client_ca_error(e.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        if contents.client_ca.is_some() {
            // Each connection shows a certificate that is valid then: none is resumed.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // Tickets, because sessions that the server remembers would take memory.
            config.ticketer = aws_lc_rs::Ticketer::new()
                .map_err(|e| files.certificate_error(format!("no key for tickets: {e}")))?;
        }
        Ok(Identity {
            config: Arc::new(config),
            info,
            digest: contents.digest(),
        })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| format!("it is not valid PEM: {e}"))?;
    match found.is_empty() {
        true => Err("there is no certificate in it (`-----BEGIN CERTIFICATE-----`)".into()),
        false => Ok(found),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let is_encrypted = |word: &[u8]| pem.windows(word.len()).any(|it| it == word);
    if ENCRYPTED.into_iter().any(is_encrypted) {
        let remedy = "store it without a passphrase, readable for the server alone";
        return Err(format!("the key in it is encrypted: {remedy}"));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            "there is no key in it (`-----BEGIN PRIVATE KEY-----`)".into()
        }
        error => format!("it is not valid PEM: {error}"),
    })
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem)? {
        roots
            .add(authority)
            .map_err(|e| format!("a certificate in it is not that of an authority: {e}"))?;
    }
    Ok(roots)
}

/// What the certificates of a file say about themselves.
///
/// # Errors
///
/// What is wrong with the file.
pub(crate) fn certificate_info(pem: &[u8]) -> Result<CertificateInfo, String> {
    info(&certificates(pem)?)
}

/// What the certificates say about themselves.
fn info(chain: &[CertificateDer<'_>]) -> Result<CertificateInfo, String> {
    let mut infos = Vec::new();
    for der in chain {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|e| format!("a certificate in it cannot be read: {e}"))?;
        let validity = parsed.validity();
        let names = match parsed.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(name).collect(),
            _ => Vec::new(),
        };
        infos.push(CertificateInfo {
            names,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            fingerprint: fingerprint(der),
        });
    }
    // Clients need all of the chain.
    let not_after = infos.iter().map(|info| info.not_after).min();
    let not_before = infos.iter().map(|info| info.not_before).max();
    match (infos.into_iter().next(), not_after, not_before) {
        (Some(own), Some(not_after), Some(not_before)) => Ok(CertificateInfo {
            not_after,
            not_before,
            ..own
        }),
        _ => Err("there is no certificate in it".into()),
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn fingerprint(der: &[u8]) -> String {
    let sum = Sha256::digest(der);
    let bytes: Vec<_> = sum.iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}
