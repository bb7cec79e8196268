//! `esker snapshot prune`.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use esker_repository::prune::{PruneOptions, PrunePlan, Pruned};
use esker_repository::sweep::Sweep;
use esker_repository::{CurrentRoot, Options, PartitionId, Progress, Repository};
use esker_server::config::HumanDuration;
use serde::Serialize;

use super::render::{counted, objects, orphan_reason, print_json, snapshots, table};
use super::target::Target;
use super::watch::watch;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::print;
use crate::output_file::OutputFile;
use crate::term::{bytes, count, plain};

/// Largest file of a plan that is read, in bytes.
const PLAN_BYTES: u64 = 512 << 20;
/// Most plans that are made if the repository changes each time before the plan is executed. A server changes
/// it a few times for each snapshot, which takes longer than a plan.
const MAX_PLANS: u32 = 5;
/// The code of an error: the repository changed after the plan was made, and nothing was deleted.
const ROOT_MOVED: &str = "root_moved";
/// What an interrupted prune leaves.
const LEFT: &str = "what is kept is whole; run it again for the rest";

/// Delete what no kept snapshot needs.
///
/// Without options this is a sweep: it deletes objects that are a day old and that no retained, pinned
/// or abandoned snapshot has and no upload is working on, and removes expired uploads and pins.
/// Foreign files are never touched.
///
/// --dry-run prints what would be deleted and why, of every partition or of one with --partition.
/// --plan-out writes that plan to a file, and --plan then deletes exactly that, unless the repository has
/// changed meanwhile.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot prune --dry-run
  esker snapshot prune
  esker snapshot prune --keep 3 --dry-run --plan-out plan.json
  esker snapshot prune --plan plan.json")]
pub struct Args {
    /// Print what would be deleted, and delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// With --dry-run: write the plan to this file
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    pub plan_out: Option<PathBuf>,

    /// With --plan-out: replace the file if it is there already
    #[arg(long, requires = "plan_out")]
    pub force: bool,

    /// Carry out this plan, and nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "min_age", "keep", "abandoned"])]
    pub plan: Option<PathBuf>,

    /// Keep younger objects [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub min_age: Option<HumanDuration>,

    /// Release all but this many of the newest retained snapshots
    #[arg(long, value_name = "COUNT")]
    pub keep: Option<NonZeroU32>,

    /// Release the snapshots that forks have abandoned
    #[arg(long)]
    pub abandoned: bool,

    /// Release snapshots without asking
    #[arg(long)]
    pub yes: bool,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    if args.dry_run {
        let partitions = place.some_partitions().await?;
        if partitions.len() > 1 && args.plan_out.is_none() {
            return plan_all(place, args, &partitions, json).await;
        }
    }
    let (reader, root) = place.read().await?;
    let min_age = args.min_age.map(HumanDuration::as_duration);
    let repository = writer(place, reader.partition(), &root, min_age);
    let options = args.options();
    if let Some(file) = &args.plan {
        let plan = read_plan(file)?;
        ask(&plan, args).await?;
        let pruned = apply(place, &repository, &plan).await?;
        return show(place.shown(), repository.partition().0, &pruned, json);
    }
    if !args.dry_run && args.keep.is_none() && !args.abandoned {
        let sweep = watch(place, &Progress::new(), repository.sweep(), LEFT).await?;
        let sweep = sweep.map_err(|e| place.failure(e))?;
        return if json {
            print_json(&sweep)
        } else {
            print(swept(&sweep))
        };
    }
    let plan_out = args.plan_out.as_deref();
    let plan_out = plan_out.map(|file| OutputFile::create(file, args.force));
    let plan_out = plan_out.transpose()?;
    if !args.dry_run {
        let plan = async || make_plan(place, &repository, &options).await;
        let execute = async |plan: &PrunePlan| apply(place, &repository, plan).await;
        let pruned = plan_and_execute(args, plan, execute).await?;
        return show(place.shown(), repository.partition().0, &pruned, json);
    }
    let plan = make_plan(place, &repository, &options).await?;
    if let Some(file) = plan_out {
        write_plan(file, &plan)?;
    }
    if json {
        return print_json(&plan);
    }
    print(planned(&plan, args))
}

impl Args {
    fn options(&self) -> PruneOptions {
        PruneOptions {
            min_age: self.min_age.map(HumanDuration::as_duration),
            keep: self.keep,
            abandoned: self.abandoned,
        }
    }
}

/// Opens a partition for writing.
fn writer(
    place: &Target,
    partition: PartitionId,
    root: &CurrentRoot,
    min_age: Option<Duration>,
) -> Repository {
    let options = Options {
        cluster: Some(place.cluster(Some(root), None)),
        orphan_min_age: min_age.unwrap_or(Options::default().orphan_min_age),
        ..Options::default()
    };
    Repository::new(place.destination(), partition, options)
}

/// The plan for a partition, as one of several.
#[derive(Serialize)]
pub struct Planned {
    pub partition: u16,
    #[serde(flatten)]
    pub plan: PrunePlan,
}

/// Prints what would be deleted of each partition.
async fn plan_all(
    place: &Target,
    args: &Args,
    partitions: &[PartitionId],
    json: bool,
) -> Result<(), Failure> {
    let mut plans = Vec::new();
    for &partition in partitions {
        let (_, root) = place.read_of(partition).await?;
        let min_age = args.min_age.map(HumanDuration::as_duration);
        let repository = writer(place, partition, &root, min_age);
        let plan = make_plan(place, &repository, &args.options()).await?;
        plans.push(Planned {
            partition: partition.0,
            plan,
        });
    }
    show_plans(&plans, args, json)
}

/// Shows the plans of several partitions.
pub fn show_plans(plans: &[Planned], args: &Args, json: bool) -> Result<(), Failure> {
    if json {
        #[derive(Serialize)]
        struct Plans<'a> {
            partitions: &'a [Planned],
        }
        return print_json(&Plans { partitions: plans });
    }
    let text = |one: &Planned| format!("partition {}: {}", one.partition, planned(&one.plan, args));
    print(plans.iter().map(text).collect::<Vec<_>>().join("\n"))
}

async fn make_plan(
    place: &Target,
    repository: &Repository,
    options: &PruneOptions,
) -> Result<PrunePlan, Failure> {
    let plan = repository.plan_prune(options);
    let plan = watch(place, &Progress::new(), plan, "nothing was deleted").await?;
    plan.map_err(|e| place.failure(e))
}

/// Executes a plan.
async fn apply(
    place: &Target,
    repository: &Repository,
    plan: &PrunePlan,
) -> Result<Pruned, Failure> {
    let pruned = watch(place, &Progress::new(), repository.prune(plan), LEFT).await?;
    pruned.map_err(|e| place.failure(e))
}

/// Makes a plan, asks for confirmation, and executes it. If the repository has changed meanwhile, this starts
/// again, with at most [`MAX_PLANS`] plans in all.
pub async fn plan_and_execute(
    args: &Args,
    mut plan: impl AsyncFnMut() -> Result<PrunePlan, Failure>,
    mut execute: impl AsyncFnMut(&PrunePlan) -> Result<Pruned, Failure>,
) -> Result<Pruned, Failure> {
    let mut plans = 1;
    loop {
        let made = plan().await?;
        ask(&made, args).await?;
        match execute(&made).await {
            Err(failure) if failure.code == ROOT_MOVED && plans < MAX_PLANS => plans += 1,
            done => return done,
        }
        say!(
            "the repository changed after the plan was made, and nothing was deleted: a new plan is made"
        );
    }
}

/// Shows what was deleted.
pub fn show(repository: &str, partition: u16, pruned: &Pruned, json: bool) -> Result<(), Failure> {
    if json {
        #[derive(Serialize)]
        struct Done<'a> {
            repository: &'a str,
            partition: u16,
            #[serde(flatten)]
            pruned: &'a Pruned,
        }
        return print_json(&Done {
            repository,
            partition,
            pruned,
        });
    }
    let mut lines: Vec<String> = pruned
        .released
        .iter()
        .map(|snapshot| format!("released {}", plain(snapshot)))
        .collect();
    lines.push(format!(
        "deleted {} ({}){}",
        objects(pruned.deleted),
        bytes(pruned.bytes),
        could_not(pruned.failed)
    ));
    print(lines.join("\n"))
}

/// Asks a person to confirm the release of snapshots, if the plan has any and `--yes` was not given.
async fn ask(plan: &PrunePlan, args: &Args) -> Result<(), Failure> {
    if plan.released.is_empty() || args.yes {
        return Ok(());
    }
    for snapshot in &plan.released {
        say!("releases {}", plain(snapshot));
    }
    let question = format!(
        "{} will be gone for good, and {} stay.",
        snapshots(plan.released.len() as u64),
        count(plan.retained as u64)
    );
    confirm(&question, args.yes).await
}

pub fn planned(plan: &PrunePlan, args: &Args) -> String {
    let mut lines: Vec<String> = plan
        .released
        .iter()
        .map(|snapshot| format!("would release {}", plain(snapshot)))
        .collect();
    for (number, what) in [
        (plan.fenced.len(), "dead upload"),
        (plan.unpinned.len(), "expired pin"),
    ] {
        if number > 0 {
            lines.push(format!("would forget {}", counted(number as u64, what)));
        }
    }
    if !plan.objects.is_empty() {
        let rows: Vec<_> = plan
            .objects
            .iter()
            .map(|object| {
                vec![
                    bytes(object.size),
                    plain(&object.key),
                    orphan_reason(object.why).to_owned(),
                ]
            })
            .collect();
        lines.push(
            table(&["size", "object", "why it would go"], &rows, &[0])
                .trim_end()
                .to_owned(),
        );
    }
    let young = match plan.young {
        0 => String::new(),
        n => format!("; {} stay for now, being young", objects(n)),
    };
    lines.push(format!(
        "would delete {} ({}){young}",
        objects(plan.objects.len() as u64),
        bytes(plan.bytes)
    ));
    if let Some(file) = &args.plan_out {
        lines.push(format!(
            "`esker snapshot prune --plan {}` does this, and nothing else, while the root is at \
             generation {}",
            file.display(),
            plan.generation
        ));
    }
    lines.join("\n")
}

/// The result of a sweep, on one line.
pub fn swept(sweep: &Sweep) -> String {
    let mut text = format!(
        "swept {}: deleted {} ({}){}",
        objects(sweep.listed),
        count(sweep.deleted),
        bytes(sweep.bytes),
        could_not(sweep.failed)
    );
    for (number, what) in [
        (sweep.young, "orphans stay for now, being young"),
        (sweep.foreign, "foreign files left alone"),
    ] {
        if number > 0 {
            text += &format!("; {} {what}", count(number));
        }
    }
    for (number, what) in [
        (sweep.fenced, "dead upload"),
        (sweep.unpinned, "expired pin"),
    ] {
        if number > 0 {
            text += &format!("; forgot {}", counted(number, what));
        }
    }
    text
}

fn could_not(failed: u64) -> String {
    match failed {
        0 => String::new(),
        n => format!(", {} could not be deleted: run it again", count(n)),
    }
}

fn read_plan(file: &Path) -> Result<PrunePlan, Failure> {
    let cannot = |why: &dyn std::fmt::Display| {
        Failure::usage(
            "plan",
            format!("cannot use the plan {}: {why}", file.display()),
        )
    };
    let size = std::fs::metadata(file).map_err(|e| cannot(&e))?.len();
    if size > PLAN_BYTES {
        return Err(cannot(&format_args!(
            "it has {size} bytes, and none has so many"
        )));
    }
    let bytes = std::fs::read(file).map_err(|e| cannot(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| cannot(&e))
}

fn write_plan(mut file: OutputFile, plan: &PrunePlan) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(plan).map_err(|e| file.failure(&e.into()))?;
    file.write_all(&text).map_err(|e| file.failure(&e))?;
    file.finish()
}

#[cfg(test)]
mod tests {
    use esker_repository::ids::Generation;

    use super::*;

    fn args() -> Args {
        Args {
            dry_run: false,
            plan_out: None,
            force: false,
            plan: None,
            min_age: None,
            keep: NonZeroU32::new(1),
            abandoned: false,
            yes: true,
        }
    }

    /// Prunes a repository that changes this many times right after a plan was made. Returns the result, the
    /// generations that plans were made for, and those that plans were executed at.
    fn prune(changes: u64) -> (Result<Pruned, Failure>, Vec<u64>, Vec<u64>) {
        let (mut planned, mut executed) = (Vec::new(), Vec::new());
        let plan = async || {
            planned.push(planned.len() as u64);
            Ok(PrunePlan {
                generation: Generation(planned.len() as u64 - 1),
                retained: 1,
                released: vec!["a snapshot".to_owned()],
                fenced: Vec::new(),
                unpinned: Vec::new(),
                objects: Vec::new(),
                bytes: 0,
                young: 0,
            })
        };
        let execute = async |plan: &PrunePlan| {
            executed.push(plan.generation.0);
            match plan.generation.0 < changes {
                true => Err(Failure::wrong(ROOT_MOVED, "the root moved")),
                false => Ok(Pruned::default()),
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let done = runtime.block_on(plan_and_execute(&args(), plan, execute));
        (done, planned, executed)
    }

    #[test]
    fn a_repository_that_changes_after_a_plan_gets_a_new_one_and_that_is_carried_out() {
        for changes in 0..u64::from(MAX_PLANS) {
            let (done, planned, executed) = prune(changes);
            done.unwrap();
            assert_eq!(planned, (0..=changes).collect::<Vec<_>>());
            assert_eq!(executed, planned, "each plan is carried out once");
        }
    }

    #[test]
    fn a_repository_that_changes_after_each_plan_ends_the_prune_with_that_cause() {
        let (done, planned, executed) = prune(u64::MAX);
        assert_eq!(done.unwrap_err().code, ROOT_MOVED);
        assert_eq!(planned.len(), MAX_PLANS as usize);
        assert_eq!(executed, planned);
    }
}
