//! Web origins whose pages may send requests (`allowed-origins`).

use http::HeaderValue;

use crate::config::Config;

/// The origin of pages that have none: files, sandboxed frames, redirects. It is everybody's.
const NULL: &str = "null";

/// The origins that a configuration allows.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    /// Every origin but `null`.
    Any,
    /// These, in lower case.
    Listed(Vec<String>),
}

impl Origins {
    /// Those of a configuration.
    pub(crate) fn of(config: &Config) -> Origins {
        let text = config.allowed_origins.as_deref().unwrap_or_default().trim();
        if text == "*" {
            return Origins::Any;
        }
        let parts = text.split(',').map(|part| part.trim().to_lowercase());
        Origins::Listed(parts.filter(|part| !part.is_empty()).collect())
    }

    /// Whether an `Origin` header may come.
    pub(crate) fn allow(&self, origin: &HeaderValue) -> bool {
        let origin = String::from_utf8_lossy(origin.as_bytes()).to_lowercase();
        match self {
            Origins::Any => origin != NULL,
            Origins::Listed(listed) => origin != NULL && listed.contains(&origin),
        }
    }

    /// Whether no origin is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Origins::Listed(listed) if listed.is_empty())
    }
}
