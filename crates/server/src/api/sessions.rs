//! Sessions: reads as server-sent events or frames, appends as frames.
//!
//! Reading the response drives a session: when a client stops reading, the session stops accepting more,
//! and nothing accumulates here but what is in flight.

use std::io;
use std::pin::Pin;

use axum::body::{Body, Bytes};
use axum::response::sse::Event;
use axum::response::{IntoResponse as _, Response, Sse};
use esker_node::{
    Ack, AppendSession, Error, PendingAppend, ReadContent, ReadOutput, ReadRecords, ReadSession,
    WaitsFor, plain,
};
use futures::stream::{self, FuturesOrdered};
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, header};
use s2_api::data::Format;
use s2_api::v1::stream::sse::{self, LastEventId};
use s2_api::v1::stream::{ReadEnd, json, proto, s2s};
use s2_common::read_extent::CountOrBytes;
use s2_common::record::MeteredSize as _;
use s2_common::stream::{AppendAck, ReadBatch, ReadFrom, ReadStart};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ServiceError;
use super::counted_bodies::PermitSlot;
use super::read_frames::{self, Form};
use super::series::session_ended;
use super::session_inputs::{Input, Inputs};
use crate::answers::{AtStall, EndFrame, Exhausted};
use crate::auth::{Access, AccessError, Lease};
use crate::usage::StreamMeter;

const NO_TRANSFORM: HeaderValue = HeaderValue::from_static("no-cache, no-transform");
/// Tells reverse proxies not to buffer.
const NO_BUFFERING: (&str, HeaderValue) = ("x-accel-buffering", HeaderValue::from_static("no"));

/// Moves a read behind what `last` reports as delivered, and subtracts that from its limits. Also returns
/// what was delivered, so that event ids continue.
pub fn resume(
    mut start: ReadStart,
    mut end: ReadEnd,
    last: Option<LastEventId>,
) -> (ReadStart, ReadEnd, CountOrBytes) {
    let mut delivered = CountOrBytes::ZERO;
    if let Some(last) = last {
        start.from = ReadFrom::SeqNum(last.seq_num.saturating_add(1));
        end.count = end.count.map(|c| c.saturating_sub(last.count));
        end.bytes = end.bytes.map(|b| b.saturating_sub(last.bytes));
        delivered = CountOrBytes {
            count: last.count,
            bytes: last.bytes,
        };
    }
    (start, end, delivered)
}

/// A read as server-sent events.
pub(crate) fn events(
    mut session: ReadSession,
    lease: Lease,
    mut meter: StreamMeter,
    format: Format,
    mut delivered: CountOrBytes,
) -> Response {
    let slot = PermitSlot::default();
    let batches = slot.clone();
    let events = async_stream::stream! {
        let prefix = lease.auto_prefix();
        let mut ended = std::pin::pin!(lease.ended());
        loop {
            match next(&mut session, ended.as_mut()).await {
                Ok(Some(ReadOutput::Heartbeat(tail))) => {
                    meter.streamed(0);
                    yield sse::ping_event(tail);
                }
                // Shows the client that the connection is alive; it is not at the tail.
                Ok(Some(ReadOutput::Waiting(what))) => {
                    yield Ok(Event::default().comment(match what {
                        WaitsFor::Memory => "waiting for memory",
                        WaitsFor::Disk => "waiting for the disk",
                    }));
                }
                Ok(Some(ReadOutput::Batch(records, permit))) => {
                    let Some(last) = records.last_position() else {
                        continue;
                    };
                    delivered.count = delivered.count.saturating_add(records.len());
                    let bytes = records.metered_size();
                    delivered.bytes = delivered.bytes.saturating_add(bytes);
                    meter.streamed(bytes);
                    let id = LastEventId {
                        seq_num: last.seq_num,
                        count: delivered.count,
                        bytes: delivered.bytes,
                    };
                    let event = match batch_event(records, format, id) {
                        Ok(event) => event,
                        Err(error) => {
                            let error = ServiceError::from(error).without_prefix(prefix);
                            let (status, body) = error.to_response().to_parts();
                            session_ended(status);
                            yield sse::error_event(body);
                            return;
                        }
                    };
                    batches.put(permit);
                    yield event;
                }
                Ok(None) => {
                    yield sse::done_event();
                    return;
                }
                Err(error) => {
                    let error = error.without_prefix(prefix);
                    let (status, body) = error.to_response().to_parts();
                    session_ended(status);
                    yield sse::error_event(body);
                    return;
                }
            }
        }
    };
    let mut response = Sse::new(events)
        .into_response()
        .map(|body| slot.counted(body));
    response.extensions_mut().insert(stalled_events());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_TRANSFORM);
    headers.insert(NO_BUFFERING.0, NO_BUFFERING.1);
    response
}

/// The event of a batch. What several sessions get is encoded once.
fn batch_event(
    records: ReadRecords,
    format: Format,
    id: LastEventId,
) -> Result<Result<Event, axum::Error>, Error> {
    let ReadContent::Shared(shared) = &records.content else {
        return Ok(sse::read_batch_event(format, &records.into_batch()?, id));
    };
    let form = match format {
        Format::Raw => Form::RawJson,
        Format::Base64 => Form::Base64Json,
    };
    let json = shared.form(form as u8, |records, tail| {
        let batch = ReadBatch {
            records: plain(records)?,
            tail: Some(tail),
        };
        let json = serde_json::to_vec(&json::serialize_read_batch(format, &batch));
        let json = json.map_err(|e| Error::Storage(format!("encoding records: {e}")))?;
        Ok::<_, Error>(Bytes::from(json))
    })?;
    let json = str::from_utf8(&json).map_err(|e| Error::Storage(e.to_string()))?;
    // As `sse::read_batch_event` writes it.
    let event = Event::default().event(sse::Batch::Batch);
    Ok(Ok(event.id(id.to_string()).data(json)))
}

/// What a session has next, unless its token ends.
async fn next(
    session: &mut ReadSession,
    ended: Pin<&mut impl Future<Output = AccessError>>,
) -> Result<Option<ReadOutput>, ServiceError> {
    tokio::select! {
        biased;
        error = ended => Err(error.into()),
        output = session.next() => Ok(output?),
    }
}

/// The event that ends a session of events whose client reads nothing.
fn stalled_events() -> AtStall {
    let error = ServiceError::Exhausted(Exhausted::Stalled);
    let (_, body) = error.to_response().to_parts();
    // The form in which `Sse` writes `sse::error_event`; the body is JSON without line breaks.
    let event = format!("event: error\ndata: {body}\n\n");
    AtStall::End(EndFrame::Data(event.into()))
}

/// A read as frames.
pub(crate) fn frames_of_read(
    mut session: ReadSession,
    lease: Lease,
    mut meter: StreamMeter,
    compression: s2s::CompressionAlgorithm,
) -> Response {
    let slot = PermitSlot::default();
    let permits = slot.clone();
    let message = move |batch| read_frames::message_frame(&batch, compression);
    let frames = async_stream::stream! {
        let prefix = lease.auto_prefix();
        let mut ended = std::pin::pin!(lease.ended());
        loop {
            match next(&mut session, ended.as_mut()).await {
                Ok(Some(ReadOutput::Heartbeat(tail))) => {
                    meter.streamed(0);
                    yield message(proto::ReadBatch {
                        records: Vec::new(),
                        tail: Some(tail.into()),
                    });
                }
                // Shows the client that the connection is alive. A batch without a tail is not at the
                // tail.
                Ok(Some(ReadOutput::Waiting(_))) => yield message(proto::ReadBatch::default()),
                Ok(Some(ReadOutput::Batch(records, permit))) => {
                    meter.streamed(records.metered_size());
                    match read_frames::frame(records, compression) {
                        Ok(frame) => {
                            permits.put(permit);
                            yield Ok(frame);
                        }
                        Err(error) => {
                            yield Ok(terminal_frame(ServiceError::from(error).without_prefix(prefix)));
                            return;
                        }
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    yield Ok(terminal_frame(error.without_prefix(prefix)));
                    return;
                }
            }
        }
    };
    let mut response = framed(frames).map(|body| slot.counted_exactly(body));
    let (status, body) = ServiceError::Exhausted(Exhausted::Stalled)
        .to_response()
        .to_parts();
    let end = s2s::TerminalMessage {
        status: status.as_u16(),
        body,
    };
    let end = s2s::SessionMessage::from(end).encode();
    let at_stall = AtStall::End(EndFrame::Data(end));
    response.extensions_mut().insert(at_stall);
    response
}

/// Acknowledgements that wait for the client. Beyond them, a session accepts no more appends.
const MAX_ACKS: usize = 64;

/// Appends as they arrive, acknowledgements in order. The session ends at the first error, which the
/// client receives after the acknowledgements of everything before it. `meter` is called with the metered
/// bytes of each append that is acknowledged.
pub(crate) fn frames_of_append(
    session: AppendSession,
    inputs: Inputs,
    access: Access,
    stopping: CancellationToken,
    meter: impl Fn(usize) + Send + 'static,
    compression: s2s::CompressionAlgorithm,
) -> Response {
    let (acks, waiting) = mpsc::channel(MAX_ACKS);
    let stalled = CancellationToken::new();
    let at_stall = AtStall::Cancel(stalled.clone());
    // A task of its own: an append that waits for admission has a place among all appends, and must not
    // depend on whether its client reads acknowledgements.
    let driver = drive(session, inputs, access, stopping, stalled, meter, acks);
    let driver = AbortOnDropHandle::new(tokio::spawn(driver));
    let acks = stream::unfold((waiting, driver), |(mut waiting, driver)| async move {
        let ack = waiting.recv().await?;
        Some((ack, (waiting, driver)))
    });
    let mut response = frames(compression, acks);
    response.extensions_mut().insert(at_stall);
    response
}

type SessionAck = Result<proto::AppendAck, ServiceError>;
/// An append that is submitted, and its metered bytes.
type Submission<'a> =
    Pin<Box<dyn Future<Output = Result<(PendingAppend, usize), Error>> + Send + 'a>>;

/// Takes appends until the session ends, and forwards their acknowledgements.
async fn drive(
    session: AppendSession,
    inputs: Inputs,
    access: Access,
    stopping: CancellationToken,
    stalled: CancellationToken,
    meter: impl Fn(usize),
    acks: mpsc::Sender<SessionAck>,
) {
    let lease = access.lease();
    let mut ended = std::pin::pin!(lease.ended());
    // `None` once no more is accepted, so that what it holds is released.
    let mut inputs = Some(inputs);
    let mut submitting: Option<Submission<'_>> = None;
    let mut pending = FuturesOrdered::new();
    let mut ready: Option<SessionAck> = None;
    let mut last_error: Option<ServiceError> = None;
    loop {
        tokio::select! {
            biased;
            place = acks.reserve(), if ready.is_some() => {
                // Without a place, the client is gone.
                let (Ok(place), Some(ack)) = (place, ready.take()) else {
                    return;
                };
                let failed = ack.is_err();
                place.send(ack);
                if failed {
                    return;
                }
            }
            Some(answer) = pending.next(), if ready.is_none() && !pending.is_empty() => {
                let answer: Result<_, Error> = answer;
                let ack = answer.map(|(ack, bytes)| {
                    meter(bytes);
                    proto::AppendAck::from(wire_ack(ack))
                });
                ready = Some(ack.map_err(|e| ServiceError::from(e).without_prefix(access.auto_prefix())));
            }
            submitted = async { submitting.as_mut().expect("checked").await },
                if submitting.is_some() =>
            {
                submitting = None;
                match submitted {
                    Ok((append, bytes)) => pending.push_back(async move {
                        append.done().await.map(|ack| (ack, bytes))
                    }),
                    Err(error) => {
                        last_error = Some(error.into());
                        inputs = None;
                    }
                }
            }
            // What was admitted before is answered.
            error = &mut ended, if inputs.is_some() => {
                last_error = Some(error.into());
                inputs = None;
                submitting = None;
            }
            () = stopping.cancelled(), if inputs.is_some() => {
                last_error = Some(Error::Stopping.into());
                inputs = None;
            }
            // As at a stop, what is in flight is answered.
            () = stalled.cancelled(), if inputs.is_some() => {
                last_error = Some(ServiceError::Exhausted(Exhausted::Stalled));
                inputs = None;
            }
            input = async { inputs.as_mut().expect("checked").next().await },
                if inputs.is_some() && submitting.is_none() && ready.is_none() =>
            {
                match input {
                    Some(Ok(input)) => match access.append(&input.append) {
                        Ok(()) => submitting = Some(Box::pin(submit(&session, input))),
                        Err(error) => {
                            last_error = Some(error.into());
                            inputs = None;
                        }
                    },
                    Some(Err(error)) => {
                        last_error = Some(error);
                        inputs = None;
                    }
                    None => inputs = None,
                }
            }
            else => break,
        }
    }
    if let Some(error) = last_error {
        // If the channel is closed, the client is gone.
        let _ = acks
            .send(Err(error.without_prefix(access.auto_prefix())))
            .await;
    }
}

/// Submits an append. The memory of its frame is released once it has been admitted.
async fn submit(session: &AppendSession, input: Input) -> Result<(PendingAppend, usize), Error> {
    let Input { append, _claim } = input;
    read_frames::check_fits(&append.records)?;
    let bytes = append.records.metered_size();
    Ok((session.append(append).await?, bytes))
}

fn frames<P>(
    compression: s2s::CompressionAlgorithm,
    messages: impl Stream<Item = Result<P, ServiceError>> + Send + 'static,
) -> Response
where
    P: prost::Message + 'static,
{
    framed(s2s::FramedMessageStream::<_>::new(
        compression,
        Box::pin(messages),
    ))
}

/// The frame that ends a session with an error.
fn terminal_frame(error: ServiceError) -> Bytes {
    s2s::SessionMessage::Terminal(error.into()).encode()
}

/// The answer of a session whose frames these are.
fn framed(frames: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("s2s/proto"));
    headers.insert(header::CACHE_CONTROL, NO_TRANSFORM);
    headers.insert(NO_BUFFERING.0, NO_BUFFERING.1);
    response
}

/// An acknowledgement in the API's terms.
pub fn wire_ack(ack: Ack) -> AppendAck {
    AppendAck {
        start: ack.start,
        end: ack.end,
        tail: ack.tail,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn the_event_at_the_end_of_a_stalled_session_is_as_other_events_of_errors() {
        let error = ServiceError::Exhausted(Exhausted::Stalled);
        let (status, body) = error.to_response().to_parts();
        assert_eq!(status, 503);
        let event = sse::error_event(body).unwrap();
        let events = futures::stream::iter([Ok::<_, Infallible>(event)]);
        let written = Sse::new(events).into_response().into_body();
        let written = written.collect().await.unwrap().to_bytes();
        let AtStall::End(EndFrame::Data(at_stall)) = stalled_events() else {
            panic!("it is an event");
        };
        assert_eq!(at_stall, written);
    }
}
