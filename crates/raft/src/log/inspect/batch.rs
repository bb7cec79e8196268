//! The format of a log file, as far as its checksums go.
//!
//! ```text
//! file   = header (magic, version, alignment: 69 bytes), batch*
//! batch  = len: u56, compression: u8, footer: u64,     big-endian; `len` counts the whole batch,
//!          [entries, crc32],                            `footer` the bytes up to the footer
//!          items, crc32 ^ signature                     checksums are little-endian CRC-32 (IEEE)
//! ```
//!
//! The signature is the low half of the file's sequence number: a batch is valid in its own file
//! only. A batch without entries has no entries block at all, so its footer starts at byte 16.
//!
//! The lengths in a batch's header are vouched for by the footer, which is found through them; the
//! compression byte is not. A flipped bit there passes every checksum, and only breaks the reading
//! of an entry, perhaps months later. But the items say how many bytes all entries have together,
//! so it is checked against that.
//!
//! The rules are raft-engine's, made strict where it is lenient: one version, no alignment.

use std::io;

use crc32fast::Hasher;

use super::items;
use super::spans::Change;
use super::window::Window;

/// What every file begins with: magic, then version 2 and alignment 0 as big-endian `u64`.
const FILE_HEADER: &[u8; FILE_HEADER_LEN as usize] =
    b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\
      \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0";

/// Length of a file's header, in bytes.
pub(in crate::log) const FILE_HEADER_LEN: u64 = 53 + 8 + 8;

/// Length of a batch's header, in bytes.
pub(super) const BATCH_HEADER_LEN: u64 = 16;

/// Length of a checksum, in bytes.
pub(super) const CHECKSUM_LEN: u64 = 4;

/// The compression byte of a batch whose entries are stored as they are.
const PLAIN: u8 = 0;

/// The compression byte of a batch whose entries are one LZ4 block, after their plain length as a
/// little-endian `u32`.
const LZ4: u8 = 1;

/// Whether the file starts with the header that this log writes.
pub(super) fn has_header(file: &mut Window) -> io::Result<bool> {
    if file.size < FILE_HEADER_LEN {
        return Ok(false);
    }
    let mut header = [0; FILE_HEADER_LEN as usize];
    file.read_exact(0, &mut header)?;
    Ok(header == *FILE_HEADER)
}

/// Whether `[from, to)` ends with its own checksum, XORed with `signature`. Needs
/// `to - from > CHECKSUM_LEN`, and `to` at most the file's size.
fn checksum_holds(file: &mut Window, from: u64, to: u64, signature: u32) -> io::Result<bool> {
    let body_end = to - CHECKSUM_LEN;
    let mut hasher = Hasher::new();
    let mut at = from;
    while at < body_end {
        let chunk = file.chunk(at)?;
        let n = (chunk.len() as u64).min(body_end - at);
        hasher.update(&chunk[..n as usize]);
        at += n;
    }
    let mut stored = [0; CHECKSUM_LEN as usize];
    file.read_exact(body_end, &mut stored)?;
    Ok(hasher.finalize() == u32::from_le_bytes(stored) ^ signature)
}

/// What the checksums of batches in file `seq` are signed with.
pub(super) fn signature(seq: u64) -> u32 {
    seq as u32
}

/// A batch's header, its lengths checked against each other.
#[derive(Clone, Copy)]
pub(super) struct BatchHeader {
    /// Bytes of the whole batch.
    pub(super) len: u64,
    /// Bytes before the footer: 16 without entries.
    pub(super) footer: u64,
    /// [`PLAIN`] or [`LZ4`].
    compression: u8,
}

impl BatchHeader {
    /// Reads a header that has `room` bytes from its own start to the end of the file.
    ///
    /// # Errors
    ///
    /// What makes it impossible.
    pub(super) fn parse(bytes: [u8; BATCH_HEADER_LEN as usize], room: u64) -> Result<Self, String> {
        let word = |i: usize| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[i..i + 8]);
            u64::from_be_bytes(half)
        };
        let (first, footer) = (word(0), word(8));
        let (len, compression) = (first >> 8, first as u8);
        if !matches!(compression, PLAIN | LZ4) {
            return Err(format!("unknown compression {compression}"));
        }
        if len > room {
            return Err(format!("a batch of {len} bytes where {room} are left"));
        }
        // Room for at least one byte beside each checksum.
        let entries_fit = footer == BATCH_HEADER_LEN || footer > BATCH_HEADER_LEN + CHECKSUM_LEN;
        if !entries_fit || footer.saturating_add(CHECKSUM_LEN) >= len {
            return Err(format!(
                "a batch of {len} bytes with its footer at {footer}"
            ));
        }
        Ok(Self {
            len,
            footer,
            compression,
        })
    }
}

/// The outcome of checking one batch.
pub(super) enum Checked {
    /// Everything fits; the batch ends here, and does this to its groups.
    Valid { end: u64, changes: Vec<Change> },
    /// It is not a valid batch.
    Broken(Broken),
}

/// Why a place in a file holds no valid batch.
pub(super) struct Broken {
    pub(super) what: String,
    /// Where the batch ends, if its footer vouches for its length.
    pub(super) end: Option<u64>,
}

/// Checks the batch at offset `at` of the file with sequence number `seq`.
pub(super) fn check(file: &mut Window, at: u64, seq: u64) -> io::Result<Checked> {
    let broken = |what: String, end| Ok(Checked::Broken(Broken { what, end }));
    let room = file.size - at;
    if room < BATCH_HEADER_LEN {
        return broken(format!("{room} bytes are less than a batch's header"), None);
    }
    let mut header = [0; BATCH_HEADER_LEN as usize];
    file.read_exact(at, &mut header)?;
    let header = match BatchHeader::parse(header, room) {
        Ok(header) => header,
        Err(what) => return broken(what, None),
    };
    let (entries, footer, end) = (at + BATCH_HEADER_LEN, at + header.footer, at + header.len);
    // In the order of the file, so that the window only moves forward.
    let mut plain_len = [0; 4];
    if header.compression == LZ4 && entries < footer {
        file.read_exact(entries, &mut plain_len)?;
    }
    let entries_hold = entries == footer || checksum_holds(file, entries, footer, 0)?;
    if !checksum_holds(file, footer, end, signature(seq))? {
        return broken(
            "the checksum of a batch's items does not hold".to_owned(),
            None,
        );
    }
    if !entries_hold {
        return broken(
            "the checksum of a batch's entries does not hold".to_owned(),
            Some(end),
        );
    }
    let stored_len = match header.compression {
        PLAIN => footer.saturating_sub(entries + CHECKSUM_LEN),
        _ if entries == footer => {
            return broken(
                "a batch without entries claims to compress them".to_owned(),
                Some(end),
            );
        }
        _ => u64::from(u32::from_le_bytes(plain_len)),
    };
    match items::read(file, footer, end - CHECKSUM_LEN)? {
        Some((len, changes)) if len == stored_len => Ok(Checked::Valid { end, changes }),
        Some((len, _)) => broken(
            format!("a batch lists {len} bytes of entries and holds {stored_len}"),
            Some(end),
        ),
        None => broken("the items of a batch cannot be read".to_owned(), Some(end)),
    }
}
