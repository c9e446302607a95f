//! Parses and checks the query parameters of a request.
//!
//! **Invariants**
//! - The problem for a rejected value names the query parameter.
//! - The same functions check the key in a cursor from a client and a key that another node sends.
//! - Each number parameter has a minimum and a maximum.
//!
//! The module `routes` has a table of all paths with their parameters.

use std::collections::BTreeMap;
use std::fmt;

use imt_ring::NodeName;
use serde::{Deserialize, Serialize};

use crate::api::problem::Problem;
use crate::api::request::{parse_id, parse_kind};
use crate::domain::order::{Order, OrderId, State};
use crate::outbox::Kind;

/// Maximum number of entries of a page.
pub(super) const PAGE_MAX: usize = 10_000;
/// Number of entries of a page if the request has no parameter `limit`.
pub(super) const PAGE_DEFAULT: usize = 1_000;
/// Maximum number of products of a ranking.
pub(super) const TOP_MAX: u32 = 1_000;
/// Number of products of a ranking if the request has no parameter `top`.
pub(super) const TOP_DEFAULT: u32 = 10;
/// Largest whole number that every JSON reader represents exactly (RFC 8259, section 6).
pub(super) const EXACT_MAX: u64 = (1 << 53) - 1;

/// The decoded names and values of a query string.
#[derive(Debug, Default)]
pub(super) struct Values(pub(super) Vec<(String, String)>);

impl Values {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the value of a parameter, or `None` if it is absent or empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &'static str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        let refused = || Problem::field(name, format!("must be a whole number, {min} to {max}"));
        number.map(Some).ok_or_else(refused)
    }

    fn limit(&self) -> Result<usize, Problem> {
        let limit = self.number("limit", 1, PAGE_MAX as u64)?;
        Ok(limit.map_or(PAGE_DEFAULT, |limit| limit as usize))
    }

    /// Returns the requested number of products of a ranking.
    pub(super) fn top(&self) -> Result<u32, Problem> {
        let top = self.number("top", 1, TOP_MAX.into())?;
        Ok(top.map_or(TOP_DEFAULT, |top| top as u32))
    }
}

fn invalid_cursor() -> Problem {
    Problem::field("cursor", "must be the `next` value of an earlier page")
}

/// A request for a page of a list that is sorted by keys of type `K`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListQuery<K> {
    /// Maximum number of entries.
    pub(crate) limit: usize,
    /// The last key of the previous page; `None` to start at the first entry.
    pub(crate) after: Option<K>,
}

impl ListQuery<OrderId> {
    pub(super) fn by_order(values: &Values) -> Result<ListQuery<OrderId>, Problem> {
        let after = values
            .text("cursor")
            .map(|cursor| OrderId::parse(cursor).map_err(|_| invalid_cursor()));
        Ok(ListQuery {
            limit: values.limit()?,
            after: after.transpose()?,
        })
    }
}

/// Parses the key of an outbox message, `ORDER/KIND`. Returns `None` for any other text.
pub(crate) fn parse_message_key(text: &str) -> Option<(OrderId, Kind)> {
    let (order, kind) = text.rsplit_once('/')?;
    Some((parse_id(order).ok()?, parse_kind(kind).ok()?))
}

impl ListQuery<(OrderId, Kind)> {
    pub(super) fn by_message(values: &Values) -> Result<ListQuery<(OrderId, Kind)>, Problem> {
        let after = values
            .text("cursor")
            .map(|cursor| parse_message_key(cursor).ok_or_else(invalid_cursor));
        Ok(ListQuery {
            limit: values.limit()?,
            after: after.transpose()?,
        })
    }
}

/// Selects the orders of a list by state, store and time of arrival. `None` stands for any state,
/// and for any store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    state: Option<State>,
    store: Option<u32>,
    since_ms: u64,
}

impl Filter {
    /// Returns `true` if the filter selects the order.
    pub(crate) fn selects(&self, order: &Order) -> bool {
        // An order with a second payment to be refunded belongs to the list of wanted refunds,
        // although its state is not `RefundWanted`.
        let owes = |state| state == State::RefundWanted && !order.extra_payments.is_empty();
        self.state.is_none_or(|state| state == order.state || owes(state))
            && self.store.is_none_or(|store| Some(store) == order.store)
            && order.created_at_ms() >= self.since_ms
    }
}

/// A position in a volume's list of arrivals: before its first order, between two orders, or after
/// its last order. The list is stored in pages (`storage::volume`). `page` is the page of the
/// position, and `at` is the number of orders on that page before the position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) page: u64,
    pub(crate) at: u64,
}

/// A position in the merged list of orders: one position for each volume, written as
/// `VOLUME~PAGE.AT` and joined by commas.
///
/// A volume that is absent from the cursor is listed from its first order. Positions of volumes
/// that have left the ring are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) BTreeMap<NodeName, Position>);

impl Cursor {
    fn parse(text: &str) -> Option<Cursor> {
        let mut positions = BTreeMap::new();
        for part in text.split(',') {
            let (volume, position) = part.split_once('~')?;
            let (page, at) = position.split_once('.')?;
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(page) || !digits(at) {
                return None;
            }
            let position = Position {
                page: page.parse().ok()?,
                at: at.parse().ok()?,
            };
            if positions.insert(NodeName::new(volume).ok()?, position).is_some() {
                return None;
            }
        }
        Some(Cursor(positions))
    }

    /// Returns the position in a volume's list, or the beginning of the list if the cursor does not
    /// name the volume.
    pub(crate) fn of(&self, volume: &NodeName) -> Position {
        self.0.get(volume).copied().unwrap_or_default()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (volume, position)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{volume}~{}.{}", position.page, position.at)?;
        }
        Ok(())
    }
}

/// A request for a page of orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrdersQuery {
    pub(crate) filter: Filter,
    /// Maximum number of orders.
    pub(crate) limit: usize,
    pub(crate) cursor: Cursor,
}

impl OrdersQuery {
    pub(super) fn parse(values: &Values) -> Result<OrdersQuery, Problem> {
        let state = values.text("state").map(|name| {
            State::from_name(name).ok_or_else(|| {
                let names: Vec<&str> = State::ALL.iter().map(|state| state.name()).collect();
                Problem::field("state", format!("must be one of {}", names.join(", ")))
            })
        });
        let cursor = values
            .text("cursor")
            .map(|cursor| Cursor::parse(cursor).ok_or_else(invalid_cursor));
        Ok(OrdersQuery {
            filter: Filter {
                state: state.transpose()?,
                store: values
                    .number("store", 0, u64::from(u32::MAX))?
                    .map(|store| store as u32),
                since_ms: values.number("since", 0, EXACT_MAX)?.unwrap_or(0),
            },
            limit: values.limit()?,
            cursor: cursor.transpose()?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_form_and_malformed_ones_are_rejected() {
        for text in ["a~0.0", "a~3.4,b~18446744073709551615.7"] {
            let cursor = Cursor::parse(text).unwrap();
            assert_eq!(cursor.to_string(), text);
        }
        let cursor = Cursor::parse("lyon~3.4").unwrap();
        assert_eq!(
            cursor.of(&NodeName::new("lyon").unwrap()),
            Position { page: 3, at: 4 }
        );
        assert_eq!(cursor.of(&NodeName::new("paris").unwrap()), Position::default());
        for text in [
            "3.4",
            "a~",
            "a~3",
            "a~3.",
            "a~+3.4",
            "a~3.4,",
            "a~ 3.4",
            "~3.4",
            "a~3.4,a~5.6",
            "/~1.2",
        ] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }

    #[test]
    fn parse_message_key_requires_an_order_and_a_kind() {
        let (order, kind) = parse_message_key("shop:1/deliver").unwrap();
        assert_eq!((order.as_str(), kind), ("shop:1", Kind::Deliver));
        for text in ["", "a", "a/lost", "/deliver", "a/b/deliver"] {
            assert!(parse_message_key(text).is_none(), "{text}");
        }
    }
}
