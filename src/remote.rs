//! A server as a command talks to it: its address, the access token and the client certificate that are sent, and
//! whom to trust.
//!
//! All three ways to a server take them from here: the admin API, the official SDK, and gRPC.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use s2_sdk::types::S2Config;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::failure::Failure;
use crate::relay::Relay;
use crate::secret_file::{self, Kind, Secret};
use crate::server_address::{REACH_TIMEOUT, ServerAddress};
use crate::stream_cmd::failure::Asked;
use crate::tls::{CA_VARIABLE, CLIENT_CERT_VARIABLE, CLIENT_KEY_VARIABLE, Identity, Trust};

/// Names of the environment variables with an access token, in order of precedence.
pub const TOKEN_VARIABLES: [&str; 2] = ["ESKER_TOKEN", "S2_ACCESS_TOKEN"];
/// The SDK requires an access token; a server without authentication does not check it.
const NO_TOKEN: &str = "none";
/// What an access token is.
pub const TOKEN: Kind = Kind {
    name: "access token",
    code: "token",
};

/// Which access token is sent, and which certificates are accepted.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AccessArgs {
    /// File with the access token that is sent to the server [env: ESKER_TOKEN or S2_ACCESS_TOKEN, the token
    /// itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// File with the certificates (PEM) of the only authorities that are trusted, for https [default: the
    /// system's]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = CA_VARIABLE,
        hide_env_values = true
    )]
    pub ca_file: Option<PathBuf>,

    /// File with the certificate (PEM) that is presented to a server which demands one, for https
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = CLIENT_CERT_VARIABLE,
        hide_env_values = true
    )]
    pub client_cert: Option<PathBuf>,

    /// File with the private key (PEM) of that certificate
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = CLIENT_KEY_VARIABLE,
        hide_env_values = true
    )]
    pub client_key: Option<PathBuf>,
}

impl AccessArgs {
    /// The access token of the option or of a variable.
    ///
    /// # Errors
    ///
    /// `token` if the file cannot be read, or holds no token.
    pub fn token(&self) -> Result<Option<Secret>, Failure> {
        self.token_of(&TOKEN_VARIABLES)
    }

    /// The access token of the option or of one of these variables.
    ///
    /// # Errors
    ///
    /// As of [`AccessArgs::token`].
    pub fn token_of(&self, variables: &[&str]) -> Result<Option<Secret>, Failure> {
        if let Some(path) = &self.token_file {
            return secret_file::read(path, TOKEN).map(Some);
        }
        for &name in variables {
            let value = std::env::var_os(name);
            let token = secret_file::of_variable(name, value, TOKEN)?;
            if token.is_some() {
                return Ok(token);
            }
        }
        Ok(None)
    }

    /// The authorities that are trusted and the certificate that is presented, if this server uses TLS.
    ///
    /// # Errors
    ///
    /// As of [`Trust::load`] and [`Identity::load`]; `certificates` for a certificate without its key.
    pub fn trust(&self, address: &ServerAddress) -> Result<Option<Trust>, Failure> {
        if !address.tls() {
            return Ok(None);
        }
        let identity = match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => Some(Identity::load(certificate, key)?),
            (None, None) => None,
            (certificate, _) => {
                let missing = match certificate {
                    Some(_) => format!("--client-key, or {CLIENT_KEY_VARIABLE}, is missing"),
                    None => format!("--client-cert, or {CLIENT_CERT_VARIABLE}, is missing"),
                };
                return Err(Failure::usage(
                    "certificates",
                    format!("a client certificate and its private key go together: {missing}"),
                ));
            }
        };
        let trust = Trust::load(self.ca_file.as_deref())?;
        Ok(Some(trust.with_identity(identity)))
    }
}

/// A server, the access token for it, and whom to trust.
#[derive(Clone, Debug)]
pub struct Remote {
    address: ServerAddress,
    token: Option<Secret>,
    /// `None` without TLS.
    trust: Option<Trust>,
    /// Whether the SDK reaches a server with TLS by way of a relay even without a client certificate.
    relays: bool,
    /// That relay, once it is needed.
    relay: Arc<OnceCell<Relay>>,
}

impl Remote {
    /// A server, with what the options and the environment say.
    ///
    /// # Errors
    ///
    /// `token` and `certificates`, for files that cannot be used.
    pub fn new(address: ServerAddress, access: &AccessArgs) -> Result<Remote, Failure> {
        let token = access.token()?;
        let trust = access.trust(&address)?;
        Ok(Remote::with(address, token, trust))
    }

    /// A server with this token. Warns if the token goes over a network in the clear.
    pub fn with(address: ServerAddress, token: Option<Secret>, trust: Option<Trust>) -> Remote {
        if token.is_some() {
            warn_in_clear(TOKEN, &address);
        }
        Remote {
            address,
            token,
            trust,
            relays: false,
            relay: Arc::default(),
        }
    }

    /// The same with a relay between the SDK and a server with TLS, so that [`Remote::trust`] alone decides whose
    /// certificates are accepted. The SDK has no setting for authorities; those of the process may be more where it
    /// also uses object storage.
    pub fn relayed(self) -> Remote {
        Remote {
            relays: true,
            ..self
        }
    }

    /// A server without authentication and TLS, such as those of the demo and of a trial cluster.
    pub fn open(address: ServerAddress) -> Remote {
        Remote {
            address,
            token: None,
            trust: None,
            relays: false,
            relay: Arc::default(),
        }
    }

    /// The server's address.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// The access token.
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Whom to trust; `None` without TLS.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// Opens and closes a connection, to check that something listens there, and that its certificate is
    /// accepted.
    ///
    /// # Errors
    ///
    /// `unreachable` and `tls`, within some three seconds, with the reason.
    pub async fn reach(&self) -> Result<(), Failure> {
        let address = &self.address;
        let late = || format!("no answer within {} s", REACH_TIMEOUT.as_secs_f64());
        let unreachable = |reason: &str| Asked::new(address).unreachable(reason);
        let deadline = tokio::time::Instant::now() + REACH_TIMEOUT;
        let connecting = TcpStream::connect((address.host(), address.port()));
        let connection = match tokio::time::timeout_at(deadline, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                return Err(unreachable(&match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                    _ => error.to_string(),
                }));
            }
            Err(_) => return Err(unreachable(&late())),
        };
        let Some(trust) = &self.trust else {
            return Ok(());
        };
        let handshake = trust.handshake(connection, address);
        match tokio::time::timeout_at(deadline, handshake).await {
            Ok(done) => done,
            Err(_) => Err(unreachable(&late())),
        }
    }

    /// Whether the SDK reaches the server by way of a relay.
    fn has_relay(&self) -> bool {
        let trust = self.trust.as_ref();
        trust.is_some_and(|trust| self.relays || trust.has_identity())
    }

    /// Where clients that cannot present a certificate or choose authorities, such as the SDK, connect to: the
    /// server, or a relay of this process that does so. The relay ends with the runtime.
    ///
    /// # Errors
    ///
    /// `client` if there can be no relay.
    pub async fn s2_address(&self) -> Result<String, Failure> {
        let trust = self.trust.as_ref().filter(|_| self.has_relay());
        let Some(trust) = trust else {
            return Ok(self.address.to_string());
        };
        let relay = self
            .relay
            .get_or_try_init(|| Relay::start(&self.address, trust));
        Ok(relay.await?.url())
    }

    /// The start of a configuration of the SDK: the token, and whether certificates are read.
    pub fn s2_config(&self) -> S2Config {
        let token = self.token.as_ref().map_or(NO_TOKEN, Secret::expose);
        let reads_certificates = self.trust.is_some() && !self.has_relay();
        S2Config::new(token)
            .with_connection_timeout(REACH_TIMEOUT)
            // Over plain http, as of a relay, there are no certificates. This option avoids reading those of the
            // system, which is slow, and fails where there are none.
            .with_insecure_skip_cert_verification(!reads_certificates)
    }

    /// A client of HTTP, for the admin API.
    ///
    /// # Errors
    ///
    /// `client` if the library refuses the configuration.
    pub fn http(&self, keep_alive: Duration) -> Result<reqwest::Client, Failure> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            // The answer of another server is none, and that one would not get the token.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(REACH_TIMEOUT)
            .tcp_keepalive(keep_alive);
        let builder = match &self.trust {
            Some(trust) => builder.tls_backend_preconfigured(trust.client_config()?),
            // As above.
            None => builder.tls_danger_accept_invalid_certs(true),
        };
        let address = &self.address;
        builder.build().map_err(|e| {
            Failure::wrong("client", format!("cannot make a client for {address}: {e}"))
        })
    }
}

/// Warns if a secret that is sent to this server goes over a network in the clear.
pub fn warn_in_clear(kind: Kind, address: &ServerAddress) {
    if !address.tls() && !is_loopback(address.host()) {
        say!(
            "warning: the {} goes to {address} without encryption: write https:// if the server has a \
             certificate",
            kind.name
        );
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
