//! Arguments of all commands: which server or repository, which partition, which cluster, and which
//! credentials.

use std::path::Path;

use esker_repository::destination::DestinationOptions;
use esker_repository::{
    Cluster, ClusterMarker, CurrentRoot, Destination, Error, Options, PartitionId, Repository,
    Root, SnapshotDir, partitions,
};

use super::s3::{self, S3Args};
use super::{REPOSITORY_VARIABLE, failure};
use crate::failure::Failure;
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};

/// The name of a cluster by default.
const CLUSTER: &str = "esker";

#[derive(clap::Args)]
pub struct TargetArgs {
    /// A running server, which asks its repository [env: ESKER_SERVER] [default: http://127.0.0.1:7070]
    // The variable is not read by clap, because an option takes precedence over both variables.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        conflicts_with = "repository",
        help_heading = "Where"
    )]
    server: Option<ServerAddress>,

    /// The repository: s3://BUCKET/PREFIX, file:///DIR or a directory [env: ESKER_REPOSITORY]
    #[arg(long, global = true, value_name = "URL", help_heading = "Where")]
    repository: Option<String>,

    /// The partition [default: the only one there; where that makes sense, all]
    #[arg(long, global = true, value_name = "N", help_heading = "Where")]
    partition: Option<u16>,

    /// The cluster that the snapshots belong to, for `put` [default: that of the repository, or `esker`]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Repository")]
    cluster_name: Option<String>,

    /// Tells clusters of one name apart
    #[arg(
        long,
        global = true,
        value_name = "NUMBER",
        help_heading = "Repository"
    )]
    cluster_fingerprint: Option<u64>,

    /// Name of the writer, which lists show [default: this host's name]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Repository")]
    node_name: Option<String>,

    #[command(flatten)]
    s3: S3Args,
}

/// Where a command can run.
#[derive(Clone, Copy)]
pub enum Needs {
    /// A server or a repository.
    Either,
    /// The same, but named explicitly, because the command deletes: the default server is not used. The
    /// command, and what it does.
    Named(&'static str),
    /// A server only: the command, and what it does.
    Server(&'static str),
    /// A repository only: the command, and the reason.
    Repository(&'static str),
}

/// Where a command runs.
pub enum Where {
    /// A running server.
    Server(ServerAddress, Option<u16>),
    /// A repository, without a server.
    Repository(Box<Target>),
}

impl TargetArgs {
    /// Decides where a command runs: an option comes before the variables, the repository's variable before
    /// the server's, and where nothing is named, the server at the default address is used.
    pub fn find(self, needs: Needs) -> Result<Where, Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let from_variable = variable(SERVER_VARIABLE).map(|text| {
            let address = text.parse::<ServerAddress>();
            address.map_err(|e| Failure::usage("invalid", format!("{SERVER_VARIABLE}={text}: {e}")))
        });
        let (mut server, mut repository) = (self.server.clone(), self.repository.clone());
        if server.is_some() && repository.is_some() {
            // The same error as for both options behind the subcommand, which the parser refuses.
            let both = "--server and --repository cannot be used together: name one of them";
            return Err(Failure::usage("usage", both));
        }
        if server.is_none() && repository.is_none() {
            repository = variable(REPOSITORY_VARIABLE);
            if !matches!(needs, Needs::Repository(_))
                && (repository.is_none() || matches!(needs, Needs::Server(_)))
            {
                server = match (from_variable, needs) {
                    (Some(address), _) => Some(address?),
                    (None, Needs::Named(_)) => None,
                    (None, _) => Some(default_server()?),
                };
            } else if repository.is_none() {
                // Kept for the message.
                server = from_variable.transpose()?;
            }
        }
        let partition = self.partition;
        let failure = match (needs, server, repository) {
            (Needs::Either | Needs::Named(_) | Needs::Server(_), Some(server), _) => {
                return Ok(Where::Server(server, partition));
            }
            (Needs::Either | Needs::Named(_) | Needs::Repository(_), _, Some(repository)) => {
                let place = Target::open(TargetArgs {
                    repository: Some(repository),
                    ..self
                })?;
                return Ok(Where::Repository(Box::new(place)));
            }
            (Needs::Server(what), ..) => {
                format!("{what}: name a running server with --server (http://HOST:PORT)")
            }
            (Needs::Repository(why), Some(_), _) => why.to_owned(),
            (Needs::Repository(_), ..) => format!(
                "which repository? name it with --repository (s3://BUCKET/PREFIX, \
                 file:///DIR or a directory), or in {REPOSITORY_VARIABLE}"
            ),
            (Needs::Named(what), ..) => format!(
                "{what}: name a server with --server, or a repository with --repository (s3://BUCKET/PREFIX, file:///DIR or a directory)"
            ),
            // Unreachable, because one of both is named.
            (Needs::Either, ..) => "name a server with --server, or a repository".to_owned(),
        };
        Err(Failure::usage("repository", failure))
    }
}

/// A repository's place, and the cluster that uses it.
pub struct Target {
    options: DestinationOptions,
    destination: Destination,
    partition: Option<PartitionId>,
    cluster_name: Option<String>,
    cluster_fingerprint: Option<u64>,
    node_name: Option<String>,
    /// Where credentials come from, for messages.
    keys: String,
}

impl Target {
    /// Evaluates the arguments. Sends nothing to a store.
    fn open(args: TargetArgs) -> Result<Target, Failure> {
        let url = args.repository.unwrap_or_default();
        let options = args.s3.options();
        Ok(Target {
            destination: s3::open(&url, &options)?,
            keys: s3::keys(&options),
            options,
            partition: args.partition.map(PartitionId),
            cluster_name: args.cluster_name,
            cluster_fingerprint: args.cluster_fingerprint,
            node_name: args.node_name,
        })
    }

    /// The same, with files copied instead of linked.
    pub fn without_links(&self) -> Result<Destination, Failure> {
        let options = DestinationOptions {
            hard_links: false,
            ..self.options.clone()
        };
        // The URL that is shown for a directory is also accepted as its place.
        s3::open(self.destination.display_url(), &options)
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Its URL, for people.
    pub fn shown(&self) -> &str {
        self.destination.display_url()
    }

    /// Its place, for messages.
    pub fn place(&self) -> failure::Place<'_> {
        failure::Place {
            destination: &self.destination,
            keys: &self.keys,
        }
    }

    /// The selected partition, or all.
    pub async fn partitions(&self) -> Result<Vec<PartitionId>, Failure> {
        if let Some(partition) = self.partition {
            return Ok(vec![partition]);
        }
        match partitions(&self.destination).await {
            Ok(found) => Ok(found),
            // The bucket is missing, not an object.
            Err(Error::Missing { .. } | Error::NoBucket { .. }) => Err(Failure::wrong(
                "no_repository",
                format!(
                    "there is no bucket {}; correct --repository, or make the bucket",
                    self.shown()
                ),
            )),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// The selected partition, or the only one. `None` if there is none at all.
    pub async fn partition_if_any(&self) -> Result<Option<PartitionId>, Failure> {
        match self.partitions().await?.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(*only)),
            several => {
                let names: Vec<_> = several.iter().map(ToString::to_string).collect();
                Err(Failure::usage(
                    "partition",
                    format!(
                        "{} holds several partitions: name one of {} with --partition",
                        self.shown(),
                        names.join(", ")
                    ),
                ))
            }
        }
    }

    /// The selected partition, or the only one.
    pub async fn partition(&self) -> Result<PartitionId, Failure> {
        let partition = self.partition_if_any().await?;
        partition.ok_or_else(|| failure::no_repository(self.shown()))
    }

    /// Opens a partition for reading: the cluster is not checked, and nothing is written.
    pub fn reader(&self, partition: PartitionId) -> Repository {
        Repository::new(&self.destination, partition, Options::default())
    }

    /// The selected partition, or all.
    ///
    /// # Errors
    ///
    /// `no_repository` if there is none at all.
    pub async fn some_partitions(&self) -> Result<Vec<PartitionId>, Failure> {
        let partitions = self.partitions().await?;
        match partitions.is_empty() {
            true => Err(failure::no_repository(self.shown())),
            false => Ok(partitions),
        }
    }

    /// Opens the partition for reading, and reads its root.
    pub async fn read(&self) -> Result<(Repository, CurrentRoot), Failure> {
        self.read_of(self.partition().await?).await
    }

    /// The same, for a given partition.
    pub async fn read_of(
        &self,
        partition: PartitionId,
    ) -> Result<(Repository, CurrentRoot), Failure> {
        let repository = self.reader(partition);
        let root = repository.root().await.map_err(|e| self.failure(e))?;
        remark_on(&root);
        Ok((repository, root))
    }

    /// The newest retained snapshot.
    pub fn newest(&self, root: &Root) -> Result<SnapshotDir, Failure> {
        let newest = root.retained_snapshots.first().map(|r| r.dir());
        newest.ok_or_else(|| self.failure(Error::Unusable(Vec::new())))
    }

    /// The cluster that writes: the one that the arguments name, otherwise that of the root or of the
    /// destination.
    pub fn cluster(&self, root: Option<&Root>, marker: Option<&ClusterMarker>) -> Cluster {
        let theirs = root
            .map(|root| (&root.cluster_name, root.cluster_fingerprint))
            .or_else(|| marker.map(|m| (&m.cluster_name, m.cluster_fingerprint)));
        let named = self.cluster_name.is_some() || self.cluster_fingerprint.is_some();
        Cluster {
            name: match (&self.cluster_name, theirs) {
                (Some(name), _) => name.clone(),
                (None, Some((name, _))) => name.clone(),
                (None, None) => CLUSTER.to_owned(),
            },
            fingerprint: match named {
                true => self.cluster_fingerprint,
                false => theirs.and_then(|(_, fingerprint)| fingerprint),
            },
            node_name: self.node_name.clone().unwrap_or_else(host_name),
        }
    }

    /// Translates an error of the library.
    pub fn failure(&self, error: Error) -> Failure {
        failure::of(&error, self.place())
    }

    /// A key relative to the partition's directory: it may be given as a path below the repository's
    /// directory, or with the partition in front.
    pub fn key(&self, given: &str, partition: PartitionId) -> String {
        let below = self.destination.local().and_then(|local| {
            let path = std::path::absolute(Path::new(given)).ok()?;
            Some(path.strip_prefix(local.root()).ok()?.to_str()?.to_owned())
        });
        let key = below.as_deref().unwrap_or(given);
        let key = key.strip_prefix(&format!("{partition}/")).unwrap_or(key);
        key.to_owned()
    }
}

/// Prints a remark with the program that wrote this root, if it was not Esker.
pub fn remark_on(root: &Root) {
    if root.generation.is_none() {
        remark!(
            "Partition {} of cluster `{}` was not written by Esker: it can be read, and is never \
             written to.",
            root.partition_id,
            crate::term::plain(&root.cluster_name)
        );
    }
}

fn default_server() -> Result<ServerAddress, Failure> {
    let address = DEFAULT_SERVER.parse();
    address.map_err(|e: String| Failure::wrong("client", e))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    let name = name
        .as_deref()
        .map(str::trim)
        .filter(|name| !name.is_empty());
    name.unwrap_or("unknown").to_owned()
}
