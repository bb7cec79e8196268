//! What all pages have in common: head, navigation, errors, tables of names and values, commands to copy.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::access::to_sign_in;
use crate::api_client::ApiError;
use crate::words::visible;

/// The pages that the navigation names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Section {
    /// Health, positions, predicted recovery.
    Overview,
    /// Snapshots in the repository.
    Snapshots,
    /// Basins, streams, records.
    Streams,
    /// The state store.
    State,
    /// Nodes and partitions.
    Cluster,
}

const SECTIONS: [(Section, &str, &str); 5] = [
    (Section::Overview, "/", "Overview"),
    (Section::Snapshots, "/dashboard/snapshots", "Snapshots"),
    (Section::Streams, "/dashboard/streams", "Streams"),
    (Section::State, "/dashboard/state", "State"),
    (Section::Cluster, "/dashboard/cluster", "Cluster"),
];

/// What a handler answers.
pub type Page = Result<Markup, PageError>;

/// Why a page cannot be shown.
#[derive(Debug)]
pub enum PageError {
    /// An API has refused, or failed.
    Api(ApiError),
    /// The request makes no sense.
    Invalid(String),
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> PageError {
        PageError::Api(error)
    }
}

impl PageError {
    /// The heading and the text for people.
    pub fn explained(&self) -> (&'static str, String) {
        match self {
            PageError::Api(error) => {
                let heading = match error {
                    ApiError::Unauthenticated => "Signed out",
                    ApiError::Forbidden(_) => "Not permitted",
                    ApiError::NotFound { .. } => "Not found",
                    ApiError::Failed { .. } => "Not available",
                };
                (heading, error.to_string())
            }
            PageError::Invalid(why) => ("Not understood", why.clone()),
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let status = match &self {
            PageError::Api(ApiError::Unauthenticated) => return to_sign_in(None),
            PageError::Api(ApiError::Forbidden(_)) => StatusCode::FORBIDDEN,
            PageError::Api(ApiError::NotFound { .. }) => StatusCode::NOT_FOUND,
            PageError::Api(ApiError::Failed { .. }) => StatusCode::BAD_GATEWAY,
            PageError::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        let (heading, why) = self.explained();
        (status, notice(heading, &why)).into_response()
    }
}

/// A page of a section.
pub fn page(title: &str, section: Section, signed_in: bool, body: Markup) -> Markup {
    document(
        title,
        html! {
            header.top {
                a.brand href="/" { img src=(asset("icon.svg")) alt="" width="22" height="22"; "Esker" }
                nav aria-label="Pages" {
                    ul {
                        @for (of, path, name) in SECTIONS {
                            li {
                                a href=(path) aria-current=[(of == section).then_some("page")] { (name) }
                            }
                        }
                    }
                }
                p.live-state id="live-state" role="status" {}
                @if signed_in {
                    form method="post" action="/dashboard/sign-out" {
                        button type="submit" { "Sign out" }
                    }
                }
            }
            main id="main" tabindex="-1" {
                h1 { (title) }
                (body)
            }
        },
    )
}

/// A page with one message.
pub fn notice(heading: &str, why: &str) -> Markup {
    document(
        heading,
        html! {
            header.top { a.brand href="/" { "Esker" } }
            main id="main" tabindex="-1" {
                h1 { (heading) }
                p { (why) }
                p { a href="/" { "Overview" } }
            }
        },
    )
}

/// A whole document.
pub fn document(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – Esker" }
                link rel="icon" href=(asset("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(asset("console.css"));
                script src=(asset("console.js")) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                (body)
            }
        }
    }
}

fn asset(name: &str) -> String {
    format!("/dashboard/assets/{name}?v={}", env!("CARGO_PKG_VERSION"))
}

/// A part of a page that changes while somebody looks. `source` sends it anew.
pub fn live(source: &str, part: &Markup) -> Markup {
    html! { div data-live=(source) { (part) } }
}

/// What is shown in place of a part that an API refuses or fails to answer.
pub fn failed_part(error: &ApiError) -> Markup {
    let (heading, why) = PageError::Api(error.clone()).explained();
    html! { p.problem { strong { (heading) ": " } (why) } }
}

/// Commands, each ready to be copied.
pub fn commands(heading: &str, commands: &[(&str, String)]) -> Markup {
    html! {
        section.commands {
            h2 { (heading) }
            ul {
                @for (what, command) in commands {
                    li {
                        span { (what) }
                        (self::command(command))
                    }
                }
            }
        }
    }
}

/// A command, ready to be copied.
pub fn command(command: &str) -> Markup {
    html! {
        span.command {
            code { (visible(command)) }
            button type="button" data-copy=(command) aria-label={ "Copy: " (visible(command)) } { "Copy" }
        }
    }
}

/// A name as a word of a shell.
pub fn quoted(name: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./:@%+,=".contains(it);
    match !name.is_empty() && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}

/// Names and values.
pub fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// A figure with its meaning.
pub fn card(name: &str, figure: &str, more: Markup) -> Markup {
    html! {
        div.card {
            h2 { (name) }
            p.figure { (figure) }
            p.more { (more) }
        }
    }
}

/// Nothing.
pub fn nothing() -> Markup {
    PreEscaped(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_pages_and_quoted_in_commands() {
        let name = r#"<script>alert("x")</script>"#;
        let shown = page(
            name,
            Section::Overview,
            true,
            commands(name, &[(name, name.into())]),
        );
        assert!(!shown.0.contains("<script>alert"), "{}", shown.0);
        assert_eq!(quoted("a/b-c"), "a/b-c");
        assert_eq!(quoted("a'; rm -rf /"), r"'a'\''; rm -rf /'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
        assert_eq!(quoted(""), "''");
    }
}
