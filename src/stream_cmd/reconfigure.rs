//! `esker stream reconfigure`.

use s2_sdk::types::{
    BasinReconfiguration, ReconfigureBasinInput, ReconfigureStreamInput, StreamConfig,
};

use super::connection::Connection;
use super::info;
use super::settings::{CipherArgs, Settings};
use super::target::{self, Target};
use crate::failure::Failure;

/// Change the settings of a stream, or the defaults of a basin's streams.
///
/// What is not given stays as it is. The defaults of a basin count for streams that are created from then
/// on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream reconfigure my-basin/orders --retention 30d
  esker stream reconfigure my-basin/orders --delete-on-empty never --uncapped-timestamps=false
  esker stream reconfigure my-basin --retention infinite
  esker stream reconfigure my-basin --stream-cipher aegis-256")]
pub struct Args {
    /// The stream, or a basin
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

impl Args {
    /// Refuses arguments without a change, before the server is contacted.
    ///
    /// # Errors
    ///
    /// `usage`.
    pub fn check(&self) -> Result<(), Failure> {
        if self.cipher.stream_cipher.is_some() && matches!(self.target, Target::Stream(_)) {
            return Err(Failure::usage(
                "usage",
                "a stream keeps the cipher that it was created with: --stream-cipher is a setting of basins, \
                 for their new streams",
            ));
        }
        match self.settings.reconfiguration() {
            Some(_) => Ok(()),
            None if self.cipher.stream_cipher.is_some() => Ok(()),
            None => Err(Failure::usage(
                "usage",
                "what is to change? give --retention, --delete-on-empty, --timestamping, \
                 --uncapped-timestamps or --stream-cipher",
            )),
        }
    }
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let change = args.settings.reconfiguration().unwrap_or_default();
    let (name, config): (_, StreamConfig) = match &args.target {
        Target::Basin(basin) => {
            let change = BasinReconfiguration::new().with_default_stream_config(change);
            let change = match args.cipher.stream_cipher {
                Some(cipher) => change.with_stream_cipher(cipher.into()),
                None => change,
            };
            let input = ReconfigureBasinInput::new(basin.clone(), change);
            let config = connection.account().reconfigure_basin(input).await;
            let config = config.map_err(|e| connection.asked_basin(basin).request(&e))?;
            let defaults = config.default_stream_config.unwrap_or_default();
            (basin.to_string(), defaults)
        }
        Target::Stream(target) => {
            let input = ReconfigureStreamInput::new(target.stream.clone(), change);
            let config = connection
                .basin(&target.basin)
                .reconfigure_stream(input)
                .await;
            let config = config.map_err(|e| connection.asked_stream(target).request(&e))?;
            (format!("{}/{}", &*target.basin, &*target.stream), config)
        }
    };
    info::changed(name.into(), &config, args.json)
}
