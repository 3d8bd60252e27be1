//! `docs/proof.md` and the page from the raw data of `bench/proof/run`: what clients saw, by failure and by what was between
//! them and the API.

mod raw;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use raw::{Outcome, Report, Series, recovered, reports, samples};

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

/// All runs of one kind of failure against one setup.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cell {
    runs: u64,
    new: Series,
    reused: Series,
    acknowledged: u64,
    lost: u64,
    /// Least and most.
    load: Option<(f64, f64)>,
}

impl Cell {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.new.add(&outcome.new);
        self.reused.add(&outcome.reused);
        self.acknowledged += outcome.writes.acknowledged;
        self.lost += outcome.writes.lost;
        for load in outcome.load {
            let (least, most) = self.load.unwrap_or((load, load));
            self.load = Some((least.min(load), most.max(load)));
        }
    }

    /// What is better here than there, each thing on its own: a count by run, a time by more than `NOISE_MS` and a tenth.
    fn better_than(&self, other: &Self) -> Vec<String> {
        if self.runs == 0 || other.runs == 0 {
            return Vec::new();
        }
        let runs = if self.runs == other.runs {
            String::new()
        } else {
            format!(" (in {} and {} runs)", self.runs, other.runs)
        };
        let counts = [
            ("new connections failed", self.new.failed, other.new.failed),
            (
                "new connections interrupted",
                self.new.interrupted,
                other.new.interrupted,
            ),
            ("failed on reused connections", self.reused.failed, other.reused.failed),
            (
                "interrupted on reused connections",
                self.reused.interrupted,
                other.reused.interrupted,
            ),
            ("acknowledged writes lost", self.lost, other.lost),
        ];
        let fewer = counts
            .into_iter()
            .filter(|(_, here, there)| here * other.runs < there * self.runs)
            .map(|(what, here, there)| format!("{what}: {here} against {there}{runs}"));
        let times = [
            ("slowest new connection", self.new.worst_ms, other.new.worst_ms),
            ("longest without an answer", self.new.outage_ms, other.new.outage_ms),
            ("slowest on reused", self.reused.worst_ms, other.reused.worst_ms),
        ];
        let shorter = times
            .into_iter()
            .filter(|(_, here, there)| here + NOISE_MS < *there && here * 10 < there * 9)
            .map(|(what, here, there)| format!("{what}: {} against {}", seconds(here), seconds(there)));
        fewer.chain(shorter).collect()
    }

    fn text(&self) -> String {
        if self.runs == 0 {
            return "–".into();
        }
        format!(
            "{}; {}; {}; {}; {}; {}×",
            self.new.text(),
            seconds(self.new.worst_ms),
            seconds(self.new.outage_ms),
            self.reused.text(),
            seconds(self.reused.worst_ms),
            self.runs
        )
    }
}

/// Times that are nearer than this are the same: five machines take turns on few processors.
const NOISE_MS: u64 = 100;

struct Table {
    /// By row, then setup.
    cells: Vec<Vec<Cell>>,
    /// By setup.
    rounds: Vec<usize>,
    first_unix: i64,
    last_unix: i64,
    /// Runs in which nothing was measured.
    unmeasured: Vec<String>,
    /// Runs that began on a cluster that had not recovered from the one before: not in the cells.
    not_green: Vec<String>,
    /// Runs whose failures are counted by their report, for want of samples.
    without_samples: Vec<String>,
}

pub(crate) fn render(raw: &Path, markdown: &Path, html: &Path) -> Result<()> {
    let table = read(raw)?;
    std::fs::write(markdown, to_markdown(&table, raw)).with_context(|| markdown.display().to_string())?;
    std::fs::write(html, to_html(&table, raw)).with_context(|| html.display().to_string())
}

fn read(raw: &Path) -> Result<Table> {
    let mut table = Table {
        cells: vec![vec![Cell::default(); SETUPS.len()]; ROWS.len()],
        rounds: vec![0; SETUPS.len()],
        first_unix: i64::MAX,
        last_unix: 0,
        unmeasured: Vec::new(),
        not_green: Vec::new(),
        without_samples: Vec::new(),
    };
    for (column, (setup, name)) in SETUPS.iter().enumerate() {
        for report in reports(&raw.join(setup))? {
            table.rounds[column] += 1;
            let dir = report.parent().unwrap_or(raw);
            let round = dir.file_name().unwrap_or_default().display();
            let text = std::fs::read(&report).with_context(|| report.display().to_string())?;
            let report: Report = serde_json::from_slice(&text).with_context(|| report.display().to_string())?;
            let recovered = recovered(dir)?;
            // The drill begins on a green cluster only.
            let mut green = true;
            for mut outcome in report.scenarios {
                let label = format!("{name}, round {round}, {}", outcome.name);
                let began_green = std::mem::replace(&mut green, recovered.contains(&outcome.name));
                let scenario = outcome.name.split('@').next().unwrap_or_default();
                let Some(row) = ROWS.iter().position(|(_, names)| names.contains(&scenario)) else {
                    continue;
                };
                if !began_green {
                    table.not_green.push(label);
                    continue;
                }
                if outcome.new.sent == 0 {
                    table.unmeasured.push(format!("{label}: {}", outcome.why));
                    continue;
                }
                match samples(dir, &outcome.name)? {
                    Some(samples) => {
                        outcome.new = outcome.new.counted("new", &samples);
                        outcome.reused = outcome.reused.counted("reused", &samples);
                    }
                    None => table.without_samples.push(label),
                }
                table.cells[row][column].add(&outcome);
                table.first_unix = table.first_unix.min(outcome.began_unix);
                table.last_unix = table.last_unix.max(outcome.began_unix);
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

const HEAD: &str = "\
# Proof

What clients of the Kubernetes API see when a part of the control plane dies, by what is between them and the API: the same
failures on the same cluster (three control planes and two workers, all lab machines of one computer), one setup after the
other.

A cell: new connections **failed** of those sent; the **slowest** one; the **longest time** any one client went without an
answered new connection; requests **failed on reused** HTTP/2 connections of those sent; the **slowest** of these; the number
of runs. Failed means no good answer within five seconds; *interrupted* are those of the failed that were under way when the
fault came and that nobody ever answered. Clients on several machines start requests at a fixed rate, whatever became of the
ones before, and latency counts from when a request should have started. Runs of one kind are added up, their slowest and
longest taken.

A fault is taken back after eight seconds, a machine is switched on again then: about 8 s without an answer, or more, means
*as long as the fault*. A killed program is started again by systemd in every setup.
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
    for line in better(table) {
        let _ = writeln!(text, "- {line}");
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
## The setups

- **Quorate, VIP** (`quorate-vip`): the VIP of Quorate's agents on the control planes, `access: endpoint`.
- **Quorate, proxy on the node** (`quorate-proxy`), **Quorate, eBPF on the node** (`quorate-ebpf`): what each node has of its
  own with `access: proxy` and `access: ebpf`. The balancer is killed on the machine its clients are on; nothing freezes it.
- **haproxy + keepalived, as copied** (`haproxy-copied`): a TCP check every 2 s with three failures, as in many guides
  (kubeadm's own example asks `/healthz`); keepalived as in kubeadm's example, by unicast: advertisements every second, a script
  every 3 s with ten failures.
- **haproxy + keepalived, tuned** (`haproxy-tuned`): asks `/readyz` every 500 ms with two failures, tries failed connections
  elsewhere, sends the clients of a dead server away, advertises every 100 ms, and keepalived is told at once when haproxy ends;
  a script every second (keepalived's shortest) finds a haproxy that hangs.

Quorate's agents run beside haproxy and keepalived too, and carry the nodes' own traffic (`access: endpoint`); only the measured
clients go through the peers. A planned restart stops the balancer first in every setup. Settings: [bench/proof](../bench/proof).

## Again

```
make proof                     # about an hour: one cluster, five setups; raw data below target/proof
PROOF_ROUNDS=3 make proof      # three times through all setups
bench/proof/run target/release/quorate target/proof haproxy-tuned    # one setup; what there is of the others stays
make proof-render              # this page and target/proof/proof.html from the raw data
```

`target/proof/SETUP/ROUND/report.html` shows every request of every run; `report.json`, `journal.jsonl` and `samples/` hold
them.
";

/// Against Quorate's VIP, which is the first column.
fn better(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut compared, mut missing) = (0, Vec::new());
    for ((what, _), cells) in ROWS.iter().zip(&table.cells) {
        for ((_, name), cell) in SETUPS.iter().zip(cells).skip(1) {
            if cell.runs == 0 || cells[0].runs == 0 {
                missing.push(format!("{what} with {name}"));
                continue;
            }
            compared += 1;
            let better = cell.better_than(&cells[0]);
            if !better.is_empty() {
                lines.push(format!("{what}: {name}: {}.", better.join("; ")));
            }
        }
    }
    if lines.is_empty() && compared > 0 {
        lines.push("In none of these runs.".into());
    }
    lines.push(format!(
        "Pairs of cells compared: {compared}; in failures of either kind of connection, interrupted ones, lost writes (fewer in a run is \
         better), slowest requests and longest times (shorter by more than {NOISE_MS} ms and a tenth is better)."
    ));
    if !missing.is_empty() {
        lines.push(format!("Not compared, for want of runs: {}.", missing.join("; ")));
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
            let rounds = match table.rounds[column] {
                1 => "one round".into(),
                rounds => format!("{rounds} rounds"),
            };
            format!("{name}: {runs} runs in {rounds}, at load averages of {least:.1} to {most:.1}.")
        });
    }
    for (what, runs) in [
        ("Without a measurement", &table.unmeasured),
        (
            "Left out of the table, since the cluster was not green again after the run before",
            &table.not_green,
        ),
        (
            "Without raw samples, their failures as their reports count them",
            &table.without_samples,
        ),
    ] {
        if !runs.is_empty() {
            lines.push(format!("{what}: {}.", runs.join("; ")));
        }
    }
    lines.push(format!(
        "Measured from {} to {} (Unix time). Five machines, all clients and the drill share one computer's processors: at a load \
         average above their number times are the computer's as much as the balancer's.",
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
Green: no new connection failed; red: more than one in a hundred did. A fault is taken back after eight seconds: about 8 s
without an answer, or more, means as long as the fault. Quorate's agents run beside haproxy and keepalived too, and carry the
nodes' own traffic; only the measured clients go through the peers.</p>";

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
            let class = match cell.new.failed {
                0 => "none",
                failed if failed * 100 > cell.new.sent => "bad",
                _ => "some",
            };
            let _ = write!(
                text,
                "<td class={class}><div class=bar style=\"width:{}%\"></div>{} without an answer<br>failed: {}<br><small>slowest {}; reused failed: {}, slowest {}; runs: {}</small>",
                (cell.new.outage_ms / 100).min(100),
                seconds(cell.new.outage_ms),
                cell.new.text(),
                seconds(cell.new.worst_ms),
                cell.reused.text(),
                seconds(cell.reused.worst_ms),
                cell.runs
            );
        }
    }
    text.push_str("\n</table></div>");
    let about = std::fs::read_to_string(raw.join("about.txt")).unwrap_or_default();
    let mut worth = worth(table);
    worth.extend(about.lines().map(str::to_owned));
    for (heading, lines) in [
        ("Where another way is better than Quorate's VIP", better(table)),
        ("What these numbers are worth", worth),
    ] {
        let _ = write!(text, "<h2>{heading}</h2><ul>");
        for line in lines {
            let _ = write!(text, "<li>{}", line.replace('&', "&amp;").replace('<', "&lt;"));
        }
        text.push_str("</ul>");
    }
    text.push_str("</html>\n");
    text
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Raw(tempfile::TempDir);

    impl Raw {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn report(&self, round: &str, scenarios: &[String]) {
            let text = format!(r#"{{"cluster": "c", "scenarios": [{}]}}"#, scenarios.join(", "));
            self.put(&format!("{round}/report.json"), &text);
        }

        fn markdown(&self) -> String {
            to_markdown(&read(self.path()).unwrap(), self.path())
        }
    }

    /// Slowest request, longest outage, failed on reused connections.
    fn outcome(name: &str, failed: u64, worst_ms: u64, outage_ms: u64, reused_failed: u64) -> String {
        format!(
            r#"{{"name": "{name}", "row": 7, "ok": true, "why": "",
                "new": {{"sent": 1000, "failed": {failed}, "worst_ms": {worst_ms}, "outage_ms": {outage_ms}}},
                "reused": {{"sent": 500, "failed": {reused_failed}, "worst_ms": 900, "outage_ms": 0}},
                "watch": {{}}, "writes": {{"acknowledged": 50, "lost": 0}}, "vip_owner": [], "leader": [],
                "began_unix": 1790000000, "load": [1.5, 2.5]}}"#
        )
    }

    #[test]
    fn rounds_and_machines_add_up_and_a_better_peer_is_named() {
        let raw = Raw::new();
        raw.report("quorate-vip/1", &[outcome("machine-off-each@m1", 3, 900, 700, 2)]);
        raw.report("quorate-vip/2", &[outcome("machine-off-each@m2", 0, 900, 200, 2)]);
        raw.report("haproxy-tuned/1", &[outcome("machine-off-each@m1", 0, 900, 900, 2)]);
        let text = raw.markdown();
        assert!(
            text.contains("3 of 2000; 0.90 s; 0.70 s; 4 of 1000; 0.90 s; 2×"),
            "{text}"
        );
        assert!(
            text.contains("cut: haproxy + keepalived, tuned: new connections failed: 0 against 3 (in 1 and 2 runs).\n"),
            "{text}"
        );
        assert!(
            text.contains("Quorate, VIP: 2 runs in 2 rounds, at load averages of 1.5 to 2.5."),
            "{text}"
        );
        assert!(text.contains("Quorate, eBPF on the node: not measured."), "{text}");
        let table = read(raw.path()).unwrap();
        assert!(to_html(&table, raw.path()).contains("quorate-vip/2/report.html"));
    }

    #[test]
    fn a_peer_better_in_anything_is_named() {
        let raw = Raw::new();
        raw.report("quorate-vip/1", &[outcome("api-server-hung-each@m1", 0, 3_000, 900, 7)]);
        raw.report(
            "haproxy-tuned/1",
            &[outcome("api-server-hung-each@m1", 9, 1_000, 950, 2)],
        );
        let text = raw.markdown();
        assert!(
            text.contains(
                "API server hung: haproxy + keepalived, tuned: failed on reused connections: 2 against 7; slowest new connection: \
                 1.00 s against 3.00 s.\n"
            ),
            "{text}"
        );
        assert!(!text.contains("In none of these runs"), "{text}");
    }

    #[test]
    fn none_is_better_only_where_something_was_compared() {
        let raw = Raw::new();
        raw.report("quorate-vip/1", &[outcome("api-server-hung-each@m1", 0, 300, 0, 0)]);
        let alone = raw.markdown();
        assert!(!alone.contains("In none of these runs"), "{alone}");
        assert!(alone.contains("compared: 0;"), "{alone}");
        raw.report("haproxy-copied/1", &[outcome("api-server-hung-each@m1", 0, 300, 0, 0)]);
        let both = raw.markdown();
        assert!(
            both.contains("In none of these runs.\n- Pairs of cells compared: 1;"),
            "{both}"
        );
        assert!(
            both.contains("API server hung with haproxy + keepalived, tuned"),
            "{both}"
        );
    }

    #[test]
    fn what_the_fault_interrupted_has_failed() {
        let raw = Raw::new();
        raw.report("quorate-vip/1", &[outcome("machine-off-each@m1", 1, 900, 700, 0)]);
        raw.put(
            "quorate-vip/1/samples/machine-off-each@m1.jsonl",
            concat!(
                r#"{"at_us":-3000,"from":"m4","kind":"new","late_us":0,"ok":false,"took_us":5001000,"tries":1}"#,
                "\n",
                r#"{"at_us":9000,"from":"m4","kind":"new","late_us":0,"ok":false,"took_us":1000,"tries":1}"#,
                "\n",
                r#"{"at_us":10000,"from":"m4","kind":"new","late_us":0,"ok":true,"took_us":7000,"tries":1}"#,
                "\n",
                r#"{"at_us":10000,"from":"m4","kind":"reused","late_us":0,"ok":true,"took_us":8000,"tries":1}"#,
                "\n",
            ),
        );
        let text = raw.markdown();
        assert!(
            text.contains("2 of 3 (1 interrupted); 5.00 s; 0.70 s; 0 of 1; 0.01 s; 1×"),
            "{text}"
        );
        assert!(!text.contains("Without raw samples"), "{text}");
    }

    #[test]
    fn a_run_on_a_cluster_that_had_not_recovered_is_left_out_and_said() {
        let raw = Raw::new();
        let names = ["etcd-leader-killed", "etcd-follower-cut", "agent-killed"];
        raw.report("quorate-vip/1", &names.map(|name| outcome(name, 0, 900, 0, 0)));
        raw.put(
            "quorate-vip/1/journal.jsonl",
            concat!(
                r#"{"at":"2026-01-01T00:00:00Z","what":{"event":"not-green","name":"etcd-leader-killed","failed":[]}}"#,
                "\n",
                r#"{"at":"2026-01-01T00:00:00Z","what":{"event":"green","name":"etcd-follower-cut","after_ms":4}}"#,
                "\n",
                r#"{"at":"2026-01-01T00:0"#,
            ),
        );
        let table = read(raw.path()).unwrap();
        let runs: Vec<u64> = table.cells.iter().map(|row| row[0].runs).collect();
        assert_eq!(runs, [0, 0, 0, 0, 1, 0, 1, 0]);
        let text = to_markdown(&table, raw.path());
        assert!(
            text.contains("after the run before: Quorate, VIP, round 1, etcd-follower-cut."),
            "{text}"
        );
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert!(read(tempfile::tempdir().unwrap().path()).is_err());
    }
}
