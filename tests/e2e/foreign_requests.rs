//! Requests that come from a foreign web page, or are not meant for this server.

use esker_proto::{DESCRIPTORS, FileDescriptorSet};
use http::Method;
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::http::{Answer, Http, TRANSPORTS};
use crate::support::sdk;
use crate::support::{Server, Setup, soon};

/// A method, a path, and the content type that it accepts.
type Route = (Method, String, &'static str);

/// All routes of the server, from its own documents where these exist.
async fn routes(server: &Server) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for (methods, path) in [
        ("GET", "/health"),
        ("GET", "/ping"),
        ("GET", "/metrics"),
        ("GET POST", "/v1/basins"),
        ("GET PUT PATCH DELETE", "/v1/basins/test-basin"),
        ("GET POST", "/v1/streams"),
        ("GET PUT PATCH DELETE", "/v1/streams/orders"),
        ("GET POST", "/v1/streams/orders/records"),
        ("GET", "/v1/streams/orders/records/tail"),
        ("GET POST", "/v1/access-tokens"),
        ("GET", "/v1/metrics"),
        ("GET", "/v1/locations"),
        ("GET", "/no-such-path"),
        ("POST", "/v1/no-such-path"),
    ] {
        for method in methods.split(' ') {
            routes.push((method.parse().unwrap(), path.into(), "application/json"));
        }
    }
    let document = server.http1().get("/esker/v1/openapi.json").send().await;
    let document = document.json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path
                .replace("{partition}", "1")
                .replace("{stream}", "orders")
                .replace("{snapshot}", "newest")
                .replace("{from}", "oldest")
                .replace("{to}", "newest");
            let method = method.to_uppercase().parse().unwrap();
            routes.push((method, path, "application/json"));
        }
    }
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                routes.push((Method::POST, path, "application/grpc"));
            }
        }
    }
    assert!(routes.len() > 60, "{}", routes.len());
    routes
}

async fn sent(http: &Http, route: &Route, headers: &[(&str, &str)]) -> Answer {
    let (method, path, _) = route;
    let mut request = http.request(method.clone(), path).basin("test-basin");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if *method != Method::GET {
        // An empty message of gRPC, which is no valid JSON.
        request = request.body(vec![0; 5]);
    }
    request.send().await
}

/// The HTTP status, or 403 for the equivalent of gRPC.
fn status(answer: &Answer) -> u16 {
    match answer.header("grpc-status") {
        // PERMISSION_DENIED.
        Some("7") => 403,
        _ => answer.status.as_u16(),
    }
}

#[tokio::test]
async fn no_route_takes_foreign_origins_foreign_names_or_types_that_pages_send_unasked() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    let routes = routes(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for route in &routes {
            let (method, path, kind) = route;
            let own = ("content-type", *kind);
            for foreign in [
                ("origin", "https://evil.example"),
                ("origin", "null"),
                ("origin", "http://localhost:7070"),
                ("host", "evil.example"),
                ("host", "localhost.evil.example:7070"),
            ] {
                let answer = sent(&http, route, &[own, foreign]).await;
                let text = answer.text();
                assert_eq!(
                    status(&answer),
                    403,
                    "{transport:?} {method} {path} {foreign:?}: {text}"
                );
            }
            let is_grpc = *kind == "application/grpc";
            if *method == Method::GET && !is_grpc {
                continue;
            }
            for foreign in [
                Some("text/plain"),
                Some("application/x-www-form-urlencoded"),
                Some("multipart/form-data; boundary=x"),
                Some("text/plain; application/json"),
                Some("application/grpc-web"),
                None,
            ] {
                let foreign = foreign.map(|kind| ("content-type", kind));
                let answer = sent(&http, route, foreign.as_slice()).await;
                let text = answer.text();
                assert_eq!(
                    status(&answer),
                    415,
                    "{transport:?} {method} {path} {foreign:?}: {text}"
                );
            }
        }
    }
    let metrics = server.http1().get("/metrics").send().await.text();
    for reason in ["host", "header", "origin", "content_type"] {
        let counter = format!("esker_http_refused_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&counter), "{metrics}");
    }
}

#[tokio::test]
async fn a_page_cannot_replace_the_state_store() {
    let server = Server::fresh().await;
    let put = [
        "state",
        "put",
        "agent",
        "key",
        "{\"a\":1}",
        "--server",
        server.url(),
    ];
    let esker = env!("CARGO_BIN_EXE_esker");
    let done = tokio::process::Command::new(esker)
        .args(put)
        .output()
        .await
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // `ImportOptions { replace: true }` and an empty snapshot, in a form that a web page can send.
    let http = server.http1();
    let page = http
        .post("/esker.state.v1.StateService/Import")
        .header("content-type", "text/plain")
        .header("origin", "https://evil.example")
        .body(&b"\x00\x00\x00\x00\x04\x0a\x02\x08\x01"[..]);
    page.send().await.refused(403, "permission_denied");
    let get = ["state", "get", "agent", "key", "--server", server.url()];
    let got = tokio::process::Command::new(esker)
        .args(get)
        .output()
        .await
        .unwrap();
    assert!(
        got.status.success(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );
}

#[tokio::test]
async fn origins_and_names_that_the_configuration_allows_are_taken() {
    let server = Setup::default()
        .set("allowed-origins=https://ui.example:8443, http://other.example")
        .set("allowed-hosts=esker.internal")
        .start_fresh()
        .await;
    let http = server.http1();
    let health = |name: &'static str, value: &'static str| {
        let request = http.get("/health").header(name, value);
        async move { request.send().await.status.as_u16() }
    };
    assert_eq!(health("origin", "https://ui.example:8443").await, 200);
    assert_eq!(health("origin", "http://other.example").await, 200);
    assert_eq!(health("origin", "https://ui.example").await, 403);
    assert_eq!(health("host", "esker.internal:7070").await, 200);
    assert_eq!(health("host", "localhost").await, 200);
    assert_eq!(health("host", "[::1]:1").await, 200);
    assert_eq!(health("host", "esker.external").await, 403);
}

#[tokio::test]
async fn headers_that_decide_come_once_and_http_1_1_names_its_host() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let twice = http
            .get("/v1/streams")
            .basin("test-basin")
            .basin("other-basin");
        twice.send().await.refused(400, "bad_header");
        let same = http
            .get("/v1/streams")
            .basin("test-basin")
            .basin("test-basin");
        same.send().await.expect(200);
        let created = http
            .post("/v1/streams")
            .basin("test-basin")
            .json(&json!({"stream": "orders"}));
        let twice = created
            .header("s2-request-token", "a")
            .header("s2-request-token", "b");
        twice.send().await.refused(400, "bad_header");
    }
    for (head, status) in [
        ("GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        (
            "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
            "400",
        ),
        (
            "GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "403",
        ),
        ("GET /health HTTP/1.0\r\n\r\n", "200"),
    ] {
        let mut connection = tokio::net::TcpStream::connect(server.address())
            .await
            .unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let read = soon("an answer", connection.read_exact(&mut answer)).await;
        read.unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{head}");
    }
}

#[tokio::test]
async fn methods_that_clients_make_up_are_one_label_of_the_metrics() {
    let server = Server::fresh().await;
    let http = server.http2();
    for index in 0..500 {
        let method = format!("MADEUP{index}").parse().unwrap();
        http.request(method, "/v1/access-tokens")
            .send()
            .await
            .expect(405);
        http.request(Method::GET, &format!("/made-up-{index}"))
            .send()
            .await
            .expect(400);
    }
    let metrics = http.get("/metrics").send().await.text();
    assert!(metrics.contains("method=\"other\""), "{metrics}");
    assert!(!metrics.to_lowercase().contains("madeup"), "{metrics}");
    assert!(!metrics.contains("made-up-"), "{metrics}");
}
