//! `/v1/basins`.

use axum::extract::{FromRequest, Path, Query, State};
use esker_node::{BasinInfo, Change, Create};
use http::{HeaderName, StatusCode};
use s2_api::data::{Json, extract::JsonOpt};
use s2_api::v1;
use s2_common::basin::{BasinName, ListBasinsRequest};
use s2_common::config::{BasinConfig, BasinReconfiguration};
use s2_common::http::extract::HeaderOpt;
use s2_common::resources::{PROVISION_RESULT_HEADER, RequestToken};

use super::{App, ServiceError, locations};
use crate::timestamp::timestamp;

/// A status, the header with the result of provisioning, and the resource.
pub type Provisioned<T> = (StatusCode, [(HeaderName, &'static str); 1], Json<T>);

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ListArgs {
    #[from_request(via(Query))]
    request: v1::basin::ListBasinsRequest,
}

pub async fn list(
    State(app): State<App>,
    ListArgs { request }: ListArgs,
) -> Result<Json<v1::basin::ListBasinsResponse>, ServiceError> {
    let request: ListBasinsRequest = request.try_into()?;
    let (basins, has_more) = app.node.list_basins(
        &request.prefix,
        &request.start_after,
        request.limit.as_usize(),
    );
    let basins = basins.iter().map(|basin| basin_info(&app, basin));
    let basins = basins.collect::<Result<_, _>>()?;
    Ok(Json(v1::basin::ListBasinsResponse { basins, has_more }))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct CreateArgs {
    request_token: HeaderOpt<RequestToken>,
    #[from_request(via(Json))]
    request: v1::basin::CreateBasinRequest,
}

pub async fn create(
    State(app): State<App>,
    CreateArgs {
        request_token: HeaderOpt(token),
        request,
    }: CreateArgs,
) -> Result<Provisioned<v1::basin::BasinInfo>, ServiceError> {
    locations::check(&app, request.location.as_ref())?;
    let config = checked_config(request.config)?;
    let create = Create::Only {
        token: token.map(|t| t.to_string()),
    };
    let (change, info) = app
        .node
        .provision_basin(&request.basin, &config, &create)
        .await?;
    Ok((
        StatusCode::CREATED,
        provision_result(change),
        Json(basin_info(&app, &info)?),
    ))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct EnsureArgs {
    #[from_request(via(Path))]
    basin: BasinName,
    request: JsonOpt<v1::basin::EnsureBasinRequest>,
}

pub async fn ensure(
    State(app): State<App>,
    EnsureArgs {
        basin,
        request: JsonOpt(request),
    }: EnsureArgs,
) -> Result<Provisioned<v1::basin::BasinInfo>, ServiceError> {
    let (config, location) = request.map_or((None, None), |r| (r.config, r.location));
    locations::check(&app, location.as_ref())?;
    let config = checked_config(config)?;
    let (change, info) = app
        .node
        .provision_basin(&basin, &config, &Create::Ensure)
        .await?;
    Ok((
        status_of(change),
        provision_result(change),
        Json(basin_info(&app, &info)?),
    ))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct NameArgs {
    #[from_request(via(Path))]
    basin: BasinName,
}

pub async fn config(
    State(app): State<App>,
    NameArgs { basin }: NameArgs,
) -> Result<Json<v1::config::BasinConfig>, ServiceError> {
    Ok(Json(app.node.basin_config(&basin)?.into()))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ReconfigureArgs {
    #[from_request(via(Path))]
    basin: BasinName,
    #[from_request(via(Json))]
    reconfiguration: v1::config::BasinReconfiguration,
}

pub async fn reconfigure(
    State(app): State<App>,
    ReconfigureArgs {
        basin,
        reconfiguration,
    }: ReconfigureArgs,
) -> Result<Json<v1::config::BasinConfig>, ServiceError> {
    let changes: BasinReconfiguration = reconfiguration.try_into()?;
    let config = app.node.reconfigure_basin(&basin, &changes).await?;
    Ok(Json(config.into()))
}

pub async fn delete(
    State(app): State<App>,
    NameArgs { basin }: NameArgs,
) -> Result<StatusCode, ServiceError> {
    app.node.delete_basin(&basin).await?;
    Ok(StatusCode::ACCEPTED)
}

fn checked_config(config: Option<v1::config::BasinConfig>) -> Result<BasinConfig, ServiceError> {
    let config: BasinConfig = config
        .map(TryInto::try_into)
        .transpose()?
        .unwrap_or_default();
    Ok(config)
}

fn basin_info(app: &App, basin: &BasinInfo) -> Result<v1::basin::BasinInfo, ServiceError> {
    let info = s2_common::basin::BasinInfo {
        name: basin.name.parse()?,
        location: Some(app.location.clone()),
        created_at: timestamp(basin.created_ms)?,
        deleted_at: basin.deleted_ms.map(timestamp).transpose()?,
    };
    Ok(info.into())
}

/// The header with the result of provisioning.
pub fn provision_result(change: Change) -> [(HeaderName, &'static str); 1] {
    let result = match change {
        Change::Created => "created",
        Change::Updated => "updated",
        Change::Nothing => "noop",
    };
    [(PROVISION_RESULT_HEADER.clone(), result)]
}

/// The status of a PUT.
pub fn status_of(change: Change) -> StatusCode {
    match change {
        Change::Created => StatusCode::CREATED,
        Change::Updated | Change::Nothing => StatusCode::OK,
    }
}
