//! Where a repository is: an S3-compatible bucket or a local directory, by URL.
//!
//! A [`Destination`] is an `object_store` with a prefix in it and a name for people. What this crate
//! needs of a store is that conditional puts tell the truth; [`probe()`] finds out.
//!
//! - [`local`]: a directory as an object store with compare-and-swap
//! - `http`: how requests to S3 go out, with deadlines about progress
//! - `s3`: settings from options, environment and profile files, and the client made of them
//! - `profile`: reads `~/.aws/config` and `~/.aws/credentials`
//! - [`mod@probe`]: finds stores that lie
//!
//! | URL | what it is |
//! |---|---|
//! | `s3://bucket`, `s3://bucket/some/prefix` | a bucket; the prefix is taken literally, `%` and all |
//! | `file:///some/dir` | an absolute directory, percent-encoded as URLs are |
//! | `/some/dir`, `some/dir` | a directory; a relative one is below the working directory of now |

mod http;
pub mod local;
pub mod probe;
mod profile;
mod s3;
mod seen;

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

pub use probe::{ProbeError, probe};

/// A URL or a setting that cannot be used. No message has a secret in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// The URL names no destination.
    #[error("{url:?} cannot be used as a destination: {why}")]
    Url {
        /// As it was given, without user info.
        url: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Options, environment or profile do not fit together.
    #[error("{0}")]
    Settings(String),
    /// A directory, or a file with profiles.
    #[error("cannot use {}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The client could not be made.
    #[error("cannot make a client for {url}: {source}")]
    Client {
        /// The destination.
        url: String,
        /// What `object_store` says.
        source: object_store::Error,
    },
}

/// How to reach a destination. Its `Debug` output shows no secrets.
///
/// For each setting of S3, an option wins over the process's environment and that over the profile.
/// Credentials are taken from one place as a whole:
///
/// 1. `aws_access_key_id`, `aws_secret_access_key` and `aws_session_token`;
/// 2. the profile, if `aws_profile` names one;
/// 3. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`;
/// 4. the profile that `AWS_PROFILE` names, or `default`;
/// 5. a web identity, the container's or the instance's role.
#[derive(Clone)]
pub struct DestinationOptions {
    /// A profile in `~/.aws/credentials` and `~/.aws/config`. It needs to have keys of its own: SSO,
    /// assumed roles and credential processes are refused.
    pub aws_profile: Option<String>,
    /// Else `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's, `us-east-1`.
    pub aws_region: Option<String>,
    /// Needs `aws_secret_access_key` as well.
    pub aws_access_key_id: Option<String>,
    /// Needs `aws_access_key_id` as well.
    pub aws_secret_access_key: Option<String>,
    /// For temporary keys.
    pub aws_session_token: Option<String>,
    /// Of another store than Amazon's: `https://minio.example:9000`. Else `AWS_ENDPOINT_URL_S3`,
    /// `AWS_ENDPOINT_URL`, the profile's `endpoint_url`.
    pub aws_endpoint_url: Option<String>,
    /// Whether an endpoint may be `http://`, where anybody on the way can read and change what passes.
    /// Else `AWS_ALLOW_HTTP`, no.
    pub aws_allow_http: Option<bool>,
    /// Whether the bucket is in the path of a request instead of the host name. Else yes if there is an
    /// endpoint or the bucket's name has a dot, else no.
    pub aws_path_style: Option<bool>,
    /// Whether files may become objects of a local directory by a hard link.
    pub hard_links: bool,
    /// How long S3 may take nothing and send nothing: while a body goes out, while an answer is awaited
    /// (or as long as the body took, if that is longer), and while one is read.
    pub request_timeout: Duration,
    /// Where variables and the home directory come from.
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

/// In the place of a secret.
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

/// The value of a variable.
type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Variables and the home directory: the process's own, or a test's.
#[derive(Clone)]
pub struct Environment {
    variables: Arc<Variables>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The process's. A variable that is not UTF-8 counts as unset.
    pub fn process() -> Environment {
        Environment::new(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// No variables and no home: nothing but the options counts.
    pub fn empty() -> Environment {
        Environment::new(|_| None, None)
    }

    /// What a function says.
    pub fn new(
        variables: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        home: Option<PathBuf>,
    ) -> Environment {
        Environment {
            variables: Arc::new(variables),
            home,
        }
    }

    /// A variable that is set, and not to nothing.
    fn get(&self, name: &str) -> Option<String> {
        (self.variables)(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

/// An object store, and where in it. Cheap to clone.
#[derive(Clone)]
pub struct Destination {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    local: Option<LocalStore>,
    prefix: Path,
    display_url: String,
    seen: Seen,
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
    /// Finds the store that a URL names. See the [module](self) for the URLs.
    ///
    /// Asks nothing of S3, so a wrong key shows with the first request. Blocks: reads profile files,
    /// and removes temporary files that crashed processes left in a directory over 24 hours ago. A
    /// directory that does not exist is made by the first put.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL or the settings; nothing about the store itself.
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
            let s3 = Arc::new(s3::client(bucket, &display_url, options)?);
            Ok(Destination {
                store: s3.clone(),
                multipart: Some(s3),
                local: None,
                prefix,
                display_url,
                seen: Seen::default(),
            })
        } else if scheme.eq_ignore_ascii_case("file") {
            open_directory(&parse_file_url(url).map_err(bad)?, options)
        } else {
            Err(bad(&format!("{scheme}:// is not supported; {known}")))
        }
    }

    /// A store that the caller made, for embedding and for simulations. `display_url` is its name for people,
    /// with the prefix and without secrets.
    pub fn of_store(store: Arc<dyn ObjectStore>, prefix: Path, display_url: String) -> Destination {
        Destination {
            store,
            multipart: None,
            local: None,
            prefix,
            display_url,
            seen: Seen::default(),
        }
    }

    /// Lets large objects be written to a store that the caller made in parts that are tried again one
    /// by one. It has to be the same store.
    #[must_use]
    pub fn with_multipart(mut self, multipart: Arc<dyn MultipartStore>) -> Destination {
        self.multipart = Some(multipart);
        self
    }

    /// The store. What belongs to this destination begins with [`prefix`](Destination::prefix).
    ///
    /// It tries nothing a second time: an error is of one request.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The same store, if its uploads in parts can be driven part by part. A local directory's cannot;
    /// [`ObjectStore::put_multipart_opts`] works there.
    pub fn multipart(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.multipart.as_ref()
    }

    /// Where in the store; empty for all of it.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Its URL for people, without a slash at the end and without credentials.
    pub fn display_url(&self) -> &str {
        &self.display_url
    }

    /// The id in the destination's marker, if this process has put something there, or was told it
    /// with [`expect`](Destination::expect).
    pub fn id(&self) -> Option<DestinationId> {
        self.seen.get()
    }

    /// The id that an earlier process has seen there: nothing is put where the marker is missing, or
    /// has another id. Holds for all clones.
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
    })
}

/// What follows `s3://`. It is no URL in the strict sense: keys may have any characters, so a `%` is a
/// `%`; but what looks like a query or like user info is more likely a mistake than a key.
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

/// A URL as it may be shown: what could be a password is cut out.
fn without_user_info(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // A secret may have a slash in it, so that what follows counts as well.
    match rest[..end].rfind('@').or_else(|| rest.rfind('@')) {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => url.to_owned(),
    }
}
