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
        Box::pin(machine::checks(cluster)),           // every machine answers
        Box::pin(clock::checks(cluster)),             // clocks agree
        Box::pin(certificates::checks(cluster)),      // nothing expires soon
        Box::pin(etcd::checks(cluster)),              // one cluster, all voters, close revisions
        Box::pin(api_server::checks(cluster)),        // every API server is ready
        Box::pin(leader::checks(cluster, view)),      // controller manager and scheduler have leaders
        Box::pin(vip::checks(cluster)),               // exactly one owner
        Box::pin(endpoint::checks(cluster)),          // the endpoint answers from every machine
        Box::pin(access::checks(cluster)),            // every node's own way to the API works
        Box::pin(node::checks(cluster, view)),        // Ready, right version
        Box::pin(serving::checks(cluster)),           // kubelets' certificates are approved
        Box::pin(pod_network::checks(cluster, view)), // Pod to Pod, Service, DNS
        Box::pin(exec::checks(cluster, view)),        // logs and exec
    ]
}
