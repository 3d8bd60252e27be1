//! `quorate bundle`: the upstream programs and images of one Kubernetes version.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use quorate_bundle::{BuildOptions, Bundle, DEFAULT_KUBERNETES, Event, Manifest, Origin};

use crate::{console, out};

/// Build, check and look into bundles: all upstream programs and images of one Kubernetes version.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a bundle; finished parts are kept, so an interrupted build goes on where it was.
    Build(BuildArgs),
    /// Recompute every checksum and list everything that is wrong.
    Verify {
        /// Directory or .tar.zst file [default: the newest one built here].
        path: Option<PathBuf>,
    },
    /// Show what a bundle holds.
    List {
        /// Directory or .tar.zst file [default: the newest one built here].
        path: Option<PathBuf>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Write one program or image of a bundle to a file.
    Extract {
        /// As `list` shows it, such as kubectl.
        name: String,
        /// File to write.
        file: PathBuf,
        /// Directory or .tar.zst file [default: the newest one built here].
        #[arg(long, value_name = "PATH")]
        bundle: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Kubernetes version.
    #[arg(long, value_name = "VERSION", default_value = DEFAULT_KUBERNETES)]
    kubernetes: String,
    /// "upstream" downloads the official releases, "source" compiles them with Go; else a directory of binaries.
    #[arg(long, value_name = "upstream|source|DIR", default_value = "upstream")]
    from: String,
    /// Also write the bundle there: to one file if it ends in .tar.zst, else to a directory.
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Recipes and go.mod files to use instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
    /// Download from below this URL; the official hosts are its first path elements (URL/dl.k8s.io/release/…).
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Static quorate program for the pause and probe images [default: this one].
    #[arg(long, value_name = "FILE")]
    quorate: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub(crate) async fn run(args: BundleArgs) -> anyhow::Result<ExitCode> {
    // All of it reads, hashes and compiles for seconds to minutes.
    tokio::task::spawn_blocking(|| match args.verb {
        Verb::Build(args) => build(args),
        Verb::Verify { path } => verify(&path.unwrap_or_else(newest)),
        Verb::List { path, output } => list(&path.unwrap_or_else(newest), output),
        Verb::Extract { name, file, bundle } => extract(&bundle.unwrap_or_else(newest), &name, &file),
    })
    .await
    .context("the bundle task ended early")?
}

fn newest() -> PathBuf {
    quorate_bundle::newest(&quorate_bundle::default_cache(), DEFAULT_KUBERNETES)
}

fn build(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let quorate = match args.quorate {
        Some(path) => path,
        None => std::env::current_exe().context("find this program's own file")?,
    };
    let options = BuildOptions {
        kubernetes: args.kubernetes,
        from: match args.from.as_str() {
            "upstream" => Origin::Upstream,
            "source" => Origin::Source,
            directory => Origin::Directory(directory.into()),
        },
        sources: args.sources,
        output: args.output.clone(),
        quorate: Some(quorate),
        mirror: args.mirror,
        ..BuildOptions::default()
    };
    let started = Instant::now();
    let mut screen = Screen::new();
    let bundle = quorate_bundle::build(&options, &mut |event| screen.show(event));
    screen.clear();
    let bundle = bundle?;
    let (size, packed) = sizes(bundle.manifest());
    eprint(format_args!(
        "bundle for {} from {}: {} blobs, {} ({} packed), in {}\n",
        bundle.manifest().kubernetes,
        bundle.manifest().created_from,
        bundle.manifest().blobs.len(),
        bytes(size),
        bytes(packed),
        seconds(started.elapsed()),
    ));
    let path = args.output.unwrap_or_else(|| bundle.directory().to_owned());
    out!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn verify(path: &Path) -> anyhow::Result<ExitCode> {
    let (manifest, problems) = quorate_bundle::verify(path)?;
    for problem in &problems {
        out!("{problem}");
    }
    if problems.is_empty() {
        let (size, _) = sizes(&manifest);
        out!(
            "{} is whole: {} blobs, {}",
            path.display(),
            manifest.blobs.len(),
            bytes(size)
        );
        return Ok(ExitCode::SUCCESS);
    }
    eprint(format_args!(
        "{}: {} problems; build it again, or copy it again from where it is whole\n",
        path.display(),
        problems.len()
    ));
    Ok(ExitCode::FAILURE)
}

fn list(path: &Path, format: Format) -> anyhow::Result<ExitCode> {
    let manifest = quorate_bundle::manifest(path)?;
    match format {
        Format::Json => out!("{}", serde_json::to_string_pretty(&manifest)?),
        Format::Text => console::data(table(&manifest).as_bytes()),
    }
    Ok(ExitCode::SUCCESS)
}

fn extract(path: &Path, name: &str, file: &Path) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(path)?;
    bundle.extract(bundle.blob(name)?, file)?;
    Ok(ExitCode::SUCCESS)
}

fn table(manifest: &Manifest) -> String {
    let width = manifest
        .blobs
        .iter()
        .map(|blob| blob.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!(
        "Kubernetes {} for {}, from {}\n\n{:<7} {:<width$} {:<10} {:>9} {:>9}  {:<12} SHA-256\n",
        manifest.kubernetes,
        manifest.architecture,
        manifest.created_from,
        "KIND",
        "NAME",
        "VERSION",
        "SIZE",
        "PACKED",
        "LICENCE",
    );
    for blob in &manifest.blobs {
        // Licences of images that hold Debian packages are long; the first one is the program's own.
        let licence = blob.licence.split(' ').next().unwrap_or_default();
        text.push_str(&format!(
            "{:<7} {:<width$} {:<10} {:>9} {:>9}  {:<12} {}\n",
            blob.kind.as_str(),
            blob.name,
            blob.version,
            bytes(blob.size),
            bytes(blob.packed_size),
            licence,
            &blob.sha256[..12],
        ));
    }
    let (size, packed) = sizes(manifest);
    text.push_str(&format!(
        "\n{} blobs, {}, {} packed\n",
        manifest.blobs.len(),
        bytes(size),
        bytes(packed)
    ));
    text
}

/// Progress on stderr: a line per finished part, and on a terminal one changing line below them.
struct Screen {
    terminal: bool,
    position: String,
    packages: usize,
    drawn: Instant,
}

/// A terminal that is redrawn more often only flickers.
const REDRAW: Duration = Duration::from_millis(100);

impl Screen {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            terminal,
            position: String::new(),
            packages: 0,
            drawn: Instant::now(),
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Started { unit, index, total } => {
                self.packages = 0;
                self.position = format!("[{}/{total}] {unit}", index + 1);
                self.status("", true);
            }
            Event::Line { line, .. } => {
                self.packages += 1;
                self.status(&format!(": {} packages, {line}", self.packages), false);
            }
            Event::Downloaded {
                url,
                bytes: done,
                total,
                ..
            } => {
                let total = total.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
                let name = url.rsplit('/').next().unwrap_or_default();
                self.status(&format!(": {name} {}{total}", bytes(done)), false);
            }
            Event::Note { unit, text } => self.line(&format!("note: {unit}: {text}")),
            Event::Finished {
                unit,
                cached,
                took,
                size,
                packed_size,
            } => {
                let how = if cached { "cached".to_owned() } else { seconds(took) };
                self.line(&format!(
                    "{unit:<50} {how:>8} {:>9} {:>9} packed",
                    bytes(size),
                    bytes(packed_size)
                ));
            }
        }
    }

    fn line(&mut self, text: &str) {
        self.clear();
        eprint(format_args!("{text}\n"));
    }

    fn status(&mut self, detail: &str, now: bool) {
        if self.terminal && (now || self.drawn.elapsed() >= REDRAW) {
            self.drawn = Instant::now();
            let text: String = format!("{}{detail}", self.position).chars().take(100).collect();
            eprint(format_args!("\r\x1b[2K{text}"));
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint(format_args!("\r\x1b[2K"));
        }
    }
}

fn sizes(manifest: &Manifest) -> (u64, u64) {
    manifest.blobs.iter().fold((0, 0), |(size, packed), blob| {
        (size + blob.size, packed + blob.packed_size)
    })
}

/// Megabytes with one decimal, as package managers show them.
fn bytes(count: u64) -> String {
    format!("{:.1} MB", count as f64 / 1e6)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Progress that nobody can read any more is no reason to stop a build.
fn eprint(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "format": quorate_bundle::FORMAT,
            "kubernetes": "v1.36.3",
            "architecture": "amd64",
            "created_from": "source",
            "blobs": [{
                "name": "kubelet", "kind": "binary", "version": "v1.36.3", "origin": "go", "licence": "Apache-2.0",
                "sha256": "0123456789abcdef".repeat(4), "size": 60_133_538,
                "packed_sha256": "ab".repeat(32), "packed_size": 17_066_835,
                "path": "/usr/local/bin/kubelet", "mode": "0755",
            }],
        }))
        .unwrap();
        assert_eq!(
            table(&manifest),
            "Kubernetes v1.36.3 for amd64, from source\n\n\
             KIND    NAME    VERSION         SIZE    PACKED  LICENCE      SHA-256\n\
             binary  kubelet v1.36.3      60.1 MB   17.1 MB  Apache-2.0   0123456789ab\n\n\
             1 blobs, 60.1 MB, 17.1 MB packed\n"
        );
    }
}
