//! Deletes snapshots that are no longer kept.

use super::*;

impl External {
    /// The snapshots that are there, for [`retain`](Self::retain). A store may take long for it, so the
    /// stream is identified after this.
    pub(crate) async fn list_to_retain(&self) -> Result<Vec<(Listed, Meta)>, Error> {
        let listed = self.list().await?;
        {
            let paths: HashSet<&Path> = listed.iter().map(|one| &one.path).collect();
            let mut known = self.known.lock();
            known.retain(|path, _| paths.contains(path));
        }
        let mut described = Vec::new();
        for one in listed {
            if let Known::Described(meta) = self.known(&one.path).await? {
                described.push((one, *meta));
            }
        }
        Ok(described)
    }

    /// Deletes snapshots that are no longer kept. Returns up to where the stream may be trimmed, if it is
    /// to be. Of those that are there, only the one at `place` is known to be whole: it stays, and the
    /// stream is never trimmed beyond it.
    pub(crate) async fn retain(
        &self,
        listed: Vec<(Listed, Meta)>,
        newest: &Meta,
        place: &str,
        identity: &Identity,
    ) -> Result<Option<u64>, Error> {
        let mut kept: Vec<u64> = Vec::new();
        let mut former = Vec::new();
        for (one, meta) in listed {
            match self.relation(&meta, newest, identity) {
                Relation::Ours if kept.len() < self.keep || one.path.as_ref() == place => {
                    kept.push(one.cursor);
                }
                Relation::Ours => self.delete(&one.path).await?,
                Relation::Former => former.push(one.path),
                Relation::Foreign => {}
            }
        }
        // They are of no use to a follower, but may be all that is left of what was lost. They stay until
        // as many current ones as are kept are there.
        if kept.len() >= self.keep {
            for path in former {
                self.delete(&path).await?;
            }
        }
        let to = match self.trim {
            None => None,
            Some(TrimTo::Oldest) => kept.last().copied(),
            Some(TrimTo::Newest) => kept.first().copied(),
        };
        Ok(to.map(|to| to.min(newest.cursor)))
    }

    async fn delete(&self, path: &Path) -> Result<(), Error> {
        match self.store.delete(path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {
                tracing::debug!(snapshot = %path, "a snapshot is kept no more");
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn relation(&self, meta: &Meta, newest: &Meta, identity: &Identity) -> Relation {
        if meta.fold != newest.fold {
            return Relation::Foreign;
        }
        if meta.created_at != newest.created_at {
            let is_former = self.delete_former
                && matches!(
                    (created(&meta.created_at), created(&newest.created_at)),
                    (Some(then), Some(now)) if then < now
                );
            return if is_former {
                Relation::Former
            } else {
                Relation::Foreign
            };
        }
        if meta.of_stream(identity).is_ok() {
            return Relation::Ours;
        }
        // Nothing is known of a lineage that is not in the past of this one.
        let lineage = meta.lineage.as_deref();
        match lineage.and_then(|lineage| identity.shares(lineage)) {
            Some(_) => Relation::Former,
            None => Relation::Foreign,
        }
    }
}

/// How a snapshot that is there relates to the one that was taken.
enum Relation {
    /// Of the same fold and stream, and of use.
    Ours,
    /// Of the same fold, and of a history that no longer exists.
    Former,
    /// Any other.
    Foreign,
}

fn created(at: &Option<String>) -> Option<time::OffsetDateTime> {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(at.as_deref()?, format).ok()
}
