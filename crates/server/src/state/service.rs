//! `esker.state.v1.StateService`: what goes beyond Statehouse.

use esker_node::state::{Expected, ReadAt, Replay};
use esker_node::{StateError, StateStore};
use esker_proto::state::v1::state_service_server::StateService;
use esker_proto::state::v1::*;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::permission::access;
use super::statehouse::elsewhere;
use super::status::{no_access, refused, status};
use super::{Calls, blocking, convert};
use crate::auth::operation::Effect;
use crate::client::client;

impl Calls {
    /// Commits as messages; only those of a key if one is named.
    fn events(
        &self,
        store: &StateStore,
        replay: Replay,
        key: Option<String>,
    ) -> Result<BoxStream<'static, Result<ReplayEvent, Status>>, Status> {
        let events = store.replay(replay).map_err(|error| status(&error))?;
        let events = events.filter_map(move |event| {
            let event = match event {
                Ok(mut event) => {
                    if let Some(key) = &key {
                        event.operations.retain(|it| it.key.key == *key);
                    }
                    match key.is_some() && event.operations.is_empty() {
                        true => None,
                        false => Some(convert::esker_event(event)),
                    }
                }
                Err(error) => Some(Err(status(&error))),
            };
            std::future::ready(event)
        });
        Ok(events.boxed())
    }
}

#[tonic::async_trait]
impl StateService for Calls {
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
        let staged = store.write(&it.txn_id, key, value, it.expected_version);
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
        let staged = store.delete(&it.txn_id, key, it.expected_version);
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
        let expected = |it: Expectation| Expected {
            key: convert::key(it.namespace, it.agent_id, it.key),
            version: it.version,
        };
        let expected = it.expectations.into_iter().map(expected).collect();
        let committed = self.commit_as(&access, &it.txn_id, expected, client);
        let committed = committed.await?;
        Ok(Response::new(CommitResponse {
            commit_ts: committed.commit_ts,
            versions: committed.versions,
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
        let at = match it.at {
            None => ReadAt::Latest,
            Some(get_state_request::At::Version(version)) => ReadAt::Version(version),
            Some(get_state_request::At::CommitTs(commit_ts)) => ReadAt::Commit(commit_ts),
        };
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let read = self.get(&access, client, key, at);
        Ok(Response::new(read.await?.into()))
    }

    async fn get_state_at(
        &self,
        request: Request<GetStateAtRequest>,
    ) -> Result<Response<GetStateResponse>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let at = ReadAt::Commit(it.commit_ts);
        let key = convert::key(it.namespace, it.agent_id, it.key);
        let read = self.get(&access, client, key, at);
        Ok(Response::new(read.await?.into()))
    }

    type ScanStream = BoxStream<'static, Result<ScanResponse, Status>>;

    async fn scan(&self, _: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
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
        let agent = it.agent.map(|it| (it.namespace, it.agent_id));
        let store = self.of_agent_or_all(&access, agent.as_ref())?;
        let replay = Replay {
            client,
            agent,
            start: it.start_ts,
            end: it.end_ts,
            follow: false,
        };
        Ok(Response::new(self.events(store, replay, it.key)?))
    }

    type WatchStream = BoxStream<'static, Result<ReplayEvent, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let access = access(&request)?;
        let client = client(request.extensions());
        let it = request.into_inner();
        let agent = it.agent.map(|it| (it.namespace, it.agent_id));
        let store = self.of_agent_or_all(&access, agent.as_ref())?;
        let start = it.start_ts.unwrap_or_else(|| store.commit_ts() + 1);
        let replay = Replay {
            client,
            agent,
            start: Some(start),
            end: None,
            follow: true,
        };
        Ok(Response::new(self.events(store, replay, it.key)?))
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let store = self.of_all(&access(&request)?, Effect::Write)?;
        let snapshot = store.snapshot().await;
        let snapshot = snapshot.map_err(|error| status(&error))?;
        Ok(Response::new(SnapshotResponse {
            snapshot: Some(convert::snapshot(snapshot)),
        }))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let store = self.of_all(&access(&request)?, Effect::Read)?.clone();
        let client = client(request.extensions());
        let list = async move { store.snapshots().await.map_err(|error| status(&error)) };
        let snapshots = blocking::in_turn(&self.turns.snapshots, client, list).await?;
        Ok(Response::new(ListSnapshotsResponse {
            snapshots: snapshots.into_iter().map(convert::snapshot).collect(),
        }))
    }

    type ExportStream = BoxStream<'static, Result<ExportResponse, Status>>;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let store = self.of_all(&access(&request)?, Effect::Read)?;
        let permit = self.answers.exporting(client(request.extensions())).await;
        let permit = permit.map_err(refused)?;
        let pieces = store.export(request.into_inner().commit_ts, permit);
        let pieces = pieces.map_err(|error| status(&error))?;
        let messages = super::snapshots::export(pieces);
        let answers = &self.answers;
        let messages = answers.perishable(messages, (), |error| Err(refused(error)));
        Ok(Response::new(messages))
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let access = access(&request)?;
        let store = self.of_all(&access, Effect::Write)?;
        // Before anything of the snapshot is taken, and until all of it has taken effect.
        let importing = store.begin_import(client(request.extensions())).await;
        let importing = importing.map_err(|error| status(&error))?;
        let done = super::snapshots::import(store, importing, request.into_inner());
        // A client may take as long as it likes to send the snapshot. What has begun by then is undone.
        let done = access.lease().unless_ended(done).await;
        let done = done.map_err(|error| no_access(&error))??;
        Ok(Response::new(done))
    }

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<VerifyResponse>, Status> {
        let store = self.of_all(&access(&request)?, Effect::Read)?.clone();
        let permit = self.answers.exporting(client(request.extensions())).await;
        let permit = permit.map_err(refused)?;
        let commit_ts = request.into_inner().commit_ts;
        // A task of its own: it keeps its permit until it has ended, even if the client is gone.
        let verifying = tokio::spawn(async move {
            let _permit = permit;
            store.verify(commit_ts).await
        });
        // A panic in it has been reported by the panic hook; an end of the runtime is a stop.
        let found = verifying.await.unwrap_or(Err(StateError::Stopping));
        let found = found.map_err(|error| status(&error))?;
        Ok(Response::new(convert::verification(found)))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let store = self.of_all(&access(&request)?, Effect::Read)?.clone();
        let standing = move || store.status().map_err(|error| status(&error));
        let client = client(request.extensions());
        let standing = blocking::read_in_turn(&self.turns.keys, client, standing).await?;
        Ok(Response::new(convert::standing(standing)))
    }
}
