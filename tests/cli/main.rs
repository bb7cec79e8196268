//! The command line as people meet it: what it prints, how it exits, what it leaves behind.
//!
//! | module | what it shows |
//! |---|---|
//! | [`transcripts`] | help, errors and the demo, word for word; and what the pages show |
//! | [`snapshots`] | `esker snapshot` on repositories in directories |
//! | [`online`] | `esker status`, and `esker snapshot` against a real server |
//! | [`streams`], [`appends`], [`reads`] | `esker stream` against a real server |
//! | [`lost_connections`] | `esker stream append` over connections that end, and what is still on its way over them |
//! | [`demo`] | `esker demo`: what it leaves behind, however it ends |
//! | [`json`] | what every command with `--json` prints when it fails |
//! | [`outputs`] | files that commands write, and what is there before |
//! | [`interrupts`] | how commands end by a signal |
//! | [`alerts`] | alert rules and the guide to recovery name metrics that exist |
//! | [`links`] | links between pages, and paths in them, name what is there |
//! | [`clients`] | the programs on the pages of clients do what the pages say |
//! | [`servers`] | what `esker server` says to a person and to a program |
//! | [`support`] | running the program, and servers for it |
//!
//! The files `*.trycmd` beside this one hold commands with what they print; `[..]` stands for
//! anything on a line. `TRYCMD=overwrite cargo test --release --test cli` writes them anew.

#![allow(clippy::unwrap_used)]

mod alerts;
mod appends;
mod clients;
mod demo;
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
mod transcripts;
