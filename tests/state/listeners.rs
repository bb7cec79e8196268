//! The addresses of the service, and the variables of Statehouse.

use esker_proto::state::v1::WatchRequest;
use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use esker_proto::statehouse::v1::{HealthRequest, VersionRequest};

use crate::client::{State, assert_refused, channel, key};
use crate::support::{Setup, soon};

async fn healthy(url: &str) {
    let mut client = StatehouseServiceClient::new(channel(url));
    let health = client.health(HealthRequest {}).await.unwrap();
    assert_eq!(health.into_inner().status, "ok");
    let version = client.version(VersionRequest {}).await.unwrap();
    let version = version.into_inner();
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    assert!(!version.git_sha.is_empty());
}

/// The separate address of the state service that a server has announced.
async fn own_address(state: &State) -> String {
    let line = state.server.logged("the state service listens on ").await;
    let address = line.split_whitespace().find(|it| it.starts_with("127."));
    format!("http://{}", address.unwrap())
}

#[tokio::test]
async fn the_service_is_on_the_main_listener_beside_everything_else() {
    let state = State::fresh().await;
    healthy(state.server.url()).await;
    for http in [state.server.http1(), state.server.http2()] {
        http.get("/health").send().await.expect(200);
        http.get("/v1/basins").send().await.expect(200);
        http.get("/esker/v1/status").send().await.expect(200);
    }
    state.put(key("x"), "{}").await;
    let metrics = state.server.http1().get("/metrics").send().await.text();
    let counted = "esker_state_requests_total{method=\"statehouse.v1.StatehouseService/Commit\",code=\"OK\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn it_has_an_address_of_its_own_if_one_is_set() {
    for setup in [
        Setup::default().set("state.listen=127.0.0.1:0"),
        Setup::default().variable("STATEHOUSE_ADDR", "127.0.0.1:0"),
        Setup::default().variable("STATEHOUSE_LISTEN_ADDR", "localhost:0"),
    ] {
        let state = State::of(setup.start_fresh().await);
        let own = own_address(&state).await;
        assert_ne!(own, state.server.url());
        healthy(&own).await;
        healthy(state.server.url()).await;
        // Both addresses serve the same store.
        state.put(key("x"), "{}").await;
        let request = esker_proto::statehouse::v1::ListKeysRequest {
            namespace: "default".into(),
            agent_id: "a".into(),
        };
        let mut client = StatehouseServiceClient::new(channel(&own));
        let keys = client.list_keys(request).await.unwrap().into_inner().keys;
        assert_eq!(keys, ["x"]);
    }
}

#[tokio::test]
async fn a_taken_address_is_an_error_before_anything_is_made() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let setup = Setup::default().set(&format!("state.listen={address}"));
    let (code, log) = setup.start_refused(&data).await;
    assert_eq!(code, 1);
    assert!(log.contains("error [listen]"), "{log}");
    assert!(log.contains("`state.listen`"), "{log}");
    assert!(!data.exists());
}

#[tokio::test]
async fn an_address_that_others_can_reach_and_a_store_in_memory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value, says) in [
        ("STATEHOUSE_ADDR", "0.0.0.0:0", "config_insecure_listen"),
        ("STATEHOUSE_USE_MEMORY", "1", "this store is durable"),
    ] {
        let setup = Setup::default().variable(name, value);
        let (code, log) = setup.start_refused(&dir.path().join("data")).await;
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(says), "{log}");
        assert!(log.contains(name), "{log}");
    }
}

#[tokio::test]
async fn a_stop_ends_what_is_watched() {
    let mut state = State::fresh().await;
    state.put(key("x"), "{}").await;
    let request = WatchRequest {
        start_ts: Some(1),
        ..WatchRequest::default()
    };
    let mut events = state
        .esker
        .clone()
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    events.message().await.unwrap().unwrap();
    state.server.signal(rustix::process::Signal::TERM);
    let ended = soon("an end", events.message()).await;
    assert_refused(ended, tonic::Code::Unavailable, "server_draining");
    assert!(state.server.wait().await.success());
}
