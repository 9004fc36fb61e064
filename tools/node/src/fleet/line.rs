//! A serial line as a value: octets take their time, some are changed, some are lost. What happens to them depends on a seed alone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Bits on the line for an octet: start, eight of data, stop.
const BITS: u32 = 10;

/// Octets come out in bundles of this time, as from the buffer of a UART; to wake for each one would be all a computer does.
const BUNDLE: Duration = Duration::from_millis(2);

/// What a line does to octets; the shares are 0 to 1.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Noise {
    /// Bits per second; 0: no octet takes any time.
    pub(crate) baud: u32,
    /// Octets that arrive as others.
    pub(crate) corrupt: f64,
    /// Octets that do not arrive.
    pub(crate) byte_loss: f64,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Line {
    noise: Noise,
    random: fastrand::Rng,
    /// Not out of the line yet.
    queue: VecDeque<u8>,
    /// Octets of each offer in `queue`, if they come out together.
    whole: Option<VecDeque<usize>>,
    /// When the first of them went in.
    since: Option<Instant>,
    pub(super) corrupted: u64,
    pub(super) lost: u64,
}

impl Line {
    pub(super) fn new(noise: Noise, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { noise, random, queue: VecDeque::new(), whole: None, since: None, corrupted: 0, lost: 0 }
    }

    /// What is offered at one time comes out at one time, when the last octet of it is through: where a pause has a meaning, a
    /// computer that is busy elsewhere must not make one.
    pub(super) fn in_one_go(self) -> Self {
        Self { whole: Some(VecDeque::new()), ..self }
    }

    pub(super) fn offer(&mut self, now: Instant, octets: &[u8]) {
        if self.queue.is_empty() {
            self.since = Some(now);
        }
        self.queue.extend(octets);
        if let Some(whole) = &mut self.whole {
            whole.push_back(octets.len());
        }
    }

    /// Octets that have gone in and not come out.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Forgets what has not come out.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.whole.iter_mut().for_each(VecDeque::clear);
        self.since = None;
    }

    /// What has come out by `now`.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<u8> {
        let Some(since) = self.since else { return Vec::new() };
        let time = self.octet_time();
        let passed = now.saturating_duration_since(since).as_nanos().checked_div(time.as_nanos());
        let mut count = passed.map_or(self.queue.len(), |passed| self.queue.len().min(passed as usize));
        if let Some(whole) = &mut self.whole {
            let mut through = 0;
            while let Some(len) = whole.front().filter(|len| through + **len <= count) {
                through += len;
                whole.pop_front();
            }
            count = through;
        }
        self.since = Some(since + time * count as u32).filter(|_| count < self.queue.len());
        let octets: Vec<u8> = self.queue.drain(..count).collect();
        octets.into_iter().filter_map(|octet| self.damage(octet)).collect()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let time = self.octet_time();
        let wait = match self.whole.as_ref().map(VecDeque::front) {
            Some(first) => time * *first? as u32,
            None => (time * self.queue.len() as u32).min(BUNDLE.max(time)),
        };
        Some(self.since? + wait)
    }

    fn octet_time(&self) -> Duration {
        Duration::from_secs(BITS.into()).checked_div(self.noise.baud).unwrap_or_default()
    }

    fn damage(&mut self, octet: u8) -> Option<u8> {
        // The same number of draws for each octet: what befalls one does not change what befalls the next.
        let (loss, corrupt, change) = (self.random.f64(), self.random.f64(), self.random.u8(1..));
        if loss < self.noise.byte_loss {
            self.lost += 1;
            None
        } else if corrupt < self.noise.corrupt {
            self.corrupted += 1;
            Some(octet ^ change)
        } else {
            Some(octet)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Noise = Noise { baud: 1000, corrupt: 0.0, byte_loss: 0.0 };

    #[test]
    fn an_octet_takes_ten_bits() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut line = Line::new(QUIET, 0);
        assert_eq!(line.poll_timeout(), None);
        line.offer(start, b"abc");
        assert_eq!(line.poll(ms(9)), b"");
        assert_eq!(line.poll_timeout(), Some(ms(10)));
        assert_eq!(line.poll(ms(25)), b"ab");
        line.offer(ms(28), b"d");
        assert_eq!((line.poll(ms(30)), line.len()), (b"c".to_vec(), 1));
        assert_eq!(line.poll(ms(40)), b"d");
        assert_eq!((line.poll_timeout(), line.len()), (None, 0));
    }

    #[test]
    fn what_comes_out_in_one_go_comes_when_all_of_it_is_through() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut line = Line::new(QUIET, 0).in_one_go();
        line.offer(start, b"abc");
        line.offer(start, b"de");
        assert_eq!(line.poll_timeout(), Some(ms(30)));
        assert_eq!(line.poll(ms(29)), b"");
        assert_eq!(line.poll(ms(45)), b"abc");
        assert_eq!(line.poll_timeout(), Some(ms(50)));
        assert_eq!((line.poll(ms(50)), line.poll_timeout()), (b"de".to_vec(), None));
    }

    #[test]
    fn without_a_speed_nothing_takes_time() {
        let now = Instant::now();
        let mut line = Line::new(Noise { baud: 0, ..QUIET }, 0);
        line.offer(now, b"abc");
        assert_eq!(line.poll_timeout(), Some(now));
        assert_eq!(line.poll(now), b"abc");
    }

    #[test]
    fn octets_are_lost_and_changed_as_often_as_asked_for_and_always_the_same() {
        let run = |seed| {
            let now = Instant::now();
            let mut line = Line::new(Noise { baud: 0, corrupt: 0.01, byte_loss: 0.02 }, seed);
            line.offer(now, &[0; 100_000]);
            (line.poll(now), line.corrupted, line.lost)
        };
        let (octets, corrupted, lost) = run(1);
        assert_eq!(octets.len() as u64, 100_000 - lost);
        assert_eq!(octets.iter().filter(|octet| **octet != 0).count() as u64, corrupted);
        assert!((900..1100).contains(&corrupted) && (1850..2150).contains(&lost), "{corrupted}, {lost}");
        assert_eq!(run(1), (octets, corrupted, lost));
        assert_ne!(run(2).0, run(1).0);
    }
}
