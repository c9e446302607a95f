//! Findings of an audit. Each names the order, store or product, so that a person can look there.

use std::fmt;

use serde::Serialize;

use crate::wire::{MessageKind, OrderState};

/// A contradiction between the two sides, or of one with the front's record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// The warehouse was asked to deliver units that it has not.
    DeliveryRefused {
        /// The order.
        order: String,
        /// The store asked.
        store: u32,
        /// The product that is short.
        product: u32,
        /// Units asked for.
        asked: u32,
        /// Units there.
        there: u32,
    },
    /// The ledger delivered more units than there were.
    Oversold {
        /// The order that took too much.
        order: String,
        /// The store.
        store: u32,
        /// The product.
        product: u32,
        /// Units delivered.
        delivered: u32,
        /// Units there.
        there: u32,
    },
    /// More units are reserved than the store really has.
    Overreserved {
        /// The store.
        store: u32,
        /// The product.
        product: u32,
        /// Units reserved and not yet delivered.
        reserved: u32,
        /// Units there.
        there: u32,
    },
    /// An acknowledged order is gone.
    OrderMissing {
        /// The order.
        order: String,
    },
    /// An order is listed more than once.
    OrderTwice {
        /// The order.
        order: String,
    },
    /// An order's content differs from the request.
    OrderDiffers {
        /// The order.
        order: String,
    },
    /// An order was acknowledged, then rejected.
    AcknowledgedRejected {
        /// The order.
        order: String,
    },
    /// An order is kept though its request was answered 409.
    RejectedKept {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// An acknowledged cancellation had no effect.
    CancelLost {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// An order is in a state that this program does not know.
    StateUnknown {
        /// The order.
        order: String,
    },
    /// An open order past its reservation has no store.
    StoreMissing {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// An acknowledged payment is not with its order.
    PaymentLost {
        /// The order.
        order: String,
        /// The payment acknowledged.
        acknowledged: u64,
        /// The payment the order has.
        kept: Option<u64>,
    },
    /// A paid order is neither delivered nor in the outbox.
    PaidNotDelivered {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// A message of a paid order waits without a reason.
    WaitsWithoutReason {
        /// The order.
        order: String,
        /// The message.
        kind: MessageKind,
    },
    /// An order was delivered more than once.
    DeliveredTwice {
        /// The order.
        order: String,
        /// Number of deliveries.
        count: u32,
    },
    /// A delivery differs from the order or its payment.
    DeliveredOtherwise {
        /// The order.
        order: String,
        /// The difference: `products`, `store` or `transaction`.
        what: &'static str,
    },
    /// An order was delivered without payment.
    DeliveredUnpaid {
        /// The order.
        order: String,
    },
    /// An order was delivered that the order management does not know.
    DeliveredUnknown {
        /// The order.
        order: String,
    },
    /// The order management says delivered, and the ledger has no delivery.
    DeliveredOnPaper {
        /// The order.
        order: String,
    },
    /// The warehouse delivered an order. The order management does not know that, and has no
    /// message left to learn it.
    DeliveryForgotten {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
    },
    /// Units are reserved for an order that has ended or does not exist.
    ReservationOrphaned {
        /// The order.
        order: String,
        /// The store.
        store: u32,
        /// The order's state; `None` if there is no such order.
        state: Option<OrderState>,
    },
    /// Units are reserved for an order more than once.
    ReservationTwice {
        /// The order.
        order: String,
    },
    /// The reservation differs from the order in store or units.
    ReservationDiffers {
        /// The order.
        order: String,
        /// The store.
        store: u32,
    },
    /// An open order has no reservation.
    ReservationMissing {
        /// The order.
        order: String,
        /// The store that should have the reservation.
        store: u32,
    },
    /// The order management has other units on hand than the warehouse.
    StockDiffers {
        /// The store.
        store: u32,
        /// The product.
        product: u32,
        /// Units on hand by the order management.
        kept: i64,
        /// Units in the warehouse.
        there: u32,
    },
    /// An order did not get the first store that had its units.
    StoreSkipped {
        /// The order.
        order: String,
        /// The store that it got; `None` if it was rejected.
        chosen: Option<u32>,
        /// A store before that one, which had the units all the time.
        earlier: u32,
    },
    /// An event of an order is not legal in the state before it.
    TransitionIllegal {
        /// The order.
        order: String,
        /// The event.
        event: String,
        /// The state before the event.
        state: OrderState,
    },
    /// The state of an order is not the one that its history leads to.
    StateDiffers {
        /// The order.
        order: String,
        /// State of the order.
        state: OrderState,
        /// The state that its history leads to.
        expected: OrderState,
    },
    /// A payment that the log acknowledges is not with its order.
    PaymentUnkept {
        /// The order.
        order: String,
    },
    /// A repeated request got another answer than the first one.
    AnswerDiffers {
        /// The order.
        order: String,
        /// Status of the answer to the repetition.
        status: u16,
    },
    /// The log of requests and the front's record disagree.
    LogDiffers {
        /// The acknowledged requests: `orders`, `payments` or `cancellations`.
        what: &'static str,
        /// Number by the log.
        logged: u64,
        /// Number by the record.
        recorded: u64,
    },
    /// A node has counted fewer answers than the log has.
    CounterShort {
        /// The route.
        route: &'static str,
        /// Answers by the node's counter.
        counted: u64,
        /// Answers by the log.
        logged: u64,
    },
    /// A counter disagrees with the list of the counted things.
    CountDiffers {
        /// The counter.
        what: String,
        /// Value of the counter.
        counted: u64,
        /// Length of the list.
        listed: u64,
    },
}

impl Finding {
    /// Returns the order that the finding is about; `None` if it is about a store or a counter.
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
            | Self::PaidNotDelivered { order, .. }
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
            Self::PaidNotDelivered { order, state } => {
                write!(
                    f,
                    "order {order}: paid and {state}, but neither delivered nor in the outbox"
                )
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
                "order {order}: the warehouse has delivered it, but it is {state} and nothing is in the outbox"
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
