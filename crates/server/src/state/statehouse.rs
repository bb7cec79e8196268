//! `statehouse.v1.StatehouseService`, for clients of Statehouse.
//!
//! Its clients rely on this: an absent key or version is no error; deleted keys are left out of lists;
//! lists are in order; aborting an unknown transaction succeeds; bounds of a replay are inclusive.

use std::time::Duration;

use bytes::Bytes;
use esker_node::Client;
use esker_node::state::{ReadAt, Replay, Scan, StateEntry, StateKey};
use esker_proto::statehouse::v1::statehouse_service_server::StatehouseService;
use esker_proto::statehouse::v1::*;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::permission::access;
use super::status::{invalid, status};
use super::{Calls, MAX_ANSWER, blocking, convert};
use crate::answers::Scanned;
use crate::auth::Access;
use crate::auth::operation::Effect;
use crate::client::client;

/// The commit that this was built from.
const GIT_SHA: Option<&str> = option_env!("ESKER_GIT_SHA");

impl Calls {
    /// Begins a transaction.
    pub(super) fn begin(
        &self,
        access: &Access,
        client: Client,
        timeout_ms: Option<u64>,
    ) -> Result<String, Status> {
        let store = self.of_transactions(access)?;
        if timeout_ms == Some(0) {
            return Err(invalid(
                "timeout_ms is 0: such a transaction has expired already; leave it out for the \
                 server's default, or give it at least 1",
            ));
        }
        let timeout = timeout_ms.map(Duration::from_millis);
        store.begin(client, timeout).map_err(|error| status(&error))
    }

    /// Reads a key.
    pub(super) async fn get(
        &self,
        access: &Access,
        client: Client,
        key: StateKey,
        at: ReadAt,
    ) -> Result<convert::Read, Status> {
        let store = self.of_agent(access, Effect::Read, &key.namespace, &key.agent_id)?;
        // Most reads find their key in memory, and are answered sooner than a thread could be scheduled.
        if at == ReadAt::Latest
            && let Some(read) = store.get_cached(&key)
        {
            return convert::Read::of(&key.key, read.map_err(|error| status(&error))?);
        }
        let store = store.clone();
        let read = move || {
            let read = store.get(&key, at).map_err(|error| status(&error))?;
            convert::Read::of(&key.key, read)
        };
        blocking::read_in_turn(&self.turns.keys, client, read).await
    }

    /// A message of an agent's keys, each encoded as it is found: there is a tree of one value at a time.
    async fn list(
        &self,
        access: &Access,
        client: Client,
        scan: Scan,
        write: impl Fn(StateEntry, &mut Vec<u8>) -> Result<(), Status> + Send + Sync + 'static,
    ) -> Result<Response<Bytes>, Status> {
        let store = self.of_agent(access, Effect::Read, &scan.namespace, &scan.agent_id)?;
        let store = store.clone();
        let find = move |most: usize| {
            let mut message = Vec::new();
            let mut failed = None;
            let visited = store.visit(&scan, |entry| {
                failed = write(entry, &mut message).err();
                failed.is_none() && message.len() <= most
            });
            if let Some(failed) = failed {
                return Err(failed);
            }
            if message.len() > most {
                return Ok(None);
            }
            visited.map_err(|error| status(&error))?;
            Ok(Some(Bytes::from(message)))
        };
        let (message, scan) = blocking::scan(&self.answers, client, find).await?;
        let mut response = Response::new(message);
        // The scan keeps its place until the answer is held.
        response.extensions_mut().insert(Scanned::new(scan));
        Ok(response)
    }

    /// `ListKeysResponse`.
    pub(super) async fn list_keys_raw(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<Bytes>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let scan = Scan {
            namespace: it.namespace,
            agent_id: it.agent_id,
            prefix: String::new(),
            at: None,
            after: None,
            limit: None,
            keys_only: true,
            max_bytes: MAX_ANSWER,
            max_rows: None,
        };
        // Field `keys`.
        self.list(&access, client, scan, |entry, message| {
            prost::encoding::string::encode(1, &entry.key, message);
            Ok(())
        })
        .await
    }

    /// `ScanPrefixResponse`.
    pub(super) async fn scan_prefix_raw(
        &self,
        request: Request<ScanPrefixRequest>,
    ) -> Result<Response<Bytes>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let scan = Scan {
            namespace: it.namespace,
            agent_id: it.agent_id,
            prefix: it.prefix,
            at: None,
            after: None,
            limit: None,
            keys_only: false,
            max_bytes: MAX_ANSWER,
            max_rows: None,
        };
        // Field `entries`.
        self.list(&access, client, scan, |entry, message| {
            let entry = convert::statehouse_entry(entry)?;
            prost::encoding::message::encode(1, &entry, message);
            Ok(())
        })
        .await
    }
}

/// The status of a method that has a route of its own, in [`raw`](super::raw).
pub(super) fn elsewhere() -> Status {
    Status::internal("the method was called past its route")
}

/// Bytes around each element of a list in an answer: a tag and a length.
pub(super) const AROUND: usize = 6;

#[tonic::async_trait]
impl StatehouseService for Calls {
    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        Ok(Response::new(HealthResponse {
            status: "ok".into(),
        }))
    }

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            git_sha: GIT_SHA.unwrap_or("unknown").into(),
        }))
    }

    async fn begin_transaction(
        &self,
        request: Request<BeginTransactionRequest>,
    ) -> Result<Response<BeginTransactionResponse>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let txn_id = self.begin(&access, client, request.into_inner().timeout_ms)?;
        Ok(Response::new(BeginTransactionResponse { txn_id }))
    }

    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let access = access(&request)?;
        let it = request.into_inner();
        let store = self.of_agent(&access, Effect::Write, &it.namespace, &it.agent_id)?;
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let value = convert::sent(it.value)?;
        let staged = store.write(&it.txn_id, key, value, None);
        staged.map_err(|error| status(&error))?;
        Ok(Response::new(WriteResponse {}))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let access = access(&request)?;
        let it = request.into_inner();
        let store = self.of_agent(&access, Effect::Write, &it.namespace, &it.agent_id)?;
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let staged = store.delete(&it.txn_id, key, None);
        staged.map_err(|error| status(&error))?;
        Ok(Response::new(DeleteResponse {}))
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let committed = self.commit_as(&access, &it.txn_id, Vec::new(), client);
        let committed = committed.await?;
        Ok(Response::new(CommitResponse {
            commit_ts: committed.commit_ts,
        }))
    }

    async fn abort(
        &self,
        request: Request<AbortRequest>,
    ) -> Result<Response<AbortResponse>, Status> {
        let access = access(&request)?;
        let transaction = request.into_inner().txn_id;
        self.abort_as(&access, &transaction)?;
        Ok(Response::new(AbortResponse {}))
    }

    async fn get_state(
        &self,
        request: Request<GetStateRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let read = self.get(&access, client, key, ReadAt::Latest);
        Ok(Response::new(read.await?.into()))
    }

    async fn get_state_at_version(
        &self,
        request: Request<GetStateAtVersionRequest>,
    ) -> Result<Response<GetStateAtVersionResponse>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let at = ReadAt::Version(it.version);
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let read = self.get(&access, client, key, at);
        Ok(Response::new(read.await?.into()))
    }

    async fn list_keys(
        &self,
        _: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        Err(elsewhere())
    }

    async fn scan_prefix(
        &self,
        _: Request<ScanPrefixRequest>,
    ) -> Result<Response<ScanPrefixResponse>, Status> {
        Err(elsewhere())
    }

    type ReplayStream = BoxStream<'static, Result<ReplayEvent, Status>>;

    async fn replay(
        &self,
        request: Request<ReplayRequest>,
    ) -> Result<Response<Self::ReplayStream>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let store = self.of_agent(&access, Effect::Read, &it.namespace, &it.agent_id)?;
        let events = store.replay(Replay {
            client,
            agent: Some((it.namespace, it.agent_id)),
            start: it.start_ts,
            end: it.end_ts,
            follow: false,
        });
        let events = events.map_err(|error| status(&error))?;
        let events = events.map(|event| match event {
            Ok(event) => convert::statehouse_event(event),
            Err(error) => Err(status(&error)),
        });
        Ok(Response::new(events.boxed()))
    }
}
