//! Missing objects, and the form of every error.

use http::Method;
use serde_json::json;

use crate::support::http::TRANSPORTS;
use crate::support::sdk;
use crate::support::{Server, Setup};

#[tokio::test]
async fn what_is_not_there_yet_says_so() {
    let server = Server::fresh().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for (method, path) in [] {
            http.request(method, path)
                .send()
                .await
                .refused(501, "not_implemented");
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_with_a_code() {
    let server = Server::fresh().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for path in [
            "/index.html",
            "/v1",
            "/v1/",
            "/v2/basins",
            "/v1/basin",
            "/v1/basins/a-basin-name/more",
            "/v1/streams/orders/records/head",
            "/v1/streams/orders/records/tail/more",
            "/v1/streams//records",
            "/healthz",
        ] {
            let answer = http.get(path).basin("test-basin").send().await;
            assert!(answer.status.is_client_error(), "{path}: {answer:?}");
            assert_eq!(answer.code(), "bad_path", "{path}");
        }
        for (method, path) in [
            (Method::DELETE, "/v1/basins"),
            (Method::POST, "/v1/basins/test-basin"),
            (Method::PUT, "/v1/streams"),
            (Method::DELETE, "/v1/streams/orders/records"),
            (Method::POST, "/v1/streams/orders/records/tail"),
            (Method::POST, "/health"),
            (Method::DELETE, "/metrics"),
        ] {
            http.request(method, path)
                .basin("test-basin")
                .send()
                .await
                .refused(405, "invalid");
        }
    }
}

#[tokio::test]
async fn series_of_failures_are_there_before_the_first_failure() {
    let server = Setup::default().start_fresh().await;
    let metrics = server.http1().get("/metrics").send().await.expect(200);
    let text = metrics.text();
    let route = "/v1/streams/{stream}/records";
    for series in [
        format!("esker_http_requests_total{{route=\"{route}\",method=\"POST\",status=\"503\"}} 0"),
        format!("esker_http_requests_total{{route=\"{route}\",method=\"GET\",status=\"429\"}} 0"),
        "esker_http_requests_total{route=\"/health\",method=\"GET\",status=\"503\"} 0".to_owned(),
        "esker_state_requests_total{method=\"esker.state.v1.StateService/Commit\",code=\"UNKNOWN\"} 0"
            .to_owned(),
        "esker_http_session_errors_total{status=\"503\"} 0".to_owned(),
        "esker_http_answers_stalled_total 0".to_owned(),
        "esker_request_bodies_bytes 0".to_owned(),
        "esker_request_bodies_waiting 0".to_owned(),
        "esker_http_connections 1".to_owned(),
    ] {
        assert!(text.lines().any(|line| line == series), "no {series} in:\n{text}");
    }
}

#[tokio::test]
async fn health_and_metrics_answer_on_both_transports() {
    let server = Setup::default().partitions(3).start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["a", "b"]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for path in ["/health", "/ping"] {
            assert_eq!(http.get(path).send().await.expect(200).text(), "OK");
        }
        let metrics = http.get("/metrics").send().await.expect(200);
        let kind = metrics.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain"), "{kind}");
        let text = metrics.text();
        // The sum over all series of the name.
        let value = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines
                .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
                .sum()
        };
        assert_eq!(value("esker_appended_records_total"), 2.0);
        assert_eq!(value("esker_appended_batches_total"), 1.0);
        assert!(value("esker_http_requests_total") >= 1.0);
    }
}

#[tokio::test]
async fn a_basin_has_to_be_named_and_headers_have_to_make_sense() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for request in [
            http.get("/v1/streams"),
            http.get("/v1/streams/orders"),
            http.put("/v1/streams/orders"),
            http.delete("/v1/streams/orders"),
            http.post("/v1/streams").json(&json!({"stream": "orders"})),
            http.patch("/v1/streams/orders").json(&json!({})),
            http.get("/v1/streams/orders/records"),
            http.get("/v1/streams/orders/records/tail"),
            http.post("/v1/streams/orders/records")
                .json(&json!({"records": [{"body": "x"}]})),
        ] {
            request.send().await.refused(400, "bad_header");
        }
        http.post("/v1/streams")
            .basin("test-basin")
            .header("s2-request-token", &"x".repeat(37))
            .json(&json!({"stream": "orders"}))
            .send()
            .await
            .refused(400, "bad_header");
        let records = json!({"records": [{"body": "x"}]});
        for (name, value) in [
            ("s2-format", "hex"),
            ("s2-stream-config", "not json"),
            ("s2-stream-config", r#"{"retention_policy":{"age":0}}"#),
        ] {
            http.post("/v1/streams/orders/records")
                .basin("test-basin")
                .header(name, value)
                .json(&records)
                .send()
                .await
                .refused(400, "bad_header");
        }
    }
}
