//! Health, metrics, and the answers to paths and methods that do not exist.

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use esker_node::NotReady;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde::Serialize;

use super::series::REQUESTS;
use super::{App, ServiceError};
use crate::auth::Access;
use crate::auth::operation::Effect;

/// What is shown to those who may not read the status.
const ELSEWHERE: &str = "the status of the server has the reason (`esker status`)";
/// Problems that are noted beside readiness: it ends with the last connection that was made before, or is there for
/// the root token alone.
const NOTED: [&str; 5] = [
    "tls_certificate_expires_soon",
    "tls_certificate_expired",
    "peer_certificate_expires_soon",
    "peer_certificate_expired",
    "access_tokens_unchecked",
];

/// Whether the server is healthy, as far as the sender may know: the path is open, and where there is
/// authentication, reasons are for those who may read the status.
fn shown(access: &Access, answer: Result<(), NotReady>) -> Result<(), NotReady> {
    answer.map_err(|not_ready| match access.admin(Effect::Read) {
        Ok(_) => not_ready,
        Err(_) => NotReady {
            why: ELSEWHERE.to_owned(),
            ..not_ready
        },
    })
}

/// `OK` if appends are accepted, else 503 and the reason; as [`ready`] for a client that accepts JSON only.
pub(crate) async fn health(State(app): State<App>, access: Access, headers: HeaderMap) -> Response {
    let health = shown(&access, app.node.open(&access.any()).health());
    let accepts = headers.get(header::ACCEPT);
    if accepts.is_some_and(|kinds| kinds == "application/json") {
        return judged("ready", health, notes(&app, &access));
    }
    match health {
        Ok(()) => "OK".into_response(),
        Err(not_ready) => (StatusCode::SERVICE_UNAVAILABLE, not_ready.why).into_response(),
    }
}

/// Whether appends are accepted.
pub(crate) async fn ready(State(app): State<App>, access: Access) -> Response {
    judged(
        "ready",
        shown(&access, app.node.open(&access.any()).health()),
        notes(&app, &access),
    )
}

/// Whether the process runs: that it answers, and that its loops turn. It may be alive and not ready.
pub(crate) async fn live(State(app): State<App>, access: Access) -> Response {
    judged(
        "live",
        shown(&access, app.node.open(&access.any()).liveness()),
        Vec::new(),
    )
}

/// What a probe is answered.
#[derive(Serialize)]
struct Judged {
    status: String,
    reasons: Vec<Reason>,
    /// What ends readiness later, if nothing is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<Reason>,
}

#[derive(Serialize)]
struct Reason {
    code: &'static str,
    message: String,
}

/// Certificates that end soon, or have ended: the server is ready for those that do not connect anew. Issued tokens
/// that are refused, because revocations may be missing: it is ready for the root token. Replicas that differ, of which it is not known yet which is to stop.
fn notes(app: &App, access: &Access) -> Vec<Reason> {
    let node = app.node.open(&access.any());
    let may_read = access.admin(Effect::Read).is_ok();
    let problems = node.host_problems().into_iter();
    let noted = problems.filter(|problem| NOTED.contains(&problem.code));
    noted
        .chain(node.undecided_replicas())
        .map(|problem| Reason {
            code: problem.code,
            message: match may_read {
                true => problem.what,
                false => ELSEWHERE.to_owned(),
            },
        })
        .collect()
}

fn judged(question: &str, answer: Result<(), NotReady>, notes: Vec<Reason>) -> Response {
    match answer {
        Ok(()) => Json(Judged {
            status: question.to_owned(),
            reasons: Vec::new(),
            notes,
        })
        .into_response(),
        Err(NotReady { code, why }) => {
            let judged = Judged {
                status: format!("not_{question}"),
                reasons: vec![Reason { code, message: why }],
                notes,
            };
            (StatusCode::SERVICE_UNAVAILABLE, Json(judged)).into_response()
        }
    }
}

/// Metrics in Prometheus' text format.
pub(crate) async fn metrics(
    State(app): State<App>,
    access: Access,
) -> Result<Response, ServiceError> {
    let granted = access.admin(Effect::Read)?;
    app.limits.publish();
    let reads = app.node.open(&granted).reads();
    metrics::gauge!("esker_read_sessions_bytes").set(reads.held() as f64);
    metrics::gauge!("esker_read_sessions_waiting").set(reads.waiting() as f64);
    let type_of_text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((type_of_text, app.metrics.render()).into_response())
}

/// Paths that do not exist.
pub async fn no_route(method: Method, uri: Uri) -> ServiceError {
    count_one("none".to_owned(), &method, StatusCode::BAD_REQUEST);
    ServiceError::NoRoute(uri.path().to_owned())
}

/// Methods that a path does not take.
pub async fn no_method(request: Request) -> ServiceError {
    let method = request.method();
    count_one(route(&request), method, StatusCode::METHOD_NOT_ALLOWED);
    ServiceError::NoMethod(method.to_string())
}

/// Counts requests of routes by route, method and status; [`no_route`] and [`no_method`] count the others.
pub async fn count(request: Request, next: Next) -> Response {
    let (route, method) = (route(&request), request.method().clone());
    let response = next.run(request).await;
    count_one(route, &method, response.status());
    response
}

fn route(request: &Request) -> String {
    let path = request.extensions().get::<MatchedPath>();
    path.map_or("none", MatchedPath::as_str).to_owned()
}

fn count_one(route: String, method: &Method, status: StatusCode) {
    metrics::counter!(
        REQUESTS,
        "route" => route, "method" => label(method), "status" => status.as_str().to_owned()
    )
    .increment(1);
}

/// A method as a label of metrics. Clients can invent methods, and the number of labels has to be
/// bounded.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_page_of_monitoring_has_every_reason_of_a_probe() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/monitoring.md");
        let page = std::fs::read_to_string(path).expect("docs/operating/monitoring.md");
        for (code, _) in esker_node::NOT_READY {
            assert!(page.contains(&format!("\n| `{code}` | ")), "{code}");
        }
    }
}
