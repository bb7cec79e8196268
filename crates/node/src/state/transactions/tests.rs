//! Tests of open transactions.

use super::*;

fn key(name: &str) -> StateKey {
    StateKey::new("n", "a", name)
}

fn transactions(options: StateOptions) -> Transactions {
    Transactions::new(options, "a cluster", 7)
}

fn value(bytes: usize) -> Option<Bytes> {
    Some(format!("{{\"v\":\"{}\"}}", "x".repeat(bytes)).into())
}

#[test]
fn an_expired_transaction_says_so_and_holds_nothing() {
    let mut all = transactions(StateOptions::default());
    let now = Instant::now();
    let id = all.begin(1, Some(Duration::from_millis(5)), now).unwrap();
    all.stage(&id, key("k"), value(100), None, now).unwrap();
    let later = now + Duration::from_millis(5);
    let error = all.stage(&id, key("k"), None, None, later).unwrap_err();
    assert!(
        matches!(error, StateError::TransactionExpired { timeout_ms: 5, .. }),
        "{error}"
    );
    assert_eq!(all.open(), (0, 0));
    let error = all.take(&id, later, None).unwrap_err();
    assert!(matches!(error, StateError::TransactionExpired { .. }));
}

#[test]
fn a_transaction_of_an_earlier_run_is_lost_and_any_other_unknown() {
    let now = Instant::now();
    let mut before = transactions(StateOptions::default());
    let id = before.begin(1, None, now).unwrap();
    assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 4);
    let mut all = transactions(StateOptions::default());
    all.run[5] = before.run[5].wrapping_add(1);
    let lost = all.take(&id, now, None).unwrap_err();
    assert!(matches!(lost, StateError::TransactionLost(_)), "{lost}");
    for id in ["", "nonsense", &Uuid::new_v4().to_string()] {
        let unknown = all.take(id, now, None).unwrap_err();
        assert!(matches!(unknown, StateError::TransactionNotFound(_)));
    }
    // An aborted or committed transaction is not known either.
    let id = all.begin(1, None, now).unwrap();
    all.abort(&id, None).unwrap();
    let unknown = all.take(&id, now, None).unwrap_err();
    assert!(matches!(unknown, StateError::TransactionNotFound(_)));
}

#[test]
fn every_bound_is_kept() {
    let mut all = transactions(StateOptions {
        max_transactions: 2,
        max_operations: 3,
        max_transaction_bytes: 5_000,
        max_timeout: Duration::from_secs(1),
        ..StateOptions::default()
    });
    let now = Instant::now();
    let id = all.begin(1, Some(Duration::from_secs(9)), now).unwrap();
    assert_eq!(all.open[&id].timeout, Duration::from_secs(1));
    all.begin(2, None, now).unwrap();
    let error = all.begin(1, None, now).unwrap_err();
    assert!(error.to_string().starts_with("2 transactions are open"));
    for _ in 0..3 {
        all.stage(&id, key("k"), value(10), None, now).unwrap();
    }
    let error = all.stage(&id, key("k"), None, None, now).unwrap_err();
    assert!(error.to_string().contains("has 3 operations"), "{error}");
    // Expired transactions release their share of the bound.
    let later = now + Duration::from_secs(2);
    let id = all.begin(1, None, later).unwrap();
    let error = all.stage(&id, key("k"), value(6_000), None, later);
    assert!(error.unwrap_err().to_string().contains("5000 are allowed"));
    let name = key(&"k".repeat(5_000));
    let error = check_operation(&name, None).unwrap_err();
    assert!(matches!(error, StateError::Invalid(_)), "{error}");
}

#[test]
fn one_principal_leaves_others_transactions_and_bytes_and_gets_its_own_back() {
    let mut all = transactions(StateOptions {
        max_transactions: 100,
        max_transaction_bytes: 100_000,
        ..StateOptions::default()
    });
    let now = Instant::now();
    let held: Vec<_> = std::iter::from_fn(|| all.begin(1, None, now).ok()).collect();
    assert_eq!(held.len(), 75, "three quarters");
    let refused = all.begin(1, None, now).unwrap_err();
    assert!(refused.to_string().starts_with("75 of your"), "{refused}");
    let other = all.begin(2, None, now).unwrap();
    let mut staged = 0;
    while all
        .stage(&held[staged], key("k"), value(900), None, now)
        .is_ok()
    {
        staged += 1;
    }
    let (_, bytes) = all.open();
    assert!(bytes > 70_000 && bytes <= 75_000, "{bytes}");
    all.stage(&other, key("k"), value(900), None, now).unwrap();
    // What ends is free again, however it ends.
    for id in &held[..40] {
        all.abort(id, None).unwrap();
    }
    all.begin(1, None, now).unwrap();
    let later = now + all.options.max_timeout;
    all.sweep(later);
    assert_eq!((all.open(), all.held.len()), ((0, 0), 0));
}

#[test]
fn a_commit_that_is_too_large_for_one_record_is_refused_and_stays_open() {
    let mut all = transactions(StateOptions::default());
    let now = Instant::now();
    let id = all.begin(1, None, now).unwrap();
    all.stage(&id, key("k"), value(1_000_000), None, now)
        .unwrap();
    let error = all.stage(&id, key("k"), value(60_000), None, now);
    assert!(matches!(error, Err(StateError::Exhausted(_))));
    let all = Mutex::new(all);
    assert!(Committing::begin(&all, &id, Vec::new(), None).is_ok());

    // The names are longer in a record than in memory.
    let id = all.lock().begin(1, None, now).unwrap();
    let long = |n: usize| key(&format!("{n}{}", "\u{1}".repeat(1000)));
    let stage = |n| all.lock().stage(&id, long(n), None, None, now);
    let staged = (0..200).take_while(|n| stage(*n).is_ok()).count();
    let error = stage(staged).unwrap_err();
    assert!(error.to_string().contains("split it"), "{error}");
    // The staged operations fill a record.
    let all = all.lock();
    let operations = &all.open[&id].operations;
    let bound = record_bound(&id, operations);
    assert!(bound <= MAX_RECORD_BYTES);
    assert!(bound + operation_bound(&operations[0]) + 10 > MAX_RECORD_BYTES);
}

#[test]
fn as_many_operations_as_are_allowed_fit_into_a_transaction() {
    let all = Mutex::new(transactions(StateOptions::default()));
    let most = StateOptions::default().max_operations;
    let now = Instant::now();
    let id = all.lock().begin(1, None, now).unwrap();
    for n in 0..most {
        let staged = all.lock().stage(&id, key(&n.to_string()), None, None, now);
        staged.unwrap_or_else(|e| panic!("operation {n}: {e}"));
    }
    let error = all.lock().stage(&id, key("more"), None, None, now);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("10000 operations"), "{error}");
    assert!(Committing::begin(&all, &id, Vec::new(), None).is_ok());
}

fn expected(count: usize) -> Vec<Expected> {
    let one = |n| Expected {
        key: key(&format!("k{n}")),
        version: 0,
    };
    (0..count).map(one).collect()
}

#[test]
fn a_commit_expects_no_more_versions_than_a_transaction_may_have_operations() {
    let all = Mutex::new(transactions(StateOptions {
        max_operations: 3,
        ..StateOptions::default()
    }));
    let now = Instant::now();
    let id = all.lock().begin(1, None, now).unwrap();
    all.lock().stage(&id, key("k"), None, Some(1), now).unwrap();
    let error = Committing::begin(&all, &id, expected(3), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("expects 4 versions"), "{error}");
    assert!(Committing::begin(&all, &id, expected(2), None).is_ok());
}

#[test]
fn a_transaction_that_is_being_committed_holds_its_place_and_is_open_again_if_nothing_happened() {
    let all = Mutex::new(transactions(StateOptions::default()));
    let now = Instant::now();
    let id = all.lock().begin(1, None, now).unwrap();
    all.lock()
        .stage(&id, key("k"), value(100), Some(7), now)
        .unwrap();
    let before = all.lock().open();

    // The client disconnected before the command was proposed.
    let committing = Committing::begin(&all, &id, expected(2), None).unwrap();
    assert_eq!(all.lock().open(), before);
    let unknown = Committing::begin(&all, &id, Vec::new(), None)
        .err()
        .unwrap();
    assert!(matches!(unknown, StateError::TransactionNotFound(_)));
    drop(committing);
    assert_eq!(all.lock().open(), before);
    assert_eq!(all.lock().open[&id].expected.len(), 1);

    // The command was refused without an effect.
    let mut committing = Committing::begin(&all, &id, expected(1), None).unwrap();
    committing.proposed();
    committing.nothing_happened();
    assert_eq!(all.lock().open[&id].operations.len(), 1);

    // The transaction was aborted meanwhile.
    let committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
    all.lock().abort(&id, None).unwrap();
    drop(committing);
    assert_eq!(all.lock().open(), (0, 0));

    // The command is in the log.
    let id = all.lock().begin(1, None, now).unwrap();
    all.lock()
        .stage(&id, key("k"), value(100), None, now)
        .unwrap();
    let mut committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
    committing.proposed();
    assert_eq!(all.lock().open(), before);
    drop(committing);
    assert_eq!(all.lock().open(), (0, 0));
}

#[test]
fn a_transaction_with_changes_of_an_agent_that_is_not_permitted_is_neither_committed_nor_dropped() {
    let all = Mutex::new(transactions(StateOptions::default()));
    let now = Instant::now();
    let of = |agent: &str| StateKey::new("default", agent, "k");
    let only = |namespace: &str, agent: &str| namespace == "default" && agent == "mine";
    let mine: Permitted<'_> = Some(&only);

    let id = all.lock().begin(1, None, now).unwrap();
    all.lock()
        .stage(&id, of("mine"), value(100), None, now)
        .unwrap();
    // What is staged last counts as well, and so does what is expected only.
    for (agent, expected) in [("other", None), ("another", Some(7))] {
        let id = all.lock().begin(1, None, now).unwrap();
        all.lock()
            .stage(&id, of("mine"), value(1), None, now)
            .unwrap();
        all.lock()
            .stage(&id, of(agent), value(1), expected, now)
            .unwrap();
        let before = all.lock().open();
        let refused = Committing::begin(&all, &id, Vec::new(), mine)
            .err()
            .unwrap();
        assert!(matches!(refused, StateError::NotPermitted), "{refused}");
        let refused = all.lock().abort(&id, mine).unwrap_err();
        assert!(matches!(refused, StateError::NotPermitted), "{refused}");
        assert_eq!(all.lock().open(), before);
        // That is so as well while it is being committed.
        let committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
        let refused = all.lock().abort(&id, mine).unwrap_err();
        assert!(matches!(refused, StateError::NotPermitted), "{refused}");
        drop(committing);
        assert_eq!(all.lock().open(), before, "it is open again");
        all.lock().abort(&id, None).unwrap();
    }
    let mut committing = Committing::begin(&all, &id, Vec::new(), mine).unwrap();
    committing.proposed();
    drop(committing);
    let id = all.lock().begin(1, None, now).unwrap();
    all.lock()
        .stage(&id, of("mine"), value(1), None, now)
        .unwrap();
    // One that is dropped while it is being committed is not open again.
    let committing = Committing::begin(&all, &id, Vec::new(), mine).unwrap();
    all.lock().abort(&id, mine).unwrap();
    drop(committing);
    assert_eq!(all.lock().open(), (0, 0));
}

#[test]
fn a_value_is_a_json_object() {
    for bad in ["", "[]", "1", "{", "{}x", " {}", "{\"a\":}"] {
        let bad = Bytes::copy_from_slice(bad.as_bytes());
        assert!(check_value(&bad).is_err(), "{bad:?}");
    }
    assert!(check_value(&Bytes::from_static(b"{\"a\":[{}]}")).is_ok());
}

#[test]
fn a_transaction_ends_with_the_term_in_which_its_node_leads() {
    let now = Instant::now();
    let mut all = transactions(StateOptions::default());
    all.follow_term(Some(3));
    let id = all.begin(1, None, now).unwrap();
    all.stage(&id, key("k"), value(100), None, now).unwrap();
    all.follow_term(Some(3));
    all.stage(&id, key("k"), value(100), None, now).unwrap();
    for term in [None, Some(5)] {
        all.follow_term(term);
        let lost = all.stage(&id, key("k"), None, None, now).unwrap_err();
        assert!(matches!(lost, StateError::TransactionLost(_)), "{lost}");
        assert_eq!(all.open(), (0, 0));
    }
    let id = all.begin(1, None, now).unwrap();
    all.stage(&id, key("k"), value(100), None, now).unwrap();
}

#[test]
fn a_transaction_whose_commit_did_not_happen_is_not_open_in_another_term() {
    let now = Instant::now();
    let all = Mutex::new(transactions(StateOptions::default()));
    all.lock().follow_term(Some(3));
    let id = all.lock().begin(1, None, now).unwrap();
    (all.lock().stage(&id, key("k"), value(100), None, now)).unwrap();
    let committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
    all.lock().follow_term(None);
    committing.nothing_happened();
    assert_eq!(all.lock().open(), (0, 0));
}

#[test]
fn the_node_that_has_begun_a_transaction_is_found_by_its_id() {
    let mut all = transactions(StateOptions::default());
    let id = all.begin(1, None, Instant::now()).unwrap();
    assert!(is_of_node(&id, "a cluster", 7));
    for (id, cluster, node) in [
        (&*id, "a cluster", 8),
        (&*id, "another", 7),
        ("nonsense", "a cluster", 7),
    ] {
        assert!(!is_of_node(id, cluster, node));
    }
}
