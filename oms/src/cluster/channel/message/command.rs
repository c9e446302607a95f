//! The bytes of a command of a client (`Question::Command`).

use crate::cluster::channel::message::{Keyed, OrderCommand, OrderWork};
use crate::cluster::channel::wire::{Decoder, Encoder, WireError};
use crate::outbox::Kind;

impl OrderCommand {
    pub(super) fn encode(&self, to: &mut Encoder<'_>) {
        to.text(self.order.as_str());
        match &self.work {
            OrderWork::Place(lines) => {
                to.byte(1);
                to.lines(lines);
            }
            OrderWork::Pay(transaction) => {
                to.byte(2);
                to.number(*transaction);
            }
            OrderWork::Cancel => to.byte(3),
            OrderWork::Retry(kind) => {
                to.byte(4);
                to.text(kind.name());
            }
        }
        to.flag(self.is_repeated);
        to.flag(self.keyed.is_some());
        if let Some(keyed) = &self.keyed {
            to.text(&keyed.key);
            to.text(&keyed.path);
            to.blob(&keyed.body);
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<OrderCommand, WireError> {
        let order = from.order()?;
        let work = match from.byte("a kind of command")? {
            1 => OrderWork::Place(from.lines()?),
            2 => OrderWork::Pay(from.number("a transaction")?),
            3 => OrderWork::Cancel,
            4 => match Kind::from_name(from.text("a kind of message")?) {
                Some(kind) => OrderWork::Retry(kind),
                None => return from.fault("a kind of message"),
            },
            _ => return from.fault("a known kind of command"),
        };
        let is_repeated = from.flag("a flag of a repeated request")?;
        let keyed = match from.flag("a flag of a key")? {
            true => Some(Keyed {
                key: from.text("an idempotency key")?.to_owned(),
                path: from.text("a path")?.to_owned(),
                body: from.blob("a body")?,
            }),
            false => None,
        };
        Ok(OrderCommand {
            order,
            work,
            is_repeated,
            keyed,
        })
    }
}
