//! Destinations on the S3 server of the test kit.
//!
//! Both test targets include it: `tests/destinations.rs` and `tests/repository/main.rs`.

use esker_repository::destination::{Destination, DestinationOptions, Environment};
use testkit_s3::files::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};
use testkit_s3::{Door, S3Server};

/// How to reach a server.
#[allow(dead_code, reason = "each target uses a part of it")]
pub trait Destinations {
    /// Creates a bucket, if it does not exist. Returns the options to reach it.
    fn options(&self, bucket: &str) -> DestinationOptions;

    /// A destination in a bucket, which is created if it does not exist. `place` is `bucket` or
    /// `bucket/prefix`.
    fn destination(&self, place: &str) -> Destination;

    /// The same destination through a door that only one client uses.
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
