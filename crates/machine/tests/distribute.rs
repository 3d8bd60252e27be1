//! Blobs spread over machines: how many bytes leave the operator, and what happens when something is in the way.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex},
};

use quorate_machine::{
    BoxFuture, ErrorKind, FakeMachine, LocalMachine, Machine, MachineError, Request, Response,
    distribute::{Event, Origin, Received, Recipient, Source, distribute},
    fake::Fault,
    proto::PackedBlob,
};
use sha2::{Digest, Sha256};

const LOOPBACK: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Blobs of different sizes that hardly compress.
fn sources(dir: &Path, count: u32) -> Vec<Source> {
    let one = |n: u32| {
        let content: Vec<u8> = (0..50_000 * (n + 1))
            .flat_map(|i| (i ^ n).wrapping_mul(2_654_435_761).rotate_left(i % 31).to_le_bytes())
            .collect();
        let packed = zstd::encode_all(&content[..], 1).unwrap();
        let path = dir.join(format!("{n}.zst"));
        fs::write(&path, &packed).unwrap();
        let blob = PackedBlob {
            sha256: sum(&content),
            size: content.len() as u64,
            packed_sha256: sum(&packed),
            packed_size: packed.len() as u64,
        };
        Source { blob, path }
    };
    (0..count).map(one).collect()
}

fn recipient(machine: Arc<dyn Machine>, sources: &[Source]) -> Recipient {
    Recipient {
        machine,
        address: LOOPBACK,
        wants: sources.iter().map(|source| source.blob.sha256.clone()).collect(),
    }
}

fn one_copy(sources: &[Source]) -> u64 {
    sources.iter().map(|source| source.blob.packed_size).sum()
}

fn total(
    results: &std::collections::BTreeMap<String, Result<Received, MachineError>>,
    part: impl Fn(&Received) -> u64,
) -> u64 {
    results
        .values()
        .filter_map(|result| result.as_ref().ok())
        .map(part)
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_machines_cost_the_operator_one_copy() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), 8);
    let machines: Vec<Recipient> = (1..=5)
        .map(|n| {
            recipient(
                Arc::new(LocalMachine::with_state_dir(
                    &format!("m{n}"),
                    dir.path().join(format!("m{n}")),
                )),
                &sources,
            )
        })
        .collect();
    let events = Mutex::new(Vec::new());
    let results = distribute(&machines, &sources, &|event| events.lock().unwrap().push(event)).await;
    for (name, result) in &results {
        let received = result.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (received.blobs, received.from_operator + received.from_peers),
            (8, one_copy(&sources)),
            "{name}"
        );
        assert_eq!(
            fs::read_dir(dir.path().join(name).join("packed")).unwrap().count(),
            0,
            "packed forms are gone"
        );
    }
    assert_eq!(total(&results, |received| received.from_operator), one_copy(&sources));
    assert_eq!(total(&results, |received| received.from_peers), one_copy(&sources) * 4);

    let events = events.into_inner().unwrap();
    let bytes = |wanted: Origin| -> u64 {
        events
            .iter()
            .map(|event| {
                if let Event::Arrived { bytes, from, .. } = event {
                    bytes * u64::from(*from == wanted)
                } else {
                    0
                }
            })
            .sum()
    };
    assert_eq!(
        (bytes(Origin::Operator), bytes(Origin::Peer)),
        (one_copy(&sources), one_copy(&sources) * 4),
        "progress adds up"
    );

    let again = distribute(&machines, &sources, &|_| ()).await;
    assert_eq!(
        total(&again, |received| received.from_operator + received.from_peers),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_way_between_machines_the_operator_sends_all() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), 4);
    let mut machines: Vec<Recipient> = (1..=3)
        .map(|n| {
            recipient(
                Arc::new(LocalMachine::with_state_dir(
                    &format!("m{n}"),
                    dir.path().join(format!("m{n}")),
                )),
                &sources,
            )
        })
        .collect();
    machines.iter_mut().for_each(|machine| machine.address = None);
    let results = distribute(&machines, &sources, &|_| ()).await;
    assert_eq!(
        total(&results, |received| received.from_operator),
        one_copy(&sources) * 3
    );
}

/// A machine whose peers cannot be reached, as behind a firewall.
struct Walled(LocalMachine);

impl Machine for Walled {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Result<Response, MachineError>> {
        match request {
            Request::BlobFetch { .. } => Box::pin(async {
                Err(MachineError::new(
                    self.name(),
                    "fetch blob",
                    ErrorKind::Timeout,
                    "connect: timed out",
                ))
            }),
            other => self.0.call(other),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firewall_between_machines_costs_time_not_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), 4);
    let machines: Vec<Recipient> = (1..=3)
        .map(|n| {
            recipient(
                Arc::new(Walled(LocalMachine::with_state_dir(
                    &format!("m{n}"),
                    dir.path().join(format!("m{n}")),
                ))),
                &sources,
            )
        })
        .collect();
    let results = distribute(&machines, &sources, &|_| ()).await;
    assert!(
        results
            .values()
            .all(|result| result.as_ref().is_ok_and(|received| received.blobs == 4)),
        "{results:?}"
    );
}

#[tokio::test]
async fn a_machine_that_dies_keeps_nobody_else_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), 6);
    for dies_at in 1..20 {
        let fakes: Vec<Arc<FakeMachine>> = (1..=4).map(|n| FakeMachine::new(&format!("m{n}"))).collect();
        fakes[0].fault(Fault::dies_before_call(dies_at));
        let machines: Vec<Recipient> = fakes.iter().map(|fake| recipient(fake.clone(), &sources)).collect();
        let results = distribute(&machines, &sources, &|_| ()).await;
        for n in 2..=4 {
            let received = results[&format!("m{n}")]
                .as_ref()
                .unwrap_or_else(|error| panic!("dies at {dies_at}: {error}"));
            assert_eq!(received.blobs, 6, "dies at {dies_at}: m{n}");
            assert_eq!(fakes[n - 1].state().blobs.len(), 6);
        }
    }
}

#[tokio::test]
async fn a_hundred_machines_and_a_blob_nobody_has() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path(), 3);
    let mut machines: Vec<Recipient> = (1..=100)
        .map(|n| recipient(FakeMachine::new(&format!("m{n}")), &sources))
        .collect();
    machines[6].wants.push("f".repeat(64));
    let results = distribute(&machines, &sources, &|_| ()).await;
    assert_eq!(total(&results, |received| received.from_operator), one_copy(&sources));
    let error = results["m7"].as_ref().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(results.values().filter(|result| result.is_ok()).count(), 99);
}
