//! The answering end of a connection: passes the requests of each frame to a `Service`, and sends
//! each answer when it is ready.
//!
//! **Invariants**
//! - Every request that expects an answer gets one, unless the connection ends. If the service
//!   drops the request, the answer is a failure.
//! - While `IN_PROGRESS_MAX` or more requests of a connection are in progress, no further frame is
//!   read. Then the queue of the requesting node fills up and refuses further requests.
//! - If `QUEUE_BYTES_MAX` or more bytes of answers are waiting because the other end does not read,
//!   the next answer closes the queue. The connection then ends once the frame that is being
//!   written is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::channel::frame::{FrameSource, Numbering};
use crate::cluster::channel::message::{Answer, Question, Reply, Request, decode_requests};
use crate::cluster::channel::queue::{FrameQueue, Refused};
use crate::cluster::channel::{Link, LinkError};
use crate::runtime::metrics::ChannelCounters;

/// Number of requests of one connection in progress from which no further frame is read. It equals
/// the maximum number of callers that wait for answers at the other end.
const IN_PROGRESS_MAX: usize = 8_192;
/// Number of waiting bytes of answers from which a further answer closes the connection.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Executes the requests that other nodes send to this node.
pub(crate) trait Service: Send + Sync {
    /// Starts to execute all requests of one frame. Must not block.
    fn take(self: Arc<Self>, requests: Vec<Asked>);

    /// Returns the counters to which the messages, frames and bytes of answers are added.
    fn counters(&self) -> Arc<ChannelCounters> {
        Arc::default()
    }
}

/// A received request, with the means to answer it.
pub(crate) struct Asked {
    pub(crate) volume: imt_ring::NodeName,
    pub(crate) epoch: u64,
    /// The deadline, counted from the arrival of the request. The sender counts from its call, so
    /// it stops waiting a little earlier.
    pub(crate) until: Instant,
    pub(crate) question: Question,
    pub(crate) caller: Caller,
}

/// Sends the answer to one request. A `Caller` that is dropped without `answer` or `forget` sends a
/// failure.
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
    /// Sends the answer.
    pub(crate) fn answer(mut self, epoch: u64, reply: Reply) {
        self.send(epoch, reply);
    }

    /// Completes a request that expects no answer.
    pub(crate) fn forget(mut self) {
        self.is_answered = true;
    }

    fn send(&mut self, epoch: u64, reply: Reply) {
        self.is_answered = true;
        let id = self.id;
        let answer = |reply| Answer { id, epoch, reply };
        let queue = &self.shared.queue;
        let pushed = queue.push_or(
            |bytes| answer(reply).encode(bytes),
            |bytes| answer(Reply::TooLarge).encode(bytes),
        );
        match pushed {
            Ok(()) | Err(Refused::Closed) => {}
            // The answer is lost, and the sender of the request would wait until its deadline.
            // Closing the queue ends the connection as soon as the frame that is being written is
            // sent. Then the request fails.
            Err(Refused::Full | Refused::TooLarge) => queue.close(),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.is_answered {
            self.send(
                0,
                Reply::Failed("the node stopped before it answered; retry".to_owned()),
            );
        }
        if self.shared.in_progress.fetch_sub(1, Ordering::AcqRel) == IN_PROGRESS_MAX {
            self.shared.ended.notify_one();
        }
    }
}

/// Serves the requests of a connection until it ends.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::channel::frame::PAYLOAD_BYTES_MAX;

    /// Returns the encoded answer `Reply::TooLarge` to the request with this id.
    fn too_large(id: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Answer {
            id,
            epoch: 0,
            reply: Reply::TooLarge,
        }
        .encode(&mut bytes);
        bytes
    }

    /// A second thread fills the queue while the first thread sends an answer that is too large. If
    /// the queue could be filled between the refusal of that answer and the addition of `TooLarge`,
    /// the caller would get no answer on an open connection.
    #[test]
    fn an_answer_too_large_for_a_frame_is_reported_or_ends_the_connection() {
        for delay in (0..40).map(|step| Duration::from_micros(200 * step)) {
            let shared = Arc::new(Shared {
                queue: FrameQueue::new(64, Arc::default()),
                in_progress: AtomicUsize::new(1),
                ended: Notify::new(),
            });
            let caller = Caller {
                id: 7_654_321,
                shared: Arc::clone(&shared),
                is_answered: false,
            };
            let reply = Reply::Failed("x".repeat(PAYLOAD_BYTES_MAX));
            std::thread::scope(|scope| {
                scope.spawn(|| caller.answer(0, reply));
                scope.spawn(|| {
                    std::thread::sleep(delay);
                    let _ = shared.queue.push(|bytes| bytes.resize(bytes.len() + 64, 0));
                });
            });
            let expected = too_large(7_654_321);
            let is_told = |bytes: Vec<u8>| bytes.windows(expected.len()).any(|part| part == expected);
            assert!(shared.queue.waiting_bytes().is_none_or(is_told), "{delay:?}");
        }
    }
}
