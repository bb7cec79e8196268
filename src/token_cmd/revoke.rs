//! `esker token revoke`.

use s2_sdk::types::AccessTokenId;
use serde_json::json;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::print;
use crate::term::plain;

/// Revoke an access token: requests with it are refused from now on.
///
/// Those that are under way end within two seconds.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker token revoke worker")]
pub struct Args {
    /// Its id
    #[arg(value_name = "ID")]
    id: AccessTokenId,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(admin: &Admin, args: Args) -> Result<(), Failure> {
    let revoked = admin.delete_s2(&["access-tokens", &args.id]).await;
    revoked.map_err(|failure| match failure.code {
        "access_token_not_found" => failure.advise("`esker token list` shows those that there are"),
        _ => failure,
    })?;
    match args.json {
        true => print(json!({ "revoked": &*args.id })),
        false => print(format_args!("revoked {}", plain(&args.id))),
    }
}
