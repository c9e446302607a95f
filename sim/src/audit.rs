//! The audit: reads both sides and compares them.
//!
//! It waits first, within bounds, until the order management has told the warehouse everything or
//! gives a reason. Then it reads orders, reservations and messages of one side, and deliveries,
//! refusals and arrivals of goods of the other, and compares them ([`check`], pure).
//!
//! Invariants:
//! - A clean verdict means that both sides were read whole and no [`Finding`] was seen. If one side
//!   cannot be read there is an error and no verdict.
//! - A finding of a first look must be seen again at a second one: the two sides are not read at
//!   the same instant, and a message in flight is no fault.
//! - The stock of the first day is computed from the seed, not asked for, so that the warehouse's
//!   own bookkeeping is checked as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::front::OrderRecord;
use crate::wire::{
    Delivery, Health, LedgerPage, Message, MessageKind, MessageState, Order, OrdersPage, OutboxPage, Refusal,
    RefusalsPage, Reservation, ReservationsPage, Restock, RestocksPage, WarehouseSummary,
};

mod check;
mod finding;

pub use check::check;
pub use finding::Finding;

/// Pause between two looks at the outbox, and before findings are looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Number of looks in which a finding must be seen.
const LOOKS: u32 = 3;
/// Entries of a page; the contract's maximum.
const PAGE: u32 = 10_000;

/// Settings of an audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// The order management.
    pub oms: Endpoint,
    /// The warehouse.
    pub warehouse: Endpoint,
    /// The wait ends when nothing has left or entered the outbox for this long.
    pub stalled_after: Duration,
    /// Longest wait.
    pub wait_max: Duration,
    /// Longest time of one page.
    pub request_timeout: Duration,
}

impl AuditConfig {
    /// Returns an audit of these two that waits for a warehouse that sometimes answers 504.
    pub fn new(oms: Endpoint, warehouse: Endpoint) -> Self {
        Self {
            oms,
            warehouse,
            stalled_after: Duration::from_secs(30),
            wait_max: Duration::from_secs(300),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Progress of an audit, for a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditProgress {
    /// Waiting for the outbox.
    #[default]
    Begun,
    /// Messages are still to be confirmed.
    Draining {
        /// Number of messages to be sent, or sent again.
        waiting: u64,
    },
    /// Reading both sides and comparing them, again if there was a finding.
    Comparing {
        /// Number of the look, from 1.
        look: u32,
    },
}

impl std::fmt::Display for AuditProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begun => f.write_str("begun"),
            Self::Draining { waiting } => write!(f, "{waiting} messages for the warehouse are to be sent"),
            Self::Comparing { look } => write!(f, "comparing both sides, look {look}"),
        }
    }
}

/// The statements of both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Orders of the order management.
    pub orders: Vec<Order>,
    /// Its reservations.
    pub reservations: Vec<Reservation>,
    /// Its messages that the warehouse has not confirmed.
    pub outbox: Vec<Message>,
    /// The warehouse's deliveries, by sequence.
    pub deliveries: Vec<Delivery>,
    /// Units that came into its stock.
    pub restocks: Vec<Restock>,
    /// Deliveries that it refused.
    pub refusals: Vec<Refusal>,
    /// Its counts, the seed and the shape of its first stock.
    pub warehouse: WarehouseSummary,
    /// `true` while the order management's circuit breaker is open: messages wait for a warehouse
    /// that is away, which is no fault.
    pub warehouse_away: bool,
}

/// Verdict of an audit, and the numbers of things compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The findings; empty for the verdict "clean".
    pub findings: Vec<Finding>,
    /// Orders of the data folder.
    pub orders: u64,
    /// Orders of this run by state.
    pub orders_of_run: BTreeMap<String, u64>,
    /// Orders of this run that were acknowledged.
    pub orders_acknowledged: u64,
    /// Payments of this run that were acknowledged.
    pub payments_acknowledged: u64,
    /// Deliveries in the warehouse's ledger.
    pub deliveries: u64,
    /// Reservations.
    pub reservations: u64,
    /// Messages to be sent, or sent again.
    pub outbox_waiting: u64,
    /// Dead letters.
    pub outbox_dead: u64,
    /// `true` if the circuit breaker is open.
    pub warehouse_away: bool,
    /// Time spent waiting for the outbox, milliseconds.
    pub waited_ms: u64,
}

impl AuditReport {
    /// Returns `true` if there is no finding.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Waits for the outbox, reads both sides and compares them with the front's record of requests.
/// Orders of earlier runs are checked as well, as far as their front's record is not needed.
///
/// # Errors
/// When one of the two cannot be read whole; there is no verdict then.
pub async fn audit(
    config: &AuditConfig,
    record: &OrderRecord,
    progress: &watch::Sender<AuditProgress>,
) -> Result<AuditReport> {
    let oms = Client::new(config.oms.clone(), config.request_timeout);
    let warehouse = Client::new(config.warehouse.clone(), config.request_timeout);
    let begun = Instant::now();
    drained(config, &oms, progress).await?;
    let waited = begun.elapsed();

    let mut persistent: Option<BTreeSet<Finding>> = None;
    let mut look = 0;
    let evidence = loop {
        look += 1;
        progress.send_replace(AuditProgress::Comparing { look });
        let evidence = gather(&oms, &warehouse).await?;
        let found: BTreeSet<Finding> = check(record, &evidence).into_iter().collect();
        let still: BTreeSet<Finding> = match persistent {
            Some(before) => before.intersection(&found).cloned().collect(),
            None => found,
        };
        let settled = still.is_empty() || look == LOOKS;
        persistent = Some(still);
        if settled {
            break evidence;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    };
    let count = |acknowledged: usize| acknowledged as u64;
    let of_record = record.orders();
    let in_outbox = |state| count(evidence.outbox.iter().filter(|m| m.state == state).count());
    Ok(AuditReport {
        findings: persistent.unwrap_or_default().into_iter().collect(),
        orders: count(evidence.orders.len()),
        orders_of_run: orders_of_run(record, &evidence.orders),
        orders_acknowledged: count(of_record.iter().filter(|o| o.order.is_acknowledged()).count()),
        payments_acknowledged: count(of_record.iter().filter(|o| o.payment.is_acknowledged()).count()),
        deliveries: count(evidence.deliveries.len()),
        reservations: count(evidence.reservations.len()),
        outbox_waiting: in_outbox(MessageState::Waiting),
        outbox_dead: in_outbox(MessageState::Dead),
        warehouse_away: evidence.warehouse_away,
        waited_ms: waited.as_millis() as u64,
    })
}

/// Counts the orders of a run by their state.
fn orders_of_run(record: &OrderRecord, orders: &[Order]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for order in orders {
        let id = order.id.parse().ok();
        if id.is_some_and(|id: u64| record.get(id).is_some()) {
            *counts.entry(order.state.name().to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Waits until no message is in flight, nothing has moved for a while, or the time is over.
///
/// An order management that does not answer (it may be starting again) has moved nothing.
async fn drained(config: &AuditConfig, oms: &Client, progress: &watch::Sender<AuditProgress>) -> Result<()> {
    let begun = Instant::now();
    let mut moved = Instant::now();
    let mut before: Option<BTreeSet<(String, MessageKind)>> = None;
    loop {
        let looked = fetch_outbox(oms).await;
        if let Ok(outbox) = &looked {
            let waiting: BTreeSet<_> = outbox
                .iter()
                .filter(|message| message.state == MessageState::Waiting)
                .map(|message| (message.order.clone(), message.kind))
                .collect();
            progress.send_replace(AuditProgress::Draining {
                waiting: waiting.len() as u64,
            });
            if waiting.is_empty() {
                return Ok(());
            }
            if before.as_ref() != Some(&waiting) {
                moved = Instant::now();
                before = Some(waiting);
            }
        }
        if moved.elapsed() >= config.stalled_after || begun.elapsed() >= config.wait_max {
            return looked.map(drop);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Reads both sides whole, the warehouse last: a delivery that an order knows of is in the ledger
/// by then.
async fn gather(oms: &Client, warehouse: &Client) -> Result<Evidence> {
    Ok(Evidence {
        orders: pages(oms, OMS, "/orders", |page: OrdersPage| (page.orders, page.next)).await?,
        reservations: pages(oms, OMS, "/reservations", |page: ReservationsPage| {
            (page.reservations, page.next)
        })
        .await?,
        outbox: fetch_outbox(oms).await?,
        // The route is not part of the contract: without it the breaker counts as closed.
        warehouse_away: oms
            .get_json::<Health>(OMS, "/health")
            .await
            .is_ok_and(|health| health.warehouse == "away"),
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

const OMS: &str = "the order management";
const WAREHOUSE: &str = "the warehouse";

async fn fetch_outbox(oms: &Client) -> Result<Vec<Message>> {
    pages(oms, OMS, "/outbox", |page: OutboxPage| (page.messages, page.next)).await
}

/// Reads a list page by page.
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

/// Escapes a cursor, which is the server's text, for a query.
fn escape(cursor: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(cursor.len());
    for byte in cursor.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
