//! An upload that is interrupted, and how the next start of the node continues it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use esker_repository::{Checkpoint, Incarnation, IncarnationId, Options, Progress, Source, Which};

use crate::fixture::{Clock, Place, options, some};

on_both!(
    a_put_after_a_restart_sends_nothing_again_that_is_there,
    what_a_sweep_has_taken_is_sent_again,
    what_others_have_left_is_not_gone_on_with,
    a_put_that_reuses_nothing_sends_everything,
);

/// Reads the files of a checkpoint, but one of them only once; the second read never ends.
#[derive(Debug)]
struct Stuck {
    inner: Arc<dyn Source>,
    name: String,
    reads: AtomicUsize,
}

#[async_trait::async_trait]
impl Source for Stuck {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        // The first read computes the checksum, before anything is uploaded.
        if name.ends_with(&self.name) && self.reads.fetch_add(1, Ordering::SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        self.inner.read_at(name, offset, len).await
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let is_read = name.ends_with(&self.name);
        self.inner.path(name).filter(|_| !is_read)
    }
}

/// One start of a node, with its earlier starts.
fn start(id: u128, after: &[u128]) -> Options {
    Options {
        incarnation: Some(Incarnation {
            id: IncarnationId(id),
            after: after.iter().map(|id| IncarnationId(*id)).collect(),
        }),
        ..options()
    }
}

fn files(place: &Place) -> usize {
    let keys = place.keys();
    keys.iter().filter(|key| key.starts_with("ssts/")).count()
}

/// Interrupts a put of three files after two of them were uploaded.
async fn interrupt(place: &Place, options: Options) {
    let checkpoint = place.checkpoint(1, &some(&[1, 2, 3]));
    interrupt_put_of(place, &checkpoint, options).await;
}

async fn interrupt_put_of(place: &Place, checkpoint: &Checkpoint, options: Options) {
    let mut checkpoint = checkpoint.clone();
    checkpoint.source = Arc::new(Stuck {
        inner: checkpoint.source,
        name: "000003.sst".to_owned(),
        reads: AtomicUsize::new(0),
    });
    let repository = place.with(options);
    let uploading = tokio::spawn(async move {
        let _ = repository.put(&checkpoint, &Progress::new()).await;
    });
    let begun = std::time::Instant::now();
    while files(place) < 2 {
        assert!(begun.elapsed().as_secs() < 60, "{:?}", place.keys());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    uploading.abort();
    let _ = uploading.await;
}

/// Puts a later checkpoint, which has two of the files. Returns the number of files that were uploaded.
async fn put(place: &Place, options: Options) -> u64 {
    let later = some(&[1, 2, 4]);
    let put = place.put_by(&place.with(options), 2, &later).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 1);
    assert!(place.verify().await.is_sound());
    let (_, restored) = place.restore(Which::Newest).await;
    assert_eq!(restored, later);
    // Nothing is left of the interrupted upload after its intent has expired.
    let sweeper = place.with_clock(self::options(), Clock::wrong_by(2));
    sweeper.sweep().await.unwrap();
    place.assert_only_kept();
    put.files_uploaded
}

async fn a_put_after_a_restart_sends_nothing_again_that_is_there(place: Place) {
    interrupt(&place, start(1, &[])).await;
    // The start in between (2) did not put anything.
    assert_eq!(put(&place, start(3, &[1, 2])).await, 1);
    assert_eq!(place.json("latest.json").get("intents"), None);
}

async fn what_a_sweep_has_taken_is_sent_again(place: Place) {
    interrupt(&place, start(1, &[])).await;
    let sweeper = place.with_clock(options(), Clock::wrong_by(2));
    let sweep = sweeper.sweep().await.unwrap();
    assert_eq!((sweep.fenced, sweep.deleted), (1, 2), "{sweep:?}");
    assert_eq!(put(&place, start(2, &[1])).await, 3);
}

/// The number of a checkpoint's files of which an object is a hard link.
fn linked(place: &Place, checkpoint: &Checkpoint) -> usize {
    let inode = |path: &Path| path.metadata().unwrap().ino();
    let keys = place.keys();
    let objects: Vec<u64> = keys.iter().map(|key| inode(&place.path(key))).collect();
    let files = checkpoint.files.iter();
    let sources = files.map(|file| checkpoint.source.path(&file.name).unwrap());
    sources
        .filter(|path| objects.contains(&inode(path)))
        .count()
}

/// An earlier release made hard links of files in a directory; this one requires copies.
#[tokio::test]
async fn hard_links_of_an_interrupted_put_are_replaced_where_copies_are_wanted() {
    let place = Place::linked(true);
    let checkpoint = place.checkpoint(1, &some(&[1, 2, 3]));
    interrupt_put_of(&place, &checkpoint, start(1, &[])).await;
    assert_eq!(linked(&place, &checkpoint), 2);

    let place = place.with_links(false);
    let repository = place.with(start(2, &[1]));
    let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
    assert_eq!(linked(&place, &checkpoint), 0);
    assert_eq!(put.files_uploaded, 3);
    // Changing a file of the database changes no object.
    for file in &checkpoint.files {
        std::fs::write(checkpoint.source.path(&file.name).unwrap(), "damage").unwrap();
    }
    assert!(place.verify().await.is_sound());
    place.assert_only_kept();
}

async fn what_others_have_left_is_not_gone_on_with(place: Place) {
    // An upload of an earlier release or a command.
    interrupt(&place, options()).await;
    assert_eq!(put(&place, start(1, &[])).await, 3);
}

async fn a_put_that_reuses_nothing_sends_everything(place: Place) {
    interrupt(&place, start(1, &[])).await;
    let apart = Options {
        reuse: false,
        ..start(2, &[1])
    };
    assert_eq!(put(&place, apart).await, 3);
}
