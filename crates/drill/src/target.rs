//! Which machines a scenario is about, found out right before.

use futures_util::future::join_all;
use quorate_machine::{Request, Response};
use quorate_run::{Session, etcd};
use quorate_spec::Spec;
use serde_json::Value;

use crate::Error;
use crate::holders::host;
use crate::scenario::Target;

/// `on`: the machine of this run of an each-scenario.
pub(crate) async fn resolve(session: &Session, target: Target, on: Option<&str>) -> Result<Vec<String>, Error> {
    let spec = &session.spec;
    let names = |machines: Vec<&quorate_spec::Machine>| {
        machines
            .into_iter()
            .map(|machine| machine.name.clone())
            .collect::<Vec<_>>()
    };
    let nobody = |what: &str| Error::Refused(format!("nobody {what} now"));
    let one = match target {
        Target::EachControlPlane => return Ok(on.map(str::to_owned).into_iter().collect()),
        Target::EtcdMajority => return Ok(majority(spec)),
        Target::EveryMachine => return Ok(spec.machines.iter().map(|machine| machine.name.clone()).collect()),
        Target::VipHolder => Some(vip_holder(session).await.ok_or_else(|| nobody("holds the VIP"))?),
        Target::VipBackup => {
            let holder = vip_holder(session).await.ok_or_else(|| nobody("holds the VIP"))?;
            names(spec.vip_holders()).into_iter().find(|name| *name != holder)
        }
        Target::EtcdLeader => Some(etcd_leader(session).await.ok_or_else(|| nobody("leads etcd"))?),
        Target::EtcdFollower => {
            let leader = etcd_leader(session).await.ok_or_else(|| nobody("leads etcd"))?;
            // Not the VIP's holder, so that the fault is the member's and nothing else's.
            let holder = vip_holder(session).await;
            let followers: Vec<String> = names(spec.etcd_members())
                .into_iter()
                .filter(|name| *name != leader)
                .collect();
            followers
                .iter()
                .find(|name| Some(*name) != holder.as_ref())
                .or(followers.first())
                .cloned()
        }
        Target::ControllerManagerLeader => Some(
            lease_holder(session, "kube-controller-manager")
                .await?
                .ok_or_else(|| nobody("leads the controller managers"))?,
        ),
        Target::SchedulerLeader => Some(
            lease_holder(session, "kube-scheduler")
                .await?
                .ok_or_else(|| nobody("leads the schedulers"))?,
        ),
        Target::Worker => spec
            .workers()
            .iter()
            .find(|machine| !machine.is_control_plane())
            .map(|machine| machine.name.clone()),
    };
    one.map(|name| vec![name])
        .ok_or_else(|| Error::Refused(format!("the cluster has no machine for {target:?}")))
}

/// The first ones would be as good; with the last ones the VIP may have to move or not, as it happens.
fn majority(spec: &Spec) -> Vec<String> {
    let quorum = spec.quorum();
    let members = spec.etcd_members().into_iter().rev();
    members
        .take(quorum.members - quorum.needed + 1)
        .map(|machine| machine.name.clone())
        .collect()
}

pub(crate) async fn vip_holder(session: &Session) -> Option<String> {
    let vip = session.spec.endpoint.as_ref()?.vip;
    let holders = session.spec.vip_holders();
    let looks = holders
        .iter()
        .filter_map(|machine| session.fleet.get(&machine.name))
        .map(|machine| async move {
            match machine.call(Request::Network).await {
                Ok(Response::Network(network)) if network.interface_of(vip).is_some() => {
                    Some(machine.name().to_owned())
                }
                _ => None,
            }
        });
    join_all(looks).await.into_iter().flatten().next()
}

async fn etcd_leader(session: &Session) -> Option<String> {
    let members = session.spec.etcd_members();
    let looks = members
        .iter()
        .filter_map(|machine| session.fleet.get(&machine.name))
        .map(|machine| async move {
            let status = etcd::status(machine, &session.spec).await.ok()?;
            status.is_leader().then(|| machine.name().to_owned())
        });
    join_all(looks).await.into_iter().flatten().next()
}

async fn lease_holder(session: &Session, name: &str) -> Result<Option<String>, Error> {
    let Some(api) = session.api().await? else {
        return Ok(None);
    };
    let lease = api
        .get(&format!(
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}"
        ))
        .await?
        .unwrap_or_default();
    let holder = lease
        .pointer("/spec/holderIdentity")
        .and_then(Value::as_str)
        .unwrap_or_default();
    Ok(machine_of(&session.spec, holder))
}

/// The machine of a lease's holder (`m1_0f3c…`), which names its host; the cluster file's name may be longer.
pub(crate) fn machine_of(spec: &Spec, holder: &str) -> Option<String> {
    let host = host(holder);
    let mut machines = spec.machines.iter();
    machines
        .find(|machine| machine.name == host || machine.name.split('.').next() == Some(host))
        .map(|machine| machine.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(control_planes: usize, etcd: usize) -> Spec {
        let mut text = String::from(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  kubernetes: {version: v1.36.3}\n  endpoint: {vip: 10.0.0.100, port: 8443, on: control-planes}\n",
        );
        if etcd > 0 {
            text.push_str("  etcd: {topology: external}\n");
        }
        text.push_str("  machines:\n");
        for number in 1..=control_planes {
            text.push_str(&format!(
                "    - {{name: m{number}, address: 10.0.0.{number}, roles: [control-plane]}}\n"
            ));
        }
        for number in 1..=etcd {
            text.push_str(&format!(
                "    - {{name: e{number}, address: 10.0.0.5{number}, roles: [etcd]}}\n"
            ));
        }
        quorate_spec::load(&text, "cluster.yaml").unwrap().0
    }

    #[test]
    fn so_many_members_are_lost_that_no_quorum_is_left() {
        assert_eq!(majority(&spec(3, 0)), ["m3", "m2"]);
        assert_eq!(majority(&spec(5, 0)), ["m5", "m4", "m3"], "two of five leave a quorum");
        assert_eq!(majority(&spec(3, 3)), ["e3", "e2"], "control planes have no members");
    }
}
