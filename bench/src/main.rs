//! Measures Esker side by side with its peers, and tries to make it lose what it acknowledged.
//!
//! Ten subcommands:
//!
//! - `streams` runs the same load, by the same client, on the same machine and in the same run
//!   against `s2 lite` (the *peer*) and against Esker, alternating between them row by row, and
//!   prints a table of medians with the targets that Esker has set itself.
//! - `repository` measures puts, restores and sweeps of snapshots beside `restic` and `cp`.
//! - `recovery` measures what snapshots cost a working server, and how long it takes to come back.
//! - `follow` measures followers of streams that take snapshots.
//! - `state` measures the state store side by side with `statehouse-daemon`.
//! - `security` measures what encryption of records and access tokens cost.
//! - `cluster` measures three nodes beside one, beside etcd, while leaders are killed, and while a node is filled.
//! - `layout` measures layouts of a partition's stream data on RocksDB alone.
//! - `overload` measures a polite client among others that flood, followers in great number, and memory over
//!   a long mixed load.
//! - `soak` kills an Esker server with SIGKILL at random moments under load, restarts it on the
//!   same data directory and checks every acknowledged record.
//!
//! Modules: [`process`] owns server processes, `bench_harness` the directories they write to, medians and
//! pages, [`client`] the two clients, [`rows`] one file per row of the table, [`report`] the table, [`soak`]
//! the kill loop, whose checker is that of the test kit.
//!
//! Every step has a time limit, and every server is killed when the program ends, also when a row fails or on
//! Ctrl-C.

mod client;
mod cluster;
mod follow;
mod layout;
mod overload;
mod peer;
mod process;
mod progress;
mod recovery;
mod report;
mod repository;
mod rows;
mod security;
mod sizes;
mod soak;
mod state;
mod streams;
mod targets;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "esker-bench",
    version,
    about = "Measure Esker against its peers"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure stream operations side by side with `s2 lite`.
    Streams(streams::Args),
    /// Measure puts, restores and sweeps of snapshots beside `restic` and `cp`.
    Repository(repository::Args),
    /// One operation of that, in a process of its own.
    #[command(hide = true)]
    RepositoryStep(repository::step::Step),
    /// Measure what snapshots cost, and how long recoveries take.
    Recovery(recovery::Args),
    /// Measure followers of streams that take snapshots.
    Follow(follow::Args),
    /// One operation of that, in a process of its own.
    #[command(hide = true)]
    FollowStep(follow::step::Step),
    /// Measure the state store side by side with `statehouse-daemon`.
    State(state::Args),
    /// Measure what encryption of records and access tokens cost.
    Security(security::Args),
    /// Measure three nodes beside one, beside etcd, while leaders are killed, and while a node is filled.
    Cluster(cluster::Args),
    /// Measure layouts of a partition's stream data on RocksDB alone.
    Layout(layout::Args),
    /// Measure a polite client among 64 that flood, 10,000 followers, and memory over a mixed load.
    Overload(overload::Args),
    /// The flood of that, in a process of its own.
    #[command(hide = true)]
    OverloadFlood(overload::flood::Step),
    /// Kill the server at random moments under load and check what it acknowledged.
    Soak(soak::Args),
}

/// Exit codes: 0 done, 1 found something wrong, 3 could not measure.
#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Cli::parse().command {
            Command::Streams(args) => streams::run(args).await,
            Command::Repository(args) => repository::run(args).await,
            Command::RepositoryStep(step) => repository::step::run(step).await,
            Command::Recovery(args) => recovery::run(args).await,
            Command::Follow(args) => follow::run(args).await,
            Command::FollowStep(step) => follow::step::run(step).await,
            Command::State(args) => state::run(args).await,
            Command::Security(args) => security::run(args).await,
            Command::Cluster(args) => cluster::run(args).await,
            Command::Layout(args) => tokio::task::spawn_blocking(move || layout::run(&args))
                .await?
                .map(|()| ExitCode::SUCCESS),
            Command::Overload(args) => overload::run(args).await,
            Command::OverloadFlood(step) => overload::flood::run(step).await,
            Command::Soak(args) => soak::run(args).await,
        }
    };
    // Dropping `work` kills the servers and removes the scratch directories that it owns.
    tokio::select! {
        outcome = work => match outcome {
            Ok(code) => code,
            Err(error) => {
                eprintln!("esker-bench: {error:#}");
                ExitCode::from(3)
            }
        },
        name = stopped() => {
            eprintln!("esker-bench: stopped by {name}");
            ExitCode::from(130)
        }
    }
}

/// Returns the name of the first signal that asks this program to end.
async fn stopped() -> &'static str {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                terminate.recv().await;
            }
            // Without a handler the default action ends the program anyway.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "Ctrl-C",
        () = terminate => "SIGTERM",
    }
}
