//! Names of streams, in paths, bodies and lists; and what goes with making them.

use axum::body::Body;
use http::{Method, Request, Uri};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use s2_api::v1::error::ErrorCode;
use serde_json::json;

use crate::appends;
use crate::appends::BodyForm;
use crate::framing::check_ack;
use crate::generate::{self, now_ms, once_in};
use crate::model::{Between, Stream, Timestamping};
use crate::mutate;
use crate::reading::{self, Form};
use crate::run::Lane;
use crate::wire::{Fault, percent_encoded};

/// What the cases must have brought about.
pub const MUST_HAPPEN: &[&str] = &[
    "name kept",
    "name refused",
    "path refused",
    "settings taken",
    "settings refused",
];

/// Longest name, bytes.
const NAME_BYTES: usize = 512;

/// One name, one path or one change of settings.
pub async fn case(lane: &mut Lane) {
    match lane.rng.random_range(0..4) {
        0 | 1 => name(lane).await,
        2 => path(lane).await,
        _ => settings(lane).await,
    }
}

fn any_name(rng: &mut impl Rng) -> Vec<u8> {
    match rng.random_range(0..16) {
        0 => b".".to_vec(),
        1 => b"..".to_vec(),
        2 => b"../../../etc/passwd".to_vec(),
        3 => b"a\0b".to_vec(),
        4 => b"\xff\xfe".to_vec(),
        5 => b"%2f%00".to_vec(),
        6 => vec![b'n'; NAME_BYTES + rng.random_range(0..2)],
        7 => generate::bytes(rng, 12),
        8 => generate::text(rng, NAME_BYTES).into_bytes(),
        _ => generate::text(rng, 24).into_bytes(),
    }
}

/// A stream of any name: made by an append, listed, read and deleted under it.
async fn name(lane: &mut Lane) {
    let name = any_name(&mut lane.rng);
    let text = std::str::from_utf8(&name).ok();
    let good =
        text.filter(|n| !["", ".", ".."].contains(n) && !n.contains('\0') && n.len() <= NAME_BYTES);
    let mut stream = Stream::new(good.unwrap_or("-"), Timestamping::ClientPrefer, false);
    let mut batch = generate::batch(&mut lane.rng, &stream);
    (batch.match_seq_num, batch.fencing_token) = (Some(0), None);
    let form = BodyForm::any(&mut lane.rng, &batch);
    let path = format!("/v1/streams/{}/records", percent_encoded(&name));
    let mut request = lane.request(Method::POST, &path);
    for (header, value) in form.headers() {
        request = request.header(*header, *value);
    }
    let before = now_ms();
    let request = request.body(Body::from(form.write(&batch))).unwrap();
    let answer = lane.world.send(request).await;
    let Some(good) = good else {
        assert_eq!(answer.fault(), Fault::Code(ErrorCode::BadPath), "{name:?}");
        lane.count("name refused");
        return;
    };
    assert_eq!(answer.status, 200, "{:?} to {good:?}", answer.fault());
    stream.append(&batch, Between(before, now_ms())).unwrap();
    check_ack(&mut stream, &batch, &appends::ack(&answer));
    let form = Form::any(&mut lane.rng);
    reading::check_from(&lane.world, &lane.basin, &mut stream, 0, form).await;
    assert_eq!(listed(lane, good).await, [good]);
    let path = reading::stream_path(good);
    let request = lane.request(Method::DELETE, &path).body(Body::empty());
    assert_eq!(lane.world.send(request.unwrap()).await.status, 202);
    assert_eq!(listed(lane, good).await, [""; 0]);
    lane.count("name kept");
}

/// The streams whose names begin like this; the case takes care that there is one at most.
async fn listed(lane: &Lane, name: &str) -> Vec<String> {
    let path = format!("/v1/streams?prefix={}", percent_encoded(name.as_bytes()));
    let request = lane.request(Method::GET, &path).body(Body::empty());
    let answer = lane.world.send(request.unwrap()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let listed = &answer.json()["streams"];
    let names = listed.as_array().unwrap().iter();
    let names = names.map(|stream| stream["name"].as_str().unwrap().to_owned());
    // One of the lane's own may begin like a short name.
    names
        .filter(|listed| lane.streams.iter().all(|own| own.name != *listed))
        .collect()
}

/// A path that is nearly one of the API's, with any method.
async fn path(lane: &mut Lane) {
    const PATHS: &[&str] = &[
        "/v1/streams/s/records",
        "/v1/streams/s/records/tail",
        "/v1/streams/s",
        "/v1/streams",
        "/v1/basins",
        "/v1/basins/b",
        "/v1/streams/%/records",
        "/v1/streams/%f/records",
        "/v1/streams//records",
        "/v1/streams?limit=1",
        "/health",
    ];
    let rng = &mut lane.rng;
    let mut path = (*PATHS.choose(rng).unwrap()).to_owned();
    let times = rng.random_range(0..4);
    mutate::text(rng, &mut path, times);
    let method = ["GET", "PUT", "PATCH", "HEAD", "OPTIONS", "BREW"].choose(rng);
    let method = Method::from_bytes(method.unwrap().as_bytes()).unwrap();
    let Ok(uri) = path.parse::<Uri>() else {
        return;
    };
    // A basin that there is not: whatever is asked for changes nothing.
    let request = Request::builder()
        .method(method.clone())
        .uri(uri)
        .header("s2-basin", "no-such-basin")
        .body(Body::empty())
        .unwrap();
    let answer = lane.world.send(request).await;
    if answer.status == 200 {
        lane.count("path answered");
        return;
    }
    // What is not implemented says so.
    let allowed = (400..500).contains(&answer.status) || answer.status == 501;
    assert!(allowed, "{method} {path}: {answer:?}");
    if method != Method::HEAD && answer.status != 405 {
        let _ = answer.fault();
    }
    lane.count("path refused");
}

/// Settings as JSON, good and not so good, for a stream or a basin of their own.
async fn settings(lane: &mut Lane) {
    let rng = &mut lane.rng;
    let age = generate::number(rng, 600);
    let empty = generate::number(rng, 600);
    let mode = ["client-prefer", "client-require", "arrival", "Arrival"].choose(rng);
    let config = json!({
        "retention_policy": match rng.random() {
            true => json!({ "age": age }),
            false => json!({ "infinite": {} }),
        },
        "timestamping": {"mode": mode, "uncapped": rng.random::<bool>()},
        "delete_on_empty": { "min_age_secs": empty },
    });
    let (seed, case) = lane.place;
    let basin = once_in(rng, 4);
    let (name, things, field, config) = match basin {
        true => {
            let config = json!({"default_stream_config": config, "create_stream_on_read": true});
            (format!("fuzz-{seed}-{case}"), "/v1/basins", "basin", config)
        }
        false => (
            format!("settings/{seed}/{case}"),
            "/v1/streams",
            "stream",
            config,
        ),
    };
    let path = |name: &str| format!("{things}/{}", percent_encoded(name.as_bytes()));
    let (method, to, json) = match rng.random_range(0..3) {
        0 => (
            Method::POST,
            things.to_owned(),
            json!({field: name, "config": config}),
        ),
        1 if basin => (Method::PUT, path(&name), json!({ "config": config })),
        1 => (Method::PUT, path(&name), config),
        _ => (Method::PATCH, path(&name), config),
    };
    let mut text = json.to_string();
    if once_in(rng, 2) {
        let times = rng.random_range(1..3);
        mutate::text(rng, &mut text, times);
    }
    let what = format!("{method} {to} {text}");
    let request = lane
        .request(method, &to)
        .header("content-type", "application/json")
        .body(Body::from(text))
        .unwrap();
    let answer = lane.world.send(request).await;
    match answer.status {
        200 | 201 => lane.count("settings taken"),
        400..500 => {
            let _ = answer.fault();
            lane.count("settings refused");
            return;
        }
        other => panic!("{other} to {what}: {answer:?}"),
    }
    // What was made goes again; its name may have changed on the way.
    let made = answer.json()["name"].as_str().unwrap().to_owned();
    let request = lane.request(Method::DELETE, &path(&made));
    let answer = lane.world.send(request.body(Body::empty()).unwrap()).await;
    // It may have been empty for too long already.
    assert!([202, 404].contains(&answer.status), "{made}: {answer:?}");
}
