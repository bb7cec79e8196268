//! A member whose state is found to be wrong takes part no more, and the others go on.

use super::members::Members;
use super::*;

#[test]
fn a_condemned_member_decides_and_sends_nothing_and_the_others_go_on() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    members.assert_agreed();
    let condemned = members.leader();
    let group = members.group(condemned).clone();
    group.condemn("its state is wrong".to_owned());
    let halted = group.halted().unwrap();
    assert_eq!(
        (halted.why.as_str(), halted.reopens),
        ("its state is wrong", false)
    );
    assert!(matches!(
        group.propose("refused".into()),
        Err(ProposeError::Halted { .. })
    ));
    let term = group.status().term;
    wait_for("another one leads", || {
        let others = members.nodes.iter().filter(|(id, _)| **id != condemned);
        let mut others = others.map(|(_, (_, group))| group);
        others.any(|group| group.is_serving() && group.status().term > term)
    });
    let leader = members.nodes.keys().copied();
    let leader = leader.filter(|id| *id != condemned);
    let leader = leader.max_by_key(|id| members.group(*id).is_serving());
    let written = members.group(leader.unwrap()).propose("goes on".into());
    written.unwrap().blocking_recv().unwrap().unwrap();
    assert!(!group.is_serving(), "it does not believe that it leads");
    assert_eq!(group.status().term, term, "it has taken part in nothing");
    assert!(!members.lines(condemned).contains(&"goes on".to_owned()));
}
