//! Reads objects.

use super::*;

/// Reads an object, from its beginning to its end.
pub(super) struct Reader<'a> {
    place: &'a External,
    stream: futures::stream::BoxStream<'static, object_store::Result<Bytes>>,
    /// Bytes that were read and not returned yet.
    pub(super) held: BytesMut,
    /// How many of the object's last bytes are held back.
    behind: usize,
    is_over: bool,
}

impl<'a> Reader<'a> {
    /// `None` if it is not there.
    pub(super) async fn open(
        place: &'a External,
        listed: &Listed,
    ) -> Result<Option<Reader<'a>>, Error> {
        match place.store.get(&listed.path).await {
            Ok(got) => Ok(Some(Reader {
                place,
                stream: got.into_stream(),
                held: BytesMut::new(),
                behind: 0,
                is_over: false,
            })),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(place.failed(&error)),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.stream.try_next().await;
        next.map_err(|error| self.place.failed(&error))
    }

    /// The first bytes: enough for a description.
    pub(super) async fn first(&mut self) -> Result<Bytes, Error> {
        let mut first = BytesMut::new();
        while first.len() < MAX_HEAD {
            match self.next().await? {
                Some(chunk) => first.extend_from_slice(&chunk),
                None => break,
            }
        }
        Ok(first.freeze())
    }

    /// Holds back the object's last `behind` bytes from here on.
    pub(super) fn hold_back(&mut self, first: Bytes, behind: usize) {
        self.held = BytesMut::from(&first[..]);
        self.behind = behind;
    }

    /// The next bytes, up to those that are held back.
    pub(super) async fn body(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.held.len() > self.behind {
                let more = self.held.len() - self.behind;
                return Ok(Some(self.held.split_to(more).freeze()));
            }
            if self.is_over {
                return Ok(None);
            }
            match self.next().await? {
                Some(chunk) => self.held.extend_from_slice(&chunk),
                None => self.is_over = true,
            }
        }
    }
}
