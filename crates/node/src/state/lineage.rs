//! Which history a JSON snapshot belongs to.

use esker_partition::{Lineage, LineageId};

use super::document::Header;
use crate::recovery::{Candidate, Source};

/// The lineage and LSN that a snapshot covers; `None` if its header has no lineage.
pub(crate) fn copy_of(header: &Header) -> Option<Candidate> {
    let lineage = u128::from_str_radix(&header.lineage, 16).ok()?;
    let source = Source::State(header.commit_ts);
    Some(Candidate {
        tail: header.log_tail.clone(),
        ..Candidate::at(source, LineageId(lineage), header.lsn)
    })
}

/// Checks that a snapshot belongs to this history; the error is the reason why it does not. A header without
/// a lineage proves nothing.
pub(crate) fn is_of(lineage: &Lineage, header: &Header) -> Result<(), String> {
    if header.lineage.is_empty() {
        return Err("it names no lineage: it may be of another store".to_owned());
    }
    let id = u128::from_str_radix(&header.lineage, 16)
        .map_err(|_| format!("{:?} is no lineage", header.lineage))?;
    if header.lsn == 0 && LineageId(id) != lineage.id() {
        return Err(format!(
            "it is of lineage {}, from which this one branched off, and does not say up to where",
            header.lineage
        ));
    }
    match lineage.contains(LineageId(id), header.lsn) {
        true => Ok(()),
        false => Err(format!(
            "it is of lineage {}, above the fork from which this one goes on, or of another history",
            header.lineage
        )),
    }
}

/// Whether a snapshot is of a lineage that this one descends from.
pub(crate) fn was_left(lineage: &Lineage, header: &Header) -> bool {
    let Ok(id) = u128::from_str_radix(&header.lineage, 16) else {
        return false;
    };
    let mut ancestry = lineage.ancestry().into_iter();
    ancestry.any(|(ancestor, _)| ancestor == LineageId(id))
}

#[cfg(test)]
mod tests {
    use esker_partition::PartitionId;

    use super::*;

    #[test]
    fn a_snapshot_is_of_this_history_only_if_it_says_so() {
        let first = Lineage::first("ours", 1, PartitionId(1));
        let present = first.fork(LineageId(2), 10).fork(LineageId(3), 20);
        let of = |lineage: String, lsn| {
            let header = Header {
                created_at: 1,
                commit_ts: 5,
                lineage,
                lsn,
                forks: 0,
                commit_forks: None,
                log_tail: None,
            };
            is_of(&present, &header)
        };
        let theirs = Lineage::first("theirs", 1, PartitionId(1));
        assert_eq!(of(present.id().to_string(), 0), Ok(()));
        assert_eq!(of(LineageId(2).to_string(), 20), Ok(()));
        assert_eq!(of(first.id().to_string(), 10), Ok(()));
        for (lineage, lsn, why) in [
            (first.id().to_string(), 11, "above the fork"),
            (first.id().to_string(), 0, "does not say up to where"),
            (theirs.id().to_string(), 5, "another history"),
            (String::new(), 5, "names no lineage"),
            ("x".to_owned(), 5, "is no lineage"),
        ] {
            let refused = of(lineage, lsn).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
