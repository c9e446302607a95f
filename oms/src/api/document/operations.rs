//! The descriptions of all routes in the API document.

use crate::api::document::{
    Answer, Content, Description, Parameter, Scope, Tag, TypeOf, any_number, any_text, key, limit,
    messages_cursor, moment, orders_cursor, reservations_cursor, state, store, top,
};
use crate::api::fan_out::{MessagePage, OrderPage, ReservationPage};
use crate::api::health::Health;
use crate::api::node_status::Alive;
use crate::api::order_body::{WireOrder, WirePayment};
use crate::api::orders::{Accepted, Current, History};
use crate::api::problem::Kind;
use crate::api::reports::{Ranking, Retried};
use crate::api::stock_query::{ProductPage, StorePage};
use crate::api::stock_upload::SnapshotTaken;
use crate::domain::sales::ProductStats;

/// The introduction of the API document (`info.description`).
pub(super) const INTRODUCTION: &str = "\
Takes orders, reserves stock for them, and tells the warehouse until they are delivered.

**Durable.** The answer to an order, a payment or a stock upload means that it is durable. It never \
waits for the warehouse.

**Idempotent.** A repeated order, payment or cancellation is carried out once and gets the answer of \
the first request. `Idempotency-Key` also keeps that answer for a day.

**Errors** are `application/problem+json` (RFC 9457). Programs decide by `type`. The file \
`docs/errors.md` in the source code explains each type. A request with an unknown query parameter is \
answered with 400.

**Numbers.** Ids of transactions, times and counts are below 2^53, so every JSON reader keeps them \
exact. Three numbers may be larger, and JavaScript rounds them above 9007199254740991: `ca` and \
`total_qty` of the statistics, and `stock_sequence` of an order's history. Read these as text or with \
big integers.

**Times** are UTC, in milliseconds since 1970.

**Headers.** A node with `--cors-origin` also adds the `Access-Control-*` headers of the Fetch \
standard for pages of these origins.

**No authentication.** The API has no users and no TLS. Put a reverse proxy in front of it.";

const IDEMPOTENCY_KEY: Parameter = Parameter {
    name: "Idempotency-Key",
    about: "Names this request. A repeated request with the same key gets the stored answer, for a day \
            at least. The key with another request is answered with 409. With several nodes, a key is \
            compared among the requests of one volume.",
    schema: key,
    example: "3e1b9a52-7d1f-4a7e-b3f0-0c1f5a2d9e11",
};

const CONTENT_ENCODING: Parameter = Parameter {
    name: "Content-Encoding",
    about: "`gzip` (or `x-gzip`) and `identity`, in any case, as a list of at most two layers of gzip.",
    schema: any_text,
    example: "gzip",
};

const LAST_EVENT_ID: Parameter = Parameter {
    name: "Last-Event-ID",
    about: "Id of the last event that the client has. The answer begins with the changes since then.",
    schema: any_text,
    example: "17-4-2",
};

const LIMIT: Parameter = Parameter {
    name: "limit",
    about: "Maximum number of entries of the page. The reservations of one order are never split, so \
            a page of reservations may have more.",
    schema: limit,
    example: "100",
};

const COMMAND_HEADERS: &[Parameter] = &[IDEMPOTENCY_KEY, CONTENT_ENCODING];

const fn json<T: utoipa::ToSchema>(about: &'static str) -> Answer {
    Answer {
        about,
        content: Content::Json(TypeOf::of::<T>()),
        has_tag: false,
    }
}

pub(in crate::api) static PLACE_ORDER: Description = Description {
    id: "placeOrder",
    tag: Tag::Orders,
    summary: "Place an order",
    about: "Reserves the units of all products in the first store, by ascending id, that has every \
            product. The same request again gets the same answer, however far the order has \
            progressed.",
    query: &[],
    headers: COMMAND_HEADERS,
    body: Some(Content::Json(TypeOf::of::<WireOrder<'static>>())),
    answer: json::<Accepted<'static>>("The units are reserved, durably."),
    problems: &[Kind::InsufficientStock, Kind::Refused],
    scope: Scope::Volumes,
};

pub(in crate::api) static PAY_ORDER: Description = Description {
    id: "payOrder",
    tag: Tag::Orders,
    summary: "Record the payment of an order",
    about: "The delivery starts once the warehouse has confirmed the announcement. A payment that buys \
            nothing is recorded as a wanted refund and answered with 409.",
    query: &[],
    headers: COMMAND_HEADERS,
    body: Some(Content::Json(TypeOf::of::<WirePayment>())),
    answer: json::<Accepted<'static>>("The payment is recorded, durably. The delivery follows."),
    problems: &[Kind::NotFound, Kind::RefundWanted],
    scope: Scope::Volumes,
};

pub(in crate::api) static CANCEL_ORDER: Description = Description {
    id: "cancelOrder",
    tag: Tag::Orders,
    summary: "Cancel an order",
    about: "Cancels an order that is not paid yet, and releases its units.",
    query: &[],
    headers: COMMAND_HEADERS,
    body: None,
    answer: json::<Current<'static>>("The order is cancelled and its units are free."),
    problems: &[Kind::NotFound, Kind::Refused],
    scope: Scope::Volumes,
};

pub(in crate::api) static SHOW_ORDER: Description = Description {
    id: "showOrder",
    tag: Tag::Orders,
    summary: "Read an order",
    about: "Returns the order as it is now. Rejected and cancelled orders are kept, too.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<Current<'static>>("The order."),
    problems: &[Kind::NotFound],
    scope: Scope::Volumes,
};

pub(in crate::api) static ORDER_HISTORY: Description = Description {
    id: "orderHistory",
    tag: Tag::Orders,
    summary: "Read the events of an order",
    about: "Returns all events since the order was received, oldest first.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<History<'static>>("The events."),
    problems: &[Kind::NotFound],
    scope: Scope::Volumes,
};

pub(in crate::api) static LIST_ORDERS: Description = Description {
    id: "listOrders",
    tag: Tag::Orders,
    summary: "List orders by time of arrival",
    about: "The orders of all volumes are merged by `created_at_ms`, and orders of one volume keep \
            their order of arrival. A page may have fewer orders than `limit` although `next` is \
            there: the next order of some volume was not read yet and may be older than the rest. \
            Follow `next` until it is null.",
    query: &[
        Parameter {
            name: "state",
            about: "Only orders in this state. `refund_wanted` also lists orders with a second payment \
                    to be refunded.",
            schema: state,
            example: "paid",
        },
        Parameter {
            name: "store",
            about: "Only orders of this store.",
            schema: store,
            example: "5",
        },
        Parameter {
            name: "since",
            about: "Only orders received at or after this time.",
            schema: moment,
            example: "1795893049896",
        },
        LIMIT,
        Parameter {
            name: "cursor",
            about: "`next` of the page before. It has a position in each volume, joined by commas.",
            schema: orders_cursor,
            example: "paris~3.14",
        },
    ],
    headers: &[],
    body: None,
    answer: json::<OrderPage>("A page of orders."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static REPLACE_STOCK: Description = Description {
    id: "replaceStock",
    tag: Tag::Stock,
    summary: "Replace the whole stock",
    about: "Sets the units on hand of every product in every store. A cell that the body omits becomes \
            0. Reservations stay. A malformed line is found before anything is applied. After any \
            other failure, or a crash, some stores may have their new quantities and others their \
            former ones: send the body again.",
    query: &[],
    headers: &[
        Parameter {
            name: "X-Stock-As-Of",
            about: "Number of the last delivery of the warehouse that the quantities count. Without it, \
                    they count the deliveries that were confirmed before the body began to arrive. A \
                    number too far ahead of the highest known one is answered with 400.",
            schema: any_number,
            example: "4711",
        },
        CONTENT_ENCODING,
    ],
    body: Some(Content::Csv),
    answer: json::<SnapshotTaken>("The stock is durable and in force."),
    problems: &[
        Kind::MalformedLine,
        Kind::StaleSnapshot,
        Kind::ContentType,
        Kind::PartlyApplied,
    ],
    scope: Scope::Volumes,
};

pub(in crate::api) static CHANGE_STOCK: Description = Description {
    id: "changeStock",
    tag: Tag::Stock,
    summary: "Change some quantities of the stock",
    about: "Sets the units on hand of the cells in the body, as of now. All other cells stay. At most \
            100,000 lines.",
    query: &[],
    headers: &[CONTENT_ENCODING],
    body: Some(Content::Csv),
    answer: json::<SnapshotTaken>("The quantities are durable and in force."),
    problems: &[Kind::MalformedLine, Kind::ContentType, Kind::PartlyApplied],
    scope: Scope::Volumes,
};

pub(in crate::api) static PRODUCT_STOCK: Description = Description {
    id: "productStock",
    tag: Tag::Stock,
    summary: "Read the stock of a product",
    about: "Lists all stores by ascending id, also those without a unit of the product.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<ProductPage>("The stores."),
    problems: &[Kind::NotFound],
    scope: Scope::Volumes,
};

pub(in crate::api) static STORE_STOCK: Description = Description {
    id: "storeStock",
    tag: Tag::Stock,
    summary: "Read the stock of a store",
    about: "Lists all products of the store, by ascending id.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<StorePage>("The products."),
    problems: &[Kind::NotFound],
    scope: Scope::Volumes,
};

pub(in crate::api) static LIST_RESERVATIONS: Description = Description {
    id: "listReservations",
    tag: Tag::Stock,
    summary: "List reservations by order id",
    about: "Lists the units that are reserved for orders, by ascending order id.",
    query: &[
        LIMIT,
        Parameter {
            name: "cursor",
            about: "`next` of the page before: the last order id of that page.",
            schema: reservations_cursor,
            example: "shop:17",
        },
    ],
    headers: &[],
    body: None,
    answer: json::<ReservationPage>("A page of reservations."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static TOP_SALES: Description = Description {
    id: "topStats",
    tag: Tag::Statistics,
    summary: "Rank the products by revenue",
    about: "Ranks the products of all statistics files, most revenue first.",
    query: &[Parameter {
        name: "top",
        about: "Number of products.",
        schema: top,
        example: "5",
    }],
    headers: &[],
    body: None,
    answer: json::<Ranking>("The ranking."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static PRODUCT_SALES: Description = Description {
    id: "productStats",
    tag: Tag::Statistics,
    summary: "Read the sales of a product",
    about: "Sums the product over all statistics files. All sums are 0 if nothing was sold.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<ProductStats>("The sums."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static LIST_MESSAGES: Description = Description {
    id: "listMessages",
    tag: Tag::Warehouse,
    summary: "List the messages to the warehouse",
    about: "Lists the messages that the warehouse has not confirmed yet, by order id and kind. A message \
            in the state `dead` is not tried again until somebody asks for it.",
    query: &[
        LIMIT,
        Parameter {
            name: "cursor",
            about: "`next` of the page before: order id and kind of its last message.",
            schema: messages_cursor,
            example: "shop:17/deliver",
        },
    ],
    headers: &[],
    body: None,
    answer: json::<MessagePage>("A page of messages."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static RETRY_MESSAGE: Description = Description {
    id: "retryMessage",
    tag: Tag::Warehouse,
    summary: "Retry a dead letter",
    about: "Puts a message that was given up back into the outbox. It is sent at once.",
    query: &[],
    headers: COMMAND_HEADERS,
    body: None,
    answer: json::<Retried<'static>>("The message waits for its next try."),
    problems: &[Kind::NotFound],
    scope: Scope::Volumes,
};

pub(in crate::api) static HEALTH: Description = Description {
    id: "health",
    tag: Tag::Node,
    summary: "Read the health of the cluster",
    about: "Sums counts and states over all volumes. The status is `degraded` if a volume takes no \
            writes, is missing or does not answer.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<Health>("Counts and states."),
    problems: &[],
    scope: Scope::Volumes,
};

pub(in crate::api) static LIVE: Description = Description {
    id: "live",
    tag: Tag::Node,
    summary: "Liveness probe",
    about: "Answers with 200 while the process runs, even if too many requests are in progress.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<Alive>("The process runs."),
    problems: &[],
    scope: Scope::Probe,
};

pub(in crate::api) static READY: Description = Description {
    id: "ready",
    tag: Tag::Node,
    summary: "Readiness probe",
    about: "Answers with 200 if every volume that is assigned to this node takes orders, and with 503 \
            and the reasons otherwise.",
    query: &[],
    headers: &[],
    body: None,
    answer: json::<Alive>("The node takes orders."),
    problems: &[Kind::Busy],
    scope: Scope::Probe,
};

pub(in crate::api) static METRICS: Description = Description {
    id: "metrics",
    tag: Tag::Node,
    summary: "Metrics for Prometheus",
    about: "Counters, gauges and histograms of this node and of the volumes that it serves, even if too \
            many requests are in progress.",
    query: &[],
    headers: &[],
    body: None,
    answer: Answer {
        about: "The text format of Prometheus.",
        content: Content::Text("text/plain"),
        has_tag: false,
    },
    problems: &[],
    scope: Scope::Probe,
};

pub(in crate::api) static OPENAPI: Description = Description {
    id: "openapi",
    tag: Tag::Node,
    summary: "This document",
    about: "The description of this API for programs, in OpenAPI 3.1.",
    query: &[],
    headers: &[],
    body: None,
    answer: Answer {
        about: "The document.",
        content: Content::Object,
        has_tag: false,
    },
    problems: &[],
    scope: Scope::Node,
};

pub(in crate::api) static RING: Description = Description {
    id: "ring",
    tag: Tag::Node,
    summary: "Read the ring",
    about: "Returns slots as runs, their owners with addresses, epoch and hash seed, for clients that \
            send each request to its owner. Responses of other routes name the owner's address in \
            `X-Imt-Owner`. The page docs/clients.md describes each member.",
    query: &[],
    headers: &[Parameter {
        name: "If-None-Match",
        about: "The `ETag` of the document that the client has. If it is still the current one, the \
                answer is 304.",
        schema: any_text,
        example: "W/\"1f0c\"",
    }],
    body: None,
    answer: Answer {
        about: "The ring in force, as this node sees it.",
        content: Content::Object,
        has_tag: true,
    },
    problems: &[],
    scope: Scope::Node,
};

pub(in crate::api) static CONSOLE_STATE: Description = Description {
    id: "consoleState",
    tag: Tag::Node,
    summary: "Read the state of the web console",
    about: "The cluster as the web console shows it: nodes, volumes, requests of the last 5 minutes, \
            events. For people and scripts; members may be added.",
    query: &[],
    headers: &[LAST_EVENT_ID],
    body: None,
    answer: Answer {
        about: "The state.",
        content: Content::Object,
        has_tag: false,
    },
    problems: &[],
    scope: Scope::Node,
};

pub(in crate::api) static CONSOLE_EVENTS: Description = Description {
    id: "consoleEvents",
    tag: Tag::Node,
    summary: "Follow the state of the web console",
    about: "Server-sent events: `state` once a second and at each change of the cluster, with what \
            changed in `/console/state` since the event before, and `end` when the node stops. \
            `Last-Event-ID` continues a stream.",
    query: &[],
    headers: &[LAST_EVENT_ID],
    body: None,
    answer: Answer {
        about: "The stream of events.",
        content: Content::Text("text/event-stream"),
        has_tag: false,
    },
    problems: &[],
    scope: Scope::Node,
};
