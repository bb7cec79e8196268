//! The arguments of a benchmark that consists of parts.

use std::path::PathBuf;

use clap::ValueEnum;

/// The arguments. `P` names the parts.
#[derive(Clone, Debug, clap::Args)]
pub struct PartArgs<P: ValueEnum + Send + Sync + 'static> {
    /// Only these parts; the page is not written then, unless the others are known.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub only: Vec<P>,
    /// Runs of each measurement; tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    pub runs: u16,
    /// Small sizes, to check the bench itself; nothing is written.
    #[arg(long)]
    pub quick: bool,
    /// Where to work: a directory on a disk with room for 20 GiB, or for six times `--size-mib` where
    /// there is one.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Figures of earlier runs (JSON): parts that are not measured now are taken from there, and what is
    /// measured is kept there.
    #[arg(long, value_name = "PATH")]
    pub figures: Option<PathBuf>,
    /// Where the page goes. Default: its place below docs/benchmarks.
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

impl<P: ValueEnum + PartialEq + Send + Sync + 'static> PartArgs<P> {
    /// The parts to measure, in their order.
    pub fn parts(&self) -> impl Iterator<Item = &'static P> {
        let all = P::value_variants().iter();
        all.filter(|part| self.only.is_empty() || self.only.contains(part))
    }
}
