//! Limits, and values that are hard to represent.

use esker_proto::{Kind, Struct, Value, value::MAX_OBJECTS};
use tonic::Code;

use crate::client::{Read, State, assert_refused, key, object};

const MIB: usize = 1024 * 1024;

fn large(bytes: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(bytes))
}

fn nested(depth: usize) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let object = |inner| Struct {
        fields: [("n".to_owned(), inner)].into(),
    };
    let scalar = object(value(Kind::BoolValue(true)));
    (1..depth).fold(scalar, |inner, _| object(value(Kind::StructValue(inner))))
}

#[tokio::test]
async fn what_is_larger_than_a_record_is_refused_and_the_store_goes_on() {
    let state = State::fresh().await;
    state.put(key("x"), &large(MIB - 8 * 1024)).await;
    let txn = state.begin().await;
    let staged = state.write(&txn, key("y"), &large(2 * MIB)).await;
    // The refusal comes at the write or at the commit.
    let refused = match staged {
        Ok(()) => state.commit(&txn).await.map(|_| ()),
        refused => refused,
    };
    assert_refused(refused, Code::ResourceExhausted, "exhausted");
    let txn = state.begin().await;
    let refused = state.write(&txn, key("y"), &large(5 * MIB)).await;
    assert_refused(refused, Code::ResourceExhausted, "exhausted");
    assert_eq!(state.get(key("y")).await, Read::none());
    state.put(key("y"), "{}").await;
}

#[tokio::test]
async fn more_operations_than_allowed_are_refused() {
    let state = State::with(&["state.transaction-operations=3"]).await;
    let txn = state.begin().await;
    for name in ["x", "y", "z"] {
        state.write(&txn, key(name), "{}").await.unwrap();
    }
    let refused = state.write(&txn, key("one more"), "{}").await;
    assert_refused(refused, Code::ResourceExhausted, "exhausted");
}

#[tokio::test]
async fn a_name_that_is_too_long_is_refused() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    let longest = "é".repeat(2048);
    state.write(&txn, key(&longest), "{}").await.unwrap();
    let longer = format!("{longest}x");
    let refused = state.write(&txn, key(&longer), "{}").await;
    assert_refused(refused, Code::InvalidArgument, "invalid");
}

#[tokio::test]
async fn a_value_keeps_any_json() {
    let state = State::fresh().await;
    let json = r#"{"":{},"a":[[],[{"b":[null,{"c":[1,2.5]}]}],{}],"big":9007199254740991,"f":1e+300,"neg":-0.0,"s":"\"\\\n\u0000é😀","small":5e-324}"#;
    state.put(key("x"), json).await;
    assert_eq!(state.get(key("x")).await, Read::of(json, 1, 1));
    let entries = state.scan("a", "").await;
    assert_eq!(entries[0].value, Some(object(json)));
    let events = state.replay("a", None, None).await;
    assert_eq!(events[0].operations[0].value, Some(object(json)));
}

#[tokio::test]
async fn what_json_does_not_have_is_refused_with_the_place() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    let nan = Value {
        kind: Some(Kind::NumberValue(f64::NAN)),
    };
    let value = Struct {
        fields: [("bad".to_owned(), nan)].into(),
    };
    let refused = state.stage(&txn, key("x"), Some(value), None).await;
    assert!(refused.as_ref().unwrap_err().message().contains("/bad"));
    assert_refused(refused, Code::InvalidArgument, "invalid");
}

#[tokio::test]
async fn the_deepest_value_can_be_read_everywhere_and_a_deeper_one_is_refused() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    let deepest = nested(MAX_OBJECTS);
    state
        .stage(&txn, key("x"), Some(deepest.clone()), None)
        .await
        .unwrap();
    for depth in [MAX_OBJECTS + 1, 40, 1000] {
        let deeper = Some(nested(depth));
        let refused = state.stage(&txn, key("y"), deeper, None).await;
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{depth}: {status:?}");
        assert!(status.message().contains("32 objects"), "{status:?}");
    }
    state.commit(&txn).await.unwrap();
    assert_eq!(state.scan("a", "").await[0].value, Some(deepest.clone()));
    let events = state.replay_all().await;
    assert_eq!(events[0].operations[0].value, Some(deepest));
}

#[tokio::test]
async fn an_answer_that_is_too_large_says_what_to_do() {
    let state = State::fresh().await;
    for n in 0..70 {
        state
            .put(key(&format!("k{n}")), &large(MIB - 8 * 1024))
            .await;
    }
    let request = esker_proto::statehouse::v1::ScanPrefixRequest {
        namespace: "default".into(),
        agent_id: "a".into(),
        prefix: String::new(),
    };
    let refused = state.statehouse.clone().scan_prefix(request).await;
    assert_refused(refused, Code::ResourceExhausted, "exhausted");
    assert_eq!(state.keys("default", "a").await.len(), 70);
    assert_eq!(state.scan("a", "k6").await.len(), 11);
}
