//! Selection of the server: `--server` and `ESKER_SERVER` as for `esker stream`, or the variables of the
//! official command line.
//!
//! | given | server |
//! |---|---|
//! | `--server`, else `ESKER_SERVER` | that one; hosted S2 for `https://a.s2.dev` |
//! | `S2_ACCOUNT_ENDPOINT` and `S2_BASIN_ENDPOINT` | these |
//! | nothing, whatever the token | the default of `esker stream` |
//!
//! Hosted S2 gets a token only of `S2_ACCESS_TOKEN` or `--token-file`, and none that an Esker has issued: a shell that
//! is set up for an Esker sends nothing of it elsewhere.

use std::time::Duration;

use esker_follow::S2Endpoint;
use reqwest::Url;
use s2_sdk::S2;
use s2_sdk::types::{
    AccountEndpoint, BasinEndpoint, EncryptionKey, RetryConfig, S2Config, S2Endpoints,
};

use super::failure;
use crate::encryption_key::KEY;
use crate::failure::Failure;
use crate::remote::{AccessArgs, Remote, TOKEN_VARIABLES, warn_in_clear};
use crate::secret_file::Secret;
use crate::server_address::{DEFAULT_SERVER, ServerAddress};
use crate::stream_cmd::failure::Asked;
use crate::stream_cmd::target::StreamTarget;
use crate::tls::Trust;

/// The endpoint of hosted S2, which is also its name for `--server`.
const HOSTED: &str = "https://a.s2.dev";
/// The domain of hosted S2.
const HOSTED_DOMAIN: &str = "s2.dev";
/// What the text of a token begins with that an Esker has issued.
const ESKER_TOKEN_PREFIX: &str = "esk_";
/// Longest wait for the answer to a request: an append of a mebibyte on a slow line is among them.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// A server, and the settings of requests to it.
pub struct Server {
    /// Its address, for messages and for the first connection; the access token, and whom to trust.
    remote: Remote,
    endpoints: S2Endpoints,
    key: Option<EncryptionKey>,
    /// Whether it is hosted S2, and certainly no Esker.
    is_hosted: bool,
    trusts_name: bool,
}

impl Server {
    /// Selects the server. Sends nothing to it.
    pub fn find(named: Option<ServerAddress>, access: &AccessArgs) -> Result<Server, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let chosen = Chosen::of(named, variable)?;
        if chosen.is_default {
            let [ours, theirs] = TOKEN_VARIABLES.map(variable);
            if theirs.is_some() && ours.is_none() && access.token_file.is_none() {
                remark!(
                    "S2_ACCESS_TOKEN is for {}, because no server is named; hosted S2 is --server {HOSTED}",
                    chosen.address
                );
            }
        }
        if access.ca_file.is_some() && (chosen.is_hosted || chosen.is_of_s2_variables) {
            // There is no relay to two endpoints, and without one the system's authorities would be trusted as well.
            return Err(Failure::usage(
                "certificates",
                "--ca-file is for one server only: name it with --server, or leave --ca-file out, which \
                 trusts the authorities of the system",
            ));
        }
        let [ours, theirs] = TOKEN_VARIABLES;
        let token = match (chosen.is_hosted, chosen.is_of_s2_variables) {
            (true, _) => of_hosted(access.token_of(&[theirs])?)?,
            // The token that goes with those endpoints: they may not be an Esker's.
            (false, true) => access.token_of(&[theirs, ours])?,
            (false, false) => access.token()?,
        };
        let trust = access.trust(&chosen.address)?;
        let has_identity = trust.as_ref().is_some_and(Trust::has_identity);
        if has_identity && (chosen.is_hosted || chosen.is_of_s2_variables) {
            return Err(Failure::usage(
                "certificates",
                "a client certificate is presented to one server only: name it with --server, or \
                 leave --client-cert out",
            ));
        }
        let remote = Remote::with(chosen.address, token, trust);
        let remote = match access.ca_file {
            Some(_) => remote.relayed(),
            None => remote,
        };
        Ok(Server {
            remote,
            endpoints: chosen.endpoints,
            key: None,
            is_hosted: chosen.is_hosted,
            trusts_name: false,
        })
    }

    /// With the key of the stream's records. Warns if it goes over a network in the clear.
    pub fn with_key(self, key: Option<EncryptionKey>) -> Server {
        if key.is_some() {
            warn_in_clear(KEY, self.address());
        }
        Server { key, ..self }
    }

    /// With `trusts_name`, a stream is followed even if the server does not reveal its identity.
    pub fn trusting_names(self, trusts_name: bool) -> Server {
        Server {
            trusts_name,
            ..self
        }
    }

    /// For messages about a stream of it.
    pub fn asked<'a>(&'a self, stream: &'a StreamTarget) -> Asked<'a> {
        Asked::new(self.remote.address()).about(Some(&stream.basin), Some(stream))
    }

    /// Its address.
    pub fn address(&self) -> &ServerAddress {
        self.remote.address()
    }

    /// Connects, and checks that the stream exists. Returns the endpoint and the tail.
    ///
    /// # Errors
    ///
    /// `unreachable`, within some three seconds, with the reason; `stream_not_found`, and the like.
    pub async fn open(&self, stream: &StreamTarget) -> Result<(S2Endpoint, u64), Failure> {
        self.remote.reach().await?;
        // Not the server itself, if that demands a client certificate, or --ca-file decides whom to trust.
        let relayed = self.remote.s2_address().await?;
        let config = match relayed == self.remote.address().to_string() {
            true => self.config(),
            false => {
                let endpoints = S2Endpoints::for_endpoint(&relayed);
                let endpoints = endpoints.map_err(|e| Failure::wrong("client", e.0))?;
                self.config().with_endpoints(endpoints)
            }
        };
        let once = RetryConfig::new().with_max_attempts(std::num::NonZeroU32::MIN);
        let cannot = |e: &dyn std::fmt::Display| {
            let why = format!("cannot make a client for {}: {e}", self.remote.address());
            Failure::wrong("client", why)
        };
        let s2 = S2::new(config.clone().with_retry(once)).map_err(|e| cannot(&e))?;
        let asked = s2.basin(stream.basin.clone()).stream(stream.stream.clone());
        let tail = asked.check_tail().await;
        let tail = tail.map_err(|e| self.asked(stream).read(&e))?;
        let endpoint = S2Endpoint::new(config, stream.basin.clone(), stream.stream.clone());
        let endpoint = endpoint.map_err(|e| failure::of(&e, self.remote.address(), None))?;
        let endpoint = match self.is_hosted {
            true => endpoint,
            false => endpoint.with_server(Url::parse(&relayed).map_err(|e| cannot(&e))?),
        };
        let endpoint = match self.remote.token().map(Secret::expose) {
            Some(token) => endpoint.with_access_token(token),
            None => endpoint,
        };
        let endpoint = match &self.key {
            Some(key) => endpoint.with_encryption_key(key.clone()),
            None => endpoint,
        };
        let endpoint = match self.trusts_name {
            true => endpoint.trusting_the_name(),
            false => endpoint,
        };
        Ok((endpoint, tail.seq_num))
    }

    fn config(&self) -> S2Config {
        self.remote
            .s2_config()
            .with_endpoints(self.endpoints.clone())
            .with_request_timeout(REQUEST_LIMIT)
    }
}

/// A token for hosted S2. One that an Esker has issued is refused.
fn of_hosted(token: Option<Secret>) -> Result<Option<Secret>, Failure> {
    match token {
        Some(token) if token.expose().starts_with(ESKER_TOKEN_PREFIX) => Err(Failure::usage(
            "token",
            "the access token is one of an Esker, and the server is hosted S2, which it is not sent to: name the \
             Esker with --server, or give a token of hosted S2",
        )),
        token => Ok(token),
    }
}

/// A selected server.
struct Chosen {
    address: ServerAddress,
    endpoints: S2Endpoints,
    is_hosted: bool,
    /// Whether the variables of the official command line name it.
    is_of_s2_variables: bool,
    /// Whether nothing names it.
    is_default: bool,
}

impl Chosen {
    /// Selects by what is named and by the variables.
    fn of(
        named: Option<ServerAddress>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Chosen, Failure> {
        let account = variable("S2_ACCOUNT_ENDPOINT");
        let basin = variable("S2_BASIN_ENDPOINT");
        let invalid = |name: &str, value: &str, why: &str| {
            Failure::usage("invalid", format!("{name}={value}: {why}"))
        };
        let is_of_s2_variables = named.is_none() && account.is_some() && basin.is_some();
        let is_default = named.is_none() && account.is_none() && basin.is_none();
        let (address, endpoints) = match (named, account, basin) {
            (None, Some(account), Some(basin)) => {
                let (name, other) = ("S2_ACCOUNT_ENDPOINT", "S2_BASIN_ENDPOINT");
                // The same reading as the SDK's.
                let url = match account.contains("://") {
                    true => account.clone(),
                    false => format!("https://{account}"),
                };
                let address = url
                    .parse()
                    .map_err(|e: String| invalid(name, &account, &e))?;
                let at_account =
                    AccountEndpoint::new(&account).map_err(|e| invalid(name, &account, &e.0))?;
                let at_basin =
                    BasinEndpoint::new(&basin).map_err(|e| invalid(other, &basin, &e.0))?;
                let endpoints = S2Endpoints::new(at_account, at_basin);
                (
                    address,
                    endpoints.map_err(|e| invalid(other, &basin, &e.0))?,
                )
            }
            (None, Some(_), None) | (None, None, Some(_)) => {
                return Err(Failure::usage(
                    "invalid",
                    "S2_ACCOUNT_ENDPOINT and S2_BASIN_ENDPOINT go together: set both, or name the \
                     server with --server",
                ));
            }
            (Some(named), ..) if is_hosted(&named) => {
                let address = HOSTED
                    .parse()
                    .map_err(|e: String| Failure::wrong("client", e))?;
                (address, S2Endpoints::for_cloud())
            }
            (named, ..) => {
                let address = match named {
                    Some(address) => address,
                    None => DEFAULT_SERVER
                        .parse()
                        .map_err(|e: String| Failure::wrong("client", e))?,
                };
                let endpoints = S2Endpoints::for_endpoint(&address.to_string());
                (
                    address,
                    endpoints.map_err(|e| Failure::wrong("client", e.0))?,
                )
            }
        };
        Ok(Chosen {
            is_hosted: is_hosted(&address),
            address,
            endpoints,
            is_of_s2_variables,
            is_default,
        })
    }
}

/// Whether an address is one of hosted S2.
fn is_hosted(address: &ServerAddress) -> bool {
    let host = address.host().to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let before = host.strip_suffix(HOSTED_DOMAIN);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(named: Option<&str>, variables: &[(&str, &str)]) -> Result<String, Failure> {
        let named = named.map(|text| text.parse().unwrap());
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Chosen::of(named, variable).map(|chosen| chosen.address.to_string())
    }

    #[test]
    fn what_is_named_comes_before_what_the_official_command_line_is_told() {
        let endpoints = [
            ("S2_ACCOUNT_ENDPOINT", "http://10.0.0.1:80"),
            ("S2_BASIN_ENDPOINT", "http://10.0.0.1:80"),
            ("S2_ACCESS_TOKEN", "t"),
        ];
        let named = "http://127.0.0.1:9999";
        assert_eq!(chosen(Some(named), &endpoints).unwrap(), named);
        assert_eq!(chosen(None, &endpoints).unwrap(), "http://10.0.0.1:80");
        assert_eq!(chosen(None, &[]).unwrap(), DEFAULT_SERVER);
        let both = [("S2_ACCESS_TOKEN", "t"), ("ESKER_TOKEN", "t")];
        assert_eq!(chosen(None, &both).unwrap(), DEFAULT_SERVER);
    }

    #[test]
    fn a_token_without_a_server_does_not_go_to_hosted_s2() {
        let token = [("S2_ACCESS_TOKEN", "t")];
        assert_eq!(chosen(None, &token).unwrap(), DEFAULT_SERVER);
        for named in ["https://a.s2.dev", "s2.dev", "http://A.S2.dev"] {
            assert_eq!(chosen(Some(named), &token).unwrap(), "https://a.s2.dev:443");
        }
        for other in ["https://a-s2.dev", "https://s2.dev.example.com"] {
            let named = chosen(Some(other), &token).unwrap();
            assert_eq!(named, format!("{other}:443"));
        }
    }

    #[test]
    fn a_token_that_an_esker_has_issued_is_not_for_hosted_s2() {
        let token = |text: &str| {
            let kind = crate::remote::TOKEN;
            crate::secret_file::of_variable("S2_ACCESS_TOKEN", Some(text.into()), kind).unwrap()
        };
        let refused = of_hosted(token("esk_abc")).unwrap_err();
        assert_eq!((refused.code, refused.exit), ("token", 2));
        assert!(!refused.message.contains("esk_abc"), "{}", refused.message);
        assert!(of_hosted(token("of-s2")).unwrap().is_some());
        assert!(of_hosted(None).unwrap().is_none());
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_as_secure_as_the_sdk_makes_it() {
        let endpoints = [
            ("S2_ACCOUNT_ENDPOINT", "a.example.com"),
            ("S2_BASIN_ENDPOINT", "{basin}.b.example.com"),
        ];
        assert_eq!(
            chosen(None, &endpoints).unwrap(),
            "https://a.example.com:443"
        );
    }

    #[test]
    fn half_a_pair_of_endpoints_is_refused() {
        for name in ["S2_ACCOUNT_ENDPOINT", "S2_BASIN_ENDPOINT"] {
            let failure = chosen(None, &[(name, "http://10.0.0.1:80")]).unwrap_err();
            assert_eq!((failure.code, failure.exit), ("invalid", 2));
        }
    }
}
