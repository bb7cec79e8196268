//! Three nodes, and what may happen to one of them.
//!
//! | module | what it shows |
//! |---|---|
//! | [`guide`] | each path of the guide to clusters |
//! | [`histories`] | one order of events for all answers, while leaders are lost in each way |
//! | [`partitions`] | networks that carry messages one way, or not at all |
//! | [`disks`] | a full disk and one that hangs, on one node |
//! | [`clocks`] | clocks that jump |
//! | [`names`] | names of nodes that cannot be resolved, or that change |
//! | [`tokens`], [`token_prefixes`] | access tokens on all nodes |
//! | [`addresses`] | nodes that are where another one was |
//! | [`moves`] | leaderships that move as planned cost no append |
//! | [`clients`] | the official clients by way of any node |
//! | [`routes`] | the other calls and routes, by way of a node that leads nothing |
//! | [`leaders_alone`] | work that no follower does |
//! | [`certificates`] | nodes that trust each other by certificates |
//! | [`formats`] | data directories of earlier formats become first nodes |
//! | [`digests`] | replicas are compared, and one that differs stops |
//! | [`undecided`] | replicas differ, and no majority shows which one is right |
//! | [`transfers`] | what is sent to a node that was left behind, across restarts and on a full disk |
//! | [`sources`] | where a node gets what it lacks |
//! | [`writer`] | a writer across failures, and what it knows |

mod addresses;
mod certificates;
mod clients;
mod clocks;
mod digests;
mod disks;
mod formats;
mod guide;
mod histories;
mod leaders_alone;
mod moves;
mod names;
mod partitions;
mod routes;
mod sources;
mod token_prefixes;
mod tokens;
mod transfers;
mod undecided;
mod writer;
