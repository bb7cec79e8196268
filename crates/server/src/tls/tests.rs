//! Files of every form and with every mistake, their replacement while the server runs, and the end of a
//! certificate.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair, RsaKeySize};
use time::OffsetDateTime;

use super::expiry::Validity;
use super::files::is_too_open;
use super::reload::{EXPIRED, EXPIRES_SOON, NOT_RELOADED, TlsFollower};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A directory with the files of TLS.
struct Directory {
    dir: tempfile::TempDir,
}

impl Directory {
    /// With a certificate that is valid from `start` to `end`, relative to now.
    fn new(start: time::Duration, end: time::Duration) -> Directory {
        let directory = Directory {
            dir: tempfile::tempdir().unwrap(),
        };
        directory.write(&KeyPair::generate().unwrap(), start, end);
        directory
    }

    fn valid() -> Directory {
        Directory::new(-time::Duration::DAY, 60 * time::Duration::DAY)
    }

    fn write(&self, key: &KeyPair, start: time::Duration, end: time::Duration) {
        fs::write(self.key(), key.serialize_pem()).unwrap();
        fs::write(self.certificate(), certificate(key, start, end)).unwrap();
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("server.crt")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("server.key")
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            certificate: Some(self.certificate()),
            private_key: Some(self.key()),
            ..TlsConfig::default()
        }
    }

    fn load(&self) -> Result<Tls, TlsError> {
        let loaded = Tls::load(&self.config(), self.dir.path(), &[])?;
        Ok(loaded.expect("TLS is on"))
    }

    /// The error of a start.
    fn refused(&self) -> TlsError {
        match self.load() {
            Ok(_) => panic!("it was loaded"),
            Err(error) => error,
        }
    }

    fn follower(&self) -> TlsFollower {
        TlsFollower::new(self.load().unwrap(), Vec::new(), HostProblems::default())
    }
}

/// A certificate of `localhost`, as PEM.
fn certificate(key: &KeyPair, start: time::Duration, end: time::Duration) -> String {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let now = OffsetDateTime::now_utc();
    params.not_before = now + start;
    params.not_after = now + end;
    params.self_signed(key).unwrap().pem()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn codes(follower: &TlsFollower) -> Vec<&'static str> {
    let problems = follower.outcome.problems.list();
    problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn keys_are_read_in_all_three_forms() {
    let directory = Directory::valid();
    let ec = KeyPair::generate().unwrap();
    directory.write(&ec, -time::Duration::DAY, time::Duration::DAY);
    directory.load().expect("PKCS#8");
    // A key of PKCS#8 ends with the key in its older form.
    let sec1 = &ec.serialized_der()[ec.serialized_der().len() - 0x6d..];
    fs::write(directory.key(), pem("EC PRIVATE KEY", sec1)).unwrap();
    directory.load().expect("SEC1");

    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    directory.write(&rsa, -time::Duration::DAY, time::Duration::DAY);
    directory.load().expect("PKCS#8 of RSA");
    fs::write(
        directory.key(),
        pem("RSA PRIVATE KEY", &rsa.serialized_der()[26..]),
    )
    .unwrap();
    directory.load().expect("PKCS#1");
}

#[test]
fn each_mistake_in_a_file_is_an_error_that_names_key_file_and_cause() {
    let directory = Directory::valid();
    let (certificate_text, key_text) = (
        fs::read_to_string(directory.certificate()).unwrap(),
        fs::read_to_string(directory.key()).unwrap(),
    );
    let other = KeyPair::generate().unwrap().serialize_pem();
    let encrypted = pem("ENCRYPTED PRIVATE KEY", b"secret");
    let large = "#".repeat(1024 * 1024 + 1);
    for (text, cause) in [
        ("", "the file is empty"),
        ("hello", "there is no certificate in it"),
        (&key_text, "there is no certificate in it"),
        (
            "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
            "not valid PEM",
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "not valid PEM"),
        (&pem("CERTIFICATE", b"nonsense"), "cannot be read"),
        (&large, "more than"),
    ] {
        fs::write(directory.certificate(), text).unwrap();
        let error = directory.refused();
        assert_eq!(error.key, "tls.certificate");
        assert_eq!(error.path, directory.certificate());
        assert!(error.cause.contains(cause), "{error} instead of {cause}");
    }
    fs::write(directory.certificate(), &certificate_text).unwrap();
    for (text, cause) in [
        ("", "the file is empty"),
        ("hello", "there is no key in it"),
        (&certificate_text, "there is no key in it"),
        (&encrypted, "is encrypted"),
        (&other, "it is not the key of the certificate in"),
        (&pem("PRIVATE KEY", b"nonsense"), "cannot be used"),
    ] {
        fs::write(directory.key(), text).unwrap();
        let error = directory.refused();
        assert_eq!(error.key, "tls.private-key");
        assert_eq!(error.path, directory.key());
        assert!(error.cause.contains(cause), "{error} instead of {cause}");
        assert!(!error.to_string().contains("BEGIN PRIVATE KEY-----\n"));
    }
    fs::remove_file(directory.key()).unwrap();
    assert!(directory.refused().cause.contains("No such file"));
    fs::create_dir(directory.key()).unwrap();
    assert!(directory.refused().cause.contains("it is not a file"));
    fs::remove_dir(directory.key()).unwrap();
    fs::write(directory.key(), &key_text).unwrap();
    let config = TlsConfig {
        client_ca: Some(directory.key()),
        ..directory.config()
    };
    let error = Tls::load(&config, directory.dir.path(), &[]).err().unwrap();
    assert_eq!(error.key, "tls.client-ca");
}

#[test]
fn the_information_is_that_of_the_certificate_and_its_chain_ends_with_the_first_that_does() {
    let directory = Directory::valid();
    let info = directory.load().unwrap().info();
    assert_eq!(info.names, ["localhost"]);
    assert_eq!(info.fingerprint.len(), 32 * 3 - 1);
    let intermediate = certificate(
        &KeyPair::generate().unwrap(),
        -time::Duration::DAY,
        7 * time::Duration::DAY,
    );
    let chain = fs::read_to_string(directory.certificate()).unwrap() + &intermediate;
    fs::write(directory.certificate(), chain).unwrap();
    let with_chain = directory.load().unwrap().info();
    assert_eq!(with_chain.fingerprint, info.fingerprint);
    assert!(with_chain.not_after < info.not_after);
}

#[test]
fn a_half_written_pair_keeps_the_old_one_and_a_whole_one_replaces_it() {
    let directory = Directory::valid();
    let mut follower = directory.follower();
    let before = follower.tls.info();
    follower.take_changes();
    assert_eq!(
        (follower.tls.info(), codes(&follower)),
        (before.clone(), vec![])
    );

    // The certificate was replaced, and the key was not yet.
    let next = KeyPair::generate().unwrap();
    let (start, end) = (-time::Duration::DAY, 90 * time::Duration::DAY);
    fs::write(directory.certificate(), certificate(&next, start, end)).unwrap();
    follower.take_changes();
    assert_eq!(follower.tls.info(), before);
    assert_eq!(codes(&follower), [NOT_RELOADED]);
    let why = follower.outcome.failure.clone().unwrap();
    assert!(why.contains("it is not the key"), "{why}");
    follower.take_changes();
    assert_eq!(follower.outcome.failure.as_ref(), Some(&why));
    fs::write(directory.key(), "").unwrap();
    follower.take_changes();
    assert!(
        follower
            .outcome
            .failure
            .clone()
            .unwrap()
            .contains("is empty")
    );
    fs::write(directory.key(), next.serialize_pem()).unwrap();
    follower.take_changes();
    assert_ne!(follower.tls.info(), before);
    assert_eq!(codes(&follower), [""; 0]);
    assert_eq!(follower.outcome.failure, None);
}

#[test]
fn files_that_a_start_would_refuse_do_not_pass_the_check_before_a_restart() {
    let directory = Directory::valid();
    let tls = directory.load().unwrap();
    tls.check().expect("what is served");
    let day = time::Duration::DAY;
    let next = KeyPair::generate().unwrap();
    let certificate_text = certificate(&next, -day, 90 * day);
    fs::write(directory.certificate(), certificate_text).unwrap();
    let why = tls.check().unwrap_err().cause;
    assert!(why.contains("it is not the key"), "{why}");
    fs::write(directory.key(), next.serialize_pem()).unwrap();
    tls.check().expect("a whole pair");
    directory.write(&next, -2 * day, -day);
    let why = tls.check().unwrap_err().cause;
    assert!(why.contains("it expired on"), "{why}");
    fs::remove_file(directory.certificate()).unwrap();
    let why = tls.check().unwrap_err().cause;
    assert!(why.contains("No such file"), "{why}");
}

#[test]
fn a_certificate_that_clients_would_refuse_does_not_replace_one_that_they_accept() {
    let directory = Directory::valid();
    let mut follower = directory.follower();
    let before = follower.tls.info();
    let day = time::Duration::DAY;
    for (start, end, why) in [
        (-2 * day, -day, "it expired on"),
        (day, 2 * day, "it is not valid before"),
    ] {
        directory.write(&KeyPair::generate().unwrap(), start, end);
        follower.take_changes();
        assert_eq!(follower.tls.info(), before);
        assert!(follower.outcome.failure.clone().unwrap().contains(why));
    }
    // At a start there is none to keep.
    assert!(directory.load().is_ok());
}

#[test]
fn the_end_of_a_certificate_is_a_problem_from_14_days_before() {
    let directory = Directory::valid();
    let mut follower = directory.follower();
    let end = follower.tls.info().not_after;
    for (now, validity, code) in [
        (end - 15 * DAY, Validity::Valid, None),
        (end - 13 * DAY, Validity::EndsSoon, Some(EXPIRES_SOON)),
        (end + DAY, Validity::Expired, Some(EXPIRED)),
        (end - 200 * DAY, Validity::NotYet, Some(EXPIRED)),
        (end - 30 * DAY, Validity::Valid, None),
    ] {
        assert_eq!(Validity::of(&follower.tls.info(), now), validity);
        follower.report_validity(now);
        assert_eq!(codes(&follower), Vec::from_iter(code), "{now}");
    }
}

#[test]
fn a_self_signed_certificate_is_kept_until_it_ends_or_lacks_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = TlsConfig {
        self_signed: true,
        ..TlsConfig::default()
    };
    let names = names_of(&["192.0.2.7:7070".parse().unwrap(), "[::]:1".parse().unwrap()]);
    for name in ["localhost", "127.0.0.1", "::1", "192.0.2.7"] {
        assert!(names.iter().any(|it| it == name), "{names:?}");
    }
    assert!(!names.iter().any(|it| it == "::"), "{names:?}");
    let load = |names: &[String]| Tls::load(&config, dir.path(), names).unwrap().unwrap();
    let made = load(&names);
    let info = made.info();
    assert_eq!(info.names, names);
    let key = dir.path().join("tls/private-key.pem");
    let mode = fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(load(&names).info(), info);
    assert_eq!(load(&names[..1]).info(), info);

    let more = [names.clone(), vec!["esker.example".to_owned()]].concat();
    let with_more = load(&more).info();
    assert_eq!(with_more.names, more);
    // A crash between the two files.
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let made_again = load(&more).info();
    assert_ne!(made_again.fingerprint, with_more.fingerprint);
    // It ends soon.
    let short = KeyPair::generate().unwrap();
    let text = certificate(&short, -time::Duration::DAY, 20 * time::Duration::DAY);
    fs::write(&key, short.serialize_pem()).unwrap();
    fs::write(made.certificate_path(), text).unwrap();
    let renewed = load(&["localhost".to_owned()]).info();
    assert!(renewed.not_after > OffsetDateTime::now_utc() + 80 * DAY);
}

/// A client that has been given the certificate, or remembers its key, goes on.
#[test]
fn the_key_of_a_self_signed_certificate_stays_whatever_is_made_anew_or_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = TlsConfig {
        self_signed: true,
        ..TlsConfig::default()
    };
    let (key, certificate) = (
        dir.path().join("tls/private-key.pem"),
        dir.path().join("tls/certificate.pem"),
    );
    let names = ["localhost".to_owned()];
    let load = |names: &[String]| Tls::load(&config, dir.path(), names);
    let first = load(&names).unwrap().unwrap();
    let made = fs::read(&key).unwrap();
    let more = [names[0].clone(), "esker.example".to_owned()];
    let second = load(&more).unwrap().unwrap();
    assert_ne!(second.info().fingerprint, first.info().fingerprint);
    assert_eq!(fs::read(&key).unwrap(), made);

    // Neither can be read now: a link to itself is an error of every kind of access.
    for file in [&certificate, &key] {
        let kept = file.with_extension("kept");
        fs::rename(file, &kept).unwrap();
        std::os::unix::fs::symlink(file, file).unwrap();
        let error = load(&more).err().unwrap().to_string();
        assert!(error.contains("cannot be read"), "{error}");
        assert!(fs::symlink_metadata(file).unwrap().is_symlink(), "{file:?}");
        fs::remove_file(file).unwrap();
        fs::rename(&kept, file).unwrap();
        assert_eq!(fs::read(&key).unwrap(), made);
    }
    // A crash between the two files, and a certificate that is damaged.
    fs::remove_file(&certificate).unwrap();
    load(&more).unwrap();
    for damaged in ["nonsense", ""] {
        fs::write(&certificate, damaged).unwrap();
        load(&more).unwrap();
        assert_eq!(fs::read(&key).unwrap(), made, "{damaged:?}");
    }
    // A damaged key is not replaced: whoever has a copy of it may bring it back. An empty certificate changes nothing.
    fs::write(&certificate, "").unwrap();
    fs::write(&key, "nonsense").unwrap();
    let error = load(&more).err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(fs::read(&key).unwrap(), b"nonsense");
}

#[test]
fn a_key_that_every_user_may_read_is_too_open() {
    for (mode, too_open) in [
        (0o600, false),
        (0o400, false),
        (0o640, false),
        (0o660, true),
        (0o644, true),
        (0o602, true),
    ] {
        assert_eq!(is_too_open(mode), too_open, "{mode:o}");
    }
}
