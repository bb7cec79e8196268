//! `/v1/locations`: this server is the only one.

use axum::extract::{FromRequest, State};
use s2_api::data::Json;
use s2_api::v1;
use s2_common::ValidationError;
use s2_common::location::{LocationInfo, LocationName};

use super::{App, ServiceError};

/// The storage classes of the S2 API. A stream keeps the one that it is created with, and it has no effect
/// here.
const STORAGE_CLASSES: [&str; 2] = ["standard", "express"];

pub async fn list(State(app): State<App>) -> Json<Vec<v1::location::LocationInfo>> {
    Json(vec![info(&app)])
}

pub async fn default(State(app): State<App>) -> Json<v1::location::GetDefaultLocationResponse> {
    Json(info(&app))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct SetDefaultArgs {
    #[from_request(via(Json))]
    location: v1::location::SetDefaultLocationRequest,
}

pub async fn set_default(
    State(app): State<App>,
    SetDefaultArgs { location }: SetDefaultArgs,
) -> Result<Json<v1::location::LocationInfo>, ServiceError> {
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
