//! One writer for each lineage: of several processes with the same history, one puts snapshots.
//!
//! A copied data directory, or one that was restored from a backup, has the lineage of the original and
//! continues differently. Nothing in a snapshot distinguishes the two. So a process that owns a data
//! directory draws an [`IncarnationId`] at each start, and the root names the incarnation that writes. The
//! first put of a process claims the root, by the same swap that registers its intent, if the root names no
//! incarnation or one that this one follows: an earlier start of the same directory. Of two incarnations
//! that follow the same one, the second is refused with [`Error::OtherWriter`]. A commit requires that the
//! root that it replaces names the incarnation, so an upload that is under way while another incarnation
//! claims the root is not committed.
//!
//! Intents name the incarnation that registered them. The next incarnation continues the intent of a former
//! one, or removes it when it has expired; after that the former incarnation neither renews nor withdraws
//! it. A refused incarnation has no intent: the swap that would register its first one is refused.
//!
//! Pins name no incarnation. A pin protects what a restore reads: a refused or former incarnation needs it
//! as much as any other, and until the pin expires it costs only space. After that, a sweep of the current
//! writer removes it.
//!
//! Clocks play no part in this. A fork claims the root for its own incarnation, because it begins a new
//! lineage.

use serde_json::Map;

use crate::error::Error;
use crate::ids::LineageId;
use crate::layout::ROOT;
use crate::ownership;
use crate::repository::{Change, CurrentRoot, Repository};
use crate::root::{Intent, Root, Writer};
use crate::store::Store;

/// An intent with this many snapshot ids is not continued: each interruption adds one to the root.
const MAX_CONTINUATIONS: usize = 32;

impl Repository {
    /// Checks whether this repository's incarnation may write to a root: the root names no incarnation,
    /// this one, or an earlier one that this one follows.
    ///
    /// # Errors
    ///
    /// [`Error::OtherWriter`] with the names of both.
    pub fn check_writer(&self, root: &Root) -> Result<(), Error> {
        match (&root.writer, &self.options.incarnation) {
            (None, _) => Ok(()),
            (Some(writer), Some(ours)) if ours.follows(writer.incarnation) => Ok(()),
            (Some(writer), _) => Err(self.other_writer(&self.store, writer)),
        }
    }

    /// Claims the root, unless this incarnation has claimed it already. A process that writes to several
    /// roots, or beside them, claims the same root first, so that of two copies of a node only one writes.
    ///
    /// # Errors
    ///
    /// [`Error::OtherWriter`] with the names of both; [`Error::OtherLineage`] if the root is of another
    /// lineage; [`Error::NoRoot`]; errors of [`ownership::claim`] and of a swap.
    pub async fn claim(&self, lineage: LineageId) -> Result<CurrentRoot, Error> {
        let store = self.store.operation();
        ownership::claim_with(&store, self.cluster()?).await?;
        self.swap_with(
            &store,
            None,
            |root| {
                if root.lineage.is_some() && root.lineage != Some(lineage) {
                    return Err(Error::OtherLineage {
                        theirs: root.lineage,
                        ours: Some(lineage),
                    });
                }
                self.check_writer(root)?;
                if self.has_claimed(root) {
                    return Ok(Change::Nothing);
                }
                let mut next = root.clone();
                self.claim_writer(&mut next)?;
                Ok(Change::To(Box::new(next)))
            },
            |root| self.has_claimed(root),
        )
        .await
    }

    /// Whether this incarnation has registered an intent or continued it last.
    pub(crate) fn holds(&self, intent: &Intent) -> bool {
        intent.incarnation == self.options.incarnation.as_ref().map(|ours| ours.id)
    }

    /// Sets this incarnation as the root's writer. [`Repository::check_writer`] must have succeeded, or the
    /// root must name no writer.
    pub(crate) fn claim_writer(&self, root: &mut Root) -> Result<(), Error> {
        let Some(ours) = &self.options.incarnation else {
            return Ok(());
        };
        if root.writer.as_ref().map(|w| w.incarnation) != Some(ours.id) {
            root.writer = Some(Writer {
                incarnation: ours.id,
                node_name: self.cluster()?.node_name.clone(),
                claimed_at: self.store.env().now(),
                extra: Map::new(),
            });
        }
        Ok(())
    }

    /// Whether the root names this incarnation.
    pub(crate) fn has_claimed(&self, root: &Root) -> bool {
        let writer = root.writer.as_ref().map(|writer| writer.incarnation);
        writer == self.options.incarnation.as_ref().map(|ours| ours.id)
    }

    /// Refuses a root that another incarnation has claimed meanwhile.
    pub(crate) fn check_claim(&self, store: &Store, root: &Root) -> Result<(), Error> {
        match &root.writer {
            Some(writer) if !self.has_claimed(root) => Err(self.other_writer(store, writer)),
            _ => Ok(()),
        }
    }

    /// The intent of an interrupted upload of this process, or of an earlier start of the same data
    /// directory. The next put continues it: the uploaded objects are kept as long as the intent.
    pub(crate) fn left_behind<'a>(&self, root: &'a Root) -> Option<&'a Intent> {
        let ours = self.options.incarnation.as_ref()?;
        let is_ours = |intent: &&Intent| {
            !intent.repair
                && intent.incarnation.is_some_and(|of| ours.follows(of))
                && intent.snapshot_ids.len() < MAX_CONTINUATIONS
        };
        root.intents
            .iter()
            .filter(is_ours)
            .max_by_key(|intent| intent.generation)
    }

    fn other_writer(&self, store: &Store, writer: &Writer) -> Error {
        let node_name = self.options.cluster.as_ref().map(|c| c.node_name.as_str());
        Error::OtherWriter {
            root: store.display_url(ROOT),
            theirs: format!(
                "{} (incarnation {}, since {})",
                writer.node_name,
                writer.incarnation.short(),
                writer
                    .claimed_at
                    .format(&time::format_description::well_known::Rfc3339)
                    .unwrap_or_default()
            ),
            ours: match &self.options.incarnation {
                Some(ours) => format!(
                    "{} (incarnation {})",
                    node_name.unwrap_or("unknown"),
                    ours.id.short()
                ),
                None => node_name.unwrap_or("a reader").to_owned(),
            },
        }
    }
}
