//! AES-256-GCM with a key that is expanded once, in the form of the `s2-storage` crate.
//!
//! A stored record is a head and a body. The head is a byte, of which the lowest three bits are the type
//! and the next two the number of bytes of the metered size minus one, and the metered size, big-endian.
//! The body of a plain record is its headers and body as `s2-storage` encodes them; that of an encrypted
//! record is
//!
//! ```text
//! format: u8 = 2 | nonce: 12 bytes | encrypted body of the plain record | tag: 16 bytes
//! ```
//!
//! So one form is made of the other in place: the head stays, except for the type.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::BytesMut;
use s2_common::encryption::EncryptionSpec;
use s2_common::record::{Metered, MeteredSize as _, Record};
use s2_storage::record::{
    RecordDecryptionError, StoredRecord, decode_record, decrypt_stored_record,
    encode_stored_record_into, stored_record_encoded_size,
};

/// The bits of the first byte that are the type of a record.
const TYPE_BITS: u8 = 0b111;
/// Types of records.
const ENVELOPE: u8 = 2;
const ENCRYPTED_ENVELOPE: u8 = 3;
/// The number of the format of a body that is encrypted with AES-256-GCM.
const FORMAT: u8 = 2;
/// Bytes before the encrypted part of a body.
const PREFIX: usize = 1 + NONCE_LEN;

/// A key, expanded. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Aes256Gcm(Arc<LessSafeKey>);

impl Aes256Gcm {
    pub(super) fn new(key: &[u8; 32]) -> Aes256Gcm {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("keys of AES-256 have 32 bytes");
        Aes256Gcm(Arc::new(LessSafeKey::new(key)))
    }

    /// Appends the stored form of a record: encrypted, if it is no command record.
    pub(super) fn encrypt(
        &self,
        record: Metered<Record>,
        associated_data: &[u8],
        out: &mut Vec<u8>,
    ) {
        let size = record.metered_size();
        let record = StoredRecord::from(record.into_inner());
        let at = out.len();
        encode_stored_record_into(Metered::with_size(size, &record), out);
        if let StoredRecord::Plaintext(Record::Command(_)) = record {
            return;
        }
        out[at] = (out[at] & !TYPE_BITS) | ENCRYPTED_ENVELOPE;
        let body = at + head_length(out[at]);
        let nonce: [u8; NONCE_LEN] = rand::random();
        let plain = out.len() - body;
        out.resize(out.len() + PREFIX, 0);
        out.copy_within(body..body + plain, body + PREFIX);
        out[body] = FORMAT;
        out[body + 1..body + PREFIX].copy_from_slice(&nonce);
        let tag = self.0.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated_data),
            &mut out[body + PREFIX..],
        );
        out.extend_from_slice(tag.expect("a record is shorter than 64 GiB").as_ref());
    }

    /// Decrypts a record that is encrypted. The buffer is for the records of one batch: each takes what it
    /// needs from it.
    ///
    /// # Errors
    ///
    /// Those of [`decrypt_stored_record`] with the same key, which `spec` has.
    pub(super) fn decrypt(
        &self,
        record: StoredRecord,
        spec: &EncryptionSpec,
        associated_data: &[u8],
        buffer: &mut BytesMut,
    ) -> Result<Metered<Record>, RecordDecryptionError> {
        let stored_size = record.metered_size();
        let stored = Metered::with_size(stored_size, &record);
        buffer.clear();
        buffer.reserve(stored_record_encoded_size(stored.clone()));
        encode_stored_record_into(stored, buffer);
        let head = head_length(buffer[0]);
        // A record that was decoded as an encrypted one has a format, and of this one a nonce and a tag.
        if buffer.get(head) != Some(&FORMAT) {
            return decrypt_stored_record(record, spec, associated_data);
        }
        let mut taken = buffer.split();
        let (before, encrypted) = taken
            .split_at_mut_checked(head + PREFIX)
            .ok_or(RecordDecryptionError::MalformedEncryptedRecord)?;
        let nonce = Nonce::try_assume_unique_for_key(&before[head + 1..])
            .map_err(|_| RecordDecryptionError::MalformedEncryptedRecord)?;
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(associated_data), encrypted)
            .map_err(|_| RecordDecryptionError::AuthenticationFailed)?
            .len();
        // The head directly before the decrypted body makes it a plain record.
        before.copy_within(..head, PREFIX);
        before[PREFIX] = (before[PREFIX] & !TYPE_BITS) | ENVELOPE;
        let record = taken.freeze().slice(PREFIX..PREFIX + head + plain);
        let record = decode_record(record)?.into_inner();
        let actual = record.metered_size();
        if actual != stored_size {
            return Err(RecordDecryptionError::MeteredSizeMismatch {
                stored: stored_size,
                actual,
            });
        }
        Ok(Metered::with_size(actual, record))
    }
}

/// Bytes of the head that begins with this byte.
fn head_length(first: u8) -> usize {
    2 + usize::from((first >> 3) & 0b11)
}
