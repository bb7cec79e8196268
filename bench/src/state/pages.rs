//! Pages of the console of a store with a long history, and what a viewer of a live page costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_harness::page::Figure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Bench;
use crate::recovery::subject::Subject;

/// Times that a page is loaded, one after the other.
const LOADS: u32 = 100;
/// Browsers that look at a live page at a time.
const VIEWERS: u32 = 20;
/// The counter of rows.
const ROWS: &str = "esker_state_rows_read_total";

/// Loads each page that shows the state, and opens live ones, beside nothing else.
pub(super) async fn measure(
    bench: &Bench,
    server: &Subject,
    commits: u64,
) -> anyhow::Result<Vec<Figure>> {
    let (of_agent, of_key) = ("namespace=bench&agent=agent-0", "key=key-0");
    let middle = format!("commit_ts={}", commits / 2);
    let pages = [
        ("agents", "/dashboard/state".to_owned()),
        ("keys of an agent", format!("/dashboard/state?{of_agent}")),
        (
            "keys of an agent, half of the commits ago",
            format!("/dashboard/state?{of_agent}&{middle}"),
        ),
        ("a key", format!("/dashboard/key?{of_agent}&{of_key}")),
        (
            "a key, half of the commits ago",
            format!("/dashboard/key?{of_agent}&{of_key}&{middle}"),
        ),
    ];
    server.settle(Duration::from_secs(30)).await;
    let mut figures = Vec::new();
    for (what, path) in pages {
        figures.push(load(server, what, &path, commits).await?);
    }
    let time = Duration::from_secs(if bench.run.quick { 4 } else { 20 });
    let share = viewers(server, "/dashboard/live/commits", time).await?;
    figures.push(
        Figure::plain(
            format!("a viewer of the live commits, of {commits}"),
            format!("{:.2} % of a processor", share * 100.0),
        )
        .beside(format!("{VIEWERS} of them, for {} s", time.as_secs()))
        .target("at most 1 %", share <= 0.01),
    );
    Ok(figures)
}

async fn load(server: &Subject, what: &str, path: &str, commits: u64) -> anyhow::Result<Figure> {
    // The first one reads what is not in memory yet.
    get(server, path).await?;
    let before = (server.processor_seconds()?, server.metric(ROWS).await?);
    let begun = Instant::now();
    for _ in 0..LOADS {
        get(server, path).await?;
    }
    let each = |sum: f64| sum / f64::from(LOADS);
    let took = each(begun.elapsed().as_secs_f64());
    let processor = each(server.processor_seconds()? - before.0);
    let rows = each(server.metric(ROWS).await? - before.1);
    let figure = Figure::plain(
        format!("page of {what}, {commits} commits"),
        format!("{:.1} ms", took * 1e3),
    );
    Ok(figure.beside(format!(
        "{:.1} ms of a processor, {rows:.0} rows of the database",
        processor * 1e3
    )))
}

async fn get(server: &Subject, path: &str) -> anyhow::Result<()> {
    let (status, page) = server.get(path).await?;
    ensure!(status == 200, "{path} answers {status}: {page}");
    Ok(())
}

/// The part of a processor that each of some viewers of a live page takes.
async fn viewers(server: &Subject, path: &str, time: Duration) -> anyhow::Result<f64> {
    let used_in = async || -> anyhow::Result<f64> {
        let (begun, before) = (Instant::now(), server.processor_seconds()?);
        tokio::time::sleep(time).await;
        Ok((server.processor_seconds()? - before) / begun.elapsed().as_secs_f64())
    };
    let alone = used_in().await?;
    let url = server.url();
    let address = url.strip_prefix("http://").context("not an http:// URL")?;
    let mut open = tokio::task::JoinSet::new();
    for _ in 0..VIEWERS {
        let mut viewer = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        viewer.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        viewer.read_exact(&mut head).await?;
        ensure!(head == *b"HTTP/1.1 200", "{path} is refused");
        open.spawn(async move {
            // A browser takes what comes.
            tokio::io::copy(&mut viewer, &mut tokio::io::sink()).await
        });
    }
    let with = used_in().await?;
    ensure!(
        open.try_join_next().is_none(),
        "a live page has ended by itself"
    );
    open.shutdown().await;
    Ok((with - alone).max(0.0) / f64::from(VIEWERS))
}
