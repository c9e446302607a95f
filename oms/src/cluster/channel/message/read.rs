//! The bytes of a read of a client (`Question::Read`).

use crate::cluster::channel::message::Read;
use crate::cluster::channel::wire::{Decoder, Encoder, WireError};

impl Read {
    pub(super) fn encode(&self, to: &mut Encoder<'_>) {
        let (code, number) = match self {
            Read::Order(order) => {
                to.byte(1);
                return to.text(order.as_str());
            }
            Read::OrderHistory(order) => {
                to.byte(2);
                return to.text(order.as_str());
            }
            Read::StoreStock(store) => (3, *store),
            Read::ProductSales(product) => (4, *product),
            Read::TopSales(count) => (5, *count),
        };
        to.byte(code);
        to.number(u64::from(number));
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Read, WireError> {
        Ok(match from.byte("a kind of read")? {
            1 => Read::Order(from.order()?),
            2 => Read::OrderHistory(from.order()?),
            3 => Read::StoreStock(from.number_u32("a store")?),
            4 => Read::ProductSales(from.number_u32("a product")?),
            5 => Read::TopSales(from.number_u32("a number of products")?),
            _ => return from.fault("a known kind of read"),
        })
    }
}
