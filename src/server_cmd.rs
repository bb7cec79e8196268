//! `esker server`.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use esker_server::auth::root_token;
use esker_server::config::{self, BOOTSTRAP_VARIABLE, Config, ConfigError, Loaded, Overrides};
use esker_server::front::Front;
use esker_server::server::StartOptions;
use esker_server::{Server, server, shorten_time_slice_once, telemetry};
use rustix::fs::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::allocator;
use crate::failure::Failure;
use crate::restart;
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE};
use crate::service_manager;
use crate::snapshot_cmd::REPOSITORY_VARIABLE;

/// A thread of the runtime looks for what has arrived on sockets after so many tasks: while many clients are busy,
/// a task takes up to some 100 µs, and a request of another client waits for that many.
const EVENT_INTERVAL: u32 = 11;
/// Time limit for the end of threads after the server has stopped or was given up.
const THREADS_TIMEOUT: Duration = Duration::from_millis(500);

/// The code of a node that the cluster has removed. The exit code is that of a wrong configuration: a service manager
/// does not start the server again, because that would end the same way.
const NODE_REMOVED: &str = "node_removed";

/// Longest delay between the arrival of a signal and its delivery to the runtime.
const SIGNALS_TIMEOUT: Duration = Duration::from_millis(10);

/// Run the server in the foreground.
///
/// Every key of the configuration can be set in a TOML file (--config), in the environment
/// (ESKER_…) and here (--set key=value); `esker config show` prints the result.
#[derive(Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    overrides: Overrides,

    /// What an empty data directory means, said once
    ///
    /// Without it, an empty directory begins a new cluster, and is refused if the repository holds
    /// snapshots of this cluster: they may be what is missing.
    #[arg(long, value_enum, value_name = "WHAT", env = BOOTSTRAP_VARIABLE, hide_env_values = true)]
    bootstrap: Option<Bootstrap>,

    /// With --bootstrap restore: partitions of which no copy is left, and that begin empty
    ///
    /// All that was in them is lost then. A partition of which there is a copy, or one that cannot be read
    /// now, is refused. Partition 0 is the catalog of basins.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    empty_partitions: Vec<u64>,

    /// Create the file that `root-token-file` names, with a new root token, if there is none
    ///
    /// It gets mode 0600. Its path is printed; the token is in the file alone.
    #[arg(long)]
    create_root_token: bool,

    /// Say what to try next, even where standard output is no terminal.
    #[arg(long, hide = true)]
    hints: bool,

    /// Stop when standard input closes: a server that was started for a while by another program
    /// does not outlive it, however that ends.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,

    /// Where the process listened that has replaced itself by this one.
    #[arg(long, hide = true, value_delimiter = ',', require_equals = true)]
    restarted: Vec<SocketAddr>,
}

/// How a server ended.
enum Ended {
    Stopped,
    /// The process is to be started again.
    ForRestart(Restart),
}

/// A server that has stopped, to be started again.
struct Restart {
    /// The addresses that the new process listens on.
    addresses: Vec<SocketAddr>,
    interrupt: Signal,
    terminate: Signal,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Restart {
    /// Whether a signal asked for a stop meanwhile. This is called right before the process is replaced; the
    /// runtime lives until then, and ends with the process.
    fn was_signalled(&mut self) -> bool {
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        let Some(runtime) = &self.runtime else {
            return false;
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                // A signal that arrived before is delivered by then.
                () = tokio::time::sleep(SIGNALS_TIMEOUT) => false,
            }
        })
    }
}

/// What an empty data directory means.
#[derive(Clone, Copy, ValueEnum)]
enum Bootstrap {
    /// A new cluster begins here.
    New,
    /// Every partition is restored from the repository. In a directory that is in use, a loss is
    /// accepted where nothing else is left.
    Restore,
    /// This node joins a cluster.
    Join,
    /// A variable that is set to nothing says nothing.
    #[value(name = "", hide = true)]
    Unsaid,
}

impl Bootstrap {
    fn said(self) -> Option<server::Bootstrap> {
        match self {
            Bootstrap::New => Some(server::Bootstrap::New),
            Bootstrap::Restore => Some(server::Bootstrap::Restore),
            Bootstrap::Join => Some(server::Bootstrap::Join),
            Bootstrap::Unsaid => None,
        }
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let served = serve(args);
    telemetry::flush_logs();
    match served? {
        Ended::Stopped => Ok(()),
        Ended::ForRestart(mut stopped) => {
            let error = match stopped.was_signalled() {
                // A request to stop takes precedence over a restart.
                true => None,
                false => Some(restart::replace_process(&stopped.addresses)),
            };
            if let Some(runtime) = stopped.runtime {
                end_threads(runtime);
            }
            let Some(error) = error else {
                return Ok(());
            };
            Err(
                Failure::wrong("io", format!("starting the server again: {error}"))
                    .advise("start it by hand: what was acknowledged is in the data directory"),
            )
        }
    }
}

fn load(args: &Args) -> Result<Loaded, ConfigError> {
    // These variables configure `esker stream` and `esker snapshot`.
    let environment = config::environment()
        .filter(|(name, _)| name != SERVER_VARIABLE && name != REPOSITORY_VARIABLE);
    let mut loaded = config::load(&args.overrides, environment)?;
    let mut before = args.restarted.iter();
    if let Some(address) = before.next() {
        loaded.config.listen = *address;
    }
    if let Some(address) = before.next() {
        loaded.config.state.listen = Some(*address);
    }
    Ok(loaded)
}

fn serve(args: &Args) -> Result<Ended, Failure> {
    let bootstrap = args.bootstrap.and_then(Bootstrap::said);
    if !args.empty_partitions.is_empty() && bootstrap != Some(server::Bootstrap::Restore) {
        return Err(Failure::usage(
            "invalid",
            "--empty-partitions is said with --bootstrap restore, which restores the other partitions",
        ));
    }
    allocator::set_up();
    let loaded = load(args).map_err(|e| Failure::usage(e.code(), e))?;
    // Only the server's user can read its data: files get 0600, directories 0700.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    telemetry::start_logs(&loaded.config.logs);
    for warning in loaded.warnings.iter().chain(&loaded.reminders) {
        tracing::warn!("{warning}");
    }
    if args.create_root_token {
        create_root_token(&loaded.config)?;
    }
    // A process that continues another one does not bootstrap: it begins no new cluster, and restores nothing
    // into an empty directory. The restore was for the start before, and the data directory records it as
    // long as the option stays.
    let restarted = !args.restarted.is_empty();
    let bootstrap = bootstrap.filter(|said| !restarted || *said == server::Bootstrap::Restore);
    let start = StartOptions {
        bootstrap,
        empty_partitions: args.empty_partitions.iter().copied().collect(),
        restarted,
        front: loaded
            .config
            .console
            .then_some(esker_console::front as Front),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if loaded.config.worker_threads > 0 {
        runtime.worker_threads(loaded.config.worker_threads as usize);
    }
    let runtime = runtime
        .event_interval(EVENT_INTERVAL)
        .on_thread_park(shorten_time_slice_once)
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let server = tokio::select! {
            server = Server::start_with(&loaded.config, start) => {
                server.map_err(|e| match e.code() {
                    // A repetition would not change that.
                    NODE_REMOVED => Failure::usage(NODE_REMOVED, e),
                    code => Failure::wrong(code, e),
                })?
            }
            // Nothing was acknowledged yet.
            _ = interrupt.recv() => return Ok(Ended::Stopped),
            _ = terminate.recv() => return Ok(Ended::Stopped),
            never = service_manager::while_starting() => match never {},
        };
        announce(&server, &loaded.config, args);
        service_manager::ready(&server);
        warn_of_others(&loaded.config.data_dir);
        let mut removed = None;
        let cause = tokio::select! {
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            () = stdin_closed(), if args.until_stdin_closes => None,
            why = server.node().removed_from_cluster() => {
                removed = Some(why);
                None
            }
            cause = server.restart_wanted(async || may_restart(&loaded.config, args).await) => Some(cause),
            never = service_manager::while_serving(&server) => match never {},
            never = allocator::release_freed(server.node().reads()) => match never {},
        };
        let Some(cause) = cause else {
            service_manager::stopping();
            telemetry::write_line(
                "stopping: waiting for what is in flight; once more to stop at once",
            );
            tokio::select! {
                () = server.stop() => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return match removed {
                None => Ok(Ended::Stopped),
                Some(why) => Err(Failure::usage(NODE_REMOVED, why)),
            };
        };
        telemetry::write_line(format!("restarting: {cause}"));
        service_manager::restarting(&cause);
        let addresses = [Some(server.address()), server.state_address()];
        let addresses = addresses.into_iter().flatten().collect();
        let mut stop = std::pin::pin!(server.stop_for_restart());
        let mut signals = 0;
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => signals += 1,
                _ = terminate.recv() => signals += 1,
                () = &mut stop => break,
            }
            if signals == 2 {
                return Ok(Ended::Stopped);
            }
        }
        // A request to stop takes precedence over a restart.
        if signals > 0 {
            service_manager::stopping();
        }
        Ok(match signals {
            0 => Ended::ForRestart(Restart {
                addresses,
                interrupt,
                terminate,
                runtime: None,
            }),
            _ => Ended::Stopped,
        })
    });
    match ended {
        Ok(Ended::ForRestart(restart)) => Ok(Ended::ForRestart(Restart {
            runtime: Some(runtime),
            ..restart
        })),
        ended => {
            end_threads(runtime);
            ended
        }
    }
}

fn create_root_token(config: &Config) -> Result<(), Failure> {
    let Some(path) = &config.root_token_file else {
        return Err(Failure::usage(
            "invalid",
            "--create-root-token creates the file that --root-token-file names: name one",
        ));
    };
    match root_token::create(path) {
        Ok(true) => telemetry::write_line(format!("Created root token file {}", path.display())),
        Ok(false) => {}
        Err(error) => return Err(Failure::wrong("root_token", error)),
    }
    Ok(())
}

/// Fails with the reason if the server cannot be started again as it was. Runs on a separate thread, because
/// it reads files, and signals are handled meanwhile.
async fn may_restart(config: &Config, args: &Args) -> Result<(), String> {
    let (config, args) = (config.clone(), args.clone());
    let looking = tokio::task::spawn_blocking(move || {
        restart::check_program()?;
        change_of(&config, &args)
    });
    looking.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Fails with the difference if the next start would have another configuration than this one.
fn change_of(config: &Config, args: &Args) -> Result<(), String> {
    // A start without it fails, or creates another one, which nobody knows.
    if let Some(path) = &config.root_token_file {
        root_token::check(path).map_err(|error| error.to_string())?;
    }
    match load(args) {
        Ok(now) if now.config == *config => Ok(()),
        Ok(_) => Err("the configuration has changed since the start".to_owned()),
        Err(error) => Err(format!(
            "the configuration cannot be used any more: {error}"
        )),
    }
}

/// Ends the runtime's threads, within a time limit: a thread that waits for a hanging disk is not awaited,
/// and the process ends without it. The shutdown runs on a separate thread, because tasks that it drops may
/// remove files and block, too.
fn end_threads(runtime: tokio::runtime::Runtime) {
    let (done, wait) = std::sync::mpsc::channel();
    let ending = std::thread::Builder::new().spawn(move || {
        runtime.shutdown_timeout(THREADS_TIMEOUT);
        // The receiver may have timed out.
        let _ = done.send(());
    });
    if ending.is_ok() {
        let _ = wait.recv_timeout(2 * THREADS_TIMEOUT);
    }
}

/// Prints where it serves, and to a person also what to try next. What the start has logged is written before.
fn announce(server: &Server, config: &Config, args: &Args) {
    telemetry::flush_logs();
    let mut out = std::io::stdout().lock();
    let mut text = format!(
        "esker {} serves {} from {}\n",
        env!("CARGO_PKG_VERSION"),
        server.url(),
        config.data_dir.display()
    );
    if let Some(address) = server.state_address() {
        text += &format!("the state service listens on {address} as well\n");
    }
    let mut authority = String::new();
    if config.tls.self_signed
        && let Some((certificate, path)) = server.certificate()
    {
        authority = format!(" --ca-file {}", path.display());
        text += &format!(
            "its certificate is self-signed, for {}, valid until {}\n\
             clients trust it with --ca-file {} (fingerprint, SHA-256: {})\n",
            certificate.names.join(", "),
            certificate.end(),
            path.display(),
            certificate.fingerprint,
        );
    }
    if args.hints || out.is_terminal() {
        let address = server.url();
        let server = if address == DEFAULT_SERVER {
            String::new()
        } else {
            format!(" --server {address}{authority}")
        };
        let stream = format!("{} stream{server}", this_program());
        text += &format!(
            "
Try it in another terminal:
  {stream} create my-basin/orders
  echo hello | {stream} append my-basin/orders
  {stream} read my-basin/orders --follow
Ctrl-C stops the server.
"
        );
    }
    // The server continues if standard output has no reader.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Warns if other users can read the data directory: an earlier version or an administrator may have created
/// it.
fn warn_of_others(data_dir: &Path) {
    let Ok(metadata) = std::fs::metadata(data_dir) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            "other users of this machine can reach what is in {} (mode {mode:o}); `chmod -R go= {}` \
             keeps them out",
            data_dir.display(),
            data_dir.display()
        );
    }
}

/// How to call this program: by its name if it was called by that alone, otherwise by its path, relative to
/// the current directory if it is below that.
fn this_program() -> String {
    let name = env!("CARGO_PKG_NAME");
    let called = std::env::args_os().next().map(PathBuf::from);
    let Some(path) = called.filter(|called| called.components().count() > 1) else {
        return name.to_owned();
    };
    let below = std::env::current_dir()
        .ok()
        .and_then(|dir| path.strip_prefix(dir).map(Path::to_path_buf).ok());
    below.unwrap_or(path).display().to_string()
}

/// Waits until standard input closes.
async fn stdin_closed() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    // A separate thread, because a runtime waits at its end for a read that it started itself.
    std::thread::spawn(move || {
        // An error ends it as well.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}

fn signals(error: std::io::Error) -> Failure {
    Failure::wrong("io", format!("listening for signals: {error}"))
}
