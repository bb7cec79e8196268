//! The connection to the collector: OTLP in protobuf over HTTP, by the client that the server has anyway.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};

use crate::config::Secret;

/// How long one request to the collector may take.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes that are read of the collector's answer: it has the number of refused spans and a message.
const MAX_ANSWER: usize = 64 * 1024;
/// The path of traces at a collector.
const PATH: &str = "/v1/traces";

/// What sends batches of spans to the collector.
pub(super) fn exporter(endpoint: &str, header: Option<&Secret>) -> Result<SpanExporter, String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("traces cannot be sent to {endpoint}: {error}");
    let client = reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .connect_timeout(SEND_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .default_headers(headers(header)?)
        .build()
        .map_err(|error| failed(&error))?;
    SpanExporter::builder()
        .with_http()
        .with_http_client(Client(client))
        .with_endpoint(url(endpoint))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(SEND_TIMEOUT)
        .build()
        .map_err(|error| failed(&error))
}

/// The URL of traces at a collector that is named by its address or by that URL.
fn url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    match rest.contains('/') {
        true => base.to_owned(),
        false => format!("{base}{PATH}"),
    }
}

/// The configured header.
pub(super) fn headers(header: Option<&Secret>) -> Result<HeaderMap, String> {
    let Some(header) = header else {
        return Ok(HeaderMap::new());
    };
    // The value is a secret, so the message has nothing of it.
    let wrong = || "`traces.header` is no header: it is to be `name: value`".to_owned();
    let (name, value) = header.expose().split_once(':').ok_or_else(wrong)?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
    let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(name, value)]))
}

#[derive(Debug)]
struct Client(reqwest::Client);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            std::mem::swap(headers, answer.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(format!("its answer has more than {MAX_ANSWER} bytes").into());
            }
        }
        Ok(response.body(body.into())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_address_or_by_the_url_of_traces() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
        ] {
            assert_eq!(url(endpoint), expected);
        }
    }

    #[test]
    fn a_header_that_is_none_is_refused_without_repeating_it() {
        let good = Secret::new("authorization: Bearer hush").unwrap();
        let headers = super::headers(Some(&good)).unwrap();
        assert_eq!(headers["authorization"], "Bearer hush");
        assert!(!format!("{headers:?}").contains("hush"));
        for bad in ["hush", "a b: hush", "név: hush"] {
            let error = super::headers(Some(&Secret::new(bad).unwrap())).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
