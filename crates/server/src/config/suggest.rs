//! Finds the name that was probably meant.

/// Most edits (insert, delete, replace, swap neighbours) between what was written and what is
/// suggested. With three, short words are near everything.
pub(super) const MAX_EDITS: usize = 2;

/// The candidate that is nearest to `written`, if it is near enough. Case and the difference between `_`
/// and `-` are ignored; of equally near candidates the first is returned.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let written = plain(written);
    candidates
        .into_iter()
        // The lengths alone exclude most candidates cheaply.
        .filter(|candidate| candidate.len().abs_diff(written.len()) <= MAX_EDITS)
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&written, &plain(candidate)),
                candidate,
            )
        })
        // A word of two letters is two edits from every other one.
        .filter(|(edits, candidate)| *edits <= MAX_EDITS && *edits < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn plain(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}
