//! The encrypted form, against the `s2-storage` crate's: what one encrypts, the other decrypts.

use bytes::Bytes;
use proptest::prelude::*;
use s2_common::record::{
    CommandRecord, EnvelopeRecord, FencingToken, Header, Record, StreamPosition,
};
use s2_common::stream::{AppendRecord, AppendRecordParts};

use super::*;
use crate::batch::StoredBatch;

const DATA: &[u8] = b"stream 7 of partition 3";
const START: u64 = 40;

fn ciphers() -> [EncryptionSpec; 2] {
    [
        EncryptionSpec::aegis256([7; 32]),
        EncryptionSpec::aes256_gcm([7; 32]),
    ]
}

fn envelope(headers: &[(Vec<u8>, Vec<u8>)], body: &[u8]) -> Record {
    let headers = headers.iter().map(|(name, value)| Header {
        name: name.clone().into(),
        value: value.clone().into(),
    });
    let body = Bytes::copy_from_slice(body);
    Record::Envelope(EnvelopeRecord::try_from_parts(headers.collect(), body).unwrap())
}

fn batch_of(records: &[Record]) -> AppendRecordBatch {
    let records = records.iter().map(|record| {
        let parts = AppendRecordParts {
            timestamp: None,
            record: record.clone().into(),
        };
        AppendRecord::try_from(parts).unwrap()
    });
    records.collect::<Vec<_>>().try_into().unwrap()
}

/// The records as they are stored, parsed.
fn stored(encrypted: &Unsequenced) -> Metered<Vec<StoredSequencedRecord>> {
    encrypted.check().unwrap();
    let timestamps = vec![0; encrypted.count as usize];
    let batch = StoredBatch::parse(START, encrypted.store(0, &timestamps)).unwrap();
    let mut records = Metered::with_capacity(timestamps.len());
    for record in batch.records(START) {
        records.push(record.unwrap());
    }
    records
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let name = prop::collection::vec(any::<u8>(), 1..20);
    let envelopes = (
        prop::collection::vec((name, bytes(50)), 0..4),
        prop_oneof![bytes(20), bytes(300), bytes(70_000)],
    );
    prop_oneof![
        9 => envelopes.prop_map(|(headers, body)| envelope(&headers, &body)),
        1 => Just(Record::Command(CommandRecord::Trim(9))),
        1 => Just(Record::Command(CommandRecord::Fence("t".parse::<FencingToken>().unwrap()))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encrypted_here_is_decrypted_by_the_crate_that_defines_the_form(
        records in prop::collection::vec(any_record(), 1..12),
    ) {
        for spec in ciphers() {
            let encrypted = encrypt(batch_of(&records), &spec.clone().into(), DATA);
            for (found, record) in stored(&encrypted).into_inner().into_iter().zip(&records) {
                let (_, found) = found.into_parts();
                let is_plain = matches!(found, StoredRecord::Plaintext(_));
                prop_assert_eq!(is_plain, matches!(record, Record::Command(_)));
                let found = decrypt_stored_record(found, &spec, DATA).unwrap();
                prop_assert_eq!(&found.into_inner(), record);
            }
        }
    }

    #[test]
    fn what_that_crate_encrypts_is_decrypted_here(
        records in prop::collection::vec(any_record(), 1..12),
    ) {
        for spec in ciphers() {
            let mut scanned = Metered::with_capacity(records.len());
            for (i, record) in (0..).zip(&records) {
                let record = encrypt_record(Metered::from(record.clone()), &spec, DATA);
                let position = StreamPosition { seq_num: i, timestamp: 0 };
                let size = record.metered_size();
                scanned.push(Metered::with_size(size, Sequenced::new(position, record.into_inner())));
            }
            let size = scanned.metered_size();
            let found = decrypt(scanned, &spec.into(), DATA).unwrap();
            prop_assert_eq!(found.metered_size(), size);
            let found = found.into_inner().into_iter().map(|record| record.into_parts());
            for (i, (position, found)) in (0..).zip(found) {
                prop_assert_eq!(position.seq_num, i);
                prop_assert_eq!(&found, &records[i as usize]);
            }
        }
    }

    #[test]
    fn a_damaged_record_gives_the_same_error_as_that_crate(
        record in any_record(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        for spec in ciphers() {
            let mut encrypted = encrypt(batch_of(std::slice::from_ref(&record)), &spec.clone().into(), DATA);
            let mut body = encrypted.body.to_vec();
            // After the length.
            let at = 4 + at.index(body.len() - 4);
            body[at] ^= flip;
            encrypted.body = body.into();
            let batch = StoredBatch::parse(START, encrypted.store(0, &[0])).unwrap();
            let Some(Ok(damaged)) = batch.records(START).next() else {
                continue;
            };
            let (position, damaged) = damaged.into_inner().into_parts();
            let expected = decrypt_stored_record(damaged.clone(), &spec, DATA);
            let mut scanned = Metered::with_capacity(1);
            let size = damaged.metered_size();
            scanned.push(Metered::with_size(size, Sequenced::new(position, damaged)));
            match (decrypt(scanned, &spec.into(), DATA), expected) {
                (Ok(found), Ok(expected)) => {
                    let (_, found) = found.into_inner().remove(0).into_parts();
                    prop_assert_eq!(found, expected.into_inner());
                }
                (Err(found), Err(expected)) => prop_assert_eq!(found.source, expected),
                (found, expected) => panic!("{found:?}, and {expected:?}"),
            }
        }
    }
}

#[test]
fn records_of_another_cipher_or_none_are_refused_with_the_same_error() {
    let record = envelope(&[], b"text");
    let [aegis, aes] = ciphers();
    let others = [aegis, EncryptionSpec::Plain];
    for other in others {
        let stored = encrypt_record(Metered::from(record.clone()), &other, DATA);
        let size = stored.metered_size();
        let stored = stored.into_inner();
        let expected = decrypt_stored_record(stored.clone(), &aes, DATA).unwrap_err();
        let position = StreamPosition {
            seq_num: 0,
            timestamp: 0,
        };
        let mut scanned = Metered::with_capacity(1);
        scanned.push(Metered::with_size(size, Sequenced::new(position, stored)));
        let found = decrypt(scanned, &aes.clone().into(), DATA).unwrap_err();
        assert_eq!(found.source, expected);
    }
}

#[test]
fn the_nonces_of_equal_records_differ_and_the_key_is_in_no_text() {
    let cipher = RecordCipher::from(EncryptionSpec::aes256_gcm(
        *b"a key that nobody is to read !!!",
    ));
    let record = envelope(&[], b"text");
    let encrypted = encrypt(batch_of(&[record.clone(), record]), &cipher, DATA);
    let (first, second) = encrypted.body.split_at(encrypted.body.len() / 2);
    assert_eq!(first.len(), second.len());
    assert_ne!(first, second);
    assert!(!format!("{cipher:?}").contains("a key"), "{cipher:?}");
    assert!(!format!("{cipher:?}").contains("97, 32, 107"), "{cipher:?}");
}
