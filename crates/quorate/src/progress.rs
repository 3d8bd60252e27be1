//! A run as people watch it: bars on a terminal, plain lines elsewhere, JSON lines for machines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_run::{Event, Listener};

/// Form of what a verb prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Text,
    Json,
}

/// A listener that shows events in the form wanted. With JSON each event is a line on standard output.
pub(crate) fn listener(output: Output, plain: bool) -> Listener {
    use std::io::IsTerminal;
    match output {
        Output::Json => Arc::new(|event| {
            if let Ok(line) = serde_json::to_string(event) {
                crate::out!("{line}");
            }
        }),
        Output::Text if !plain && std::io::stderr().is_terminal() => {
            let bars = Mutex::new(Bars::new());
            Arc::new(move |event| bars.lock().unwrap_or_else(PoisonError::into_inner).show(event))
        }
        Output::Text => {
            let lines = Mutex::new(Lines::new());
            Arc::new(move |event| lines.lock().unwrap_or_else(PoisonError::into_inner).show(event))
        }
    }
}

/// Plain lines: one per finished step, so that a log says what happened and when.
struct Lines {
    started: Instant,
    titles: BTreeMap<String, String>,
}

impl Lines {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            titles: BTreeMap::new(),
        }
    }

    fn show(&mut self, event: &Event) {
        let at = format!("{:6.1}s", self.started.elapsed().as_secs_f64());
        match event {
            Event::StageStarted { stage, title, .. } => crate::err!("{at}  {stage} — {title}"),
            Event::StepStarted { step, title, .. } => {
                self.titles.insert(step.clone(), title.clone());
            }
            Event::StepDone { step, machine, took_ms } => {
                let title = self.titles.remove(step).unwrap_or_else(|| step.clone());
                crate::err!("{at}    {machine}: {title} ({})", seconds(*took_ms));
            }
            other => talk(other, |line| crate::err!("{at}    {line}")),
        }
    }
}

/// What is worth a line of its own however progress is shown.
fn talk(event: &Event, say: impl Fn(String)) {
    match event {
        Event::StepRetry {
            machine,
            attempt,
            error,
            ..
        } => say(format!("{machine}: trying again ({attempt}): {error}")),
        Event::StepFailed {
            step,
            machine,
            error,
            hint,
            ..
        } => {
            say(format!("{machine}: FAILED {step}: {error}"));
            if let Some(hint) = hint {
                say(format!("hint: {hint}"));
            }
        }
        Event::MachineLost { machine, because } => say(format!("{machine} drops out: {because}")),
        _ => {}
    }
}

/// An overall bar, and one line per machine with what it is doing.
struct Bars {
    all: MultiProgress,
    overall: Option<ProgressBar>,
    machines: BTreeMap<String, ProgressBar>,
    titles: BTreeMap<String, String>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        Self {
            all,
            overall: None,
            machines: BTreeMap::new(),
            titles: BTreeMap::new(),
        }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::RunStarted { steps, .. } => {
                let bar = self.all.add(ProgressBar::new(*steps as u64));
                bar.set_style(style("{elapsed:>4} [{bar:30}] {pos}/{len} {msg}"));
                bar.enable_steady_tick(Duration::from_millis(200));
                self.overall = Some(bar);
            }
            Event::StageStarted { stage, title, .. } => self.message(format!("{stage} — {title}")),
            Event::StepStarted { step, machine, title } => {
                self.titles.insert(step.clone(), title.clone());
                self.machine(machine).set_message(title.clone());
            }
            Event::StepProgress { machine, bytes, of, .. } => {
                self.machine(machine)
                    .set_message(format!("receiving {} of {} MB", bytes / 1_000_000, of / 1_000_000));
            }
            Event::StepWaiting { machine, awaited, .. } => {
                self.machine(machine).set_message(format!("waiting for {awaited}"))
            }
            Event::StepDone { step, machine, .. } => {
                self.titles.remove(step);
                self.machine(machine).set_message("");
                self.advance();
            }
            Event::StepSkipped { .. } => self.advance(),
            Event::StageDone { stage, took_ms, .. } => {
                let line = format!("  {stage:14} {:>7}", seconds(*took_ms));
                let _ = self.all.println(line);
            }
            Event::RunDone { .. } => self.finish(),
            other => {
                if matches!(other, Event::StepFailed { .. }) {
                    self.advance();
                }
                let all = self.all.clone();
                talk(other, |line| {
                    let _ = all.println(line);
                });
            }
        }
    }

    fn machine(&mut self, machine: &str) -> &ProgressBar {
        self.machines.entry(machine.to_owned()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new_spinner());
            bar.set_style(style("  {prefix:12} {wide_msg}"));
            bar.set_prefix(machine.to_owned());
            bar
        })
    }

    fn message(&self, message: String) {
        if let Some(bar) = &self.overall {
            bar.set_message(message);
        }
    }

    fn advance(&self) {
        if let Some(bar) = &self.overall {
            bar.inc(1);
        }
    }

    fn finish(&mut self) {
        for bar in self.machines.values() {
            bar.finish_and_clear();
        }
        if let Some(bar) = self.overall.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// `350 ms`, `4.2 s`.
pub(crate) fn seconds(ms: u64) -> String {
    if ms < 1_000 {
        format!("{ms} ms")
    } else {
        format!("{:.1} s", ms as f64 / 1_000.0)
    }
}
