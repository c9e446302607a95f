//! The result of an audit as a table of 80 columns. Lines with a finding, its explanation or a
//! command may be longer.

use std::fmt;

use super::{AuditReport, Waiting};
use crate::summary::{line, plural, thousands, wrapped};

/// Maximum number of findings in the table. The JSON output has all findings.
const FINDINGS_SHOWN: usize = 20;
/// Maximum number of groups of waiting messages in the table.
const WAITING_SHOWN: usize = 3;
/// Maximum number of characters in the table for the reason of a group of waiting messages.
const REASON_CHARS_MAX: usize = 160;

impl AuditReport {
    /// Returns the verdict of the audit as one word: `CLEAN` if there is no finding, otherwise
    /// `WRONG`.
    pub fn verdict(&self) -> &'static str {
        match self.is_clean() {
            true => "CLEAN",
            false => "WRONG",
        }
    }

    /// Returns commands for the next steps of a user, each with its purpose: about findings of
    /// orders, dead letters, and a warehouse that is away. If there are none of these, the only
    /// command starts a harder run.
    pub fn next_steps(&self) -> Vec<(String, &'static str)> {
        let mut steps = Vec::new();
        if let Some(order) = self.findings.iter().find_map(super::Finding::order) {
            steps.push((format!("imt order show {order}"), "the first order found"));
            steps.push(("imt audit --output json".to_owned(), "all findings, explained"));
        }
        if self.outbox_dead > 0 {
            steps.push(("imt order dead list".to_owned(), "messages that were given up"));
        }
        if self.warehouse_away {
            steps.push(("imt node warehouse".to_owned(), "the address that the nodes call"));
        }
        if steps.is_empty() {
            steps.push(("imt sim run --scenario chaos".to_owned(), "a harder run"));
        }
        steps
    }

    /// Writes the counts, the waiting messages, the number of dead letters, and the first
    /// [`FINDINGS_SHOWN`] findings with their explanations.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![
            plural(self.orders, "order"),
            plural(self.deliveries, "delivery"),
            plural(self.reservations, "reservation"),
        ];
        for (count, noun) in [
            (self.histories, "history"),
            (self.stores, "store"),
            (self.log_lines, "logged request"),
            (self.repeated, "repeated request"),
        ] {
            if count > 0 {
                parts.push(plural(count, noun));
            }
        }
        let last = parts.pop().unwrap_or_default();
        let checked = format!("{} and {last} checked", parts.join(", "));
        match self.findings.len() as u64 {
            0 => wrapped(f, "audit", &format!("clean: {checked}"))?,
            found => wrapped(f, "audit", &format!("{} WRONG: {checked}", thousands(found)))?,
        }
        self.write_waiting(f)?;
        for finding in self.findings.iter().take(FINDINGS_SHOWN) {
            writeln!(f, "    - {finding}")?;
            let order = finding.order().unwrap_or_default();
            for line in self.explained.get(order).into_iter().flatten() {
                writeln!(f, "        {line}")?;
            }
        }
        match self.findings.len().saturating_sub(FINDINGS_SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "    - and {} more", thousands(more as u64)),
        }
    }

    fn write_waiting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = "waiting";
        let is_away = self.warehouse_away && self.outbox_waiting > 0;
        if is_away {
            let messages = plural(self.outbox_waiting, "message");
            let text = format!("{messages}, because the warehouse is away; they are sent when it is back");
            wrapped(f, name, &text)?;
            name = "";
        }
        for group in self.waiting.iter().take(WAITING_SHOWN) {
            let Waiting {
                kind,
                reason,
                messages,
            } = group;
            let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
            wrapped(f, name, &format!("{} x {kind}: {reason}", thousands(*messages)))?;
            name = "";
        }
        if self.outbox_dead > 0 {
            wrapped(f, "dead", &plural(self.outbox_dead, "dead letter"))?;
        }
        Ok(())
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)?;
        let reason = match self.findings.len() as u64 {
            0 => "nothing lost, nothing twice, nothing oversold".to_owned(),
            found => plural(found, "finding"),
        };
        line(f, "verdict", &format!("{}: {reason}", self.verdict()))?;
        crate::summary::write_steps(f, self.next_steps())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Finding;
    use crate::wire::MessageKind;

    #[test]
    fn a_clean_audit_with_an_absent_warehouse_says_waiting_and_not_wrong() {
        let report = AuditReport {
            orders: 1_200,
            deliveries: 1_160,
            reservations: 1,
            histories: 500,
            outbox_waiting: 12,
            warehouse_away: true,
            waiting: vec![Waiting {
                kind: MessageKind::Announce,
                reason: "Connection refused".to_owned(),
                messages: 12,
            }],
            ..AuditReport::default()
        };
        let text = report.to_string();
        for part in [
            "audit      clean: 1,200 orders, 1,160 deliveries, 1 reservation and 500",
            "waiting    12 messages, because the warehouse is away",
            "12 x announce: Connection refused",
            "verdict    CLEAN:",
            "imt node warehouse",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("WRONG"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_finding_is_followed_by_the_history_of_its_order() {
        let report = AuditReport {
            findings: vec![Finding::OrderMissing { order: "17".into() }],
            explained: [("17".to_owned(), vec!["warehouse: no delivery".to_owned()])].into(),
            ..AuditReport::default()
        };
        let text = report.to_string();
        let expected = "    - order 17: acknowledged, but it is gone\n        warehouse: no delivery\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("verdict    WRONG: 1 finding"), "{text}");
        assert!(text.contains("imt order show 17"), "{text}");
    }
}
