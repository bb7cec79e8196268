//! Destinations on the S3 server of the test kit.
//!
//! Both test targets include it: `tests/destinations.rs` and `tests/repository/main.rs`.

use esker_repository::destination::{Destination, DestinationOptions, Environment};
use testkit_s3::files::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};
use testkit_s3::{Door, S3Server};

/// How a server is reached.
#[allow(dead_code, reason = "each target uses a part of it")]
pub trait Destinations {
    /// Makes a bucket, if need be; the options that reach it.
    fn options(&self, bucket: &str) -> DestinationOptions;

    /// A bucket, made if need be, or a prefix in it: `bucket/prefix`.
    fn destination(&self, place: &str) -> Destination;

    /// The same through a way in for one client alone.
    async fn destination_through_door(&self, place: &str) -> (Destination, Door);
}

impl Destinations for S3Server {
    fn options(&self, bucket: &str) -> DestinationOptions {
        self.bucket(bucket);
        DestinationOptions {
            aws_access_key_id: Some(ACCESS_KEY_ID.to_owned()),
            aws_secret_access_key: Some(SECRET_ACCESS_KEY.to_owned()),
            aws_endpoint_url: Some(self.endpoint()),
            aws_allow_http: Some(true),
            environment: Environment::empty(),
            ..DestinationOptions::default()
        }
    }

    fn destination(&self, place: &str) -> Destination {
        let options = self.options(bucket(place));
        Destination::open(&format!("s3://{place}"), &options).unwrap()
    }

    async fn destination_through_door(&self, place: &str) -> (Destination, Door) {
        let door = self.door().await;
        let options = DestinationOptions {
            aws_endpoint_url: Some(door.endpoint()),
            ..self.options(bucket(place))
        };
        let destination = Destination::open(&format!("s3://{place}"), &options).unwrap();
        (destination, door)
    }
}

/// The bucket of `bucket/prefix`.
fn bucket(place: &str) -> &str {
    place.split('/').next().unwrap_or(place)
}
