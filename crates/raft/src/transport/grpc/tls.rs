//! TLS between members, both ways: who calls and who is called show a certificate, and both look whether
//! it comes from an authority that they know.
//!
//! All of it is looked at when the transport is made: what is wrong with a file is said then, and not by
//! connections that never come to be.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig};

/// Most time that a handshake may take: a stranger that says nothing is hung up on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Certificates and a key, as PEM. Where they are kept is the host's business; new ones need a new
/// transport. What was stolen is not called back: nobody asks for lists of that. Give certificates that do
/// not last long, or change the authority.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// Certificates of the authorities, one or several: whoever has a certificate from one of them is let
    /// in. An authority of the cluster's own, then, and not one that the whole world uses.
    pub ca: Vec<u8>,
    /// This node's certificate, and after it those between it and the authority, if there are any. It has
    /// to be good for a server and for a client, and name what the others call this node by.
    pub certificate: Vec<u8>,
    /// The certificate's key: PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key: Vec<u8>,
    /// The name that the certificate of every other node has to have; `None` for the host in its address,
    /// be that a name or a number.
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
        // What is left to go wrong, it says now.
        let built = Server::builder().tls_config(server.clone());
        built.map_err(|e| TlsError::Certificate(super::chain(&e)))?;
        Ok(Tls { server, client })
    }
}

/// The process's cryptography, as the host chose it. If it has chosen none, it is this one from now on:
/// what rustls does as well, but that gives up if two are compiled in.
fn provider() -> Arc<CryptoProvider> {
    let ours = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    if CryptoProvider::get_default().is_none() {
        // Another thread may have been faster: then it is that one.
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
        // A kind of key that does not tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let why = "it belongs to another certificate than this node's";
            return Err(TlsError::Key(why.to_owned()));
        }
        Err(e) => return Err(TlsError::Certificate(e.to_string())),
    }
    if let Some((own, between)) = chain.split_first() {
        // The others would refuse it.
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

/// Whether that is why a connection broke.
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
