//! `esker token confirm`.

use serde::Deserialize;
use serde_json::json;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::print;
use crate::term::count;

/// Make suspended access tokens valid again, after a restore that may have lost revocations.
///
/// A restore of the catalog as of an earlier time suspends all tokens that it brings back, because some of
/// them may have been revoked since. Revoke those (`esker token list`, `esker token revoke`), then confirm
/// the others. It takes the root token.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker token list
  esker token confirm --token-file root.token")]
pub struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Answer {
    confirmed: u64,
}

pub async fn run(admin: &Admin, args: Args) -> Result<(), Failure> {
    let answer: Answer = admin
        .post(&["access-tokens", "confirm"], &json!({}))
        .await?;
    let confirmed = answer.confirmed;
    match (args.json, confirmed) {
        (true, _) => print(json!({ "confirmed": confirmed })),
        (false, 0) => print("no access token was suspended"),
        (false, 1) => print("1 access token is valid again"),
        (false, n) => print(format_args!("{} access tokens are valid again", count(n))),
    }
}
