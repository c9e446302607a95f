//! Tests with delivery numbers higher than any warehouse can have reached. In a client's request
//! such a number is rejected, and in the warehouse's response it is ignored. In neither case may
//! the number affect later snapshots. The last test is about the content type of an upload.

use std::sync::atomic::Ordering;

use axum::http::{Method, Request, Response, StatusCode};

use super::tests::{close, open};
use super::*;
use crate::api::AnswerBody;
use crate::api::fast_path::Entrance;
use crate::api::request::VolumeOperation;
use crate::domain::order::{Command, Line, OrderId};
use crate::volume::transactor::Ask;

async fn answer(app: &Arc<App>, request: Request<Body>) -> Response<AnswerBody> {
    let operation = match *request.method() {
        Method::PUT => VolumeOperation::ReplaceStock,
        _ => VolumeOperation::ChangeStock,
    };
    let (head, body) = request.into_parts();
    let entrance = Entrance::of(app);
    entrance.answer(operation, &head.headers, body).await
}

async fn put(app: &Arc<App>, csv: &'static str, as_of: Option<u64>) -> (StatusCode, String) {
    let mut request = Request::put("/stocks").header("content-type", "text/csv");
    if let Some(as_of) = as_of {
        request = request.header("x-stock-as-of", as_of);
    }
    let request = request.body(Body::from(csv)).unwrap();
    let answer = answer(app, request).await;
    let status = answer.status();
    let body = axum::body::to_bytes(Body::new(answer.into_body()), 10_000).await;
    (status, String::from_utf8(body.unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn a_snapshot_with_an_implausible_number_is_rejected_and_later_ones_are_applied() {
    let folder = tempfile::tempdir().unwrap();
    let app = open(folder.path());
    let (status, body) = put(&app, "7,1,5\n", Some(u64::MAX)).await;
    assert_eq!(
        status,
        StatusCode::BAD_REQUEST,
        "before any number is known: {body}"
    );
    assert!(body.contains("\"field\":\"X-Stock-As-Of\""), "{body}");
    assert_eq!(put(&app, "7,1,5\n", Some(20)).await.0, StatusCode::OK);
    let distant = 20 + 1_000_000_001;
    let (status, body) = put(&app, "7,1,5\n", Some(distant)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body.contains("1000000020"), "the largest number is named: {body}");
    assert_eq!(put(&app, "7,1,5\n", Some(21)).await.0, StatusCode::OK);
    close(app).await;
    let app = open(folder.path());
    assert_eq!(put(&app, "7,1,5\n", Some(22)).await.0, StatusCode::OK);
    assert_eq!(app.counters.stock_snapshots.load(Ordering::Relaxed), 1);
    close(app).await;
}

#[tokio::test]
async fn a_delivery_with_an_implausible_number_is_subtracted_until_the_next_snapshot_only() {
    let folder = tempfile::tempdir().unwrap();
    let app = open(folder.path());
    assert_eq!(put(&app, "7,1,5\n", Some(20)).await.0, StatusCode::OK);
    let id = OrderId::parse("17").unwrap();
    let line = Line { id: 7, quantity: 2 };
    let deliver = Command::ConfirmDelivery {
        sequence: Some(u64::MAX),
    };
    for ask in [
        Ask::Place([line].into()),
        Ask::Command(Command::ConfirmAnnouncement),
        Ask::Command(Command::Pay { transaction: 4 }),
        Ask::Command(deliver),
    ] {
        app.transactors.ask(&id, ask).await.unwrap();
    }
    let available = || app.state().stock().product(7)[0].available;
    assert_eq!(available(), 3, "the delivered units are subtracted");
    assert_eq!(put(&app, "7,1,3\n", Some(21)).await.0, StatusCode::OK);
    assert_eq!(available(), 3, "the snapshot counts the delivery");
    assert_eq!(put(&app, "7,1,9\n", Some(22)).await.0, StatusCode::OK);
    assert_eq!(available(), 9);
    close(app).await;
}

#[tokio::test]
async fn a_form_is_rejected_with_a_hint_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let app = open(folder.path());
    assert_eq!(put(&app, "7,1,5\n8,1,5\n", None).await.0, StatusCode::OK);
    for (method, content_type, status) in [
        ("PUT", Some("application/x-www-form-urlencoded"), 415),
        (
            "PATCH",
            Some("Application/X-WWW-Form-Urlencoded; charset=utf-8"),
            415,
        ),
        ("PUT", Some("multipart/form-data; boundary=x"), 415),
        ("PATCH", Some("text/csv"), 200),
        ("PATCH", Some("text/plain"), 200),
        ("PATCH", None, 200),
    ] {
        let mut request = Request::builder().method(method).uri("/stocks");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(Body::from("7,1,4\n")).unwrap();
        let answer = answer(&app, request).await;
        assert_eq!(answer.status(), status, "{method} {content_type:?}");
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 10_000)
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&body);
        assert_eq!(text.contains("Content-Type: text/csv"), status == 415, "{text}");
    }
    assert_eq!(
        app.state().stock().product(8).len(),
        1,
        "product 8 is still there"
    );
    close(app).await;
}
