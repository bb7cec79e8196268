//! `/access-tokens`: what the S2 API has no operations for.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Failures;
use super::{Admin, AdminError};
use crate::auth::Access;

/// What a confirmation has changed.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Confirmed {
    /// How many tokens are valid again.
    pub confirmed: u64,
}

/// Makes suspended access tokens valid again.
///
/// A restore of the catalog as of an earlier time suspends all tokens, because it may lack revocations. Revoke
/// those that must not be valid, then confirm the others. Takes the root token. Asked twice, it changes nothing.
#[utoipa::path(
    post,
    path = "/esker/v1/access-tokens/confirm",
    operation_id = "confirm_access_tokens",
    tag = "access tokens",
    responses((status = 200, description = "They are valid", body = Confirmed), Failures)
)]
pub(super) async fn confirm(
    State(admin): State<Admin>,
    access: Access,
) -> Result<Json<Confirmed>, AdminError> {
    let granted = access.root()?;
    let confirmed = admin.node.open(&granted).tokens().confirm().await?;
    tracing::info!(confirmed, "Suspended access tokens were confirmed");
    Ok(Json(Confirmed { confirmed }))
}
