//! A watch, and when it told of what was written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::{Failed, Shared, failed};
use super::{Clock, Kind, NAMESPACE, Sample};

/// When keys were acknowledged and when the watch told of them.
#[derive(Clone, Default)]
pub(crate) struct Watched(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    acknowledged: HashMap<String, Instant>,
    seen: HashMap<String, Instant>,
}

impl Watched {
    pub(crate) fn acknowledged(&self, key: &str, at: Instant) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .acknowledged
            .insert(key.to_owned(), at);
    }

    fn seen(&self, key: &str, at: Instant) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .seen
            .entry(key.to_owned())
            .or_insert(at);
    }

    /// Everything acknowledged was told.
    pub(crate) fn is_complete(&self) -> bool {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.acknowledged.keys().all(|key| times.seen.contains_key(key))
    }

    /// One sample per acknowledged key: how long after the writer knew did the watcher know.
    pub(crate) fn samples(&self, clock: Clock, limit: Duration) -> Vec<Sample> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut samples: Vec<Sample> = times
            .acknowledged
            .iter()
            .map(|(key, acknowledged)| {
                let seen = times.seen.get(key);
                let took = seen.unwrap_or(&now).saturating_duration_since(*acknowledged);
                let ok = seen.is_some() && took <= limit;
                let error = match (ok, seen) {
                    (true, _) => String::new(),
                    (_, Some(_)) => format!("told after {} ms", took.as_millis()),
                    (_, None) => "never told".into(),
                };
                Sample {
                    kind: Kind::Watch,
                    at_us: clock.us(*acknowledged),
                    took_us: i64::try_from(took.as_micros()).unwrap_or(i64::MAX),
                    late_us: 0,
                    ok,
                    tries: 1,
                    error,
                    key: key.clone(),
                }
            })
            .collect();
        samples.sort_by_key(|sample| sample.at_us);
        samples
    }
}

/// Watches for ever; a stream that ends goes on where it was, as a reflector does.
pub(crate) async fn follow(shared: Arc<Shared>, prefix: String, watched: Watched) {
    let mut version = String::new();
    loop {
        if let Err(Failed { .. }) = stream(&shared, &prefix, &watched, &mut version).await {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn stream(shared: &Shared, prefix: &str, watched: &Watched, version: &mut String) -> Result<(), Failed> {
    let path = format!(
        "/api/v1/namespaces/{NAMESPACE}/configmaps?watch=true&allowWatchBookmarks=true&resourceVersion={version}"
    );
    let head = tokio::time::timeout(shared.client.timeout, shared.send("GET", &path, Bytes::new())).await;
    let response = head.map_err(|_| Failed {
        message: "no answer".into(),
        lost: true,
    })??;
    if !response.status().is_success() {
        version.clear();
        return Err(Failed {
            message: format!("HTTP {}", response.status()),
            lost: false,
        });
    }
    let mut body = response.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(failed)?.into_data() else {
            continue;
        };
        let now = Instant::now();
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else {
                continue;
            };
            if event.get("type").and_then(Value::as_str) == Some("ERROR") {
                // The version is gone: begin with what is there.
                version.clear();
                return Err(Failed {
                    message: "watch expired".into(),
                    lost: false,
                });
            }
            if let Some(at) = event
                .pointer("/object/metadata/resourceVersion")
                .and_then(Value::as_str)
            {
                *version = at.to_owned();
            }
            if let Some(name) = event
                .pointer("/object/metadata/name")
                .and_then(Value::as_str)
                .filter(|name| name.starts_with(prefix))
            {
                watched.seen(name, now);
            }
        }
    }
    Err(Failed {
        message: "the stream ended".into(),
        lost: true,
    })
}
