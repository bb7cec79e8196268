//! The checks before a page, and the headers of each answer.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use esker_server::front::{PageGuard, is_same_origin};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::Console;
use crate::api_client::{Caller, path};
use crate::layout::notice;

/// The headers of every answer: nothing comes from elsewhere, nothing is kept, and no other page may contain it.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Without any, a browser sends no origin with a form.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// What a listener demands of those who look.
pub struct Rules {
    guard: PageGuard,
    /// Whether the APIs need a token.
    pub needs_token: bool,
    is_loopback: bool,
    /// The name of the cookie: servers on one machine share its cookies.
    cookie: String,
    has_tls: bool,
}

impl Rules {
    /// The rules of a listener.
    pub fn new(guard: PageGuard, address: SocketAddr, needs_token: bool, has_tls: bool) -> Rules {
        // With this prefix a browser takes the cookie over TLS alone, and for no other host.
        let prefix = if has_tls { "__Host-" } else { "" };
        Rules {
            guard,
            needs_token,
            is_loopback: address.ip().to_canonical().is_loopback(),
            cookie: format!("{prefix}esker-session-{}", address.port()),
            has_tls,
        }
    }

    /// The header that gives a browser a session, or takes it away.
    pub fn cookie(&self, id: Option<&str>) -> Option<HeaderValue> {
        let secure = if self.has_tls { "; Secure" } else { "" };
        let age = match id {
            // It ends with the browser; the session may end sooner.
            Some(_) => "",
            None => "; Max-Age=0",
        };
        let (name, id) = (&self.cookie, id.unwrap_or_default());
        let text = format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict{secure}{age}");
        HeaderValue::from_str(&text).ok()
    }

    /// The session that a request names.
    pub fn session_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(header::COOKIE).iter();
        let cookies = cookies.filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|all| all.split(';'))
            .filter_map(|one| one.trim().split_once('='))
            .find_map(|(name, value)| (name == self.cookie).then_some(value))
    }
}

/// Refuses requests that are not for this server, or come from a page of another site.
pub async fn check(State(console): State<Console>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&console.rules, &request) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, notice("Refused", &why)).into_response(),
    };
    for (name, value) in HEADERS {
        let headers = response.headers_mut();
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

fn refusal(rules: &Rules, request: &Request) -> Option<String> {
    if let Err(why) = rules.guard.check(request) {
        return Some(why);
    }
    // A browser names the page that a form is on.
    if request.method() == Method::POST && !is_same_origin(request) {
        return Some("the form is not of a page of this server".to_owned());
    }
    if !rules.needs_token && !rules.is_loopback {
        return Some(
            "the console is served on loopback addresses, or where an access token is needed: \
             set root-token-file"
                .to_owned(),
        );
    }
    None
}

/// Whoever looks at a page. Without a session, they are sent to sign in.
pub struct Viewer(pub Caller);

impl FromRequestParts<Console> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Viewer, Response> {
        let connection = parts.extensions.clone();
        if !console.rules.needs_token {
            return Ok(Viewer(Caller {
                token: None,
                connection,
            }));
        }
        let session = console.rules.session_of(&parts.headers);
        let token = session.and_then(|id| console.sessions.token(id, Instant::now()));
        match token {
            Some(token) => Ok(Viewer(Caller {
                token: Some(token),
                connection,
            })),
            None => {
                let wanted = parts.uri.path_and_query().map(|it| it.as_str());
                Err(to_sign_in(wanted))
            }
        }
    }
}

/// The session of whoever looks, for answers that go on: they end with it.
pub struct Watch {
    /// Whose requests are sent.
    pub caller: Caller,
    session: Option<String>,
}

impl Watch {
    /// Whether it still holds.
    pub fn is_on(&self, console: &Console) -> bool {
        match &self.session {
            None => true,
            Some(id) => console.sessions.is_on(id, Instant::now()),
        }
    }
}

impl FromRequestParts<Console> for Watch {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Watch, Response> {
        let session = console.rules.session_of(&parts.headers).map(str::to_owned);
        match Viewer::from_request_parts(parts, console).await {
            Ok(Viewer(caller)) => Ok(Watch {
                caller,
                session: session.filter(|_| console.rules.needs_token),
            }),
            // A script follows no redirect to a page.
            Err(_) => Err(StatusCode::UNAUTHORIZED.into_response()),
        }
    }
}

/// The way to sign in, and to what was wanted afterwards.
pub fn to_sign_in(wanted: Option<&str>) -> Response {
    let wanted = wanted.filter(|path| *path != "/");
    Redirect::to(&path("/dashboard/sign-in", &[("next", wanted)])).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_has_nothing_inline_and_nothing_from_elsewhere() {
        let (_, policy) = &HEADERS[0];
        assert!(policy.starts_with("default-src 'none'"));
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'));
    }
}
