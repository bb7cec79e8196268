//! Scans the bytes of an envelope before they are decoded. It rejects lists whose decoding would allocate
//! far more memory than the input has bytes: an empty element takes 2 bytes on the wire, and some hundred
//! in memory.
//!
//! The lists of messages are the entries of an append and the files of an offer. Both are counted here.
//! (All other lists are of numbers: 1 byte on the wire, 8 in memory.)
//!
//! It also detects newer formats, to which these rules do not apply: such a message is not damaged.

use super::{DecodeError, ENVELOPE_FORMAT, MAX_ENTRIES};
use crate::transfer::{MAX_FILES, MAX_MEMBERS, OFFER_FORMAT};

const FORMAT: u64 = 1;
const RAFT: u64 = 10;
const RAFT_ENTRIES: u64 = 5;
const OFFER: u64 = 11;
const OFFER_FORMAT_FIELD: u64 = 1;
const OFFER_PEERS: u64 = 6;
const OFFER_FILES: u64 = 8;

/// How the bytes may be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// With the format of this version.
    Known,
    /// It has an offer of a newer format: decode only the fields of [`NewerOffer`](super::NewerOffer).
    NewerOffer,
}

/// Checks whether, and how, the bytes may be decoded.
pub fn check(bytes: &[u8]) -> Result<Scanned, DecodeError> {
    let (mut entries, mut files, mut members) = (0, 0, 0);
    let mut offer_format = 0;
    each_field(bytes, |field, value| {
        match (field, value) {
            // The format is the first field: what follows may have other limits.
            (FORMAT, Value::Number(format)) if format > ENVELOPE_FORMAT => {
                return Err(DecodeError::NewerFormat(format));
            }
            (RAFT, Value::Bytes(inside)) => each_field(inside, |field, _| {
                entries += usize::from(field == RAFT_ENTRIES);
                Ok(())
            })?,
            (OFFER, Value::Bytes(inside)) => each_field(inside, |field, value| {
                match (field, value) {
                    (OFFER_FORMAT_FIELD, Value::Number(format)) => offer_format = format,
                    (OFFER_FILES, _) => files += 1,
                    (OFFER_PEERS, Value::Bytes(inside)) => members = members.max(inside.len()),
                    _ => {}
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    if offer_format > OFFER_FORMAT {
        return Ok(Scanned::NewerOffer);
    }
    if entries > MAX_ENTRIES {
        return Err(DecodeError::Field("number of entries"));
    }
    if files > MAX_FILES {
        return Err(DecodeError::Field("number of files"));
    }
    // A number takes up to 10 bytes. It occurs once, or twice for a learner that is to be promoted.
    if members > 2 * 10 * MAX_MEMBERS {
        return Err(DecodeError::Field("membership"));
    }
    Ok(Scanned::Known)
}

/// The value of a field, as far as the scan needs it.
#[derive(Clone, Copy)]
enum Value<'a> {
    /// Cut to 32 bits, as the decoder does; no longer number is needed.
    Number(u32),
    Bytes(&'a [u8]),
    Fixed,
}

/// Calls `see` with every field's number and value.
fn each_field<'a>(
    mut rest: &'a [u8],
    mut see: impl FnMut(u64, Value<'a>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)? as u32),
            1 => {
                take(&mut rest, 8)?;
                Value::Fixed
            }
            2 => {
                let length = varint(&mut rest)?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => {
                take(&mut rest, 4)?;
                Value::Fixed
            }
            // Groups: no version writes them, and skipping them would need recursion.
            _ => return Err(malformed("a group")),
        };
        see(key >> 3, value)?;
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], DecodeError> {
    let taken = usize::try_from(length).ok();
    let taken = taken.and_then(|length| rest.split_at_checked(length));
    let (taken, left) = taken.ok_or_else(|| malformed("cut short"))?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(malformed("a number without end"))
}

fn malformed(what: &str) -> DecodeError {
    DecodeError::Malformed(what.to_owned())
}
