//! Server-sent events.

use serde_json::Value;

use crate::http::{Exchange, Http};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its kind; empty if it has none.
    pub event: String,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its data.
    pub data: String,
}

impl Event {
    /// Its data, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Sequence numbers of a batch's records.
    pub fn seq_nums(&self) -> Vec<u64> {
        let data = self.json();
        let records = data["records"].as_array().unwrap();
        records
            .iter()
            .map(|record| record["seq_num"].as_u64().unwrap())
            .collect()
    }
}

/// Events as they arrive.
pub struct Events {
    exchange: Exchange,
    text: String,
}

impl Events {
    /// Reads a stream with these query parameters.
    ///
    /// # Panics
    ///
    /// If the answer does not begin as a stream of events.
    pub async fn open(
        http: &Http,
        basin: &str,
        stream: &str,
        query: &str,
        last_id: Option<&str>,
    ) -> Events {
        let path = format!("/v1/streams/{stream}/records?{query}");
        let request = http
            .get(&path)
            .basin(basin)
            .header("accept", "text/event-stream")
            .header("accept-encoding", "gzip, zstd");
        let request = match last_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let mut exchange = request.open().await;
        exchange.finish();
        assert_eq!(exchange.status, 200);
        assert_eq!(exchange.headers["content-type"], "text/event-stream");
        assert_eq!(exchange.headers["cache-control"], "no-cache, no-transform");
        assert!(!exchange.headers.contains_key("content-encoding"));
        Events {
            exchange,
            text: String::new(),
        }
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = parse(event);
                self.text = rest.to_owned();
                return Some(event);
            }
            match self.exchange.chunk().await {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                None => {
                    assert!(self.text.is_empty(), "half an event: {}", self.text);
                    return None;
                }
            }
        }
    }

    /// The next event that is a batch. Pings are passed over: they come whenever nothing was appended
    /// for five seconds or more.
    ///
    /// # Panics
    ///
    /// If none comes soon, or the answer ends.
    pub async fn batch(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("it is open");
            if event.event != "ping" {
                assert_eq!(event.event, "batch", "{event:?}");
                return event;
            }
        }
    }

    /// All events up to the end.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn parse(text: &str) -> Event {
    let mut parsed = Event::default();
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap();
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut parsed.event),
            "id" => parsed.id = Some(value.to_owned()),
            "data" => {
                if !parsed.data.is_empty() {
                    parsed.data.push('\n');
                }
                parsed.data.push_str(value);
            }
            _ => panic!("no field {field}: {text}"),
        }
    }
    parsed
}
