//! Metrics of requests: between nodes, over HTTP, and by their access tokens.

use super::{Section, counter, gauge, seconds};

pub(super) const FORWARDING: Section = Section {
    title: "Forwarding",
    about: "Requests that a node of a cluster forwards to the node that leads their partition. Only nodes of a cluster have these metrics.",
    metrics: &[
        counter(
            "esker_forward_requests_total",
            "requests",
            &["outcome"],
            "Requests of clients that were for another node: `answered` by it, whatever the answer; `no_leader`, none became known in time; `unreachable`, the leader did not accept it in time, and nothing happened; `lost`, the leader was lost after something had been passed on; `abandoned` by the client.",
        ),
        counter(
            "esker_forward_hops_total",
            "requests",
            &["hop"],
            "Requests that were sent to another node, retries included: `1`, to the leader that this node knew; `2`, to the leader that a node named which did not lead itself.",
        ),
        counter(
            "esker_forward_served_total",
            "requests",
            &[],
            "Requests of other nodes that this node got.",
        ),
        counter(
            "esker_forward_read_here_total",
            "requests",
            &[],
            "Reads of streams that this node has answered from its own replica, without leading the partition.",
        ),
        gauge(
            "esker_forward_open",
            "requests",
            &[],
            "Requests that are at another node now, sessions among them.",
        ),
        counter(
            "esker_forward_bytes_total",
            "bytes",
            &["direction"],
            "Bytes of bodies that were passed on: of a `request` to another node, of an `answer` to the client.",
        ),
        seconds(
            "esker_forward_first_byte_seconds",
            &[],
            "Time until the head of another node's answer, from when the request was sent to it.",
        ),
    ],
};

pub(super) const HTTP: Section = Section {
    title: "HTTP",
    about: "Requests of the S2 API and the admin API.",
    metrics: &[
        counter(
            "esker_http_requests_total",
            "requests",
            &["route", "method", "status"],
            "Requests that were answered. Paths that are no route count as one, and so do methods that are none.",
        ),
        counter(
            "esker_http_session_errors_total",
            "sessions",
            &["status"],
            "Sessions that ended with an error after their head was answered with 200, by the status that the error has.",
        ),
        counter(
            "esker_http_refused_total",
            "requests",
            &["reason"],
            "Requests that were refused for their host, their headers, their origin or their content type, before they were read; `tls`: connections that speak TLS to a port without it.",
        ),
        counter(
            "esker_tls_handshakes_total",
            "handshakes",
            &[],
            "TLS handshakes that have succeeded.",
        ),
        counter(
            "esker_tls_handshakes_failed_total",
            "handshakes",
            &["reason"],
            "TLS handshakes that have failed: `cleartext` (HTTP without TLS), `timeout`, `closed`, `refused_by_client` (it does not trust the certificate, most often), `no_client_certificate`, `bad_client_certificate`, `incompatible` (no version, cipher suite or protocol in common), `protocol`.",
        ),
        counter(
            "esker_tls_reloads_total",
            "reloads",
            &["result"],
            "Changes of the files of TLS: `ok`, new connections use them; `failed`, they do not fit each other or cannot be read.",
        ),
        counter(
            "esker_peer_certificate_reloads_total",
            "reloads",
            &["result"],
            "Changes of the files of `cluster.certificate`: `ok`, new connections between nodes use them; `failed`, they do not fit each other or cannot be read.",
        ),
        gauge(
            "esker_tls_certificate_expiry_timestamp_seconds",
            "seconds since the epoch",
            &[],
            "Until when the served certificate and its chain are valid.",
        ),
        gauge(
            "esker_peer_certificate_expiry_timestamp_seconds",
            "seconds since the epoch",
            &[],
            "When the certificate of this node for other nodes, or another one of its chain, expires; with `cluster.certificate` alone.",
        ),
        counter(
            "esker_cluster_secret_reloads_total",
            "reloads",
            &["result"],
            "Changes of the file of `cluster.secret-file`: `ok`, new connections between nodes use it; `failed`, it cannot be read or has no secret.",
        ),
        counter(
            "esker_auth_failures_total",
            "requests",
            &["reason"],
            "Requests that were refused for their access token: it is `missing`, `malformed`, `unknown` (never issued, or revoked), `expired` or `suspended`, does not permit what was asked for (`forbidden`), or it was `unavailable` whether it is valid. Those that `limited` counts came from an address with too many of them, and are counted with their reason, too.",
        ),
        counter(
            "esker_root_token_reloads_total",
            "reloads",
            &["result"],
            "Changes of the file of the root token: `ok`, the new token is used; `failed`, the file cannot be used, and the token of before stays.",
        ),
        gauge(
            "esker_http_connections",
            "connections",
            &[],
            "Open connections, those of the state store's listener included.",
        ),
        counter(
            "esker_http_connections_refused_total",
            "connections",
            &[],
            "Connections that were closed without an answer: all of `limits.connections` were taken, and of the reserve the share of the address, and 512 waited already, or they had waited for 10 s.",
        ),
        gauge(
            "esker_http2_windows_bytes",
            "bytes",
            &[],
            "Windows of connections of HTTP/2 beyond the 64 KiB that each has; at most `limits.http2-windows`.",
        ),
        counter(
            "esker_http2_windows_reclaimed_total",
            "connections",
            &[],
            "Connections that were ended for their part of `limits.http2-windows`, of which less than half was free: no request with a valid token had come within 10 s, or their principal had more than its share.",
        ),
        counter(
            "esker_http_answers_stalled_total",
            "answers",
            &[],
            "Answers that were ended because their clients took nothing of them for `limits.stall-timeout`.",
        ),
        gauge(
            "esker_request_bodies_bytes",
            "bytes",
            &[],
            "Bytes of request bodies that are held in memory; at most `limits.request-bodies`.",
        ),
        gauge(
            "esker_request_bodies_waiting",
            "bodies",
            &[],
            "Request bodies and frames of append sessions that wait for that memory: requests for 10 s at most, sessions for as long as it takes.",
        ),
        gauge(
            "esker_read_sessions_bytes",
            "bytes",
            &[],
            "Bytes that read sessions hold until clients take them; at most `limits.read-sessions`.",
        ),
        gauge(
            "esker_read_sessions_waiting",
            "sessions",
            &[],
            "Read sessions that wait for that memory.",
        ),
        gauge(
            "esker_answers_held_bytes",
            "bytes",
            &["of"],
            "Bytes of answers that are held in memory until clients take them, of scans of the state store, with what those that run may find, and of others.",
        ),
    ],
};

pub(super) const ACCESS_TOKENS: Section = Section {
    title: "Access tokens",
    about: "Tokens that the catalog stores. A restore of the catalog with a loss suspends them, because revocations may be lost, until the root token confirms them.",
    metrics: &[
        gauge(
            "esker_access_tokens",
            "tokens",
            &[],
            "Access tokens that are stored, expired ones included until they are removed.",
        ),
        gauge(
            "esker_access_tokens_suspended",
            "tokens",
            &[],
            "Access tokens that are not valid until the root token confirms them.",
        ),
    ],
};
