//! The list of checks, in the order in which they are reported. One file each.

mod access;
mod api_server;
mod certificates;
mod clock;
mod endpoint;
mod etcd;
mod exec;
mod leader;
mod machine;
mod node;
mod pod_network;
mod serving;
mod vip;

use std::pin::Pin;

use crate::{Check, Cluster, View};

pub(crate) type Group<'a> = Pin<Box<dyn Future<Output = Vec<Check>> + 'a>>;

pub(crate) fn all<'a>(cluster: &'a Cluster<'a>, view: &'a View) -> Vec<Group<'a>> {
    vec![
        Box::pin(machine::check(cluster)),          // every machine answers
        Box::pin(clock::check(cluster)),            // clocks agree
        Box::pin(certificates::check(cluster)),     // nothing expires soon
        Box::pin(etcd::check(cluster)),             // one cluster, all voters, close revisions
        Box::pin(api_server::check(cluster)),       // every API server is ready
        Box::pin(leader::check(cluster, view)),     // controller manager and scheduler have leaders
        Box::pin(vip::check(cluster)),              // exactly one owner
        Box::pin(endpoint::check(cluster)),         // the endpoint answers from every machine
        Box::pin(access::check(cluster)),           // every node's own way to the API works
        Box::pin(node::check(cluster, view)),       // Ready, right version
        Box::pin(serving::check(cluster)),          // kubelets' certificates are approved
        Box::pin(pod_network::check(cluster, view)), // Pod to Pod, Service, DNS
        Box::pin(exec::check(cluster, view)),       // logs and exec
    ]
}
