//! A layer that makes clones of what is below it cheap.
//!
//! `axum` clones a service for each request, and so does each layer of middleware with all that is below it: with
//! thirteen layers some two hundred allocations a request, and hundreds of increments of counters that all
//! threads share. Below this layer, a clone is one increment, and each service is cloned once when it is called.

use std::sync::Arc;
use std::task::{Context, Poll};

use tower::util::Oneshot;
use tower::{Layer, Service, ServiceExt as _};

/// The layer. To be put right below each layer of middleware: `route_layer((middleware, ShareLayer))`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareLayer;

/// A service that clones share until they are called.
#[derive(Debug)]
pub(crate) struct SharedService<S>(Arc<S>);

impl<S> Layer<S> for ShareLayer {
    type Service = SharedService<S>;

    fn layer(&self, service: S) -> SharedService<S> {
        SharedService(Arc::new(service))
    }
}

impl<S> Clone for SharedService<S> {
    fn clone(&self) -> SharedService<S> {
        SharedService(self.0.clone())
    }
}

impl<S: Service<R> + Clone, R> Service<R> for SharedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, R>;

    /// The clone that is called waits until it is ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Oneshot<S, R> {
        S::clone(&self.0).oneshot(request)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::body::Body;
    use axum::extract::{Request, State};
    use axum::middleware::{Next, from_fn_with_state};
    use axum::response::Response;
    use axum::routing::get;

    use super::*;

    /// A state that counts its clones.
    #[derive(Default)]
    struct Counted(Arc<AtomicUsize>);

    impl Clone for Counted {
        fn clone(&self) -> Counted {
            self.0.fetch_add(1, Ordering::Relaxed);
            Counted(self.0.clone())
        }
    }

    async fn pass(State(_): State<Counted>, request: Request, next: Next) -> Response {
        next.run(request).await
    }

    async fn answer(State(_): State<Counted>) -> &'static str {
        "answer"
    }

    /// Clones of the state for one request through so many layers.
    async fn clones(layers: usize) -> usize {
        let counted = Counted::default();
        let state = counted.clone();
        let mut router = Router::new().route("/", get(answer));
        for _ in 0..layers {
            let middleware = from_fn_with_state(state.clone(), pass);
            router = router.route_layer((middleware, ShareLayer));
        }
        let router: Router = router.with_state(state);
        let get = || Request::new(Body::empty());
        let answered: Result<Response, Infallible> = router.clone().oneshot(get()).await;
        assert!(answered.unwrap().status().is_success());
        let before = counted.0.load(Ordering::Relaxed);
        router.oneshot(get()).await.unwrap();
        counted.0.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn each_layer_costs_the_same_however_many_there_are() {
        let (few, some, many) = (clones(4).await, clones(8).await, clones(16).await);
        assert_eq!(many - some, 2 * (some - few), "{few}, {some}, {many}");
        assert!(many <= 8 * 16, "{many}");
    }
}
