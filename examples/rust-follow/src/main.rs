//! Keeps the total of each product from a stream of orders, with snapshots in the stream itself.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use esker_follow::{ApplyError, Fold, Follower, S2Endpoint, SequencedRecord};
use s2_sdk::S2;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, EnsureBasinInput, EnsureStreamInput, S2Config,
    S2Endpoints,
};

type Anything = Box<dyn std::error::Error>;

/// How many of each product were ordered. A record is `PRODUCT NUMBER`.
#[derive(Clone, Default)]
struct Totals(BTreeMap<String, u64>);

impl Fold for Totals {
    fn name(&self) -> &str {
        "totals"
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        let text = String::from_utf8_lossy(&record.body);
        let malformed = || ApplyError::Malformed(format!("{text:?} is no product and number"));
        let (product, number) = text.split_once(' ').ok_or_else(malformed)?;
        let number: u64 = number.parse().map_err(|_| malformed())?;
        *self.0.entry(product.to_owned()).or_default() += number;
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, &self.0)?)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.0 = serde_json::from_reader(from)?;
        Ok(())
    }
}

/// Appends orders, follows them, and follows them again from the snapshot that the first follower took.
/// Prints through `print`.
pub async fn follow(server: &str, print: &mut dyn FnMut(String)) -> Result<(), Anything> {
    let token = std::env::var("S2_ACCESS_TOKEN").unwrap_or_else(|_| "none".to_owned());
    let config = S2Config::new(token).with_endpoints(S2Endpoints::for_endpoint(server)?);
    let s2 = S2::new(config.clone())?;
    // A second run changes nothing.
    s2.ensure_basin(EnsureBasinInput::new("example-rust".parse()?))
        .await?;
    let basin = s2.basin("example-rust".parse()?);
    basin
        .ensure_stream(EnsureStreamInput::new("orders".parse()?))
        .await?;
    let stream = basin.stream("orders".parse()?);
    let append = async |orders: &[&str]| -> Result<(), Anything> {
        let records = orders
            .iter()
            .map(|order| AppendRecord::new(order.to_string()));
        let records: Vec<_> = records.collect::<Result<_, _>>()?;
        let batch = AppendRecordBatch::try_from_iter(records)?;
        stream.append(AppendInput::new(batch)).await?;
        Ok(())
    };

    append(&["apple 3", "pear 1", "apple 2"]).await?;
    for order in ["pear 4", "plum 7"] {
        append(&[order]).await?;
        let endpoint = S2Endpoint::new(config.clone(), "example-rust".parse()?, "orders".parse()?)?;
        let follower = Follower::builder(endpoint.with_server(server.parse()?), Totals::default())
            .in_stream()
            .open()
            .await?;
        print(match follower.restored() {
            Some(_) => "restored a snapshot".to_owned(),
            None => "began with an empty state".to_owned(),
        });
        follower.caught_up().await?;
        follower.snapshot().await?;
        print("took a snapshot".to_owned());
        for (product, total) in follower.close().await?.state.0 {
            print(format!("{product} {total}"));
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let server = std::env::args().nth(1);
    let server = server.as_deref().unwrap_or("http://127.0.0.1:7070");
    follow(server, &mut |line| println!("{line}")).await
}
