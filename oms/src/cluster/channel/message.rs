//! The messages between nodes: requests about one volume, and their answers.
//!
//! A request has an id, the name of its volume, the epoch of the ring by which it was routed, and a
//! deadline. The deadline is the time that its sender waits for the answer. An answer has the id of
//! its request and an epoch.
//!
//! Decoding checks every length and code. An unknown code is an error and ends the connection. An
//! unknown code cannot come from another version of the protocol, because the handshake refuses
//! other versions.

mod allot;
mod command;
mod read;

use bytes::Bytes;
use imt_ring::NodeName;
use serde::{Deserialize, Serialize};

use crate::cluster::channel::wire::{Decoder, Encoder, WireError};
use crate::domain::loans::{AllotRequest, Recall};
use crate::domain::order::{Line, OrderId};
use crate::domain::settlement::Settlement;
use crate::outbox::Kind;
use crate::runtime::trace::TraceContext;

/// Code of a request that carries a trace context.
const TRACED: u8 = 32;

/// A request about one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Id of the request, unique on its connection; 0 for a request without an answer.
    pub(crate) id: u64,
    pub(crate) volume: NodeName,
    /// Epoch of the ring by which the request was routed.
    pub(crate) epoch: u64,
    /// Time in milliseconds that the sender waits for the answer; 0 for a request without an
    /// answer.
    pub(crate) deadline_ms: u32,
    pub(crate) question: Question,
}

/// The content of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Execute a client's command to one order.
    Command(OrderCommand),
    /// Execute a client's read.
    Read(Read),
    /// Find the volume's store with the lowest id that has all these units. Units that an earlier
    /// attempt reserved for the same lines of this order count as available, unless a newer stock
    /// lacks them.
    FindStore { order: OrderId, lines: Box<[Line]> },
    /// Reserve units for an order of another volume.
    Reserve(Reserve),
    /// Confirm that the order of a reservation is durable. This request has no answer.
    Confirm(Confirm),
    /// End a reservation, because its units were delivered or released.
    Settle { order: OrderId, settlement: Settlement },
    /// Ask the order's volume if the order still has its reservation in this store.
    Keeps { order: OrderId, store: u32 },
    /// Read the changes of available quantities since a `StockPosition`.
    FollowStock(FollowStock),
    /// Read the available quantities of rows of the stock matrix, from `first_row` on.
    ReadStock(ReadStock),
    /// Make usual reservations for the borrower's orders that took lent units, take returned units
    /// back, and lend other units.
    Allot(AllotRequest),
    /// Ask the borrower to return borrowed units. This request has no answer.
    Recall(Recall),
    /// Any other request, together with the trace context of the client's request that caused it.
    Traced(TraceContext, Box<Question>),
}

/// A client's read that one volume executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Read {
    /// The current state of an order.
    Order(OrderId),
    /// The events of an order.
    OrderHistory(OrderId),
    /// The stock of one store.
    StoreStock(u32),
    /// The sales of one product.
    ProductSales(u32),
    /// The given number of products with the highest revenue.
    TopSales(u32),
}

/// A client's command to one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderCommand {
    pub(crate) order: OrderId,
    pub(crate) work: OrderWork,
    /// `true` if an earlier try of the client's request was refused or had no answer.
    pub(crate) is_repeated: bool,
    /// The idempotency key of the client's request, with its path and body; `None` without a key.
    pub(crate) keyed: Option<Keyed>,
}

/// The kind of command, with its parsed content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OrderWork {
    Place(Box<[Line]>),
    Pay(u64),
    Cancel,
    Retry(Kind),
}

/// A client's request with an idempotency key. A repeated request with the same key must have the
/// same path and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keyed {
    pub(crate) key: String,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

/// A request to reserve units of a store for an order of another volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserve {
    pub(crate) order: OrderId,
    /// Random number that distinguishes this reservation from other reservations of the same order.
    pub(crate) nonce: u64,
    pub(crate) store: u32,
    pub(crate) lines: Box<[Line]>,
}

/// Identifies a reservation, to tell the store's volume that the order of the reservation is
/// durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confirm {
    pub(crate) order: OrderId,
    pub(crate) nonce: u64,
    pub(crate) store: u32,
}

/// A position in the sequence of changes of a volume's available quantities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StockPosition {
    /// Random number of the volume server. Each new server of the volume has another number.
    pub(crate) incarnation: u64,
    /// Number that grows when the list of changes begins again: after cells were added to the stock
    /// matrix or removed, after all quantities were replaced, and when the volume server begins to
    /// record changes.
    pub(crate) generation: u64,
    /// Number of changes of single cells that the volume server has recorded so far, in all
    /// generations.
    pub(crate) changes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FollowStock {
    /// Random number that identifies the copy for which the changes are requested.
    pub(crate) follower: u64,
    pub(crate) known: Option<StockPosition>,
    /// `true` if the answer may wait for the next change; `false` for an immediate answer.
    pub(crate) waits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadStock {
    pub(crate) follower: u64,
    pub(crate) incarnation: u64,
    pub(crate) generation: u64,
    pub(crate) first_row: u32,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    /// Epoch of the ring of the answering node, or of the volume in an answer to `FollowStock`. 0
    /// if the node dropped the request.
    pub(crate) epoch: u64,
    pub(crate) reply: Reply,
}

/// The content of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The request cannot be answered here, and may be routed again. For example, the node does not
    /// serve the volume, the slot is sealed or elsewhere, the volume follows another ring, or the
    /// deadline has passed.
    Moved,
    /// The request cannot be executed now. Contains the reason.
    Busy(String),
    /// The node failed to execute the request. Contains the reason.
    Failed(String),
    /// The answer is too large for the channel. The caller of a `Read` repeats it over HTTP/2.
    TooLarge,
    /// Answer to `Command` and `Read`: the HTTP response for the client.
    Http(HttpReply),
    /// Answer to `FindStore`: the store with the lowest id that has the units. `None` if no store
    /// of the volume has them.
    FoundStore(Option<u32>),
    /// Answer to `Reserve`: the reservation is durable.
    Reserved,
    /// Answer to `Reserve`: the store has too few units. Contains the available quantities of the
    /// requested products.
    Short(Vec<Cell>),
    /// Answer to `Settle`: the end of the reservation is durable.
    Settled,
    /// Answer to `Keeps`: `true` if the order still has the reservation. Within a process also the
    /// result of `Confirm` and `Recall`, which have no answer on the channel.
    Kept(bool),
    /// Answer to `FollowStock`: the new position, and the cells that changed since the position in
    /// the request.
    StockChanges(StockPosition, Vec<Cell>),
    /// Answer to `FollowStock`: the request has no position, or the volume server cannot list the
    /// changes since that position. The copy must read all quantities with `ReadStock`.
    StockLayout(StockLayout),
    /// Answer to `ReadStock`: the available quantities of whole rows of the stock matrix from
    /// `first_row` on, row by row, with one quantity per store (no padding). Empty if there is no
    /// such row.
    StockRows(Vec<i32>),
    /// Answer to `Allot`. If `incarnation` is that of the request, the request was executed and
    /// `granted` are the lent units. Otherwise the request is outdated, and the borrower must begin
    /// an incarnation after `incarnation`.
    Allotted { incarnation: u64, granted: Vec<Line> },
}

/// An HTTP response for a client, produced by the owner of the order, store or statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpReply {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) retry_after: Option<String>,
    pub(crate) replayed: bool,
    pub(crate) body: Bytes,
}

/// The available quantity of one product in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// In a change of stock, the cell's index `row * width + column` in the stock matrix. `width`
    /// is the number of stores, rounded up to a multiple of `LANES`. In `Short`, the id of the
    /// product.
    pub(crate) at: u32,
    pub(crate) available: i32,
}

/// The rows and columns of a volume's stock matrix at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StockLayout {
    pub(crate) position: StockPosition,
    /// The store of each column, in ascending order.
    pub(crate) stores: Vec<u32>,
    /// The product of each row.
    pub(crate) products: Vec<u32>,
}

impl Request {
    /// Creates a request that has no answer.
    pub(crate) fn without_answer(volume: &NodeName, epoch: u64, question: Question) -> Request {
        Request {
            id: 0,
            volume: volume.clone(),
            epoch,
            deadline_ms: 0,
            question,
        }
    }

    /// Appends the encoded request to `bytes`.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let mut to = Encoder(bytes);
        to.byte(b'Q');
        to.number(self.id);
        to.text(self.volume.as_str());
        to.number(self.epoch);
        to.number(u64::from(self.deadline_ms));
        self.question.encode(&mut to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Request, WireError> {
        let id = from.number("a request id")?;
        let Ok(volume) = NodeName::new(from.text("a volume")?) else {
            return from.fault("a volume");
        };
        Ok(Request {
            id,
            volume,
            epoch: from.number("an epoch")?,
            deadline_ms: from.number_u32("a deadline")?,
            question: Question::decode(from)?,
        })
    }
}

impl Question {
    fn encode(&self, to: &mut Encoder<'_>) {
        match self {
            Question::Command(command) => {
                to.byte(1);
                command.encode(to);
            }
            Question::Read(read) => {
                to.byte(2);
                read.encode(to);
            }
            Question::FindStore { order, lines } => {
                to.byte(3);
                to.text(order.as_str());
                to.lines(lines);
            }
            Question::Reserve(Reserve {
                order,
                nonce,
                store,
                lines,
            }) => {
                to.byte(4);
                to.text(order.as_str());
                to.fixed_u64(*nonce);
                to.number(u64::from(*store));
                to.lines(lines);
            }
            Question::Confirm(Confirm { order, nonce, store }) => {
                to.byte(5);
                to.text(order.as_str());
                to.fixed_u64(*nonce);
                to.number(u64::from(*store));
            }
            Question::Settle { order, settlement } => {
                to.byte(6);
                to.text(order.as_str());
                to.number(u64::from(settlement.store));
                to.lines(&settlement.lines);
                to.flag(settlement.delivered);
                to.optional(settlement.sequence);
            }
            Question::Keeps { order, store } => {
                to.byte(7);
                to.text(order.as_str());
                to.number(u64::from(*store));
            }
            Question::FollowStock(follow) => {
                to.byte(8);
                to.fixed_u64(follow.follower);
                to.flag(follow.known.is_some());
                if let Some(known) = &follow.known {
                    known.encode(to);
                }
                to.flag(follow.waits);
            }
            Question::ReadStock(read) => {
                to.byte(9);
                to.fixed_u64(read.follower);
                to.fixed_u64(read.incarnation);
                to.number(read.generation);
                to.number(u64::from(read.first_row));
            }
            Question::Allot(request) => {
                to.byte(10);
                allot::encode(request, to);
            }
            Question::Recall(recall) => {
                to.byte(11);
                allot::encode_recall(recall, to);
            }
            Question::Traced(trace, question) => {
                to.byte(TRACED);
                to.fixed_u64((trace.trace >> 64) as u64);
                to.fixed_u64(trace.trace as u64);
                to.fixed_u64(trace.span);
                to.byte(trace.flags);
                question.encode(to);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Question, WireError> {
        match from.byte("a kind of request")? {
            TRACED => {
                let high = from.fixed_u64("a trace")?;
                let low = from.fixed_u64("a trace")?;
                let trace = (u128::from(high) << 64) | u128::from(low);
                let span = from.fixed_u64("a span")?;
                let flags = from.byte("flags of a trace")?;
                let Some(trace) = TraceContext::of_parts(trace, span, flags) else {
                    return from.fault("a trace");
                };
                // `decode_plain` rejects the code `TRACED`, so a traced request cannot contain
                // another traced one.
                let kind = from.byte("a kind of request")?;
                Ok(Question::Traced(
                    trace,
                    Box::new(Question::decode_plain(kind, from)?),
                ))
            }
            kind => Question::decode_plain(kind, from),
        }
    }

    /// Splits the request into its trace context and the request without it. The context is `None`
    /// if the request has none.
    pub(crate) fn untraced(self) -> (Option<TraceContext>, Question) {
        match self {
            Question::Traced(trace, question) => (Some(trace), *question),
            question => (None, question),
        }
    }

    fn decode_plain(kind: u8, from: &mut Decoder<'_>) -> Result<Question, WireError> {
        Ok(match kind {
            1 => Question::Command(OrderCommand::decode(from)?),
            2 => Question::Read(Read::decode(from)?),
            3 => Question::FindStore {
                order: from.order()?,
                lines: from.lines()?,
            },
            4 => Question::Reserve(Reserve {
                order: from.order()?,
                nonce: from.fixed_u64("a nonce")?,
                store: from.number_u32("a store")?,
                lines: from.lines()?,
            }),
            5 => Question::Confirm(Confirm {
                order: from.order()?,
                nonce: from.fixed_u64("a nonce")?,
                store: from.number_u32("a store")?,
            }),
            6 => Question::Settle {
                order: from.order()?,
                settlement: Settlement {
                    store: from.number_u32("a store")?,
                    lines: from.lines()?,
                    delivered: from.flag("a flag of delivery")?,
                    sequence: from.optional("a delivery's number")?,
                },
            },
            7 => Question::Keeps {
                order: from.order()?,
                store: from.number_u32("a store")?,
            },
            8 => Question::FollowStock(FollowStock {
                follower: from.fixed_u64("a follower")?,
                known: match from.flag("a flag of a position")? {
                    true => Some(StockPosition::decode(from)?),
                    false => None,
                },
                waits: from.flag("a flag of waiting")?,
            }),
            9 => Question::ReadStock(ReadStock {
                follower: from.fixed_u64("a follower")?,
                incarnation: from.fixed_u64("an incarnation")?,
                generation: from.number("a generation")?,
                first_row: from.number_u32("a row")?,
            }),
            10 => Question::Allot(allot::decode(from)?),
            11 => Question::Recall(allot::decode_recall(from)?),
            _ => return from.fault("a known kind of request"),
        })
    }
}

impl StockPosition {
    fn encode(&self, to: &mut Encoder<'_>) {
        to.fixed_u64(self.incarnation);
        to.number(self.generation);
        to.number(self.changes);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<StockPosition, WireError> {
        Ok(StockPosition {
            incarnation: from.fixed_u64("an incarnation")?,
            generation: from.number("a generation")?,
            changes: from.number("a number of changes")?,
        })
    }
}

impl Answer {
    /// Appends the encoded answer to `bytes`.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let mut to = Encoder(bytes);
        to.byte(b'A');
        to.number(self.id);
        to.number(self.epoch);
        self.reply.encode(&mut to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Answer, WireError> {
        Ok(Answer {
            id: from.number("a request id")?,
            epoch: from.number("an epoch")?,
            reply: Reply::decode(from)?,
        })
    }
}

fn encode_cells(to: &mut Encoder<'_>, cells: &[Cell]) {
    to.number(cells.len() as u64);
    for cell in cells {
        to.fixed_u32(cell.at);
        to.fixed_i32(cell.available);
    }
}

fn decode_cells(from: &mut Decoder<'_>) -> Result<Vec<Cell>, WireError> {
    let count = from.count(8, "a number of cells")?;
    let cell = |_| {
        Ok(Cell {
            at: from.fixed_u32("a cell")?,
            available: from.fixed_i32("a quantity")?,
        })
    };
    (0..count).map(cell).collect()
}

fn encode_ids(to: &mut Encoder<'_>, ids: &[u32]) {
    to.number(ids.len() as u64);
    for id in ids {
        to.fixed_u32(*id);
    }
}

fn decode_ids(from: &mut Decoder<'_>) -> Result<Vec<u32>, WireError> {
    let count = from.count(4, "a number of ids")?;
    (0..count).map(|_| from.fixed_u32("an id")).collect()
}

fn encode_optional_text(to: &mut Encoder<'_>, text: Option<&str>) {
    to.flag(text.is_some());
    if let Some(text) = text {
        to.text(text);
    }
}

fn decode_optional_text(from: &mut Decoder<'_>) -> Result<Option<String>, WireError> {
    match from.flag("a flag of a header")? {
        true => Ok(Some(from.text("a header")?.to_owned())),
        false => Ok(None),
    }
}

impl Reply {
    fn encode(&self, to: &mut Encoder<'_>) {
        match self {
            Reply::Moved => to.byte(1),
            Reply::Busy(reason) => {
                to.byte(2);
                to.text(reason);
            }
            Reply::Failed(reason) => {
                to.byte(3);
                to.text(reason);
            }
            Reply::TooLarge => to.byte(4),
            Reply::Http(http) => {
                to.byte(5);
                to.number(u64::from(http.status));
                encode_optional_text(to, http.content_type.as_deref());
                encode_optional_text(to, http.retry_after.as_deref());
                to.flag(http.replayed);
                to.blob(&http.body);
            }
            Reply::FoundStore(store) => {
                to.byte(6);
                to.optional(store.map(u64::from));
            }
            Reply::Reserved => to.byte(7),
            Reply::Short(cells) => {
                to.byte(8);
                encode_cells(to, cells);
            }
            Reply::Settled => to.byte(9),
            Reply::Kept(is_kept) => {
                to.byte(10);
                to.flag(*is_kept);
            }
            Reply::StockChanges(position, cells) => {
                to.byte(11);
                position.encode(to);
                encode_cells(to, cells);
            }
            Reply::StockLayout(layout) => {
                to.byte(12);
                layout.position.encode(to);
                encode_ids(to, &layout.stores);
                encode_ids(to, &layout.products);
            }
            Reply::StockRows(quantities) => {
                to.byte(13);
                to.number(quantities.len() as u64);
                quantities.iter().for_each(|quantity| to.fixed_i32(*quantity));
            }
            Reply::Allotted { incarnation, granted } => allot::encode_reply(*incarnation, granted, to),
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Reply, WireError> {
        Ok(match from.byte("a kind of answer")? {
            1 => Reply::Moved,
            2 => Reply::Busy(from.text("a reason")?.to_owned()),
            3 => Reply::Failed(from.text("a reason")?.to_owned()),
            4 => Reply::TooLarge,
            5 => Reply::Http(HttpReply {
                status: match u16::try_from(from.number("a status")?) {
                    Ok(status) => status,
                    Err(_) => return from.fault("a status"),
                },
                content_type: decode_optional_text(from)?,
                retry_after: decode_optional_text(from)?,
                replayed: from.flag("a flag of a repeat")?,
                body: from.blob("a body")?,
            }),
            6 => Reply::FoundStore(match from.flag("a flag of a store")? {
                true => Some(from.number_u32("a store")?),
                false => None,
            }),
            7 => Reply::Reserved,
            8 => Reply::Short(decode_cells(from)?),
            9 => Reply::Settled,
            10 => Reply::Kept(from.flag("a flag of keeping")?),
            11 => Reply::StockChanges(StockPosition::decode(from)?, decode_cells(from)?),
            12 => Reply::StockLayout(StockLayout {
                position: StockPosition::decode(from)?,
                stores: decode_ids(from)?,
                products: decode_ids(from)?,
            }),
            13 => {
                let count = from.count(4, "a number of quantities")?;
                let quantities = (0..count).map(|_| from.fixed_i32("a quantity"));
                Reply::StockRows(quantities.collect::<Result<_, _>>()?)
            }
            allot::REPLY => allot::decode_reply(from)?,
            _ => return from.fault("a known kind of answer"),
        })
    }
}

/// Decodes all requests in the payload of a frame.
pub(crate) fn decode_requests(payload: &Bytes) -> Result<Vec<Request>, WireError> {
    decode_all(payload, b'Q', "a request", Request::decode)
}

/// Decodes all answers in the payload of a frame.
pub(crate) fn decode_answers(payload: &Bytes) -> Result<Vec<Answer>, WireError> {
    decode_all(payload, b'A', "an answer", Answer::decode)
}

fn decode_all<T>(
    payload: &Bytes,
    tag: u8,
    expected: &'static str,
    decode: impl Fn(&mut Decoder<'_>) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let mut from = Decoder::new(payload);
    let mut all = Vec::new();
    while !from.is_at_end() {
        if from.byte(expected)? != tag {
            return from.fault(expected);
        }
        all.push(decode(&mut from)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
