//! An exhaustive model of the protocol that keeps a partition's snapshots safe on object storage.
//!
//! It uses no code of the crate: it is the protocol itself, checked in every order in which its steps can
//! occur within a *scope* of a few writers, contents and faults. The tests of the crate then show that the
//! code follows the model.
//!
//! - `scope`: the parties, the faults that may occur, and the rule that is removed;
//! - `state`: the root, the objects, the memory of each party;
//! - `protocol` and `writer`: the next steps of each party, and their effects;
//! - `promises`: the invariants of every state;
//! - `scopes`: the scopes, each with conditions that it must reach, so that none passes because it is
//!   empty;
//! - `controls`: each rule removed, and the loss that follows.
//!
//! Some things follow from the construction and need no step of their own: a second sweeper (a sweep
//! depends on no other, and may pause for any time), a crash (a party that makes no further step), a pin or
//! fork that takes effect late (the same as a later one), a sweep by age (it deletes less). Not in the
//! model: the rule about ages, the patterns of keys, and everything that depends on clocks.
//!
//! The small scopes take some ten seconds. `ESKER_MODEL=large` adds those that take minutes:
//!
//! ```text
//! ESKER_MODEL=large cargo test --release -p esker-repository --test model
//! ```

mod controls;
mod promises;
mod protocol;
mod scope;
mod scopes;
mod state;
mod writer;

use scope::Scope;
use stateright::{Checker, Model};

/// Visits every state of the scope.
fn explore(scope: Scope) {
    // Depth first, because this keeps only the fingerprints of the visited states.
    let checker = scope.checker().spawn_dfs().join();
    println!(
        "{} states, at most {} steps deep",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

fn explore_if_large(scope: Scope) {
    match std::env::var("ESKER_MODEL").as_deref() {
        Ok("large") => explore(scope),
        _ => println!("skipped: ESKER_MODEL is not `large`"),
    }
}

#[test]
fn a_retained_snapshot_survives_every_fence_and_sweep() {
    explore(scopes::fencing());
}

#[test]
fn a_reused_key_survives_the_eviction_of_its_first_owner_or_is_uploaded_again() {
    explore(scopes::reuse());
}

#[test]
fn an_unanswered_swap_is_neither_lost_nor_undone() {
    explore(scopes::ambiguity());
}

#[test]
fn snapshots_that_finish_out_of_order_are_retained_by_lsn() {
    explore(scopes::retention());
}

#[test]
fn a_commit_never_cuts_off_itself_even_when_all_lsns_are_equal() {
    explore(scopes::ties());
}

#[test]
fn what_a_failed_delete_leaves_behind_is_named_by_a_metadata_object() {
    explore(scopes::failing_deletes());
}

#[test]
fn a_pinned_snapshot_stays_whole_until_it_is_unpinned() {
    explore(scopes::pins());
}

#[test]
fn a_fork_keeps_what_it_abandons_and_shuts_out_the_stale_lineage() {
    explore(scopes::forks());
}

#[test]
fn a_restarted_writer_goes_on_with_its_live_intent() {
    explore(scopes::restarts());
}

#[test]
fn two_processes_that_share_an_intent_do_no_harm() {
    explore(scopes::twins());
}

#[test]
fn of_two_copies_of_a_node_one_writes() {
    explore(scopes::copies());
}

#[test]
fn a_recreated_root_repeats_no_generation() {
    explore(scopes::lost_root());
}

#[test]
fn all_mishaps_together_lose_nothing() {
    explore(scopes::everything());
}

#[test]
fn large_a_retained_snapshot_survives_every_fence_and_sweep() {
    explore_if_large(scopes::large::fencing());
}

#[test]
fn large_an_unanswered_swap_is_neither_lost_nor_undone() {
    explore_if_large(scopes::large::ambiguity());
}

#[test]
fn large_snapshots_that_finish_out_of_order_are_retained_by_lsn() {
    explore_if_large(scopes::large::retention());
}

#[test]
fn large_two_processes_that_share_an_intent_do_no_harm() {
    explore_if_large(scopes::large::twins());
}

#[test]
fn large_all_mishaps_together_lose_nothing() {
    explore_if_large(scopes::large::everything());
}
