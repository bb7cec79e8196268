//! The promises of stored access tokens.

use s2_common::access::{AccessTokenScope, Operation, ResourceSet};

use super::*;
use crate::command::{ConfirmTokens, IssueToken, RemoveExpiredTokens, RevokeToken, TokenRefusal};
use crate::ids::LineageId;
use crate::token::{Expiry, NameSet, OPERATIONS, StoredToken, TokenHash, TokenScope};

const MOST: u64 = 4;

pub(super) fn hash(of: u8) -> TokenHash {
    TokenHash([of; 32])
}

fn scope() -> TokenScope {
    TokenScope {
        basins: NameSet::prefix("basin-"),
        streams: NameSet::exact("orders"),
        ops: vec![Operation::Read as u32],
        agents: NameSet::prefix("agent-"),
        state_read: true,
        ..TokenScope::default()
    }
}

pub(super) fn issue(id: &str, of: u8, expires_at_ms: Option<u64>, at_ms: u64, forks: u64) -> Kind {
    Kind::IssueToken(IssueToken {
        id: id.to_owned(),
        hash: hash(of).0.to_vec(),
        expires_at_ms,
        auto_prefix_streams: of.is_multiple_of(2),
        scope: scope(),
        at_ms,
        forks,
        max_tokens: MOST,
        expires_at_nanos: 0,
        issuer: None,
    })
}

/// The same command, by the holder of the token with this hash.
pub(super) fn issued_by(issue: Kind, issuer: u8) -> Kind {
    match issue {
        Kind::IssueToken(issue) => Kind::IssueToken(IssueToken {
            issuer: Some(hash(issuer).0.to_vec()),
            ..issue
        }),
        other => other,
    }
}

pub(super) fn revoke(id: &str) -> Kind {
    Kind::RevokeToken(RevokeToken { id: id.to_owned() })
}

pub(super) fn confirm(forks: u64) -> Kind {
    Kind::ConfirmTokens(ConfirmTokens { forks })
}

pub(super) fn remove_expired(ids: &[&str], expired_before_ms: u64) -> Kind {
    Kind::RemoveExpiredTokens(RemoveExpiredTokens {
        ids: ids.iter().map(ToString::to_string).collect(),
        expired_before_ms,
    })
}

pub(super) const ISSUED: Outcome = Outcome::TokenIssued(Ok(()));
const ID_EXISTS: Outcome = Outcome::TokenIssued(Err(TokenRefusal::Exists));
const TOO_MANY: Outcome = Outcome::TokenIssued(Err(TokenRefusal::TooMany));

impl Fixture {
    pub(super) fn tokens(&self) -> Vec<StoredToken> {
        let all = self.reader().tokens("", "", usize::MAX);
        for token in &all {
            let found = self.reader().token(&token.hash);
            assert_eq!(found.as_ref(), Some(token), "each is found by its hash");
        }
        let suspended = all.iter().filter(|token| token.suspended).count();
        assert_eq!(self.reader().count_tokens(), (all.len(), suspended));
        all.iter().map(|token| StoredToken::clone(token)).collect()
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.tokens().into_iter().map(|token| token.id).collect()
    }

    fn suspended(&self) -> Vec<String> {
        let suspended = self.tokens().into_iter().filter(|token| token.suspended);
        suspended.map(|token| token.id).collect()
    }

    pub(super) fn fork(&mut self, id: u128) {
        self.flush();
        let part = self.reader().partition_db().clone();
        let lsn = self.catalog().applied().0;
        let lineage = part.lineage().unwrap().fork(LineageId(id), lsn);
        part.fork(&lineage, &[7]).unwrap();
        drop(part);
        self.stop_and_open();
    }
}

#[test]
fn a_token_is_found_by_its_hash_with_all_that_was_stored() {
    let mut catalog = Fixture::new();
    assert_eq!(
        catalog.apply(issue("one", 1, Some(9_000), 5_000, 0)),
        ISSUED
    );
    let expected = StoredToken {
        id: "one".to_owned(),
        hash: hash(1),
        expires_at: Some(Expiry::new(9_000, 0)),
        auto_prefix_streams: false,
        scope: scope(),
        issued_at_ms: 5_000,
        suspended: false,
    };
    for reopened in [false, true] {
        if reopened {
            catalog.reopen();
        }
        assert_eq!(catalog.tokens(), std::slice::from_ref(&expected));
        assert!(catalog.reader().token(&hash(2)).is_none());
    }
    assert!(!expected.is_expired(8_999));
    assert!(expected.is_expired(9_000));
}

#[test]
fn an_id_and_a_hash_belong_to_one_token_until_it_is_revoked_or_expired() {
    let (outcomes, mut catalog) = in_one_step_or_many_tokens(vec![
        issue("one", 1, None, 1_000, 0),
        issue("one", 2, None, 1_000, 0),
        issue("two", 1, None, 1_000, 0),
        revoke("one"),
        revoke("one"),
        issue("two", 1, Some(5_000), 1_000, 0),
        // It has expired by now, and its id and its hash are free.
        issue("two", 3, None, 4_999, 0),
        issue("two", 1, None, 5_000, 0),
    ]);
    let revoked = |whether| Outcome::TokenRevoked(whether);
    let expected = [
        ISSUED,
        ID_EXISTS,
        ID_EXISTS,
        revoked(true),
        revoked(false),
        ISSUED,
        ID_EXISTS,
        ISSUED,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(catalog.tokens()[0].expires_at, None);
    // A hash moves from one id to another within a step, whichever is first in order.
    for (from, to) in [("two", "aaa"), ("aaa", "two")] {
        catalog.step(vec![revoke(from), issue(to, 1, None, 1_000, 0)]);
        assert_eq!(catalog.ids(), [to]);
    }
}

/// A value of the catalog's database, by its key.
fn stored(catalog: &Fixture, id: &str) -> Vec<u8> {
    let part = catalog.reader().partition_db().clone();
    let (from, to) = crate::keys::all_tokens();
    let mut it = part.iterate(&from, &to, false);
    it.seek_to_first();
    while let (Some(key), Some(value)) = (it.key(), it.value()) {
        if &key[1..] == id.as_bytes() {
            return value.to_vec();
        }
        it.next();
    }
    panic!("{id} is not stored");
}

#[test]
fn an_expiry_keeps_its_nanoseconds() {
    let mut catalog = Fixture::new();
    let Kind::IssueToken(exact) = issue("one", 1, Some(9_000), 5_000, 0) else {
        panic!("not a command that issues");
    };
    let exact = Kind::IssueToken(IssueToken {
        expires_at_nanos: 123_456,
        ..exact
    });
    assert_eq!(catalog.apply(exact), ISSUED);
    for reopened in [false, true] {
        if reopened {
            catalog.reopen();
        }
        let token = &catalog.tokens()[0];
        assert_eq!(token.expires_at, Some(Expiry::new(9_000, 123_456)));
        assert!(token.is_expired(9_000) && !token.is_expired(8_999));
    }
}

#[test]
fn tokens_of_builds_that_knew_milliseconds_and_no_issuers_are_read_as_they_were_stored() {
    const SCOPE: &[u8] =
        b"\x0a\x00\x12\x00\x1a\x00\x22\x06\x0a\x00\x12\x00\x1a\x00\x32\x00\x3a\x00";
    let hash_field = |tag: u8| [&[tag, 32][..], &[7; 32]].concat();
    // The command: id, hash, expiry, automatic prefixes, scope, time, most tokens.
    let issue = [
        &b"\x0a\x03old"[..],
        &hash_field(0x12),
        b"\x18\xa8\x46\x20\x01\x2a\x12",
        SCOPE,
        b"\x30\x88\x27\x40\x04",
    ]
    .concat();
    let command = [&[1, 0xa2, 0x01, issue.len() as u8][..], &issue].concat();
    // The stored token: hash, expiry, automatic prefixes, scope, time.
    let value = [
        &hash_field(0x0a)[..],
        b"\x10\xa8\x46\x18\x01\x22\x12",
        SCOPE,
        b"\x28\x88\x27",
    ]
    .concat();
    let mut catalog = Fixture::new();
    assert_eq!(catalog.try_bytes(vec![command.into()]).unwrap(), [ISSUED]);
    let expected = StoredToken {
        id: "old".to_owned(),
        hash: hash(7),
        expires_at: Some(Expiry::new(9_000, 0)),
        auto_prefix_streams: true,
        scope: TokenScope::default(),
        issued_at_ms: 5_000,
        suspended: false,
    };
    assert_eq!(catalog.tokens(), std::slice::from_ref(&expected));
    catalog.reopen();
    assert_eq!(stored(&catalog, "old"), value);
    assert_eq!(catalog.tokens(), [expected]);
}

#[test]
fn no_more_tokens_are_stored_than_the_command_allows() {
    let mut commands: Vec<Kind> = (0..5)
        .map(|of| issue(&format!("token-{of}"), of, None, 1_000, 0))
        .collect();
    commands.extend([
        revoke("token-0"),
        issue("last", 9, None, 1_000, 0),
        issue("one-more", 10, None, 1_000, 0),
    ]);
    let (outcomes, catalog) = in_one_step_or_many_tokens(commands);
    assert_eq!(outcomes[..5], [ISSUED, ISSUED, ISSUED, ISSUED, TOO_MANY]);
    assert_eq!(outcomes[6..], [ISSUED, TOO_MANY]);
    assert_eq!(catalog.tokens().len() as u64, MOST);
}

#[test]
fn only_tokens_that_have_expired_are_removed_for_it() {
    let (outcomes, catalog) = in_one_step_or_many_tokens(vec![
        issue("early", 1, Some(2_000), 1_000, 0),
        issue("late", 2, Some(9_000), 1_000, 0),
        issue("never", 3, None, 1_000, 0),
        remove_expired(&["early", "late", "never", "unknown", "early"], 2_000),
    ]);
    assert_eq!(outcomes[3], Outcome::ExpiredTokensRemoved(1));
    assert_eq!(catalog.ids(), ["late", "never"]);
    let expired = |at| catalog.reader().tokens_expired_before(at, 10);
    assert_eq!(expired(8_999), Vec::<String>::new());
    assert_eq!(expired(9_000), ["late"]);
    assert!(catalog.reader().tokens_expired_before(9_000, 0).is_empty());
}

#[test]
fn a_fork_suspends_tokens_until_they_are_confirmed_and_the_next_fork_suspends_them_again() {
    let mut catalog = Fixture::new();
    catalog.apply(issue("before", 1, None, 1_000, 0));
    catalog.fork(5);
    assert_eq!(catalog.suspended(), ["before"]);
    // One that is issued now was not revoked in what was lost.
    catalog.apply(issue("after", 2, None, 1_000, catalog.reader().forks()));
    assert_eq!(catalog.suspended(), ["before"]);
    catalog.reopen();
    assert_eq!(
        catalog.suspended(),
        ["before"],
        "a restart confirms nothing"
    );
    let forks = catalog.reader().forks();
    assert_eq!(catalog.apply(confirm(forks)), Outcome::TokensConfirmed(1));
    assert_eq!(catalog.apply(confirm(forks)), Outcome::TokensConfirmed(0));
    for reopened in [false, true] {
        if reopened {
            catalog.reopen();
        }
        assert_eq!(catalog.suspended(), Vec::<String>::new());
    }
    catalog.fork(6);
    assert_eq!(catalog.suspended(), ["after", "before"]);
    assert_eq!(catalog.apply(revoke("before")), Outcome::TokenRevoked(true));
    // A confirmation that was proposed before the fork confirms nothing after it.
    assert_eq!(catalog.apply(confirm(forks)), Outcome::TokensConfirmed(0));
    assert_eq!(catalog.suspended(), ["after"]);
    assert_eq!(
        catalog.apply(confirm(forks + 1)),
        Outcome::TokensConfirmed(1)
    );
}

#[test]
fn a_token_whose_entry_is_replayed_after_a_fork_is_suspended_as_if_it_was_applied_before() {
    let mut catalog = Fixture::new();
    catalog.fork(5);
    catalog.step(vec![
        issue("before", 1, None, 1_000, 0),
        issue("after", 2, None, 1_000, 1),
        confirm(0),
    ]);
    assert_eq!(catalog.suspended(), ["before"]);
}

#[test]
fn a_confirmation_counts_the_tokens_of_its_own_step() {
    let mut catalog = Fixture::new();
    catalog.apply(issue("one", 1, None, 1_000, 0));
    catalog.apply(issue("gone", 2, None, 1_000, 0));
    catalog.fork(5);
    let outcomes = catalog.step(vec![
        issue("two", 3, None, 1_000, 0),
        revoke("gone"),
        confirm(1),
        confirm(1),
        issue("three", 4, None, 1_000, 0),
    ]);
    assert_eq!(outcomes[2], Outcome::TokensConfirmed(2));
    assert_eq!(outcomes[3], Outcome::TokensConfirmed(0));
    assert_eq!(catalog.suspended(), Vec::<String>::new());
    catalog.reopen();
    assert_eq!(catalog.ids(), ["one", "three", "two"]);
    assert_eq!(catalog.suspended(), Vec::<String>::new());
}

#[test]
fn the_digest_covers_tokens_and_their_confirmation() {
    let digest = |commands: Vec<Kind>| {
        let mut catalog = Fixture::new();
        catalog.apply(create("basin-a"));
        for command in commands {
            catalog.apply(command);
        }
        catalog.reader().partition_db().digest().unwrap().digest
    };
    let none = digest(Vec::new());
    let one = digest(vec![issue("one", 1, None, 1_000, 0)]);
    let other = digest(vec![issue("one", 2, None, 1_000, 0)]);
    let gone = digest(vec![issue("one", 1, None, 1_000, 0), revoke("one")]);
    let confirmed = digest(vec![issue("one", 1, None, 1_000, 0), confirm(1)]);
    let refused = digest(vec![revoke("one"), confirm(0)]);
    assert_eq!((gone, refused), (none, none));
    let mut all = vec![none, one, other, confirmed];
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
fn a_hash_of_another_length_stops_the_catalog_and_changes_nothing() {
    let mut catalog = Fixture::new();
    let Kind::IssueToken(good) = issue("one", 1, None, 1_000, 0) else {
        panic!("not a command that issues");
    };
    for hash in [vec![], vec![1; 31], vec![1; 33]] {
        let bad = Kind::IssueToken(IssueToken {
            hash,
            ..good.clone()
        });
        let step = vec![bytes_of(issue("two", 2, None, 1_000, 0)), bytes_of(bad)];
        assert!(catalog.try_bytes(step).is_err());
        assert_eq!(catalog.tokens(), []);
        let bad = Kind::IssueToken(IssueToken {
            issuer: Some(vec![1; 31]),
            ..good.clone()
        });
        assert!(catalog.try_bytes(vec![bytes_of(bad)]).is_err());
        assert_eq!(catalog.tokens(), []);
    }
}

#[test]
fn every_prefix_start_and_limit_lists_the_tokens_that_a_filter_would() {
    let ids = ["a", "a/b", "a/c", "b"];
    let mut catalog = Fixture::new();
    for (of, id) in (1..).zip(ids.iter().rev()) {
        catalog.apply(issue(id, of, None, 1_000, 0));
    }
    for prefix in ["", "a", "a/", "a/c", "c"] {
        for after in ["", "a", "a/b", "a/bb", "b", "zz"] {
            for limit in [0, 1, 2, 100] {
                let listed = catalog.reader().tokens(prefix, after, limit);
                let listed: Vec<&str> = listed.iter().map(|token| &token.id[..]).collect();
                let expected: Vec<&str> = ids
                    .into_iter()
                    .filter(|id| id.starts_with(prefix) && (after.is_empty() || *id > after))
                    .take(limit)
                    .collect();
                assert_eq!(listed, expected, "{prefix:?}, {after:?}, {limit}");
            }
        }
    }
}

#[test]
fn a_scope_keeps_all_that_the_s2_api_permits() {
    let s2 = AccessTokenScope {
        basins: ResourceSet::Exact("basin-name".parse().unwrap()),
        streams: ResourceSet::Prefix("orders/".parse().unwrap()),
        access_tokens: ResourceSet::None,
        ops: OPERATIONS.into_iter().collect(),
        ..AccessTokenScope::default()
    };
    assert_eq!(s2.ops.len(), 24, "all operations of the API are listed");
    let stored = TokenScope::from_s2(&s2);
    let read = TokenScope::decode(&stored.encode_to_vec()[..]).unwrap();
    let back = read.to_s2().unwrap();
    assert_eq!((back.basins, back.streams), (s2.basins, s2.streams));
    assert_eq!((back.access_tokens, back.ops), (s2.access_tokens, s2.ops));
    assert!(!read.state_read && !read.admin_read);
    // What a newer build permits permits nothing here.
    let newer = TokenScope {
        ops: vec![99],
        ..TokenScope::default()
    };
    assert_eq!(newer.operations().count(), 0);
}

#[test]
fn a_set_of_names_includes_another_only_if_it_has_all_its_names() {
    let (none, exact) = (NameSet::NONE, NameSet::exact("ab"));
    let prefix = |of: &str| NameSet::prefix(of);
    assert!(none.includes(&none) && exact.includes(&none) && exact.includes(&exact));
    assert!(!none.includes(&exact) && !none.includes(&prefix("")));
    assert!(prefix("a").includes(&exact) && !prefix("b").includes(&exact));
    assert!(prefix("a").includes(&prefix("ab")) && !prefix("ab").includes(&prefix("a")));
    assert!(
        !exact.includes(&prefix("ab")),
        "others begin with it as well"
    );
    assert!(prefix("").contains("anything") && !none.contains("") && !exact.contains("abc"));
}

/// Applies commands in one step, and each in a step of its own.
pub(super) fn in_one_step_or_many_tokens(commands: Vec<Kind>) -> (Vec<Outcome>, Fixture) {
    let mut apart = Fixture::new();
    for command in commands.clone() {
        apart.apply(command);
    }
    let (outcomes, together) = in_one_step_or_many(commands);
    assert_eq!(together.tokens(), apart.tokens());
    (outcomes, together)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(10),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn neither_steps_nor_crashes_change_which_tokens_are_suspended(
        steps in prop::collection::vec(prop::collection::vec(any_command(), 1..8), 1..8),
        flushed in 0usize..8,
        again in 1usize..20,
    ) {
        let (mut in_steps, mut one_by_one) = (Fixture::new(), Fixture::new());
        for id in 0..5 {
            in_steps.fork(10 + id);
            one_by_one.fork(10 + id);
        }
        for (i, step) in steps.into_iter().enumerate() {
            let expected: Vec<_> = step.iter().map(|c| one_by_one.apply(c.clone())).collect();
            prop_assert_eq!(in_steps.step(step), expected);
            prop_assert_eq!(in_steps.tokens(), one_by_one.tokens());
            if i == flushed {
                in_steps.flush();
            }
        }
        in_steps.stop_and_open();
        in_steps.replay(again);
        prop_assert_eq!(in_steps.tokens(), one_by_one.tokens());
    }
}
