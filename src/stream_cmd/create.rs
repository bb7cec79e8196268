//! `esker stream create`.

use s2_sdk::error::{ErrorCode, RequestError};
use s2_sdk::types::{
    BasinConfig, BasinName, CreateBasinInput, CreateStreamInput, EncryptionAlgorithm, StreamConfig,
};
use serde_json::json;

use super::connection::Connection;
use super::settings::{CipherArgs, Settings};
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
  esker stream create my-basin
  esker stream create my-basin --stream-cipher aegis-256")]
pub struct Args {
    /// The stream, or a basin alone
    #[arg(value_name = "BASIN[/STREAM]", value_parser = target::target)]
    target: Target,

    #[command(flatten)]
    settings: Settings,

    #[command(flatten)]
    cipher: CipherArgs,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let config = args.settings.config();
    let cipher = args.cipher.stream_cipher.map(EncryptionAlgorithm::from);
    match &args.target {
        Target::Basin(basin) => {
            let mut input = CreateBasinInput::new(basin.clone());
            if config.is_some() || cipher.is_some() {
                let defaults = config.unwrap_or_default();
                let basin = BasinConfig::new().with_default_stream_config(defaults);
                input = input.with_config(match cipher {
                    Some(cipher) => basin.with_stream_cipher(cipher),
                    None => basin,
                });
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
            let encrypted = match cipher {
                Some(cipher) => ensure_encrypted(connection, &target.basin, cipher).await?,
                None => false,
            };
            let Created { basin, stream } = ensure(connection, target, config).await?;
            let basin = basin || encrypted;
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

/// Ensures that there is a basin with this cipher. Returns whether it was created.
async fn ensure_encrypted(
    connection: &Connection,
    basin: &BasinName,
    cipher: EncryptionAlgorithm,
) -> Result<bool, Failure> {
    let input = CreateBasinInput::new(basin.clone());
    let input = input.with_config(BasinConfig::new().with_stream_cipher(cipher));
    if create_basin(connection, input).await? {
        return Ok(true);
    }
    let config = connection.account().get_basin_config(basin.clone()).await;
    let config = config.map_err(|e| connection.asked_basin(basin).request(&e))?;
    match config.stream_cipher == Some(cipher) {
        true => Ok(false),
        false => Err(exists(format!(
            "there is a basin {basin} already, with another cipher"
        ))
        .advise(format!(
            "change it with `esker stream reconfigure {basin} --stream-cipher {cipher}`"
        ))),
    }
}

/// What did not exist and was created.
pub struct Created {
    /// The basin was created.
    pub basin: bool,
    /// The stream was created.
    pub stream: bool,
}

/// Ensures that the stream exists. An existing one keeps its settings.
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

/// Whether the stream was created; `None` if its basin does not exist.
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

/// Whether the basin was created.
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
