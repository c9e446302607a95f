//! The warehouse's books: its state and its decisions, in memory only. The ledger on disk is in
//! `ledger.rs`.
//!
//! Every change of the books is an [`Entry`], except for the numbers of attempts and the marks of
//! confirmed deliveries, which the ledger does not contain. A decision reads the books and returns
//! an entry if the books must change. The caller then applies the entry and writes it to the
//! ledger. When a ledger is opened, the same code applies its entries again.
//!
//! Invariants:
//! - Units that are not in stock are never delivered, and every refusal is recorded.
//! - A delivery call with the idempotency key and the content of an earlier delivery gets the
//!   sequence number of this delivery, and takes no units. A call without a key is a new delivery.
//!   So if the order management repeats a call without its key, the audit finds an order that was
//!   delivered twice.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::stock::{self, Stock, StockShape};
use crate::seed::{Dice, Purpose};
use crate::summary::plural;
use crate::wire::{Delivery, Product, Refusal, Restock, WarehouseOrder};

/// Version of the ledger's format. A ledger of another version is refused.
pub(crate) const LEDGER_VERSION: u32 = 1;

/// An entry of the books, written as one line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Entry {
    /// The first line of the ledger. This line determines the stock with which the ledger begins.
    Begin {
        version: u32,
        seed: u64,
        /// The sequence number before the first delivery. The value is the time of creation in unix
        /// milliseconds, so that deliveries in a new ledger have higher numbers than those in an
        /// older ledger.
        base: u64,
        products: u32,
        stores: u32,
        /// See [`StockShape::units`]. Ledgers of earlier versions do not have this number.
        #[serde(default = "stock::units_usual")]
        units: u32,
    },
    /// The warehouse accepted the announcement of an order.
    Announced {
        order: String,
        store: u32,
        products: Vec<Product>,
    },
    /// The warehouse delivered an order from a store.
    Delivered {
        sequence: u64,
        order: String,
        store: u32,
        products: Vec<Product>,
        transaction_id: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// The warehouse refused a delivery, because the units are not in stock.
    Refused(Refusal),
    /// Goods arrived after the delivery with sequence number `after`, or before the first delivery
    /// if `after` is the ledger's `base`. Each element of `units` is a product, a store and the
    /// number of units that arrived for them.
    Restocked { after: u64, units: Vec<(u32, u32, u32)> },
}

/// Numbers of announced orders, deliveries and refused deliveries in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrderCounts {
    pub(crate) announced: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
}

/// Decision about an announcement.
#[derive(Debug, PartialEq)]
pub(crate) enum Announcement {
    /// The order is new. The caller must apply this entry and write it to the ledger.
    Enter(Entry),
    /// The order was announced before, with the same content.
    Known,
    /// The order was announced before, with other content.
    Conflict,
}

/// Decision about a delivery.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// The order can be delivered. The caller must apply this entry and write it to the ledger.
    Deliver(Entry),
    /// A delivery with this content was made before under this idempotency key. The values are the
    /// delivery's index in the books and its sequence number.
    Known(usize, u64),
    /// A delivery with other content was made before under this idempotency key.
    Conflict,
    /// The units are not in stock. The caller must apply this entry, which contains the refusal,
    /// and write it to the ledger.
    Refuse(Entry),
}

/// A delivery in the books.
#[derive(Debug)]
struct Booked {
    order: String,
    store: u32,
    products: Vec<Product>,
    transaction_id: u64,
    /// `true` if a call of this delivery was answered with a confirmation since the start of this
    /// process.
    answered: bool,
}

/// The books' data about one order.
#[derive(Debug, Default)]
struct OrderPage {
    announced: Option<(u32, Vec<Product>)>,
    deliveries: u32,
    announce_attempts: u32,
    delivery_attempts: u32,
}

/// The warehouse's books: stock, orders, deliveries, refusals and arrivals of goods.
#[derive(Debug)]
pub(crate) struct Books {
    seed: u64,
    base: u64,
    stock: Stock,
    announced: u64,
    orders: HashMap<String, OrderPage>,
    /// All deliveries, ordered by their sequence number, which is `base + 1 + index`.
    deliveries: Vec<Booked>,
    by_key: HashMap<String, usize>,
    refusals: Vec<Refusal>,
    restocks: Vec<Restock>,
    /// Number of [`Entry::Restocked`] entries that were applied. This number selects the random
    /// numbers of the next restocking.
    restockings: u64,
    /// Product and store of each quantity from which units were sold since it was last restocked.
    sold: BTreeSet<(u32, u32)>,
}

impl Books {
    /// Creates the books from the first entry of a ledger. Fails if this is no `Begin` entry, or
    /// one of another version.
    pub(crate) fn begin(entry: &Entry) -> Result<Self, String> {
        let Entry::Begin {
            version,
            seed,
            base,
            products,
            stores,
            units,
        } = *entry
        else {
            return Err("the first line must be the ledger's beginning".into());
        };
        if version != LEDGER_VERSION {
            return Err(format!(
                "this ledger has version {version}, this program knows {LEDGER_VERSION}"
            ));
        }
        let shape = StockShape {
            products,
            stores,
            units,
        };
        if let Some(problem) = shape.fault() {
            return Err(problem);
        }
        Ok(Self {
            seed,
            base,
            stock: Stock::first_day(seed, shape),
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

    /// Applies an entry to the books.
    ///
    /// # Errors
    /// The reason for which the entry contradicts the books. The books may be changed in part then.
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
                            "{} of product {product} for store {store}: no room",
                            plural(units.into(), "unit")
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
                    "order {order} took {} of product {} from store {store}, which has not as many",
                    plural(product.quantity.into(), "unit"),
                    product.id
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

    /// Decides about an announcement, without changing the books.
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

    /// Decides about a delivery, under its idempotency key if it has one, without changing the
    /// books.
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

    /// Returns a refusal for the first product of which the store has too few units; `None` if the
    /// store has all units. Several lines with the same product are added up.
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

    /// Marks a delivery as confirmed to a caller. Returns `true` if it was marked before.
    pub(crate) fn answer(&mut self, index: usize) -> bool {
        self.deliveries
            .get_mut(index)
            .is_some_and(|booked| std::mem::replace(&mut booked.answered, true))
    }

    /// Counts an attempt to announce an order. Returns the number of earlier attempts.
    pub(crate) fn count_announce_attempt(&mut self, order: &str) -> u32 {
        let page = self.orders.entry(order.to_owned()).or_default();
        page.announce_attempts += 1;
        page.announce_attempts - 1
    }

    /// Counts an attempt to deliver an order. Returns the number of earlier attempts.
    pub(crate) fn count_delivery_attempt(&mut self, order: &str) -> u32 {
        let page = self.orders.entry(order.to_owned()).or_default();
        page.delivery_attempts += 1;
        page.delivery_attempts - 1
    }

    /// Returns an entry that raises some of the quantities from which units were sold. Each of
    /// these quantities is chosen with probability one half, and raised to a random quantity from 1
    /// to [`StockShape::units`] if the present quantity is lower. So stores do not run empty in a
    /// long run. Returns `None` if no quantity is raised.
    pub(crate) fn restock(&self, seed: u64) -> Option<Entry> {
        let units_max = self.stock.shape().units;
        let mut dice = Dice::numbered(seed, Purpose::Restock, self.restockings);
        let units: Vec<_> = self
            .sold
            .iter()
            .filter_map(|&(product, store)| {
                let fresh = dice.between(1, units_max);
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

    /// Returns the sequence number of the last delivery, or `base` before the first delivery.
    pub(crate) fn sequence(&self) -> u64 {
        self.base + self.deliveries.len() as u64
    }

    /// Returns the seed of the stock with which the ledger begins.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the current stock.
    pub(crate) fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Returns the numbers of announced orders, deliveries and refused deliveries.
    pub(crate) fn counts(&self) -> OrderCounts {
        OrderCounts {
            announced: self.announced,
            delivered: self.deliveries.len() as u64,
            refused: self.refusals.len() as u64,
        }
    }

    /// Returns at most `limit` deliveries, from the index `from` on.
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
