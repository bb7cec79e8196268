//! `esker stream append` over connections that break: batches that are still in transit, and batches in doubt
//! when a signal arrives.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Running, Server, address_to_keep, esker, eventually, run, signal};

/// A proxy between a client and a server that can withhold what the client sends, and disconnect the client.
#[derive(Clone)]
struct Proxy {
    url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Whether connections are refused.
    refuses: AtomicBool,
    is_closed: AtomicBool,
    /// Whether what clients send is withheld from now on.
    keeps: AtomicBool,
    /// If set, what clients send is withheld after an answer that contains this text.
    keeps_after: Mutex<Option<&'static [u8]>>,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    kept: Vec<u8>,
    /// What the server has sent since the client was disconnected.
    answered: Vec<u8>,
    is_cut: bool,
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

impl Proxy {
    fn new(server: &Server) -> Proxy {
        // It is closed and opened again.
        let listener = TcpListener::bind(address_to_keep()).unwrap();
        let proxy = Proxy {
            url: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::default(),
        };
        let (state, address) = (proxy.state.clone(), server.address().to_owned());
        let own = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut listener = Some(listener);
            loop {
                let refuses = state.refuses.load(Ordering::SeqCst);
                if refuses {
                    listener = None;
                }
                state.is_closed.store(refuses, Ordering::SeqCst);
                if !refuses {
                    let listener = listener.get_or_insert_with(|| TcpListener::bind(own).unwrap());
                    listener.set_nonblocking(true).unwrap();
                    if let Ok((client, _)) = listener.accept() {
                        client.set_nonblocking(false).unwrap();
                        state.clone().pass(client, &address);
                        continue;
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        proxy
    }

    /// Refuses connections, or accepts them again.
    fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::SeqCst);
        eventually("the listener is closed or open", || {
            self.state.is_closed.load(Ordering::SeqCst) == refuses
        });
    }

    /// Withholds what clients send.
    fn keep(&self) {
        self.state.keeps.store(true, Ordering::SeqCst);
    }

    fn keep_after(&self, answer: &'static [u8]) {
        *self.state.keeps_after.lock().unwrap() = Some(answer);
    }

    fn has_kept(&self, text: &[u8]) -> bool {
        let connections = self.state.connections.lock().unwrap();
        connections.iter().any(|one| contains(&one.kept, text))
    }

    /// Disconnects the current clients without closing their connections to the server. New clients are
    /// passed on.
    fn cut(&self) {
        let mut connections = self.state.connections.lock().unwrap();
        for one in connections.iter_mut() {
            one.is_cut = true;
            let _ = one.client.shutdown(Shutdown::Both);
        }
        self.state.keeps.store(false, Ordering::SeqCst);
    }

    /// Sends what was withheld of disconnected clients.
    fn release(&self) {
        let mut connections = self.state.connections.lock().unwrap();
        for one in connections.iter_mut().filter(|one| one.is_cut) {
            let kept = std::mem::take(&mut one.kept);
            let _ = one.server.write_all(&kept);
        }
    }

    /// Whether the server has sent this text over a connection whose client was disconnected.
    fn was_answered(&self, text: &[u8]) -> bool {
        let connections = self.state.connections.lock().unwrap();
        connections.iter().any(|one| contains(&one.answered, text))
    }

    /// `esker stream` with arguments, through the proxy.
    fn stream(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = esker();
        command
            .arg("stream")
            .args(arguments)
            .env("ESKER_SERVER", &self.url);
        command
    }
}

impl State {
    fn pass(self: Arc<State>, client: TcpStream, address: &str) {
        let server = TcpStream::connect(address).unwrap();
        let connection = Connection {
            client: client.try_clone().unwrap(),
            server: server.try_clone().unwrap(),
            kept: Vec::new(),
            answered: Vec::new(),
            is_cut: false,
        };
        let number = {
            let mut connections = self.connections.lock().unwrap();
            connections.push(connection);
            connections.len() - 1
        };
        let up = self.clone();
        std::thread::spawn(move || up.pass_up(number, client));
        std::thread::spawn(move || self.pass_down(number, server));
    }

    fn pass_up(&self, number: usize, mut client: TcpStream) {
        let mut chunk = [0; 16 * 1024];
        while let Ok(read @ 1..) = client.read(&mut chunk) {
            let mut connections = self.connections.lock().unwrap();
            let one = &mut connections[number];
            if self.keeps.load(Ordering::SeqCst) {
                one.kept.extend_from_slice(&chunk[..read]);
            } else if one.server.write_all(&chunk[..read]).is_err() {
                return;
            }
        }
    }

    fn pass_down(&self, number: usize, mut server: TcpStream) {
        let mut chunk = [0; 16 * 1024];
        while let Ok(read @ 1..) = server.read(&mut chunk) {
            let chunk = &chunk[..read];
            let after = *self.keeps_after.lock().unwrap();
            if after.is_some_and(|text| contains(chunk, text)) {
                self.keeps.store(true, Ordering::SeqCst);
            }
            let mut connections = self.connections.lock().unwrap();
            let one = &mut connections[number];
            match one.is_cut {
                true => one.answered.extend_from_slice(chunk),
                false => drop(one.client.write_all(chunk)),
            }
        }
        let connections = self.connections.lock().unwrap();
        let _ = connections[number].client.shutdown(Shutdown::Both);
    }
}

/// The standard error of a command, as it arrives.
struct Said {
    text: Arc<Mutex<String>>,
    reading: std::thread::JoinHandle<()>,
}

impl Said {
    fn of(running: &mut Running) -> Said {
        let mut stderr = BufReader::new(running.child.stderr.take().unwrap());
        let text = Arc::new(Mutex::new(String::new()));
        let said = text.clone();
        let reading = std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).unwrap() > 0 {
                said.lock().unwrap().push_str(&std::mem::take(&mut line));
            }
        });
        Said { text, reading }
    }

    fn eventually(&self, wanted: &str) {
        let text = || self.text.lock().unwrap().clone();
        eventually(wanted, || text().contains(wanted));
    }

    /// The whole text. The command must have ended.
    fn whole(self) -> String {
        self.reading.join().unwrap();
        self.text.lock().unwrap().clone()
    }
}

fn lines(server: &Server) -> String {
    let output = run(server.stream(["read", "my-basin/lines"]), b"");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_batch_that_arrives_after_its_repetition_is_not_in_the_stream_twice() {
    let server = Server::start();
    let proxy = Proxy::new(&server);
    let mut append = Running::start(proxy.stream(&["append", "my-basin/lines", "--create"]));
    append.write("first\n");
    eventually("the first line is there", || lines(&server) == "first\n");
    proxy.keep();
    append.write("second\n");
    eventually("the second is on its way", || proxy.has_kept(b"second"));
    proxy.cut();
    eventually("it is repeated", || lines(&server) == "first\nsecond\n");
    proxy.release();
    eventually("the first attempt arrives", || {
        proxy.was_answered(b"seq_num_mismatch") || lines(&server) != "first\nsecond\n"
    });
    append.write("third\n");
    let (code, printed, said) = append.finish();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(lines(&server), "first\nsecond\nthird\n");
    assert!(printed.contains("appended 3 records"), "{printed}");
}

#[test]
fn several_that_append_at_the_same_time_lose_and_repeat_no_line() {
    let server = Server::start();
    server.ok(&["create", "my-basin/lines"]);
    let writers = ["a", "b", "c"];
    let of = |writer: &str| -> String { (0..3000).map(|n| format!("{writer}{n}\n")).collect() };
    let mut running: Vec<_> = writers
        .iter()
        .map(|_| Running::start(server.stream(["append", "my-basin/lines"])))
        .collect();
    // In turns, so that each has the others' lines in between.
    for part in 0..30 {
        for (writer, append) in writers.iter().zip(&mut running) {
            let own = of(writer);
            let lines: Vec<_> = own.lines().skip(part * 100).take(100).collect();
            append.write(&(lines.join("\n") + "\n"));
        }
    }
    for append in running {
        let (code, printed, said) = append.finish();
        assert_eq!(code, Some(0), "{said}");
        assert!(printed.contains("appended 3,000 records"), "{printed}");
    }
    let all = lines(&server);
    for writer in writers {
        let own: String = all
            .lines()
            .filter(|line| line.starts_with(writer))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(
            own == of(writer),
            "the lines of {writer} are not what was appended"
        );
    }
}

#[test]
fn a_batch_whose_repetition_is_interrupted_counts_as_in_doubt() {
    let server = Server::start();
    let proxy = Proxy::new(&server);
    let mut append = Running::start(proxy.stream(&["append", "my-basin/lines", "--create"]));
    append.write("first\n");
    eventually("the first line is there", || lines(&server) == "first\n");
    // Nothing is sent while connections are refused. Then the tail is answered, and the append that follows
    // it stays in transit.
    proxy.refuse(true);
    proxy.cut();
    proxy.keep_after(b"\"tail\"");
    append.write("second\n");
    let said = Said::of(&mut append);
    said.eventually("; waiting for it]");
    proxy.refuse(false);
    eventually("the second is on its way", || proxy.has_kept(b"second"));
    signal(&append.child, Signal::INT);
    let (code, ..) = append.finish();
    let said = said.whole();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error [interrupted]"), "{said}");
    assert!(
        said.contains("1 record was appended (sequence number 0)"),
        "{said}"
    );
    assert!(said.contains("1 more may or may not have been"), "{said}");
}

#[test]
fn an_append_waits_for_a_server_that_takes_nothing_at_the_moment() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("backups");
    let destination = format!("snapshots.destination={}", repository.display());
    let settings = [
        "--partitions=1",
        "--set=log.segment-size=1MiB",
        "--set=log.purge-threshold=2MiB",
        "--set=log.flush-after=1MiB",
        "--set=snapshots.max-log-bytes=6MiB",
        "--set=snapshots.local-snapshot-bytes=1MiB",
        "--set=snapshots.on-log-full=refuse-appends",
        "--set",
        &destination,
    ];
    let server = Server::start_with(&dir.path().join("data"), "127.0.0.1:0", &settings);
    server.ok_with(&["append", "my-basin/lines", "--create"], b"first\n");
    let roots = || (0..2).all(|p| repository.join(format!("{p}/latest.json")).exists());
    eventually("every partition has its first snapshot", roots);
    // The repository is a directory, so a file in its place makes it unusable.
    let away = repository.with_extension("away");
    std::fs::rename(&repository, &away).unwrap();
    std::fs::write(&repository, "no directory").unwrap();
    let fill = (("x".repeat(9_999) + "\n").repeat(100)).into_bytes();
    let filled = (0..100).find_map(|_| {
        let arguments = ["append", "my-basin/fill", "--create", "--reconnect", "0s"];
        let output = run(server.stream(arguments), &fill);
        let said = crate::support::stderr(&output);
        (!output.status.success()).then_some(said)
    });
    let said = filled.expect("appends are refused at last");
    assert!(said.contains("error [rate_limited]"), "{said}");

    // Without `--reconnect`, the first batch that is refused ends the command.
    let output = run(server.stream(["append", "my-basin/lines"]), b"second\n");
    assert!(crate::support::stderr(&output).contains("error [rate_limited]"));
    let arguments = ["append", "my-basin/lines", "--reconnect", "1m"];
    let mut append = Running::start(server.stream(arguments));
    append.write("second\n");
    let said = Said::of(&mut append);
    said.eventually("; waiting until it does]");
    std::fs::remove_file(&repository).unwrap();
    std::fs::rename(&away, &repository).unwrap();
    eventually("it is appended", || lines(&server) == "first\nsecond\n");
    let (code, printed, _) = append.finish();
    assert_eq!(code, Some(0), "{}", said.whole());
    assert!(printed.contains("appended 1 record "), "{printed}");
}

/// A file system on a loop device that can be frozen and thawed; it is removed when this is dropped. A
/// separate process thaws it after two minutes, even if the test is killed.
struct LoopDisk {
    dir: tempfile::TempDir,
    watchdog: Option<std::process::Child>,
}

impl LoopDisk {
    /// `None` without the permission to mount.
    fn mount() -> Option<LoopDisk> {
        let dir = tempfile::tempdir().unwrap();
        let made = "truncate -s 128M image && mkfs.ext4 -q -F image && mkdir mounted \
                    && mount -o loop image mounted";
        let disk = LoopDisk {
            dir,
            watchdog: None,
        };
        disk.shell(made).then_some(disk)
    }

    fn shell(&self, script: &str) -> bool {
        let mut shell = std::process::Command::new("sh");
        let shell = shell.args(["-c", script]).current_dir(self.dir.path());
        let output = shell.output().unwrap();
        if !output.status.success() {
            eprintln!("{script}: {output:?}");
        }
        output.status.success()
    }

    fn freeze(&mut self) {
        let mut watchdog = std::process::Command::new("sh");
        watchdog
            .args(["-c", "sleep 120; exec fsfreeze -u mounted 2>/dev/null"])
            .current_dir(self.dir.path());
        // The watchdog starts first, so that nothing stays frozen.
        self.watchdog = Some(watchdog.spawn().unwrap());
        assert!(self.shell("fsfreeze -f mounted"));
    }

    fn thaw(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            self.shell("fsfreeze -u mounted");
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        self.thaw();
        if self.dir.path().join("mounted").exists() {
            self.shell("umount mounted || umount -l mounted");
        }
    }
}

/// The server answers that the outcome of a batch is unknown.
#[test]
fn an_append_goes_on_after_a_disk_that_hangs_and_loses_and_repeats_no_line() {
    let Some(mut disk) = LoopDisk::mount() else {
        testkit::skipped("a loop device cannot be mounted here");
        return;
    };
    let data = disk.dir.path().join("mounted/data");
    let server = Server::start_with(&data, "127.0.0.1:0", &["--partitions=1"]);
    server.ok_with(&["append", "my-basin/lines", "--create"], b"first\n");
    disk.freeze();
    // A command that does not wait reports that the batch may have been appended.
    let arguments = ["append", "my-basin/lines", "--reconnect", "0s"];
    let mut impatient = Running::start(server.stream(arguments));
    impatient.write("second\n");
    let (code, _, said) = impatient.finish();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error [other]"), "{said}");
    assert!(said.contains("may or may not have been"), "{said}");
    let mut append = Running::start(server.stream(["append", "my-basin/lines"]));
    append.write("third\n");
    let said = Said::of(&mut append);
    said.eventually("; waiting until that is known]");
    disk.thaw();
    eventually("both are there", || {
        lines(&server) == "first\nsecond\nthird\n"
    });
    append.write("fourth\n");
    let (code, printed, _) = append.finish();
    let said = said.whole();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("[connected again]"), "{said}");
    assert!(printed.contains("appended 2 records"), "{printed}");
    assert_eq!(lines(&server), "first\nsecond\nthird\nfourth\n");
}
