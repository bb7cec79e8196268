//! The runbook's answers of disks that are full or hang. Its other commands are run by
//! `tests/cli/transcripts.rs`, which has no such disks.

use std::path::Path;

use crate::small_disk::{SmallDisk, small};
use crate::support::eventually;

const RUNBOOK: &str = include_str!("../../docs/operating/recovery.md");

/// A text with every number as `0`.
fn without_numbers(text: &str) -> String {
    let mut shaped = String::new();
    for c in text.chars() {
        match c.is_ascii_digit() {
            true if shaped.ends_with('0') => {}
            true => shaped.push('0'),
            false => shaped.push(c),
        }
    }
    shaped
}

/// Asserts that the runbook has a line with this answer of a server with this data directory.
pub fn assert_shown(answer: &str, data_dir: &Path) {
    let answer = answer.replace(&data_dir.display().to_string(), "data");
    let answer = without_numbers(&answer);
    let shown = RUNBOOK.lines().any(|line| without_numbers(line) == answer);
    assert!(shown, "docs/operating/recovery.md has no line {answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_runbook_shows_of_a_full_disk_is_what_is_answered() {
    let Some(disk) = SmallDisk::mount(64) else {
        return;
    };
    let data_dir = disk.path("data");
    let server = small().start(&data_dir).await;
    let health = eventually("health names the disk", async || {
        // The server removes files of its start after the first time.
        disk.fill_up();
        let health = server.http2().get("/health").send().await;
        (health.status == 503).then(|| health.text())
    })
    .await;
    assert_shown(&health, &data_dir);
}
