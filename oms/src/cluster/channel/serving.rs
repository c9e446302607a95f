//! The answering end of a connection: takes the requests of a frame together, sends answers as they
//! are made.
//!
//! Invariants:
//! - Every request that wants an answer gets one: a request that is dropped is answered with a
//!   failure.
//! - Requests in progress are bounded by `IN_PROGRESS_MAX`. Beyond it nothing more is read from the
//!   connection, so that the other end fills its own queue and refuses its callers.
//! - An end that does not take its answers is disconnected at `QUEUE_BYTES_MAX`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::channel::frame::{FrameSource, Numbering};
use crate::cluster::channel::message::{Answer, Question, Reply, Request, decode_requests};
use crate::cluster::channel::queue::{FrameQueue, Refused};
use crate::cluster::channel::{Link, LinkError};
use crate::runtime::metrics::ChannelCounters;

/// Requests of one connection in progress at a time: as many as the other end may wait for.
const IN_PROGRESS_MAX: usize = 8_192;
/// Bytes of answers that may wait to be sent.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Answers requests.
pub(crate) trait Service: Send + Sync {
    /// Takes all requests of one frame. Must not block.
    fn take(self: Arc<Self>, requests: Vec<Asked>);

    /// Returns the counters of the answers.
    fn counters(&self) -> Arc<ChannelCounters> {
        Arc::default()
    }
}

/// A request that is to be answered.
pub(crate) struct Asked {
    pub(crate) volume: imt_ring::NodeName,
    pub(crate) epoch: u64,
    /// When its sender stops waiting, about: the time on the way is not known.
    pub(crate) until: Instant,
    pub(crate) question: Question,
    pub(crate) caller: Caller,
}

/// The way back to the sender of a request.
pub(crate) struct Caller {
    id: u64,
    shared: Arc<Shared>,
    is_answered: bool,
}

struct Shared {
    queue: FrameQueue,
    in_progress: AtomicUsize,
    ended: Notify,
}

impl Caller {
    /// Answers the request.
    pub(crate) fn answer(mut self, epoch: u64, reply: Reply) {
        self.send(epoch, reply);
    }

    /// Ends a request that has no answer.
    pub(crate) fn forget(mut self) {
        self.is_answered = true;
    }

    fn send(&mut self, epoch: u64, reply: Reply) {
        self.is_answered = true;
        let answer = Answer {
            id: self.id,
            epoch,
            reply,
        };
        let queue = &self.shared.queue;
        match queue.push(|bytes| answer.encode(bytes)) {
            Ok(()) | Err(Refused::Closed) => {}
            Err(Refused::TooLarge) => {
                let reply = Reply::TooLarge;
                // A few bytes: refused only if the connection has ended meanwhile.
                let _ = queue.push(|bytes| Answer { reply, ..answer }.encode(bytes));
            }
            Err(Refused::Full) => queue.close(),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.is_answered {
            self.send(0, Reply::Failed("the request was given up".to_owned()));
        }
        if self.shared.in_progress.fetch_sub(1, Ordering::AcqRel) == IN_PROGRESS_MAX {
            self.shared.ended.notify_one();
        }
    }
}

/// Answers the requests of a connection until it ends.
pub(crate) async fn serve(link: Link, service: Arc<dyn Service>) -> Result<(), LinkError> {
    let shared = Arc::new(Shared {
        queue: FrameQueue::new(QUEUE_BYTES_MAX, service.counters()),
        in_progress: AtomicUsize::new(0),
        ended: Notify::new(),
    });
    let Link { mut sink, source } = link;
    let served = tokio::select! {
        biased;
        read = read(source, &shared, &service) => read,
        sent = shared.queue.send_all(sink.as_mut()) => sent,
    };
    shared.queue.close();
    served
}

async fn read(
    mut source: Box<dyn FrameSource>,
    shared: &Arc<Shared>,
    service: &Arc<dyn Service>,
) -> Result<(), LinkError> {
    let mut numbering = Numbering::default();
    while let Some(frame) = source.receive().await? {
        if !numbering.admit(frame.number)? {
            continue;
        }
        let now = Instant::now();
        let asked = |request: Request| {
            shared.in_progress.fetch_add(1, Ordering::AcqRel);
            Asked {
                volume: request.volume,
                epoch: request.epoch,
                until: now + std::time::Duration::from_millis(u64::from(request.deadline_ms)),
                question: request.question,
                caller: Caller {
                    id: request.id,
                    shared: Arc::clone(shared),
                    is_answered: false,
                },
            }
        };
        let asked = decode_requests(&frame.payload)?.into_iter().map(asked).collect();
        Arc::clone(service).take(asked);
        while shared.in_progress.load(Ordering::Acquire) >= IN_PROGRESS_MAX {
            shared.ended.notified().await;
        }
    }
    Ok(())
}
