//! Certificates of servers: which authorities are trusted, and the first handshake.
//!
//! With `--ca-file`, only the authorities in that file are trusted, else those of the system. The official SDK
//! offers no setting for this; it reads the system's certificates, and takes them from the file that the
//! variable `SSL_CERT_FILE` names. [`trust_only`] sets that variable for this process.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::Failure;
use crate::server_address::ServerAddress;

/// Name of the environment variable for `--ca-file`.
pub const CA_VARIABLE: &str = "ESKER_CA_FILE";
/// Most bytes of a file of certificates. The authorities of a whole system take some 250 KiB.
const MAX_CA_BYTES: u64 = 16 << 20;
/// Where systems keep the certificates of authorities.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs";

/// Which authorities are trusted.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
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
                let size = fs::metadata(path).map_err(|e| cannot(&e))?.len();
                if size > MAX_CA_BYTES {
                    return Err(cannot(&"the file is larger than any such file"));
                }
                let pem = fs::read(path).map_err(|e| cannot(&e))?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|e| cannot(&e))?;
                    roots.add(certificate).map_err(|e| cannot(&e))?;
                }
                if roots.is_empty() {
                    return Err(cannot(&"the file has no certificate in PEM form"));
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
        })
    }

    /// The configuration of a client that trusts these authorities.
    ///
    /// # Errors
    ///
    /// `client` if the library refuses it.
    pub fn client_config(&self) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::wrong("client", e))?;
        Ok(config
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth())
    }

    /// The same for clients of gRPC.
    pub fn grpc_config(&self) -> tonic::transport::ClientTlsConfig {
        tonic::transport::ClientTlsConfig::new().trust_anchors(self.roots.roots.iter().cloned())
    }

    /// Does a handshake, which shows whether the server's certificate is trusted, before anything secret is
    /// sent.
    ///
    /// # Errors
    ///
    /// `tls`, with the reason.
    pub async fn handshake(
        &self,
        connection: TcpStream,
        address: &ServerAddress,
    ) -> Result<(), Failure> {
        let host = address.host().to_owned();
        let name = ServerName::try_from(host)
            .map_err(|e| Failure::usage("invalid", format!("{address}: {e}")))?;
        let mut config = self.client_config()?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        match connector.connect(name, connection).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(address, &error)),
        }
    }
}

/// The failure for a handshake that failed.
fn refused(address: &ServerAddress, error: &std::io::Error) -> Failure {
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
