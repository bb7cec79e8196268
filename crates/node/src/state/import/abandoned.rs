//! Imports that the process which makes them, or its leadership, does not survive.

use super::*;
use crate::admission::Client;
use crate::node::Node;
use crate::options::NodeOptions;

/// How often the node that leads the store looks, and more.
const ROUNDS: Duration = Duration::from_millis(2500);

async fn begin(inner: &Inner, id: u64) {
    let begin = ImportStep::Begin(ImportBegin { replace: false });
    propose(inner, id, begin).await.unwrap();
}

fn importing(inner: &Inner) -> Option<u64> {
    let importing = inner.state.reader.meta().importing;
    importing.map(|importing| importing.id)
}

/// The entries of the import are in the log, and this process knows nothing of it: another one has led.
#[tokio::test]
async fn an_import_that_this_process_does_not_make_is_aborted_by_the_node_that_leads() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
    let inner = &node.inner;
    begin(inner, 7).await;
    let aborted = async {
        while importing(inner).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let aborted = tokio::time::timeout(Duration::from_secs(30), aborted).await;
    assert!(aborted.is_ok(), "what it wrote is still there");
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn an_import_that_is_made_goes_on_and_is_aborted_when_its_client_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
    let inner = &node.inner;
    let counted = inner
        .state
        .imports
        .begin(Client::default(), 7)
        .await
        .unwrap();
    let made = Begun::new(inner, 7);
    begin(inner, 7).await;
    tokio::time::sleep(ROUNDS).await;
    assert_eq!(importing(inner), Some(7), "it is under way");
    drop((made, counted));
    let aborted = async {
        while importing(inner).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let aborted = tokio::time::timeout(Duration::from_secs(30), aborted).await;
    assert!(aborted.is_ok(), "what it wrote is still there");
    assert!(!inner.state.imports.contains(7));
    node.stop(Duration::from_secs(30)).await;
}
