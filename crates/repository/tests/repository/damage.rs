//! Damage: every bit and every length of every kind of object.

use esker_repository::{Error, Options, Progress, Which};

use crate::fixture::{Place, full, only_damage, options, some};

on_both!(
    damage_to_a_full_snapshot_is_found_named_and_passed_over,
    damage_to_a_shared_file_is_found_named_and_passed_over,
    a_damaged_root_stops_everything_and_stays_as_it_is,
    a_damaged_description_never_restores_anything_else,
    a_snapshot_that_is_named_is_restored_without_its_root,
);

type Change = Box<dyn Fn(&mut Vec<u8>) + Send>;

/// Some kinds of damage to so many bytes: flipped bits at the ends and in the middle, and truncation.
fn damages(len: usize) -> Vec<(String, Change)> {
    let mut all: Vec<(String, Change)> = Vec::new();
    for at in [0, len / 3, len / 2, len - 1] {
        for bit in [0, 7] {
            let name = format!("bit {bit} of byte {at}");
            all.push((name, Box::new(move |content| content[at] ^= 1 << bit)));
        }
    }
    for left in [0, 1, len - 1] {
        all.push((
            format!("cut to {left}"),
            Box::new(move |content| content.truncate(left)),
        ));
    }
    all.push((
        "a byte more".to_owned(),
        Box::new(|content| content.push(0)),
    ));
    all
}

async fn files_are_checked(place: Place, options: Options) {
    place
        .put_by(&place.with(options.clone()), 1, &some(&[1]))
        .await;
    let newest = place.put_by(&place.with(options), 2, &some(&[2])).await;
    let key = place.files_of(&newest.snapshot)[0].clone();
    let sound = std::fs::read(place.path(&key)).unwrap();
    for (what, change) in damages(sound.len()) {
        place.damage(&key, change);
        let report = place.verify().await;
        let (damaged, _, hurts) = only_damage(&report);
        assert_eq!(
            (damaged, hurts),
            (&*key, &[newest.snapshot.to_string()][..]),
            "{what}"
        );
        let (restored, files) = place.restore(Which::Newest).await;
        assert_eq!(files, some(&[1]), "{what}");
        let (dir, error) = &restored.passed_over()[0];
        assert_eq!(dir, &newest.snapshot, "{what}");
        assert!(error.to_string().contains(&key), "{what}: {error}");
        place.write(&key, &sound);
    }
    assert_eq!(place.restore(Which::Newest).await.1, some(&[2]));
}

async fn damage_to_a_full_snapshot_is_found_named_and_passed_over(place: Place) {
    files_are_checked(place, full()).await;
}

async fn damage_to_a_shared_file_is_found_named_and_passed_over(place: Place) {
    files_are_checked(place, options()).await;
}

async fn a_damaged_root_stops_everything_and_stays_as_it_is(place: Place) {
    place.put(1, &some(&[1])).await;
    place.write("ssts/00.sst", "orphan");
    let sound = std::fs::read(place.path("latest.json")).unwrap();
    for cut in (0..sound.len()).step_by(37) {
        place.write("latest.json", &sound[..cut]);
        let before = place.objects();
        let repository = place.repository();
        let root = repository.root().await;
        assert!(matches!(root, Err(Error::Damaged { .. })), "cut to {cut}");
        assert!(repository.sweep().await.is_err());
        let checkpoint = place.checkpoint(2, &some(&[2]));
        let put = repository.put(&checkpoint, &Progress::new()).await;
        assert!(matches!(put, Err(Error::Damaged { .. })), "cut to {cut}");
        assert_eq!(place.objects(), before, "cut to {cut}");
    }
}

/// A description has no checksum of its own. Whatever a flipped bit changes, the restored files are those
/// that were put, or the restore fails.
async fn a_damaged_description_never_restores_anything_else(place: Place) {
    place.put(1, &some(&[1])).await;
    let newest = place.put(2, &some(&[2])).await;
    let key = newest.snapshot.metadata();
    let sound = std::fs::read(place.path(&key)).unwrap();
    let (mut passed, mut harmless) = (0, 0);
    for at in (0..sound.len()).step_by(29) {
        place.damage(&key, |content| content[at] ^= 1 << (at % 7));
        let to = place.target();
        let which = Which::Newest;
        let repository = place.repository();
        match repository.restore(&which, &to, &Progress::new()).await {
            Ok(restored) if restored.passed_over().is_empty() => {
                let contents: Vec<_> = crate::fixture::read_dir(&to).into_values().collect();
                let put: Vec<_> = some(&[2]).into_values().collect();
                assert_eq!(contents, put, "byte {at}");
                harmless += 1;
            }
            Ok(restored) => {
                assert_eq!(crate::fixture::read_dir(&to), some(&[1]), "byte {at}");
                assert_eq!(restored.passed_over()[0].0, newest.snapshot);
                passed += 1;
            }
            Err(Error::OtherCluster { .. }) => {}
            Err(error) => panic!("byte {at}: {error}"),
        }
        place.write(&key, &sound);
    }
    assert!(passed > harmless / 2 && passed > 5, "{passed} {harmless}");
}

async fn a_snapshot_that_is_named_is_restored_without_its_root(place: Place) {
    let (old, new) = (some(&[1, 2]), some(&[2, 3]));
    let first = place.put(1, &old).await.snapshot;
    place.put(2, &new).await;
    let sound = place.json("latest.json");
    for gone in [false, true] {
        match gone {
            true => place.remove("latest.json"),
            false => place.write("latest.json", "{"),
        }
        let (repository, target) = (place.repository(), place.target());
        let named = Which::Exactly(first.clone());
        let restored = repository.restore(&named, &target, &Progress::new()).await;
        let restored = restored.unwrap();
        assert!(restored.unpinned().is_some(), "and it says so");
        assert_eq!(crate::fixture::read_dir(&target), old);
        let newest = repository
            .restore(&Which::Newest, &place.target(), &Progress::new())
            .await;
        let why = newest.unwrap_err().to_string();
        assert!(why.contains("Bring it back"), "{why}");
    }
    place.write("latest.json", sound.to_string());
}
