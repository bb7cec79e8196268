//! `/v1/metrics`: usage of the account, of a basin and of a stream.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Path, Query, State};
use esker_node::Error;
use s2_api::data::Json;
use s2_api::v1::metrics::{
    AccountMetricSetRequest, BasinMetricSetRequest, MetricSetResponse, StreamMetricSetRequest,
};
use s2_common::access::Operation;
use s2_common::basin::BasinName;
use s2_common::metrics::{
    AccountMetricsRequest, BasinMetricsRequest, Metric, MetricsResponse, StreamMetricSet,
    StreamMetricsRequest,
};
use s2_common::stream::StreamName;
use tokio::sync::Semaphore;

use super::{App, ServiceError};
use crate::auth::Access;
use crate::usage::{self, Bounds};

/// Requests whose metrics are read from the database at a time. Each may read 64 MiB of records, and has a
/// thread meanwhile.
const MAX_READINGS: usize = 2;
/// How long a request waits for those before it.
const READING_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes turns in reading the database for metrics. Clones share the turns.
#[derive(Clone, Debug)]
pub struct Readings {
    turns: Arc<Semaphore>,
    timeout: Duration,
}

impl Default for Readings {
    fn default() -> Readings {
        Readings {
            turns: Arc::new(Semaphore::new(MAX_READINGS)),
            timeout: READING_TIMEOUT,
        }
    }
}

impl Readings {
    /// Runs what reads the database on a thread where that is fine, in turn. What has begun keeps its turn
    /// until it ends, even if its client has gone.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turns.clone().acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(self.timeout, turn).await else {
            return Err(Error::TryLater(format!(
                "other requests for metrics have read for {} s: nothing happened, try again",
                self.timeout.as_secs()
            )));
        };
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await
            .map_err(|error| Error::Storage(error.to_string()))
    }
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct AccountArgs {
    #[from_request(via(Query))]
    request: AccountMetricSetRequest,
}

pub async fn account(
    State(app): State<App>,
    access: Access,
    AccountArgs { request }: AccountArgs,
) -> Result<Json<MetricSetResponse>, ServiceError> {
    let granted = access.account(Operation::AccountMetrics)?;
    let AccountMetricsRequest {
        set,
        start,
        end,
        interval,
    } = request.into();
    let bounds = Bounds {
        start,
        end,
        interval,
    };
    let node = app.node.open(&granted).clone();
    let readings = app.readings.clone();
    let read = move || usage::account(&app.usage, &node, set, bounds);
    let mut values = readings.run(read).await??;
    for metric in &mut values {
        if let Metric::Label(of) = metric {
            // Basins, of which the sender may know those of the scope alone.
            of.values.retain(|basin| access.sees_basin(basin));
        }
    }
    Ok(Json(MetricsResponse { values }.into()))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct BasinArgs {
    #[from_request(via(Path))]
    basin: BasinName,
    #[from_request(via(Query))]
    request: BasinMetricSetRequest,
}

pub async fn basin(
    State(app): State<App>,
    access: Access,
    BasinArgs { basin, request }: BasinArgs,
) -> Result<Json<MetricSetResponse>, ServiceError> {
    let granted = access.basin(Operation::BasinMetrics, &basin)?;
    let BasinMetricsRequest {
        set,
        start,
        end,
        interval,
    } = request.into();
    let bounds = Bounds {
        start,
        end,
        interval,
    };
    let node = app.node.open(&granted).clone();
    node.basin_config(&basin)?;
    let readings = app.readings.clone();
    let read = move || usage::basin(&app.usage, &node, &basin, set, bounds);
    let values = readings.run(read).await??;
    Ok(Json(MetricsResponse { values }.into()))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct StreamArgs {
    #[from_request(via(Path))]
    path: (BasinName, StreamName),
    #[from_request(via(Query))]
    request: StreamMetricSetRequest,
}

pub async fn stream(
    State(app): State<App>,
    access: Access,
    StreamArgs {
        path: (basin, stream),
        request,
    }: StreamArgs,
) -> Result<Json<MetricSetResponse>, ServiceError> {
    let stream = access.stream(Operation::StreamMetrics, &basin, stream)?;
    let StreamMetricsRequest {
        set: StreamMetricSet::Storage,
        start,
        end,
        interval,
    } = request.into();
    let bounds = Bounds {
        start,
        end,
        interval,
    };
    let node = app.node.open(&stream.granted).clone();
    let stream = stream.name;
    let readings = app.readings.clone();
    let values = readings.run(move || {
        node.stream_config(&basin, &stream)?;
        let metrics = usage::storage_of_stream(&app.usage, &node, &basin, &stream, bounds)?;
        Ok::<_, ServiceError>(metrics?)
    });
    Ok(Json(
        MetricsResponse {
            values: values.await??,
        }
        .into(),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures::FutureExt as _;
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn no_more_requests_read_for_metrics_at_a_time_than_there_are_turns() {
        let (readings, running) = (Readings::default(), Arc::new(AtomicUsize::new(0)));
        let most = join_all((0..40).map(|_| {
            let running = running.clone();
            readings.run(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                std::thread::yield_now();
                std::thread::sleep(Duration::from_millis(1));
                running.fetch_sub(1, Ordering::SeqCst);
                now
            })
        }));
        let most = most.await.into_iter().map(Result::unwrap).max();
        assert!(most <= Some(MAX_READINGS), "{most:?}");
    }

    #[tokio::test]
    async fn a_request_that_has_gone_keeps_its_turn_until_its_reading_ends_and_others_wait_in_time()
    {
        let readings = Readings {
            timeout: Duration::from_millis(20),
            ..Readings::default()
        };
        let ends: Vec<_> = (0..MAX_READINGS)
            .map(|_| {
                let (end, ended) = mpsc::channel::<()>();
                // Its client goes at once.
                let gone = readings.run(move || ended.recv()).now_or_never();
                assert!(gone.is_none());
                end
            })
            .collect();
        let late = readings.run(|| ()).await.unwrap_err();
        assert!(matches!(late, Error::TryLater(_)), "{late}");
        drop(ends);
        let readings = Readings {
            timeout: READING_TIMEOUT,
            ..readings
        };
        readings.run(|| ()).await.unwrap();
    }
}
