//! Messages that are written as bytes, and the methods that answer with them: those that scan.
//!
//! The generated services take an answer as a tree of messages. A scan writes each key's bytes as it finds
//! them instead, so its methods have routes of their own.

use std::marker::PhantomData;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use bytes::{BufMut as _, Bytes};
use esker_proto::codec::{Codec, Reading};
use esker_proto::state::v1::ScanRequest;
use esker_proto::statehouse::v1::{ListKeysRequest, ScanPrefixRequest};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use prost::Message;
use tonic::codec::{EncodeBuf, Encoder};
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Response, Status};

use super::{Calls, MAX_ANSWER, MAX_REQUEST};

/// Decodes `U`, and sends bytes that are an encoded message already.
struct RawCodec<U>(PhantomData<U>);

impl<U: Message + Default + Send + 'static> tonic::codec::Codec for RawCodec<U> {
    type Encode = Bytes;
    type Decode = U;
    type Encoder = RawEncoder;
    type Decoder = Reading<U>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> Reading<U> {
        tonic::codec::Codec::decoder(&mut Codec::<U, U>::default())
    }
}

struct RawEncoder;

impl Encoder for RawEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(message.len());
        to.put(message);
        Ok(())
    }
}

fn grpc<U: Message + Default + Send + 'static>() -> Grpc<RawCodec<U>> {
    Grpc::new(RawCodec(PhantomData))
        .apply_max_message_size_config(Some(MAX_REQUEST), Some(MAX_ANSWER))
}

#[derive(Clone)]
struct ScanPrefix(Calls);

impl UnaryService<ScanPrefixRequest> for ScanPrefix {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<ScanPrefixRequest>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move { calls.scan_prefix_raw(request).await })
    }
}

#[derive(Clone)]
struct ListKeys(Calls);

impl UnaryService<ListKeysRequest> for ListKeys {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<ListKeysRequest>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move { calls.list_keys_raw(request).await })
    }
}

#[derive(Clone)]
struct Scan(Calls);

impl ServerStreamingService<ScanRequest> for Scan {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<ScanRequest>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move { calls.scan_raw(request).await })
    }
}

/// The methods that scan.
pub(super) fn router<S: Clone + Send + Sync + 'static>(calls: &Calls) -> Router<S> {
    let (prefix, list, scan) = (
        ScanPrefix(calls.clone()),
        ListKeys(calls.clone()),
        Scan(calls.clone()),
    );
    Router::new()
        .route(
            "/statehouse.v1.StatehouseService/ScanPrefix",
            any(|request: Request| async move {
                grpc().unary(prefix, request).await.map(Body::new)
            }),
        )
        .route(
            "/statehouse.v1.StatehouseService/ListKeys",
            any(|request: Request| async move { grpc().unary(list, request).await.map(Body::new) }),
        )
        .route(
            "/esker.state.v1.StateService/Scan",
            any(|request: Request| async move {
                grpc().server_streaming(scan, request).await.map(Body::new)
            }),
        )
}
