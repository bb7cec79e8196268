//! Sizes of the parts in which a large file is uploaded.

/// A file up to this size is sent in one request; a larger one is sent in parts of at least this size.
pub(crate) const PART: u64 = 8 << 20;
/// The maximum number of parts in S3; above 80 GB, parts are larger.
const MAX_PARTS: u64 = 10_000;

/// The size of a file's parts: the smallest for which there are at most [`MAX_PARTS`].
pub(crate) fn part_size(size: u64) -> u64 {
    let least = size.div_ceil(MAX_PARTS);
    PART.max(least.next_multiple_of(1 << 20))
}
