//! A real `esker server` process.
//!
//! It listens on a free loopback port. Its log is collected, and printed when the test that owns it fails.
//! Dropping a [`Server`] kills it: see [`Process`].

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::ports::free_port;
use testkit::process::{Process, program, without_configuration};

use crate::SOON;
use crate::http::{Http, Transport};
use crate::sdk;
use crate::tls::{self, TlsFiles};

/// The parameters of a server's start: by default small, with two partitions.
#[derive(Clone, Debug)]
pub struct Setup {
    partitions: u32,
    listen: String,
    set: Vec<String>,
    bootstrap: Option<&'static str>,
    empty_partitions: Option<&'static str>,
    open_files: Option<u32>,
    program: Option<PathBuf>,
    variables: Vec<(&'static str, String)>,
    trusts: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            partitions: 2,
            listen: "127.0.0.1:0".to_owned(),
            bootstrap: None,
            empty_partitions: None,
            open_files: None,
            program: None,
            variables: Vec::new(),
            trusts: None,
            set: [
                "store.block-cache=4MiB",
                "store.write-buffer=4MiB",
                "store.write-buffers-total=16MiB",
                "retention.interval=50ms",
                // The grace period is long enough for a slow machine.
                "shutdown-grace=60s",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

impl Setup {
    /// With this many stream partitions.
    pub fn partitions(mut self, partitions: u32) -> Setup {
        self.partitions = partitions;
        self
    }

    /// On this address.
    pub fn listen(mut self, address: &str) -> Setup {
        address.clone_into(&mut self.listen);
        self
    }

    /// On a port of its own, which a restart has, too: no connection of another test takes it meanwhile.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn on_a_port(self) -> Setup {
        let port = free_port().unwrap();
        self.listen(&format!("127.0.0.1:{port}"))
    }

    /// With this key of the configuration, `key=value`; replaces an earlier value.
    pub fn set(mut self, setting: &str) -> Setup {
        let key = setting.split('=').next();
        self.set.retain(|earlier| earlier.split('=').next() != key);
        self.set.push(setting.to_owned());
        self
    }

    /// The value of this key of the configuration, if it was set.
    pub fn setting(&self, key: &str) -> Option<&str> {
        let settings = self
            .set
            .iter()
            .filter_map(|setting| setting.split_once('='));
        settings
            .filter(|(name, _)| *name == key)
            .map(|it| it.1)
            .next()
    }

    /// With these keys of the configuration.
    pub fn set_all(self, settings: &[String]) -> Setup {
        let set = |setup: Setup, setting: &String| setup.set(setting);
        settings.iter().fold(self, set)
    }

    /// With this variable of the environment.
    pub fn variable(mut self, name: &'static str, value: &str) -> Setup {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// With TLS and these files, whose authority its clients trust.
    pub fn with_tls(files: &TlsFiles) -> Setup {
        Setup::default()
            .set(&format!(
                "tls.certificate={}",
                files.certificate().display()
            ))
            .set(&format!("tls.private-key={}", files.key().display()))
            .trusting(&files.ca())
    }

    /// Another program than that of the workspace.
    pub fn program(mut self, path: &Path) -> Setup {
        self.program = Some(path.to_owned());
        self
    }

    /// Whose clients trust the authorities of this file.
    pub fn trusting(mut self, ca: &Path) -> Setup {
        self.trusts = Some(ca.to_owned());
        self
    }

    /// With `--bootstrap new`, `restore` or `join`.
    pub fn bootstrap(mut self, what: &'static str) -> Setup {
        self.bootstrap = Some(what);
        self
    }

    /// With `--empty-partitions`.
    pub fn empty_partitions(mut self, numbers: &'static str) -> Setup {
        self.empty_partitions = Some(numbers);
        self
    }

    /// With this limit of open files, and half of it in force at the start.
    pub fn open_files(mut self, limit: u32) -> Setup {
        self.open_files = Some(limit);
        self
    }

    fn spawn(&self, data_dir: &Path) -> Process {
        let program = self.program.clone().unwrap_or_else(program);
        let command = match self.open_files {
            None => Command::new(program),
            Some(limit) => {
                let mut command = Command::new("sh");
                let script = format!(
                    "ulimit -n {limit} && ulimit -Sn {} && exec \"$0\" \"$@\"",
                    limit / 2
                );
                command.arg("-c").arg(script).arg(program);
                command
            }
        };
        let mut command = without_configuration(command);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(data_dir)
            .arg("--listen")
            .arg(&self.listen)
            .arg("--partitions")
            .arg(self.partitions.to_string());
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        for setting in &self.set {
            command.arg("--set").arg(setting);
        }
        if let Some(what) = self.bootstrap {
            command.arg("--bootstrap").arg(what);
        }
        if let Some(numbers) = self.empty_partitions {
            command.arg("--empty-partitions").arg(numbers);
        }
        Process::spawn(command.stdin(Stdio::null()))
    }

    /// Starts a server that is expected to serve, and waits until it does.
    ///
    /// # Panics
    ///
    /// If it ends instead; its log is in the message.
    pub async fn start(&self, data_dir: &Path) -> Server {
        match self.try_start(data_dir).await {
            Ok(server) => server,
            Err(log) => panic!("the server ended:\n{log}"),
        }
    }

    /// Starts a server and waits until it serves. The error is all that it wrote, if it ends instead.
    ///
    /// # Panics
    ///
    /// If it does neither soon.
    pub async fn try_start(&self, data_dir: &Path) -> Result<Server, String> {
        let mut process = self.spawn(data_dir);
        let began = Instant::now();
        let url = loop {
            if let Some(started) = process.started() {
                break started?;
            }
            assert!(began.elapsed() < SOON, "no server after {SOON:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        Ok(Server {
            process,
            url,
            data_dir: data_dir.to_owned(),
            temporary: None,
            trusts: self.trusts.clone(),
        })
    }

    /// Starts a server on a temporary data directory.
    pub async fn start_fresh(&self) -> Server {
        let temporary = tempfile::tempdir().unwrap();
        let mut server = self.start(&temporary.path().join("data")).await;
        server.temporary = Some(temporary);
        server
    }

    /// Starts a server and kills it after `moment`, whether or not it serves by then.
    pub async fn start_and_kill(&self, data_dir: &Path, moment: Duration) {
        let mut process = self.spawn(data_dir);
        tokio::time::sleep(moment).await;
        process.kill();
    }

    /// Starts a server that is expected to refuse. Returns its exit code and all that it wrote.
    ///
    /// # Panics
    ///
    /// If it serves.
    pub async fn start_refused(&self, data_dir: &Path) -> (i32, String) {
        let mut process = self.spawn(data_dir);
        let began = Instant::now();
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            let serves = process.url().is_some();
            assert!(
                !serves && began.elapsed() < SOON,
                "it was to be refused, and was not (serves: {serves})"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        (status.code().unwrap_or(-1), process.lines().join("\n"))
    }
}

/// A running server.
pub struct Server {
    process: Process,
    url: String,
    data_dir: PathBuf,
    temporary: Option<tempfile::TempDir>,
    trusts: Option<PathBuf>,
}

impl Server {
    /// A small server on a temporary data directory.
    pub async fn fresh() -> Server {
        Setup::default().start_fresh().await
    }

    /// `http://127.0.0.1:PORT`, or `https://`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        let (_, address) = self.url.split_once("://").unwrap();
        address
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The official client, without retries.
    pub fn sdk(&self) -> s2_sdk::S2 {
        sdk::client(&self.url, 1)
    }

    /// The official client, which retries everything that certainly had no effect.
    pub fn persistent_sdk(&self) -> s2_sdk::S2 {
        sdk::persistent_client(&self.url)
    }

    /// A client for raw requests.
    pub fn http(&self, transport: Transport) -> Http {
        let http = Http::new(self.address(), transport);
        match &self.trusts {
            None => http,
            Some(ca) => http.with_tls(Arc::new(tls::client(ca, None))),
        }
    }

    /// A client for raw requests over HTTP/1.1.
    pub fn http1(&self) -> Http {
        self.http(Transport::Http1)
    }

    /// A client for raw requests over HTTP/2.
    pub fn http2(&self) -> Http {
        self.http(Transport::Http2)
    }

    /// All that it wrote so far.
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// The number of times that it began to serve: more than one if it has restarted itself.
    pub fn starts(&self) -> usize {
        let serves = |line: &&String| line.contains(" serves http");
        self.process.lines().iter().filter(serves).count()
    }

    /// Waits until its status has a problem with this code. Returns the problem's text.
    pub async fn problem(&self, code: &str) -> String {
        crate::eventually(&format!("there is the problem {code}"), async || {
            let status = self.http1().get("/esker/v1/status").try_send().await.ok()?;
            let status = status.json();
            let problems = status["problems"].as_array()?;
            let found = problems.iter().find(|problem| problem["code"] == code)?;
            Some(found.to_string())
        })
        .await
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Panics
    ///
    /// If there is none soon.
    pub async fn logged(&self, text: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(line) = self.process.line_with(text) {
                return line;
            }
            assert!(started.elapsed() < SOON, "nothing logged with {text:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    ///
    /// If it does not soon.
    pub async fn wait(&mut self) -> ExitStatus {
        self.wait_within(SOON).await
    }

    /// Like [`Server::wait`], for an end that the server itself puts off.
    ///
    /// # Panics
    ///
    /// If it does not end within the limit.
    pub async fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.ended() {
                return status;
            }
            assert!(started.elapsed() < limit, "the server did not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends SIGTERM, and waits until it has stopped.
    ///
    /// # Panics
    ///
    /// If it does not, or not with success.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait().await;
        assert!(status.success(), "a stop ended with {status}");
    }

    /// Starts a server on the same data directory. The process must have ended. If another process took a
    /// fixed port meanwhile, this retries.
    pub async fn restart(&mut self, setup: &Setup) {
        let started = Instant::now();
        while let Err(log) = self.try_restart(setup).await {
            let is_taken = log.contains("error [listen]");
            assert!(
                is_taken && started.elapsed() < SOON,
                "the server ended:\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same, but with an error if the server ends instead: all that it wrote.
    pub async fn try_restart(&mut self, setup: &Setup) -> Result<(), String> {
        let mut next = setup.try_start(&self.data_dir).await?;
        next.temporary = self.temporary.take();
        *self = next;
        Ok(())
    }
}
