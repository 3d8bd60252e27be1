//! Downloads: resumed with `Range`, retried with back-off, bounded in time, and never used before the sum is right.
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Event,
    error::{Error, Result, io_error},
    pack,
};

/// How patient downloads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connecting, and waiting for the answer's head.
    pub connect: Duration,
    /// A transfer without any byte for this long is given up and resumed.
    pub stall: Duration,
    /// One artefact, all attempts together.
    pub total: Duration,
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// Before the second attempt; doubles each time.
    pub backoff: Duration,
}

impl Default for Limits {
    /// Suits a slow line: 100 MB at 100 kB/s take 17 minutes.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            total: Duration::from_secs(30 * 60),
            attempts: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Checksum files are a few kilobytes.
const TEXT_LIMIT: u64 = 1 << 20;

/// Between two progress events of one transfer.
const PROGRESS_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    mirror: Option<String>,
    limits: Limits,
    /// Half-done and finished downloads, by URL.
    directory: PathBuf,
}

/// How one attempt ended.
enum Attempt {
    Complete,
    /// Worth another try; whether it brought any bytes.
    Broken {
        reason: String,
        progress: bool,
    },
}

impl Client {
    pub(crate) fn new(mirror: Option<String>, limits: Limits, directory: PathBuf) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.connect))
            .timeout_per_read(Some(limits.stall))
            .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            mirror,
            limits,
            directory,
        }
    }

    /// The URL that is really asked: below the mirror, if there is one.
    pub(crate) fn effective(&self, url: &str) -> String {
        match &self.mirror {
            Some(mirror) => {
                let path = url.split_once("://").map_or(url, |(_, path)| path);
                format!("{}/{path}", mirror.trim_end_matches('/'))
            }
            None => url.to_owned(),
        }
    }

    /// A small text, such as a checksum file.
    pub(crate) fn text(&self, unit: &str, url: &str, progress: &mut dyn FnMut(Event)) -> Result<String> {
        let path = self.place(url);
        // Never resumed: it may have changed.
        let _ = fs::remove_file(&path);
        self.complete(unit, url, &path, progress)?;
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(TEXT_LIMIT).read_to_string(&mut text))
            .map_err(io_error("read", &path))?;
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        Ok(text)
    }

    /// The artefact's file, once its SHA-256 is `expected` (or whatever it is, when nothing is expected), and the sum.
    /// The caller removes the file.
    pub(crate) fn file(
        &self,
        unit: &str,
        url: &str,
        expected: Option<&str>,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(PathBuf, String)> {
        let path = self.place(url);
        loop {
            let resumed = fs::metadata(&path).is_ok_and(|found| found.len() > 0);
            self.complete(unit, url, &path, progress)?;
            let (found, _) = pack::sum_file(&path)?;
            if expected.is_none_or(|expected| found == expected) {
                return Ok((path, found));
            }
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            if !resumed {
                let what = self.effective(url);
                return Err(Error::WrongSum {
                    what,
                    found,
                    expected: expected.unwrap_or_default().to_owned(),
                });
            }
            // The first part may be of an earlier, different file.
            let text = "the resumed download has the wrong sum; starting over".to_owned();
            progress(Event::Note {
                unit: unit.to_owned(),
                text,
            });
        }
    }

    /// Repeats attempts until `path` is complete.
    fn complete(&self, unit: &str, url: &str, path: &Path, progress: &mut dyn FnMut(Event)) -> Result<()> {
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        let url = self.effective(url);
        let deadline = Instant::now() + self.limits.total;
        let (mut attempts, mut in_vain) = (0, 0);
        loop {
            attempts += 1;
            match self.attempt(unit, &url, path, deadline, attempts, progress)? {
                Attempt::Complete => return Ok(()),
                Attempt::Broken { reason, progress: true } => {
                    in_vain = 0;
                    progress(Event::Note {
                        unit: unit.to_owned(),
                        text: format!("{url}: {reason}; resuming"),
                    });
                }
                Attempt::Broken {
                    reason,
                    progress: false,
                } => {
                    in_vain += 1;
                    if in_vain >= self.limits.attempts {
                        return Err(Error::Download { url, reason, attempts });
                    }
                    progress(Event::Note {
                        unit: unit.to_owned(),
                        text: format!("{url}: {reason}; trying again"),
                    });
                }
            }
            let pause = self.limits.backoff * 2_u32.saturating_pow(in_vain.saturating_sub(1)).min(64);
            if Instant::now() + pause >= deadline {
                return Err(Error::Download {
                    url,
                    reason: self.too_slow(),
                    attempts,
                });
            }
            thread::sleep(pause);
        }
    }

    /// One request. Errors are those that another attempt would not heal.
    fn attempt(
        &self,
        unit: &str,
        url: &str,
        path: &Path,
        deadline: Instant,
        attempts: u32,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Attempt> {
        let fatal = |reason: String| Error::Download {
            url: url.to_owned(),
            reason,
            attempts,
        };
        let broken = |reason: String| {
            Ok(Attempt::Broken {
                reason,
                progress: false,
            })
        };
        let have = fs::metadata(path).map_or(0, |found| found.len());
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                return Err(fatal(error.to_string()));
            }
            Err(error) => return broken(error.to_string()),
        };
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let start = match response.status().as_u16() {
            200 => 0,
            206 => {
                let range = header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {have}-")) {
                    return Err(fatal(format!(
                        "asked for the bytes from {have} on, the server sent {range:?}"
                    )));
                }
                have
            }
            416 => {
                let size = header("content-range").and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                if size == Some(have) {
                    return Ok(Attempt::Complete);
                }
                fs::remove_file(path).map_err(io_error("remove", path))?;
                return broken("what is there is not the start of it".into());
            }
            status @ (408 | 425 | 429 | 500..) => return broken(format!("HTTP status {status}")),
            404 => {
                return Err(fatal(
                    "HTTP status 404: there is no such release, or the mirror does not have it".into(),
                ));
            }
            status => return Err(fatal(format!("HTTP status {status}"))),
        };
        let total = header("content-length")
            .and_then(|length| length.parse::<u64>().ok())
            .map(|length| start + length);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(io_error("open", path))?;
        file.set_len(start).map_err(io_error("truncate", path))?;
        let mut body = response.body_mut().as_reader();
        let (mut bytes, mut reported) = (start, start);
        let mut buffer = vec![0; 128 * 1024];
        let reason = loop {
            if Instant::now() >= deadline {
                return Err(fatal(self.too_slow()));
            }
            let read = match body.read(&mut buffer) {
                Ok(0) if total.is_none_or(|total| total == bytes) => return Ok(Attempt::Complete),
                Ok(0) => {
                    break format!("the connection ended after {bytes} of {} bytes", total.unwrap_or(0));
                }
                Ok(read) => read,
                Err(error) => break format!("{error} after {bytes} bytes"),
            };
            file.write_all(&buffer[..read]).map_err(io_error("write", path))?;
            bytes += read as u64;
            if bytes - reported >= PROGRESS_BYTES {
                reported = bytes;
                progress(Event::Downloaded {
                    unit: unit.to_owned(),
                    url: url.to_owned(),
                    bytes,
                    total,
                });
            }
        };
        Ok(Attempt::Broken {
            reason,
            progress: bytes > have,
        })
    }

    fn too_slow(&self) -> String {
        format!(
            "not complete after {} s; the next build resumes it",
            self.limits.total.as_secs()
        )
    }

    fn place(&self, url: &str) -> PathBuf {
        let name = url.rsplit('/').next().unwrap_or_default();
        self.directory.join(format!(
            "{}-{name}.part",
            &pack::sum(self.effective(url).as_bytes())[..16]
        ))
    }
}

/// The sum of `file` in the text of a checksum file: a bare sum, or `sha256sum` lines.
pub(crate) fn find_sum(text: &str, file: &str) -> Option<String> {
    let sum = |word: &str| {
        let word = word.to_ascii_lowercase();
        crate::manifest::is_sha256(&word).then_some(word)
    };
    let mut words = text.split_whitespace();
    if let (Some(only), None) = (words.next(), words.next()) {
        return sum(only);
    }
    text.lines().find_map(|line| {
        let (digest, name) = line.split_once(char::is_whitespace)?;
        let name = name.trim().trim_start_matches('*');
        (name.rsplit('/').next() == Some(file)).then(|| sum(digest))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_files() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        assert_eq!(find_sum(&a, "kubelet"), Some(a.clone()));
        let text = format!("{a}  runc.arm64\n{b} *./out/runc.amd64\n");
        assert_eq!(find_sum(&text, "runc.amd64"), Some("b".repeat(64)));
        assert_eq!(find_sum(&text, "runc"), None);
        assert_eq!(find_sum("<html>not found</html>", "x"), None);
        assert_eq!(find_sum("", "x"), None);
    }

    #[test]
    fn a_mirror_has_hosts_as_directories() {
        let client = Client::new(
            Some("http://10.0.0.1:8000/m/".into()),
            Limits::default(),
            PathBuf::new(),
        );
        assert_eq!(
            client.effective("https://dl.k8s.io/release/x"),
            "http://10.0.0.1:8000/m/dl.k8s.io/release/x"
        );
    }
}
