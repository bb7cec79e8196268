//! A disk without a free byte: operations that free space work, and everything else is refused with the
//! cause.
//!
//! See [`disk`](crate::disk) for the small file systems.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use s2_sdk::S2Stream;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, DeleteStreamInput,
};

use crate::small_disk::{SmallDisk, append, durable, noise, small, small_prompt};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Http, SOON, Server, eventually, in_time};

/// How long the official clients wait for an answer.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Appends this many batches of 100,000 bytes.
async fn grow(stream: &S2Stream, batches: usize) {
    for number in 0..batches {
        sdk::append(stream, [noise(number as u64, 100_000)]).await;
    }
}

/// Trims a stream to `point`, with this many commands at once.
async fn trim(stream: &S2Stream, point: u64, commands: usize) {
    let record = || AppendRecord::from(CommandRecord::trim(point));
    let batch = AppendRecordBatch::try_from_iter((0..commands).map(|_| record())).unwrap();
    let appended = stream.append(AppendInput::new(batch));
    let appended = tokio::time::timeout(WAIT_TIMEOUT, appended).await;
    appended.expect("an answer while clients wait").unwrap();
}

async fn metric(http: &Http, name: &str) -> f64 {
    let metrics = http.get("/metrics").send().await.expect(200).text();
    let line = metrics.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("there is no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn reserve_is_there(http: &Http) {
    eventually("the reserve is taken", async || {
        (metric(http, "esker_reserve_bytes").await > 0.0).then_some(())
    })
    .await;
}

async fn everything_is_in_files(http: &Http) {
    eventually("what is applied is in files", async || {
        let status = http.get("/esker/v1/status").send().await.expect(200).json();
        let (durable, applied) = durable(&status, 1);
        (durable == applied).then_some(())
    })
    .await;
}

async fn appends_are_taken(http: &Http) {
    eventually("appends are taken again", async || {
        let answer = append(http, 100_000, 100_000, SOON).await.unwrap();
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_streams_are_trimmed_and_deleted_and_appends_are_taken_again() {
    let Some(disk) = SmallDisk::mount(128) else {
        return;
    };
    let setup = small_prompt();
    let data_dir = disk.path("data");
    let server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    // The file that fills the disk stays: all space that is freed is that of the streams.
    for round in 0..2 {
        let other = sdk::stream(&basin, &format!("other-{round}")).await;
        grow(&other, 60).await;
        grow(&stream, 60).await;
        everything_is_in_files(&http).await;
        reserve_is_there(&http).await;
        let released = metric(&http, "esker_reserve_released_total").await;
        disk.fill_up();

        // More than the log has reserved in its current file.
        let tail = stream.check_tail().await.unwrap().seq_num;
        for _ in 0..50 {
            trim(&stream, tail, 1000).await;
        }
        let name = stream_name(&format!("other-{round}"));
        let deleted = basin.delete_stream(DeleteStreamInput::new(name));
        let deleted = tokio::time::timeout(WAIT_TIMEOUT, deleted).await;
        deleted.expect("an answer while clients wait").unwrap();
        appends_are_taken(&http).await;
        reserve_is_there(&http).await;
        assert!(metric(&http, "esker_reserve_released_total").await > released);
        eventually("health is back", async || {
            let health = http.get("/health").send().await;
            (health.status == 200).then_some(())
        })
        .await;
        disk.clear();
    }
}

#[tokio::test]
async fn a_reserve_that_somebody_removed_or_that_is_to_have_another_size_is_put_right() {
    const MIB: f64 = 1024.0 * 1024.0;
    let mut server = small().start_fresh().await;
    let holds = async |server: &Server, bytes: f64| {
        let http = server.http1();
        let what = format!("the reserve has {bytes} bytes");
        eventually(&what, async || {
            let file = fs::metadata(server.data_dir().join("reserve")).ok()?;
            let known = metric(&http, "esker_reserve_bytes").await;
            (file.len() as f64 == bytes && known == bytes).then_some(())
        })
        .await;
    };
    // Two memtables.
    holds(&server, 2.0 * MIB).await;
    fs::remove_file(server.data_dir().join("reserve")).unwrap();
    holds(&server, 2.0 * MIB).await;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(server.data_dir().join("reserve"));
    file.unwrap().set_len(1000).unwrap();
    holds(&server, 2.0 * MIB).await;
    for (setting, bytes) in [("2MiB", 4.0 * MIB), ("1MiB", 2.0 * MIB)] {
        server.stop().await;
        let setup = small().set(&format!("store.write-buffer={setting}"));
        server.restart(&setup).await;
        holds(&server, bytes).await;
    }
    assert_eq!(
        metric(&server.http1(), "esker_reserve_released_total").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_on_a_full_disk_starts_there_and_streams_can_be_trimmed() {
    let Some(disk) = SmallDisk::mount(128) else {
        return;
    };
    let setup = small().set("snapshots.snapshot-interval=1h");
    let data_dir = disk.path("data");
    let mut server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    grow(&stream, 150).await;
    reserve_is_there(&server.http2()).await;
    server.kill();
    disk.fill_up();
    server.restart(&setup).await;
    server.logged("the reserve is released for the start").await;
    let basin = server.sdk().basin(basin_name("test-basin"));
    let stream = basin.stream(stream_name("orders"));
    let tail = stream.check_tail().await.unwrap().seq_num;
    assert_eq!(tail, 150);
    trim(&stream, tail, 1).await;
    let http = server.http2();
    appends_are_taken(&http).await;
    reserve_is_there(&http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_on_a_disk_that_becomes_full_are_answered_with_the_cause_while_clients_wait() {
    // Whether an append is under way when the disk becomes full is random, so several moments are tried. A
    // stall of the machine delays an answer.
    in_time(
        "an append under way on a full disk, and answers in time",
        async |_| {
            let mut result = Ok(());
            for moment in 0..12 {
                let Some(disk) = SmallDisk::mount(48) else {
                    return Ok(());
                };
                let after = Duration::from_millis(60 + 17 * moment);
                result = appends_are_answered_while_it_becomes_full(&disk, after).await;
                if result != Err(NOTHING_UNDER_WAY.to_owned()) {
                    break;
                }
            }
            result
        },
    )
    .await;
}

/// The reason for which a try shows nothing.
const NOTHING_UNDER_WAY: &str = "nothing was under way";

/// The disk becomes full this long after the start of the appends.
async fn appends_are_answered_while_it_becomes_full(
    disk: &SmallDisk,
    after: Duration,
) -> Result<(), String> {
    let server = small().start(&disk.path("data")).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let http = &http;
    // The disk is filled at once and not by the appends, because those would be refused before.
    let appends = (0..6).map(|client| async move {
        let mut refused = Vec::new();
        for i in 0..2000 {
            let answer = append(http, client * 10_000 + i, 100_000, WAIT_TIMEOUT).await;
            let answer = answer.ok_or("no answer while clients wait")?;
            if answer.status != 200 {
                refused.push((answer.status, answer.code(), answer.text()));
            }
            if refused.len() == 5 {
                break;
            }
        }
        Ok::<_, String>(refused)
    });
    let full = async {
        tokio::time::sleep(after).await;
        // The server is stopped meanwhile, so that it finds the disk full and does not observe how it fills
        // up.
        server.signal(Signal::STOP);
        disk.fill_up();
        server.signal(Signal::CONT);
    };
    let (refused, ()) = tokio::join!(futures::future::join_all(appends), full);
    let mut unknown = 0;
    let refused: Vec<_> = refused.into_iter().collect::<Result<_, String>>()?;
    for (status, code, text) in refused.into_iter().flatten() {
        assert!(
            text.contains("bytes free") || text.contains("No space left"),
            "{status}: {text}"
        );
        match status.as_u16() {
            429 => assert_eq!(code, "rate_limited"),
            // The append may still be written.
            500 => {
                assert_eq!(code, "other");
                unknown += 1;
            }
            other => panic!("{other}: {text}"),
        }
    }
    if unknown == 0 {
        return Err(NOTHING_UNDER_WAY.to_owned());
    }

    let cli = esker(&server, &["stream", "append", "test-basin/orders"]).await;
    assert!(cli.contains("error [rate_limited]"), "{cli}");
    assert!(cli.contains("bytes free"), "{cli}");
    let put = ["state", "put", "agent", "key", "{}"];
    let cli = esker(&server, &put).await;
    assert!(cli.contains("error [unavailable]"), "{cli}");
    assert!(cli.contains("bytes free"), "{cli}");
    Ok(())
}

/// Runs a command with a line as its input; it has to end within the time that a person waits. Returns its
/// standard error.
async fn esker(server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.args(args).args(["--server", server.url()]);
    let ran = tokio::task::spawn_blocking(move || {
        use std::process::Stdio;
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"line\n").unwrap();
        child.wait_with_output().unwrap()
    });
    let output = tokio::time::timeout(2 * WAIT_TIMEOUT, ran).await;
    let output = output.expect("it ends while a person waits").unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}
