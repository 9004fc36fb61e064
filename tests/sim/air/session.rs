//! A client as the gateway should see it, and what is open with it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::Peer;
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{Qos, TopicRef};

use crate::ledger::{Ledger, No};
use crate::link::Lane;

/// Where a client is in the figure of §6.14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Active,
    Asleep,
    Awake,
    /// Disconnected or lost.
    Away,
}

/// A client as the gateway should see it.
pub(crate) struct Session {
    pub(super) state: State,
    /// When the connection was set up.
    pub(super) since: Instant,
    /// When the session ends, once the connection has.
    pub(super) expires: Instant,
    /// It has a link of its own, on which the broker had a session of it before this gateway had one.
    pub(super) dedicated: bool,
    pub(super) inherited: bool,
    /// Until when it is not told that this is lost; it is asleep and will be told.
    pub(super) grace: Option<Instant>,
    pub(super) overdue: bool,
    /// When it is next looked whether it was heard.
    pub(super) watch: Option<Instant>,
    /// When its filters were last issued again.
    pub(super) reissued: Option<Instant>,
    /// What it has unsubscribed from.
    pub(super) gone: BTreeSet<TopicFilter>,
    pub(super) peer: Option<Peer>,
    pub(super) clean: bool,
    pub(super) keep_alive: Duration,
    pub(super) sleep: Duration,
    pub(super) last_heard: Instant,
    pub(super) connect: Option<Bytes>,
    /// It was set up with prompts, and nothing came since.
    pub(super) prompted: bool,
    /// When its peer was last told, since it connected, of a client that has no session; and whether the last that was heard
    /// may answer that.
    pub(super) told: Option<Instant>,
    pub(super) took_leave: bool,
    pub(super) will: Option<No>,
    /// Every id of this session.
    pub(super) ids: BTreeMap<u16, TopicName>,
    /// Those the client was told of in this connection.
    pub(super) known: BTreeSet<u16>,
    pub(super) subs: BTreeMap<TopicFilter, Sub>,
    /// When there was last anything new about a filter.
    pub(super) changed: BTreeMap<TopicFilter, Instant>,
    /// By MsgId, the last of each.
    pub(super) asked: BTreeMap<u16, Asked>,
    /// SUBSCRIBEs and PUBLISHes without an answer, and when they are to have one.
    pub(super) unanswered: BTreeMap<(&'static str, u16), Instant>,
    /// What the client's MsgIds stand for.
    pub(super) up: BTreeMap<u16, (No, Qos)>,
    pub(super) exchange: Option<Exchange>,
    /// When the client was first asked in this connection to learn a name.
    pub(super) offered: BTreeMap<TopicName, Instant>,
    /// Names that it did not answer for though it was heard, and that have not been offered again.
    pub(super) resting: BTreeSet<TopicName>,
    /// How often that was so, for what waits for a name.
    pub(super) rounds: BTreeMap<No, u32>,
    /// It was deaf to all of that and has not been asked again.
    pub(super) silent: bool,
    /// It was so once: from then on messages overtake those whose topic it does not learn.
    pub(super) overtaking: bool,
    /// What was open when the connection ended: it may go on, and its topic is named as it was, unless the client refused that.
    pub(super) resumable: Vec<(u16, No, Qos, bool, Option<TopicRef>)>,
    /// What the client did not know the topic id of: it is sent once more, after a REGISTER that may take its time.
    pub(super) repairing: BTreeSet<No>,
    /// Answers to its SUBSCRIBEs may have been meant for a transport that was down, the last by then.
    pub(super) missed: Option<Instant>,
    /// What was registered last and may be published though nobody subscribes any more.
    pub(super) under_way: Option<TopicName>,
    /// What was being registered when that was interrupted, the same.
    pub(super) interrupted: BTreeSet<TopicName>,
    /// Messages for the client, in order.
    pub(super) queue: VecDeque<(No, Qos)>,
    /// How many of them, from the first, waited when the client woke and must leave before PINGRESP.
    pub(super) owed: usize,
    /// Messages that may still leave in this drain.
    pub(super) drain: usize,
    /// How often a live message was sent anew.
    pub(super) copies: BTreeMap<No, u32>,
    /// SUBSCRIBEs that came, by filter.
    pub(super) subscribes: BTreeMap<TopicFilter, u32>,
    /// Retained messages handed out.
    pub(super) hand_outs: BTreeMap<No, u32>,
}

#[derive(Clone, Copy)]
pub(super) struct Sub {
    pub(super) qos: Qos,
    /// Grows from one subscription of the client to the next.
    pub(super) since: u64,
    /// A SUBACK granted it. Else it is asked for, or the gateway may have dropped it.
    pub(super) held: bool,
    /// The broker granted the filter since, on this link. What comes before that may come by way of another filter, at its
    /// QoS.
    pub(super) at_broker: Option<Lane>,
    /// A renewal was refused: nobody can tell from outside what is left of it.
    pub(super) doubtful: bool,
    /// The answer may have been meant for a transport that was down.
    pub(super) missed: bool,
}

#[derive(Clone)]
pub(super) struct Asked {
    pub(super) filter: Option<TopicFilter>,
    /// What SUBACK has to say; `None`: the id of the name.
    pub(super) topic_id: Option<u16>,
    pub(super) qos: Qos,
}

/// How often a message goes through all its repetitions with a client that is heard.
pub(super) const ROUNDS: u32 = 3;

pub(super) struct Exchange {
    pub(super) kind: Kind,
    pub(super) msg_id: u16,
    pub(super) sent: u32,
    pub(super) first: Instant,
    pub(super) last: Instant,
    /// The broker does not wait for it.
    pub(super) stray: bool,
    /// The client did not know the topic id, and was told.
    pub(super) repaired: bool,
    /// How often all repetitions were in vain though the client was heard.
    pub(super) rounds: u32,
    /// Octets of the frame.
    pub(super) len: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Register(u16, TopicName),
    Publish { no: No, topic: TopicRef, qos: Qos, retain: bool },
    Release,
}

impl Exchange {
    /// A request that has left.
    pub(super) fn new(kind: Kind, msg_id: u16, now: Instant) -> Self {
        let (first, last) = (now, now);
        Self { kind, msg_id, sent: 1, first, last, stray: false, repaired: false, rounds: 0, len: 0 }
    }

    /// PUBREL, which has yet to leave.
    pub(super) fn release(msg_id: u16, now: Instant) -> Self {
        Self { sent: 0, stray: true, ..Self::new(Kind::Release, msg_id, now) }
    }
}

impl Session {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Away,
            since: now,
            expires: now,
            dedicated: false,
            inherited: false,
            grace: None,
            overdue: false,
            watch: None,
            reissued: None,
            gone: BTreeSet::new(),
            peer: None,
            clean: true,
            keep_alive: Duration::ZERO,
            sleep: Duration::ZERO,
            last_heard: now,
            connect: None,
            prompted: false,
            told: None,
            took_leave: false,
            will: None,
            ids: BTreeMap::new(),
            known: BTreeSet::new(),
            subs: BTreeMap::new(),
            changed: BTreeMap::new(),
            asked: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            up: BTreeMap::new(),
            exchange: None,
            offered: BTreeMap::new(),
            resting: BTreeSet::new(),
            rounds: BTreeMap::new(),
            silent: false,
            overtaking: false,
            resumable: Vec::new(),
            repairing: BTreeSet::new(),
            missed: None,
            under_way: None,
            interrupted: BTreeSet::new(),
            queue: VecDeque::new(),
            owed: 0,
            drain: 0,
            copies: BTreeMap::new(),
            subscribes: BTreeMap::new(),
            hand_outs: BTreeMap::new(),
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.state == State::Active
    }

    pub(super) fn is_there(&self) -> bool {
        self.state != State::Away
    }

    ///
    pub(super) fn supervision(&self) -> Option<Instant> {
        let silence = match self.state {
            State::Active => self.keep_alive,
            State::Asleep => self.sleep,
            State::Awake | State::Away => return None,
        };
        let tolerance = if silence > Duration::from_secs(60) { 10 } else { 2 };
        (!silence.is_zero()).then(|| self.last_heard + silence + silence / tolerance)
    }

    /// What is open stops, to be asked again under its MsgId.
    pub(super) fn freeze(&mut self, now: Instant, ledger: &Ledger) {
        match self.exchange.take() {
            Some(Exchange { kind: Kind::Publish { no, topic, qos, retain }, msg_id, .. }) => {
                self.resumable.push((msg_id, no, qos, retain, Some(topic)));
            }
            Some(Exchange { kind: Kind::Release, msg_id, .. }) => {
                self.exchange = Some(Exchange::release(msg_id, now));
            }
            Some(Exchange { kind: Kind::Register(_, name), .. }) => {
                self.interrupted.insert(name.clone());
                self.under_way = Some(name);
            }
            None => {}
        }
        if let Some(&(_, no, ..)) = self.resumable.last() {
            self.under_way = Some(ledger.entry(no).topic.clone());
        }
    }

    /// The client has what was to be sent to it again under this MsgId, and what is asked of it for that is void.
    pub(super) fn take_resumable(&mut self, msg_id: u16, qos: Qos) -> Option<(No, bool)> {
        let at = self.resumable.iter().position(|(id, _, at, ..)| (*id, *at) == (msg_id, qos))?;
        let (_, no, _, retain, _) = self.resumable.remove(at);
        self.exchange.take_if(|open| matches!(open.kind, Kind::Register(..)));
        self.repairing.remove(&no);
        Some((no, retain))
    }

    /// Whether a message is offered again after a round in which its name was not answered for.
    pub(super) fn keeps(&mut self, no: No, qos: Qos) -> bool {
        let rounds = self.rounds.entry(no).or_default();
        *rounds += 1;
        qos > Qos::AtMostOnce && *rounds < ROUNDS
    }

    /// Takes a message out of the account.
    pub(super) fn take(&mut self, at: usize) -> Option<No> {
        let (no, _) = self.queue.remove(at)?;
        self.owed -= usize::from(at < self.owed);
        Some(no)
    }

    /// What is open is under way again, as if it had never left, and whatever rested or was left unanswered is tried again.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.offered.clear();
        self.resting.clear();
        self.rounds.clear();
        self.silent = false;
        if let Some(open) = &mut self.exchange {
            (open.sent, open.first, open.last) = (0, now, now);
        }
    }

    /// A SUBSCRIBE is with the broker: what the subscription brings stays behind its SUBACK.
    pub(super) fn awaits_suback(&self) -> bool {
        self.unanswered.keys().any(|(name, _)| *name == "SUBSCRIBE")
    }

    /// The client's SUBSCRIBE for this filter has no answer.
    pub(super) fn is_asking_for(&self, filter: &TopicFilter) -> bool {
        let mut open = self.unanswered.keys().filter(|(name, _)| *name == "SUBSCRIBE");
        open.any(|(_, msg_id)| {
            self.asked.get(msg_id).is_some_and(|asked| asked.filter.as_ref() == Some(filter))
        })
    }

    /// Whether a copy that comes on this link is for the client, and up to which QoS. With several links it gets the one for
    /// its best filter, of equals the oldest; as long as not everything is certain nobody can tell which that is.
    pub(super) fn due(&self, topic: &TopicName, lane: Lane, has_lanes: bool) -> Option<Qos> {
        let matching = || self.subs.iter().filter(|(filter, _)| filter.matches(topic));
        // What is at the broker as the client was told, and so decides.
        let certain = matching().filter(|(_, sub)| !sub.doubtful);
        let certain = certain.filter_map(|(_, sub)| Some((sub.qos, Reverse(sub.since), sub.at_broker?)));
        if has_lanes && certain.clone().count() < matching().count() {
            return None;
        }
        let (qos, _, best) = certain.max()?;
        (!has_lanes || best == lane).then_some(qos)
    }

    /// Whether there was anything new about a filter for this topic since.
    pub(super) fn has_changed(&self, topic: &TopicName, since: Option<Instant>) -> bool {
        let mut changed = self.changed.iter().filter(|(filter, _)| filter.matches(topic));
        changed.any(|(_, at)| since.is_some_and(|since| *at >= since))
    }

    pub(super) fn wants(&self, topic: &TopicName) -> bool {
        self.subs.keys().any(|filter| filter.matches(topic))
    }

    /// Whether the broker may have more of the client than anybody here has heard.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Whether the client is there and is to have a link.
    pub(crate) fn needs_link(&self) -> bool {
        self.dedicated && self.is_there()
    }

    /// Whether the broker has this filter on the client's own link, as far as anybody may say.
    pub(crate) fn may_have(&self, filter: &TopicFilter) -> bool {
        self.subs.contains_key(filter) || (self.inherited && !self.gone.contains(filter))
    }

    /// The QoS at which the client was granted what matches, as long as nothing about that is in doubt, and since when.
    pub(crate) fn granted(&self, topic: &TopicName) -> Option<(Qos, u64)> {
        let matching: Vec<&Sub> =
            self.subs.iter().filter(|(filter, _)| filter.matches(topic)).map(|(_, sub)| sub).collect();
        let certain = |sub: &&Sub| sub.held && !sub.doubtful && sub.at_broker.is_some();
        if !matching.iter().all(certain) || self.awaits_suback() {
            return None;
        }
        let since = matching.iter().map(|sub| sub.since).sum();
        matching.iter().map(|sub| (sub.qos, since)).max()
    }

    /// What matches, at which QoS, and on which link the broker has it.
    pub(crate) fn matching(
        &self,
        topic: &TopicName,
    ) -> impl Iterator<Item = (&TopicFilter, Qos, Option<Lane>)> {
        let matching = self.subs.iter().filter(|(filter, _)| filter.matches(topic));
        matching.map(|(filter, sub)| (filter, sub.qos, sub.at_broker))
    }

    pub(crate) fn filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.subs.keys()
    }

    /// Those of which a refusal leaves no doubt.
    pub(crate) fn certain_filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.subs.iter().filter(|(_, sub)| !sub.doubtful).map(|(filter, _)| filter)
    }

    /// Whether the last that came about this filter was an UNSUBSCRIBE.
    pub(crate) fn has_ended(&self, filter: &TopicFilter) -> bool {
        self.gone.contains(filter)
    }
}
