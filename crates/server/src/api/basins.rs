//! `/v1/basins`.

use axum::extract::{FromRequest, Path, Query, State};
use esker_node::{BasinInfo, Change, Create, Node};
use http::{HeaderName, StatusCode};
use s2_api::data::{Json, extract::JsonOpt};
use s2_api::v1;
use s2_common::access::Operation;
use s2_common::basin::{BasinName, ListBasinsRequest};
use s2_common::config::{BasinConfig, BasinReconfiguration};
use s2_common::http::extract::HeaderOpt;
use s2_common::resources::{PROVISION_RESULT_HEADER, RequestToken};

use super::{App, ServiceError, locations};
use crate::auth::Access;
use crate::auth::scope::Visible;
use crate::client::OfClient;
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
    access: Access,
    ListArgs { request }: ListArgs,
) -> Result<Json<v1::basin::ListBasinsResponse>, ServiceError> {
    let request: ListBasinsRequest = request.try_into()?;
    let listing = access.basins(&request.prefix, &request.start_after)?;
    let node = app.node.open(&listing.granted);
    let (basins, has_more) = match &listing.visible {
        Visible::Nothing => (Vec::new(), false),
        Visible::Prefixed {
            prefix,
            start_after,
        } => node.list_basins(prefix, start_after, request.limit.as_usize()),
        // The first one with a prefix is the one that has that name, if it is there.
        Visible::One(name) => {
            let (mut basins, _) = node.list_basins(name, "", 1);
            basins.retain(|it| it.name == *name);
            (basins, false)
        }
    };
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
    OfClient(client): OfClient,
    access: Access,
    CreateArgs {
        request_token: HeaderOpt(token),
        request,
    }: CreateArgs,
) -> Result<Provisioned<v1::basin::BasinInfo>, ServiceError> {
    let granted = access.basin(Operation::CreateBasin, &request.basin)?;
    locations::check(&app, request.location.as_ref())?;
    let config = checked_config(request.config)?;
    let create = Create::Only {
        token: token.map(|t| t.to_string()),
    };
    let node = app.node.open(&granted);
    let lease = access.lease();
    let create = |node: Node| async move {
        lease.check()?;
        let created = node.provision_basin(&request.basin, &config, &create);
        Ok::<_, ServiceError>(created.await?)
    };
    let (change, info) = node.change(client, create).await?;
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
    OfClient(client): OfClient,
    access: Access,
    EnsureArgs {
        basin,
        request: JsonOpt(request),
    }: EnsureArgs,
) -> Result<Provisioned<v1::basin::BasinInfo>, ServiceError> {
    // It may do either.
    access.basin(Operation::ReconfigureBasin, &basin)?;
    let granted = access.basin(Operation::CreateBasin, &basin)?;
    let (config, location) = request.map_or((None, None), |r| (r.config, r.location));
    locations::check(&app, location.as_ref())?;
    let config = checked_config(config)?;
    let node = app.node.open(&granted);
    let lease = access.lease();
    let ensure = |node: Node| async move {
        lease.check()?;
        let ensured = node.provision_basin(&basin, &config, &Create::Ensure);
        Ok::<_, ServiceError>(ensured.await?)
    };
    let (change, info) = node.change(client, ensure).await?;
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
    access: Access,
    NameArgs { basin }: NameArgs,
) -> Result<Json<v1::config::BasinConfig>, ServiceError> {
    let granted = access.basin(Operation::GetBasinConfig, &basin)?;
    Ok(Json(app.node.open(&granted).basin_config(&basin)?.into()))
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
    OfClient(client): OfClient,
    access: Access,
    ReconfigureArgs {
        basin,
        reconfiguration,
    }: ReconfigureArgs,
) -> Result<Json<v1::config::BasinConfig>, ServiceError> {
    let granted = access.basin(Operation::ReconfigureBasin, &basin)?;
    let changes: BasinReconfiguration = reconfiguration.try_into()?;
    let node = app.node.open(&granted);
    let lease = access.lease();
    let reconfigure = |node: Node| async move {
        lease.check()?;
        let reconfigured = node.reconfigure_basin(&basin, &changes);
        Ok::<_, ServiceError>(reconfigured.await?)
    };
    Ok(Json(node.change(client, reconfigure).await?.into()))
}

pub async fn delete(
    State(app): State<App>,
    OfClient(client): OfClient,
    access: Access,
    NameArgs { basin }: NameArgs,
) -> Result<StatusCode, ServiceError> {
    let granted = access.basin(Operation::DeleteBasin, &basin)?;
    let node = app.node.open(&granted);
    let lease = access.lease();
    let delete = |node: Node| async move {
        lease.check()?;
        Ok::<_, ServiceError>(node.delete_basin(&basin).await?)
    };
    node.change(client, delete).await?;
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
