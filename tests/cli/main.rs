//! The command line as people use it: what it prints, its exit codes, and what it leaves behind.
//!
//! | module | what it shows |
//! |---|---|
//! | [`transcripts`] | help, errors and the demo, word for word; transcripts on the pages |
//! | [`snapshots`] | `esker snapshot` on repositories in directories |
//! | [`online`] | `esker status`, and `esker snapshot` against a real server |
//! | [`streams`], [`appends`], [`reads`] | `esker stream` against a real server |
//! | [`lost_connections`] | `esker stream append` over connections that break, and batches still in transit |
//! | [`demo`] | `esker demo`: what it leaves behind, in every case |
//! | [`trial`] | `esker cluster try`: what it prints works, and what it leaves behind |
//! | [`json`] | what every command with `--json` prints when it fails |
//! | [`outputs`] | files that commands write, and existing files at their paths |
//! | [`interrupts`] | the end of commands by a signal |
//! | [`access`] | access tokens and certificates, for every way to a server |
//! | [`tokens`] | `esker token` against a real server |
//! | [`imports`] | `esker import s2`, from this program and from s2-lite |
//! | [`alerts`] | alert rules and the guide to recovery name metrics that exist |
//! | [`links`] | links between pages, and paths in them, lead to existing targets |
//! | [`clients`] | the programs on the pages of clients and in `examples/` print what is shown |
//! | [`servers`] | the output of `esker server` for people and for programs |
//! | [`support`] | running the program, and servers for it |
//!
//! The files `*.trycmd` beside this one contain commands and their output; `[..]` matches anything on a line.
//! `TRYCMD=overwrite cargo test --release --test cli` rewrites them.

#![allow(clippy::unwrap_used)]

mod access;
mod alerts;
mod appends;
mod clients;
mod demo;
mod imports;
mod interrupts;
mod json;
mod links;
mod lost_connections;
mod online;
mod outputs;
mod reads;
mod servers;
mod snapshots;
mod streams;
mod support;
mod tokens;
mod transcripts;
#[cfg(target_os = "linux")]
mod trial;
