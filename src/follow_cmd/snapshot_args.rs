//! Arguments for the place of snapshots and the times at which they are taken, and their evaluation.

use std::str::FromStr;
use std::time::Duration;

use esker_follow::{Builder, Encoding, External, Fold, Snapshots, TrimTo};
use esker_repository::Destination;
use esker_repository::destination::DestinationOptions;
use esker_server::config::HumanDuration;

use crate::failure::Failure;
use crate::snapshot_cmd::s3::{self, S3Args};

/// Records after which a snapshot is taken by default.
const EVERY: u64 = 10_000;

#[derive(clap::Args)]
pub struct SnapshotArgs {
    /// Where snapshots are: external:URL (s3://BUCKET/PREFIX, file:///DIR or a directory), in-stream or
    /// none [default: none, and one that the stream begins with is restored]
    #[arg(long, value_name = "PLACE", help_heading = "Snapshots")]
    snapshot: Option<PlaceName>,

    /// Take a snapshot after this many records [default: 10000, with a place and without --budget]
    #[arg(long, value_name = "RECORDS", help_heading = "Snapshots",
          value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,

    /// Take a snapshot when replaying what came since would take longer than this, as measured here
    #[arg(long, value_name = "DURATION", help_heading = "Snapshots")]
    budget: Option<HumanDuration>,

    /// Trim the stream to the oldest snapshot that is kept; in-stream ones always trim it
    #[arg(long, help_heading = "Snapshots")]
    trim: bool,

    /// Keep this many of the newest external snapshots [default: 3]
    #[arg(long, value_name = "COUNT", help_heading = "Snapshots",
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    keep: Option<u64>,

    /// Delete also external snapshots of an earlier stream of this name, as soon as --keep of this one are
    /// there; the place has to be for this stream alone
    #[arg(long, help_heading = "Snapshots")]
    delete_former: bool,

    /// How snapshots are encoded [default: zstd]
    #[arg(long, value_name = "ENCODING", help_heading = "Snapshots")]
    encoding: Option<EncodingName>,

    #[command(flatten)]
    s3: S3Args,
}

/// A place as the argument names it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PlaceName {
    External(String),
    InStream,
    None,
}

impl FromStr for PlaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "in-stream" => Ok(PlaceName::InStream),
            "none" => Ok(PlaceName::None),
            _ => match text.strip_prefix("external:") {
                Some("") => Err(
                    "after external: comes s3://BUCKET/PREFIX, file:///DIR or a \
                                 directory"
                        .to_owned(),
                ),
                Some(url) => Ok(PlaceName::External(url.to_owned())),
                None => Err("write external:URL, in-stream or none".to_owned()),
            },
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum EncodingName {
    /// Compressed; `zstd -d` reads it
    Zstd,
    /// As the fold writes it: lines of JSON
    None,
}

/// A place for objects.
pub struct Objects {
    destination: Destination,
    /// Where credentials come from, for messages.
    keys: String,
}

impl Objects {
    /// The place, for messages.
    pub fn place(&self) -> String {
        self.destination.to_string()
    }

    /// Advice for a store that does not answer.
    pub fn where_to_look(&self) -> String {
        match self.destination.local() {
            Some(local) => format!("look at the disk below {}", local.root().display()),
            None => format!(
                "is the store up, and --aws-endpoint-url right? used were {}",
                self.keys
            ),
        }
    }
}

/// Where snapshots are, and when they are taken.
pub struct SnapshotPlace {
    pub snapshots: Snapshots,
    pub objects: Option<Objects>,
    pub every: Option<u64>,
    pub budget: Option<Duration>,
    encoding: Encoding,
}

impl SnapshotArgs {
    /// Evaluates the arguments. Sends nothing to a store.
    pub fn open(self) -> Result<SnapshotPlace, Failure> {
        let name = self.snapshot.unwrap_or(PlaceName::None);
        let is_external = matches!(name, PlaceName::External(_));
        let needs_a_place = [
            ("--every", self.every.is_some()),
            ("--budget", self.budget.is_some()),
            ("--trim", self.trim),
            ("--encoding", self.encoding.is_some()),
        ];
        let unfit = match name {
            PlaceName::None => needs_a_place.iter().find(|(_, is_given)| *is_given),
            _ => None,
        };
        if let Some((option, _)) = unfit {
            return Err(Failure::usage(
                "snapshot_place",
                format!(
                    "{option} is about taking snapshots, and nothing says where they go: add \
                     --snapshot in-stream or --snapshot external:URL"
                ),
            ));
        }
        if self.keep.is_some() && !is_external {
            return Err(Failure::usage(
                "snapshot_place",
                "--keep is about external snapshots: of those in the stream the newest is kept",
            ));
        }
        if self.delete_former && !is_external {
            return Err(Failure::usage(
                "snapshot_place",
                "--delete-former is about external snapshots: those in the stream go with it",
            ));
        }
        let mut objects = None;
        let snapshots = match name {
            PlaceName::None => Snapshots::None,
            PlaceName::InStream => Snapshots::InStream,
            PlaceName::External(url) => {
                // Snapshots are written as new files, never as links.
                let options = DestinationOptions {
                    hard_links: false,
                    ..self.s3.options()
                };
                let destination = s3::open(&url, &options).map_err(|failure| Failure {
                    code: match failure.code {
                        "repository" => "snapshot_place",
                        other => other,
                    },
                    ..failure
                })?;
                let (store, prefix) = (destination.store().clone(), destination.prefix().clone());
                let external = External::new(store, prefix);
                let external = match self.keep {
                    Some(keep) => external.keep(usize::try_from(keep).unwrap_or(usize::MAX)),
                    None => external,
                };
                let external = match self.delete_former {
                    true => external.delete_former_streams(),
                    false => external,
                };
                objects = Some(Objects {
                    destination,
                    keys: s3::keys(&options),
                });
                Snapshots::External(match self.trim {
                    true => external.trim(TrimTo::Oldest),
                    false => external,
                })
            }
        };
        let takes = !matches!(snapshots, Snapshots::None);
        let by_default = (takes && self.budget.is_none()).then_some(EVERY);
        Ok(SnapshotPlace {
            snapshots,
            objects,
            every: self.every.or(by_default),
            budget: self.budget.map(Duration::from),
            encoding: match self.encoding {
                Some(EncodingName::None) => Encoding::None,
                Some(EncodingName::Zstd) | None => Encoding::Zstd,
            },
        })
    }
}

impl SnapshotPlace {
    /// Configures a follower.
    pub fn configure<F: Fold>(&self, builder: Builder<F>) -> Builder<F> {
        let mut builder = builder
            .snapshots(self.snapshots.clone())
            .encoding(self.encoding);
        if let Some(records) = self.every {
            builder = builder.every_records(records);
        }
        if let Some(budget) = self.budget {
            builder = builder.budget(budget);
        }
        builder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_in_one_of_three_ways() {
        assert_eq!("in-stream".parse(), Ok(PlaceName::InStream));
        assert_eq!("none".parse(), Ok(PlaceName::None));
        let s3 = PlaceName::External("s3://bucket/orders".to_owned());
        assert_eq!("external:s3://bucket/orders".parse(), Ok(s3));
        for text in ["s3://bucket/orders", "external:", "instream", ""] {
            assert!(text.parse::<PlaceName>().is_err(), "{text}");
        }
    }
}
