//! The audit: asks both sides what they hold, and compares.
//!
//! It waits first, within bounds, until the order management has told the warehouse everything or
//! says why not. Then it reads all orders, reservations and messages of one side and all
//! deliveries, refusals and arrivals of goods of the other, and works out what is wrong ([`check`],
//! pure). What a first look finds must still be so at a second one: the two sides are not read in
//! the same instant, and a message on its way is not a fault.
//!
//! Promises: a clean verdict means that both sides were read whole and nothing in [`Finding`]'s
//! list was seen. If one side cannot be read there is an error and no verdict. The stock of the
//! first day is worked out from the seed, not asked for, so the warehouse's own check of its
//! shelves is checked as well.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::front::OrderRecord;
use crate::wire::{
    Delivery, LedgerPage, Message, MessageKind, MessageState, Order, OrdersPage, OutboxPage, Refusal,
    RefusalsPage, Reservation, ReservationsPage, Restock, RestocksPage, WarehouseSummary,
};

mod check;
mod finding;

pub use check::check;
pub use finding::Finding;

/// Between two looks at the outbox, and before a second look at what was found.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// How often what was found must be seen again to count.
const LOOKS: u32 = 3;
/// Entries a page; the contract's most.
const PAGE: u32 = 10_000;

/// Everything about an audit that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// The order management.
    pub oms: Endpoint,
    /// The warehouse.
    pub warehouse: Endpoint,
    /// The wait ends when nothing has left or entered the outbox for so long.
    pub stalled_after: Duration,
    /// The longest wait.
    pub wait_max: Duration,
    /// The longest time for one page.
    pub request_timeout: Duration,
}

impl AuditConfig {
    /// An audit of these two with patience for a warehouse that answers 504 now and then.
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

/// What an audit is doing, for a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditProgress {
    /// Waiting for the outbox.
    #[default]
    Begun,
    /// So many messages are still to be confirmed.
    Draining {
        /// The messages that will be tried (again).
        waiting: u64,
    },
    /// Reading both sides and comparing them; from the second time on because something was found.
    Comparing {
        /// The how many-th time.
        look: u32,
    },
}

/// Everything both sides say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The order management's orders.
    pub orders: Vec<Order>,
    /// Its reservations.
    pub reservations: Vec<Reservation>,
    /// Its messages that the warehouse has not confirmed.
    pub outbox: Vec<Message>,
    /// The warehouse's deliveries, by sequence.
    pub deliveries: Vec<Delivery>,
    /// What came into its stock.
    pub restocks: Vec<Restock>,
    /// What it refused.
    pub refusals: Vec<Refusal>,
    /// Its counts, the seed and the shape of its first stock.
    pub warehouse: WarehouseSummary,
}

/// An audit's verdict and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// What is wrong; empty is the verdict "clean".
    pub findings: Vec<Finding>,
    /// Orders that the order management holds.
    pub orders: u64,
    /// Orders of this run that were acknowledged.
    pub orders_acknowledged: u64,
    /// Payments of this run that were acknowledged.
    pub payments_acknowledged: u64,
    /// Deliveries in the warehouse's ledger.
    pub deliveries: u64,
    /// Reservations held.
    pub reservations: u64,
    /// Messages still to be confirmed, each with its reason.
    pub outbox_waiting: u64,
    /// Messages given up, each with its reason.
    pub outbox_dead: u64,
    /// How long the outbox was waited for, milliseconds.
    pub waited_ms: u64,
}

impl AuditReport {
    /// True if nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Waits for the outbox, reads both sides and compares them, with the front's record as the truth
/// about what was sent and acknowledged. Orders of earlier runs are checked as well, except for
/// what only their front knew.
///
/// # Errors
/// When one of the two cannot be read whole: then there is no verdict.
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
        orders_acknowledged: count(of_record.iter().filter(|o| o.order.is_acknowledged()).count()),
        payments_acknowledged: count(of_record.iter().filter(|o| o.payment.is_acknowledged()).count()),
        deliveries: count(evidence.deliveries.len()),
        reservations: count(evidence.reservations.len()),
        outbox_waiting: in_outbox(MessageState::Waiting),
        outbox_dead: in_outbox(MessageState::Dead),
        waited_ms: waited.as_millis() as u64,
    })
}

/// Waits until no message is on its way any more, nothing has moved for a while, or the time is
/// over. An order management that does not answer meanwhile (it may be starting again) has moved
/// nothing.
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

/// Reads both sides whole. The warehouse last: what an order says was delivered is in the ledger by
/// then.
async fn gather(oms: &Client, warehouse: &Client) -> Result<Evidence> {
    Ok(Evidence {
        orders: pages(oms, OMS, "/orders", |page: OrdersPage| (page.orders, page.next)).await?,
        reservations: pages(oms, OMS, "/reservations", |page: ReservationsPage| {
            (page.reservations, page.next)
        })
        .await?,
        outbox: fetch_outbox(oms).await?,
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

/// A cursor is the server's text: whatever is not plain in a query is escaped.
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
