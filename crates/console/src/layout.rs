//! What all pages have in common: head, navigation, errors, lists of bounded size, commands to copy.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::access::SignedOut;
use crate::api_client::{ApiError, Caller};
use crate::assets;
use crate::words::visible;

/// Most bytes of the lists on a page: with head, forms and commands, a page stays below 150 KB.
pub const LIST_BYTES: usize = 100_000;
/// Numbers of pages that are shown on either side of the present one.
const NEIGHBOURS: usize = 3;

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
    /// The heading and the text for people. What is damaged, what could not be read now and what is not there
    /// have headings of their own.
    pub fn explained(&self) -> (&'static str, String) {
        match self {
            PageError::Api(error) => {
                let heading = match error {
                    ApiError::Unauthenticated => "Signed out",
                    ApiError::Forbidden(_) => "Not permitted",
                    ApiError::NotFound { .. } => "Not found",
                    ApiError::Failed { code, .. } => match code.as_str() {
                        "damaged" | "root_missing" => "Damaged",
                        "newer_format" => "Written by a later release",
                        "other_cluster" | "not_ours" => "Of another cluster",
                        "invalid" | "bad_query" | "bad_path" => "Not understood",
                        "io" | "denied" | "store" | "repository_missing" | "repository_timeout" => {
                            "Not readable now"
                        }
                        "decryption_failed" => "Encrypted",
                        _ => "Not available now",
                    },
                };
                (heading, error.to_string())
            }
            PageError::Invalid(why) => ("Not understood", why.clone()),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            PageError::Api(ApiError::Unauthenticated) => StatusCode::UNAUTHORIZED,
            PageError::Api(ApiError::Forbidden(_)) => StatusCode::FORBIDDEN,
            PageError::Api(ApiError::NotFound { .. }) => StatusCode::NOT_FOUND,
            PageError::Api(ApiError::Failed { .. }) => StatusCode::BAD_GATEWAY,
            PageError::Invalid(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (heading, why) = self.explained();
        let mut response = (self.status(), notice(heading, &why)).into_response();
        if matches!(self, PageError::Api(ApiError::Unauthenticated)) {
            response.extensions_mut().insert(SignedOut);
        }
        response
    }
}

/// A page of a section, for whoever looks.
pub fn page(title: &str, section: Section, caller: &Caller, body: Markup) -> Markup {
    document(
        title,
        html! {
            (top(Some(section), caller.token.is_some()))
            main id="main" tabindex="-1" {
                h1 { (visible(title)) }
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
            (top(None, false))
            main id="main" tabindex="-1" {
                h1 { (heading) }
                p { (visible(why)) }
            }
        },
    )
}

fn top(section: Option<Section>, signed_in: bool) -> Markup {
    html! {
        header.top {
            a.brand href="/" { img src=(asset("icon.svg")) alt="" width="22" height="22"; "Esker" }
            nav aria-label="Pages" {
                ul {
                    @for (of, path, name) in SECTIONS {
                        li {
                            a href=(path) aria-current=[(Some(of) == section).then_some("page")] { (name) }
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
    }
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
                title { (visible(title)) " – Esker" }
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
    format!("/dashboard/assets/{name}?v={}", assets::VERSION)
}

/// A part of a page that changes while somebody looks. `source` sends it anew.
pub fn live(source: &str, part: &Markup) -> Markup {
    html! { div data-live=(source) { (part) } }
}

/// What is shown in place of a part that an API refuses or fails to answer.
pub fn failed_part(error: &ApiError) -> Markup {
    let (heading, why) = PageError::Api(error.clone()).explained();
    html! { p.problem role="alert" { strong { (heading) ": " } (visible(&why)) } }
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

/// As many items of a list as fit into a page, at least one; and how many those are.
pub fn fitting<T>(
    items: impl IntoIterator<Item = T>,
    most: usize,
    render: impl Fn(T) -> Markup,
) -> (Markup, usize) {
    let (mut shown, mut count) = (String::new(), 0);
    for item in items {
        let one = render(item).0;
        if count > 0 && shown.len() + one.len() > most {
            break;
        }
        shown.push_str(&one);
        count += 1;
    }
    (PreEscaped(shown), count)
}

/// The numbers of a list's pages: the first, the last, and those around the present one, which counts from 0.
pub fn page_links(
    label: &str,
    pages: usize,
    present: usize,
    to: impl Fn(usize) -> String,
) -> Markup {
    let is_shown = |at: usize| at == 0 || at + 1 == pages || at.abs_diff(present) <= NEIGHBOURS;
    html! {
        @if pages > 1 {
            nav.pages aria-label=(label) {
                @if present > 0 { a rel="prev" href=(to(present - 1)) { "Previous" } }
                @for at in (0..pages).filter(|at| is_shown(*at)) {
                    @if at > 0 && !is_shown(at - 1) { span { "…" } }
                    a href=(to(at)) aria-current=[(at == present).then_some("page")] { (at + 1) }
                }
                @if present + 1 < pages { a rel="next" href=(to(present + 1)) { "Next" } }
            }
        }
    }
}

/// A table that scrolls sideways by itself where it is wider than the page. A heading that begins with `#` is that
/// of a column of numbers.
pub fn table(label: &str, headings: &[&str], rows: Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead {
                    tr {
                        @for heading in headings {
                            @match heading.strip_prefix('#') {
                                Some(heading) => th.number scope="col" { (heading) },
                                None => th scope="col" { (heading) },
                            }
                        }
                    }
                }
                tbody { (rows) }
            }
        }
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
    fn names_are_escaped_in_pages() {
        let name = r#"<script>alert("x")</script>"#;
        let caller = Caller::default();
        let body = commands(name, &[(name, name.into())]);
        let shown = page(name, Section::Overview, &caller, body).0;
        assert!(!shown.contains("<script>alert"), "{shown}");
        let shown = notice(name, "a\u{202e}b").0;
        assert!(!shown.contains("<script>alert"), "{shown}");
        assert!(!shown.contains('\u{202e}'), "{shown}");
    }

    #[test]
    fn a_list_ends_where_the_page_is_full_and_is_never_empty() {
        let render = |text: &str| html! { (text) };
        let (shown, count) = fitting(["<<", "<<", "<<"], 16, render);
        assert_eq!((shown.0.as_str(), count), ("&lt;&lt;&lt;&lt;", 2));
        assert_eq!(fitting(["<<"], 1, render).1, 1);
        assert_eq!(fitting([], 1, render).1, 0);
    }

    #[test]
    fn of_many_pages_the_ends_and_the_neighbours_are_linked() {
        let shown = page_links("More", 250, 100, |at| format!("/?page={at}")).0;
        let linked: Vec<usize> = (0..250)
            .filter(|at| shown.contains(&format!("\"/?page={at}\"")))
            .collect();
        assert_eq!(linked, [0, 97, 98, 99, 100, 101, 102, 103, 249]);
        assert_eq!(page_links("More", 1, 0, |_| String::new()).0, "");
    }

    #[test]
    fn what_is_damaged_what_cannot_be_read_now_and_what_is_not_there_look_different() {
        let failed = |code: &str| {
            let (code, message) = (code.to_owned(), "m".to_owned());
            PageError::Api(ApiError::Failed { code, message })
                .explained()
                .0
        };
        let missing = PageError::Api(ApiError::NotFound {
            code: "no_snapshot".to_owned(),
            message: "m".to_owned(),
        });
        let headings = [failed("damaged"), failed("io"), missing.explained().0];
        assert_eq!(headings, ["Damaged", "Not readable now", "Not found"]);
        assert_eq!(failed("timeout"), "Not available now");
        assert_eq!(failed("repository_timeout"), "Not readable now");
    }
}
