//! An agent that keeps its state in transactions: each flight updates three keys, or none.
//!
//! The server is killed in mid-commit. Every acknowledged commit is complete afterwards, and a JSON snapshot
//! with the commits after it gives the state that the server has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_proto::state::v1::state_service_client::StateServiceClient;
use esker_proto::state::v1::{SnapshotRequest, VerifyRequest};
use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use esker_proto::statehouse::v1::{
    BeginTransactionRequest, CommitRequest, GetStateRequest, WriteRequest,
};
use esker_proto::value;
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::Channel;

use super::{Cast, missing};
use crate::demo::records::Records;
use crate::demo::server::ServerProcess;
use crate::failure::Failure;
use crate::term::{bytes, count, rate, took};

/// Acknowledged commits after which the server is killed.
const KILL_AFTER: u64 = 500;
/// The agent.
const AGENT: &str = "tower";
/// The key that holds the agent's progress; the other keys are airports.
const PROGRESS: &str = "progress";

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let data = cast.scratch.join("state");
    let log = cast.scratch.join("state.log");
    let arguments = ["--set".to_owned(), "partitions=1".to_owned()];
    let server = ServerProcess::start(&data, log.clone(), &arguments).await?;
    cast.server = Some(server);
    let flights = Arc::new(Records::flights().repeated(100 * KILL_AFTER));
    cast.stage
        .say("An agent counts flights: three keys change in one transaction, or none does.");
    let acknowledged = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let working = tokio::spawn(work(
        connect(cast).await?,
        flights.clone(),
        acknowledged.clone(),
    ));
    while acknowledged.load(Ordering::Relaxed) < KILL_AFTER {
        if working.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    let elapsed = began.elapsed();
    // The task ends when the connection is lost.
    let _ = working.await;
    let known = acknowledged.load(Ordering::Relaxed);
    cast.stage.figure(
        "acknowledged",
        count(known),
        format_args!(
            "transactions of three keys ({}), then SIGKILL in mid-commit",
            rate(known, elapsed)
        ),
    );

    let began = Instant::now();
    cast.server = Some(ServerProcess::start(&data, log, &arguments).await?);
    let mut client = connect(cast).await?;
    let (progress, version) = get(&mut client, PROGRESS).await?;
    cast.stage.figure(
        "first answer",
        took(began.elapsed()),
        format_args!("after exec; the agent is at flight {}", count(version)),
    );
    // One commit more than was acknowledged may have been applied: its answer was lost.
    let at = progress["flights"].as_u64().unwrap_or_default();
    if at != version || !(known..=known + 1).contains(&at) {
        return Err(Failure::wrong(
            "demo",
            format!(
                "{known} commits were acknowledged, and the agent is at {at}, version {version}"
            ),
        ));
    }
    let airports = expected(&flights, at)?;
    for (airport, flights) in &airports {
        let (value, version) = get(&mut client, airport).await?;
        if value["flights"] != json!(flights) || version != *flights {
            return Err(Failure::wrong(
                "demo",
                format!("{airport} has {value}, version {version}, and had {flights} flights"),
            ));
        }
    }
    cast.stage.holds(format_args!(
        "every acknowledged transaction is whole, at all {} airports, and no other in part",
        airports.len()
    ));

    let url = cast.server()?.address().to_string();
    let mut esker = StateServiceClient::connect(url)
        .await
        .map_err(|e| Failure::wrong("demo", e.to_string()))?;
    let began = Instant::now();
    let made = esker.snapshot(SnapshotRequest {}).await.map_err(failed)?;
    let made = made.into_inner().snapshot.unwrap_or_default();
    cast.stage.figure(
        "a snapshot",
        bytes(made.bytes),
        format_args!(
            "of JSON, {} keys, in {}",
            count(made.keys()),
            took(began.elapsed())
        ),
    );
    transaction(&mut client, at + 1, &flights)
        .await
        .map_err(failed)?;
    let request = VerifyRequest { commit_ts: None };
    let proof = esker.verify(request).await.map_err(failed)?.into_inner();
    if !proof.differences.is_empty() {
        return Err(Failure::wrong("demo", proof.differences.join("; ")));
    }
    cast.stage.holds(format_args!(
        "the snapshot and {} replayed commit give the live state",
        proof.replayed
    ));
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    // If this fails, the directory is removed with the scratch directory.
    let _ = std::fs::remove_dir_all(&data);
    Ok(())
}

type Client = StatehouseServiceClient<Channel>;

async fn connect(cast: &Cast) -> Result<Client, Failure> {
    let url = cast.server()?.address().to_string();
    let client = Client::connect(url).await;
    client.map_err(|e| Failure::wrong("demo", e.to_string()))
}

fn failed(status: Status) -> Failure {
    Failure::wrong("demo", status.message().to_owned())
}

/// Commits flights, one transaction each, until the server is gone.
async fn work(mut client: Client, flights: Arc<Records>, acknowledged: Arc<AtomicU64>) {
    let mut number = 1;
    while transaction(&mut client, number, &flights).await.is_ok() {
        acknowledged.store(number, Ordering::Relaxed);
        number += 1;
    }
}

/// Commits one flight: its origin, its destination and the progress.
async fn transaction(client: &mut Client, number: u64, flights: &Records) -> Result<(), Status> {
    let begun = client
        .begin_transaction(BeginTransactionRequest { timeout_ms: None })
        .await?;
    let txn_id = begun.into_inner().txn_id;
    let airports = airports(flights, number).map_err(Status::internal)?;
    for key in airports.iter().map(String::as_str).chain([PROGRESS]) {
        let before = read(client, key).await?;
        let counted = before.map_or(0, |(value, _)| value["flights"].as_u64().unwrap_or(0)) + 1;
        let value = json!({"flights": counted, "last": number}).to_string();
        let value =
            value::from_json(value.as_bytes()).map_err(|e| Status::internal(e.to_string()))?;
        client
            .write(WriteRequest {
                txn_id: txn_id.clone(),
                namespace: "default".to_owned(),
                agent_id: AGENT.to_owned(),
                key: key.to_owned(),
                value: Some(value),
            })
            .await?;
    }
    client.commit(CommitRequest { txn_id }).await?;
    Ok(())
}

async fn read(client: &mut Client, key: &str) -> Result<Option<(Value, u64)>, Status> {
    let request = GetStateRequest {
        namespace: "default".to_owned(),
        agent_id: AGENT.to_owned(),
        key: key.to_owned(),
    };
    let found = client.get_state(request).await?.into_inner();
    let Some(value) = found.value else {
        return Ok(None);
    };
    let text = value::to_json(&value).map_err(|e| Status::internal(e.to_string()))?;
    let value = serde_json::from_slice(&text).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Some((value, found.version)))
}

async fn get(client: &mut Client, key: &str) -> Result<(Value, u64), Failure> {
    let found = read(client, key).await.map_err(failed)?;
    found.ok_or_else(|| Failure::wrong("demo", format!("{key} is missing")))
}

/// Origin and destination of a flight, by number from 1 on; one airport if they are the same.
fn airports(flights: &Records, number: u64) -> Result<Vec<String>, String> {
    let body = flights.get(number - 1).ok_or("there is no flight left")?;
    let flight: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let name = |member: &str| {
        let name = flight[member].as_str();
        name.map(str::to_owned)
            .ok_or_else(|| format!("flight {number} has no {member}"))
    };
    let mut airports = vec![name("origin")?, name("destination")?];
    airports.dedup();
    Ok(airports)
}

/// How many flights each airport had up to this one.
fn expected(
    flights: &Records,
    up_to: u64,
) -> Result<std::collections::BTreeMap<String, u64>, Failure> {
    let mut counts = std::collections::BTreeMap::new();
    for number in 1..=up_to {
        let airports = airports(flights, number).map_err(|why| Failure::wrong("demo", why))?;
        for airport in airports {
            *counts.entry(airport).or_insert(0) += 1;
        }
    }
    Ok(counts)
}
