//! Nothing that is printed has a secret in it.

use super::super::{Overrides, Secret, load, show};
use super::{ConfigFile, assert_says, env, from_env, from_set};

const HUSH: &str = "hush-hush";

fn set() -> Vec<String> {
    ["access-key-id", "secret-access-key", "session-token"]
        .map(|key| format!("snapshots.aws-{key}={HUSH}"))
        .into()
}

#[test]
fn secrets_are_not_in_what_is_shown_debugged_or_serialized() {
    let overrides = Overrides {
        set: set(),
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&[])).expect("good");
    let snapshots = &loaded.config.snapshots;
    let secret = snapshots.aws_secret_access_key.as_ref();
    assert_eq!(secret.map(Secret::expose), Some(HUSH), "it got through");

    let shown = show(&loaded);
    for line in [
        "# aws-secret-access-key = (hidden)  # flag --set snapshots.aws-secret-access-key",
        "# aws-session-token = (hidden)  # flag --set snapshots.aws-session-token",
    ] {
        assert!(shown.lines().any(|at| at == line), "{shown}");
    }
    let json = serde_json::to_string(&loaded.config).expect("JSON");
    for text in [shown, json, format!("{loaded:?} {overrides:?}")] {
        assert!(text.contains("(hidden)"), "{text}");
        assert!(!text.contains(HUSH), "{text}");
    }
}

#[test]
fn a_bad_secret_is_refused_without_repeating_it() {
    let bad = format!("{HUSH}\u{7}");
    let key = "snapshots.aws-secret-access-key";
    let by_flag = from_set(&[&format!("{key}={bad}")]).expect_err("bad");
    let variable = [("ESKER_SNAPSHOTS__AWS_SECRET_ACCESS_KEY", bad.as_str())];
    let by_variable = from_env(&variable).expect_err("bad");
    let by_file = ConfigFile::new("[snapshots]\naws-secret-access-key = 987654321").refused();
    for error in [by_flag, by_variable, by_file] {
        assert_says(&error, "config_bad_value", &[key, "allowed: "]);
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("hush") && !text.contains("98765"), "{text}");
        }
    }
    // The hidden form of a secret is not accepted as the secret itself.
    let error = from_set(&[&format!("{key}=(hidden)")]).expect_err("no secret");
    assert_says(&error, "config_bad_value", &["in the place of a secret"]);
}

#[test]
fn a_flag_that_is_wrong_is_repeated_without_its_secret() {
    let key = "snapshots.aws-secret-access-key";
    let mut twice = set();
    twice.push(format!("{key}={HUSH}"));
    let twice: Vec<_> = twice.iter().map(String::as_str).collect();
    for (set, shown) in [
        (twice, format!("--set {key}=(hidden)")),
        (
            vec!["snapshots.aws-secret-access-key:hush-hush"],
            format!("--set {key}…"),
        ),
    ] {
        let error = from_set(&set).expect_err("a bad flag");
        assert_says(&error, "config_bad_flag", &[&shown]);
        assert!(!error.to_string().contains(HUSH), "{error}");
    }
}

#[test]
fn credentials_in_a_url_are_refused_without_repeating_them() {
    for (key, url) in [
        ("destination", "s3://id:hush-hush@bucket/prefix"),
        ("destination", "s3://id:hush-/hush@bucket/prefix"),
        ("aws-endpoint-url", "https://id:hush-hush@host"),
    ] {
        let error = from_set(&[&format!("snapshots.{key}={url}")]).expect_err("a secret");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}

#[test]
fn a_secret_is_taken_without_the_line_end_that_files_have() {
    let secret = Secret::new(" hush-hush\n").expect("good");
    assert_eq!(secret.expose(), HUSH);
    assert_eq!(format!("{secret:?}"), "(hidden)");
}
