//! What a small body may cost in memory.
//!
//! A bomb is a small body that unpacks to a huge one. The server may hold what a frame or a body may
//! have at most, and no more, whatever is sent. Memory is what the kernel says the process has, so
//! that no allocator is left out.

use std::sync::Arc;

use axum::body::Body;
use http::Request;
use s2_api::v1::error::ErrorCode;
use s2_api::v1::stream::proto::AppendAck;
use serde_json::json;

use crate::run;
use crate::wire::{self, FRAME_LIMIT, Fault, SessionAnswer};
use crate::world::{REQUEST_BODY, World};

const MIB: u64 = 1024 * 1024;

/// Bombs in frames, made once.
pub struct Bombs {
    /// Each a whole frame.
    pub frames: Vec<Vec<u8>>,
}

impl Bombs {
    /// Makes them.
    pub async fn make() -> Bombs {
        Bombs {
            frames: vec![
                wire::frame(0x40, &wire::bomb("gzip", 0, 8 * MIB).await),
                wire::frame(0x20, &wire::bomb("zstd", 0, 8 * MIB).await),
                // One byte more than a frame may unpack to.
                wire::frame(0x20, &wire::bomb("zstd", 0, FRAME_LIMIT as u64).await),
            ],
        }
    }
}

/// A number of the process's status, bytes; `None` where there is no such thing.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The memory that this process has.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS")
}

/// The most that it had since [`forget_peak`].
fn peak_bytes() -> Option<u64> {
    status("VmHWM")
}

/// Lets the peak begin anew; whether that is possible.
fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Shows that the peak tells when a bomb is unpacked.
async fn control(bomb: &[u8], unpacked: u64) {
    let reset = forget_peak();
    let before = resident_bytes();
    let all = wire::decompress("gzip", bomb).await.unwrap();
    assert_eq!(all.len() as u64, unpacked);
    if let (true, Some(before), Some(peak)) = (reset, before, peak_bytes()) {
        assert!(peak - before > unpacked / 2, "the peak does not tell");
    }
}

/// Sends bombs, many at once, and looks at the peak.
pub fn stay_small() {
    /// At once.
    const BODIES: usize = 16;
    /// What each unpacks to: eight times all that is allowed, were it ever held.
    const UNPACKED: u64 = 512 * MIB;
    /// The body itself, what it unpacks to, and as much again for copies on the way.
    const EACH: u64 = 2 * (REQUEST_BODY as u64 + FRAME_LIMIT as u64);
    /// The node's own needs meanwhile.
    const OTHERS: u64 = 64 * MIB;
    let _alone = run::alone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::start().await);
        let config = json!({"create_stream_on_append": true});
        let request = Request::post("/v1/basins")
            .header("content-type", "application/json")
            .body(Body::from(
                json!({"basin": "fuzz-bombs", "config": config}).to_string(),
            ))
            .unwrap();
        assert_eq!(world.send(request).await.status, 201);
        let zstd = wire::bomb("zstd", b' ', UNPACKED).await;
        let gzip = wire::bomb("gzip", b' ', UNPACKED / 4).await;
        control(&gzip, UNPACKED / 4).await;
        let cases: [(&str, &str, Option<&str>, Vec<u8>); 6] = [
            (
                "a frame of gzip",
                "s2s/proto",
                None,
                wire::frame(0x40, &gzip),
            ),
            (
                "a frame of zstd",
                "s2s/proto",
                None,
                wire::frame(0x20, &zstd),
            ),
            (
                "JSON in gzip",
                "application/json",
                Some("gzip"),
                gzip.clone(),
            ),
            (
                "JSON in zstd",
                "application/json",
                Some("zstd"),
                zstd.clone(),
            ),
            (
                "protobuf in zstd",
                "application/protobuf",
                Some("zstd"),
                zstd.clone(),
            ),
            // It is refused, and nothing of it is decoded.
            ("a session in zstd", "s2s/proto", Some("zstd"), zstd),
        ];
        for (what, kind, coding, bytes) in cases {
            let reset = forget_peak();
            let before = resident_bytes().unwrap_or(0);
            let sent = (0..BODIES).map(|number| {
                let mut request = Request::post(format!("/v1/streams/s{number}/records"))
                    .header("s2-basin", "fuzz-bombs")
                    .header("content-type", kind);
                if let Some(coding) = coding {
                    request = request.header("content-encoding", coding);
                }
                let request = request.body(Body::from(bytes.clone())).unwrap();
                let world = world.clone();
                tokio::spawn(async move { world.send(request).await })
            });
            for answer in futures::future::join_all(sent).await {
                let answer = answer.unwrap();
                let (fault, code) = match kind {
                    "s2s/proto" if coding.is_some() => {
                        assert_eq!(answer.status, 415, "{what}");
                        (Some(answer.fault()), ErrorCode::BadHeader)
                    }
                    "s2s/proto" => {
                        let answer = SessionAnswer::<AppendAck>::parse(&answer.body);
                        (answer.fault, ErrorCode::BadFrame)
                    }
                    "application/json" => (Some(answer.fault()), ErrorCode::BadJson),
                    _ => (Some(answer.fault()), ErrorCode::BadProto),
                };
                assert_eq!(fault, Some(Fault::Code(code)), "{what}");
            }
            let (true, Some(peak)) = (reset, peak_bytes()) else {
                println!("{what}: this system does not tell the peak of memory");
                continue;
            };
            let grown = peak.saturating_sub(before);
            println!(
                "{what}: {} MiB more at the peak, for {BODIES} at once",
                grown / MIB
            );
            assert!(
                grown < BODIES as u64 * EACH + OTHERS,
                "{what}: {BODIES} bodies took {} MiB",
                grown / MIB
            );
        }
        Arc::into_inner(world).unwrap().stop().await;
    });
}
