//! `esker token list`.

use std::io::{self, BufWriter, Write as _};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::scope::Scope;
use crate::admin::Admin;
use crate::failure::Failure;
use crate::json;
use crate::output::{Written, written};
use crate::snapshot_cmd::render::table;
use crate::term::{plain, second};

/// Most tokens of one answer, as the API has it.
const PAGE: &str = "1000";

/// List access tokens: their ids, until when they are valid, and what they allow.
///
/// The text of a token is shown only when it is issued.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker token list
  esker token list --prefix worker-
  esker token list --json | jq -r 'select(.suspended).id'")]
pub struct Args {
    /// Only those whose ids begin with this
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    prefix: String,

    /// Only those whose ids come after this one, in order
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    start_after: String,

    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

/// A token without its text.
#[derive(Deserialize, Serialize)]
struct Token {
    id: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(default)]
    auto_prefix_streams: bool,
    scope: Scope,
    /// Whether it is not valid until it is confirmed.
    #[serde(default)]
    suspended: bool,
}

#[derive(Deserialize)]
struct Page {
    access_tokens: Vec<Token>,
    has_more: bool,
}

pub async fn run(admin: &Admin, args: Args) -> Result<(), Failure> {
    let mut start_after = args.start_after;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut none = true;
    loop {
        let query = [
            ("prefix", &*args.prefix),
            ("start_after", &start_after),
            ("limit", PAGE),
        ];
        let page: Page = admin.get_s2(&["access-tokens"], &query).await?;
        let last = page.access_tokens.last().map(|token| token.id.clone());
        let result = match args.json {
            true => write_json(&mut out, &page.access_tokens),
            false if page.access_tokens.is_empty() => Ok(()),
            // A page has a table of its own: there may be more tokens than fit into memory.
            false => out.write_all(rows(&page.access_tokens).as_bytes()),
        };
        none &= last.is_none();
        if let Written::NobodyReads = written(result)? {
            return Ok(());
        }
        match last {
            Some(last) if page.has_more && last > start_after => start_after = last,
            _ => break,
        }
    }
    written(out.flush())?;
    if none && !args.json {
        remark!("There is no such access token. `esker token issue` makes one.");
    }
    Ok(())
}

fn write_json(out: &mut impl io::Write, tokens: &[Token]) -> io::Result<()> {
    for token in tokens {
        writeln!(out, "{}", json::line(token)?)?;
    }
    Ok(())
}

fn rows(tokens: &[Token]) -> String {
    let rows: Vec<_> = tokens
        .iter()
        .map(|token| {
            let prefixed = if token.auto_prefix_streams {
                ", prefix added to names of streams"
            } else {
                ""
            };
            vec![
                plain(&token.id),
                state(token, OffsetDateTime::now_utc()),
                format!("{}{prefixed}", token.scope.summary()),
            ]
        })
        .collect();
    table(&["id", "valid", "allows"], &rows, &[])
}

/// Until when it is valid.
fn state(token: &Token, now: OffsetDateTime) -> String {
    match token.expires_at {
        _ if token.suspended => "suspended".to_owned(),
        None => "always".to_owned(),
        Some(at) if at <= now => "expired".to_owned(),
        Some(at) => format!("until {} UTC", second(at)),
    }
}
