//! Locations of the S2 API: a server is one, and the only one.

use s2_sdk::S2;
use s2_sdk::error::{ErrorCode, RequestError};
use s2_sdk::types::{CreateBasinInput, EnsureBasinInput, ListBasinsInput, LocationName};
use serde_json::json;

use crate::support::http::TRANSPORTS;
use crate::support::sdk::basin_name;
use crate::support::{Server, Setup};

const HERE: &str = "north:rack-7";

async fn server() -> Server {
    Setup::default()
        .set(&format!("location={HERE}"))
        .start_fresh()
        .await
}

fn name(location: &str) -> LocationName {
    location.parse().unwrap()
}

fn is_invalid(error: &RequestError) -> bool {
    let server = error.server_error();
    server.is_some_and(|e| e.known_code() == Some(ErrorCode::Invalid) && e.message.contains(HERE))
}

async fn is_the_default(s2: &S2) {
    let default = s2.get_default_location().await.unwrap();
    assert_eq!(default.name, name(HERE));
    let listed = s2.list_locations().await.unwrap();
    let names: Vec<_> = listed.iter().map(|location| &location.name).collect();
    assert_eq!(names, [&name(HERE)]);
}

#[tokio::test]
async fn the_configured_location_is_the_default_and_the_only_one() {
    let server = server().await;
    let s2 = server.sdk();
    is_the_default(&s2).await;
    let set = s2.set_default_location(name(HERE)).await.unwrap();
    assert_eq!(set.name, name(HERE));
    let refused = s2.set_default_location(name("aws:us-east-1")).await;
    assert!(is_invalid(&refused.unwrap_err()));
    is_the_default(&s2).await;
}

#[tokio::test]
async fn a_basin_is_created_in_the_configured_location_and_in_no_other() {
    let server = server().await;
    let s2 = server.sdk();
    let create = |name: &str| CreateBasinInput::new(basin_name(name));
    let here = create("basin-here").with_location(HERE).unwrap();
    let made = s2.create_basin(here).await.unwrap();
    assert_eq!(made.location, Some(name(HERE)));
    let unnamed = s2.create_basin(create("basin-unnamed")).await.unwrap();
    assert_eq!(unnamed.location, Some(name(HERE)));
    let elsewhere = create("basin-elsewhere").with_location("aws:us-east-1");
    let refused = s2.create_basin(elsewhere.unwrap()).await.unwrap_err();
    assert!(is_invalid(&refused), "{refused}");
    let ensure = |basin: &str, location: &str| {
        let input = EnsureBasinInput::new(basin_name(basin)).with_location(location);
        s2.ensure_basin(input.unwrap())
    };
    for basin in ["basin-here", "basin-ensured"] {
        let refused = ensure(basin, "aws:us-east-1").await.unwrap_err();
        assert!(is_invalid(&refused), "{refused}");
        ensure(basin, HERE).await.unwrap();
    }
    let listed = s2.list_basins(ListBasinsInput::new()).await.unwrap().values;
    let names: Vec<_> = listed.iter().map(|basin| basin.name.to_string()).collect();
    assert_eq!(names, ["basin-ensured", "basin-here", "basin-unnamed"]);
    assert!(listed.iter().all(|b| b.location == Some(name(HERE))));
}

#[tokio::test]
async fn a_malformed_location_is_refused_before_anything_is_created() {
    let server = server().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for bad in [
            json!(""),
            json!("a/b"),
            json!("a\u{0}b"),
            json!("é"),
            json!(7),
            json!(null),
        ] {
            let put = http.put("/v1/locations/default").json(&bad).send().await;
            put.refused(400, "bad_json");
        }
        let create = json!({"basin": "test-basin", "location": "a b"});
        let refused = http.post("/v1/basins").json(&create).send().await;
        refused.refused(400, "bad_json");
        let found = http.get("/v1/basins/test-basin").send().await;
        found.refused(404, "basin_not_found");
    }
}
