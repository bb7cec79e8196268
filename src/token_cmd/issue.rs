//! `esker token issue`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use esker_server::config::HumanDuration;
use s2_sdk::types::AccessTokenId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::permissions::PermissionArgs;
use super::scope::Scope;
use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::{Written, written};
use crate::output_file::OutputFile;
use crate::secret_file::Secret;

/// Issue an access token, and print it.
///
/// Standard output is the token alone, so it can go into a file. It is shown this one time: the server keeps
/// no more than its hash. A token never allows more than the one with which it is issued.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  esker token issue worker --basins =my-basin --streams jobs/ --op-group-perms stream=rw > worker.token
  esker token issue tenant-7 --basins =my-basin --streams tenant-7/ --auto-prefix-streams --ops read,append
  esker token issue reader --state r --namespaces =default --agents '' --expires-in 30d -o reader.token
  esker token issue monitoring --admin r")]
pub struct Args {
    /// Its id, by which it is listed and revoked
    #[arg(value_name = "ID")]
    id: AccessTokenId,

    /// How long it is valid, such as 12h or 30d [default: as long as the token with which it is issued]
    #[arg(long, value_name = "DURATION", conflicts_with = "expires_at")]
    expires_in: Option<HumanDuration>,

    /// Until when it is valid: 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = rfc3339)]
    expires_at: Option<OffsetDateTime>,

    /// Put the prefix of --streams before all names of streams that its holder uses, and hide it from them
    #[arg(long)]
    auto_prefix_streams: bool,

    #[command(flatten)]
    permissions: PermissionArgs,

    /// Write the token to a new file that only you can read, instead of to standard output
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output_file: Option<PathBuf>,

    /// Replace the file if it is there
    #[arg(long, requires = "output_file", help_heading = "Output")]
    force: bool,

    /// Print a JSON object with the id and the token
    #[arg(long, conflicts_with = "output_file", help_heading = "Output")]
    json: bool,
}

/// A token to be issued, as the API has it.
#[derive(Debug, Serialize)]
pub struct Request {
    id: AccessTokenId,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    auto_prefix_streams: bool,
    scope: Scope,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
}

impl Args {
    /// The request for the API.
    ///
    /// # Errors
    ///
    /// `usage` for arguments that do not fit together.
    pub fn request(&self) -> Result<Request, Failure> {
        let in_future = |age: HumanDuration| {
            let age = time::Duration::try_from(age.as_duration()).ok()?;
            OffsetDateTime::now_utc().checked_add(age)
        };
        let expires_at = match self.expires_in {
            Some(age) => Some(in_future(age).ok_or_else(|| {
                Failure::usage("usage", "--expires-in: that is too far in the future")
            })?),
            None => self.expires_at,
        };
        if self.auto_prefix_streams && !self.permissions.has_stream_prefix() {
            return Err(Failure::usage(
                "usage",
                "--auto-prefix-streams needs the prefix: name it with --streams PREFIX",
            ));
        }
        let expires_at = expires_at.map(|at| at.format(&Rfc3339)).transpose();
        Ok(Request {
            id: self.id.clone(),
            expires_at: expires_at.map_err(|e| Failure::usage("usage", e))?,
            auto_prefix_streams: self.auto_prefix_streams,
            scope: self.permissions.scope()?,
        })
    }
}

pub async fn run(admin: &Admin, args: &Args, request: &Request, left: &str) -> Result<(), Failure> {
    // Before the token is issued, because its text is shown once.
    let file = args.output_file.as_deref();
    let file = file
        .map(|path| OutputFile::create(path, args.force))
        .transpose()?;
    if let Some(file) = &file {
        file.keep_secret()?;
    }
    let answer: Answer = match admin.post_s2(&["access-tokens"], request).await {
        Ok(answer) => answer,
        Err(failure) if failure.code == "resource_already_exists" => {
            return Err(failure.advise(
                "choose another id, or revoke that token first with `esker token revoke`",
            ));
        }
        Err(failure) if failure.exit == 3 => return Err(failure.advise(left)),
        Err(failure) => return Err(failure),
    };
    let token = Secret::from(answer.access_token);
    let lost = |failure: Failure| {
        let id = &*request.id;
        failure.advise(format!(
            "the token is issued and its text is lost: revoke it with `esker token revoke {id}`"
        ))
    };
    match file {
        Some(mut file) => {
            let written = file.write_all(format!("{}\n", token.expose()).as_bytes());
            written.map_err(|e| lost(file.failure(&e)))?;
            file.finish().map_err(|failure| match failure.code {
                // The token is in a file beside it.
                "file_exists" => failure,
                _ => lost(failure),
            })
        }
        None if args.json => {
            let answer = json!({ "id": &*request.id, "access_token": token.expose() });
            print_once(&answer.to_string()).map_err(lost)
        }
        None => print_once(token.expose()).map_err(lost),
    }
}

/// Prints what is shown this one time: it is a failure if nobody reads it.
fn print_once(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match written(writeln!(out, "{text}").and_then(|()| out.flush()))? {
        Written::Yes => Ok(()),
        Written::NobodyReads => Err(Failure::wrong(
            "io",
            "standard output was closed by its reader",
        )),
    }
}

fn rfc3339(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "write a time such as 2027-01-31T12:00:00Z".to_owned())
}
