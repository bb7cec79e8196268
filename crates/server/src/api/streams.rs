//! `/v1/streams`, except for records.

use axum::extract::{FromRequest, Path, Query, State};
use esker_node::streams::DEFAULT_STORAGE_CLASS;
use esker_node::{Create, StreamListing};
use http::StatusCode;
use s2_api::data::{Json, extract::JsonOpt};
use s2_api::v1;
use s2_common::basin::BasinName;
use s2_common::config::{OptionalStreamConfig, StreamConfig, StreamReconfiguration};
use s2_common::http::extract::{Header, HeaderOpt};
use s2_common::resources::RequestToken;
use s2_common::stream::{ListStreamsRequest, StreamName};

use super::basins::{Provisioned, provision_result, status_of};
use super::{App, ServiceError};
use crate::timestamp::timestamp;

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ListArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Query))]
    request: v1::stream::ListStreamsRequest,
}

pub async fn list(
    State(app): State<App>,
    ListArgs { basin, request }: ListArgs,
) -> Result<Json<v1::stream::ListStreamsResponse>, ServiceError> {
    let request: ListStreamsRequest = request.try_into()?;
    let (streams, has_more) = app.node.list_streams(
        &basin,
        &request.prefix,
        &request.start_after,
        request.limit.as_usize(),
    )?;
    let streams = streams.iter().map(stream_info).collect::<Result<_, _>>()?;
    Ok(Json(v1::stream::ListStreamsResponse { streams, has_more }))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct CreateArgs {
    request_token: HeaderOpt<RequestToken>,
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Json))]
    request: v1::stream::CreateStreamRequest,
}

pub async fn create(
    State(app): State<App>,
    CreateArgs {
        request_token: HeaderOpt(token),
        basin,
        request,
    }: CreateArgs,
) -> Result<Provisioned<v1::stream::StreamInfo>, ServiceError> {
    let config = checked_config(request.config)?;
    let create = Create::Only {
        token: token.map(|t| t.to_string()),
    };
    let (change, info) = app
        .node
        .provision_stream(&basin, &request.stream, &config, &create)
        .await?;
    Ok((
        StatusCode::CREATED,
        provision_result(change),
        Json(stream_info(&info)?),
    ))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct NameArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
}

pub async fn config(
    State(app): State<App>,
    NameArgs { basin, stream }: NameArgs,
) -> Result<Json<v1::config::StreamConfig>, ServiceError> {
    Ok(Json(wire_config(app.node.stream_config(&basin, &stream)?)))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct EnsureArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
    config: JsonOpt<v1::config::StreamConfig>,
}

pub async fn ensure(
    State(app): State<App>,
    EnsureArgs {
        basin,
        stream,
        config: JsonOpt(config),
    }: EnsureArgs,
) -> Result<Provisioned<v1::stream::StreamInfo>, ServiceError> {
    let config = checked_config(config)?;
    let (change, info) = app
        .node
        .provision_stream(&basin, &stream, &config, &Create::Ensure)
        .await?;
    Ok((
        status_of(change),
        provision_result(change),
        Json(stream_info(&info)?),
    ))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ReconfigureArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
    #[from_request(via(Json))]
    reconfiguration: v1::config::StreamReconfiguration,
}

pub async fn reconfigure(
    State(app): State<App>,
    ReconfigureArgs {
        basin,
        stream,
        reconfiguration,
    }: ReconfigureArgs,
) -> Result<Json<v1::config::StreamConfig>, ServiceError> {
    let changes: StreamReconfiguration = reconfiguration.try_into()?;
    let config = app
        .node
        .reconfigure_stream(&basin, &stream, &changes)
        .await?;
    Ok(Json(wire_config(config)))
}

pub async fn delete(
    State(app): State<App>,
    NameArgs { basin, stream }: NameArgs,
) -> Result<StatusCode, ServiceError> {
    app.node.delete_stream(&basin, &stream).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A stream's settings, always with a storage class. Settings of a basin have only what was set.
fn wire_config(mut config: StreamConfig) -> v1::config::StreamConfig {
    let class = config.storage_class.take();
    config.storage_class = Some(class.unwrap_or_else(|| DEFAULT_STORAGE_CLASS.into()));
    config.into()
}

fn checked_config(
    config: Option<v1::config::StreamConfig>,
) -> Result<OptionalStreamConfig, ServiceError> {
    Ok(config
        .map(TryInto::try_into)
        .transpose()?
        .unwrap_or_default())
}

fn stream_info(stream: &StreamListing) -> Result<v1::stream::StreamInfo, ServiceError> {
    let info = s2_common::stream::StreamInfo {
        name: stream.name.parse()?,
        created_at: timestamp(stream.created_ms)?,
        // A deleted stream disappears at once.
        deleted_at: None,
        cipher: stream.cipher,
    };
    Ok(info.into())
}
