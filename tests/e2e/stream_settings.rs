//! Settings of streams: given, inherited from the basin, ensured and changed.

use std::time::Duration;

use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    BasinConfig, CreateStreamInput, DeleteOnEmptyConfig, DeleteOnEmptyReconfiguration,
    EnsureOutput, EnsureStreamInput, ReconfigureStreamInput, RetentionPolicy, StreamConfig,
    StreamReconfiguration, TimestampingConfig, TimestampingMode, TimestampingReconfiguration,
};
use serde_json::json;

use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, stream_name};
use crate::support::{Server, frames};

fn full_config() -> StreamConfig {
    StreamConfig::new()
        .with_storage_class("express")
        .with_retention_policy(RetentionPolicy::Infinite)
        .with_timestamping(
            TimestampingConfig::new()
                .with_mode(TimestampingMode::Arrival)
                .with_uncapped(true),
        )
        .with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(Duration::from_secs(77)))
}

#[tokio::test]
async fn a_stream_keeps_the_configuration_it_was_created_with() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream_with(&basin, "full", full_config()).await;
    let kept = basin.get_stream_config(stream_name("full")).await.unwrap();
    assert_eq!(format!("{kept:?}"), format!("{:?}", full_config()));

    // Settings that are not set are answered with their defaults.
    sdk::stream(&basin, "plain").await;
    let kept = basin.get_stream_config(stream_name("plain")).await.unwrap();
    assert_eq!(
        kept.retention_policy,
        Some(RetentionPolicy::Age(7 * 24 * 3600))
    );
    let timestamping = kept.timestamping.unwrap();
    assert_eq!(timestamping.mode, Some(TimestampingMode::ClientPrefer));
    assert_eq!(timestamping.uncapped, Some(false));

    let error = basin
        .create_stream(
            CreateStreamInput::new(stream_name("aged"))
                .with_config(StreamConfig::new().with_retention_policy(RetentionPolicy::Age(0))),
        )
        .await
        .unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::Invalid));
}

#[tokio::test]
async fn a_stream_has_a_storage_class_in_any_case_and_a_basin_only_one_that_was_set() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let defaults = BasinConfig::new().with_create_stream_on_append(true);
    let basin = sdk::basin_with(&s2, "test-basin", defaults).await;
    sdk::stream(&basin, "created").await;
    let http = server.http1();
    let ensured = http.put("/v1/streams/ensured").basin("test-basin").send();
    ensured.await.expect(201);
    sdk::append(&basin.stream(stream_name("appended")), ["x"]).await;
    for name in ["created", "ensured", "appended"] {
        let path = format!("/v1/streams/{name}");
        let kept = http.get(&path).basin("test-basin").send().await.expect(200);
        assert_eq!(kept.json()["storage_class"], "express", "{name}");
        for (class, expected) in [(json!("standard"), "standard"), (json!(null), "express")] {
            let change = json!({"storage_class": class});
            let changed = http.patch(&path).basin("test-basin").json(&change).send();
            let changed = changed.await.expect(200).json();
            assert_eq!(changed["storage_class"], expected, "{name}");
        }
    }
    let basin = http.get("/v1/basins/test-basin").send().await.expect(200);
    let class = &basin.json()["default_stream_config"]["storage_class"];
    assert!(class.is_null(), "{class}");
}

#[tokio::test]
async fn ensuring_the_settings_that_a_stream_reports_changes_nothing() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "plain").await;
    sdk::stream_with(&basin, "full", full_config()).await;
    for name in ["plain", "full"] {
        let reported = basin.get_stream_config(stream_name(name)).await.unwrap();
        let input = EnsureStreamInput::new(stream_name(name)).with_config(reported.clone());
        let ensured = basin.ensure_stream(input).await.unwrap();
        assert!(
            matches!(ensured, EnsureOutput::ConfigUnchanged(_)),
            "{name}: {ensured:?}"
        );
        let kept = basin.get_stream_config(stream_name(name)).await.unwrap();
        assert_eq!(format!("{kept:?}"), format!("{reported:?}"));
    }
}

#[tokio::test]
async fn basin_defaults_are_merged_in_when_a_stream_is_made_and_only_then() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let defaults = BasinConfig::new().with_default_stream_config(full_config());
    let basin = sdk::basin_with(&s2, "test-basin", defaults).await;
    sdk::stream(&basin, "inherits").await;
    let kept = basin
        .get_stream_config(stream_name("inherits"))
        .await
        .unwrap();
    assert_eq!(format!("{kept:?}"), format!("{:?}", full_config()));

    let own = StreamConfig::new()
        .with_retention_policy(RetentionPolicy::Age(5))
        .with_timestamping(TimestampingConfig::new().with_mode(TimestampingMode::ClientPrefer));
    sdk::stream_with(&basin, "overrides", own).await;
    let kept = basin
        .get_stream_config(stream_name("overrides"))
        .await
        .unwrap();
    assert_eq!(kept.retention_policy, Some(RetentionPolicy::Age(5)));
    assert_eq!(kept.storage_class.as_deref(), Some("express"));
    let timestamping = kept.timestamping.unwrap();
    assert_eq!(timestamping.mode, Some(TimestampingMode::ClientPrefer));
    let min_age = kept.delete_on_empty.unwrap().min_age_secs;
    assert_eq!(min_age, 77);

    // An explicit 0 is a setting, not a missing one.
    let http = server.http1();
    http.put("/v1/streams/zero")
        .basin("test-basin")
        .json(&json!({"delete_on_empty": {"min_age_secs": 0}}))
        .send()
        .await
        .expect(201);
    let config = http
        .get("/v1/streams/zero")
        .basin("test-basin")
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(config["delete_on_empty"]["min_age_secs"], 0);

    // Changed defaults do not apply to existing streams.
    http.patch("/v1/basins/test-basin")
        .json(&json!({"default_stream_config": {"storage_class": "standard"}}))
        .send()
        .await
        .expect(200);
    let kept = basin
        .get_stream_config(stream_name("inherits"))
        .await
        .unwrap();
    assert_eq!(kept.storage_class.as_deref(), Some("express"));
}

#[tokio::test]
async fn a_reconfiguration_changes_what_it_names_and_null_goes_back_to_the_basins_default() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let defaults = BasinConfig::new().with_default_stream_config(
        StreamConfig::new().with_retention_policy(RetentionPolicy::Age(1234)),
    );
    let basin = sdk::basin_with(&s2, "test-basin", defaults).await;
    sdk::stream_with(&basin, "changing", full_config()).await;
    let reconfigure = async |changes| {
        basin
            .reconfigure_stream(ReconfigureStreamInput::new(
                stream_name("changing"),
                changes,
            ))
            .await
    };
    // A request without settings changes nothing.
    let same = reconfigure(StreamReconfiguration::new()).await.unwrap();
    assert_eq!(format!("{same:?}"), format!("{:?}", full_config()));

    let changes = StreamReconfiguration::new()
        .with_storage_class("standard")
        .with_timestamping(
            TimestampingReconfiguration::new().with_mode(TimestampingMode::ClientRequire),
        )
        .with_delete_on_empty(
            DeleteOnEmptyReconfiguration::new().with_min_age(Duration::from_secs(5)),
        );
    let answered = reconfigure(changes).await.unwrap();
    let kept = basin
        .get_stream_config(stream_name("changing"))
        .await
        .unwrap();
    assert_eq!(format!("{kept:?}"), format!("{answered:?}"));
    assert_eq!(kept.storage_class.as_deref(), Some("standard"));
    assert_eq!(kept.retention_policy, Some(RetentionPolicy::Infinite));
    let timestamping = kept.timestamping.unwrap();
    assert_eq!(timestamping.mode, Some(TimestampingMode::ClientRequire));
    assert_eq!(timestamping.uncapped, Some(true));
    assert_eq!(kept.delete_on_empty.unwrap().min_age_secs, 5);

    let http = server.http1();
    let answer = http
        .patch("/v1/streams/changing")
        .basin("test-basin")
        .json(&json!({"retention_policy": null, "timestamping": {"uncapped": null}}))
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(answer["retention_policy"], json!({"age": 1234}));
    assert_eq!(answer["timestamping"]["mode"], "client-require");
    assert_eq!(answer["timestamping"]["uncapped"], false);

    let changes = StreamReconfiguration::new().with_retention_policy(RetentionPolicy::Age(0));
    let error = reconfigure(changes).await.unwrap_err();
    let code = error.server_error().unwrap().known_code();
    assert_eq!(code, Some(ErrorCode::Invalid));
}

#[tokio::test]
async fn ensuring_says_whether_it_created_updated_or_did_nothing() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let ensure = async |config| {
        basin
            .ensure_stream(EnsureStreamInput::new(stream_name("ensured")).with_config(config))
            .await
            .unwrap()
    };
    let config = StreamConfig::new().with_retention_policy(RetentionPolicy::Age(99));
    let EnsureOutput::Created(created) = ensure(config.clone()).await else {
        panic!("it was to be created");
    };
    sdk::append(&basin.stream(stream_name("ensured")), ["kept"]).await;
    assert!(matches!(
        ensure(config).await,
        EnsureOutput::ConfigUnchanged(_)
    ));
    let EnsureOutput::ConfigUpdated(updated) = ensure(full_config()).await else {
        panic!("it was to be updated");
    };
    assert_eq!(updated.created_at, created.created_at);
    let kept = basin
        .get_stream_config(stream_name("ensured"))
        .await
        .unwrap();
    assert_eq!(format!("{kept:?}"), format!("{:?}", full_config()));
    let records = sdk::read_all(&basin.stream(stream_name("ensured"))).await;
    assert_eq!(sdk::bodies(&records), ["kept"]);

    for transport in TRANSPORTS {
        let http = server.http(transport);
        let path = format!("/v1/streams/raw-{transport:?}");
        let put = || http.put(&path).basin("test-basin");
        let created = put().send().await.expect(201);
        assert_eq!(created.header("s2-provision-result"), Some("created"));
        let nothing = put().send().await.expect(200);
        assert_eq!(nothing.header("s2-provision-result"), Some("noop"));
        // An explicit default changes nothing.
        let nothing = put()
            .json(&json!({"retention_policy": {"age": 604_800}}))
            .send()
            .await
            .expect(200);
        assert_eq!(nothing.header("s2-provision-result"), Some("noop"));
        let updated = put()
            .json(&json!({"retention_policy": {"infinite": {}}}))
            .send()
            .await
            .expect(200);
        assert_eq!(updated.header("s2-provision-result"), Some("updated"));
    }
}

#[tokio::test]
async fn reconfigurations_at_the_same_time_lose_nothing_of_each_other() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    let http = server.http2();
    http.put("/v1/streams/orders")
        .basin("test-basin")
        .send()
        .await
        .expect(201);
    for round in 1..20u64 {
        let changes = [
            json!({"storage_class": format!("class-{round}")}),
            json!({"retention_policy": {"age": round}}),
            json!({"timestamping": {"uncapped": round % 2 == 0}}),
            json!({"timestamping": {"mode": "arrival"}}),
            json!({"delete_on_empty": {"min_age_secs": 1000 + round}}),
        ];
        let patches = changes.iter().map(|change| {
            http.patch("/v1/streams/orders")
                .basin("test-basin")
                .json(change)
                .send()
        });
        for answer in futures::future::join_all(patches).await {
            answer.expect(200);
        }
        let config = http
            .get("/v1/streams/orders")
            .basin("test-basin")
            .send()
            .await
            .expect(200)
            .json();
        assert_eq!(config["storage_class"], format!("class-{round}"));
        assert_eq!(config["retention_policy"], json!({"age": round}));
        assert_eq!(config["timestamping"]["uncapped"], round % 2 == 0);
        assert_eq!(config["timestamping"]["mode"], "arrival");
        assert_eq!(config["delete_on_empty"]["min_age_secs"], 1000 + round);
    }
}

#[tokio::test]
async fn a_changed_configuration_holds_from_the_next_append_on_also_in_open_sessions() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let mut session = frames::append_session(&http, "test-basin", "orders").await;
    session.send(frames::frame(&frames::input(["a"]))).await;
    session.next().await.message();
    let appends = async {
        for i in 0..50 {
            sdk::append(&stream, [format!("{i}")]).await;
        }
    };
    let require = async {
        let timestamping =
            TimestampingReconfiguration::new().with_mode(TimestampingMode::ClientRequire);
        let changes = StreamReconfiguration::new()
            .with_storage_class("express")
            .with_retention_policy(RetentionPolicy::Infinite);
        let input = ReconfigureStreamInput::new(stream_name("orders"), changes);
        basin.reconfigure_stream(input).await.unwrap();
        timestamping
    };
    // A change during appends affects none of them.
    let ((), timestamping) = tokio::join!(appends, require);
    let changes = StreamReconfiguration::new().with_timestamping(timestamping);
    basin
        .reconfigure_stream(ReconfigureStreamInput::new(stream_name("orders"), changes))
        .await
        .unwrap();
    session.send(frames::frame(&frames::input(["b"]))).await;
    let frames::Output::Error(422, body) = session.next().await else {
        panic!("the session took an append without a timestamp");
    };
    assert_eq!(body["code"], "invalid");
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 51);
}
