//! Who is answered when the leadership moves.

use super::*;
use crate::node::Node;
use crate::options::NodeOptions;

#[tokio::test]
async fn who_waits_for_a_snapshot_is_answered_when_another_node_leads_by_now() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
    // Its own tasks do not answer.
    node.stop(Duration::from_secs(30)).await;
    let inner = &node.inner;
    let mut answered = inner.state.ask_snapshot(1);
    look_after_snapshots(inner, false).await;
    let answer = answered.try_recv().expect("it waits for ever");
    assert!(
        matches!(answer, Err(StateError::Unavailable(why)) if why.contains("another node leads"))
    );
    assert!(inner.state.progress.lock().waiting.is_empty());
}
