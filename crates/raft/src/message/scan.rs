//! A look at the bytes of an envelope before they are decoded, for what would make decoding allocate
//! far more than there are bytes: an element of a list takes 2 bytes on the wire if it is empty, and
//! some hundred in memory.
//!
//! The lists of messages are the entries of an append, and the files of an offer. Both are counted
//! here. (The other lists are of numbers: 1 byte on the wire, 8 in memory.)

use super::{DecodeError, MAX_ENTRIES};
use crate::transfer::{MAX_FILES, MAX_MEMBERS};

const RAFT: u64 = 10;
const RAFT_ENTRIES: u64 = 5;
const OFFER: u64 = 11;
const OFFER_PEERS: u64 = 6;
const OFFER_FILES: u64 = 8;

/// Whether the bytes may be decoded.
pub fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    let (mut entries, mut files) = (0, 0);
    each_field(bytes, |field, inside| {
        match field {
            RAFT => entries += count(inside, RAFT_ENTRIES)?,
            OFFER => {
                files += count(inside, OFFER_FILES)?;
                each_field(inside, |field, inside| match field {
                    // A number takes a byte at least; four lists of 10 bytes each.
                    OFFER_PEERS if inside.len() > 10 * MAX_MEMBERS => {
                        Err(DecodeError::Field("membership"))
                    }
                    _ => Ok(()),
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    if entries > MAX_ENTRIES {
        return Err(DecodeError::Field("number of entries"));
    }
    if files > MAX_FILES {
        return Err(DecodeError::Field("number of files"));
    }
    Ok(())
}

fn count(bytes: &[u8], wanted: u64) -> Result<usize, DecodeError> {
    let mut count = 0;
    each_field(bytes, |field, _| {
        count += usize::from(field == wanted);
        Ok(())
    })?;
    Ok(count)
}

/// Calls `see` with every field's number and, if it has a length, its bytes.
fn each_field<'a>(
    mut rest: &'a [u8],
    mut see: impl FnMut(u64, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let inside = match key & 7 {
            0 => {
                varint(&mut rest)?;
                &[]
            }
            1 => {
                take(&mut rest, 8)?;
                &[]
            }
            2 => {
                let length = varint(&mut rest)?;
                take(&mut rest, length)?
            }
            5 => {
                take(&mut rest, 4)?;
                &[]
            }
            // Groups: nobody writes them, and skipping them recurses.
            _ => return Err(malformed("a group")),
        };
        see(key >> 3, inside)?;
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
