//! Snapshots as objects, truncated, lengthened and flipped.

use std::sync::Arc;

use bytes::Bytes;
use esker_follow::snapshot::{Encoding, object};
use esker_follow::{Error, External, Follower};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use proptest::prelude::*;

use crate::model::Stream;
use crate::{Blob, block_on, describe, encode};

#[derive(Clone, Debug)]
enum Harm {
    None,
    Ends(usize),
    Flips(usize, u8),
    Loses(usize, usize),
    GetsMore(usize, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        Just(Harm::None),
        any::<usize>().prop_map(Harm::Ends),
        (any::<usize>(), 1..=255_u8).prop_map(|(at, bits)| Harm::Flips(at, bits)),
        (any::<usize>(), 1..50_usize).prop_map(|(at, len)| Harm::Loses(at, len)),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..50))
            .prop_map(|(at, more)| Harm::GetsMore(at, more)),
    ]
}

fn harmed(mut object: Vec<u8>, harm: &Harm) -> Vec<u8> {
    let len = object.len();
    match harm {
        Harm::None => {}
        Harm::Ends(at) => object.truncate(at % len),
        Harm::Flips(at, bits) => object[at % len] ^= bits,
        Harm::Loses(at, many) => {
            let at = at % len;
            object.drain(at..(at + many).min(len));
        }
        Harm::GetsMore(at, more) => {
            let at = at % (len + 1);
            object.splice(at..at, more.iter().copied());
        }
    }
    object
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_harmed_object_is_refused_or_is_exactly_the_state(
        state in prop::collection::vec(any::<u8>(), 0..500),
        compressed in any::<bool>(),
        harm in harm(),
    ) {
        block_on(async {
            let stream = Stream::new(1);
            stream.data(["a", "b", "c", "d"]);
            let encoding = if compressed { Encoding::Zstd } else { Encoding::None };
            let meta = describe(&stream, 4, encoding);
            let (bytes, totals) = encode(&state, &meta).await;
            let object = [object::head(&meta), bytes, object::tail(encoding, &totals)].concat();
            let object = harmed(object, &harm);
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let path = Path::from("snapshots/4.bin");
            store.put(&path, Bytes::from(object).into()).await.unwrap();
            let external = External::new(store, "snapshots");
            let builder = Follower::builder(stream, Blob::default()).external(external);
            match builder.open().await {
                Ok(follower) if follower.restored().is_some() => {
                    let view = follower.view().await.unwrap();
                    prop_assert_eq!(view.state.0.as_ref(), Some(&state));
                    prop_assert_eq!(follower.restored().unwrap().cursor, 4);
                }
                Ok(_) | Err(Error::Unusable { .. }) => {
                    prop_assert!(!matches!(harm, Harm::None), "nothing was wrong with it");
                }
                Err(other) => panic!("{other}"),
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_an_object_begins_and_ends_with_is_read_without_a_panic(
        first in prop::collection::vec(any::<u8>(), 0..200),
        len in any::<u32>(),
    ) {
        let _ = object::begins(&first);
        let mut framed = 0x184D_2A5E_u32.to_le_bytes().to_vec();
        framed.extend(len.to_le_bytes());
        framed.extend(&first);
        let _ = object::begins(&framed);
        let mut line = b"{\"esker_snapshot\":".to_vec();
        line.extend(&first);
        let _ = object::begins(&line);
        for encoding in [Encoding::Zstd, Encoding::None] {
            let _ = object::ends(encoding, &first);
            let _ = object::ends(encoding, &framed);
        }
    }
}
