//! Lists of entries of all volumes: this node requests a page from each volume and merges the
//! pages.
//!
//! **Invariants**
//! - In a cluster with one volume, the page of that volume passes through the same code. So the
//!   responses have the same fields in the same order as with several volumes.
//! - The field `next` of a page is the cursor of the next page. It is set if the volumes returned
//!   more entries than the page has, or if a volume has unread orders. Otherwise it is null.
//! - All reservations of an order are on one page, because the cursor of that page is an order id.
//!
//! Deliberately absent: a consistent view over volumes. While slots migrate, a list may miss or
//! repeat entries of these slots. After the migration the list is complete again.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::response::Response;
use imt_ring::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::api::health::{Health, VolumeHealth};
use crate::api::internal::ask_volume;
use crate::api::orders::{self, Current, OrderEntry, OrdersPage};
use crate::api::params::{Cursor, Filter, ListQuery, OrdersQuery, Position};
use crate::api::problem::Problem;
use crate::api::reports::ListedReservation;
use crate::api::request::List;
use crate::api::stock_query;
use crate::cluster::peer_call::{VolumeCall, VolumeQuestion};
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::order::OrderId;
use crate::outbox::ListedMessage;
use crate::runtime;

/// One entry of a volume's list: its sort key and its rendered JSON.
#[derive(Serialize, Deserialize)]
pub(crate) struct Entry<K> {
    pub(crate) key: K,
    pub(crate) value: Box<RawValue>,
}

impl<K> Entry<K> {
    pub(crate) fn of(key: K, value: &impl Serialize) -> Result<Entry<K>, Problem> {
        Ok(Entry {
            key,
            value: raw(value)?,
        })
    }
}

/// Renders a value as JSON. The node that merges the pages copies the text unchanged.
pub(super) fn raw(value: &impl Serialize) -> Result<Box<RawValue>, Problem> {
    serde_json::value::to_raw_value(value).map_err(|error| Problem::internal(error.to_string()))
}

/// A request for the first `limit` entries of a list, or of the part of the list after the key
/// `after`. For reservations, `limit` is the number of orders.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct AskEntries {
    pub(crate) limit: usize,
    /// The key as text (an order id, or `ORDER/KIND`); `None` to start at the first entry.
    pub(crate) after: Option<String>,
}

/// Asks a volume for the reservations of its first orders, or of the first orders after an order
/// id.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct AskReservations(pub(crate) AskEntries);

impl VolumeQuestion for AskReservations {
    const CALL: VolumeCall = VolumeCall::Reservations;
    type Answer = Vec<Entry<OrderId>>;
}

/// Asks a volume for its first outbox messages, or for those after a given message, by order id and
/// kind.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct AskMessages(pub(crate) AskEntries);

impl VolumeQuestion for AskMessages {
    const CALL: VolumeCall = VolumeCall::Messages;
    type Answer = Vec<Entry<(OrderId, String)>>;
}

/// Asks a volume for its stores with their units of a product.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct AskProduct(pub(crate) u32);

impl VolumeQuestion for AskProduct {
    const CALL: VolumeCall = VolumeCall::Product;
    type Answer = Vec<Entry<u32>>;
}

/// Asks a volume for its counts and states, for `GET /health`.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct AskHealth;

impl VolumeQuestion for AskHealth {
    const CALL: VolumeCall = VolumeCall::Health;
    type Answer = VolumeHealth;
}

/// Asks a volume for its first orders that match a filter, from a position on.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct AskOrders {
    pub(crate) filter: Filter,
    pub(crate) limit: usize,
    pub(crate) from: Position,
}

impl VolumeQuestion for AskOrders {
    const CALL: VolumeCall = VolumeCall::Orders;
    type Answer = OrdersPage;
}

/// Handles a client's request for a list. If a volume leaves the ring before all volumes have
/// answered, all volumes of the new ring are asked. After the deadline `until`, returns the problem
/// `NotServedHere` instead.
pub(crate) async fn list(
    cluster: &Arc<ClusterHandle>,
    list: &List,
    until: Instant,
) -> Result<Response, Problem> {
    loop {
        match list_once(cluster, list, until).await {
            Err(problem) if problem.is_moved() && Instant::now() < until => tokio::task::yield_now().await,
            answer => return answer.map_err(Problem::for_client),
        }
    }
}

async fn list_once(cluster: &Arc<ClusterHandle>, list: &List, until: Instant) -> Result<Response, Problem> {
    match list {
        List::Orders(query) => list_orders(cluster, query, until).await,
        List::Reservations(query) => list_reservations(cluster, query, until).await,
        List::Messages(query) => {
            let after = query
                .after
                .as_ref()
                .map(|(order, kind)| format!("{order}/{}", kind.name()));
            let ask = AskMessages(AskEntries {
                limit: query.limit + 1,
                after,
            });
            let pages = ask_all(cluster, &ask, until).await?;
            let merged = cut(sorted(pages), query.limit);
            let next = merged.next.map(|(order, kind)| format!("{order}/{kind}"));
            Ok(orders::json(&MessagePage {
                messages: merged.entries,
                next,
            }))
        }
        List::Product(product) => {
            let pages = ask_all(cluster, &AskProduct(*product), until).await?;
            let merged = cut(sorted(pages), usize::MAX);
            stock_query::render_product(*product, merged.entries)
        }
        List::Health => Ok(orders::json(&health(cluster, until).await)),
    }
}

/// A page of messages to the warehouse.
#[derive(Serialize, ToSchema)]
pub(super) struct MessagePage {
    /// The messages, sorted by order id and kind.
    #[schema(value_type = Vec<ListedMessage>)]
    messages: Vec<Box<RawValue>>,
    /// The cursor of the next page; null if there is no next page.
    #[schema(required = true)]
    next: Option<String>,
}

/// A page of reservations.
#[derive(Serialize, ToSchema)]
pub(super) struct ReservationPage {
    /// The reservations, sorted by order id. A page has all reservations of each of its orders. So
    /// it may have fewer reservations than `limit` although there is a next page, and more if its
    /// only order has more.
    #[schema(value_type = Vec<ListedReservation>)]
    reservations: Vec<Box<RawValue>>,
    /// The cursor of the next page; null if there is no next page.
    #[schema(required = true)]
    next: Option<String>,
}

/// A page of orders.
#[derive(Serialize, ToSchema)]
pub(super) struct OrderPage {
    /// The orders of all volumes, merged by time of arrival. An order that moved from another
    /// volume may follow orders that arrived after it.
    #[schema(value_type = Vec<Current<'static>>)]
    orders: Vec<Box<RawValue>>,
    /// The cursor of the next page; null if there is no next page.
    #[schema(required = true)]
    next: Option<String>,
}

async fn list_reservations(
    cluster: &Arc<ClusterHandle>,
    query: &ListQuery<OrderId>,
    until: Instant,
) -> Result<Response, Problem> {
    let ask = AskReservations(AskEntries {
        limit: query.limit + 1,
        after: query.after.as_ref().map(ToString::to_string),
    });
    let pages = ask_all(cluster, &ask, until).await?;
    let merged = cut_between_orders(sorted(pages), query.limit);
    Ok(orders::json(&ReservationPage {
        reservations: merged.entries,
        next: merged.next.map(|order| order.to_string()),
    }))
}

/// One page of a list, merged from pages of all volumes. `C` is the type of the cursor.
struct Merged<C> {
    entries: Vec<Box<RawValue>>,
    /// The cursor of the next page; `None` if this page is the last page.
    next: Option<C>,
}

/// Returns the entries of all pages, sorted by key. Equal entries are returned once: for a moment,
/// the volume of an order with borrowed units and the volume of the store may both list the order's
/// reservation.
fn sorted<K: Ord>(pages: Vec<(NodeName, Vec<Entry<K>>)>) -> Vec<Entry<K>> {
    let mut entries: Vec<Entry<K>> = pages.into_iter().flat_map(|(_, page)| page).collect();
    // An order may have several reservations. Equal ones must be neighbours.
    entries.sort_by(|one, other| {
        let by_key = one.key.cmp(&other.key);
        by_key.then_with(|| one.value.get().cmp(other.value.get()))
    });
    entries.dedup_by(|one, other| one.key == other.key && one.value.get() == other.value.get());
    entries
}

/// Returns the first orders that have at most `limit` reservations together, with all of their
/// reservations. If the first order alone has more, returns that order. `entries` are sorted by
/// order.
fn cut_between_orders(entries: Vec<Entry<OrderId>>, limit: usize) -> Merged<OrderId> {
    let mut length = 0;
    for of_order in entries.chunk_by(|one, other| one.key == other.key) {
        if length > 0 && length + of_order.len() > limit {
            break;
        }
        length += of_order.len();
    }
    cut(entries, length)
}

/// Returns the first `length` of the sorted entries. If there are further entries, the cursor is
/// the key of the last returned entry.
fn cut<K>(mut entries: Vec<Entry<K>>, length: usize) -> Merged<K> {
    let has_next = entries.len() > length;
    entries.truncate(length);
    let mut last = None;
    let mut values = Vec::with_capacity(entries.len());
    for Entry { key, value } in entries {
        last = Some(key);
        values.push(value);
    }
    Merged {
        entries: values,
        next: last.filter(|_| has_next),
    }
}

/// Sends a question to all volumes in parallel. Returns the answers sorted by volume name, or the
/// first error.
async fn ask_all<Q>(
    cluster: &Arc<ClusterHandle>,
    question: &Q,
    until: Instant,
) -> Result<Vec<(NodeName, Q::Answer)>, Problem>
where
    Q: VolumeQuestion<Answer: 'static> + Clone + 'static,
{
    let volumes: Vec<NodeName> = cluster.topology().volumes().cloned().collect();
    let questions = volumes.into_iter().map(|volume| (volume, question.clone()));
    let answers = ask_these(cluster, questions, until).await.into_iter();
    answers.map(|(volume, answer)| Ok((volume, answer?))).collect()
}

/// Sends each volume its question, all in parallel. Returns the answers sorted by volume name.
async fn ask_these<Q>(
    cluster: &Arc<ClusterHandle>,
    questions: impl IntoIterator<Item = (NodeName, Q)>,
    until: Instant,
) -> Vec<(NodeName, Result<Q::Answer, Problem>)>
where
    Q: VolumeQuestion<Answer: 'static> + 'static,
{
    let mut asked = JoinSet::new();
    for (volume, question) in questions {
        let cluster = Arc::clone(cluster);
        asked.spawn(runtime::within(async move {
            let known = |topology: &Topology| topology.known(&volume);
            let answer = ask_volume(&cluster, known, &question, until).await;
            (volume, answer)
        }));
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|one, other| one.0.cmp(&other.0));
    answers
}

async fn list_orders(
    cluster: &Arc<ClusterHandle>,
    query: &OrdersQuery,
    until: Instant,
) -> Result<Response, Problem> {
    let volumes: Vec<NodeName> = cluster.topology().volumes().cloned().collect();
    let questions = volumes.into_iter().map(|volume| {
        let ask = AskOrders {
            filter: query.filter.clone(),
            limit: query.limit + 1,
            from: query.cursor.of(&volume),
        };
        (volume, ask)
    });
    let mut pages = Vec::new();
    for (volume, page) in ask_these(cluster, questions, until).await {
        let from = query.cursor.of(&volume);
        pages.push((volume, from, page?));
    }
    let merged = merge_orders(pages, query.limit);
    Ok(orders::json(&OrderPage {
        orders: merged.entries,
        next: merged.next.map(|cursor| cursor.to_string()),
    }))
}

/// The page of one volume during the merge.
struct Source {
    volume: NodeName,
    position: Position,
    entries: std::iter::Peekable<std::vec::IntoIter<OrderEntry>>,
    end: Position,
    more: bool,
}

/// Merges pages of orders by time of arrival. Orders of one volume keep their relative order. If
/// further or unread orders exist, the result has the cursor of the next page.
fn merge_orders(pages: Vec<(NodeName, Position, OrdersPage)>, limit: usize) -> Merged<Cursor> {
    let mut sources: Vec<Source> = pages
        .into_iter()
        .map(|(volume, position, page)| Source {
            volume,
            position,
            entries: page.entries.into_iter().peekable(),
            end: page.end,
            more: page.more,
        })
        .collect();
    let mut orders = Vec::new();
    let has_next = loop {
        // The merged page ends if all entries of a volume's page are merged and the volume has
        // unread orders. The next of these orders may be older than the remaining entries of other
        // volumes.
        let is_unknown = |source: &mut Source| source.more && source.entries.peek().is_none();
        if sources.iter_mut().any(is_unknown) {
            break true;
        }
        let heads = sources.iter_mut().enumerate().filter_map(|(at, source)| {
            let head = source.entries.peek()?;
            Some((head.created_at_ms, at))
        });
        let Some((_, at)) = heads.min() else {
            break false;
        };
        if orders.len() == limit {
            break true;
        }
        if let Some(entry) = sources[at].entries.next() {
            sources[at].position = entry.after;
            orders.push(entry.order);
        }
    };
    let positions = sources.into_iter().map(|mut source| {
        let is_read = source.entries.peek().is_none();
        let position = if is_read { source.end } else { source.position };
        (source.volume, position)
    });
    Merged {
        entries: orders,
        next: has_next.then(|| Cursor(positions.collect())),
    }
}

/// Returns the combined health of all volumes that responded, and the names of the other volumes. A
/// volume is missing if it is assigned to this node and has no database (with an engine: no log in
/// the engine).
pub(crate) async fn health(cluster: &Arc<ClusterHandle>, until: Instant) -> Health {
    let mut whole: Option<VolumeHealth> = None;
    let mut unreachable = Vec::new();
    let missing = cluster.missing().clone();
    let volumes = cluster.topology().volumes().cloned().collect::<BTreeSet<_>>();
    let (absent, volumes): (BTreeSet<NodeName>, BTreeSet<NodeName>) = volumes
        .into_iter()
        .partition(|volume| missing.contains_key(volume));
    let questions = volumes.into_iter().map(|volume| (volume, AskHealth));
    let found = ask_these(cluster, questions, until);
    for (volume, found) in found.await {
        match (found, &mut whole) {
            (Err(_), _) => unreachable.push(volume.to_string()),
            (Ok(one), None) => whole = Some(one),
            (Ok(one), Some(whole)) => whole.add(one),
        }
    }
    unreachable.extend(absent.iter().map(ToString::to_string));
    unreachable.sort_unstable();
    Health::of(
        &cluster.topology(),
        whole.unwrap_or_default(),
        &missing,
        unreachable,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn position(at: u64) -> Position {
        Position { page: 0, at }
    }

    /// Returns the first page of a volume with orders that arrived at `times`.
    fn page(times: &[u64], more: bool) -> OrdersPage {
        let entry = |(at, time): (usize, &u64)| OrderEntry {
            created_at_ms: *time,
            after: position(at as u64 + 1),
            order: raw(time).unwrap(),
        };
        OrdersPage {
            entries: times.iter().enumerate().map(entry).collect(),
            end: position(times.len() as u64 + 5),
            more,
        }
    }

    fn merged(pages: &[(&[u64], bool)], limit: usize) -> (Vec<u64>, Option<String>) {
        let pages = pages.iter().enumerate().map(|(at, (times, more))| {
            let volume = name(["a", "b", "c"][at]);
            (volume, Position::default(), page(times, *more))
        });
        let merged = merge_orders(pages.collect(), limit);
        let times = merged.entries.iter().map(|order| order.get().parse().unwrap());
        (times.collect(), merged.next.map(|cursor| cursor.to_string()))
    }

    #[test]
    fn merge_orders_sorts_by_arrival_and_returns_the_next_cursor() {
        let two: [(&[u64], bool); 2] = [(&[1, 4, 5], false), (&[2, 3, 9], false)];
        assert_eq!(merged(&two, 10), (vec![1, 2, 3, 4, 5, 9], None));
        assert_eq!(merged(&two, 6), (vec![1, 2, 3, 4, 5, 9], None));
        // The merged page contains all orders of volume a. So the cursor has the end of volume a's
        // page (8), not the position after its last order (3).
        assert_eq!(merged(&two, 5).1.as_deref(), Some("a~0.8,b~0.2"));
        assert_eq!(merged(&two, 3), (vec![1, 2, 3], Some("a~0.1,b~0.2".to_owned())));
        assert_eq!(merged(&[(&[], false), (&[], false)], 3), (vec![], None));
    }

    #[test]
    fn a_merged_page_ends_with_the_last_known_order_of_a_volume_with_more() {
        let cut: [(&[u64], bool); 2] = [(&[1, 2], true), (&[7, 8], false)];
        let (times, cursor) = merged(&cut, 10);
        assert_eq!((times, cursor.as_deref()), (vec![1, 2], Some("a~0.7,b~0.0")));
        let nothing_found: [(&[u64], bool); 2] = [(&[], true), (&[7, 8], false)];
        let (times, cursor) = merged(&nothing_found, 10);
        assert_eq!((times, cursor.as_deref()), (vec![], Some("a~0.5,b~0.0")));
    }

    #[test]
    fn a_list_has_a_next_key_if_and_only_if_there_are_further_entries() {
        let page = |keys: &[u32]| -> Vec<Entry<u32>> {
            let entry = |key: &u32| Entry::of(*key, key).unwrap();
            keys.iter().map(entry).collect()
        };
        for (limit, count, next) in [(3, 3, Some(3)), (4, 4, None), (9, 4, None), (1, 1, Some(1))] {
            let pages = vec![(name("a"), page(&[1, 4])), (name("b"), page(&[2, 3]))];
            let Merged {
                entries: values,
                next: last,
            } = cut(sorted(pages), limit);
            assert_eq!((values.len(), last), (count, next), "limit {limit}");
        }
    }

    #[test]
    fn the_reservations_of_an_order_are_on_one_page_and_equal_ones_are_listed_once() {
        let id = |text: &str| OrderId::parse(text).unwrap();
        let page = |entries: &[(&str, u32)]| -> Vec<Entry<OrderId>> {
            let entry = |&(order, store): &(&str, u32)| Entry::of(id(order), &store).unwrap();
            entries.iter().map(entry).collect()
        };
        for (limit, stores, next) in [
            (1, vec!["1"], Some("a")),
            // The two reservations of order b do not fit on the page.
            (2, vec!["1"], Some("a")),
            (3, vec!["1", "2", "3"], Some("b")),
            (4, vec!["1", "2", "3", "4"], None),
        ] {
            let pages = vec![
                (name("x"), page(&[("a", 1), ("b", 2), ("b", 3)])),
                (name("y"), page(&[("b", 2), ("c", 4)])),
            ];
            let Merged { entries, next: last } = cut_between_orders(sorted(pages), limit);
            let listed: Vec<&str> = entries.iter().map(|value| value.get()).collect();
            assert_eq!((listed, last), (stores, next.map(id)), "limit {limit}");
        }
        let many = page(&[("a", 1), ("a", 2), ("b", 3)]);
        let Merged { entries, next } = cut_between_orders(many, 1);
        assert_eq!((entries.len(), next), (2, Some(id("a"))));
    }
}
