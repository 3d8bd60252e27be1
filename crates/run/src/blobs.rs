//! Blobs of one stage, on all machines at once.

use std::sync::Arc;

use quorate_machine::MachineRef;
use quorate_plan::{Action, BlobRef, Step};
use tokio::task::JoinSet;

use crate::event::Event;
use crate::execute::{Run, StepError};

pub(crate) async fn distribute(run: &Arc<Run>, wanted: Vec<(Arc<Step>, MachineRef)>) -> Vec<(Arc<Step>, Result<(), StepError>)> {
    let mut sending = JoinSet::new();
    for (step, machine) in wanted {
        let run = run.clone();
        sending.spawn(async move {
            let result = send(&run, &step, &machine).await;
            (step, result)
        });
    }
    sending.join_all().await
}

async fn send(run: &Run, step: &Step, machine: &MachineRef) -> Result<(), StepError> {
    let Action::Blobs { blobs } = &step.action else { return Ok(()) };
    let of: u64 = blobs.iter().map(|blob| blob.packed_size).sum();
    let mut sent = 0;
    for blob in blobs {
        let (packed, path) = find(run, blob)?;
        machine.put_blob(path, packed, &|_| {}).await?;
        sent += blob.packed_size;
        run.tell(Event::StepProgress { step: step.id.clone(), machine: step.machine.clone(), bytes: sent, of });
    }
    Ok(())
}

fn find<'a>(run: &'a Run, blob: &BlobRef) -> Result<&'a (quorate_machine::proto::PackedBlob, std::path::PathBuf), StepError> {
    run.catalogue.blobs.get(&blob.sha256).ok_or_else(|| StepError::lasting(format!("the bundle has no blob {} ({})", blob.sha256, blob.name)).hint("quorate bundle verify"))
}
