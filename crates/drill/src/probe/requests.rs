//! One request of each kind.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::client::{Client, Failed, Shared, failed, within};
use super::watch::Watched;
use super::{Clock, Kind, NAMESPACE, Sample};

pub(crate) async fn new(client: Arc<Client>, clock: Clock, intended: Instant, samples: UnboundedSender<Sample>) {
    // A request as clients make them. `/readyz` would not do: a server that shuts down says no there at once, so that
    // balancers look elsewhere, and goes on serving meanwhile.
    let path = format!("/api/v1/namespaces/{NAMESPACE}");
    let late_us = late(clock, intended);
    let (tries, answer) = within(client.timeout, intended, |_| async { ok(client.once(&path).await?) }).await;
    tell(
        &samples,
        clock,
        Kind::New,
        intended,
        late_us,
        tries,
        answer,
        String::new(),
    );
}

pub(crate) async fn reused(shared: Arc<Shared>, clock: Clock, intended: Instant, samples: UnboundedSender<Sample>) {
    let path = format!("/api/v1/namespaces/{NAMESPACE}");
    let late_us = late(clock, intended);
    let (tries, answer) = within(shared.client.timeout, intended, |_| async {
        ok(exchange(&shared, "GET", &path, Bytes::new()).await?)
    })
    .await;
    tell(
        &samples,
        clock,
        Kind::Reused,
        intended,
        late_us,
        tries,
        answer,
        String::new(),
    );
}

pub(crate) async fn write(
    shared: Arc<Shared>,
    clock: Clock,
    intended: Instant,
    key: String,
    watched: Watched,
    samples: UnboundedSender<Sample>,
) {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let body = Bytes::from(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key}}).to_string());
    let late_us = late(clock, intended);
    let (tries, answer) = within(shared.client.timeout, intended, |attempt| {
        let (shared, path, body) = (&shared, &path, body.clone());
        async move {
            match exchange(shared, "POST", path, body).await? {
                StatusCode::CREATED => Ok(()),
                // The attempt before this one was written, its answer lost.
                StatusCode::CONFLICT if attempt > 1 => Ok(()),
                // A change of leader in the middle: whether it was written is unknown, so it is asked for again.
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Err(Failed {
                    message: format!("HTTP {status}"),
                    lost: true,
                }),
                status => Err(Failed {
                    message: format!("HTTP {status}"),
                    lost: false,
                }),
            }
        }
    })
    .await;
    if answer.is_ok() {
        watched.acknowledged(&key, Instant::now());
    }
    tell(&samples, clock, Kind::Write, intended, late_us, tries, answer, key);
}

async fn exchange(shared: &Shared, method: &str, path: &str, body: Bytes) -> Result<StatusCode, Failed> {
    let response = shared.send(method, path, body).await?;
    let status = response.status();
    response.into_body().collect().await.map_err(failed)?;
    Ok(status)
}

fn ok(status: StatusCode) -> Result<(), Failed> {
    match status {
        StatusCode::OK => Ok(()),
        // A server that shuts down sends everyone elsewhere; client-go goes.
        status => Err(Failed {
            message: format!("HTTP {status}"),
            lost: status == StatusCode::TOO_MANY_REQUESTS,
        }),
    }
}

fn late(clock: Clock, intended: Instant) -> i64 {
    clock.us(Instant::now()) - clock.us(intended)
}

#[expect(clippy::too_many_arguments, reason = "the parts of a sample")]
fn tell(
    samples: &UnboundedSender<Sample>,
    clock: Clock,
    kind: Kind,
    intended: Instant,
    late_us: i64,
    tries: u32,
    answer: Result<(), String>,
    key: String,
) {
    let at_us = clock.us(intended);
    let took_us = clock.us(Instant::now()) - at_us;
    let (ok, error) = match answer {
        Ok(()) => (true, String::new()),
        Err(error) => (false, error),
    };
    // Nobody listens any more once the probe was told to stop and waited long enough.
    let _ = samples.send(Sample {
        kind,
        at_us,
        took_us,
        late_us,
        ok,
        tries,
        error,
        key,
    });
}
