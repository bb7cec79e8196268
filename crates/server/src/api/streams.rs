//! `/v1/streams`, except for records.

use axum::extract::{FromRequest, Path, Query, State};
use esker_node::streams::DEFAULT_STORAGE_CLASS;
use esker_node::{Create, Error, Node, StreamListing};
use http::StatusCode;
use s2_api::data::{Json, extract::JsonOpt};
use s2_api::v1;
use s2_common::access::Operation;
use s2_common::basin::BasinName;
use s2_common::config::{OptionalStreamConfig, StreamConfig, StreamReconfiguration};
use s2_common::http::extract::{Header, HeaderOpt};
use s2_common::resources::RequestToken;
use s2_common::stream::{ListStreamsRequest, StreamName};

use super::basins::{Provisioned, provision_result, status_of};
use super::{App, ServiceError};
use crate::auth::Access;
use crate::auth::scope::Visible;
use crate::client::OfClient;
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
    access: Access,
    OfClient(client): OfClient,
    ListArgs { basin, request }: ListArgs,
) -> Result<Json<v1::stream::ListStreamsResponse>, ServiceError> {
    let request: ListStreamsRequest = request.try_into()?;
    let listing = access.streams(&basin, &request.prefix, &request.start_after)?;
    let (visible, prefix) = (listing.visible, listing.prefix);
    let node = app.node.open(&listing.granted);
    let limit = request.limit.as_usize();
    let turn = app.lists.turn(client).await?;
    let listed = node.look_up(client, move |node| {
        let listed = list_visible(node, &basin, &visible, prefix, limit);
        // It keeps its turn until then, also if its client has gone.
        drop(turn);
        listed
    });
    let (streams, has_more) = listed.await?;
    let streams = streams
        .iter()
        .map(|it| stream_info(it, prefix))
        .collect::<Result<_, _>>()?;
    Ok(Json(v1::stream::ListStreamsResponse { streams, has_more }))
}

/// Lists what is visible, and whether there is more; `prefix` has so many bytes of a name that are hidden.
fn list_visible(
    node: &Node,
    basin: &str,
    visible: &Visible,
    prefix: usize,
    limit: usize,
) -> Result<(Vec<StreamListing>, bool), Error> {
    Ok(match visible {
        // Whether there is such a basin is answered as it is for others.
        Visible::Nothing => {
            node.list_streams(basin, "", "", 0)?;
            (Vec::new(), false)
        }
        Visible::Prefixed {
            prefix: all,
            start_after,
        } if prefix > 0 => {
            // Without the prefix, what others have named `.` and `..` after it are no names of streams.
            let (mut streams, more) =
                node.list_streams(basin, all, start_after, limit.saturating_add(2))?;
            streams.retain(|it| !matches!(it.name.get(prefix..), Some("." | "..")));
            let has_more = more || streams.len() > limit;
            streams.truncate(limit);
            (streams, has_more)
        }
        Visible::Prefixed {
            prefix,
            start_after,
        } => node.list_streams(basin, prefix, start_after, limit)?,
        // The first one with a prefix is the one that has that name, if it is there.
        Visible::One(name) => {
            let (mut streams, _) = node.list_streams(basin, name, "", 1)?;
            streams.retain(|it| it.name == *name);
            (streams, false)
        }
    })
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
    OfClient(client): OfClient,
    access: Access,
    CreateArgs {
        request_token: HeaderOpt(token),
        basin,
        request,
    }: CreateArgs,
) -> Result<Provisioned<v1::stream::StreamInfo>, ServiceError> {
    let stream = access.stream(Operation::CreateStream, &basin, request.stream)?;
    let config = checked_config(request.config)?;
    let create = Create::Only {
        token: token.map(|t| t.to_string()),
    };
    let node = app.node.open(&stream.granted);
    let name = stream.name.clone();
    let lease = access.lease();
    let create = |node: Node| async move {
        lease.check()?;
        let created = node.provision_stream(&basin, &name, &config, &create);
        Ok::<_, ServiceError>(created.await?)
    };
    let (change, info) = node.change(client, create).await?;
    Ok((
        StatusCode::CREATED,
        provision_result(change),
        Json(stream_info(&info, stream.prefix())?),
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
    OfClient(client): OfClient,
    access: Access,
    NameArgs { basin, stream }: NameArgs,
) -> Result<Json<v1::config::StreamConfig>, ServiceError> {
    let stream = access.stream(Operation::GetStreamConfig, &basin, stream)?;
    let node = app.node.open(&stream.granted);
    let name = stream.name;
    let config = node.look_up(client, move |node| node.stream_config(&basin, &name));
    Ok(Json(wire_config(config.await?)))
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
    OfClient(client): OfClient,
    access: Access,
    EnsureArgs {
        basin,
        stream,
        config: JsonOpt(config),
    }: EnsureArgs,
) -> Result<Provisioned<v1::stream::StreamInfo>, ServiceError> {
    // It may do either.
    access.stream(Operation::ReconfigureStream, &basin, stream.clone())?;
    let stream = access.stream(Operation::CreateStream, &basin, stream)?;
    let config = checked_config(config)?;
    let node = app.node.open(&stream.granted);
    let name = stream.name.clone();
    let lease = access.lease();
    let ensure = |node: Node| async move {
        lease.check()?;
        let ensured = node.provision_stream(&basin, &name, &config, &Create::Ensure);
        Ok::<_, ServiceError>(ensured.await?)
    };
    let (change, info) = node.change(client, ensure).await?;
    Ok((
        status_of(change),
        provision_result(change),
        Json(stream_info(&info, stream.prefix())?),
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
    OfClient(client): OfClient,
    access: Access,
    ReconfigureArgs {
        basin,
        stream,
        reconfiguration,
    }: ReconfigureArgs,
) -> Result<Json<v1::config::StreamConfig>, ServiceError> {
    let stream = access.stream(Operation::ReconfigureStream, &basin, stream)?;
    let changes: StreamReconfiguration = reconfiguration.try_into()?;
    let node = app.node.open(&stream.granted);
    let lease = access.lease();
    let reconfigure = |node: Node| async move {
        // A stream that is not open is looked up in a turn of its own, so it is checked again after that.
        let check = || Ok(lease.check()?);
        let of = (&*basin, &*stream.name);
        let reconfigured = node.reconfigure_stream::<ServiceError>(client, of, &changes, check);
        reconfigured.await
    };
    Ok(Json(wire_config(node.change(client, reconfigure).await?)))
}

pub async fn delete(
    State(app): State<App>,
    OfClient(client): OfClient,
    access: Access,
    NameArgs { basin, stream }: NameArgs,
) -> Result<StatusCode, ServiceError> {
    let stream = access.stream(Operation::DeleteStream, &basin, stream)?;
    let node = app.node.open(&stream.granted);
    let lease = access.lease();
    let delete = |node: Node| async move {
        lease.check()?;
        Ok::<_, ServiceError>(node.delete_stream(&basin, &stream.name).await?)
    };
    node.change(client, delete).await?;
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

/// A stream as it is answered, without the prefix of its name that the token adds.
fn stream_info(
    stream: &StreamListing,
    prefix: usize,
) -> Result<v1::stream::StreamInfo, ServiceError> {
    let name = stream.name.get(prefix..).unwrap_or_default();
    let info = s2_common::stream::StreamInfo {
        name: name.parse()?,
        created_at: timestamp(stream.created_ms)?,
        // A deleted stream disappears at once.
        deleted_at: None,
        cipher: stream.cipher,
    };
    Ok(info.into())
}
