//! Mutual TLS between members: both ends of a connection present a certificate, and both verify that a
//! known authority issued it.
//!
//! Certificates and key are checked when the transport is created, so that a mistake is reported then and
//! not by failing connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Longest time for a handshake: a silent connection is closed after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What both ends agree on.
const ALPN: &[u8] = b"h2";

/// Certificates and a key, as PEM. The host decides where they are stored, and hands new ones to
/// [`set_tls`](super::GrpcTransport::set_tls). Revocation lists are not checked: use certificates of short validity, or replace the authority after a
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
    /// The transport was created without TLS.
    #[error("TLS: connections between nodes have none")]
    Off,
}

/// What both ends use for new connections. It can be replaced.
pub(super) struct Tls {
    current: RwLock<Arc<Ends>>,
}

/// The configurations of both ends.
struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub fn new(config: &TlsConfig) -> Result<Tls, TlsError> {
        Ok(Tls {
            current: RwLock::new(Arc::new(Ends::new(config)?)),
        })
    }

    /// Uses other certificates for new connections. If they cannot be used, nothing changes.
    pub fn replace(&self, config: &TlsConfig) -> Result<(), TlsError> {
        let ends = Arc::new(Ends::new(config)?);
        *self.current.write() = ends;
        Ok(())
    }

    /// Takes an accepted connection through its handshake.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let server = self.current.read().server.clone();
        let accepted = TlsAcceptor::from(server).accept(stream);
        in_time(accepted).await.map(TlsStream::Server)
    }

    /// Takes a connection to a host through its handshake.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let ends = self.current.read().clone();
        let name = match &ends.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?,
        };
        let connected = TlsConnector::from(ends.client.clone()).connect(name, stream);
        let connected = in_time(connected).await?;
        match connected.get_ref().1.alpn_protocol() {
            Some(protocol) if protocol == ALPN => Ok(TlsStream::Client(connected)),
            _ => Err(io::Error::other("the other end does not speak HTTP/2")),
        }
    }
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the TLS handshake took too long",
        )),
    }
}

impl Ends {
    fn new(config: &TlsConfig) -> Result<Ends, TlsError> {
        let provider = provider();
        let Checked { roots, chain, key } = check(config, &provider)?;
        let unfit = |e: rustls::Error| TlsError::Certificate(e.to_string());
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|e| TlsError::Ca(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unfit)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not check the certificate again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unfit)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        let server_name = match &config.server_name {
            None => None,
            Some(name) => {
                let parsed = ServerName::try_from(name.clone());
                Some(parsed.map_err(|_| TlsError::ServerName(name.clone()))?)
            }
        };
        Ok(Ends {
            server: Arc::new(server),
            client: Arc::new(client),
            server_name,
        })
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

/// What is in the files, after the checks.
struct Checked {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn check(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Checked, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.ca).map_err(TlsError::Ca)? {
        let added = roots.add(certificate);
        added.map_err(|e| TlsError::Ca(e.to_string()))?;
    }
    let chain = certificates(&config.certificate).map_err(TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&config.key);
    let key = key.map_err(|_| TlsError::Key("there is no key in it".to_owned()))?;
    let signing = provider.key_provider.load_private_key(key.clone_key());
    let signing = signing.map_err(|e| TlsError::Key(e.to_string()))?;

    let certified = CertifiedKey::new(chain.clone(), signing);
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
            WebPkiClientVerifier::builder_with_provider(roots.clone().into(), provider.clone())
                .build();
        let verifier = verifier.map_err(|e| TlsError::Ca(e.to_string()))?;
        let good = verifier.verify_client_cert(own, between, UnixTime::now());
        good.map_err(|e| TlsError::Certificate(format!("the others would refuse it: {e}")))?;
    }
    Ok(Checked { roots, chain, key })
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
