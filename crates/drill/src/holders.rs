//! Whether the VIP and the leases of controller managers and schedulers stayed where they should. Pure.

use std::time::Duration;

use quorate_spec::Spec;

use crate::measure::{Reign, contested_ms};
use crate::scenario::{Fault, Limits, Moves, Scenario, Target};
use crate::target::machine_of;

/// Two owners of the VIP are noticed by their advertisements; what is seen is as fine as the looks at it.
pub(crate) const CONTESTED_MS: u64 = 500;
/// What is seen of a lease is later than what happened: a look every 0.4 s, answered under load.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Who held a lease from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) at_us: i64,
    /// `m1_0f3c…`: the host name, and what tells two processes on it apart; empty once it was given back.
    pub(crate) holder: String,
    /// Its renewals were seen, so that it was alive.
    pub(crate) renews: bool,
}

/// One scenario, µs of the operator's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) fault_us: i64,
    /// When the last machine lost its power, or [`Self::fault_us`].
    pub(crate) ended_us: i64,
    pub(crate) reverted_us: i64,
    pub(crate) end_us: i64,
}

/// What did not hold. `broken`: machines the fault was on.
pub(crate) fn vip(limits: &Limits, reigns: &[Reign], broken: &[String], times: Times) -> Vec<String> {
    let mut why = Vec::new();
    let alone: Vec<(i64, &str)> = reigns
        .iter()
        .filter(|reign| reign.holders.len() == 1)
        .map(|reign| (reign.at_us, reign.holders[0].as_str()))
        .collect();
    if let Some((first, moves)) = passes(&alone, times.fault_us) {
        let is_broken = broken.iter().any(|machine| machine == first);
        if let Some(limit) = limits
            .vip
            .allowed(is_broken)
            .filter(|limit| moves.len() as u64 > *limit)
        {
            why.push(exceeded("the VIP", first, &moves, limit, is_broken, times));
        }
    }
    let while_broken = contested_ms(reigns, times.fault_us, times.reverted_us);
    if let Some(limit) = limits.vip_shared_ms.filter(|limit| while_broken > *limit) {
        why.push(format!(
            "VIP held by two machines while the fault was there: {while_broken} ms, the limit is {limit} ms"
        ));
    }
    let afterwards = contested_ms(reigns, times.reverted_us, times.end_us);
    if afterwards > CONTESTED_MS {
        why.push(format!(
            "VIP held by two machines after the fault: {afterwards} ms, the limit is {CONTESTED_MS} ms"
        ));
    }
    why
}

/// The same of one lease.
pub(crate) fn lease(
    scenario: &Scenario,
    limits: &Limits,
    spec: &Spec,
    name: &str,
    held: &[Held],
    broken: &[String],
    times: Times,
) -> Vec<String> {
    let mut why = Vec::new();
    let known: Vec<(i64, &str)> = held
        .iter()
        .filter(|held| !held.holder.is_empty())
        .map(|held| (held.at_us, held.holder.as_str()))
        .collect();
    let Some((first, moves)) = passes(&known, times.fault_us) else {
        return why;
    };
    // One that died before this scenario loses its lease in it.
    let was_alive = held.iter().any(|held| held.holder == first && held.renews);
    let machine = machine_of(spec, first);
    // Nobody knows of a strange host name what happened to it.
    let is_broken = machine.as_ref().is_none_or(|machine| broken.contains(machine));
    let limit = limits.leases.allowed(is_broken);
    if let Some(limit) = limit.filter(|limit| was_alive && moves.len() as u64 > *limit) {
        why.push(exceeded(
            &format!("{name}'s lease"),
            first,
            &moves,
            limit,
            is_broken,
            times,
        ));
    }
    if limits.leases != Moves::Reported && is_broken && ends(scenario, name) {
        let within = takeover(spec, name);
        let after = |at_us: i64| Duration::from_micros(u64::try_from(at_us - times.ended_us).unwrap_or(0));
        let former = host(first);
        match moves.first() {
            Some((at_us, next)) if after(*at_us) > within => why.push(format!(
                "{name}: {} took {former}'s lease after {:.1} s, the limit is {:.1} s",
                host(next),
                after(*at_us).as_secs_f64(),
                within.as_secs_f64()
            )),
            // A drill may be over before.
            None if after(times.end_us) > within => why.push(format!(
                "{name}: nobody took {former}'s lease within {:.1} s",
                within.as_secs_f64()
            )),
            _ => {}
        }
    }
    why
}

/// How long until another process holds the lease of one that died, by the flags both are started with. Who would take it
/// looks at it once a period, up to 1.2 longer (client-go, tools/leaderelection, `JitterFactor`), and counts the lease's
/// duration from when it saw the last renewal: one look late at its beginning, one at its end.
pub(crate) fn takeover(spec: &Spec, name: &str) -> Duration {
    let flags = match name {
        "kube-scheduler" => &spec.kubernetes.scheduler.extra_args,
        _ => &spec.kubernetes.controller_manager.extra_args,
    };
    let flag = |name: &str, default_s: u64| {
        let given = flags.get(name).and_then(|text| go_duration(text));
        given.unwrap_or(Duration::from_secs(default_s))
    };
    // Upstream's defaults.
    let lease = flag("leader-elect-lease-duration", 15);
    let retry = flag("leader-elect-retry-period", 2);
    lease + retry.mul_f64(2.0 * 2.2) + SEEN_WITHIN
}

/// `15s`, `1m30s`, `500ms`: what Go prints and reads, as far as flags use it.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut all = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        all += Duration::try_from_secs_f64(number * unit).ok()?;
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(all)
}

/// Whether whoever held this lease on a broken machine is dead while the fault is there.
fn ends(scenario: &Scenario, name: &str) -> bool {
    scenario.parts.iter().any(|part| {
        matches!(part.fault, Fault::PowerCut)
            || (part.target == Target::ControllerManagerLeader && name == "kube-controller-manager")
            || (part.target == Target::SchedulerLeader && name == "kube-scheduler")
    })
}

/// Who had it at the fault, and who got it afterwards, and when; `None` if nobody was seen to have it.
fn passes<'a>(held: &[(i64, &'a str)], fault_us: i64) -> Option<(&'a str, Vec<(i64, &'a str)>)> {
    let (_, first) = held.iter().rfind(|(at_us, _)| *at_us <= fault_us)?;
    let mut moves: Vec<(i64, &str)> = Vec::new();
    for (at_us, holder) in held.iter().filter(|(at_us, _)| *at_us > fault_us) {
        if moves.last().map_or(*first, |(_, last)| *last) != *holder {
            moves.push((*at_us, *holder));
        }
    }
    Some((*first, moves))
}

fn exceeded(what: &str, first: &str, moves: &[(i64, &str)], limit: u64, is_broken: bool, times: Times) -> String {
    let mut way = host(first).to_owned();
    for (at_us, holder) in moves {
        let after = (at_us - times.fault_us) as f64 / 1e6;
        way.push_str(&format!(" → {} after {after:.1} s", host(holder)));
    }
    let reason = match (limit, is_broken) {
        (0, false) => "where its holder's machine is not the broken one it must not".to_owned(),
        (0, true) => "this fault is none of its holder's own path, so it must not".to_owned(),
        (limit, _) => format!("the limit is {limit}"),
    };
    match moves.len() {
        1 => format!("{what} moved ({way}); {reason}"),
        count => format!("{what} moved {count} times ({way}); {reason}"),
    }
}

/// `m1` of `m1_0f3c…`.
pub(crate) fn host(holder: &str) -> &str {
    holder.split('_').next().unwrap_or(holder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::find;

    const S: i64 = 1_000_000;
    const TIMES: Times = Times {
        fault_us: 0,
        ended_us: 0,
        reverted_us: 8 * S,
        end_us: 40 * S,
    };

    fn spec() -> Spec {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  endpoint: {vip: 10.0.0.100}\n  kubernetes:\n    scheduler: {extraArgs: {leader-elect-lease-duration: 1m, leader-elect-retry-period: 500ms}}\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n    - {name: m2.prod, address: 10.0.0.2, roles: [control-plane]}\n    - {name: m3, address: 10.0.0.3, roles: [control-plane]}\n";
        quorate_spec::load(text, "cluster.yaml").unwrap().0
    }

    /// `m1 0, m1+m2 400, - 900`: who from when, ms.
    fn reigns(text: &str) -> Vec<Reign> {
        text.split(", ")
            .map(|one| {
                let (holders, at_ms) = one.split_once(' ').unwrap();
                Reign {
                    at_us: at_ms.parse::<i64>().unwrap() * 1_000,
                    holders: holders
                        .split('+')
                        .filter(|name| *name != "-")
                        .map(str::to_owned)
                        .collect(),
                }
            })
            .collect()
    }

    #[test]
    fn the_vip_moves_only_where_it_must() {
        let cases = [
            // An API server behind it dies: its clients go to others, it stays.
            ("api-server-killed", "m1", "m1 -1500", ""),
            (
                "api-server-killed",
                "m1",
                "m1 -1500, - 12066, m2 12203",
                "none of its holder's own path",
            ),
            ("etcd-leader-hung", "m2", "m1 -1500, m2 300", "must not"),
            // Whoever holds it dies.
            ("machine-off-vip-holder", "m1", "m1 -1489, - 48, m2 326", ""),
            ("machine-off-each", "m1", "m1 -1489, - 48, m2 326, m1 9000", ""),
            (
                "machine-off-each",
                "m1",
                "m1 -1489, m2 326, m1 9000, m3 9800",
                "moved 3 times (m1 → m2 after 0.3 s → m1",
            ),
            // Somebody else does.
            (
                "machine-off-each",
                "m3",
                "m2 -1501, - 13644, m1 14321",
                "not the broken one",
            ),
            ("machine-off-worker", "m4", "m2 -1501", ""),
            // It outlives a killed process by up to three seconds, not more.
            ("agent-killed", "m2", "m2 -1654, m1+m2 390, m1 1619", ""),
            (
                "agent-killed",
                "m1",
                "m1 -1579, m1+m2 389, m2 4400",
                "while the fault was there: 4011 ms",
            ),
            (
                "api-server-hung",
                "m1",
                "m1 -1579, m1+m2 389, m1 2400",
                "while the fault was there: 2011 ms",
            ),
            // Nobody can know better while they do not hear each other; then they must.
            ("partitioned-vip-holder", "m2", "m2 -1523, m1+m2 396, m1 8144", ""),
            (
                "partitioned-vip-holder",
                "m2",
                "m2 -1523, m1+m2 396, m1 8644",
                "after the fault: 644 ms",
            ),
            (
                "cold-start",
                "m1",
                "m1 -1498, - 49, m1 87, - 700, m2 31470, m3 33000",
                "",
            ),
            // What was before the fault is none of its doing.
            ("api-server-killed", "m1", "m2 -1500, m1 -200", ""),
            ("api-server-killed", "m1", "- -1500", ""),
        ];
        for (name, on, seen, expected) in cases {
            let limits = find(name).unwrap().limits;
            let why = vip(&limits, &reigns(seen), &[on.to_owned()], TIMES).join("; ");
            let as_expected = if expected.is_empty() {
                why.is_empty()
            } else {
                why.contains(expected)
            };
            assert!(as_expected, "{name} on {on}, {seen}: {why:?}");
        }
    }

    /// `m1_a -2, m2_b 17`: who from when, s; `!`: who was never seen to renew it.
    fn held(text: &str) -> Vec<Held> {
        text.split(", ")
            .map(|one| {
                let (holder, at_s) = one.split_once(' ').unwrap();
                Held {
                    at_us: (at_s.parse::<f64>().unwrap() * 1e6) as i64,
                    holder: holder.trim_matches(['!', '-']).to_owned(),
                    renews: !holder.ends_with('!'),
                }
            })
            .collect()
    }

    #[test]
    fn leases_move_only_with_their_holders_and_then_in_time() {
        let killed = "controller-manager-leader-killed";
        let cases = [
            (killed, "m2.prod", "m2_a -1.5, m3_b 17.1", ""),
            (killed, "m2.prod", "m2_a -1.5", "nobody took m2's lease within 24.8 s"),
            (
                killed,
                "m2.prod",
                "m2_a -1.5, m3_b 26",
                "m3 took m2's lease after 26.0 s, the limit is 24.8 s",
            ),
            (killed, "m2.prod", "m2_a -1.5, - 3, m3_b 5", ""),
            ("machine-off-each", "m1", "m1_a -1.5, m1_b 16", ""),
            ("machine-off-each", "m1", "m1_a -1.5", "nobody took m1's lease"),
            (
                "machine-off-each",
                "m1",
                "m1_a -1.5, m3_b 16, m1_c 30",
                "kube-controller-manager's lease moved 2 times (m1 → m3",
            ),
            ("machine-off-each", "m1", "m3_a -1.5", ""),
            ("machine-off-each", "m1", "m3_a -1.5, m1_b 16", "not the broken one"),
            // It died in the scenario before.
            ("machine-off-each", "m1", "m3_a! -1.5, m1_b 16", ""),
            ("api-server-killed", "m1", "m1_a -1.5, m3_b 17", ""),
            ("api-server-killed", "m1", "m2_a -1.5, m3_b 17", "must not"),
            ("etcd-quorum-lost", "m1", "m2_a -1.5, m3_b 17, m1_c 60", ""),
            ("api-server-killed", "m1", "stranger_a -1.5, m3_b 17", ""),
        ];
        for (name, on, seen, expected) in cases {
            let scenario = find(name).unwrap();
            let (limits, lease_of) = (scenario.limits, "kube-controller-manager");
            let why = lease(
                scenario,
                &limits,
                &spec(),
                lease_of,
                &held(seen),
                &[on.to_owned()],
                TIMES,
            )
            .join("; ");
            let as_expected = if expected.is_empty() {
                why.is_empty()
            } else {
                why.contains(expected)
            };
            assert!(as_expected, "{name} on {on}, {seen}: {why:?}");
        }
        let early = Times {
            end_us: 20 * S,
            ..TIMES
        };
        let scenario = find("machine-off-each").unwrap();
        let (limits, on) = (scenario.limits, ["m1".to_owned()]);
        let why = lease(
            scenario,
            &limits,
            &spec(),
            "kube-scheduler",
            &held("m1_a -1.5"),
            &on,
            early,
        );
        assert_eq!(why, [""; 0], "it was over before");
    }

    #[test]
    fn a_lease_is_taken_over_as_its_flags_say_and_is_waited_for_as_long() {
        assert_eq!(
            takeover(&spec(), "kube-controller-manager"),
            Duration::from_millis(24_800)
        );
        assert_eq!(takeover(&spec(), "kube-scheduler"), Duration::from_millis(63_200));
        for name in ["controller-manager-leader-killed", "scheduler-leader-killed"] {
            let hold = find(name).unwrap().hold;
            // Else the one that was killed would be back and might take it again.
            assert!(hold > takeover(&spec(), "kube-controller-manager"), "{name}: {hold:?}");
        }
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("1.5s"), Some(Duration::from_millis(1_500)));
        for bad in ["", "15", "s", "1d"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
