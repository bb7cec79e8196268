//! `esker stream create`.

use std::time::Duration;

use clap::ValueEnum;
use esker_server::config::HumanDuration;
use s2_sdk::error::{ErrorCode, RequestError};
use s2_sdk::types::{
    BasinConfig, BasinName, CreateBasinInput, CreateStreamInput, DeleteOnEmptyConfig,
    RetentionPolicy, StreamConfig, TimestampingConfig, TimestampingMode,
};
use serde_json::json;

use super::connection::Connection;
use super::target::{self, StreamTarget, Target};
use crate::failure::Failure;
use crate::output::print;

/// Create a stream, and its basin if that is missing; or a basin alone.
///
/// The options set how the stream keeps its records. Given with a basin alone, they are the
/// defaults of its streams.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream create my-basin/orders
  esker stream create my-basin/audit --retention infinite
  esker stream create my-basin/inbox --retention 1h --delete-on-empty 10m
  esker stream create my-basin")]
pub struct Args {
    /// The stream, or a basin alone
    #[arg(value_name = "BASIN[/STREAM]", value_parser = target::target)]
    target: Target,

    #[command(flatten)]
    settings: Settings,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// How a stream keeps its records.
#[derive(clap::Args)]
struct Settings {
    /// How long records are kept: a duration such as 7d, or infinite [default: the basin's default, or 7d]
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    retention: Option<RetentionPolicy>,

    /// Delete the stream once it has been empty this long [default: the basin's default, or never]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    delete_on_empty: Option<Duration>,

    /// Where timestamps come from [default: the basin's default, or client-prefer]
    #[arg(long, value_name = "MODE")]
    timestamping: Option<Timestamping>,

    /// Take timestamps of the client that lie in the future as they are
    #[arg(long)]
    uncapped_timestamps: bool,
}

/// Where the timestamps of records come from.
#[derive(Clone, Copy, ValueEnum)]
enum Timestamping {
    /// From the client if it gives one, else the time of arrival
    ClientPrefer,
    /// From the client; an append without one fails
    ClientRequire,
    /// The time of arrival, whatever the client says
    Arrival,
}

impl Settings {
    /// As the API wants them; nothing if none was given.
    fn config(&self) -> Option<StreamConfig> {
        let mut config = None;
        let mut set = |change: &dyn Fn(StreamConfig) -> StreamConfig| {
            config = Some(change(config.take().unwrap_or_default()));
        };
        if let Some(retention) = self.retention {
            set(&|config| config.with_retention_policy(retention));
        }
        if let Some(age) = self.delete_on_empty {
            set(&|config| {
                config.with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(age))
            });
        }
        if self.timestamping.is_some() || self.uncapped_timestamps {
            let mut timestamping = TimestampingConfig::new();
            if let Some(mode) = self.timestamping {
                timestamping = timestamping.with_mode(match mode {
                    Timestamping::ClientPrefer => TimestampingMode::ClientPrefer,
                    Timestamping::ClientRequire => TimestampingMode::ClientRequire,
                    Timestamping::Arrival => TimestampingMode::Arrival,
                });
            }
            if self.uncapped_timestamps {
                timestamping = timestamping.with_uncapped(true);
            }
            set(&|config| config.with_timestamping(timestamping));
        }
        config
    }
}

fn retention(text: &str) -> Result<RetentionPolicy, String> {
    if text == "infinite" {
        return Ok(RetentionPolicy::Infinite);
    }
    match whole_seconds(text) {
        Ok(age) => Ok(RetentionPolicy::Age(age.as_secs())),
        Err(problem) => Err(format!("{problem}, or `infinite`")),
    }
}

/// A duration of at least a second; the API counts in whole ones.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = text
        .parse::<HumanDuration>()
        .map_err(|_| "write a duration such as 30s, 10m, 12h or 7d".to_owned())?
        .as_duration();
    if duration.as_secs() == 0 || duration.subsec_nanos() != 0 {
        return Err("write a duration in whole seconds, one at least".into());
    }
    Ok(duration)
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let config = args.settings.config();
    match &args.target {
        Target::Basin(basin) => {
            let mut input = CreateBasinInput::new(basin.clone());
            if let Some(config) = config {
                input = input.with_config(BasinConfig::new().with_default_stream_config(config));
            }
            if !create_basin(connection, input).await? {
                return Err(exists(format!("there is a basin {basin} already")));
            }
            if args.json {
                print(json!({ "basin": &**basin, "basin_created": true }))
            } else {
                print(format_args!("created basin {basin}"))
            }
        }
        Target::Stream(target) => {
            let Created { basin, stream } = ensure(connection, target, config).await?;
            if !stream {
                return Err(exists(format!(
                    "there is a stream {target} already; its settings were left as they are"
                )));
            }
            if args.json {
                return print(json!({
                    "basin": &*target.basin,
                    "basin_created": basin,
                    "stream": &*target.stream,
                    "stream_created": true,
                }));
            }
            let with_basin = if basin { ", and its basin" } else { "" };
            print(format_args!("created stream {target}{with_basin}"))
        }
    }
}

fn exists(message: String) -> Failure {
    Failure::wrong(ErrorCode::ResourceAlreadyExists.into(), message)
}

/// What had to be made.
pub struct Created {
    /// The basin was missing.
    pub basin: bool,
    /// The stream was missing.
    pub stream: bool,
}

/// Sees to it that there is such a stream. One that is there keeps its settings.
pub async fn ensure(
    connection: &Connection,
    target: &StreamTarget,
    config: Option<StreamConfig>,
) -> Result<Created, Failure> {
    if let Some(stream) = create_stream(connection, target, config.clone()).await? {
        return Ok(Created {
            basin: false,
            stream,
        });
    }
    let basin = create_basin(connection, CreateBasinInput::new(target.basin.clone())).await?;
    match create_stream(connection, target, config).await? {
        Some(stream) => Ok(Created { basin, stream }),
        None => Err(Failure::wrong(
            ErrorCode::BasinNotFound.into(),
            format!(
                "basin {} was deleted while a stream was made in it; try again",
                target.basin
            ),
        )),
    }
}

/// Whether the stream was made; nothing if its basin is missing.
async fn create_stream(
    connection: &Connection,
    target: &StreamTarget,
    config: Option<StreamConfig>,
) -> Result<Option<bool>, Failure> {
    let mut input = CreateStreamInput::new(target.stream.clone());
    if let Some(config) = config {
        input = input.with_config(config);
    }
    match connection.basin(&target.basin).create_stream(input).await {
        Ok(_) => Ok(Some(true)),
        Err(error) if is(&error, ErrorCode::ResourceAlreadyExists) => Ok(Some(false)),
        Err(error) if is(&error, ErrorCode::BasinNotFound) => Ok(None),
        Err(error) => Err(connection.asked_stream(target).request(&error)),
    }
}

/// Whether the basin was made.
async fn create_basin(connection: &Connection, input: CreateBasinInput) -> Result<bool, Failure> {
    let name: BasinName = input.name.clone();
    match connection.account().create_basin(input).await {
        Ok(_) => Ok(true),
        Err(error) if is(&error, ErrorCode::ResourceAlreadyExists) => Ok(false),
        Err(error) => Err(connection.asked_basin(&name).request(&error)),
    }
}

fn is(error: &RequestError, code: ErrorCode) -> bool {
    error
        .server_error()
        .is_some_and(|error| error.known_code() == Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_a_duration_or_infinite() {
        assert_eq!(retention("infinite"), Ok(RetentionPolicy::Infinite));
        assert_eq!(retention("7d"), Ok(RetentionPolicy::Age(7 * 24 * 3600)));
        assert_eq!(retention("1h 30m"), Ok(RetentionPolicy::Age(5400)));
        for text in ["forever", "0s", "500ms", "7"] {
            let problem = retention(text).unwrap_err();
            assert!(problem.contains("or `infinite`"), "{text}: {problem}");
        }
    }
}
