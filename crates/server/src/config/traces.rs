//! Traces of requests (`[traces]`).
//!
//! The attributes of the fields are explained in [`values`](super::values).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;

/// Traces of requests (`[traces]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TracesConfig {
    /// A collector of OpenTelemetry that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Without a
    /// path, `/v1/traces` is added. Unset, there are no traces.
    #[schemars(extend("format" = "endpoint"))]
    pub endpoint: Option<String>,

    /// A header that is sent to the collector, as `name: value`, such as `authorization: Bearer TOKEN`.
    /// Unset, none is sent.
    pub header: Option<Secret>,

    /// How many requests of a thousand are traced. For a request with a `traceparent` header, the flag in that
    /// header decides instead.
    #[schemars(range(max = 1000))]
    pub sampled_per_thousand: u32,

    /// Name of this service in traces.
    #[schemars(extend("format" = "text"))]
    pub service_name: String,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            header: None,
            sampled_per_thousand: 10,
            service_name: "esker".to_owned(),
        }
    }
}
