//! A full disk: what is refused, what is kept, and the return to service.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use serde_json::json;

use crate::recovery::runbook::expect_problems;
use crate::small_disk::{
    Filled, SmallDisk, append, append_at_last, complete, durable, fill, leave, small, small_prompt,
};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{SOON, Setup, eventually, in_time};

const MIB: u64 = 1024 * 1024;
const RECORDS: &str = "/v1/streams/orders/records";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_appends_and_nothing_else_and_service_resumes_by_itself() {
    let Some(disk) = SmallDisk::mount(40) else {
        return;
    };
    // Once by enlarging the disk, once by freeing space.
    for (round, ballast) in [false, true].into_iter().enumerate() {
        let data_dir = disk.path(&format!("data-{round}"));
        let ballast_file = disk.path("ballast");
        if ballast {
            disk.resize(80);
            fs::write(&ballast_file, vec![1; 30 << 20]).unwrap();
        }
        let mut server = small().start(&data_dir).await;
        let basin = sdk::basin(&server.sdk(), "test-basin").await;
        let stream = sdk::stream(&basin, "orders").await;
        let http = server.http2();
        let mut filled = fill(&http).await;
        assert!(filled.acked.len() > 20, "{}", filled.acked.len());

        // Reads continue, and health names the cause.
        let last = filled.acked.last().unwrap().1;
        let read = stream.read(sdk::from_seq(last, 1)).await.unwrap();
        assert_eq!(read.records[0].seq_num, last);
        assert!(stream.check_tail().await.unwrap().seq_num > last);
        assert!(filled.health.contains("disk"), "{}", filled.health);
        basin
            .get_stream_config(stream_name("orders"))
            .await
            .unwrap();
        let mut not_ready = None;
        for attempt in 0..20 {
            let path = format!("/v1/streams/another-{attempt}");
            let answer = http.put(&path).basin("test-basin").send().await;
            if answer.status == 201 {
                // A little space was free again.
                filled.fill(&http).await;
                continue;
            }
            // The official clients wait for so long.
            assert_eq!(answer.header("retry-after-ms"), Some("1000"));
            answer.refused(429, "rate_limited");
            let ready = http.get("/health/ready").send().await;
            if ready.status == 503 {
                not_ready = Some(ready.json());
                break;
            }
            // The same, in between.
            filled.fill(&http).await;
        }
        let ready = not_ready.expect("no stream is created on a full disk, and it is not ready");
        assert_eq!(ready["status"], "not_ready");
        let code = ready["reasons"][0]["code"].as_str().unwrap();
        assert!(["disk_full", "writes_refused"].contains(&code), "{code}");
        // A restart would not help.
        http.get("/health/live").send().await.expect(200);
        let Filled {
            mut acked, unknown, ..
        } = filled;

        if ballast {
            fs::remove_file(&ballast_file).unwrap();
        } else {
            disk.resize(80);
        }
        eventually("health is back", async || {
            let health = http.get("/health").send().await;
            (health.status == 200).then_some(())
        })
        .await;
        acked.push((100_000, append_at_last(&http, 100_000).await));
        complete(&stream, &acked, &unknown).await;
        // These servers have their repository on the same disk, and retain one snapshot.
        let advice = ["one_snapshot_retained", "repository_on_this_disk"];
        expect_problems(&server, &advice, "space again").await;

        server.kill();
        server.restart(&small()).await;
        let stream = server
            .sdk()
            .basin(basin_name("test-basin"))
            .stream(stream_name("orders"));
        complete(&stream, &acked, &unknown).await;
        expect_problems(&server, &advice, "started again").await;
        server.stop().await;
        fs::remove_dir_all(&data_dir).unwrap();
        disk.resize(40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_on_a_full_disk_has_everything_when_there_is_space_again() {
    let Some(disk) = SmallDisk::mount(32) else {
        return;
    };
    let data_dir = disk.path("data");
    let mut server = small().start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let Filled { acked, unknown, .. } = fill(&server.http2()).await;
    server.kill();
    // On the full disk the server may serve or refuse to start, but it must not lose anything.
    small()
        .start_and_kill(&data_dir, Duration::from_millis(700))
        .await;
    disk.resize(96);
    server.restart(&small()).await;
    let stream = server
        .sdk()
        .basin(basin_name("test-basin"))
        .stream(stream_name("orders"));
    complete(&stream, &acked, &unknown).await;
    sdk::append(&stream, [format!("{} x", 100_000)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_a_stop_gives_up_on_a_full_disk_is_not_called_harmless() {
    // Whether an append is under way when the disk becomes full is random, but likely.
    in_time("an append under way on a full disk", async |_| {
        let Some(disk) = SmallDisk::mount(32) else {
            return Ok(());
        };
        match given_up_by_a_stop(&disk).await {
            0 => Err("nothing was under way".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// The number of appends that a stop left with an unknown outcome.
async fn given_up_by_a_stop(disk: &SmallDisk) -> usize {
    let setup = small().set("shutdown-grace=1s");
    let data_dir = disk.path("data");
    let mut server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let http = &http;
    let taken = &AtomicU64::new(0);
    // Several appends at once: those that are under way when the disk is found full wait. The disk is filled
    // at once and not by the appends, because those would be refused before.
    let appends = (0..6).map(|client| async move {
        let mut last = None;
        for i in 0..1000 {
            let body = format!("{} {}", client * 1000 + i, "x".repeat(100_000));
            let answer = http
                .post(RECORDS)
                .basin("test-basin")
                .json(&json!({"records": [{"body": body}]}))
                .try_send()
                .await;
            match answer {
                Ok(answer) if answer.status == 200 => {
                    taken.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) if answer.status == 429 => {
                    // The other appends wait now.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => {
                    last = Some(other);
                    break;
                }
            }
        }
        last
    });
    let stop = async {
        eventually("appends are under way", async || {
            (taken.load(Ordering::Relaxed) >= 6).then_some(())
        })
        .await;
        // The server is stopped meanwhile, so that it finds the disk full and does not observe how it fills
        // up.
        server.signal(Signal::STOP);
        let mut ballast = fs::File::create(disk.path("ballast")).unwrap();
        while std::io::Write::write_all(&mut ballast, &[1; 16 * 1024]).is_ok() {}
        server.signal(Signal::CONT);
        eventually("the disk is full", async || {
            let health = server.http1().get("/health").send().await;
            (health.status == 503).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.stop().await;
    };
    let (ends, ()) = tokio::join!(futures::future::join_all(appends), stop);
    let mut unknown = 0;
    for end in ends.into_iter().flatten() {
        match end {
            // The append was refused because the server stops: it was not under way.
            Ok(answer) if answer.status == 503 => {
                assert_eq!(answer.code(), "server_draining");
            }
            Ok(answer) => {
                answer.refused(500, "other");
                unknown += 1;
            }
            // Without an answer, the outcome is unknown, too.
            Err(_) => unknown += 1,
        }
    }
    unknown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_flushed_also_while_appends_wait_for_a_log_that_cannot_be_trimmed() {
    let setup = Setup::default()
        .partitions(1)
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=4MiB")
        .set("snapshots.max-log-bytes=4MiB")
        .set("log.flush-after=1MiB");
    let server = setup.start_fresh().await;
    // No local snapshot can be taken, so the log is needed.
    let checkpoints = server.data_dir().join("checkpoints");
    eventually(
        "one that is under way has its directory no more",
        async || {
            let _ = fs::remove_dir_all(&checkpoints);
            fs::write(&checkpoints, "not a directory").ok()
        },
    )
    .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let mut refused = 0;
    for number in 0..500 {
        let answer = append(&http, number, 100_000, SOON).await.unwrap();
        refused = refused * usize::from(answer.status != 200) + usize::from(answer.status != 200);
        if refused == 2 {
            break;
        }
    }
    assert_eq!(refused, 2, "the log was never full");
    eventually("what is applied is in files", async || {
        let status = http.get("/esker/v1/status").send().await.expect(200).json();
        let (durable, applied) = durable(&status, 1);
        (applied > 20 && durable == applied).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_on_a_nearly_full_disk_can_be_trimmed_and_appends_are_taken_again() {
    let Some(disk) = SmallDisk::mount(128) else {
        return;
    };
    let data_dir = disk.path("data");
    // Fewer files than are merged, and a reserve of 4 MiB.
    let setup = small_prompt();
    let server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    for number in 0..200 {
        let answer = append(&http, number, 100_000, SOON).await.unwrap();
        answer.expect(200);
    }
    eventually("what is applied is in files", async || {
        let status = http.get("/esker/v1/status").send().await.expect(200).json();
        let (durable, applied) = durable(&status, 1);
        (durable == applied).then_some(())
    })
    .await;
    eventually("appends are refused", async || {
        // Files that were merged meanwhile free space.
        leave(&disk, 5 * MIB / 2, 4 * MIB);
        let answer = append(&http, 1000, 10, SOON).await.unwrap();
        (answer.status == 429 && answer.text().contains("bytes free")).then_some(())
    })
    .await;

    let tail = stream.check_tail().await.unwrap().seq_num;
    let trim: AppendRecord = CommandRecord::trim(tail).into();
    let batch = AppendRecordBatch::try_from_iter([trim]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    eventually("appends are taken again", async || {
        let answer = append(&http, 100_000, 100_000, SOON).await.unwrap();
        (answer.status == 200).then_some(())
    })
    .await;
}
