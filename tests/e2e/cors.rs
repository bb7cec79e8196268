//! Pages of allowed origins.

use http::Method;

use crate::support::http::{Answer, Http, TRANSPORTS};
use crate::support::{Server, Setup, sdk};

const PAGE: &str = "https://ui.example:8443";

async fn preflight(http: &Http, path: &str, origin: &str) -> Answer {
    http.request(Method::OPTIONS, path)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,s2-basin",
        )
        .send()
        .await
}

#[track_caller]
fn allows(answer: &Answer, origin: Option<&str>) {
    assert_eq!(
        answer.header("access-control-allow-origin"),
        origin,
        "{}",
        answer.text()
    );
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_is_a_client() {
    let server = Setup::default()
        .set(&format!("allowed-origins={PAGE}, https://other.example"))
        .start_fresh()
        .await;
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    sdk::append(&stream, ["x"]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for path in [
            "/v1/streams/orders/records",
            "/esker/v1/status",
            "/no-such-path",
        ] {
            let answer = preflight(&http, path, PAGE).await.expect(204);
            allows(&answer, Some(PAGE));
            let list = |name: &str| answer.header(name).unwrap().to_owned();
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                assert!(list("access-control-allow-methods").contains(method));
            }
            let headers = list("access-control-allow-headers");
            for header in [
                "authorization",
                "content-type",
                "s2-basin",
                "s2-format",
                "last-event-id",
            ] {
                assert!(headers.split(", ").any(|it| it == header), "{header}");
            }
            assert_eq!(answer.header("access-control-max-age"), Some("7200"));
            assert!(list("vary").contains("origin"));
        }
        // Every other answer has the header, too: a success, events, refusals.
        let records = "/v1/streams/orders/records?seq_num=0&count=1";
        for (path, accept, status) in [
            ("/health", "*/*", 200),
            (records, "application/json", 200),
            (records, "text/event-stream", 200),
            ("/v1/streams/no-such-stream/records", "*/*", 404),
            ("/v1/streams/orders/records?seq_num=x", "*/*", 400),
            ("/no-such-path", "*/*", 400),
        ] {
            let request = http.get(path).basin("test-basin").header("accept", accept);
            let answer = request.header("origin", PAGE).send().await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            allows(&answer, Some(PAGE));
            let exposed = answer.header("access-control-expose-headers").unwrap();
            // What the official clients read of an answer that asks for patience.
            for header in ["retry-after", "retry-after-ms"] {
                let is_exposed = exposed.split(", ").any(|it| it == header);
                assert!(is_exposed, "{path}: {exposed}");
            }
        }
        let refused = http
            .post("/v1/streams/orders/records")
            .basin("test-basin")
            .header("content-type", "text/plain")
            .header("origin", PAGE)
            .body("x");
        allows(&refused.send().await.expect(415), Some(PAGE));

        for foreign in [
            "https://evil.example",
            "null",
            "https://ui.example",
            "https://ui.example:8443.evil.example",
        ] {
            allows(
                &preflight(&http, "/v1/basins", foreign).await.expect(403),
                None,
            );
            let answer = http
                .get("/v1/basins")
                .header("origin", foreign)
                .send()
                .await;
            allows(&answer.expect(403), None);
        }
        // What comes from no page is as ever, but no cache may mix it up.
        let answer = http.get("/health").send().await.expect(200);
        allows(&answer, None);
        assert_eq!(answer.header("vary"), Some("origin"));
        let options = http.request(Method::OPTIONS, "/v1/basins");
        assert_ne!(options.header("origin", PAGE).send().await.status, 204);
    }
}

#[tokio::test]
async fn every_origin_may_be_allowed_but_that_of_pages_without_one() {
    let server = Setup::default()
        .set("allowed-origins=*")
        .start_fresh()
        .await;
    let http = server.http1();
    allows(
        &preflight(&http, "/v1/basins", PAGE).await.expect(204),
        Some("*"),
    );
    let answer = http.get("/health").header("origin", PAGE).send().await;
    allows(&answer.expect(200), Some("*"));
    allows(
        &preflight(&http, "/v1/basins", "null").await.expect(403),
        None,
    );
}

#[tokio::test]
async fn without_configuration_no_page_is_a_client() {
    let server = Server::fresh().await;
    let http = server.http1();
    allows(
        &preflight(&http, "/v1/basins", PAGE).await.expect(403),
        None,
    );
    let answer = http.get("/health").send().await.expect(200);
    allows(&answer, None);
    assert_eq!(answer.header("vary"), None);
}
