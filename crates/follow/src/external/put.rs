//! Puts snapshots as objects.

use super::*;

impl External {
    /// Puts a snapshot of a state.
    pub(crate) async fn put<F: Fold>(&self, fold: F, meta: &Meta) -> Result<SnapshotInfo, Error> {
        let zst = match meta.encoding {
            Encoding::Zstd => ".zst",
            Encoding::None => "",
        };
        let extension = format!("{}{zst}", fold.extension());
        let mut chunks = pipe::write(fold, meta);
        let fold_failed = |error| Error::NotTaken(format!("the fold: {error}"));
        let mut small = vec![object::head(meta)];
        let mut bytes = small[0].len();
        while bytes <= ONE_REQUEST {
            let Some(chunk) = chunks.next().await else {
                let totals = chunks.totals().await.map_err(fold_failed)?;
                small.push(object::tail(meta.encoding, &totals));
                let path = self.put_small(meta, &extension, small).await?;
                return Ok(taken(&path, meta, &totals));
            };
            bytes += chunk.len();
            small.push(chunk);
        }
        let path = self.apart(meta.cursor, &extension);
        let options = PutMultipartOptions {
            attributes: self.attributes(meta.cursor),
            ..PutMultipartOptions::default()
        };
        let upload = self.store.put_multipart_opts(&path, options).await;
        let upload = upload.map_err(|e| self.failed(&e))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut small = small.into_iter();
        loop {
            let chunk = match small.next() {
                Some(chunk) => chunk,
                None => match chunks.next().await {
                    Some(chunk) => chunk,
                    None => break,
                },
            };
            let ready = upload.wait_for_capacity(PARTS).await;
            if let Err(error) = ready {
                let _ = upload.abort().await;
                return Err(self.failed(&error));
            }
            upload.put(chunk);
        }
        match chunks.totals().await {
            Ok(totals) => {
                upload.put(object::tail(meta.encoding, &totals));
                upload.finish().await.map_err(|e| self.failed(&e))?;
                Ok(taken(&path, meta, &totals))
            }
            Err(error) => {
                let _ = upload.abort().await;
                Err(fold_failed(error))
            }
        }
    }

    async fn put_small(
        &self,
        meta: &Meta,
        extension: &str,
        parts: Vec<Bytes>,
    ) -> Result<Path, Error> {
        let payload: PutPayload = parts.into_iter().collect();
        // Where snapshots of a former stream are deleted, none gets a name that one of them may have had: a
        // store may delete an object late, or twice.
        let mut path = match self.delete_former {
            true => self.apart(meta.cursor, extension),
            false => {
                let name = format!("{}.{extension}", meta.cursor);
                self.prefix.clone().join(name)
            }
        };
        loop {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: self.attributes(meta.cursor),
                ..PutOptions::default()
            };
            match self.store.put_opts(&path, payload.clone(), options).await {
                Ok(_) => return Ok(path),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    // The object is another snapshotter's, or our own if the answer was lost. If it is
                    // something else, or not whole, ours needs another name.
                    match self.known(&path).await? {
                        Known::Described(other)
                            if is_as_good(&other, meta) && self.is_whole(&path, meta).await? =>
                        {
                            return Ok(path);
                        }
                        _ => path = self.apart(meta.cursor, extension),
                    }
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// Whether the object that is there has all its bytes: its description does not prove that.
    async fn is_whole(&self, path: &Path, meta: &Meta) -> Result<bool, Error> {
        let listed = Listed {
            path: path.clone(),
            cursor: meta.cursor,
            bytes: 0,
            written_at: 0,
        };
        Ok(self.check(&listed).await?.is_ok())
    }

    /// A name that no other object has.
    fn apart(&self, cursor: u64, extension: &str) -> Path {
        let id = uuid::Uuid::new_v4().simple().to_string();
        self.prefix
            .clone()
            .join(format!("{cursor}-{}.{extension}", &id[..12]))
    }

    fn attributes(&self, cursor: u64) -> Attributes {
        match &self.cursor_in {
            CursorIn::Key => Attributes::new(),
            CursorIn::Metadata(name) => {
                let name = Attribute::Metadata(name.clone().into());
                Attributes::from_iter([(name, cursor.to_string())])
            }
        }
    }
}

fn taken(path: &Path, meta: &Meta, totals: &Totals) -> SnapshotInfo {
    SnapshotInfo {
        kind: Kind::External,
        place: path.to_string(),
        cursor: meta.cursor,
        bytes: object_bytes(meta, totals),
        taken_at: Some(meta.taken_at),
        anchored: false,
    }
}

fn is_as_good(meta: &Meta, ours: &Meta) -> bool {
    is_ours(meta, ours) && meta.cursor == ours.cursor && meta.fold_version == ours.fold_version
}
