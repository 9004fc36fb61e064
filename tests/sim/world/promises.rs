//! G3 from end to end: from the publisher's act to the broker, and from there to the subscriber's application. What the
//! accounts of either side say of it is not asked.

use std::time::{Duration, Instant};

use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::record::{ClientKey, Key};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use super::World;
use crate::air::{client_id, sheds};
use crate::law::{Checked, Law};
use crate::ledger::{No, Origin, Who};
use crate::link::{self, Lane};
use crate::sensor::Sensor;

/// So long after a sensor heard of a change of its subscriptions the broker and its messages may not have.
const SETTLED: Duration = Duration::from_secs(10);

/// A message that a sensor's application is to get: it was granted what matches, and the broker had that.
pub(super) struct Due {
    no: No,
    who: Who,
    qos: Qos,
    /// The memory of the sensor, the sessions between it and the broker, and its subscriptions when the broker took the
    /// message: what has not lasted promises nothing.
    session: u32,
    breaks: u32,
    since: u64,
}

/// What became of those that are due.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// To the end.
    pub(super) followed: u64,
    /// Kept, and void since: a sensor, or somebody between it and the broker, lost its memory, or the subscription changed.
    pub(super) early: u64,
    /// Void before it was kept.
    pub(super) void: u64,
}

impl World<'_> {
    /// The broker has taken a message: to whom is it promised?
    pub(super) fn promise(&mut self, no: No) {
        let entry = self.ledger.entry(no);
        if entry.at_broker > 1 || entry.qos < Qos::AtLeastOnce {
            return;
        }
        let dues: Vec<Due> = self.sensors.iter().filter_map(|sensor| self.due_to(no, sensor)).collect();
        self.promised.extend(dues);
    }

    fn due_to(&self, no: No, sensor: &Sensor) -> Option<Due> {
        let (entry, client) = (self.ledger.entry(no), sensor.client);
        let topic = &entry.topic;
        // A late copy of a CONNECT may begin a clean session anew, and nobody is told.
        let lasting = !sensor.clean || self.plan.radio.is_prompt();
        // On a link of its own a clean session is gone with each connection.
        let passing = sensor.clean && self.plan.settings.lasting && self.store.is_dedicated(client);
        let certain = sensor.node.is_some() && !sensor.shared && !sensor.retired && lasting && !passing;
        if !certain || !sensor.wants(topic) || sensor.bears(topic) || sensor.is_asking_about(topic) {
            return None;
        }
        let (granted, since) = self.granted(sensor, topic)?;
        let qos = granted.min(entry.qos);
        (qos > Qos::AtMostOnce && self.broker_has(sensor, topic)).then(|| Due {
            no,
            who: sensor.who,
            qos,
            session: sensor.session,
            breaks: self.ledger.breaks(client),
            since,
        })
    }

    /// The QoS at which a sensor was granted what matches, and since when. Where the air is not followed, as far as its
    /// application and the store know.
    fn granted(&self, sensor: &Sensor, topic: &TopicName) -> Option<(Qos, u64)> {
        if !self.plan.settings.lasting {
            return self.air.session(sensor.client)?.granted(topic);
        }
        let id = client_id(sensor.client);
        let key = |filter| Key::Client(id.clone(), ClientKey::Subscription(filter));
        let stored = sensor.matching(topic).all(|(filter, _)| self.store.will_have(&key(filter)));
        sensor.granted(topic).filter(|_| stored)
    }

    /// What a sensor subscribes to changed while the message was under way on several links of the gateway's.
    pub(super) fn is_split(&self, who: Who, no: No) -> bool {
        let sensor = &self.sensors[who];
        if !self.plan.settings.lasting {
            return self.air.is_split(sensor.client, no, &self.ledger);
        }
        // A broker that wanted no further link may send a copy for each of several filters on one.
        if !self.plan.broker_knows_5 && self.store.has_crowded(&self.ledger.entry(no).topic) {
            return true;
        }
        let changed = |came: Instant| sensor.changed.is_none_or(|at| at + SETTLED >= came);
        self.air.has_lanes && self.air.came_at(no).is_none_or(changed)
    }

    /// Whether the broker has, on the links where it is to have it, what brings a client messages on this topic.
    fn broker_has(&self, sensor: &Sensor, topic: &TopicName) -> bool {
        let client = sensor.client;
        if self.plan.settings.lasting {
            let sessions: Vec<_> = self
                .accounts
                .iter()
                .filter(|(id, _)| match link::lane(id) {
                    Lane::Client(who) => who == client,
                    Lane::Gateway(_) => !self.store.is_dedicated(client),
                })
                .filter_map(|(id, account)| Some((account, self.broker.session(id)?)))
                .collect();
            // What the broker is told after a message, in the same write, brings the message to nobody.
            let has = |(filter, qos): (TopicFilter, Qos)| {
                sessions.iter().any(|(account, session)| {
                    let mut known = session.subscriptions.iter();
                    account.holds(&filter, qos)
                        && known.any(|(other, at)| *other == filter && link::qos(*at) >= qos)
                })
            };
            // The gateway remembers what the sensor may have forgotten, and awaits the copy for that if it is the better one.
            let stored = self.store.subscriptions(client);
            let stored = stored.filter(|(filter, _)| filter.matches(topic));
            return sensor.matching(topic).chain(stored).all(has);
        }
        let Some(session) = self.air.session(client) else { return false };
        let mut matching = session.matching(topic);
        // What was granted in the absence of the broker, which may have the filter at QoS 0, brings nothing before that knows.
        // And what it is told after a message, in the same write, brings the message to nobody.
        matching.all(|(filter, qos, lane)| {
            let Some(id) = lane.map(link::client_id) else { return false };
            let known = self.broker.session(&id).map_or_else(Vec::new, |known| known.subscriptions);
            let holds = self.accounts.get(&id).is_some_and(|account| account.holds(filter, qos));
            holds && known.iter().any(|(other, at)| other == filter && link::qos(*at) >= qos)
        })
    }

    /// At the end everything promised was kept, or its breach is in a counter.
    pub(super) fn check_promises(&mut self) -> Checked {
        self.check_promises_up()?;
        let mut kept = Kept::default();
        let mut missing = Vec::new();
        for due in &self.promised {
            let &Due { no, who, qos, .. } = due;
            let sensor = &self.sensors[who];
            if !self.lasted(due, sensor) {
                // What came of it before nobody was bound by it any more was kept all the same.
                let early = self.ledger.has(sensor.client, no);
                kept.early += u64::from(early);
                kept.void += u64::from(!early);
                continue;
            }
            kept.followed += 1;
            // Its filters changed while the message was under way, with a broker that knows no identifiers: documented.
            let between = self.is_split(who, no);
            if !self.ledger.has(sensor.client, no) && !between {
                missing.push((who, no));
            }
            // What the broker sends as several messages, one for each filter, it does not mean to be one.
            let sent = self.ledger.copies(sensor.client, no).max(self.ledger.entry(no).at_broker);
            let times = self.ledger.times(who, due.session, no);
            // Of several copies for several filters some may be of QoS 1, which a crash repeats.
            let several = self.plan.settings.lasting && sent > 1;
            let fair = several || qos < Qos::ExactlyOnce || times <= sent || self.is_split(who, no);
            Law::EndToEndDown
                .check(fair, || format!("s{who} got m{no} {times} times, the broker sent it {sent} times"))?;
        }
        self.kept_promises = kept;
        let named =
            |counters: &Counters| sheds(counters) + counters.downlink_unanswered + counters.downlink_expired;
        let named = self.counted(named);
        // The broker may refuse what was granted in its absence (design section 3), and clients cannot be told.
        let refused = self.counted(|counters| counters.subscriptions_refused) > 0;
        Law::EndToEndDown.check(missing.len() as u64 <= named || refused, || {
            format!("{missing:?} were promised and have not arrived, {named} are in counters")
        })
    }

    /// Whether everybody is still the one to whom the promise was made.
    fn lasted(&self, due: &Due, sensor: &Sensor) -> bool {
        let topic = &self.ledger.entry(due.no).topic;
        let granted = self.granted(sensor, topic);
        !sensor.retired
            && sensor.session == due.session
            && self.ledger.breaks(sensor.client) == due.breaks
            && granted.is_some_and(|(qos, since)| since == due.since && qos >= due.qos)
    }

    /// What a sensor's application was told is acknowledged is at the broker: at least once, and of QoS 2 once.
    fn check_promises_up(&self) -> Checked {
        let named = |counters: &Counters| {
            counters.uplink_expired + counters.uplink_refused + counters.uplink_given_up
        };
        let named = self.counted(named);
        let mut missing = Vec::new();
        for (no, entry) in self.ledger.iter().filter(|(_, entry)| entry.is_acknowledged()) {
            let Origin::Sensor { who, persistent, prompt, .. } = entry.origin else { continue };
            let times = entry.at_broker;
            let lasted = self.ledger.breaks(self.ledger.client(who)) == entry.breaks;
            let once = entry.qos == Qos::ExactlyOnce && lasted && (persistent || prompt);
            if times == 0 {
                missing.extend((!entry.erased).then_some(no));
                continue;
            }
            Law::EndToEndUp.check(times == 1 || !once, || {
                format!("m{no} of s{who} is acknowledged, {:?}, and at the broker {times} times", entry.qos)
            })?;
        }
        Law::EndToEndUp.check(missing.len() as u64 <= named, || {
            format!("{missing:?} are acknowledged and not at the broker, {named} are in counters")
        })
    }
}
