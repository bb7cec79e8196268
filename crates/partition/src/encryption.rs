//! Encryption of records: between what clients send and receive, and what is stored.
//!
//! A stream has one cipher, or none, from its creation on. The node encrypts the records of an append
//! before it proposes them, and decrypts those of a read after they were scanned: entries of the log,
//! batches in the database, snapshots and batches in memory have the encrypted form, and a key is in memory
//! only while a request or session uses it. Command records are not encrypted, because apply acts on them.
//!
//! The encrypted form of a record is that of the `s2-storage` crate, which encrypts and decrypts those of
//! AEGIS-256. It expands a key of AES-256-GCM for every record, which takes longer than the record; here
//! (`aes_gcm`) a key is expanded once for a request or session, by a library that uses all that the
//! processor has for AES. Each record has a nonce of its own from the process's cryptographic generator. The associated data ([`associated_data`]) binds a record to one
//! incarnation of its stream: what is moved to another stream, or kept from before the stream was deleted,
//! cannot be decrypted there. Sequence numbers and timestamps are not part of it, because they are decided
//! after the encryption.

use bytes::BytesMut;
use s2_common::encryption::{EncryptionAlgorithm, EncryptionSpec};
use s2_common::record::{Metered, MeteredSize as _, SeqNum, Sequenced, SequencedRecord};
use s2_common::stream::AppendRecordBatch;
use s2_storage::record::{
    RecordDecryptionError, StoredRecord, decrypt_stored_record, encode_stored_record_into,
    encrypt_record,
};
use secrecy::ExposeSecret as _;

use self::aes_gcm::Aes256Gcm;
use crate::batch::Unsequenced;
use crate::ids::{PartitionId, StreamId};

mod aes_gcm;
#[cfg(test)]
mod tests;

/// A record as it is stored: encrypted, if its stream has a cipher and it is no command record.
pub use s2_storage::record::StoredSequencedRecord;

/// Most records of one stream that AES-256-GCM may encrypt. Its nonces are random and have 96 bits: with
/// more of one key, the probability that two are equal exceeds 2^-32. Nonces of AEGIS-256 have 256 bits.
pub const MAX_AES_256_GCM_RECORDS: u64 = 1 << 32;

/// Bytes by which encryption makes a record longer, at most: the number of the format, the nonce and the
/// tag.
pub const MAX_OVERHEAD: usize = 1 + 32 + 16;

/// The number under which a cipher is stored; 0 for none.
pub fn cipher_number(cipher: Option<EncryptionAlgorithm>) -> u32 {
    match cipher {
        None => 0,
        Some(EncryptionAlgorithm::Aegis256) => 1,
        Some(EncryptionAlgorithm::Aes256Gcm) => 2,
    }
}

/// The cipher with this number.
///
/// # Errors
///
/// This version knows no cipher of this number. Such a stream must not be taken for one without a cipher.
pub fn cipher_of(number: u32) -> Result<Option<EncryptionAlgorithm>, UnknownCipher> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(EncryptionAlgorithm::Aegis256)),
        2 => Ok(Some(EncryptionAlgorithm::Aes256Gcm)),
        _ => Err(UnknownCipher(number)),
    }
}

/// A cipher that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cipher {0} is not known: use a newer esker")]
pub struct UnknownCipher(u32);

/// A cipher with the key of a request, ready for many records; or none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RecordCipher {
    spec: EncryptionSpec,
    /// With the expanded key, if it is AES-256-GCM.
    aes: Option<Aes256Gcm>,
}

impl From<EncryptionSpec> for RecordCipher {
    fn from(spec: EncryptionSpec) -> RecordCipher {
        let aes = match &spec {
            EncryptionSpec::Aes256Gcm(key) => Some(Aes256Gcm::new(key.expose_secret())),
            _ => None,
        };
        RecordCipher { spec, aes }
    }
}

impl RecordCipher {
    /// The cipher, if there is one.
    pub fn algorithm(&self) -> Option<EncryptionAlgorithm> {
        match self.spec {
            EncryptionSpec::Plain => None,
            EncryptionSpec::Aegis256(_) => Some(EncryptionAlgorithm::Aegis256),
            EncryptionSpec::Aes256Gcm(_) => Some(EncryptionAlgorithm::Aes256Gcm),
        }
    }
}

/// The associated data of a stream's records: the partition's number and the stream's id, both big-endian.
/// It is part of the format: records that were encrypted with other data cannot be decrypted.
pub fn associated_data(partition: PartitionId, stream: StreamId) -> [u8; 16] {
    let mut data = [0; 16];
    data[..8].copy_from_slice(&partition.0.to_be_bytes());
    data[8..].copy_from_slice(&stream.0.to_be_bytes());
    data
}

/// Encrypts the records of an append, and encodes them.
pub fn encrypt(
    records: AppendRecordBatch,
    cipher: &RecordCipher,
    associated_data: &[u8],
) -> Unsequenced {
    let number = cipher_number(cipher.algorithm());
    if number == 0 {
        return Unsequenced::encode(records);
    }
    Unsequenced::encode_as(
        records,
        number,
        MAX_OVERHEAD,
        |record, body| match &cipher.aes {
            Some(aes) => aes.encrypt(record, associated_data, body),
            None => {
                let size = record.metered_size();
                let stored = encrypt_record(record, &cipher.spec, associated_data).into_inner();
                encode_stored_record_into(Metered::with_size(size, &stored), body);
            }
        },
    )
}

/// A record that could not be decrypted. The text names no content and no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq_num}: {source}")]
pub struct DecryptionError {
    /// The record.
    pub seq_num: SeqNum,
    /// Why not.
    pub source: RecordDecryptionError,
}

impl DecryptionError {
    /// Whether another key, or another stream's associated data, explains it. Otherwise the stored record is
    /// none that this stream can have.
    pub fn is_of_key(&self) -> bool {
        self.source == RecordDecryptionError::AuthenticationFailed
    }
}

/// Decrypts records that were scanned. Their metered size is the same in both forms.
///
/// # Errors
///
/// The first record that cannot be decrypted.
pub fn decrypt(
    records: Metered<Vec<StoredSequencedRecord>>,
    cipher: &RecordCipher,
    associated_data: &[u8],
) -> Result<Metered<Vec<SequencedRecord>>, DecryptionError> {
    let mut decrypted = Metered::with_capacity(records.len());
    // The buffer is one for all: so much as their metered size, and what encryption adds.
    let mut buffer = match cipher.aes {
        Some(_) => BytesMut::with_capacity(records.metered_size() + 64 * records.len()),
        None => BytesMut::new(),
    };
    for record in records.into_inner() {
        let (position, record) = record.into_parts();
        let record = match &cipher.aes {
            Some(aes) if matches!(record, StoredRecord::Encrypted { .. }) => {
                aes.decrypt(record, &cipher.spec, associated_data, &mut buffer)
            }
            _ => decrypt_stored_record(record, &cipher.spec, associated_data),
        };
        let record = record.map_err(|source| DecryptionError {
            seq_num: position.seq_num,
            source,
        })?;
        let size = record.metered_size();
        let record = Sequenced::new(position, record.into_inner());
        decrypted.push(Metered::with_size(size, record));
    }
    Ok(decrypted)
}
