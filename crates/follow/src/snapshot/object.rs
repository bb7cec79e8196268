//! A snapshot as an object: a description, the state's bytes, and their totals.
//!
//! The three are arranged so that common tools can read the state:
//!
//! | encoding | first | then | last |
//! |---|---|---|---|
//! | zstd | a skippable frame with the description | one zstd frame | a skippable frame with the totals |
//! | none | a line with the description | the state's bytes | a line with the totals |
//!
//! `zstd -d` skips skippable frames; lines are JSON documents of their own, so that `jq` shows
//! description, state and totals of a JSON state.
//!
//! The totals have a fixed length. So once the description is read, the length of everything but the
//! state is known.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::meta::{Encoding, MAX_META, Meta, Totals};

/// Magic number of the skippable frames used here (RFC 8878, 3.1.2: 0x184D2A50 to 5F).
const SKIPPABLE: u32 = 0x184D_2A5E;
/// Bytes before a description in a skippable frame.
const FRAME_HEAD: usize = 8;
/// What a line with a description begins with.
const LINE_HEAD: &[u8] = b"{\"esker_snapshot\":";
/// Most bytes before the state.
pub const MAX_HEAD: usize = FRAME_HEAD + MAX_META;

#[derive(Serialize, Deserialize)]
struct Head {
    esker_snapshot: Meta,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    esker_snapshot_end: End,
}

/// Totals, always of the same length.
#[derive(Serialize, Deserialize)]
struct End {
    /// 20 decimal digits.
    bytes: String,
    xxh3: String,
}

/// What comes before the state's bytes.
pub fn head(meta: &Meta) -> Bytes {
    let json = serde_json::to_vec(&Head {
        esker_snapshot: meta.clone(),
    });
    let json = json.expect("strings and numbers");
    match meta.encoding {
        Encoding::Zstd => framed(&json),
        Encoding::None => [&json[..], b"\n"].concat().into(),
    }
}

/// What comes behind the state's bytes.
pub fn tail(encoding: Encoding, totals: &Totals) -> Bytes {
    let json = serde_json::to_vec(&Tail {
        esker_snapshot_end: End {
            bytes: format!("{:020}", totals.bytes),
            xxh3: totals.xxh3.clone(),
        },
    });
    let json = json.expect("strings");
    match encoding {
        Encoding::Zstd => framed(&json),
        Encoding::None => [b"\n", &json[..], b"\n"].concat().into(),
    }
}

/// How long the totals are.
pub fn tail_len(encoding: Encoding) -> usize {
    let totals = Totals {
        bytes: 0,
        xxh3: "0".repeat(32),
    };
    tail(encoding, &totals).len()
}

fn framed(json: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + json.len());
    frame.put_u32_le(SKIPPABLE);
    frame.put_u32_le(json.len() as u32);
    frame.put_slice(json);
    frame.freeze()
}

/// What an object begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Begins {
    /// A description, and its length in bytes.
    With(Box<Meta>, usize),
    /// Something else: no snapshot of this library.
    Otherwise,
    /// A description that makes no sense.
    Malformed(String),
}

/// Reads an object's first bytes: [`MAX_HEAD`] of them, or all there are.
pub fn begins(first: &[u8]) -> Begins {
    let (json, len) = if first.starts_with(&SKIPPABLE.to_le_bytes()) && first.len() >= FRAME_HEAD {
        let len = u32::from_le_bytes([first[4], first[5], first[6], first[7]]) as usize;
        if len > MAX_META {
            return Begins::Malformed(format!("a description of {len} bytes"));
        }
        match first.get(FRAME_HEAD..FRAME_HEAD + len) {
            Some(json) => (json, FRAME_HEAD + len),
            None => return Begins::Malformed("it ends within its description".to_owned()),
        }
    } else if first.starts_with(LINE_HEAD) {
        match first.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= MAX_META => (&first[..end], end + 1),
            _ => return Begins::Malformed("its description does not end".to_owned()),
        }
    } else {
        return Begins::Otherwise;
    };
    match serde_json::from_slice::<Head>(json) {
        Ok(head) => Begins::With(Box::new(head.esker_snapshot), len),
        Err(error) => Begins::Malformed(format!("its description: {error}")),
    }
}

/// Reads an object's last [`tail_len`] bytes.
///
/// # Errors
///
/// What is wrong with them.
pub fn ends(encoding: Encoding, last: &[u8]) -> Result<Totals, String> {
    let json = match encoding {
        Encoding::None => last,
        Encoding::Zstd => {
            let head = [SKIPPABLE, (last.len().saturating_sub(FRAME_HEAD)) as u32];
            let head = head.map(u32::to_le_bytes).concat();
            if !last.starts_with(&head) {
                return Err("its end is missing".to_owned());
            }
            &last[FRAME_HEAD..]
        }
    };
    let end: Tail = serde_json::from_slice(json).map_err(|_| "its end is missing".to_owned())?;
    let End { bytes, xxh3 } = end.esker_snapshot_end;
    let bytes = bytes
        .parse()
        .map_err(|_| "its end has no length".to_owned())?;
    Ok(Totals { bytes, xxh3 })
}
