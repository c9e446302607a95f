//! A frame: a header, and one or more messages.
//!
//! | offset | size | field |
//! | ---: | ---: | --- |
//! | 0 | 4 | bytes of the payload, little-endian |
//! | 4 | 8 | number of the frame in its direction, from 1, little-endian |
//! | 12 | | payload: messages (`message`), without gaps |
//!
//! The length is checked before memory is allocated. A frame with a number that was received before
//! is dropped. A gap in the numbers ends the connection. The callers that wait for answers on the
//! connection may send their requests again.

use std::pin::Pin;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::cluster::channel::LinkError;
use crate::runtime::seeded::seeded;

/// Size of a frame's header in bytes.
pub(crate) const HEADER_BYTES: usize = 12;
/// Maximum size of a payload in bytes. The largest typical message has 4 MB: a `StockLayout` with a
/// million products.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Size of the read buffer in bytes. Most frames are smaller, so one system call reads a frame.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// The future of sending or receiving a frame.
pub(crate) type Transfer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LinkError>> + Send + 'a>>;

/// The sending half of a connection.
pub(crate) trait FrameSink: Send {
    /// Sends a whole frame, and returns its buffer for reuse. The caller must not call `send` again
    /// before the future has completed.
    fn send(&mut self, frame: Vec<u8>) -> Transfer<'_, Vec<u8>>;
}

/// The receiving half of a connection.
pub(crate) trait FrameSource: Send {
    /// Receives the next frame. Returns `None` if the other end has closed the connection after a
    /// whole frame, or before the first one.
    fn receive(&mut self) -> Transfer<'_, Option<Frame>>;
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) number: u64,
    pub(crate) payload: Bytes,
}

const _: () = assert!(HEADER_BYTES == size_of::<u32>() + size_of::<u64>());

/// Fills in the header of a frame. The frame's payload must begin at `HEADER_BYTES`.
pub(crate) fn seal(frame: &mut [u8], number: u64) {
    let length = frame.len().saturating_sub(HEADER_BYTES) as u32;
    if let Some(header) = frame.first_chunk_mut::<HEADER_BYTES>() {
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..].copy_from_slice(&number.to_le_bytes());
    }
}

/// Splits a header into the payload's length and the frame's number. Fails if the length is above
/// `PAYLOAD_BYTES_MAX`.
pub(crate) fn open(header: &[u8; HEADER_BYTES]) -> Result<(usize, u64), LinkError> {
    let (length, number) = header.split_at(4);
    let length = length.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let number = number.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if length as usize > PAYLOAD_BYTES_MAX {
        return Err(LinkError(format!(
            "the payload of a frame has {length} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"
        )));
    }
    Ok((length as usize, number))
}

/// Writes frames to a byte stream.
pub(crate) struct ByteSink<W>(pub(crate) W);

impl<W: AsyncWrite + Send + Unpin> FrameSink for ByteSink<W> {
    fn send(&mut self, frame: Vec<u8>) -> Transfer<'_, Vec<u8>> {
        Box::pin(async move {
            self.0.write_all(&frame).await?;
            self.0.flush().await?;
            Ok(frame)
        })
    }
}

/// Reads frames from a byte stream.
pub(crate) struct ByteSource<R>(BufReader<R>);

impl<R: AsyncRead> ByteSource<R> {
    pub(crate) fn new(reader: R) -> ByteSource<R> {
        ByteSource(BufReader::with_capacity(READ_AHEAD_BYTES, reader))
    }
}

impl<R: AsyncRead + Send + Unpin> FrameSource for ByteSource<R> {
    fn receive(&mut self) -> Transfer<'_, Option<Frame>> {
        Box::pin(async move {
            let mut header = [0; HEADER_BYTES];
            // The end of the stream between two frames is an orderly close. Within a frame it is an
            // error.
            if self.0.read(&mut header[..1]).await? == 0 {
                return Ok(None);
            }
            self.0.read_exact(&mut header[1..]).await?;
            let (length, number) = open(&header)?;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await?;
            Ok(Some(Frame {
                number,
                payload: payload.into(),
            }))
        })
    }
}

/// The number of the last received frame, to drop repeated frames and to detect missing ones.
#[derive(Debug, Default)]
pub(crate) struct Numbering(u64);

impl Numbering {
    /// Returns `true` if the frame is the next one, and `false` if it was received before. Fails if
    /// frames are missing.
    pub(crate) fn admit(&mut self, number: u64) -> Result<bool, LinkError> {
        if number <= self.0 {
            return Ok(seeded("frame-repeated"));
        }
        if number > self.0 + 1 {
            return Err(LinkError(format!(
                "frames are missing: {number} follows {}",
                self.0
            )));
        }
        self.0 = number;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(number: u64, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(payload);
        seal(&mut frame, number);
        frame
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let (here, there) = tokio::io::duplex(16);
        let sending = async move {
            let mut sink = ByteSink(here);
            for number in 1..=20 {
                sink.send(framed(number, &vec![number as u8; number as usize * 7]))
                    .await
                    .unwrap();
            }
        };
        let receiving = async move {
            let mut source = ByteSource::new(there);
            for number in 1..=20 {
                let frame = source.receive().await.unwrap().unwrap();
                assert_eq!(frame.number, number);
                assert_eq!(frame.payload, vec![number as u8; number as usize * 7]);
            }
            assert_eq!(source.receive().await.unwrap(), None);
        };
        tokio::join!(sending, receiving);
    }

    #[tokio::test]
    async fn a_frame_cut_at_any_byte_is_an_error() {
        let whole = framed(1, b"payload");
        for cut in 1..whole.len() {
            let mut source = ByteSource::new(&whole[..cut]);
            assert!(source.receive().await.is_err(), "cut at {cut}");
        }
        assert_eq!(ByteSource::new(&whole[..0]).receive().await.unwrap(), None);
        assert!(ByteSource::new(&whole[..]).receive().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_frame_longer_than_allowed_is_refused_by_its_header() {
        let mut header = framed(1, b"");
        header[..4].copy_from_slice(&(PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
        let error = ByteSource::new(&header[..]).receive().await.unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }

    #[test]
    fn repeated_frames_are_dropped_and_gaps_are_refused() {
        let mut numbering = Numbering::default();
        assert_eq!(numbering.admit(1), Ok(true));
        assert_eq!(numbering.admit(1), Ok(false));
        assert_eq!(numbering.admit(2), Ok(true));
        assert_eq!(numbering.admit(1), Ok(false));
        assert!(numbering.admit(4).is_err());
    }
}
