//! Of several sources, the one that is nearest to the person who starts the server wins.

use serde_json::{Value, json};

use super::super::key::{Key, keys, tree};
use super::super::kind::Kind;
use super::super::{Config, Overrides, Source, load};
use super::{ConfigFile, env, from_env, from_set};

#[test]
fn without_any_source_everything_is_the_default() {
    let loaded = from_env(&[]).expect("the defaults are a configuration");
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.sources.is_empty(), "{:?}", loaded.sources);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(loaded.file, None);
    assert_eq!(loaded.source("listen"), Source::Default);
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let file = ConfigFile::new(
        "cluster-name = 'file'\npartitions = 11\ndata-dir = 'file'\n[log]\nsegment-size = '2MiB'\n",
    );
    let overrides = Overrides {
        data_dir: Some("flag".into()),
        set: vec!["log.segment-size=4MiB".into()],
        ..file.overrides()
    };
    let environment = env(&[
        ("ESKER_DATA_DIR", "environment"),
        ("ESKER_PARTITIONS", "12"),
        ("ESKER_LOG__SEGMENT_SIZE", "3MiB"),
    ]);
    let loaded = load(&overrides, environment).expect("all sources are good");

    let config = &loaded.config;
    assert_eq!(config.data_dir.to_str(), Some("flag"), "flag over all");
    assert_eq!(
        config.log.segment_size.to_string(),
        "4MiB",
        "--set over all"
    );
    assert_eq!(config.partitions, 12, "environment over file");
    assert_eq!(config.cluster_name, "file", "file over default");
    assert_eq!(config.store, Config::default().store, "default");
    assert_eq!(loaded.file, Some(file.path.clone()));
    let source = |key: &str| loaded.source(key).to_string();
    assert_eq!(source("data-dir"), "flag --data-dir");
    assert_eq!(source("log.segment-size"), "flag --set log.segment-size");
    assert_eq!(
        source("partitions"),
        "environment variable ESKER_PARTITIONS"
    );
    assert_eq!(source("cluster-name"), file.line(1));
    assert_eq!(source("store.block-cache"), "default");
}

#[test]
fn each_flag_sets_the_key_of_its_name() {
    let overrides = Overrides {
        config: None,
        data_dir: Some("/var/lib/esker".into()),
        listen: Some("0.0.0.0:7171".into()),
        root_token_file: None,
        insecure_no_auth: true,
        partitions: Some("3".into()),
        tls_certificate: Some("server.crt".into()),
        tls_private_key: Some("server.key".into()),
        tls_client_ca: Some("clients.crt".into()),
        set: vec!["cluster-name=north".into(), "limits.connections = 5".into()],
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&[])).expect("good flags");
    let config = loaded.config;
    assert_eq!(config.data_dir.to_str(), Some("/var/lib/esker"));
    assert_eq!(config.listen.to_string(), "0.0.0.0:7171");
    assert!(config.insecure_no_auth);
    assert_eq!(config.partitions, 3);
    assert_eq!(
        config.tls.certificate.as_deref(),
        Some("server.crt".as_ref())
    );
    assert_eq!(
        config.tls.private_key.as_deref(),
        Some("server.key".as_ref())
    );
    assert_eq!(
        config.tls.client_ca.as_deref(),
        Some("clients.crt".as_ref())
    );
    assert!(config.tls.enabled());
    let overrides = Overrides {
        tls_self_signed: true,
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&[])).expect("a good flag");
    assert!(loaded.config.tls.self_signed);
    assert_eq!(
        loaded.source("tls.self-signed").to_string(),
        "flag --tls-self-signed"
    );
    assert_eq!(config.cluster_name, "north");
    assert_eq!(config.limits.connections, 5);

    let overrides = Overrides {
        root_token_file: Some("root-token".into()),
        ..Overrides::default()
    };
    let config = load(&overrides, env(&[])).expect("a good flag").config;
    assert_eq!(config.root_token_file, Some("root-token".into()));
}

#[test]
fn a_switch_that_the_environment_set_can_be_unset_by_a_flag() {
    let overrides = Overrides {
        set: vec!["insecure-no-auth=false".into()],
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&[("ESKER_INSECURE_NO_AUTH", "true")])).expect("good");
    assert!(!loaded.config.insecure_no_auth);
}

#[test]
fn the_environment_names_the_file_unless_a_flag_does() {
    let named_by_variable = ConfigFile::new("partitions = 2");
    let named_by_flag = ConfigFile::new("partitions = 3");
    let path = named_by_variable.path.to_str().expect("UTF-8");
    let variable = [("ESKER_CONFIG", path)];

    let loaded = from_env(&variable).expect("a good file");
    assert_eq!(loaded.config.partitions, 2);
    let loaded = load(&named_by_flag.overrides(), env(&variable)).expect("a good file");
    assert_eq!(loaded.config.partitions, 3);
}

#[test]
fn every_key_can_be_set_by_the_file_the_environment_and_a_flag() {
    for key in &keys().keys {
        let (written, value) = another_value(key);
        let assignment = format!("{} = {}", key.name, toml_literal(&written));
        let text = match &key.section {
            Some(section) => format!("[{section}]\n{assignment}\n"),
            None => assignment,
        };
        // Other keys that this key requires, so that the values go together.
        let beside = companions(&key.path);
        let file = ConfigFile::new(text);
        let set: Vec<_> = beside
            .iter()
            .map(|(path, value)| format!("{path}={value}"))
            .collect();
        let overrides = Overrides {
            set: set.clone(),
            ..file.overrides()
        };
        let by_file = load(&overrides, env(&[]));

        let overrides = Overrides {
            set: set.clone(),
            ..Overrides::default()
        };
        let by_variable = load(&overrides, env(&[(&key.variable, &written)]));

        let mut set: Vec<_> = set;
        set.push(format!("{}={written}", key.path));
        let set: Vec<_> = set.iter().map(String::as_str).collect();
        let by_flag = from_set(&set);

        for loaded in [by_file, by_variable, by_flag] {
            let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", key.path));
            let tree = tree(&loaded.config);
            assert_eq!(key.value(&tree), Some(&value), "{}", key.path);
            assert_ne!(loaded.source(&key.path), Source::Default, "{}", key.path);
        }
    }
}

/// A value of the key that is not its default: as it is written, and as it is serialized.
fn another_value(key: &Key) -> (String, Value) {
    let (written, value) = match &key.kind {
        Kind::Path => ("/elsewhere", json!("/elsewhere")),
        Kind::Address => ("127.0.0.1:9", json!("127.0.0.1:9")),
        Kind::ClusterName => ("another", json!("another")),
        Kind::LogFilter => ("debug", json!("debug")),
        Kind::Destination => ("s3://bucket/prefix", json!("s3://bucket/prefix")),
        Kind::Endpoint => ("https://host:9000", json!("https://host:9000")),
        Kind::Text => ("another one", json!("another one")),
        Kind::HostNames => ("esker.internal, [::2]", json!("esker.internal, [::2]")),
        Kind::Origins => ("https://ui.example:8443", json!("https://ui.example:8443")),
        Kind::Location => ("eu:north-1", json!("eu:north-1")),
        Kind::Secret => ("hush", json!("(hidden)")),
        Kind::Switch => ("true", json!(true)),
        Kind::Choice(words) => {
            let other = words.iter().find(|word| key.default != json!(word));
            let other = other.expect("a choice has two words");
            return (other.clone(), json!(other));
        }
        Kind::Count(bounds) => {
            return (bounds.end().to_string(), json!(bounds.end()));
        }
        Kind::Size(bounds) => {
            return (bounds.end().to_string(), json!(bounds.end().to_string()));
        }
        Kind::Duration(bounds) => {
            return (bounds.end().to_string(), json!(bounds.end().to_string()));
        }
    };
    (written.into(), value)
}

fn toml_literal(written: &str) -> String {
    match written.parse::<u64>().is_ok() || written == "true" {
        true => written.into(),
        false => format!("\"{written}\""),
    }
}

fn companions(path: &str) -> Vec<(&'static str, &'static str)> {
    match path {
        "log.segment-size" => vec![("log.purge-threshold", "1GiB")],
        "store.write-buffer" => vec![("store.write-buffers-total", "1GiB")],
        "limits.append-session-inflight" => vec![("limits.append-inflight", "1GiB")],
        "state.transaction-timeout" => vec![("state.transaction-timeout-max", "1day")],
        "snapshots.aws-access-key-id" => vec![("snapshots.aws-secret-access-key", "s")],
        "snapshots.aws-secret-access-key" => vec![("snapshots.aws-access-key-id", "i")],
        "snapshots.aws-session-token" => vec![
            ("snapshots.aws-access-key-id", "i"),
            ("snapshots.aws-secret-access-key", "s"),
        ],
        "tls.certificate" => vec![("tls.private-key", "k")],
        "tls.private-key" => vec![("tls.certificate", "c")],
        "tls.client-ca" | "tls.cleartext-loopback" => vec![("tls.self-signed", "true")],
        "cluster.peer-listen" => Vec::new(),
        "cluster.certificate" => vec![
            ("cluster.peer-listen", "127.0.0.1:1"),
            ("cluster.private-key", "k"),
            ("cluster.ca", "a"),
        ],
        "cluster.private-key" => vec![
            ("cluster.peer-listen", "127.0.0.1:1"),
            ("cluster.certificate", "c"),
            ("cluster.ca", "a"),
        ],
        "cluster.ca" => vec![
            ("cluster.peer-listen", "127.0.0.1:1"),
            ("cluster.certificate", "c"),
            ("cluster.private-key", "k"),
        ],
        path if path.starts_with("cluster.") => vec![("cluster.peer-listen", "127.0.0.1:1")],
        _ => Vec::new(),
    }
}
