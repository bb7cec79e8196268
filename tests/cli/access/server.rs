//! A server that records what it gets and refuses every request, with TLS where a test wants it.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server that answers every request with an error.
pub(super) struct Refusing {
    pub(super) url: String,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Refusing {
    pub(super) fn start(status: u16, code: &'static str, message: &'static str) -> Refusing {
        Refusing::start_with(status, code, message, None)
    }

    pub(super) fn start_with(
        status: u16,
        code: &'static str,
        message: &'static str,
        tls: Option<TlsAcceptor>,
    ) -> Refusing {
        Refusing::start_in_turn(status, code, message, tls.into_iter().collect())
    }

    /// The same with an acceptor for each connection in turn; the last one is for all that follow.
    pub(super) fn start_in_turn(
        status: u16,
        code: &'static str,
        message: &'static str,
        mut tls: Vec<TlsAcceptor>,
    ) -> Refusing {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if !tls.is_empty() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let headers: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let seen = headers.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let acceptor = tls.first().cloned();
                if tls.len() > 1 {
                    tls.remove(0);
                }
                let (seen, tls) = (seen.clone(), acceptor);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        seen.lock().unwrap().push(request.headers().clone());
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer(
                            &request, status, code, message,
                        )))
                    });
                    let builder = Builder::new(TokioExecutor::new());
                    // A client that refuses the certificate ends the connection.
                    let _ = match tls {
                        None => {
                            builder
                                .serve_connection(TokioIo::new(connection), service)
                                .await
                        }
                        Some(tls) => match tls.accept(connection).await {
                            Ok(connection) => {
                                builder
                                    .serve_connection(TokioIo::new(connection), service)
                                    .await
                            }
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Refusing {
            url,
            headers,
            _runtime: runtime,
        }
    }

    /// The values of a header in the requests since the last call.
    pub(super) fn take(&self, name: &str) -> Vec<Option<String>> {
        let headers = std::mem::take(&mut *self.headers.lock().unwrap());
        let value = |headers: &HeaderMap| {
            let value = headers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        headers.iter().map(value).collect()
    }
}

fn answer(
    request: &Request<Incoming>,
    status: u16,
    code: &str,
    message: &str,
) -> Response<Full<Bytes>> {
    let content = request.headers().get("content-type");
    if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        let grpc = match status {
            401 => "16",
            403 => "7",
            _ => "8",
        };
        return Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", grpc)
            .header("grpc-message", message.replace(' ', "%20"))
            .header("esker-code", code)
            .body(Full::default())
            .unwrap();
    }
    let mut body = serde_json::json!({ "code": code, "message": message });
    let mut status = StatusCode::from_u16(status).unwrap();
    // Where a stream ends is no secret.
    if code == "decryption_failed" && request.uri().path().ends_with("/records/tail") {
        body = serde_json::json!({ "tail": { "seq_num": 5, "timestamp": 0 } });
        status = StatusCode::OK;
    }
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(body.to_string().into()))
        .unwrap()
}

/// The acceptor of a server with a certificate for 127.0.0.1, and the certificate of its authority.
pub(super) fn tls() -> (TlsAcceptor, String) {
    tls_for(None, rustls::ALL_VERSIONS)
}

/// The same with some versions of TLS. With the certificate of an authority, clients have to present a certificate
/// that it issued.
pub(super) fn tls_for(
    clients: Option<&str>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (TlsAcceptor, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            let authority = CertificateDer::from_pem_slice(authority.as_bytes());
            roots.add(authority.unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = config
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), authority)
}
