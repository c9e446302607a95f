//! The queue of messages for one direction of a connection. Messages that wait while a frame is
//! written share the next frame, until that frame is full.
//!
//! Messages are encoded into their frame at once, so a waiting message needs no memory besides its
//! bytes. The first message of a frame waits for the tasks that are ready to run, as long as they
//! add further messages. No timer delays a message. The queue is bounded in bytes. While it is
//! full, it refuses further messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::cluster::channel::LinkError;
use crate::cluster::channel::frame::{self, FrameSink, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::runtime;
use crate::runtime::metrics::ChannelCounters;

/// Size in bytes at which a frame is full and the next message begins another frame. Thus the
/// receiver can process one frame while the next one is sent.
const FRAME_BYTES_FULL: usize = 256 << 10;
/// Number of waiting bytes from which messages of `push_along` are sent without waiting for a
/// message of `push`.
const ALONG_BYTES_MAX: usize = 16 << 10;
/// Maximum capacity in bytes of a frame buffer that is kept for reuse. Larger buffers are freed.
const SPARE_BYTES_MAX: usize = 2 * FRAME_BYTES_FULL;

/// The reason why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The message was refused, because too many bytes are waiting to be sent.
    Full,
    /// The message was refused, because the connection has ended.
    Closed,
    /// The message was refused, because it is larger than the maximum payload of a frame.
    TooLarge,
}

/// The queue of encoded messages for one direction of a connection.
pub(crate) struct FrameQueue {
    waiting: Mutex<Waiting>,
    called: Notify,
    bytes_max: usize,
    counters: Arc<ChannelCounters>,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<u8>,
    bytes: usize,
    /// `true` if the next frame must be sent as soon as possible.
    is_called: bool,
    is_closed: bool,
}

impl FrameQueue {
    /// Creates a queue that refuses messages while at least `bytes_max` bytes are waiting.
    /// `counters` counts messages, frames and bytes.
    pub(crate) fn new(bytes_max: usize, counters: Arc<ChannelCounters>) -> FrameQueue {
        FrameQueue {
            waiting: Mutex::default(),
            called: Notify::new(),
            bytes_max,
            counters,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Adds a message that is sent as soon as possible. `encode` appends its bytes to the frame.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Refused> {
        self.add(|waiting| waiting.add(encode), true)
    }

    /// Adds a message as `push` does. If the message is larger than the maximum payload of a frame,
    /// adds `otherwise` in the same step, so that other messages cannot fill the queue in between.
    pub(crate) fn push_or(
        &self,
        encode: impl FnOnce(&mut Vec<u8>),
        otherwise: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Refused> {
        let add = |waiting: &mut Waiting| match waiting.add(encode) {
            Err(Refused::TooLarge) => waiting.add(otherwise),
            added => added,
        };
        self.add(add, true)
    }

    /// Adds a message that does not cause the sending of a frame until `ALONG_BYTES_MAX` bytes are
    /// waiting. So the message usually shares the frame of a message of `push`.
    pub(crate) fn push_along(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Refused> {
        self.add(|waiting| waiting.add(encode), false)
    }

    fn add(
        &self,
        add: impl FnOnce(&mut Waiting) -> Result<(), Refused>,
        leaves_now: bool,
    ) -> Result<(), Refused> {
        let calls = {
            let mut waiting = self.waiting();
            if waiting.is_closed {
                return Err(Refused::Closed);
            }
            if waiting.bytes >= self.bytes_max {
                return Err(Refused::Full);
            }
            add(&mut waiting)?;
            let leaves = leaves_now || waiting.bytes >= ALONG_BYTES_MAX;
            leaves && !std::mem::replace(&mut waiting.is_called, true)
        };
        self.counters.messages.fetch_add(1, Ordering::Relaxed);
        if calls {
            self.called.notify_one();
        }
        Ok(())
    }

    /// Closes the queue: waiting frames are dropped, and later messages are refused.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting();
        *waiting = Waiting {
            is_closed: true,
            ..Waiting::default()
        };
        drop(waiting);
        self.called.notify_one();
    }

    /// Waits for the next frame to send. Returns `None` once the queue is closed.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut waiting = self.waiting();
                if waiting.is_closed {
                    return None;
                }
                if waiting.is_called
                    && let Some(frame) = waiting.frames.pop_front()
                {
                    waiting.bytes -= frame.len();
                    waiting.is_called = !waiting.frames.is_empty();
                    return Some(frame);
                }
            }
            self.called.notified().await;
            // All tasks that are ready to run add their messages to this frame, until it is full.
            runtime::gather(|| self.waiting().bytes.min(FRAME_BYTES_FULL)).await;
        }
    }

    /// Returns the bytes of all waiting frames. `None` if the queue is closed.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> Option<Vec<u8>> {
        let waiting = self.waiting();
        (!waiting.is_closed).then(|| waiting.frames.iter().flatten().copied().collect())
    }

    fn give_back(&self, mut frame: Vec<u8>) {
        if frame.capacity() <= SPARE_BYTES_MAX {
            frame.clear();
            self.waiting().spare = frame;
        }
    }

    /// Sends frames until the queue is closed or the connection breaks.
    pub(crate) async fn send_all(&self, sink: &mut dyn FrameSink) -> Result<(), LinkError> {
        let mut number = 0;
        while let Some(mut frame) = self.next().await {
            number += 1;
            frame::seal(&mut frame, number);
            self.counters.frames.fetch_add(1, Ordering::Relaxed);
            self.counters
                .bytes
                .fetch_add(frame.len() as u64, Ordering::Relaxed);
            let sent = sink.send(frame).await?;
            self.give_back(sent);
        }
        Ok(())
    }
}

impl Waiting {
    fn begin_frame(&mut self) -> Vec<u8> {
        let mut frame = std::mem::take(&mut self.spare);
        frame.resize(HEADER_BYTES, 0);
        self.bytes += HEADER_BYTES;
        frame
    }

    fn add(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Refused> {
        let last = self.frames.pop_back();
        let last = match last {
            Some(last) if last.len() >= FRAME_BYTES_FULL => {
                self.frames.push_back(last);
                None
            }
            last => last,
        };
        let mut frame = last.unwrap_or_else(|| self.begin_frame());
        let begin = frame.len();
        encode(&mut frame);
        let added = frame.len() - begin;
        if added > PAYLOAD_BYTES_MAX {
            frame.truncate(begin);
            if begin > HEADER_BYTES {
                self.frames.push_back(frame);
            } else {
                self.bytes -= begin;
            }
            return Err(Refused::TooLarge);
        }
        self.bytes += added;
        if frame.len() - HEADER_BYTES > PAYLOAD_BYTES_MAX {
            let message = frame.split_off(begin);
            self.frames.push_back(frame);
            frame = self.begin_frame();
            frame.extend_from_slice(&message);
        }
        self.frames.push_back(frame);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::channel::frame::Transfer;

    /// A sink that stores the frames passed to it.
    #[derive(Default)]
    struct Kept(Vec<Vec<u8>>);

    impl FrameSink for Kept {
        fn send(&mut self, frame: Vec<u8>) -> Transfer<'_, Vec<u8>> {
            self.0.push(frame.clone());
            Box::pin(std::future::ready(Ok(frame)))
        }
    }

    /// Starts a task that sends all frames of a queue. The task returns the sent frames once the
    /// queue is closed.
    fn start_sender(queue: &Arc<FrameQueue>) -> tokio::task::JoinHandle<Vec<Vec<u8>>> {
        let queue = Arc::clone(queue);
        tokio::spawn(async move {
            let mut sink = Kept::default();
            queue.send_all(&mut sink).await.unwrap();
            sink.0
        })
    }

    async fn sent(queue: &FrameQueue) -> Vec<Vec<u8>> {
        let mut sink = Kept::default();
        let mut frames = Vec::new();
        while !queue.waiting().frames.is_empty() {
            let frame = queue.next().await.unwrap();
            frames.push(sink.send(frame).await.unwrap());
        }
        frames
    }

    #[tokio::test]
    async fn all_that_waits_leaves_in_one_frame() {
        let queue = FrameQueue::new(1 << 20, Arc::default());
        for number in 0..100u8 {
            queue.push(|bytes| bytes.push(number)).unwrap();
        }
        let frames = sent(&queue).await;
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][HEADER_BYTES..], (0..100u8).collect::<Vec<_>>()[..]);
        assert_eq!(queue.waiting().bytes, 0);
    }

    #[tokio::test]
    async fn a_message_that_may_wait_leaves_with_the_next_one_or_once_many_wait() {
        let queue = Arc::new(FrameQueue::new(1 << 20, Arc::default()));
        let sender = start_sender(&queue);
        let run_all = || async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        queue.push_along(|bytes| bytes.push(1)).unwrap();
        run_all().await;
        assert_eq!(queue.waiting().frames.len(), 1, "it waits");
        queue.push(|bytes| bytes.push(2)).unwrap();
        run_all().await;
        assert_eq!(queue.waiting().frames.len(), 0);
        queue
            .push_along(|bytes| bytes.resize(ALONG_BYTES_MAX, 3))
            .unwrap();
        run_all().await;
        assert_eq!(queue.waiting().frames.len(), 0);
        queue.close();
        let frames = sender.await.unwrap();
        let payloads: Vec<&[u8]> = frames.iter().map(|frame| &frame[HEADER_BYTES..]).collect();
        assert_eq!(
            payloads,
            [&[1u8, 2][..], &[3u8; ALONG_BYTES_MAX - HEADER_BYTES][..]]
        );
    }

    #[tokio::test]
    async fn large_messages_take_frames_of_their_own_and_keep_their_order() {
        let queue = FrameQueue::new(1 << 30, Arc::default());
        let sizes = [10, PAYLOAD_BYTES_MAX, 20, PAYLOAD_BYTES_MAX - 5, 7, 300 << 10, 9];
        for (number, size) in (1u8..).zip(sizes) {
            queue
                .push(|bytes| bytes.resize(bytes.len() + size, number))
                .unwrap();
        }
        let frames = sent(&queue).await;
        assert!(
            frames
                .iter()
                .all(|frame| frame.len() <= HEADER_BYTES + PAYLOAD_BYTES_MAX)
        );
        let payload: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame[HEADER_BYTES..].iter().copied())
            .collect();
        let expected: Vec<u8> = (1u8..)
            .zip(sizes)
            .flat_map(|(number, size)| vec![number; size])
            .collect();
        assert!(payload == expected);
        assert_eq!(queue.waiting().bytes, 0);
    }

    #[tokio::test]
    async fn a_full_queue_and_a_message_larger_than_a_frame_are_refused() {
        let queue = FrameQueue::new(1_000, Arc::default());
        let too_large = queue.push(|bytes| bytes.resize(bytes.len() + PAYLOAD_BYTES_MAX + 1, 0));
        assert_eq!(too_large, Err(Refused::TooLarge));
        assert_eq!(queue.waiting().bytes, 0);
        queue.push(|bytes| bytes.resize(bytes.len() + 1_000, 0)).unwrap();
        assert_eq!(queue.push(|bytes| bytes.push(0)), Err(Refused::Full));
        assert_eq!(sent(&queue).await.len(), 1);
        queue.push(|bytes| bytes.push(0)).unwrap();
        queue.close();
        assert_eq!(queue.push(|bytes| bytes.push(0)), Err(Refused::Closed));
        assert_eq!(queue.next().await, None);
    }

    /// Each task becomes ready when the one before has added its message.
    #[tokio::test]
    async fn tasks_that_become_ready_one_after_the_other_share_a_frame() {
        let queue = Arc::new(FrameQueue::new(1 << 20, Arc::default()));
        let sender = start_sender(&queue);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..8u8 {
            let queue = Arc::clone(&queue);
            tasks.spawn(async move {
                for _ in 0..number {
                    tokio::task::yield_now().await;
                }
                queue.push(|bytes| bytes.push(number)).unwrap();
            });
        }
        tasks.join_all().await;
        while !queue.waiting().frames.is_empty() {
            tokio::task::yield_now().await;
        }
        queue.close();
        assert_eq!(sender.await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn tasks_that_are_ready_share_a_frame() {
        let queue = Arc::new(FrameQueue::new(1 << 20, Arc::default()));
        let sender = start_sender(&queue);
        tokio::task::yield_now().await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50u8 {
            let queue = Arc::clone(&queue);
            tasks.spawn(async move { queue.push(|bytes| bytes.push(number)).unwrap() });
        }
        tasks.join_all().await;
        while !queue.waiting().frames.is_empty() {
            tokio::task::yield_now().await;
        }
        queue.close();
        let frames = sender.await.unwrap();
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(frames[0].len(), HEADER_BYTES + 50);
    }
}
