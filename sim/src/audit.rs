//! The audit: reads the order management and the warehouse (the two sides), and compares them with
//! each other and, after a run, with the record of the shop front (the front).
//!
//! The audit first waits, for a limited time, until the outbox of the order management has no
//! message left to send. Then it reads the order management, and last the warehouse. The comparison
//! itself is a pure function ([`check`]).
//!
//! **Invariants**
//! - A clean verdict means that the lists of both sides were read completely and that there is no
//!   [`Finding`]. If a list cannot be read, the audit returns an error and no verdict.
//! - A difference of the two sides is reported as a finding only if all readings show it, at least
//!   three. The two sides are not read at the same instant, so a message in flight can look like a
//!   difference. The numbers of the difference may change between the readings (`looks`).
//! - The stock with which the warehouse's ledger began (the stock of the first day) is computed
//!   from the seed, and not requested from the warehouse. So the audit also finds deliveries of
//!   units that the warehouse did not have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::Result;
use crate::client::{Client, Endpoint};
use crate::front::OrderRecord;
use crate::summary::plural;
use crate::wire::{MessageKind, MessageState, NewOrder, Order};

mod check;
mod evidence;
mod explain;
mod finding;
mod history;
mod looks;
mod render;
mod request_log;
mod stock;

pub use check::check;
pub use evidence::Evidence;
pub use finding::Finding;
pub use history::{History, HistoryEvent};
pub use request_log::RequestLog;

use looks::Looks;

/// Pause between two polls of the outbox, and between two readings of the order management and the
/// warehouse.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Usual value of `AuditConfig::released_within`. The order management asks about a reservation
/// after 2, 4, 8, 16 and 32 s, and then less often.
const RELEASED_WITHIN: Duration = Duration::from_secs(64);

/// Settings of an audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// Address of the order management.
    pub oms: Endpoint,
    /// Address of the warehouse.
    pub warehouse: Endpoint,
    /// The audit stops waiting for the outbox when the set of waiting messages in the outbox has
    /// not changed for this long.
    pub stalled_after: Duration,
    /// Time after which the audit stops waiting until the outbox has no message left to send. A
    /// poll of the outbox that is in progress is completed.
    pub wait_max: Duration,
    /// Maximum time of one request of the audit, usually for one page of a list.
    pub request_timeout: Duration,
    /// Path of the front's log of requests, which the audit checks as well; `None` to check no log.
    pub log: Option<PathBuf>,
    /// `true` if the front sent all requests of the log to the node at the address `oms`. Then the
    /// audit also compares the node's counters with the log.
    pub log_is_of_node: bool,
    /// Time for which the audit continues to read both sides while a reservation is a finding that
    /// the order management may still release.
    pub released_within: Duration,
    /// Maximum number of orders with a store that the audit sends twice more, to compare the two
    /// answers. With 0, the audit sends no order, and the node's counter of order requests stays
    /// unchanged.
    pub repeats: usize,
}

impl AuditConfig {
    /// Returns the settings of an audit of this order management and this warehouse. The times of
    /// the wait are long enough for a warehouse that sometimes answers 504, after which a message
    /// waits and is sent again.
    pub fn new(oms: Endpoint, warehouse: Endpoint) -> Self {
        Self {
            oms,
            warehouse,
            stalled_after: Duration::from_secs(30),
            wait_max: Duration::from_secs(300),
            request_timeout: Duration::from_secs(30),
            log: None,
            log_is_of_node: true,
            released_within: RELEASED_WITHIN,
            repeats: 0,
        }
    }
}

/// Progress of an audit, for a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditProgress {
    /// The audit has begun and has not read the outbox yet.
    #[default]
    Begun,
    /// The audit waits until no message waits in the outbox.
    Draining {
        /// Number of messages in the outbox that are to be sent or sent again; dead letters
        /// excluded.
        waiting: u64,
    },
    /// The audit reads both sides and compares them. While all readings so far have a finding in
    /// common, the audit reads both sides again, up to three times in all, or more often if a
    /// reservation may still be released.
    Comparing {
        /// Number of the current reading, from 1.
        look: u32,
    },
}

impl std::fmt::Display for AuditProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begun => f.write_str("begun"),
            Self::Draining { waiting } => {
                write!(f, "{} to the warehouse left", plural(*waiting, "message"))
            }
            Self::Comparing { look } => write!(f, "comparing both sides, look {look}"),
        }
    }
}

/// Messages of one kind that wait in the outbox for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Kind of the messages.
    pub kind: MessageKind,
    /// Reason for which the messages wait.
    pub reason: String,
    /// Number of these messages.
    pub messages: u64,
}

/// Result of an audit: the findings, and the numbers of compared orders, deliveries and other
/// items.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The findings; empty for the verdict "clean".
    pub findings: Vec<Finding>,
    /// The findings as sentences, in the order of `findings`.
    pub sentences: Vec<String>,
    /// Number of orders in the order management, earlier runs included.
    pub orders: u64,
    /// Number of orders of this run, by state.
    pub orders_of_run: BTreeMap<String, u64>,
    /// Number of orders of this run that the order management acknowledged to the front.
    pub orders_acknowledged: u64,
    /// Number of payments of this run that the order management acknowledged to the front.
    pub payments_acknowledged: u64,
    /// Number of deliveries in the warehouse's ledger.
    pub deliveries: u64,
    /// Number of reservations in the order management.
    pub reservations: u64,
    /// Number of messages in the outbox that are to be sent or sent again.
    pub outbox_waiting: u64,
    /// Number of dead letters in the outbox.
    pub outbox_dead: u64,
    /// `true` if a circuit breaker of the order management's calls to the warehouse is open. Each
    /// volume has one for announcements and one for deliveries.
    pub warehouse_away: bool,
    /// Number of messages that still wait in the outbox, by kind and reason. A waiting message is a
    /// finding only as [`Finding::WaitsWithoutReason`].
    pub waiting: Vec<Waiting>,
    /// Number of orders for which the history was read.
    pub histories: u64,
    /// Number of stores for which the order management's stock was read. Of these stores, the
    /// delivered products are compared with the warehouse.
    pub stores: u64,
    /// Number of lines in the front's log of requests; 0 without a log.
    pub log_lines: u64,
    /// Number of orders that the audit sent twice more, and for which both answers arrived.
    pub repeated: u64,
    /// Histories of the orders with findings, of at most 50 orders: the requests of the front, the
    /// events, the reservation and the messages in the order management, and the deliveries of the
    /// warehouse.
    pub explained: BTreeMap<String, Vec<String>>,
    /// Time for which the audit waited for the messages in the outbox to be sent, milliseconds.
    pub waited_ms: u64,
}

impl AuditReport {
    /// Returns `true` if there is no finding.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Waits, for a limited time, until the outbox has no message left to send. Then reads both sides
/// and compares them with each other and with the front's record. Last, sends some orders again
/// (`AuditConfig::repeats`). Orders of earlier runs are not in the front's record, so the checks
/// that need this record are left out for them.
///
/// # Errors
/// If a list of one side, the warehouse's summary or the log of requests cannot be read. There is
/// no verdict in this case.
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

    let mut looks = Looks::new(config.released_within);
    let mut look = 0;
    let evidence = loop {
        look += 1;
        progress.send_replace(AuditProgress::Comparing { look });
        let mut evidence = evidence::gather(&oms, &warehouse).await?;
        if !config.log_is_of_node {
            evidence.answered.clear();
        }
        let Some(pause) = looks.add(check(record, log.as_ref(), &evidence)) else {
            break evidence;
        };
        tokio::time::sleep(pause).await;
    };
    let mut findings = looks.into_findings();
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

/// Sends each of the last `repeats` orders with a store twice. If both answers arrive, adds a
/// finding unless they have status 200 and the same bytes. Returns the number of orders for which
/// both answers arrived.
async fn repeat(oms: &Client, repeats: usize, orders: &[Order], findings: &mut Vec<Finding>) -> u64 {
    let placed = orders.iter().rev().filter(|order| order.store_id.is_some());
    let mut repeated = 0;
    for order in placed.take(repeats) {
        let request = NewOrder {
            id: order.id.clone(),
            products: order.products.clone(),
        };
        // The request has only texts and numbers, so its serialization cannot fail.
        let body = bytes::Bytes::from(serde_json::to_vec(&request).unwrap_or_default());
        let answers = [
            oms.post_json("/order", body.clone()).await,
            oms.post_json("/order", body).await,
        ];
        // If one of the two requests gets no answer, there is nothing to compare, so there is no
        // finding.
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

/// Returns the number of orders of this run for each state.
fn orders_of_run(record: &OrderRecord, orders: &[Order]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for order in orders {
        if record.get_text(&order.id).is_some() {
            *counts.entry(order.state.name().to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Waits until no message waits in the outbox, the set of waiting messages has not changed for
/// `stalled_after`, or `wait_max` is over.
///
/// An order management that does not answer may be restarting, so a failed poll of the outbox is
/// treated as an unchanged outbox. If the last poll failed, its error is returned.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_counts_one_message_in_the_singular() {
        let shown = |waiting| AuditProgress::Draining { waiting }.to_string();
        assert_eq!(shown(1), "1 message to the warehouse left");
        assert_eq!(shown(2_000), "2,000 messages to the warehouse left");
    }
}
