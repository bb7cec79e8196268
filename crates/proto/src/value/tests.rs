//! What the conversions promise.

use proptest::prelude::*;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::*;
use crate::{state, statehouse};

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    let fields = fields.map(|(key, value)| (key.to_string(), value));
    Struct {
        fields: fields.into(),
    }
}

fn list(values: Vec<Value>) -> Value {
    value(Kind::ListValue(ListValue { values }))
}

fn json(value: &Struct) -> String {
    String::from_utf8(to_json(value).expect("it has JSON")).expect("UTF-8")
}

fn number(number: f64) -> String {
    let text = json(&object([("n", value(Kind::NumberValue(number)))]));
    text[5..text.len() - 1].to_string()
}

/// `{"n": {"n": … scalar}}`.
fn objects(depth: usize) -> Struct {
    let scalar = object([("n", value(Kind::BoolValue(true)))]);
    (1..depth).fold(scalar, |inner, _| {
        object([("n", value(Kind::StructValue(inner)))])
    })
}

/// `{"n": [[[… scalar]]]}`.
fn lists(depth: usize) -> Struct {
    let scalar = value(Kind::BoolValue(true));
    object([("n", (0..depth).fold(scalar, |inner, _| list(vec![inner])))])
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("JSON has it", |number| number.is_finite()),
        (-(1_i64 << 53)..=1 << 53).prop_map(|number| number as f64),
        Just(-0.0),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        Just(5e-324),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(value(Kind::NullValue(0))),
        any::<bool>().prop_map(|it| value(Kind::BoolValue(it))),
        any_number().prop_map(|it| value(Kind::NumberValue(it))),
        any::<String>().prop_map(|it| value(Kind::StringValue(it))),
        "[\"\\\\\u{0}-\u{20}\u{7f}é\u{2028}😀]{0,8}".prop_map(|it| value(Kind::StringValue(it))),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(list),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|fields| value(Kind::StructValue(Struct { fields }))),
        ]
    })
}

fn any_struct() -> impl Strategy<Value = Struct> {
    prop::collection::btree_map(any::<String>(), any_value(), 0..8)
        .prop_map(|fields| Struct { fields })
}

/// Equal in every bit: `==` would take -0.0 for 0.0.
fn bits(value: &Struct) -> Vec<u8> {
    value.encode_to_vec()
}

proptest! {
    #[test]
    fn whatever_goes_into_json_comes_out_the_same(given in any_struct()) {
        let text = to_json(&given).expect("it has JSON");
        let again = from_json(&text).expect("what was written can be read");
        prop_assert_eq!(bits(&again), bits(&given));
    }

    #[test]
    fn what_is_written_is_what_everybody_takes_for_json(given in any_struct()) {
        let text = to_json(&given).expect("it has JSON");
        let parsed: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        // What other programs write, with spaces and in another order, is read, too.
        let pretty = serde_json::to_vec_pretty(&parsed).expect("JSON");
        let again = from_json(&pretty).expect("JSON");
        let mut keys = again.fields.keys();
        prop_assert!(given.fields.keys().all(|key| keys.next() == Some(key)));
    }

    #[test]
    fn a_float_that_was_rewritten_as_an_integer_is_accepted(number in any_number()) {
        let whole = number.trunc();
        for text in [format!("{whole}"), format!("{whole:.0}")] {
            prop_assert!(check_json(format!("{{\"n\":{text}}}").as_bytes()).is_ok(), "{}", text);
        }
    }

    #[test]
    fn no_text_whatever_breaks_the_reader(text in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = from_json(&text);
        let _ = from_json(&[b"{\"a\":", text.as_slice()].concat());
    }

    #[test]
    fn the_reader_takes_what_serde_json_takes(text in "[\\[\\]{}\",:0-9eE.+\\-ntrufals \\\\]{0,24}") {
        let text = format!("{{\"a\":{text}}}");
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        prop_assert_eq!(from_json(text.as_bytes()).is_ok(), theirs.is_ok(), "{}", text);
    }
}

#[test]
fn whole_numbers_have_no_fraction_up_to_two_to_the_53rd() {
    for (given, written) in [
        (0.0, "0"),
        (-0.0, "-0.0"),
        (1.0, "1"),
        (-42.0, "-42"),
        (1.5, "1.5"),
        (1e300, "1e+300"),
        (9_007_199_254_740_991.0, "9007199254740991"),
        (9_007_199_254_740_992.0, "9007199254740992"),
        (-9_007_199_254_740_992.0, "-9007199254740992"),
        (0.1, "0.1"),
    ] {
        assert_eq!(number(given), written);
    }
    // Beyond 2^53, a float is written as one.
    assert_eq!(number(9_007_199_254_740_994.0), "9007199254740994.0");
    let read = from_json(b"{\"n\":9007199254740991}").expect("JSON");
    assert_eq!(
        read.fields["n"].kind,
        Some(Kind::NumberValue(9_007_199_254_740_991.0))
    );
}

#[test]
fn lists_of_objects_keep_what_they_hold() {
    let text = br#"{"a":[{"b":[1,[2,{"c":null}]]},[],{}],"z":"\u00e9\n\"\\"}"#;
    let read = from_json(text).expect("JSON");
    assert_eq!(
        json(&read),
        "{\"a\":[{\"b\":[1,[2,{\"c\":null}]]},[],{}],\"z\":\"é\\n\\\"\\\\\"}"
    );
}

#[test]
fn a_value_without_a_kind_is_null() {
    let given = object([("a", Value { kind: None })]);
    assert_eq!(json(&given), "{\"a\":null}");
}

#[test]
fn keys_are_in_order_and_the_last_of_two_counts() {
    let read = from_json(b" {\"b\":1, \"a\":2,\"b\":3 } ").expect("JSON");
    assert_eq!(json(&read), "{\"a\":2,\"b\":3}");
}

#[test]
fn what_json_does_not_have_is_refused_and_named() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let inner = list(vec![
            value(Kind::BoolValue(true)),
            value(Kind::NumberValue(bad)),
        ]);
        let given = object([("a/b", inner)]);
        let error = to_json(&given).expect_err("it is no number of JSON");
        assert_eq!(error.pointer, "/a~1b/1");
        assert!(error.to_string().starts_with("/a~1b/1: "), "{error}");
    }
}

#[test]
fn what_is_no_json_object_is_refused_and_says_where() {
    for (text, says) in [
        ("", "it is not a JSON object"),
        ("[1]", "it is not a JSON object"),
        ("{\"a\":1e400}", "/a: 1e400 is too large"),
        ("{\"a\":[1,tru]}", "/a/1: a JSON value is missing"),
        ("{\"a\":01}", "`,` or `}` is missing"),
        ("{\"a\":1} x", "something follows"),
        ("{\"a\":\"x", "a string does not end"),
        ("{\"a\":\"\\", "a string does not end"),
        ("{\"a\":\"\\ud800\"}", "a string is not JSON"),
        ("{\"a\":\"\n\"}", "control character"),
        ("{\"a\":NaN}", "a JSON value is missing"),
        ("{\"a\":-}", "a digit is missing"),
        ("{\"a\":1,}", "`\"` is missing"),
    ] {
        let error = from_json(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let bytes = b"{\"a\":\"\xff\"}";
    let error = from_json(bytes).expect_err("not UTF-8").to_string();
    assert!(error.contains("not UTF-8"), "{error}");
}

#[test]
fn the_deepest_value_fits_into_every_message() {
    for given in [objects(MAX_OBJECTS), lists(MAX_LISTS)] {
        let text = to_json(&given).expect("deep enough");
        assert_eq!(from_json(&text).expect("deep enough"), given);

        let operation = state::v1::Operation {
            value: Some(given.clone()),
            ..Default::default()
        };
        let event = state::v1::ReplayEvent {
            operations: vec![operation],
            ..Default::default()
        };
        let again = state::v1::ReplayEvent::decode(event.encode_to_vec().as_slice());
        assert_eq!(again.expect("it can be read"), event);

        let entry = statehouse::v1::StateEntry {
            value: Some(given),
            ..Default::default()
        };
        let answer = statehouse::v1::ScanPrefixResponse {
            entries: vec![entry],
        };
        let again = statehouse::v1::ScanPrefixResponse::decode(answer.encode_to_vec().as_slice());
        assert_eq!(again.expect("it can be read"), answer);
    }
}

#[test]
fn what_is_deeper_is_refused_on_either_way() {
    for given in [objects(MAX_OBJECTS + 1), lists(MAX_LISTS + 1)] {
        let error = to_json(&given).expect_err("too deep");
        assert!(error.problem.contains("nests too deep"), "{error}");
        assert!(error.pointer.len() < 20, "{error}");
    }
    for (begin, middle, end) in [("{\"n\":", "1", "}"), ("{\"n\":[", "", "]}")] {
        for depth in [MAX_LISTS + 2, 100_000] {
            let text = format!("{}{middle}{}", begin.repeat(depth), end.repeat(depth));
            let error = from_json(text.as_bytes()).expect_err("too deep");
            assert!(error.problem.contains("nests too deep"), "{error}");
        }
    }
    assert_eq!((MAX_OBJECTS, MAX_LISTS), (32, 47));
}

#[test]
fn an_integer_that_no_float_has_is_refused_where_values_are_to_stay_as_they_are() {
    for exact in [
        "9007199254740992",
        "-9007199254740994",
        "0.1",
        "1e300",
        "-0",
        "18446744073709551616",
        // As jq writes 1.2345678901234567e20 and -1.2345678901234568e25.
        "123456789012345670000",
        "-12345678901234568000000000",
    ] {
        let text = format!("{{\"n\":{exact}}}");
        assert!(check_json(text.as_bytes()).is_ok(), "{exact}");
    }
    for inexact in ["123456789012345670001", "12345678901234568000000001"] {
        let text = format!("{{\"n\":{inexact}}}");
        assert!(check_json(text.as_bytes()).is_err(), "{inexact}");
    }
    let error = check_json(br#"{"n":[9007199254740993]}"#).unwrap_err();
    assert_eq!(error.pointer, "/n/0");
    assert!(
        error.problem.contains("read as 9007199254740992"),
        "{error}"
    );
    for bad in [r#"{"s":"\ud800"}"#, r#"{"n":1e999}"#] {
        assert!(check_json(bad.as_bytes()).is_err(), "{bad}");
    }
}
