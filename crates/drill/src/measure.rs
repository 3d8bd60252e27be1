//! What samples add up to. Pure.

use serde::Serialize;

use crate::probe::{Kind, Sample};

/// One kind of request over all vantage points.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Series {
    pub sent: u64,
    /// Not answered within five seconds, or answered badly.
    pub failed: u64,
    /// Of these: under way when a machine lost its power. What it had taken can be answered by nobody; only the client's
    /// own time-out ends it. Reads only: a write that ends so is to be made again.
    pub interrupted: u64,
    /// The slowest, failed ones included.
    pub worst_ms: u64,
    /// The slowest that was not interrupted.
    #[serde(skip)]
    pub answerable_worst_ms: u64,
    /// The longest time any one vantage point got no answer, beyond its usual interval; 0 below three intervals.
    pub outage_ms: u64,
    /// Sent again on another connection.
    #[serde(skip)]
    pub retried: u64,
    /// 99th percentile, ms.
    #[serde(skip)]
    pub p99_ms: u64,
    /// When the first and the last of the failed ones should have started, ms since the fault.
    #[serde(skip)]
    pub first_failure_ms: Option<i64>,
    #[serde(skip)]
    pub last_failure_ms: Option<i64>,
}

/// Samples of one vantage point, on the operator's clock.
#[derive(Clone, Debug, Default)]
pub struct Vantage {
    pub name: String,
    pub samples: Vec<Sample>,
    /// How wrong the mapping of its clock may be.
    pub clock_error_us: i64,
}

impl Series {
    /// `fault_us`: when the fault was there. `cuts_us`: when machines lost their power.
    pub fn of(kind: Kind, vantages: &[Vantage], fault_us: i64, cuts_us: &[i64]) -> Self {
        let mut series = Self::default();
        let (mut took, mut answerable) = (Vec::new(), 0);
        for vantage in vantages {
            let samples: Vec<&Sample> = vantage.samples.iter().filter(|sample| sample.kind == kind).collect();
            series.outage_ms = series.outage_ms.max(outage_ms(&samples));
            for sample in samples {
                series.sent += 1;
                series.retried += u64::from(sample.tries > 1);
                if cuts_us.iter().any(|cut_us| is_interrupted(sample, *cut_us)) {
                    series.interrupted += 1;
                } else {
                    answerable = answerable.max(sample.took_us);
                }
                took.push(sample.took_us);
                if !sample.ok {
                    series.failed += 1;
                    let at = (sample.at_us - fault_us) / 1_000;
                    series.first_failure_ms = Some(series.first_failure_ms.map_or(at, |first| first.min(at)));
                    series.last_failure_ms = Some(series.last_failure_ms.map_or(at, |last| last.max(at)));
                }
            }
        }
        took.sort_unstable();
        series.worst_ms = took.last().map_or(0, |us| ms(*us));
        series.answerable_worst_ms = ms(answerable);
        series.p99_ms = took
            .get((took.len() * 99).div_ceil(100).saturating_sub(1))
            .map_or(0, |us| ms(*us));
        series
    }
}

fn is_interrupted(sample: &Sample, cut_us: i64) -> bool {
    let is_read = matches!(sample.kind, Kind::New | Kind::Reused);
    is_read && !sample.ok && sample.at_us <= cut_us && cut_us < sample.at_us + sample.took_us
}

/// The longest pause between two good answers, less what is usual between two starts.
fn outage_ms(samples: &[&Sample]) -> u64 {
    let mut starts: Vec<i64> = samples.iter().map(|sample| sample.at_us).collect();
    starts.sort_unstable();
    let mut gaps: Vec<i64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    let Some(usual) = gaps.get(gaps.len() / 2).copied() else {
        return 0;
    };
    let mut answers: Vec<i64> = samples
        .iter()
        .filter(|sample| sample.ok)
        .map(|sample| sample.at_us + sample.took_us)
        .collect();
    answers.sort_unstable();
    // From the first start to the last end, so that not being answered at all counts too.
    let ends = samples.iter().map(|sample| sample.at_us + sample.took_us).max();
    answers.splice(0..0, starts.first().copied());
    answers.extend(ends);
    let longest = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    if longest < usual * 3 { 0 } else { ms(longest - usual) }
}

fn ms(us: i64) -> u64 {
    u64::try_from((us + 500) / 1_000).unwrap_or(0)
}

/// Who held something, seen from several machines: `(at, machine, holds)`, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    pub at_us: i64,
    pub machine: String,
    pub holds: bool,
}

/// From then on these held it; nobody if empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    pub at_us: i64,
    pub holders: Vec<String>,
}

/// Changes of holders, in order of time.
pub fn reigns(mut sights: Vec<Sight>) -> Vec<Reign> {
    sights.sort_by_key(|sight| sight.at_us);
    let mut holders: Vec<String> = Vec::new();
    let mut reigns: Vec<Reign> = Vec::new();
    for sight in sights {
        let held = holders.contains(&sight.machine);
        if sight.holds && !held {
            holders.push(sight.machine);
            holders.sort();
        } else if !sight.holds && held {
            holders.retain(|holder| *holder != sight.machine);
        } else if !reigns.is_empty() {
            continue;
        }
        reigns.push(Reign {
            at_us: sight.at_us,
            holders: holders.clone(),
        });
    }
    // A first look asks one machine after the other; nobody holds it only until the one who does was asked.
    if reigns.len() > 1 && reigns[0].holders.is_empty() && reigns[1].at_us - reigns[0].at_us < 1_000_000 {
        reigns.remove(0);
    }
    reigns
}

/// The longest time between these moments in which several held it at once, ms.
pub fn contested_ms(reigns: &[Reign], since_us: i64, until_us: i64) -> u64 {
    let ends = reigns.iter().skip(1).map(|reign| reign.at_us).chain([until_us]);
    let longest = reigns
        .iter()
        .zip(ends)
        .filter(|(reign, _)| reign.holders.len() > 1)
        .map(|(reign, end)| end.min(until_us) - reign.at_us.max(since_us))
        .max();
    longest.map_or(0, ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: i64, took_ms: i64, ok: bool) -> Sample {
        Sample {
            kind: Kind::New,
            at_us: at_ms * 1_000,
            took_us: took_ms * 1_000,
            late_us: 0,
            ok,
            tries: 1,
            error: String::new(),
            key: String::new(),
        }
    }

    fn series(samples: Vec<Sample>) -> Series {
        cut(samples, &[])
    }

    fn cut(samples: Vec<Sample>, cuts_us: &[i64]) -> Series {
        Series::of(
            Kind::New,
            &[Vantage {
                name: "m4".into(),
                samples,
                clock_error_us: 0,
            }],
            0,
            cuts_us,
        )
    }

    #[test]
    fn a_calm_minute_has_no_outage() {
        let series = series((0..100).map(|n| sample(n * 50, 7, true)).collect());
        assert_eq!(
            (
                series.sent,
                series.failed,
                series.worst_ms,
                series.outage_ms,
                series.p99_ms
            ),
            (100, 0, 7, 0, 7)
        );
    }

    #[test]
    fn only_what_was_under_way_at_a_power_cut_was_interrupted_and_it_failed_all_the_same() {
        let samples = vec![
            sample(-3, 5_000, false),
            // Over before, and begun afterwards.
            sample(-5_050, 5_000, false),
            sample(-2, 1, false),
            sample(10, 5_000, false),
            sample(20, 4, true),
        ];
        let without = series(samples.clone());
        assert_eq!((without.sent, without.failed, without.interrupted), (5, 4, 0));
        let with = cut(samples.clone(), &[0]);
        assert_eq!((with.failed, with.interrupted, with.worst_ms), (4, 1, 5_000));
        assert_eq!(cut(samples, &[9_000_000]).interrupted, 0, "all were over");
    }

    #[test]
    fn the_slowest_that_could_be_answered_is_known_besides() {
        let series = cut(vec![sample(-3, 5_000, false), sample(20, 40, true)], &[0]);
        assert_eq!((series.worst_ms, series.answerable_worst_ms), (5_000, 40));
    }

    #[test]
    fn answers_that_pile_up_are_an_outage_though_none_failed() {
        let stalled = (0..100).map(|n| {
            let at = n * 50;
            // From 1000 to 2000 nothing is answered; then everything is.
            let took = if (1_000..2_000).contains(&at) { 2_000 - at } else { 5 };
            sample(at, took, true)
        });
        let series = series(stalled.collect());
        assert_eq!((series.failed, series.worst_ms), (0, 1_000));
        assert_eq!(series.outage_ms, 995, "2000 − 955 (the answer before) − 50");
    }

    #[test]
    fn failures_are_dated_from_the_fault() {
        let series = series(vec![
            sample(-50, 5, true),
            sample(0, 5_000, false),
            sample(50, 5_000, false),
            sample(100, 5, true),
        ]);
        assert_eq!(
            (series.failed, series.first_failure_ms, series.last_failure_ms),
            (2, Some(0), Some(50))
        );
    }

    #[test]
    fn never_answered_is_an_outage_of_the_whole_time() {
        let series = series((0..20).map(|n| sample(n * 50, 5_000, false)).collect());
        assert_eq!(series.outage_ms, 950 + 5_000 - 50);
    }

    #[test]
    fn vantages_are_not_mixed() {
        let calm: Vec<_> = (0..100).map(|n| sample(n * 50, 5, true)).collect();
        let cut: Vec<_> = (0..100).map(|n| sample(n * 50, 5, !(20..40).contains(&n))).collect();
        let vantages = [
            Vantage {
                name: "m4".into(),
                samples: calm,
                clock_error_us: 0,
            },
            Vantage {
                name: "m5".into(),
                samples: cut,
                clock_error_us: 0,
            },
        ];
        assert_eq!(Series::of(Kind::New, &vantages, 0, &[]).outage_ms, 1_000);
    }

    fn sight(at_ms: i64, machine: &str, holds: bool) -> Sight {
        Sight {
            at_us: at_ms * 1_000,
            machine: machine.into(),
            holds,
        }
    }

    #[test]
    fn reigns_follow_each_other() {
        let seen = reigns(vec![
            sight(0, "m1", false),
            sight(10, "m2", true),
            sight(100, "m2", true),
            sight(300, "m2", false),
            sight(400, "m1", true),
            sight(450, "m2", false),
        ]);
        let short: Vec<_> = seen
            .iter()
            .map(|reign| (reign.at_us / 1_000, reign.holders.join("+")))
            .collect();
        assert_eq!(
            short,
            [(10, "m2".to_owned()), (300, String::new()), (400, "m1".to_owned())]
        );
        assert_eq!(contested_ms(&seen, 0, 1_000_000), 0);
    }

    #[test]
    fn two_holders_are_contested_from_the_heal_on() {
        let seen = reigns(vec![
            sight(0, "m1", true),
            sight(100, "m2", true),
            sight(900, "m1", false),
        ]);
        assert_eq!(contested_ms(&seen, 0, 2_000_000), 800);
        assert_eq!(contested_ms(&seen, 700_000, 2_000_000), 200);
        assert_eq!(contested_ms(&seen, 0, 300_000), 200);
        assert_eq!(contested_ms(&seen, 1_000_000, 2_000_000), 0);
    }
}
