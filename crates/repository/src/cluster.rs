//! The cluster that a repository belongs to.

use crate::error::Error;

/// A cluster. Several clusters cannot share a prefix: each checks which cluster the objects there name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Distinguishes clusters of the same name. It is compared if both sides have one.
    pub fingerprint: Option<u64>,
    /// The name of the node that this process is; for operators.
    pub node_name: String,
}

impl Cluster {
    /// Refuses an object that names another cluster.
    pub(crate) fn check(
        &self,
        object: &str,
        name: &str,
        fingerprint: Option<u64>,
    ) -> Result<(), Error> {
        let same_print = match (self.fingerprint, fingerprint) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        if self.name == name && same_print {
            return Ok(());
        }
        let described = |name: &str, fingerprint: Option<u64>| match fingerprint {
            Some(print) => format!("cluster {name:?} (fingerprint {print})"),
            None => format!("cluster {name:?}"),
        };
        Err(Error::OtherCluster {
            object: object.to_owned(),
            theirs: described(name, fingerprint),
            ours: described(&self.name, self.fingerprint),
        })
    }
}
