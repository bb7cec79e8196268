//! Basins: created, listed, changed, deleted.

use std::time::Duration;

use futures::TryStreamExt as _;
use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    BasinConfig, BasinInfo, BasinReconfiguration, CreateBasinInput, CreateStreamInput,
    DeleteBasinInput, DeleteOnEmptyConfig, EnsureBasinInput, EnsureOutput, ListAllBasinsInput,
    ListBasinsInput, ReconfigureBasinInput, RetentionPolicy, StreamConfig, StreamReconfiguration,
    TimestampingConfig, TimestampingMode, TimestampingReconfiguration,
};
use serde_json::json;

use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Http, Server, eventually};

fn names(basins: &[BasinInfo]) -> Vec<&str> {
    basins.iter().map(|basin| basin.name.as_ref()).collect()
}

#[tokio::test]
async fn a_created_basin_is_listed_until_it_is_deleted() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let page = s2.list_basins(ListBasinsInput::new()).await.unwrap();
    assert!(page.values.is_empty() && !page.has_more);

    let info = s2
        .create_basin(CreateBasinInput::new(basin_name("first-basin")))
        .await
        .unwrap();
    assert_eq!(info.name.as_ref(), "first-basin");
    assert_eq!(info.deleted_at, None);

    let page = s2.list_basins(ListBasinsInput::new()).await.unwrap();
    assert_eq!(names(&page.values), ["first-basin"]);
    assert_eq!(page.values[0].created_at, info.created_at);

    s2.delete_basin(DeleteBasinInput::new(basin_name("first-basin")))
        .await
        .unwrap();
    eventually("the deleted basin leaves the list", async || {
        let page = s2.list_basins(ListBasinsInput::new()).await.unwrap();
        page.values.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn basins_are_listed_in_order_by_prefix_start_and_limit() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    for name in ["alpha-three", "alpha-one", "beta-one", "alpha-two"] {
        sdk::basin(&s2, name).await;
    }
    let list = async |input| s2.list_basins(input).await.unwrap();

    let all = list(ListBasinsInput::new()).await;
    let ordered = ["alpha-one", "alpha-three", "alpha-two", "beta-one"];
    assert_eq!(names(&all.values), ordered);
    assert!(!all.has_more);

    let two = list(ListBasinsInput::new().with_limit(2)).await;
    assert_eq!(names(&two.values), ["alpha-one", "alpha-three"]);
    assert!(two.has_more);

    let exactly = list(ListBasinsInput::new().with_limit(4)).await;
    assert_eq!(exactly.values.len(), 4);
    assert!(!exactly.has_more);

    let prefix = list(ListBasinsInput::new().with_prefix("alpha-t".parse().unwrap())).await;
    assert_eq!(names(&prefix.values), ["alpha-three", "alpha-two"]);

    let after = ListBasinsInput::new()
        .with_prefix("alpha-".parse().unwrap())
        .with_start_after("alpha-one".parse().unwrap())
        .with_limit(1);
    let after = list(after).await;
    assert_eq!(names(&after.values), ["alpha-three"]);
    assert!(after.has_more);

    // A start that is no basin's name, one before the prefix, and one after it.
    for (start, expected) in [
        ("alpha-onf", &ordered[1..3]),
        ("aaaa", &ordered[..3]),
        ("alpha-zzz", &[][..]),
        ("beta", &[]),
    ] {
        let input = ListBasinsInput::new()
            .with_prefix("alpha-".parse().unwrap())
            .with_start_after(start.parse().unwrap());
        assert_eq!(names(&list(input).await.values), expected, "{start}");
    }

    let streamed: Vec<BasinInfo> = s2
        .list_all_basins(ListAllBasinsInput::new())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(names(&streamed), ordered);

    // A limit of 0 or over 1000 means the default.
    for limit in [0, 1001] {
        let answer = server
            .http1()
            .get(&format!("/v1/basins?limit={limit}"))
            .send()
            .await
            .expect(200);
        assert_eq!(answer.json()["basins"].as_array().unwrap().len(), 4);
    }
}

#[tokio::test]
async fn a_basin_keeps_the_configuration_it_was_created_with() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let config = BasinConfig::new()
        .with_default_stream_config(
            StreamConfig::new()
                .with_storage_class("standard")
                .with_retention_policy(RetentionPolicy::Age(3600))
                .with_timestamping(
                    TimestampingConfig::new()
                        .with_mode(TimestampingMode::ClientRequire)
                        .with_uncapped(true),
                )
                .with_delete_on_empty(
                    DeleteOnEmptyConfig::new().with_min_age(Duration::from_secs(60)),
                ),
        )
        .with_create_stream_on_append(true)
        .with_create_stream_on_read(true);
    sdk::basin_with(&s2, "configured", config.clone()).await;
    let kept = s2.get_basin_config(basin_name("configured")).await.unwrap();
    assert_eq!(format!("{kept:?}"), format!("{config:?}"));

    // Settings that are not set are not in the answer.
    sdk::basin(&s2, "plain-basin").await;
    let answer = server
        .http1()
        .get("/v1/basins/plain-basin")
        .send()
        .await
        .expect(200);
    assert_eq!(answer.json()["create_stream_on_append"], false);
    assert_eq!(answer.json()["default_stream_config"], json!(null));
}

#[tokio::test]
async fn a_reconfiguration_changes_what_it_names_and_nothing_else() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let config = BasinConfig::new()
        .with_default_stream_config(
            StreamConfig::new()
                .with_retention_policy(RetentionPolicy::Age(600))
                .with_timestamping(TimestampingConfig::new().with_mode(TimestampingMode::Arrival)),
        )
        .with_create_stream_on_append(true);
    sdk::basin_with(&s2, "changing", config).await;
    let changes = BasinReconfiguration::new()
        .with_default_stream_config(
            StreamReconfiguration::new()
                .with_timestamping(TimestampingReconfiguration::new().with_uncapped(true)),
        )
        .with_create_stream_on_read(true);
    let answered = s2
        .reconfigure_basin(ReconfigureBasinInput::new(basin_name("changing"), changes))
        .await
        .unwrap();
    let kept = s2.get_basin_config(basin_name("changing")).await.unwrap();
    assert_eq!(format!("{kept:?}"), format!("{answered:?}"));
    assert!(kept.create_stream_on_append && kept.create_stream_on_read);
    let streams = kept.default_stream_config.unwrap();
    assert_eq!(streams.retention_policy, Some(RetentionPolicy::Age(600)));
    let timestamping = streams.timestamping.unwrap();
    assert_eq!(timestamping.mode, Some(TimestampingMode::Arrival));
    assert_eq!(timestamping.uncapped, Some(true));

    // `null` restores the default.
    let http = server.http1();
    let answer = http
        .patch("/v1/basins/changing")
        .json(&json!({"default_stream_config": {"retention_policy": null}}))
        .send()
        .await
        .expect(200);
    let streams = &answer.json()["default_stream_config"];
    assert_eq!(streams["retention_policy"], json!(null));
    assert_eq!(streams["timestamping"]["mode"], "arrival");
    let answer = http
        .patch("/v1/basins/changing")
        .json(&json!({"default_stream_config": null}))
        .send()
        .await
        .expect(200);
    assert_eq!(answer.json()["default_stream_config"], json!(null));
    // A request without settings changes nothing.
    let unchanged = http
        .patch("/v1/basins/changing")
        .json(&json!({}))
        .send()
        .await
        .expect(200);
    assert_eq!(unchanged.json(), answer.json());
}

#[tokio::test]
async fn ensuring_says_whether_it_created_updated_or_did_nothing() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let ensure = async |config| {
        s2.ensure_basin(EnsureBasinInput::new(basin_name("ensured-basin")).with_config(config))
            .await
            .unwrap()
    };
    let config = BasinConfig::new().with_create_stream_on_append(true);
    let EnsureOutput::Created(created) = ensure(config.clone()).await else {
        panic!("it was to be created");
    };
    assert!(matches!(
        ensure(config).await,
        EnsureOutput::ConfigUnchanged(_)
    ));
    let other = BasinConfig::new().with_create_stream_on_read(true);
    let EnsureOutput::ConfigUpdated(updated) = ensure(other).await else {
        panic!("it was to be updated");
    };
    assert_eq!(updated.created_at, created.created_at);
    // Settings that the ensured configuration does not name are reset to their defaults.
    let kept = s2
        .get_basin_config(basin_name("ensured-basin"))
        .await
        .unwrap();
    assert!(!kept.create_stream_on_append && kept.create_stream_on_read);

    for transport in TRANSPORTS {
        let http = server.http(transport);
        let name = format!("/v1/basins/raw-{transport:?}-basin").to_lowercase();
        let created = http.put(&name).send().await.expect(201);
        assert_eq!(created.header("s2-provision-result"), Some("created"));
        let nothing = http.put(&name).send().await.expect(200);
        assert_eq!(nothing.header("s2-provision-result"), Some("noop"));
        let updated = http
            .put(&name)
            .json(&json!({"config": {"create_stream_on_append": true}}))
            .send()
            .await
            .expect(200);
        assert_eq!(updated.header("s2-provision-result"), Some("updated"));
    }
}

#[tokio::test]
async fn a_repeated_create_is_the_same_create_only_with_its_token_and_its_configuration() {
    let server = Server::fresh().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let name = format!("token-{transport:?}").to_lowercase();
        let create = async |token: Option<&str>, config| {
            let request = http.post("/v1/basins");
            let request = match token {
                Some(token) => request.header("s2-request-token", token),
                None => request,
            };
            request
                .json(&json!({"basin": name, "config": config}))
                .send()
                .await
        };
        let config = json!({"create_stream_on_append": true});
        let first = create(Some("token-1"), config.clone()).await.expect(201);
        assert_eq!(first.header("s2-provision-result"), Some("created"));
        let again = create(Some("token-1"), config.clone()).await;
        assert!(again.status.is_success(), "{}", again.text());
        assert_eq!(again.header("s2-provision-result"), Some("noop"));
        assert_eq!(again.json(), first.json());

        let exists = "resource_already_exists";
        let other = json!({"create_stream_on_append": false});
        create(Some("token-1"), other).await.refused(409, exists);
        create(Some("token-2"), config.clone())
            .await
            .refused(409, exists);
        create(None, config.clone()).await.refused(409, exists);

        // After a change of the settings, it is still the same create.
        http.patch(&format!("/v1/basins/{name}"))
            .json(&json!({"create_stream_on_append": false}))
            .send()
            .await
            .expect(200);
        let again = create(Some("token-1"), config).await;
        assert!(again.status.is_success(), "{}", again.text());
    }
}

async fn gone(http: &Http, name: &str) {
    eventually("the basin is gone", async || {
        let answer = http.get(&format!("/v1/basins/{name}")).send().await;
        (answer.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_basin_is_of_no_use_until_its_name_is_free_and_comes_back_empty() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let basin = sdk::basin(&s2, "come-back").await;
    let stream = sdk::stream(&basin, "kept").await;
    sdk::append(&stream, ["of the first life"]).await;
    let http = server.http1();

    http.delete("/v1/basins/come-back").send().await.expect(202);
    // A request before the deletion is done is answered that it is pending, never with success.
    let append = http
        .post("/v1/streams/kept/records")
        .basin("come-back")
        .json(&json!({"records": [{"body": "late"}]}))
        .send()
        .await;
    let code = append.code();
    assert!(
        matches!(
            (append.status.as_u16(), code.as_str()),
            (409, "basin_deletion_pending") | (404, "basin_not_found")
        ),
        "{append:?}"
    );
    gone(&http, "come-back").await;

    let again = sdk::basin(&s2, "come-back").await;
    let error = again.get_stream_config(stream_name("kept")).await;
    let error = error.unwrap_err();
    assert_eq!(
        error.server_error().unwrap().known_code(),
        Some(ErrorCode::StreamNotFound)
    );
    let stream = sdk::stream(&again, "kept").await;
    let ack = sdk::append(&stream, ["of the second life"]).await;
    assert_eq!(ack.start.seq_num, 0);
    assert_eq!(
        sdk::bodies(&sdk::read_all(&stream).await),
        ["of the second life"]
    );
}

#[tokio::test]
async fn a_basin_under_deletion_answers_that_it_is_pending() {
    let server = Server::fresh().await;
    let http = server.http2();
    // Deletions are finished one after the other, in two steps each. A request made while other deletions are
    // still ahead comes between these; if it does not, the test tries again.
    for i in 0..20 {
        let names: Vec<String> = (0..60).map(|n| format!("before-{i}-{n}")).collect();
        for name in &names {
            let made = http.put(&format!("/v1/basins/{name}")).send().await;
            made.expect(201);
        }
        let name = format!("pending-{i}");
        let path = format!("/v1/basins/{name}");
        http.put(&path).send().await.expect(201);
        http.put("/v1/streams/orders")
            .basin(&name)
            .send()
            .await
            .expect(201);
        let before = names.iter().map(async |name| {
            let deleted = http.delete(&format!("/v1/basins/{name}")).send().await;
            deleted.expect(202)
        });
        futures::future::join_all(before).await;
        let delete = async { http.delete(&path).send().await.expect(202) };
        let patch = async {
            tokio::task::yield_now().await;
            http.patch(&path)
                .json(&json!({"create_stream_on_append": true}))
                .send()
                .await
        };
        tokio::join!(delete, patch);
        let (basin, stream, append, again) = tokio::join!(
            http.patch(&path).json(&json!({})).send(),
            http.put("/v1/streams/other").basin(&name).send(),
            http.post("/v1/streams/orders/records")
                .basin(&name)
                .json(&json!({"records": [{"body": "late"}]}))
                .send(),
            http.delete(&path).send(),
        );
        let mut pending = 0;
        for answer in [basin, stream, append] {
            match answer.status.as_u16() {
                409 => {
                    assert_eq!(answer.code(), "basin_deletion_pending");
                    pending += 1;
                }
                404 => assert_eq!(answer.code(), "basin_not_found"),
                _ => panic!("{answer:?}"),
            }
        }
        match again.status.as_u16() {
            202 => {}
            404 => assert_eq!(again.code(), "basin_not_found"),
            _ => panic!("{again:?}"),
        }
        gone(&http, &name).await;
        if pending == 3 {
            return;
        }
    }
    panic!("none of twenty deletions was ever seen pending");
}

#[tokio::test]
async fn deleting_what_is_not_there_is_not_found() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let missing = basin_name("never-made");
    let error = s2
        .delete_basin(DeleteBasinInput::new(missing.clone()))
        .await
        .unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::BasinNotFound));
    s2.delete_basin(DeleteBasinInput::new(missing.clone()).with_ignore_not_found(true))
        .await
        .unwrap();
    let error = s2.get_basin_config(missing.clone()).await.unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::BasinNotFound));
    let error = s2
        .reconfigure_basin(ReconfigureBasinInput::new(
            missing.clone(),
            BasinReconfiguration::new(),
        ))
        .await
        .unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::BasinNotFound));
    let error = s2
        .basin(missing)
        .create_stream(CreateStreamInput::new(stream_name("orders")))
        .await
        .unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::BasinNotFound));
}

#[tokio::test]
async fn the_reserved_basin_cannot_be_made_or_deleted() {
    let server = Server::fresh().await;
    let http = server.http1();
    let exists = "resource_already_exists";
    http.post("/v1/basins")
        .json(&json!({"basin": "esker-state"}))
        .send()
        .await
        .refused(409, exists);
    http.put("/v1/basins/esker-state")
        .send()
        .await
        .refused(409, exists);
    http.delete("/v1/basins/esker-state")
        .send()
        .await
        .refused(403, "permission_denied");
}

#[tokio::test]
async fn of_many_creates_of_one_name_exactly_one_succeeds() {
    let server = Server::fresh().await;
    let http = server.http2();
    let http = &http;
    let creates = (0..32).map(|i| async move {
        http.post("/v1/basins")
            .header("s2-request-token", &format!("token-{i}"))
            .json(&json!({"basin": "contended"}))
            .send()
            .await
    });
    let answers = futures::future::join_all(creates).await;
    let created = answers.iter().filter(|a| a.status == 201).count();
    let refused = answers.iter().filter(|a| a.status == 409).count();
    assert_eq!((created, refused), (1, 31));
}
