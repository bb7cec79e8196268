//! Spans that have ended, on their way to the collector.
//!
//! A task takes them from a bounded queue and sends them in batches, one batch at a time. What does not fit
//! into the queue is dropped and counted; what the collector does not take is counted, too, and not sent
//! again.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::collector::SEND_TIMEOUT;

/// Most spans that wait, some 1 KiB each.
pub(super) const MAX_QUEUED: usize = 4096;
/// Most spans of one batch.
const MAX_BATCH: usize = 512;
/// How long spans wait for others to be sent with.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);

const SPANS: &str = "esker_trace_spans_total";

fn count(result: &'static str, spans: usize) {
    metrics::counter!(SPANS, "result" => result).increment(spans as u64);
}

/// Registers the series, at zero if they are new.
pub(crate) fn register() {
    for result in ["sent", "failed", "dropped"] {
        count(result, 0);
    }
}

/// The queue, and the task that sends what is in it.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    ended: mpsc::Sender<SpanData>,
    stop: CancellationToken,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Queue {
    pub(super) fn start(exporter: SpanExporter, endpoint: String) -> Queue {
        let (ended, waiting) = mpsc::channel(MAX_QUEUED);
        let stop = CancellationToken::new();
        let task = tokio::spawn(send_all(exporter, endpoint, waiting, stop.clone()));
        Queue {
            ended,
            stop,
            task: Arc::new(Mutex::new(Some(task))),
        }
    }

    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.ended.capacity() == 0
    }

    /// Sends what is in the queue, within a time limit.
    pub(super) async fn stop(&self, timeout: Duration) {
        self.stop.cancel();
        let Some(task) = self.task.lock().await.take() else {
            return;
        };
        let abort = task.abort_handle();
        if tokio::time::timeout(timeout, task).await.is_err() {
            abort.abort();
            tracing::warn!(
                "the last traces were not sent: the collector did not take them in time"
            );
        }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.stop.is_cancelled() || self.ended.try_send(span).is_err() {
            count("dropped", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

async fn send_all(
    exporter: SpanExporter,
    endpoint: String,
    mut waiting: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
) {
    let mut failing = false;
    let mut batch = Vec::new();
    loop {
        let until = tokio::time::Instant::now() + BATCH_INTERVAL;
        while batch.len() < MAX_BATCH {
            let room = MAX_BATCH - batch.len();
            let more = tokio::select! {
                more = waiting.recv_many(&mut batch, room) => more,
                () = tokio::time::sleep_until(until) => 0,
                () = stop.cancelled() => {
                    // What is in the queue by now, and no more.
                    waiting.close();
                    waiting.recv_many(&mut batch, room).await
                }
            };
            if more == 0 {
                break;
            }
        }
        if batch.is_empty() {
            if stop.is_cancelled() {
                return;
            }
            continue;
        }
        let spans = batch.len();
        let sent = tokio::time::timeout(SEND_TIMEOUT, exporter.export(std::mem::take(&mut batch)));
        let problem = match sent.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", SEND_TIMEOUT.as_secs())),
        };
        count(if problem.is_none() { "sent" } else { "failed" }, spans);
        match problem {
            Some(problem) if !failing => {
                tracing::warn!(
                    %endpoint,
                    %problem,
                    "traces cannot be sent: the collector does not take them; requests go on"
                );
                failing = true;
            }
            None if failing => {
                tracing::info!(%endpoint, "traces are sent again");
                failing = false;
            }
            _ => {}
        }
    }
}
