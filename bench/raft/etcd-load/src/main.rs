//! Puts keys into etcd as fast as a number of clients can: each has its own connection to the leader and
//! waits for an answer before the next request.
//!
//! ```text
//! esker-bench-etcd-load CLIENTS VALUE_BYTES KEYS WARM_MILLISECONDS MILLISECONDS ENDPOINT...
//! ```
//!
//! It prints `begin` when the measured time begins, and `end PUTS MICROSECONDS` when it is over; the caller
//! reads the servers' processor time at both. The load on `esker-raft` has the same protocol:
//! `bench/raft/src/load.rs`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;

type Anything<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The endpoint of the leader.
async fn leader(endpoints: &[String]) -> Anything<String> {
    for _ in 0..100 {
        for endpoint in endpoints {
            let Ok(mut client) = Client::connect([endpoint], None).await else {
                continue;
            };
            let Ok(status) = client.status().await else {
                continue;
            };
            let member = status.header().map(|h| h.member_id());
            if status.leader() != 0 && member == Some(status.leader()) {
                return Ok(endpoint.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("nobody leads".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Anything<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [clients, value, keys, warm, measured, endpoints @ ..] = &arguments[..] else {
        return Err("CLIENTS VALUE_BYTES KEYS WARM_MILLISECONDS MILLISECONDS ENDPOINT...".into());
    };
    let (clients, keys): (u64, u64) = (clients.parse()?, keys.parse()?);
    let value = vec![b'v'; value.parse()?];
    let endpoint = leader(endpoints).await?;
    let puts = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for number in 0..clients {
        let mut client = Client::connect([&endpoint], None).await?;
        let (puts, over, value) = (puts.clone(), over.clone(), value.clone());
        tasks.push(tokio::spawn(async move {
            let mut n = number;
            while !over.load(Ordering::Relaxed) {
                client
                    .put(format!("key-{:012}", n % keys), value.clone(), None)
                    .await?;
                puts.fetch_add(1, Ordering::Relaxed);
                n += clients;
            }
            Ok::<(), etcd_client::Error>(())
        }));
    }
    tokio::time::sleep(Duration::from_millis(warm.parse()?)).await;
    println!("begin");
    let (began, before) = (Instant::now(), puts.load(Ordering::Relaxed));
    tokio::time::sleep(Duration::from_millis(measured.parse()?)).await;
    let (took, after) = (began.elapsed(), puts.load(Ordering::Relaxed));
    println!("end {} {}", after - before, took.as_micros());
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok(())
}
