//! Every message of a world: who gave it, where it was seen, what its sender was told.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mqtt_sn_gateway::node::Outcome;
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use crate::law::{Checked, Law};

/// A message, by the number in its payload.
pub(crate) type No = usize;

/// A sensor, by its index.
pub(crate) type Who = usize;

/// Who publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A sensor that has been switched on this many times before.
    Sensor {
        who: Who,
        life: u32,
        /// CleanSession 0, and a session of its own.
        persistent: bool,
        /// Frames come in order and once, if they come, and the session is its own.
        prompt: bool,
    },
    /// The MQTT client at the broker.
    Observer,
    /// The gateway, when it loses this sensor.
    Will(Who),
}

/// One message.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) origin: Origin,
    pub(crate) topic: TopicName,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// How often the broker took it.
    pub(crate) at_broker: u32,
    /// Its place among all that the broker took, by the first time.
    pub(crate) order: Option<u64>,
    /// Losses of the broker's memory before that.
    losses: u32,
    /// How often the gateway lost what it knew of it, since sessions end and gateways are restarted.
    pub(crate) forgotten: u32,
    /// The broker sent it to the gateway again.
    pub(crate) redelivered: bool,
    /// The gateway heard PUBREC.
    pub(crate) received: bool,
    /// The gateway heard PUBACK or PUBCOMP.
    pub(crate) acked: bool,
    pub(crate) outcome: Option<Outcome>,
    /// How often what is between its sender and the broker had been lost before.
    pub(crate) breaks: u32,
    /// How often this Will is due so far.
    pub(crate) wills_due: u32,
    /// In worlds with a store, that is how often it may have been; and so often it is for certain.
    pub(crate) wills_certain: u32,
    /// It was stored for the broker once its sender was told that all is well.
    pub(crate) is_kept: bool,
    /// It was handed to the store for that.
    pub(crate) promised: bool,
    /// Whether it was stored to go by its client's own link.
    pub(crate) by_own: Option<bool>,
    /// It was to go by its client's own link, and goes by the gateway's because there is no such link any more.
    pub(crate) handed_over: bool,
    /// The operator had its sender forgotten; before it was at the broker.
    pub(crate) disowned: bool,
    pub(crate) erased: bool,
}

impl Entry {
    /// Its sender was told so.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.outcome == Some(Outcome::Acknowledged) && self.qos > Qos::AtMostOnce
    }
}

/// All messages, and the order in which they were seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    /// Whose client id each sensor has.
    clients: Vec<Who>,
    /// Messages the broker took.
    taken: u64,
    /// How often the broker lost what it knew of the gateway.
    pub(crate) losses: u32,
    /// The last message first published by a sensor in one of its lives.
    last_up: BTreeMap<(Who, u32), No>,
    /// How often a sensor got a message, in one of its sessions.
    got: BTreeMap<(Who, u32, No), u32>,
    /// How often of those at QoS 2.
    got_exactly: BTreeMap<(Who, u32, No), u32>,
    /// What the sensors with a client id got at all.
    ever: BTreeSet<(Who, No)>,
    /// The highest order a sensor got in one of its sessions.
    last_down: BTreeMap<(Who, u32, Option<TopicName>), u64>,
    overtaken: BTreeSet<Who>,
    /// Messages may be acknowledged before the broker has them.
    pub(crate) keeps: bool,
    /// How often what is between a client and the broker, or all of them, was lost to somebody.
    broken: BTreeMap<Option<Who>, u32>,
    /// How often the broker sent a message anew on the own link of a client.
    came: BTreeMap<(Who, No), u32>,
}

/// A message as a sensor gets it.
#[derive(Debug)]
pub(crate) struct Got<'a> {
    pub(crate) who: Who,
    /// Counts sessions whose memory is not that of the one before.
    pub(crate) session: u32,
    /// A late copy of what was for the session before may still come.
    pub(crate) young: bool,
    /// What it subscribes to changed while the message was under way on several links of the gateway's.
    pub(crate) split: bool,
    /// Some clients have links of their own, and some have not: one that was served in the other way before may have left a session
    /// at the broker which nobody could end, and it gets from there what it had from the gateway's link.
    pub(crate) mixed: bool,
    /// There are several: each has an order of its own, and one topic is on one of them.
    pub(crate) has_lanes: bool,
    pub(crate) topic: &'a TopicName,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

impl Ledger {
    pub(crate) fn new(clients: Vec<Who>) -> Self {
        Self { clients, ..Self::default() }
    }

    /// Enters a message and makes its payload, of about `len` octets.
    pub(crate) fn enter(
        &mut self,
        origin: Origin,
        topic: TopicName,
        qos: Qos,
        retain: bool,
        len: usize,
    ) -> (No, Bytes) {
        let no = self.entries.len();
        let breaks = match origin {
            Origin::Sensor { who, .. } | Origin::Will(who) => self.breaks(self.clients[who]),
            Origin::Observer => 0,
        };
        self.entries.push(Entry {
            origin,
            topic,
            qos,
            retain,
            at_broker: 0,
            order: None,
            losses: 0,
            forgotten: 0,
            redelivered: false,
            received: false,
            acked: false,
            outcome: None,
            breaks,
            wills_due: 0,
            wills_certain: 0,
            is_kept: false,
            promised: false,
            by_own: None,
            handed_over: false,
            disowned: false,
            erased: false,
        });
        let mut payload = format!("m{no} ");
        while payload.len() < len {
            payload.push('.');
        }
        (no, payload.into())
    }

    /// The message with this payload.
    pub(crate) fn find(&self, payload: &[u8]) -> Option<No> {
        let text = std::str::from_utf8(payload).ok()?;
        let no = text.strip_prefix('m')?.split(' ').next()?.parse().ok()?;
        (no < self.entries.len()).then_some(no)
    }

    pub(crate) fn entry(&self, no: No) -> &Entry {
        &self.entries[no]
    }

    pub(crate) fn entry_mut(&mut self, no: No) -> &mut Entry {
        &mut self.entries[no]
    }

    /// The broker sent a message on the own link of a client, and not again what the gateway has there.
    pub(crate) fn came(&mut self, client: Who, no: No) {
        *self.came.entry((client, no)).or_default() += 1;
    }

    /// How often it did so.
    pub(crate) fn copies(&self, client: Who, no: No) -> u32 {
        self.came.get(&(client, no)).copied().unwrap_or(0)
    }

    /// Whose client id a sensor has.
    pub(crate) fn client(&self, who: Who) -> Who {
        self.clients[who]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (No, &Entry)> {
        self.entries.iter().enumerate()
    }

    /// The broker took a message.
    pub(crate) fn at_broker(&mut self, payload: &[u8], topic: &str) -> Checked<No> {
        let no = self.find(payload);
        let no = no.ok_or_else(|| Law::UplinkFaithful.broken(format!("nobody published {payload:?}")))?;
        let losses = self.losses;
        let entry = &mut self.entries[no];
        Law::UplinkFaithful.check(entry.topic.as_str() == topic, || {
            format!("m{no} is for {} and was published on {topic}", entry.topic)
        })?;
        entry.at_broker += 1;
        if entry.order.is_none() {
            self.taken += 1;
            entry.order = Some(self.taken);
            entry.losses = losses;
            if let Origin::Sensor { who, life, .. } = entry.origin
                && matches!(entry.qos, Qos::AtLeastOnce | Qos::ExactlyOnce)
                && let Some(last) = self.last_up.insert((who, life), no)
            {
                let (one, other) = (&self.entries[no], &self.entries[last]);
                let by_other_link = one.handed_over || other.handed_over;
                // The next session of its sender may be served in the other way.
                let by_other_link =
                    by_other_link || one.by_own.zip(other.by_own).is_some_and(|(one, other)| one != other);
                Law::UplinkOrder.check(last < no || by_other_link, || {
                    format!("m{no} was first published after m{last}")
                })?;
            }
        }
        let entry = &self.entries[no];
        let count = entry.at_broker;
        let lost = losses - entry.losses + entry.forgotten;
        let checked = match entry.origin {
            Origin::Sensor { persistent: true, .. } if entry.qos == Qos::ExactlyOnce => {
                // What was acknowledged early is published anew if the broker loses its session before PUBCOMP.
                let open = !entry.acked || self.keeps || entry.forgotten > 0;
                let fair = count <= 1 + lost && (count == 1 || open);
                Law::UplinkExactlyOnce.check(fair, || format!("m{no} was published {count} times"))
            }
            Origin::Sensor { .. } => Ok(()),
            Origin::Observer => Law::UplinkExactlyOnce
                .check(count == 1, || format!("m{no} of the observer was published {count} times")),
            Origin::Will(who) => {
                let due = entry.wills_due;
                let repeated = entry.qos == Qos::AtLeastOnce && due > 0;
                Law::WillOnLoss.check(count <= due + lost || repeated, || {
                    format!("the Will m{no} of s{who} was published {count} times and due {due} times")
                })
            }
        };
        checked.map(|()| no)
    }

    /// The gateway forgot a client, or all of them, with what it knew of their messages.
    pub(crate) fn forget(&mut self, client: Option<Who>) {
        self.broken(client);
        for entry in &mut self.entries {
            let whose = match entry.origin {
                Origin::Sensor { who, .. } | Origin::Will(who) => who,
                Origin::Observer => continue,
            };
            entry.forgotten += u32::from(client.is_none_or(|client| client == self.clients[whose]));
        }
    }

    /// The operator has a client forgotten: what is kept of it for the broker is not any more.
    pub(crate) fn erase(&mut self, client: Who) {
        self.forget(Some(client));
        for entry in &mut self.entries {
            let (Origin::Sensor { who, .. } | Origin::Will(who)) = entry.origin else { continue };
            if self.clients[who] == client {
                (entry.disowned, entry.erased) = (true, entry.erased || entry.at_broker == 0);
            }
        }
    }

    /// Something that a client, or all of them, have with the broker is lost: promises made before are void.
    pub(crate) fn broken(&mut self, client: Option<Who>) {
        *self.broken.entry(client).or_default() += 1;
    }

    /// How often that has happened to a client.
    pub(crate) fn breaks(&self, client: Who) -> u32 {
        [None, Some(client)].iter().filter_map(|whose| self.broken.get(whose)).sum()
    }

    /// What a sensor is told of its message.
    pub(crate) fn ended(&mut self, no: No, outcome: Outcome) -> Checked {
        let losses = self.losses;
        let entry = &mut self.entries[no];
        entry.outcome = Some(outcome);
        if matches!(outcome, Outcome::Acknowledged | Outcome::Uncertain) {
            let count = entry.at_broker;
            Law::AcknowledgedIsPublished
                .check(count > 0 || self.keeps, || format!("m{no} was acknowledged and not published"))?;
            let strict = match entry.origin {
                Origin::Sensor { persistent, prompt, .. } => persistent || prompt,
                _ => false,
            };
            if strict && outcome == Outcome::Acknowledged && entry.qos == Qos::ExactlyOnce {
                let fair = count <= 1 + losses - entry.losses + entry.forgotten;
                Law::UplinkExactlyOnce.check(fair, || format!("m{no} was published {count} times"))?;
            }
        }
        Ok(())
    }

    /// A sensor's application gets a message.
    pub(crate) fn got(&mut self, payload: &[u8], got: &Got<'_>) -> Checked<No> {
        let who = got.who;
        let no = self.find(payload);
        let no = no.ok_or_else(|| {
            Law::DownlinkFaithful.broken(format!("s{who} got {payload:?} that nobody sent"))
        })?;
        let entry = &self.entries[no];
        let published = entry.qos.max(Qos::AtMostOnce);
        let faithful = entry.topic == *got.topic
            && got.qos <= published
            && (!got.retain || entry.retain)
            && entry.at_broker > 0;
        Law::DownlinkFaithful
            .check(faithful, || format!("m{no} reached s{who} as {got:?}, it is {entry:?}"))?;
        self.ever.insert((self.clients[who], no));
        if got.retain || got.qos == Qos::AtMostOnce {
            return Ok(no);
        }
        let exactly = self.got_exactly.entry((who, got.session, no)).or_default();
        *exactly += u32::from(got.qos == Qos::ExactlyOnce);
        let count = self.got.entry((who, got.session, no)).or_default();
        *count += 1;
        if *count > 1 {
            let copies = self.came.get(&(self.clients[who], no)).copied().unwrap_or(0);
            let copies = copies + u32::from(got.mixed && copies > 0);
            let most = entry.at_broker.max(copies);
            // What it got at QoS 1 comes once more if the broker has to send it again, and at QoS 2 if it has that by then.
            let raised = entry.redelivered && *exactly <= most;
            let fair = got.qos != Qos::ExactlyOnce || *count <= most || got.split || raised;
            Law::DownlinkExactlyOnce.check(fair, || format!("s{who} got m{no} {count} times"))?;
            return Ok(no);
        }
        if entry.at_broker > 1 || entry.redelivered || got.young || got.split {
            return Ok(no);
        }
        let order = entry.order.unwrap_or(0);
        // Of one topic always.
        for topic in [Some(entry.topic.clone()), None] {
            if topic.is_none() && (got.has_lanes || self.overtaken.contains(&self.clients[who])) {
                continue;
            }
            let last = self.last_down.entry((who, got.session, topic)).or_default();
            Law::DownlinkOrder.check(*last < order, || {
                format!("s{who} got m{no} (taken by the broker as {order}) after the one taken as {last}")
            })?;
            *last = order;
        }
        Ok(no)
    }

    /// A client did not answer for a topic: from now on messages of others overtake those on it.
    pub(crate) fn overtaken(&mut self, client: Who) {
        self.overtaken.insert(client);
    }

    /// Whether that is so.
    pub(crate) fn is_overtaken(&self, client: Who) -> bool {
        self.overtaken.contains(&client)
    }

    /// Whether a client ever got a message.
    pub(crate) fn has(&self, client: Who, no: No) -> bool {
        self.ever.contains(&(client, no))
    }

    /// How often a sensor got a live message at QoS 1 or 2.
    pub(crate) fn times(&self, who: Who, session: u32, no: No) -> u32 {
        self.got.get(&(who, session, no)).copied().unwrap_or(0)
    }
}
