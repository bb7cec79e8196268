//! A server, and a separate stream for each test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use esker_follow::folds::Latest;
use esker_follow::{Builder, External, Follower, S2Endpoint};
use esker_repository::destination::{Destination, DestinationOptions};
use s2_sdk::types::{
    AppendInput, BasinReconfiguration, DeleteStreamInput, EncryptionAlgorithm,
    ReconfigureBasinInput,
};
use s2_sdk::{S2, S2Stream};
use url::Url;

use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup, eventually};

/// Longest wait for a follower.
pub const SOON: Duration = Duration::from_secs(90);

/// A shared server, or one of the test alone.
pub struct Place {
    pub server: Option<Server>,
    url: String,
    basin: String,
    pub dir: tempfile::TempDir,
}

/// Whether the tests run against the server that `ESKER_TEST_ENDPOINT` names.
pub fn is_elsewhere() -> bool {
    std::env::var_os("ESKER_TEST_ENDPOINT").is_some()
}

impl Place {
    /// A server with a basin and the stream `orders`.
    pub async fn new() -> Place {
        Place::with(|_| Setup::default()).await
    }

    /// The same, with settings that may depend on the place's directory.
    pub async fn with(setup: impl FnOnce(&Place) -> Setup) -> Place {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let basin = format!("follow-{}-{count}", std::process::id());
        let mut place = Place {
            server: None,
            url: String::new(),
            basin,
            dir: tempfile::tempdir().unwrap(),
        };
        match std::env::var("ESKER_TEST_ENDPOINT") {
            Ok(url) => place.url = url,
            Err(_) => {
                // Some tests start it again at the same address.
                let server = setup(&place).on_a_port().start_fresh().await;
                place.url = server.url().to_owned();
                place.server = Some(server);
            }
        }
        let basin = sdk::basin(&place.s2(), &place.basin).await;
        sdk::stream(&basin, "orders").await;
        place
    }

    /// Makes the stream again, as one whose records are encrypted.
    pub async fn encrypt(&self) {
        let encrypted =
            BasinReconfiguration::new().with_stream_cipher(EncryptionAlgorithm::Aegis256);
        let encrypted = ReconfigureBasinInput::new(basin_name(&self.basin), encrypted);
        self.s2().reconfigure_basin(encrypted).await.unwrap();
        let basin = self.s2().basin(basin_name(&self.basin));
        let delete = DeleteStreamInput::new(stream_name("orders"));
        basin.delete_stream(delete).await.unwrap();
        sdk::stream(&basin, "orders").await;
    }

    pub fn s2(&self) -> S2 {
        sdk::client(&self.url, 5)
    }

    pub fn stream(&self) -> S2Stream {
        let basin = self.s2().basin(basin_name(&self.basin));
        basin.stream(stream_name("orders"))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn basin(&self) -> &str {
        &self.basin
    }

    pub fn endpoint(&self) -> S2Endpoint {
        let config = sdk::config(&self.url, 5);
        let (basin, stream) = (basin_name(&self.basin), stream_name("orders"));
        let endpoint = S2Endpoint::new(config, basin, stream).unwrap();
        endpoint.with_server(Url::parse(&self.url).unwrap())
    }

    /// A builder of a follower of `orders` by id.
    pub fn latest(&self) -> Builder<Latest> {
        Follower::builder(self.endpoint(), Latest::by("/id").unwrap())
    }

    /// A place for snapshots as objects, in the test's directory.
    pub fn objects(&self) -> External {
        let url = format!("file://{}/objects", self.dir.path().display());
        let place = Destination::open(&url, &DestinationOptions::default()).unwrap();
        let prefix = place.prefix().clone().join("snapshots").join("orders");
        External::new(place.store().clone(), prefix)
    }

    /// Names of the objects in [`Place::objects`].
    pub fn names(&self) -> Vec<String> {
        let dir = self.dir.path().join("objects/snapshots/orders");
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Appends records `{"id":…,"n":…}` with these numbers; `ids` ids take turns.
    pub async fn append(&self, numbers: std::ops::Range<u64>, ids: u64) {
        let stream = self.stream();
        let numbers: Vec<u64> = numbers.collect();
        for some in numbers.chunks(500) {
            sdk::append(&stream, some.iter().map(|n| order(*n, ids))).await;
        }
    }

    pub async fn tail(&self) -> u64 {
        self.stream().check_tail().await.unwrap().seq_num
    }
}

/// A record.
pub fn order(n: u64, ids: u64) -> String {
    format!(r#"{{"id":{},"n":{n}}}"#, n % ids)
}

/// An unconditional append.
pub async fn append_one(stream: &S2Stream, body: &str) -> u64 {
    let input: AppendInput = sdk::input([body]);
    stream.append(input).await.unwrap().start.seq_num
}

/// The numbers in a state, by id.
pub fn numbers(state: &Latest) -> Vec<(u64, u64)> {
    let mut numbers: Vec<(u64, u64)> = state
        .iter()
        .map(|(id, body)| {
            let value: serde_json::Value = serde_json::from_slice(body).unwrap();
            (id.parse().unwrap(), value["n"].as_u64().unwrap())
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// The numbers that a state has after this many records.
pub fn expected(records: u64, ids: u64) -> Vec<(u64, u64)> {
    let mut all = std::collections::BTreeMap::new();
    (0..records).for_each(|n| {
        all.insert(n % ids, n);
    });
    all.into_iter().collect()
}

/// The numbers in a follower's state, once it has caught up.
pub async fn settled(place: &Place, follower: &Follower<Latest>) -> Vec<(u64, u64)> {
    eventually("everything is there", async || {
        let tail = place.tail().await;
        let view = follower.view().await.unwrap();
        (view.cursor == tail).then_some(numbers(&view.state))
    })
    .await
}
