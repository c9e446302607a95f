//! The way in: the three routes that carry the load by a short lane, everything else through the table of routes.
//!
//! Placing an order, paying it and asking for a product's statistics are nearly all requests there are. Their paths are told
//! by a look, their bodies read where they lie and their answers built in one piece; a general router boxes and clones for
//! each request about as much as deciding an order costs. Both ways call the same functions and give the same answers; a
//! request with anything unusual about it takes the long one.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, Response};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower::ServiceExt;

use super::problem::{Problem, REPLAYED};
use super::{App, gzip, idempotency, orders, reports};

/// Everything that answers requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Entrance {
    app: Arc<App>,
    routes: axum::Router,
}

/// The body of an answer.
pub(crate) enum AnswerBody {
    /// In one piece.
    Short(Full<Bytes>),
    /// Whatever a route makes.
    Long(Body),
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            AnswerBody::Short(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            AnswerBody::Long(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Short(body) => body.is_end_stream(),
            AnswerBody::Long(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Short(body) => body.size_hint(),
            AnswerBody::Long(body) => body.size_hint(),
        }
    }
}

/// JSON that answers a request, and whether it answered an earlier one.
pub(super) struct Json {
    pub(super) body: Vec<u8>,
    pub(super) replayed: bool,
}

impl Json {
    /// A value as JSON.
    pub(super) fn of(value: &impl serde::Serialize) -> Result<Json, Problem> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(Json {
                body,
                replayed: false,
            }),
            Err(error) => Err(Problem::internal(error.to_string())),
        }
    }

    /// Says whether it answered an earlier request.
    pub(super) fn replayed(mut self, replayed: bool) -> Json {
        self.replayed = replayed;
        self
    }

    fn into_answer<B>(self, body: impl FnOnce(Bytes) -> B) -> Response<B> {
        let mut response = Response::new(body(Bytes::from(self.body)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> Response<Body> {
        self.into_answer(Body::from)
    }
}

/// A request that may take the short lane.
enum Lane<'a> {
    Place,
    Pay(&'a str),
    Statistics(&'a str),
}

impl Lane<'_> {
    fn of<'a>(method: &Method, path: &'a str) -> Option<Lane<'a>> {
        if *method == Method::POST {
            let rest = path.strip_prefix("/order")?;
            if rest.is_empty() {
                return Some(Lane::Place);
            }
            let id = rest.strip_prefix('/')?.strip_suffix("/payment-callback")?;
            plain(id).map(Lane::Pay)
        } else if *method == Method::GET {
            plain(path.strip_prefix("/aggregate-stats/")?).map(Lane::Statistics)
        } else {
            None
        }
    }
}

/// A part of a path that means what it says.
fn plain(part: &str) -> Option<&str> {
    let is_plain = !part.is_empty() && !part.bytes().any(|byte| matches!(byte, b'/' | b'%'));
    is_plain.then_some(part)
}

impl Entrance {
    /// The way to these routes.
    pub(super) fn new(app: Arc<App>, routes: axum::Router) -> Entrance {
        Entrance { app, routes }
    }

    /// Answers a request; with a refusal, if the volume was lost before it was answered: then whatever was read may be old.
    pub(crate) async fn answer<B>(self, request: Request<B>) -> Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Into<axum::BoxError>,
    {
        let app = Arc::clone(&self.app);
        let response = self.answer_from_rooms(request).await;
        if app.desk().store.is_ours() {
            response
        } else {
            Problem::moved().into_response().map(AnswerBody::Long)
        }
    }

    async fn answer_from_rooms<B>(self, request: Request<B>) -> Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Into<axum::BoxError>,
    {
        let (head, body) = request.into_parts();
        if head.method == Method::POST && head.headers.contains_key(idempotency::KEY) {
            return idempotency::answer(&self.app, self.routes, head, body).await;
        }
        let answer = match Lane::of(&head.method, head.uri.path()) {
            Some(Lane::Place) => orders::take(&self.app, &head.headers, body).await,
            Some(Lane::Pay(id)) => orders::take_payment(&self.app, id, &head.headers, body).await,
            Some(Lane::Statistics(product)) => reports::statistics(&self.app, product),
            None => {
                let takes_gzip = gzip::is_accepted(&head.headers);
                let request = Request::from_parts(head, Body::new(body));
                let Ok(response) = self.routes.oneshot(request).await;
                let response = if takes_gzip {
                    gzip::pack(response).await
                } else {
                    response
                };
                return response.map(AnswerBody::Long);
            }
        };
        match answer {
            Ok(json) => json.into_answer(|body| AnswerBody::Short(Full::new(body))),
            Err(problem) => problem.into_response().map(AnswerBody::Long),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::http::StatusCode;

    use super::*;
    use crate::clock::Clock;
    use crate::desk::Desk;
    use crate::metrics::Metrics;
    use crate::outbox::OutboxLimits;
    use crate::slots::Slots;
    use crate::stats::Statistics;
    use crate::store::Store;
    use crate::transactor::Transactors;

    #[tokio::test]
    async fn nothing_is_told_from_a_volume_that_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let is_held = Arc::new(AtomicBool::new(true));
        let held = Arc::clone(&is_held);
        let store = Store::open(folder.path()).unwrap();
        let store = Arc::new(store.held_while(move || held.load(Ordering::Relaxed)));
        let slots = Arc::new(Slots::everything());
        let loaded = store.load(&slots).unwrap();
        let limits = OutboxLimits::default();
        let desk = Desk::new(Arc::clone(&store), slots, loaded, limits, Clock::System, None);
        let statistics = Arc::new(RwLock::new(Statistics::new(Default::default())));
        let transactors = Transactors::new(Arc::new(desk));
        let app = App::new("a".to_owned(), transactors, statistics, &Metrics::default());
        let entrance = crate::api::routes(Arc::new(app));
        for is_ours in [true, false] {
            is_held.store(is_ours, Ordering::Relaxed);
            for path in [
                "/order/17",
                "/order/17/history",
                "/stores/1",
                "/aggregate-stats/5",
            ] {
                let request = Request::get(path).body(Body::empty()).unwrap();
                let answer = entrance.clone().answer(request).await;
                let is_told = answer.status() != StatusCode::MISDIRECTED_REQUEST;
                assert_eq!(is_told, is_ours, "{path}: {}", answer.status());
            }
        }
        let closing = tokio::task::spawn_blocking(move || store.close());
        closing.await.unwrap().unwrap();
    }

    #[test]
    fn only_what_is_plainly_one_of_the_three_takes_the_lane() {
        for (method, path, takes) in [
            (Method::POST, "/order", true),
            (Method::POST, "/order/17/payment-callback", true),
            (Method::GET, "/aggregate-stats/5", true),
            (Method::POST, "/order/", false),
            (Method::POST, "/orders", false),
            (Method::POST, "/order//payment-callback", false),
            (Method::POST, "/order/a/b/payment-callback", false),
            (Method::POST, "/order/a%2Fb/payment-callback", false),
            (Method::POST, "/order/17/cancel", false),
            (Method::GET, "/order", false),
            (Method::GET, "/aggregate-stats/", false),
            (Method::GET, "/aggregate-stats/5/6", false),
            (Method::PUT, "/aggregate-stats/5", false),
        ] {
            assert_eq!(Lane::of(&method, path).is_some(), takes, "{method} {path}");
        }
    }
}
