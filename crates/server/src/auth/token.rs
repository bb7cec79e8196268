//! Texts of tokens: in the header of a request, new ones, and their hashes.
//!
//! A text is never logged, stored or compared: only its SHA-256 is.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use esker_node::TokenHash;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::Secret;

/// What the text of an issued token begins with.
const TOKEN_PREFIX: &str = "esk_";
/// Random bytes of a new token.
const TOKEN_BYTES: usize = 32;
/// Longest text that is looked at: longer ones are refused before they are hashed.
pub(crate) const MAX_TOKEN_BYTES: usize = 256;

/// The token that a request has.
#[derive(Debug, PartialEq)]
pub(crate) enum Bearer<'a> {
    /// The request has no `authorization` header.
    Missing,
    /// The header is none that has a token.
    Malformed,
    /// The token's text.
    Text(&'a str),
}

/// Reads the token of a request. The scheme is compared without regard to case.
pub(crate) fn bearer(headers: &HeaderMap) -> Bearer<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Bearer::Missing;
    };
    // Which of two different headers would count?
    if values.any(|other| other != value) {
        return Bearer::Malformed;
    }
    let bytes = value.as_bytes();
    let Some((scheme, text)) = bytes.split_at_checked(b"Bearer ".len()) else {
        return Bearer::Malformed;
    };
    let text = text.trim_ascii();
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || !is_token(text) {
        return Bearer::Malformed;
    }
    match std::str::from_utf8(text) {
        Ok(text) => Bearer::Text(text),
        Err(_) => Bearer::Malformed,
    }
}

/// Whether bytes can be a token: visible ASCII, not empty, not too long.
pub(crate) fn is_token(text: &[u8]) -> bool {
    (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

/// The hash of a token's text.
pub(crate) fn hash(text: &str) -> TokenHash {
    TokenHash(Sha256::digest(text.as_bytes()).into())
}

/// Whether two hashes are the same, in a time that does not depend on them.
pub(crate) fn is_same(one: &TokenHash, other: &TokenHash) -> bool {
    one.0.ct_eq(&other.0).into()
}

/// A new token: 256 random bits.
pub(crate) fn generate() -> Secret {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    let text = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Secret::of_random(format!("{TOKEN_PREFIX}{text}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = http::HeaderValue::from_bytes(value).unwrap();
            headers.append(header::AUTHORIZATION, value);
        }
        headers
    }

    #[test]
    fn a_token_is_read_whatever_the_case_of_the_scheme() {
        for value in ["Bearer abc", "bearer abc", "BEARER   abc  "] {
            let headers = headers(&[value.as_bytes()]);
            assert_eq!(bearer(&headers), Bearer::Text("abc"), "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), Bearer::Missing);
        let twice = headers(&[b"Bearer abc", b"Bearer abc"]);
        assert_eq!(bearer(&twice), Bearer::Text("abc"));
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
        let values: [&[u8]; 10] = [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer\tabc",
            b"Basic abc",
            b"Bearerabc",
            b"Bearer a b",
            b"Bearer \xc3\xa9",
            b"Bearer \xff",
            long.as_bytes(),
        ];
        for value in values {
            let headers = headers(&[value]);
            assert_eq!(bearer(&headers), Bearer::Malformed, "{value:?}");
        }
        for values in [
            [b"Bearer abc".as_slice(), b"Bearer abx"],
            [b"Bearer abc", b"Basic abc"],
        ] {
            assert_eq!(bearer(&headers(&values)), Bearer::Malformed);
        }
    }

    #[test]
    fn new_tokens_differ_and_have_the_documented_form() {
        let (one, other) = (generate(), generate());
        assert_ne!(hash(one.expose()), hash(other.expose()));
        let rest = one.expose().strip_prefix("esk_").unwrap();
        assert_eq!(rest.len(), 43);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        assert!(rest.bytes().all(plain));
        assert!(is_token(one.expose().as_bytes()));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_what_is_taken_is_visible_ascii(
            value in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let Ok(value) = http::HeaderValue::from_bytes(&value) else {
                return Ok(());
            };
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value);
            if let Bearer::Text(text) = bearer(&headers) {
                prop_assert!(is_token(text.as_bytes()));
            }
        }
    }
}
