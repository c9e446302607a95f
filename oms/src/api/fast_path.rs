//! Executes operations that concern one volume, without a general HTTP router.
//!
//! Nearly all of the load is placing orders, paying them and reading the sales of a product. The
//! body of their responses is one buffer, so these operations need no boxed bodies and no boxed
//! handlers, as a router would.
//!
//! **Invariants**
//! - A response is sent only if this process still serves the volume after the operation.
//!   Otherwise the caller gets the problem "moved" (421).
//!
//! Operations that concern all volumes or none are handled by `forward`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::api::content::RequestBody;
use crate::api::idempotency::Commanded;
use crate::api::problem::{Problem, REPLAYED};
use crate::api::request::VolumeOperation;
use crate::api::{orders, reports, stock_query, stock_upload};
use crate::cluster::channel::message::Read;
use crate::volume::app::App;

/// The entry point for operations on one volume.
#[derive(Clone, Copy)]
pub(crate) struct Entrance<'a> {
    app: &'a Arc<App>,
}

/// The body of a response.
pub(crate) enum AnswerBody {
    /// A body that is one buffer in memory.
    Short(Full<Bytes>),
    /// A body of the general type of axum, such as a stream.
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

/// A JSON response. `replayed` is `true` if the response repeats the response to an earlier
/// request.
pub(super) struct Json {
    pub(super) body: Vec<u8>,
    pub(super) replayed: bool,
}

impl Json {
    /// Renders a value as the body of a JSON response.
    pub(super) fn of(value: &impl serde::Serialize) -> Result<Json, Problem> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(Json {
                body,
                replayed: false,
            }),
            Err(error) => Err(Problem::internal(error.to_string())),
        }
    }

    /// Marks the response as a repetition of the response to an earlier request, if `replayed` is
    /// `true`.
    pub(super) fn replayed(mut self, replayed: bool) -> Json {
        self.replayed = replayed;
        self
    }

    /// Returns the response with a body of one piece.
    pub(super) fn into_short(self) -> Response<AnswerBody> {
        self.into_answer(|body| AnswerBody::Short(Full::new(body)))
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

impl<'a> Entrance<'a> {
    /// Returns the entry point of a volume.
    pub(crate) fn of(app: &'a Arc<App>) -> Entrance<'a> {
        Entrance { app }
    }

    /// Executes an operation. Responds "moved" (421) if the process lost the volume in the
    /// meantime, because the operation may have read outdated data.
    pub(crate) async fn answer(
        &self,
        operation: VolumeOperation,
        headers: &HeaderMap,
        body: impl RequestBody,
    ) -> Response<AnswerBody> {
        let answered = self.execute(operation, headers, body).await;
        self.unless_moved(answered)
    }

    /// Executes a command with an already parsed body, from this node or another node. Responds
    /// "moved" (421) if the process lost the volume in the meantime.
    pub(crate) async fn carry_out_command(&self, commanded: &Commanded) -> Response<AnswerBody> {
        let answered = commanded.answer(self.app).await;
        self.unless_moved(answered)
    }

    /// Executes an already parsed read, from this node or another node. Responds "moved" (421) if
    /// the process lost the volume in the meantime.
    pub(crate) fn carry_out_read(&self, read: &Read) -> Response<AnswerBody> {
        self.unless_moved(self.execute_read(read).map(Json::into_short))
    }

    fn unless_moved(&self, answered: Result<Response<AnswerBody>, Problem>) -> Response<AnswerBody> {
        let answered = if self.app.state().storage.is_ours() {
            answered
        } else {
            Err(Problem::moved())
        };
        answered.unwrap_or_else(|problem| problem.into_response().map(AnswerBody::Long))
    }

    async fn execute(
        &self,
        operation: VolumeOperation,
        headers: &HeaderMap,
        body: impl RequestBody,
    ) -> Result<Response<AnswerBody>, Problem> {
        let app = self.app;
        let json = match operation {
            VolumeOperation::Command(command) => {
                let commanded = Commanded::read(command, headers, body).await?;
                return commanded.answer(app).await;
            }
            VolumeOperation::Read(read) => self.execute_read(&read)?,
            VolumeOperation::ReplaceStock => stock_upload::put(app, headers, Body::new(body)).await?,
            VolumeOperation::ChangeStock => stock_upload::patch(app, headers, Body::new(body)).await?,
        };
        Ok(json.into_short())
    }

    fn execute_read(&self, read: &Read) -> Result<Json, Problem> {
        let app = self.app;
        match read {
            Read::Order(id) => orders::show(app, id),
            Read::OrderHistory(id) => orders::history(app, id),
            Read::StoreStock(store) => stock_query::store(app, *store),
            Read::ProductSales(product) => reports::product_sales(app, *product),
            Read::TopSales(count) => reports::top_sales(app, *count as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::http::StatusCode;
    use parking_lot::RwLock;

    use super::*;
    use crate::domain::order::OrderId;
    use crate::domain::sales::Statistics;
    use crate::outbox::OutboxLimits;
    use crate::runtime::clock::Clock;
    use crate::runtime::metrics::Metrics;
    use crate::storage::owned_slots::Slots;
    use crate::storage::volume::Volume;
    use crate::volume::state::VolumeState;
    use crate::volume::transactor::Transactors;

    #[tokio::test]
    async fn a_volume_that_was_lost_answers_no_read() {
        let folder = tempfile::tempdir().unwrap();
        let is_held = Arc::new(AtomicBool::new(true));
        let held = Arc::clone(&is_held);
        let storage = Volume::open(folder.path()).unwrap();
        let storage = Arc::new(storage.leased_while(move || held.load(Ordering::Relaxed)));
        let slots = Arc::new(Slots::everything());
        let loaded = storage.load(&slots).unwrap();
        let limits = OutboxLimits::default();
        let state = VolumeState::new(Arc::clone(&storage), slots, loaded, limits, Clock::System, None);
        let statistics = Arc::new(RwLock::new(Statistics::new(Default::default())));
        let transactors = Transactors::new(Arc::new(state));
        let app = App::new("a".to_owned(), transactors, statistics, &Metrics::default());
        let app = Arc::new(app);
        let entrance = Entrance::of(&app);
        for is_ours in [true, false] {
            is_held.store(is_ours, Ordering::Relaxed);
            let order = || OrderId::parse("17").unwrap();
            for read in [
                Read::Order(order()),
                Read::OrderHistory(order()),
                Read::StoreStock(1),
                Read::ProductSales(5),
            ] {
                let answer = entrance.carry_out_read(&read);
                let is_told = answer.status() != StatusCode::MISDIRECTED_REQUEST;
                assert_eq!(is_told, is_ours, "{read:?}: {}", answer.status());
            }
        }
        let closing = tokio::task::spawn_blocking(move || storage.close());
        closing.await.unwrap().unwrap();
    }
}
