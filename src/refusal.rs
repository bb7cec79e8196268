//! Refusals that concern who asks, and not what is asked: no valid access token, one that does not allow this,
//! too many requests. The three ways to a server have the same codes for them.

use crate::failure::Failure;
use crate::server_address::ServerAddress;
use crate::term::plain;

/// The codes of the server's that this concerns.
const CODES: [&str; 3] = ["authn", "permission_denied", "rate_limited"];

/// The stable code of a refusal with this HTTP status.
pub fn code_of(status: u16) -> Option<&'static str> {
    match status {
        401 => Some("authn"),
        403 => Some("permission_denied"),
        429 => Some("rate_limited"),
        _ => None,
    }
}

/// The failure for a code of the server, if it is one of these.
pub fn of(address: &ServerAddress, code: &str, message: &str) -> Option<Failure> {
    let code = CODES.into_iter().find(|known| *known == code)?;
    let message = plain(message);
    Some(match code {
        "authn" => Failure::wrong(
            code,
            format!("{address} takes this request only with a valid access token: {message}"),
        )
        .advise("set ESKER_TOKEN or --token-file to a token of this server"),
        // There are other reasons, such as a reserved basin. The message names it.
        "permission_denied" if message.contains("access token") => Failure::wrong(code, message)
            .advise(
                "set ESKER_TOKEN or --token-file to a token that allows it; `esker token list` \
                 shows what each allows",
            ),
        "rate_limited" => Failure::wrong(code, format!("{message}; nothing happened, try again")),
        _ => Failure::wrong(code, message),
    })
}
