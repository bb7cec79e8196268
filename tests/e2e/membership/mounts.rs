//! A log on a disk of its own that is not mounted when its node starts. Needs the right to mount; skipped without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Nodes, number_of};

/// A directory that is mounted at another one, until it is dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// `None` if this process may not mount.
    fn bind(from: &Path, at: &Path) -> Option<Mounted> {
        let mut mount = Command::new("mount");
        let done = mount.arg("--bind").arg(from).arg(at).output().ok()?;
        done.status.success().then(|| Mounted { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A server that still runs keeps it until it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// Three nodes with a record, of which node 2 is stopped: its log is on a disk of its own, which is not mounted.
struct Unmounted {
    nodes: Nodes,
    /// The directory at which the disk was mounted.
    log: PathBuf,
    disk: PathBuf,
    /// The number of node 2.
    number: u64,
}

impl Unmounted {
    /// `None` if this process may not mount.
    async fn new() -> Option<Unmounted> {
        let mut nodes = Nodes::first().await;
        nodes.join().await;
        let log = nodes.data(2).join("log");
        let disk = nodes.directory.path().join("disk");
        fs::create_dir_all(&log).unwrap();
        fs::create_dir(&disk).unwrap();
        let Some(mounted) = Mounted::bind(&disk, &log) else {
            testkit::skipped("this process may not mount anything");
            return None;
        };
        nodes.join().await;
        nodes.have_voters(0, 3).await;
        nodes.create(0).await;
        nodes.append(0, "a").await;
        let number = number_of(&nodes.data(2));
        nodes.servers[2].stop().await;
        assert!(disk.join("esker.json").exists());
        drop(mounted);
        Some(Unmounted {
            nodes,
            log,
            disk,
            number,
        })
    }

    /// Restarts node 2, which joins again under a new number.
    async fn rejoin(&mut self) {
        self.nodes.restart(2).await;
        let numbers = self.nodes.have_voters(0, 3).await;
        let number = number_of(&self.nodes.data(2));
        assert!(!numbers.contains(&self.number) && numbers.contains(&number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_mounted_is_not_lost_until_the_operator_says_so() {
    let Some(mut unmounted) = Unmounted::new().await else {
        return;
    };
    let Unmounted {
        nodes,
        log,
        disk,
        number,
    } = &mut unmounted;
    // Nothing is changed, whatever is said.
    for setup in [
        nodes.setups[2].clone(),
        nodes.setups[2].clone().bootstrap("restore"),
    ] {
        let (code, said) = setup.start_refused(&nodes.data(2)).await;
        assert!(code != 0 && said.contains("[log_not_mounted]"), "{said}");
        assert_eq!(number_of(&nodes.data(2)), *number);
        assert_eq!(fs::read_dir(&*log).unwrap().count(), 0);
    }
    let mounted = Mounted::bind(disk, log).expect("it may");
    nodes.restart(2).await;
    assert!(nodes.have_voters(0, 3).await.contains(number));
    nodes.append(2, "b").await;
    // The disk is lost for good: the operator removes the directory, and the node joins again.
    nodes.servers[2].stop().await;
    drop(mounted);
    fs::remove_dir(log).unwrap();
    unmounted.rejoin().await;
    unmounted.nodes.have(2, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_disk_in_the_place_of_the_logs_is_a_lost_log() {
    let Some(mut unmounted) = Unmounted::new().await else {
        return;
    };
    let empty = unmounted.nodes.directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let _mounted = Mounted::bind(&empty, &unmounted.log).expect("it may");
    unmounted.rejoin().await;
    unmounted.nodes.have(2, &["a"]).await;
    unmounted.nodes.servers[2].stop().await;
}
