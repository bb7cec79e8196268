//! The client for S3 and for compatible stores, built from options, environment and profile.
//!
//! Two defaults of `object_store`'s client are changed. It does not retry: this crate has one budget of
//! attempts for a whole operation, and a conditional put must not be repeated without the caller's
//! knowledge, because the second attempt would be refused due to the success of the first. And a request
//! has no limit for its whole duration, because a large file may take long, but one for the time without a
//! byte.

use std::fmt;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::Url;

use super::http::Connector;
use super::profile::{Keys, Profile};
use super::send_rate::SendRate;
use super::{DestinationError, DestinationOptions, without_user_info};

const DEFAULT_REGION: &str = "us-east-1";

/// Variables that are passed on to `object_store`: where it finds keys if none are given, and other
/// settings.
const PASSED_ON: &[(&str, AmazonS3ConfigKey)] = &[
    (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        AmazonS3ConfigKey::WebIdentityTokenFile,
    ),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
    ),
    (
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
    ),
    ("AWS_METADATA_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
    ("AWS_IMDSV1_FALLBACK", AmazonS3ConfigKey::ImdsV1Fallback),
    ("AWS_SKIP_SIGNATURE", AmazonS3ConfigKey::SkipSignature),
    ("AWS_REQUEST_PAYER", AmazonS3ConfigKey::RequestPayer),
];

/// The settings that result from options, environment and profile.
#[derive(PartialEq, Eq)]
struct Settings {
    region: String,
    /// None: the client uses the role of the machine.
    keys: Option<Keys>,
    endpoint: Option<Url>,
    path_style: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("region", &self.region)
            .field("keys", &self.keys)
            .field("endpoint", &self.endpoint.as_ref().map(Url::as_str))
            .field("path_style", &self.path_style)
            .finish()
    }
}

/// Creates a client for a bucket. Sends no request.
pub(super) fn client(
    bucket: &str,
    display_url: &str,
    options: &DestinationOptions,
    send_rate: &SendRate,
) -> Result<AmazonS3, DestinationError> {
    let settings = settings(bucket, options)?;
    let allow_http = settings
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.scheme() == "http");
    let http = ClientOptions::new().with_allow_http(allow_http);
    let retry = RetryConfig {
        max_retries: 0,
        retry_timeout: options.request_timeout,
        backoff: BackoffConfig::default(),
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(settings.region)
        .with_virtual_hosted_style_request(!settings.path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(http)
        .with_http_connector(Connector {
            silence: options.request_timeout,
            allow_http,
            send_rate: send_rate.clone(),
        })
        .with_retry(retry);
    if let Some(mut endpoint) = settings.endpoint {
        if !settings.path_style {
            let host = format!("{bucket}.{}", endpoint.host_str().unwrap_or_default());
            endpoint.set_host(Some(&host)).map_err(|why| {
                DestinationError::Settings(format!("{host:?} is no host name: {why}"))
            })?;
        }
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    if let Some(keys) = settings.keys {
        builder = builder
            .with_access_key_id(keys.id)
            .with_secret_access_key(keys.secret);
        if let Some(token) = keys.token {
            builder = builder.with_token(token);
        }
    } else {
        tracing::info!(
            destination = display_url,
            "No AWS keys in options, environment or profile: those of the machine's role are asked for"
        );
    }
    for (variable, key) in PASSED_ON {
        if let Some(value) = options.environment.get(variable) {
            builder = builder.with_config(*key, value);
        }
    }
    builder.build().map_err(|source| DestinationError::Client {
        url: display_url.to_owned(),
        source,
    })
}

fn settings(bucket: &str, options: &DestinationOptions) -> Result<Settings, DestinationError> {
    let environment = &options.environment;
    let given = |option: &Option<String>| option.clone().filter(|value| !value.is_empty());
    let chosen = given(&options.aws_profile);
    let named = chosen.clone().or_else(|| environment.get("AWS_PROFILE"));
    let profile = Profile::read(named.as_deref(), environment)?;

    let explicit = || {
        Keys::of(
            "the configuration",
            given(&options.aws_access_key_id),
            given(&options.aws_secret_access_key),
            given(&options.aws_session_token),
        )
    };
    let from_environment = || {
        Keys::of(
            "the environment",
            environment.get("AWS_ACCESS_KEY_ID"),
            environment.get("AWS_SECRET_ACCESS_KEY"),
            environment.get("AWS_SESSION_TOKEN"),
        )
    };
    let keys = match explicit()? {
        Some(keys) => Some(keys),
        // A profile in the configuration is an explicit choice, so variables of a shell do not override it.
        None if chosen.is_some() => profile.keys()?,
        None => match from_environment()? {
            Some(keys) => Some(keys),
            None => profile.keys()?,
        },
    };
    if keys.is_none() && chosen.is_some() {
        return Err(DestinationError::Settings(format!(
            "the AWS profile {:?} has no aws_access_key_id and aws_secret_access_key",
            profile.name
        )));
    }

    let region = given(&options.aws_region)
        .or_else(|| environment.get("AWS_REGION"))
        .or_else(|| environment.get("AWS_DEFAULT_REGION"))
        .or(profile.region)
        .unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let endpoint = given(&options.aws_endpoint_url)
        .or_else(|| environment.get("AWS_ENDPOINT_URL_S3"))
        .or_else(|| environment.get("AWS_ENDPOINT_URL"))
        .or(profile.endpoint_url);
    let allow_http = match options.aws_allow_http {
        Some(allow) => allow,
        None => match environment.get("AWS_ALLOW_HTTP") {
            Some(text) => parse_bool("AWS_ALLOW_HTTP", &text)?,
            None => false,
        },
    };
    let endpoint = endpoint
        .map(|text| parse_endpoint(&text, allow_http))
        .transpose()?;
    Ok(Settings {
        region,
        keys,
        // A wildcard certificate covers one label, so it does not match a bucket's name with a dot.
        path_style: options
            .aws_path_style
            .unwrap_or(endpoint.is_some() || bucket.contains('.')),
        endpoint,
    })
}

fn parse_bool(name: &str, text: &str) -> Result<bool, DestinationError> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(DestinationError::Settings(format!(
            "{name} is {text:?}; it is true or false"
        ))),
    }
}

fn parse_endpoint(text: &str, allow_http: bool) -> Result<Url, DestinationError> {
    let bad = |why: &str| {
        let shown = without_user_info(text);
        DestinationError::Settings(format!("the S3 endpoint {shown:?} cannot be used: {why}"))
    };
    if !text.contains("://") {
        return Err(bad("it has to begin with https:// (or http://)"));
    }
    let url = Url::parse(text).map_err(|why| bad(&why.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("credentials do not belong into it"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a query or fragment means nothing here"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_http => Ok(url),
        "http" => Err(bad(
            "over http anybody on the way can read and change what passes; use https, or set \
             aws-allow-http = true (AWS_ALLOW_HTTP=true) if that network is trusted",
        )),
        _ => Err(bad("it has to begin with https:// (or http://)")),
    }
}
