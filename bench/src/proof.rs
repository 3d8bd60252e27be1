//! `docs/proof.md` and the page from the raw data of `bench/proof/run`: what clients saw, by failure and by what was between
//! them and the API.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Directory below the raw data, and what it is called.
const SETUPS: [(&str, &str); 5] = [
    ("quorate-vip", "Quorate, VIP"),
    ("quorate-proxy", "Quorate, proxy on the node"),
    ("quorate-ebpf", "Quorate, eBPF on the node"),
    ("haproxy-copied", "haproxy + keepalived, as copied"),
    ("haproxy-tuned", "haproxy + keepalived, tuned"),
];

/// What happened, and the scenarios that are it.
const ROWS: [(&str, &[&str]); 8] = [
    (
        "power of a control plane cut",
        &["machine-off-each", "machine-off-vip-holder"],
    ),
    ("planned restart of a control plane", &["planned-restart-each"]),
    ("API server killed", &["api-server-killed-each", "api-server-killed"]),
    ("API server hung", &["api-server-hung-each", "api-server-hung"]),
    ("etcd leader killed", &["etcd-leader-killed"]),
    ("etcd member cut off from its peers", &["etcd-follower-cut"]),
    (
        "balancer killed",
        &["agent-killed", "agent-killed-on-worker", "haproxy-killed"],
    ),
    ("balancer hung", &["agent-hung", "haproxy-hung"]),
];

#[derive(Deserialize)]
struct Report {
    scenarios: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    name: String,
    #[serde(default)]
    why: String,
    new: Series,
    reused: Series,
    writes: Writes,
    load: [f64; 2],
    began_unix: i64,
}

#[derive(Deserialize)]
struct Series {
    sent: u64,
    failed: u64,
    worst_ms: u64,
    outage_ms: u64,
}

#[derive(Deserialize)]
struct Writes {
    acknowledged: u64,
    lost: u64,
}

/// All runs of one kind of failure against one setup.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cell {
    runs: u64,
    sent: u64,
    failed: u64,
    reused_failed: u64,
    worst_ms: u64,
    outage_ms: u64,
    acknowledged: u64,
    lost: u64,
    /// Least and most.
    load: Option<(f64, f64)>,
    /// Runs in which nothing was measured.
    unmeasured: Vec<String>,
}

impl Cell {
    fn add(&mut self, outcome: &Outcome) {
        if outcome.new.sent == 0 {
            self.unmeasured.push(format!("{}: {}", outcome.name, outcome.why));
            return;
        }
        self.runs += 1;
        self.sent += outcome.new.sent;
        self.failed += outcome.new.failed;
        self.reused_failed += outcome.reused.failed;
        self.worst_ms = self.worst_ms.max(outcome.new.worst_ms);
        self.outage_ms = self.outage_ms.max(outcome.new.outage_ms);
        self.acknowledged += outcome.writes.acknowledged;
        self.lost += outcome.writes.lost;
        for load in outcome.load {
            let (least, most) = self.load.unwrap_or((load, load));
            self.load = Some((least.min(load), most.max(load)));
        }
    }

    /// Fewer failures first, then the shorter outage; what is within a tenth of a second or a tenth is the same.
    fn better_than(&self, other: &Self) -> bool {
        if self.runs == 0 || other.runs == 0 {
            return false;
        }
        let rate = |cell: &Self| cell.failed as f64 / cell.sent as f64;
        if (rate(self) - rate(other)).abs() > 1e-4 {
            return rate(self) < rate(other);
        }
        self.outage_ms + 100 < other.outage_ms && (self.outage_ms as f64) < other.outage_ms as f64 * 0.9
    }

    fn text(&self) -> String {
        if self.runs == 0 {
            return "–".into();
        }
        format!(
            "{} of {}; {}; {}; {}; {}×",
            self.failed,
            self.sent,
            seconds(self.worst_ms),
            seconds(self.outage_ms),
            self.reused_failed,
            self.runs
        )
    }
}

struct Table {
    /// By row, then setup.
    cells: Vec<Vec<Cell>>,
    first_unix: i64,
    last_unix: i64,
}

pub(crate) fn render(raw: &Path, markdown: &Path, html: &Path) -> Result<()> {
    let table = read(raw)?;
    std::fs::write(markdown, to_markdown(&table, raw)).with_context(|| markdown.display().to_string())?;
    std::fs::write(html, to_html(&table, raw)).with_context(|| html.display().to_string())
}

fn read(raw: &Path) -> Result<Table> {
    let mut table = Table {
        cells: vec![vec![Cell::default(); SETUPS.len()]; ROWS.len()],
        first_unix: i64::MAX,
        last_unix: 0,
    };
    for (column, (setup, _)) in SETUPS.iter().enumerate() {
        for report in reports(&raw.join(setup))? {
            let text = std::fs::read(&report).with_context(|| report.display().to_string())?;
            let report: Report = serde_json::from_slice(&text).with_context(|| report.display().to_string())?;
            for outcome in &report.scenarios {
                let name = outcome.name.split('@').next().unwrap_or_default();
                if let Some(row) = ROWS.iter().position(|(_, names)| names.contains(&name)) {
                    table.cells[row][column].add(outcome);
                    table.first_unix = table.first_unix.min(outcome.began_unix);
                    table.last_unix = table.last_unix.max(outcome.began_unix);
                }
            }
        }
    }
    anyhow::ensure!(
        table.last_unix > 0,
        "{}: no reports; bench/proof/run makes them",
        raw.display()
    );
    Ok(table)
}

/// Of all rounds, in order.
fn reports(setup: &Path) -> Result<Vec<std::path::PathBuf>> {
    let Ok(rounds) = std::fs::read_dir(setup) else {
        return Ok(Vec::new());
    };
    let mut reports: Vec<_> = rounds
        .filter_map(|round| Some(round.ok()?.path().join("report.json")))
        .filter(|report| report.exists())
        .collect();
    reports.sort();
    Ok(reports)
}

const HEAD: &str = "\
# Proof

What clients of the Kubernetes API see when a part of the control plane dies, by what is between them and the API: the same
failures on the same lab machines (three control planes, two workers, one computer), one setup after the other.

A cell: new connections **failed** of those sent; the **slowest** one; the **longest time** any one client went without an
answered new connection; requests **failed on reused** HTTP/2 connections. Failed means no good answer within five seconds.
Clients on several machines start requests at a fixed rate, whatever became of the ones before, and latency counts from when
a request should have started. Runs of one kind are added up, their slowest and longest taken; the number of runs is last.
";

fn to_markdown(table: &Table, raw: &Path) -> String {
    let mut text = format!("{HEAD}\n| |");
    for (_, name) in SETUPS {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(SETUPS.len()));
    text.push('\n');
    for ((what, _), cells) in ROWS.iter().zip(&table.cells) {
        let _ = write!(text, "| {what} |");
        for cell in cells {
            let _ = write!(text, " {} |", cell.text());
        }
        text.push('\n');
    }
    text.push_str("\n## Where another way is better than Quorate's VIP\n\n");
    let better = better(table);
    for line in &better {
        let _ = writeln!(text, "- {line}");
    }
    if better.is_empty() {
        text.push_str("In none of these runs.\n");
    }
    text.push_str("\n## What these numbers are worth\n\n");
    for line in worth(table) {
        let _ = writeln!(text, "- {line}");
    }
    if let Ok(about) = std::fs::read_to_string(raw.join("about.txt")) {
        for line in about.lines() {
            let _ = writeln!(text, "- {line}");
        }
    }
    text.push_str(TAIL);
    text
}

const TAIL: &str = "
## Again

```
make proof           # about an hour: three clusters, five setups; raw data below target/proof
make proof-render    # this page and target/proof/proof.html from the raw data
```

The settings of the peers are in [bench/proof](../bench/proof): *as copied* is kubeadm's guide (TCP checks every 2 s with
three failures, advertisements every second, a script every 3 s with ten failures); *tuned* asks `/readyz` every 500 ms,
advertises every 100 ms and sends the clients of a dead server away. A planned restart stops the balancer first in every
setup. The balancer on a node is killed on the machine its clients are on. `target/proof/SETUP/ROUND/report.html` shows every
request of every run, `report.json` and `samples/` hold them.
";

fn better(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for ((what, _), cells) in ROWS.iter().zip(&table.cells) {
        for ((_, name), cell) in SETUPS.iter().zip(cells).skip(1) {
            if cell.better_than(&cells[0]) {
                lines.push(format!(
                    "{what}: {name}: {} of {} failed, {} without an answer, against {} of {} and {}.",
                    cell.failed,
                    cell.sent,
                    seconds(cell.outage_ms),
                    cells[0].failed,
                    cells[0].sent,
                    seconds(cells[0].outage_ms)
                ));
            }
        }
    }
    lines
}

fn worth(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    let all = || table.cells.iter().flatten();
    let (acknowledged, lost) = all().fold((0, 0), |(acknowledged, lost), cell| {
        (acknowledged + cell.acknowledged, lost + cell.lost)
    });
    lines.push(format!(
        "Of {acknowledged} acknowledged writes {lost} were lost; each was read back after its run."
    ));
    for (column, (_, name)) in SETUPS.iter().enumerate() {
        let cells = table.cells.iter().map(|row| &row[column]);
        let (runs, least, most) = cells.fold((0, f64::MAX, 0f64), |(runs, least, most), cell| {
            let (low, high) = cell.load.unwrap_or((f64::MAX, 0.0));
            (runs + cell.runs, least.min(low), most.max(high))
        });
        lines.push(if runs == 0 {
            format!("{name}: not measured.")
        } else {
            format!("{name}: {runs} runs at load averages of {least:.1} to {most:.1}.")
        });
    }
    let unmeasured: Vec<&str> = all().flat_map(|cell| &cell.unmeasured).map(String::as_str).collect();
    if !unmeasured.is_empty() {
        lines.push(format!("Without a measurement: {}.", unmeasured.join("; ")));
    }
    lines.push(format!(
        "Measured from {} to {} (Unix time), three control planes and all clients on one computer: at a load average above the \
         number of its processors times are the computer's as much as the balancer's.",
        table.first_unix, table.last_unix
    ));
    lines
}

const PAGE: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">
<title>Proof</title><style>
:root{color-scheme:light dark;--line:color-mix(in srgb,currentColor 20%,transparent)}
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid var(--line);padding:.5rem;text-align:left;vertical-align:top}
.bar{height:.6rem;border-radius:.3rem;background:#d97706;min-width:2px}.none .bar{background:#16a34a}.bad .bar{background:#dc2626}
small{opacity:.75}div.wide{overflow-x:auto}
</style><h1>Proof</h1><p>Bars: the longest time any one client went without an answered new connection, up to ten seconds.
Green: no new connection failed; red: more than one in a hundred did.</p>";

fn to_html(table: &Table, raw: &Path) -> String {
    let mut text = format!("{PAGE}\n<div class=wide><table><tr><th>");
    for (setup, name) in SETUPS {
        let _ = write!(text, "<th>{name}<br><small>");
        for report in reports(&raw.join(setup)).unwrap_or_default() {
            let round = report
                .parent()
                .and_then(Path::file_name)
                .unwrap_or_default()
                .display()
                .to_string();
            let _ = write!(text, "<a href=\"{setup}/{round}/report.html\">round {round}</a> ");
        }
        text.push_str("</small>");
    }
    for ((what, _), cells) in ROWS.iter().zip(&table.cells) {
        let _ = write!(text, "\n<tr><th>{what}");
        for cell in cells {
            if cell.runs == 0 {
                text.push_str("<td>–");
                continue;
            }
            let class = match cell.failed {
                0 => "none",
                failed if failed * 100 > cell.sent => "bad",
                _ => "some",
            };
            let _ = write!(
                text,
                "<td class={class}><div class=bar style=\"width:{}%\"></div>{} without an answer<br>{} of {} failed<br><small>slowest {}, reused failed {}, {} runs</small>",
                (cell.outage_ms / 100).min(100),
                seconds(cell.outage_ms),
                cell.failed,
                cell.sent,
                seconds(cell.worst_ms),
                cell.reused_failed,
                cell.runs
            );
        }
    }
    text.push_str("\n</table></div><ul>");
    let about = std::fs::read_to_string(raw.join("about.txt")).unwrap_or_default();
    for line in better(table)
        .iter()
        .chain(&worth(table))
        .map(String::as_str)
        .chain(about.lines())
    {
        let _ = write!(text, "<li>{}", line.replace('&', "&amp;").replace('<', "&lt;"));
    }
    text.push_str("</ul></html>\n");
    text
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, failed: u64, outage_ms: u64) -> String {
        format!(
            r#"{{"cluster": "c", "scenarios": [{{"name": "{name}", "row": 7, "ok": true, "why": "",
                "new": {{"sent": 1000, "failed": {failed}, "worst_ms": 900, "outage_ms": {outage_ms}}},
                "reused": {{"sent": 500, "failed": 2, "worst_ms": 900, "outage_ms": 0}},
                "watch": {{}}, "writes": {{"acknowledged": 50, "lost": 0}}, "vip_owner": [], "leader": [],
                "began_unix": 1790000000, "load": [1.5, 2.5]}}]}}"#
        )
    }

    #[test]
    fn rounds_and_machines_add_up_and_a_better_peer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |setup: &str, round: &str, text: String| {
            let place = dir.path().join(setup).join(round);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("report.json"), text).unwrap();
        };
        put("quorate-vip", "1", report("machine-off-each@m1", 3, 700));
        put("quorate-vip", "2", report("machine-off-each@m2", 0, 200));
        put("haproxy-tuned", "1", report("machine-off-each@m1", 0, 900));
        let table = read(dir.path()).unwrap();
        let cell = &table.cells[0][0];
        assert_eq!((cell.runs, cell.sent, cell.failed, cell.outage_ms), (2, 2_000, 3, 700));
        let text = to_markdown(&table, dir.path());
        assert!(text.contains("3 of 2000; 0.90 s; 0.70 s; 4; 2×"), "{text}");
        assert!(
            text.contains("cut: haproxy + keepalived, tuned: 0 of 1000 failed"),
            "{text}"
        );
        assert!(
            text.contains("Quorate, VIP: 2 runs at load averages of 1.5 to 2.5."),
            "{text}"
        );
        assert!(text.contains("Quorate, eBPF on the node: not measured."), "{text}");
        assert!(to_html(&table, dir.path()).contains("quorate-vip/2/report.html"));
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert!(read(tempfile::tempdir().unwrap().path()).is_err());
    }
}
