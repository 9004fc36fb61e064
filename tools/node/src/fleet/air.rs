//! A bad radio: datagrams are lost, come twice, or come late. What happens to them depends on a seed alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

/// How late a datagram or its copy may come.
const DELAY_MAX: Duration = Duration::from_millis(300);

/// Probabilities, 0 to 1.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) dup: f64,
    pub(crate) reorder: f64,
}

/// One direction between a sensor and its gateway.
#[derive(Debug)]
pub(super) struct Air {
    random: fastrand::Rng,
    weather: Weather,
    /// By the time they arrive, then in their order.
    flying: BTreeMap<(Instant, u64), Bytes>,
    offered: u64,
    pub(super) lost: u64,
}

impl Air {
    pub(super) fn new(weather: Weather, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, weather, flying: BTreeMap::new(), offered: 0, lost: 0 }
    }

    pub(super) fn offer(&mut self, now: Instant, frame: Bytes) {
        // The same number of draws for each datagram: what befalls one does not change what befalls the next.
        let mut delay = || DELAY_MAX.mul_f64(self.random.f64());
        let (late, later) = (delay(), delay());
        let [loss, dup, reorder] = [self.random.f64(), self.random.f64(), self.random.f64()];
        self.offered += 1;
        if loss < self.weather.loss {
            self.lost += 1;
            return;
        }
        let at = if reorder < self.weather.reorder { now + late } else { now };
        self.flying.insert((at, self.offered), frame.clone());
        if dup < self.weather.dup {
            self.offered += 1;
            self.flying.insert((now + later, self.offered), frame);
        }
    }

    /// The next datagram that has arrived by `now`.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Bytes> {
        let first = self.flying.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.flying.keys().next().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(weather: Weather, seed: u64) -> Vec<u16> {
        let mut air = Air::new(weather, seed);
        let mut now = Instant::now();
        let mut arrived = Vec::new();
        for i in 0..10_000u16 {
            air.offer(now, Bytes::copy_from_slice(&i.to_be_bytes()));
            now += Duration::from_millis(10);
            while let Some(frame) = air.poll(now) {
                arrived.push(u16::from_be_bytes([frame[0], frame[1]]));
            }
        }
        now += DELAY_MAX;
        while let Some(frame) = air.poll(now) {
            arrived.push(u16::from_be_bytes([frame[0], frame[1]]));
        }
        assert_eq!(air.poll_timeout(), None);
        arrived
    }

    #[test]
    fn good_weather_changes_nothing() {
        let fine = Weather { loss: 0.0, dup: 0.0, reorder: 0.0 };
        assert_eq!(arrivals(fine, 1), (0..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn loss_duplicates_and_delays_come_as_often_as_asked_for() {
        let near = |share: usize, of: f64| (share as f64 / 10_000.0 - of).abs() < 0.02;
        let lossy = arrivals(Weather { loss: 0.2, dup: 0.0, reorder: 0.0 }, 1);
        assert!(near(10_000 - lossy.len(), 0.2), "{}", lossy.len());
        let double = arrivals(Weather { loss: 0.0, dup: 0.1, reorder: 0.0 }, 1);
        assert!(near(double.len() - 10_000, 0.1), "{}", double.len());
        let late = arrivals(Weather { loss: 0.0, dup: 0.0, reorder: 0.1 }, 1);
        let overtaken = late.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(late.len() == 10_000 && overtaken > 500, "{overtaken}");
    }

    #[test]
    fn the_same_seed_gives_the_same_radio() {
        let bad = Weather { loss: 0.1, dup: 0.1, reorder: 0.1 };
        assert_eq!(arrivals(bad, 7), arrivals(bad, 7));
        assert_ne!(arrivals(bad, 7), arrivals(bad, 8));
    }
}
