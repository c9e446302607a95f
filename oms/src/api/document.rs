//! The API document (`GET /openapi.json`, OpenAPI 3.1). It is generated from the table of routes,
//! the kinds of problems and the schemas of the types.
//!
//! **Invariants**
//! - Each row of the table in `routes` refers to one description, and every description belongs to
//!   a route.
//! - Schemas of JSON bodies come from the Rust types of the bodies (`ToSchema`), unless the
//!   description uses `Content::Object`.
//! - Problems that many routes share (such as unknown query parameters, internal faults and
//!   overload) are added here (`kinds`).
//! - Headers of responses are described in `response_headers`, and examples of bodies in
//!   `examples`.
//!
//! The texts of the descriptions are in `operations`.

mod examples;
mod operations;
mod response_headers;
mod schemas;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};

pub(super) use crate::api::document::operations::*;
use crate::api::params::{EXACT_MAX, PAGE_DEFAULT, PAGE_MAX, TOP_DEFAULT, TOP_MAX};
use crate::api::problem::{Kind, Report};
use crate::api::routes::{self, Route};
use crate::domain::order::{OrderId, State};
use crate::domain::stock_snapshot::{PRODUCT_MAX, STORE_MAX};
use crate::outbox::Kind as MessageKind;

/// The description of a route in the API document.
pub(crate) struct Description {
    id: &'static str,
    tag: Tag,
    summary: &'static str,
    about: &'static str,
    pub(super) query: &'static [Parameter],
    headers: &'static [Parameter],
    body: Option<Content>,
    /// The response with status 200.
    answer: Answer,
    /// Kinds of problems of this route, in addition to those that `kinds` adds.
    problems: &'static [Kind],
    /// Decides which problems of overload and routing are added to `problems`.
    scope: Scope,
}

/// The nodes that take part in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Only the node that receives the request. It responds even while too many requests are in
    /// progress.
    Probe,
    /// Only the node that receives the request. It responds 503 while too many requests are in
    /// progress.
    Node,
    /// The node that serves one volume, or the nodes of all volumes.
    Volumes,
}

/// A group of routes in the API document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Orders,
    Stock,
    Statistics,
    Warehouse,
    Node,
}

impl Tag {
    const ALL: [Tag; 5] = [
        Tag::Orders,
        Tag::Stock,
        Tag::Statistics,
        Tag::Warehouse,
        Tag::Node,
    ];

    fn name(self) -> &'static str {
        match self {
            Tag::Orders => "orders",
            Tag::Stock => "stock",
            Tag::Statistics => "statistics",
            Tag::Warehouse => "warehouse",
            Tag::Node => "node",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Tag::Orders => "Place, pay, cancel and read orders.",
            Tag::Stock => "The quantities of the stores, and the units that orders have reserved.",
            Tag::Statistics => "Sales by product, from the statistics files of the warehouse.",
            Tag::Warehouse => "Messages to the warehouse that it has not confirmed yet.",
            Tag::Node => "Health, metrics and the cluster as this node sees it.",
        }
    }
}

/// A query parameter, or a header of a request.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    about: &'static str,
    schema: fn() -> Value,
    example: &'static str,
}

/// The response with status 200.
struct Answer {
    about: &'static str,
    content: Content,
    /// `true` if the response has an `ETag`. A client that sends the current tag in `If-None-Match`
    /// gets 304.
    has_tag: bool,
}

/// The content of a request or response body.
#[derive(Clone, Copy)]
enum Content {
    Json(TypeOf),
    /// A JSON object without a schema, because its members may change between versions.
    Object,
    /// Text of the given media type.
    Text(&'static str),
    /// CSV lines `PRODUCT,STORE,QUANTITY`.
    Csv,
}

/// The name and schema of a type, and the schemas of the types nested in it.
#[derive(Clone, Copy)]
struct TypeOf {
    name: fn() -> Cow<'static, str>,
    schema: fn() -> RefOr<Schema>,
    nested: fn(&mut Vec<(String, RefOr<Schema>)>),
}

impl TypeOf {
    const fn of<T: ToSchema>() -> TypeOf {
        TypeOf {
            name: T::name,
            schema: T::schema,
            nested: T::schemas,
        }
    }

    fn reference(self) -> Value {
        reference(&(self.name)())
    }
}

fn reference(name: &str) -> Value {
    value(&Ref::from_schema_name(name))
}

fn value(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| serde_json::to_vec_pretty(&document()).unwrap_or_default().into());

/// Returns the API document (OpenAPI 3.1) as JSON: the body of `GET /openapi.json`.
pub fn api_document() -> Bytes {
    DOCUMENT.clone()
}

/// Handles `GET /openapi.json`.
pub(crate) fn answer() -> Response<Body> {
    let mut response = Response::new(Body::from(api_document()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn document() -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut schemas = BTreeMap::new();
    let mut add = |of: TypeOf| {
        let mut all = Vec::new();
        (of.nested)(&mut all);
        all.push(((of.name)().into_owned(), (of.schema)()));
        for (name, schema) in all {
            let mut schema = value(&schema);
            schema["examples"] = examples::of(&name).into();
            schemas.insert(name, schema);
        }
    };
    for of in [
        TypeOf::of::<Report>(),
        TypeOf::of::<OrderId>(),
        TypeOf::of::<State>(),
    ] {
        add(of);
    }
    for route in routes::all() {
        for content in [Some(route.about.answer.content), route.about.body] {
            if let Some(Content::Json(of)) = content {
                add(of);
            }
        }
        let method = route.method().as_str().to_lowercase();
        let operations = paths.entry(route.template()).or_default();
        operations.insert(method, operation(route));
    }
    let tags = Tag::ALL.map(|tag| json!({"name": tag.name(), "description": tag.about()}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "IMT Order: order management",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0"},
            "description": INTRODUCTION,
        },
        "servers": [{"url": "/", "description": "Any node of the cluster. All nodes answer alike."}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas, "headers": response_headers::components()},
        // An empty list states that the API has no authentication. `INTRODUCTION` explains that.
        "security": [],
    })
}

fn operation(route: &Route) -> Value {
    let about = route.about;
    let mut operation = json!({
        "operationId": about.id,
        "tags": [about.tag.name()],
        "summary": about.summary,
        "description": about.about,
        "responses": responses(route),
    });
    let path = route.path_parameters().map(path_parameter);
    let query = about.query.iter().map(|parameter| parameter.document("query"));
    let headers = about.headers.iter().map(|parameter| parameter.document("header"));
    let parameters: Vec<Value> = path.chain(query).chain(headers).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(content) = about.body {
        operation["requestBody"] = json!({"required": true, "content": content.document()});
    }
    operation
}

/// Describes a path parameter.
fn path_parameter(name: &str) -> Value {
    let (schema, about, example) = match name {
        "product" => (number(1, PRODUCT_MAX.into()), "The product.", json!(812)),
        "store" => (number(1, STORE_MAX.into()), "The store.", json!(5)),
        "kind" => (message_kind(), "The kind of the message.", json!("deliver")),
        _ => (reference("OrderId"), "The order.", json!("shop:17")),
    };
    json!({
        "name": name,
        "in": "path",
        "required": true,
        "schema": schema,
        "description": about,
        "example": example,
    })
}

impl Parameter {
    fn document(&self, place: &str) -> Value {
        json!({
            "name": self.name,
            "in": place,
            "required": false,
            "schema": (self.schema)(),
            "description": self.about,
            "example": serde_json::from_str(self.example).unwrap_or_else(|_| json!(self.example)),
        })
    }
}

impl Content {
    fn document(self) -> Value {
        match self {
            Content::Json(of) => {
                let example = examples::of(&(of.name)()).into_iter().next();
                json!({"application/json": {"schema": of.reference(), "example": example}})
            }
            Content::Object => json!({"application/json": {"schema": {"type": "object"}}}),
            Content::Text(media_type) => json!({media_type: {"schema": {"type": "string"}}}),
            Content::Csv => json!({"text/csv": {
                "schema": {
                    "type": "string",
                    "description": "Lines PRODUCT,STORE,QUANTITY",
                    "pattern": "^([1-9][0-9]{0,5},[1-9][0-9]{0,3},[0-9]{1,9}\\r?\\n)+$",
                },
                "example": "812,5,13\n44,5,2\n",
            }}),
        }
    }
}

/// Describes all responses of a route: 200, 304 if the route has an `ETag`, and the problems by
/// status.
fn responses(route: &Route) -> Value {
    let about = route.about;
    let mut responses = Map::new();
    let answer = json!({
        "description": about.answer.about,
        "headers": response_headers::of_response(route, StatusCode::OK, &[]),
        "content": about.answer.content.document(),
    });
    responses.insert("200".to_owned(), answer);
    if about.answer.has_tag {
        let unchanged = json!({
            "description": "The client has this document already.",
            "headers": response_headers::of_response(route, StatusCode::NOT_MODIFIED, &[]),
        });
        responses.insert("304".to_owned(), unchanged);
    }
    let mut by_status: BTreeMap<StatusCode, Vec<Kind>> = BTreeMap::new();
    for kind in kinds(route) {
        by_status.entry(kind.status()).or_default().push(kind);
    }
    for (status, kinds) in by_status {
        responses.insert(status.as_str().to_owned(), problem(route, status, &kinds));
    }
    responses.into()
}

/// Returns all kinds of problems that a route may respond with, sorted, each once.
fn kinds(route: &Route) -> Vec<Kind> {
    let about = route.about;
    let mut kinds = vec![Kind::Malformed, Kind::ForeignHost, Kind::Internal];
    match about.scope {
        Scope::Probe => {}
        Scope::Node => kinds.push(Kind::Busy),
        Scope::Volumes => kinds.extend([Kind::Busy, Kind::NotServedHere]),
    }
    if about.body.is_some() || *route.method() == Method::POST {
        // Every POST route accepts an idempotency key, and two requests with the same key are
        // compared by path and body. So with a key the body is read even if the command needs no
        // body, and these problems can occur.
        kinds.extend([Kind::SlowBody, Kind::TooLarge, Kind::Encoding]);
    }
    if *route.method() == Method::POST {
        kinds.extend([Kind::KeyInProgress, Kind::KeyReused]);
    }
    if !route.method().is_safe() {
        kinds.push(Kind::ForeignOrigin);
    }
    kinds.extend_from_slice(about.problems);
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn problem(route: &Route, status: StatusCode, kinds: &[Kind]) -> Value {
    let meanings: Vec<String> = kinds
        .iter()
        .map(|kind| {
            let texts = kind.texts();
            format!("- `{}`: {} {}", texts.slug, texts.meaning, texts.next)
        })
        .collect();
    let mut examples = Map::new();
    for kind in kinds {
        let example = json!({
            "type": kind.urn(),
            "title": kind.texts().title,
            "status": status.as_u16(),
            "detail": kind.texts().meaning,
        });
        examples.insert(kind.texts().slug.to_owned(), json!({"value": example}));
    }
    json!({
        "description": meanings.join("\n"),
        "headers": response_headers::of_response(route, status, kinds),
        "content": {"application/problem+json": {
            "schema": reference("Problem"),
            "examples": examples,
        }},
    })
}

fn number(minimum: u64, maximum: u64) -> Value {
    json!({"type": "integer", "minimum": minimum, "maximum": maximum})
}

fn message_kind() -> Value {
    value(&<MessageKind as utoipa::PartialSchema>::schema())
}

fn limit() -> Value {
    let mut schema = number(1, PAGE_MAX as u64);
    schema["default"] = json!(PAGE_DEFAULT);
    schema
}

fn top() -> Value {
    let mut schema = number(1, TOP_MAX.into());
    schema["default"] = json!(TOP_DEFAULT);
    schema
}

fn state() -> Value {
    reference("OrderState")
}

fn store() -> Value {
    number(0, u32::MAX.into())
}

fn moment() -> Value {
    number(0, EXACT_MAX)
}

fn any_number() -> Value {
    number(0, u64::MAX)
}

fn any_text() -> Value {
    json!({"type": "string"})
}

fn key() -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": crate::api::idempotency::KEY_BYTES_MAX,
        "pattern": "^[\\x20-\\x7e]+$",
    })
}

fn text_like(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

fn orders_cursor() -> Value {
    const POSITION: &str = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}~[0-9]{1,15}\\.[0-9]{1,9}";
    text_like(&format!("^({POSITION}(,{POSITION})*)?$"))
}

fn reservations_cursor() -> Value {
    text_like("^([A-Za-z0-9_:~-][A-Za-z0-9._:~-]{0,63})?$")
}

fn messages_cursor() -> Value {
    text_like("^([A-Za-z0-9_:~-][A-Za-z0-9._:~-]{0,63}/(announce|deliver))?$")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Calls `visitor` with `of` and with each value inside `of`. The first argument is the value's
    /// path: a JSON pointer without escaped characters.
    fn visit(of: &Value, path: &str, visitor: &mut impl FnMut(&str, &Value)) {
        visitor(path, of);
        match of {
            Value::Object(members) => {
                for (name, member) in members {
                    visit(member, &format!("{path}/{name}"), visitor);
                }
            }
            Value::Array(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    visit(entry, &format!("{path}/{at}"), visitor);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_the_document_leads_to_a_schema() {
        let document = document();
        let mut references = 0;
        visit(&document, "", &mut |path, found| {
            if let Some(reference) = found["$ref"].as_str() {
                let target = document.pointer(reference.trim_start_matches('#'));
                assert!(target.is_some(), "{path}: {reference}");
                references += 1;
            }
        });
        assert!(references > 50);
    }

    #[test]
    fn every_schema_member_and_parameter_has_a_description() {
        let document = document();
        let mut members = 0;
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(schema["description"].is_string(), "{name}");
            for (member, schema) in schema["properties"].as_object().into_iter().flatten() {
                let is_described = schema["description"].is_string() || schema["$ref"].is_string();
                assert!(is_described, "{name}.{member}: {schema}");
                members += 1;
            }
        }
        assert!(members > 50);
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(
                    operation["description"].as_str().unwrap().len() > 20,
                    "{method} {path}"
                );
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    assert!(
                        parameter["description"].is_string(),
                        "{method} {path}: {parameter}"
                    );
                    assert!(!parameter["example"].is_null(), "{method} {path}: {parameter}");
                }
            }
        }
    }

    #[test]
    fn every_operation_and_kind_of_problem_is_in_the_document_once() {
        let ids: BTreeSet<&str> = routes::all().iter().map(|route| route.about.id).collect();
        assert_eq!(ids.len(), routes::all().len());
        let documented: BTreeSet<Kind> = routes::all().iter().flat_map(kinds).collect();
        let expected = Kind::ALL
            .into_iter()
            // The status 405 is the response to a method that a path does not have. So no
            // documented route responds with it.
            .filter(|kind| !kind.is_between_nodes() && *kind != Kind::Method);
        assert_eq!(documented, expected.collect());
    }

    #[test]
    fn a_route_that_may_be_busy_documents_it() {
        for (at, route) in routes::all().iter().enumerate() {
            let is_probe = routes::Target::Route(at).is_probe();
            let may_be_busy = kinds(route).contains(&Kind::Busy);
            // The readiness probe is answered even under overload. It responds 503 if a volume
            // accepts no orders.
            let is_ready = route.about.id == "ready";
            assert_eq!(may_be_busy, !is_probe || is_ready, "{}", route.about.id);
        }
    }
}
