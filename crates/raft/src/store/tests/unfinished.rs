//! A fetch that is not complete is no snapshot.

use super::*;

#[test]
fn a_fetch_is_whole_when_every_file_is_as_the_manifest_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), DiskFaults::default());
    let offer = offered(30, &[("a", b"first"), ("b/c", b"second"), ("empty", b"")]);
    let partial = store.begin_fetch(&offer).unwrap();
    let whole = || store.is_whole(offer.checkpoint).unwrap();
    assert!(!whole(), "nothing is there");
    partial
        .write(0, 0, &[Bytes::from_static(b"first")])
        .unwrap();
    partial.write(2, 0, &[] as &[Bytes]).unwrap();
    assert!(!whole(), "one is missing");
    partial
        .write(1, 0, &[Bytes::from_static(b"secon")])
        .unwrap();
    assert!(!whole(), "one is short");
    partial.write(1, 5, &[Bytes::from_static(b"D")]).unwrap();
    assert!(!whole(), "one is another");
    partial.write(1, 5, &[Bytes::from_static(b"d")]).unwrap();
    assert!(whole());
}
