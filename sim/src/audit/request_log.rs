//! The log of requests of the shop front (the front), `stats.csv`, as the audit reads it. The log
//! shows which requests were acknowledged. An audit that does not follow a run may have this log,
//! but has no record of the front.
//!
//! The log has no order lines, so the audit compares the lines of an order only with the front's
//! record.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::{Evidence, Finding};
use crate::front::OrderRecord;
use crate::wire::{Order, OrderState};
use crate::{Error, Result};

/// Maximum length of a line in bytes, which bounds the memory if the file is no log of requests. A
/// line of the front has less than 100 bytes.
const LINE_BYTES_MAX: usize = 4_096;

/// Routes of the log that change orders, each with the route's name in the order management's
/// metrics.
const ROUTES: [(&str, &str); 3] = [
    ("order", "POST /order"),
    ("payment", "POST /order/{id}/payment-callback"),
    ("cancel", "POST /order/{id}/cancel"),
];

/// The acknowledged orders, payments and cancellations of a log: those answered with 2xx. All other
/// requests of the log only count in `lines` and `begun_at_ms`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestLog {
    /// Ids of the acknowledged orders.
    pub orders: BTreeSet<u64>,
    /// Ids of the orders with an acknowledged payment.
    pub payments: BTreeSet<u64>,
    /// Ids of the orders with an acknowledged cancellation.
    pub cancels: BTreeSet<u64>,
    /// Number of requests answered with 2xx, by route: `order`, `payment`, `cancel`.
    pub answered: BTreeMap<&'static str, u64>,
    /// Number of lines of the log.
    pub lines: u64,
    /// Earliest intended start of a request, unix milliseconds; 0 for an empty log.
    pub begun_at_ms: u64,
}

impl RequestLog {
    /// Reads a log file.
    ///
    /// # Errors
    /// If the file cannot be read, or a line does not have the log's format.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let mut reader = BufReader::new(file);
        let mut log = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut bounded = std::io::Read::take(&mut reader, LINE_BYTES_MAX as u64);
            let read = bounded.read_until(b'\n', &mut line);
            if read.map_err(Error::io("read", path))? == 0 {
                return Ok(log);
            }
            log.lines += 1;
            let text = String::from_utf8_lossy(&line);
            log.add(text.trim_end()).ok_or_else(|| Error::Malformed {
                path: path.to_owned(),
                line: log.lines,
                problem: "expected REQUEST_ID,TIMESTAMP_MS,PATH,DURATION_MS,ok|ko,STATUS_OR_REASON"
                    .to_owned(),
            })?;
        }
    }

    /// Adds a line of the log. Returns `None` if the line does not have the log's format.
    fn add(&mut self, line: &str) -> Option<()> {
        let mut fields = line.splitn(6, ',');
        let request: u64 = fields.next()?.parse().ok()?;
        let at_ms: u64 = fields.next()?.parse().ok()?;
        let path = fields.next()?;
        let _took_ms: u64 = fields.next()?.parse().ok()?;
        let is_ok = match fields.next()? {
            "ok" => true,
            "ko" => false,
            _ => return None,
        };
        let status = fields.next()?;
        if self.begun_at_ms == 0 || at_ms < self.begun_at_ms {
            self.begun_at_ms = at_ms;
        }
        let is_success = is_ok && status.starts_with('2');
        let mut parts = path.trim_start_matches('/').split('/');
        let (route, order) = match (parts.next(), parts.next(), parts.next()) {
            (Some("order"), None, None) => ("order", request),
            (Some("order"), Some(order), Some("payment-callback")) => ("payment", order.parse().ok()?),
            (Some("order"), Some(order), Some("cancel")) => ("cancel", order.parse().ok()?),
            _ => return Some(()),
        };
        if is_success {
            *self.answered.entry(route).or_default() += 1;
            match route {
                "order" => self.orders.insert(order),
                "payment" => self.payments.insert(order),
                _ => self.cancels.insert(order),
            };
        }
        Some(())
    }

    /// Compares the log with the front's record, if there is one. Checks that the order management
    /// keeps every order, payment and cancellation that the log shows as acknowledged, if the order
    /// is not in the record. Also checks that the node's counters are not below the numbers in the
    /// log.
    pub(super) fn check(&self, record: &OrderRecord, evidence: &Evidence, findings: &mut Vec<Finding>) {
        self.check_record(record, findings);
        let orders: HashMap<&str, &Order> = evidence.orders.iter().map(|o| (o.id.as_str(), o)).collect();
        // Orders in the front's record are left out here. The record has more detail than the log,
        // so `check_customer` compares these orders with the record.
        let is_unrecorded = |id: &&u64| record.get(**id).is_none();
        for id in self.orders.iter().filter(is_unrecorded) {
            let order = id.to_string();
            match orders.get(order.as_str()) {
                None => findings.push(Finding::OrderMissing { order }),
                Some(kept) if kept.is_rejected() => {
                    findings.push(Finding::AcknowledgedRejected { order });
                }
                Some(_) => {}
            }
        }
        for id in self.payments.iter().filter(is_unrecorded) {
            let order = id.to_string();
            let kept = orders.get(order.as_str());
            if kept.is_none_or(|kept| kept.transaction_id.is_none()) {
                findings.push(Finding::PaymentUnkept { order });
            }
        }
        for id in self.cancels.iter().filter(is_unrecorded) {
            let order = id.to_string();
            match orders.get(order.as_str()).map(|kept| kept.state) {
                None => findings.push(Finding::OrderMissing { order }),
                Some(OrderState::Cancelled | OrderState::RefundWanted) => {}
                Some(state) => findings.push(Finding::CancelLost { order, state }),
            }
        }
        self.check_counters(evidence, findings);
    }

    /// Compares the acknowledged requests of the log with those of the front's record. Does nothing
    /// if the record is empty, as in an audit without a run.
    fn check_record(&self, record: &OrderRecord, findings: &mut Vec<Finding>) {
        if record.orders().is_empty() {
            return;
        }
        let recorded = |is_acknowledged: fn(&crate::front::RecordedOrder) -> bool| -> BTreeSet<u64> {
            let orders = record.orders().iter().filter(|order| is_acknowledged(order));
            orders.map(|order| order.id).collect()
        };
        for (what, logged, recorded) in [
            ("orders", &self.orders, recorded(|o| o.order.is_acknowledged())),
            (
                "payments",
                &self.payments,
                recorded(|o| o.payment.is_acknowledged()),
            ),
            (
                "cancellations",
                &self.cancels,
                recorded(|o| o.cancel.is_acknowledged()),
            ),
        ] {
            if *logged != recorded {
                findings.push(Finding::LogDiffers {
                    what,
                    logged: logged.len() as u64,
                    recorded: recorded.len() as u64,
                });
            }
        }
    }

    /// Compares the log with the counters of the node at `AuditConfig::oms`, if that node has run
    /// since the first request of the log or longer. Does nothing if the counters or the node's
    /// start are unknown. A counter may be higher than the log, because the node may have other
    /// clients.
    fn check_counters(&self, evidence: &Evidence, findings: &mut Vec<Finding>) {
        let started_at_ms = evidence.node_started_at_ms;
        if evidence.answered.is_empty() || started_at_ms == 0 || started_at_ms > self.begun_at_ms {
            return;
        }
        for (name, route) in ROUTES {
            let logged = self.answered.get(name).copied().unwrap_or_default();
            let counted = evidence.answered.get(route).copied().unwrap_or_default();
            if counted < logged {
                findings.push(Finding::CounterShort {
                    route,
                    counted,
                    logged,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "1,1000,/aggregate-stats/7,3,ok,200\n\
                       17,1010,/order,4,ok,200\n\
                       18,1020,/order,4,ko,409\n\
                       19,1030,/order,4,ko,timed out\n\
                       900000017,1040,/order/17/payment-callback,2,ok,200\n\
                       1800000021,1050,/order/21/cancel,2,ok,200\n";

    fn read(text: &str) -> Result<RequestLog> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.csv");
        std::fs::write(&path, text).unwrap();
        RequestLog::read(&path)
    }

    fn kept(id: &str, state: OrderState, transaction_id: Option<u64>) -> Order {
        Order {
            id: id.to_owned(),
            products: Vec::new(),
            store_id: Some(1),
            state,
            transaction_id,
            refund_transaction_ids: Vec::new(),
            created_at_ms: 1,
            updated_at_ms: 1,
        }
    }

    fn found(evidence: &Evidence) -> Vec<Finding> {
        let mut findings = Vec::new();
        let log = read(LOG).unwrap();
        log.check(&OrderRecord::default(), evidence, &mut findings);
        findings
    }

    #[test]
    fn a_log_is_read_by_order_and_a_line_of_another_form_is_named() {
        let log = read(LOG).unwrap();
        assert_eq!((log.lines, log.begun_at_ms), (6, 1_000));
        assert_eq!(log.orders, [17].into());
        assert_eq!((log.payments, log.cancels), ([17].into(), [21].into()));
        for wrong in [
            "1,2,3\n",
            "1,1000,/order,4,maybe,200\n",
            "x,1000,/order,4,ok,200\n",
        ] {
            let error = read(&format!("{LOG}{wrong}")).unwrap_err().to_string();
            assert!(error.contains("stats.csv, line 7"), "{error}");
        }
    }

    #[test]
    fn what_the_log_acknowledges_must_be_kept() {
        let order = || "17".to_owned();
        let sound = Evidence {
            orders: vec![
                kept("17", OrderState::Delivered, Some(3)),
                kept("21", OrderState::Cancelled, None),
            ],
            ..Evidence::default()
        };
        assert_eq!(found(&sound), []);
        let mut lost = sound.clone();
        lost.orders.remove(0);
        assert_eq!(
            found(&lost),
            [
                Finding::OrderMissing { order: order() },
                Finding::PaymentUnkept { order: order() }
            ]
        );
        let mut unpaid = sound.clone();
        unpaid.orders[0].transaction_id = None;
        assert_eq!(found(&unpaid), [Finding::PaymentUnkept { order: order() }]);
        for (state, transaction_id) in [
            (OrderState::Rejected, Some(3)),
            (OrderState::RefundWanted, Some(3)),
        ] {
            let mut rejected = sound.clone();
            rejected.orders[0] = Order {
                store_id: None,
                ..kept("17", state, transaction_id)
            };
            assert_eq!(
                found(&rejected),
                [Finding::AcknowledgedRejected { order: order() }],
                "{state}"
            );
        }
        let mut refunded = sound.clone();
        refunded.orders[0].state = OrderState::RefundWanted;
        assert_eq!(
            found(&refunded),
            [],
            "a cancelled or refused order, which has a store"
        );
        let mut gone = sound.clone();
        gone.orders.remove(1);
        assert_eq!(
            found(&gone),
            [Finding::OrderMissing {
                order: "21".to_owned()
            }]
        );
        let mut uncancelled = sound.clone();
        uncancelled.orders[1].state = OrderState::Announced;
        assert_eq!(
            found(&uncancelled),
            [Finding::CancelLost {
                order: "21".to_owned(),
                state: OrderState::Announced
            }]
        );
        let mut short = sound;
        short.node_started_at_ms = 999;
        short.answered = [
            ("POST /order".to_owned(), 1),
            ("POST /order/{id}/cancel".to_owned(), 1),
        ]
        .into();
        assert_eq!(
            found(&short),
            [Finding::CounterShort {
                route: "POST /order/{id}/payment-callback",
                counted: 0,
                logged: 1
            }]
        );
        // A node that started after the first request has not counted all requests of the log. So
        // its counters are not compared with the log.
        short.node_started_at_ms = 1_001;
        assert_eq!(found(&short), []);
    }
}
