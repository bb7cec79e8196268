//! The server: HTTP/1.1 and HTTP/2 on one port, with TLS if that is configured; and a second one for the
//! state service, if `state.listen` is set.
//!
//! The ports are bound first, so that a port in use is an error before anything else happens; then the
//! node recovers; then connections are accepted.
//!
//! Bounds, each from the configuration: connections (beyond them [a reserve](crate::place) for health,
//! metrics and the admin API; some hundreds more wait, and those beyond are closed), bytes of a request's body and of all
//! bodies, bytes of appends in flight, the time to send the first bytes, a request's head and its body,
//! the time without a request, and the time in which nothing of an answer is taken. HTTP/2 lets a client
//! have at most 1,024 requests open, and what clients send ahead is bounded by [`windows`](crate::windows).
//!
//! A stop refuses new requests, ends sessions, waits for what is in flight, and then stops the node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use esker_node::Bootstrap;
use esker_node::{ClusterOptions, HostProblems, Node, NodeOptions, StartError};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::activity;
use crate::api::{self, App, AppParts, Limits};
use crate::auth::Authority;
use crate::auth::root_token::{self, RootToken, RootTokenError};
use crate::auth::root_token_reload;
use crate::config::Config;
use crate::forward::peer_requests;
use crate::front::{Front, FrontParts, PageGuard};
use crate::open_files::OpenFiles;
use crate::place::{CONNECTIONS, CONNECTIONS_REFUSED, Places};
use crate::tls::{self, CertificateInfo, Tls, TlsError, handshake};
use crate::traces::{self, Traces};
use crate::usage::Usage;
use crate::windows::Windows;
use crate::{sample_history, state, telemetry, usage};
pub use cluster_options::ClusterFileError;
use cluster_options::cluster_options;
use connection::Connections;
use listener::{Shared, accept, bind, guarded};
use node_options::node_options;

mod cluster_options;
mod connection;
mod corked;
mod listener;
mod node_options;
pub(crate) mod peer_certificates;
pub(crate) mod peer_secret;
mod stream;
mod vanished;

/// Longest time for reading what a restart needs, and for counting it: small files. If it takes longer, their disk
/// hangs, and the restart counts as held back. A thread that waits for a disk cannot be interrupted, so the check
/// goes on, and no other one begins.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_IS_LATE: &str = "the files that a start reads (configuration, secrets, certificates, the program) cannot be read, or the restart cannot be counted: their disk does not answer";
/// Time for what is in flight when the server restarts itself.
pub const RESTART_GRACE: Duration = Duration::from_secs(2);
/// How long the measured usage may take to be saved when the server stops.
const SAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long connections may take for the answers that are ready by then.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What happened.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Traces cannot be sent as the configuration says.
    #[error("{0}")]
    Traces(String),
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file of `[cluster]` cannot be used.
    #[error(transparent)]
    Cluster(#[from] ClusterFileError),
    /// There is no root token in the file that the configuration names.
    #[error(transparent)]
    RootToken(#[from] RootTokenError),
    /// The node could not start.
    #[error(transparent)]
    Node(#[from] StartError),
}

impl ServeError {
    /// A stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ServeError::Listen { .. } => "listen",
            ServeError::Traces(_) => "traces",
            ServeError::Tls(_) => "tls_files",
            ServeError::Cluster(_) => "cluster_files",
            ServeError::RootToken(_) => "root_token",
            ServeError::Node(e) => e.code(),
        }
    }
}

/// Checks for what a start with this configuration would refuse, without access to disk, network or
/// store.
///
/// # Errors
///
/// Those of such a start.
pub fn check(config: &Config) -> Result<(), ServeError> {
    Ok(esker_node::check_destination(&node_options(config, None))?)
}

/// What a start needs beside the configuration.
#[derive(Default)]
pub struct StartOptions {
    /// What an empty data directory means.
    pub bootstrap: Option<Bootstrap>,
    /// Partitions that begin empty if a restore finds no copy of them.
    pub empty_partitions: BTreeSet<u64>,
    /// Whether this start continues from a server that restarts itself ([`NodeOptions::restarted`]).
    pub restarted: bool,
    /// What is served beside the APIs on the main listener.
    pub front: Option<Front>,
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    state_address: Option<SocketAddr>,
    has_tls: bool,
    tls: Option<Tls>,
    node: Node,
    usage: Usage,
    data_dir: PathBuf,
    grace: Duration,
    stop: CancellationToken,
    accepting: Vec<tokio::task::JoinHandle<()>>,
    traces: Traces,
}

impl Server {
    /// Binds the ports, recovers, and serves.
    pub async fn start(config: &Config) -> Result<Server, ServeError> {
        Server::start_with(config, StartOptions::default()).await
    }

    /// The same, with more than the configuration has.
    pub async fn start_with(config: &Config, start: StartOptions) -> Result<Server, ServeError> {
        let StartOptions {
            bootstrap,
            empty_partitions,
            restarted,
            front,
        } = start;
        let root_token = match &config.root_token_file {
            Some(path) => Some(read_root_token(path).await?),
            None => None,
        };
        if let Some(warning) = root_token.as_ref().and_then(|it| it.warning.as_ref()) {
            tracing::warn!("{warning}");
        }
        let (listener, address) = bind(
            config.listen,
            "; stop the program that uses it, or choose another with --listen",
        )
        .await?;
        // The main listener serves it anyway.
        let own = |address: &SocketAddr| *address != config.listen || address.port() == 0;
        let state_listener = match config.state.listen.filter(own) {
            None => None,
            Some(listen) => Some(
                bind(
                    listen,
                    "; stop the program that uses it, or choose another with `state.listen`",
                )
                .await?,
            ),
        };
        let bound = state_listener.iter().map(|(_, address)| *address);
        let addresses: Vec<SocketAddr> = std::iter::once(address).chain(bound).collect();
        let files = OpenFiles::raise(config);
        let config = &files.within(config);
        let metrics = telemetry::metrics();
        let names = tls::names_of(&addresses);
        // Before the recovery, which may take long. A self-signed certificate is made in the data directory,
        // once that is ours.
        let own_files = match config.tls.self_signed {
            true => None,
            false => load_tls(config, &names).await?,
        };
        let problems = HostProblems::default();
        let cluster_options = read_cluster_options(config).await?;
        let certificates = cluster_options.as_ref().and_then(|it| it.tls.clone());
        let secrets: Vec<String> = cluster_options.iter().flat_map(secrets_of).collect();
        let options = NodeOptions {
            empty_partitions,
            restarted,
            host_problems: problems.clone(),
            cluster: cluster_options,
            ..node_options(config, bootstrap)
        };
        let traces = Traces::start(&config.traces).map_err(ServeError::Traces)?;
        let node = Node::start(options).await?;
        let data_dir = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Usage::open(&data_dir)).await;
        let usage = opened.unwrap_or_default();
        let tls = match own_files {
            None => load_tls(config, &names).await?,
            own_files => own_files,
        };
        let app = App::from(AppParts {
            traces: traces.clone(),
            usage: usage.clone(),
            ..AppParts::new(
                node.clone(),
                metrics,
                Limits::new(&config.limits),
                config.location.clone(),
            )
        });
        let root = root_token.map(|it| it.hash);
        let authority = Authority::new(root, node.tokens());
        let authority = Arc::new(match app.forwarder.clone() {
            Some(forwarder) => authority.in_cluster(forwarder.catalog_check(problems.clone())),
            None => authority,
        });
        let stop = CancellationToken::new();
        let grace = config.shutdown_grace.as_duration();
        let shared = Shared {
            places: Places::new(config.limits.connections as usize, files.waiting as usize),
            stop: stop.clone(),
            grace,
        };
        let budgets = (
            node.reads().clone(),
            Windows::new(config.limits.http2_windows.as_usize()),
        );
        let has_tls = |address: SocketAddr| {
            let is_cleartext = config.tls.cleartext_loopback && is_loopback(address);
            tls.is_some() && !is_cleartext
        };
        let connections = |router, address: SocketAddr| {
            let tls = tls.clone().filter(|_| has_tls(address));
            Connections::new(router, tls, &config.limits, budgets.clone(), stop.clone())
        };
        activity::describe();
        metrics::gauge!(CONNECTIONS).increment(0.0);
        metrics::counter!(CONNECTIONS_REFUSED).absolute(0);
        api::series::register();
        state::layer::register();
        traces::register();
        telemetry::upkeep(&telemetry::metrics());
        tokio::spawn(look_after_metrics(telemetry::metrics(), stop.clone()));
        tokio::spawn(sample_history::run(
            app.history.clone(),
            node.clone(),
            telemetry::metrics(),
            stop.clone(),
        ));
        tokio::spawn(usage::run(
            usage.clone(),
            node.clone(),
            config.data_dir.clone(),
            stop.clone(),
        ));
        handshake::register();
        if let Some((path, used)) = config.root_token_file.clone().zip(root) {
            let (authority, problems) = (authority.clone(), problems.clone());
            let follow = root_token_reload::follow(path, used, authority, problems, stop.clone());
            tokio::spawn(follow);
        }
        if let Some((cluster, used)) = node.cluster().zip(certificates) {
            let (files, problems) = (config.cluster.clone(), problems.clone());
            let follow = peer_certificates::follow(files, used, cluster, problems, stop.clone());
            tokio::spawn(follow);
        }
        let secret_file = config.cluster.secret_file.clone();
        if let Some((cluster, path)) = node.cluster().zip(secret_file) {
            let problems = problems.clone();
            let follow = peer_secret::follow(path, secrets, cluster, problems, stop.clone());
            tokio::spawn(follow);
        }
        if let Some(tls) = tls.clone() {
            tokio::spawn(tls.follow(names, problems, stop.clone()));
        }
        if let Some((cluster, forwarder)) = node.cluster().zip(app.forwarder.clone()) {
            let routes = api::router(app.clone());
            cluster.serve_requests(peer_requests(routes, authority.clone(), forwarder));
        }
        let identifying = (authority.clone(), app.forwarder.clone());
        let router = guarded(
            api::router(app.clone()),
            identifying.clone(),
            config,
            address,
        );
        let has_tls = has_tls(address);
        let router = match front {
            None => router,
            Some(front) => front(FrontParts {
                api: router,
                guard: PageGuard::new(config, address),
                address,
                needs_token: root.is_some(),
                has_tls,
                stop: stop.clone(),
            }),
        };
        let main = connections(router, address);
        let mut accepting = vec![tokio::spawn(accept(listener, shared.clone(), main))];
        let mut state_address = None;
        if let Some((listener, address)) = state_listener {
            let router = guarded(api::state_router(app), identifying, config, address);
            let served = connections(router, address);
            accepting.push(tokio::spawn(accept(listener, shared, served)));
            state_address = Some(address);
        }
        Ok(Server {
            address,
            state_address,
            has_tls,
            tls,
            node,
            usage,
            data_dir: config.data_dir.clone(),
            grace,
            stop,
            accepting,
            traces,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the state service listens, if it has an address of its own.
    pub fn state_address(&self) -> Option<SocketAddr> {
        self.state_address
    }

    /// Where clients of this machine reach it: `https://` and the address, or `http://`.
    pub fn url(&self) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of its listeners, and the file that holds it; `None` without TLS.
    pub fn certificate(&self) -> Option<(CertificateInfo, &Path)> {
        let tls = self.tls.as_ref()?;
        Some((tls.info(), tls.certificate_path()))
    }

    /// The node behind it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Waits until the process has to be started again, and returns why. The restart has been counted by
    /// then: call [`Server::stop_for_restart`], and start the same program with the same arguments.
    /// `may_restart` returns why the host cannot do that at the moment, if so.
    pub async fn restart_wanted(
        &self,
        may_restart: impl AsyncFn() -> Result<(), String>,
    ) -> String {
        loop {
            let cause = self.node.restart_wanted().await;
            let noted = async {
                self.check_tls().await?;
                may_restart().await?;
                self.node.note_restart(&cause).await
            };
            let late = || {
                self.node
                    .show_restart_waits(format!("{cause}; {CHECK_IS_LATE}"))
            };
            match reporting_if_late(noted, CHECK_TIMEOUT, late).await {
                Ok(()) => return cause,
                Err(why) => self.node.hold_restart_back(format!("{cause}; {why}")),
            }
        }
    }

    /// Fails with the reason if a start could not use the files of TLS as they are now. This process serves
    /// what it read before.
    async fn check_tls(&self) -> Result<(), String> {
        let Some(tls) = self.tls.clone() else {
            return Ok(());
        };
        match tokio::task::spawn_blocking(move || tls.check()).await {
            Ok(checked) => checked.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Stops gracefully; takes at most about twice the grace period.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.stop.cancel();
        // Sessions end because the node does; the connections that carried them end then. Where the disk hangs,
        // neither waits for the other.
        tokio::join!(self.save_usage(), self.node.stop(self.grace));
        let traces = self.traces.clone();
        self.end_connections().await;
        traces.stop(traces::FLUSH_TIMEOUT).await;
    }

    /// Stops as [`Server::stop`] does, within [`RESTART_GRACE`] and the time to close the database: what
    /// needs longer may be waiting for the restart.
    pub async fn stop_for_restart(self) {
        tracing::info!("stopping for a restart");
        self.stop.cancel();
        let grace = self.grace.min(RESTART_GRACE);
        tokio::join!(self.save_usage(), self.node.stop_for_restart(grace));
        // Their last answers are on their way. The connection of a client that does not take them ends
        // with the process.
        let traces = self.traces.clone();
        let _ = tokio::time::timeout(LAST_ANSWERS_TIMEOUT, self.end_connections()).await;
        traces.stop(LAST_ANSWERS_TIMEOUT).await;
    }

    /// Saves the measured usage: milliseconds on a disk that answers, and most often while the directory is
    /// still locked. If it is not, the next server has read what this one had saved before, and the file is
    /// replaced as a whole.
    async fn save_usage(&self) {
        let (usage, data_dir) = (self.usage.clone(), self.data_dir.clone());
        let saved = tokio::task::spawn_blocking(move || usage.save(&data_dir));
        if tokio::time::timeout(SAVE_TIMEOUT, saved).await.is_err() {
            tracing::warn!("usage metrics were not saved: the disk does not answer");
        }
    }

    async fn end_connections(self) {
        for accepting in self.accepting {
            // A panic in it has been reported by the panic hook.
            let _ = accepting.await;
        }
    }
}

/// Reads the files of TLS on a thread where a file system that hangs holds up neither signals nor pings of a
/// watchdog.
async fn load_tls(config: &Config, names: &[String]) -> Result<Option<Tls>, TlsError> {
    let (tls, data_dir, names) = (config.tls.clone(), config.data_dir.clone(), names.to_vec());
    let loading = tokio::task::spawn_blocking(move || Tls::load(&tls, &data_dir, &names));
    match loading.await {
        Ok(loaded) => loaded,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// All secrets of the cluster that a node accepts, the one that it presents first.
fn secrets_of(options: &ClusterOptions) -> impl Iterator<Item = String> {
    let all = options.secret.iter().chain(&options.other_secrets);
    all.cloned()
}

/// The same for the files of the cluster.
async fn read_cluster_options(config: &Config) -> Result<Option<ClusterOptions>, ClusterFileError> {
    let config = config.clone();
    match tokio::task::spawn_blocking(move || cluster_options(&config)).await {
        Ok(read) => read,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The same for the root token.
async fn read_root_token(path: &Path) -> Result<RootToken, RootTokenError> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || root_token::read(&path)).await {
        Ok(read) => read,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

async fn look_after_metrics(metrics: PrometheusHandle, stop: CancellationToken) {
    let every = telemetry::MAINTENANCE_INTERVAL;
    while tokio::time::timeout(every, stop.cancelled()).await.is_err() {
        telemetry::upkeep(&metrics);
    }
}

/// Waits for a result, and calls `late` once if that takes longer than `limit`.
async fn reporting_if_late<T>(
    result: impl Future<Output = T>,
    limit: Duration,
    late: impl FnOnce(),
) -> T {
    let mut result = std::pin::pin!(result);
    if let Ok(done) = tokio::time::timeout(limit, &mut result).await {
        return done;
    }
    late();
    result.await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_check_that_hangs_is_reported_once_and_goes_on() {
        let reports = Cell::new(0);
        let count = || reports.set(reports.get() + 1);
        assert_eq!(reporting_if_late(async { 1 }, SOON, count).await, 1);
        assert_eq!(reports.get(), 0);
        // It ends only after it was reported.
        let hanging = async {
            while reports.get() == 0 {
                tokio::task::yield_now().await;
            }
            2
        };
        assert_eq!(reporting_if_late(hanging, Duration::ZERO, count).await, 2);
        assert_eq!(reports.get(), 1);
    }
}
