//! Puts, restores and sweeps of snapshots, compared with common alternatives.
//!
//! Every measured operation runs in its own process ([`step`]), so that its memory can be measured; the
//! alternatives are `restic` and `cp` with an fsync of every file. All write to the same disk, take turns,
//! and start with the same caches: cold where the table has it so.

pub mod counting;
pub mod step;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rand::{RngCore as _, SeedableRng as _};

use bench_harness::machine::{self, Machine};
use bench_harness::page;
use bench_harness::scratch::Scratch;
use bench_harness::stats;
use step::{Done, Operation, Step};

#[derive(clap::Args)]
pub struct Args {
    /// Files of the measured directory.
    #[arg(long, default_value_t = 64)]
    files: usize,
    /// MiB of each file.
    #[arg(long, default_value_t = 64)]
    file_mib: usize,
    /// Objects of the sweep.
    #[arg(long, default_value_t = 100_000)]
    objects: usize,
    /// Runs of each row; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where to work; a disk, with room for five times the data.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where the page goes.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "docs/benchmarks/snapshots.md"
    )]
    out: PathBuf,
}

/// One line of the table.
struct Row {
    what: String,
    ours: String,
    peer: String,
    ratio: String,
    target: &'static str,
    met: Option<bool>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || measure(&args)).await?
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let machine = Machine::describe(scratch.path())?;
    let mut bench = Bench {
        args,
        data: scratch.subdirectory("data")?,
        scratch: scratch.path().to_owned(),
        memory: Vec::new(),
        changes: 0,
    };
    eprintln!("Writing {} files of {} MiB", args.files, args.file_mib);
    for i in 0..args.files {
        bench.write_file(i, i as u64)?;
    }
    let mut rows = Vec::new();
    rows.extend(bench.incremental()?);
    rows.push(bench.full()?);
    rows.push(bench.restore()?);
    rows.push(bench.verify()?);
    rows.push(bench.sweep()?);
    rows.push(bench.memory());
    let table = table(&rows);
    println!("{table}");
    let page = page(&machine, args, &table);
    fs::write(&args.out, page).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("Written to {}", args.out.display());
    Ok(match rows.iter().any(|r| r.met == Some(false)) {
        true => ExitCode::from(1),
        false => ExitCode::SUCCESS,
    })
}

struct Bench<'a> {
    args: &'a Args,
    data: PathBuf,
    scratch: PathBuf,
    /// Memory beyond that of the process before the operation, in MiB.
    memory: Vec<(Operation, f64)>,
    changes: u64,
}

impl Bench<'_> {
    fn write_file(&self, i: usize, seed: u64) -> anyhow::Result<()> {
        // Written as a new file, as immutable files are: with another inode.
        let path = self.data.join(format!("{i:06}.sst"));
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        let mut noise = rand::rngs::SmallRng::seed_from_u64(seed);
        let mut block = vec![0; 1 << 20];
        for _ in 0..self.args.file_mib {
            noise.fill_bytes(&mut block);
            file.write_all(&block)?;
        }
        file.sync_all()?;
        fs::rename(&new, &path)?;
        Ok(())
    }

    /// Changes the content of one percent of the files, at least one.
    fn change(&mut self) -> anyhow::Result<usize> {
        let count = self.args.files.div_ceil(100).max(1);
        for _ in 0..count {
            self.changes += 1;
            let i = usize::try_from(self.changes)? * 7 % self.args.files;
            self.write_file(i, 1_000_000 + self.changes)?;
        }
        Ok(count)
    }

    fn place(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        Ok(path)
    }

    fn step(&mut self, step: Step) -> anyhow::Result<Done> {
        let done = step.run()?;
        self.memory.push((step.operation, done.extra_mib));
        Ok(done)
    }

    fn put(&mut self, repository: &Path, lsn: u64, incremental: bool) -> anyhow::Result<Done> {
        let operation = match incremental {
            true => Operation::PutIncremental,
            false => Operation::PutFull,
        };
        self.step(Step {
            operation,
            repository: repository.to_owned(),
            directory: Some(self.data.clone()),
            digests: Some(self.scratch.join("digests.json")),
            lsn,
            objects: 0,
        })
    }

    fn incremental(&mut self) -> anyhow::Result<Vec<Row>> {
        eprintln!("Incremental puts beside restic");
        let repository = self.place("incremental")?;
        let restic = Restic::new(self.place("restic")?)?;
        self.put(&repository, 1, true)?;
        if let Some(restic) = &restic {
            restic.backup(&self.data)?;
        }
        let (mut ours, mut theirs, mut bytes, mut requests) = (vec![], vec![], vec![], vec![]);
        for run in 0..self.args.runs {
            let changed = self.change()?;
            let fresh = (changed * self.args.file_mib) as f64 * 1024.0 * 1024.0;
            // Both start with the same state of the page cache: dropped, if permitted.
            let first_ours = run % 2 == 0;
            for turn in 0..2 {
                drop_caches();
                if (turn == 0) == first_ours {
                    let done = self.put(&repository, 2 + run as u64, true)?;
                    ours.push(done.seconds);
                    bytes.push(done.bytes as f64 / fresh);
                    requests.push((done.requests as f64, done.allowed_requests as f64));
                } else if let Some(restic) = &restic {
                    theirs.push(restic.backup(&self.data)?);
                }
            }
        }
        let ours = stats::median(&ours).unwrap_or_default();
        let peer = stats::median(&theirs);
        let bytes = bytes.iter().copied().fold(0.0, f64::max);
        let (most, allowed) = requests.iter().copied().fold((0.0, 0.0), |a, b| {
            if b.0 - b.1 > a.0 - a.1 || a.0 == 0.0 {
                b
            } else {
                a
            }
        });
        let what = format!(
            "incremental put, {:.1} GiB, 1 % of {} files changed",
            (self.args.files * self.args.file_mib) as f64 / 1024.0,
            self.args.files
        );
        Ok(vec![
            Row {
                what: format!("{what}: bytes uploaded ÷ bytes of new files"),
                ours: format!("{bytes:.2}"),
                peer: String::new(),
                ratio: String::new(),
                target: "1.00",
                met: Some((bytes - 1.0).abs() < 0.005),
            },
            Row {
                what: format!("{what}: requests, retention and sweep apart"),
                ours: format!("{most:.0}"),
                peer: String::new(),
                ratio: String::new(),
                target: "≤ parts + 2 per multipart upload + 6",
                met: Some(most <= allowed),
            },
            Row {
                what: format!("{what}: time, cold, beside `restic backup`"),
                ours: format!("{ours:.2} s"),
                peer: peer.map_or("restic is not installed".to_owned(), |p| {
                    format!("{p:.2} s")
                }),
                ratio: peer.map_or(String::new(), |p| format!("{:.1}x faster", p / ours)),
                target: "≥ 3x faster",
                met: peer.map(|p| p / ours >= 3.0),
            },
        ])
    }

    /// `cp` of the directory and an fsync of each file.
    fn copy(&self, from: &Path) -> anyhow::Result<f64> {
        let to = self.place("copy")?;
        let started = Instant::now();
        let status = Command::new("cp")
            .args(["-r", "--reflink=never"])
            .arg(from)
            .arg(&to)
            .status()?;
        ensure!(status.success(), "cp failed");
        for entry in fs::read_dir(&to)? {
            File::open(entry?.path())?.sync_all()?;
        }
        let took = started.elapsed().as_secs_f64();
        fs::remove_dir_all(&to)?;
        Ok(took)
    }

    fn full(&mut self) -> anyhow::Result<Row> {
        eprintln!("Full puts beside cp");
        let (mut ours, mut theirs) = (vec![], vec![]);
        for run in 0..self.args.runs {
            let repository = self.place("full")?;
            // No digest of the files is cached.
            let _ = fs::remove_file(self.scratch.join("digests.json"));
            for turn in 0..2 {
                drop_caches();
                if (turn == 0) == (run % 2 == 0) {
                    ours.push(self.put(&repository, 1, false)?.seconds);
                } else {
                    theirs.push(self.copy(&self.data.clone())?);
                }
            }
        }
        Ok(beside(
            "full put to a directory, links off, cold, beside `cp -r --reflink=never` and fsync",
            &ours,
            &theirs,
            "≤ 1.3x",
            1.3,
        ))
    }

    fn restore(&mut self) -> anyhow::Result<Row> {
        eprintln!("Restores beside cp");
        let repository = self.scratch.join("full");
        let (mut ours, mut theirs) = (vec![], vec![]);
        for run in 0..self.args.runs {
            let to = self.place("restored")?;
            for turn in 0..2 {
                drop_caches();
                if (turn == 0) == (run % 2 == 0) {
                    let done = self.step(Step {
                        operation: Operation::Restore,
                        repository: repository.clone(),
                        directory: Some(to.clone()),
                        digests: None,
                        lsn: 0,
                        objects: 0,
                    })?;
                    ours.push(done.seconds);
                } else {
                    theirs.push(self.copy(&self.data.clone())?);
                }
            }
            fs::remove_dir_all(&to)?;
        }
        Ok(beside(
            "restore with full verification, cold, beside the same",
            &ours,
            &theirs,
            "≤ 1.5x",
            1.5,
        ))
    }

    fn verify(&mut self) -> anyhow::Result<Row> {
        eprintln!("Verify");
        drop_caches();
        let done = self.step(Step {
            operation: Operation::Verify,
            repository: self.scratch.join("full"),
            directory: None,
            digests: None,
            lsn: 0,
            objects: 0,
        })?;
        let mib = (self.args.files * self.args.file_mib) as f64;
        Ok(Row {
            what: "verify, every byte read and hashed, cold".to_owned(),
            ours: format!("{:.0} MiB/s", mib / done.seconds),
            peer: String::new(),
            ratio: String::new(),
            target: "",
            met: None,
        })
    }

    fn sweep(&mut self) -> anyhow::Result<Row> {
        eprintln!("A sweep of {} objects", self.args.objects);
        let done = self.step(Step {
            operation: Operation::Sweep,
            repository: self.scratch.clone(),
            directory: None,
            digests: None,
            lsn: 0,
            objects: self.args.objects,
        })?;
        Ok(Row {
            what: format!("sweep of {} objects: requests", self.args.objects),
            ours: done.requests.to_string(),
            peer: format!("{} needed", done.allowed_requests),
            ratio: String::new(),
            target: "LIST pages + 1 root + uncached metadata + 1 per 1,000 deletes",
            met: Some(done.requests <= done.allowed_requests),
        })
    }

    fn memory(&self) -> Row {
        let (operation, most) =
            self.memory
                .iter()
                .copied()
                .fold(
                    (Operation::Sweep, 0.0),
                    |a, b| if b.1 > a.1 { b } else { a },
                );
        Row {
            what: format!("extra memory of put, restore, verify, sweep: the most, {operation:?}"),
            ours: format!("{most:.0} MiB"),
            peer: String::new(),
            ratio: String::new(),
            target: "≤ 128 MiB",
            met: Some(most <= 128.0),
        }
    }
}

fn beside(what: &str, ours: &[f64], theirs: &[f64], target: &'static str, most: f64) -> Row {
    let ours = stats::median(ours).unwrap_or_default();
    let theirs = stats::median(theirs).unwrap_or_default();
    Row {
        what: what.to_owned(),
        ours: format!("{ours:.2} s"),
        peer: format!("{theirs:.2} s"),
        ratio: format!("{:.2}x", ours / theirs),
        target,
        met: Some(ours / theirs <= most),
    }
}

/// `restic`, with a local repository.
struct Restic {
    repository: PathBuf,
}

impl Restic {
    /// `None` if it is not installed.
    fn new(repository: PathBuf) -> anyhow::Result<Option<Restic>> {
        if Command::new("restic").arg("version").output().is_err() {
            eprintln!("restic is not installed (Debian's package `restic`); its row stays open");
            return Ok(None);
        }
        let restic = Restic { repository };
        restic.call(&["init"], None)?;
        Ok(Some(restic))
    }

    fn call(&self, arguments: &[&str], directory: Option<&Path>) -> anyhow::Result<()> {
        let output = Command::new("restic")
            .env("RESTIC_PASSWORD", "bench")
            .args(["-q", "--repo"])
            .arg(&self.repository)
            .args(arguments)
            .args(directory)
            .output()?;
        if !output.status.success() {
            bail!("restic: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn backup(&self, directory: &Path) -> anyhow::Result<f64> {
        let started = Instant::now();
        self.call(&["backup"], Some(directory))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Empties the page cache; prints a note once if that is not permitted.
fn drop_caches() {
    if !machine::drop_caches() {
        static NOTED: std::sync::Once = std::sync::Once::new();
        NOTED.call_once(|| {
            eprintln!("Caches cannot be dropped (that takes root): nothing is cold");
        });
    }
}

fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| what | Esker | peer | ratio | target | met |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let met = match row.met {
            None => "",
            Some(true) => "yes",
            Some(false) => "no",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {met} |",
            row.what, row.ours, row.peer, row.ratio, row.target
        );
    }
    text
}

fn page(machine: &Machine, args: &Args, table: &str) -> String {
    format!(
        "# Benchmarks: the snapshot repository\n\n\
         This page is written by the bench itself (`make bench-snapshots`); it is not edited by hand.\n\n\
         - Date: {}\n\
         - Machine: {machine}\n\
         - Data: {} files of {} MiB of random bytes; medians of {} runs, taking turns\n\n\
         {table}\n\
         ## How to read it\n\n\
         - *Cold*: the operating system's cache is dropped before each measurement.\n\
         - Esker runs through its library, in a process of its own for each operation; the time is \
           that of the operation, `restic`'s and `cp`'s that of the process. Checksums of files \
           that did not change are remembered between puts, as `restic` remembers what it saw.\n\
         - `restic` encrypts, and looks for equal parts within files; Esker does neither: its files \
           are immutable and of random bytes here.\n\
         - *Requests* are counted in front of the store, a page of a list and a bulk delete as \
           one for each 1,000 keys, as S3 counts them.\n\
         - *Extra memory* is the peak of the process's resident set above what it had before the \
           operation.\n",
        page::now(),
        args.files,
        args.file_mib,
        args.runs,
    )
}
