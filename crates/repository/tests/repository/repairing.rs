//! Scrub and repair: damage is found, marked, and repaired from a file with the same bytes.

use std::num::{NonZeroU32, NonZeroU64};

use esker_repository::marks::{BadObject, SoundObjects};
use esker_repository::repair::{FilesBySize, NoCopies, Repair, replaces};
use esker_repository::{
    Checkpoint, Error, Kind, LineageId, Lsn, Options, Progress, Put, RateLimiter, Repository, Which,
};

use crate::fixture::{Files, LINEAGE, Place, full, options, some};

on_both!(
    one_flipped_byte_in_a_shared_object_is_repaired_in_all_snapshots_that_have_it,
    a_shared_object_that_is_missing_is_repaired_in_all_snapshots_that_have_it,
    without_a_copy_the_snapshots_are_marked_and_the_next_one_is_whole,
    what_another_snapshot_has_repairs_without_a_local_copy,
    a_local_file_with_other_bytes_is_no_copy,
    a_commit_that_reuses_what_was_marked_meanwhile_uploads_it,
    a_mark_is_removed_when_the_object_is_as_it_was_written,
    a_marked_object_that_is_back_is_restored,
    a_pinned_snapshot_keeps_its_objects_through_a_repair,
    an_interrupted_repair_leaves_only_what_the_sweep_removes,
    a_repair_that_was_interrupted_is_no_upload_that_a_put_continues,
    a_full_snapshot_is_marked_and_not_repaired,
    every_nth_snapshot_reuses_nothing,
    an_object_of_a_snapshot_that_was_released_is_no_damage,
);

/// Three retained snapshots that share the object of the first file.
async fn three(place: &Place) -> [(Put, Files); 3] {
    let contents: [&[u64]; 3] = [&[1, 2], &[1, 2, 3], &[1, 4]];
    let mut all = Vec::new();
    for (lsn, contents) in (1..).zip(contents) {
        let files = some(contents);
        all.push((place.put(lsn, &files).await, files));
    }
    all.try_into().unwrap()
}

/// Reads everything at no bounded rate, and returns what is bad.
async fn scrub(repository: &Repository) -> Vec<BadObject> {
    let limiter = RateLimiter::new(NonZeroU64::new(1 << 40).unwrap());
    let plan = repository.scrub_plan().await.unwrap();
    let mut bad = plan.bad;
    for object in &plan.objects {
        bad.extend(
            repository
                .scrub_object(object, Some(&limiter))
                .await
                .unwrap(),
        );
    }
    bad
}

async fn repaired(place: &Place, files: &Checkpoint) -> Repair {
    let repository = place.repository();
    let bad = scrub(&repository).await;
    let copies = FilesBySize::of(files);
    let repair = repository.repair(&bad, &copies, &Progress::new()).await;
    repair.unwrap().0
}

/// Restores each retained snapshot by its LSN, and compares it.
async fn assert_all_restore(place: &Place, all: &[(Put, Files)]) {
    let repository = place.repository();
    let root = repository.root().await.unwrap();
    assert_eq!(root.retained_snapshots.len(), all.len());
    for (put, files) in all {
        let dir = repository
            .find(&root, &put.snapshot.lsn.to_string())
            .unwrap();
        let (_, restored) = place.restore(Which::Exactly(dir)).await;
        assert_eq!(&restored, files, "LSN {}", put.snapshot.lsn);
    }
}

async fn repaired_in_all(place: Place, hurt: impl FnOnce(&str)) {
    let all = three(&place).await;
    let shared = place.files_of(&all[0].0.snapshot)[0].clone();
    assert_eq!(place.files_of(&all[2].0.snapshot)[0], shared);
    hurt(&shared);
    let error = place
        .repository()
        .restore(&Which::Newest, &place.target(), &Progress::new())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Unusable(tried) if tried.len() == 3),
        "{error}"
    );

    let local = place.checkpoint(9, &some(&[8, 1]));
    let repair = repaired(&place, &local).await;
    assert_eq!(repair.repaired.len(), 1);
    assert_eq!(repair.repaired[0].key, shared);
    assert_ne!(
        repair.repaired[0].successor, shared,
        "no key is written twice"
    );
    assert_eq!(
        &repair.repaired[0].successor[..37],
        &shared[..37],
        "the checksum is the same"
    );
    assert_eq!((repair.replaced.len(), repair.marked.len()), (3, 0));
    assert_eq!(repair.bytes_uploaded, 501);
    assert_all_restore(&place, &all).await;
    place.assert_only_kept();
    let report = place.verify().await;
    assert!(report.is_sound(), "{:?}", report.damaged);
    let root = place.repository().root().await.unwrap();
    assert!(root.intents.is_empty());
    for (now, (before, _)) in root.retained_snapshots.iter().rev().zip(&all) {
        assert_eq!(now.count_damaged(), 0);
        let metadata = place.metadata(&now.dir());
        assert_eq!(replaces(&metadata).as_ref(), Some(&before.snapshot));
        assert_eq!(now.created_at, metadata.created_at);
    }
    // The next snapshot reuses the new object.
    assert_eq!(place.put(10, &some(&[1])).await.bytes_uploaded, 0);
}

async fn one_flipped_byte_in_a_shared_object_is_repaired_in_all_snapshots_that_have_it(
    place: Place,
) {
    let dir = place.dir.clone();
    repaired_in_all(place, |key| {
        let path = dir.join(key);
        let mut content = std::fs::read(&path).unwrap();
        content[250] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, content).unwrap();
    })
    .await;
}

async fn a_shared_object_that_is_missing_is_repaired_in_all_snapshots_that_have_it(place: Place) {
    let dir = place.dir.clone();
    repaired_in_all(place, |key| std::fs::remove_file(dir.join(key)).unwrap()).await;
}

async fn without_a_copy_the_snapshots_are_marked_and_the_next_one_is_whole(place: Place) {
    let all = three(&place).await;
    // Of the first two snapshots only.
    let lost = place.files_of(&all[0].0.snapshot)[1].clone();
    place.remove(&lost);
    let repository = place.repository();
    let bad = scrub(&repository).await;
    let (repair, root) = repository
        .repair(&bad, &NoCopies, &Progress::new())
        .await
        .unwrap();
    assert!(repair.repaired.is_empty() && repair.replaced.is_empty());
    let hurts: Vec<_> = [&all[1], &all[0]]
        .map(|(put, _)| put.snapshot.to_string())
        .into();
    assert_eq!(repair.marked.len(), 1);
    assert_eq!(
        (&repair.marked[0].key, &repair.marked[0].hurts),
        (&lost, &hurts)
    );
    let marks: Vec<_> = root
        .retained_snapshots
        .iter()
        .map(|r| r.count_damaged())
        .collect();
    assert_eq!(marks, [0, 1, 1]);
    assert_eq!(root.retained_snapshots[1].damaged[0].key, lost);
    assert!(root.intents.is_empty());
    // A second pass changes nothing.
    let generation = root.generation;
    let (_, root) = repository
        .repair(&bad, &NoCopies, &Progress::new())
        .await
        .unwrap();
    assert_eq!(root.generation, generation);
    let kept = repository.inventory().await.unwrap().snapshots;
    assert_eq!(kept[1].damaged[0].why, "it is missing");

    // The next snapshot uploads the file, although two retained ones have it.
    let files = some(&[1, 2]);
    let next = place.put_by(&place.repository(), 4, &files).await;
    assert_eq!((next.files_uploaded, next.bytes_uploaded), (1, 502));
    let (restored, content) = place.restore(Which::Newest).await;
    assert_eq!(
        (restored.metadata().min_applied_lsn, content),
        (Lsn(4), files)
    );
}

async fn what_another_snapshot_has_repairs_without_a_local_copy(place: Place) {
    let all = three(&place).await;
    let lost = place.files_of(&all[0].0.snapshot)[1].clone();
    place.remove(&lost);
    let bad = scrub(&place.repository()).await;
    let repository = place.repository();
    repository
        .repair(&bad, &NoCopies, &Progress::new())
        .await
        .unwrap();
    // Evicts the first snapshot; the second stays damaged.
    place.put(4, &some(&[2])).await;
    let bad = scrub(&repository).await;
    let (repair, _) = repository
        .repair(&bad, &NoCopies, &Progress::new())
        .await
        .unwrap();
    assert_eq!((repair.repaired.len(), repair.replaced.len()), (1, 1));
    assert_eq!(
        (repair.bytes_uploaded, &repair.repaired[0].uploaded_from),
        (0, &None)
    );
    assert!(place.verify().await.is_sound());
    place.assert_only_kept();
}

async fn a_local_file_with_other_bytes_is_no_copy(place: Place) {
    let all = three(&place).await;
    place.remove(&place.files_of(&all[0].0.snapshot)[0]);
    let mut other = some(&[1]);
    for content in other.values_mut() {
        content[3] ^= 4;
    }
    let repair = repaired(&place, &place.checkpoint(9, &other)).await;
    assert_eq!((repair.repaired.len(), repair.marked.len()), (0, 1));
    assert_eq!(repair.marked[0].hurts.len(), 3);
}

async fn a_commit_that_reuses_what_was_marked_meanwhile_uploads_it(place: Place) {
    let all = three(&place).await;
    let shared = place.files_of(&all[0].0.snapshot)[0].clone();
    // An upload that has planned to reuse the object, and uploads another one meanwhile.
    let (gate, opened) = tokio::sync::oneshot::channel::<()>();
    let checkpoint = place.checkpoint(4, &some(&[1, 50]));
    let slow = Slow::new(&checkpoint, opened);
    let checkpoint = Checkpoint {
        source: slow.clone(),
        ..checkpoint
    };
    let repository = place.repository();
    let putting = tokio::spawn(async move { repository.put(&checkpoint, &Progress::new()).await });
    crate::fixture::until("the upload waits", || slow.waits()).await;
    place.damage(&shared, |content| content[0] ^= 1);
    let bad = scrub(&place.repository()).await;
    place
        .repository()
        .mark(&bad, &Default::default())
        .await
        .unwrap();
    gate.send(()).unwrap();
    let put = putting.await.unwrap().unwrap();
    assert!(!place.files_of(&put.snapshot).contains(&shared));
    let (restored, content) = place.restore(Which::Newest).await;
    assert_eq!(
        (restored.metadata().min_applied_lsn, content),
        (Lsn(4), some(&[1, 50]))
    );
}

async fn a_mark_is_removed_when_the_object_is_as_it_was_written(place: Place) {
    let all = three(&place).await;
    let shared = place.files_of(&all[0].0.snapshot)[0].clone();
    let repository = place.repository();
    let before = repository.root().await.unwrap();
    let bad = [BadObject {
        key: shared.clone(),
        why: "it was away".to_owned(),
    }];
    let root = repository.mark(&bad, &Default::default()).await.unwrap();
    assert!(
        root.retained_snapshots
            .iter()
            .all(|r| r.count_damaged() == 1)
    );
    // A reading that began before the mark was made has not seen the damage.
    let mut early = SoundObjects::before_reading(&before);
    early.insert(shared.clone());
    let root = repository.mark(&[], &early).await.unwrap();
    assert_eq!(root.retained_snapshots[0].count_damaged(), 1);
    let mut late = SoundObjects::before_reading(&root);
    late.insert(shared);
    let root = repository.mark(&[], &late).await.unwrap();
    assert!(
        root.retained_snapshots
            .iter()
            .all(|r| r.count_damaged() == 0)
    );
    // A description has a mark as well, and both reads find that it is back.
    let description = BadObject {
        key: all[2].0.snapshot.metadata(),
        why: "it was away".to_owned(),
    };
    let all_bad = [bad[0].clone(), description.clone()];
    repository
        .mark(&all_bad, &Default::default())
        .await
        .unwrap();
    let plan = repository.scrub_plan().await.unwrap();
    assert!(plan.descriptions.contains(&description.key));
    let report = repository.verify(true, &Progress::new()).await.unwrap();
    assert!(report.is_sound());
    let root = repository.mark(&[], &report.sound).await.unwrap();
    assert!(
        root.retained_snapshots
            .iter()
            .all(|r| r.count_damaged() == 0)
    );
    assert_eq!(place.put(4, &some(&[1])).await.bytes_uploaded, 0);
}

async fn a_marked_object_that_is_back_is_restored(place: Place) {
    let all = three(&place).await;
    let own = place.files_of(&all[2].0.snapshot)[1].clone();
    let bad = [BadObject {
        key: own.clone(),
        why: "it was away".to_owned(),
    }];
    place
        .repository()
        .mark(&bad, &Default::default())
        .await
        .unwrap();
    let (restored, _) = place.restore(Which::Newest).await;
    assert!(restored.passed_over().is_empty());
    place.damage(&own, |content| content[9] ^= 9);
    let (restored, content) = place.restore(Which::Newest).await;
    assert_eq!(
        (restored.metadata().min_applied_lsn, content),
        (Lsn(2), all[1].1.clone())
    );
    assert!(matches!(
        &restored.passed_over()[0].1,
        Error::Damaged { .. }
    ));
}

async fn a_pinned_snapshot_keeps_its_objects_through_a_repair(place: Place) {
    let all = three(&place).await;
    let before = all[0].0.snapshot.clone();
    let keys = place.files_of(&before);
    place.damage(&keys[0], |content| content[0] ^= 1);
    let repository = place.repository();
    let pin = repository.pin(&before).await.unwrap();
    repaired(&place, &place.checkpoint(9, &some(&[1]))).await;
    repository.sweep().await.unwrap();
    for key in keys.iter().chain([&before.metadata()]) {
        assert!(place.path(key).exists(), "{key}");
    }
    repository.unpin(&pin).await.unwrap();
    repository.sweep().await.unwrap();
    assert!(!place.path(&keys[0]).exists());
    place.assert_only_kept();
    assert_all_restore(&place, &all).await;
}

/// A repair whose process ends while it uploads.
async fn interrupted(place: &Place, repository: Repository) -> Vec<BadObject> {
    let bad = scrub(&repository).await;
    let checkpoint = place.checkpoint(9, &some(&[1]));
    let (_gate, opened) = tokio::sync::oneshot::channel::<()>();
    // The file is hashed first; it is the upload that never ends.
    let slow = Slow::after(&checkpoint, opened, 1);
    let copies = FilesBySize::of(&Checkpoint {
        source: slow.clone(),
        ..checkpoint
    });
    let found = bad.clone();
    let repairing = tokio::spawn(async move {
        let _ = repository.repair(&found, &copies, &Progress::new()).await;
    });
    crate::fixture::until("the repair uploads", || slow.waits()).await;
    repairing.abort();
    bad
}

async fn an_interrupted_repair_leaves_only_what_the_sweep_removes(place: Place) {
    let all = three(&place).await;
    place.remove(&place.files_of(&all[0].0.snapshot)[0]);
    interrupted(&place, place.repository()).await;
    let root = place.repository().root().await.unwrap();
    assert_eq!(root.intents.len(), 1);
    assert!(root.intents[0].repair);
    assert_eq!(root.retained_snapshots.len(), 3);
    place.write(
        &format!("ssts/{:032x}{:016x}.sst", 5, root.intents[0].generation.0),
        "half",
    );
    place.repository().sweep().await.unwrap();
    assert_eq!(
        place.repository().root().await.unwrap().intents.len(),
        1,
        "it may be alive"
    );
    place.clock.jump(2);
    let swept = place.repository().sweep().await.unwrap();
    assert_eq!((swept.fenced, swept.deleted), (1, 1));
    repaired(&place, &place.checkpoint(9, &some(&[1]))).await;
    assert_all_restore(&place, &all).await;
    place.assert_only_kept();
}

async fn a_repair_that_was_interrupted_is_no_upload_that_a_put_continues(place: Place) {
    let all = three(&place).await;
    place.remove(&place.files_of(&all[0].0.snapshot)[0]);
    let incarnation = esker_repository::Incarnation {
        id: esker_repository::IncarnationId(7),
        after: Vec::new(),
    };
    let ours = || {
        place.with(Options {
            incarnation: Some(incarnation.clone()),
            ..options()
        })
    };
    let bad = interrupted(&place, ours()).await;
    let generation = ours().root().await.unwrap().intents[0].generation;
    let put = place.put_by(&ours(), 4, &some(&[2, 6])).await;
    let intents = &put.root.intents;
    assert_eq!((intents.len(), intents[0].generation), (1, generation));
    // The next repair of the same node removes it.
    let copies = FilesBySize::of(&place.checkpoint(9, &some(&[1])));
    let (repair, root) = ours()
        .repair(&bad, &copies, &Progress::new())
        .await
        .unwrap();
    assert_eq!(repair.replaced.len(), 2);
    assert!(root.intents.is_empty());
    assert!(place.verify().await.is_sound());
}

async fn a_full_snapshot_is_marked_and_not_repaired(place: Place) {
    let put = place.put_by(&place.with(full()), 1, &some(&[1])).await;
    let key = place.files_of(&put.snapshot)[0].clone();
    place.damage(&key, |content| content[0] ^= 1);
    let repair = repaired(&place, &place.checkpoint(9, &some(&[1]))).await;
    assert_eq!((repair.repaired.len(), repair.marked.len()), (0, 1));
    let root = place.repository().root().await.unwrap();
    assert_eq!(root.retained_snapshots[0].damaged[0].key, key);
}

async fn every_nth_snapshot_reuses_nothing(place: Place) {
    let repository = place.with(Options {
        full_every: NonZeroU32::new(3),
        ..options()
    });
    let mut uploaded = Vec::new();
    for lsn in 1..=7 {
        let put = place.put_by(&repository, lsn, &some(&[1, 2])).await;
        assert_eq!(place.metadata(&put.snapshot).kind(), Kind::Incremental);
        uploaded.push(put.bytes_uploaded);
    }
    assert_eq!(uploaded, [1003, 0, 0, 1003, 0, 0, 1003]);
    place.assert_only_kept();
    assert!(place.verify().await.is_sound());
}

async fn an_object_of_a_snapshot_that_was_released_is_no_damage(place: Place) {
    let one = Options {
        num_retained: NonZeroU32::new(1),
        ..options()
    };
    let repository = place.with(one);
    place.put_by(&repository, 1, &some(&[1])).await;
    let plan = place.repository().scrub_plan().await.unwrap();
    place.put_by(&repository, 2, &some(&[2])).await;
    let found = place
        .repository()
        .scrub_object(&plan.objects[0], None)
        .await
        .unwrap();
    assert_eq!(found, None);
    // A fork moves a damaged snapshot away, and its mark with it.
    let key = place.repository().scrub_plan().await.unwrap().objects[0]
        .key
        .clone();
    place.remove(&key);
    let bad = scrub(&repository).await;
    repository.mark(&bad, &Default::default()).await.unwrap();
    let root = repository
        .fork(Some(LINEAGE), Lsn(1), LineageId(9))
        .await
        .unwrap();
    assert_eq!(root.abandoned[0].snapshot.damaged[0].key, key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_proves_no_damage() {
    use testkit_s3::{Fault, Matching, Operation};
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let repository = place.repository();
    let plan = repository.scrub_plan().await.unwrap();
    let denied = Matching::operation(Operation::Get).key("/ssts/");
    place.server().faults().always(denied, Fault::Status(403));
    let read = repository.scrub_object(&plan.objects[0], None).await;
    assert!(matches!(read, Err(Error::Denied { .. })), "{read:?}");
}

/// The files of a checkpoint, of which reads wait after some time.
#[derive(Debug)]
struct Slow {
    source: std::sync::Arc<dyn esker_repository::Source>,
    opened: tokio::sync::Mutex<Option<tokio::sync::oneshot::Receiver<()>>>,
    reads: std::sync::atomic::AtomicUsize,
    /// Reads that do not wait.
    free: usize,
}

impl Slow {
    /// Reads of the file of content 50 wait; all files are hashed at once.
    fn new(
        checkpoint: &Checkpoint,
        opened: tokio::sync::oneshot::Receiver<()>,
    ) -> std::sync::Arc<Slow> {
        Slow::after(checkpoint, opened, checkpoint.files.len())
    }

    fn after(
        checkpoint: &Checkpoint,
        opened: tokio::sync::oneshot::Receiver<()>,
        free: usize,
    ) -> std::sync::Arc<Slow> {
        std::sync::Arc::new(Slow {
            source: checkpoint.source.clone(),
            opened: tokio::sync::Mutex::new(Some(opened)),
            reads: Default::default(),
            free,
        })
    }

    fn waits(&self) -> bool {
        self.reads.load(std::sync::atomic::Ordering::SeqCst) > self.free
    }
}

#[async_trait::async_trait]
impl esker_repository::Source for Slow {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<bytes::Bytes> {
        use std::sync::atomic::Ordering;
        if self.reads.fetch_add(1, Ordering::SeqCst) >= self.free {
            let opened = self.opened.lock().await.take();
            if let Some(opened) = opened {
                let _ = opened.await;
            }
        }
        self.source.read_at(name, offset, len).await
    }
}
