//! Which destination this node has put snapshots to: `destination.json` in the data directory.
//!
//! The directory of a disk that is not mounted exists and is empty, as for a first start. The file
//! distinguishes the two: nothing is put to a destination of this URL that has another marker.

use std::io;
use std::path::{Path, PathBuf};

use esker_repository::{Destination, DestinationId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::data_dir::write_durably;
use crate::error::StartError;

const FILE: &str = "destination.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    url: String,
    destination_id: DestinationId,
}

/// The contents of the file; see the [module](self).
#[derive(Debug)]
pub(crate) struct DestinationFile {
    path: PathBuf,
    stored: Mutex<Option<Stored>>,
}

impl DestinationFile {
    /// Reads the file, and makes `destination` expect the marker in it.
    pub fn open(data_dir: &Path, destination: &Destination) -> Result<DestinationFile, StartError> {
        let path = data_dir.join(FILE);
        let stored = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored) => Some(stored),
                Err(error) => {
                    tracing::warn!(
                        path = %path.display(),
                        %error,
                        "the file is damaged: whatever is at the destination counts as the right one"
                    );
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StartError::unreadable(path.display().to_string(), &error)),
        };
        if let Some(stored) = stored
            .as_ref()
            .filter(|s| s.url == destination.display_url())
        {
            destination.expect(stored.destination_id);
        }
        Ok(DestinationFile {
            path,
            stored: Mutex::new(stored),
        })
    }

    /// Remembers the destination, after something was put to it.
    pub fn note(&self, destination: &Destination) {
        let Some(destination_id) = destination.id() else {
            return;
        };
        let now = Some(Stored {
            url: destination.display_url().to_owned(),
            destination_id,
        });
        let mut stored = self.stored.lock();
        if *stored == now {
            return;
        }
        let written = serde_json::to_vec_pretty(&now)
            .map_err(|e| e.to_string())
            .and_then(|bytes| write_durably(&self.path, &bytes).map_err(|e| e.to_string()));
        match written {
            Ok(()) => *stored = now,
            Err(error) => tracing::warn!(error, "the destination of snapshots is not remembered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use esker_repository::destination::DestinationOptions;

    use super::*;

    #[test]
    fn the_id_is_expected_again_at_the_same_url_and_at_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let url = dir.path().join(name).display().to_string();
            Destination::open(&url, &DestinationOptions::default()).unwrap()
        };
        let destination = open("one");
        let file = DestinationFile::open(dir.path(), &destination).unwrap();
        file.note(&destination);
        assert!(!dir.path().join(FILE).exists(), "nothing was put there yet");
        destination.expect(DestinationId(7));
        file.note(&destination);
        for (name, id) in [("one", Some(DestinationId(7))), ("other", None)] {
            let again = open(name);
            DestinationFile::open(dir.path(), &again).unwrap();
            assert_eq!(again.id(), id, "{name}");
        }
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let again = open("one");
        DestinationFile::open(dir.path(), &again).unwrap();
        assert_eq!(again.id(), None);
    }
}
