//! The gRPC codec of envelopes: a message is the bytes of one envelope.

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::queued::Queued;

/// Bytes of one buffer: small messages share one, chunks get one each.
const BUFFER: usize = 64 * 1024;

/// What a stream sends: envelopes, encoded when they are sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Outgoing;

/// What a stream receives, and the empty answer at its end.
#[derive(Clone, Copy, Default)]
pub(super) struct Incoming;

/// Either end's encoder and decoder.
#[derive(Clone, Copy)]
pub(super) struct Raw;

impl Codec for Outgoing {
    type Encode = Queued;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Codec for Incoming {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Answer;
    type Decoder = Raw;

    fn encoder(&mut self) -> Answer {
        Answer
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Queued;
    type Error = Status;

    fn encode(&mut self, item: Queued, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode_to(to);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, BUFFER)
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, BUFFER)
    }
}

/// Encodes an answer.
#[derive(Clone, Copy)]
pub(super) struct Answer;

impl Encoder for Answer {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}
