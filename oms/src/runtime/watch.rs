//! Channels with one value, on which tasks wait for changes, with a substitute for tests and the
//! simulation.
//!
//! A watch channel of tokio spreads its receivers over several lists, by random numbers that no
//! seed sets. So a change wakes the receivers in another order in each run. The substitute wakes
//! the receivers in the order in which they began to wait.

#[cfg(not(test))]
pub(crate) use tokio::sync::watch::{Receiver, Sender, channel};

#[cfg(test)]
pub(crate) use crate::runtime::watch::in_order::{Receiver, Sender, channel};

#[cfg(test)]
mod in_order {
    use std::pin::pin;
    use std::sync::Arc;

    use tokio::sync::watch::error::RecvError;
    use tokio::sync::{Notify, watch};

    /// Creates a channel with its first value.
    pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    /// The sender of a channel.
    #[derive(Debug)]
    pub(crate) struct Sender<T> {
        channel: Option<watch::Sender<T>>,
        changed: Arc<Notify>,
    }

    impl<T> Sender<T> {
        pub(crate) fn new(value: T) -> Sender<T> {
            Sender {
                channel: Some(watch::Sender::new(value)),
                changed: Arc::default(),
            }
        }

        fn channel(&self) -> &watch::Sender<T> {
            self.channel.as_ref().expect("only a drop takes the channel")
        }

        pub(crate) fn subscribe(&self) -> Receiver<T> {
            Receiver {
                channel: self.channel().subscribe(),
                changed: Arc::clone(&self.changed),
            }
        }

        pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
            self.channel().borrow()
        }

        pub(crate) fn receiver_count(&self) -> usize {
            self.channel().receiver_count()
        }

        pub(crate) fn send(&self, value: T) -> Result<(), watch::error::SendError<T>> {
            self.channel().send(value)?;
            self.changed.notify_waiters();
            Ok(())
        }

        pub(crate) fn send_replace(&self, value: T) -> T {
            let before = self.channel().send_replace(value);
            self.changed.notify_waiters();
            before
        }

        pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
            self.channel().send_modify(change);
            self.changed.notify_waiters();
        }
    }

    impl<T: Default> Default for Sender<T> {
        fn default() -> Sender<T> {
            Sender::new(T::default())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            // The channel is closed first, so that receivers that wake find it closed.
            self.channel = None;
            self.changed.notify_waiters();
        }
    }

    /// A receiver of a channel.
    #[derive(Clone, Debug)]
    pub(crate) struct Receiver<T> {
        channel: watch::Receiver<T>,
        changed: Arc<Notify>,
    }

    impl<T> Receiver<T> {
        pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
            self.channel.borrow()
        }

        pub(crate) fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
            self.channel.borrow_and_update()
        }

        /// Waits for a value that the receiver has not seen.
        pub(crate) async fn changed(&mut self) -> Result<(), RecvError> {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.channel.has_changed()? {
                    self.channel.mark_unchanged();
                    return Ok(());
                }
                changed.await;
            }
        }

        /// Waits until `is_wanted` returns `true` for the value.
        pub(crate) async fn wait_for(
            &mut self,
            mut is_wanted: impl FnMut(&T) -> bool,
        ) -> Result<(), RecvError> {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                if is_wanted(&self.channel.borrow_and_update()) {
                    return Ok(());
                }
                self.channel.has_changed()?;
                changed.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::task::JoinSet;

    use crate::runtime::watch;

    #[tokio::test]
    async fn receivers_wake_in_the_order_in_which_they_began_to_wait() {
        let stop = watch::Sender::new(false);
        let (woken, mut waiting) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
        for number in 0..32 {
            let (mut stopped, woken) = (stop.subscribe(), Arc::clone(&woken));
            waiting.spawn(async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
                woken.lock().push(number);
            });
        }
        // In one turn the runtime polls all 32 tasks. Afterwards each task waits for the value.
        tokio::task::yield_now().await;
        stop.send_replace(true);
        waiting.join_all().await;
        assert_eq!(*woken.lock(), (0..32).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn receivers_learn_of_each_change_and_of_the_end() {
        let (sender, mut receiver) = watch::channel(1);
        sender.send_modify(|value| *value = 2);
        assert!(receiver.changed().await.is_ok());
        assert_eq!(*receiver.borrow(), 2);
        sender.send_replace(3);
        assert_eq!(*receiver.borrow_and_update(), 3);
        let ended = tokio::spawn(async move {
            (
                receiver.wait_for(|value| *value == 4).await,
                receiver.changed().await,
            )
        });
        tokio::task::yield_now().await;
        sender.send_replace(5);
        tokio::task::yield_now().await;
        drop(sender);
        let (waited, changed) = ended.await.unwrap();
        assert!(waited.is_err() && changed.is_err());
    }
}
