//! The data that the audit compares, and the requests that read it from both sides, the order
//! management and the warehouse.
//!
//! Invariants:
//! - The order management's lists are read before its stock, and its orders first. So the stock
//!   knows every delivery that the read state of an order confirms, except those that the volume of
//!   the store has not counted yet. Their orders still have a reservation.
//! - The lists of both sides are read completely. The warehouse is read last, so its ledger has
//!   every delivery that the order management knows.
//! - The lists of both sides and the warehouse's `/summary` are required. If another route, such as
//!   `/metrics`, cannot be read, its data is empty. Then the audit leaves out the checks that need
//!   this data. Without `/health`, the check of the choice of stores is weaker, and all circuit
//!   breakers count as closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::history::{History, HistoryEvent};
use crate::Result;
use crate::client::Client;
use crate::wire::{
    Delivery, Health, LedgerPage, Message, Order, OrdersPage, OutboxPage, Refusal, RefusalsPage, Reservation,
    ReservationsPage, Restock, RestocksPage, WarehouseStatus, WarehouseSummary,
};

/// Number of entries per page of a list: the maximum that both servers accept.
const PAGE: u32 = 10_000;
/// Maximum number of stores for which the audit compares the stock. The limit bounds the traffic,
/// because the response for each store has some hundred kilobytes.
const STORES_MAX: usize = 64;
/// Maximum number of orders with a history that is read. These orders are spread evenly over all
/// orders.
const HISTORIES_MAX: usize = 500;
/// Number of failed requests for histories, without any success, after which the audit reads no
/// history. The order management probably lacks this route. A single failure may have another
/// reason, such as a node that is being restarted.
const HISTORIES_MISSING_MAX: usize = 5;

const OMS: &str = "the order management";
const WAREHOUSE: &str = "the warehouse";

/// All data that the audit compares, as both sides returned it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// All orders of the order management.
    pub orders: Vec<Order>,
    /// All reservations of the order management.
    pub reservations: Vec<Reservation>,
    /// All messages of the order management that the warehouse has not confirmed.
    pub outbox: Vec<Message>,
    /// Histories of at most 500 orders.
    pub histories: Vec<History>,
    /// Units on hand in the order management, by store and product. Only stores to which orders
    /// were assigned are included, and at most 64.
    pub on_hand: BTreeMap<u32, BTreeMap<u32, i64>>,
    /// Units that the order management counts as reserved, by store and product, of the stores in
    /// `on_hand`. A product in a store is left out if its reservations changed while the stores
    /// were read, or if the order management does not tell the units.
    pub reserved: BTreeMap<u32, BTreeMap<u32, u32>>,
    /// Number of calls to the warehouse in flight; 0 if unknown.
    pub calls_in_flight: u64,
    /// Number of volumes in the ring; 0 if unknown.
    pub volumes: usize,
    /// Number of orders by state, from the counters in `GET /health` of the order management; empty
    /// if the response has no counters.
    pub counted_orders: BTreeMap<String, u64>,
    /// Number of requests that the node at `AuditConfig::oms` has answered with 2xx since its
    /// start, by route. Empty if the node's metrics could not be read, or if the audit does not
    /// compare them with the log (`AuditConfig::log_is_of_node`).
    pub answered: BTreeMap<String, u64>,
    /// Start of the node at `AuditConfig::oms`, unix milliseconds; 0 if unknown.
    pub node_started_at_ms: u64,
    /// All deliveries of the warehouse, ordered by sequence number.
    pub deliveries: Vec<Delivery>,
    /// All arrivals of goods: units that were put back into the warehouse's stock.
    pub restocks: Vec<Restock>,
    /// All deliveries that the warehouse refused because units were not in stock.
    pub refusals: Vec<Refusal>,
    /// The warehouse's counters, and the seed and the size of the stock with which its ledger
    /// began.
    pub warehouse: WarehouseSummary,
    /// `true` if a circuit breaker of the order management is open. Each volume has one for
    /// announcements and one for deliveries. Then a message that waits in the outbox is no fault.
    pub warehouse_away: bool,
}

/// Reads all data of both sides.
pub(super) async fn gather(oms: &Client, warehouse: &Client) -> Result<Evidence> {
    let orders = pages(oms, OMS, "/orders", |page: OrdersPage| (page.orders, page.next)).await?;
    let histories = histories(oms, &orders).await;
    let reservations = fetch_reservations(oms).await?;
    let outbox = fetch_outbox(oms).await?;
    let health = oms.get_json::<Health>(OMS, "/health").await.unwrap_or_default();
    let answered = oms.get("/metrics").await.ok();
    let answered = answered.filter(|answer| answer.status == 200);
    let answered = answered.map(|answer| answered_by_route(&String::from_utf8_lossy(&answer.body)));
    let StoreUnits {
        on_hand,
        mut reserved,
    } = store_units(oms, &orders).await;
    if !reserved.is_empty() {
        let after = fetch_reservations(oms).await?;
        leave_out_changed(&mut reserved, &reservations, &after);
    }
    Ok(Evidence {
        orders,
        reservations,
        outbox,
        histories,
        on_hand,
        reserved,
        calls_in_flight: health.outbox_in_flight,
        volumes: health.ring.members.len(),
        counted_orders: health.orders,
        answered: answered.unwrap_or_default(),
        node_started_at_ms: health.up_since_ms,
        warehouse_away: health.warehouse == WarehouseStatus::Away,
        deliveries: pages(warehouse, WAREHOUSE, "/ledger", |page: LedgerPage| {
            (page.deliveries, page.next)
        })
        .await?,
        restocks: pages(warehouse, WAREHOUSE, "/restocks", |page: RestocksPage| {
            (page.restocks, page.next)
        })
        .await?,
        refusals: pages(warehouse, WAREHOUSE, "/refusals", |page: RefusalsPage| {
            (page.refusals, page.next)
        })
        .await?,
        warehouse: warehouse.get_json(WAREHOUSE, "/summary").await?,
    })
}

async fn fetch_reservations(oms: &Client) -> Result<Vec<Reservation>> {
    pages(oms, OMS, "/reservations", |page: ReservationsPage| {
        (page.reservations, page.next)
    })
    .await
}

/// Reads the messages in the outbox that the warehouse has not confirmed.
pub(super) async fn fetch_outbox(oms: &Client) -> Result<Vec<Message>> {
    pages(oms, OMS, "/outbox", |page: OutboxPage| (page.messages, page.next)).await
}

#[derive(Deserialize)]
struct HistoryPage {
    events: Vec<HistoryEvent>,
}

/// Reads the history of an order; `None` if the request fails, for example because the order
/// management does not know the order.
pub(super) async fn history(oms: &Client, order: &str) -> Option<History> {
    let path = format!("/order/{}/history", escape(order));
    let page: HistoryPage = oms.get_json(OMS, &path).await.ok()?;
    Some(History {
        order: order.to_owned(),
        events: page.events,
    })
}

async fn histories(oms: &Client, orders: &[Order]) -> Vec<History> {
    let step = orders.len().div_ceil(HISTORIES_MAX).max(1);
    let (mut histories, mut missing) = (Vec::new(), 0);
    for order in orders.iter().step_by(step) {
        match history(oms, &order.id).await {
            Some(history) => histories.push(history),
            None => missing += 1,
        }
        if histories.is_empty() && missing == HISTORIES_MISSING_MAX {
            break;
        }
    }
    if missing > 0 {
        tracing::warn!(
            missing,
            read = histories.len(),
            "histories of orders not read; the audit does not check them"
        );
    }
    histories
}

#[derive(Deserialize)]
struct StorePage {
    products: Vec<ProductUnits>,
}

#[derive(Deserialize)]
struct ProductUnits {
    product: u32,
    on_hand: i64,
    #[serde(default)]
    reserved: Option<u32>,
}

/// Units on hand and reserved units, each by store and product.
#[derive(Debug, Default, PartialEq, Eq)]
struct StoreUnits {
    on_hand: BTreeMap<u32, BTreeMap<u32, i64>>,
    reserved: BTreeMap<u32, BTreeMap<u32, u32>>,
}

/// Reads the units of the stores to which orders were assigned, for the first [`STORES_MAX`] of
/// these stores by number. A store that cannot be read is left out.
async fn store_units(oms: &Client, orders: &[Order]) -> StoreUnits {
    let stores: BTreeSet<u32> = orders.iter().filter_map(|order| order.store_id).collect();
    let mut units = StoreUnits::default();
    for store in stores.into_iter().take(STORES_MAX) {
        let Ok(page) = oms.get_json::<StorePage>(OMS, &format!("/stores/{store}")).await else {
            continue;
        };
        let on_hand = page.products.iter().map(|p| (p.product, p.on_hand));
        units.on_hand.insert(store, on_hand.collect());
        let reserved = page.products.iter();
        let reserved = reserved.filter_map(|p| Some((p.product, p.reserved?)));
        units.reserved.insert(store, reserved.collect());
    }
    units
}

/// The orders with a reservation of a product in a store, each with its units.
type Holders<'a> = BTreeSet<(&'a str, u32)>;

/// Removes each product in a store if its reservations differ in two lists, of which one was read
/// before and one after the stores. The reserved units of such a product may fit neither list.
fn leave_out_changed(
    reserved: &mut BTreeMap<u32, BTreeMap<u32, u32>>,
    before: &[Reservation],
    after: &[Reservation],
) {
    let mut cells: HashMap<(u32, u32), [Holders<'_>; 2]> = HashMap::new();
    for (list, reservations) in [before, after].into_iter().enumerate() {
        let of_stores = reservations.iter().filter(|r| reserved.contains_key(&r.store));
        for reservation in of_stores {
            for product in &reservation.products {
                let lists = cells.entry((reservation.store, product.id)).or_default();
                lists[list].insert((reservation.order.as_str(), product.quantity));
            }
        }
    }
    for ((store, product), [before, after]) in cells {
        if before != after
            && let Some(products) = reserved.get_mut(&store)
        {
            products.remove(&product);
        }
    }
}

/// Returns the number of requests answered with 2xx by route, from the metric `imt_requests_total`.
fn answered_by_route(metrics: &str) -> BTreeMap<String, u64> {
    let mut answered = BTreeMap::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("imt_requests_total{") else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once("} ") else {
            continue;
        };
        let route = label(labels, "route");
        if let (Some(route), Some("2xx"), Ok(count)) =
            (route, label(labels, "status"), value.trim().parse::<f64>())
        {
            answered.insert(route.to_owned(), count as u64);
        }
    }
    answered
}

/// Returns the value of a label of a metric; `None` if the metric lacks this label. The values in
/// these metrics contain no quotes, so the value ends at the next quote.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}

/// Reads a whole list, page by page.
async fn pages<P, T>(
    client: &Client,
    who: &'static str,
    route: &str,
    open: impl Fn(P) -> (Vec<T>, Option<String>),
) -> Result<Vec<T>>
where
    P: DeserializeOwned,
{
    let mut all = Vec::new();
    let mut path = format!("{route}?limit={PAGE}");
    loop {
        let (mut page, next) = open(client.get_json(who, &path).await?);
        all.append(&mut page);
        match next {
            Some(cursor) => path = format!("{route}?limit={PAGE}&cursor={}", escape(&cursor)),
            None => return Ok(all),
        }
    }
}

/// Escapes a text for use in a URL. Cursors and ids come from the server and may contain any
/// character.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    /// Asks for the histories of 20 orders. The server refuses the first `refused` requests.
    /// Returns the number of histories read and the number of requests.
    async fn histories_read(refused: usize) -> (usize, usize) {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let answer = move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match number < refused {
                    true => Err(StatusCode::SERVICE_UNAVAILABLE),
                    false => Ok(r#"{"events": []}"#),
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/order/{id}/history", get(answer));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = Client::new(address.into(), Duration::from_secs(20));
        let order = |number: u32| json!({"id": number.to_string(), "products": [], "state": "paid"});
        let orders: Vec<Order> = (0..20)
            .map(|number| serde_json::from_value(order(number)).unwrap())
            .collect();
        let read = histories(&client, &orders).await.len();
        serving.abort();
        (read, requests.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn histories_are_given_up_only_after_several_failures_without_a_success() {
        assert_eq!(histories_read(0).await, (20, 20));
        assert_eq!(histories_read(4).await, (16, 20));
        assert_eq!(histories_read(20).await, (0, HISTORIES_MISSING_MAX));
    }

    #[test]
    fn reserved_units_that_changed_while_they_were_read_are_left_out() {
        let reservation = |order: &str, product| Reservation {
            order: order.to_owned(),
            store: 3,
            products: vec![crate::wire::Product {
                id: product,
                quantity: 2,
            }],
        };
        let mut reserved = BTreeMap::from([(3, BTreeMap::from([(7, 2), (8, 2), (9, 0)]))]);
        let before = [reservation("1", 7), reservation("2", 8)];
        let after = [reservation("1", 7), reservation("4", 8), reservation("1", 7)];
        leave_out_changed(&mut reserved, &before, &after);
        assert_eq!(reserved, BTreeMap::from([(3, BTreeMap::from([(7, 2), (9, 0)]))]));
    }

    #[tokio::test]
    async fn the_reserved_units_of_a_store_are_read_if_they_are_told() {
        let page =
            r#"{"products": [{"product": 7, "on_hand": 5, "reserved": 2}, {"product": 8, "on_hand": 1}]}"#;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/stores/{id}", get(move || async move { page }));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = Client::new(address.into(), Duration::from_secs(20));
        let order = json!({"id": "1", "products": [], "state": "announced", "store_id": 3});
        let units = store_units(&client, &[serde_json::from_value(order).unwrap()]).await;
        serving.abort();
        assert_eq!(
            units.on_hand,
            BTreeMap::from([(3, BTreeMap::from([(7, 5), (8, 1)]))])
        );
        assert_eq!(units.reserved, BTreeMap::from([(3, BTreeMap::from([(7, 2)]))]));
    }

    #[test]
    fn counters_of_success_are_read_by_route_in_either_order_of_labels() {
        let text = "# TYPE imt_requests counter\n\
                    imt_requests_total{route=\"POST /order\",status=\"2xx\"} 17\n\
                    imt_requests_total{status=\"2xx\",route=\"GET /order/{id}\"} 3\n\
                    imt_requests_total{route=\"POST /order\",status=\"4xx\"} 9\n\
                    imt_ring_epoch 4\n";
        let expected = [("GET /order/{id}".to_owned(), 3), ("POST /order".to_owned(), 17)];
        assert_eq!(answered_by_route(text), expected.into());
    }
}
