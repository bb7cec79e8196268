//! Strongly connected components.

use std::collections::{BTreeMap, BTreeSet};

/// Names that one module uses from another, by the pair of modules.
pub type References = BTreeMap<(usize, usize), BTreeSet<String>>;

/// The strongly connected components of more than one module.
pub fn cycles(modules: usize, references: &References) -> Vec<Vec<usize>> {
    let mut next = vec![Vec::new(); modules];
    let mut previous = vec![Vec::new(); modules];
    for (from, to) in references.keys() {
        next[*from].push(*to);
        previous[*to].push(*from);
    }
    // Kosaraju: in the reverse of the order in which modules are left, each backward search is a component.
    let mut order = Vec::new();
    let mut seen = vec![false; modules];
    for start in 0..modules {
        search(start, &next, &mut seen, &mut order);
    }
    let mut seen = vec![false; modules];
    let mut found = Vec::new();
    for start in order.into_iter().rev() {
        let mut component = Vec::new();
        search(start, &previous, &mut seen, &mut component);
        if component.len() > 1 {
            component.sort_unstable();
            found.push(component);
        }
    }
    found.sort();
    found
}

/// Searches depth-first, and records modules in the order in which they are left.
fn search(start: usize, next: &[Vec<usize>], seen: &mut [bool], order: &mut Vec<usize>) {
    if std::mem::replace(&mut seen[start], true) {
        return;
    }
    let mut path = vec![(start, 0)];
    while let Some((at, edge)) = path.last_mut() {
        if let Some(to) = next[*at].get(*edge).copied() {
            *edge += 1;
            if !std::mem::replace(&mut seen[to], true) {
                path.push((to, 0));
            }
        } else {
            order.push(*at);
            path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_found_and_what_hangs_on_it_is_not_part_of_it() {
        let mut references = References::new();
        for edge in [(0, 1), (1, 2), (2, 0), (2, 3), (4, 0), (5, 6), (6, 5)] {
            references.insert(edge, BTreeSet::new());
        }
        assert_eq!(cycles(7, &references), [vec![0, 1, 2], vec![5, 6]]);
        references.remove(&(2, 0));
        assert_eq!(cycles(7, &references), [vec![5, 6]]);
    }
}
