//! `/v1/metrics`: usage of the account, of a basin and of a stream.

use std::convert::Infallible;
use std::time::Instant;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use http::request::Parts;
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

use super::{App, ServiceError};
use crate::auth::Access;
use crate::client::OfClient;
use crate::forward::Others;
use crate::usage::{self, Bounds};

/// The other nodes of the cluster, which are asked as well; none outside of one.
pub struct Elsewhere(Option<Others>);

impl FromRequestParts<App> for Elsewhere {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Elsewhere, Infallible> {
        Ok(Elsewhere(Others::of(app.forwarder.as_ref(), parts)))
    }
}

impl Elsewhere {
    /// The metrics of this node, and those of all others that answer.
    async fn with(self, values: Vec<Metric>) -> Json<MetricSetResponse> {
        let own = MetricSetResponse::from(MetricsResponse { values });
        let Some(others) = self.0 else {
            return Json(own);
        };
        let answers = others.answers().await;
        let theirs = answers.iter().filter_map(|answer| {
            let parsed = serde_json::from_slice::<MetricSetResponse>(answer);
            parsed
                .inspect_err(|error| tracing::debug!(%error, "the metrics of another node"))
                .ok()
        });
        Json(usage::merged(std::iter::once(own).chain(theirs)))
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
    OfClient(client): OfClient,
    access: Access,
    elsewhere: Elsewhere,
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
    let mut values = readings.run(client, read).await??;
    for metric in &mut values {
        if let Metric::Label(of) = metric {
            // Basins, of which the sender may know those of the scope alone.
            of.values.retain(|basin| access.sees_basin(basin));
        }
    }
    Ok(elsewhere.with(values).await)
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
    OfClient(client): OfClient,
    access: Access,
    elsewhere: Elsewhere,
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
    let values = readings.run(client, read).await??;
    Ok(elsewhere.with(values).await)
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
    OfClient(client): OfClient,
    access: Access,
    elsewhere: Elsewhere,
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
    let arrived = Instant::now();
    let values = readings.run(client, move || {
        node.stream_config(&basin, &stream)?;
        let of = (&*basin, &*stream);
        let metrics = usage::storage_of_stream(&app.usage, &node, of, bounds, arrived)?;
        Ok::<_, ServiceError>(metrics?)
    });
    Ok(elsewhere.with(values.await??).await)
}
