//! Keys of encryption: commands on records send them, and print nothing of them.

use super::server::Refusing;
use super::{ask, file, path};
use crate::support::stderr;

#[test]
fn commands_on_records_send_the_encryption_key() {
    let dir = tempfile::tempdir().unwrap();
    let text = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let key = file(dir.path(), "key", format!("{text}\n"));
    let server = Refusing::start(400, "decryption_failed", "record decryption failed");
    let commands: [&[&str]; 5] = [
        &["stream", "append", "my-basin/orders"],
        &["stream", "read", "my-basin/orders"],
        &["stream", "tail", "my-basin/orders"],
        &["stream", "trim", "my-basin/orders", "1"],
        &["stream", "fence", "my-basin/orders", "token"],
    ];
    for command in commands {
        let of_file = ["--encryption-key-file", path(&key)];
        for (options, variables) in [
            (&of_file[..], &[][..]),
            (&[], &[("ESKER_ENCRYPTION_KEY", text)]),
        ] {
            let output = ask(&server.url, command, options, variables);
            let said = stderr(&output);
            assert!(
                said.contains("error [decryption_failed]"),
                "{command:?}: {said}"
            );
            assert!(
                said.contains("--encryption-key-file"),
                "{command:?}: {said}"
            );
            assert!(!said.contains(text), "{command:?}: {said}");
            let sent = server.take("s2-encryption-key");
            let sent: Vec<_> = sent.iter().flatten().collect();
            assert!(!sent.is_empty(), "{command:?}");
            assert!(sent.iter().all(|sent| *sent == text), "{command:?}");
        }
    }
    let short = file(dir.path(), "short", "MDEyMzQ1Njc4OQ==");
    let options = ["--encryption-key-file", path(&short)];
    let output = ask(&server.url, commands[0], &options, &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("error [encryption_key]: "), "{said}");
    assert!(!said.contains("MDEy"), "{said}");
}
