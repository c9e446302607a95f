//! Reads the body of a request with bounds on time and size, and decodes its content codings.
//!
//! All routes read bodies through this module, so `Content-Encoding` has the same meaning
//! everywhere (RFC 9110, section 8.4). Coding names are case-insensitive, `x-gzip` means `gzip`,
//! and `identity` and lists of codings are accepted. An unknown coding, or more than `LAYERS_MAX`
//! gzip layers, is answered with 415.
//!
//! **Invariants**
//! - A body is rejected if no byte arrives for `SILENCE_MAX`, or if the time spent waiting for it
//!   exceeds `GRACE` plus one second for each `BYTES_PER_SECOND_MIN` bytes received.
//! - The route's size limit applies to the body as received and to the total output of each gzip
//!   layer.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;

use crate::api::problem::Problem;

/// Longest pause within a body before the request is rejected.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Time that a body may take in addition to the time that the minimum rate allows for its bytes.
const GRACE: Duration = Duration::from_secs(20);
/// Minimum rate of a body in bytes per second: all bytes received, divided by the time spent
/// waiting for them beyond `GRACE`. At this rate a typical stock snapshot of 22 MB takes eleven
/// minutes, and a snapshot of the maximum size takes almost an hour.
const BYTES_PER_SECOND_MIN: u32 = 32 * 1_024;
/// Maximum number of gzip layers around one body.
const LAYERS_MAX: usize = 2;
/// Number of compressed bytes decoded in one step. Deflate expands at most 1,032 to 1, so one step
/// of 4 KiB produces at most about 4 MiB.
const UNPACKED_AT_A_TIME: usize = 4_096;

/// The body of a request, from a connection or built in memory.
///
/// Every body type with these bounds implements the trait.
pub(crate) trait RequestBody:
    Body<Data = Bytes, Error: Display + Into<axum::BoxError>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: Body<Data = Bytes, Error: Display + Into<axum::BoxError>> + Send + Unpin + 'static
{
}

/// Rejects a body that is larger than `limit` by its `Content-Length`, before any byte is read.
pub(super) fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), Problem> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length > limit as u64 => Err(Problem::too_large(limit)),
        _ => Ok(()),
    }
}

/// Reads a body piece by piece as it arrives, within the bounds on time and size.
pub(super) struct Pieces<B> {
    body: B,
    /// Time spent waiting for the sender, without the time in which the pieces were processed.
    waited: Duration,
    bytes: usize,
    limit: usize,
}

impl<B: RequestBody> Pieces<B> {
    /// Creates a reader for a body of at most `limit` bytes.
    pub(super) fn of(body: B, limit: usize) -> Pieces<B> {
        Pieces {
            body,
            waited: Duration::ZERO,
            bytes: 0,
            limit,
        }
    }

    /// Returns `true` if the body is known to have no further piece. At its end, a body may still
    /// return `false`.
    pub(super) fn is_at_end(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Returns the longest wait for the next piece: `SILENCE_MAX`, or less if `GRACE` and the
    /// minimum rate allow only a shorter wait.
    fn wait_max(&self) -> Duration {
        let earned = Duration::from_secs(self.bytes as u64) / BYTES_PER_SECOND_MIN;
        let left = (GRACE + earned).saturating_sub(self.waited);
        left.min(SILENCE_MAX)
    }

    /// Returns the next piece, or `None` at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let begun = Instant::now();
            let frame = tokio::time::timeout(self.wait_max(), self.body.frame()).await;
            self.waited += begun.elapsed();
            match frame {
                Err(_) => return Err(Problem::slow_body()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Problem::body(format!("the body ended early: {error}")));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        self.bytes += piece.len();
                        if self.bytes > self.limit {
                            return Err(Problem::too_large(self.limit));
                        }
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

/// Passes the decoded content of a body to `take`, piece by piece as it arrives.
pub(super) async fn read(
    headers: &HeaderMap,
    body: impl RequestBody,
    limit: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    check_length(headers, limit)?;
    let mut codings = Codings::of(headers, limit)?;
    let mut pieces = Pieces::of(body, limit);
    while let Some(piece) = pieces.next().await? {
        codings.unpack(&piece, &mut take)?;
        // A sender on the same machine can have each next piece ready at once. Without this yield,
        // other requests on this thread would wait while megabytes are decoded.
        tokio::task::yield_now().await;
    }
    codings.end(&mut take)
}

/// The decoder for the content codings of one body.
pub(super) struct Codings {
    /// The gzip layers in decoding order, outermost first.
    layers: Vec<Layer>,
    limit: usize,
}

/// The decoder of one gzip layer, with the number of bytes decoded so far.
struct Layer {
    gzip: MultiGzDecoder<Vec<u8>>,
    bytes: usize,
}

impl Codings {
    /// Returns a decoder for the codings that the headers of a request name.
    pub(super) fn of(headers: &HeaderMap, limit: usize) -> Result<Codings, Problem> {
        let mut layers = Vec::new();
        for value in headers.get_all(CONTENT_ENCODING) {
            let names = value.to_str().map_err(|_| Problem::encoding())?;
            for name in names.split(',').map(str::trim) {
                let is = |known: &str| name.eq_ignore_ascii_case(known);
                if name.is_empty() || is("identity") {
                    continue;
                }
                if !is("gzip") && !is("x-gzip") || layers.len() == LAYERS_MAX {
                    return Err(Problem::encoding());
                }
                layers.push(Layer {
                    gzip: MultiGzDecoder::new(Vec::new()),
                    bytes: 0,
                });
            }
        }
        Ok(Codings { layers, limit })
    }

    fn unpack(
        &mut self,
        piece: &[u8],
        take: &mut impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        unpack(&mut self.layers, self.limit, piece, take)
    }

    /// Passes the remaining decoded bytes to `take`, and verifies the length and checksum of each
    /// gzip layer.
    fn end(mut self, take: &mut impl FnMut(&[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
        let mut layers = &mut self.layers[..];
        while let Some((layer, inner)) = layers.split_first_mut() {
            layer.gzip.try_finish().map_err(broken_gzip)?;
            layer.hand_on(inner, self.limit, take)?;
            layers = inner;
        }
        Ok(())
    }
}

fn unpack(
    layers: &mut [Layer],
    limit: usize,
    piece: &[u8],
    take: &mut impl FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let Some((layer, inner)) = layers.split_first_mut() else {
        return take(piece);
    };
    for part in piece.chunks(UNPACKED_AT_A_TIME) {
        layer.gzip.write_all(part).map_err(broken_gzip)?;
        layer.hand_on(inner, limit, take)?;
    }
    Ok(())
}

impl Layer {
    /// Passes the decoded bytes to the next inner layer, or to `take` after the last layer.
    fn hand_on(
        &mut self,
        inner: &mut [Layer],
        limit: usize,
        take: &mut impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut plain = std::mem::take(self.gzip.get_mut());
        self.bytes += plain.len();
        if self.bytes > limit {
            return Err(Problem::too_large(limit));
        }
        unpack(inner, limit, &plain, take)?;
        plain.clear();
        *self.gzip.get_mut() = plain;
        Ok(())
    }
}

fn broken_gzip(error: std::io::Error) -> Problem {
    Problem::body(format!(
        "the body is not valid gzip, but its Content-Encoding is gzip: {error}"
    ))
}

#[cfg(test)]
mod tests {
    use axum::body::Body as AnyBody;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    async fn content(names: &[&'static str], body: Vec<u8>, limit: usize) -> Result<Vec<u8>, u64> {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(CONTENT_ENCODING, name.parse().unwrap());
        }
        let mut whole = Vec::new();
        let take = |piece: &[u8]| {
            whole.extend_from_slice(piece);
            Ok(())
        };
        match read(&headers, AnyBody::from(body), limit, take).await {
            Ok(()) => Ok(whole),
            Err(problem) => {
                let problem = serde_json::to_value(&problem).unwrap();
                Err(problem["status"].as_u64().unwrap())
            }
        }
    }

    #[tokio::test]
    async fn content_codings_are_decoded_as_rfc_9110_defines_them() {
        let plain = b"1,1,5\n".repeat(1_000);
        let once = gzip(&plain);
        let twice = gzip(&once);
        let members = [gzip(&plain[..600]), gzip(&plain[600..])].concat();
        for (names, body) in [
            (&[][..], &plain),
            (&[""], &plain),
            (&["identity"], &plain),
            (&["Identity, ,IDENTITY"], &plain),
            (&["gzip"], &once),
            (&["GZIP"], &once),
            (&["x-gzip"], &once),
            (&["X-GZip , identity"], &once),
            (&["identity", "gzip"], &once),
            (&["gzip"], &members),
            (&["gzip, gzip"], &twice),
            (&["gzip", "x-gzip"], &twice),
        ] {
            let found = content(names, body.clone(), 10_000).await;
            assert_eq!(found.as_ref(), Ok(&plain), "{names:?}");
        }
        for names in [
            &["br"][..],
            &["gzip, br"],
            &["gzip;q=1"],
            &["gzip,gzip,gzip"],
            &["deflate"],
        ] {
            assert_eq!(content(names, once.clone(), 10_000).await, Err(415), "{names:?}");
        }
        let cut = once[..once.len() - 3].to_vec();
        for body in [plain.clone(), cut, [&once[..], b"more"].concat()] {
            assert_eq!(content(&["gzip"], body, 10_000).await, Err(400));
        }
    }

    #[tokio::test]
    async fn a_layer_of_a_body_over_the_limit_is_rejected() {
        let bomb = gzip(&vec![b'\n'; 50 << 20]);
        let limit = 1 << 20;
        assert!(bomb.len() < limit);
        assert_eq!(content(&["gzip"], bomb.clone(), limit).await, Err(413));
        assert_eq!(content(&["gzip,gzip"], gzip(&bomb), limit).await, Err(413));
        // The inner layer decodes to nothing, and the outer layer decodes to more than the limit.
        let many = gzip(b"").repeat(100_000);
        assert_eq!(content(&["gzip,gzip"], gzip(&many), limit).await, Err(413));
        assert_eq!(content(&["gzip"], many, limit).await, Err(413));
        assert_eq!(content(&[], vec![0; limit + 1], limit).await, Err(413));
    }
}
