//! Where a repository is: an S3-compatible bucket or a local directory, by URL.
//!
//! A [`Destination`] is an `object_store` with a prefix in it and a URL for display. This crate requires of
//! a store that its conditional puts are reliable; [`probe()`] tests that.
//!
//! - [`local`]: a directory as an object store with compare-and-swap
//! - `http`: sends requests to S3, and fails those that make no progress
//! - `s3`: the settings from options, environment and profile files, and the client built from them
//! - `profile`: reads `~/.aws/config` and `~/.aws/credentials`
//! - [`mod@probe`]: finds stores whose conditional puts or reads are wrong
//!
//! | URL | what it is |
//! |---|---|
//! | `s3://bucket`, `s3://bucket/some/prefix` | a bucket; the prefix is taken literally, `%` included |
//! | `file:///some/dir` | an absolute directory, percent-encoded as URLs are |
//! | `/some/dir`, `some/dir` | a directory; a relative path is resolved against the working directory |

mod http;
pub mod local;
pub mod probe;
mod profile;
mod s3;
mod seen;
mod send_rate;

use std::fmt;
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use url::Url;

pub use local::LocalStore;

use crate::ids::DestinationId;
use seen::Seen;
use send_rate::SendRate;

pub use probe::{ProbeError, probe};

/// A URL or a setting that cannot be used. No message contains a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// The URL names no destination.
    #[error("{url:?} cannot be used as a destination: {why}")]
    Url {
        /// The URL as given, without user info.
        url: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Options, environment or profile do not fit together.
    #[error("{0}")]
    Settings(String),
    /// A directory or a profile file cannot be used.
    #[error("cannot use {}: {source}", .path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The error of the file system or of the parser.
        source: io::Error,
    },
    /// The client could not be created.
    #[error("cannot make a client for {url}: {source}")]
    Client {
        /// The destination.
        url: String,
        /// The error of `object_store`.
        source: object_store::Error,
    },
}

/// How to reach a destination. Its `Debug` output shows no secrets.
///
/// For each setting of S3, the option has precedence over the process's environment, and that over the
/// profile.
/// Credentials are taken from one place as a whole:
///
/// 1. `aws_access_key_id`, `aws_secret_access_key` and `aws_session_token`;
/// 2. the profile, if `aws_profile` names one;
/// 3. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`;
/// 4. the profile that `AWS_PROFILE` names, or `default`;
/// 5. a web identity, the container's or the instance's role.
#[derive(Clone)]
pub struct DestinationOptions {
    /// A profile in `~/.aws/credentials` and `~/.aws/config`. It must have static keys: SSO, assumed roles
    /// and credential processes are refused.
    pub aws_profile: Option<String>,
    /// If not set: `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's region, `us-east-1`.
    pub aws_region: Option<String>,
    /// Requires `aws_secret_access_key`.
    pub aws_access_key_id: Option<String>,
    /// Requires `aws_access_key_id`.
    pub aws_secret_access_key: Option<String>,
    /// For temporary keys.
    pub aws_session_token: Option<String>,
    /// The endpoint of a store that is not Amazon's: `https://minio.example:9000`. If not set:
    /// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the profile's `endpoint_url`.
    pub aws_endpoint_url: Option<String>,
    /// Whether an endpoint may be `http://`, where anybody on the network path can read and change requests
    /// and answers. If not set: `AWS_ALLOW_HTTP`, else no.
    pub aws_allow_http: Option<bool>,
    /// Whether the bucket is in the path of a request instead of the host name. If not set: yes if there is
    /// an endpoint or the bucket's name has a dot, else no.
    pub aws_path_style: Option<bool>,
    /// Whether a file may become an object of a local directory by a hard link.
    pub hard_links: bool,
    /// Time without progress after which a request to S3 fails: while its body is sent, while its answer is
    /// awaited (or as long as the body took, if that is longer), and while the answer's body is read.
    pub request_timeout: Duration,
    /// The source of variables and of the home directory.
    pub environment: Environment,
}

impl Default for DestinationOptions {
    fn default() -> DestinationOptions {
        DestinationOptions {
            aws_profile: None,
            aws_region: None,
            aws_access_key_id: None,
            aws_secret_access_key: None,
            aws_session_token: None,
            aws_endpoint_url: None,
            aws_allow_http: None,
            aws_path_style: None,
            hard_links: true,
            request_timeout: Duration::from_secs(60),
            environment: Environment::process(),
        }
    }
}

/// What is printed instead of a secret.
fn hidden<T>(secret: &Option<T>) -> Option<&'static str> {
    secret.as_ref().map(|_| "(hidden)")
}

impl fmt::Debug for DestinationOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationOptions")
            .field("aws_profile", &self.aws_profile)
            .field("aws_region", &self.aws_region)
            .field("aws_access_key_id", &hidden(&self.aws_access_key_id))
            .field(
                "aws_secret_access_key",
                &hidden(&self.aws_secret_access_key),
            )
            .field("aws_session_token", &hidden(&self.aws_session_token))
            .field(
                "aws_endpoint_url",
                &self.aws_endpoint_url.as_deref().map(without_user_info),
            )
            .field("aws_allow_http", &self.aws_allow_http)
            .field("aws_path_style", &self.aws_path_style)
            .field("hard_links", &self.hard_links)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

/// Returns the value of a variable.
type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The source of variables and of the home directory: the process's own, or a test's.
#[derive(Clone)]
pub struct Environment {
    variables: Arc<Variables>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The process's environment. A variable that is not UTF-8 counts as unset.
    pub fn process() -> Environment {
        Environment::new(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// No variables and no home directory: only the options apply.
    pub fn empty() -> Environment {
        Environment::new(|_| None, None)
    }

    /// Variables are looked up with a function; `home` is the home directory, if there is one.
    pub fn new(
        variables: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        home: Option<PathBuf>,
    ) -> Environment {
        Environment {
            variables: Arc::new(variables),
            home,
        }
    }

    /// The value of a variable; none if it is unset or empty.
    fn get(&self, name: &str) -> Option<String> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

/// An object store, and the prefix of this destination's keys in it. Cheap to clone.
#[derive(Clone)]
pub struct Destination {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    local: Option<LocalStore>,
    prefix: Path,
    display_url: String,
    seen: Seen,
    /// How fast the bodies of requests to S3 are sent.
    send_rate: SendRate,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Destination")
            .field(&self.display_url)
            .finish()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display_url)
    }
}

impl Destination {
    /// Opens the store that a URL names. See the [module](self) for the URLs.
    ///
    /// Sends no request to S3, so a wrong key is reported by the first request only. Blocks: reads profile
    /// files, and removes temporary files that crashed processes left in a directory over 24 hours ago. A
    /// directory that does not exist is created by the first put.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL or the settings. The store itself is not checked.
    ///
    /// # Examples
    ///
    /// ```
    /// use esker_repository::destination::{Destination, DestinationOptions};
    ///
    /// let options = DestinationOptions::default();
    /// let destination = Destination::open("file:///srv/snapshots", &options)?;
    /// assert_eq!(destination.display_url(), "file:///srv/snapshots");
    /// assert!(Destination::open("s3:///no-bucket", &options).is_err());
    /// # Ok::<(), esker_repository::destination::DestinationError>(())
    /// ```
    pub fn open(url: &str, options: &DestinationOptions) -> Result<Destination, DestinationError> {
        let bad = |why: &str| DestinationError::Url {
            url: without_user_info(url),
            why: why.to_owned(),
        };
        let known = "use s3://bucket/prefix, file:///directory or the path of a directory";
        let Some((scheme, rest)) = url.split_once("://") else {
            return match url {
                "" => Err(bad(&format!("it is empty; {known}"))),
                _ if url.starts_with("s3:") || url.starts_with("file:") => Err(bad(&format!(
                    "two slashes are missing after the colon; {known}"
                ))),
                path if path.contains('\0') => Err(bad("it has a zero byte")),
                path => open_directory(FsPath::new(path), options),
            };
        };
        if scheme.eq_ignore_ascii_case("s3") {
            let (bucket, prefix) = parse_bucket(rest).map_err(|why| bad(&why))?;
            let display_url = match prefix.as_ref() {
                "" => format!("s3://{bucket}"),
                prefix => format!("s3://{bucket}/{prefix}"),
            };
            let send_rate = SendRate::default();
            let s3 = Arc::new(s3::client(bucket, &display_url, options, &send_rate)?);
            Ok(Destination {
                store: s3.clone(),
                multipart: Some(s3),
                local: None,
                prefix,
                display_url,
                seen: Seen::default(),
                send_rate,
            })
        } else if scheme.eq_ignore_ascii_case("file") {
            open_directory(&parse_file_url(url).map_err(bad)?, options)
        } else {
            Err(bad(&format!("{scheme}:// is not supported; {known}")))
        }
    }

    /// A store that the caller created, for embedding and for simulations. `display_url` is its URL for
    /// display, with the prefix and without secrets.
    pub fn of_store(store: Arc<dyn ObjectStore>, prefix: Path, display_url: String) -> Destination {
        Destination {
            store,
            multipart: None,
            local: None,
            prefix,
            display_url,
            seen: Seen::default(),
            send_rate: SendRate::default(),
        }
    }

    /// Sets how fast the body of each request to S3 is sent, in bytes a second; `None`: as fast as the
    /// network takes it. It smooths what a [`RateLimiter`](crate::RateLimiter) admits in parts of 8 MiB.
    pub fn set_send_rate(&self, per_second: Option<std::num::NonZeroU64>) {
        self.send_rate.set(per_second);
    }

    /// Lets large objects of a store that the caller created be written in parts, each of which is retried
    /// alone. `multipart` must be the same store.
    #[must_use]
    pub fn with_multipart(mut self, multipart: Arc<dyn MultipartStore>) -> Destination {
        self.multipart = Some(multipart);
        self
    }

    /// The store. The keys of this destination begin with [`prefix`](Destination::prefix).
    ///
    /// It retries nothing: each error is that of one request.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The same store, if the parts of a multipart upload can be sent one by one. None for a local
    /// directory; [`ObjectStore::put_multipart_opts`] works there.
    pub fn multipart(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.multipart.as_ref()
    }

    /// The prefix of this destination's keys; empty for the whole store.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Its URL for display, without a slash at the end and without credentials.
    pub fn display_url(&self) -> &str {
        &self.display_url
    }

    /// The id in the destination's marker, if this process has put something there, or has set it with
    /// [`expect`](Destination::expect).
    pub fn id(&self) -> Option<DestinationId> {
        self.seen.get()
    }

    /// Sets the id that an earlier process has seen there: nothing is put if the marker is missing or has
    /// another id. Applies to all clones.
    pub fn expect(&self, id: DestinationId) {
        self.seen.set(id);
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The store, if it is a local directory.
    pub fn local(&self) -> Option<&LocalStore> {
        self.local.as_ref()
    }
}

fn open_directory(
    path: &FsPath,
    options: &DestinationOptions,
) -> Result<Destination, DestinationError> {
    let store =
        LocalStore::open(path, options.hard_links).map_err(|source| DestinationError::Io {
            path: path.to_owned(),
            source,
        })?;
    let display_url = match Url::from_file_path(store.root()) {
        Ok(url) => url.as_str().trim_end_matches('/').to_owned(),
        Err(()) => store.root().display().to_string(),
    };
    Ok(Destination {
        store: Arc::new(store.clone()),
        multipart: None,
        local: Some(store),
        prefix: Path::ROOT,
        display_url,
        seen: Seen::default(),
        send_rate: SendRate::default(),
    })
}

/// Parses what follows `s3://`. This is not a URL in the strict sense: keys may have any characters, so a
/// `%` is a `%`. What looks like a query or like user info is refused, because it is more likely a mistake
/// than a key.
fn parse_bucket(rest: &str) -> Result<(&str, Path), String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err(
            "credentials do not belong into the URL; use aws-access-key-id and \
             aws-secret-access-key, the environment or a profile"
                .to_owned(),
        );
    }
    if rest.contains(['?', '#']) {
        return Err("a query or fragment means nothing here; use the aws-… settings".to_owned());
    }
    if bucket.is_empty() {
        return Err("the bucket is missing; use s3://bucket/prefix".to_owned());
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !bucket.bytes().all(fits) || bucket.starts_with('.') {
        return Err(format!(
            "{bucket:?} is no bucket's name: letters, digits, dots, hyphens. A port or a host \
             belongs into aws-endpoint-url"
        ));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    for segment in prefix.split('/').filter(|_| !prefix.is_empty()) {
        if matches!(segment, "" | "." | "..") || segment.chars().any(char::is_control) {
            return Err(format!(
                "its prefix has the segment {segment:?}; segments are not empty, not dots, and \
                 have no control characters"
            ));
        }
    }
    let prefix = Path::parse(prefix).map_err(|why| why.to_string())?;
    Ok((bucket, prefix))
}

fn parse_file_url(text: &str) -> Result<PathBuf, &'static str> {
    let absolute = "a file URL is absolute and has no host: file:///directory";
    let url = Url::parse(text).map_err(|_| absolute)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a query or fragment means nothing here; write ? as %3F and # as %23");
    }
    if url.host_str().is_some_and(|host| host != "localhost") || url.path().is_empty() {
        return Err(absolute);
    }
    url.to_file_path().map_err(|()| absolute)
}

/// A URL for display: what could be a password is removed.
fn without_user_info(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // A secret may contain a slash, so what follows one is searched as well.
    match rest[..end].rfind('@').or_else(|| rest.rfind('@')) {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => url.to_owned(),
    }
}
