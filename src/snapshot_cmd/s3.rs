//! Credentials and settings of S3, as arguments, and the opening of a bucket or a directory.

use esker_repository::Destination;
use esker_repository::destination::{DestinationError, DestinationOptions};

use crate::failure::Failure;

#[derive(clap::Args)]
pub struct S3Args {
    /// Take keys and settings from this profile in ~/.aws
    #[arg(long, global = true, value_name = "NAME", help_heading = "S3")]
    aws_profile: Option<String>,

    /// The bucket's region
    #[arg(long, global = true, value_name = "REGION", help_heading = "S3")]
    aws_region: Option<String>,

    /// An access key [default: AWS_ACCESS_KEY_ID, then the profile, then the machine's role]
    #[arg(long, global = true, value_name = "ID", help_heading = "S3")]
    aws_access_key_id: Option<String>,

    /// Its secret; better in AWS_SECRET_ACCESS_KEY, as others see arguments
    #[arg(long, global = true, value_name = "SECRET", help_heading = "S3")]
    aws_secret_access_key: Option<String>,

    /// The token of temporary keys; better in AWS_SESSION_TOKEN
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "S3")]
    aws_session_token: Option<String>,

    /// Endpoint of a store other than Amazon's
    #[arg(long, global = true, value_name = "URL", help_heading = "S3")]
    aws_endpoint_url: Option<String>,

    /// Allow an http:// endpoint: anyone on the network path can read and change the data
    #[arg(long, global = true, help_heading = "S3")]
    aws_allow_http: bool,
}

impl S3Args {
    /// The options of the library. The environment supplies what is not given here.
    pub fn options(self) -> DestinationOptions {
        DestinationOptions {
            aws_profile: self.aws_profile,
            aws_region: self.aws_region,
            aws_access_key_id: self.aws_access_key_id,
            aws_secret_access_key: self.aws_secret_access_key,
            aws_session_token: self.aws_session_token,
            aws_endpoint_url: self.aws_endpoint_url,
            // Without the flag, the environment may allow it.
            aws_allow_http: self.aws_allow_http.then_some(true),
            ..DestinationOptions::default()
        }
    }
}

/// Opens a bucket or a directory. Sends nothing to a store.
pub fn open(url: &str, options: &DestinationOptions) -> Result<Destination, Failure> {
    Destination::open(url, options).map_err(|error| match &error {
        DestinationError::Url { .. } => Failure::usage("repository", error),
        DestinationError::Io { .. } => Failure::wrong("io", error),
        _ => Failure::usage("credentials", error),
    })
}

/// Where credentials come from, in the order in which the library looks.
pub fn keys(options: &DestinationOptions) -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if options.aws_access_key_id.is_some() {
        "the keys in --aws-access-key-id and --aws-secret-access-key".to_owned()
    } else if let Some(profile) = &options.aws_profile {
        format!("profile `{profile}` of --aws-profile")
    } else if variable("AWS_ACCESS_KEY_ID").is_some() {
        "the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned()
    } else if let Some(profile) = variable("AWS_PROFILE") {
        format!("profile `{profile}` of AWS_PROFILE")
    } else {
        "profile `default` in ~/.aws, or else the machine's role".to_owned()
    }
}
