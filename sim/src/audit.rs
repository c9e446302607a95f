//! The audit: reads both sides and compares them.
//!
//! It waits first, within bounds, until the order management has sent every message to the
//! warehouse or gives a reason. Then it reads orders, reservations and messages of one side, and
//! deliveries, refusals and arrivals of goods of the other, and compares them ([`check`], pure).
//!
//! **Invariants**
//! - A clean verdict means that both sides were read whole and no [`Finding`] was seen. If one side
//!   cannot be read, there is an error and no verdict.
//! - A finding counts only if a second reading confirms it. The two sides are not read at the same
//!   instant, and a message in flight is no fault.
//! - The stock of the first day is computed from the seed, not asked for, so that the warehouse's
//!   own bookkeeping is checked as well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::front::OrderRecord;
use crate::wire::{MessageKind, MessageState, NewOrder, Order};

mod check;
mod evidence;
mod explain;
mod finding;
mod history;
mod render;
mod request_log;
mod stock;

pub use check::check;
pub use evidence::Evidence;
pub use finding::Finding;
pub use history::{History, HistoryEvent};
pub use request_log::RequestLog;

/// Pause between two looks at the outbox, and before findings are looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Number of looks in which a finding must be seen.
const LOOKS: u32 = 3;

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
    /// The front's log of requests, to be checked as well.
    pub log: Option<PathBuf>,
    /// `true` if all requests of the log went to the asked node, so that its counters must have
    /// them.
    pub log_is_of_node: bool,
    /// Number of placed orders that are sent again, to compare the answers. 0 leaves the counters
    /// of the order management as they are.
    pub repeats: usize,
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
            log: None,
            log_is_of_node: true,
            repeats: 0,
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

/// Messages of one kind that wait for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Kind of the messages.
    pub kind: MessageKind,
    /// Reason of the wait.
    pub reason: String,
    /// Number of messages.
    pub messages: u64,
}

/// Verdict of an audit, and the numbers of things compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The findings; empty for the verdict "clean".
    pub findings: Vec<Finding>,
    /// The findings as sentences, in their order.
    pub sentences: Vec<String>,
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
    /// Messages that wait, by reason. They are no findings.
    pub waiting: Vec<Waiting>,
    /// Histories of orders that were checked.
    pub histories: u64,
    /// Stores with compared stock.
    pub stores: u64,
    /// Lines of the log of requests; 0 without a log.
    pub log_lines: u64,
    /// Requests that were sent again.
    pub repeated: u64,
    /// For each order with a finding, its history on both sides.
    pub explained: BTreeMap<String, Vec<String>>,
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
/// If either side cannot be read whole. There is no verdict then.
pub async fn audit(
    config: &AuditConfig,
    record: &OrderRecord,
    progress: &watch::Sender<AuditProgress>,
) -> Result<AuditReport> {
    let oms = Client::new(config.oms.clone(), config.request_timeout);
    let warehouse = Client::new(config.warehouse.clone(), config.request_timeout);
    let log = config.log.as_deref().map(RequestLog::read).transpose()?;
    let begun = Instant::now();
    drained(config, &oms, progress).await?;
    let waited = begun.elapsed();

    let mut persistent: Option<BTreeSet<Finding>> = None;
    let mut look = 0;
    let evidence = loop {
        look += 1;
        progress.send_replace(AuditProgress::Comparing { look });
        let mut evidence = evidence::gather(&oms, &warehouse).await?;
        if !config.log_is_of_node {
            evidence.answered.clear();
        }
        let found: BTreeSet<Finding> = check(record, log.as_ref(), &evidence).into_iter().collect();
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
    let mut findings: Vec<Finding> = persistent.unwrap_or_default().into_iter().collect();
    let repeated = repeat(&oms, config.repeats, &evidence.orders, &mut findings).await;
    let explained = explain::explain(&oms, &findings, record, &evidence).await;
    let count = |acknowledged: usize| acknowledged as u64;
    let of_record = record.orders();
    let in_outbox = |state| count(evidence.outbox.iter().filter(|m| m.state == state).count());
    Ok(AuditReport {
        sentences: findings.iter().map(ToString::to_string).collect(),
        findings,
        orders: count(evidence.orders.len()),
        orders_of_run: orders_of_run(record, &evidence.orders),
        orders_acknowledged: count(of_record.iter().filter(|o| o.order.is_acknowledged()).count()),
        payments_acknowledged: count(of_record.iter().filter(|o| o.payment.is_acknowledged()).count()),
        deliveries: count(evidence.deliveries.len()),
        reservations: count(evidence.reservations.len()),
        outbox_waiting: in_outbox(MessageState::Waiting),
        outbox_dead: in_outbox(MessageState::Dead),
        warehouse_away: evidence.warehouse_away,
        waiting: explain::waiting(&evidence),
        histories: count(evidence.histories.len()),
        stores: count(evidence.on_hand.len()),
        log_lines: log.map_or(0, |log| log.lines),
        repeated,
        explained,
        waited_ms: waited.as_millis() as u64,
    })
}

/// Sends the newest placed orders again, twice each. Both answers must be a success with the same
/// bytes. Returns the number of orders.
async fn repeat(oms: &Client, repeats: usize, orders: &[Order], findings: &mut Vec<Finding>) -> u64 {
    let placed = orders.iter().rev().filter(|order| order.store_id.is_some());
    let mut repeated = 0;
    for order in placed.take(repeats) {
        let request = NewOrder {
            id: order.id.clone(),
            products: order.products.clone(),
        };
        // Text and numbers: this cannot fail.
        let body = bytes::Bytes::from(serde_json::to_vec(&request).unwrap_or_default());
        let answers = [
            oms.post_json("/order", body.clone()).await,
            oms.post_json("/order", body).await,
        ];
        // A node that is away answers nothing, which is no other answer.
        let [Ok(first), Ok(second)] = answers else {
            continue;
        };
        repeated += 1;
        if first.status != 200 || second.status != 200 || first.body != second.body {
            findings.push(Finding::AnswerDiffers {
                order: order.id.clone(),
                status: second.status,
            });
        }
    }
    repeated
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
        let looked = evidence::fetch_outbox(oms).await;
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
