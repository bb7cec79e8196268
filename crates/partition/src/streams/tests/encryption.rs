//! Streams with a cipher: what is stored of them, and to what their records are bound.

use prost::Message as _;
use s2_common::encryption::EncryptionSpec;
use s2_common::record::{Metered, SequencedRecord};
use s2_storage::record::RecordDecryptionError;

use super::fixture::*;
use crate::batch::StoredBatch;
use crate::command::{Append, AppendRefusal, Kind, ProvisionStream};
use crate::encryption::{
    DecryptionError, MAX_AES_256_GCM_RECORDS, MAX_OVERHEAD, associated_data, decrypt,
};
use crate::ids::StreamId;
use crate::keys;
use crate::lineage::GAP;
use crate::settings::StreamSettings;

const AEGIS_256: u32 = 1;
const AES_256_GCM: u32 = 2;
const CIPHERS: [u32; 2] = [AEGIS_256, AES_256_GCM];
const SECRET: &str = "a text that is nowhere else";

fn with_stream(cipher: u32) -> (Fixture, StreamId) {
    let mut partition = Fixture::new();
    partition.apply(create_encrypted(BASIN, "s", cipher));
    let id = partition.stream("s").id;
    (partition, id)
}

/// Reads the stream of this name with a key.
fn read(
    partition: &Fixture,
    name: &str,
    spec: &EncryptionSpec,
) -> Result<Metered<Vec<SequencedRecord>>, DecryptionError> {
    let stream = partition.stream(name);
    let scan = scan(&partition.reader(), &stream, 0);
    decrypt(
        scan.records.decode().unwrap(),
        &spec.clone().into(),
        &associated_data(stream.partition, stream.id),
    )
}

/// The values of all batches of a stream.
fn batches(partition: &Fixture, id: StreamId) -> Vec<Vec<u8>> {
    let found = batches_of(&partition.partition_db(), id).into_iter();
    found.map(|(_, value)| value).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[test]
fn neither_the_log_nor_the_database_has_the_text_of_a_record() {
    for cipher in CIPHERS {
        let (mut partition, id) = with_stream(cipher);
        let records = vec![rec(SECRET), fence("a-token"), rec(SECRET)];
        let secret = encrypted(cipher, id, 2000, records);
        let logged = bytes_of(Kind::Append(secret.clone()));
        assert!(!contains(&logged, SECRET));
        assert!(contains(&logged, "a-token"), "apply acts on commands");
        partition.append(secret).unwrap();
        for value in batches(&partition, id) {
            assert!(!contains(&value, SECRET));
        }
        assert_eq!(partition.texts("s"), [SECRET, "fence:a-token", SECRET]);
        assert_eq!(partition.state("s").fencing_token, "a-token");

        // Equal records are stored as different bytes, each at most so much longer.
        let plain = append(id, 2000, vec![rec(SECRET)]);
        let again = encrypted(cipher, id, 2000, vec![rec(SECRET)]);
        let twice = encrypted(cipher, id, 2000, vec![rec(SECRET)]);
        assert_ne!(again.body, twice.body);
        let longer = again.body.len() - plain.body.len();
        assert!((1..=MAX_OVERHEAD).contains(&longer), "{longer} bytes");
    }
}

#[test]
fn a_record_is_bound_to_one_incarnation_of_its_stream() {
    for cipher in CIPHERS {
        let (mut partition, old) = with_stream(cipher);
        let append = encrypted(cipher, old, 2000, vec![rec(SECRET)]);
        assert!(partition.delete("s"));
        assert_eq!(
            partition.append(append.clone()),
            Err(AppendRefusal::StreamGone)
        );

        partition.apply(create_encrypted(BASIN, "s", cipher));
        let new = partition.stream("s").id;
        assert_ne!(old, new);
        assert_eq!(
            partition.append(append.clone()),
            Err(AppendRefusal::StreamGone),
            "it was encrypted for the stream that was deleted"
        );
        let moved = Append {
            stream: new.0,
            ..append
        };
        partition.append(moved).unwrap();
        let error = read(&partition, "s", &spec_of(cipher)).unwrap_err();
        assert_eq!(error.source, RecordDecryptionError::AuthenticationFailed);
    }
}

#[test]
fn the_key_of_another_is_refused_and_the_error_names_the_record_alone() {
    for cipher in CIPHERS {
        let (mut partition, id) = with_stream(cipher);
        let records = vec![trim(0), rec(SECRET)];
        partition
            .append(encrypted(cipher, id, 2000, records))
            .unwrap();
        let wrong = match cipher {
            AEGIS_256 => EncryptionSpec::aegis256([8; 32]),
            _ => EncryptionSpec::aes256_gcm([8; 32]),
        };
        let error = read(&partition, "s", &wrong).unwrap_err();
        assert_eq!((error.seq_num, error.is_of_key()), (1, true));
        assert_eq!(error.to_string(), "record 1: record decryption failed");
        // The other cipher's key is not for this stream.
        let other = read(&partition, "s", &spec_of(3 - cipher)).unwrap_err();
        assert!(!other.is_of_key());
        assert!(read(&partition, "s", &EncryptionSpec::Plain).is_err());
        // It can be read with its own key nevertheless.
        assert_eq!(partition.texts("s"), ["trim:0", SECRET]);
    }
}

#[test]
fn an_append_that_was_not_encrypted_for_the_streams_cipher_changes_nothing() {
    for cipher in [0, AEGIS_256, AES_256_GCM] {
        let (mut partition, id) = with_stream(cipher);
        for wrong in (0..3).filter(|wrong| *wrong != cipher) {
            for records in [vec![rec("a")], vec![trim(0)]] {
                let refused = partition.append(encrypted(wrong, id, 2000, records));
                assert_eq!(refused, Err(AppendRefusal::CipherMismatch));
            }
        }
        assert_eq!(partition.state("s").tail_seq, 0);
    }
}

#[test]
fn a_stream_keeps_the_cipher_that_it_was_created_with() {
    let (mut partition, id) = with_stream(AEGIS_256);
    let ensured = Kind::ProvisionStream(ProvisionStream {
        cipher: AES_256_GCM,
        ..match ensure(BASIN, "s", keep_for_secs(9), 3000) {
            Kind::ProvisionStream(provision) => provision,
            other => panic!("{other:?}"),
        }
    });
    partition.apply(ensured);
    partition.apply(set_settings(id, 2, StreamSettings::default()));
    let append = encrypted(AEGIS_256, id, 2000, vec![rec("a")]);
    partition.append(append).unwrap();
    partition.reopen();
    let checkpoint = partition.checkpoint();
    for partition in [&partition, &partition.imported(&checkpoint)] {
        let stream = partition.stream("s");
        let listed = partition.reader().list(BASIN, "", "", 10).unwrap();
        assert_eq!(listed[0].cipher, stream.cipher);
        assert_eq!(
            crate::encryption::cipher_number(stream.cipher),
            AEGIS_256,
            "after a restart and an import"
        );
        assert_eq!(partition.texts("s"), ["a"]);
    }
}

/// Sets how many records of the stream were encrypted.
fn set_encrypted(partition: &mut Fixture, id: StreamId, encrypted: u64) {
    let mut state = partition.state("s");
    state.encrypted = encrypted;
    let mut batch = partition.partition_db().batch();
    batch.put(keys::stream_state(id), state.encode_to_vec());
    batch.write().unwrap();
    partition.reopen();
}

#[test]
fn the_limit_of_a_cipher_counts_encrypted_records_and_no_gaps_and_no_commands() {
    let (mut partition, id) = with_stream(AES_256_GCM);
    let records = |n| vec![rec("x"); n];
    let encrypted = |records| encrypted(AES_256_GCM, id, 2000, records);
    partition.append(encrypted(records(3))).unwrap();
    assert_eq!(partition.state("s").encrypted, 3);
    // Sequence numbers are far beyond the limit after a fork.
    partition.fork(1);
    const { assert!(GAP > MAX_AES_256_GCM_RECORDS) };
    partition.append(encrypted(records(2))).unwrap();
    partition.append(encrypted(vec![trim(1)])).unwrap();
    assert_eq!(partition.state("s").encrypted, 5);

    set_encrypted(&mut partition, id, MAX_AES_256_GCM_RECORDS - 1);
    let tail = partition.state("s").tail_seq;
    let refused = partition.append(encrypted(records(2)));
    assert_eq!(refused, Err(AppendRefusal::CipherExhausted));
    assert_eq!(partition.state("s").tail_seq, tail);
    partition.append(encrypted(records(1))).unwrap();
    let refused = partition.append(encrypted(records(1)));
    assert_eq!(refused, Err(AppendRefusal::CipherExhausted));
    // What gives space back works as before.
    partition.append(encrypted(vec![trim(tail)])).unwrap();

    let (mut partition, id) = with_stream(AEGIS_256);
    set_encrypted(&mut partition, id, MAX_AES_256_GCM_RECORDS);
    let append = super::fixture::encrypted(AEGIS_256, id, 2000, vec![rec("x")]);
    partition.append(append).unwrap();
}

#[test]
fn what_has_to_do_with_a_cipher_is_of_a_version_that_earlier_builds_refuse_and_all_else_is_not() {
    let mut partition = Fixture::new();
    for (name, cipher, version, entry) in [("plain", 0, 1, 16), ("s", AES_256_GCM, 2, 17)] {
        let command = create_encrypted(BASIN, name, cipher);
        assert_eq!(bytes_of(command.clone())[0], version);
        assert_eq!(command.to_bytes()[0], version);
        partition.apply(command);
        let id = partition.stream(name).id;
        let append = encrypted(cipher, id, 2000, vec![rec("a")]);
        assert_eq!(bytes_of(Kind::Append(append.clone()))[0], version);
        partition.append(append).unwrap();
        assert_eq!(batches(&partition, id)[0][0], version);
        let key = keys::stream_name(BASIN, name);
        let value = partition.partition_db().get_bytes(key, "a name").unwrap();
        assert_eq!(value.unwrap().len(), entry);
    }
}

#[test]
fn a_cipher_that_this_version_does_not_know_is_refused_and_never_taken_for_none() {
    let mut partition = Fixture::new();
    let unknown = create_encrypted(BASIN, "s", 3);
    let error = partition.try_bytes(vec![bytes_of(unknown)]).unwrap_err();
    assert!(error.to_string().contains("use a newer esker"), "{error}");
    assert!(partition.reader().stream(BASIN, "s").unwrap().is_none());
}

#[test]
fn an_encrypted_batch_that_is_cut_off_is_malformed_and_never_a_panic() {
    let (mut partition, id) = with_stream(AEGIS_256);
    let append = encrypted(AEGIS_256, id, 2000, vec![rec("abc"), rec("def")]);
    partition.append(append).unwrap();
    let value = batches(&partition, id).remove(0);
    for length in 0..value.len() {
        let cut = bytes::Bytes::copy_from_slice(&value[..length]);
        if let Ok(batch) = StoredBatch::parse(0, cut) {
            assert!(batch.records(0).any(|record| record.is_err()) || batch.records(0).count() < 2);
        }
    }
}
