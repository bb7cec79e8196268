//! Traces of requests, for a collector of OpenTelemetry. Off unless `traces.endpoint` is set.
//!
//! | module | what it holds |
//! |---|---|
//! | [`request`] | the layer around requests, which makes their spans |
//! | [`queue`] | spans that have ended, on their way to the collector |
//! | [`collector`] | the connection to the collector |
//!
//! Nothing waits for a collector: spans beyond [`queue::MAX_QUEUED`] are dropped and counted. A span has the
//! method, the route and the status of its request, and no names of basins, streams, agents and keys, no
//! headers and no bodies.

mod collector;
mod queue;
mod request;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _};

use crate::config::TracesConfig;

pub(crate) use queue::register;
pub(crate) use request::trace;

/// How long a stop waits for the spans that have ended.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What makes and sends traces. Cheap to clone; the default makes none.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Running>>);

struct Running {
    tracer: SdkTracer,
    /// The tracer stops with it.
    _provider: SdkTracerProvider,
    queue: queue::Queue,
}

impl Traces {
    /// Makes traces if the configuration names a collector. Needs a runtime; connects to nothing yet.
    ///
    /// # Errors
    ///
    /// The client for the collector cannot be made, or the header is none.
    pub fn start(config: &TracesConfig) -> Result<Traces, String> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(Traces::default());
        };
        let mut exporter = collector::exporter(endpoint, config.header.as_ref())?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", config.service_name.clone()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        exporter.set_resource(&resource);
        let queue = queue::Queue::start(exporter, endpoint.clone());
        let share = f64::from(config.sampled_per_thousand) / 1000.0;
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                share,
            ))))
            .with_resource(resource)
            .with_span_processor(queue.clone())
            .build();
        Ok(Traces(Some(Arc::new(Running {
            tracer: provider.tracer("esker"),
            _provider: provider,
            queue,
        }))))
    }

    /// Whether any request may be traced.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn running(&self) -> Option<&Running> {
        self.0.as_deref()
    }

    /// Sends the spans that have ended, within a time limit; later ones are dropped.
    pub async fn stop(&self, timeout: Duration) {
        if let Some(running) = self.running() {
            running.queue.stop(timeout).await;
        }
    }
}

#[cfg(test)]
mod tests;
