//! Mutual TLS between members: both ends of a connection present a certificate, and both verify that a
//! known authority issued it.
//!
//! Certificates and key are checked when the transport is created, so that a mistake is reported then and
//! not by failing connections.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig};

/// Longest time for a handshake: a silent connection is closed after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Certificates and a key, as PEM. The host decides where they are stored; new ones need a new transport.
/// Revocation lists are not checked: use certificates of short validity, or replace the authority after a
/// theft.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// Certificates of the authorities, one or several. Every certificate that one of them issued is
    /// accepted, so use an authority of the cluster's own and not a public one.
    pub ca: Vec<u8>,
    /// This node's certificate, followed by intermediate ones, if any. It must be valid for a server and
    /// for a client, and have the name under which the others connect to this node.
    pub certificate: Vec<u8>,
    /// The certificate's key: PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key: Vec<u8>,
    /// The name that the certificate of every other node must have; `None` for the host in its address, a
    /// name or an IP address.
    pub server_name: Option<String>,
}

/// What is wrong with a [`TlsConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The authorities' certificates.
    #[error("TLS, the authorities' certificates (ca): {0}")]
    Ca(String),
    /// This node's certificate.
    #[error("TLS, this node's certificate (certificate): {0}")]
    Certificate(String),
    /// The key.
    #[error("TLS, the key of this node's certificate (key): {0}")]
    Key(String),
    /// The name.
    #[error("TLS, the name of the other nodes (server_name): {0:?} is not a name")]
    ServerName(String),
}

/// Either end's configuration.
#[derive(Clone)]
pub(super) struct Tls {
    pub server: ServerTlsConfig,
    pub client: ClientTlsConfig,
}

impl Tls {
    pub fn new(config: &TlsConfig) -> Result<Tls, TlsError> {
        let provider = provider();
        check(config, &provider)?;
        let ca = Certificate::from_pem(&config.ca);
        let identity = Identity::from_pem(&config.certificate, &config.key);
        let server = ServerTlsConfig::new()
            .identity(identity.clone())
            .client_ca_root(ca.clone())
            .timeout(HANDSHAKE_TIMEOUT);
        let mut client = ClientTlsConfig::new()
            .ca_certificate(ca)
            .identity(identity)
            .timeout(HANDSHAKE_TIMEOUT);
        if let Some(name) = &config.server_name {
            client = client.domain_name(name);
        }
        // Reports now what rustls still rejects.
        let built = Server::builder().tls_config(server.clone());
        built.map_err(|e| TlsError::Certificate(super::chain(&e)))?;
        Ok(Tls { server, client })
    }
}

/// The process's cryptography provider. If the host has installed none, this installs aws-lc-rs, as rustls
/// does by default; but rustls fails if two are compiled in.
fn provider() -> Arc<CryptoProvider> {
    let ours = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    if CryptoProvider::get_default().is_none() {
        // If another thread was faster, its provider is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    CryptoProvider::get_default().cloned().unwrap_or_else(ours)
}

fn check(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<(), TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.ca).map_err(TlsError::Ca)? {
        let added = roots.add(certificate);
        added.map_err(|e| TlsError::Ca(e.to_string()))?;
    }
    let chain = certificates(&config.certificate).map_err(TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&config.key);
    let key = key.map_err(|_| TlsError::Key("there is no key in it".to_owned()))?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|e| TlsError::Key(e.to_string()))?;

    let certified = CertifiedKey::new(chain.clone(), key);
    match certified.keys_match() {
        // The kind of key does not allow the comparison.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let why = "it belongs to another certificate than this node's";
            return Err(TlsError::Key(why.to_owned()));
        }
        Err(e) => return Err(TlsError::Certificate(e.to_string())),
    }
    if let Some((own, between)) = chain.split_first() {
        // The peers would refuse it.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let verifier = verifier.map_err(|e| TlsError::Ca(e.to_string()))?;
        let good = verifier.verify_client_cert(own, between, UnixTime::now());
        good.map_err(|e| TlsError::Certificate(format!("the others would refuse it: {e}")))?;
    }
    match &config.server_name {
        Some(name) if ServerName::try_from(name.as_str()).is_err() => {
            Err(TlsError::ServerName(name.clone()))
        }
        _ => Ok(()),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| e.to_string())?;
    match found.is_empty() {
        true => Err("there is no certificate in it".to_owned()),
        false => Ok(found),
    }
}

/// Whether a certificate is valid for a host: a name or an IP address.
pub fn is_for_host(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let parsed = ParsedCertificate::try_from(certificate);
    match (parsed, ServerName::try_from(host)) {
        (Ok(parsed), Ok(name)) => verify_server_name(&parsed, &name).is_ok(),
        _ => false,
    }
}

/// Whether TLS refused the connection.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inside = error.downcast_ref::<std::io::Error>();
        let inside = inside.and_then(|e| e.get_ref());
        if error.is::<rustls::Error>() || inside.is_some_and(|e| e.is::<rustls::Error>()) {
            return true;
        }
        next = error.source();
    }
    false
}
