//! Frames on a byte stream: `u32` length (little-endian), then that many bytes: `u64` request id and a postcard value.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame either side accepts. A length beyond it is noise on the stream (a login banner read as a number), not
/// a message to wait for.
pub(crate) const MAX_FRAME: usize = 64 << 20;

const ID: usize = size_of::<u64>();

pub(crate) fn encode<T: Serialize>(id: u64, value: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    frame.extend_from_slice(&id.to_le_bytes());
    let mut frame = postcard::to_extend(value, frame).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is too long; the limit is {MAX_FRAME}"),
        ));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

pub(crate) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), id: u64, value: &T) -> io::Result<()> {
    stream.write_all(&encode(id, value)?).await?;
    stream.flush().await
}

/// The next frame; `None` at a clean end, an error at an end in the middle, a bad length or a value that is none.
pub(crate) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u64, T)>> {
    let mut length = [0; 4];
    match stream.read(&mut length).await? {
        0 => return Ok(None),
        got => stream.read_exact(&mut length[got..]).await?,
    };
    let length = u32::from_le_bytes(length) as usize;
    if !(ID..=MAX_FRAME).contains(&length) {
        return Err(invalid(format!(
            "a frame of {length} bytes: the other side does not speak quorate's protocol"
        )));
    }
    // Grown as bytes arrive, so that a wrong length alone does not take memory.
    let mut frame = Vec::with_capacity(length.min(1 << 20));
    if stream.take(length as u64).read_to_end(&mut frame).await? < length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the stream ended inside a frame",
        ));
    }
    let (id, value) = frame.split_at(ID);
    let id = u64::from_le_bytes(id.try_into().map_err(|_| invalid("no id".into()))?);
    let value = postcard::from_bytes(value).map_err(|error| invalid(format!("a frame that is no message: {error}")))?;
    Ok(Some((id, value)))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{Exec, FileWrite, Request, Response};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn requests() -> impl Strategy<Value = Request> {
        let text = "[a-z/.]{0,20}";
        prop_oneof![
            (text, any::<Vec<u8>>(), any::<u32>()).prop_map(|(path, content, mode)| Request::Write {
                files: vec![FileWrite::new(path, content, mode)],
                run_id: "r".into(),
            }),
            proptest::collection::vec(text, 0..5).prop_map(|argv| Request::Exec(Exec::new(argv))),
            (text, any::<u64>()).prop_map(|(path, max_bytes)| Request::Read { path, max_bytes }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(messages in proptest::collection::vec((any::<u64>(), requests()), 0..8)) {
            let mut stream = Vec::new();
            for (id, request) in &messages {
                stream.extend(encode(*id, request).unwrap());
            }
            let mut stream = &stream[..];
            for message in messages {
                prop_assert_eq!(block_on(read::<Request>(&mut stream)).unwrap(), Some(message));
            }
            prop_assert!(block_on(read::<Request>(&mut stream)).unwrap().is_none());
        }

        #[test]
        fn a_cut_stream_is_an_error_not_a_message(request in requests(), cut in any::<prop::sample::Index>()) {
            let frame = encode(1, &request).unwrap();
            let cut = 1 + cut.index(frame.len() - 1);
            let result = block_on(read::<Request>(&mut &frame[..cut]));
            prop_assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn garbage_neither_panics_nor_takes_memory(garbage: Vec<u8>) {
            let _ = block_on(read::<Request>(&mut &garbage[..]));
            let _ = block_on(read::<Response>(&mut &garbage[..]));
            let mut framed = (garbage.len() as u32).to_le_bytes().to_vec();
            framed.extend(&garbage);
            let _ = block_on(read::<Request>(&mut &framed[..]));
        }
    }

    #[test]
    fn a_banner_is_not_taken_for_a_frame() {
        let error = block_on(read::<Request>(&mut &b"Welcome to Debian!\n"[..])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
