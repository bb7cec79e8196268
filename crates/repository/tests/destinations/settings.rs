//! URLs of destinations, the precedence of settings, and that no secret is printed.

use std::collections::HashMap;
use std::path::Path as FsPath;

use esker_repository::destination::{
    Destination, DestinationError, DestinationOptions, Environment,
};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use testkit_s3::S3Server;

fn environment(variables: &[(&str, &str)], home: Option<&FsPath>) -> Environment {
    let variables: HashMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Environment::new(
        move |name| variables.get(name).cloned(),
        home.map(Into::into),
    )
}

fn options(environment: Environment) -> DestinationOptions {
    DestinationOptions {
        environment,
        ..DestinationOptions::default()
    }
}

/// A home directory with profiles.
fn home(credentials: &str, config: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".aws");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("credentials"), credentials).unwrap();
    std::fs::write(dir.join("config"), config).unwrap();
    home
}

const CREDENTIALS: &str = "
# Not a comment within a line: a secret with a hash.
[default]
aws_access_key_id = DEFAULT
aws_secret_access_key = de#fault

[work]
aws_access_key_id=WORK
aws_secret_access_key=work
aws_session_token=token
";

const CONFIG: &str = "
[default]
region = eu-default-1
s3 =
  region = not-this-one
  max_concurrent_requests = 20

[profile work]
region = eu-work-1
aws_access_key_id = NOT-WORK
aws_secret_access_key = x

[profile sso]
sso_session = corp
region = eu-sso-1

[profile role]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = default

[profile process]
credential_process = /bin/keys

[profile half]
aws_access_key_id = HALF
";

/// The access key id and the region that a request is signed with.
async fn signed_with(server: &S3Server, mut options: DestinationOptions) -> (String, String) {
    server.bucket("bucket");
    server.forget();
    options
        .aws_endpoint_url
        .get_or_insert_with(|| server.endpoint());
    options.aws_allow_http = Some(true);
    let destination = Destination::open("s3://bucket", &options).unwrap();
    let _ = destination.store().head(&Path::from("x")).await;
    let log = server.log();
    let mut credential = log[0].credential.split('/');
    let id = credential.next().unwrap().to_owned();
    (id, credential.nth(1).unwrap().to_owned())
}

fn pair(id: &str, region: &str) -> (String, String) {
    (id.to_owned(), region.to_owned())
}

#[tokio::test]
async fn options_win_over_the_environment_and_that_over_profiles() {
    let server = S3Server::start().await;
    let home = home(CREDENTIALS, CONFIG);
    let keys = [
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", "env"),
    ];
    let region = [
        ("AWS_DEFAULT_REGION", "eu-second-1"),
        ("AWS_REGION", "eu-env-1"),
    ];
    let here = Some(home.path());

    let mut all = options(environment(&[keys, region].concat(), here));
    all.aws_access_key_id = Some("OPTION".to_owned());
    all.aws_secret_access_key = Some("option".to_owned());
    all.aws_region = Some("eu-option-1".to_owned());
    assert_eq!(
        signed_with(&server, all).await,
        pair("OPTION", "eu-option-1")
    );

    let of_environment = options(environment(&[keys, region].concat(), here));
    assert_eq!(
        signed_with(&server, of_environment).await,
        pair("ENV", "eu-env-1")
    );

    let of_default = options(environment(&[("AWS_REGION", "")], here));
    assert_eq!(
        signed_with(&server, of_default).await,
        pair("DEFAULT", "eu-default-1")
    );

    let work = options(environment(&[("AWS_PROFILE", "work")], here));
    assert_eq!(signed_with(&server, work).await, pair("WORK", "eu-work-1"));

    let mixed = options(environment(
        &[&keys[..], &[("AWS_PROFILE", "work")]].concat(),
        here,
    ));
    assert_eq!(signed_with(&server, mixed).await, pair("ENV", "eu-work-1"));

    let mut chosen = options(environment(&keys, here));
    chosen.aws_profile = Some("work".to_owned());
    assert_eq!(
        signed_with(&server, chosen).await,
        pair("WORK", "eu-work-1"),
        "a profile in the configuration wins over keys that are left in a shell"
    );
}

#[tokio::test]
async fn files_and_endpoints_can_be_named_by_variables() {
    let (server, other) = (S3Server::start().await, S3Server::start().await);
    let home = home("", "");
    let credentials = home.path().join("keys");
    std::fs::write(&credentials, CREDENTIALS).unwrap();
    let config = home.path().join("settings");
    let text = format!("[default]\nendpoint_url = {}\n", other.endpoint());
    std::fs::write(&config, text).unwrap();
    let files = [
        ("AWS_SHARED_CREDENTIALS_FILE", "~/keys"),
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let here = Some(home.path());
    let of_profile = options(environment(&files, here));
    let destination = Destination::open("s3://bucket", &of_profile).unwrap();
    let _ = destination.store().head(&Path::from("x")).await;
    assert!(other.log()[0].credential.starts_with("DEFAULT/"));

    let endpoint = server.endpoint();
    let variables = [
        ("AWS_ENDPOINT_URL", "https://not-this-one.invalid"),
        ("AWS_ENDPOINT_URL_S3", endpoint.as_str()),
    ];
    let of_variable = options(environment(&[&files[..], &variables].concat(), here));
    let destination = Destination::open("s3://bucket", &of_variable).unwrap();
    let _ = destination.store().head(&Path::from("x")).await;
    assert_eq!((server.total(), other.total()), (1, 1));
}

/// The message for settings that are refused.
fn refused(options: &DestinationOptions) -> String {
    match Destination::open("s3://bucket", options) {
        Err(DestinationError::Settings(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn profiles_that_need_more_than_their_file_are_refused_by_name() {
    let home = home(CREDENTIALS, CONFIG);
    for (profile, words) in [
        ("sso", "sso_session"),
        ("role", "role_arn"),
        ("process", "credential_process"),
        ("half", "secret access key"),
        ("missing", "there is no AWS profile \"missing\""),
    ] {
        let variables = environment(&[("AWS_PROFILE", profile)], Some(home.path()));
        let message = refused(&options(variables));
        assert!(message.contains(words), "{profile}: {message}");
    }
    // With keys from another place, the profile needs no keys.
    let variables = [
        ("AWS_PROFILE", "sso"),
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", "env"),
    ];
    let enough = options(environment(&variables, Some(home.path())));
    Destination::open("s3://bucket", &enough).unwrap();
}

#[test]
fn half_a_key_pair_is_refused() {
    let mut half = options(Environment::empty());
    half.aws_access_key_id = Some("ID".to_owned());
    assert!(refused(&half).contains("no secret access key"));
    let half = options(environment(&[("AWS_SECRET_ACCESS_KEY", "secret")], None));
    assert!(refused(&half).contains("no access key id"));
}

#[test]
fn an_endpoint_without_tls_has_to_be_allowed() {
    let mut plain = options(Environment::empty());
    plain.aws_endpoint_url = Some("http://127.0.0.1:9000".to_owned());
    assert!(refused(&plain).contains("aws-allow-http"));
    plain.environment = environment(&[("AWS_ALLOW_HTTP", "maybe")], None);
    assert!(refused(&plain).contains("AWS_ALLOW_HTTP"));
    plain.environment = environment(&[("AWS_ALLOW_HTTP", "true")], None);
    Destination::open("s3://bucket", &plain).unwrap();
    plain.aws_allow_http = Some(false);
    assert!(refused(&plain).contains("aws-allow-http"));
    for odd in [
        "127.0.0.1:9000",
        "ftp://x",
        "https://u:hunter2@x",
        "https://x?y",
    ] {
        plain.aws_endpoint_url = Some(odd.to_owned());
        let message = refused(&plain);
        assert!(message.contains("endpoint"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_url_that_is_no_destination_is_refused_with_what_to_do() {
    let options = options(Environment::empty());
    for (url, words) in [
        ("", "s3://bucket/prefix"),
        ("s3://", "bucket is missing"),
        ("s3:///prefix", "bucket is missing"),
        ("s3:bucket", "two slashes"),
        ("s3://bucket?region=x", "query"),
        ("s3://bucket/p#x", "fragment"),
        ("s3://id:hunter2@bucket/x", "credentials do not belong"),
        ("s3://bucket:9000/x", "aws-endpoint-url"),
        ("s3://bucket//x", "segment \"\""),
        ("s3://bucket/a/../b", "segment \"..\""),
        ("s3://bucket/a\nb", "control characters"),
        ("gs://bucket", "gs:// is not supported"),
        (
            "https://bucket.s3.amazonaws.com",
            "https:// is not supported",
        ),
        ("file://relative/dir", "file:///directory"),
        ("file:///dir?x", "query"),
    ] {
        let error = Destination::open(url, &options).unwrap_err();
        assert!(
            matches!(error, DestinationError::Url { .. }),
            "{url}: {error:?}"
        );
        let message = error.to_string();
        assert!(message.contains(words), "{url}: {message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_destination_knows_its_prefix_and_its_name() {
    let options = options(Environment::empty());
    for (url, prefix, shown) in [
        ("s3://bucket", "", "s3://bucket"),
        ("s3://bucket/", "", "s3://bucket"),
        ("S3://bucket/a/b c%20/", "a/b c%20", "s3://bucket/a/b c%20"),
        ("file:///srv/a%20b/", "", "file:///srv/a%20b"),
        ("file://localhost/srv", "", "file:///srv"),
        ("/srv/x", "", "file:///srv/x"),
    ] {
        let destination = Destination::open(url, &options).unwrap();
        assert_eq!(destination.prefix().as_ref(), prefix, "{url}");
        assert_eq!(destination.display_url(), shown, "{url}");
    }
    let relative = Destination::open("some/dir", &options).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(relative.local().unwrap().root(), here.join("some/dir"));
}

#[test]
fn no_secret_is_shown() {
    let home = home(
        "[default]\naws_access_key_id = hunter1\nbroken [\n[hunter3\n",
        "",
    );
    let variables = environment(&[("AWS_SECRET_ACCESS_KEY", "hunter4")], Some(home.path()));
    let mut options = options(variables);
    options.aws_access_key_id = Some("hunter5".to_owned());
    options.aws_secret_access_key = Some("hunter6".to_owned());
    options.aws_session_token = Some("hunter7".to_owned());
    options.aws_endpoint_url = Some("https://x:hunter8@host".to_owned());
    let error = Destination::open("s3://bucket", &options).unwrap_err();
    let mut shown = format!("{options:?} {error:?} {error}");
    options.environment = Environment::empty();
    options.aws_endpoint_url = None;
    let destination = Destination::open("s3://bucket", &options).unwrap();
    shown += &format!(
        "{destination:?} {destination} {:?}",
        destination.display_url()
    );
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(
        shown.contains("line "),
        "but where a file is broken: {shown}"
    );
}
