//! What is under way when its token ends, also on a node of a cluster that has lost contact with the leader of the
//! catalog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use esker_node::TokenScope;
use futures::FutureExt as _;
use tokio::time::Instant;

use super::authority::tests::{Issued, ROOT, authority, request, stored};
use super::operation::Effect;
use super::{Access, AccessError, CatalogCheck};

#[tokio::test(start_paused = true)]
async fn what_is_under_way_ends_within_a_second_of_the_revocation() {
    let issued = Issued::new(vec![stored("good", TokenScope::default())]);
    let on = Arc::new(authority(Some(ROOT), &issued));
    let lease_of = |text: &str| {
        let principal = request(&on, Some(&format!("Bearer {text}"))).unwrap();
        Access::new(on.clone(), principal).lease()
    };
    let (good, root) = (lease_of("good"), lease_of(ROOT));
    let mut ended = std::pin::pin!(good.ended());
    for _ in 0..10 {
        let waited = tokio::time::timeout(Duration::from_millis(950), ended.as_mut()).await;
        assert!(waited.is_err(), "it is valid");
    }
    let waits = good.unless_ended(std::future::pending::<()>());
    let mut waits = std::pin::pin!(waits);
    assert!(waits.as_mut().now_or_never().is_none());

    issued.set(Ok(Vec::new()));
    let since = Instant::now();
    assert_eq!(ended.await, AccessError::Unauthenticated);
    assert!(since.elapsed() <= Duration::from_secs(1));
    assert_eq!(waits.await.unwrap_err(), AccessError::Unauthenticated);
    assert!(since.elapsed() <= Duration::from_secs(1));
    // Work that was done all the same is of no use any more.
    let done = good.while_valid(async {}).await;
    assert_eq!(done.unwrap_err(), AccessError::Unauthenticated);
    assert_eq!(good.unless_ended(async {}).await, Ok(()));
    // The root token is no issued one.
    assert!(root.ended().now_or_never().is_none());
    root.while_valid(async {}).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_contact_with_the_catalog_the_root_token_goes_on_and_no_other() {
    let issued = Issued::new(vec![stored("good", TokenScope::default())]);
    let is_cut_off = Arc::new(AtomicBool::new(false));
    let catalog = CatalogCheck::new(
        {
            let (is_cut_off, issued) = (is_cut_off.clone(), issued.clone());
            move || {
                let answer = match is_cut_off.load(Ordering::SeqCst) {
                    true => Err("no majority".to_owned()),
                    false => Ok(()),
                };
                let issued = issued.clone();
                async move {
                    answer?;
                    // What the node had not applied: a revocation.
                    issued.set(Ok(vec![stored("other", TokenScope::default())]));
                    Ok(())
                }
            }
        },
        esker_node::HostProblems::default(),
    );
    let authority = Arc::new(authority(Some(ROOT), &issued).in_cluster(catalog));
    let ask = async |text: &str| {
        let bearer = format!("Bearer {text}");
        let find = || request(&authority, Some(&bearer));
        authority.find_current(find).await
    };
    // The copy has the token, and is not current.
    assert_eq!(
        ask("good").await.unwrap_err(),
        AccessError::Unauthenticated,
        "it is looked up once more after the catalog was waited for"
    );
    let other = ask("other").await.unwrap();
    let lease = Access::new(authority.clone(), other).lease();
    let mut ended = std::pin::pin!(lease.ended());
    assert!(ended.as_mut().now_or_never().is_none());
    is_cut_off.store(true, Ordering::SeqCst);
    let refusal = ended.await;
    assert!(matches!(refusal, AccessError::Unavailable(_)), "{refusal}");
    let refusal = ask("other").await.unwrap_err();
    assert!(matches!(refusal, AccessError::Unavailable(_)), "{refusal}");
    let root = ask(ROOT).await.unwrap();
    Access::new(authority.clone(), root).root().unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_contact_with_the_catalog_a_token_reads_the_status_until_its_revocation_is_here() {
    let scope = TokenScope {
        admin_read: true,
        admin_write: true,
        ..TokenScope::default()
    };
    let issued = Issued::new(vec![stored("monitor", scope)]);
    let catalog = CatalogCheck::new(
        || async { Err("no majority".to_owned()) },
        esker_node::HostProblems::default(),
    );
    let authority = Arc::new(authority(Some(ROOT), &issued).in_cluster(catalog));
    let monitor = request(&authority, Some("Bearer monitor")).unwrap();
    let access = Access::new(authority.clone(), monitor);
    access.admin(Effect::Read).unwrap();
    let refusal = access.admin(Effect::Write).unwrap_err();
    assert!(matches!(refusal, AccessError::Unavailable(_)), "{refusal}");
    issued.set(Ok(Vec::new()));
    let refusal = access.admin(Effect::Read).unwrap_err();
    assert_eq!(refusal, AccessError::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_ends_no_session_before_the_catalog_could_be_asked() {
    const PAUSE: Duration = Duration::from_secs(60);
    let issued = Issued::new(vec![stored("good", TokenScope::default())]);
    let is_cut_off = Arc::new(AtomicBool::new(false));
    let asked = is_cut_off.clone();
    let read = move || {
        let asked = asked.clone();
        async move {
            // Longer than it takes until the session is looked at.
            tokio::time::sleep(Duration::from_millis(100)).await;
            match asked.load(Ordering::SeqCst) {
                true => Err("no majority".to_owned()),
                false => Ok(()),
            }
        }
    };
    let catalog = CatalogCheck::new(read, esker_node::HostProblems::default());
    let authority = Arc::new(authority(Some(ROOT), &issued).in_cluster(catalog));
    let find = || request(&authority, Some("Bearer good"));
    let good = authority.find_current(find).await.unwrap();
    let lease = Access::new(authority.clone(), good).lease();
    // It stands still before the session is looked at for the first time.
    tokio::time::advance(PAUSE).await;
    let first = tokio::time::timeout(PAUSE, lease.ended()).await;
    assert!(first.is_err(), "{first:?}");
    let mut ended = std::pin::pin!(lease.ended());
    // For a while, all goes on as usual.
    let usual = tokio::time::timeout(PAUSE, ended.as_mut()).await;
    assert!(usual.is_err(), "{usual:?}");

    tokio::time::advance(PAUSE).await;
    let late = tokio::time::timeout(PAUSE, ended.as_mut()).await;
    assert!(late.is_err(), "{late:?}");

    is_cut_off.store(true, Ordering::SeqCst);
    tokio::time::advance(PAUSE).await;
    let begun = tokio::time::Instant::now();
    let refusal = ended.await;
    assert!(matches!(refusal, AccessError::Unavailable(_)), "{refusal}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}
