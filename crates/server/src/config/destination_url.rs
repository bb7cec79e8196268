//! Checks the form of snapshot destinations, as users write them. The node finds out whether there is
//! such a place.

/// What a destination may be, for messages.
pub(super) const DESTINATIONS: &str =
    "`s3://bucket/prefix`, `file:///directory` or the path of a directory";

/// What an endpoint may be, for messages.
pub(super) const ENDPOINTS: &str = "a URL such as `https://minio.example:9000`";

/// A destination of the right form.
pub(super) fn destination(text: &str) -> Result<&str, String> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("it is not UTF-8".into());
    }
    if text.chars().any(char::is_control) {
        return Err("it contains a control character".into());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text {
            "" => Err("it is empty".into()),
            _ if text.starts_with("s3:") || text.starts_with("file:") => {
                Err("two slashes are missing after the colon".into())
            }
            path => not_for_a_shell(path),
        };
    };
    if rest.contains(['?', '#']) {
        return Err("it has a query or a fragment, which means nothing here".into());
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return Err(
            "credentials do not belong into it; use `aws-access-key-id` and \
             `aws-secret-access-key`, the environment or a profile"
                .into(),
        );
    }
    match scheme.to_ascii_lowercase().as_str() {
        "s3" => bucket(host, path).map(|()| text),
        "file" if !matches!(host, "" | "localhost") || path.is_empty() => {
            Err("a file URL is absolute and has no host".into())
        }
        "file" => not_for_a_shell(path).map(|_| text),
        _ => Err("it begins with neither s3:// nor file://".into()),
    }
}

/// A path that is meant literally: no shell has expanded it, so `~/data` would name a directory `~`.
pub(super) fn not_for_a_shell(path: &str) -> Result<&str, String> {
    let home = path
        .split('/')
        .next()
        .is_some_and(|first| first.starts_with('~'));
    let variable = path.split('$').skip(1).any(|rest| {
        let begins = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '{' | '(');
        rest.starts_with(begins)
    });
    match home || variable {
        true => Err(
            "`~` and `$…` are expanded by shells, and not here: write the whole path (`./~` is the \
             directory of that name)"
                .into(),
        ),
        false => Ok(path),
    }
}

fn bucket(name: &str, prefix: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the bucket is missing".into());
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(fits) || name.starts_with('.') {
        return Err(
            "its bucket has a character that is no letter, digit, dot or hyphen; a host or port \
             belongs into `aws-endpoint-url`"
                .into(),
        );
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let odd = |segment: &str| matches!(segment, "" | "." | "..");
    match !prefix.is_empty() && prefix.split('/').any(odd) {
        true => Err("its prefix has a segment that is empty or dots".into()),
        false => Ok(()),
    }
}

/// The URL of a store, of the right form.
pub(super) fn endpoint(text: &str) -> Result<&str, String> {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .ok_or(match text {
            "" => "it is empty",
            _ => "it begins with neither https:// nor http://",
        })?;
    match rest.split(['/', ':']).next() {
        _ if rest.contains('@') => Err("credentials do not belong into it".into()),
        _ if rest.contains(['?', '#']) => {
            Err("it has a query or a fragment, which means nothing here".into())
        }
        _ if rest.contains(|c: char| c.is_control() || c.is_whitespace()) => {
            Err("it contains a space or a control character".into())
        }
        None | Some("") => Err("the host is missing".into()),
        Some(_) => Ok(text),
    }
}

/// A URL that may be shown: what could be a password is removed.
pub(super) fn without_user_info(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    match rest.rfind('@') {
        Some(at) => format!("{scheme}…{}", &rest[at..]),
        None => url.into(),
    }
}
