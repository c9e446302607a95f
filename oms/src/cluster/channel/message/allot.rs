//! The bytes of a borrower's request about units of a store (`Question::Allot`), of its answer
//! (`Reply::Allotted`), and of a recall (`Question::Recall`).

use imt_ring::NodeName;

use crate::cluster::channel::message::Reply;
use crate::cluster::channel::wire::{Decoder, Encoder, WireError};
use crate::domain::loans::{AllotRequest, Recall, SpentUnits};
use crate::domain::order::Line;

/// Code of `Reply::Allotted`, the answer to `Question::Allot`.
pub(super) const REPLY: u8 = 14;

/// Appends the content of a `Question::Allot`.
pub(super) fn encode(request: &AllotRequest, to: &mut Encoder<'_>) {
    to.text(request.borrower.as_str());
    to.number(request.incarnation);
    to.number(request.sequence);
    to.number(u64::from(request.store));
    to.flag(request.clears);
    to.number(request.spent.len() as u64);
    for spent in &request.spent {
        to.text(spent.order.as_str());
        to.fixed_u64(spent.nonce);
        to.lines(&spent.lines);
    }
    to.lines(&request.returned);
    to.lines(&request.wanted);
    to.flag(request.wants_all);
}

/// Reads the content of a `Question::Allot`.
pub(super) fn decode(from: &mut Decoder<'_>) -> Result<AllotRequest, WireError> {
    let Ok(borrower) = NodeName::new(from.text("a volume")?) else {
        return from.fault("a volume");
    };
    let (incarnation, sequence) = (
        from.number("an incarnation")?,
        from.number("a number of a request")?,
    );
    let store = from.number_u32("a store")?;
    let clears = from.flag("a flag of units that are returned")?;
    // An element has at least 10 bytes: 1 for the length of the order's id, 8 for the nonce, 1 for
    // the number of lines.
    let count = from.count(10, "a number of orders")?;
    let spent = |_| {
        Ok(SpentUnits {
            order: from.order()?,
            nonce: from.fixed_u64("a nonce")?,
            lines: from.lines()?,
        })
    };
    let spent = (0..count).map(spent).collect::<Result<_, _>>()?;
    Ok(AllotRequest {
        borrower,
        incarnation,
        sequence,
        store,
        clears,
        spent,
        returned: from.lines()?.into_vec(),
        wanted: from.lines()?.into_vec(),
        wants_all: from.flag("a flag of all products")?,
    })
}

/// Appends the answer (`Reply::Allotted`) with its code.
pub(super) fn encode_reply(incarnation: u64, granted: &[Line], to: &mut Encoder<'_>) {
    to.byte(REPLY);
    to.number(incarnation);
    to.lines(granted);
}

/// Reads the answer (`Reply::Allotted`) without its code, which was read before.
pub(super) fn decode_reply(from: &mut Decoder<'_>) -> Result<Reply, WireError> {
    Ok(Reply::Allotted {
        incarnation: from.number("an incarnation")?,
        granted: from.lines()?.into_vec(),
    })
}

/// Appends the content of a `Question::Recall`.
pub(super) fn encode_recall(recall: &Recall, to: &mut Encoder<'_>) {
    to.number(u64::from(recall.store));
    to.number(recall.products.len() as u64);
    for product in &recall.products {
        to.number(u64::from(*product));
    }
}

/// Reads the content of a `Question::Recall`.
pub(super) fn decode_recall(from: &mut Decoder<'_>) -> Result<Recall, WireError> {
    let store = from.number_u32("a store")?;
    let count = from.count(1, "a number of products")?;
    let products = (0..count).map(|_| from.number_u32("a product"));
    Ok(Recall {
        store,
        products: products.collect::<Result<_, _>>()?,
    })
}
