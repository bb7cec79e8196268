//! The service over TLS.

use std::process::Command;

use esker_proto::statehouse::v1::HealthRequest;
use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::python::python;
use crate::support::tls::TlsFiles;
use crate::support::{Server, Setup, soon};

/// A channel that trusts the files' authority.
async fn channel(url: String, files: &TlsFiles) -> Channel {
    let authority = Certificate::from_pem(files.authority.certificate());
    let tls = ClientTlsConfig::new().ca_certificate(authority);
    let endpoint = Channel::from_shared(url).unwrap().tls_config(tls).unwrap();
    soon("a connection", endpoint.connect()).await.unwrap()
}

async fn with_both_listeners(files: &TlsFiles) -> (Server, String) {
    let setup = Setup::with_tls(files).set("state.listen=127.0.0.1:0");
    let server = setup.start_fresh().await;
    let line = server.logged("the state service listens on ").await;
    let address = line.split_whitespace().find(|it| it.starts_with("127."));
    let address = address.unwrap().to_owned();
    (server, address)
}

#[tokio::test]
async fn both_listeners_serve_it_and_open_channels_outlive_new_files() {
    let files = TlsFiles::new();
    let (server, address) = with_both_listeners(&files).await;
    let mut clients = Vec::new();
    for url in [server.url().to_owned(), format!("https://{address}")] {
        let mut client = StatehouseServiceClient::new(channel(url, &files).await);
        let health = client.health(HealthRequest {}).await.unwrap();
        assert_eq!(health.into_inner().status, "ok");
        clients.push(client);
    }
    files.renew(std::time::Duration::from_secs(100 * 24 * 3600));
    server.logged("The TLS certificate was read again").await;
    for client in &mut clients {
        client.health(HealthRequest {}).await.unwrap();
    }
}

#[tokio::test]
async fn grpc_in_python_trusts_the_authority_and_no_other() {
    let files = TlsFiles::new();
    let (server, address) = with_both_listeners(&files).await;
    for address in [server.address(), &address] {
        let output = Command::new(python())
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/state/tls_client.py"
            ))
            .arg(address)
            .arg(files.ca())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
    }
}
