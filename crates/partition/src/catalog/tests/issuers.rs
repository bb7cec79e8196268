//! A token that issues others has to be valid when the command is applied.

use super::tokens::{ISSUED, confirm, in_one_step_or_many_tokens, issue, issued_by, revoke};
use super::*;
use crate::command::TokenRefusal;

const ISSUER_INVALID: Outcome = Outcome::TokenIssued(Err(TokenRefusal::IssuerInvalid));

#[test]
fn a_token_that_was_revoked_or_has_expired_before_a_command_is_applied_issues_none_by_it() {
    let child = |id, of, at_ms| issued_by(issue(id, of, None, at_ms, 0), 1);
    let (outcomes, catalog) = in_one_step_or_many_tokens(vec![
        issue("issuer", 1, Some(5_000), 1_000, 0),
        child("in-time", 2, 4_999),
        child("expired", 3, 5_000),
        revoke("issuer"),
        child("revoked", 3, 2_000),
        // Another token with the id of the issuer is not the issuer.
        issue("issuer", 4, None, 2_000, 0),
        child("other", 3, 2_000),
        // Nobody checked it when it was proposed by an earlier build, nor if the root token issues it.
        issue("unchecked", 3, None, 2_000, 0),
    ]);
    let revoked = Outcome::TokenRevoked(true);
    let expected = [
        ISSUED,
        ISSUED,
        ISSUER_INVALID,
        revoked,
        ISSUER_INVALID,
        ISSUED,
        ISSUER_INVALID,
        ISSUED,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(catalog.ids(), ["in-time", "issuer", "unchecked"]);
}

#[test]
fn a_token_that_a_fork_has_suspended_issues_none_and_replays_end_as_before() {
    let mut catalog = Fixture::new();
    catalog.fork(5);
    let child = |id, of, forks| issued_by(issue(id, of, None, 1_000, forks), 1);
    let log = vec![
        issue("issuer", 1, None, 1_000, 0),
        // The proposer did not know of the fork: it was applied before it.
        child("before", 2, 0),
        child("suspended", 3, 1),
        confirm(1),
        child("confirmed", 3, 1),
    ];
    let outcomes = catalog.step(log);
    assert_eq!(outcomes[1..3], [ISSUED, ISSUER_INVALID]);
    assert_eq!(outcomes[4], ISSUED);
    catalog.stop_and_open();
    catalog.replay(1);
    assert_eq!(catalog.ids(), ["before", "confirmed", "issuer"]);
}
