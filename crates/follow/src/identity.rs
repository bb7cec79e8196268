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
        let mut forks = self.forks.iter();
        let left = forks.position(|fork| fork.parent.as_deref() == Some(lineage))?;
        // A later cut removes earlier history, too.
        self.forks[left..].iter().map(|fork| fork.seq_num).min()
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
        let at = self.forks.iter().rposition(|f| f.seq_num == position)?;
        let resumes_at = self.forks[at].resumes_at.filter(|to| *to > position)?;
        // Unless a later fork has cut off this one.
        let later = &self.forks[at + 1..];
        let is_cut_off = later.iter().any(|fork| fork.seq_num < resumes_at);
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
}
