//! Compressing a file into its content-addressed place, and back.
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use sha2::{Digest, Sha256};

use crate::error::{Result, io_error};

/// Measured on Go binaries: beyond it the time doubles per level for two or three per cent of size.
pub(crate) const LEVEL: i32 = 6;

/// Large enough that system calls do not matter, small enough to stay in the second-level cache.
const BUFFER: usize = 256 * 1024;

/// Sums and sizes of a file before and after compression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) sha256: String,
    pub(crate) size: u64,
    pub(crate) packed_sha256: String,
    pub(crate) packed_size: u64,
}

/// Compresses each file into `blobs/<sha256 of its content>`, several at once; results are in the order of `files`.
pub(crate) fn pack_all(files: &[PathBuf], blobs: &Path) -> Result<Vec<Packed>> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(files.len());
    let next = Mutex::new(0..files.len());
    let results: Mutex<Vec<Option<Result<Packed>>>> = Mutex::new(files.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let taken = lock(&next).next();
                    let Some(index) = taken else { break };
                    let packed = pack(&files[index], blobs);
                    lock(&results)[index] = Some(packed);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

/// Compresses `file` into `blobs/<sha256>`.
fn pack(file: &Path, blobs: &Path) -> Result<Packed> {
    let mut input = File::open(file).map_err(io_error("open", file))?;
    let length = input.metadata().map_err(io_error("stat", file))?.len();
    let staged = tempfile::NamedTempFile::new_in(blobs).map_err(io_error("create a file in", blobs))?;
    let compress = |input: &mut File| -> io::Result<Packed> {
        let mut encoder = zstd::stream::Encoder::new(Hashing::new(staged.as_file()), LEVEL)?;
        encoder.include_checksum(false)?; // SHA-256 covers it
        encoder.set_pledged_src_size(Some(length))?;
        encoder.include_contentsize(true)?;
        let mut content = Hashing::new(encoder);
        copy(input, &mut content)?;
        let (encoder, sha256, size) = content.finish();
        let (_, packed_sha256, packed_size) = encoder.finish()?.finish();
        Ok(Packed {
            sha256,
            size,
            packed_sha256,
            packed_size,
        })
    };
    let packed = compress(&mut input).map_err(io_error("compress", file))?;
    let place = blobs.join(&packed.sha256);
    let staged = staged.into_temp_path();
    fs::set_permissions(&staged, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(io_error("set permissions of", &place))?;
    staged
        .persist(&place)
        .map_err(|error| io_error("rename to", &place)(error.error))?;
    Ok(packed)
}

/// Reads one packed stream to its end, writing the content to `output`; returns what was found.
pub(crate) fn unpack(packed: impl Read, output: &mut dyn Write) -> io::Result<Packed> {
    let mut reader = HashingReader {
        inner: packed,
        hash: Sha256::new(),
        size: 0,
    };
    let mut content = Hashing::new(output);
    {
        let mut decoder =
            zstd::stream::Decoder::with_buffer(BufReader::with_capacity(BUFFER, &mut reader))?.single_frame();
        copy(&mut decoder, &mut content)?;
        // What follows the frame would never be read by a decoder, so it must not be there; hash it as well.
        let mut rest = decoder.finish();
        io::copy(&mut rest, &mut io::sink())?;
    }
    let (_, sha256, size) = content.finish();
    Ok(Packed {
        sha256,
        size,
        packed_sha256: hex(reader.hash),
        packed_size: reader.size,
    })
}

/// SHA-256 (lower-case hexadecimal) and length of a file.
pub(crate) fn sum_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut hashing = Hashing::new(io::sink());
    copy(&mut file, &mut hashing).map_err(io_error("read", path))?;
    let (_, sha256, size) = hashing.finish();
    Ok((sha256, size))
}

pub(crate) fn sum(content: &[u8]) -> String {
    hex(Sha256::new_with_prefix(content))
}

/// Passes writes on and hashes what was accepted.
pub(crate) struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }

    /// The writer, the SHA-256 and the number of bytes.
    pub(crate) fn finish(self) -> (W, String, u64) {
        (self.inner, hex(self.hash), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.size += read as u64;
        Ok(read)
    }
}

fn copy(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => output.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        let directory = tempfile::tempdir().unwrap();
        let content = vec![7_u8; 1_000_000];
        let files: Vec<_> = (0..3_u8)
            .map(|index| {
                let file = directory.path().join(format!("f{index}"));
                fs::write(&file, &content[..usize::from(index) * 1000]).unwrap();
                file
            })
            .collect();
        let blobs = directory.path().join("blobs");
        fs::create_dir(&blobs).unwrap();
        let packed = pack_all(&files, &blobs).unwrap();
        assert_eq!(
            packed.iter().map(|packed| packed.size).collect::<Vec<_>>(),
            [0, 1000, 2000]
        );
        for (packed, file) in packed.iter().zip(&files) {
            assert_eq!(sum_file(file).unwrap(), (packed.sha256.clone(), packed.size));
            let stored = blobs.join(&packed.sha256);
            assert_eq!(
                sum_file(&stored).unwrap(),
                (packed.packed_sha256.clone(), packed.packed_size)
            );
            let mut out = Vec::new();
            assert_eq!(&unpack(File::open(stored).unwrap(), &mut out).unwrap(), packed);
            assert_eq!(out, fs::read(file).unwrap());
        }
    }

    #[test]
    fn trailing_bytes_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, b"hello").unwrap();
        let packed = pack(&file, directory.path()).unwrap();
        let mut stored = fs::read(directory.path().join(&packed.sha256)).unwrap();
        stored.extend_from_slice(b"tail");
        let found = unpack(&stored[..], &mut io::sink()).unwrap();
        assert_eq!(
            (found.sha256.as_str(), found.packed_size),
            (packed.sha256.as_str(), packed.packed_size + 4)
        );
        assert_ne!(found.packed_sha256, packed.packed_sha256);
    }

    #[test]
    fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = pack_all(&[directory.path().join("absent")], directory.path())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("open ") && error.contains("absent"), "{error}");
    }
}
