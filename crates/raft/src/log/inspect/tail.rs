//! Judges the end of a queue: padding, a torn batch, or rot.
//!
//! An interrupted batch is the last one in its file, and not longer than the largest batch. So two facts
//! decide: how far bytes other than zero reach, and whether a valid batch starts anywhere among them. The
//! second is tested at every byte, because a damaged length does not show where the next batch starts. To
//! keep that linear in the size of the tail, the CRC of any range is computed from those of two prefixes
//! instead of reading it again.

use crc32fast::Hasher;

use super::InspectError;
use super::batch::{self, BATCH_HEADER_LEN, BatchHeader, Broken, CHECKSUM_LEN};
use super::names::LogName;
use super::window::Window;

/// Distance between two known CRCs of prefixes, in bytes: one costs 4 bytes of memory, and a
/// candidate costs at most two times this many bytes of hashing (well under a microsecond).
const STRIDE: usize = 1024;

/// Judges what follows the last valid batch of a queue, which ends at `valid`.
///
/// Returns the length of the torn tail in bytes; 0 if there are only zeros. `limit`: the largest
/// torn tail that one interrupted batch can leave, in bytes.
///
/// # Errors
///
/// [`InspectError::Rot`] if this cannot be one interrupted batch.
pub(super) fn judge(
    name: &LogName,
    mut reader: Window,
    valid: u64,
    broken: Broken,
    limit: u64,
) -> Result<u64, InspectError> {
    let failed = |e| name.io("read", e);
    let used = used_end(&mut reader, valid).map_err(failed)?;
    let bytes = used - valid;
    let what = broken.what;
    if bytes > limit {
        return Err(name.rot(
            valid,
            format!(
                "{what}, and {bytes} bytes follow; one interrupted write leaves at most {limit}"
            ),
        ));
    }
    if let Some(end) = broken.end.filter(|end| used > *end) {
        return Err(name.rot(valid, format!("{what}, and more follows it at {end}")));
    }
    // A batch may end with a checksum whose last bytes are zero.
    let end = reader.size.min(used + CHECKSUM_LEN);
    let mut tail = vec![0; (end - valid) as usize];
    reader.read_exact(valid, &mut tail).map_err(failed)?;
    match find_batch(&tail, reader.size - valid, batch::signature(name.seq)) {
        Some(at) => {
            let at = valid + at as u64;
            Err(name.rot(valid, format!("{what}, and a valid batch follows at {at}")))
        }
        None => Ok(bytes),
    }
}

/// The end of the last byte at or after `from` that is not zero; `from` if there is none.
fn used_end(reader: &mut Window, from: u64) -> std::io::Result<u64> {
    let (mut at, mut end) = (from, from);
    while at < reader.size {
        let chunk = reader.chunk(at)?;
        if let Some(i) = chunk.iter().rposition(|byte| *byte != 0) {
            end = at + i as u64 + 1;
        }
        at += chunk.len() as u64;
    }
    Ok(end)
}

/// The first place behind the first byte of `tail` where a batch starts: a possible header, and a
/// footer whose signed checksum holds. (Broken entries do not matter: that a batch was written
/// here at all is what counts.) `room`: bytes from the start of `tail` to the end of the file.
fn find_batch(tail: &[u8], room: u64, signature: u32) -> Option<usize> {
    let prefixes = Prefixes::new(tail);
    for at in 1..tail.len() {
        let Some(header) = tail[at..].first_chunk::<{ BATCH_HEADER_LEN as usize }>() else {
            break;
        };
        let Ok(header) = BatchHeader::parse(*header, room - at as u64) else {
            continue;
        };
        // Beyond the tail there are only zeros, and no batch ends in so many of them.
        let (footer, end) = (at as u64 + header.footer, at as u64 + header.len);
        if end > tail.len() as u64 {
            continue;
        }
        let (footer, stored) = (footer as usize, (end - CHECKSUM_LEN) as usize);
        // `stored` is 4 bytes before `end`, which is inside.
        let Some(checksum) = tail[stored..].first_chunk() else {
            continue;
        };
        if prefixes.crc_is(footer, stored, u32::from_le_bytes(*checksum) ^ signature) {
            return Some(at);
        }
    }
    None
}

/// CRCs of prefixes of a slice, to test the CRC of any part of it in constant time.
struct Prefixes<'a> {
    data: &'a [u8],
    /// CRC of the first `i * STRIDE` bytes.
    crcs: Vec<u32>,
}

impl<'a> Prefixes<'a> {
    fn new(data: &'a [u8]) -> Self {
        let mut hasher = Hasher::new();
        let mut crcs = vec![0];
        for stride in data.chunks_exact(STRIDE) {
            hasher.update(stride);
            crcs.push(hasher.clone().finalize());
        }
        Self { data, crcs }
    }

    fn crc_to(&self, end: usize) -> u32 {
        let i = end / STRIDE;
        let mut hasher = Hasher::new_with_initial(self.crcs[i]);
        hasher.update(&self.data[i * STRIDE..end]);
        hasher.finalize()
    }

    /// Whether `data[from..to]` has this CRC: then, and only then, appending it to the prefix up
    /// to `from` gives the prefix up to `to`.
    fn crc_is(&self, from: usize, to: usize, crc: u32) -> bool {
        let mut hasher = Hasher::new_with_initial_len(self.crc_to(from), from as u64);
        hasher.combine(&Hasher::new_with_initial_len(crc, (to - from) as u64));
        hasher.finalize() == self.crc_to(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_of_a_part_follows_from_two_prefixes() {
        let data: Vec<u8> = (0..10_000u32)
            .map(|i| (i.wrapping_mul(i) / 7) as u8)
            .collect();
        let prefixes = Prefixes::new(&data);
        for (from, to) in [
            (0, 2048),
            (0, 1),
            (1, 10_000),
            (1023, 1025),
            (2048, 4096),
            (999, 7777),
        ] {
            let crc = crc32fast::hash(&data[from..to]);
            assert!(prefixes.crc_is(from, to, crc), "{from}..{to}");
            assert!(
                !prefixes.crc_is(from, to, crc ^ 1),
                "{from}..{to}, wrong crc"
            );
        }
    }

    /// The costliest tail: a possible header every 16 bytes, each with a footer of half the tail.
    #[test]
    fn a_tail_full_of_possible_headers_is_searched_in_time() {
        let len = 8 << 20;
        let mut tail = vec![0u8; len];
        for at in (0..len - 16).step_by(16) {
            let rest = (len - at) as u64;
            tail[at..at + 8].copy_from_slice(&(rest << 8).to_be_bytes());
            tail[at + 8..at + 16].copy_from_slice(&(rest / 2).max(21).to_be_bytes());
        }
        let started = std::time::Instant::now();
        assert_eq!(find_batch(&tail, len as u64, 1), None);
        let took = started.elapsed();
        assert!(took.as_secs() < 60, "searching 8 MiB took {took:?}");
    }
}
