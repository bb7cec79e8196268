//! Negative controls: without a rule, the promise that it keeps is broken, in the expected way.
//!
//! The same scopes hold with all rules in force (see `main.rs`).

use crate::promises::*;
use crate::scope::{Scope, Without};
use crate::scopes;
use crate::state::Action::{self, *};
use crate::state::Answer::*;
use stateright::{Checker, HasDiscoveries, Model};

/// Actions that must occur in this order, possibly among others, before the promise is broken.
type Story = &'static [fn(&Action) -> bool];

macro_rules! story {
    ($($deed:pat),+ $(,)?) => { { const STORY: Story = &[$(|action| matches!(action, $deed)),+]; STORY } };
}

fn caught(without: Without, scope: Scope, promise: &'static str, story: Story) {
    let scope = Scope {
        without: Some(without),
        ..scope
    };
    let until = HasDiscoveries::AnyOf([promise].into());
    // Breadth first, which finds a shortest path to the loss, or nearly the shortest.
    let checker = scope.checker().finish_when(until).spawn_bfs().join();
    let Some(path) = checker.discovery(promise) else {
        panic!(
            "without {without:?}, still {promise}, in all {} states",
            checker.unique_state_count()
        );
    };
    let actions = path.into_actions();
    println!("without {without:?} it is not so that {promise}:\n  {actions:?}");
    let mut rest = actions.iter();
    let told = story.iter().all(|deed| rest.any(deed));
    assert!(
        told,
        "without {without:?} the promise breaks for another reason than expected: {actions:?}"
    );
}

#[test]
fn a_sweep_that_reads_the_root_before_it_lists_is_caught() {
    let story = story![SweepReadsRoot, Intent(..), SweepLists, SweepDeletes];
    caught(
        Without::ListBeforeRoot,
        scopes::fencing(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn a_sweep_that_ignores_intents_is_caught() {
    let story = story![Intent(..), Put(_), SweepLists, SweepReadsRoot, SweepDeletes];
    caught(
        Without::IntentsInSweep,
        scopes::fencing(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn reuse_of_whatever_the_store_has_is_caught() {
    let story = story![Put(_), Intent(..), Fence(_), SweepReadsRoot, SweepDeletes];
    caught(
        Without::ReuseFromRetainedOnly,
        scopes::fencing(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn keys_without_a_generation_are_caught_losing_data() {
    let story = story![Put(_), SweepLists, SweepReadsRoot, SweepDeletes];
    caught(
        Without::GenerationInKey,
        scopes::fencing(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn keys_without_a_generation_are_caught_being_used_twice() {
    let story = story![Intent(..), Put(_), Intent(..), Put(_)];
    caught(
        Without::GenerationInKey,
        scopes::fencing(),
        USED_ONCE,
        story,
    );
}

#[test]
fn a_commit_that_does_not_look_at_its_reused_keys_again_is_caught() {
    let story = story![
        Commit(..),
        Commit(..),
        Commit(..),
        Retention(_) | SweepDeletes
    ];
    caught(
        Without::RecheckOfReused,
        scopes::reuse(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn a_commit_that_asks_the_store_for_its_reused_keys_is_caught() {
    let story = story![
        Commit(..),
        Commit(..),
        Commit(..),
        Retention(_) | SweepDeletes
    ];
    caught(
        Without::RecheckByRoot,
        scopes::reuse(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn a_commit_that_does_not_look_for_its_intent_is_caught() {
    let story = story![Fence(_), SweepReadsRoot, SweepDeletes];
    caught(
        Without::IntentAtCommit,
        scopes::fencing(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn a_commit_across_lineages_is_caught() {
    let story = story![Fork(_), Intent(..), Commit(..)];
    caught(
        Without::LineageAtCommit,
        scopes::forks(),
        ONE_LINEAGE,
        story,
    );
}

#[test]
fn a_commit_that_cuts_itself_off_because_it_is_old_is_caught() {
    let story = story![Commit(..), Commit(..), Commit(..)];
    caught(
        Without::RefusalOfOlder,
        scopes::retention(),
        TRUE_SUCCESS,
        story,
    );
}

#[test]
fn a_commit_that_cuts_itself_off_because_of_a_tie_is_caught() {
    let story = story![Commit(..), Commit(..), Commit(..)];
    caught(
        Without::NewestUploadWinsTie,
        scopes::ties(),
        TRUE_SUCCESS,
        story,
    );
}

#[test]
fn deletes_that_ignore_pins_are_caught() {
    let story = story![Pin(..), Commit(..), Retention(_) | SweepDeletes];
    caught(Without::PinsInRefs, scopes::pins(), PINNED, story);
}

#[test]
fn a_pin_of_what_an_older_root_retained_is_caught() {
    let story = story![Choose(..), Commit(..), Pin(..)];
    caught(Without::PinOfWhatRootHas, scopes::pins(), PINNED, story);
}

#[test]
fn deletes_that_ignore_what_is_abandoned_are_caught() {
    let story = story![Fork(_), SweepReadsRoot, SweepDeletes];
    caught(Without::AbandonedInRefs, scopes::forks(), ABANDONED, story);
}

#[test]
fn a_sweep_that_skips_unreadable_metadata_is_caught() {
    let story = story![SweepSkipsUnreadable(_), SweepDeletes];
    caught(
        Without::AbortOnUnreadable,
        scopes::reuse(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn retention_that_deletes_all_of_a_snapshot_is_caught() {
    let story = story![Commit(..), Commit(..), Retention(_)];
    caught(
        Without::RefsInRetention,
        scopes::reuse(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn retention_that_deletes_metadata_first_is_caught() {
    let story = story![Commit(..), Commit(..), Retention(_)];
    caught(
        Without::MetadataLast,
        scopes::failing_deletes(),
        LEFTOVERS,
        story,
    );
}

#[test]
fn deleting_after_an_ambiguous_failure_is_caught() {
    let story = story![
        Commit(_, LostBefore),
        Commit(_, Known),
        Retention(_),
        Lands(_)
    ];
    caught(
        Without::CautionAfterAmbiguity,
        scopes::ambiguity(),
        RETAINED_SSTS,
        story,
    );
}

#[test]
fn an_ambiguous_commit_taken_for_a_success_is_caught() {
    let story = story![Commit(_, LostBefore)];
    caught(
        Without::ReadBackOfCommit,
        scopes::ambiguity(),
        TRUE_SUCCESS,
        story,
    );
}

#[test]
fn an_ambiguous_intent_taken_for_an_intent_is_caught() {
    let story = story![Intent(_, LostBefore), Put(_)];
    caught(
        Without::ReadBackOfIntent,
        scopes::ambiguity(),
        USED_ONCE,
        story,
    );
}

#[test]
fn a_generation_taken_from_the_root_read_back_is_caught() {
    let story = story![
        Intent(_, LostAfterwards),
        Intent(..),
        ReadBackIntent(_),
        Put(_)
    ];
    caught(
        Without::GenerationOfIntent,
        scopes::ambiguity(),
        USED_ONCE,
        story,
    );
}

#[test]
fn metadata_under_an_id_that_is_not_yet_in_the_intent_is_caught() {
    let story = story![
        PutMetadata(_),
        SweepLists,
        SweepReadsRoot,
        AddId(..),
        Commit(..)
    ];
    caught(
        Without::IdBeforeMetadata,
        scopes::reuse(),
        RETAINED_METADATA,
        story,
    );
}

#[test]
fn a_fork_of_another_lineage_than_its_parent_is_caught() {
    caught(
        Without::ParentAtFork,
        scopes::forks(),
        ONE_FORK,
        story![Fork(_), Fork(_)],
    );
}

#[test]
fn a_new_root_that_starts_at_the_largest_listed_generation_is_caught() {
    let story = story![Intent(..), LoseRoot, Intent(..)];
    caught(
        Without::JumpOfNewRoot,
        scopes::lost_root(),
        USED_ONCE,
        story,
    );
}

#[test]
fn a_claim_of_what_it_does_not_follow_is_caught() {
    let story = story![Intent(1 | 3, _), Intent(2, _), Commit(..) | Intent(..)];
    caught(Without::FollowsAtClaim, scopes::copies(), ONE_WRITER, story);
}

#[test]
fn a_commit_after_another_incarnation_has_claimed_is_caught() {
    let story = story![Intent(0, _), Intent(1..=3, _), Commit(0, _)];
    caught(Without::WriterAtCommit, scopes::copies(), ONE_WRITER, story);
}
