//! The kinds of problems: their names for programs, statuses, titles and meanings.
//!
//! The descriptions of problems in the API document, and `docs/errors.md`, are generated from this
//! table.
//!
//! **Invariant**: the `slug` of a kind, its name for programs, never changes.

use axum::http::StatusCode;
use serde::{Serialize, Serializer};

/// A kind of problem, the `type` of an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Malformed,
    MalformedLine,
    ForeignOrigin,
    ForeignHost,
    NodesOnly,
    NotFound,
    Method,
    SlowBody,
    InsufficientStock,
    Refused,
    RefundWanted,
    KeyInProgress,
    KeyReused,
    StaleSnapshot,
    NoSuchMove,
    NoSuchCopy,
    TooLarge,
    ContentType,
    Encoding,
    Moved,
    Internal,
    Busy,
    NotServedHere,
    PartlyApplied,
}

/// The texts that describe a kind of problem.
pub(crate) struct Texts {
    /// Last part of the URN that is the `type` of an error response.
    pub(crate) slug: &'static str,
    pub(crate) title: &'static str,
    pub(crate) meaning: &'static str,
    /// The action that the client should take.
    pub(crate) next: &'static str,
}

impl Kind {
    /// Every kind, sorted by status.
    pub(crate) const ALL: [Kind; 24] = [
        Kind::Malformed,
        Kind::MalformedLine,
        Kind::ForeignOrigin,
        Kind::ForeignHost,
        Kind::NodesOnly,
        Kind::NotFound,
        Kind::Method,
        Kind::SlowBody,
        Kind::InsufficientStock,
        Kind::Refused,
        Kind::RefundWanted,
        Kind::KeyInProgress,
        Kind::KeyReused,
        Kind::StaleSnapshot,
        Kind::NoSuchMove,
        Kind::NoSuchCopy,
        Kind::TooLarge,
        Kind::ContentType,
        Kind::Encoding,
        Kind::Moved,
        Kind::Internal,
        Kind::Busy,
        Kind::NotServedHere,
        Kind::PartlyApplied,
    ];

    /// Returns the default status of the kind. A problem of the kind `PartlyApplied` may have
    /// another status.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Kind::Malformed | Kind::MalformedLine => StatusCode::BAD_REQUEST,
            Kind::ForeignOrigin | Kind::ForeignHost | Kind::NodesOnly => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Kind::InsufficientStock
            | Kind::Refused
            | Kind::RefundWanted
            | Kind::KeyInProgress
            | Kind::KeyReused
            | Kind::StaleSnapshot
            | Kind::NoSuchMove
            | Kind::NoSuchCopy => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::ContentType | Kind::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Moved => StatusCode::MISDIRECTED_REQUEST,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Busy | Kind::NotServedHere | Kind::PartlyApplied => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns `true` if the kind is meant for responses to calls between nodes (paths under
    /// `/peer/`), not for responses of the public API.
    pub(crate) fn is_between_nodes(self) -> bool {
        matches!(
            self,
            Kind::NodesOnly | Kind::NoSuchMove | Kind::NoSuchCopy | Kind::Moved
        )
    }

    /// Returns the URN that is the `type` of the error response.
    pub(crate) fn urn(self) -> String {
        format!("urn:imt-order:problem:{}", self.texts().slug)
    }

    /// Returns the texts that describe the kind.
    pub(crate) fn texts(self) -> &'static Texts {
        match self {
            Kind::Malformed => &Texts {
                slug: "malformed",
                title: "The request is malformed",
                meaning: "A value of the path, the query, a header or the body is missing or invalid, or a \
                          query parameter is unknown. `field` names the value, such as \
                          `products[0].quantity`.",
                next: "Correct the request.",
            },
            Kind::MalformedLine => &Texts {
                slug: "malformed-line",
                title: "A line is malformed",
                meaning: "A line of a CSV body is invalid; `line` and `column` say where. Nothing of the \
                          body was applied.",
                next: "Correct the line and send the whole body again.",
            },
            Kind::ForeignOrigin => &Texts {
                slug: "foreign-origin",
                title: "Not from a page of another origin",
                meaning: "A browser sent the request for a web page: the header `Origin` names neither \
                          the address of the request (`Host`) nor an origin that the operator allows. \
                          Nothing was applied.",
                next: "The operator can allow the origin of the page with `--cors-origin`.",
            },
            Kind::ForeignHost => &Texts {
                slug: "foreign-host",
                title: "Not by this host name",
                meaning: "A browser sent the request to a host name (`Host`) that is not known to be the \
                          node's. A web page could make its own name lead to the node. Nothing was \
                          applied.",
                next: "Use the IP address of the node. The operator can allow a name with \
                       `--cors-origin`, such as `--cors-origin http://n1.shop.example:9090`.",
            },
            Kind::NodesOnly => &Texts {
                slug: "nodes-only",
                title: "For nodes only",
                meaning: "The path begins with `/peer/` and the request does not show the secret of the \
                          cluster.",
                next: "Use the public API.",
            },
            Kind::NotFound => &Texts {
                slug: "not-found",
                title: "Not found",
                meaning: "The path, order, store, product or message does not exist.",
                next: "Check the path and the id. An order exists once its request was answered with 200 \
                       or with `insufficient-stock`.",
            },
            Kind::Method => &Texts {
                slug: "method",
                title: "Method not allowed",
                meaning: "The path exists for other methods. The header `Allow` lists them.",
                next: "Use one of these methods.",
            },
            Kind::SlowBody => &Texts {
                slug: "slow-body",
                title: "The request is too slow",
                meaning: "The body stopped arriving for 15 s, or arrived at less than 32 KiB/s after the \
                          first 20 s. Nothing of it was applied.",
                next: "Send it again over a better connection.",
            },
            Kind::InsufficientStock => &Texts {
                slug: "insufficient-stock",
                title: "Insufficient stock",
                meaning: "No single store has all products of the order. The order is known and rejected: \
                          the same request gets the same answer later, too.",
                next: "Offer other products or quantities, and place an order with a new id.",
            },
            Kind::Refused => &Texts {
                slug: "refused",
                title: "The state of the order does not allow this",
                meaning: "The id was used for an order with other products, or the order cannot be \
                          cancelled any more.",
                next: "Read the order (`GET /order/{id}`) and decide by its state.",
            },
            Kind::RefundWanted => &Texts {
                slug: "refund-wanted",
                title: "The payment buys nothing",
                meaning: "The order was paid by another transaction, was rejected, or ended before it was \
                          paid. The payment is recorded for a refund.",
                next: "Refund the transaction. `GET /orders?state=refund_wanted` lists all such orders.",
            },
            Kind::KeyInProgress => &Texts {
                slug: "key-in-progress",
                title: "A request with this key is in progress",
                meaning: "An earlier request with this `Idempotency-Key` is still being answered.",
                next: "Repeat the request after a moment: it gets the answer of the first one.",
            },
            Kind::KeyReused => &Texts {
                slug: "key-reused",
                title: "The key belongs to another request",
                meaning: "This `Idempotency-Key` was used for another path or body.",
                next: "Use a new key for each new request.",
            },
            Kind::StaleSnapshot => &Texts {
                slug: "stale-snapshot",
                title: "A newer stock was applied",
                meaning: "A stock snapshot with a higher `X-Stock-As-Of` was applied before. Nothing was \
                          changed.",
                next: "Send the current stock.",
            },
            Kind::NoSuchMove => &Texts {
                slug: "no-such-move",
                title: "The migration has ended",
                meaning: "A node requests slots for a migration that has ended.",
                next: "The coordinator starts the migration again.",
            },
            Kind::NoSuchCopy => &Texts {
                slug: "no-such-copy",
                title: "The copy has ended",
                meaning: "The copy of the requested slots ended before it was complete.",
                next: "The coordinator starts the migration again.",
            },
            Kind::TooLarge => &Texts {
                slug: "too-large",
                title: "The body is too large",
                meaning: "The body, as sent or unpacked, is larger than the route allows.",
                next: "Send less: an order has at most 100 products, a change of stock (`PATCH /stocks`) \
                       100,000 lines.",
            },
            Kind::ContentType => &Texts {
                slug: "content-type",
                title: "Unknown content type",
                meaning: "A stock was sent as a form. Clients such as curl do so by default.",
                next: "Send it as `text/csv`.",
            },
            Kind::Encoding => &Texts {
                slug: "encoding",
                title: "Unknown content encoding",
                meaning: "The body has a content coding other than gzip, or more than two layers of it.",
                next: "Send the body without a coding or as gzip. `Accept-Encoding` lists both.",
            },
            Kind::Moved => &Texts {
                slug: "moved",
                title: "Not here any more",
                meaning: "The order or store belongs to another node now.",
                next: "The node that received the request routes it again.",
            },
            Kind::Internal => &Texts {
                slug: "internal",
                title: "Internal error",
                meaning: "A node failed. The log of the node that serves the order or store has the \
                          cause. The log of the node that was asked has the id of the request \
                          (`X-Request-Id`).",
                next: "Repeat the request: each one is idempotent. Tell the operator if it fails again.",
            },
            Kind::Busy => &Texts {
                slug: "busy",
                title: "Too busy",
                meaning: "A queue is full, the disk is full, the node starts or stops, or the engine of \
                          the volume does not answer. Nothing was applied, unless `detail` says that \
                          this is unknown.",
                next: "Repeat the request after `Retry-After` seconds.",
            },
            Kind::NotServedHere => &Texts {
                slug: "not-served-here",
                title: "Not served here",
                meaning: "The node that serves this order or store did not answer in time. It may still \
                          carry the request out.",
                next: "Repeat the request after `Retry-After` seconds: it is carried out once.",
            },
            Kind::PartlyApplied => &Texts {
                slug: "partly-applied",
                title: "Applied in part",
                meaning: "Some stores have their new stock, or may have it, and others do not. `applied` \
                          and `failed` list the stores. The status is that of the part that failed, \
                          usually 503.",
                next: "Send the whole stock again.",
            },
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("urn:imt-order:problem:{}", self.texts().slug))
    }
}

/// Generates the content of `docs/errors.md`.
#[cfg(test)]
pub(crate) fn page() -> String {
    let mut page = "# Errors of the API\n\n\
        Every error of a route is answered as `application/problem+json` (RFC 9457). Programs decide by\n\
        `type`, and by `field` where a value is invalid. Both are stable. `title` and `detail` are for\n\
        people and may change. Every 503 has a `Retry-After` header.\n\n\
        Every request of the API may be repeated. A repeated order, payment or cancellation is carried\n\
        out once and gets the answer of the first one.\n\n\
        The program answers from the table in `oms/src/api/problem/kind.rs`. A test of `imt-oms` compares\n\
        this page with the table. `IMT_WRITE_DOCUMENTS=1 cargo test -p imt-oms --lib problem` writes the\n\
        page.\n"
        .to_owned();
    for (heading, is_between_nodes) in [("For clients", false), ("Between nodes", true)] {
        page.push_str(&format!("\n## {heading}\n"));
        if is_between_nodes {
            page.push_str("\nA client gets these only if it calls a path below `/peer/`.\n");
        }
        for kind in Kind::ALL {
            if kind.is_between_nodes() != is_between_nodes {
                continue;
            }
            let texts = kind.texts();
            let status = kind.status().as_u16();
            page.push_str(&format!("\n### `{}` ({status})\n\n", texts.slug));
            let item = |label: &str, text: &str| wrap(&format!("- {label}: {text}"));
            page.push_str(&item("Type", &format!("`{}`", kind.urn())));
            page.push_str(&item("Title", texts.title));
            page.push_str(&item("Meaning", texts.meaning));
            page.push_str(&item("Next step", texts.next));
        }
    }
    page
}

/// Wraps a Markdown list item at 100 columns.
#[cfg(test)]
fn wrap(item: &str) -> String {
    let (mut text, mut columns) = (String::new(), 0);
    for word in item.split(' ') {
        if columns > 0 && columns + 1 + word.len() > 100 {
            text.push_str("\n ");
            columns = 1;
        }
        if columns > 0 {
            text.push(' ');
            columns += 1;
        }
        text.push_str(word);
        columns += word.len();
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_errors_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        if std::env::var_os("IMT_WRITE_DOCUMENTS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            found,
            page(),
            "docs/errors.md differs; IMT_WRITE_DOCUMENTS=1 writes it"
        );
    }

    #[test]
    fn each_kind_has_a_name_of_its_own() {
        let slugs: std::collections::BTreeSet<&str> =
            Kind::ALL.iter().map(|kind| kind.texts().slug).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
        assert!(Kind::ALL.is_sorted_by_key(|kind| kind.status()));
    }
}
