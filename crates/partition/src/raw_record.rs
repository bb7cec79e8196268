//! A stored record in place, without a copy of any part of it: for readers that only pass it on.
//!
//! The format is that of the `s2-storage` crate, with which records are written and otherwise read:
//!
//! ```text
//! kind: 3 bits | width of the size − 1: 2 bits | 0: 3 bits || metered size: 1 to 3 bytes || content
//! content of a command (kind 1):  operation: u8 | payload
//! content of an envelope (2):     widths: u8 | count of headers | count × (length, name, length, value) | body
//! content that is encrypted (3):  opaque here
//! ```
//!
//! Numbers are big-endian. The widths are those of the count of headers (bits 4 and 5; 0 if there are
//! none), of the length of a name (bits 2 and 3, minus 1) and of a value (bits 0 and 1, minus 1).

use s2_common::record::CommandRecord;
use s2_storage::record::decode_if_command_record;

const COMMAND: u8 = 1;
const ENVELOPE: u8 = 2;
const ENCRYPTED: u8 = 3;

/// The bytes are not a stored record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct MalformedRecord(pub String);

/// A stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Its metered size in bytes.
    pub metered_size: usize,
    /// What it holds.
    pub content: RawContent<'a>,
}

/// What a stored record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawContent<'a> {
    /// Headers and a body, as a reader gets them. Those of a command record are its one header, whose name
    /// is empty, and its payload.
    Plain {
        /// The headers.
        headers: RawHeaders<'a>,
        /// The body.
        body: &'a [u8],
    },
    /// The record is encrypted.
    Encrypted,
}

/// The headers of a stored record: an iterator over names and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawHeaders<'a>(Headers<'a>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Headers<'a> {
    /// Headers that are still to be read, which are known to be well-formed.
    Encoded {
        rest: &'a [u8],
        count: usize,
        name_width: usize,
        value_width: usize,
    },
    /// The operation of a command record.
    Command(&'static [u8]),
    None,
}

fn malformed(what: &str) -> MalformedRecord {
    MalformedRecord(what.to_owned())
}

impl<'a> RawRecord<'a> {
    /// Parses a stored record. Never panics, whatever the bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not a stored record.
    pub fn parse(bytes: &'a [u8]) -> Result<RawRecord<'a>, MalformedRecord> {
        let (magic, mut rest) = bytes.split_first().ok_or_else(|| malformed("no kind"))?;
        let width = usize::from(magic >> 3 & 0b11) + 1;
        if width > 3 {
            return Err(malformed("unknown width of the metered size"));
        }
        let metered_size = take_number(&mut rest, width)?;
        let content = match magic & 0b111 {
            COMMAND => command(bytes, rest)?,
            ENVELOPE => envelope(rest)?,
            ENCRYPTED => RawContent::Encrypted,
            _ => return Err(malformed("unknown kind of record")),
        };
        Ok(RawRecord {
            metered_size,
            content,
        })
    }
}

fn command<'a>(bytes: &'a [u8], rest: &'a [u8]) -> Result<RawContent<'a>, MalformedRecord> {
    let command = decode_if_command_record(bytes).map_err(|e| MalformedRecord(e.to_string()))?;
    let operation = command.as_ref().map(CommandRecord::op);
    match (operation, rest.split_first()) {
        (Some(operation), Some((_, body))) => Ok(RawContent::Plain {
            headers: RawHeaders(Headers::Command(operation.to_id())),
            body,
        }),
        _ => Err(malformed("no command")),
    }
}

fn envelope(mut rest: &[u8]) -> Result<RawContent<'_>, MalformedRecord> {
    let (widths, after) = rest.split_first().ok_or_else(|| malformed("no widths"))?;
    rest = after;
    if widths & 0b1100_0000 != 0 {
        return Err(malformed("unknown flag of the headers"));
    }
    let count_width = usize::from(widths >> 4 & 0b11);
    if count_width == 0 {
        return Ok(RawContent::Plain {
            headers: RawHeaders(Headers::None),
            body: rest,
        });
    }
    let count = take_number(&mut rest, count_width)?;
    let (name_width, value_width) = (
        usize::from(widths >> 2 & 0b11) + 1,
        usize::from(widths & 0b11) + 1,
    );
    let headers = rest;
    for _ in 0..count {
        if take_part(&mut rest, name_width)?.is_empty() {
            return Err(malformed("a header without a name"));
        }
        take_part(&mut rest, value_width)?;
    }
    Ok(RawContent::Plain {
        headers: RawHeaders(Headers::Encoded {
            rest: headers,
            count,
            name_width,
            value_width,
        }),
        body: rest,
    })
}

/// Takes a number of `width` bytes, four at most.
fn take_number(rest: &mut &[u8], width: usize) -> Result<usize, MalformedRecord> {
    let (number, after) = rest
        .split_at_checked(width)
        .ok_or_else(|| malformed("truncated number"))?;
    *rest = after;
    Ok(number
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// Takes a part after its length, which has `width` bytes.
fn take_part<'a>(rest: &mut &'a [u8], width: usize) -> Result<&'a [u8], MalformedRecord> {
    let length = take_number(rest, width)?;
    let (part, after) = rest
        .split_at_checked(length)
        .ok_or_else(|| malformed("truncated header"))?;
    *rest = after;
    Ok(part)
}

impl<'a> Iterator for RawHeaders<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Headers::None | Headers::Encoded { count: 0, .. } => None,
            Headers::Command(operation) => {
                let operation: &[u8] = operation;
                self.0 = Headers::None;
                Some((&[], operation))
            }
            Headers::Encoded {
                rest,
                count,
                name_width,
                value_width,
            } => {
                *count -= 1;
                let name = take_part(rest, *name_width).ok()?;
                let value = take_part(rest, *value_width).ok()?;
                Some((name, value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use s2_common::record::{
        CommandRecord, EnvelopeRecord, FencingToken, Header, Metered, MeteredSize as _, Record,
    };
    use s2_storage::record::{StoredRecord, decode_stored_record, encode_stored_record};

    use super::*;

    /// A record as a reader gets it, from the crate whose format it is.
    type Parts = (usize, Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

    fn stored(record: Record) -> Bytes {
        let record = StoredRecord::from(record);
        let size = record.metered_size();
        encode_stored_record(Metered::with_size(size, &record))
    }

    fn decoded(bytes: &Bytes) -> Option<Parts> {
        let record = decode_stored_record(bytes.clone()).ok()?;
        let size = record.metered_size();
        let StoredRecord::Plaintext(record) = record.into_inner() else {
            return None;
        };
        let (headers, body) = record.into_parts();
        let headers = headers.into_iter();
        let headers = headers.map(|header| (header.name.to_vec(), header.value.to_vec()));
        Some((size, headers.collect(), body.to_vec()))
    }

    fn raw(bytes: &[u8]) -> Option<Parts> {
        let record = RawRecord::parse(bytes).ok()?;
        let RawContent::Plain { headers, body } = record.content else {
            return None;
        };
        let headers = headers.map(|(name, value)| (name.to_vec(), value.to_vec()));
        Some((record.metered_size, headers.collect(), body.to_vec()))
    }

    proptest! {
        #[test]
        fn a_record_in_place_is_what_the_crate_of_the_format_decodes(
            headers in prop::collection::vec((1usize..300, 0usize..70_000), 0..4),
            body in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let header = |(name, value): (usize, usize)| Header {
                name: vec![b'n'; name].into(),
                value: vec![b'v'; value].into(),
            };
            let headers = headers.into_iter().map(header).collect();
            let record = EnvelopeRecord::try_from_parts(headers, body.into()).unwrap();
            let bytes = stored(Record::Envelope(record));
            prop_assert_eq!(raw(&bytes), decoded(&bytes));
            prop_assert!(raw(&bytes).is_some());
        }

        #[test]
        fn what_the_crate_of_the_format_refuses_is_refused(
            kind in 0u8..8, bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0b11000 | kind;
            }
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(raw(&bytes), decoded(&bytes));
        }
    }

    #[test]
    fn a_command_is_the_header_and_the_payload_that_its_reader_gets() {
        let fence = CommandRecord::Fence("token".parse::<FencingToken>().unwrap());
        for command in [fence, CommandRecord::Trim(77)] {
            let bytes = stored(Record::Command(command));
            assert_eq!(raw(&bytes), decoded(&bytes));
            assert!(raw(&bytes).is_some());
        }
    }
}
