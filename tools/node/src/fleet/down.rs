//! Messages from the broker to the sensors: when each is due, and what became of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::{Message as BrokerMessage, QoS};
use mqtt_sn_gateway::node::{Message, Topic};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::Plan;
use super::ledger::{Offences, Verdict, parse, payload};

/// A message to a sensor, to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) node: u32,
    pub(super) sequence: u32,
}

/// What each sensor is sent while its session holds a subscription, and what has come.
///
/// A message is owed when the broker has taken it. A sensor that begins a clean session anew gives up what it was owed:
/// the gateway forgets it (§6.3).
#[derive(Debug)]
pub(super) struct Down {
    run: u32,
    qos: Qos,
    payload_size: usize,
    period: Duration,
    end: Instant,
    topics: Vec<TopicName>,
    sensors: Vec<Hearer>,
    /// When the next message to each sensor that hears is due.
    due: BTreeSet<(Instant, u32)>,
    /// Published, and not taken by the broker yet.
    under_way: u64,
    /// Owed.
    missing: u64,
    last_event: Option<Instant>,
    pub(super) tally: DownTally,
    pub(super) latency: Vec<Duration>,
    strange: Offences,
}

/// Facts, each counted where it is established.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DownTally {
    pub(super) sent: u64,
    pub(super) taken: u64,
    pub(super) got: u64,
    /// Of those, fetched by sleepers.
    pub(super) fetched: u64,
    /// Given up with a clean session before they came.
    pub(super) forgotten: u64,
}

#[derive(Debug, Default)]
struct Hearer {
    hears: bool,
    messages: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    sent: Instant,
    taken: bool,
    forgotten: bool,
    got: u32,
}

impl Entry {
    fn is_missing(&self) -> bool {
        self.taken && !self.forgotten && self.got == 0
    }
}

impl Down {
    /// `topics`: that of each sensor.
    pub(super) fn new(
        plan: &Plan,
        period: Duration,
        run: u32,
        start: Instant,
        topics: Vec<TopicName>,
    ) -> Self {
        Self {
            run,
            qos: plan.qos,
            payload_size: plan.payload_size,
            period,
            end: start + plan.duration,
            sensors: topics.iter().map(|_| Hearer::default()).collect(),
            topics,
            due: BTreeSet::new(),
            under_way: 0,
            missing: 0,
            last_event: None,
            tally: DownTally::default(),
            latency: Vec::new(),
            strange: Offences::default(),
        }
    }

    /// What to publish.
    pub(super) fn message(&self, letter: Letter) -> Option<BrokerMessage> {
        let Letter { node, sequence } = letter;
        let qos = match self.qos {
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
            Qos::AtMostOnce | Qos::MinusOne => QoS::AtMostOnce,
        };
        let payload = payload(self.run, node, sequence, self.payload_size);
        Some(BrokerMessage { topic: self.topics.get(node as usize)?.clone(), payload, qos, retain: false })
    }

    /// Nothing can be published for the time being.
    pub(super) fn postpone(&mut self, now: Instant) {
        while let Some((_, node)) = self.due.first().filter(|(at, _)| *at <= now) {
            let node = *node;
            self.due.pop_first();
            self.due.insert((now + self.period, node));
        }
    }

    /// The gateway holds the subscription of a sensor.
    pub(super) fn hears(&mut self, node: u32, now: Instant) {
        let Some(hearer) = self.sensors.get_mut(node as usize) else { return };
        if !std::mem::replace(&mut hearer.hears, true) {
            // Not all in one moment.
            self.due.insert((now + self.period.mul_f64(fastrand::f64()), node));
        }
    }

    /// A sensor begins a clean session anew.
    pub(super) fn forgets(&mut self, node: u32) {
        let Some(hearer) = self.sensors.get_mut(node as usize) else { return };
        hearer.hears = false;
        for entry in hearer.messages.iter_mut().filter(|entry| entry.got == 0 && !entry.forgotten) {
            self.missing -= u64::from(entry.is_missing());
            entry.forgotten = true;
            self.tally.forgotten += 1;
        }
        self.due.retain(|(_, other)| *other != node);
    }

    /// Publishes no more.
    pub(super) fn stop(&mut self, now: Instant) {
        self.end = self.end.min(now);
    }

    /// The next message that is due; it counts as sent.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Letter> {
        let (at, node) = *self.due.first().filter(|(at, _)| *at <= now && now < self.end)?;
        self.due.pop_first();
        // One late message does not make the next one early.
        self.due.insert((now.max(at) + self.period, node));
        let messages = &mut self.sensors.get_mut(node as usize)?.messages;
        let sequence = u32::try_from(messages.len()).ok()?;
        messages.push(Entry { sent: now, taken: false, forgotten: false, got: 0 });
        self.tally.sent += 1;
        self.under_way += 1;
        Some(Letter { node, sequence })
    }

    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at).filter(|_| now < self.end)
    }

    /// The broker has acknowledged a message.
    pub(super) fn taken(&mut self, letter: Letter, now: Instant) {
        self.last_event = Some(now);
        let Some(entry) = self.entry(letter) else { return };
        entry.taken = true;
        let missing = entry.is_missing();
        self.missing += u64::from(missing);
        self.under_way -= 1;
        self.tally.taken += 1;
    }

    /// A sensor got a message.
    pub(super) fn got(&mut self, node: u32, message: &Message, now: Instant) {
        self.tally.got += 1;
        self.last_event = Some(now);
        let letter = match parse(&message.payload, self.run) {
            Some((to, sequence)) if to == node => Letter { node, sequence },
            _ => return self.strange.add(|| format!("{node} got what was not sent to it")),
        };
        let Letter { sequence, .. } = letter;
        if message.payload != payload(self.run, node, sequence, self.payload_size) {
            self.strange.add(|| format!("{node}:{sequence} was altered on its way"));
        } else if self
            .topics
            .get(node as usize)
            .is_none_or(|topic| message.topic != Topic::Name(topic.clone()))
        {
            self.strange.add(|| format!("{node}:{sequence} came on topic {}", message.topic));
        } else if message.qos != self.qos {
            self.strange.add(|| format!("{node}:{sequence} came at another QoS"));
        }
        let Some(entry) = self.entry(letter) else {
            return self.strange.add(|| format!("{node}:{sequence} was never sent"));
        };
        let was_missing = entry.is_missing();
        entry.got += 1;
        if entry.got == 1 {
            // It was on its way when the session ended.
            let forgotten = std::mem::take(&mut entry.forgotten);
            let latency = now.saturating_duration_since(entry.sent);
            self.missing -= u64::from(was_missing);
            self.tally.forgotten -= u64::from(forgotten);
            self.latency.push(latency);
        }
    }

    fn entry(&mut self, letter: Letter) -> Option<&mut Entry> {
        self.sensors.get_mut(letter.node as usize)?.messages.get_mut(letter.sequence as usize)
    }

    /// When the sensors may leave: nothing is under way or missing, and nothing has come for `quiet`. `None`: not yet.
    pub(super) fn ripe_at(&self, quiet: Duration) -> Option<Instant> {
        let owed = if self.qos == Qos::AtMostOnce { 0 } else { self.missing };
        let last = self.last_event.map_or(self.end, |at| self.end.max(at + quiet));
        (self.under_way + owed == 0).then_some(last)
    }

    pub(super) fn verdict(self) -> Verdict {
        let mut verdict = Verdict { strange: self.strange, ..Verdict::default() };
        for (node, hearer) in self.sensors.iter().enumerate() {
            for (sequence, entry) in hearer.messages.iter().enumerate() {
                let name = || format!("{node}:{sequence}");
                match entry.got {
                    0 if entry.is_missing() && self.qos != Qos::AtMostOnce => verdict.lost.add(name),
                    0 => verdict.unacked_missing += u64::from(!entry.forgotten),
                    1 => {}
                    got if self.qos == Qos::ExactlyOnce => {
                        verdict.repeated.add(|| format!("{} came {got} times", name()));
                    }
                    got => verdict.duplicates += u64::from(got - 1),
                }
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Template, Weather};
    use super::*;
    use crate::shell::Gateway;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(qos: Qos) -> Plan {
        let gateway = Gateway { host: "localhost".into(), port: 1884 };
        Plan {
            verify: Some(gateway.clone()),
            via: super::super::Via::Udp(gateway),
            nodes: 2,
            period: SECOND,
            down: Some(SECOND),
            qos,
            retry: SECOND,
            retry_limit: 3,
            weather: Weather { loss: 0.0, dup: 0.0, reorder: 0.0 },
            duration: 10 * SECOND,
            spread: SECOND,
            settle: SECOND,
            sleepers: 0.0,
            seed: 0,
            payload_size: 32,
            template: Template::new("f/{node}").unwrap(),
            keep_alive: SECOND,
            clean_session: true,
            report: None::<PathBuf>,
        }
    }

    /// Two sensors, of which number 1 hears, and the time when its first message is due.
    fn down(qos: Qos) -> (Down, Instant) {
        let (plan, start) = (plan(qos), Instant::now());
        let topics = (0..2).map(|node| plan.template.down(node).unwrap()).collect();
        let mut down = Down::new(&plan, SECOND, 7, start, topics);
        assert_eq!(down.poll(start + SECOND), None);
        down.hears(1, start);
        (down, start + SECOND)
    }

    fn sent(down: &Down, letter: Letter, qos: Qos) -> Message {
        let message = down.message(letter).unwrap();
        let topic = Topic::Name(message.topic);
        Message { topic, payload: message.payload, qos, retain: false, dup: false }
    }

    #[test]
    fn a_message_is_owed_from_the_brokers_acknowledgement_until_it_comes() {
        let (mut down, now) = down(Qos::AtLeastOnce);
        let letter = down.poll(now).unwrap();
        assert_eq!(letter, Letter { node: 1, sequence: 0 });
        assert_eq!(down.poll(now), None, "the next is due in a second");
        assert_eq!(down.ripe_at(SECOND), None, "under way");
        down.taken(letter, now);
        assert_eq!(down.ripe_at(SECOND), None, "owed");
        let message = sent(&down, letter, Qos::AtLeastOnce);
        down.got(1, &message, now + 20 * SECOND);
        assert_eq!(down.ripe_at(SECOND), Some(now + 21 * SECOND));
        assert_eq!(down.verdict().lost.count, 0);
    }

    #[test]
    fn what_never_comes_is_lost_unless_the_session_was_given_up() {
        for (forgets, lost) in [(false, 1), (true, 0)] {
            let (mut down, now) = down(Qos::AtLeastOnce);
            let letter = down.poll(now).unwrap();
            down.taken(letter, now);
            if forgets {
                down.forgets(1);
                assert!(down.ripe_at(SECOND).is_some());
                assert_eq!(down.poll(now + SECOND), None, "nothing to a sensor that does not hear");
            }
            assert_eq!(down.tally.forgotten, 1 - lost);
            assert_eq!(down.verdict().lost.count, lost);
        }
    }

    #[test]
    fn a_second_copy_is_an_offence_at_qos_2_and_a_duplicate_at_qos_1() {
        for (qos, repeated, duplicates) in [(Qos::ExactlyOnce, 1, 0), (Qos::AtLeastOnce, 0, 1)] {
            let (mut down, now) = down(qos);
            let letter = down.poll(now).unwrap();
            // The sensor may be quicker than the acknowledgement.
            let message = sent(&down, letter, qos);
            down.got(1, &message, now);
            down.taken(letter, now);
            down.got(1, &message, now);
            let verdict = down.verdict();
            assert_eq!((verdict.lost.count, verdict.repeated.count), (0, repeated));
            assert_eq!(verdict.duplicates, duplicates);
        }
    }

    #[test]
    fn what_is_not_as_sent_is_strange() {
        let (mut down, now) = down(Qos::AtLeastOnce);
        let letter = down.poll(now).unwrap();
        let message = sent(&down, letter, Qos::AtLeastOnce);
        down.got(0, &message, now);
        down.got(1, &Message { qos: Qos::AtMostOnce, ..message.clone() }, now);
        down.got(1, &Message { topic: Topic::Predefined(1), ..message.clone() }, now);
        down.got(1, &Message { payload: "00000007 1 0 .........!".into(), ..message.clone() }, now);
        down.got(1, &Message { payload: payload(7, 1, 5, 32), ..message }, now);
        assert_eq!(down.verdict().strange.count, 5);
    }

    #[test]
    fn nothing_is_sent_after_the_end_nor_made_up_for_after_a_pause() {
        let (mut down, now) = down(Qos::AtLeastOnce);
        down.postpone(now);
        assert_eq!(down.poll(now), None);
        assert!(down.poll(now + 5 * SECOND).is_some());
        assert_eq!(down.poll(now + 5 * SECOND), None);
        down.stop(now + 6 * SECOND);
        assert_eq!(down.poll(now + 7 * SECOND), None);
        assert_eq!(down.poll_timeout(now + 7 * SECOND), None);
    }
}
