//! Streams whose records are encrypted.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s2_sdk::types::EncryptionKey;
use serde_json::Value;

use super::{follow, json_of, text};
use crate::place::{Place, order};
use crate::support::sdk;

#[tokio::test]
async fn records_and_snapshots_of_an_encrypted_stream_are_read_with_the_key_of_a_file_or_a_variable()
 {
    let place = Place::new().await;
    place.encrypt().await;
    let stream = place
        .stream()
        .with_encryption_key(EncryptionKey::new([7; 32]));
    sdk::append(&stream, (0..100).map(|n| order(n, 7))).await;
    let file = |name: &str, key: [u8; 32]| {
        let file = place.dir.path().join(name);
        std::fs::write(&file, format!("{}\n", BASE64.encode(key))).unwrap();
        // Otherwise a warning says that others can read it.
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let (right, wrong) = (file("right", [7; 32]), file("wrong", [8; 32]));
    let arguments = [
        "--by",
        "/id",
        "--snapshot",
        "in-stream",
        "--every",
        "50",
        "--once",
    ];
    let with_key = |key: &str| {
        let arguments = [&arguments[..], &["--encryption-key-file", key]].concat();
        json_of(&place, &arguments)
    };
    let first = with_key(&right);
    assert_eq!(first["records_applied"], 100);
    assert_eq!(first["taken"]["cursor"], 100);

    sdk::append(&stream, (100..110).map(|n| order(n, 7))).await;
    // The snapshot in the stream is read with the key, too.
    let second = with_key(&right);
    assert_eq!(second["restored"], first["taken"]);
    assert_eq!(second["records_applied"], 10);
    let by_variable = follow(&place, &[&arguments[..], &["--json"]].concat())
        .env("ESKER_ENCRYPTION_KEY", BASE64.encode([7; 32]))
        .output()
        .unwrap();
    let said = text(&by_variable.stderr);
    assert!(by_variable.status.success(), "{said}");
    let third: Value = serde_json::from_slice(&by_variable.stdout).unwrap();
    assert_eq!(third["state"], second["state"]);

    for options in [&["--encryption-key-file", &*wrong][..], &[]] {
        let arguments = [&arguments[..], options].concat();
        let refused = follow(&place, &arguments).output().unwrap();
        let said = text(&refused.stderr);
        assert!(!refused.status.success(), "{options:?}: {said}");
        assert_eq!(text(&refused.stdout), "", "{options:?}");
        assert!(!said.contains(&BASE64.encode([8; 32])), "{said}");
    }
}
