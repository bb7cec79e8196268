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
use crate::{sessions, viewers};

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
    /// The name of the cookie over plain HTTP: servers on one machine share its cookies.
    cookie: String,
    /// The name over TLS: with its prefix, a browser takes the cookie over TLS alone, and from no other host.
    secure_cookie: String,
    has_tls: bool,
}

/// Marks an answer: the token of the session is not valid any more.
#[derive(Clone, Copy, Debug)]
pub struct SignedOut;

impl Rules {
    /// The rules of a listener.
    pub fn new(guard: PageGuard, address: SocketAddr, needs_token: bool, has_tls: bool) -> Rules {
        let cookie = format!("esker-session-{}", address.port());
        Rules {
            guard,
            needs_token,
            is_loopback: address.ip().to_canonical().is_loopback(),
            secure_cookie: format!("__Host-{cookie}"),
            cookie,
            has_tls,
        }
    }

    /// The headers that give a browser a session, or take it away. `over_tls` is whether the browser uses TLS,
    /// which may end at a proxy before the listener.
    pub fn cookies(&self, id: Option<&str>, over_tls: bool) -> Vec<HeaderValue> {
        let cookie = |name: &str, id: &str, more: &str| {
            let text = format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict{more}");
            HeaderValue::from_str(&text).ok()
        };
        let cookies = match (id, self.has_tls || over_tls) {
            // It ends with the browser; the session may end sooner.
            (Some(id), true) => vec![cookie(&self.secure_cookie, id, "; Secure")],
            (Some(id), false) => vec![cookie(&self.cookie, id, "")],
            (None, _) => vec![
                cookie(&self.secure_cookie, "", "; Secure; Max-Age=0"),
                cookie(&self.cookie, "", "; Max-Age=0"),
            ],
        };
        cookies.into_iter().flatten().collect()
    }

    /// The session that a request names. Another site of the same host can set the cookie without the prefix, so
    /// that one does not count where the other is there, or has to be.
    pub fn session_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let named = |wanted: &str| {
            let cookies = headers.get_all(header::COOKIE).iter();
            let cookies = cookies.filter_map(|value| value.to_str().ok());
            cookies
                .flat_map(|all| all.split(';'))
                .filter_map(|one| one.trim().split_once('='))
                .find_map(|(name, value)| (name == wanted).then_some(value))
        };
        let plain = || named(&self.cookie).filter(|_| !self.has_tls);
        named(&self.secure_cookie).or_else(plain)
    }
}

/// Whether the browser reached the form by TLS. Every form that is taken names its origin.
pub fn is_over_tls(headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN);
    origin.is_some_and(|it| it.as_bytes().starts_with(b"https://"))
}

/// Refuses requests that are not for this server, or come from a page of another site.
pub async fn check(State(console): State<Console>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&console.rules, &request) {
        None => answer(&console, request, next).await,
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

/// Answers a request. A session ends as soon as an API refuses its token.
async fn answer(console: &Console, request: Request, next: Next) -> Response {
    let wanted = request.uri().path_and_query().cloned();
    let session = console.rules.session_of(request.headers());
    let session = session.map(str::to_owned);
    let response = next.run(request).await;
    if response.extensions().get::<SignedOut>().is_none() {
        return response;
    }
    if let Some(id) = session {
        console.sessions.end(&id);
    }
    to_sign_in(wanted.as_ref().map(|it| it.as_str()))
}

fn refusal(rules: &Rules, request: &Request) -> Option<String> {
    if let Err(why) = rules.guard.check(request) {
        return Some(why);
    }
    // A page of another site may link here, and nothing else: what it embeds would read the repository, or take
    // the places of live pages.
    let fetched = |name: &str| {
        let value = request.headers().get(name);
        value.and_then(|it| it.to_str().ok())
    };
    let is_foreign = matches!(fetched("sec-fetch-site"), Some("cross-site" | "same-site"));
    let is_link = fetched("sec-fetch-mode") == Some("navigate")
        && fetched("sec-fetch-dest") == Some("document")
        && request.method() == Method::GET;
    if is_foreign && !is_link {
        return Some("the request is from a page of another site".to_owned());
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

    /// For whom live pages count; `None` where nobody signs in.
    pub fn viewer(&self) -> Option<viewers::Viewer> {
        let (token, session) = (self.caller.token.as_ref()?, self.session.as_ref()?);
        Some(viewers::Viewer {
            token: sessions::hash(token.as_bytes()),
            session: sessions::hash(session.as_bytes()),
        })
    }

    /// Ends the session.
    pub fn end(&self, console: &Console) {
        if let Some(id) = &self.session {
            console.sessions.end(id);
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

    fn rules(has_tls: bool) -> Rules {
        let address = "127.0.0.1:7070".parse().unwrap();
        let guard = PageGuard::new(&esker_server::config::Config::default(), address);
        Rules::new(guard, address, true, has_tls)
    }

    fn with_cookies(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(text))])
    }

    #[test]
    fn a_cookie_is_for_tls_alone_where_the_browser_uses_it_even_behind_a_proxy() {
        let text = |has_tls, over_tls| {
            let cookies = rules(has_tls).cookies(Some("id"), over_tls);
            assert_eq!(cookies.len(), 1);
            cookies[0].to_str().unwrap().to_owned()
        };
        let plain = "esker-session-7070=id; Path=/; HttpOnly; SameSite=Strict";
        assert_eq!(text(false, false), plain);
        for secure in [text(true, true), text(false, true), text(true, false)] {
            assert_eq!(secure, format!("__Host-{plain}; Secure"));
        }
        let ended = rules(false).cookies(None, false);
        assert!(
            ended
                .iter()
                .all(|it| it.to_str().unwrap().ends_with("; Max-Age=0"))
        );
        assert_eq!(ended.len(), 2);
    }

    #[test]
    fn a_cookie_that_another_site_of_the_host_may_have_set_does_not_count_over_tls() {
        let both = with_cookies("esker-session-7070=theirs; __Host-esker-session-7070=ours");
        let plain = with_cookies("a=b; esker-session-7070=x");
        assert_eq!(rules(true).session_of(&both), Some("ours"));
        assert_eq!(rules(false).session_of(&both), Some("ours"));
        assert_eq!(rules(false).session_of(&plain), Some("x"));
        assert_eq!(rules(true).session_of(&plain), None);
    }

    #[test]
    fn a_page_of_another_site_may_link_here_and_embed_nothing() {
        let refused = |method: Method, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/dashboard/prune");
            for (name, value) in headers.iter().chain(&[("host", "localhost:7070")]) {
                request = request.header(*name, *value);
            }
            refusal(
                &rules(false),
                &request.body(axum::body::Body::empty()).unwrap(),
            )
            .is_some()
        };
        let fetch = |site, mode, dest| {
            [
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ]
        };
        assert!(!refused(Method::GET, &[]));
        assert!(!refused(
            Method::GET,
            &fetch("same-origin", "cors", "empty")
        ));
        assert!(!refused(
            Method::GET,
            &fetch("none", "navigate", "document")
        ));
        assert!(!refused(
            Method::GET,
            &fetch("cross-site", "navigate", "document")
        ));
        assert!(refused(
            Method::GET,
            &fetch("cross-site", "no-cors", "image")
        ));
        assert!(refused(
            Method::GET,
            &fetch("same-site", "no-cors", "script")
        ));
        assert!(refused(
            Method::GET,
            &fetch("cross-site", "navigate", "iframe")
        ));
        assert!(refused(
            Method::POST,
            &fetch("cross-site", "navigate", "document")
        ));
        // A form names its origin.
        assert!(refused(
            Method::POST,
            &fetch("same-origin", "navigate", "document")
        ));
        let origin = |it| [("origin", it)];
        assert!(!refused(Method::POST, &origin("http://localhost:7070")));
        assert!(refused(Method::POST, &origin("http://localhost:7071")));
    }
}
