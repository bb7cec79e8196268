//! A router that knows its routes: a test compares them with the rules of access.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};

/// A method of a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    fn filter(self) -> MethodFilter {
        match self {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
            Method::Put => MethodFilter::PUT,
            Method::Patch => MethodFilter::PATCH,
            Method::Delete => MethodFilter::DELETE,
        }
    }

    /// Its name in a request.
    #[cfg(test)]
    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// Routes, and a list of them.
pub(super) struct Routes<S> {
    /// The router.
    pub(super) router: Router<S>,
    /// Method and path of each route.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) listed: Vec<(Method, &'static str)>,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    pub(super) fn new() -> Routes<S> {
        Routes {
            router: Router::new(),
            listed: Vec::new(),
        }
    }

    /// Adds a route.
    pub(super) fn at<H, T>(mut self, method: Method, path: &'static str, handler: H) -> Routes<S>
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.router = self.router.route(path, on(method.filter(), handler));
        self.listed.push((method, path));
        self
    }
}
