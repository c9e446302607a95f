//! Findings of an audit. Each finding names the affected order, store and product, counter or part
//! of the log. The shop front is called the front.

use std::fmt;

use serde::Serialize;

use crate::wire::{MessageKind, OrderState};

/// A contradiction in the data that the audit compares: the data of the order management and the
/// warehouse, and the front's record and log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// The warehouse refused a delivery, because the store did not have the units.
    DeliveryRefused {
        /// Id of the order.
        order: String,
        /// Number of the store.
        store: u32,
        /// Number of the product with too few units.
        product: u32,
        /// Number of requested units.
        asked: u32,
        /// Number of units that the store had.
        there: u32,
    },
    /// A delivery in the warehouse's ledger has more units of a product than the store had.
    Oversold {
        /// Id of the order with the excessive delivery.
        order: String,
        /// Number of the store.
        store: u32,
        /// Number of the product.
        product: u32,
        /// Number of delivered units.
        delivered: u32,
        /// Number of units in stock before the delivery.
        there: u32,
    },
    /// More units are reserved than the warehouse has in the store.
    Overreserved {
        /// Number of the store.
        store: u32,
        /// Number of the product.
        product: u32,
        /// Number of units reserved and not yet delivered.
        reserved: u32,
        /// Number of units that the warehouse has in the store.
        there: u32,
    },
    /// The order management acknowledged a request about an order, but does not have this order.
    OrderMissing {
        /// Id of the order.
        order: String,
    },
    /// The order management lists an order more than once.
    OrderTwice {
        /// Id of the order.
        order: String,
    },
    /// The lines of an order differ from those of the front's request.
    OrderDiffers {
        /// Id of the order.
        order: String,
    },
    /// The order management acknowledged an order to the front, but the order is rejected.
    AcknowledgedRejected {
        /// Id of the order.
        order: String,
    },
    /// The request for an order was answered 409, but the order is not rejected.
    RejectedKept {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// The cancellation of an order was acknowledged, but the order is not cancelled.
    CancelLost {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// An order is in a state that this version of the simulator does not know.
    StateUnknown {
        /// Id of the order.
        order: String,
    },
    /// An order that has not ended has no store, although every order in the state `state` has one.
    StoreMissing {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// An acknowledged payment is not recorded in its order.
    PaymentLost {
        /// Id of the order.
        order: String,
        /// Transaction id of the acknowledged payment.
        acknowledged: u64,
        /// Transaction id of the payment that the order has; `None` without a payment.
        kept: Option<u64>,
    },
    /// The answer to a payment promised a refund, but the order does not list the payment for a
    /// refund.
    RefundLost {
        /// Id of the order.
        order: String,
        /// Transaction id of the payment.
        transaction: u64,
    },
    /// An order lists a payment for a refund more than once.
    RefundTwice {
        /// Id of the order.
        order: String,
        /// Transaction id of the payment.
        transaction: u64,
    },
    /// A paid order is not delivered, the outbox lacks the message that the order's state needs,
    /// and the payment is not marked for a refund.
    PaidNotDelivered {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// The outbox lacks the message that the state of an order without a payment needs.
    MessageMissing {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
        /// Kind of the missing message.
        kind: MessageKind,
    },
    /// A message of a paid order without a delivery waits in the outbox without a recorded error.
    /// No circuit breaker of the order management that could explain the wait is known to be open,
    /// and no call is known to be in flight before the first try of the message.
    WaitsWithoutReason {
        /// Id of the order.
        order: String,
        /// Kind of the message.
        kind: MessageKind,
    },
    /// An order was delivered more than once.
    DeliveredTwice {
        /// Id of the order.
        order: String,
        /// Number of deliveries.
        count: u32,
    },
    /// A delivery differs from the order in its products, its store or its payment.
    DeliveredOtherwise {
        /// Id of the order.
        order: String,
        /// The part of the delivery that differs: `products`, `store` or `transaction`.
        what: &'static str,
    },
    /// An order was delivered without a payment.
    DeliveredUnpaid {
        /// Id of the order.
        order: String,
    },
    /// The warehouse delivered an order that the order management does not have.
    DeliveredUnknown {
        /// Id of the order.
        order: String,
    },
    /// The order's state is delivered, but the warehouse's ledger has no delivery of the order.
    DeliveredOnPaper {
        /// Id of the order.
        order: String,
    },
    /// The warehouse delivered an order, but the order's state is not delivered. No delivery
    /// message in the outbox is left that could change the state.
    DeliveryForgotten {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// Units are reserved for an order that has ended or does not exist.
    ReservationOrphaned {
        /// Id of the order.
        order: String,
        /// Number of the store with the reservation.
        store: u32,
        /// State of the order; `None` if the order does not exist.
        state: Option<OrderState>,
    },
    /// An order has more than one reservation.
    ReservationTwice {
        /// Id of the order.
        order: String,
    },
    /// A reservation differs from its order in store or units.
    ReservationDiffers {
        /// Id of the order.
        order: String,
        /// Number of the store with the reservation.
        store: u32,
    },
    /// An open order with a store has no reservation.
    ReservationMissing {
        /// Id of the order.
        order: String,
        /// Number of the order's store, which should have the reservation.
        store: u32,
    },
    /// Order management and warehouse have different numbers of units of a product in a store.
    StockDiffers {
        /// Number of the store.
        store: u32,
        /// Number of the product.
        product: u32,
        /// Number of units on hand in the order management.
        kept: i64,
        /// Number of units that the warehouse has in the store.
        there: u32,
    },
    /// The order management counts another number of reserved units of a product in a store than
    /// its reservations have.
    ReservedDiffers {
        /// Number of the store.
        store: u32,
        /// Number of the product.
        product: u32,
        /// Number of reserved units by the stock of the store.
        kept: u32,
        /// Number of units in the listed reservations.
        listed: u64,
    },
    /// An order did not get the first store that had its units.
    StoreSkipped {
        /// Id of the order.
        order: String,
        /// Number of the store that the order got; `None` if the order was rejected.
        chosen: Option<u32>,
        /// Number of a store that certainly had the units. It is lower than `chosen`, if the order
        /// got a store.
        earlier: u32,
    },
    /// An event in an order's history is not permitted in the state before the event.
    TransitionIllegal {
        /// Id of the order.
        order: String,
        /// Name of the event.
        event: String,
        /// State of the order before the event; `Unknown` for the first event.
        state: OrderState,
    },
    /// The state of an order differs from the state after the last event of its history.
    StateDiffers {
        /// Id of the order.
        order: String,
        /// State of the order.
        state: OrderState,
        /// State after the last event of the order's history.
        expected: OrderState,
    },
    /// The log of requests shows a payment as acknowledged, but its order has no payment or is
    /// missing.
    PaymentUnkept {
        /// Id of the order.
        order: String,
    },
    /// The audit sent an order request again, twice. One of the two answers has a status other than
    /// 200, or their bodies differ.
    AnswerDiffers {
        /// Id of the order.
        order: String,
        /// HTTP status of the second answer.
        status: u16,
    },
    /// The log of requests and the front's record contain different acknowledged requests.
    LogDiffers {
        /// Kind of the requests: `orders`, `payments` or `cancellations`.
        what: &'static str,
        /// Number of orders with an acknowledged request of this kind in the log.
        logged: u64,
        /// Number of orders with an acknowledged request of this kind in the front's record.
        recorded: u64,
    },
    /// A node's counter of successful answers is below the number of successful answers in the log
    /// of requests.
    CounterShort {
        /// Name of the route.
        route: &'static str,
        /// Value of the node's counter of successful answers.
        counted: u64,
        /// Number of successful answers in the log of requests.
        logged: u64,
    },
    /// A counter differs from the length of the list of the counted items.
    CountDiffers {
        /// Name of the counter.
        what: String,
        /// Value of the counter.
        counted: u64,
        /// Number of items in the list.
        listed: u64,
    },
}

impl Finding {
    /// Returns the id of the order that the finding is about; `None` for a finding about a store, a
    /// counter or the log.
    pub fn order(&self) -> Option<&str> {
        match self {
            Self::DeliveryRefused { order, .. }
            | Self::Oversold { order, .. }
            | Self::OrderMissing { order }
            | Self::OrderTwice { order }
            | Self::OrderDiffers { order }
            | Self::AcknowledgedRejected { order }
            | Self::RejectedKept { order, .. }
            | Self::CancelLost { order, .. }
            | Self::StateUnknown { order }
            | Self::StoreMissing { order, .. }
            | Self::PaymentLost { order, .. }
            | Self::RefundLost { order, .. }
            | Self::RefundTwice { order, .. }
            | Self::PaidNotDelivered { order, .. }
            | Self::MessageMissing { order, .. }
            | Self::WaitsWithoutReason { order, .. }
            | Self::DeliveredTwice { order, .. }
            | Self::DeliveredOtherwise { order, .. }
            | Self::DeliveredUnpaid { order }
            | Self::DeliveredUnknown { order }
            | Self::DeliveredOnPaper { order }
            | Self::DeliveryForgotten { order, .. }
            | Self::ReservationOrphaned { order, .. }
            | Self::ReservationTwice { order }
            | Self::ReservationDiffers { order, .. }
            | Self::ReservationMissing { order, .. }
            | Self::StoreSkipped { order, .. }
            | Self::TransitionIllegal { order, .. }
            | Self::StateDiffers { order, .. }
            | Self::PaymentUnkept { order }
            | Self::AnswerDiffers { order, .. } => Some(order),
            Self::Overreserved { .. }
            | Self::StockDiffers { .. }
            | Self::ReservedDiffers { .. }
            | Self::LogDiffers { .. }
            | Self::CounterShort { .. }
            | Self::CountDiffers { .. } => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeliveryRefused {
                order,
                store,
                product,
                asked,
                there,
            } => write!(
                f,
                "order {order}: the warehouse refused to deliver {asked} of product {product} from store \
                 {store}, which has {there}"
            ),
            Self::Oversold {
                order,
                store,
                product,
                delivered,
                there,
            } => write!(
                f,
                "order {order}: {delivered} of product {product} were delivered from store {store}, which had \
                 {there}"
            ),
            Self::Overreserved {
                store,
                product,
                reserved,
                there,
            } => write!(
                f,
                "store {store}: {reserved} of product {product} are reserved, {there} are there"
            ),
            Self::OrderMissing { order } => write!(f, "order {order}: acknowledged, but it is gone"),
            Self::OrderTwice { order } => write!(f, "order {order}: listed more than once"),
            Self::OrderDiffers { order } => write!(f, "order {order}: its products differ from the request"),
            Self::AcknowledgedRejected { order } => {
                write!(f, "order {order}: acknowledged, then rejected")
            }
            Self::RejectedKept { order, state } => {
                write!(f, "order {order}: answered 409, but kept as {state}")
            }
            Self::CancelLost { order, state } => {
                write!(
                    f,
                    "order {order}: its cancellation was acknowledged, but it is {state}"
                )
            }
            Self::StateUnknown { order } => {
                write!(
                    f,
                    "order {order}: its state is unknown to this program; update imt"
                )
            }
            Self::StoreMissing { order, state } => write!(f, "order {order}: {state}, but it has no store"),
            Self::PaymentLost {
                order,
                acknowledged,
                kept: Some(kept),
            } => write!(
                f,
                "order {order}: payment {acknowledged} was acknowledged, {kept} is kept"
            ),
            Self::PaymentLost {
                order, acknowledged, ..
            } => write!(
                f,
                "order {order}: payment {acknowledged} was acknowledged, none is kept"
            ),
            Self::RefundLost { order, transaction } => write!(
                f,
                "order {order}: a refund of payment {transaction} was promised, none is recorded"
            ),
            Self::RefundTwice { order, transaction } => write!(
                f,
                "order {order}: payment {transaction} is recorded for a refund more than once"
            ),
            Self::PaidNotDelivered { order, state } => {
                write!(
                    f,
                    "order {order}: paid and {state}, but not delivered, and its message is missing"
                )
            }
            Self::MessageMissing { order, state, kind } => {
                write!(f, "order {order}: {state}, but its message ({kind}) is missing")
            }
            Self::WaitsWithoutReason { order, kind } => {
                write!(
                    f,
                    "order {order}: paid, its message ({kind}) waits in the outbox without a reason"
                )
            }
            Self::DeliveredTwice { order, count } => write!(f, "order {order}: delivered {count} times"),
            Self::DeliveredOtherwise { order, what } => {
                write!(
                    f,
                    "order {order}: the {what} of its delivery differs from the order"
                )
            }
            Self::DeliveredUnpaid { order } => write!(f, "order {order}: delivered, but not paid"),
            Self::DeliveredUnknown { order } => {
                write!(f, "order {order}: delivered, but unknown to the order management")
            }
            Self::DeliveredOnPaper { order } => {
                write!(f, "order {order}: delivered by its state, but not by the ledger")
            }
            Self::DeliveryForgotten { order, state } => write!(
                f,
                "order {order}: the warehouse has delivered it, but it is {state} and lacks a message"
            ),
            Self::ReservationOrphaned {
                order,
                store,
                state: Some(state),
            } => write!(
                f,
                "order {order}: {state}, but store {store} still reserves units for it"
            ),
            Self::ReservationOrphaned { order, store, .. } => {
                write!(
                    f,
                    "order {order}: unknown, but store {store} reserves units for it"
                )
            }
            Self::ReservationTwice { order } => {
                write!(f, "order {order}: units are reserved for it more than once")
            }
            Self::ReservationDiffers { order, store } => {
                write!(
                    f,
                    "order {order}: its reservation in store {store} differs from the order"
                )
            }
            Self::ReservationMissing { order, store } => {
                write!(
                    f,
                    "order {order}: open, but store {store} reserves nothing for it"
                )
            }
            Self::StockDiffers {
                store,
                product,
                kept,
                there,
            } => write!(
                f,
                "store {store}: {kept} of product {product} are on hand by the order management, {there} by the \
                 warehouse"
            ),
            Self::ReservedDiffers {
                store,
                product,
                kept,
                listed,
            } => write!(
                f,
                "store {store}: {kept} of product {product} are reserved by its stock, {listed} by its \
                 reservations"
            ),
            Self::StoreSkipped {
                order,
                chosen: Some(chosen),
                earlier,
            } => write!(
                f,
                "order {order}: it got store {chosen}, but store {earlier} had its units all the time"
            ),
            Self::StoreSkipped { order, earlier, .. } => write!(
                f,
                "order {order}: rejected, but store {earlier} had its units all the time"
            ),
            Self::TransitionIllegal { order, event, state } => write!(
                f,
                "order {order}: the event {event} is not legal in the state {state}"
            ),
            Self::StateDiffers {
                order,
                state,
                expected,
            } => write!(
                f,
                "order {order}: its state is {state}, but its history leads to {expected}"
            ),
            Self::PaymentUnkept { order } => {
                write!(f, "order {order}: its payment was acknowledged, and none is kept")
            }
            Self::AnswerDiffers { order, status } => write!(
                f,
                "order {order}: the same request again was answered otherwise (status {status})"
            ),
            Self::LogDiffers {
                what,
                logged,
                recorded,
            } => write!(
                f,
                "log: {logged} acknowledged {what} by the log, {recorded} by the front's record"
            ),
            Self::CounterShort {
                route,
                counted,
                logged,
            } => write!(
                f,
                "counter of {route}: the node has counted {counted} successes, the log has {logged}"
            ),
            Self::CountDiffers {
                what,
                counted,
                listed,
            } => write!(f, "counter of {what}: {counted} counted, {listed} listed"),
        }
    }
}
