//! The operations of clients: transactions, reads, empty calls. The code is the same for both servers.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use esker_proto::statehouse::v1::{
    BeginTransactionRequest, CommitRequest, GetStateRequest, HealthRequest, WriteRequest,
};
use esker_proto::{Kind, Struct, Value};
use tonic::transport::{Channel, Endpoint};

use bench_harness::stats::Latencies;

/// A client with its own connection.
pub type Client = StatehouseServiceClient<Channel>;

/// Connects; the server may still be starting.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(StatehouseServiceClient::new(channel)),
            Err(error) if Instant::now() > until => {
                return Err(error).with_context(|| format!("cannot connect to {url}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A value of some 100 bytes of JSON.
pub fn value(n: u64) -> Struct {
    let text = |text: String| Value {
        kind: Some(Kind::StringValue(text)),
    };
    let number = Value {
        kind: Some(Kind::NumberValue(n as f64)),
    };
    let fields = [
        ("n".to_owned(), number),
        ("fact".to_owned(), text(format!("{n:0>70}"))),
    ];
    Struct {
        fields: fields.into_iter().collect(),
    }
}

/// Runs one transaction that writes these keys. Returns how long its commit took.
pub async fn transaction(
    client: &mut Client,
    agent: &str,
    keys: impl Iterator<Item = String>,
    n: u64,
) -> anyhow::Result<Duration> {
    let begun = client
        .begin_transaction(BeginTransactionRequest { timeout_ms: None })
        .await?;
    let txn_id = begun.into_inner().txn_id;
    for key in keys {
        client
            .write(WriteRequest {
                txn_id: txn_id.clone(),
                namespace: "bench".to_owned(),
                agent_id: agent.to_owned(),
                key,
                value: Some(value(n)),
            })
            .await?;
    }
    let at = Instant::now();
    client.commit(CommitRequest { txn_id }).await?;
    Ok(at.elapsed())
}

/// The measurements of clients.
#[derive(Debug)]
pub struct Done {
    pub count: usize,
    pub took: Duration,
    pub latencies: Latencies,
}

impl Done {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    /// A percentile of the latencies, in milliseconds.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        let sorted = self.latencies.clone().sorted();
        sorted.map_or(0.0, |sorted| sorted.percentile_ms(percentile))
    }
}

/// The operation that a client repeats.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// A transaction that writes one of the client's own keys, of which there are this many; its commit is
    /// timed.
    Commit { keys: u64 },
    /// The same with one key that all clients share.
    Hot,
    /// A point read of one of an agent's keys, of which there are this many.
    Read { keys: u64 },
    /// A call that does nothing.
    Empty,
}

/// Runs clients, each with its own connection, which repeat an operation for a time, or a number of times in
/// all.
pub async fn clients(
    url: &str,
    clients: u64,
    deed: Deed,
    most: u64,
    time: Duration,
) -> anyhow::Result<Done> {
    let mut open = Vec::new();
    for _ in 0..clients {
        open.push(connect(url).await?);
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, mut client) in (0u64..).zip(open) {
        let mine = most / clients + u64::from(number < most % clients);
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            for n in 0..mine {
                if begun.elapsed() >= time {
                    break;
                }
                latencies.push(one(&mut client, deed, number, n).await?);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Latencies::default();
    while let Some(done) = tasks.join_next().await {
        latencies.merge(done??);
    }
    Ok(Done {
        count: latencies.len(),
        took: begun.elapsed(),
        latencies,
    })
}

async fn one(client: &mut Client, deed: Deed, number: u64, n: u64) -> anyhow::Result<Duration> {
    let at = Instant::now();
    match deed {
        Deed::Commit { keys } => {
            let key = format!("key-{}", n % keys);
            return transaction(client, &format!("agent-{number}"), std::iter::once(key), n).await;
        }
        Deed::Hot => {
            let key = std::iter::once("hot".to_owned());
            return transaction(client, "agent", key, n).await;
        }
        Deed::Read { keys } => {
            // Keys are read in another order than they were written.
            let key = n.wrapping_mul(2_654_435_761).wrapping_add(number * 7919) % keys;
            let read = client
                .get_state(GetStateRequest {
                    namespace: "bench".to_owned(),
                    agent_id: "agent".to_owned(),
                    key: format!("key-{key:07}"),
                })
                .await?;
            anyhow::ensure!(read.get_ref().exists, "key-{key:07} is missing");
        }
        Deed::Empty => {
            client.health(HealthRequest {}).await?;
        }
    }
    Ok(at.elapsed())
}

/// Writes this many keys of one agent, 300 with each commit.
pub async fn fill(url: &str, keys: u64) -> anyhow::Result<()> {
    const AT_A_TIME: u64 = 300;
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..4u64 {
        let mut client = connect(url).await?;
        tasks.spawn(async move {
            let mut from = part * AT_A_TIME;
            while from < keys {
                let names = (from..(from + AT_A_TIME).min(keys)).map(|n| format!("key-{n:07}"));
                transaction(&mut client, "agent", names, from).await?;
                from += 4 * AT_A_TIME;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
