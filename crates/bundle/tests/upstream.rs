//! Official releases from a local HTTP server that behaves as badly as real ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use quorate_bundle::{BuildOptions, Bundle, Event, Limits, Origin, build};

const TOOL: &str = "/example.org/v1.0.0/tool-amd64";
const SUMS: &str = "/example.org/v1.0.0/SHA256SUMS";
const PACK: &str = "/example.org/v1.0.0/pack.tgz";

/// What the server does with a request for a path; the n-th request gets the n-th behaviour, the last one stays.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Good,
    Status(u16),
    /// Announces everything, sends this many bytes of it and closes.
    Truncated(usize),
    /// Sends this many bytes and then nothing, with the connection open.
    Stalled(usize),
    /// Sends 1 kB every few milliseconds, to the end.
    Slow,
    /// Ignores `Range`.
    NoRange,
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>, behaviours: &[(&str, &[Behaviour])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let behaviours: BTreeMap<String, Vec<Behaviour>> = behaviours
            .iter()
            .map(|(path, list)| ((*path).to_owned(), list.to_vec()))
            .collect();
        let files = Arc::new(files);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, seen, behaviours) = (Arc::clone(&files), Arc::clone(&seen), behaviours.clone());
                thread::spawn(move || {
                    let _ = answer(stream, &files, &seen, &behaviours);
                });
            }
        });
        Self { address, requests }
    }

    /// `path` or `path from-byte`, in order.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    seen: &Mutex<Vec<String>>,
    behaviours: &BTreeMap<String, Vec<Behaviour>>,
) -> std::io::Result<()> {
    let (mut path, mut from) = (String::new(), 0);
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap().to_owned();
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let number = {
        let mut seen = seen.lock().unwrap();
        let number = seen
            .iter()
            .filter(|request| request.split(' ').next() == Some(&path))
            .count();
        seen.push(if from > 0 {
            format!("{path} {from}")
        } else {
            path.clone()
        });
        number
    };
    let behaviour = behaviours
        .get(&path)
        .and_then(|list| list.get(number).or(list.last()))
        .copied();
    let behaviour = behaviour.unwrap_or(Behaviour::Good);
    let Some(content) = files.get(&path) else {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    };
    let all = content.len();
    if let Behaviour::NoRange = behaviour {
        from = 0;
    }
    match behaviour {
        Behaviour::Status(status) => {
            return write!(
                stream,
                "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        _ if from >= all && from > 0 => {
            let head = "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n";
            return write!(stream, "{head}Content-Range: bytes */{all}\r\n\r\n");
        }
        _ if from > 0 => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{all}\r\n",
            all - 1
        )?,
        _ => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    let body = &content[from..];
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    match behaviour {
        Behaviour::Truncated(bytes) => stream.write_all(&body[..bytes.min(body.len())]),
        Behaviour::Stalled(bytes) => {
            stream.write_all(&body[..bytes.min(body.len())])?;
            thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Behaviour::Slow => body.chunks(1024).try_for_each(|chunk| {
            thread::sleep(Duration::from_millis(30));
            stream.write_all(chunk)
        }),
        _ => stream.write_all(body),
    }
}

/// 50 kB that do not compress.
fn tool() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..50_000).map(|_| next()).collect()
}

fn sha256(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn pack(names: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(name.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, format!("./bin/{name}"), name.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let pack = pack(&["one", "two"]);
    let sums = format!("{}  pack.tgz\n{} *tool-amd64\n", sha256(&pack), sha256(&tool()));
    BTreeMap::from([
        (TOOL.into(), tool()),
        (SUMS.into(), sums.into_bytes()),
        (PACK.into(), pack),
    ])
}

fn recipe(root: &Path, extra: &str) -> PathBuf {
    let directory = root.join("bundles");
    fs::create_dir_all(&directory).unwrap();
    let text = format!(
        r#"
kubernetes: v1.0.0
components:
  - name: tools
    version: v1.0.0
    licence: MIT
    source: {{directory: tools, ldflags: ""}}
    binaries: [{{name: tool, package: tool}}, {{name: one, package: one}}, {{name: two, package: two}}]
    downloads:
      - url: "https://example.org/{{version}}/tool-amd64"
        sums: "https://example.org/{{version}}/SHA256SUMS"
        take: {{tool: ""}}
        {extra}
      - url: "https://example.org/{{version}}/pack.tgz"
        sums: "https://example.org/{{version}}/SHA256SUMS"
        take: {{one: bin/one, two: bin/two}}
"#
    );
    fs::write(directory.join("v1.0.0.yaml"), text).unwrap();
    directory
}

fn options(root: &Path, server: &Server) -> BuildOptions {
    BuildOptions {
        kubernetes: "v1.0.0".into(),
        from: Origin::Upstream,
        sources: Some(recipe(root, "")),
        cache: root.join("cache"),
        mirror: Some(server.address.clone()),
        limits: Limits {
            connect: Duration::from_secs(3),
            stall: Duration::from_millis(300),
            total: Duration::from_secs(8),
            attempts: 3,
            backoff: Duration::from_millis(5),
        },
        ..BuildOptions::default()
    }
}

fn content(bundle: &Bundle, name: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    bundle.extract(bundle.blob(name).unwrap(), &file).unwrap();
    fs::read(file).unwrap()
}

/// Builds; the result, the notes and the requests for the tool.
fn attempt(behaviours: &[Behaviour]) -> (Result<Bundle, String>, Vec<String>, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(files(), &[(TOOL, behaviours)]);
    let mut notes = Vec::new();
    let built = build(&options(root.path(), &server), &mut |event| {
        if let Event::Note { text, .. } = event {
            notes.push(text.replace(&server.address, ""));
        }
    });
    let built = built.map_err(|error| error.to_string().replace(&server.address, ""));
    if let Ok(bundle) = &built {
        assert_eq!(content(bundle, "tool"), tool());
        assert_eq!(content(bundle, "two"), b"two");
        assert_eq!(bundle.verify(), []);
        let left: Vec<_> = fs::read_dir(root.path().join("cache/downloads")).unwrap().collect();
        assert!(left.is_empty(), "downloads are removed once they are packed: {left:?}");
    }
    let requests = server
        .requests()
        .into_iter()
        .filter(|request| request.starts_with(TOOL))
        .collect();
    (built, notes, requests)
}

#[test]
fn a_good_server_is_asked_once() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(files(), &[]);
    let options = options(root.path(), &server);
    let bundle = build(&options, &mut |_| {}).unwrap();
    assert_eq!(server.requests(), [SUMS, TOOL, SUMS, PACK]);
    let tool = bundle.blob("tool").unwrap();
    assert_eq!(
        tool.origin,
        format!("https://example.org/v1.0.0/tool-amd64 sha256:{}", sha256(&self::tool()))
    );
    assert_eq!(
        (tool.licence.as_str(), tool.path.as_deref()),
        ("MIT", Some("/usr/local/bin/tool"))
    );
    assert_eq!(bundle.manifest().created_from, "upstream");
    build(&options, &mut |_| {}).unwrap();
    assert_eq!(server.requests().len(), 4, "the second build downloads nothing");
}

#[test]
fn a_truncated_transfer_is_resumed() {
    let (built, notes, requests) = attempt(&[Behaviour::Truncated(20_000), Behaviour::Good]);
    built.unwrap();
    assert_eq!(requests, [TOOL.to_owned(), format!("{TOOL} 20000")]);
    assert!(
        notes[0].contains("after 20000") && notes[0].ends_with("; resuming"),
        "{notes:?}"
    );
}

#[test]
fn a_stalled_transfer_is_resumed() {
    let started = Instant::now();
    let (built, notes, requests) = attempt(&[Behaviour::Stalled(30_000), Behaviour::Good]);
    built.unwrap();
    assert_eq!(requests, [TOOL.to_owned(), format!("{TOOL} 30000")]);
    assert!(notes[0].contains("after 30000"), "{notes:?}");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "the stall is noticed, not sat out"
    );
}

#[test]
fn a_slow_transfer_is_left_alone() {
    let (built, _, requests) = attempt(&[Behaviour::Slow]);
    built.unwrap();
    assert_eq!(requests, [TOOL]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (built, _, requests) = attempt(&[Behaviour::Truncated(20_000), Behaviour::NoRange]);
    built.unwrap();
    assert_eq!(requests.len(), 2);
}

#[test]
fn an_overloaded_server_is_asked_again() {
    let (built, notes, requests) = attempt(&[Behaviour::Status(503), Behaviour::Status(429), Behaviour::Good]);
    built.unwrap();
    assert_eq!(requests.len(), 3);
    assert!(notes[0].ends_with("HTTP status 503; trying again"), "{notes:?}");
}

#[test]
fn attempts_are_bounded() {
    let (built, _, requests) = attempt(&[Behaviour::Status(503)]);
    assert_eq!(
        built.unwrap_err(),
        format!("download {TOOL}: HTTP status 503 (after 3 attempts)")
    );
    assert_eq!(requests.len(), 3);
}

#[test]
fn time_is_bounded() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(files(), &[(TOOL, &[Behaviour::Slow])]);
    let mut options = options(root.path(), &server);
    options.limits.total = Duration::from_millis(700);
    let error = build(&options, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("not complete after 0 s; the next build resumes it"),
        "{error}"
    );
    options.limits.total = Duration::from_secs(30);
    build(&options, &mut |_| {}).unwrap();
    let requests = server.requests();
    let resumed = requests
        .iter()
        .filter(|request| request.starts_with(&format!("{TOOL} ")))
        .count();
    assert_eq!(resumed, 1, "the second build asked for the rest only: {requests:?}");
}

#[test]
fn a_missing_release_is_not_asked_for_again() {
    let (built, _, requests) = attempt(&[Behaviour::Status(404)]);
    assert_eq!(
        built.unwrap_err(),
        format!("download {TOOL}: HTTP status 404: there is no such release, or the mirror does not have it")
    );
    assert_eq!(requests.len(), 1);
}

#[test]
fn a_wrong_sum_is_refused_and_nothing_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let mut wrong = files();
    wrong.insert(TOOL.into(), b"not the tool".to_vec());
    let server = Server::start(wrong, &[]);
    let error = build(&options(root.path(), &server), &mut |_| {})
        .unwrap_err()
        .to_string();
    let found = sha256(b"not the tool");
    assert!(
        error.contains(&format!("SHA-256 is {found}, expected {}", sha256(&tool()))),
        "{error}"
    );
    assert!(!root.path().join("cache/bundles").exists());
    assert_eq!(fs::read_dir(root.path().join("cache/downloads")).unwrap().count(), 0);
}

#[test]
fn the_start_of_another_file_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(
        files(),
        &[(
            TOOL,
            &[Behaviour::Truncated(10_000), Behaviour::Status(403), Behaviour::Good],
        )],
    );
    build(&options(root.path(), &server), &mut |_| {}).unwrap_err();
    let downloads = root.path().join("cache/downloads");
    let part = fs::read_dir(&downloads).unwrap().flatten().next().unwrap().path();
    assert_eq!(fs::metadata(&part).unwrap().len(), 10_000);
    fs::write(&part, vec![0; 10_000]).unwrap();

    let mut notes = Vec::new();
    let bundle = build(&options(root.path(), &server), &mut |event| {
        if let Event::Note { text, .. } = event {
            notes.push(text);
        }
    })
    .unwrap();
    assert_eq!(content(&bundle, "tool"), tool());
    assert!(notes.iter().any(|note| note.contains("starting over")), "{notes:?}");
}

#[test]
fn a_pinned_sum_wins_over_the_published_one() {
    let root = tempfile::tempdir().unwrap();
    let mut wrong = files();
    wrong.insert(TOOL.into(), b"replaced".to_vec());
    let pack_sum = sha256(&wrong[PACK]);
    let sums = format!("{pack_sum}  pack.tgz\n{}  tool-amd64\n", sha256(b"replaced"));
    wrong.insert(SUMS.into(), sums.into_bytes());
    let server = Server::start(wrong, &[]);
    let pinned = format!("pinned: {{amd64: {0}, arm64: {0}}}", sha256(&tool()));
    let mut options = options(root.path(), &server);
    options.sources = Some(recipe(root.path(), &pinned));
    let error = build(&options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains(&format!("expected {}", sha256(&tool()))), "{error}");
}

#[test]
fn no_sum_and_no_https_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(files(), &[]);
    let options = options(root.path(), &server);
    let file = root.path().join("bundles/v1.0.0.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("        sums: \"https://example.org/{version}/SHA256SUMS\"\n", ""),
    )
    .unwrap();
    let error = build(&options, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("no checksum is pinned or published, and the transfer is not https"),
        "{error}"
    );
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn an_archive_without_a_file_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut files = files();
    let pack = pack(&["one"]);
    files.insert(
        SUMS.into(),
        format!("{} pack.tgz\n{} tool-amd64\n", sha256(&pack), sha256(&tool())).into_bytes(),
    );
    files.insert(PACK.into(), pack);
    let server = Server::start(files, &[]);
    let error = build(&options(root.path(), &server), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("pack.tgz: the archive does not have bin/two"),
        "{error}"
    );
}

#[test]
fn nobody_listening_is_said() {
    let root = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server {
        address: format!("http://{port}"),
        requests: Arc::default(),
    };
    let error = build(&options(root.path(), &server), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/SHA256SUMS: ") && error.ends_with("(after 3 attempts)"),
        "{error}"
    );
}
