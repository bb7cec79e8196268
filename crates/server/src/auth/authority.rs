//! Finds the principal of a request, and whether it is still one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use esker_node::{Client, StoredToken, TokenHash, Tokens};
use http::HeaderMap;
use tokio::sync::watch;

use super::catalog_check::{CatalogCheck, InUse};
use super::error::{self, AccessError};
use super::failure_limiter::FailureLimiter;
use super::principal::{Claim, PeerAddress, Principal};
use super::token::{self, Bearer};

/// Finds issued tokens by their hashes; an error if it is not known which are valid.
type Find = Box<dyn Fn(&TokenHash) -> Result<Option<Arc<StoredToken>>, String> + Send + Sync>;

/// What decides who sends a request.
pub(crate) struct Authority {
    /// Hash of the root token, which may be replaced; `None` if no authentication is configured.
    root: Option<watch::Sender<TokenHash>>,
    find: Find,
    /// Checks that the tokens are those of the cluster; `None` if this node is in none.
    catalog: Option<Arc<CatalogCheck>>,
    failures: FailureLimiter,
}

impl Authority {
    /// The authority over a node's tokens. Without a root token there is no authentication.
    pub(crate) fn new(root: Option<TokenHash>, tokens: Tokens) -> Authority {
        let find = move |hash: &TokenHash| tokens.find(hash).map_err(|e| e.to_string());
        Authority::with(root, Box::new(find))
    }

    fn with(root: Option<TokenHash>, find: Find) -> Authority {
        error::register();
        Authority {
            root: root.map(watch::Sender::new),
            find,
            catalog: None,
            failures: FailureLimiter::default(),
        }
    }

    /// The same in a cluster: issued tokens are valid only while the catalog here is known to be current.
    pub(crate) fn in_cluster(self, catalog: Arc<CatalogCheck>) -> Authority {
        Authority {
            catalog: Some(catalog),
            ..self
        }
    }

    /// Whether requests need a token.
    pub(crate) fn is_on(&self) -> bool {
        self.root.is_some()
    }

    /// Replaces the root token: what is under way with the one before ends. Without authentication, nothing
    /// happens.
    pub(crate) fn replace_root(&self, hash: TokenHash) {
        if let Some(root) = &self.root {
            root.send_replace(hash);
        }
    }

    /// Waits until this is not the hash of the root token.
    pub(super) async fn root_replaced(&self, hash: &TokenHash) {
        let Some(root) = &self.root else {
            return;
        };
        // The sender lives as long as `self`.
        let _ = root
            .subscribe()
            .wait_for(|root| !token::is_same(root, hash))
            .await;
    }

    /// Finds a principal, again if the catalog had to be waited for meanwhile: its token may have been revoked.
    ///
    /// # Errors
    ///
    /// Those of `find`; [`AccessError::Unavailable`] if it is not known whether an issued token was revoked.
    pub(crate) async fn find_current(
        &self,
        find: impl Fn() -> Result<Principal, AccessError>,
    ) -> Result<Principal, AccessError> {
        let found = find()?;
        let (Principal::Token(token), Some(catalog)) = (&found, &self.catalog) else {
            return Ok(found);
        };
        match catalog
            .wait(of_token(&token.hash))
            .await
            .map_err(AccessError::Unavailable)?
        {
            true => find(),
            false => Ok(found),
        }
    }

    /// Begins what a principal does: the catalog is checked until the result is dropped, if that is needed.
    pub(super) fn begin(&self, principal: &Principal) -> Option<Arc<InUse>> {
        match (principal, &self.catalog) {
            (Principal::Token(_), Some(catalog)) => Some(Arc::new(catalog.begin())),
            _ => None,
        }
    }

    /// Seconds for which an address has to wait because of its failures, if so.
    ///
    /// # Errors
    ///
    /// [`AccessError::Limited`].
    pub(crate) fn check_failures(&self, peer: Option<&PeerAddress>) -> Result<(), AccessError> {
        let Principal::Anonymous(address) = Principal::anonymous(peer) else {
            return Ok(());
        };
        match self.failures.check(address, Instant::now()) {
            Ok(()) => Ok(()),
            Err(wait) => Err(limited(wait)),
        }
    }

    /// Who sends a request, as far as this node knows.
    ///
    /// # Errors
    ///
    /// There is no valid token among the headers.
    pub(crate) fn identify(
        &self,
        headers: &HeaderMap,
        peer: Option<&PeerAddress>,
    ) -> Result<Principal, AccessError> {
        let anonymous = Principal::anonymous(peer);
        let (Some(root), Principal::Anonymous(address)) = (&self.root, &anonymous) else {
            return Ok(anonymous);
        };
        let text = match token::bearer(headers) {
            Bearer::Text(text) => text,
            Bearer::Missing => return Err(self.failed(error::MISSING, *address)),
            Bearer::Malformed => return Err(self.failed(error::MALFORMED, *address)),
        };
        let hash = token::hash(text);
        if token::is_same(&root.borrow(), &hash) {
            return Ok(Principal::Root(hash));
        }
        match self.find(&hash)? {
            Ok(token) => Ok(Principal::Token(token)),
            Err(reason) => Err(self.failed(reason, *address)),
        }
    }

    /// The sender that another node of the cluster has identified.
    ///
    /// # Errors
    ///
    /// The token is not valid here, or the other node identifies nobody although this one does: its configuration
    /// must not open this node to everybody.
    pub(crate) fn of_claim(
        &self,
        claim: &Claim,
        client: &PeerAddress,
    ) -> Result<Principal, AccessError> {
        let root = self.root.as_ref().map(|root| *root.borrow());
        match (claim, root) {
            (_, None) => Ok(Principal::anonymous(Some(client))),
            // Each node follows its own file of the root token.
            (Claim::Root, Some(hash)) => Ok(Principal::Root(hash)),
            (Claim::Token(hash), Some(_)) => match self.find(&TokenHash(*hash))? {
                Ok(token) => Ok(Principal::Token(token)),
                Err(_) => Err(AccessError::Unauthenticated),
            },
            (Claim::Anonymous, Some(_)) => Err(AccessError::Forbidden(
                "anything through a node without authentication: this one has a root token, configure \
                 `root-token-file` there as well"
                    .to_owned(),
            )),
        }
    }

    /// Whether the token among the headers is one that the catalog does not have, as far as this node has
    /// applied it.
    pub(crate) fn is_unknown(&self, headers: &HeaderMap) -> bool {
        let Some(root) = &self.root else {
            return false;
        };
        let Bearer::Text(text) = token::bearer(headers) else {
            return false;
        };
        let hash = token::hash(text);
        !token::is_same(&root.borrow(), &hash) && matches!((self.find)(&hash), Ok(None))
    }

    /// Whether a principal may still do what it began.
    ///
    /// # Errors
    ///
    /// Its token was replaced, revoked or suspended or has expired, or that is not known.
    pub(crate) fn check(&self, principal: &Principal) -> Result<(), AccessError> {
        if let (Principal::Token(_), Some(catalog)) = (principal, &self.catalog) {
            catalog.check().map_err(AccessError::Unavailable)?;
        }
        self.check_here(principal)
    }

    /// The same after this process has stood still: the check of the catalog that is due runs first.
    pub(super) async fn check_late(&self, principal: &Principal) -> Result<(), AccessError> {
        if let (Principal::Token(_), Some(catalog)) = (principal, &self.catalog) {
            catalog
                .wait_under_way()
                .await
                .map_err(AccessError::Unavailable)?;
        }
        self.check(principal)
    }

    /// Whether a principal is valid as far as this node has applied the catalog: revocations may be missing.
    ///
    /// # Errors
    ///
    /// Its token was replaced, revoked or suspended or has expired, or the catalog here cannot be read.
    pub(super) fn check_here(&self, principal: &Principal) -> Result<(), AccessError> {
        let is_valid = match principal {
            Principal::Token(token) => self.find(&token.hash)?.is_ok(),
            Principal::Root(hash) => {
                let root = self.root.as_ref();
                root.is_some_and(|root| token::is_same(&root.borrow(), hash))
            }
            Principal::Anonymous(_) | Principal::Unauthenticated(_) => true,
        };
        match is_valid {
            true => Ok(()),
            false => Err(AccessError::Unauthenticated),
        }
    }

    /// The valid token of a hash, or the reason why there is none.
    fn find(
        &self,
        hash: &TokenHash,
    ) -> Result<Result<Arc<StoredToken>, &'static str>, AccessError> {
        let found = (self.find)(hash).map_err(AccessError::Unavailable)?;
        let Some(found) = found.filter(|it| token::is_same(&it.hash, hash)) else {
            return Ok(Err(error::UNKNOWN));
        };
        if found.is_expired(now_ms()) {
            return Ok(Err(error::EXPIRED));
        }
        match found.suspended {
            true => Err(AccessError::Suspended),
            false => Ok(Ok(found)),
        }
    }

    fn failed(&self, reason: &'static str, address: IpAddr) -> AccessError {
        error::count(reason);
        match self.failures.fail(address, Instant::now()) {
            Ok(()) => AccessError::Unauthenticated,
            Err(wait) => limited(wait),
        }
    }
}

/// Whose request it is that waits for the catalog: nobody can choose the hash of a token.
fn of_token(hash: &TokenHash) -> Client {
    let first = hash.0.first_chunk().copied();
    Client {
        principal: first.map_or(0, u64::from_le_bytes),
        connection: 0,
    }
}

fn limited(wait: Duration) -> AccessError {
    error::count(error::LIMITED);
    AccessError::Limited {
        retry_after: wait.as_secs().max(1),
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use esker_node::{Expiry, TokenScope};
    use futures::FutureExt as _;
    use http::header;

    use super::*;
    use crate::auth::Access;

    /// A token as it is stored.
    pub(crate) fn stored(text: &str, scope: TokenScope) -> StoredToken {
        StoredToken {
            id: "a-token".into(),
            hash: token::hash(text),
            expires_at: None,
            auto_prefix_streams: false,
            scope,
            issued_at_ms: 0,
            suspended: false,
        }
    }

    /// An authority with a root token and some others, which can change.
    #[derive(Clone)]
    pub(crate) struct Issued(Arc<Mutex<Result<Vec<StoredToken>, String>>>);

    impl Default for Issued {
        fn default() -> Issued {
            Issued::new(Vec::new())
        }
    }

    impl Issued {
        pub(crate) fn new(tokens: Vec<StoredToken>) -> Issued {
            Issued(Arc::new(Mutex::new(Ok(tokens))))
        }

        pub(crate) fn set(&self, tokens: Result<Vec<StoredToken>, String>) {
            *self.0.lock().unwrap() = tokens;
        }
    }

    pub(crate) fn authority(root: Option<&str>, issued: &Issued) -> Authority {
        let issued = issued.clone();
        let find = move |hash: &TokenHash| {
            let issued = issued.0.lock().unwrap().clone()?;
            Ok(issued.into_iter().find(|it| it.hash == *hash).map(Arc::new))
        };
        Authority::with(root.map(token::hash), Box::new(find))
    }

    /// The same, in which every issued token is revoked once tokens have been looked up so often.
    pub(crate) fn authority_for_looks(issued: &Issued, looks: usize) -> Authority {
        let (issued, left) = (issued.clone(), AtomicUsize::new(looks));
        let find = move |hash: &TokenHash| {
            let less = |left: usize| left.checked_sub(1);
            if left.fetch_update(Relaxed, Relaxed, less).is_err() {
                return Ok(None);
            }
            let issued = issued.0.lock().unwrap().clone()?;
            Ok(issued.into_iter().find(|it| it.hash == *hash).map(Arc::new))
        };
        Authority::with(Some(token::hash(ROOT)), Box::new(find))
    }

    pub(crate) fn request(
        authority: &Authority,
        authorization: Option<&str>,
    ) -> Result<Principal, AccessError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let peer = PeerAddress("10.1.1.1:1".parse().unwrap());
        authority.identify(&headers, Some(&peer))
    }

    pub(crate) const ROOT: &str = "the-root-token-of-this-test-alone";

    #[test]
    fn without_authentication_everybody_is_anonymous_whatever_they_send() {
        let authority = authority(None, &Issued::default());
        for value in [None, Some("Bearer x"), Some("nonsense")] {
            assert!(matches!(
                request(&authority, value),
                Ok(Principal::Anonymous(_))
            ));
        }
    }

    #[test]
    fn valid_tokens_are_found_and_all_others_get_the_same_answer() {
        let issued = Issued::new(vec![stored("good", TokenScope::default())]);
        let authority = authority(Some(ROOT), &issued);
        let root = format!("Bearer {ROOT}");
        assert!(matches!(
            request(&authority, Some(&root)),
            Ok(Principal::Root(_))
        ));
        let good = request(&authority, Some("Bearer good")).unwrap();
        assert!(matches!(&good, Principal::Token(it) if it.id == "a-token"));
        authority.check(&good).unwrap();

        let mut expired = stored("expired", TokenScope::default());
        expired.expires_at = Some(Expiry::new(now_ms() - 1, 0));
        issued.set(Ok(vec![expired]));
        for value in [
            None,
            Some("Bearer unknown"),
            Some("Bearer expired"),
            // It was revoked.
            Some("Bearer good"),
            Some("Basic good"),
            Some("Bearer "),
            Some(&root[..root.len() - 1]),
        ] {
            let refused = request(&authority, value).unwrap_err();
            assert_eq!(refused, AccessError::Unauthenticated, "{value:?}");
        }
        assert_eq!(authority.check(&good), Err(AccessError::Unauthenticated));
    }

    #[tokio::test]
    async fn a_root_token_that_was_replaced_is_refused_and_ends_what_is_under_way_with_it() {
        const NEW: &str = "the-next-root-token-of-this-test-alone";
        let issued = Issued::new(vec![stored("good", TokenScope::default())]);
        let authority = Arc::new(authority(Some(ROOT), &issued));
        let bearer = |text: &str| format!("Bearer {text}");
        let root = request(&authority, Some(&bearer(ROOT))).unwrap();
        let good = request(&authority, Some("Bearer good")).unwrap();
        let access = Access::new(authority.clone(), root);
        let lease = access.lease();
        let mut ended = std::pin::pin!(lease.ended());
        assert!(ended.as_mut().now_or_never().is_none());
        access.root().unwrap();

        authority.replace_root(token::hash(NEW));
        assert_eq!(ended.now_or_never(), Some(AccessError::Unauthenticated));
        assert_eq!(access.root().unwrap_err(), AccessError::Unauthenticated);
        assert_eq!(lease.check(), Err(AccessError::Unauthenticated));
        let refused = request(&authority, Some(&bearer(ROOT))).unwrap_err();
        assert_eq!(refused, AccessError::Unauthenticated);
        let root = request(&authority, Some(&bearer(NEW))).unwrap();
        assert!(matches!(root, Principal::Root(_)));
        authority.check(&good).unwrap();
    }

    #[test]
    fn what_another_node_has_identified_is_valid_as_far_as_it_is_here() {
        let issued = Issued::new(vec![stored("good", TokenScope::default())]);
        let on = authority(Some(ROOT), &issued);
        let client = PeerAddress("10.1.1.1:7".parse().unwrap());
        let root = on.of_claim(&Claim::Root, &client).unwrap();
        on.check(&root).unwrap();
        let good = Claim::Token(token::hash("good").0);
        let token = on.of_claim(&good, &client).unwrap();
        assert!(matches!(&token, Principal::Token(it) if it.id == "a-token"));
        let unknown = Claim::Token(token::hash("unknown").0);
        let refused = on.of_claim(&unknown, &client).unwrap_err();
        assert_eq!(refused, AccessError::Unauthenticated);
        issued.set(Ok(Vec::new()));
        let refused = on.of_claim(&good, &client).unwrap_err();
        assert_eq!(refused, AccessError::Unauthenticated, "it was revoked");
        // A node without authentication opens no other.
        let refused = on.of_claim(&Claim::Anonymous, &client).unwrap_err();
        assert!(matches!(refused, AccessError::Forbidden(_)), "{refused}");

        let off = authority(None, &issued);
        for claim in [Claim::Root, good, Claim::Anonymous] {
            let principal = off.of_claim(&claim, &client).unwrap();
            assert!(matches!(principal, Principal::Anonymous(it) if it == client.0.ip()));
        }
    }

    #[test]
    fn only_tokens_that_the_catalog_does_not_have_are_unknown() {
        let issued = Issued::new(vec![stored("good", TokenScope::default())]);
        let on = authority(Some(ROOT), &issued);
        let headers = |text: &str| {
            let value = format!("Bearer {text}").parse().unwrap();
            HeaderMap::from_iter([(header::AUTHORIZATION, value)])
        };
        assert!(on.is_unknown(&headers("newer")));
        for known in [ROOT, "good"] {
            assert!(!on.is_unknown(&headers(known)), "{known}");
        }
        assert!(!on.is_unknown(&HeaderMap::new()));
        assert!(!authority(None, &issued).is_unknown(&headers("newer")));
    }

    #[test]
    fn suspended_tokens_and_a_catalog_that_is_not_known_are_no_failures_of_the_client() {
        let mut suspended = stored("good", TokenScope::default());
        suspended.suspended = true;
        let issued = Issued::new(vec![suspended]);
        let authority = authority(Some(ROOT), &issued);
        for _ in 0..100 {
            let refused = request(&authority, Some("Bearer good")).unwrap_err();
            assert_eq!(refused, AccessError::Suspended);
        }
        issued.set(Err("halted".into()));
        for _ in 0..100 {
            let refused = request(&authority, Some("Bearer good")).unwrap_err();
            assert_eq!(refused, AccessError::Unavailable("halted".into()));
        }
        // The root token does not depend on the catalog.
        let root = format!("Bearer {ROOT}");
        request(&authority, Some(&root)).unwrap();
    }

    #[test]
    fn failures_are_limited_and_valid_tokens_of_the_same_address_are_not() {
        let issued = Issued::new(vec![stored("good", TokenScope::default())]);
        let authority = authority(Some(ROOT), &issued);
        let refused = (0..100).map(|number| {
            let guess = format!("Bearer guess-{number}");
            request(&authority, Some(&guess)).unwrap_err()
        });
        let refused: Vec<_> = refused.collect();
        assert_eq!(refused[0], AccessError::Unauthenticated);
        assert!(matches!(
            refused[99],
            AccessError::Limited { retry_after: 1.. }
        ));
        let peer = PeerAddress("10.1.1.1:2".parse().unwrap());
        let limited = authority.check_failures(Some(&peer)).unwrap_err();
        assert!(matches!(limited, AccessError::Limited { .. }), "{limited}");
        let other = PeerAddress("10.1.1.2:2".parse().unwrap());
        authority.check_failures(Some(&other)).unwrap();
        request(&authority, Some("Bearer good")).unwrap();
        request(&authority, Some(&format!("Bearer {ROOT}"))).unwrap();
    }
}
