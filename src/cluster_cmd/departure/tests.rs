//! What counts on a node that leaves, from what a status shows; and the wait.

use serde_json::{Value, json};

use super::*;

fn members(voters: &[u64], before: &[u64], learners: &[u64]) -> Value {
    json!({ "voters": voters, "voters_before": before, "learners": learners, "waits": null })
}

fn waiting(mut members: Value, why: &str, problem: bool) -> Value {
    members["waits"] = json!({ "why": why, "seconds": 3, "problem": problem });
    members
}

/// A status with these partitions: the leader, and the members as the leader reports them.
fn view(partitions: &[(Option<u64>, Value)]) -> ClusterView {
    let partitions: Vec<Value> = (0..)
        .zip(partitions)
        .map(|(partition, (leader, members)): (u64, _)| {
            json!({
                "partition": partition,
                "leader": leader,
                "leader_name": leader.map(|leader| format!("n{leader}")),
                "replicas": [],
                "members": members,
                "check": null,
                "checking": false,
                "check_failed": null,
            })
        })
        .collect();
    serde_json::from_value(json!({ "node": 1, "nodes": [], "partitions": partitions })).unwrap()
}

fn pending(standing: &Standing) -> Vec<(u64, &str)> {
    let pending = standing.pending.iter();
    pending.map(|it| (it.partition, &*it.why)).collect()
}

#[test]
fn a_partition_counts_on_a_removed_node_until_its_leader_has_it_neither_as_a_voter_nor_as_a_learner()
 {
    let view = view(&[
        (Some(1), members(&[1, 2], &[], &[])),
        (
            Some(1),
            waiting(members(&[1, 2, 3], &[], &[]), "n2 was not heard from", true),
        ),
        (Some(1), members(&[1, 2], &[1, 2, 3], &[])),
        (Some(1), members(&[1], &[], &[2, 3])),
        (Some(3), Value::Null),
        (None, Value::Null),
    ]);
    let standing = Standing::of_removed(&view, 3);
    assert_eq!(
        pending(&standing),
        [
            (1, "it still votes (n2 was not heard from)"),
            (2, "the change that takes its vote is not complete"),
            (3, "it is still a learner"),
            (4, "it still leads"),
            (
                5,
                "its members are not known, because no leader has answered"
            ),
        ]
    );
    assert_eq!(
        standing.describe(),
        "partition 1: it still votes (n2 was not heard from); partition 2: the change that takes its vote is not \
         complete; partition 3: it is still a learner; and 2 more"
    );
    assert_eq!(
        pending(&Standing::of_removed(&view, 4)).len(),
        2,
        "it is a member of none, and two do not say who theirs are"
    );
}

/// The leader has the node as a member no more, and the others may still count by the voters before.
#[test]
fn a_partition_counts_on_a_node_until_the_change_that_took_its_vote_is_confirmed() {
    let unconfirmed = |mut members: Value| {
        members["unconfirmed"] = json!(true);
        members
    };
    let why = "a majority of the voters has not confirmed the last change of the voters";
    let removed = view(&[
        (Some(1), members(&[1, 2, 4], &[], &[])),
        (Some(1), unconfirmed(members(&[1, 2, 4], &[], &[]))),
    ]);
    assert_eq!(pending(&Standing::of_removed(&removed, 3)), [(1, why)]);
    let drained = view(&[
        (Some(1), members(&[1, 2, 4], &[], &[3])),
        (Some(1), unconfirmed(members(&[1, 2, 4], &[], &[3]))),
    ]);
    assert_eq!(pending(&Standing::of_drained(&drained, 3)), [(1, why)]);
}

#[test]
fn a_node_has_drained_where_it_leads_nothing_and_votes_only_because_no_other_node_can() {
    let kept = waiting(
        members(&[1, 2, 3], &[], &[]),
        "n3 votes until another does",
        false,
    );
    let view = view(&[
        (Some(1), members(&[1, 2, 4], &[], &[3])),
        (Some(1), kept.clone()),
        (Some(3), kept),
        (Some(1), members(&[1, 2, 3], &[], &[4])),
        (Some(1), members(&[1, 2, 4], &[1, 2, 3], &[])),
        (
            Some(1),
            waiting(members(&[1, 2, 3], &[], &[4]), "n4 lacks 9 entries", true),
        ),
        (None, Value::Null),
    ]);
    let standing = Standing::of_drained(&view, 3);
    assert_eq!(
        pending(&standing),
        [
            (2, "it still leads (n3 votes until another does)"),
            (3, "it still votes"),
            (4, "the change that takes its vote is not complete"),
            (5, "it still votes (n4 lacks 9 entries)"),
            (
                6,
                "its members are not known, because no leader has answered"
            ),
        ]
    );
    assert_eq!(standing.keeps_vote, [1]);
}

/// The leader that the node which answers knows of may be an old one: what the node itself reports counts too.
#[test]
fn a_node_that_reports_that_it_leads_has_not_drained() {
    let mut view = view(&[(Some(1), members(&[1, 3], &[], &[]))]);
    let replica = json!({
        "node": 3, "name": "n3", "role": "leader", "term": 2, "applied": 1, "last": 1, "lag": null, "halted": null,
        "fetching": null,
    });
    view.partitions[0].replicas = vec![serde_json::from_value(replica).unwrap()];
    let standing = Standing::of_drained(&view, 3);
    assert_eq!(pending(&standing), [(0, "it still leads")]);
}

const QUICK: Timing = Timing {
    look_interval: Duration::from_millis(1),
    look_timeout: Duration::from_millis(50),
    report_interval: Duration::ZERO,
    settle_time: Duration::from_millis(20),
};

/// Longer than any of these tests needs.
const LONG: Duration = Duration::from_secs(30);

fn counts(partitions: &[u64]) -> Standing {
    let pending = partitions.iter().map(|partition| Pending {
        partition: *partition,
        why: "it still votes".to_owned(),
    });
    Standing {
        pending: pending.collect(),
        keeps_vote: Vec::new(),
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

#[test]
fn the_wait_ends_once_nothing_counts_on_the_node_and_goes_on_while_the_server_fails() {
    let mut looks = vec![
        Ok(counts(&[])),
        Ok(counts(&[1])),
        Err(Failure::wrong("server", "it starts")),
        Ok(counts(&[0, 1])),
    ];
    let mut reports = Vec::new();
    let deadline = Instant::now() + LONG;
    let done = run(settle(
        deadline,
        QUICK,
        async || looks.pop().unwrap(),
        |text| reports.push(text.to_owned()),
    ));
    assert_eq!(done, Waited::Settled(counts(&[])));
    assert!(looks.is_empty());
    assert_eq!(
        reports,
        [
            "partition 0: it still votes; partition 1: it still votes",
            "it starts",
            "partition 1: it still votes"
        ]
    );
}

#[test]
fn the_wait_ends_at_its_deadline_with_what_was_found_last() {
    let soon = || Instant::now() + Duration::from_millis(30);
    let votes = run(settle(soon(), QUICK, async || Ok(counts(&[2])), |_| {}));
    assert_eq!(votes, Waited::TimedOut(counts(&[2])));
    let fails = async || Err(Failure::wrong("server", "it starts"));
    let failed = run(settle(soon(), QUICK, fails, |_| {}));
    assert_eq!(failed, Waited::Unknown("it starts".to_owned()));
    // A server that never answers.
    let hangs = async || std::future::pending().await;
    let hung = run(settle(soon(), QUICK, hangs, |_| {}));
    assert_eq!(
        hung,
        Waited::Unknown("the server has not answered in time".to_owned())
    );
    // It has answered once.
    let mut asked = 0;
    let once = async || {
        asked += 1;
        match asked {
            1 => Ok(counts(&[2])),
            _ => std::future::pending().await,
        }
    };
    let timing = Timing {
        look_timeout: LONG,
        ..QUICK
    };
    let then_silent = run(settle(soon(), timing, once, |_| {}));
    assert_eq!(then_silent, Waited::TimedOut(counts(&[2])));
}

/// What a leader has noted may be of a moment before the drain.
#[test]
fn votes_that_are_kept_have_to_stay_so_for_a_while() {
    let keeps = Standing {
        keeps_vote: vec![0],
        ..Standing::default()
    };
    let mut looks = 0;
    let look = async || {
        looks += 1;
        // At first the leader has not seen that the node drains, and then it moves the vote.
        Ok(match looks {
            1 => keeps.clone(),
            2 => counts(&[0]),
            _ => Standing::default(),
        })
    };
    let deadline = Instant::now() + LONG;
    let done = run(settle(deadline, QUICK, look, |_| {}));
    assert_eq!(done, Waited::Settled(Standing::default()));
    let began = Instant::now();
    let stays = run(settle(deadline, QUICK, async || Ok(keeps.clone()), |_| {}));
    assert_eq!(stays, Waited::Settled(keeps.clone()));
    assert!(began.elapsed() >= QUICK.settle_time);
}
