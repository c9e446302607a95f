//! Behaviour of the customers: baskets, popularity of products, payments and cancellations.
//!
//! Invariants:
//! - The content of an order depends only on the seed, the settings of products, baskets and mix,
//!   and the number of statistics requests and orders before it. In a replay, it depends on the
//!   number of the order instead. Shares of late payments, repetitions or cancellations never
//!   change a basket, because they use a separate random stream.
//! - The defaults are those of the original system, from which this project grew. An order has two
//!   of 1,000 products, with 1 to 5 units each. Transaction ids are 1 to 10,000. A payment is sent
//!   2 to 4 s after its order, in steps of 0.125 s.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::seed::Dice;
use crate::wire::{NewOrder, Product};

/// Largest number of lines of an order.
pub const BASKET_MAX: usize = 8;
/// Largest transaction id.
const TRANSACTION_MAX: u32 = 10_000;
/// Delay of a payment after its order, milliseconds: the minimum, plus 0 to 16 steps.
const PAYMENT_AFTER_MIN_MS: u32 = 2_000;
const PAYMENT_STEP_MS: u32 = 125;
const PAYMENT_STEPS: u32 = 17;
/// Time by which a payment ahead of its order starts before the order.
pub(super) const EARLY_BY: Duration = Duration::from_millis(100);
/// Maximum time from a payment to its repetition, milliseconds.
const REPEAT_WITHIN_MS: u32 = 500;
/// Smallest and largest delay of a cancellation after its order, milliseconds. Both delays are
/// shorter than the usual delay of a payment.
const CANCEL_AFTER_MS: (u32, u32) = (500, 1_500);

/// The lines of an order, at most [`BASKET_MAX`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Basket {
    lines: [Product; BASKET_MAX],
    len: u8,
}

impl Basket {
    /// Returns a basket with these lines. Lines after the first [`BASKET_MAX`] are left out.
    pub fn new(products: &[Product]) -> Self {
        let mut lines = [Product { id: 0, quantity: 0 }; BASKET_MAX];
        let len = products.len().min(BASKET_MAX);
        lines[..len].copy_from_slice(&products[..len]);
        Self {
            lines,
            len: len as u8,
        }
    }
}

impl Deref for Basket {
    type Target = [Product];

    fn deref(&self) -> &[Product] {
        &self.lines[..self.len.into()]
    }
}

impl fmt::Debug for Basket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Distribution of the products in orders and statistics requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Popularity {
    /// Each product has the same probability.
    #[default]
    Uniform,
    /// Product `k` has a probability proportional to `1 / k^exponent` (Zipf's law).
    Zipf(Zipf),
}

/// Cumulative probabilities of the products 1, 2, ... under Zipf's law.
#[derive(Debug, Clone, PartialEq)]
pub struct Zipf {
    /// Exponent of Zipf's law. A larger exponent concentrates the requests on fewer products.
    exponent: f64,
    cumulative: Arc<[f64]>,
}

impl Zipf {
    /// Returns the distribution for products 1 to `products`. The distribution takes 8 bytes of
    /// memory per product.
    pub fn new(products: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=products).map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        });
        let mut cumulative: Vec<f64> = weights.collect();
        for value in &mut cumulative {
            *value /= sum;
        }
        Self {
            exponent,
            cumulative: cumulative.into(),
        }
    }

    /// Returns the exponent.
    pub fn exponent(&self) -> f64 {
        self.exponent
    }

    fn draw(&self, dice: &mut Dice) -> u32 {
        let drawn = dice.unit();
        let rank = self.cumulative.partition_point(|upto| *upto < drawn);
        rank.min(self.cumulative.len() - 1) as u32 + 1
    }
}

/// Shares of orders with unusual payments or cancellations, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Habits {
    /// Share of orders that are never paid, among those that are not cancelled.
    pub never_paid: f64,
    /// Share of orders with a payment that is sent twice, among those that are paid.
    pub paid_twice: f64,
    /// Share of orders with a payment that comes `late_by` later than usual, among those that are
    /// paid.
    pub paid_late: f64,
    /// Additional delay of a late payment.
    pub late_by: Duration,
    /// Share of orders with one more payment, which is sent before the order, among those that are
    /// paid.
    pub paid_before: f64,
    /// Share of orders that are cancelled 0.5 to 1.5 s after they were sent, and never paid.
    pub cancelled: f64,
}

/// Behaviour of all customers. `Default` gives the behaviour in the original system.
#[derive(Debug, Clone, PartialEq)]
pub struct Customers {
    /// Weight of statistics requests in the mix, relative to `order_parts`.
    pub stats_parts: u32,
    /// Weight of orders in the mix, relative to `stats_parts`.
    pub order_parts: u32,
    /// Number of products to choose from, numbered from 1.
    pub products: u32,
    /// Distribution of the products in orders and statistics requests.
    pub popularity: Popularity,
    /// Smallest number of lines of an order.
    pub basket_min: u32,
    /// Largest number of lines of an order.
    pub basket_max: u32,
    /// Largest number of units of a line.
    pub units_max: u32,
    /// Shares of orders with unusual payments or cancellations.
    pub habits: Habits,
}

impl Default for Customers {
    fn default() -> Self {
        Self {
            stats_parts: 10,
            order_parts: 2,
            products: 1_000,
            popularity: Popularity::Uniform,
            basket_min: 2,
            basket_max: 2,
            units_max: 5,
            habits: Habits::default(),
        }
    }
}

impl Customers {
    /// Returns the first setting that cannot be used, with the reason; `None` if all can be used.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let habits = &self.habits;
        let shares = [
            ("never_paid", habits.never_paid),
            ("paid_twice", habits.paid_twice),
            ("paid_late", habits.paid_late),
            ("paid_before", habits.paid_before),
            ("cancelled", habits.cancelled),
        ];
        let wrong_share = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share));
        if let Some((name, share)) = wrong_share {
            return Some((name, format!("{share} is not a share from 0 to 1")));
        }
        if self.products == 0 || self.products > 10_000_000 {
            return Some(("products", "must be from 1 to 10,000,000".to_owned()));
        }
        let parts = u64::from(self.stats_parts) + u64::from(self.order_parts);
        if parts == 0 || parts > u64::from(u32::MAX) {
            return Some(("mix", "must have at least one part".to_owned()));
        }
        let largest = (BASKET_MAX as u32).min(self.products);
        if self.basket_min == 0 || self.basket_min > self.basket_max || self.basket_max > largest {
            let reason = format!("must be from 1 to {largest} lines, the smaller number first");
            return Some(("basket", reason));
        }
        if self.units_max == 0 {
            return Some(("units", "must be at least 1".to_owned()));
        }
        if let Popularity::Zipf(zipf) = &self.popularity
            && (!(zipf.exponent > 0.0 && zipf.exponent <= 10.0)
                || zipf.cumulative.len() != self.products as usize)
        {
            return Some((
                "popularity",
                "the exponent must be above 0 and at most 10".to_owned(),
            ));
        }
        None
    }

    pub(super) fn draw_product(&self, dice: &mut Dice) -> u32 {
        match &self.popularity {
            Popularity::Uniform => dice.between(1, self.products),
            Popularity::Zipf(zipf) => zipf.draw(dice),
        }
    }

    fn draw_basket(&self, dice: &mut Dice) -> Basket {
        let len = match self.basket_min == self.basket_max {
            true => self.basket_min,
            false => dice.between(self.basket_min, self.basket_max),
        };
        // The product ids drawn so far, in ascending order. A uniformly drawn number counts only
        // the products that are not drawn yet. One pass over these ids converts the number to a
        // product id.
        let mut drawn: Vec<u32> = Vec::with_capacity(BASKET_MAX);
        let mut ids: Vec<u32> = Vec::with_capacity(BASKET_MAX);
        for taken in 0..len {
            let id = match &self.popularity {
                Popularity::Uniform => {
                    let mut id = dice.between(1, self.products - taken);
                    for other in &drawn {
                        id += u32::from(*other <= id);
                    }
                    id
                }
                Popularity::Zipf(zipf) => {
                    let mut id = zipf.draw(dice);
                    // A product that was already drawn is replaced by the product with the next
                    // free id. So the loop ends even if nearly all draws give the same product.
                    while ids.contains(&id) {
                        id = id % self.products + 1;
                    }
                    id
                }
            };
            let place = drawn.partition_point(|other| *other < id);
            drawn.insert(place, id);
            ids.push(id);
        }
        let lines: Vec<Product> = ids
            .into_iter()
            .map(|id| Product {
                id,
                quantity: dice.between(1, self.units_max),
            })
            .collect();
        Basket::new(&lines)
    }
}

/// An order that the shop front will send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedOrder {
    /// Id of the order, which is also the id of its request.
    pub id: u64,
    /// Lines of the order.
    pub products: Basket,
    /// Transaction id of the order's payments.
    pub transaction_id: u32,
    /// Number of payments and cancellations that wait for the answer to the order.
    pub follow_ups: u8,
    /// `true` if a payment is planned after the order; in a replay, `true` if the replayed log has
    /// a payment of the order.
    pub is_paid: bool,
}

impl PlannedOrder {
    /// Returns the body of `POST /order`.
    pub fn to_wire(&self) -> NewOrder {
        NewOrder {
            id: self.id.to_string(),
            products: self.products.to_vec(),
        }
    }
}

/// Draws the content of an order. Also returns the usual delay of its payment.
pub(crate) fn plan_order(dice: &mut Dice, id: u64, customers: &Customers) -> (PlannedOrder, Duration) {
    let products = customers.draw_basket(dice);
    let transaction_id = dice.between(1, TRANSACTION_MAX);
    let after_ms = PAYMENT_AFTER_MIN_MS + PAYMENT_STEP_MS * dice.below(PAYMENT_STEPS);
    let order = PlannedOrder {
        id,
        products,
        transaction_id,
        follow_ups: 0,
        is_paid: false,
    };
    (order, Duration::from_millis(after_ms.into()))
}

/// The payments and the cancellation of an order, with their delays after the start of the order;
/// `None` for a request that is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Course {
    /// `true` if a payment precedes the order by [`EARLY_BY`].
    pub(super) has_early_payment: bool,
    pub(super) payment_after: Option<Duration>,
    pub(super) repeated_after: Option<Duration>,
    pub(super) cancel_after: Option<Duration>,
}

impl Habits {
    /// Draws the payments and the cancellation of an order. Each call draws the same number of
    /// random values, so a change of one share does not change the draws for the other shares.
    pub(super) fn draw(&self, dice: &mut Dice, usual: Duration) -> Course {
        let mut happens = |share: f64| dice.unit() <= share;
        let is_never_paid = happens(self.never_paid);
        let is_paid_twice = happens(self.paid_twice);
        let is_paid_late = happens(self.paid_late);
        let is_paid_before = happens(self.paid_before);
        let is_cancelled = happens(self.cancelled);
        let repeat_ms = dice.between(1, REPEAT_WITHIN_MS);
        let cancel_ms = dice.between(CANCEL_AFTER_MS.0, CANCEL_AFTER_MS.1);
        let late_by = if is_paid_late {
            self.late_by
        } else {
            Duration::ZERO
        };
        let payment_after = (!is_never_paid && !is_cancelled).then(|| usual + late_by);
        Course {
            has_early_payment: is_paid_before && payment_after.is_some(),
            payment_after,
            repeated_after: payment_after
                .filter(|_| is_paid_twice)
                .map(|after| after + Duration::from_millis(repeat_ms.into())),
            cancel_after: is_cancelled.then(|| Duration::from_millis(cancel_ms.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Purpose;
    use std::collections::HashSet;

    fn dice() -> Dice {
        Dice::new(5, Purpose::Requests)
    }

    #[test]
    fn baskets_have_distinct_products_of_every_wanted_size() {
        for popularity in [Popularity::Uniform, Popularity::Zipf(Zipf::new(10, 1.2))] {
            let customers = Customers {
                products: 10,
                basket_min: 1,
                basket_max: 8,
                popularity,
                ..Customers::default()
            };
            assert_eq!(customers.fault(), None);
            let mut dice = dice();
            let mut sizes = HashSet::new();
            let mut seen = HashSet::new();
            for id in 0..2_000 {
                let (order, _) = plan_order(&mut dice, id, &customers);
                let ids: HashSet<u32> = order.products.iter().map(|product| product.id).collect();
                assert_eq!(ids.len(), order.products.len(), "{order:?}");
                assert!(
                    order.products.iter().all(|p| (1..=10).contains(&p.id)),
                    "{order:?}"
                );
                sizes.insert(ids.len());
                seen.extend(ids);
            }
            assert_eq!((sizes.len(), seen.len()), (8, 10));
        }
    }

    #[test]
    fn zipf_makes_a_product_as_likely_as_its_law_says() {
        let zipf = Zipf::new(100, 1.0);
        let mut dice = dice();
        let mut counts = [0_u32; 101];
        for _ in 0..100_000 {
            counts[zipf.draw(&mut dice) as usize] += 1;
        }
        // The expected counts are 100,000 draws divided by the rank of the product and by 5.187,
        // the 100th harmonic number.
        for (product, expected) in [(1, 19_278.0), (2, 9_639.0), (10, 1_928.0), (100, 193.0)] {
            let found = f64::from(counts[product]);
            assert!(
                (found - expected).abs() < 6.0 * f64::sqrt(expected),
                "{product}: {found}"
            );
        }
        assert_eq!(counts[0], 0);
    }

    #[test]
    fn habits_happen_as_often_as_their_shares_say_and_leave_the_others_alone() {
        let habits = Habits {
            never_paid: 0.1,
            paid_twice: 0.2,
            paid_late: 0.3,
            late_by: Duration::from_secs(20),
            paid_before: 0.4,
            cancelled: 0.05,
        };
        let usual = Duration::from_secs(3);
        let courses: Vec<Course> = {
            let mut dice = dice();
            (0..20_000).map(|_| habits.draw(&mut dice, usual)).collect()
        };
        let share = |is: &dyn Fn(&Course) -> bool| {
            courses.iter().filter(|course| is(course)).count() as f64 / courses.len() as f64
        };
        let is_near = |found: f64, expected: f64| (found - expected).abs() < 0.02;
        assert!(is_near(share(&|c| c.payment_after.is_none()), 1.0 - 0.9 * 0.95));
        assert!(is_near(share(&|c| c.repeated_after.is_some()), 0.2 * 0.9 * 0.95));
        assert!(is_near(share(&|c| c.has_early_payment), 0.4 * 0.9 * 0.95));
        assert!(is_near(share(&|c| c.cancel_after.is_some()), 0.05));
        let late = |c: &Course| {
            c.payment_after
                .is_some_and(|after| after >= Duration::from_secs(20))
        };
        assert!(is_near(share(&late), 0.3 * 0.9 * 0.95));

        let without = Habits::default();
        let mut dice = dice();
        let course = without.draw(&mut dice, usual);
        assert_eq!(course.payment_after, Some(usual));
        assert_eq!((course.repeated_after, course.cancel_after), (None, None));
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let change = |change: fn(&mut Customers)| {
            let mut customers = Customers::default();
            change(&mut customers);
            customers.fault().map(|(setting, _)| setting)
        };
        assert_eq!(change(|_| {}), None);
        assert_eq!(change(|c| c.products = 1), Some("basket"));
        assert_eq!(change(|c| c.basket_max = 9), Some("basket"));
        assert_eq!(change(|c| c.basket_min = 3), Some("basket"));
        assert_eq!(change(|c| c.units_max = 0), Some("units"));
        assert_eq!(change(|c| (c.stats_parts, c.order_parts) = (0, 0)), Some("mix"));
        assert_eq!(change(|c| c.habits.cancelled = 1.5), Some("cancelled"));
        assert_eq!(change(|c| c.habits.paid_late = f64::NAN), Some("paid_late"));
        let zipf = |c: &mut Customers| c.popularity = Popularity::Zipf(Zipf::new(1_000, 0.0));
        assert_eq!(change(zipf), Some("popularity"));
    }
}
