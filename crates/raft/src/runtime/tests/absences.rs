//! What logs keep for a member that is away, and how that ends.

use super::members::Members;
use super::*;
use crate::KeptForAbsent;

#[test]
fn a_follower_whose_log_is_full_has_the_leader_shorten_its_own() {
    let mut members = Members::start_with(&[1, 2, 3], |config| {
        config.kept_for_absent = KeptForAbsent {
            bytes: 1 << 20,
            entries: 1000,
            ticks: 1 << 30,
        };
    });
    members.write(10);
    members.assert_agreed();
    let away = members.follower();
    members.network.cut(&[NodeId(away)]);
    members.write(30);
    let others = [1, 2, 3].into_iter().filter(|id| *id != away);
    for id in others.clone() {
        members.snapshot(id);
    }
    wait_for("it is away", || {
        let leader = members.group(members.leader());
        let kept = leader.log_kept_for_absent(leader.status().floor);
        kept.is_some_and(|kept| kept.members == [NodeId(away)] && kept.entries >= 30)
    });
    let status = members.group(members.leader()).status();
    assert!(status.log_start < status.floor, "{status:?}");
    wait_for("the leader lets it go", || {
        let leader = members.leader();
        let mut others = others.clone().filter(|id| *id != leader);
        members.group(others.next().unwrap()).give_up_absent();
        let status = members.group(leader).status();
        status.log_start == status.floor
    });
}
