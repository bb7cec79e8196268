//! Good appends in every form, read back in every form, also while they are made.

use std::sync::Arc;

use axum::body::Body;
use http::Method;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use s2_api::v1::stream::proto::{self, AppendAck};
use s2_api::v1::stream::s2s::CompressionAlgorithm;

use crate::appends::{self, BodyForm};
use crate::framing::check_ack;
use crate::generate::{self, now_ms};
use crate::model::{Batch, Between};
use crate::mutate::{self, Arrival};
use crate::reading::{self, FORMS, Form};
use crate::run::Lane;
use crate::wire::{self, SessionAnswer};

/// What the cases must have brought about.
pub const MUST_HAPPEN: &[&str] = &["appended one by one", "appended in a session", "followed"];

/// Some batches that will be appended, whatever else happens.
fn good_batches(lane: &mut Lane, at: usize, count: usize) -> Vec<Batch> {
    let mut stream = lane.streams[at].clone();
    let mut batches = Vec::new();
    while batches.len() < count {
        let batch = generate::batch(&mut lane.rng, &stream);
        let now = now_ms();
        if batch.is_valid() && stream.append(&batch, Between(now, now)).is_ok() {
            batches.push(batch);
        }
    }
    batches
}

/// Appends one good batch.
pub async fn append_batch(lane: &mut Lane, at: usize) {
    let before = lane.streams[at].tail();
    let batches = good_batches(lane, at, 1);
    one_by_one(lane, at, &batches).await;
    let Lane {
        world,
        basin,
        streams,
        ..
    } = lane;
    reading::check_from(world, basin, &mut streams[at], before, Form::Proto).await;
}

/// Some appends, a follower meanwhile, and all of the forms afterwards.
pub async fn case(lane: &mut Lane) {
    let at = lane.any_stream();
    let before = lane.streams[at].tail();
    let count = lane.rng.random_range(1..6);
    let batches = good_batches(lane, at, count);
    let records: usize = batches.iter().map(|batch| batch.records.len()).sum();
    let sessions = FORMS.map(|form| form.is_session().then_some(form));
    let sessions: Vec<Form> = sessions.into_iter().flatten().collect();
    let form = *sessions.choose(&mut lane.rng).unwrap();
    // A trim on the way takes records from under a follower who lags: those must not be due.
    let trims = batches.iter().flat_map(|batch| &batch.records);
    let trims = trims
        .filter(|record| record.command() == Some(b"trim"))
        .count();
    let follower = (trims == 0).then(|| {
        let name = &lane.streams[at].name;
        let query = format!("seq_num={before}&count={records}&wait=60");
        let request = reading::request(&lane.basin, name, &query, form);
        let world = Arc::clone(&lane.world);
        tokio::spawn(async move {
            let read = reading::read_some(&world, request, form, 0, records, false).await;
            assert_eq!(read.fault, None);
            read
        })
    });
    if lane.rng.random() {
        one_by_one(lane, at, &batches).await;
        lane.count("appended one by one");
    } else {
        in_a_session(lane, at, &batches).await;
        lane.count("appended in a session");
    }
    let followed = match follower {
        Some(follower) => Some(match follower.await {
            Ok(read) => read,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }),
        None => None,
    };
    for form in FORMS {
        let Lane {
            world,
            basin,
            streams,
            ..
        } = lane;
        reading::check_from(world, basin, &mut streams[at], before, form).await;
    }
    if let Some(followed) = followed {
        let stream = &lane.streams[at];
        let due = &stream.kept[before as usize..];
        assert_eq!(followed.records.len(), due.len(), "followed as {form:?}");
        for (seen, kept) in followed.records.iter().zip(due) {
            seen.check(kept, form);
            assert_eq!(seen.timestamp, kept.known_timestamp(), "followed");
        }
        lane.count("followed");
    }
}

/// Each in a form of its own.
async fn one_by_one(lane: &mut Lane, at: usize, batches: &[Batch]) {
    let path = format!("{}/records", reading::stream_path(&lane.streams[at].name));
    for batch in batches {
        let form = BodyForm::any(&mut lane.rng, batch);
        let mut request = lane.request(Method::POST, &path);
        for (name, value) in form.headers() {
            request = request.header(*name, *value);
        }
        let body = mutate::body(&mut lane.rng, &form.write(batch), Arrival::Whole);
        let before = now_ms();
        let answer = lane.world.send(request.body(body).unwrap()).await;
        assert_eq!(answer.status, 200, "{:?} to {form:?}", answer.fault());
        let stream = &mut lane.streams[at];
        stream.append(batch, Between(before, now_ms())).unwrap();
        check_ack(stream, batch, &appends::ack(&answer));
    }
}

/// All in one session, each compressed in a way of its own.
async fn in_a_session(lane: &mut Lane, at: usize, batches: &[Batch]) {
    let path = format!("{}/records", reading::stream_path(&lane.streams[at].name));
    let mut bytes = Vec::new();
    for batch in batches {
        let compression = [
            CompressionAlgorithm::None,
            CompressionAlgorithm::Gzip,
            CompressionAlgorithm::Zstd,
        ];
        let compression = *compression.choose(&mut lane.rng).unwrap();
        bytes.extend(wire::framed(compression, &proto::AppendInput::from(batch)));
    }
    let body: Body = mutate::body(&mut lane.rng, &bytes, Arrival::Whole);
    let request = lane
        .request(Method::POST, &path)
        .header("content-type", "s2s/proto")
        .body(body)
        .unwrap();
    let before = now_ms();
    let answer = lane.world.send(request).await;
    let arrival = Between(before, now_ms());
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = SessionAnswer::<AppendAck>::parse(&answer.body);
    assert_eq!(answer.fault, None, "a good session failed");
    assert_eq!(answer.messages.len(), batches.len());
    let stream = &mut lane.streams[at];
    for (batch, ack) in batches.iter().zip(&answer.messages) {
        stream.append(batch, arrival).unwrap();
        check_ack(stream, batch, ack);
    }
}
