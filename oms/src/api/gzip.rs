//! Compresses responses with gzip for clients that accept it.
//!
//! Long lists shrink to about a tenth. A response below a kilobyte is sent uncompressed: it fits
//! into one packet anyway, and compressing it would cost more than processing an order.
//!
//! **Invariants**
//! - Only bodies of known length are compressed, because they are complete in memory.
//! - A long body is compressed on a blocking thread, not on a thread of the async runtime.

use std::io::Write;

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use axum::http::{HeaderMap, HeaderValue, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::api::fast_path::AnswerBody;

/// Minimum size in bytes of a response that is compressed. A shorter response fits into one packet
/// without compression.
const WORTH_BYTES: u64 = 1_024;
/// Size in bytes above which a response is compressed on a blocking thread.
const LONG_BYTES: usize = 32 * 1_024;

/// Returns `true` if `Accept-Encoding` permits gzip: by name, or by `*` if it does not name gzip. A
/// weight of zero forbids a coding.
fn is_accepted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING);
    let codings = accepted
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let (mut by_name, mut by_star) = (None, None);
    for coding in codings {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix(['q', 'Q']);
        let is_refused = weight
            .and_then(|weight| weight.strip_prefix('=')?.trim().parse::<f32>().ok())
            .is_some_and(|weight| weight <= 0.0);
        let name = name.trim();
        // Servers treat `x-gzip` as `gzip` (RFC 9110, 8.4.1.3).
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            by_name = Some(by_name.unwrap_or(false) || !is_refused);
        } else if name == "*" {
            by_star = Some(!is_refused);
        }
    }
    by_name.or(by_star).unwrap_or(false)
}

/// Compresses a response if its body has a known length, is long enough and not encoded yet, and
/// the client accepts gzip.
pub(crate) async fn pack(response: Response<AnswerBody>, request: &HeaderMap) -> Response<AnswerBody> {
    let length = response.body().size_hint().exact();
    if length.is_none_or(|length| length < WORTH_BYTES) || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    head.headers
        .append(VARY, HeaderValue::from_static("accept-encoding"));
    if !is_accepted(request) {
        return Response::from_parts(head, body);
    }
    // Bodies of known length are in memory, so collecting them cannot fail.
    let Ok(plain) = body.collect().await else {
        return Response::from_parts(head, AnswerBody::Long(Body::empty()));
    };
    let plain = plain.to_bytes();
    let packed = if plain.len() > LONG_BYTES {
        let long = plain.clone();
        tokio::task::spawn_blocking(move || gzip(&long))
            .await
            .ok()
            .flatten()
    } else {
        gzip(&plain)
    };
    let Some(packed) = packed else {
        return Response::from_parts(head, AnswerBody::Long(Body::from(plain)));
    };
    head.headers.remove(CONTENT_LENGTH);
    head.headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Response::from_parts(head, AnswerBody::Long(Body::from(packed)))
}

fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn gzip_is_used_only_if_the_client_accepts_it() {
        for (text, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("GZip", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;Q=0.0", false),
            ("gzip;q=0, *", false),
            ("*, gzip;q=0", false),
            ("*;q=0, gzip", true),
            ("*;q=0", false),
            ("identity, *;q=0.1", true),
            ("br, identity", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(text));
            assert_eq!(is_accepted(&headers), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn long_answers_are_compressed_and_short_ones_are_not() {
        for (length, packs) in [(10, false), (2_000, true), (100_000, true)] {
            let plain = "order ".repeat(length / 6 + 1);
            let response = Response::new(AnswerBody::Long(Body::from(plain.clone())));
            let mut takes_gzip = HeaderMap::new();
            takes_gzip.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
            let response = pack(response, &takes_gzip).await;
            assert_eq!(
                response.headers().contains_key(CONTENT_ENCODING),
                packs,
                "{length}"
            );
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let mut text = String::new();
            if packs {
                flate2::read::GzDecoder::new(&body[..])
                    .read_to_string(&mut text)
                    .unwrap();
            } else {
                text = String::from_utf8(body.to_vec()).unwrap();
            }
            assert_eq!(text, plain);
        }
    }
}
