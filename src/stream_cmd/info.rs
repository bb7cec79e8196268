//! `esker stream info`.

use std::str::FromStr as _;

use s2_sdk::types::{
    BasinName, BasinNamePrefix, EncryptionAlgorithm, ListBasinsInput, ListStreamsInput,
    StreamConfig, StreamNamePrefix,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::Connection;
use super::settings;
use super::target::{self, StreamTarget, Target};
use super::trim::head;
use crate::failure::Failure;
use crate::json::print_with;
use crate::output::print;
use crate::term::{moment, rfc3339, second};

/// Show a stream: when it was created, where it begins and ends, and its settings. Or a basin.
///
/// Of a basin, the settings are the defaults of its streams. A setting that is `default` is the server's.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream info my-basin/orders
  esker stream info my-basin
  esker stream info my-basin/orders --json | jq .settings.retention")]
pub struct Args {
    /// The stream, or a basin
    #[arg(value_name = "BASIN[/STREAM]", value_parser = target::target)]
    target: Target,

    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    match &args.target {
        Target::Basin(name) => basin(connection, name, args.json).await,
        Target::Stream(target) => stream(connection, target, args.json).await,
    }
}

async fn basin(connection: &Connection, name: &BasinName, json: bool) -> Result<(), Failure> {
    let asked = connection.asked_basin(name);
    let config = connection.account().get_basin_config(name.clone()).await;
    let config = config.map_err(|e| asked.request(&e))?;
    // The name itself sorts first among those with this prefix.
    let prefix = BasinNamePrefix::from_str(name).map_err(|e| Failure::wrong("client", e.0))?;
    let page = ListBasinsInput::new().with_prefix(prefix).with_limit(1);
    let page = connection.account().list_basins(page).await;
    let page = page.map_err(|e| asked.request(&e))?;
    let info = page.values.into_iter().find(|info| info.name == *name);
    let created = info.map(|info| OffsetDateTime::from(info.created_at));
    let defaults = config.default_stream_config.unwrap_or_default();
    if json {
        let document = json!({
            "basin": &**name,
            "created_at": created_at(created)?,
            "create_stream_on_append": config.create_stream_on_append,
            "create_stream_on_read": config.create_stream_on_read,
            "stream_cipher": config.stream_cipher.map(|it| it.to_string()),
            "stream_settings": settings::document(&defaults),
        });
        return print_with(&document, Ok(()));
    }
    let mut rows = vec![
        ("basin", name.to_string()),
        ("created", created.map_or_else(|| "unknown".into(), shown)),
        (
            "create on append",
            config.create_stream_on_append.to_string(),
        ),
        ("create on read", config.create_stream_on_read.to_string()),
        ("cipher", cipher(config.stream_cipher)),
    ];
    rows.extend(settings::rows(&defaults));
    print(lines(&rows))
}

async fn stream(connection: &Connection, target: &StreamTarget, json: bool) -> Result<(), Failure> {
    let asked = connection.asked_stream(target);
    let basin = connection.basin(&target.basin);
    let config = basin.get_stream_config(target.stream.clone()).await;
    let config = config.map_err(|e| asked.request(&e))?;
    let prefix = StreamNamePrefix::from_str(&target.stream);
    let prefix = prefix.map_err(|e| Failure::wrong("client", e.0))?;
    let page = ListStreamsInput::new().with_prefix(prefix).with_limit(1);
    let page = basin.list_streams(page).await;
    let page = page.map_err(|e| asked.request(&e))?;
    let info = page
        .values
        .into_iter()
        .find(|info| info.name == target.stream);
    let encryption = info.as_ref().and_then(|info| info.cipher);
    let created = info.map(|info| OffsetDateTime::from(info.created_at));
    let stream = connection.stream(target);
    let tail = stream.check_tail().await.map_err(|e| asked.read(&e))?;
    // Where it begins is found by a read, which needs the key of encrypted records.
    let head = match encryption.is_some() && !connection.has_key() {
        true => None,
        false => Some(head(&stream, asked, tail.seq_num).await?),
    };
    if json {
        let document = json!({
            "basin": &*target.basin,
            "stream": &*target.stream,
            "created_at": created_at(created)?,
            "head": head,
            "tail": {
                "seq_num": tail.seq_num,
                "timestamp": tail.timestamp,
                "time": rfc3339(tail.timestamp).filter(|_| tail.seq_num > 0),
            },
            "cipher": encryption.map(|it| it.to_string()),
            "settings": settings::document(&config),
        });
        return print_with(&document, Ok(()));
    }
    let last = moment(tail.timestamp).filter(|_| tail.seq_num > 0);
    let last = last.map_or_else(String::new, |time| {
        format!(" (the last record is of {time})")
    });
    let mut rows = vec![
        ("stream", target.to_string()),
        ("created", created.map_or_else(|| "unknown".into(), shown)),
        (
            "head",
            head.map_or_else(
                || "unknown without --encryption-key-file".to_owned(),
                |head| head.to_string(),
            ),
        ),
        ("tail", format!("{}{last}", tail.seq_num)),
        ("cipher", cipher(encryption)),
    ];
    rows.extend(settings::rows(&config));
    print(lines(&rows))
}

/// Prints the settings after a change.
pub fn changed(name: Value, config: &StreamConfig, json: bool) -> Result<(), Failure> {
    if json {
        let document = json!({ "name": name, "settings": settings::document(config) });
        return print_with(&document, Ok(()));
    }
    print(lines(&settings::rows(config)))
}

fn lines(rows: &[(&'static str, String)]) -> String {
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:<19}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn cipher(cipher: Option<EncryptionAlgorithm>) -> String {
    cipher.map_or_else(|| "none".to_owned(), |cipher| cipher.to_string())
}

fn shown(time: OffsetDateTime) -> String {
    format!("{} UTC", second(time))
}

fn created_at(time: Option<OffsetDateTime>) -> Result<Option<String>, Failure> {
    let text = time.map(|time| time.format(&Rfc3339)).transpose();
    text.map_err(|e| Failure::wrong("client", e))
}
