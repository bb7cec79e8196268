//! `--inspect`: the snapshots of a stream.

use esker_follow::{Fold as _, Inspected, Inspection, Snapshots, Standing};
use serde::Serialize;
use time::OffsetDateTime;

use super::fold::Folded;
use super::progress::Records;
use super::server::Server;
use super::snapshot_args::SnapshotPlace;
use super::stop::Stop;
use super::{failure, report};
use crate::failure::Failure;
use crate::output::print;
use crate::snapshot_cmd::render::{counted, created, print_json, snapshots, table};
use crate::stream_cmd::target::StreamTarget;
use crate::term::{byte_rate, bytes, count, plain, rate, records, took};

/// The parameters of an inspection.
pub struct Asked<'a> {
    pub stream: &'a StreamTarget,
    /// The fold that is to restore a snapshot, if the arguments name one.
    pub fold: Option<&'a Folded>,
    pub json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    stream: String,
    head: u64,
    tail: u64,
    snapshots: Vec<Row<'a>>,
    left_out: u64,
    strays: u64,
    records_read: u64,
    bytes_read: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    inspected: &'a Inspected,
    /// About how long a recovery from it would take.
    recovery_seconds: Option<f64>,
}

pub async fn run(
    server: &Server,
    place: &SnapshotPlace,
    asked: &Asked<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let inspecting = async {
        let (endpoint, _) = server.open(asked.stream).await?;
        let mut bar = None;
        let progress = |position: u64, tail: u64| {
            bar.get_or_insert_with(|| Records::new(position, tail))
                .at(position);
        };
        let inspection = esker_follow::inspect(&endpoint, &place.snapshots, progress).await;
        if let Some(bar) = bar {
            bar.clear();
        }
        inspection.map_err(|e| failure::of(&e, server.address(), place.objects.as_ref()))
    };
    let inspection = tokio::select! {
        inspection = inspecting => inspection?,
        () = stop.asked() => {
            return Err(Failure::wrong("interrupted", "interrupted; nothing was changed"));
        }
    };
    if asked.json {
        return print_json(&document(&inspection, asked));
    }
    print(text(&inspection, place, asked).trim_end())
}

fn document<'a>(inspection: &'a Inspection, asked: &Asked<'_>) -> Document<'a> {
    let rows = inspection.snapshots.iter().map(|one| Row {
        inspected: one,
        recovery_seconds: inspection.recovery(one).map(|time| time.as_secs_f64()),
    });
    Document {
        stream: report::name(asked.stream),
        head: inspection.head,
        tail: inspection.tail,
        snapshots: rows.collect(),
        left_out: inspection.left_out,
        strays: inspection.strays,
        records_read: inspection.records,
        bytes_read: inspection.bytes,
        seconds: inspection.took.as_secs_f64(),
    }
}

fn text(inspection: &Inspection, place: &SnapshotPlace, asked: &Asked<'_>) -> String {
    let beside = match &place.objects {
        Some(_) => ", in it and beside it",
        None => "",
    };
    let mut text = format!(
        "{}: {}{beside}; head {}, tail {}; read {} ({}) in {}",
        asked.stream,
        snapshots(inspection.snapshots.len() as u64),
        inspection.head,
        inspection.tail,
        records(inspection.records),
        bytes(inspection.bytes),
        took(inspection.took),
    );
    // A prediction from a few records would mean nothing.
    if inspection.records >= 1000 {
        text += &format!(
            ", {}, {}",
            rate(inspection.records, inspection.took),
            byte_rate(inspection.bytes, inspection.took)
        );
    }
    text.push('\n');
    if !inspection.snapshots.is_empty() {
        let head = [
            "cursor",
            "kind",
            "place",
            "size",
            "taken (UTC)",
            "fold",
            "replay",
            "recovery",
            "state",
        ];
        let rows = inspection.snapshots.iter();
        let rows: Vec<_> = rows.map(|one| row(inspection, one, asked.fold)).collect();
        text.push('\n');
        text += &table(&head, &rows, &[0, 3, 6]);
    }
    for remark in remarks(inspection, place) {
        text += &format!("\n{remark}\n");
    }
    text
}

fn remarks(inspection: &Inspection, place: &SnapshotPlace) -> Vec<String> {
    let mut remarks = Vec::new();
    if inspection.left_out > 0 {
        remarks.push(format!(
            "{} older ones in the stream are not listed.",
            count(inspection.left_out)
        ));
    }
    if inspection.snapshots.iter().any(Inspected::is_usable) {
        remarks.push(
            "Recovery: reading the snapshot, and what is to be replayed, as fast as it was read now; \
             what the fold does with it comes on top."
                .to_owned(),
        );
    }
    if inspection.strays > 0 {
        remarks.push(format!(
            "{} of snapshots belong to none that is listed: their beginning is gone, or they make \
             no sense. They are passed over.",
            counted(inspection.strays, "record")
        ));
    }
    let is_usable = inspection.snapshots.iter().any(Inspected::is_usable);
    if !is_usable && inspection.head > 0 {
        let elsewhere = match place.snapshots {
            Snapshots::External(_) => "",
            _ => "; there may be some beside the stream (--snapshot external:URL)",
        };
        remarks.push(format!(
            "What was before {} is gone, and no snapshot here covers it{elsewhere}.",
            inspection.head
        ));
    }
    remarks
}

fn row(inspection: &Inspection, one: &Inspected, fold: Option<&Folded>) -> Vec<String> {
    let or_unknown = |known: Option<String>| known.unwrap_or_else(|| "?".to_owned());
    let info = &one.info;
    let taken_at = info.taken_at.and_then(|milliseconds| {
        let nanoseconds = i128::from(milliseconds) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
    });
    let of = one.fold.as_deref().map(|fold| match one.fold_version {
        Some(1) | None => plain(fold),
        Some(version) => format!("{}, version {version}", plain(fold)),
    });
    let kind = match info.anchored {
        true => format!("{}, anchored", info.kind),
        false => info.kind.to_string(),
    };
    let recovery = inspection.recovery(one).map(report::about);
    vec![
        info.cursor.to_string(),
        kind,
        plain(&info.place),
        bytes(info.bytes),
        or_unknown(taken_at.map(created)),
        or_unknown(of),
        count(one.replay),
        recovery.unwrap_or_else(|| "-".to_owned()),
        state(one, fold),
    ]
}

fn state(one: &Inspected, fold: Option<&Folded>) -> String {
    let is_other = |fold: &&Folded| {
        let is_newer = one.fold_version.is_some_and(|its| its > fold.version());
        one.fold.as_deref() != Some(fold.name()) || is_newer
    };
    match (&one.standing, fold.filter(is_other)) {
        (Standing::Whole, Some(_)) => "whole, of another fold".to_owned(),
        (Standing::Whole, None) => "whole".to_owned(),
        (Standing::Torn(why), _) => format!("torn: {}", plain(why)),
        (Standing::Damaged(why), _) => format!("damaged: {}", plain(why)),
        (Standing::Useless(why), _) => format!("of no use: {}", plain(why)),
    }
}
