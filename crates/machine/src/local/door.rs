//! The blob door: packed blobs for other machines of the same run, over plain TCP.
//!
//! ```text
//! caller: token (32 bytes) · packed SHA-256 (32 bytes) · offset (u64, little-endian)
//! door:   length of the whole (u64, little-endian; 0: not here, or a wrong token) · bytes from offset on
//! ```
//! What travels is public software and is verified by hash on arrival; the token only keeps strangers from using up
//! the uplink. The door closes when the packed blobs are pruned, or with the session that opened it.

use std::{
    io::SeekFrom,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::AbortHandle,
};

use crate::{
    error::{ErrorKind, RemoteError},
    hash::hex,
    proto::{PackedBlob, Token},
};

/// Callers served at once; more wait.
const CALLERS: usize = 16;
/// A peer that neither sends nor takes anything for that long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Ports blocked between machines must show quickly: the operator then sends instead.
const CONNECT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Door(Mutex<Option<AbortHandle>>);

impl Door {
    /// Opens, or opens anew, and says on which port.
    pub(super) async fn open(&self, listen: IpAddr, token: Token, packed: PathBuf) -> Result<u16, RemoteError> {
        let io = |error: std::io::Error| RemoteError::io(format_args!("listen on {listen}"), &error);
        let listener = TcpListener::bind((listen, 0)).await.map_err(io)?;
        let port = listener.local_addr().map_err(io)?.port();
        let serving = tokio::spawn(async move {
            let callers = Arc::new(Semaphore::new(CALLERS));
            loop {
                let Ok(permit) = callers.clone().acquire_owned().await else {
                    return;
                };
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (token, packed) = (token.clone(), packed.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &token, &packed).await;
                    drop(permit);
                });
            }
        });
        self.close();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving.abort_handle());
        Ok(port)
    }

    pub(super) fn close(&self) {
        if let Some(serving) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            serving.abort();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(mut stream: TcpStream, token: &Token, packed: &Path) -> std::io::Result<()> {
    let mut asked = [0; 72];
    tokio::time::timeout(SILENCE, stream.read_exact(&mut asked)).await??;
    let (key, rest) = asked.split_at(32);
    let (sum, offset) = rest.split_at(32);
    let offset = u64::from_le_bytes(offset.try_into().unwrap_or_default());
    // Every byte is compared, so that the time taken does not tell how many were right.
    let right = key.iter().zip(token.0).fold(0, |wrong, (a, b)| wrong | (a ^ b)) == 0;
    let file = if right {
        tokio::fs::File::open(packed.join(hex(sum))).await.ok()
    } else {
        None
    };
    let Some(mut file) = file else {
        return stream.write_all(&0u64.to_le_bytes()).await;
    };
    stream.write_all(&file.metadata().await?.len().to_le_bytes()).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = file.read(&mut buffer).await?;
        if got == 0 {
            return stream.shutdown().await;
        }
        tokio::time::timeout(SILENCE, stream.write_all(&buffer[..got])).await??;
    }
}

/// Appends to `part` what it lacks.
pub(super) async fn fetch(from: SocketAddr, token: &Token, blob: &PackedBlob, part: &Path) -> Result<(), RemoteError> {
    let net = |error: std::io::Error| RemoteError::io(format_args!("peer {from}"), &error);
    let disk = |error: std::io::Error| RemoteError::io(part.display(), &error);
    let silent = |_| RemoteError::new(ErrorKind::Timeout, format!("peer {from} is silent"));
    let mut stream = tokio::time::timeout(CONNECT, TcpStream::connect(from))
        .await
        .map_err(silent)?
        .map_err(net)?;
    let mut file = tokio::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(part)
        .await
        .map_err(disk)?;
    let mut have = file.metadata().await.map_err(disk)?.len();
    if have > blob.packed_size {
        file.set_len(0).await.map_err(disk)?;
        have = 0;
    }
    let mut asked = Vec::with_capacity(72);
    asked.extend(token.0);
    asked.extend((0..32).map_while(|i| u8::from_str_radix(blob.packed_sha256.get(i * 2..i * 2 + 2)?, 16).ok()));
    asked.extend(have.to_le_bytes());
    stream.write_all(&asked).await.map_err(net)?;
    let size = tokio::time::timeout(SILENCE, stream.read_u64_le())
        .await
        .map_err(silent)?
        .map_err(net)?;
    if size != blob.packed_size {
        return Err(RemoteError::new(
            ErrorKind::NotFound,
            format!("peer {from} does not have it"),
        ));
    }
    let mut buffer = vec![0; 256 << 10];
    while have < size {
        let got = tokio::time::timeout(SILENCE, stream.read(&mut buffer))
            .await
            .map_err(silent)?
            .map_err(net)?;
        if got == 0 {
            return Err(RemoteError::failed(format!(
                "peer {from} stopped after {have} of {size} bytes"
            )));
        }
        file.write_all(&buffer[..got]).await.map_err(disk)?;
        have += got as u64;
    }
    file.flush().await.map_err(disk)
}
