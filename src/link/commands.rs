//! The way of commands to the task of one connection. There may be thousands, so that it has room for no more than there ever
//! is: one write, and the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Both ends.
pub(super) fn commands() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(shared.clone()), Receiver(shared))
}

/// The core's end. Dropped, it closes the connection once what was to be written is.
#[derive(Debug)]
pub(super) struct Sender(Arc<Shared>);

/// The task's end.
#[derive(Debug)]
pub(super) struct Receiver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    write: Option<Bytes>,
    /// The core wants no more of it.
    closed: bool,
    /// The task has ended.
    ended: bool,
}

/// The task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

impl Sender {
    /// Has these octets written, behind those that wait; never waits.
    pub(super) fn write(&self, octets: Bytes) -> Result<(), Ended> {
        let mut state = self.0.lock();
        if state.ended {
            return Err(Ended);
        }
        state.write = Some(match state.write.take() {
            Some(before) => joined(&before, &octets),
            None => octets,
        });
        drop(state);
        self.0.arrived.notify_one();
        Ok(())
    }

    /// Closes the connection once what was to be written is.
    pub(super) fn close(self) -> Result<(), Ended> {
        if self.0.lock().ended { Err(Ended) } else { Ok(()) }
    }
}

/// The octets of both. The core waits for the end of a write, so that there is nothing to join as a rule.
pub(super) fn joined(before: &Bytes, more: &Bytes) -> Bytes {
    let mut both = BytesMut::from(before.as_ref());
    both.extend_from_slice(more);
    both.freeze()
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.arrived.notify_one();
    }
}

impl Receiver {
    /// What is to be written next; `None` when the connection is to be closed. Cancel-safe.
    pub(super) async fn recv(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.0.lock();
                match state.write.take() {
                    Some(octets) => return Some(octets),
                    None if state.closed => return None,
                    None => {}
                }
            }
            self.0.arrived.notified().await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.ended, state.write) = (true, None);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_to_be_written_comes_before_the_end() {
        let (sender, receiver) = commands();
        assert_eq!(sender.write("a".into()), Ok(()));
        assert_eq!(sender.write("aa".into()), Ok(()));
        assert_eq!(receiver.recv().await, Some("aaa".into()));
        assert_eq!(sender.write("b".into()), Ok(()));
        drop(sender);
        assert_eq!(receiver.recv().await, Some("b".into()));
        assert_eq!(receiver.recv().await, None);
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_write_and_by_the_end() {
        let (sender, receiver) = commands();
        let task = tokio::spawn(async move { (receiver.recv().await, receiver.recv().await) });
        tokio::task::yield_now().await;
        assert_eq!(sender.write("a".into()), Ok(()));
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(task.await.unwrap(), (Some("a".into()), None));
    }

    #[tokio::test]
    async fn nothing_is_taken_for_a_task_that_has_ended() {
        let (sender, receiver) = commands();
        drop(receiver);
        assert_eq!(sender.write("a".into()), Err(Ended));
        assert_eq!(sender.close(), Err(Ended));
    }
}
