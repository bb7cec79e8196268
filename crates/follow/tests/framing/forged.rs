//! Headers that lie.

use std::time::Duration;

use esker_follow::in_stream::restore::find;
use esker_follow::options::Reading;
use esker_follow::snapshot::assembly::{Assembly, Fed};
use esker_follow::snapshot::meta::MAX_META;
use esker_follow::snapshot::object::{self, Begins};
use esker_follow::snapshot::record::{self, Seen};
use esker_follow::snapshot::{Encoding, Totals};
use esker_follow::{Error, SequencedRecord};
use proptest::prelude::*;
use s2_sdk::types::{AppendRecord, Header};
use uuid::Uuid;

use crate::model::Stream;
use crate::{Blob, block_on, describe, encode};

fn read(made: &AppendRecord) -> Seen {
    let (headers, body) = (made.headers().to_vec(), made.body().to_vec());
    record::see(&SequencedRecord::from_parts(9, 0, headers, body))
}

#[test]
fn a_description_that_is_too_long_is_not_read() {
    for len in [MAX_META + 1, 1 << 20] {
        let text = format!("{{\"format\":1,\"fold\":\"{}\"}}", "x".repeat(len));
        let headers = vec![
            Header::new("esker-snapshot", "fragment"),
            Header::new("esker-snapshot-id", Uuid::new_v4().to_string()),
            Header::new("esker-snapshot-index", "0"),
            Header::new("esker-snapshot-meta", text.clone()),
        ];
        let record = SequencedRecord::from_parts(9, 0, headers, "");
        assert!(matches!(record::see(&record), Seen::Malformed(_)));
        let mut frame = 0x184D_2A5E_u32.to_le_bytes().to_vec();
        frame.extend((text.len() as u32).to_le_bytes());
        frame.extend(text.as_bytes());
        assert!(matches!(object::begins(&frame), Begins::Malformed(_)));
    }
}

#[test]
fn fragments_and_ends_that_lie_about_their_number_are_torn() {
    block_on(async {
        let stream = Stream::new(1);
        let meta = describe(&stream, 0, Encoding::None);
        let (bytes, totals) = encode(b"a state", &meta).await;
        for lie in [0, 2, u64::MAX] {
            let id = Uuid::new_v4();
            let mut assembly = Assembly::default();
            let first = record::fragment_record(id, 0, Some(&meta), bytes.clone()).unwrap();
            let fed = assembly.feed(1, &read(&first), first.body());
            assert_eq!(fed, Fed::Began(id));
            let end = record::final_record(id, lie, &totals).unwrap();
            let fed = assembly.feed(2, &read(&end), b"");
            assert!(matches!(fed, Fed::Torn(..)), "{lie}: {fed:?}");
            assert_eq!(assembly.open().count(), 0);

            let fed = assembly.feed(3, &read(&first), first.body());
            assert_eq!(fed, Fed::Began(id));
            let next = record::fragment_record(id, lie.max(2), None, bytes.clone()).unwrap();
            let fed = assembly.feed(4, &read(&next), next.body());
            assert!(matches!(fed, Fed::Torn(..)), "{lie}: {fed:?}");
        }
    });
}

#[test]
fn a_cursor_beyond_its_own_place_is_no_snapshot() {
    for cursor in [6, 100, u64::MAX] {
        block_on(async {
            let stream = Stream::new(1);
            stream.data(["a", "b", "c", "d"]);
            let meta = describe(&stream, cursor, Encoding::None);
            let (bytes, totals) = encode(b"a state", &meta).await;
            let id = Uuid::new_v4();
            let single = record::single_record(id, &meta, &totals, bytes.clone()).unwrap();
            let first = record::fragment_record(id, 0, Some(&meta), bytes).unwrap();
            let end = record::final_record(id, 1, &totals).unwrap();
            // The first of them is the head.
            let batch = [record::trim_record(5), single, first, end];
            stream.land(&batch, None).unwrap();
            assert_eq!(stream.now_head(), 5);
            let mut identity = stream.now_identity();
            let found = find(
                &stream,
                &Blob::default(),
                &mut identity,
                &Reading::default(),
            )
            .await;
            match (found, cursor) {
                (Err(Error::HistoryGone { head: 5, .. }), _) => {}
                // A fragment at 6 may say to cover what is before itself.
                (Ok(_), 6) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn sizes_that_lie_are_only_compared() {
    block_on(async {
        for bytes in [0, 8, u64::MAX] {
            let stream = Stream::new(1);
            stream.data(["a", "b", "c", "d"]);
            let meta = describe(&stream, 4, Encoding::None);
            let (body, mut totals) = encode(b"a state", &meta).await;
            totals.bytes = bytes;
            let single = record::single_record(Uuid::new_v4(), &meta, &totals, body).unwrap();
            stream
                .land(&[record::trim_record(5), single], None)
                .unwrap();
            let mut identity = stream.now_identity();
            let reading = Reading {
                restore_timeout: Some(Duration::from_secs(1)),
                ..Reading::default()
            };
            let found = find(&stream, &Blob::default(), &mut identity, &reading).await;
            assert!(matches!(found, Err(Error::HistoryGone { .. })), "{bytes}");
        }
    });
}

proptest! {
    #[test]
    fn any_headers_are_read_without_a_panic(
        kind in prop_oneof![
            Just(b"single".to_vec()), Just(b"fragment".to_vec()), Just(b"final".to_vec()),
            prop::collection::vec(any::<u8>(), 0..10),
        ],
        id in prop_oneof![Just(Uuid::nil().to_string().into_bytes()), prop::collection::vec(any::<u8>(), 0..40)],
        index in prop_oneof!["[0-9]{1,30}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..10)],
        meta in prop_oneof![
            any::<u64>().prop_map(|cursor| format!(
                "{{\"format\":1,\"fold\":\"blob\",\"fold_version\":1,\"cursor\":{cursor},\
                 \"taken_at\":0,\"encoding\":\"none\"}}"
            ).into_bytes()),
            prop::collection::vec(any::<u8>(), 0..100),
        ],
        fragments in any::<u64>(),
        bytes in any::<u64>(),
        position in any::<u64>(),
    ) {
        let totals = Totals { bytes, xxh3: "0".repeat(32) };
        let end = record::final_record(Uuid::nil(), fragments, &totals).unwrap();
        let totals = end.headers()[2].value.clone();
        let headers = vec![
            Header::new("esker-snapshot", kind),
            Header::new("esker-snapshot-id", id),
            Header::new("esker-snapshot-index", index),
            Header::new("esker-snapshot-meta", meta),
            Header::new("esker-snapshot-totals", totals),
        ];
        let record = SequencedRecord::from_parts(position, 0, headers, "body");
        let mut assembly = Assembly::default();
        for _ in 0..3 {
            let _ = assembly.feed(position, &record::see(&record), &record.body);
        }
        prop_assert!(assembly.open().count() <= 1);
    }
}
