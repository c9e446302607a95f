//! Loans of a store's units to other volumes, as the store's owner knows them.
//!
//! A volume borrows units of a store with many orders in advance, and reserves them for its orders
//! without a message (escrow: O'Neil 1986, "The Escrow Transactional Method"; bounded counters:
//! Balegas et al. 2015). `docs/cluster.md` lists the invariants of both sides.
//!
//! **Invariants**
//! - Only orders of the borrower may take a lent unit.
//! - A loan has one change under way at a time. The loan changes in memory when the row of the
//!   change is queued. Units that leave the loan count as lent until that row is durable.
//!
//! To *enter* an order is to take its units out of the loan and to write a reservation for it.
//!
//! Deliberately absent: rows and messages (`volume::lending`), and the borrower's side
//! (`allotments`).

use std::collections::{BTreeMap, BTreeSet};

use imt_ring::NodeName;

use crate::domain::order::Line;
use crate::domain::reserved_units::ReservedUnits;

/// The durable state of one loan: a row of the store's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loan {
    /// Incarnation of the borrower in its last request. Each server of the borrowing volume has a
    /// higher incarnation than the servers before.
    pub(crate) incarnation: u64,
    /// Number of the last request of that incarnation.
    pub(crate) sequence: u64,
    /// Lent units by product.
    pub(crate) units: BTreeMap<u32, u32>,
    /// Units that were granted to the last request. If the borrower repeats that request, the
    /// answer names these units again.
    pub(crate) granted: Box<[Line]>,
}

/// A loan in memory.
#[derive(Debug)]
pub(crate) struct OpenLoan {
    pub(crate) loan: Loan,
    /// `true` while a change of the row is being committed.
    pub(crate) is_changing: bool,
    /// Time at which the last request became durable or this `OpenLoan` was created, in monotonic
    /// milliseconds.
    pub(crate) heard_ms: u64,
    /// Products that are recalled until the borrower's next request. An empty set recalls all
    /// products, and `None` recalls nothing.
    pub(crate) recalled: Option<BTreeSet<u32>>,
    /// Time before which the recall is not sent again, in monotonic milliseconds.
    pub(crate) recall_at_ms: u64,
}

impl OpenLoan {
    /// Creates a loan in memory from the content of its row.
    pub(crate) fn of(loan: Loan, now_ms: u64) -> OpenLoan {
        OpenLoan {
            loan,
            is_changing: false,
            heard_ms: now_ms,
            recalled: None,
            recall_at_ms: 0,
        }
    }
}

/// Products with lent units that are to be recalled, by store.
pub(crate) type Recalled = BTreeMap<u32, BTreeSet<u32>>;

/// All loans of a volume's stores.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    open: BTreeMap<(u32, NodeName), OpenLoan>,
    /// Lent units by store and product, summed over all borrowers. Includes units that leave a loan
    /// by a change that is not durable yet.
    sum: ReservedUnits,
    /// Number of loans with units, or with a change under way. Units that leave a loan count as
    /// lent until the row of the change is durable.
    with_units: usize,
    /// Products for which `recall` was called since the last call of `take_recalled`: the store has
    /// fewer than `RECALL_BELOW` of their units free, or fewer than an order needs.
    recalled: Recalled,
}

impl Loans {
    /// Returns `true` if any loan has units or a change under way.
    pub(crate) fn any(&self) -> bool {
        self.with_units > 0
    }

    /// Returns the lent units of a product in a store. They include units that leave a loan by a
    /// change that is not durable yet.
    pub(crate) fn of(&self, store: u32, product: u32) -> u32 {
        if self.with_units == 0 {
            return 0;
        }
        self.sum.of(store, product)
    }

    /// Returns the number of units in all loans, without units that leave a loan by a change that
    /// is not durable yet.
    pub(crate) fn units(&self) -> u64 {
        let units = self.open.values().flat_map(|open| open.loan.units.values());
        units.map(|units| u64::from(*units)).sum()
    }

    /// Returns the loan of a store to a volume, or `None` if the volume has no loan of the store.
    pub(crate) fn get(&self, store: u32, borrower: &NodeName) -> Option<&OpenLoan> {
        self.open.get(&(store, borrower.clone()))
    }

    /// Returns the loan of a store to a volume, for changes of flags such as `is_changing`. `None`
    /// if the volume has no loan of the store.
    pub(crate) fn get_mut(&mut self, store: u32, borrower: &NodeName) -> Option<&mut OpenLoan> {
        self.open.get_mut(&(store, borrower.clone()))
    }

    /// Returns all loans, for changes of flags such as `recalled`.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&(u32, NodeName), &mut OpenLoan)> {
        self.open.iter_mut()
    }

    /// Subtracts units that are no longer lent from the sum of a store's lent units.
    fn put_back(&mut self, store: u32, lines: &[Line]) {
        for line in lines {
            self.sum.take(store, *line);
        }
    }

    /// Begins the change of a loan by a request, which must be newer than the last request.
    /// `entered` are the units of the orders that the request enters. Granted units count as lent
    /// at once. Units that leave the loan count as lent until `end`. Returns `None` and leaves the
    /// units unchanged if the loan has fewer units than are entered and returned.
    pub(crate) fn begin(
        &mut self,
        request: &AllotRequest,
        entered: &[Line],
        granted: Box<[Line]>,
        now_ms: u64,
    ) -> Option<Change> {
        let key = (request.store, request.borrower.clone());
        let open = self
            .open
            .entry(key)
            .or_insert_with(|| OpenLoan::of(Loan::default(), now_ms));
        let mut left: Vec<Line> = Vec::with_capacity(entered.len() + request.returned.len());
        for line in entered.iter().chain(&request.returned) {
            if !open.loan.take(*line) {
                left.into_iter().for_each(|line| open.loan.add(line));
                return None;
            }
            left.push(*line);
        }
        if request.clears {
            left.extend(lines_of(&open.loan));
            open.loan.units.clear();
        }
        granted.iter().for_each(|line| open.loan.add(*line));
        open.is_changing = true;
        let change = Change {
            borrower: request.borrower.clone(),
            store: request.store,
            before: (open.loan.incarnation, open.loan.sequence),
            granted_before: std::mem::replace(&mut open.loan.granted, granted),
            left,
        };
        (open.loan.incarnation, open.loan.sequence) = (request.incarnation, request.sequence);
        self.sum.add(request.store, &open.loan.granted);
        self.count();
        Some(change)
    }

    /// Ends a change after its commit. If the commit failed, restores the loan.
    pub(crate) fn end(&mut self, change: Change, is_durable: bool, now_ms: u64) {
        let store = change.store;
        let Some(open) = self.open.get_mut(&(store, change.borrower)) else {
            return;
        };
        open.is_changing = false;
        let back = if is_durable {
            open.heard_ms = now_ms;
            open.recalled = None;
            change.left
        } else {
            (open.loan.incarnation, open.loan.sequence) = change.before;
            let granted = std::mem::replace(&mut open.loan.granted, change.granted_before);
            for line in &granted {
                open.loan.take(*line);
            }
            change.left.into_iter().for_each(|line| open.loan.add(line));
            granted.into_vec()
        };
        self.put_back(store, &back);
        self.count();
    }

    fn count(&mut self) {
        let lent = self
            .open
            .values()
            .filter(|open| open.is_changing || !open.loan.units.is_empty());
        self.with_units = lent.count();
    }

    /// Adds or replaces a loan.
    pub(crate) fn set(&mut self, store: u32, borrower: &NodeName, loan: Loan, now_ms: u64) {
        self.remove(store, borrower);
        self.sum.add(store, &lines_of(&loan));
        self.open
            .insert((store, borrower.clone()), OpenLoan::of(loan, now_ms));
        self.count();
    }

    /// Forgets a loan.
    pub(crate) fn remove(&mut self, store: u32, borrower: &NodeName) {
        let Some(before) = self.open.remove(&(store, borrower.clone())) else {
            return;
        };
        self.put_back(store, &lines_of(&before.loan));
        self.count();
    }

    /// Records that the lent units of a product in a store must be recalled.
    pub(crate) fn recall(&mut self, store: u32, product: u32) {
        self.recalled.entry(store).or_default().insert(product);
    }

    /// Returns the products for which `recall` was called since the last call of this function.
    pub(crate) fn take_recalled(&mut self) -> Recalled {
        std::mem::take(&mut self.recalled)
    }

    /// Returns the stores with units in loans. Units that leave a loan by a change that is not
    /// durable yet do not count.
    pub(crate) fn stores(&self) -> BTreeSet<u32> {
        let lent = self.open.iter().filter(|(_, open)| !open.loan.units.is_empty());
        lent.map(|((store, _), _)| *store).collect()
    }

    /// Returns the products of a store with units in loans. Units that leave a loan by a change
    /// that is not durable yet do not count.
    pub(crate) fn products(&self, store: u32) -> BTreeSet<u32> {
        let of_store = self.open.iter().filter(|((at, _), _)| *at == store);
        of_store
            .flat_map(|(_, open)| open.loan.units.keys().copied())
            .collect()
    }

    /// Removes the stores that leave the volume.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        self.open.retain(|(store, _), _| stays(*store));
        self.sum.retain_stores(&stays);
        self.recalled.retain(|store, _| stays(*store));
        self.count();
    }
}

/// Returns the units of a loan as lines.
pub(crate) fn lines_of(loan: &Loan) -> Vec<Line> {
    let line = |(&id, &quantity): (&u32, &u32)| Line { id, quantity };
    loan.units.iter().map(line).collect()
}

/// A change of a loan, from the queueing of its row until the end of the commit.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) borrower: NodeName,
    pub(crate) store: u32,
    /// Incarnation and number of the last request before the change.
    before: (u64, u64),
    granted_before: Box<[Line]>,
    /// Units that leave the loan, because they were entered or returned.
    left: Vec<Line>,
}

/// A request of a borrower about one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AllotRequest {
    /// The volume that borrows.
    pub(crate) borrower: NodeName,
    /// Incarnation of the borrower: a number that grows with every server of its volume. A server
    /// uses no units that were granted to an earlier incarnation. It only enters the orders that
    /// took some of them.
    pub(crate) incarnation: u64,
    /// Number of the request. It grows with every request of the incarnation.
    pub(crate) sequence: u64,
    pub(crate) store: u32,
    /// `true` if the request returns all units of the loan, except for those of the orders in
    /// `spent`. Each incarnation asks for units only in or after such a request, because an earlier
    /// server may have borrowed units.
    pub(crate) clears: bool,
    /// Orders that took units of the loan, to be entered by the owner.
    pub(crate) spent: Vec<SpentUnits>,
    /// Units that the borrower returns to the owner.
    pub(crate) returned: Vec<Line>,
    /// Units that the borrower asks for.
    pub(crate) wanted: Vec<Line>,
    /// `true` if the borrower also asks for some units of every product that is not in `wanted`.
    pub(crate) wants_all: bool,
}

/// A message by which the owner of a store demands lent units back from a borrower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recall {
    pub(crate) store: u32,
    /// The products to be returned. An empty list means all lent units of the store.
    pub(crate) products: Vec<u32>,
}

/// Units that an order took from an allotment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpentUnits {
    pub(crate) order: crate::domain::order::OrderId,
    pub(crate) nonce: u64,
    pub(crate) lines: Box<[Line]>,
}

/// The age of a request, compared with the last request that changed the loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The request is a repetition of the last request.
    Repeated,
    /// The request is older than the last request.
    Outdated,
    /// The request is newer than the last request.
    Newer,
}

impl Loan {
    fn add(&mut self, line: Line) {
        *self.units.entry(line.id).or_default() += line.quantity;
    }

    /// Removes units from the loan. Returns `false` and changes nothing if the loan has fewer.
    fn take(&mut self, line: Line) -> bool {
        let Some(units) = self.units.get_mut(&line.id) else {
            return line.quantity == 0;
        };
        let Some(left) = units.checked_sub(line.quantity) else {
            return false;
        };
        *units = left;
        if left == 0 {
            self.units.remove(&line.id);
        }
        true
    }

    /// Compares a request with the last request that changed this loan.
    pub(crate) fn turn(&self, request: &AllotRequest) -> Turn {
        let last = (self.incarnation, self.sequence);
        match (request.incarnation, request.sequence).cmp(&last) {
            std::cmp::Ordering::Equal => Turn::Repeated,
            std::cmp::Ordering::Less => Turn::Outdated,
            std::cmp::Ordering::Greater => Turn::Newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u32, quantity: u32) -> Line {
        Line { id, quantity }
    }

    fn request(incarnation: u64, sequence: u64, returned: &[Line]) -> AllotRequest {
        AllotRequest {
            borrower: NodeName::new("b").unwrap(),
            incarnation,
            sequence,
            store: 1,
            clears: false,
            spent: Vec::new(),
            returned: returned.to_vec(),
            wanted: Vec::new(),
            wants_all: false,
        }
    }

    fn units(loans: &Loans) -> BTreeMap<u32, u32> {
        let borrower = NodeName::new("b").unwrap();
        let open = loans.get(1, &borrower);
        open.map(|open| open.loan.units.clone()).unwrap_or_default()
    }

    #[test]
    fn a_loan_follows_requests_in_turn_and_knows_old_and_repeated_ones() {
        let mut loans = Loans::default();
        let first = loans
            .begin(&request(3, 1, &[]), &[], [line(7, 5)].into(), 0)
            .unwrap();
        assert_eq!(loans.of(1, 7), 5, "a grant is lent before it is durable");
        loans.end(first, true, 0);
        let lent = loans.get(1, &NodeName::new("b").unwrap()).unwrap().loan.clone();
        assert_eq!(lent.turn(&request(3, 1, &[])), Turn::Repeated);
        assert_eq!(lent.turn(&request(3, 0, &[])), Turn::Outdated);
        assert_eq!(lent.turn(&request(2, 9, &[])), Turn::Outdated);
        assert_eq!(lent.turn(&request(3, 2, &[])), Turn::Newer);
        assert_eq!(lent.turn(&request(4, 1, &[])), Turn::Newer);
        let next = request(3, 2, &[line(7, 2)]);
        for too_many in [line(7, 4), line(9, 1)] {
            assert!(loans.begin(&next, &[too_many], Box::default(), 0).is_none());
            assert_eq!(units(&loans), [(7, 5)].into());
        }
        for (is_durable, left) in [(false, 5), (true, 2)] {
            let change = loans.begin(&next, &[line(7, 1)], [line(8, 4)].into(), 0).unwrap();
            assert_eq!(
                (loans.of(1, 7), loans.of(1, 8)),
                (5, 4),
                "lent until it is durable"
            );
            loans.end(change, is_durable, 0);
            assert_eq!(
                (loans.of(1, 7), loans.of(1, 8)),
                (left, if is_durable { 4 } else { 0 })
            );
        }
        assert_eq!(units(&loans), [(7, 2), (8, 4)].into());
    }

    #[test]
    fn the_last_lent_units_count_as_lent_until_their_return_is_durable() {
        let mut loans = Loans::default();
        let grant = loans
            .begin(&request(3, 1, &[]), &[], [line(7, 5)].into(), 0)
            .unwrap();
        loans.end(grant, true, 0);
        for (is_durable, left) in [(false, 5), (true, 0)] {
            let all = request(3, 2, &[line(7, 4)]);
            let change = loans.begin(&all, &[line(7, 1)], Box::default(), 0).unwrap();
            assert_eq!((loans.of(1, 7), loans.any()), (5, true), "not durable yet");
            loans.end(change, is_durable, 0);
            assert_eq!((loans.of(1, 7), loans.any()), (left, left > 0));
        }
    }

    #[test]
    fn a_newer_incarnation_gives_all_units_back_but_those_of_its_orders() {
        let lent = Loan {
            incarnation: 3,
            sequence: 9,
            units: [(7, 5), (8, 1)].into(),
            granted: Box::default(),
        };
        let (mut loans, mut restart) = (Loans::default(), request(4, 1, &[]));
        loans.set(1, &restart.borrower, lent, 0);
        assert!(loans.begin(&restart, &[line(7, 6)], Box::default(), 0).is_none());
        // The new server enters the earlier orders in two requests. The first request does not
        // clear the loan, because the orders of the second request still need their units.
        let change = loans.begin(&restart, &[line(7, 2)], Box::default(), 0).unwrap();
        loans.end(change, true, 0);
        assert_eq!(units(&loans), [(7, 3), (8, 1)].into());
        (restart.sequence, restart.clears) = (2, true);
        let change = loans
            .begin(&restart, &[line(7, 2)], [line(9, 4)].into(), 0)
            .unwrap();
        assert_eq!((loans.of(1, 7), loans.of(1, 8), loans.of(1, 9)), (3, 1, 4));
        loans.end(change, true, 0);
        assert_eq!(units(&loans), [(9, 4)].into());
        assert_eq!((loans.of(1, 7), loans.of(1, 8), loans.of(1, 9)), (0, 0, 4));
    }

    #[test]
    fn sums_follow_the_loans_of_all_borrowers() {
        let (b, c) = (NodeName::new("b").unwrap(), NodeName::new("c").unwrap());
        let loan = |units: u32| Loan {
            units: [(7, units)].into(),
            ..Loan::default()
        };
        let mut loans = Loans::default();
        loans.set(1, &b, loan(5), 0);
        loans.set(1, &c, loan(2), 0);
        assert_eq!((loans.of(1, 7), loans.units(), loans.any()), (7, 7, true));
        loans.set(1, &b, Loan::default(), 0);
        assert_eq!((loans.of(1, 7), loans.any()), (2, true));
        loans.remove(1, &c);
        assert_eq!((loans.of(1, 7), loans.any()), (0, false));
        loans.set(2, &c, loan(2), 0);
        loans.retain_stores(|store| store == 1);
        assert_eq!((loans.of(2, 7), loans.any()), (0, false));
    }
}
