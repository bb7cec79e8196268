//! TLS of the listeners (`[tls]`).
//!
//! The attributes of the fields are explained in [`values`](super::values).

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TLS of the listeners (`[tls]`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfig {
    /// File with the server's certificate, followed by the intermediate ones up to its authority, as PEM. It
    /// is read again when it changes. Unset, the listeners speak HTTP without TLS, unless `self-signed` is
    /// set.
    #[schemars(extend("format" = "path"))]
    pub certificate: Option<PathBuf>,

    /// File with the certificate's key, as PEM: PKCS#8, PKCS#1 or SEC1, not encrypted. Only the server should
    /// be able to read it. It is read again when it changes. Unset, as `certificate`.
    #[schemars(extend("format" = "path"))]
    pub private_key: Option<PathBuf>,

    /// File with certificates of authorities, as PEM. A client must then present a certificate that one of
    /// them issued, whether or not it has an access token, too. It is read again when it changes. Unset,
    /// clients need no certificate.
    #[schemars(extend("format" = "path"))]
    pub client_ca: Option<PathBuf>,

    /// Makes a certificate for trying out TLS, and keeps it in `tls/` of the data directory. Clients trust it
    /// if they are given the file `tls/certificate.pem` as that of an authority.
    pub self_signed: bool,

    /// Leaves a listener that has a loopback address without TLS. With a `listen` that other machines can
    /// reach, for example, `state.listen` may serve programs of the same machine without TLS.
    pub cleartext_loopback: bool,
}

impl TlsConfig {
    /// Whether listeners speak TLS; with `cleartext-loopback`, only those that other machines can reach.
    pub fn enabled(&self) -> bool {
        self.self_signed || self.certificate.is_some()
    }
}
