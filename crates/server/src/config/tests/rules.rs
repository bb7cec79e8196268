//! Values that are good one by one must also go together.

use super::super::{ByteCount, Config, HumanDuration, Source};
use super::{ConfigFile, assert_says, from_env, from_set};

#[test]
fn an_address_that_other_machines_can_reach_is_refused_without_authentication() {
    for listen in [
        "0.0.0.0:7070",
        "[::]:7070",
        "192.0.2.7:7070",
        "[::ffff:192.0.2.7]:1",
    ] {
        let set = format!("listen={listen}");
        let error = from_set(&[&set]).expect_err(listen);
        assert_says(
            &error,
            "config_insecure_listen",
            &[listen, "(flag --set listen)", "--insecure-no-auth"],
        );

        let loaded = from_set(&[&set, "insecure-no-auth=true"]).expect(listen);
        assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
        assert!(loaded.warnings[0].contains(listen), "{:?}", loaded.warnings);

        from_set(&[&set, "root-token-file=root-token"]).expect(listen);
        let both = from_set(&[&set, "insecure-no-auth=true", "root-token-file=root-token"]);
        let error = both.expect_err("they contradict each other");
        assert_says(
            &error,
            "config_conflict",
            &["insecure-no-auth", "root-token-file"],
        );
    }
    from_env(&[("ESKER_LISTEN", "[::1]:1")]).expect("IPv6 loopback");
}

#[test]
fn values_that_do_not_go_together_are_refused_with_both_and_their_sources() {
    let file = ConfigFile::new("[log]\npurge-threshold = '16MiB'\n");
    assert_says(
        &file.refused(),
        "config_conflict",
        &[
            &format!("`log.purge-threshold` = 16MiB ({})", file.line(2)),
            "`log.segment-size` = 32MiB (default)",
            "raise `log.purge-threshold` or lower `log.segment-size`",
        ],
    );
    let error = from_set(&["store.write-buffer=1GiB"]).expect_err("more than the total");
    assert_says(
        &error,
        "config_conflict",
        &["`store.write-buffers-total` = 192MiB (default)"],
    );
    let error = from_env(&[("ESKER_LIMITS__APPEND_SESSION_INFLIGHT", "1GiB")]);
    let error = error.expect_err("more than all sessions");
    assert_says(
        &error,
        "config_conflict",
        &["ESKER_LIMITS__APPEND_SESSION_INFLIGHT"],
    );
}

#[test]
fn a_bound_of_the_log_has_room_for_four_segments() {
    let error = from_set(&["log.segment-size=64MiB", "snapshots.max-log-bytes=255MiB"]);
    assert_says(
        &error.expect_err("three segments"),
        "config_conflict",
        &[
            "`snapshots.max-log-bytes` = 255MiB (flag --set snapshots.max-log-bytes)",
            "4 times `log.segment-size` = 64MiB",
        ],
    );
    let loaded = from_set(&["log.segment-size=64MiB", "snapshots.max-log-bytes=256MiB"]);
    assert_eq!(loaded.expect("four segments").warnings, [""; 0]);

    let loaded = from_set(&["snapshots.max-log-bytes=128MiB"]).expect("allowed");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("`log.purge-threshold` = 256MiB"));
}

#[test]
fn keys_of_s3_are_given_as_a_whole() {
    const ID: &str = "snapshots.aws-access-key-id=an-id";
    const SECRET: &str = "snapshots.aws-secret-access-key=a-secret";
    const TOKEN: &str = "snapshots.aws-session-token=a-token";
    for (set, lacks) in [
        (&[ID][..], "aws-secret-access-key"),
        (&[SECRET], "aws-access-key-id"),
        (&[TOKEN], "aws-access-key-id"),
        (&[ID, TOKEN], "aws-secret-access-key"),
        (&[SECRET, TOKEN], "aws-access-key-id"),
    ] {
        let error = from_set(set).expect_err("not whole");
        assert_says(
            &error,
            "config_conflict",
            &[&format!("`snapshots.{lacks}` is not")],
        );
    }
    for set in [&[ID, SECRET][..], &[ID, SECRET, TOKEN]] {
        from_set(set).expect("whole");
    }
}

#[test]
fn keys_of_tls_are_given_as_a_whole() {
    const CERTIFICATE: &str = "tls.certificate=server.crt";
    const KEY: &str = "tls.private-key=server.key";
    const CA: &str = "tls.client-ca=clients.crt";
    const SELF_SIGNED: &str = "tls.self-signed=true";
    const CLEARTEXT: &str = "tls.cleartext-loopback=true";
    for (set, lacks) in [
        (&[CERTIFICATE][..], "`tls.private-key` is not"),
        (&[KEY], "`tls.certificate` is not"),
        (&[CA], "no listener speaks TLS"),
        (&[CLEARTEXT], "no listener speaks TLS"),
        (&[KEY, SELF_SIGNED], "`tls.certificate` is not"),
        (
            &[CERTIFICATE, KEY, SELF_SIGNED],
            "a server has one certificate",
        ),
    ] {
        let error = from_set(set).expect_err("not whole");
        assert_says(&error, "config_conflict", &[lacks]);
    }
    for set in [
        &[CERTIFICATE, KEY][..],
        &[CERTIFICATE, KEY, CA],
        &[SELF_SIGNED],
        &[SELF_SIGNED, CA],
    ] {
        assert!(from_set(set).expect("whole").config.tls.enabled());
    }
    let loaded = from_set(&[SELF_SIGNED, CLEARTEXT]).expect("whole");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("none of them speaks TLS"));
}

#[test]
fn every_origin_is_allowed_alone_and_with_a_warning_and_null_never() {
    let loaded = from_set(&["allowed-origins=*"]).expect("good");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    for (origins, problem) in [
        ("null", "has none"),
        ("https://a.example, *", "stands alone"),
        ("https://a.example, null", "has none"),
    ] {
        let error = from_set(&[&format!("allowed-origins={origins}")]).expect_err(origins);
        assert_says(&error, "config_bad_value", &[problem]);
    }
}

#[test]
fn a_start_says_that_nothing_is_there_to_fall_back_on_until_two_are_retained_or_it_is_meant() {
    let loaded = from_set(&[]).expect("good");
    assert_eq!(loaded.warnings, [""; 0], "a check has nothing to say");
    assert_eq!(loaded.reminders.len(), 1, "{:?}", loaded.reminders);
    assert!(loaded.reminders[0].contains("`snapshots.num-retained` is not set"));
    for retained in ["1", "3"] {
        let loaded = from_set(&[&format!("snapshots.num-retained={retained}")]).expect("good");
        assert_eq!(loaded.reminders, [""; 0]);
    }
}

#[test]
fn a_network_between_nodes_that_others_can_read_is_warned_about_where_clients_are_protected() {
    let warned = |more: &[&str]| {
        let secret = "cluster.secret-file=secret";
        let set: Vec<&str> = more.iter().copied().chain([secret]).collect();
        let loaded = from_set(&set).expect("allowed");
        let about = |it: &&String| it.contains("`cluster.peer-listen`");
        loaded.warnings.iter().find(about).cloned()
    };
    const OPEN: &str = "cluster.peer-listen=192.0.2.7:7170";
    const TOKEN: &str = "root-token-file=root-token";
    let warning = warned(&[OPEN, TOKEN]).expect("a warning");
    for part in [
        "192.0.2.7:7170",
        "`root-token-file`",
        "`cluster.certificate`",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    let warning = warned(&[OPEN, "tls.self-signed=true"]).expect("a warning");
    assert!(warning.contains("`tls`"), "{warning}");
    assert_eq!(warned(&["cluster.peer-listen=127.0.0.1:7170", TOKEN]), None);
    assert_eq!(warned(&[OPEN]), None, "clients are not protected either");
    let certificates = [
        OPEN,
        TOKEN,
        "cluster.certificate=node.pem",
        "cluster.private-key=node.key",
        "cluster.ca=ca.pem",
    ];
    assert_eq!(warned(&certificates), None);
}

#[test]
fn equal_values_go_together() {
    from_set(&["log.purge-threshold=32MiB", "log.flush-after=1MiB"]).expect("equal");
    from_set(&["store.write-buffers-total=32MiB"]).expect("equal");
    from_set(&["limits.append-inflight=8MiB"]).expect("equal");
}

#[test]
fn a_log_that_may_outgrow_its_threshold_is_warned_about() {
    let loaded = from_set(&["partitions=100"]).expect("allowed");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let warning = &loaded.warnings[0];
    for part in [
        "28MiB times 101",
        "2828MiB",
        "`log.purge-threshold` = 256MiB",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn a_configuration_made_in_code_is_held_to_the_same_bounds_and_rules() {
    Config::default().validate().expect("the defaults are good");

    let mut config = Config {
        partitions: 0,
        data_dir: "".into(),
        ..Config::default()
    };
    config.log.segment_size = ByteCount::new(1);
    config.limits.header_timeout = HumanDuration::from_secs(86_400);
    config.logs.level = "inof".into();
    let error = config.validate().expect_err("five bad values");
    assert_eq!(error.problems().len(), 5, "{error}");
    assert_says(
        &error,
        "config_several",
        &["`partitions` (set by the program): 0: it is less than 1; allowed: 1 to 1024"],
    );

    let mut config = Config::default();
    config.log.segment_size = ByteCount::gib(1);
    assert_says(
        &config.validate().expect_err("a conflict"),
        "config_conflict",
        &["= 256MiB (default)", "= 1GiB (set by the program)"],
    );

    let config = Config {
        listen: "0.0.0.0:1".parse().expect("an address"),
        ..Config::default()
    };
    let error = config.validate().expect_err("reachable");
    assert_says(
        &error,
        "config_insecure_listen",
        &[&Source::Program.to_string()],
    );
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf8_is_refused_and_not_changed_into_another() {
    use std::os::unix::ffi::OsStringExt;

    let path = std::ffi::OsString::from_vec(b"data-\xff".to_vec());
    let config = Config {
        data_dir: path.clone().into(),
        ..Config::default()
    };
    let error = config.validate().expect_err("not UTF-8");
    assert_says(
        &error,
        "config_bad_value",
        &["`data-dir`", "it is not UTF-8"],
    );

    let overrides = super::super::Overrides {
        data_dir: Some(path.into()),
        ..Default::default()
    };
    let error = super::super::load(&overrides, super::env(&[])).expect_err("not UTF-8");
    assert_says(
        &error,
        "config_bad_value",
        &["flag --data-dir", "it is not UTF-8"],
    );
}

#[test]
fn an_address_for_other_nodes_is_refused_without_a_secret_unless_it_is_a_loopback_address() {
    let reachable = "cluster.peer-listen=10.0.0.1:7170";
    let refused = from_set(&[reachable]).expect_err("nothing keeps strangers away");
    assert!(
        refused.to_string().contains("cluster.secret-file"),
        "{refused}"
    );
    for with in ["cluster.secret-file=s", "insecure-no-auth=true"] {
        from_set(&[reachable, with]).expect("strangers are kept away, or meant");
    }
    from_set(&["cluster.peer-listen=127.0.0.1:7170"]).expect("a loopback address");
    let any = from_set(&["cluster.peer-listen=0.0.0.0:7170", "cluster.secret-file=s"]);
    let any = any.expect_err("no other node can reach 0.0.0.0");
    assert!(any.to_string().contains("cluster.peer-advertise"), "{any}");
}

#[test]
fn where_requests_need_a_token_nodes_need_a_secret_or_certificates_on_loopback_too() {
    let local = "cluster.peer-listen=127.0.0.1:7170";
    let with_tokens = [local, "root-token-file=root-token"];
    let refused = from_set(&with_tokens).expect_err("any program could claim the root token");
    assert_says(
        &refused,
        "config_conflict",
        &[
            "root-token-file",
            local.split('=').next().unwrap(),
            "cluster.secret-file",
        ],
    );
    let secret = "cluster.secret-file=s";
    from_set(&[&with_tokens[..], &[secret]].concat()).expect("a secret");
    let files = [
        "cluster.certificate=c",
        "cluster.private-key=k",
        "cluster.ca=a",
    ];
    from_set(&[&with_tokens[..], &files].concat()).expect("certificates");
}

#[test]
fn keys_of_the_cluster_are_of_no_use_without_an_address_for_other_nodes() {
    let refused = from_set(&["cluster.join=a:1"]).expect_err("no address");
    assert!(
        refused.to_string().contains("cluster.peer-listen"),
        "{refused}"
    );
    let half = ["cluster.peer-listen=127.0.0.1:1", "cluster.certificate=c"];
    let refused = from_set(&half).expect_err("no key");
    assert!(
        refused.to_string().contains("cluster.private-key"),
        "{refused}"
    );
}
