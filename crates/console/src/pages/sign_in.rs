//! The way in, by an access token, and out.

use std::time::{Duration, Instant};

use axum::extract::{Form, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use maud::{Markup, html};
use serde::Deserialize;

use crate::Console;
use crate::access::is_over_tls;
use crate::api_client::{ApiError, Caller};
use crate::layout::document;

/// Most bytes of a token that are tried; the API takes no longer ones.
const MAX_TOKEN_BYTES: usize = 256;
/// Most bytes of a form: a token and the address of a page, percent-encoded. Nobody is known who sends one, and what
/// has arrived of it counts nowhere, so it is about as small as the head of a request.
pub const MAX_FORM_BYTES: usize = 8 * 1024;
/// How long a form may take to arrive.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to go afterwards.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Next {
    next: Option<String>,
}

/// What the form has.
#[derive(Deserialize)]
pub struct SignIn {
    token: String,
    #[serde(default)]
    next: Option<String>,
}

/// The form.
pub async fn page(State(console): State<Console>, Query(next): Query<Next>) -> Response {
    if !console.rules.needs_token {
        return Redirect::to("/").into_response();
    }
    form(next.next.as_deref(), None).into_response()
}

/// Begins a session.
pub async fn sign_in(State(console): State<Console>, request: axum::extract::Request) -> Response {
    if !console.rules.needs_token {
        return Redirect::to("/").into_response();
    }
    let connection = request.extensions().clone();
    let over_tls = is_over_tls(request.headers());
    let replaced = console.rules.session_of(request.headers());
    let replaced = replaced.map(str::to_owned);
    let form_of = axum::RequestExt::extract::<Form<SignIn>, _>(request);
    let said = tokio::time::timeout(FORM_TIMEOUT, form_of).await;
    let Ok(Ok(Form(said))) = said else {
        return (
            StatusCode::BAD_REQUEST,
            form(None, Some("The form is not complete.")),
        )
            .into_response();
    };
    let next = said.next.as_deref();
    let token = said.token.trim();
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let Some(mut header) = header.ok().filter(|_| token.len() <= MAX_TOKEN_BYTES) else {
        return (
            StatusCode::UNAUTHORIZED,
            form(next, Some("That is no access token.")),
        )
            .into_response();
    };
    header.set_sensitive(true);
    let caller = Caller {
        token: Some(header.clone()),
        connection,
    };
    // Every valid token may read it.
    let tried = console
        .api
        .get::<serde_json::Value>(&caller, "/esker/v1/openapi.json");
    match tried.await {
        Ok(_) => {
            if let Some(id) = replaced {
                console.sessions.end(&id);
            }
            let id = console.sessions.begin(header, Instant::now());
            with_cookies(
                console.rules.cookies(Some(&id), over_tls),
                Redirect::to(own_page(next)),
            )
        }
        Err(ApiError::Unauthenticated) => {
            let why = "The access token is not valid: it is mistyped, was revoked, or has expired.";
            (StatusCode::UNAUTHORIZED, form(next, Some(why))).into_response()
        }
        Err(ApiError::Failed { code, .. }) if code == "rate_limited" => {
            let why = "Too many attempts from this address have failed. Wait some seconds.";
            (StatusCode::TOO_MANY_REQUESTS, form(next, Some(why))).into_response()
        }
        Err(ApiError::Forbidden(why)) => {
            (StatusCode::FORBIDDEN, form(next, Some(&why))).into_response()
        }
        Err(error) => {
            let why = error.to_string();
            (StatusCode::SERVICE_UNAVAILABLE, form(next, Some(&why))).into_response()
        }
    }
}

/// Ends the session.
pub async fn sign_out(State(console): State<Console>, headers: HeaderMap) -> Response {
    if let Some(id) = console.rules.session_of(&headers) {
        console.sessions.end(id);
    }
    with_cookies(
        console.rules.cookies(None, false),
        Redirect::to("/dashboard/sign-in"),
    )
}

fn with_cookies(cookies: Vec<HeaderValue>, answer: Redirect) -> Response {
    let mut answer = answer.into_response();
    for cookie in cookies {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
    answer
}

/// The page to go to, if it is one of ours: a link must not lead elsewhere by way of signing in.
fn own_page(next: Option<&str>) -> &str {
    let is_ours = |path: &&str| {
        path.starts_with("/dashboard") && !path.contains('\\') && !path.contains(char::is_control)
    };
    next.filter(is_ours).unwrap_or("/")
}

fn form(next: Option<&str>, problem: Option<&str>) -> Markup {
    document(
        "Sign in",
        html! {
            main.sign-in id="main" tabindex="-1" {
                h1 { "Esker" }
                @if let Some(problem) = problem {
                    p.problem role="alert" { (problem) }
                }
                form method="post" action="/dashboard/sign-in" {
                    @if let Some(next) = next { input type="hidden" name="next" value=(next); }
                    label for="token" { "Access token" }
                    input id="token" name="token" type="password" required autocomplete="current-password" autofocus;
                    button type="submit" { "Sign in" }
                }
                p.more { "The pages show what the token permits, and change nothing." }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_to_pages_of_this_server_alone() {
        for elsewhere in [
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "/dashboard\\..\\evil",
            "/v1/basins",
            "/dashboard\r\nset-cookie: a=b",
        ] {
            assert_eq!(own_page(Some(elsewhere)), "/", "{elsewhere}");
        }
        let wanted = "/dashboard/stream?basin=b&name=a%2Fb";
        assert_eq!(own_page(Some(wanted)), wanted);
        assert_eq!(own_page(None), "/");
    }
}
