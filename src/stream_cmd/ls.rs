//! `esker stream ls`.

use std::io::{self, BufWriter, Write as _};

use futures::StreamExt as _;
use s2_sdk::types::{ListAllBasinsInput, ListAllStreamsInput, S2DateTime};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::connection::Connection;
use super::target::{self, Listing};
use crate::failure::Failure;
use crate::json;
use crate::output::{Written, written};
use crate::term::{Paint, plain, second};

/// List basins, or the streams of a basin, in order of their names.
///
/// Prints when each was created (UTC) and its name.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream ls                 the basins
  esker stream ls my-basin        the streams of my-basin
  esker stream ls my-basin/or     those whose names begin with `or`")]
pub struct Args {
    /// A basin, and how the names of its streams begin
    #[arg(value_name = "BASIN[/PREFIX]", value_parser = target::listing)]
    listing: Option<Listing>,

    /// Stop after this many
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A basin or a stream.
struct Entry {
    name: String,
    created: OffsetDateTime,
    /// Whether a deletion is under way.
    going: bool,
}

impl Entry {
    fn new(name: String, created: S2DateTime, deleted: Option<S2DateTime>) -> Entry {
        Entry {
            name,
            created: created.into(),
            going: deleted.is_some(),
        }
    }
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let limit = args.limit.unwrap_or(usize::MAX);
    let (asked, entries) = match &args.listing {
        None => {
            let input = ListAllBasinsInput::new().with_include_deleted(true);
            let basins = connection.account().list_all_basins(input);
            let entries = basins
                .map(|basin| {
                    basin.map(|b| Entry::new(b.name.to_string(), b.created_at, b.deleted_at))
                })
                .boxed();
            (connection.asked(), entries)
        }
        Some(Listing { basin, prefix }) => {
            let input = ListAllStreamsInput::new()
                .with_prefix(prefix.clone())
                .with_include_deleted(true);
            let streams = connection.basin(basin).list_all_streams(input);
            let entries = streams
                .map(move |stream| {
                    stream.map(|s| {
                        Entry::new(format!("{basin}/{}", &*s.name), s.created_at, s.deleted_at)
                    })
                })
                .boxed();
            (connection.asked_basin(basin), entries)
        }
    };

    let mut entries = entries.take(limit);
    let mut out = BufWriter::new(io::stdout().lock());
    let paint = Paint::stdout();
    let mut none = true;
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(|e| asked.request(&e))?;
        none = false;
        let result = if args.json {
            write_json(&mut out, &entry)
        } else {
            let going = if entry.going { "  (being deleted)" } else { "" };
            writeln!(
                out,
                "{}  {}{}",
                paint.dim(second(entry.created)),
                plain(&entry.name),
                paint.dim(going)
            )
        };
        if let Written::NobodyReads = written(result)? {
            return Ok(());
        }
    }
    written(out.flush())?;
    if none && !args.json && limit > 0 {
        say_that_there_is_none(args.listing.as_ref());
    }
    Ok(())
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    being_deleted: bool,
}

fn write_json(out: &mut impl io::Write, entry: &Entry) -> io::Result<()> {
    let shown = Shown {
        name: &entry.name,
        created_at: entry.created.format(&Rfc3339).map_err(io::Error::other)?,
        being_deleted: entry.going,
    };
    writeln!(out, "{}", json::line(&shown)?)
}

/// Prints a remark for a person; standard output, which a program reads, stays empty.
fn say_that_there_is_none(listing: Option<&Listing>) {
    match listing {
        None => remark!(
            "There is no basin yet. `esker stream create my-basin/orders` makes one, with a stream."
        ),
        Some(Listing { basin, prefix }) if prefix.is_empty() => {
            remark!(
                "There is no stream in {basin} yet. `esker stream create {basin}/orders` makes one."
            );
        }
        Some(Listing { basin, prefix }) => {
            remark!(
                "There is no stream in {basin} whose name begins with `{}`.",
                plain(prefix)
            );
        }
    }
}
