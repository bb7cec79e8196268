//! A second implementation: all operations against an S3 server of another project.
//!
//! Runs if `ESKER_TEST_S3_ENDPOINT` and `ESKER_TEST_S3_BUCKET` name a server and a bucket, with the
//! credentials of the usual variables. `make moto` starts `moto_server` and runs this test.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::num::NonZeroU32;
use std::time::Duration;

use esker_repository::destination::{DestinationOptions, probe};
use esker_repository::env::System;
use esker_repository::{
    Checkpoint, Cluster, Destination, Digests, Error, Kind, Lsn, Options, PartitionId, Progress,
    Repository, Which,
};

fn options(kind: Kind) -> Options {
    Options {
        cluster: Some(Cluster {
            name: "second-opinion".to_owned(),
            fingerprint: Some(1),
            node_name: "n1".to_owned(),
        }),
        kind,
        num_retained: NonZeroU32::new(2),
        orphan_min_age: Duration::ZERO,
        ..Options::default()
    }
}

#[tokio::test]
async fn another_s3_server_keeps_the_whole_story() {
    let (Ok(endpoint), Ok(bucket)) = (
        std::env::var("ESKER_TEST_S3_ENDPOINT"),
        std::env::var("ESKER_TEST_S3_BUCKET"),
    ) else {
        eprintln!("SKIPPED: ESKER_TEST_S3_ENDPOINT and ESKER_TEST_S3_BUCKET are not set");
        return;
    };
    let settings = DestinationOptions {
        aws_endpoint_url: Some(endpoint),
        aws_allow_http: Some(true),
        ..DestinationOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    for (partition, kind) in [(1, Kind::Full), (2, Kind::Incremental)] {
        let url = format!("s3://{bucket}/story-{}", std::process::id());
        let destination = Destination::open(&url, &settings).unwrap();
        probe(&destination, &System).await.unwrap();
        let repository = Repository::new(&destination, PartitionId(partition), options(kind));
        let digests = Digests::new();
        // One file has several parts.
        for (i, size) in [20 << 20, 1000, 0].into_iter().enumerate() {
            fs::write(files.join(format!("{i:06}.sst")), vec![i as u8; size]).unwrap();
        }
        for lsn in 1..=4 {
            fs::write(files.join("000001.sst"), format!("{partition} at {lsn}")).unwrap();
            let checkpoint = Checkpoint::scan(&files, Lsn(lsn), digests.clone()).unwrap();
            let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
            if kind == Kind::Incremental && lsn > 1 {
                assert_eq!(put.files_uploaded, 1, "only what changed");
            }
        }
        let old = Checkpoint::scan(&files, Lsn(1), digests.clone()).unwrap();
        let refused = repository.put(&old, &Progress::new()).await;
        assert!(
            matches!(refused, Err(Error::Superseded { .. })),
            "{refused:?}"
        );

        let root = repository.root().await.unwrap();
        assert_eq!(root.retained_snapshots.len(), 2);
        assert!(root.intents.len() + root.pins.len() == 0, "{root:?}");
        let found = repository.verify(true, &Progress::new()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.damaged);

        let to = dir.path().join(format!("restored-{partition}"));
        let restored = repository
            .restore(&Which::Newest, &to, &Progress::new())
            .await
            .unwrap();
        assert_eq!(restored.metadata().min_applied_lsn, Lsn(4));
        for name in ["000000.sst", "000001.sst", "000002.sst"] {
            assert_eq!(
                fs::read(files.join(name)).unwrap(),
                fs::read(to.join(name)).unwrap()
            );
        }
        // Two concurrent puts: of two swaps from one version only one succeeds, and the other put retries.
        let five = Checkpoint::scan(&files, Lsn(5), digests.clone()).unwrap();
        let six = Checkpoint::scan(&files, Lsn(6), digests.clone()).unwrap();
        let progress = Progress::new();
        let (a, b) = tokio::join!(
            repository.put(&five, &progress),
            repository.put(&six, &progress)
        );
        assert!(
            a.is_ok() || matches!(a, Err(Error::Superseded { .. })),
            "{a:?}"
        );
        b.unwrap();
        let swept = repository.sweep().await.unwrap();
        assert_eq!(swept.failed, 0);
        let found = repository.verify(true, &Progress::new()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.damaged);
    }
}
