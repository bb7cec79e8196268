//! Hosts that make one mistake each, to show that the simulation detects it.
//!
//! All of them are mistakes against the documentation of the actions, so none needs a switch in the engine.
//! Two are wrong limits: the engine is configured to keep nothing for transfers, or for members that are away, and
//! the simulation checks the intended limit.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A snapshot is stored without its membership.
    DropMembership,
    /// A snapshot is stored with the membership that the group was founded with.
    BootstrapInSnapshot,
    /// A snapshot is stored with all members except the one that took it.
    SenderNotInSnapshot,
    /// A snapshot is stored without the learners to be promoted.
    ForgetPromotions,
    /// A host starts with the list of founders as the membership.
    CountFromBootstrap,
    /// The state keeps the membership from before the entries that were applied to it.
    CopyMembership,
    /// The log is compacted under a transfer.
    CompactUnderTransfer,
    /// The log is compacted although a member that is away goes on with it.
    CompactUnderAbsence,
    /// A fetched file is not verified.
    IgnoreChecksum,
    /// `Persisted` is stepped before the sync.
    AcknowledgeBeforeSync,
    /// A snapshot has the index of its beginning, and the content of its end.
    CaptureAfterApply,
    /// A snapshot has the content of its beginning, and the index of its end.
    IndexAfterCapture,
    /// `SnapshotFetched` and `SnapshotInstalled` are stepped before the files are complete.
    StepBeforeTheFiles,
    /// Queued entries are dropped before the install that covers them has succeeded.
    ForgetBeforeInstalled,
    /// A read is answered from the applied state, without the engine.
    ReadAtOnce,
    /// A voter that has lost its disk is founded again under its number, instead of joining under a new one.
    RejoinUnderOldNumber,
    /// A restarted host does not tell its engine up to where the log is archived.
    ForgetArchived,
    /// A change of the voters counts as confirmed as soon as it is complete at the leader.
    StopBeforeConfirmed,
    /// A snapshot is installed as the state, and not as the membership.
    InstallWithoutMembership,
}

/// Fails unless one of the first `within` seeds detects the mutant, with a message that contains `by`.
fn is_caught(mutant: Mutant, within: u64, by: &str) {
    for seed in 0..within {
        let found = std::panic::catch_unwind(|| run(seed, Some(mutant)));
        let what = match found {
            Ok(Ok(_)) => continue,
            Ok(Err(what)) => what,
            Err(_) => "a panic".to_owned(),
        };
        println!("{mutant:?} is caught by seed {seed}: {what}");
        assert!(
            what.contains(by),
            "{mutant:?} is caught by something else: {what}"
        );
        return;
    }
    panic!("{mutant:?} is not caught by {within} seeds");
}

#[test]
fn a_snapshot_without_its_membership_is_caught() {
    is_caught(Mutant::DropMembership, 20, "membership");
}

#[test]
fn a_snapshot_with_the_membership_of_the_foundation_is_caught() {
    is_caught(Mutant::BootstrapInSnapshot, 40, "membership");
}

#[test]
fn a_snapshot_without_its_sender_in_the_membership_is_caught() {
    is_caught(Mutant::SenderNotInSnapshot, 20, "membership");
}

#[test]
fn a_snapshot_without_the_promotions_that_are_to_come_is_caught() {
    is_caught(Mutant::ForgetPromotions, 100, "membership");
}

#[test]
fn counting_from_the_list_of_the_foundation_is_caught() {
    is_caught(Mutant::CountFromBootstrap, 40, "membership");
}

#[test]
fn a_state_that_copies_the_membership_from_before_its_entries_is_caught() {
    is_caught(Mutant::CopyMembership, 20, "membership");
}

#[test]
fn compacting_under_a_transfer_is_caught() {
    is_caught(Mutant::CompactUnderTransfer, 40, "under a transfer");
}

#[test]
fn compacting_what_a_member_that_is_away_needs_is_caught() {
    is_caught(Mutant::CompactUnderAbsence, 100, "is away");
}

#[test]
fn ignoring_a_checksum_is_caught() {
    is_caught(Mutant::IgnoreChecksum, 200, "another state");
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    is_caught(Mutant::AcknowledgeBeforeSync, 5, "durable");
}

#[test]
fn capturing_after_the_index_was_fixed_is_caught() {
    is_caught(Mutant::CaptureAfterApply, 20, "another state");
}

#[test]
fn an_index_from_after_the_capture_is_caught() {
    is_caught(Mutant::IndexAfterCapture, 20, "another state");
}

#[test]
fn stepping_a_snapshot_before_its_files_are_there_is_caught() {
    is_caught(Mutant::StepBeforeTheFiles, 40, "begins after");
}

#[test]
fn forgetting_what_an_install_is_to_cover_before_it_has_succeeded_is_caught() {
    is_caught(Mutant::ForgetBeforeInstalled, 1000, "is to apply");
}

#[test]
fn reading_the_applied_state_without_the_engine_is_caught() {
    is_caught(Mutant::ReadAtOnce, 20, "a read of");
}

#[test]
fn a_voter_that_lost_its_disk_and_is_founded_again_under_its_number_is_caught() {
    is_caught(Mutant::RejoinUnderOldNumber, 20, "the log was lost");
}

#[test]
fn forgetting_what_is_archived_at_a_restart_is_caught() {
    is_caught(Mutant::ForgetArchived, 40, "archived");
}

#[test]
fn an_install_that_keeps_the_membership_from_before_is_caught() {
    is_caught(Mutant::InstallWithoutMembership, 40, "membership");
}

#[test]
fn stopping_a_removed_node_before_the_change_is_confirmed_is_caught() {
    is_caught(Mutant::StopBeforeConfirmed, 1000, "no progress");
}
