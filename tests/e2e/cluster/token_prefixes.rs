//! Access tokens with a prefix in a cluster: whichever node is asked, and whichever one has the stream.

use serde_json::json;

use super::tokens::{ROOT, issued, setup, with_a_basin};
use crate::support::{Http, events, frames};

/// The prefix of a token decides where a stream is, so the node that forwards a request and the one that answers it
/// have to add it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auto_prefix_holds_for_every_operation_by_way_of_every_node() {
    let dir = tempfile::tempdir().unwrap();
    // Each of the three nodes leads a partition.
    let cluster = with_a_basin(&setup(dir.path()).partitions(3)).await;
    let tenant = issued(&cluster, "tenant", json!({"auto_prefix_streams": true})).await;
    let root = |at: usize| cluster.server(at).http1().with_token(ROOT);
    for at in cluster.all() {
        let outside = root(at);
        let outside = outside.post("/v1/streams").basin("test-basin");
        let outside = outside.json(&json!({"stream": format!("tenant-2/{at}-0")}));
        outside.send().await.expect(201);
    }
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut whole = Vec::new();
    for at in cluster.all() {
        let http = cluster.server(at).http2().with_token(&tenant);
        // So many that each partition has some.
        for number in 0..6 {
            let name = format!("{at}-{number}");
            let whole_name = format!("tenant-1/{name}");
            let path = format!("/v1/streams/{name}");
            let records = format!("{path}/records");
            let context = format!("{name} by way of n{at}");
            let shown = |text: String| assert!(!text.contains("tenant-1"), "{context}: {text}");

            let missing = http.get(&path).basin("test-basin").send().await.expect(404);
            assert!(missing.text().contains(&format!("`{name}`")), "{context}");
            shown(missing.text());
            let made = match number % 2 {
                0 => http.post("/v1/streams").json(&json!({"stream": name})),
                _ => http.put(&path).json(&json!({})),
            };
            let made = made.basin("test-basin").send().await.expect(201);
            assert_eq!(made.json()["name"], name, "{context}");
            let twice = http.post("/v1/streams").json(&json!({"stream": name}));
            let twice = twice.basin("test-basin").send().await.expect(409);
            shown(twice.text());
            let same = http.put(&path).json(&json!({})).basin("test-basin");
            assert_eq!(same.send().await.expect(200).json()["name"], name);
            let changed = http
                .patch(&path)
                .json(&json!({"retention_policy": {"age": 3600}}));
            changed.basin("test-basin").send().await.expect(200);
            let config = http.get(&path).basin("test-basin").send().await.expect(200);
            assert_eq!(config.json()["retention_policy"]["age"], 3600, "{context}");

            let append = http.post(&records).basin("test-basin");
            let append = append.json(&json!({"records": [{"body": context}]}));
            append.send().await.expect(200);
            let mut appends = frames::append_session(&http, "test-basin", &name).await;
            appends
                .send(frames::frame(&frames::input(["second"])))
                .await;
            assert_eq!(appends.next().await.message().tail.unwrap().seq_num, 2);
            let read = format!("{records}?seq_num=0&count=1");
            let read = http.get(&read).basin("test-basin").send().await.expect(200);
            assert_eq!(read.json()["records"][0]["body"], context);
            let query = "seq_num=0";
            let mut events = events::Events::open(&http, "test-basin", &name, query, None).await;
            let event = events.batch().await;
            assert_eq!(event.json()["records"][0]["body"], context);
            let mut batches = frames::read_session(&http, "test-basin", &name, query).await;
            let batch = batches.batch().await;
            assert_eq!(batch.records[0].body, context.as_bytes());
            let tail = http.get(&format!("{records}/tail")).basin("test-basin");
            assert_eq!(tail.send().await.expect(200).json()["tail"]["seq_num"], 2);
            for what in ["position", "activity"] {
                let asked = http.get(&format!("/esker/v1/streams/{name}/{what}"));
                asked.basin("test-basin").send().await.expect(200);
            }
            let usage = format!("/v1/metrics/test-basin/{name}?set=storage&end={now}");
            let usage = http
                .get(&format!("{usage}&start={}", now - 60))
                .send()
                .await;
            shown(usage.expect(200).text());

            // It is the one stream of the whole name, for root by way of another node.
            let other = root((at + 1) % cluster.count());
            let read = whole_name.replace('/', "%2F");
            let read = format!("/v1/streams/{read}/records?seq_num=0&count=1");
            let read = other
                .get(&read)
                .basin("test-basin")
                .send()
                .await
                .expect(200);
            assert_eq!(read.json()["records"][0]["body"], context);

            if number < 4 {
                whole.push(whole_name);
                continue;
            }
            // Sessions end with the stream, and name it as the tenant does.
            let gone = http.delete(&path).basin("test-basin").send().await;
            gone.expect(202);
            appends.send(frames::frame(&frames::input(["third"]))).await;
            let ends = [
                appends.rest().await.pop().map(|end| format!("{end:?}")),
                batches.rest().await.pop().map(|end| format!("{end:?}")),
                events.rest().await.pop().map(|end| end.data),
            ];
            for end in ends {
                let end = end.unwrap();
                assert!(end.contains("stream_not_found"), "{context}: {end}");
                assert!(end.contains(&name), "{context}: {end}");
                shown(end);
            }
            let gone = http.delete(&path).basin("test-basin").send().await;
            shown(gone.expect(404).text());
        }
    }
    whole.sort();
    for at in cluster.all() {
        let http = cluster.server(at).http1().with_token(&tenant);
        let listed = async |http: &Http, query: &str| {
            let list = http.get(&format!("/v1/streams{query}"));
            let page = list.basin("test-basin").send().await.expect(200).json();
            let streams = page["streams"].as_array().unwrap().clone();
            let names = streams.iter().map(|it| it["name"].as_str().unwrap());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let own = |prefix: &str| {
            let own = whole.iter().filter_map(|it| it.strip_prefix("tenant-1/"));
            let own = own.filter(|it| it.starts_with(prefix));
            own.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(listed(&http, "").await, own(""), "n{at}");
        assert_eq!(listed(&http, "?prefix=1-").await, own("1-"), "n{at}");
        let none = listed(&http, "?prefix=tenant-1/").await;
        assert_eq!(none, Vec::<String>::new());
        let after = listed(&http, "?start_after=1-3").await;
        assert_eq!(after, own("2-"), "n{at}");
        assert_eq!(listed(&root(at), "?prefix=tenant-1/").await, whole, "n{at}");
        let tail = http.get("/v1/streams/..%2Ftenant-2%2F0-0/records/tail");
        tail.basin("test-basin").send().await.expect(404);
    }
}
