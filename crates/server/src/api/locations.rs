//! `/v1/locations`: this server is the only one.

use axum::extract::{FromRequest, State};
use s2_api::data::Json;
use s2_api::v1;
use s2_common::ValidationError;
use s2_common::access::Operation;
use s2_common::location::{LocationInfo, LocationName};

use super::{App, ServiceError};
use crate::auth::Access;

/// The storage classes of the S2 API. A stream keeps the one that it is created with, and it has no effect
/// here.
const STORAGE_CLASSES: [&str; 2] = ["standard", "express"];

pub(crate) async fn list(
    State(app): State<App>,
    access: Access,
) -> Result<Json<Vec<v1::location::LocationInfo>>, ServiceError> {
    access.account(Operation::ListLocations)?;
    Ok(Json(vec![info(&app)]))
}

pub(crate) async fn default(
    State(app): State<App>,
    access: Access,
) -> Result<Json<v1::location::GetDefaultLocationResponse>, ServiceError> {
    access.account(Operation::GetDefaultLocation)?;
    Ok(Json(info(&app)))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct SetDefaultArgs {
    #[from_request(via(Json))]
    location: v1::location::SetDefaultLocationRequest,
}

pub async fn set_default(
    State(app): State<App>,
    access: Access,
    SetDefaultArgs { location }: SetDefaultArgs,
) -> Result<Json<v1::location::LocationInfo>, ServiceError> {
    access.account(Operation::SetDefaultLocation)?;
    check(&app, Some(&location))?;
    Ok(Json(info(&app)))
}

/// Refuses any location but that of this server.
pub fn check(app: &App, location: Option<&LocationName>) -> Result<(), ValidationError> {
    match location {
        Some(other) if *other != app.location => Err(format!(
            "location `{other}` is not available: this server is `{}`, and has no other",
            app.location
        )
        .into()),
        _ => Ok(()),
    }
}

fn info(app: &App) -> v1::location::LocationInfo {
    LocationInfo {
        name: app.location.clone(),
        is_private: true,
        storage_classes: STORAGE_CLASSES.map(Into::into).to_vec(),
        default_storage_class: STORAGE_CLASSES[0].into(),
    }
    .into()
}
