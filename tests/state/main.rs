//! The state store, end to end: the real binary, over gRPC, with both services' clients, with the command
//! line, and with the official Python package of Statehouse.
//!
//! | module | what it shows |
//! |---|---|
//! | [`transactions`] | what a commit does, all of it or nothing; what ends a transaction |
//! | [`reading`] | versions, deletions, reads as of a commit |
//! | [`conditions`] | compare-and-set |
//! | [`replay`] | bounds, agents, watching |
//! | [`names`] | names that contain anything; order |
//! | [`limits`] | limits, and values that are hard to represent |
//! | [`listeners`] | the addresses of the service, and the variables of Statehouse |
//! | [`restarts`] | the state after a stop and after a kill |
//! | [`snapshots`] | JSON snapshots: made, listed, exported, imported, verified |
//! | [`torn`] | readers while commits run |
//! | [`kills`] | kill -9 in commits and snapshots, again and again |
//! | [`keeping`] | archived snapshots, history by policy, snapshots that fail |
//! | [`damage`] | damaged snapshots, and a store that is rebuilt |
//! | [`commands`] | `esker state` |
//! | [`python`] | the official Python client, and the example |
//! | [`tls`] | the service over TLS, by tonic and by gRPC of Python |
//! | [`tokens`] | what access tokens permit, by namespace and agent |
//! | [`failover`] | one order of commits for all answers, while leaders of three nodes are lost |
//! | [`floods`] | many scans, and slow exports, of one token beside those of another |
//! | [`client`] | clients, and helpers of the tests |

#![allow(clippy::unwrap_used)]

/// Servers and clients, from the test kit.
use testkit_server as support;

mod client;
mod commands;
mod conditions;
mod damage;
mod failover;
mod floods;
mod keeping;
mod kills;
mod limits;
mod listeners;
mod memory;
mod names;
mod python;
mod reading;
mod replay;
mod restarts;
mod snapshots;
mod tls;
mod tokens;
mod torn;
mod transactions;
