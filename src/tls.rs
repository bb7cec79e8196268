//! Certificates: which authorities of servers are trusted, which certificate this client presents, and the first
//! handshake.
//!
//! With `--ca-file`, only the authorities in that file are trusted, else those of the system. The official SDK
//! offers no setting for this; it reads the system's certificates, and takes them from the file that the
//! variable `SSL_CERT_FILE` names. [`trust_only`] sets that variable for this process. It cannot present a
//! certificate either: [`crate::relay`] does so for it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::Failure;
use crate::secret_file;
use crate::server_address::ServerAddress;

/// Name of the environment variable for `--ca-file`.
pub const CA_VARIABLE: &str = "ESKER_CA_FILE";
/// Name of the environment variable for `--client-cert`.
pub const CLIENT_CERT_VARIABLE: &str = "ESKER_CLIENT_CERT";
/// Name of the environment variable for `--client-key`.
pub const CLIENT_KEY_VARIABLE: &str = "ESKER_CLIENT_KEY";
/// Most bytes of a file of certificates. The authorities of a whole system take some 250 KiB.
const MAX_CA_BYTES: u64 = 16 << 20;
/// Where systems keep the certificates of authorities.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs";

/// Protocols that a client offers by ALPN.
pub const HTTP2: &[u8] = b"h2";
pub const HTTP1: &[u8] = b"http/1.1";
/// What a client of HTTP/2 sends first: the preface, and empty settings.
const HTTP2_START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Which authorities are trusted, and which certificate is presented to a server that demands one.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    identity: Option<Arc<Identity>>,
}

/// The certificate of this client, and its private key.
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// The same for clients of gRPC, which take PEM.
    grpc: tonic::transport::Identity,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(client certificate)")
    }
}

impl Identity {
    /// The certificate of one file, with those of intermediate authorities after it, and the private key of the
    /// other. Warns if others can read the key.
    ///
    /// # Errors
    ///
    /// `certificates` if a file cannot be read, or the key does not belong to the certificate.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, Failure> {
        let cannot = |what: &str, path: &Path, option: &str, why: &dyn std::fmt::Display| {
            let shown = path.display();
            Failure::usage(
                "certificates",
                format!("the {what} in {shown} ({option}): {why}"),
            )
        };
        let of_certificate =
            |why: &dyn std::fmt::Display| cannot("certificate", certificate, "--client-cert", why);
        let of_key = |why: &dyn std::fmt::Display| cannot("private key", key, "--client-key", why);
        let chain_pem = read_certificates(certificate).map_err(|why| of_certificate(&why))?;
        let chain = CertificateDer::pem_slice_iter(&chain_pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| of_certificate(&e))?;
        if chain.is_empty() {
            return Err(of_certificate(&NO_CERTIFICATE));
        }
        let key_pem = secret_file::read_bytes(key, "a private key").map_err(|why| of_key(&why))?;
        let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
            of_key(
                &"the file has no private key in PEM form, or an encrypted one: decrypt it first",
            )
        })?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, private, &provider)
            .map_err(|e| of_key(&format!("it does not go with the certificate: {e}")))?;
        Ok(Identity {
            key: Arc::new(certified),
            grpc: tonic::transport::Identity::from_pem(chain_pem, key_pem),
        })
    }
}

const NO_CERTIFICATE: &str = "the file has no certificate in PEM form";

/// The contents of a file of certificates.
fn read_certificates(path: &Path) -> Result<Vec<u8>, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_CA_BYTES {
        return Err("the file is larger than any such file".to_owned());
    }
    fs::read(path).map_err(|e| e.to_string())
}

/// Presents the identity, if there is one, and notes that the server asked for it.
#[derive(Debug)]
struct Presenter {
    identity: Option<Arc<Identity>>,
    was_asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for Presenter {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        self.identity.as_ref().map(|identity| identity.key.clone())
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

impl Trust {
    /// The authorities in a file, or the system's.
    ///
    /// # Errors
    ///
    /// `certificates` if the file cannot be read or has no certificate, or the system has none.
    pub fn load(file: Option<&Path>) -> Result<Trust, Failure> {
        let mut roots = RootCertStore::empty();
        let refused = |what: String| Failure::usage("certificates", what);
        match file {
            Some(path) => {
                let shown = path.display();
                let cannot = |why: &dyn std::fmt::Display| {
                    refused(format!("the certificates in {shown} (--ca-file): {why}"))
                };
                let pem = read_certificates(path).map_err(|why| cannot(&why))?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|e| cannot(&e))?;
                    roots.add(certificate).map_err(|e| cannot(&e))?;
                }
                if roots.is_empty() {
                    return Err(cannot(&NO_CERTIFICATE));
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err(refused(
                        "this system has no certificates of authorities; name those of the server \
                         with --ca-file"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(Trust {
            roots: Arc::new(roots),
            identity: None,
        })
    }

    /// The same, with this certificate for servers that demand one.
    pub fn with_identity(self, identity: Option<Identity>) -> Trust {
        Trust {
            identity: identity.map(Arc::new),
            ..self
        }
    }

    /// Whether there is a certificate for servers that demand one.
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// The configuration of a client that trusts these authorities, and presents the certificate.
    ///
    /// # Errors
    ///
    /// `client` if the library refuses it.
    pub fn client_config(&self) -> Result<ClientConfig, Failure> {
        self.noting_config(Arc::default())
    }

    /// The same, which notes whether a server asked for a certificate.
    fn noting_config(&self, was_asked: Arc<AtomicBool>) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::wrong("client", e))?;
        let presenter = Presenter {
            identity: self.identity.clone(),
            was_asked,
        };
        Ok(config
            .with_root_certificates(self.roots.clone())
            .with_client_cert_resolver(Arc::new(presenter)))
    }

    /// The same for clients of gRPC.
    pub fn grpc_config(&self) -> tonic::transport::ClientTlsConfig {
        let config = tonic::transport::ClientTlsConfig::new();
        let config = config.trust_anchors(self.roots.roots.iter().cloned());
        match &self.identity {
            Some(identity) => config.identity(identity.grpc.clone()),
            None => config,
        }
    }

    /// Does a handshake, which shows whether the server's certificate is trusted, before anything secret is
    /// sent, and whether the server lets this client in.
    ///
    /// # Errors
    ///
    /// `tls`, with the reason.
    pub async fn handshake(
        &self,
        connection: TcpStream,
        address: &ServerAddress,
    ) -> Result<(), Failure> {
        let was_asked = Arc::<AtomicBool>::default();
        let config = self.noting_config(was_asked.clone())?;
        let refused =
            |error: &std::io::Error| refused(address, error, &was_asked, self.has_identity());
        let protocols = &[HTTP2, HTTP1];
        let mut connection = connect(config, protocols, connection, address)
            .await?
            .map_err(|e| refused(&e))?;
        if was_asked.load(Ordering::Relaxed) {
            // In TLS 1.3 the server judges the certificate after the client's part of the handshake.
            let answered = first_byte(&mut connection).await;
            answered.map_err(|e| refused(&e))?;
        }
        Ok(())
    }

    /// A connection that offers one protocol.
    ///
    /// # Errors
    ///
    /// Those of the handshake.
    pub async fn connect(
        &self,
        protocol: &[u8],
        connection: TcpStream,
        address: &ServerAddress,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let was_asked = Arc::<AtomicBool>::default();
        let config = self.noting_config(was_asked.clone())?;
        let connected = connect(config, &[protocol], connection, address).await?;
        connected.map_err(|e| refused(address, &e, &was_asked, self.has_identity()))
    }
}

/// Does a handshake that offers these protocols.
async fn connect(
    mut config: ClientConfig,
    protocols: &[&[u8]],
    connection: TcpStream,
    address: &ServerAddress,
) -> Result<std::io::Result<TlsStream<TcpStream>>, Failure> {
    let host = address.host().to_owned();
    let name = ServerName::try_from(host)
        .map_err(|e| Failure::usage("invalid", format!("{address}: {e}")))?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector.connect(name, connection).await)
}

/// Waits for the first byte that the server sends.
async fn first_byte(connection: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    let start = match connection.get_ref().1.alpn_protocol() {
        Some(HTTP2) => HTTP2_START,
        _ => b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    };
    let written = async {
        connection.write_all(start).await?;
        connection.flush().await
    };
    let written = written.await;
    let mut byte = [0];
    // The server's reason for closing the connection is read even where nothing can be written any more.
    match connection.read(&mut byte).await {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => written,
        Err(error) => Err(error),
    }
}

/// The failure for a handshake that failed. `was_asked`: the server asked for a certificate of this client.
fn refused(
    address: &ServerAddress,
    error: &std::io::Error,
    was_asked: &AtomicBool,
    has_identity: bool,
) -> Failure {
    let source = error.get_ref();
    let tls = source.and_then(|source| source.downcast_ref::<rustls::Error>());
    let failed = |why: String| Failure::unreachable("tls", format!("{address}: {why}"));
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => {
            failed(format!("its certificate is not accepted: {why}")).advise(
                "name the authority of the certificate with --ca-file, and the server by a name \
                 that the certificate has",
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => failed("it does not speak TLS".to_owned())
            .advise("write http:// if it is meant to have no encryption"),
        _ if was_asked.load(Ordering::Relaxed) => match has_identity {
            true => failed(format!(
                "it does not accept the client certificate: {error}"
            ))
            .advise(
                "name one with --client-cert that an authority of the server's `tls.client-ca` \
                 issued, and that is valid now",
            ),
            false => failed(format!("it demands a client certificate: {error}")).advise(
                "name one with --client-cert, and its private key with --client-key: an authority \
                 of the server's `tls.client-ca` has to have issued it",
            ),
        },
        Some(other) => failed(format!("the TLS handshake failed: {other}")),
        None => failed(format!("the TLS handshake failed: {error}")),
    }
}

/// Makes this process trust only the authorities in a file; with `and_system`, also the system's. It concerns
/// clients whose trust cannot be configured otherwise.
///
/// It must be called before the process starts threads, because it changes the environment.
pub fn trust_only(file: &Path, and_system: bool) {
    // SAFETY: the caller has started no threads, so nothing reads the environment meanwhile.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("SSL_CERT_FILE", file);
        match and_system {
            true if std::env::var_os("SSL_CERT_DIR").is_none() => {
                std::env::set_var("SSL_CERT_DIR", SYSTEM_CERTIFICATES);
            }
            true => {}
            false => std::env::remove_var("SSL_CERT_DIR"),
        }
    }
}
