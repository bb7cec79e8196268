//! `/basins/{basin}`: recreates a basin of which only the streams are left.

use axum::Json;
use axum::extract::State;
use s2_common::basin::BasinName;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::error::Failures;
use super::request::{Body, InPath};
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::auth::operation::Effect;
use crate::timestamp::timestamp;

/// Which streams a basin is made for.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// The id of their basin, as the problem `basin_unknown` names it.
    pub id: u64,
}

/// A basin that was recreated.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Adopted {
    /// Its name.
    pub basin: String,
    /// Its id.
    pub id: u64,
    /// When that was.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Recreates a basin of which only the streams are left.
///
/// After a restore that took an older snapshot of the catalog than of a stream partition, the status has
/// the problem `basin_unknown`. The basin gets the id that it had, default settings, and the name that is
/// asked for; its streams are in it as they were. A second request changes nothing.
#[utoipa::path(
    post,
    path = "/esker/v1/basins/{basin}/adopt",
    operation_id = "adopt_basin",
    tag = "streams",
    params(("basin" = String, Path, description = "The basin's name")),
    request_body = Adopt,
    responses((status = 200, description = "It is there", body = Adopted), Failures)
)]
pub(super) async fn adopt(
    State(admin): State<Admin>,
    access: Access,
    InPath(basin): InPath<BasinName>,
    Body(Adopt { id }): Body<Adopt>,
) -> Result<Json<Adopted>, AdminError> {
    let granted = access.admin(Effect::Write)?;
    let node = admin.node.open(&granted);
    let adopted = node.adopt_basin(&basin, id).await?;
    let created_at = timestamp(adopted.created_ms).map_err(AdminError::invalid)?;
    Ok(Json(Adopted {
        basin: adopted.name,
        id,
        created_at,
    }))
}
