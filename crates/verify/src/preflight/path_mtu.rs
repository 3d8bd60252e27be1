//! A packet as large as the sender's interface passes whole. One that does not is the quiet fault of Pod networks: small
//! requests work, large answers hang.

use std::collections::BTreeMap;

use quorate_facts::Echoed;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    let mut by_target: BTreeMap<&str, Vec<&Echoed>> = BTreeMap::new();
    for echoed in &measured.echoed {
        by_target.entry(&echoed.to).or_default().push(echoed);
    }
    for (target, echoed) in by_target {
        let passes = |one: &&Echoed, size: u16| one.echoes.iter().any(|echo| echo.size == size && echo.us.is_some());
        let smallest = |one: &&Echoed| one.echoes.iter().map(|echo| echo.size).min().unwrap_or(0);
        let (silent, talking): (Vec<&Echoed>, Vec<&Echoed>) =
            echoed.iter().partition(|one| !passes(one, smallest(one)));
        let short: Vec<&Echoed> = talking.into_iter().filter(|one| !passes(one, one.mtu)).collect();
        if let Some(first) = short.first() {
            let largest = first
                .echoes
                .iter()
                .filter(|echo| echo.us.is_some())
                .map(|echo| echo.size)
                .max();
            let from: Vec<&str> = short.iter().map(|one| one.from.as_str()).collect();
            let found = format!(
                "packets of {} bytes do not arrive from {}; those of {} do",
                first.mtu,
                from.join(" "),
                largest.unwrap_or(0)
            );
            let hint = "give all interfaces and switches on the path one MTU (`ip link`), then `network.flannel.mtu` may stay `auto`";
            list.note("path-mtu", target, fail(found, hint));
        } else if silent.len() == echoed.len() {
            let hint = "let ICMP through: without it nobody learns of a smaller MTU on the path";
            list.warn("path-mtu", target, "not known: no echo from any machine", hint);
        } else {
            let mtu = echoed.iter().map(|one| one.mtu).max().unwrap_or(0);
            list.note("path-mtu", target, Ok(format!("{mtu} bytes pass whole")));
        }
    }
}
