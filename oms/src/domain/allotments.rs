//! Units of other volumes' stores that this volume has borrowed, and the orders that took them.
//!
//! **Invariants**
//! - Usable units are in memory only. A new server of the volume has none, and its first request
//!   gives the units of the earlier one back.
//! - Units become unusable before a request gives them back, and usable after the owner has
//!   answered.
//! - A request is repeated unchanged until the owner answers it.
//! - An order's units stay in `spent` until the owner has entered its reservation and the row here
//!   is gone. Until then nothing else about the reservation reaches the owner.
//! - Bounded: `STORES_MAX` stores with `CELLS_MAX` products each.
//!
//! Deliberately absent: rows, messages and clocks (`volume::borrowing`). Times are monotonic
//! milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imt_ring::NodeName;

use crate::domain::loans::{AllotRequest, Recall, SpentUnits};
use crate::domain::order::{Line, OrderId};
use crate::domain::stock::{Reservation, summed};
use crate::runtime::seeded::seeded;

/// Reservations in a store within `WINDOW_MS` that make it a hot one. Below this rate messages cost
/// little, and the loan would be returned unused.
const HOT_AFTER: u32 = if cfg!(test) { 2 } else { 64 };
/// Time in which reservations of a store are counted.
const WINDOW_MS: u64 = if cfg!(test) { 4_000 } else { 1_000 };
/// Units of a product that are asked for first. Doubled each time they run out.
pub(crate) const TARGET_FIRST: u32 = if cfg!(test) { 2 } else { 32 };
/// Largest number of units of a product that is asked for.
const TARGET_MAX: u32 = 1 << 16;
/// Hot stores at a time.
const STORES_MAX: usize = 16;
/// Products of one loan. Its row is written with each request, and has at most 128 KiB then.
pub(crate) const CELLS_MAX: usize = 16 << 10;
/// Products that one request asks for.
const WANTED_MAX: usize = 4_096;
/// Orders that one request enters.
const SPENT_MAX: usize = if cfg!(test) { 3 } else { 1_024 };
/// Lines of the orders after which a request enters no further one, so that it fits into a frame.
const SPENT_LINES_MAX: usize = 64 << 10;
/// Spent orders after which a request is sent at once.
const SPENT_SOON: usize = 256;
/// Longest time in which an order is entered at the owner, if the owner answers.
const ENTER_WITHIN_MS: u64 = 100;
/// Time without an order after which the units of a store are returned.
const IDLE_MS: u64 = 1_000;
/// Time after a recall in which nothing is borrowed from the store.
const PAUSE_MS: u64 = 2_000;

/// Borrowed units of one product.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    usable: u32,
    target: u32,
    /// The owner granted nothing, or has recalled the units. It is not asked before this time.
    paused_until_ms: u64,
}

/// The allotment of one store.
#[derive(Debug, Default)]
struct Allotment {
    cells: BTreeMap<u32, Cell>,
    /// Recalled units, which the next request returns.
    recalled: BTreeMap<u32, u32>,
    /// Products of which more units are wanted.
    low: BTreeSet<u32>,
    /// Orders with units of this store that are not durable yet.
    queued: usize,
    /// Durable orders that no request has entered.
    unsent: BTreeSet<OrderId>,
    in_flight: Option<Arc<AllotRequest>>,
    /// Nothing is borrowed or used before this time, and everything is returned.
    recalled_until_ms: u64,
    /// The owner must be asked even if there is nothing to tell: it has recalled units.
    must_ask: bool,
    /// `true` once the owner has confirmed that the loan has no units of earlier servers or
    /// incarnations (`AllotRequest::clears`). Before that nothing is usable here.
    is_clear: bool,
    /// The next request asks for some units of every product.
    asks_all: bool,
    used_ms: u64,
    asked_ms: u64,
}

impl Allotment {
    /// Returns `true` if no request may be made now. A request that clears the loan returns all
    /// units but those of its orders, so no other order may hold some.
    fn is_blocked(&self) -> bool {
        !self.is_clear && self.queued > 0
    }
}

/// The progress of an order that took borrowed units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The order's rows are queued.
    Queued,
    /// The order is durable.
    Durable,
    /// A request with the order is being answered.
    Sent,
    /// The owner has entered the reservation. The row here is to be removed.
    Entered,
}

#[derive(Debug)]
struct Spent {
    store: u32,
    nonce: u64,
    lines: Box<[Line]>,
    progress: Progress,
}

/// Reservations of a store by messages, counted to find hot stores.
#[derive(Debug, Default)]
struct Demand {
    since_ms: u64,
    count: u32,
}

/// All allotments of a volume.
#[derive(Debug)]
pub(crate) struct Allotments {
    volume: NodeName,
    /// Number of the last incarnation that is durable in this volume.
    durable_incarnation: u64,
    /// The incarnation of this server. It must be durable before the first request.
    incarnation: u64,
    sequence: u64,
    stores: BTreeMap<u32, Allotment>,
    spent: BTreeMap<OrderId, Spent>,
    demand: BTreeMap<u32, Demand>,
    is_on: bool,
    /// Nothing is borrowed or used before this time, because slots of this volume migrate.
    suspended_until_ms: u64,
}

impl Allotments {
    /// Creates the allotments of a new server from the rows of its volume.
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

    /// Turns borrowing on or off. Units that are borrowed already are returned.
    pub(crate) fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

    /// Counts a reservation that a message made. A store with many of them is borrowed from.
    /// Returns `true` if there is an allotment of the store.
    pub(crate) fn note_reserved(&mut self, store: u32, lines: &[Line], now_ms: u64) -> bool {
        if !self.is_on {
            return false;
        }
        if self.stores.contains_key(&store) {
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
        let is_hot = demand.count >= HOT_AFTER && self.stores.len() < STORES_MAX;
        if is_hot {
            self.demand.remove(&store);
            let allotment = self.stores.entry(store).or_default();
            allotment.used_ms = now_ms;
            // The orders of a store spread over its products, so most cells are too rare to be
            // found one by one.
            allotment.asks_all = true;
            self.note_missing(store, lines, now_ms);
        }
        is_hot
    }

    /// Notes that an order found too few borrowed units.
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

    /// Returns `true` if borrowed units of a store suffice for an order.
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

    /// Takes borrowed units for an order. Returns `false` if they do not suffice.
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

    /// Ends a step that took borrowed units: the order is durable, or the units are usable again.
    /// Returns `true` if a request should be sent at once.
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
        for line in &spent.lines {
            allotment.cells.entry(line.id).or_default().usable += line.quantity;
        }
        self.spent.remove(order);
        false
    }

    /// Returns `true` if the owner does not know of the reservation of an order yet.
    pub(crate) fn is_unsettled(&self, order: &OrderId) -> bool {
        self.spent.contains_key(order)
    }

    /// Returns `true` if the owner does not know of the reservation of some order yet.
    pub(crate) fn any_unsettled(&self, is_asked: impl FnMut(&OrderId) -> bool) -> bool {
        self.spent.keys().any(is_asked)
    }

    /// Stops borrowing until a time, and has everything returned.
    pub(crate) fn suspend(&mut self, until_ms: u64) {
        self.suspended_until_ms = self.suspended_until_ms.max(until_ms);
    }

    /// Makes units unusable that their owner needs. The next request returns them.
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

    /// Returns `true` if there is nothing to tell to an owner, and no row to remove.
    pub(crate) fn is_idle(&self) -> bool {
        self.stores.is_empty() && self.spent.is_empty()
    }

    /// Returns the orders that their owners have entered, with their stores.
    pub(crate) fn entered(&self) -> Vec<(OrderId, u32)> {
        let entered = self.spent.iter();
        let entered = entered.filter(|(_, spent)| spent.progress == Progress::Entered);
        entered
            .map(|(order, spent)| (order.clone(), spent.store))
            .collect()
    }

    /// Forgets orders that have no rows any more.
    pub(crate) fn forget(&mut self, orders: &[(OrderId, u32)]) {
        for (order, _) in orders {
            self.spent.remove(order);
        }
    }

    /// Returns the incarnation to be made durable before the next request. `None` if it is.
    pub(crate) fn new_incarnation(&self) -> Option<u64> {
        (self.durable_incarnation < self.incarnation).then_some(self.incarnation)
    }

    /// Notes that an incarnation is durable.
    pub(crate) fn incarnation_is_durable(&mut self, incarnation: u64) {
        self.durable_incarnation = self.durable_incarnation.max(incarnation);
    }

    /// Begins an incarnation after one that an owner knows. All usable units are given up: the
    /// first request to each owner returns them.
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

    /// Returns the stores with an owner that must be asked now. Forgets allotments without content.
    /// `is_here` says that a store has come to this volume.
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

    /// Returns the request to a store's owner, which is kept until it is answered. `None` if there
    /// is none now.
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

    /// Takes the answer to a request. An answer to an earlier request changes nothing.
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
        for line in &request.wanted {
            if !granted.iter().any(|granted| granted.id == line.id)
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

    /// Returns the number of borrowed units that are usable now.
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

/// Units of one store that a volume holds.
#[cfg(test)]
pub(crate) struct Claims {
    pub(crate) incarnation: u64,
    /// Usable and recalled units by product.
    pub(crate) usable: BTreeMap<u32, u32>,
    /// Orders with units that no request has entered. An earlier server may have entered them.
    pub(crate) orders: Vec<SpentUnits>,
}

#[cfg(test)]
mod tests;
