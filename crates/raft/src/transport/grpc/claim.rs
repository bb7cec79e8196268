//! What a node claims to be in the head of each request, and who decides about it.

use http::HeaderMap;
use rustls::pki_types::CertificateDer;

use crate::ids::{ClusterId, NodeId};

/// The header of the cluster: 32 hexadecimal digits.
const CLUSTER: &str = "esker-cluster";
/// The header of the node: its number.
const NODE: &str = "esker-node";
/// The header of the process: 32 hexadecimal digits.
const PROCESS: &str = "esker-process";
/// The header of the earlier processes: numbers as that of the process, with commas between them, newest first. Absent
/// from a node that knows none, as are those of earlier builds.
const EARLIER: &str = "esker-earlier-processes";
/// Most earlier processes in a claim: some 1 KiB of header, which a connection transmits once.
pub const MAX_EARLIER: usize = 32;

/// What a node claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its cluster; all zero for a node that does not belong to one yet.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The process: a random number of each start. Two processes with one number of a node are a copied data
    /// directory.
    pub process: u128,
    /// The processes that have used the node's data directory before.
    pub earlier: EarlierProcesses,
}

/// The last processes that have used a data directory before this one, newest first. What they mean is up to the host.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct EarlierProcesses {
    processes: [u128; MAX_EARLIER],
    count: usize,
}

impl EarlierProcesses {
    /// Those of a list, newest first. The oldest that do not fit are left out.
    pub fn new(newest_first: impl IntoIterator<Item = u128>) -> EarlierProcesses {
        let mut earlier = EarlierProcesses::default();
        for process in newest_first.into_iter().take(MAX_EARLIER) {
            earlier.processes[earlier.count] = process;
            earlier.count += 1;
        }
        earlier
    }

    /// The processes, newest first.
    pub fn as_slice(&self) -> &[u128] {
        &self.processes[..self.count]
    }
}

impl std::fmt::Debug for EarlierProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Messages of a group, or a transfer.
    Messages,
    /// A request of the host, with its path.
    Request,
}

/// Why a node is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// What a gatekeeper keeps for as long as a stream of messages lasts, or until a request is answered.
pub trait Admitted: Send + Sync {
    /// Why the stream has to end, if what admitted it does not hold any more. Called before each message is used.
    fn is_over(&self) -> Option<Refusal> {
        None
    }
}

impl Admitted for () {}

/// Decides who is admitted. Called for each stream of messages and each request, before anything of it is used.
pub trait Gatekeeper: Send + Sync + 'static {
    /// Decides about a claim. `certificate` is the certificate of the other end of the connection, where there is
    /// one; the secret has been compared before. The returned value is kept for as long as the stream of messages
    /// lasts, or until a request is answered.
    ///
    /// # Errors
    ///
    /// The claim is refused; the other node logs the reason.
    fn admit(
        &self,
        claim: &Claim,
        what: Admission,
        path: &str,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal>;
}

impl Claim {
    /// Adds the claim to the head of a request.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let texts = [
            (CLUSTER, self.cluster.to_string()),
            (NODE, self.node.to_string()),
            (PROCESS, format!("{:032x}", self.process)),
        ];
        let earlier = self.earlier.as_slice();
        let earlier: Vec<_> = earlier.iter().map(|it| format!("{it:032x}")).collect();
        let earlier = (!earlier.is_empty()).then(|| (EARLIER, earlier.join(",")));
        for (name, text) in texts.into_iter().chain(earlier) {
            // Digits and commas alone are a header.
            if let Ok(value) = text.parse() {
                headers.insert(name, value);
            }
        }
    }

    /// Reads the claim in the head of a request, and removes it from there.
    pub(super) fn take_from(headers: &mut HeaderMap) -> Result<Claim, Refusal> {
        let earlier = headers.remove(EARLIER);
        let mut take = |name: &'static str| {
            let value = headers.remove(name);
            let text = value.as_ref().and_then(|value| value.to_str().ok());
            let text = text.map(str::to_owned);
            text.ok_or_else(|| Refusal(format!("the header {name} is missing or not text")))
        };
        let (cluster, node, process) = (take(CLUSTER)?, take(NODE)?, take(PROCESS)?);
        let no_number = |name| Refusal(format!("the header {name} is not a number"));
        let digits = |text: &str, name: &'static str| match text.len() {
            32 if text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u128::from_str_radix(text, 16).map_err(|_| no_number(name))
            }
            _ => Err(no_number(name)),
        };
        let earlier = match &earlier {
            None => EarlierProcesses::default(),
            Some(earlier) => {
                let listed = earlier.to_str().map_err(|_| no_number(EARLIER))?;
                let listed = listed.split(',').take(MAX_EARLIER);
                let parsed: Result<Vec<u128>, Refusal> =
                    listed.map(|one| digits(one, EARLIER)).collect();
                EarlierProcesses::new(parsed?)
            }
        };
        let node = match node.parse() {
            Ok(node) if node > 0 => NodeId(node),
            _ => return Err(no_number(NODE)),
        };
        Ok(Claim {
            cluster: ClusterId(digits(&cluster, CLUSTER)?.to_be_bytes()),
            node,
            process: digits(&process, PROCESS)?,
            earlier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_as_it_was_written_and_is_gone_from_the_head_then() {
        let claim = Claim {
            cluster: ClusterId([7; 16]),
            node: NodeId(u64::MAX),
            process: 1 << 100,
            earlier: EarlierProcesses::default(),
        };
        let mut headers = HeaderMap::new();
        claim.add_to(&mut headers);
        assert_eq!(headers.len(), 3);
        assert_eq!(Claim::take_from(&mut headers), Ok(claim));
        assert!(headers.is_empty());
        let all = (0..2 * MAX_EARLIER as u128).rev();
        let followed = Claim {
            earlier: EarlierProcesses::new(all),
            ..claim
        };
        assert_eq!(followed.earlier.as_slice().len(), MAX_EARLIER);
        followed.add_to(&mut headers);
        assert_eq!(headers.len(), 4);
        assert_eq!(Claim::take_from(&mut headers), Ok(followed));
        assert!(headers.is_empty());
    }

    #[test]
    fn what_is_no_claim_is_refused_with_the_header_that_is_wrong() {
        let good = || {
            let mut headers = HeaderMap::new();
            let claim = Claim {
                cluster: ClusterId::default(),
                node: NodeId(1),
                process: 1,
                earlier: EarlierProcesses::default(),
            };
            claim.add_to(&mut headers);
            headers
        };
        for (name, value) in [
            (CLUSTER, "0"),
            (CLUSTER, "+0000000000000000000000000000000"),
            (NODE, "0"),
            (NODE, "-1"),
            (NODE, "18446744073709551616"),
            (PROCESS, "zz000000000000000000000000000000"),
            (EARLIER, ""),
            (EARLIER, "00000000000000000000000000000001,2"),
        ] {
            let mut headers = good();
            headers.insert(name, value.parse().unwrap());
            let refused = Claim::take_from(&mut headers).unwrap_err();
            assert!(refused.0.contains(name), "{refused}");
        }
        for name in [CLUSTER, NODE, PROCESS] {
            let mut headers = good();
            headers.remove(name);
            let refused = Claim::take_from(&mut headers).unwrap_err();
            assert!(refused.0.contains(name), "{refused}");
        }
    }
}
