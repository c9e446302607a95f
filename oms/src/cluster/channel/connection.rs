//! The requesting end of a connection: sends requests and passes each answer to its caller.
//!
//! Requests are accepted while the connection is still being opened. A connection that has ended is
//! never opened again. Instead `Channels` opens a new connection for the next request.
//!
//! **Invariants**
//! - A request gets at most one answer. An answer is dropped if its caller no longer waits.
//! - When the connection ends, every waiting request fails. The other node may have executed such a
//!   request. The caller may send it again, because all requests are idempotent.
//! - At most `WAITING_MAX` callers wait for an answer. While `QUEUE_BYTES_MAX` or more bytes of
//!   requests are not sent yet, further requests are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::cluster::channel::frame::{FrameSource, Numbering};
use crate::cluster::channel::message::{Answer, Request, decode_answers};
use crate::cluster::channel::queue::{FrameQueue, Refused};
use crate::cluster::channel::{Link, LinkError};
use crate::runtime::metrics::ChannelCounters;

/// Maximum number of callers that wait for an answer. It equals the default maximum of client
/// connections of a node.
pub(super) const WAITING_MAX: usize = 8_192;
/// Number of bytes of unsent requests from which further requests are refused.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// The reason why a request gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The request was not sent, because too many callers wait for answers, or too many bytes of
    /// requests are unsent.
    Busy,
    /// The request was not sent, because it is larger than the maximum size of a frame.
    TooLarge,
    /// The connection has ended or was not opened. If it has ended, the other node may have
    /// executed the request.
    Broken(String),
}

/// One connection that this node opened to another node.
pub(crate) struct Connection {
    queue: FrameQueue,
    waiting: Mutex<Waiting>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    callers: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// The reason why the connection ended or was not opened; `None` while it is open or being
    /// opened.
    ended: Option<String>,
}

/// A caller's entry in `Waiting::callers`. Dropping the place removes the entry.
struct Place<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.connection.waiting().callers.remove(&self.id);
    }
}

impl Connection {
    /// Creates a connection that is not open yet. [`Connection::run`] opens it.
    pub(super) fn new(counters: &Arc<ChannelCounters>) -> Arc<Connection> {
        Arc::new(Connection {
            queue: FrameQueue::new(QUEUE_BYTES_MAX, Arc::clone(counters)),
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Returns `true` once the connection has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.waiting().ended.is_some()
    }

    /// Closes the queue, which ends the connection.
    pub(super) fn close(&self) {
        self.queue.close();
    }

    /// Sends a request under a new id and waits for its answer. Dropping the future stops the wait.
    /// The request may still be executed.
    pub(crate) async fn ask(&self, mut request: Request) -> Result<Answer, Unanswered> {
        request.id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if let Some(reason) = &waiting.ended {
                return Err(Unanswered::Broken(reason.clone()));
            }
            if waiting.callers.len() >= WAITING_MAX {
                return Err(Unanswered::Busy);
            }
            waiting.callers.insert(request.id, answer);
        }
        let place = Place {
            connection: self,
            id: request.id,
        };
        self.push(&request)?;
        drop(request);
        let answer = answered.await;
        drop(place);
        answer.map_err(|_| self.broken())
    }

    /// Queues a request that has no answer. Such a request is usually sent in the frame of the next
    /// request with an answer.
    pub(crate) fn tell(&self, request: &Request) -> Result<(), Unanswered> {
        self.pushed(self.queue.push_along(|bytes| request.encode(bytes)))
    }

    /// Queues a request that has no answer. Such a request is sent as soon as possible.
    pub(crate) fn tell_now(&self, request: &Request) -> Result<(), Unanswered> {
        self.push(request)
    }

    fn push(&self, request: &Request) -> Result<(), Unanswered> {
        self.pushed(self.queue.push(|bytes| request.encode(bytes)))
    }

    fn pushed(&self, pushed: Result<(), Refused>) -> Result<(), Unanswered> {
        pushed.map_err(|refused| match refused {
            Refused::Full => Unanswered::Busy,
            Refused::TooLarge => Unanswered::TooLarge,
            Refused::Closed => self.broken(),
        })
    }

    fn broken(&self) -> Unanswered {
        let reason = self.waiting().ended.clone();
        Unanswered::Broken(reason.unwrap_or_else(|| "the connection was closed".to_owned()))
    }

    /// Opens the connection and serves it until it breaks or is closed. Then all waiting callers
    /// get [`Unanswered::Broken`], also if the connection could not be opened.
    pub(super) async fn run(self: Arc<Self>, opening: impl Future<Output = Result<Link, LinkError>>) {
        let reason = match opening.await {
            Ok(Link { mut sink, source }) => tokio::select! {
                biased;
                read = self.read(source) => read.err(),
                sent = self.queue.send_all(sink.as_mut()) => sent.err(),
            },
            Err(error) => Some(error),
        };
        let reason = reason.map_or_else(|| "the connection was closed".to_owned(), |error| error.0);
        let callers = {
            let mut waiting = self.waiting();
            waiting.ended = Some(reason);
            std::mem::take(&mut waiting.callers)
        };
        self.queue.close();
        drop(callers);
    }

    async fn read(&self, mut source: Box<dyn FrameSource>) -> Result<(), LinkError> {
        let mut numbering = Numbering::default();
        while let Some(frame) = source.receive().await? {
            if !numbering.admit(frame.number)? {
                continue;
            }
            let answers = decode_answers(&frame.payload)?;
            let mut callers = Vec::with_capacity(answers.len());
            {
                let mut waiting = self.waiting();
                for answer in answers {
                    if let Some(caller) = waiting.callers.remove(&answer.id) {
                        callers.push((caller, answer));
                    }
                }
            }
            for (caller, answer) in callers {
                // The send fails if the caller no longer waits, so its result is ignored.
                let _ = caller.send(answer);
            }
        }
        Ok(())
    }
}
