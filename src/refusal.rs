//! Refusals that concern who asks, and not what is asked: no valid access token, one that does not allow this,
//! too many requests. The three ways to a server have the same codes for them.

use crate::failure::Failure;
use crate::server_address::ServerAddress;
use crate::term::plain;

/// The codes of the server's that this concerns.
const CODES: [&str; 3] = ["authn", "permission_denied", "rate_limited"];

/// What Esker's message for every token that is not valid begins with.
const NO_VALID_TOKEN: &str = "no valid access token";

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
        "authn" => {
            let failure = match message.starts_with(NO_VALID_TOKEN) {
                // The rest of it names the header, which is no help here.
                true => format!("{address} needs a valid access token for this"),
                false => format!("{address} does not accept the access token: {message}"),
            };
            Failure::wrong(code, failure).advise(
                "set ESKER_TOKEN or --token-file to a token of this server that is not revoked and has \
                 not expired",
            )
        }
        // There are other reasons, such as a reserved basin, or a server without authentication. The message
        // names it.
        "permission_denied" if message.contains("tokens are suspended") => Failure::wrong(
            code, message,
        )
        .advise(
            "`esker token confirm` with the root token makes them valid again; revoke before that \
                 what must not be valid",
        ),
        "permission_denied" if message.contains("the access token does not permit") => {
            Failure::wrong(code, message).advise(
                "set ESKER_TOKEN or --token-file to a token that allows it; `esker token list` \
                 shows what each allows",
            )
        }
        "rate_limited" => Failure::wrong(code, format!("{message}; nothing happened, try again")),
        _ => Failure::wrong(code, message),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_reported_once_and_a_reason_of_another_server_is_kept() {
        let address = "http://127.0.0.1:7070".parse().unwrap();
        let of_esker = "no valid access token: send one that was issued, is not revoked";
        let failure = of(&address, "authn", of_esker).unwrap();
        assert_eq!(failure.message.matches("access token").count(), 1);
        assert!(failure.message.contains("127.0.0.1:7070"));
        let failure = of(&address, "authn", "the key is of another account").unwrap();
        assert!(failure.message.contains("the key is of another account"));
    }

    #[test]
    fn another_token_is_advised_only_where_it_would_help() {
        let address = "http://127.0.0.1:7070".parse().unwrap();
        for (message, advice) in [
            (
                "the access token does not permit reading",
                Some("--token-file"),
            ),
            (
                "issued access tokens are suspended, because",
                Some("token confirm"),
            ),
            (
                "so an access token would protect nothing: configure `root-token-file` first",
                None,
            ),
            ("the basin `esker-state` is reserved", None),
        ] {
            let failure = of(&address, "permission_denied", message).unwrap();
            match advice {
                Some(part) => assert!(failure.advice.unwrap().contains(part), "{message}"),
                None => assert_eq!(failure.advice, None, "{message}"),
            }
        }
    }
}
