//! The warehouse's books: its knowledge and its decisions, pure. The ledger on disk is `ledger.rs`.
//!
//! Every change of the books is an [`Entry`], applied in one way, live and when the ledger is read
//! again. A decision reads the books and returns the entry; the caller applies and writes it.
//!
//! Invariants:
//! - Units that are not in stock are never delivered, and every attempt is kept.
//! - A delivery repeated under its idempotency key is the same delivery. Without a key it is a
//!   second one, so that the audit finds an order management that forgets its keys.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::stock::{QUANTITY_MAX, Stock, StockShape};
use crate::seed::{Dice, Purpose};
use crate::wire::{Delivery, Product, Refusal, Restock, WarehouseOrder};

/// The ledger's version; one that reads it must know it.
pub(crate) const LEDGER_VERSION: u32 = 1;

/// An entry, which is a line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Entry {
    /// The ledger's first line: everything before the first delivery follows from it.
    Begin {
        version: u32,
        seed: u64,
        /// Deliveries are counted from here: unix milliseconds, so that a new ledger is ahead of an
        /// old one.
        base: u64,
        products: u32,
        stores: u32,
    },
    /// An order was taken into preparation.
    Announced {
        order: String,
        store: u32,
        products: Vec<Product>,
    },
    /// An order left the store.
    Delivered {
        sequence: u64,
        order: String,
        store: u32,
        products: Vec<Product>,
        transaction_id: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A delivery of units that are not in stock was refused.
    Refused(Refusal),
    /// Units came in: (product, store, units).
    Restocked { after: u64, units: Vec<(u32, u32, u32)> },
}

/// Numbers of orders in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrderCounts {
    pub(crate) announced: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
}

/// Decision about an announcement.
#[derive(Debug, PartialEq)]
pub(crate) enum Announcement {
    /// The order is new and is to be entered.
    Enter(Entry),
    /// The order was announced before, with this content.
    Known,
    /// The order was announced before with another content.
    Conflict,
}

/// Decision about a delivery.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// The order is to be delivered and entered.
    Deliver(Entry),
    /// Delivered before: place in the books, and sequence.
    Known(usize, u64),
    /// The idempotency key was used before for another content.
    Conflict,
    /// The units are not in stock: the refusal is to be entered.
    Refuse(Entry),
}

/// A delivery as booked.
#[derive(Debug)]
struct Booked {
    order: String,
    store: u32,
    products: Vec<Product>,
    transaction_id: u64,
    /// `true` if its success has been answered since this process began.
    answered: bool,
}

/// Knowledge of an order.
#[derive(Debug, Default)]
struct OrderPage {
    announced: Option<(u32, Vec<Product>)>,
    deliveries: u32,
    announce_attempts: u32,
    delivery_attempts: u32,
}

/// The warehouse's books.
#[derive(Debug)]
pub(crate) struct Books {
    seed: u64,
    base: u64,
    stock: Stock,
    announced: u64,
    orders: HashMap<String, OrderPage>,
    /// In the order of their sequence, which is `base + 1 + index`.
    deliveries: Vec<Booked>,
    by_key: HashMap<String, usize>,
    refusals: Vec<Refusal>,
    restocks: Vec<Restock>,
    /// Number of restockings.
    restockings: u64,
    /// Product and store of quantities that were sold from and not yet filled up.
    sold: BTreeSet<(u32, u32)>,
}

impl Books {
    /// Opens the books from the ledger's first entry.
    pub(crate) fn begin(entry: &Entry) -> Result<Self, String> {
        let Entry::Begin {
            version,
            seed,
            base,
            products,
            stores,
        } = *entry
        else {
            return Err("the first line must be the ledger's beginning".into());
        };
        if version != LEDGER_VERSION {
            return Err(format!(
                "this ledger has version {version}, this program knows {LEDGER_VERSION}"
            ));
        }
        Ok(Self {
            seed,
            base,
            stock: Stock::first_day(seed, StockShape { products, stores }),
            announced: 0,
            orders: HashMap::new(),
            deliveries: Vec::new(),
            by_key: HashMap::new(),
            refusals: Vec::new(),
            restocks: Vec::new(),
            restockings: 0,
            sold: BTreeSet::new(),
        })
    }

    /// Applies an entry, or returns the reason for which it contradicts the books.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Begin { .. } => return Err("a second beginning".into()),
            Entry::Announced {
                order,
                store,
                products,
            } => {
                let page = self.orders.entry(order.clone()).or_default();
                if page.announced.replace((*store, products.clone())).is_some() {
                    return Err(format!("order {order} was announced before"));
                }
                self.announced += 1;
            }
            Entry::Delivered { sequence, order, .. } => {
                if *sequence != self.sequence() + 1 {
                    return Err(format!(
                        "order {order} was delivered as {sequence}, after {}",
                        self.sequence()
                    ));
                }
                self.apply_delivery(entry)?;
            }
            Entry::Refused(refusal) => self.refusals.push(refusal.clone()),
            Entry::Restocked { after, units } => {
                for &(product, store, units) in units {
                    if !self.stock.put(product, store, units) {
                        return Err(format!(
                            "{units} units of product {product} for store {store}: no room"
                        ));
                    }
                    self.sold.remove(&(product, store));
                    self.restocks.push(Restock {
                        store,
                        product,
                        units,
                        after: *after,
                    });
                }
                self.restockings += 1;
            }
        }
        Ok(())
    }

    fn apply_delivery(&mut self, entry: &Entry) -> Result<(), String> {
        let Entry::Delivered {
            order,
            store,
            products,
            transaction_id,
            key,
            ..
        } = entry
        else {
            return Ok(());
        };
        for product in products {
            if !self.stock.take(product.id, *store, product.quantity) {
                return Err(format!(
                    "order {order} took {} units of product {} from store {store}, which has not as many",
                    product.quantity, product.id
                ));
            }
            self.sold.insert((product.id, *store));
        }
        if let Some(key) = key {
            self.by_key.insert(key.clone(), self.deliveries.len());
        }
        self.orders.entry(order.clone()).or_default().deliveries += 1;
        self.deliveries.push(Booked {
            order: order.clone(),
            store: *store,
            products: products.clone(),
            transaction_id: *transaction_id,
            answered: false,
        });
        Ok(())
    }

    /// Decides about an announcement.
    pub(crate) fn announce(&self, order: &WarehouseOrder) -> Announcement {
        match self
            .orders
            .get(&order.id)
            .and_then(|page| page.announced.as_ref())
        {
            None => Announcement::Enter(Entry::Announced {
                order: order.id.clone(),
                store: order.store_id,
                products: order.products.clone(),
            }),
            Some((store, products)) if *store == order.store_id && *products == order.products => {
                Announcement::Known
            }
            Some(_) => Announcement::Conflict,
        }
    }

    /// Decides about a delivery under its idempotency key.
    pub(crate) fn deliver(&self, order: &WarehouseOrder, key: Option<&str>) -> Decision {
        let transaction_id = order.transaction_id.unwrap_or_default();
        if let Some(&index) = key.and_then(|key| self.by_key.get(key)) {
            let known = &self.deliveries[index];
            let same = known.order == order.id
                && known.store == order.store_id
                && known.products == order.products
                && known.transaction_id == transaction_id;
            return if same {
                Decision::Known(index, self.base + 1 + index as u64)
            } else {
                Decision::Conflict
            };
        }
        if let Some(refusal) = self.shortage(order) {
            return Decision::Refuse(Entry::Refused(refusal));
        }
        Decision::Deliver(Entry::Delivered {
            sequence: self.sequence() + 1,
            order: order.id.clone(),
            store: order.store_id,
            products: order.products.clone(),
            transaction_id,
            key: key.map(str::to_owned),
        })
    }

    /// Returns the first product that the store is short of, counting all lines of the order.
    fn shortage(&self, order: &WarehouseOrder) -> Option<Refusal> {
        let mut asked: HashMap<u32, u32> = HashMap::new();
        order.products.iter().find_map(|product| {
            let sum = asked.entry(product.id).or_default();
            *sum = sum.saturating_add(product.quantity);
            let there = self.stock.get(product.id, order.store_id).unwrap_or_default();
            (*sum > there).then(|| Refusal {
                order: order.id.clone(),
                store: order.store_id,
                product: product.id,
                asked: *sum,
                there,
            })
        })
    }

    /// Notes that a delivery's success is being answered. Returns `true` if it was before.
    pub(crate) fn answer(&mut self, index: usize) -> bool {
        self.deliveries
            .get_mut(index)
            .is_some_and(|booked| std::mem::replace(&mut booked.answered, true))
    }

    /// Counts an attempt to announce an order. Returns the number of earlier ones.
    pub(crate) fn count_announce_attempt(&mut self, order: &str) -> u32 {
        let page = self.orders.entry(order.to_owned()).or_default();
        page.announce_attempts += 1;
        page.announce_attempts - 1
    }

    /// Counts an attempt to have an order delivered. Returns the number of earlier ones.
    pub(crate) fn count_delivery_attempt(&mut self, order: &str) -> u32 {
        let page = self.orders.entry(order.to_owned()).or_default();
        page.delivery_attempts += 1;
        page.delivery_attempts - 1
    }

    /// Returns an entry that raises about half of the quantities that were sold from, each to a new
    /// random quantity. So stores do not run empty in a long run. Returns `None` if none is raised.
    pub(crate) fn restock(&self, seed: u64) -> Option<Entry> {
        let mut dice = Dice::numbered(seed, Purpose::Restock, self.restockings);
        let units: Vec<_> = self
            .sold
            .iter()
            .filter_map(|&(product, store)| {
                let fresh = dice.between(1, QUANTITY_MAX);
                let chosen = dice.one_in(2);
                let there = self.stock.get(product, store)?;
                (chosen && fresh > there).then(|| (product, store, fresh - there))
            })
            .collect();
        (!units.is_empty()).then(|| Entry::Restocked {
            after: self.sequence(),
            units,
        })
    }

    /// Returns the sequence of the last delivery.
    pub(crate) fn sequence(&self) -> u64 {
        self.base + self.deliveries.len() as u64
    }

    /// Returns the seed of the first day's stock.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the current stock.
    pub(crate) fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Returns the numbers of orders in the books.
    pub(crate) fn counts(&self) -> OrderCounts {
        OrderCounts {
            announced: self.announced,
            delivered: self.deliveries.len() as u64,
            refused: self.refusals.len() as u64,
        }
    }

    /// Returns deliveries from a place in the books on.
    pub(crate) fn deliveries(&self, from: usize, limit: usize) -> Vec<Delivery> {
        let booked = self.deliveries.iter().enumerate().skip(from).take(limit);
        booked
            .map(|(index, booked)| Delivery {
                order: booked.order.clone(),
                store: booked.store,
                products: booked.products.clone(),
                transaction_id: booked.transaction_id,
                count: self.orders.get(&booked.order).map_or(0, |page| page.deliveries),
                sequence: self.base + 1 + index as u64,
            })
            .collect()
    }

    /// Returns all refusals.
    pub(crate) fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Returns all arrivals of goods.
    pub(crate) fn restocks(&self) -> &[Restock] {
        &self.restocks
    }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
