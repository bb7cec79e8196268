//! Which stream it is, and which of its histories.

use std::time::Duration;

/// Which stream it is. What is not known is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// When it was created, RFC 3339.
    pub created_at: Option<String>,
    /// The lineage of its history.
    pub lineage: Option<String>,
    /// Where earlier lineages were left, oldest first.
    pub forks: Vec<Fork>,
    /// Numbers that were passed over without a history being cut off, oldest first.
    pub gaps: Vec<Gap>,
    /// How long records are kept, if not for ever.
    pub retention: Option<Duration>,
}

impl Identity {
    /// Below which position an earlier lineage is the same as this one; `None` if the lineage is not
    /// known.
    pub fn shares(&self, lineage: &str) -> Option<u64> {
        let left = self.left_at(lineage)?;
        // A later cut removes earlier history, too.
        self.forks[left..].iter().map(|fork| fork.seq_num).min()
    }

    /// Whether what a lineage had before a cursor is what this history has before it. A lineage that was
    /// left before anything of its own was appended, or that lost all of that, had the same records at the
    /// position where it began as at the one where the history was cut off.
    pub fn includes(&self, lineage: &str, cursor: u64) -> bool {
        if self.lineage.as_deref() == Some(lineage) {
            return true;
        }
        let (Some(left), Some(shared)) = (self.left_at(lineage), self.shares(lineage)) else {
            return false;
        };
        let fork = &self.forks[left];
        let is_its_beginning = fork.parent_resumed_at == Some(cursor) && fork.seq_num == shared;
        cursor <= shared || is_its_beginning
    }

    /// Which fork left a lineage.
    fn left_at(&self, lineage: &str) -> Option<usize> {
        let mut forks = self.forks.iter();
        forks.position(|fork| fork.parent.as_deref() == Some(lineage))
    }

    /// Whether it is known to be of the same stream and the same history as another one.
    pub fn is_same_history(&self, other: &Identity) -> bool {
        self.lineage.is_some()
            && self.lineage == other.lineage
            && self.created_at == other.created_at
    }

    /// Whether it has what another one lacks. A server that has no such stream at the moment lists nothing of
    /// it; the next one of that name could not be told from it.
    pub fn knows_more_than(&self, other: &Identity) -> bool {
        self.created_at.is_some() && other.created_at.is_none()
            || self.lineage.is_some() && other.lineage.is_none()
    }

    /// Whether nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        self.created_at.is_none() && self.lineage.is_none()
    }

    /// Whether it is known to be another stream of the same name.
    pub fn is_another_stream(&self, other: &Identity) -> bool {
        match (&self.created_at, &other.created_at) {
            (Some(ours), Some(theirs)) => ours != theirs,
            _ => false,
        }
    }

    /// Where numbers continue if they jump exactly at this position, because a history was cut off there
    /// or numbers were passed over: nothing is in between.
    pub fn goes_on_at(&self, position: u64) -> Option<u64> {
        let resumes_at = self.jumps_at(position)?;
        self.goes_on_at(resumes_at).or(Some(resumes_at))
    }

    fn jumps_at(&self, position: u64) -> Option<u64> {
        let gap = self.gaps.iter().find(|gap| gap.seq_num == position);
        if let Some(gap) = gap.filter(|gap| gap.resumes_at > position) {
            return Some(gap.resumes_at);
        }
        let is_here =
            |fork: &Fork| fork.seq_num == position || fork.parent_resumed_at == Some(position);
        let at = self.forks.iter().rposition(is_here)?;
        let resumes_at = self.forks[at].resumes_at.filter(|to| *to > position)?;
        // Unless a later fork has cut off this one. Those of the same gap have not.
        let later = self.forks[at + 1..].iter();
        let mut later = later.filter(|fork| fork.resumes_at != Some(resumes_at));
        let is_cut_off = later.any(|fork| fork.seq_num < resumes_at);
        (!is_cut_off).then_some(resumes_at)
    }

    /// The position itself, or where numbers continue if they jump there. Both name the same place of the
    /// history. A server that trims to the first of them removes what is before the second.
    pub fn behind_gap(&self, position: u64) -> u64 {
        self.goes_on_at(position).unwrap_or(position)
    }

    /// The first position of the stream: not 0 if it was empty when a history was cut off.
    pub fn begins_at(&self) -> u64 {
        self.behind_gap(0)
    }
}

/// Where a history was cut off and another one began.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Fork {
    /// The lineage that was left.
    #[serde(default)]
    pub parent: Option<String>,
    /// Records below are in both lineages. What the parent had at or above is lost.
    pub seq_num: u64,
    /// Where numbers continue.
    #[serde(default)]
    pub resumes_at: Option<u64>,
    /// Where the parent's own numbers continued after the fork before it, if nothing of them is left: it had
    /// the same before this position as before `seq_num`. Servers list it for all but the first of the
    /// forks between which nothing was appended.
    #[serde(default)]
    pub parent_resumed_at: Option<u64>,
}

/// Numbers that no record has, though no history was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Gap {
    /// The first of them.
    pub seq_num: u64,
    /// Where numbers continue.
    pub resumes_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_behind_forks_and_behind_what_was_passed_over_and_only_forks_cut_off() {
        let fork = |parent: &str, seq_num, resumes_at| Fork {
            parent: Some(parent.to_owned()),
            seq_num,
            resumes_at: Some(resumes_at),
            parent_resumed_at: None,
        };
        let gap = |seq_num, resumes_at| Gap {
            seq_num,
            resumes_at,
        };
        let identity = Identity {
            forks: vec![fork("a", 3, 10), fork("b", 20, 30)],
            gaps: vec![gap(12, 20), gap(40, 50)],
            ..Identity::default()
        };
        let goes_on = |position| identity.goes_on_at(position);
        // An import, and a fork right after it.
        assert_eq!(goes_on(12), Some(30));
        assert_eq!((goes_on(3), goes_on(20)), (Some(10), Some(30)));
        assert_eq!(
            (goes_on(40), goes_on(4), goes_on(50)),
            (Some(50), None, None)
        );
        assert_eq!(
            (identity.shares("a"), identity.shares("b")),
            (Some(3), Some(20))
        );
    }

    #[test]
    fn a_lineage_that_was_left_with_nothing_of_its_own_is_included_at_its_beginning() {
        let fork = |parent: &str, parent_resumed_at| Fork {
            parent: Some(parent.to_owned()),
            seq_num: 5,
            resumes_at: Some(305),
            parent_resumed_at,
        };
        let mut identity = Identity {
            lineage: Some("d".to_owned()),
            forks: vec![fork("a", None), fork("b", Some(105)), fork("c", Some(205))],
            ..Identity::default()
        };
        let included = |identity: &Identity, lineage: &str| -> Vec<u64> {
            let cursors = [4, 5, 6, 104, 105, 106, 205, 206, 305];
            let cursors = cursors.into_iter();
            cursors
                .filter(|cursor| identity.includes(lineage, *cursor))
                .collect()
        };
        assert_eq!(included(&identity, "a"), [4, 5]);
        assert_eq!(included(&identity, "b"), [4, 5, 105]);
        assert_eq!(included(&identity, "c"), [4, 5, 205]);
        assert_eq!(included(&identity, "d").len(), 9);
        assert!(included(&identity, "e").is_empty());
        // All of these are the same place of the history.
        for position in [5, 105, 205] {
            assert_eq!(identity.goes_on_at(position), Some(305), "{position}");
        }
        for position in [4, 6, 104, 106, 305] {
            assert_eq!(identity.goes_on_at(position), None, "{position}");
        }
        // The next loss goes back to before all of that.
        identity.lineage = Some("e".to_owned());
        identity.forks.push(Fork {
            parent: Some("d".to_owned()),
            seq_num: 4,
            resumes_at: Some(404),
            parent_resumed_at: None,
        });
        for lineage in ["a", "b", "c", "d"] {
            assert_eq!(included(&identity, lineage), [4], "{lineage}");
        }
        assert_eq!(identity.goes_on_at(105), None);
    }
}
