//! The bootstrap token: there for as long as machines are joining, no longer.

use quorate_spec::Machine;

use crate::components::objects;
use crate::model::*;
use crate::want::{Context, Draft};

/// Makes the token for `joining` machines; who shows it is in `group`. The step's id.
pub(crate) fn admit(draft: &mut Draft<'_>, joining: usize, group: &str, after: &[String]) -> Option<String> {
    let machine = draft.context.api_machine()?.to_owned();
    let id = draft.id(&machine, "token");
    draft.push(Step {
        id: id.clone(),
        machine,
        title: "admit new nodes with a bootstrap token".into(),
        why: vec![format!("{joining} machines have not joined yet")],
        action: Action::Apply {
            objects: vec![objects::bootstrap_token(objects::BOOTSTRAP_TOKEN_PATH, group)],
        },
        needs: after.to_vec(),
        done_when: Vec::new(),
        undo: Undo::Objects,
        attempts: 8,
        essential: true,
    });
    Some(id)
}

/// The token goes away again, in the cluster and then on the machines that hold it in those files: what lies there says
/// that it may still be valid.
pub(crate) fn close(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    holders: Vec<(&Machine, Vec<String>)>,
    spent: &str,
    needs: Vec<String>,
) {
    let Some(via) = context.api_machine().map(str::to_owned) else {
        return;
    };
    let revoke = draft.id(&via, "revoke-token");
    draft.push(Step {
        id: revoke.clone(),
        machine: via,
        title: "revoke the bootstrap token".into(),
        why: vec!["no machine is joining any more".into()],
        action: Action::Delete {
            paths: vec![objects::BOOTSTRAP_TOKEN_PATH.into()],
        },
        needs,
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "the next apply admits nodes with it again".into(),
        },
        attempts: 3,
        essential: false,
    });
    for (machine, paths) in holders {
        draft.push(Step {
            id: draft.id(&machine.name, "forget-token"),
            machine: machine.name.clone(),
            title: "forget the bootstrap token".into(),
            why: vec![spent.into()],
            action: Action::Remove {
                paths,
                recursive: false,
            },
            needs: vec![revoke.clone()],
            done_when: Vec::new(),
            undo: Undo::Nothing {
                because: "a spent token is of no use".into(),
            },
            attempts: 2,
            // Left out when a machine failed to join; the next apply does it.
            essential: false,
        });
    }
}
