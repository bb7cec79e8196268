//! Bounds: memory does not grow with the size of what is put, restored or verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use esker_repository::destination::{Destination, DestinationOptions};
use esker_repository::{Checkpoint, Digests, Lsn, Progress, Repository, Which};

use crate::fixture::{LINEAGE, PARTITION, full};

const MIB: u64 = 1 << 20;
/// The variable that marks a child process, whose memory is measured alone.
const CHILD: &str = "ESKER_TEST_BOUNDS_CHILD";

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap();
    pages.parse::<u64>().unwrap() * 4096
}

#[test]
fn a_gibibyte_is_put_verified_and_restored_in_128_mib() {
    if std::env::var_os(CHILD).is_some() {
        return in_little_memory();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "bounds::a_gibibyte_is_put_verified_and_restored_in_128_mib",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn in_little_memory() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // On a disk, whose cache does not count as memory of this process.
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for number in 0..8_u64 {
        let path = source.join(format!("{number:06}.sst"));
        std::fs::write(&path, number.to_string()).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(128 * MIB).unwrap();
    }
    let options = DestinationOptions {
        hard_links: false,
        ..DestinationOptions::default()
    };
    let to = dir.path().join("repository");
    let destination = Destination::open(to.to_str().unwrap(), &options).unwrap();
    let (peak, done) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let watch = std::thread::spawn({
        let (peak, done) = (peak.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let before = resident();
    runtime.block_on(async {
        let repository = Repository::new(&destination, PARTITION, full());
        let mut checkpoint = Checkpoint::scan(&source, Lsn(1), Digests::new()).unwrap();
        checkpoint.lineage = Some(LINEAGE);
        let progress = Progress::new();
        let put = repository.put(&checkpoint, &progress).await.unwrap();
        assert_eq!(put.bytes_uploaded, 1024 * MIB);
        assert!(repository.verify(true, &progress).await.unwrap().is_sound());
        let target = dir.path().join("restored");
        repository
            .restore(&Which::Newest, &target, &progress)
            .await
            .unwrap();
    });
    done.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    let extra = peak.load(Ordering::Relaxed).saturating_sub(before) / MIB;
    assert!(extra < 128, "{extra} MiB more than before");
}
