//! Samples, their medians, what was promised, and the files that say so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::proxies::Kind;

/// What was promised.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Goal {
    None,
    /// Of quorate's value divided by the peer's.
    AtLeast(f64),
    AtMost(f64),
    /// Of quorate's value itself.
    Below(f64),
}

#[derive(Default)]
pub(crate) struct Results {
    order: Vec<String>,
    samples: BTreeMap<String, Samples>,
    notes: Vec<String>,
}

struct Samples {
    unit: String,
    peer: &'static str,
    goal: Goal,
    /// Ours, the peer's.
    values: [Vec<f64>; 2],
}

/// Whose sample it is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Side {
    Ours,
    Peer,
}

/// One line of `results.json`.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) quorate: f64,
    pub(crate) peer: &'static str,
    pub(crate) peer_value: Option<f64>,
    pub(crate) ratio: Option<f64>,
    /// Half the range of quorate's samples, as a part of their median.
    pub(crate) spread: f64,
    pub(crate) goal: String,
    pub(crate) met: Option<bool>,
}

impl Results {
    pub(crate) fn sample(&mut self, name: &str, unit: &str, kind: Kind, value: f64, goal: Goal) {
        let side = if kind == Kind::Quorate { Side::Ours } else { Side::Peer };
        self.against("haproxy", name, unit, side, value, goal);
    }

    /// A sample where the peer is another one.
    pub(crate) fn against(&mut self, peer: &'static str, name: &str, unit: &str, side: Side, value: f64, goal: Goal) {
        let entry = self.samples.entry(name.to_owned()).or_insert_with(|| {
            self.order.push(name.to_owned());
            Samples {
                unit: unit.to_owned(),
                peer,
                goal,
                values: Default::default(),
            }
        });
        entry.values[usize::from(side == Side::Peer)].push(value);
    }

    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.order
            .iter()
            .filter_map(|name| {
                let Samples {
                    unit,
                    peer,
                    goal,
                    values: [ours, theirs],
                } = self.samples.get(name)?;
                let quorate = median(ours)?;
                let peer_value = median(theirs);
                let ratio = peer_value.filter(|p| *p != 0.0).map(|p| quorate / p);
                Some(Line {
                    name: name.clone(),
                    unit: unit.clone(),
                    quorate,
                    peer,
                    peer_value,
                    ratio,
                    spread: spread(ours),
                    goal: match goal {
                        Goal::None => String::new(),
                        Goal::AtLeast(x) => format!("≥ {x} × {peer}"),
                        Goal::AtMost(x) => format!("≤ {x} × {peer}"),
                        Goal::Below(x) => format!("≤ {x} {unit}"),
                    },
                    met: match goal {
                        Goal::None => None,
                        Goal::AtLeast(x) => ratio.map(|r| r >= *x),
                        Goal::AtMost(x) => ratio.map(|r| r <= *x),
                        Goal::Below(x) => Some(quorate <= *x),
                    },
                })
            })
            .collect()
    }

    /// Writes raw samples and `results.json` below `out`.
    pub(crate) fn write(&self, out: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(out.join("raw"))?;
        let raw: BTreeMap<_, _> = self
            .samples
            .iter()
            .map(|(n, s)| {
                (
                    n,
                    serde_json::json!({"unit": s.unit, "quorate": s.values[0], s.peer: s.values[1]}),
                )
            })
            .collect();
        std::fs::write(out.join("raw/samples.json"), serde_json::to_vec_pretty(&raw)?)?;
        std::fs::write(out.join("results.json"), serde_json::to_vec_pretty(&self.lines())?)?;
        Ok(())
    }

    /// The table, as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = table(&self.lines());
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }
}

/// Lines as Markdown, each with its peer.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut text =
        "| what | unit | quorate | peer | | ratio | spread | goal | met |\n|---|---|---:|---|---:|---:|---:|---|---|\n"
            .to_owned();
    let number = |v: f64| {
        if v == 0.0 || v.abs() >= 100.0 {
            format!("{v:.0}")
        } else if v.abs() >= 1.0 {
            format!("{v:.2}")
        } else {
            format!("{v:.3}")
        }
    };
    for l in lines {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | ±{:.0} % | {} | {} |",
            l.name,
            l.unit,
            number(l.quorate),
            if l.peer_value.is_some() { l.peer } else { "" },
            l.peer_value.map_or_else(String::new, number),
            l.ratio.map_or_else(String::new, |r| format!("{r:.2}")),
            l.spread.abs() * 100.0,
            l.goal,
            match l.met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            }
        );
    }
    text
}

pub(crate) fn median(v: &[f64]) -> Option<f64> {
    let mut v = v.to_vec();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => None,
        n if n % 2 == 1 => Some(v[n / 2]),
        n => Some((v[n / 2 - 1] + v[n / 2]) / 2.0),
    }
}

/// Half the range, as a part of the median.
pub(crate) fn spread(v: &[f64]) -> f64 {
    let (min, max) = v.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    match median(v) {
        Some(middle) if middle != 0.0 => (max - min) / 2.0 / middle,
        _ => 0.0,
    }
}
