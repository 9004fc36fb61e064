//! Sleeping (§6.14): the gateway keeps what comes for the node, and hands it out when the node wakes.
//!
//! 1. DISCONNECT with Duration; DISCONNECT: asleep
//! 2. PINGREQ with the client id; REGISTER and PUBLISH, each acknowledged; PINGRESP: asleep again

use std::time::{Duration, Instant};

use super::air::{NoAnswer, Retry};
use super::downlink::Downlink;
use super::{Connection, Event, Loss, Node};
use crate::wire::{Disconnect, Packet, PingReq};

/// The shortest time between falling asleep and waking by itself: whoever configures none shall not spin.
const WAKE_EVERY_MIN: Duration = Duration::from_millis(1);

/// A node between the DISCONNECT that begins its sleep and whatever ends it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sleep {
    /// What the gateway was told.
    seconds: u16,
    phase: Phase,
    /// Copies of that DISCONNECT which may yet be answered. Such an answer does not end the session when it comes late.
    answers_due: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// DISCONNECT waits for its answer. The gateway may not have heard it, so that its messages are still taken.
    Falling(Retry),
    /// Nothing is sent and nothing taken. The time to wake, for a node that does it by itself.
    Asleep { until: Option<Instant> },
    /// PINGREQ waits for PINGRESP. `before` counts the messages delivered up to then.
    Awake { retry: Retry, before: u64 },
}

impl Sleep {
    pub(super) fn deadline(&self, interval: Duration) -> Option<Instant> {
        match &self.phase {
            Phase::Falling(retry) | Phase::Awake { retry, .. } => Some(retry.deadline(interval)),
            Phase::Asleep { until } => *until,
        }
    }

    /// Whether the gateway has not confirmed it.
    pub(super) fn is_falling(&self) -> bool {
        matches!(self.phase, Phase::Falling(_))
    }

    fn disconnect(&self) -> Packet<'static> {
        Packet::Disconnect(Disconnect { duration: Some(self.seconds) })
    }
}

impl Node {
    /// Falls asleep (§6.14): later [`Event::Asleep`], or [`Event::ConnectionLost`] if nobody answers. No effect without a
    /// connection; asleep already, the gateway is told the new duration.
    ///
    /// `duration` is how long the gateway waits for a sign of life: 1 to 65,535 whole seconds; others become the next
    /// longer one, or the longest.
    /// It should leave room beyond the time between two wakings, or one lost PINGREQ makes the node count as lost.
    ///
    /// Asleep, the node sends nothing and takes nothing. It wakes by [`Node::wake`], or by itself with
    /// [`Options::wake_every`](super::Options::wake_every). What is published or subscribed to meanwhile, and what was not
    /// settled before, waits until [`Node::connect`], which ends the sleep: the node does not do that by itself, since with
    /// CleanSession the gateway then forgets what it keeps. QoS −1 goes out at once.
    pub fn sleep(&mut self, now: Instant, duration: Duration) {
        let answers_due = match &self.connection {
            Connection::Connected { .. } => 0,
            Connection::Sleeping(sleep) if !sleep.is_falling() => sleep.answers_due,
            _ => return,
        };
        self.suspend(now);
        let begun = u64::from(duration.subsec_nanos() > 0);
        let seconds = u16::try_from(duration.as_secs().saturating_add(begun)).unwrap_or(u16::MAX).max(1);
        let phase = Phase::Falling(self.retry(now));
        let sleep = Sleep { seconds, phase, answers_due: answers_due.saturating_add(1) };
        self.air.send(sleep.disconnect());
        self.connection = Connection::Sleeping(sleep);
    }

    /// Fetches what the gateway has kept (§6.14): messages as ever, then [`Event::Drained`] and asleep again; or
    /// [`Event::ConnectionLost`] if the gateway does not know the node, or nobody answers. No effect unless asleep.
    pub fn wake(&mut self, now: Instant) {
        let retry = self.retry(now);
        if let Connection::Sleeping(Sleep { phase: phase @ Phase::Asleep { .. }, .. }) = &mut self.connection
        {
            *phase = Phase::Awake { retry, before: self.air.counters.messages };
            self.air.send(ping(self.options.client_id.as_str()));
        }
    }

    /// Whether the node sleeps, falls asleep, or is awake for no more than what waited.
    pub fn is_asleep(&self) -> bool {
        matches!(self.connection, Connection::Sleeping(_))
    }

    pub(super) fn handle_asleep(&mut self, now: Instant, packet: Packet<'_>) {
        let Connection::Sleeping(sleep) = &mut self.connection else { return };
        match (&sleep.phase, packet) {
            (Phase::Asleep { .. }, _) => self.air.counters.slept_through += 1,
            (Phase::Falling(_), Packet::Disconnect(_)) => {
                sleep.answers_due = sleep.answers_due.saturating_sub(1);
                self.events.push_back(Event::Asleep);
                self.rest(now);
            }
            (Phase::Awake { .. }, Packet::Disconnect(_)) => match sleep.answers_due.checked_sub(1) {
                // If it was no late answer after all, the gateway says it again to the next PINGREQ.
                Some(left) => {
                    sleep.answers_due = left;
                    self.air.stale();
                }
                None => self.lose(now, Loss::Disconnected),
            },
            (Phase::Awake { before, .. }, Packet::PingResp) => {
                let messages = self.air.counters.messages - before;
                self.events.push_back(Event::Drained { messages });
                self.rest(now);
            }
            (_, Packet::Register(_) | Packet::Publish(_) | Packet::PubRel(_)) => self.take(now, packet),
            (_, Packet::Advertise(advertise)) => self.found(now, advertise.gw_id),
            (_, Packet::GwInfo(info)) => self.found(now, info.gw_id),
            _ => self.air.stale(),
        }
    }

    pub(super) fn handle_sleep_timeout(&mut self, now: Instant) {
        let interval = self.options.retry_interval;
        let Connection::Sleeping(sleep) = &mut self.connection else { return };
        let due = match &mut sleep.phase {
            Phase::Asleep { until } => {
                if until.is_some_and(|until| until <= now) {
                    self.wake(now);
                }
                return;
            }
            Phase::Falling(retry) | Phase::Awake { retry, .. } => retry.due(now, interval),
        };
        match due {
            Ok(false) => {}
            Ok(true) if sleep.is_falling() => {
                sleep.answers_due = sleep.answers_due.saturating_add(1);
                self.air.send_again(sleep.disconnect());
            }
            Ok(true) => self.air.send_again(ping(self.options.client_id.as_str())),
            Err(NoAnswer) => self.lose(now, Loss::NoAnswer),
        }
    }

    /// Something that has waited. The gateway is there, and PINGREQ is not asked again while it hands out.
    fn take(&mut self, now: Instant, packet: Packet<'_>) {
        self.with_parts(now, |_, requests, downlink, cx| match packet {
            Packet::Register(register) => Downlink::handle_register(register, cx),
            Packet::Publish(publish) => downlink.handle_publish(publish, requests, cx),
            Packet::PubRel(release) => downlink.handle_pubrel(release, cx),
            _ => {}
        });
        let fresh = self.retry(now);
        if let Connection::Sleeping(Sleep { phase: Phase::Awake { retry, .. }, .. }) = &mut self.connection {
            *retry = fresh;
        }
    }

    fn rest(&mut self, now: Instant) {
        let every = self.options.wake_every;
        if let Connection::Sleeping(sleep) = &mut self.connection {
            let longest = Duration::from_secs(sleep.seconds.into());
            let until = every.map(|every| now + every.max(WAKE_EVERY_MIN).min(longest));
            sleep.phase = Phase::Asleep { until };
        }
    }
}

/// PINGREQ of a sleeper, who may have another address now, says who it is (§5.4.19).
fn ping(client_id: &str) -> Packet<'_> {
    Packet::PingReq(PingReq { client_id: client_id.as_bytes() })
}
