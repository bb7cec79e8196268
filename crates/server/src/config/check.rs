//! Checks of a whole configuration: each value within its bounds, and values that go together.

use std::fmt::Display;
use std::net::SocketAddr;

use serde_json::Value;

use super::error::ConfigError;
use super::key::{Key, keys, tree};
use super::kind::{Kind, Raw};
use super::source::Source;
use super::tls::TlsConfig;
use super::units::ByteCount;
use super::values::Config;

/// How many segments of the log `max-log-bytes` must have room for: the one that is written, the one that
/// is deleted, and two more so that the bound is not reached all the time.
const LEAST_SEGMENTS: u64 = 4;

/// The rules between values, as the documentation lists them. [`rules`] enforces them.
pub(super) const RULES: &[&str] = &[
    "`listen` and `state.listen` must be loopback addresses unless `root-token-file` is set or \
     `insecure-no-auth` is `true`.",
    "`insecure-no-auth` must not be `true` where `root-token-file` is set.",
    "`tls.certificate` and `tls.private-key` are set both or neither, and neither beside `tls.self-signed`; \
     `tls.client-ca` and `tls.cleartext-loopback` only with either.",
    "`cluster.peer-listen` must be a loopback address unless `cluster.secret-file` or `cluster.certificate` is set \
     or `insecure-no-auth` is `true`; and one of the two must be set where `root-token-file` is. Every other key of \
     `cluster` is of use with it only.",
    "`cluster.certificate`, `cluster.private-key` and `cluster.ca` are set all or none.",
    "`log.purge-threshold` must be at least `log.segment-size`.",
    "`store.write-buffers-total` must be at least `store.write-buffer`.",
    "`limits.append-inflight` must be at least `limits.append-session-inflight`.",
    "`state.transaction-timeout-max` must be at least `state.transaction-timeout`.",
    "`snapshots.max-log-bytes` must be at least four times `log.segment-size`.",
    "`snapshots.aws-access-key-id` and `snapshots.aws-secret-access-key` are set both or neither, and \
     `snapshots.aws-session-token` only with them.",
];

impl Config {
    /// Checks a configuration that was built in code: every value within its bounds, and
    /// values that go together. One that [`load`](super::load) returned has passed.
    ///
    /// # Errors
    ///
    /// All problems, as [`load`](super::load) reports them.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let values = tree(self);
        let source = |key: &Key| match key.value(&values) == Some(&key.default) {
            true => Source::Default,
            false => Source::Program,
        };
        let mut problems = Vec::new();
        for key in &keys().keys {
            let value = key.value(&values).unwrap_or(&Value::Null);
            // A secret is always valid, and its value is hidden here.
            let unset = key.optional && value.is_null();
            if unset || key.kind == Kind::Secret {
                continue;
            }
            let raw = raw(value);
            if let Err(problem) = key.kind.read(&raw) {
                problems.push(ConfigError::bad_value(key, &raw, source(key), &problem));
            }
        }
        ConfigError::all(problems)?;
        let source_of = |path: &str| keys().by_path(path).map_or(Source::Default, source);
        ConfigError::all(rules(self, &source_of))
    }
}

/// A serialized value in the form in which a file would set it.
fn raw(value: &Value) -> Raw {
    match value {
        Value::String(text) => Raw::Text(text.clone()),
        Value::Bool(value) => Raw::Boolean(*value),
        Value::Number(number) => match number.as_i128() {
            Some(number) => Raw::Integer(number),
            None => Raw::Other {
                what: "a number with a fraction",
                text: number.to_string(),
            },
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Raw::Other {
            what: "no value",
            text: String::new(),
        },
    }
}

/// Violations of the rules between values. `source` returns where a key's value came from.
pub(super) fn rules(config: &Config, source: &dyn Fn(&str) -> Source) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    if config.insecure_no_auth && config.root_token_file.is_some() {
        problems.push(ConfigError::Conflict {
            keys: vec!["insecure-no-auth".into(), "root-token-file".into()],
            problem: format!(
                "`insecure-no-auth` ({}) allows requests without a token, and `root-token-file` ({}) has every \
                 request need one",
                source("insecure-no-auth"),
                source("root-token-file"),
            ),
            remedy: "unset one of them".into(),
        });
    }
    if !config.insecure_no_auth && config.root_token_file.is_none() {
        problems.extend(
            reachable(config).map(|(key, address)| ConfigError::InsecureListen {
                key,
                address: address.to_string(),
                from: source(key),
            }),
        );
    }
    problems.extend(timeouts(config, source));
    let mut at_least = |greater: (&str, ByteCount), lesser: (&str, ByteCount), reason: &str| {
        if greater.1 >= lesser.1 {
            return;
        }
        let said = |(key, value): (&str, ByteCount)| -> String {
            format!("`{key}` = {value} ({})", source(key))
        };
        problems.push(ConfigError::Conflict {
            keys: vec![greater.0.into(), lesser.0.into()],
            problem: format!("{} is less than {}: {reason}", said(greater), said(lesser)),
            remedy: format!("raise `{}` or lower `{}`", greater.0, lesser.0),
        });
    };
    at_least(
        ("log.purge-threshold", config.log.purge_threshold),
        ("log.segment-size", config.log.segment_size),
        "the log gives space back by whole segments",
    );
    at_least(
        (
            "store.write-buffers-total",
            config.store.write_buffers_total,
        ),
        ("store.write-buffer", config.store.write_buffer),
        "the total must have room for one",
    );
    at_least(
        ("limits.append-inflight", config.limits.append_inflight),
        (
            "limits.append-session-inflight",
            config.limits.append_session_inflight,
        ),
        "one session must be able to use what it may",
    );
    problems.extend(tls(&config.tls, source));
    problems.extend(cluster(config, source));
    problems.extend(too_few_segments(config, source));
    problems.extend(half_of_the_keys(config, source));
    problems
}

/// The addresses that other machines can reach, with their keys.
fn reachable(config: &Config) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let all = [
        ("listen", Some(config.listen)),
        ("state.listen", config.state.listen),
    ];
    all.into_iter().filter_map(|(key, address)| {
        let address = address.filter(|it| !it.ip().to_canonical().is_loopback())?;
        Some((key, address))
    })
}

fn timeouts(config: &Config, source: &dyn Fn(&str) -> Source) -> Option<ConfigError> {
    const TIMEOUT: &str = "state.transaction-timeout";
    const MAX: &str = "state.transaction-timeout-max";
    let (timeout, max) = (
        config.state.transaction_timeout,
        config.state.transaction_timeout_max,
    );
    (max < timeout).then(|| ConfigError::Conflict {
        keys: vec![MAX.into(), TIMEOUT.into()],
        problem: format!(
            "`{MAX}` = {max} ({}) is less than `{TIMEOUT}` = {timeout} ({}): no transaction may stay \
             open for longer than the former",
            source(MAX),
            source(TIMEOUT),
        ),
        remedy: format!("raise `{MAX}` or lower `{TIMEOUT}`"),
    })
}

fn too_few_segments(config: &Config, source: &dyn Fn(&str) -> Source) -> Option<ConfigError> {
    let (bound, segment) = (config.snapshots.max_log_bytes, config.log.segment_size);
    let least = ByteCount::new(segment.as_u64().saturating_mul(LEAST_SEGMENTS));
    (bound < least).then(|| ConfigError::Conflict {
        keys: vec!["snapshots.max-log-bytes".into(), "log.segment-size".into()],
        problem: format!(
            "`snapshots.max-log-bytes` = {bound} ({}) is less than {LEAST_SEGMENTS} times \
             `log.segment-size` = {segment} ({}): the log gives space back by whole segments",
            source("snapshots.max-log-bytes"),
            source("log.segment-size"),
        ),
        remedy: "raise `snapshots.max-log-bytes` or lower `log.segment-size`".into(),
    })
}

/// Keys of TLS that are of no use without others, or beside others.
fn tls(tls: &TlsConfig, source: &dyn Fn(&str) -> Source) -> Option<ConfigError> {
    const CERTIFICATE: &str = "tls.certificate";
    const KEY: &str = "tls.private-key";
    const SELF_SIGNED: &str = "tls.self-signed";
    let conflict = |has: &str, other: &str, problem: String, remedy: String| {
        Some(ConfigError::Conflict {
            keys: vec![has.into(), other.into()],
            problem: format!("`{has}` is set ({}) {problem}", source(has)),
            remedy,
        })
    };
    let lacks = |has: &str, other: &str| {
        conflict(
            has,
            other,
            format!("and `{other}` is not: neither is of use without the other"),
            format!("set `{other}` as well, or unset `{has}`"),
        )
    };
    match (&tls.certificate, &tls.private_key) {
        (Some(_), None) => return lacks(CERTIFICATE, KEY),
        (None, Some(_)) => return lacks(KEY, CERTIFICATE),
        (Some(_), Some(_)) if tls.self_signed => {
            return conflict(
                SELF_SIGNED,
                CERTIFICATE,
                format!(
                    "and so is `{CERTIFICATE}` ({}): a server has one certificate",
                    source(CERTIFICATE)
                ),
                "unset one of them".into(),
            );
        }
        _ if tls.enabled() => return None,
        _ => {}
    }
    let alone = [
        ("tls.client-ca", tls.client_ca.is_some()),
        ("tls.cleartext-loopback", tls.cleartext_loopback),
    ];
    let (has, _) = alone.into_iter().find(|(_, is_set)| *is_set)?;
    conflict(
        has,
        CERTIFICATE,
        format!("and `{CERTIFICATE}` is not: without a certificate, no listener speaks TLS"),
        format!("set `{CERTIFICATE}` and `{KEY}`, or unset `{has}`"),
    )
}

/// Keys of the cluster that are of no use without others, and an address that others can reach.
fn cluster(config: &Config, source: &dyn Fn(&str) -> Source) -> Option<ConfigError> {
    const LISTEN: &str = "cluster.peer-listen";
    let cluster = &config.cluster;
    let lacks = |has: &str, other: &str, why: &str| ConfigError::Conflict {
        keys: vec![has.into(), other.into()],
        problem: format!(
            "`{has}` is set ({}) and `{other}` is not: {why}",
            source(has)
        ),
        remedy: format!("set `{other}` as well, or unset `{has}`"),
    };
    let files = [
        ("cluster.certificate", cluster.certificate.is_some()),
        ("cluster.private-key", cluster.private_key.is_some()),
        ("cluster.ca", cluster.ca.is_some()),
    ];
    if let (Some((has, _)), Some((other, _))) = (
        files.iter().find(|(_, is_set)| *is_set),
        files.iter().find(|(_, is_set)| !*is_set),
    ) {
        return Some(lacks(
            has,
            other,
            "none of the three is of use without the others",
        ));
    }
    let Some(listen) = cluster.peer_listen else {
        let others = [
            ("cluster.name", cluster.name.is_some()),
            ("cluster.peer-advertise", cluster.peer_advertise.is_some()),
            ("cluster.advertise", cluster.advertise.is_some()),
            ("cluster.join", cluster.join.is_some()),
            ("cluster.zone", cluster.zone.is_some()),
            ("cluster.secret-file", cluster.secret_file.is_some()),
            ("cluster.certificate", cluster.certificate.is_some()),
        ];
        let (has, _) = others.into_iter().find(|(_, is_set)| *is_set)?;
        let why = "without an address for other nodes there is no cluster";
        return Some(lacks(has, LISTEN, why));
    };
    let is_guarded = cluster.secret_file.is_some() || cluster.certificate.is_some();
    if !is_guarded && config.root_token_file.is_some() {
        return Some(ConfigError::Conflict {
            keys: vec![LISTEN.into(), "root-token-file".into(), "cluster.secret-file".into()],
            problem: format!(
                "`root-token-file` ({}) has every request need a token, and `{LISTEN}` ({}) takes requests of nodes \
                 in the name of their clients: without a secret or certificates, every program of this machine could \
                 send them as the holder of the root token",
                source("root-token-file"),
                source(LISTEN)
            ),
            remedy: "set `cluster.secret-file`, or `cluster.certificate`, `cluster.private-key` and `cluster.ca`"
                .into(),
        });
    }
    if !is_guarded && !config.insecure_no_auth && !listen.ip().to_canonical().is_loopback() {
        return Some(ConfigError::Conflict {
            keys: vec![LISTEN.into(), "cluster.secret-file".into()],
            problem: format!(
                "`{LISTEN}` = {listen} ({}) can be reached from other machines, and nothing keeps strangers from \
                 joining the cluster",
                source(LISTEN)
            ),
            remedy: "set `cluster.secret-file`, or `cluster.certificate`, `cluster.private-key` and `cluster.ca`; \
                     or set `insecure-no-auth` where nobody else reaches the network"
                .into(),
        });
    }
    if listen.ip().is_unspecified() && cluster.peer_advertise.is_none() {
        let why =
            "other nodes cannot reach an address that stands for all addresses of the machine";
        return Some(lacks(LISTEN, "cluster.peer-advertise", why));
    }
    None
}

/// What is missing of the keys of S3: the first of these that is not set although a later one is.
fn half_of_the_keys(config: &Config, source: &dyn Fn(&str) -> Source) -> Option<ConfigError> {
    const ID: &str = "snapshots.aws-access-key-id";
    const SECRET: &str = "snapshots.aws-secret-access-key";
    const TOKEN: &str = "snapshots.aws-session-token";
    let snapshots = &config.snapshots;
    let id = snapshots.aws_access_key_id.is_some();
    let secret = snapshots.aws_secret_access_key.is_some();
    let token = snapshots.aws_session_token.is_some();
    let (has, lacks) = match (id, secret, token) {
        (true, true, _) | (false, false, false) => return None,
        (true, false, _) => (ID, SECRET),
        (false, true, _) => (SECRET, ID),
        (false, false, true) => (TOKEN, ID),
    };
    Some(ConfigError::Conflict {
        keys: vec![has.into(), lacks.into()],
        problem: format!(
            "`{has}` is set ({}) and `{lacks}` is not: neither is of use without the other",
            source(has)
        ),
        remedy: format!("set `{lacks}` as well, or unset `{has}`"),
    })
}

/// Settings that are allowed but may not be intended.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, address) in reachable(config) {
        if config.root_token_file.is_none() {
            warnings.push(format!(
                "`{key}` = {address} can be reached from other machines without an access token \
                 (`insecure-no-auth`): anyone who reaches it can read, write and delete everything",
            ));
        } else if !config.tls.enabled() {
            warnings.push(format!(
                "`{key}` = {address} can be reached from other machines without TLS: access tokens and records \
                 are not encrypted on the way. Set `tls.certificate` and `tls.private-key`, unless something \
                 in front of the server speaks TLS",
            ));
        }
    }
    warnings.extend(readable_peers(config));
    if config.allowed_origins.as_deref() == Some("*") {
        warnings.push(
            "`allowed-origins` = * takes requests of every web page that a user of this network opens: name \
             the origins of your own pages instead, unless requests need an access token"
                .into(),
        );
    }
    if config.tls.enabled() && config.tls.cleartext_loopback && reachable(config).next().is_none() {
        warnings.push(
            "`tls.cleartext-loopback` is set, and all listeners have loopback addresses: none of them speaks \
             TLS"
                .into(),
        );
    }
    // Each partition and the catalog may hold back that much log before its database is flushed.
    let partitions = u64::from(config.partitions) + 1;
    let held_back = ByteCount::new(partitions.saturating_mul(config.log.flush_after.as_u64()));
    if held_back > config.log.purge_threshold {
        warnings.push(too_much_log(partitions, held_back, config));
    }
    let (bound, threshold) = (config.snapshots.max_log_bytes, config.log.purge_threshold);
    if bound < threshold {
        warnings.push(format!(
            "`snapshots.max-log-bytes` = {bound} is less than `log.purge-threshold` = {threshold}: \
             the log gives no space back below the latter, so it may be larger than the former; \
             raise `snapshots.max-log-bytes` or lower `log.purge-threshold`"
        ));
    }
    warnings
}

/// A network between the nodes that others can read, where clients are to be protected from that.
fn readable_peers(config: &Config) -> Option<String> {
    let address = config.cluster.peer_listen?;
    let is_readable =
        config.cluster.certificate.is_none() && !address.ip().to_canonical().is_loopback();
    let key = match (config.tls.enabled(), &config.root_token_file) {
        (true, _) => "tls",
        (false, Some(_)) => "root-token-file",
        (false, None) => return None,
    };
    is_readable.then(|| {
        format!(
            "`cluster.peer-listen` = {address} is not encrypted, although `{key}` is set: records, keys of encryption \
             and the cluster's secret pass between the nodes in the clear. Set `cluster.certificate`, \
             `cluster.private-key` and `cluster.ca`, unless nobody else can read that network"
        )
    })
}

/// Settings that the defaults leave open and that should be decided before the data matters.
pub(super) fn reminders(config: &Config) -> Vec<String> {
    let mut reminders = Vec::new();
    if config.snapshots.num_retained.is_none() {
        reminders.push(
            "`snapshots.num-retained` is not set: only the newest snapshot of a partition is \
             retained, so there is none to fall back on if it is damaged; set it to 2 or more"
                .into(),
        );
    }
    reminders
}

fn too_much_log(partitions: u64, held_back: impl Display, config: &Config) -> String {
    format!(
        "`log.flush-after` = {} times {partitions} partitions (with the catalog) is {held_back}, \
         more than `log.purge-threshold` = {}: the log may grow to the former before space comes \
         back; lower `log.flush-after` or raise `log.purge-threshold`",
        config.log.flush_after, config.log.purge_threshold
    )
}
