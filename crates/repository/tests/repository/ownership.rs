//! The owner of a destination: one cluster, for all of its partitions.

use esker_repository::ownership::{MARKER, marker};
use esker_repository::{
    Cluster, Destination, Error, Options, PartitionId, Progress, Put, Repository,
};
use serde_json::{Value, json};

use crate::fixture::{Files, Place, cluster, options, read_dir, some};

on_both!(
    a_destination_that_another_program_writes_to_is_refused_at_every_partition,
    two_clusters_do_not_share_a_destination,
    clusters_of_one_name_are_told_apart_by_the_roots_that_are_there,
    what_an_earlier_release_left_is_adopted,
    what_an_earlier_release_left_for_two_clusters_is_refused,
    a_damaged_root_does_not_hide_whose_the_destination_is,
    of_two_clusters_that_claim_at_once_one_puts,
    a_marker_that_is_not_understood_is_never_written_over,
    a_destination_that_was_emptied_meanwhile_is_not_put_to,
    another_destination_in_the_place_of_one_is_not_put_to,
    a_restarted_process_knows_which_destination_it_is_to_find,
);

fn at(destination: &Destination, partition: u16, options: Options) -> Repository {
    Repository::new(destination, PartitionId(partition), options)
}

fn strangers() -> Options {
    Options {
        cluster: Some(Cluster {
            name: "theirs".to_owned(),
            ..cluster()
        }),
        ..options()
    }
}

async fn put(place: &Place, repository: &Repository) -> Result<Put, Error> {
    let checkpoint = place.checkpoint(5, &some(&[5]));
    repository.put(&checkpoint, &Progress::new()).await
}

/// All objects at the destination, of all partitions.
fn everything(place: &Place) -> Files {
    let mut all = read_dir(place.top());
    all.retain(|key, _| !key.starts_with(".tmp/"));
    all
}

fn edit(place: &Place, key: &str, change: impl FnOnce(&mut Value)) {
    place.edit(&format!("../{key}"), change);
}

async fn a_destination_that_another_program_writes_to_is_refused_at_every_partition(place: Place) {
    place.put(1, &some(&[1])).await;
    place.remove("../cluster.json");
    // A root as Restate writes it, without a generation.
    place.edit("latest.json", |root| {
        root.as_object_mut().unwrap().remove("generation");
    });
    let before = everything(&place);
    for partition in [7, 8] {
        let repository = at(&place.opened_again(), partition, options());
        let refused = put(&place, &repository).await;
        let Err(error @ Error::NotOurs { .. }) = &refused else {
            panic!("partition {partition}: {refused:?}");
        };
        assert!(error.to_string().contains("7/latest.json"), "{error}");
        assert!(error.to_string().contains("another prefix"), "{error}");
    }
    assert_eq!(everything(&place), before, "nothing is written");
}

async fn two_clusters_do_not_share_a_destination(place: Place) {
    place.put(1, &some(&[1])).await;
    let before = everything(&place);
    let theirs = at(&place.opened_again(), 8, strangers());
    let refused = put(&place, &theirs).await;
    let Err(error @ Error::OtherCluster { .. }) = &refused else {
        panic!("{refused:?}");
    };
    for part in ["cluster.json", "\"ours\"", "\"theirs\"", "another prefix"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(everything(&place), before, "nothing is written");
    put(&place, &at(&place.opened_again(), 8, options()))
        .await
        .unwrap();
}

async fn clusters_of_one_name_are_told_apart_by_the_roots_that_are_there(place: Place) {
    place.put(1, &some(&[1])).await;
    // The cluster that created the marker had no fingerprint.
    edit(&place, MARKER, |marker| {
        marker
            .as_object_mut()
            .unwrap()
            .remove("cluster_fingerprint");
    });
    let namesake = Options {
        cluster: Some(Cluster {
            fingerprint: Some(1),
            ..cluster()
        }),
        ..options()
    };
    let refused = put(&place, &at(&place.opened_again(), 8, namesake)).await;
    assert!(
        matches!(refused, Err(Error::OtherCluster { .. })),
        "{refused:?}"
    );
    put(&place, &at(&place.opened_again(), 8, options()))
        .await
        .unwrap();
}

async fn what_an_earlier_release_left_is_adopted(place: Place) {
    place.put(1, &some(&[1])).await;
    put(&place, &at(&place.destination, 8, options()))
        .await
        .unwrap();
    place.remove("../cluster.json");
    let again = place.opened_again();
    assert_eq!(marker(&again).await.unwrap(), None);
    put(&place, &at(&again, 8, options())).await.unwrap();
    let made = marker(&again).await.unwrap().unwrap();
    assert_eq!(made.cluster_name, "ours");
    assert_eq!(made.cluster_fingerprint, cluster().fingerprint);
    assert_eq!(again.id(), Some(made.destination_id));
    // The marker is never written again.
    put(&place, &at(&place.opened_again(), 9, options()))
        .await
        .unwrap();
    assert_eq!(marker(&again).await.unwrap(), Some(made));
}

async fn what_an_earlier_release_left_for_two_clusters_is_refused(place: Place) {
    place.put(1, &some(&[1])).await;
    place.remove("../cluster.json");
    place.edit("latest.json", |root| root["cluster_name"] = json!("theirs"));
    // A state that two clusters could produce with earlier releases.
    let before = everything(&place);
    for (options, puts) in [(options(), false), (strangers(), true)] {
        let result = put(&place, &at(&place.opened_again(), 8, options)).await;
        assert_eq!(result.is_ok(), puts, "{result:?}");
        if !puts {
            assert_eq!(everything(&place), before, "nothing is written");
        }
    }
}

async fn a_damaged_root_does_not_hide_whose_the_destination_is(place: Place) {
    let snapshot = place.put(1, &some(&[1])).await.snapshot;
    place.remove("../cluster.json");
    place.write("latest.json", "garbage");
    let refused = put(&place, &at(&place.opened_again(), 8, strangers())).await;
    assert!(
        matches!(refused, Err(Error::OtherCluster { .. })),
        "{refused:?}"
    );
    // The partition's description names this cluster, so another partition can be put.
    put(&place, &at(&place.opened_again(), 8, options()))
        .await
        .unwrap();
    // Now no readable object names the owner.
    place.remove("../cluster.json");
    std::fs::remove_dir_all(place.top().join("8")).unwrap();
    place.remove(&snapshot.metadata());
    let before = everything(&place);
    let refused = put(&place, &at(&place.opened_again(), 8, options())).await;
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    assert_eq!(everything(&place), before, "nothing is written");
}

async fn of_two_clusters_that_claim_at_once_one_puts(place: Place) {
    let ours = at(&place.opened_again(), 7, options());
    let theirs = at(&place.opened_again(), 8, strangers());
    let (one, other) = futures::join!(put(&place, &ours), put(&place, &theirs));
    let refused = match (one, other) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, Error::OtherCluster { .. }), "{refused:?}");
}

async fn a_marker_that_is_not_understood_is_never_written_over(place: Place) {
    place.put(1, &some(&[1])).await;
    let sound = place.json("../cluster.json");
    let mut newer = sound.clone();
    newer["version"] = json!("V2");
    let mut nobody = sound.clone();
    nobody["destination_id"] = json!("x");
    for bad in [
        "".to_owned(),
        "{}".to_owned(),
        "[".repeat(1000),
        sound.to_string()[1..].to_owned(),
        newer.to_string(),
        nobody.to_string(),
        " ".repeat(100_000),
    ] {
        place.write("../cluster.json", &bad);
        let before = everything(&place);
        for destination in [&place.destination, &place.opened_again()] {
            let refused = put(&place, &at(destination, 8, options())).await;
            match bad.contains("\"V2\"") {
                true => assert!(
                    matches!(refused, Err(Error::NewerFormat { .. })),
                    "{refused:?}"
                ),
                false => assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}"),
            }
        }
        assert_eq!(everything(&place), before, "nothing is written");
    }
    // A field that a later release adds is no damage.
    let mut more = sound;
    more["more"] = json!({"of": "this"});
    place.write("../cluster.json", more.to_string());
    put(&place, &at(&place.destination, 8, options()))
        .await
        .unwrap();
}

async fn a_destination_that_was_emptied_meanwhile_is_not_put_to(place: Place) {
    place.put(1, &some(&[1])).await;
    // As after a disk was unmounted: its directory exists, and is empty.
    let disk = place.top().with_extension("disk");
    std::fs::rename(place.top(), &disk).unwrap();
    std::fs::create_dir(place.top()).unwrap();
    for partition in [7, 8] {
        let refused = put(&place, &at(&place.destination, partition, options())).await;
        let Err(error @ Error::MarkerMissing { .. }) = &refused else {
            panic!("partition {partition}: {refused:?}");
        };
        assert!(error.to_string().contains("cluster.json"), "{error}");
    }
    assert_eq!(everything(&place), Files::new(), "nothing is written");
    std::fs::remove_dir_all(place.top()).unwrap();
    std::fs::rename(&disk, place.top()).unwrap();
    place.put(2, &some(&[1, 2])).await;
    assert!(place.verify().await.is_sound());
}

async fn another_destination_in_the_place_of_one_is_not_put_to(place: Place) {
    place.put(1, &some(&[1])).await;
    edit(&place, MARKER, |marker| {
        marker["destination_id"] = json!("00000000000000000000000000000001");
    });
    let before = everything(&place);
    let refused = put(&place, &place.repository()).await;
    assert!(
        matches!(refused, Err(Error::OtherDestination { .. })),
        "{refused:?}"
    );
    assert_eq!(everything(&place), before, "nothing is written");
}

async fn a_restarted_process_knows_which_destination_it_is_to_find(place: Place) {
    place.put(1, &some(&[1])).await;
    let id = place.destination.id().unwrap();
    let again = place.opened_again();
    again.expect(id);
    put(&place, &at(&again, 8, options())).await.unwrap();
    std::fs::remove_dir_all(place.top()).unwrap();
    std::fs::create_dir(place.top()).unwrap();
    let refused = put(&place, &at(&again, 8, options())).await;
    assert!(
        matches!(refused, Err(Error::MarkerMissing { .. })),
        "{refused:?}"
    );
}
