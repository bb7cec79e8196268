//! Sizes of the parts in which a large file is uploaded.

/// A file up to this size is one request; larger ones go in parts of it.
pub(crate) const PART: u64 = 8 << 20;
/// S3 takes 10,000 parts at most; beyond 80 GB a part is larger.
const MAX_PARTS: u64 = 10_000;

/// Of a file's parts: the smallest that gives no more than there may be.
pub(crate) fn part_size(size: u64) -> u64 {
    let least = size.div_ceil(MAX_PARTS);
    PART.max(least.next_multiple_of(1 << 20))
}
