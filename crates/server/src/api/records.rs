//! `/v1/streams/{stream}/records`: append, read, check the tail, one request at a time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use esker_node::{Client, CreateOn, Error, ReadOutput, ReadPermit, ReadSession, WaitsFor};
use http::request::Parts;
use s2_api::data::{Json, Proto};
use s2_api::mime::JsonOrProto;
use s2_api::v1;
use s2_api::v1::stream::ReadRequest;
use s2_common::ValidationError;
use s2_common::access::Operation;
use s2_common::basin::BasinName;
use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::config::OptionalStreamConfig;
use s2_common::http::extract::Header;
use s2_common::read_extent::ReadLimit;
use s2_common::record::{Metered, MeteredSize as _};
use s2_common::stream::{ReadBatch, ReadEnd, ReadFrom, ReadStart, StreamName};
use tokio::time::{Instant, timeout_at};

use super::append_body::{AppendBody, UnaryAppend};
use super::{App, ServiceError, read_frames, session_inputs, sessions};
use crate::answers::Exhausted;
use crate::auth::PeerAddress;
use crate::auth::{Access, AccessError, StreamAccess};
use crate::client::OfClient;
use crate::usage::StreamMeter;

/// Longest wait of a read that is not a session.
const MAX_UNARY_WAIT: Duration = Duration::from_secs(60);

/// The connection that a request comes over; `None` if it comes over none, in tests.
pub struct Connection(Option<SocketAddr>);

impl<S: Sync> FromRequestParts<S> for Connection {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Connection, Infallible> {
        let peer = parts.extensions.get::<PeerAddress>();
        Ok(Connection(peer.map(|peer| peer.0)))
    }
}

impl Connection {
    /// The meter of what it does with a stream.
    fn meter(&self, app: &App, basin: &BasinName, stream: &StreamName) -> StreamMeter {
        app.usage.of_stream(basin, stream, self.0)
    }
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct TailArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
}

pub async fn check_tail(
    State(app): State<App>,
    OfClient(client): OfClient,
    access: Access,
    TailArgs { basin, stream }: TailArgs,
) -> Result<Json<v1::stream::TailResponse>, ServiceError> {
    let stream = access.stream(Operation::CheckTail, &basin, stream)?;
    let settings = OptionalStreamConfig::default();
    let handle = app
        .node
        .open(&stream.granted)
        .open_stream(client, &basin, &stream.name, CreateOn::Read, &settings)
        .await?;
    Ok(Json(v1::stream::TailResponse {
        tail: handle.tail().into(),
    }))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ReadArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
    #[from_request(via(Query))]
    start: v1::stream::ReadStart,
    #[from_request(via(Query))]
    end: v1::stream::ReadEnd,
    connection: Connection,
    request: ReadRequest,
}

pub async fn read(
    State(app): State<App>,
    OfClient(client): OfClient,
    access: Access,
    ReadArgs {
        basin,
        stream,
        start,
        end,
        connection,
        request,
    }: ReadArgs,
) -> Result<Response, ServiceError> {
    let stream = access.stream(Operation::Read, &basin, stream)?;
    let start: ReadStart = start.try_into()?;
    let meter = connection.meter(&app, &basin, &stream.name);
    match request {
        ReadRequest::Unary {
            encryption_key,
            create_stream_config_patch,
            format,
            response_mime,
        } => {
            let mut end: ReadEnd = end.into();
            end.limit = ReadLimit::CountOrBytes(end.limit.into_allowance(RECORD_BATCH_MAX));
            end.wait = end.wait.map(|wait| wait.min(MAX_UNARY_WAIT));
            check_until(start, end)?;
            check_settings(&access, &basin, &stream, &create_stream_config_patch)?;
            let session = app
                .node
                .open(&stream.granted)
                .open_stream(
                    client,
                    &basin,
                    &stream.name,
                    CreateOn::Read,
                    &create_stream_config_patch,
                )
                .await?
                .with_key(encryption_key)?
                .read(start, end)
                .await?;
            // The encoded batch counts among the answers.
            let (batch, _permit) = first_batch(session).await?;
            meter.read(batch.records.metered_size());
            Ok(match response_mime {
                JsonOrProto::Json => {
                    Json(v1::stream::json::serialize_read_batch(format, &batch)).into_response()
                }
                JsonOrProto::Proto => {
                    Proto(v1::stream::proto::ReadBatch::from(batch)).into_response()
                }
            })
        }
        ReadRequest::EventStream {
            encryption_key,
            create_stream_config_patch,
            format,
            last_event_id,
        } => {
            let (start, end, delivered) = sessions::resume(start, end, last_event_id);
            let end: ReadEnd = end.into();
            check_until(start, end)?;
            check_settings(&access, &basin, &stream, &create_stream_config_patch)?;
            let session = app
                .node
                .open(&stream.granted)
                .open_stream(
                    client,
                    &basin,
                    &stream.name,
                    CreateOn::Read,
                    &create_stream_config_patch,
                )
                .await?
                .with_key(encryption_key)?
                .read(start, end)
                .await?;
            Ok(sessions::events(
                session,
                access.lease(),
                meter,
                format,
                delivered,
            ))
        }
        ReadRequest::S2s {
            encryption_key,
            create_stream_config_patch,
            response_compression,
        } => {
            let end: ReadEnd = end.into();
            check_until(start, end)?;
            check_settings(&access, &basin, &stream, &create_stream_config_patch)?;
            let session = app
                .node
                .open(&stream.granted)
                .open_stream(
                    client,
                    &basin,
                    &stream.name,
                    CreateOn::Read,
                    &create_stream_config_patch,
                )
                .await?
                .with_key(encryption_key)?
                .read(start, end)
                .await?;
            Ok(sessions::frames_of_read(
                session,
                access.lease(),
                meter,
                response_compression,
            ))
        }
    }
}

/// Settings for a stream that is created when it is first used are those of whoever creates streams. Without
/// them, the basin's settings decide, and who may use the stream may create it, as the basin allows it.
fn check_settings(
    access: &Access,
    basin: &BasinName,
    stream: &StreamAccess,
    settings: &OptionalStreamConfig,
) -> Result<(), AccessError> {
    if *settings == OptionalStreamConfig::default() {
        return Ok(());
    }
    access.again(Operation::CreateStream, basin, stream)
}

fn check_until(start: ReadStart, end: ReadEnd) -> Result<(), ValidationError> {
    if let ReadFrom::Timestamp(timestamp) = start.from
        && end.until.deny(timestamp)
    {
        return Err("start `timestamp` exceeds or equal to `until`".into());
    }
    Ok(())
}

/// How long a read that is not a session waits for memory of `limits.read-sessions`, or for the disk, before it is refused
/// with 429.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// The answer to a read that is not a session: one batch, or none if nothing arrived in time; and the
/// permit for the batch's memory.
async fn first_batch(
    mut session: ReadSession,
) -> Result<(ReadBatch, Option<ReadPermit>), ServiceError> {
    let refused = |what| match what {
        WaitsFor::Memory => ServiceError::Exhausted(Exhausted::Reads),
        WaitsFor::Disk => ServiceError::from(Error::TryLater(format!(
            "the disk has not answered to the read for {} s: try again",
            MAX_WAIT.as_secs()
        ))),
    };
    let mut since = Instant::now();
    let mut waits = None;
    loop {
        // A session reports that it waits now and then, at moments of its own.
        let next = match waits {
            Some(what) => timeout_at(since + MAX_WAIT, session.next())
                .await
                .map_err(|_| refused(what))??,
            None => session.next().await?,
        };
        match next {
            Some(ReadOutput::Batch(records, permit)) => {
                return Ok((records.into_batch()?, Some(permit)));
            }
            Some(ReadOutput::Waiting(what)) => waits = Some(what),
            Some(ReadOutput::Heartbeat(_)) => {
                since = Instant::now();
                waits = None;
            }
            None => break,
        }
    }
    let none = ReadBatch {
        records: Metered::with_capacity(0),
        tail: None,
    };
    Ok((none, None))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct AppendArgs {
    #[from_request(via(Header))]
    basin: BasinName,
    #[from_request(via(Path))]
    stream: StreamName,
    connection: Connection,
    request: AppendBody,
}

pub async fn append(
    State(app): State<App>,
    OfClient(client): OfClient,
    access: Access,
    AppendArgs {
        basin,
        stream,
        connection,
        request,
    }: AppendArgs,
) -> Result<Response, ServiceError> {
    const ANY: [Operation; 3] = [Operation::Append, Operation::Trim, Operation::Fence];
    let stream = access.stream_any(&ANY, &basin, stream)?;
    let meter = connection.meter(&app, &basin, &stream.name);
    match request {
        AppendBody::One(append, whole) => {
            // Outside of a cluster, nobody else can make it.
            let whole = whole.kept_if(app.forwarder.is_some());
            let to = AppendTo {
                app: &app,
                access: &access,
                basin: &basin,
                stream: &stream,
                client,
            };
            let appended = to.append(append, &meter).await;
            Ok(appended.unwrap_or_else(|error| whole.answer(error)))
        }
        AppendBody::Session {
            encryption_key,
            create_stream_config_patch,
            response_compression,
            body,
        } => {
            check_settings(&access, &basin, &stream, &create_stream_config_patch)?;
            let opened = app.node.open(&stream.granted).open_stream(
                client,
                &basin,
                &stream.name,
                CreateOn::Append,
                &create_stream_config_patch,
            );
            let opened = access.lease().while_valid(opened).await?;
            let handle = opened?.with_key(encryption_key)?;
            let class = handle.storage_class();
            let meter = move |bytes| meter.appended(class.as_deref(), bytes);
            let session = handle.session(app.limits.append_session_inflight);
            let stopping = app.node.open(&stream.granted).stopping().clone();
            let inputs = session_inputs::inputs(body, app.limits.bodies.clone(), client);
            Ok(sessions::frames_of_append(
                session,
                inputs,
                access,
                stopping,
                meter,
                response_compression,
            ))
        }
    }
}

/// Where one append goes, and who sends it.
struct AppendTo<'a> {
    app: &'a App,
    access: &'a Access,
    basin: &'a BasinName,
    stream: &'a StreamAccess,
    client: Client,
}

impl AppendTo<'_> {
    async fn append(
        self,
        append: UnaryAppend,
        meter: &StreamMeter,
    ) -> Result<Response, ServiceError> {
        let AppendTo {
            app,
            access,
            basin,
            stream,
            client,
        } = self;
        let UnaryAppend {
            encryption_key,
            create_stream_config_patch,
            input,
            response_mime,
        } = append;
        access.append(&input)?;
        read_frames::check_fits(&input.records)?;
        check_settings(access, basin, stream, &create_stream_config_patch)?;
        let lease = access.lease();
        let opened = app.node.open(&stream.granted).open_stream(
            client,
            basin,
            &stream.name,
            CreateOn::Append,
            &create_stream_config_patch,
        );
        // It may wait long for the stream to be looked up or created, and for admission.
        let opened = lease.while_valid(opened).await?;
        let handle = opened?.with_key(encryption_key)?;
        let bytes = input.records.metered_size();
        let admitted = lease.unless_ended(handle.append(input)).await??;
        let ack = sessions::wire_ack(admitted.done().await?);
        meter.appended(handle.storage_class().as_deref(), bytes);
        Ok(match response_mime {
            JsonOrProto::Json => Json(v1::stream::AppendAck::from(ack)).into_response(),
            JsonOrProto::Proto => Proto(v1::stream::proto::AppendAck::from(ack)).into_response(),
        })
    }
}
