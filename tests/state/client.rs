//! Clients of both services, and helpers of the tests.

use std::path::Path;

use esker_proto::state::v1::state_service_client::StateServiceClient;
use esker_proto::state::v1::{self as esker};
use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use esker_proto::statehouse::v1::{self as statehouse};
use esker_proto::{Struct, value};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Server, Setup};

/// Largest answer that the clients accept, in bytes.
const LARGE: usize = 128 * 1024 * 1024;

/// A server and clients of it.
pub struct State {
    pub server: Server,
    pub clients: Clients,
}

impl std::ops::Deref for State {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

/// Clients of a server. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    pub statehouse: StatehouseServiceClient<Channel>,
    pub esker: StateServiceClient<Channel>,
}

/// A channel to an address `http://…`.
pub fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned())
        .unwrap()
        .connect_lazy()
}

impl State {
    /// A server with a temporary data directory.
    pub async fn fresh() -> State {
        State::of(Setup::default().start_fresh().await)
    }

    /// A server with settings.
    pub async fn with(settings: &[&str]) -> State {
        let setup = settings.iter().fold(Setup::default(), |s, it| s.set(it));
        State::of(setup.start_fresh().await)
    }

    /// A server on a data directory.
    pub async fn on(data_dir: &Path) -> State {
        State::of(Setup::default().start(data_dir).await)
    }

    /// Clients of a server.
    pub fn of(server: Server) -> State {
        let clients = Clients::of(server.url());
        State { server, clients }
    }
}

impl Clients {
    /// Clients that share a connection.
    pub fn of(url: &str) -> Clients {
        let channel = channel(url);
        Clients {
            statehouse: StatehouseServiceClient::new(channel.clone())
                .max_decoding_message_size(LARGE)
                .max_encoding_message_size(LARGE),
            esker: StateServiceClient::new(channel)
                .max_decoding_message_size(LARGE)
                .max_encoding_message_size(LARGE),
        }
    }

    /// Begins a transaction with the longest time limit that the server allows, so that it does not expire in
    /// a slow test.
    pub async fn begin(&self) -> String {
        self.begin_for(Some(u64::MAX)).await.unwrap()
    }

    pub async fn begin_for(&self, timeout_ms: Option<u64>) -> Result<String, Status> {
        let request = statehouse::BeginTransactionRequest { timeout_ms };
        let begun = self.statehouse.clone().begin_transaction(request).await?;
        Ok(begun.into_inner().txn_id)
    }

    pub async fn write(&self, txn: &str, name: Name<'_>, json: &str) -> Result<(), Status> {
        self.stage(txn, name, Some(object(json)), None).await
    }

    pub async fn delete(&self, txn: &str, name: Name<'_>) -> Result<(), Status> {
        self.stage(txn, name, None, None).await
    }

    /// Stages a write, or a deletion, with an expected version.
    pub async fn stage(
        &self,
        txn: &str,
        name: Name<'_>,
        value: Option<Struct>,
        expected_version: Option<u64>,
    ) -> Result<(), Status> {
        let (namespace, agent_id, key) = name.owned();
        let txn_id = txn.to_owned();
        let mut client = self.esker.clone();
        match value {
            Some(value) => {
                let request = esker::WriteRequest {
                    txn_id,
                    namespace,
                    agent_id,
                    key,
                    value: Some(value),
                    expected_version,
                };
                client.write(request).await.map(|_| ())
            }
            None => {
                let request = esker::DeleteRequest {
                    txn_id,
                    namespace,
                    agent_id,
                    key,
                    expected_version,
                };
                client.delete(request).await.map(|_| ())
            }
        }
    }

    pub async fn commit(&self, txn: &str) -> Result<u64, Status> {
        let txn_id = txn.to_owned();
        let request = statehouse::CommitRequest { txn_id };
        let committed = self.statehouse.clone().commit(request).await?;
        Ok(committed.into_inner().commit_ts)
    }

    pub async fn abort(&self, txn: &str) -> Result<(), Status> {
        let txn_id = txn.to_owned();
        let request = statehouse::AbortRequest { txn_id };
        self.statehouse.clone().abort(request).await.map(|_| ())
    }

    /// Commits one transaction with one write. Returns its `commit_ts`.
    pub async fn put(&self, name: Name<'_>, json: &str) -> u64 {
        let txn = self.begin().await;
        self.write(&txn, name, json).await.unwrap();
        self.commit(&txn).await.unwrap()
    }

    /// Commits one transaction with one deletion. Returns its `commit_ts`.
    pub async fn remove(&self, name: Name<'_>) -> u64 {
        let txn = self.begin().await;
        self.delete(&txn, name).await.unwrap();
        self.commit(&txn).await.unwrap()
    }

    /// Reads a key, as a client of Statehouse does.
    pub async fn get(&self, name: Name<'_>) -> Read {
        let (namespace, agent_id, key) = name.owned();
        let request = statehouse::GetStateRequest {
            namespace,
            agent_id,
            key,
        };
        let read = self.statehouse.clone().get_state(request).await.unwrap();
        let it = read.into_inner();
        assert_eq!(it.exists, it.value.is_some());
        Read {
            value: it.value.map(|value| json(&value)),
            version: it.version,
            commit_ts: it.commit_ts,
        }
    }

    /// Reads a version of a key, as a client of Statehouse does.
    pub async fn get_version(&self, name: Name<'_>, version: u64) -> Read {
        let (namespace, agent_id, key) = name.owned();
        let request = statehouse::GetStateAtVersionRequest {
            namespace,
            agent_id,
            key,
            version,
        };
        let read = self.statehouse.clone().get_state_at_version(request).await;
        let it = read.unwrap().into_inner();
        assert_eq!(it.exists, it.value.is_some());
        Read {
            value: it.value.map(|value| json(&value)),
            version: it.version,
            commit_ts: it.commit_ts,
        }
    }

    /// Reads a key as of a commit.
    pub async fn get_at(&self, name: Name<'_>, commit_ts: u64) -> Result<Read, Status> {
        let (namespace, agent_id, key) = name.owned();
        let request = esker::GetStateAtRequest {
            namespace,
            agent_id,
            key,
            commit_ts,
        };
        let it = self.esker.clone().get_state_at(request).await?.into_inner();
        Ok(Read {
            value: it.value.map(|value| json(&value)),
            version: it.version,
            commit_ts: it.commit_ts,
        })
    }

    pub async fn keys(&self, namespace: &str, agent_id: &str) -> Vec<String> {
        let request = statehouse::ListKeysRequest {
            namespace: namespace.into(),
            agent_id: agent_id.into(),
        };
        let keys = self.statehouse.clone().list_keys(request).await;
        keys.unwrap().into_inner().keys
    }

    pub async fn scan(&self, agent_id: &str, prefix: &str) -> Vec<statehouse::StateEntry> {
        let request = statehouse::ScanPrefixRequest {
            namespace: "default".into(),
            agent_id: agent_id.into(),
            prefix: prefix.into(),
        };
        let entries = self.statehouse.clone().scan_prefix(request).await;
        entries.unwrap().into_inner().entries
    }

    /// Replays commits, as a client of Statehouse does.
    pub async fn replay(
        &self,
        agent_id: &str,
        start_ts: Option<u64>,
        end_ts: Option<u64>,
    ) -> Vec<statehouse::ReplayEvent> {
        let request = statehouse::ReplayRequest {
            namespace: "default".into(),
            agent_id: agent_id.into(),
            start_ts,
            end_ts,
        };
        let events = self.statehouse.clone().replay(request).await;
        collect(events.unwrap().into_inner()).await.unwrap()
    }

    /// Makes a snapshot. Returns the commit that it covers.
    pub async fn snapshot(&self) -> u64 {
        let mut client = self.esker.clone();
        let made = client.snapshot(esker::SnapshotRequest {}).await.unwrap();
        made.into_inner().snapshot.unwrap().commit_ts
    }

    /// The snapshots, newest first.
    pub async fn snapshots(&self) -> Vec<esker::SnapshotInfo> {
        let mut client = self.esker.clone();
        let listed = client.list_snapshots(esker::ListSnapshotsRequest {}).await;
        listed.unwrap().into_inner().snapshots
    }

    /// Verifies the newest snapshot.
    pub async fn verify(&self) -> esker::VerifyResponse {
        let mut client = self.esker.clone();
        let request = esker::VerifyRequest { commit_ts: None };
        client.verify(request).await.unwrap().into_inner()
    }

    /// All commits of all agents.
    pub async fn replay_all(&self) -> Vec<esker::ReplayEvent> {
        let request = esker::ReplayRequest::default();
        let events = self.esker.clone().replay(request).await;
        collect(events.unwrap().into_inner()).await.unwrap()
    }
}

/// All messages of a stream.
pub async fn collect<T>(mut messages: tonic::Streaming<T>) -> Result<Vec<T>, Status> {
    let mut all = Vec::new();
    while let Some(message) = messages.message().await? {
        all.push(message);
    }
    Ok(all)
}

/// A key: namespace, agent, key.
#[derive(Clone, Copy)]
pub struct Name<'a>(pub &'a str, pub &'a str, pub &'a str);

impl Name<'_> {
    fn owned(self) -> (String, String, String) {
        (self.0.into(), self.1.into(), self.2.into())
    }
}

/// A key of agent `a` in the namespace `default`.
pub fn key(key: &str) -> Name<'_> {
    Name("default", "a", key)
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub value: Option<String>,
    pub version: u64,
    pub commit_ts: u64,
}

impl Read {
    pub fn none() -> Read {
        Read {
            value: None,
            version: 0,
            commit_ts: 0,
        }
    }

    pub fn of(json: &str, version: u64, commit_ts: u64) -> Read {
        Read {
            value: Some(json.into()),
            version,
            commit_ts,
        }
    }

    pub fn deleted(version: u64, commit_ts: u64) -> Read {
        Read {
            value: None,
            version,
            commit_ts,
        }
    }
}

pub fn object(json: &str) -> Struct {
    value::from_json(json.as_bytes()).unwrap()
}

pub fn json(value: &Struct) -> String {
    String::from_utf8(value::to_json(value).unwrap()).unwrap()
}

/// Fails unless a call was refused with this code of gRPC and this code of Esker.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) {
    let status = result.expect_err("it was to be refused");
    assert_eq!(status.code(), code, "{status:?}");
    let info = status.get_details_error_info().expect("details");
    assert_eq!(info.reason, reason, "{status:?}");
}
