//! Units of other volumes' stores that this volume has borrowed, and the orders that took them.
//!
//! **Invariants**
//! - Usable units are in memory only. A new server of the volume starts with none. Its first
//!   requests about a store enter the orders of the earlier server and return all other units of
//!   that server.
//! - Units become unusable before a request returns them. Granted units become usable only when the
//!   owner's answer arrives.
//! - A request is repeated unchanged until the owner answers it or a new incarnation begins.
//! - A durable order that took units stays in `spent` until the owner has entered it, and its row
//!   in this volume's table `spent` is removed. Until then no settlement of the order is sent to
//!   the owner.
//! - A volume borrows from at most `STORES_MAX` stores, and at most `CELLS_MAX` products of each.
//!   It may have further allotments, which only enter orders and return units.
//!
//! To *enter* an order, the owner takes its units out of the loan and writes a usual reservation.
//!
//! Deliberately absent: rows, messages and clocks (`volume::borrowing`). Times are monotonic
//! milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use imt_ring::NodeName;

use crate::domain::loans::{AllotRequest, Recall, SpentUnits};
use crate::domain::order::{Line, OrderId};
use crate::domain::stock::{Reservation, summed};
use crate::runtime::seeded::seeded;

/// Number of reservations in a store within `WINDOW_MS` from which on its units are borrowed. At a
/// lower rate, reservations by message cost little, and most borrowed units would be returned
/// unused.
const HOT_AFTER: u32 = if cfg!(test) { 2 } else { 64 };
/// Time in which the reservations of a store are counted, in milliseconds. If the owner grants no
/// units of a product, they are not requested again for this time.
const WINDOW_MS: u64 = if cfg!(test) { 4_000 } else { 1_000 };
/// Number of units of a product that the first request asks for, or more if one order needs more.
/// Each time the units run out, the number doubles, up to `TARGET_MAX`.
pub(crate) const TARGET_FIRST: u32 = if cfg!(test) { 2 } else { 32 };
/// Maximum number of units of a product that one request asks for.
const TARGET_MAX: u32 = 1 << 16;
/// Maximum number of stores from which a volume borrows.
const STORES_MAX: usize = 16;
/// Maximum number of products in one loan. Every change of a loan writes its row, which has up to
/// about 200 KiB with this many products.
pub(crate) const CELLS_MAX: usize = 16 << 10;
/// Maximum number of products in the list of wanted units of one request.
const WANTED_MAX: usize = 4_096;
/// Maximum number of orders that one request enters.
const SPENT_MAX: usize = if cfg!(test) { 3 } else { 1_024 };
/// Number of order lines in a request after which no further order is added to it, so that the
/// request fits into a frame of the channel between nodes.
const SPENT_LINES_MAX: usize = 64 << 10;
/// Number of orders to be entered at which a request is sent at once, instead of after
/// `ENTER_WITHIN_MS`.
const SPENT_SOON: usize = 1_024;
/// Minimum interval of new requests about one store, in milliseconds. It does not apply while
/// requests return all units of the store, if `SPENT_SOON` orders are to be entered, or if a
/// request must be sent (`must_ask`).
const ENTER_WITHIN_MS: u64 = 200;
/// Time without an order that uses a store, after which all borrowed units of the store are
/// returned, in milliseconds.
const IDLE_MS: u64 = 1_000;
/// Time after a recall in which the recalled units are not borrowed again, in milliseconds.
const PAUSE_MS: u64 = 2_000;

/// Borrowed units of one product.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    usable: u32,
    target: u32,
    /// Time before which no units of this product are requested, because the owner has granted none
    /// or has recalled them.
    paused_until_ms: u64,
}

/// The borrowed units of one store, and the state of the requests to its owner.
#[derive(Debug, Default)]
struct Allotment {
    cells: HashMap<u32, Cell>,
    /// Recalled units, which the next request returns.
    recalled: BTreeMap<u32, u32>,
    /// Products with few usable units. The next request asks for more units of them, up to the
    /// target of each cell. A request asks for nothing if it returns all units, or if the loan is
    /// neither clear (`is_clear`) nor cleared by this request.
    low: BTreeSet<u32>,
    /// Number of orders that took units of this store and are not durable yet.
    queued: usize,
    /// Durable orders that took units of this store and were in no request of this incarnation yet.
    unsent: BTreeSet<OrderId>,
    in_flight: Option<Arc<AllotRequest>>,
    /// Time before which no units of this store are borrowed or used, and all are returned. The
    /// owner has recalled all of them, or has recalled some before this allotment existed.
    recalled_until_ms: u64,
    /// `true` if a request must be sent even without an order or a unit in it. After a recall, the
    /// owner repeats the recall until a request arrives. A new incarnation must clear the loan.
    must_ask: bool,
    /// `true` once the owner has answered a request with `AllotRequest::clears`, so that the loan
    /// has no units of earlier incarnations. Before that, no unit of the store is usable.
    is_clear: bool,
    /// `true` if some units of every product are wanted. The next request that may ask for units
    /// (see `low`) asks for them.
    asks_all: bool,
    /// `true` if units of this store are borrowed, because it was hot. `false` for an allotment of
    /// an order of an earlier server, or of a recall.
    is_borrowed: bool,
    used_ms: u64,
    asked_ms: u64,
}

impl Allotment {
    /// Returns `true` if no new request may be made now: the loan is not clear yet, and an order
    /// that took units is not durable yet. A request that clears the loan returns all units except
    /// those of the orders in it, so it must wait for this order.
    fn is_blocked(&self) -> bool {
        !self.is_clear && self.queued > 0
    }
}

/// The progress of an order that took borrowed units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The rows of the order are queued for commit.
    Queued,
    /// The order is durable, and no request of this incarnation has it yet.
    Durable,
    /// A request with the order was sent, and its answer has not arrived.
    Sent,
    /// The owner has entered the order. The order's row in this volume's table `spent` is to be
    /// removed.
    Entered,
}

#[derive(Debug)]
struct Spent {
    store: u32,
    nonce: u64,
    lines: Box<[Line]>,
    progress: Progress,
}

/// Number of reservations in a store that were made by messages to its owner since `since_ms`, to
/// find hot stores.
#[derive(Debug, Default)]
struct Demand {
    since_ms: u64,
    count: u32,
}

/// All allotments of a volume.
#[derive(Debug)]
pub(crate) struct Allotments {
    volume: NodeName,
    /// Highest incarnation that is durable in this volume.
    durable_incarnation: u64,
    /// Incarnation in the requests of this server. It is higher than those of earlier servers of
    /// the volume, and must be durable before the first request.
    incarnation: u64,
    sequence: u64,
    stores: BTreeMap<u32, Allotment>,
    spent: BTreeMap<OrderId, Spent>,
    demand: BTreeMap<u32, Demand>,
    is_on: bool,
    /// Time before which no units are borrowed or used, because slots of this volume migrate.
    suspended_until_ms: u64,
}

impl Allotments {
    /// Creates the allotments of a new server from the rows in its volume's table `spent`.
    pub(crate) fn new(volume: NodeName, durable_incarnation: u64, rows: Vec<Reservation>) -> Allotments {
        let mut allotments = Allotments {
            volume,
            durable_incarnation,
            incarnation: durable_incarnation + 1,
            sequence: 0,
            stores: BTreeMap::new(),
            spent: BTreeMap::new(),
            demand: BTreeMap::new(),
            is_on: false,
            suspended_until_ms: 0,
        };
        for row in rows {
            let allotment = allotments.stores.entry(row.store).or_default();
            allotment.unsent.insert(row.order.clone());
            let spent = Spent {
                store: row.store,
                nonce: row.nonce.unwrap_or(0),
                lines: row.lines,
                progress: Progress::Durable,
            };
            allotments.spent.insert(row.order, spent);
        }
        allotments
    }

    /// Turns borrowing on or off. While it is off, borrowed units are returned.
    pub(crate) fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

    /// Notes a reservation that was made by a message to the store's owner. Does nothing while
    /// borrowing is off. If the volume borrows from the store already, a later request may ask for
    /// more units (`note_missing`). Otherwise the reservation is counted, for at most `STORES_MAX`
    /// stores at a time. After `HOT_AFTER` reservations within `WINDOW_MS` the volume begins to
    /// borrow from the store, if it borrows from fewer than `STORES_MAX` stores. Returns `true` if
    /// the volume borrows from the store then, even if no unit is granted yet.
    pub(crate) fn note_reserved(&mut self, store: u32, lines: &[Line], now_ms: u64) -> bool {
        if !self.is_on {
            return false;
        }
        if self.stores.get(&store).is_some_and(|known| known.is_borrowed) {
            self.note_missing(store, lines, now_ms);
            return true;
        }
        if self.demand.len() >= STORES_MAX && !self.demand.contains_key(&store) {
            self.demand
                .retain(|_, demand| now_ms < demand.since_ms + WINDOW_MS);
            if self.demand.len() >= STORES_MAX {
                return false;
            }
        }
        let demand = self.demand.entry(store).or_default();
        if now_ms >= demand.since_ms + WINDOW_MS || demand.count == 0 {
            *demand = Demand {
                since_ms: now_ms,
                count: 0,
            };
        }
        demand.count += 1;
        let is_hot = demand.count >= HOT_AFTER && self.borrowed_stores() < STORES_MAX;
        if is_hot {
            self.demand.remove(&store);
            let allotment = self.stores.entry(store).or_default();
            allotment.is_borrowed = true;
            allotment.used_ms = now_ms;
            // Each order names few of the store's products, so it would take long until every
            // product was missing once. The first request asks for some units of all products.
            allotment.asks_all = true;
            self.note_missing(store, lines, now_ms);
        }
        is_hot
    }

    fn borrowed_stores(&self) -> usize {
        let borrowed = self.stores.values().filter(|allotment| allotment.is_borrowed);
        borrowed.count()
    }

    /// Makes a later request ask for more units of the products of which too few units are usable
    /// for an order. Skips products with a pause and products beyond `CELLS_MAX`. While nothing may
    /// be borrowed, records only the time of use.
    fn note_missing(&mut self, store: u32, lines: &[Line], now_ms: u64) {
        let is_paused = self.is_paused(now_ms);
        let Some(allotment) = self.stores.get_mut(&store) else {
            return;
        };
        allotment.used_ms = now_ms;
        if is_paused || now_ms < allotment.recalled_until_ms {
            return;
        }
        for line in summed(lines) {
            if allotment.cells.len() >= CELLS_MAX && !allotment.cells.contains_key(&line.id) {
                continue;
            }
            let cell = allotment.cells.entry(line.id).or_default();
            if cell.usable >= line.quantity || now_ms < cell.paused_until_ms {
                continue;
            }
            if !allotment.low.contains(&line.id) {
                // The units ran out, so twice as many are wanted.
                cell.target = (cell.target * 2).clamp(TARGET_FIRST, TARGET_MAX);
            }
            cell.target = cell.target.max(line.quantity.min(TARGET_MAX));
            allotment.low.insert(line.id);
        }
    }

    fn is_paused(&self, now_ms: u64) -> bool {
        !self.is_on || now_ms < self.suspended_until_ms
    }

    /// Returns `true` if borrowed units of a store suffice for an order and may be used now.
    pub(crate) fn suffices(&self, store: u32, lines: &[Line], now_ms: u64) -> bool {
        let Some(allotment) = self.stores.get(&store) else {
            return false;
        };
        if self.is_paused(now_ms) || now_ms < allotment.recalled_until_ms {
            return false;
        }
        summed(lines).iter().all(|line| {
            let cell = allotment.cells.get(&line.id);
            cell.is_some_and(|cell| cell.usable >= line.quantity)
        })
    }

    /// Takes borrowed units for an order. Returns `false` and takes nothing if they do not suffice
    /// (see `suffices`), or if the order has taken units before.
    pub(crate) fn spend(
        &mut self,
        order: &OrderId,
        nonce: u64,
        store: u32,
        lines: &[Line],
        now_ms: u64,
    ) -> bool {
        if !self.suffices(store, lines, now_ms) || self.spent.contains_key(order) {
            return false;
        }
        let Some(allotment) = self.stores.get_mut(&store) else {
            return false;
        };
        for line in lines {
            if let Some(cell) = allotment.cells.get_mut(&line.id) {
                cell.usable -= line.quantity;
                if cell.usable < cell.target / 2 && now_ms >= cell.paused_until_ms {
                    allotment.low.insert(line.id);
                }
            }
        }
        allotment.queued += 1;
        allotment.used_ms = now_ms;
        let spent = Spent {
            store,
            nonce,
            lines: lines.into(),
            progress: Progress::Queued,
        };
        self.spent.insert(order.clone(), spent);
        true
    }

    /// Records the end of the commit of an order that took borrowed units. If the commit failed,
    /// the units are usable again, unless the next request returns all units to the owner
    /// (`is_clear` is `false`). Returns `true` if the borrower's task must be woken.
    pub(crate) fn end_spending(&mut self, order: &OrderId, is_durable: bool) -> bool {
        let Some(spent) = self.spent.get_mut(order) else {
            return false;
        };
        let allotment = self.stores.entry(spent.store).or_default();
        allotment.queued = allotment.queued.saturating_sub(1);
        if is_durable {
            spent.progress = Progress::Durable;
            allotment.unsent.insert(order.clone());
            return allotment.unsent.len() == SPENT_SOON || allotment.unsent.len() == 1;
        }
        // After `restart_after`, the next request returns all units except those of orders, so the
        // units of an order that failed must not become usable.
        if allotment.is_clear {
            for line in &spent.lines {
                allotment.cells.entry(line.id).or_default().usable += line.quantity;
            }
        }
        self.spent.remove(order);
        false
    }

    /// Returns `true` from the moment when an order takes borrowed units until its commit fails or
    /// its row in the table `spent` is removed. During that time, no settlement of the order may be
    /// sent.
    pub(crate) fn is_unsettled(&self, order: &OrderId) -> bool {
        self.spent.contains_key(order)
    }

    /// Returns `true` if `is_unsettled` holds for any order that `is_asked` selects.
    pub(crate) fn any_unsettled(&self, is_asked: impl FnMut(&OrderId) -> bool) -> bool {
        self.spent.keys().any(is_asked)
    }

    /// Stops borrowing until the time `until_ms`. Until then, requests return all borrowed units.
    pub(crate) fn suspend(&mut self, until_ms: u64) {
        self.suspended_until_ms = self.suspended_until_ms.max(until_ms);
    }

    /// Makes units unusable that their owner has recalled. The next request returns them. If all
    /// units of the store are recalled, they are unusable for `PAUSE_MS`, and a new request in this
    /// time returns them. A recall for a store without an allotment is ignored if there are
    /// `2 * STORES_MAX` allotments.
    pub(crate) fn recall(&mut self, recall: &Recall, now_ms: u64) {
        let known = self.stores.get(&recall.store);
        if known.is_none() && self.stores.len() >= 2 * STORES_MAX {
            return;
        }
        let is_all = recall.products.is_empty() || known.is_none();
        let allotment = self.stores.entry(recall.store).or_default();
        allotment.must_ask = true;
        if is_all {
            allotment.recalled_until_ms = now_ms + PAUSE_MS;
            allotment.low.clear();
            return;
        }
        for product in &recall.products {
            allotment.low.remove(product);
            if let Some(cell) = allotment.cells.get_mut(product) {
                let units = std::mem::take(&mut cell.usable);
                cell.target = 0;
                cell.paused_until_ms = now_ms + PAUSE_MS;
                if units > 0 {
                    *allotment.recalled.entry(*product).or_default() += units;
                }
            }
        }
    }

    /// Returns `true` if there are neither allotments nor orders in `spent`.
    pub(crate) fn is_idle(&self) -> bool {
        self.stores.is_empty() && self.spent.is_empty()
    }

    /// Returns the orders that the owners of their stores have entered, each with its store.
    pub(crate) fn entered(&self) -> Vec<(OrderId, u32)> {
        let entered = self.spent.iter();
        let entered = entered.filter(|(_, spent)| spent.progress == Progress::Entered);
        entered
            .map(|(order, spent)| (order.clone(), spent.store))
            .collect()
    }

    /// Forgets orders after their rows in the table `spent` were removed.
    pub(crate) fn forget(&mut self, orders: &[(OrderId, u32)]) {
        for (order, _) in orders {
            self.spent.remove(order);
        }
    }

    /// Returns the incarnation that must be made durable before the next request. `None` if it is
    /// durable already.
    pub(crate) fn new_incarnation(&self) -> Option<u64> {
        (self.durable_incarnation < self.incarnation).then_some(self.incarnation)
    }

    /// Records that an incarnation is durable.
    pub(crate) fn incarnation_is_durable(&mut self, incarnation: u64) {
        self.durable_incarnation = self.durable_incarnation.max(incarnation);
    }

    /// Begins a new incarnation of this borrower, with the number `known + 1`, after an owner did
    /// not accept a request. `known` is at least the incarnation of this borrower that the owner
    /// has recorded. Nothing changes if `known` is lower than the present incarnation. Otherwise
    /// all usable units become unusable, and the next requests return them to their owners.
    pub(crate) fn restart_after(&mut self, known: u64) {
        if known < self.incarnation {
            return;
        }
        self.incarnation = known + 1;
        for allotment in self.stores.values_mut() {
            allotment.in_flight = None;
            allotment.must_ask = true;
            allotment.is_clear = false;
            allotment.cells.clear();
            allotment.recalled.clear();
            allotment.low.clear();
        }
        for (order, spent) in &mut self.spent {
            if spent.progress == Progress::Sent {
                spent.progress = Progress::Durable;
                if let Some(allotment) = self.stores.get_mut(&spent.store) {
                    allotment.unsent.insert(order.clone());
                }
            }
        }
    }

    /// Returns the stores for which a request must be sent to the owner now. Forgets allotments
    /// that are no longer used and have neither units nor orders. `is_here` returns `true` for a
    /// store that has migrated to this volume. The borrowed units of such a store are returned.
    pub(crate) fn due(&mut self, now_ms: u64, is_here: impl Fn(u32) -> bool) -> Vec<u32> {
        let is_paused = self.is_paused(now_ms);
        let mut due = Vec::new();
        self.stores.retain(|store, allotment| {
            let returns = is_paused
                || now_ms < allotment.recalled_until_ms
                || now_ms >= allotment.used_ms + IDLE_MS
                || is_here(*store);
            let has_usable = allotment.cells.values().any(|cell| cell.usable > 0);
            let is_late = now_ms >= allotment.asked_ms + ENTER_WITHIN_MS;
            let unsent = allotment.unsent.len();
            let is_due = allotment.in_flight.is_some()
                || (allotment.must_ask && !allotment.is_blocked())
                || (returns && (has_usable || unsent > 0))
                || unsent >= SPENT_SOON
                || (is_late && (unsent > 0 || (!returns && !allotment.low.is_empty())));
            if is_due {
                due.push(*store);
            }
            let has_content = has_usable || unsent > 0 || allotment.queued > 0 || !returns;
            is_due || has_content || now_ms < allotment.recalled_until_ms
        });
        due
    }

    /// Returns the request to send to a store's owner: the last request while it is not answered,
    /// otherwise a new request. `None` if no request may be sent now. `is_here` is `true` if the
    /// store has migrated to this volume.
    pub(crate) fn request(&mut self, store: u32, now_ms: u64, is_here: bool) -> Option<Arc<AllotRequest>> {
        if self.new_incarnation().is_some() {
            return None;
        }
        let is_paused = self.is_paused(now_ms);
        let allotment = self.stores.get_mut(&store)?;
        if let Some(request) = &allotment.in_flight {
            return Some(Arc::clone(request));
        }
        if allotment.is_blocked() {
            return None;
        }
        allotment.must_ask = false;
        allotment.asked_ms = now_ms;
        let returns = is_paused
            || is_here
            || now_ms < allotment.recalled_until_ms
            || now_ms >= allotment.used_ms + IDLE_MS;
        let (mut returned, mut wanted, mut spent) = (Vec::new(), Vec::new(), Vec::new());
        let mut lines = 0;
        while spent.len() < SPENT_MAX && lines < SPENT_LINES_MAX {
            let Some(order) = allotment.unsent.pop_first() else {
                break;
            };
            let Some(known) = self.spent.get_mut(&order) else {
                continue;
            };
            known.progress = Progress::Sent;
            lines += known.lines.len();
            if seeded("allotment-spent-returned") && allotment.is_clear {
                returned.extend_from_slice(&known.lines);
            }
            spent.push(SpentUnits {
                nonce: known.nonce,
                lines: known.lines.clone(),
                order,
            });
        }
        let clears = !allotment.is_clear && allotment.unsent.is_empty();
        let can_borrow = allotment.is_clear || clears;
        let wants_all = !returns && can_borrow && std::mem::take(&mut allotment.asks_all);
        for (id, quantity) in std::mem::take(&mut allotment.recalled) {
            returned.push(Line { id, quantity });
        }
        if returns {
            let cells = std::mem::take(&mut allotment.cells);
            if seeded("allotment-used-after-return") {
                allotment.cells.clone_from(&cells);
            }
            for (id, cell) in cells {
                if cell.usable > 0 {
                    returned.push(Line {
                        id,
                        quantity: cell.usable,
                    });
                }
            }
            // Sorted, because a simulation needs the same sequence in each run.
            returned.sort_unstable_by_key(|line| line.id);
            allotment.low.clear();
            allotment.asks_all = true;
        } else if can_borrow {
            while let Some(id) = allotment.low.pop_first() {
                if let Some(cell) = allotment.cells.get(&id)
                    && cell.target > cell.usable
                {
                    let quantity = cell.target - cell.usable;
                    wanted.push(Line { id, quantity });
                }
                if wanted.len() == WANTED_MAX {
                    break;
                }
            }
        }
        self.sequence += 1;
        let request = Arc::new(AllotRequest {
            borrower: self.volume.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            store,
            clears,
            spent,
            returned,
            wanted,
            wants_all,
        });
        allotment.in_flight = Some(Arc::clone(&request));
        Some(request)
    }

    /// Applies the owner's answer to the last request. An answer to an earlier request changes
    /// nothing.
    pub(crate) fn answered(&mut self, request: &AllotRequest, granted: &[Line], now_ms: u64) {
        let Some(allotment) = self.stores.get_mut(&request.store) else {
            return;
        };
        let is_it = |known: &Arc<AllotRequest>| {
            (known.incarnation, known.sequence) == (request.incarnation, request.sequence)
        };
        if !allotment.in_flight.as_ref().is_some_and(is_it) {
            return;
        }
        allotment.in_flight = None;
        allotment.is_clear |= request.clears;
        for line in granted {
            let cell = allotment.cells.entry(line.id).or_default();
            cell.usable += line.quantity;
            cell.target = cell.target.max(TARGET_FIRST);
            if seeded("allotment-counted-twice") {
                cell.usable += line.quantity;
            }
        }
        let granted: HashSet<u32> = granted.iter().map(|line| line.id).collect();
        for line in &request.wanted {
            if !granted.contains(&line.id)
                && let Some(cell) = allotment.cells.get_mut(&line.id)
            {
                cell.paused_until_ms = now_ms + WINDOW_MS;
            }
        }
        for spent in &request.spent {
            if let Some(known) = self.spent.get_mut(&spent.order) {
                known.progress = Progress::Entered;
            }
        }
    }

    /// Returns the sum of all usable units. It includes units that no order may take for the
    /// moment, because borrowing is paused or their whole store was recalled.
    pub(crate) fn usable(&self) -> u64 {
        let cells = self
            .stores
            .values()
            .flat_map(|allotment| allotment.cells.values());
        cells.map(|cell| u64::from(cell.usable)).sum()
    }

    /// Returns the units of a store that the owner must have lent to this volume.
    #[cfg(test)]
    pub(crate) fn claims(&self, store: u32) -> Claims {
        let mut usable: BTreeMap<u32, u32> = BTreeMap::new();
        if let Some(allotment) = self.stores.get(&store) {
            for (id, cell) in &allotment.cells {
                *usable.entry(*id).or_default() += cell.usable;
            }
            for (id, units) in &allotment.recalled {
                *usable.entry(*id).or_default() += units;
            }
        }
        let open = self.spent.iter().filter(|(_, spent)| {
            spent.store == store && matches!(spent.progress, Progress::Queued | Progress::Durable)
        });
        Claims {
            incarnation: self.incarnation,
            usable,
            orders: open
                .map(|(order, spent)| SpentUnits {
                    order: order.clone(),
                    nonce: spent.nonce,
                    lines: spent.lines.clone(),
                })
                .collect(),
        }
    }
}

/// Units of one store that a volume has borrowed and not returned.
#[cfg(test)]
pub(crate) struct Claims {
    pub(crate) incarnation: u64,
    /// Usable and recalled units by product.
    pub(crate) usable: BTreeMap<u32, u32>,
    /// Orders that took units and were in no request of this incarnation. The owner may have
    /// entered them by a request of an earlier incarnation.
    pub(crate) orders: Vec<SpentUnits>,
}

#[cfg(test)]
mod tests;
