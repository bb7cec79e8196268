//! The commands through a running server. Their output has the same form as for a repository.

use std::pin::pin;
use std::time::{Duration, Instant};

use esker_repository::prune::PrunePlan;
use esker_repository::why::{Diff, Why};
use esker_repository::{Inventory, PartitionId, Verification};
use esker_server::admin::snapshots::{
    Created, Described, NEWEST, Proven, Prune, PruneAnswer, Verify,
};
use esker_server::admin::status::{Status, Wrong};
use serde::Serialize;
use serde_json::json;

use super::list::{Listing, Partition, kind};
use super::prune::Planned;
use super::render::print_json;
use super::show::Shown;
use super::verify::Verified;
use super::{diff, list, prune, show, verify, why};
use crate::admin::Admin;
use crate::failure::Failure;
use crate::interrupts::{self, Interrupts};
use crate::json;
use crate::output::print;
use crate::remote::Remote;
use crate::term::{Paint, bytes, count, plain, plain_lines, took};

/// Advice about damage that a server has found: its next snapshots share no object with damaged ones.
const CREATE_ANEW: &str = "esker snapshot create puts a new snapshot, which shares nothing with what is damaged; or \
                           bring it back from versions or a backup of the bucket";

/// A remark is printed about a request that takes longer than this: a store that hangs looks like a slow one.
const NOTICEABLE: Duration = Duration::from_secs(2);
/// Interval between the remarks after the first.
const NOTICE_INTERVAL: Duration = Duration::from_secs(15);
/// Longest wait for the server's status, which such a remark includes.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// A running server, and the selected partition, if any.
pub struct Online {
    admin: Admin,
    partition: Option<u16>,
    json: bool,
    /// What an interruption leaves behind.
    left: &'static str,
}

/// A partition for which the work failed.
#[derive(Serialize)]
struct Failed {
    partition: u64,
    code: &'static str,
    message: String,
}

impl Online {
    /// Connects to the server.
    pub async fn open(
        remote: Remote,
        partition: Option<u16>,
        json: bool,
        left: &'static str,
    ) -> Result<Online, Failure> {
        Ok(Online {
            admin: Admin::open(remote).await?,
            partition,
            json,
            left,
        })
    }

    async fn status(&self) -> Result<Status, Failure> {
        self.admin.get(&["status"], &[]).await
    }

    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        partition: u64,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let number = partition.to_string();
        let path = [&["partitions", &number], path].concat();
        self.noticed(partition, self.admin.get(&path, query)).await
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        partition: u64,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let number = partition.to_string();
        let path = [&["partitions", &number], path].concat();
        self.noticed(partition, self.admin.post(&path, body)).await
    }

    /// Waits for an answer about a partition, and prints what it waits for on standard error if that takes
    /// long. A signal ends the wait with a failure, so that the results of other partitions are still shown.
    async fn noticed<T>(
        &self,
        partition: u64,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut signals = Interrupts::listen(self.left)?;
        tokio::select! {
            biased;
            done = self.remarked(partition, work) => done,
            () = signals.next() => Err(interrupts::interrupted(self.left)),
        }
    }

    async fn remarked<T>(&self, partition: u64, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let mut work = pin!(work);
        let mut pause = NOTICEABLE;
        loop {
            if let Ok(done) = tokio::time::timeout(pause, &mut work).await {
                return done;
            }
            let remark = tokio::select! {
                done = &mut work => return done,
                remark = self.waiting(partition, begun.elapsed()) => remark,
            };
            remark!("{remark}");
            pause = NOTICE_INTERVAL;
        }
    }

    async fn waiting(&self, partition: u64, since: Duration) -> String {
        let seconds = since.as_secs();
        let text = format!("partition {partition}: no answer yet after {seconds} s");
        match tokio::time::timeout(STATUS_TIMEOUT, self.status()).await {
            Ok(Ok(status)) => {
                let concerns = |wrong: &&Wrong| {
                    wrong.partitions.is_empty() || wrong.partitions.contains(&partition)
                };
                let problems = status.problems.iter().filter(|wrong| !wrong.advice);
                let problems: Vec<_> = problems
                    .filter(concerns)
                    .map(|wrong| format!("; {}: {}", plain(&wrong.code), plain(&wrong.what)))
                    .collect();
                format!(
                    "{text}; the server is up and works with the repository {}{}",
                    plain(&status.repository),
                    problems.concat()
                )
            }
            Ok(Err(_)) => format!("{text}; {} does not tell its status", self.admin.address()),
            Err(_) => format!("{text}; {} does not answer at all", self.admin.address()),
        }
    }

    /// The selected partition, or all.
    pub async fn partitions(&self) -> Result<Vec<u64>, Failure> {
        match self.partition {
            Some(partition) => Ok(vec![u64::from(partition)]),
            None => Ok(numbers(&self.status().await?)),
        }
    }

    /// The selected partition.
    async fn partition(&self) -> Result<u64, Failure> {
        if let Some(partition) = self.partition {
            return Ok(u64::from(partition));
        }
        let last = self.partitions().await?.last().copied().unwrap_or_default();
        Err(Failure::usage(
            "partition",
            format!(
                "{} has several partitions: name one of 0 (the catalog) to {last} with --partition",
                self.admin.address()
            ),
        ))
    }

    /// Runs `work` for each partition and prints the results, line by line. A partition that fails is
    /// reported, and the next one is tried.
    pub async fn each<T: Serialize>(
        &self,
        partitions: &[u64],
        mut work: impl AsyncFnMut(u64) -> Result<T, Failure>,
        text: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let (mut first, mut lost) = (None, None);
        for &partition in partitions {
            match work(partition).await {
                Ok(one) => {
                    if !self.json {
                        print(text(&one))?;
                    }
                    done.push(one);
                }
                // The server would not answer for the other partitions either.
                Err(failure) if matches!(failure.code, "unreachable" | "interrupted") => {
                    lost = Some(failure);
                    break;
                }
                Err(failure) => {
                    if !self.json && partitions.len() > 1 {
                        say!("partition {partition}: {}", plain_lines(&failure.text()));
                    }
                    failed.push(Failed {
                        partition,
                        code: failure.code,
                        message: failure.text(),
                    });
                    first.get_or_insert(failure);
                }
            }
        }
        let result = match (lost, first, partitions.len()) {
            (Some(lost), ..) => Err(lost),
            (None, None, _) => Ok(()),
            (None, Some(failure), 1) => Err(failure),
            (None, Some(failure), all) => Err(Failure {
                message: format!(
                    "partition {} failed, {} of {all} in all: {}",
                    failed[0].partition,
                    failed.len(),
                    failure.message
                ),
                ..failure
            }),
        };
        match self.json {
            true => json::print_with(&json!({ "done": done, "failed": failed }), result),
            false => result,
        }
    }

    /// Puts a snapshot of a partition.
    pub async fn create(&self, partition: u64) -> Result<Created, Failure> {
        self.post(partition, &["snapshots"], &json!({})).await
    }

    pub async fn list(&self) -> Result<(), Failure> {
        let status = self.status().await?;
        let mut listing = Listing {
            repository: &status.repository,
            partitions: Vec::new(),
        };
        let partitions = match self.partition {
            Some(partition) => vec![u64::from(partition)],
            None => numbers(&status),
        };
        let mut first = None;
        for partition in partitions {
            match self.get::<Inventory>(partition, &["snapshots"], &[]).await {
                Ok(found) => listing
                    .partitions
                    .push(Partition::Readable(Box::new(found))),
                // The same as on a repository: a partition without snapshots is not listed.
                Err(failure) if failure.code == "no_repository" && self.partition.is_none() => {}
                // The other partitions may be intact, and are still shown.
                Err(failure) if matches!(failure.code, "damaged" | "root_missing") => {
                    listing.partitions.push(Partition::Unreadable {
                        partition: PartitionId(u16::try_from(partition).unwrap_or(u16::MAX)),
                        problem: failure.text(),
                    });
                    first.get_or_insert(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        list::show(&listing, self.json, first.map_or(Ok(()), Err))
    }

    pub async fn show(&self, args: &show::Args) -> Result<(), Failure> {
        let partition = self.partition().await?;
        let name = args.snapshot.as_deref().unwrap_or(NEWEST);
        let found: Described = self.get(partition, &["snapshots", name], &[]).await?;
        let shown = Shown {
            repository: &found.repository,
            partition: u16::try_from(found.partition).unwrap_or(u16::MAX),
            snapshot: found.snapshot,
            states: found.states,
            kind: kind(found.kind),
            files: found.metadata.files.len(),
            bytes: found.bytes,
            metadata: &found.metadata,
        };
        show::show(&shown, self.json)
    }

    pub async fn diff(&self, args: &diff::Args) -> Result<(), Failure> {
        let partition = self.partition().await?;
        let path = ["snapshots", &args.old, "diff", &args.new];
        let found: Diff = self.get(partition, &path, &[]).await?;
        diff::show(&found, self.json)
    }

    pub async fn verify(&self, args: &verify::Args) -> Result<(), Failure> {
        let status = self.status().await?;
        let partitions = self.partitions().await?;
        let asked = Verify {
            data: args.data,
            repair: args.repair,
        };
        let (mut reports, mut first, mut lost) = (Vec::new(), None, None);
        for partition in partitions {
            let started = Instant::now();
            let found: Result<Verification, _> =
                self.post(partition, &["snapshots", "verify"], &asked).await;
            let report = match found {
                Ok(report) => report,
                // A partition without snapshots has none missing.
                Err(failure) if failure.code == "no_repository" && self.partition.is_none() => {
                    continue;
                }
                // The partitions that were verified before are still shown.
                Err(failure) => {
                    lost = Some(failure);
                    break;
                }
            };
            if !self.json {
                let text = verify::text(&report, report.bytes, started.elapsed());
                print(format_args!("partition {partition}: {text}"))?;
            }
            if let Err(failure) = verify::judge(&report, CREATE_ANEW) {
                first.get_or_insert(failure);
            }
            reports.push((partition, report, started.elapsed()));
        }
        let result = verify::worse(first, lost).map_or(Ok(()), Err);
        if self.json {
            let mut documents = Vec::new();
            for (partition, report, took) in &reports {
                let verified = Verified {
                    repository: &status.repository,
                    partition: u16::try_from(*partition).unwrap_or(u16::MAX),
                    sound: report.is_sound(),
                    report,
                    seconds: took.as_secs_f64(),
                };
                documents.push(serde_json::to_value(verified).unwrap_or_default());
            }
            // The same form as on a repository, where one partition is verified at a time.
            return match (self.partition, documents.pop()) {
                (Some(_), Some(only)) => json::print_with(&only, result),
                (_, last) => {
                    documents.extend(last);
                    json::print_with(&json!({ "partitions": documents }), result)
                }
            };
        }
        result
    }

    pub async fn prove(&self, args: &verify::Args) -> Result<(), Failure> {
        let name = args.snapshot.as_deref().unwrap_or(NEWEST);
        let partitions = match &args.snapshot {
            Some(_) => vec![self.partition().await?],
            None => self.partitions().await?,
        };
        let prove = async |partition| {
            let path = ["snapshots", name, "prove"];
            self.post(partition, &path, &json!({})).await
        };
        self.each(&partitions, prove, proven).await
    }

    pub async fn why(&self, args: &why::Args) -> Result<(), Failure> {
        let partition = self.partition().await?;
        let key = args.key.strip_prefix(&format!("{partition}/"));
        let query = [("key", key.unwrap_or(&args.key))];
        let found: Why = self.get(partition, &["objects", "why"], &query).await?;
        why::show(&found, self.json)
    }

    /// Prints what would be deleted of each partition.
    async fn plan_all(&self, args: &prune::Args) -> Result<(), Failure> {
        let mut plans = Vec::new();
        for partition in self.partitions().await? {
            match self.post(partition, &["prune"], &request(args)).await {
                Ok(PruneAnswer::Plan(plan)) => plans.push(Planned {
                    partition: u16::try_from(partition).unwrap_or(u16::MAX),
                    plan,
                }),
                // The request was for a plan.
                Ok(PruneAnswer::Done(_)) => {}
                // A partition without snapshots has nothing to delete.
                Err(failure) if failure.code == "no_repository" => {}
                Err(failure) => return Err(failure),
            }
        }
        prune::show_plans(&plans, args, self.json)
    }

    pub async fn prune(&self, args: &prune::Args) -> Result<(), Failure> {
        if args.plan.is_some() || args.plan_out.is_some() {
            return Err(Failure::usage(
                "repository",
                "a plan in a file is made and carried out straight on a repository: name it with \
                 --repository",
            ));
        }
        if args.dry_run && self.partition.is_none() {
            return self.plan_all(args).await;
        }
        let partition = self.partition().await?;
        let request = request(args);
        let post = async |request: &Prune| self.post(partition, &["prune"], request).await;
        let plan = async || match post(&request).await? {
            PruneAnswer::Plan(plan) => Ok(plan),
            PruneAnswer::Done(_) => Err(self.admin.not_esker("it answers no plan of a prune")),
        };
        let execute = async |plan: &PrunePlan| {
            let execute = Prune {
                apply: true,
                generation: Some(plan.generation.0),
                ..request.clone()
            };
            match post(&execute).await? {
                PruneAnswer::Done(pruned) => Ok(pruned),
                PruneAnswer::Plan(_) => Err(self.admin.not_esker("it does not carry out a prune")),
            }
        };
        let answer = match request.apply || args.dry_run {
            true => post(&request).await?,
            false => PruneAnswer::Done(prune::plan_and_execute(args, plan, execute).await?),
        };
        match answer {
            PruneAnswer::Plan(plan) if self.json => print_json(&plan),
            PruneAnswer::Plan(plan) => print(prune::planned(&plan, args)),
            PruneAnswer::Done(pruned) => {
                let repository = self.status().await?.repository;
                let partition = u16::try_from(partition).unwrap_or(u16::MAX);
                prune::show(&repository, partition, &pruned, self.json)
            }
        }
    }
}

/// The first request of a prune: a sweep, or a plan.
fn request(args: &prune::Args) -> Prune {
    Prune {
        apply: !args.dry_run && args.keep.is_none() && !args.abandoned,
        generation: None,
        keep: args.keep,
        abandoned: args.abandoned,
        min_age_seconds: args.min_age.map(|age| age.as_duration().as_secs_f64()),
    }
}

fn numbers(status: &Status) -> Vec<u64> {
    status.partitions.iter().map(|one| one.partition).collect()
}

fn proven(proven: &Proven) -> String {
    let paint = Paint::stdout();
    let replayed = match proven.replayed {
        1 => "1 entry".to_owned(),
        n => format!("{} entries", count(n)),
    };
    format!(
        "partition {:<3} {}  restored {} in {}, replayed {replayed} in {}, {} at LSN {}: {}",
        proven.partition,
        paint.dim(plain(&proven.snapshot)),
        bytes(proven.bytes),
        took(Duration::from_secs_f64(proven.restore_seconds)),
        took(Duration::from_secs_f64(proven.replay_seconds)),
        paint.green("equal"),
        proven.compared_at,
        proven.digest,
    )
}
