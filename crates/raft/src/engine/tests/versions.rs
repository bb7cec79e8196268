//! Members of different versions: an older one cannot read the snapshots of a newer leader.

use super::cluster::{Cluster, Fate};
use super::*;
use crate::message::{EndReason, NewerOffer, Refusal};
use crate::transfer::OFFER_FORMAT;

/// What the leader offers is of a newer version from now on, to those who read it.
fn leader_is_newer(cluster: &mut Cluster) {
    cluster.fate = Box::new(|envelope| {
        if let Payload::Offer(offer) = &envelope.payload {
            envelope.payload = Payload::NewerOffer(NewerOffer {
                checkpoint: offer.checkpoint,
                format: OFFER_FORMAT + 1,
            });
        }
        Fate::Arrives
    });
}

fn all_are_of_one_version(cluster: &mut Cluster) {
    cluster.fate = Box::new(|_| Fate::Arrives);
}

fn offers(cluster: &Cluster) -> usize {
    cluster.said(1, |a| matches!(a, Action::OfferSnapshot { .. }))
}

fn refused(cluster: &Cluster, id: u64) -> u64 {
    let refused = cluster.host(id).engine.counters().refused;
    refused.get(&Refusal::NewerFormat).copied().unwrap_or(0)
}

fn last_failure(cluster: &Cluster, of: u64) -> Option<EndReason> {
    let peers = cluster.host(1).engine.status().peers;
    let peer = peers.into_iter().find(|p| p.id == NodeId(of));
    peer.unwrap().last_failure
}

#[test]
fn an_offer_of_a_newer_format_is_refused_and_repeated_with_growing_pauses_and_the_log_goes_on() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(10);
    cluster.cut = vec![3];
    cluster.write(60);
    cluster.ticks(30);
    cluster.snapshot(1);
    cluster.snapshot(2);
    cluster.ticks(2);
    leader_is_newer(&mut cluster);
    cluster.cut.clear();
    let term = cluster.host(1).engine.term();

    let lost = offers(&cluster);
    let mut offered_at = Vec::new();
    for tick in 0..1000_u64 {
        cluster.ticks(1);
        if offers(&cluster) - lost > offered_at.len() {
            offered_at.push(tick);
        }
        if tick % 100 == 0 {
            cluster.try_write(1);
        }
    }
    assert_eq!(offered_at.len(), offers(&cluster) - lost, "one at a time");
    let pauses: Vec<_> = offered_at.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses[..4].is_sorted() && pauses[0] >= 4, "{pauses:?}");
    // 32 times the first one, at most; a heartbeat's answer is what brings it on.
    assert!(pauses[5..].iter().all(|p| *p >= 110), "{pauses:?}");
    let times = offered_at.len() as u64;
    assert_eq!(refused(&cluster, 3), times, "each is counted");
    assert_eq!(last_failure(&cluster, 3), Some(EndReason::NewerFormat));
    assert_eq!(last_failure(&cluster, 2), None);
    assert_eq!(cluster.host(3).engine.status().transfers, []);
    cluster.assert_agreed(&[1, 2]);
    let engine = &cluster.host(1).engine;
    assert_eq!((engine.role(), engine.term()), (Role::Leader, term));
    assert!(engine.committed() > cluster.host(3).engine.committed());

    // It is upgraded.
    all_are_of_one_version(&mut cluster);
    cluster.ticks(150);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(last_failure(&cluster, 3), None);
}

#[test]
fn a_joiner_of_an_older_version_refuses_too_and_joins_once_it_is_upgraded() {
    let mut cluster = Cluster::new(&[1, 2]);
    cluster.write(30);
    cluster.snapshot(1);
    cluster.joiner(3);
    leader_is_newer(&mut cluster);
    cluster
        .change(MembershipChange::AddLearner(NodeId(3)))
        .unwrap();
    cluster.ticks(300);
    assert!(refused(&cluster, 3) > 0);
    assert!(offers(&cluster) < 10, "{} offers", offers(&cluster));
    assert_eq!(last_failure(&cluster, 3), Some(EndReason::NewerFormat));
    cluster.write(5);
    all_are_of_one_version(&mut cluster);
    cluster.ticks(150);
    cluster.assert_agreed(&[1, 2, 3]);
}
