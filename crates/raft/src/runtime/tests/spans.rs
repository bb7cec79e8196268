//! The spans and log lines of transfers.

use std::fmt::Debug;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::keeping::Member;
use super::*;
use crate::ids::CheckpointId;
use crate::message::{EndReason, Ended};

/// Spans that were opened, and log lines.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata
            .target()
            .starts_with("esker_raft::runtime::snapshot_sender")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line(span.metadata().name().to_owned());
        span.record(&mut line);
        self.0.lock().push(line.0);
        Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line("said:".to_owned());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Spans and log lines of a transfer to that node.
fn transfer(member: &Member, checkpoint: CheckpointId, to: u64) -> Vec<String> {
    let heard = Heard::default();
    tracing::subscriber::with_default(heard.clone(), || {
        member.fetch(to, checkpoint);
        member.fetch(to, checkpoint);
        let reason = EndReason::Installed;
        let ended = Ended { checkpoint, reason };
        member.sender.ended(NodeId(to), ended);
    });
    let heard = heard.0.lock();
    heard.clone()
}

#[test]
fn a_transfer_has_a_span_on_the_sending_side_and_one_only() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let checkpoint = member.snapshot(10);
    // What other tests make `tracing` meet for the first time just now may pass a new listener by.
    let heard = (2..20).map(|to| (to, transfer(&member, checkpoint, to)));
    let (to, heard) = { heard }.find(|(_, heard)| heard.len() == 3).unwrap();
    assert_eq!(
        heard,
        [
            format!("send group=1 checkpoint={checkpoint} to={to}"),
            "said: message=sending a snapshot total=1000".to_owned(),
            "said: message=nothing more is sent sent=100 total=1000".to_owned(),
        ]
    );
}
