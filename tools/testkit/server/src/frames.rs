//! Frames of sessions: three bytes of length, one of flags, and a message.

use bytes::{Bytes, BytesMut};
use s2_api::v1::stream::proto::{AppendAck, AppendInput, AppendRecord, ReadBatch};
use s2_api::v1::stream::s2s::{CompressionAlgorithm, FrameDecoder, SessionMessage};
use serde_json::Value;
use tokio_util::codec::Decoder as _;

use crate::http::{Exchange, Http, Request};

/// A message as a frame.
pub fn frame(message: &impl prost::Message) -> Bytes {
    compressed(CompressionAlgorithm::None, message)
}

/// A message as a frame, compressed if that is worth it.
pub fn compressed(algorithm: CompressionAlgorithm, message: &impl prost::Message) -> Bytes {
    SessionMessage::regular(algorithm, message)
        .unwrap()
        .encode()
}

/// A frame with any flags and payload, valid or not.
pub fn raw_frame(flags: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len() + 1).unwrap();
    let mut frame = BytesMut::from(&length.to_be_bytes()[1..]);
    frame.extend_from_slice(&[flags]);
    frame.extend_from_slice(payload);
    frame.freeze()
}

/// An append of records with these bodies.
pub fn input<B: Into<Bytes>>(bodies: impl IntoIterator<Item = B>) -> AppendInput {
    AppendInput {
        records: bodies
            .into_iter()
            .map(|body| AppendRecord {
                timestamp: None,
                headers: Vec::new(),
                body: body.into(),
            })
            .collect(),
        match_seq_num: None,
        fencing_token: None,
    }
}

/// An output of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Output<M> {
    /// A message.
    Message(M),
    /// The session ended with an error: its status and body.
    Error(u16, Value),
    /// The session ended with success.
    End,
}

impl<M: std::fmt::Debug> Output<M> {
    /// The message.
    ///
    /// # Panics
    ///
    /// If it is something else.
    #[track_caller]
    pub fn message(self) -> M {
        match self {
            Output::Message(message) => message,
            other => panic!("a message was due, not {other:?}"),
        }
    }
}

/// An open session, either kind.
pub struct Session<M> {
    exchange: Exchange,
    buffer: BytesMut,
    message: std::marker::PhantomData<M>,
}

/// An open append session.
pub type AppendSession = Session<AppendAck>;
/// An open read session.
pub type ReadSession = Session<ReadBatch>;

impl<M: prost::Message + Default> Session<M> {
    /// Opens it.
    ///
    /// # Panics
    ///
    /// If the answer is not the head of a session.
    pub async fn open(request: Request<'_>) -> Session<M> {
        let mut exchange = request.header("content-type", "s2s/proto").open().await;
        if exchange.status != 200 {
            let mut body = Vec::new();
            while let Some(chunk) = exchange.chunk().await {
                body.extend_from_slice(&chunk);
            }
            let body = String::from_utf8_lossy(&body);
            panic!("a session was refused: {} {body}", exchange.status);
        }
        assert_eq!(exchange.headers["content-type"], "s2s/proto");
        Session {
            exchange,
            buffer: BytesMut::new(),
            message: std::marker::PhantomData,
        }
    }

    /// Sends bytes unchanged. Returns whether the server still accepts them.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        self.exchange.send(bytes).await
    }

    /// Ends the request; the answer may continue.
    pub fn finish(&mut self) {
        self.exchange.finish();
    }

    /// The next output.
    ///
    /// # Panics
    ///
    /// If none comes soon, or it is malformed.
    pub async fn next(&mut self) -> Output<M> {
        loop {
            match FrameDecoder.decode(&mut self.buffer).unwrap() {
                Some(SessionMessage::Regular(data)) => {
                    return Output::Message(data.try_into_proto().unwrap());
                }
                Some(SessionMessage::Terminal(end)) => {
                    let body = serde_json::from_str(&end.body).unwrap();
                    assert_eq!(self.exchange.chunk().await, None, "more after the end");
                    return Output::Error(end.status, body);
                }
                None => match self.exchange.chunk().await {
                    Some(chunk) => self.buffer.extend_from_slice(&chunk),
                    None => {
                        assert!(self.buffer.is_empty(), "half a frame at the end");
                        return Output::End;
                    }
                },
            }
        }
    }

    /// All outputs up to the end, the end included.
    pub async fn rest(&mut self) -> Vec<Output<M>> {
        let mut outputs = Vec::new();
        loop {
            let output = self.next().await;
            let over = !matches!(output, Output::Message(_));
            outputs.push(output);
            if over {
                return outputs;
            }
        }
    }
}

impl ReadSession {
    /// The next batch that has records. Heartbeats are passed over: they come whenever nothing was
    /// appended for five seconds or more, so a slow test meets them anywhere.
    ///
    /// # Panics
    ///
    /// If none comes soon, or the session ends.
    pub async fn batch(&mut self) -> ReadBatch {
        loop {
            let batch = self.next().await.message();
            if !batch.records.is_empty() {
                return batch;
            }
        }
    }
}

/// Opens an append session.
pub async fn append_session(http: &Http, basin: &str, stream: &str) -> AppendSession {
    let path = format!("/v1/streams/{stream}/records");
    Session::open(http.post(&path).basin(basin)).await
}

/// Opens a read session with these query parameters.
pub async fn read_session(http: &Http, basin: &str, stream: &str, query: &str) -> ReadSession {
    let path = format!("/v1/streams/{stream}/records?{query}");
    let mut session = Session::open(http.get(&path).basin(basin)).await;
    session.finish();
    session
}
