//! When a loop goes on though nothing has happened.

use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// The deadline of a loop, which may be another one in each turn. It stays set meanwhile: to set a clock and take it back with
/// every message costs as much as to send it.
#[derive(Default)]
pub struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Completes at this time, never if there is none. Cancel-safe. Needs a tokio runtime.
    pub async fn reached(&mut self, at: Option<Instant>) {
        let Some(at) = at.map(Into::into) else { return pending().await };
        let clock = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if clock.deadline() != at {
            clock.as_mut().reset(at);
        }
        clock.await;
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.0.as_ref().map(|clock| clock.deadline())).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use tokio::time::{self, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_last_time_that_was_named_counts() {
        let (mut deadline, start) = (Deadline::default(), time::Instant::now());
        let in_seconds = |seconds| Some(start.into_std() + SECOND * seconds);
        for later in [10, 3, 5] {
            assert!(timeout(SECOND / 2, deadline.reached(in_seconds(later))).await.is_err());
        }
        deadline.reached(in_seconds(4)).await;
        assert_eq!(start.elapsed(), 4 * SECOND);
        assert!(timeout(100 * SECOND, deadline.reached(None)).await.is_err());
        deadline.reached(in_seconds(110)).await;
        assert_eq!(start.elapsed(), 110 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_is_reached_at_once_each_time() {
        let (mut deadline, start) = (Deadline::default(), time::Instant::now());
        let now = Some(start.into_std());
        time::sleep(SECOND).await;
        for at in [now, now, now.map(|now| now + SECOND / 2)] {
            deadline.reached(at).await;
        }
        assert_eq!(start.elapsed(), SECOND);
    }
}
