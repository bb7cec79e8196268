//! JSON bodies of every operation that takes one, in the S2 API and the admin API, and tokens in headers.
//!
//! A body is changed in its structure (types, missing and unknown fields, nesting, numbers beyond every type)
//! or in its bytes. The server has to take it or to refuse it with an error of the API's form: nothing else may
//! fail, and nothing may panic. A request whose header has no valid token is refused before its body is read.

use axum::body::Body;
use http::{HeaderValue, Method};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};

use crate::generate::{self, once_in};
use crate::mutate;
use crate::run::Lane;
use crate::world::{Answer, ROOT_TOKEN};

/// What the cases must have brought about, beside what [`must_happen`] adds for each operation.
const MUST_HAPPEN: &[&str] = &[
    "body taken",
    "body refused",
    "admin body refused",
    "token issued",
    "no valid token",
    "root token in another form",
];

/// One case of so many has a random `authorization` header: most of these reach no parser of bodies.
const TOKEN_CASES: u32 = 6;

/// Levels of a body that is too deep for any parser.
const DEPTH: usize = 300;

/// An operation with a JSON body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    CreateBasin,
    EnsureBasin,
    ReconfigureBasin,
    CreateStream,
    EnsureStream,
    ReconfigureStream,
    Append,
    IssueToken,
    SetLocation,
    Verify,
    Prune,
    Adopt,
    TransferLeader,
    Trust,
}

const OPERATIONS: &[Operation] = &[
    Operation::CreateBasin,
    Operation::EnsureBasin,
    Operation::ReconfigureBasin,
    Operation::CreateStream,
    Operation::EnsureStream,
    Operation::ReconfigureStream,
    Operation::Append,
    Operation::IssueToken,
    Operation::SetLocation,
    Operation::Verify,
    Operation::Prune,
    Operation::Adopt,
    Operation::TransferLeader,
    Operation::Trust,
];

/// What the cases must have brought about: each operation's parser has taken a body, and refused one.
pub fn must_happen() -> Vec<String> {
    let fixed = MUST_HAPPEN.iter().map(|outcome| (*outcome).to_owned());
    let both = |operation: &Operation| [parsed(*operation, true), parsed(*operation, false)];
    fixed.chain(OPERATIONS.iter().flat_map(both)).collect()
}

/// The outcome of a body at its operation's parser.
fn parsed(operation: Operation, is_taken: bool) -> String {
    let outcome = if is_taken { "parsed" } else { "not parsed" };
    format!("{operation:?} {outcome}")
}

impl Operation {
    fn is_admin(self) -> bool {
        matches!(
            self,
            Operation::Verify
                | Operation::Prune
                | Operation::Adopt
                | Operation::TransferLeader
                | Operation::Trust
        )
    }

    /// Its route.
    fn route(self) -> (Method, &'static str) {
        match self {
            Operation::CreateBasin => (Method::POST, "/v1/basins"),
            Operation::EnsureBasin => (Method::PUT, "/v1/basins/{basin}"),
            Operation::ReconfigureBasin => (Method::PATCH, "/v1/basins/{basin}"),
            Operation::CreateStream => (Method::POST, "/v1/streams"),
            Operation::EnsureStream => (Method::PUT, "/v1/streams/{stream}"),
            Operation::ReconfigureStream => (Method::PATCH, "/v1/streams/{stream}"),
            Operation::Append => (Method::POST, "/v1/streams/{stream}/records"),
            Operation::IssueToken => (Method::POST, "/v1/access-tokens"),
            Operation::SetLocation => (Method::PUT, "/v1/locations/default"),
            Operation::Verify => (
                Method::POST,
                "/esker/v1/partitions/{partition}/snapshots/verify",
            ),
            Operation::Prune => (Method::POST, "/esker/v1/partitions/{partition}/prune"),
            Operation::Adopt => (Method::POST, "/esker/v1/basins/{basin}/adopt"),
            Operation::TransferLeader => (
                Method::POST,
                "/esker/v1/cluster/partitions/{partition}/leader",
            ),
            Operation::Trust => (
                Method::POST,
                "/esker/v1/cluster/partitions/{partition}/trust",
            ),
        }
    }

    /// A good body.
    fn body(self, rng: &mut impl Rng, basin: &str, stream: &str) -> Value {
        let config = json!({
            "storage_class": "express",
            "retention_policy": {"age": generate::number(rng, 600)},
            "timestamping": {"mode": "client-prefer", "uncapped": rng.random::<bool>()},
            "delete_on_empty": {"min_age_secs": generate::number(rng, 600)},
        });
        let of_basin = json!({
            "default_stream_config": config,
            "stream_cipher": null,
            "create_stream_on_append": rng.random::<bool>(),
            "create_stream_on_read": true,
        });
        match self {
            Operation::CreateBasin => json!({"basin": basin, "config": of_basin}),
            Operation::EnsureBasin => json!({"config": of_basin}),
            Operation::ReconfigureBasin => of_basin,
            Operation::CreateStream => json!({"stream": stream, "config": config}),
            Operation::EnsureStream | Operation::ReconfigureStream => config,
            Operation::Append => json!({
                "records": [
                    {"body": generate::text(rng, 24), "headers": [["name", "value"]]},
                    {"timestamp": generate::now_ms(), "body": ""},
                ],
                "match_seq_num": null,
                "fencing_token": null,
            }),
            Operation::IssueToken => json!({
                "id": format!("{basin}-token"),
                "expires_at": "2199-01-01T00:00:00Z",
                "auto_prefix_streams": true,
                "scope": {
                    "basins": {"prefix": basin},
                    "streams": {"prefix": "bodies/"},
                    "access_tokens": {"exact": "none"},
                    "op_groups": {"stream": {"read": true, "write": false}},
                    "ops": ["read", "list-streams"],
                    "state": {"namespaces": {"exact": "default"}, "agents": {"prefix": "a"}, "read": true},
                    "admin": {"read": true, "write": false},
                },
            }),
            Operation::SetLocation => match rng.random() {
                true => json!("aws:us-east-1"),
                false => json!("fuzz:local"),
            },
            Operation::Verify => json!({"data": rng.random::<bool>()}),
            Operation::Prune => json!({
                "apply": false,
                "generation": generate::number(rng, 10),
                "keep": 1 + rng.random_range(0..3),
                "abandoned": rng.random::<bool>(),
                "min_age_seconds": 3600.5,
            }),
            // No basin has an id this high.
            Operation::Adopt => json!({"id": u64::MAX - rng.random_range(0..9)}),
            // The server is in no cluster.
            Operation::TransferLeader => json!({"to": "n1"}),
            Operation::Trust => json!({"node": "n1"}),
        }
    }
}

/// One body.
pub async fn case(lane: &mut Lane) {
    let (seed, case) = lane.place;
    let (basin, stream) = (
        format!("bodies-{seed}-{case}"),
        format!("bodies/{seed}/{case}"),
    );
    let rng = &mut lane.rng;
    let operation = *OPERATIONS.choose(rng).unwrap();
    let mut body = operation.body(rng, &basin, &stream);
    for _ in 0..rng.random_range(0..3) {
        change(rng, &mut body);
    }
    let mut bytes = body.to_string().into_bytes();
    match rng.random_range(0..8) {
        0 => mutate::bytes(rng, &mut bytes, 2),
        1 => bytes = [b"[".repeat(DEPTH), bytes, b"]".repeat(DEPTH)].concat(),
        _ => {}
    }
    let (method, route) = operation.route();
    let path = route
        .replace("{basin}", &basin)
        .replace("{stream}", &stream.replace('/', "%2F"))
        .replace("{partition}", ["0", "1", "3", "4"].choose(rng).unwrap());
    let token = once_in(rng, TOKEN_CASES).then(|| token(rng));
    let what = format!("{method} {path} {token:?} {}", bytes.escape_ascii());
    let mut request = lane
        .request(method, &path)
        .header("content-type", "application/json");
    let is_valid = token.as_ref().is_none_or(|(_, is_valid)| *is_valid);
    if let Some((header, _)) = token {
        request = request.header("authorization", header);
        if is_valid {
            lane.count("root token in another form");
        }
    }
    let issued = issued_id(operation, &bytes);
    let answer = lane
        .world
        .send(request.body(Body::from(bytes)).unwrap())
        .await;
    if !is_valid {
        // Failed attempts are limited.
        assert!(matches!(answer.status, 401 | 429), "{what}: {answer:?}");
        check_refusal(&answer, &what);
        lane.count("no valid token");
        return;
    }
    assert!(!matches!(answer.status, 401 | 403), "{what}: {answer:?}");
    lane.count(parsed(operation, !is_of_parser(&answer)));
    match answer.status {
        200 | 201 | 202 | 204 => lane.count("body taken"),
        400..=499 | 501 => {
            check_refusal(&answer, &what);
            lane.count(match operation.is_admin() {
                true => "admin body refused",
                false => "body refused",
            });
        }
        other => panic!("{other} to {what}: {answer:?}"),
    }
    match issued.filter(|_| answer.status == 201) {
        Some(id) => revoke(lane, &id).await,
        None => remove(lane, operation, &answer, [&basin, &stream]).await,
    }
}

/// Whether an answer is a refusal of whatever reads the body, before any handler.
fn is_of_parser(answer: &Answer) -> bool {
    answer.status == 400 && answer.json()["code"] == "bad_json"
}

/// The id of the token that a body asks for.
fn issued_id(operation: Operation, body: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let id = json["id"].as_str().map(str::to_owned);
    id.filter(|_| operation == Operation::IssueToken)
}

/// A token that was issued is listed, with whatever scope it has, and revoked.
async fn revoke(lane: &mut Lane, id: &str) {
    let in_path = crate::wire::percent_encoded(id.as_bytes());
    let path = format!("/v1/access-tokens?prefix={in_path}");
    let request = lane.request(Method::GET, &path).body(Body::empty());
    let answer = lane.world.send(request.unwrap()).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    let listed = &answer.json()["access_tokens"];
    let listed = listed.as_array().unwrap();
    assert!(listed.iter().any(|one| one["id"] == id), "{id}: {listed:?}");
    let path = format!("/v1/access-tokens/{in_path}");
    let request = lane.request(Method::DELETE, &path).body(Body::empty());
    let answer = lane.world.send(request.unwrap()).await;
    assert_eq!(answer.status, 204, "DELETE {path}: {answer:?}");
    lane.count("token issued");
}

/// Deletes what a case has made; its name may have changed on the way.
async fn remove(lane: &Lane, operation: Operation, answer: &Answer, names: [&str; 2]) {
    let [basin, stream] = names;
    let is_made = matches!(answer.status, 200 | 201);
    let named = |field: &str, otherwise: &str| match is_made && !answer.body.is_empty() {
        true => answer.json()[field]
            .as_str()
            .unwrap_or(otherwise)
            .to_owned(),
        false => otherwise.to_owned(),
    };
    let path = match operation {
        Operation::CreateBasin | Operation::EnsureBasin if is_made => {
            format!("/v1/basins/{}", named("name", basin))
        }
        Operation::CreateStream | Operation::EnsureStream if is_made => {
            let name = named("name", stream);
            format!(
                "/v1/streams/{}",
                crate::wire::percent_encoded(name.as_bytes())
            )
        }
        // The basin creates a stream that is appended to.
        Operation::Append => format!("/v1/streams/{}", stream.replace('/', "%2F")),
        _ => return,
    };
    let request = lane.request(Method::DELETE, &path).body(Body::empty());
    let answer = lane.world.send(request.unwrap()).await;
    let is_gone = matches!(answer.status, 202 | 204 | 404 | 501);
    assert!(is_gone, "DELETE {path}: {answer:?}");
}

/// Refusals of both APIs name a code and a cause, but for the two that the S2 API defines otherwise.
fn check_refusal(answer: &Answer, what: &str) {
    if answer.status == 412 || answer.status == 416 {
        return;
    }
    let json = answer.json();
    let has = |field: &str| json[field].as_str().is_some_and(|text| !text.is_empty());
    assert!(has("code") && has("message"), "{what}: {json}");
}

/// An `authorization` header that has no token, or one that looks like one, or the root token in another form; and
/// whether it is valid.
fn token(rng: &mut impl Rng) -> (HeaderValue, bool) {
    let text = |rng: &mut _, count: usize| -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let digits = (0..count).map(|_| *DIGITS.choose(rng).unwrap() as char);
        digits.collect()
    };
    let is_valid = once_in(rng, 6);
    let value = match rng.random_range(0..11) {
        _ if is_valid => {
            let scheme = ["Bearer", "bearer", "BEARER", "bEARER"]
                .choose(rng)
                .unwrap();
            let space = " ".repeat(rng.random_range(1..4));
            format!("{scheme}{space}{ROOT_TOKEN}{}", &space[1..]).into_bytes()
        }
        0 => Vec::new(),
        1 => b"Bearer".to_vec(),
        2 => b"Bearer \xff\xfe\x80".to_vec(),
        3 => format!("bearer esk_{}", text(rng, 43)).into_bytes(),
        4 => format!("Bearer  esk_{}", text(rng, 42)).into_bytes(),
        5 => format!("Bearer esk_{}", text(rng, 8000)).into_bytes(),
        6 => format!("Basic {}", text(rng, 12)).into_bytes(),
        7 => format!("Bearer {}", &ROOT_TOKEN[1..]).into_bytes(),
        8 => format!("Bearer {ROOT_TOKEN}{}", text(rng, 1)).into_bytes(),
        9 => format!("Bearer {ROOT_TOKEN} {ROOT_TOKEN}").into_bytes(),
        _ => format!("Bearer esk_{}", text(rng, 43)).into_bytes(),
    };
    (HeaderValue::from_bytes(&value).unwrap(), is_valid)
}

/// Changes one place in the structure.
fn change(rng: &mut impl Rng, value: &mut Value) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !once_in(rng, 8) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = names.choose(rng).unwrap();
            match rng.random_range(0..6) {
                0 => drop(fields.remove(name)),
                1 => {
                    let moved = fields.remove(name).unwrap();
                    fields.insert(generate::text(rng, 12), moved);
                }
                2 => drop(fields.insert(generate::text(rng, 12), odd(rng))),
                _ => change(rng, fields.get_mut(name).unwrap()),
            }
        }
        Value::Array(items) if !items.is_empty() && !once_in(rng, 4) => {
            let at = rng.random_range(0..items.len());
            match rng.random_range(0..4) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, odd(rng)),
                2 => items.extend(std::iter::repeat_n(items[at].clone(), 1001)),
                _ => change(rng, &mut items[at]),
            }
        }
        other => *other = odd(rng),
    }
}

/// A value that hardly any field takes.
fn odd(rng: &mut impl Rng) -> Value {
    match rng.random_range(0..14) {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(1e300),
        7 => json!(0.5),
        8 => json!(rng.random::<bool>()),
        9 => json!("a\0b"),
        10 => json!("../../etc/passwd"),
        11 => json!("x".repeat(5000)),
        12 => json!([[[[{"a": [null]}]]]]),
        _ => json!(generate::text(rng, 40)),
    }
}

/// Every operation of the admin API that takes a JSON body is among those that are tried.
#[tokio::test]
async fn every_admin_operation_with_a_body_is_tried() {
    let _alone = crate::run::alone();
    let world = crate::world::World::start().await;
    let request = http::Request::get("/esker/v1/openapi.json").body(Body::empty());
    let document = world.send(request.unwrap()).await.json();
    let mut missing = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let is_tried = OPERATIONS.iter().any(|one| {
                let (tried, route) = one.route();
                route == path && tried.as_str().eq_ignore_ascii_case(method)
            });
            if operation.get("requestBody").is_some() && !is_tried {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "not tried: {missing:?}");
    world.stop().await;
}
