//! What the gateway owes its clients, followed from outside: every frame that enters and leaves it goes through
//! [`Air`], which keeps its own account of sessions, exchanges and what is due, and knows nothing of how the gateway does it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::io::{Address, Peer, Rebind, Settings, WirelessNodeId};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{
    Connect, FilterRef, MsgIdOnly, Packet, Publish, Qos, Register, ReturnCode, SubAck, Subscribe, TopicAck,
    TopicRef, Unsubscribe, WillTopic, decode,
};

use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::link::Lane;

/// how long after a DISCONNECT of its own a gateway answers none.
const GUARD: Duration = Duration::from_secs(10);

/// a peer without a session is told no more often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// so many messages may join a drain under way, at most.
const SURPLUS: usize = 40;

/// The account.
pub(crate) struct Air {
    settings: Settings,
    now: Instant,
    bound: BTreeMap<Peer, Who>,
    sessions: BTreeMap<Who, Session>,
    handshakes: BTreeMap<Peer, Handshake>,
    /// When a peer was sent a DISCONNECT.
    told: BTreeMap<Peer, Instant>,
    cause: Cause,
    /// Who has yet to settle a message of the broker, by the link on which it came.
    blocks: BTreeMap<(Lane, No), BTreeSet<Who>>,
    /// What the gateway got from the broker, live or retained, and when first on each link.
    arrived: BTreeMap<(No, bool, Lane), Instant>,
    /// There are further links: filters that overlap are not on one.
    pub(crate) has_lanes: bool,
    /// SUBSCRIBEs of all clients.
    subscribed: u64,
    /// Due to a client and gone without a sign; to be covered by counters.
    vanished: u64,
    /// Messages shed by a limit, as the counters have it.
    shed: u64,
    /// How often the broker gave the gateway a live message.
    copies: BTreeMap<No, Copies>,
    /// Clients that count as lost from the timeout under way on.
    due: BTreeSet<Who>,
    /// The gateway takes leave; who has been told.
    leaving: Option<BTreeSet<Who>>,
}

/// How a live message came.
#[derive(Default)]
struct Copies {
    since: Option<Instant>,
    /// By link: new ones, and repetitions that had to be taken for new.
    on: BTreeMap<Lane, (u32, u32)>,
}

impl Copies {
    /// How many a client is due that the broker took so many times: those of one link, whatever overlaps. `all`: what it
    /// subscribes to has changed in between.
    fn due(&self, taken: u32, all: bool) -> u32 {
        let due = self.on.values().map(|(new, again)| taken.min(*new) + again);
        if all { due.sum() } else { due.max().unwrap_or(0) }
    }
}

/// A PUBLISH of the broker as it reaches the gateway. `fresh`: not while an exchange under the same packet id was open.
pub(crate) struct Arrival {
    pub(crate) no: No,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) fresh: bool,
    pub(crate) dup: bool,
}

/// What the gateway was last told, and who must be answered how.
#[derive(Default)]
struct Cause {
    from: Option<Peer>,
    name: &'static str,
    msg_id: u16,
    silence: bool,
    answer: Option<&'static [&'static str]>,
    /// What a CONNECT, or the end of its prompts, sets up.
    setup: Option<Setup>,
    /// What a REGISTER is about.
    register: Option<TopicName>,
    /// What a DISCONNECT to the one who was heard would be.
    goodbye: Goodbye,
    /// Who was there under the same id until now, and is to be told.
    superseded: Option<Peer>,
    /// A sleeper woke elsewhere.
    rebound: bool,
    /// This client acknowledges what may be about to be sent to it again.
    claimed: Option<(Who, u16, Qos)>,
    /// What is open was repeated because of a PINGREQ.
    repeated: bool,
}

/// What a DISCONNECT says to the one who was heard.
#[derive(Default, PartialEq, Eq)]
enum Goodbye {
    /// There is no session here.
    #[default]
    Stranger,
    /// The answer to a client that takes leave or falls asleep.
    Answer,
    /// The session here is of another client.
    Foreign,
}

struct Setup {
    who: Who,
    clean: bool,
    keep_alive: Duration,
    will: WillChange,
    /// The octets of a CONNECT without prompts.
    frame: Option<Bytes>,
}

enum WillChange {
    Keep,
    Delete,
    Set(No),
}

struct Handshake {
    who: Who,
    clean: bool,
    keep_alive: Duration,
    asked: bool,
    until: Instant,
}

/// Where a client is in the figure of §6.14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    Asleep,
    Awake,
    /// Disconnected or lost.
    Away,
}

/// A client as the gateway should see it.
pub(crate) struct Session {
    state: State,
    /// When the connection was set up, and when it was last confirmed.
    since: Instant,
    connected: Instant,
    /// When it ended.
    left: Instant,
    peer: Option<Peer>,
    clean: bool,
    keep_alive: Duration,
    sleep: Duration,
    last_heard: Instant,
    connect: Option<Bytes>,
    /// It was set up with prompts, and nothing came since.
    prompted: bool,
    will: Option<No>,
    /// Every id of this session.
    ids: BTreeMap<u16, TopicName>,
    /// Those the client was told of in this connection.
    known: BTreeSet<u16>,
    subs: BTreeMap<TopicFilter, Sub>,
    /// When there was last anything new about a filter.
    changed: BTreeMap<TopicFilter, Instant>,
    /// By MsgId, the last of each.
    asked: BTreeMap<u16, Asked>,
    /// SUBSCRIBEs and PUBLISHes without an answer, and when they are to have one.
    unanswered: BTreeMap<(&'static str, u16), Instant>,
    /// What the client's MsgIds stand for.
    up: BTreeMap<u16, (No, Qos)>,
    exchange: Option<Exchange>,
    /// When the client was first asked in this connection to learn a name.
    offered: BTreeMap<TopicName, Instant>,
    /// Names that it did not answer for though it was heard, and that have not been offered again.
    resting: BTreeSet<TopicName>,
    /// How often that was so, for what waits for a name.
    rounds: BTreeMap<No, u32>,
    /// It was deaf to all of that and has not been asked again.
    silent: bool,
    /// It was so once: from then on messages overtake those whose topic it does not learn.
    overtaking: bool,
    /// What was open when the connection ended: it may go on.
    resumable: Vec<(u16, No, Qos, bool)>,
    /// What the client did not know the topic id of: it is sent once more.
    repairing: Option<No>,
    /// What was registered last and may be published though nobody subscribes any more.
    under_way: Option<TopicName>,
    /// Messages for the client, in order.
    queue: VecDeque<(No, Qos)>,
    /// How many of them, from the first, waited when the client woke and must leave before PINGRESP.
    owed: usize,
    /// Messages that may still leave in this drain.
    drain: usize,
    /// How often a live message was sent anew.
    copies: BTreeMap<No, u32>,
    /// SUBSCRIBEs that came, by filter.
    subscribes: BTreeMap<TopicFilter, u32>,
    /// Retained messages handed out.
    hand_outs: BTreeMap<No, u32>,
}

#[derive(Clone, Copy)]
struct Sub {
    qos: Qos,
    /// Grows from one subscription of the client to the next.
    since: u64,
    /// A SUBACK granted it. Else it is asked for, or the gateway may have dropped it.
    held: bool,
    /// The broker granted the filter since, on this link. What comes before that may come by way of another filter, at its
    /// QoS.
    at_broker: Option<Lane>,
    /// A renewal was refused: nobody can tell from outside what is left of it.
    doubtful: bool,
}

#[derive(Clone)]
struct Asked {
    filter: Option<TopicFilter>,
    /// What SUBACK has to say; `None`: the id of the name.
    topic_id: Option<u16>,
    qos: Qos,
}

/// How often a message goes through all its repetitions with a client that is heard.
const ROUNDS: u32 = 3;

struct Exchange {
    kind: Kind,
    msg_id: u16,
    sent: u32,
    first: Instant,
    last: Instant,
    /// The broker does not wait for it.
    stray: bool,
    /// The client did not know the topic id, and was told.
    repaired: bool,
    /// How often all repetitions were in vain though the client was heard.
    rounds: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Register(u16, TopicName),
    Publish { no: No, topic: TopicRef, qos: Qos, retain: bool },
    Release,
}

impl Session {
    fn new(now: Instant) -> Self {
        Self {
            state: State::Away,
            since: now,
            connected: now,
            left: now,
            peer: None,
            clean: true,
            keep_alive: Duration::ZERO,
            sleep: Duration::ZERO,
            last_heard: now,
            connect: None,
            prompted: false,
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
            repairing: None,
            under_way: None,
            queue: VecDeque::new(),
            owed: 0,
            drain: 0,
            copies: BTreeMap::new(),
            subscribes: BTreeMap::new(),
            hand_outs: BTreeMap::new(),
        }
    }

    fn is_active(&self) -> bool {
        self.state == State::Active
    }

    fn is_there(&self) -> bool {
        self.state != State::Away
    }

    ///
    fn supervision(&self) -> Option<Instant> {
        let silence = match self.state {
            State::Active => self.keep_alive,
            State::Asleep => self.sleep,
            State::Awake | State::Away => return None,
        };
        let tolerance = if silence > Duration::from_secs(60) { 10 } else { 2 };
        (!silence.is_zero()).then(|| self.last_heard + silence + silence / tolerance)
    }

    /// What is open stops, to be asked again under its MsgId.
    fn freeze(&mut self, now: Instant, ledger: &Ledger) {
        match self.exchange.take() {
            Some(Exchange { kind: Kind::Publish { no, qos, retain, .. }, msg_id, .. }) => {
                self.resumable.push((msg_id, no, qos, retain));
            }
            Some(Exchange { kind: Kind::Release, msg_id, .. }) => {
                let (first, last) = (now, now);
                self.exchange = Some(Exchange {
                    kind: Kind::Release,
                    msg_id,
                    sent: 0,
                    first,
                    last,
                    stray: true,
                    repaired: false,
                    rounds: 0,
                });
            }
            Some(Exchange { kind: Kind::Register(_, name), .. }) => self.under_way = Some(name),
            None => {}
        }
        if let Some(&(_, no, ..)) = self.resumable.last() {
            self.under_way = Some(ledger.entry(no).topic.clone());
        }
    }

    /// The client has what was to be sent to it again under this MsgId, and what is asked of it for that is void.
    fn take_resumable(&mut self, msg_id: u16, qos: Qos) -> Option<(No, bool)> {
        let at = self.resumable.iter().position(|(id, _, at, _)| (*id, *at) == (msg_id, qos))?;
        let (_, no, _, retain) = self.resumable.remove(at);
        self.exchange.take_if(|open| matches!(open.kind, Kind::Register(..)));
        self.repairing = None;
        Some((no, retain))
    }

    /// Whether a message is offered again after a round in which its name was not answered for.
    fn keeps(&mut self, no: No, qos: Qos) -> bool {
        let rounds = self.rounds.entry(no).or_default();
        *rounds += 1;
        qos > Qos::AtMostOnce && *rounds < ROUNDS
    }

    /// Takes a message out of the account.
    fn take(&mut self, at: usize) -> Option<No> {
        let (no, _) = self.queue.remove(at)?;
        self.owed -= usize::from(at < self.owed);
        Some(no)
    }

    /// A SUBSCRIBE is with the broker: what the subscription brings stays behind its SUBACK.
    fn awaits_suback(&self) -> bool {
        self.unanswered.keys().any(|(name, _)| *name == "SUBSCRIBE")
    }

    /// Whether a copy that comes on this link is for the client, and up to which QoS. With several links it gets the one for
    /// its best filter, of equals the oldest; as long as not everything is certain nobody can tell which that is.
    fn due(&self, topic: &TopicName, lane: Lane, has_lanes: bool) -> Option<Qos> {
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
    fn has_changed(&self, topic: &TopicName, since: Option<Instant>) -> bool {
        let mut changed = self.changed.iter().filter(|(filter, _)| filter.matches(topic));
        changed.any(|(_, at)| since.is_some_and(|since| *at >= since))
    }

    fn wants(&self, topic: &TopicName) -> bool {
        self.subs.keys().any(|filter| filter.matches(topic))
    }

    pub(crate) fn filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.subs.keys()
    }
}

impl Air {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            now,
            bound: BTreeMap::new(),
            sessions: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            told: BTreeMap::new(),
            cause: Cause::default(),
            blocks: BTreeMap::new(),
            arrived: BTreeMap::new(),
            has_lanes: false,
            subscribed: 0,
            vanished: 0,
            shed: 0,
            copies: BTreeMap::new(),
            due: BTreeSet::new(),
            leaving: None,
        }
    }

    /// How many sessions the gateway should have.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn session(&self, who: Who) -> Option<&Session> {
        self.sessions.get(&who)
    }

    /// Every filter that somebody subscribes to.
    pub(crate) fn filters(&self) -> BTreeSet<TopicFilter> {
        self.sessions.values().flat_map(|session| session.subs.keys().cloned()).collect()
    }

    /// Why the air is not at rest, if it is not.
    pub(crate) fn unrest(&self) -> Option<String> {
        for (who, session) in &self.sessions {
            if !session.is_there() {
                continue;
            }
            if session.exchange.is_some() {
                return Some(format!("an exchange with s{who} is open"));
            }
            if let Some((name, msg_id)) = session.unanswered.keys().next() {
                return Some(format!("{name} {msg_id:#06x} of s{who} has no answer"));
            }
        }
        None
    }

    /// What is due to clients that are there and has not left.
    pub(crate) fn undelivered(&self) -> Vec<(Who, No)> {
        let there = self.sessions.iter().filter(|(_, session)| session.is_there());
        there.flat_map(|(who, session)| session.queue.iter().map(|(no, _)| (*who, *no))).collect()
    }

    /// The gateway is told to take leave.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        self.begin(now);
        self.leaving = Some(BTreeSet::new());
    }

    /// the gateway takes no leave without telling those who are there.
    pub(crate) fn all_told(&self) -> Checked {
        let told = self.leaving.as_ref();
        let mut active = self.sessions.iter().filter(|(_, session)| session.is_active());
        let untold = active.find(|(who, _)| !told.is_some_and(|told| told.contains(who)));
        Law::Manners.check(untold.is_none(), || format!("s{:?} was not told", untold.map(|(who, _)| who)))
    }

    /// Everything still due must be in a counter.
    pub(crate) fn finish(&self, counters: &Counters) -> Checked {
        let undelivered = self.undelivered();
        let missing = self.vanished + undelivered.len() as u64;
        Law::NothingLost.check(missing <= sheds(counters), || {
            format!(
                "{missing} messages are lost and {} shed, among them {undelivered:?}: {counters:?}",
                sheds(counters)
            )
        })
    }
}

/// Messages shed by a limit or a refusal that cannot be seen from outside.
pub(crate) fn sheds(counters: &Counters) -> u64 {
    counters.downlink_queue_full
        + counters.downlink_total_full
        + counters.downlink_oversize
        + counters.downlink_refused
        + counters.downlink_no_topic_id
}

/// What the gateway is told.
impl Air {
    /// Before the gateway is told of anything but a frame.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.now = now;
        self.cause = Cause::default();
        self.due.clear();
    }

    /// Before the gateway gets a frame.
    pub(crate) fn frame_in(&mut self, now: Instant, from: &Peer, frame: &Bytes, ledger: &Ledger) -> Checked {
        self.begin(now);
        let Ok(decoded) = decode(frame) else {
            self.cause.silence = true;
            return Ok(());
        };
        let mut from = from.clone();
        from.node = decoded.encapsulation.map(|e| WirelessNodeId(Bytes::copy_from_slice(e.node_id)));
        self.cause.from = Some(from.clone());
        self.cause.name = decoded.packet.name();
        match decoded.packet {
            Packet::Publish(publish) if publish.qos == Qos::MinusOne => {
                self.cause.silence = true;
                self.heard(&from);
            }
            Packet::Advertise(_)
            | Packet::GwInfo(_)
            | Packet::ConnAck(_)
            | Packet::WillTopicReq
            | Packet::WillMsgReq
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::WillTopicResp(_)
            | Packet::WillMsgResp(_) => self.cause.silence = true,
            Packet::SearchGw(_) => self.cause.answer = Some(&["GWINFO"]),
            Packet::Connect(connect) => self.connect_in(&from, &connect, frame),
            Packet::WillTopic(will) => self.will_topic_in(&from, &will),
            Packet::WillMsg(will) => self.will_msg_in(&from, will.message, ledger),
            packet => {
                let answers = matches!(
                    packet,
                    Packet::RegAck(_)
                        | Packet::PubAck(_)
                        | Packet::PubComp(_)
                        | Packet::PubRec(_)
                        | Packet::PubRel(_)
                        | Packet::PingResp
                );
                let known = self.bound.get(&from).copied().or_else(|| self.woken_elsewhere(&from, &packet));
                let Some(who) = known else {
                    if matches!(packet, Packet::Disconnect(_)) {
                        self.handshakes.remove(&from);
                    }
                    self.cause.silence = answers;
                    return Ok(());
                };
                // What wakes a sleeper elsewhere says nothing about a handshake there.
                if !answers && !self.cause.rebound {
                    self.handshakes.remove(&from);
                }
                self.heard(&from);
                if let Some(session) = self.sessions.get_mut(&who) {
                    (session.connect, session.prompted) = (None, false);
                }
                self.session_in(who, &packet, ledger)?;
            }
        }
        Ok(())
    }

    /// PINGREQ of a sleeper may come from elsewhere, as far as the settings have it.
    fn woken_elsewhere(&mut self, from: &Peer, packet: &Packet<'_>) -> Option<Who> {
        let Packet::PingReq(ping) = packet else { return None };
        let who = client(ping.client_id)?;
        let session = self.sessions.get_mut(&who)?;
        let old = session.peer.clone().filter(|_| matches!(session.state, State::Asleep | State::Awake))?;
        let (Address::Udp(a), Address::Udp(b)) = (old.addr, from.addr);
        let same_ip = old.port == from.port
            && match (a.ip(), b.ip()) {
                (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
                (a, b) => a == b,
            };
        let allowed = match self.settings.sessions.rebind {
            Rebind::None => false,
            Rebind::SameIp => same_ip,
            Rebind::Any => true,
        };
        if !allowed {
            return None;
        }
        session.peer = Some(from.clone());
        self.bound.remove(&old);
        self.bound.insert(from.clone(), who);
        self.cause.rebound = true;
        Some(who)
    }

    fn heard(&mut self, from: &Peer) {
        if let Some(session) = self.bound.get(from).and_then(|who| self.sessions.get_mut(who)) {
            session.last_heard = self.now;
        }
    }

    fn connect_in(&mut self, from: &Peer, connect: &Connect<'_>, frame: &Bytes) {
        self.cause.answer = Some(&["CONNACK", "WILLTOPICREQ"]);
        let Some(who) = client(connect.client_id) else { return };
        if self.bound.get(from) == Some(&who) {
            self.heard(from);
            if self.sessions.get(&who).is_some_and(|session| session.connect.as_ref() == Some(frame)) {
                return;
            }
        }
        let (clean, keep_alive) = (connect.clean_session, Duration::from_secs(connect.duration.into()));
        if connect.will {
            let port = &self.settings.ports[usize::from(from.port.0)];
            let until = self.now + port.retry_interval * (port.retry_limit + 1);
            self.handshakes.insert(from.clone(), Handshake { who, clean, keep_alive, asked: false, until });
        } else {
            let will = if clean { WillChange::Delete } else { WillChange::Keep };
            self.cause.setup = Some(Setup { who, clean, keep_alive, will, frame: Some(frame.clone()) });
        }
    }

    fn will_topic_in(&mut self, from: &Peer, will: &WillTopic<'_>) {
        let who = self.handshakes.get(from).map(|handshake| handshake.who);
        if self.bound.get(from).copied() == who {
            self.heard(from);
        }
        let Some(handshake) = self.handshakes.get_mut(from) else { return };
        if will.topic.is_empty() {
            let &mut Handshake { who, clean, keep_alive, .. } = handshake;
            self.cause.answer = Some(&["CONNACK"]);
            self.cause.setup = Some(Setup { who, clean, keep_alive, will: WillChange::Delete, frame: None });
        } else {
            handshake.asked = true;
            self.cause.answer = Some(&["WILLMSGREQ", "CONNACK"]);
        }
    }

    fn will_msg_in(&mut self, from: &Peer, message: &[u8], ledger: &Ledger) {
        let Some(handshake) = self.handshakes.get(from).filter(|handshake| handshake.asked) else {
            // A repetition, or nothing at all.
            let who = self.bound.get(from);
            if who.and_then(|who| self.sessions.get(who)).is_some_and(|session| session.prompted) {
                self.heard(from);
            }
            return;
        };
        let &Handshake { who, clean, keep_alive, .. } = handshake;
        let Some(no) = ledger.find(message) else { return };
        self.cause.answer = Some(&["CONNACK"]);
        self.cause.setup = Some(Setup { who, clean, keep_alive, will: WillChange::Set(no), frame: None });
    }

    /// A frame from a client with a session.
    fn session_in(&mut self, who: Who, packet: &Packet<'_>, ledger: &Ledger) -> Checked {
        match packet {
            Packet::Register(register) => {
                self.cause.answer = Some(&["REGACK"]);
                self.cause.register = TopicName::new(register.topic_name).ok();
            }
            Packet::PingReq(ping) => self.pingreq_in(who, ping.client_id),
            Packet::Publish(publish) => self.publish_in(who, publish, ledger),
            Packet::Subscribe(subscribe) => self.subscribe_in(who, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe_in(who, unsubscribe, ledger),
            Packet::RegAck(ack) => self.regack_in(who, *ack, ledger),
            Packet::PubAck(ack) => self.puback_in(who, *ack, ledger)?,
            Packet::PubRec(MsgIdOnly { msg_id }) => self.pubrec_in(who, *msg_id, ledger)?,
            Packet::PubComp(MsgIdOnly { msg_id }) => {
                if let Some(session) = self.sessions.get_mut(&who) {
                    session.exchange.take_if(|open| open.msg_id == *msg_id && open.kind == Kind::Release);
                }
            }
            Packet::Disconnect(disconnect) => self.disconnect_in(who, disconnect.duration, ledger),
            Packet::WillTopicUpd(_) => self.cause.answer = Some(&["WILLTOPICRESP"]),
            Packet::WillMsgUpd(_) => self.cause.answer = Some(&["WILLMSGRESP"]),
            _ => {}
        }
        Ok(())
    }

    fn pingreq_in(&mut self, who: Who, id: &[u8]) {
        if !id.is_empty() && client(id) != Some(who) {
            self.cause.goodbye = Goodbye::Foreign;
            return;
        }
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        match session.state {
            State::Active => self.cause.answer = Some(&["PINGRESP"]),
            // It goes on.
            State::Awake | State::Away => {}
            State::Asleep => {
                session.state = State::Awake;
                session.owed = session.queue.len();
                session.drain = session.queue.len() + SURPLUS;
                session.offered.clear();
                session.resting.clear();
                session.rounds.clear();
                session.silent = false;
                if let Some(open) = &mut session.exchange {
                    (open.sent, open.first, open.last) = (0, now, now);
                }
                if !session.awaits_suback() {
                    self.cause.answer = Some(&["PINGRESP", "REGISTER", "PUBLISH", "PUBREL"]);
                }
            }
        }
    }

    fn disconnect_in(&mut self, who: Who, duration: Option<u16>, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let told = session.peer.as_ref().and_then(|peer| self.told.get(peer));
        let sleeps = duration.is_some_and(|seconds| seconds > 0);
        if duration.is_none() && told.is_some_and(|at| *at >= session.connected && self.now < *at + GUARD) {
            return;
        }
        self.cause.goodbye = Goodbye::Answer;
        self.cause.answer = Some(&["DISCONNECT"]);
        if sleeps {
            session.sleep = Duration::from_secs(duration.unwrap_or(0).into());
            self.fall_asleep(who, ledger);
        } else {
            self.leave(who, ledger);
        }
    }

    /// nothing is sent, nothing is lost, and the broker waits for nothing.
    fn fall_asleep(&mut self, who: Who, ledger: &Ledger) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.state = State::Asleep;
        session.owed = 0;
        session.freeze(now, ledger);
        for whom in self.blocks.values_mut() {
            whom.remove(&who);
        }
    }

    fn publish_in(&mut self, who: Who, publish: &Publish<'_>, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        if publish.qos == Qos::AtMostOnce {
            return;
        }
        if let Some(no) = ledger.find(publish.data) {
            session.up.insert(publish.msg_id, (no, publish.qos));
        }
        let by = self.now + self.settings.broker.ack_timeout;
        session.unanswered.entry(("PUBLISH", publish.msg_id)).or_insert(by);
    }

    fn subscribe_in(&mut self, who: Who, subscribe: &Subscribe<'_>) {
        let (filter, topic_id) = self.filter(who, subscribe.topic);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        self.subscribed += 1;
        let by = self.now + self.settings.broker.ack_timeout;
        session.unanswered.entry(("SUBSCRIBE", subscribe.msg_id)).or_insert(by);
        if let Some(filter) = &filter {
            let (qos, since) = (subscribe.qos, self.subscribed);
            let new = Sub { qos, since, held: false, at_broker: None, doubtful: false };
            let sub = session.subs.entry(filter.clone()).or_insert(new);
            sub.qos = subscribe.qos;
            session.changed.insert(filter.clone(), self.now);
            *session.subscribes.entry(filter.clone()).or_default() += 1;
        }
        session.asked.insert(subscribe.msg_id, Asked { filter, topic_id, qos: subscribe.qos });
    }

    fn unsubscribe_in(&mut self, who: Who, unsubscribe: &Unsubscribe<'_>, ledger: &Ledger) {
        self.cause.answer = Some(&["UNSUBACK"]);
        self.cause.msg_id = unsubscribe.msg_id;
        let (filter, _) = self.filter(who, unsubscribe.topic);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let Some(filter) = filter else { return };
        session.subs.remove(&filter);
        session.changed.insert(filter.clone(), self.now);
        let Session { asked, unanswered, .. } = session;
        let same =
            |msg_id: u16| asked.get(&msg_id).is_some_and(|asked| asked.filter.as_ref() == Some(&filter));
        unanswered.retain(|(name, msg_id), _| *name != "SUBSCRIBE" || !same(*msg_id));
        self.drop_unwanted(who, ledger);
    }

    /// What waits and nobody wants any more may go, but not what is under way.
    fn drop_unwanted(&mut self, who: Who, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        // Which message a REGISTER is for cannot be seen: none is held to be, and none will be missed.
        let open = match &session.exchange {
            Some(Exchange { kind: Kind::Publish { no, .. }, .. }) => Some(*no),
            _ => None,
        };
        let Session { subs, queue, .. } = session;
        let wanted = |no: No| subs.keys().any(|filter| filter.matches(&ledger.entry(no).topic));
        let mut dropped: Vec<No> = queue.iter().map(|(no, _)| *no).filter(|no| !wanted(*no)).collect();
        // The broker may have taken a message twice, and one copy of it wait behind the other.
        if let Some(at) = dropped.iter().position(|no| Some(*no) == open) {
            dropped.remove(at);
        }
        for no in dropped {
            self.settled(who, no, false);
        }
    }

    fn regack_in(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let matches = |open: &mut Exchange| {
            open.msg_id == ack.msg_id && matches!(open.kind, Kind::Register(id, _) if id == ack.topic_id)
        };
        if let Some(Exchange { kind: Kind::Register(id, name), .. }) = session.exchange.take_if(matches)
            && ack.code == ReturnCode::Accepted
        {
            session.offered.remove(&name);
            session.rounds.retain(|no, _| ledger.entry(*no).topic != name);
            session.known.insert(id);
            session.under_way = Some(name);
        }
    }

    fn puback_in(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let accepted = ack.code == ReturnCode::Accepted;
        let matches = |open: &mut Exchange| match open.kind {
            Kind::Publish { topic, qos, .. } => {
                let fits = open.msg_id == ack.msg_id && topic.raw() == ack.topic_id;
                // The first refusal may come twice.
                let late = open.repaired && open.sent < 2 && ack.code == ReturnCode::InvalidTopicId;
                fits && !late && (qos == Qos::AtLeastOnce || !accepted)
            }
            _ => false,
        };
        let Some(Exchange { kind: Kind::Publish { no, topic, qos, retain }, .. }) =
            session.exchange.take_if(matches)
        else {
            if ack.msg_id == 0 && ack.code == ReturnCode::InvalidTopicId {
                session.known.remove(&ack.topic_id);
            } else if accepted {
                self.cause.claimed = Some((who, ack.msg_id, Qos::AtLeastOnce));
            }
            return Ok(());
        };
        match ack.code {
            ReturnCode::Accepted => {
                Law::SensorHasIt.check(ledger.has(who, no), || format!("s{who} acknowledged m{no}"))?;
                self.settled(who, no, retain);
            }
            ReturnCode::InvalidTopicId => {
                session.under_way = Some(ledger.entry(no).topic.clone());
                if qos == Qos::ExactlyOnce {
                    session.resumable.push((ack.msg_id, no, qos, retain));
                }
                session.repairing = Some(no);
                if let TopicRef::Normal(id) = topic {
                    session.known.remove(&id);
                }
            }
            _ => self.settled(who, no, retain),
        }
        Ok(())
    }

    fn pubrec_in(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        self.cause.msg_id = msg_id;
        self.cause.answer = Some(&["PUBREL"]);
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let matches = |open: &mut Exchange| {
            open.msg_id == msg_id && matches!(open.kind, Kind::Publish { qos: Qos::ExactlyOnce, .. })
        };
        let had = match session.exchange.take_if(matches) {
            Some(Exchange { kind: Kind::Publish { no, retain, .. }, .. }) => Some((no, retain)),
            _ => {
                self.cause.claimed = Some((who, msg_id, Qos::ExactlyOnce));
                None
            }
        };
        if let Some((no, retain)) = had {
            let (first, last) = (self.now, self.now);
            session.exchange = Some(Exchange {
                kind: Kind::Release,
                msg_id,
                sent: 0,
                first,
                last,
                stray: true,
                repaired: false,
                rounds: 0,
            });
            Law::SensorHasIt.check(ledger.has(who, no), || format!("s{who} acknowledged m{no}"))?;
            self.settled(who, no, retain);
        }
        Ok(())
    }

    /// The client has what was to be sent to it again.
    fn claim(&mut self, who: Who, msg_id: u16, qos: Qos) {
        let (first, last) = (self.now, self.now);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let Some((no, retain)) = session.take_resumable(msg_id, qos) else { return };
        if qos == Qos::ExactlyOnce {
            session.exchange = Some(Exchange {
                kind: Kind::Release,
                msg_id,
                sent: 0,
                first,
                last,
                stray: true,
                repaired: false,
                rounds: 0,
            });
        }
        self.settled(who, no, retain);
    }

    /// A client is done with a message; what was handed out because it was retained is not in the account.
    fn settled(&mut self, who: Who, no: No, retain: bool) {
        if retain {
            return;
        }
        if let Some(session) = self.sessions.get_mut(&who)
            && let Some(at) = session.queue.iter().position(|(waiting, _)| *waiting == no)
        {
            session.take(at);
        }
        self.unblock(who, no);
    }

    fn unblock(&mut self, who: Who, no: No) {
        for (_, blocks) in self.blocks.iter_mut().filter(|((_, other), _)| *other == no) {
            blocks.remove(&who);
        }
    }

    /// The broker's PUBLISH reached the gateway on this link.
    pub(crate) fn message_in(&mut self, lane: Lane, message: &Arrival, ledger: &Ledger) {
        let &Arrival { no, qos, retain, fresh, dup } = message;
        let seen = self.arrived.contains_key(&(no, retain, lane));
        self.arrived.entry((no, retain, lane)).or_insert(self.now);
        if retain {
            return;
        }
        // One of QoS 1 that was settled and could not be acknowledged is handed out again.
        if fresh || qos == Qos::AtLeastOnce {
            let copies = self.copies.entry(no).or_default();
            copies.since.get_or_insert(self.now);
            let (new, again) = copies.on.entry(lane).or_default();
            *(if dup { again } else { new }) += 1;
        }
        if seen && !fresh {
            return;
        }
        let topic = &ledger.entry(no).topic;
        for (who, session) in &mut self.sessions {
            let Some(granted) = session.due(topic, lane, self.has_lanes) else { continue };
            let qos = qos.min(granted);
            if session.is_there() {
                // Not to be told from outside: whether QoS 0 leaves at once, if it may not wait.
                if qos > Qos::AtMostOnce || self.settings.sessions.queue.qos0 {
                    session.queue.push_back((no, qos));
                }
                // The broker does not wait for one that has left a request unanswered, nor for a sleeper.
                let prompt = session.exchange.as_ref().is_none_or(|open| open.sent <= 1);
                let prompt = prompt && !session.resting.contains(topic);
                if session.is_active() && !session.silent && prompt {
                    self.blocks.entry((lane, no)).or_default().insert(*who);
                }
            } else if qos > Qos::AtMostOnce && !session.clean {
                session.queue.push_back((no, qos));
            }
        }
    }

    /// The broker said that it has this filter, or has it no more.
    pub(crate) fn filter_at_broker(&mut self, lane: Lane, filter: &TopicFilter, has: bool) {
        for session in self.sessions.values_mut() {
            let Some(sub) = session.subs.get_mut(filter) else { continue };
            if has {
                sub.at_broker = Some(lane);
            } else {
                sub.at_broker.take_if(|at| *at == lane);
            }
            session.changed.insert(filter.clone(), self.now);
        }
    }

    /// Whether what a client subscribes to changed since the message first came.
    pub(crate) fn is_split(&self, who: Who, no: No, ledger: &Ledger) -> bool {
        let Some(copies) = self.copies.get(&no).filter(|_| self.has_lanes) else { return false };
        let session = self.sessions.get(&who);
        session.is_none_or(|session| session.has_changed(&ledger.entry(no).topic, copies.since))
    }

    /// Whether a client has a filter on this link.
    pub(crate) fn uses(&self, lane: Lane) -> bool {
        self.sessions.values().any(|session| session.subs.values().any(|sub| sub.at_broker == Some(lane)))
    }

    /// A link connects.
    pub(crate) fn lane(&mut self, lane: Lane) {
        self.has_lanes |= lane > 0;
    }

    /// The broker forgot the session, and what it was owed.
    pub(crate) fn broker_forgot(&mut self, lane: Lane) {
        self.blocks.retain(|(other, _), _| *other != lane);
        for Session { subs, changed, .. } in self.sessions.values_mut() {
            for (filter, sub) in subs.iter_mut().filter(|(_, sub)| sub.at_broker == Some(lane)) {
                sub.at_broker = None;
                changed.insert(filter.clone(), self.now);
            }
        }
        self.sessions
            .values_mut()
            .filter_map(|session| session.exchange.as_mut())
            .for_each(|open| open.stray = true);
    }

    /// The gateway acknowledged a message to the broker (G2), and if it is the `last` copy of it, nobody has yet to settle it.
    pub(crate) fn ack_out(
        &mut self,
        lane: Lane,
        no: No,
        retain: bool,
        last: bool,
        counters: &Counters,
        ledger: &Ledger,
    ) -> Checked {
        for (who, session) in self.sessions.iter().filter(|(_, session)| session.is_active() && last) {
            let Some(open) = session.exchange.as_ref().filter(|open| !open.stray) else { continue };
            // The broker does not wait for who was away when the message came.
            if self.arrived.get(&(no, retain, lane)).is_none_or(|at| *at < session.since) {
                continue;
            }
            // Nor for who had left a request unanswered when it came, or does now.
            let waits = self.blocks.get(&(lane, no)).is_some_and(|whom| whom.contains(who));
            // And of two copies, as there may be while its filters change, another one may be open than the one that is over.
            let live = !retain && waits && !self.is_split(*who, no, ledger);
            let same = matches!(open.kind, Kind::Publish { no: n, retain: false, .. } if n == no && live);
            Law::SettledBeforeAck.check(!same, || {
                format!("m{no} was acknowledged to the broker while its PUBLISH to s{who} is open")
            })?;
        }
        if retain || !last {
            return Ok(());
        }
        for who in self.blocks.remove(&(lane, no)).unwrap_or_default() {
            self.settled(who, no, false);
            self.vanished += 1;
            Law::SettledBeforeAck.check(self.vanished <= sheds(counters), || {
                format!("m{no} was acknowledged to the broker and s{who} has not settled it")
            })?;
        }
        Ok(())
    }

    /// Before the gateway's timeout is handled.
    pub(crate) fn timeout(&mut self, now: Instant, ledger: &mut Ledger) {
        self.begin(now);
        self.handshakes.retain(|_, handshake| handshake.until > now);
        let keys: Vec<Who> = self.sessions.keys().copied().collect();
        let expiry = self.settings.sessions.expiry;
        for who in keys {
            if self
                .sessions
                .get(&who)
                .is_some_and(|session| !session.is_there() && session.left + expiry <= now)
            {
                self.sessions.remove(&who);
                ledger.forget(Some(who));
            }
            let Some(session) = self.sessions.get_mut(&who).filter(|session| session.is_there()) else {
                continue;
            };
            let mut lost = session.supervision().is_some_and(|at| at <= now);
            let port = session.peer.as_ref().map_or(0, |peer| usize::from(peer.port.0));
            let port = &self.settings.ports[port];
            let exhausted =
                |open: &mut Exchange| open.sent > port.retry_limit && open.last + port.retry_interval <= now;
            if let Some(open) = session.exchange.as_mut()
                && exhausted(open)
            {
                if session.state == State::Awake {
                    self.fall_asleep(who, ledger);
                    let session = self.sessions.get(&who);
                    if session.and_then(Session::supervision).is_none_or(|at| at > now) {
                        continue;
                    }
                    self.lost(who, ledger);
                    continue;
                }
                let first = match &open.kind {
                    Kind::Register(_, name) => session.offered.get(name).copied().unwrap_or(open.first),
                    Kind::Publish { .. } | Kind::Release => open.first,
                };
                let heard = session.last_heard > first;
                if !heard && matches!(open.kind, Kind::Register(..)) {
                    // There are clients that know no REGISTER: it gets what else there is.
                    (session.exchange, session.silent, session.overtaking) = (None, true, true);
                    ledger.overtaken(who);
                    let waiting: Vec<No> = session.queue.iter().map(|(no, _)| *no).collect();
                    for no in waiting {
                        self.unblock(who, no);
                    }
                } else if !heard {
                    lost = true;
                } else if matches!(open.kind, Kind::Publish { .. }) && open.rounds + 1 < ROUNDS {
                    (open.rounds, open.sent) = (open.rounds + 1, 0);
                } else if let Some(open) = session.exchange.take() {
                    let waiting: Vec<(No, Qos)> = session.queue.iter().copied().collect();
                    let dropped = match open.kind {
                        Kind::Publish { no, retain, .. } => (!retain).then_some(no),
                        Kind::Register(_, name) => {
                            let mut queue = waiting.iter().copied();
                            let first = queue.find(|(no, _)| ledger.entry(*no).topic == name);
                            session.overtaking = true;
                            session.offered.insert(name.clone(), self.now);
                            session.resting.insert(name);
                            ledger.overtaken(who);
                            first.filter(|(no, qos)| !session.keeps(*no, *qos)).map(|(no, _)| no)
                        }
                        Kind::Release => None,
                    };
                    if session.overtaking {
                        for (no, _) in waiting {
                            self.unblock(who, no);
                        }
                    }
                    if let Some(no) = dropped {
                        self.settled(who, no, false);
                    }
                }
            }
            if lost {
                self.lost(who, ledger);
            }
        }
    }

    /// A client counts as lost from now on, and its Will is due.
    fn lost(&mut self, who: Who, ledger: &mut Ledger) {
        self.due.insert(who);
        if let Some(will) = self.sessions.get(&who).and_then(|session| session.will) {
            ledger.entry_mut(will).wills_due += 1;
        }
        self.leave(who, ledger);
    }

    /// The connection of a client ends, and its session if that is clean.
    fn leave(&mut self, who: Who, ledger: &Ledger) {
        self.drop_requests(who, ledger);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.state = State::Away;
        session.left = self.now;
        session.owed = 0;
        session.freeze(self.now, ledger);
        (session.connect, session.prompted) = (None, false);
        if let Some(peer) = session.peer.take() {
            self.bound.remove(&peer);
        }
        let waiting: Vec<(No, Qos)> = session.queue.iter().copied().collect();
        if session.clean {
            self.sessions.remove(&who);
        } else {
            session.queue.retain(|(_, qos)| *qos > Qos::AtMostOnce);
        }
        for (no, _) in waiting {
            self.unblock(who, no);
        }
    }

    /// What a client asked for and was not granted in this connection.
    fn drop_requests(&mut self, who: Who, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let Session { subs, asked, unanswered, .. } = session;
        for (name, msg_id) in unanswered.keys() {
            if *name == "SUBSCRIBE"
                && let Some(filter) = asked.get(msg_id).and_then(|asked| asked.filter.as_ref())
                && subs.get(filter).is_some_and(|sub| !sub.held)
            {
                subs.remove(filter);
            }
        }
        unanswered.clear();
        self.drop_unwanted(who, ledger);
    }

    /// After the gateway was told and before its outputs are taken: what it counted.
    pub(crate) fn counted(&mut self, before: &Counters, after: &Counters, ledger: &Ledger) -> Checked {
        let lost = after.clients_lost - before.clients_lost;
        Law::LostWhenSilent.check(lost == self.due.len() as u64, || {
            let sessions = self.sessions.iter().filter(|(_, session)| session.is_there());
            let sessions = sessions.map(|(who, session)| {
                let Session { state, keep_alive, sleep, .. } = session;
                let silent = self.now.saturating_duration_since(session.last_heard);
                format!(
                    "s{who}: {state:?}, keep-alive {keep_alive:?}, sleep {sleep:?}, silent for {silent:?}"
                )
            });
            let sessions: Vec<String> = sessions.collect();
            format!("the gateway lost {lost} clients, it should have lost {:?}; {sessions:?}", self.due)
        })?;
        // Whether the message waits still, or a limit has shed it, is seen by the counter.
        if let Some((who, msg_id, qos)) = self.cause.claimed.take()
            && after.downlink_delivered > before.downlink_delivered
        {
            self.claim(who, msg_id, qos);
        }
        let rebound = after.sessions_rebound - before.sessions_rebound;
        Law::Rebinding.check(rebound == u64::from(self.cause.rebound), || {
            format!("{} from {:?} rebound {rebound} sessions", self.cause.name, self.cause.from)
        })?;
        let accepted = after.connects_accepted - before.connects_accepted;
        match self.cause.setup.take() {
            Some(setup) if accepted == 1 => self.set_up(setup, ledger),
            Some(setup) => {
                let refused = after.connects_refused + after.sessions_full
                    > before.connects_refused + before.sessions_full;
                Law::Manners.check(refused, || {
                    format!("the gateway set up {accepted} connections for s{}", setup.who)
                })?;
            }
            None => Law::Manners
                .check(accepted == 0, || "the gateway set up a connection nobody asked for".into())?,
        }
        Ok(())
    }

    fn set_up(&mut self, setup: Setup, ledger: &Ledger) {
        let Setup { who, clean, keep_alive, will, frame } = setup;
        let Some(peer) = self.cause.from.clone() else { return };
        self.handshakes.remove(&peer);
        if let Some(other) = self.bound.get(&peer).copied().filter(|other| *other != who) {
            self.leave(other, ledger);
        }
        let now = self.now;
        let session = self.sessions.get(&who);
        let old = session.and_then(|session| session.peer.clone()).filter(|old| *old != peer);
        if session.is_some_and(|session| matches!(session.state, State::Active | State::Awake)) {
            self.cause.superseded = old;
        }
        if let Some(session) = self.sessions.get_mut(&who)
            && (clean || session.clean)
        {
            let waiting: Vec<No> = session.queue.iter().map(|(no, _)| *no).collect();
            let (old, peer) = (session.will, session.peer.take());
            *session = Session { will: old, peer, ..Session::new(now) };
            for no in waiting {
                self.unblock(who, no);
            }
        }
        self.drop_requests(who, ledger);
        let session = self.sessions.entry(who).or_insert_with(|| Session::new(now));
        if let Some(old) = session.peer.replace(peer.clone()) {
            self.bound.remove(&old);
        }
        self.bound.insert(peer, who);
        match will {
            WillChange::Keep => {}
            WillChange::Delete => session.will = None,
            WillChange::Set(no) => session.will = Some(no),
        }
        if !session.is_active() {
            session.since = now;
        }
        (session.state, session.clean, session.keep_alive) = (State::Active, clean, keep_alive);
        (session.last_heard, session.connected) = (now, now);
        (session.prompted, session.connect) = (frame.is_none(), frame);
        session.known.clear();
        session.freeze(now, ledger);
        session.offered.clear();
        session.resting.clear();
        session.rounds.clear();
        session.silent = false;
    }
}

/// What the gateway sends.
impl Air {
    /// A frame leaves for `to`, which does not say the node yet.
    pub(crate) fn frame_out(
        &mut self,
        to: &Peer,
        frame: &Bytes,
        counters: &Counters,
        ledger: &Ledger,
    ) -> Checked {
        self.shed = sheds(counters);
        let decoded = decode(frame);
        let decoded = decoded.map_err(|error| Law::Manners.broken(format!("a frame that {error}")))?;
        let mut to = to.clone();
        to.node = decoded.encapsulation.map(|e| WirelessNodeId(Bytes::copy_from_slice(e.node_id)));
        let name = decoded.packet.name();
        let cause = self.cause.name;
        let answers = self.cause.from.as_ref() == Some(&to);
        Law::Silence.check(!self.cause.silence, || format!("{name} in answer to {cause}"))?;
        if answers && self.cause.answer.is_some_and(|answer| answer.contains(&name)) {
            self.cause.answer = None;
        }
        let who = self.bound.get(&to).copied();
        let mannered = match decoded.packet {
            Packet::Advertise(_) => true,
            Packet::GwInfo(_) => answers && cause == "SEARCHGW",
            Packet::ConnAck(_) => answers && matches!(cause, "CONNECT" | "WILLTOPIC" | "WILLMSG"),
            Packet::WillTopicReq => answers && cause == "CONNECT",
            Packet::WillMsgReq => answers && cause == "WILLTOPIC",
            Packet::PingResp => who.is_some(),
            Packet::UnsubAck(_) => answers && cause == "UNSUBSCRIBE",
            Packet::Disconnect(disconnect) => {
                disconnect.duration.is_none() && self.is_disconnect_due(&to, who, answers)
            }
            _ => who.is_some(),
        };
        Law::Manners
            .check(mannered, || format!("{name} to {to:?} after {cause} (session: {:?})", who.is_some()))?;
        let Some(who) = who else { return Ok(()) };
        self.check_asleep(who, &decoded.packet, answers)?;
        match decoded.packet {
            Packet::PingResp => self.pingresp_out(who, answers),
            Packet::RegAck(ack) => self.regack_out(who, ack),
            Packet::SubAck(ack) => self.suback_out(who, ack, ledger),
            Packet::Register(register) => self.register_out(who, &register, ledger),
            Packet::Publish(publish) => self.publish_out(who, &publish, ledger),
            Packet::PubAck(ack) => self.puback_out(who, ack, ledger),
            Packet::PubRec(MsgIdOnly { msg_id }) => self.pubrec_out(who, msg_id, ledger),
            Packet::PubRel(MsgIdOnly { msg_id }) => self.pubrel_out(who, msg_id),
            Packet::PubComp(MsgIdOnly { msg_id }) => self.pubcomp_out(who, msg_id, ledger),
            _ => Ok(()),
        }
    }

    /// Whether this peer is to be told that its session, if it has one, is over.
    fn is_disconnect_due(&mut self, to: &Peer, who: Option<Who>, answers: bool) -> bool {
        if let Some(told) = &mut self.leaving {
            let active = who.and_then(|who| self.sessions.get(&who)).is_some_and(Session::is_active);
            if let Some(who) = who
                && active
            {
                return told.insert(who);
            }
        }
        if !answers {
            let due = self.cause.superseded.take_if(|old| old == to).is_some();
            self.told.insert(to.clone(), self.now);
            return due;
        }
        let guard = if self.cause.name == "DISCONNECT" { GUARD } else { TOLD_EVERY };
        match self.cause.goodbye {
            Goodbye::Answer => return true,
            Goodbye::Foreign if who.is_none() => return false,
            Goodbye::Stranger if who.is_some() => return false,
            Goodbye::Foreign | Goodbye::Stranger => {}
        }
        let before = self.told.insert(to.clone(), self.now);
        before.is_none_or(|at| at + guard <= self.now)
    }

    /// G4: what is asleep is sent nothing but answers.
    fn check_asleep(&self, who: Who, packet: &Packet<'_>, answers: bool) -> Checked {
        if self.sessions.get(&who).is_none_or(|session| session.state != State::Asleep) {
            return Ok(());
        }
        let unsolicited = match packet {
            Packet::Publish(_) | Packet::Register(_) | Packet::PingReq(_) | Packet::PingResp => true,
            Packet::PubRel(_) => !(answers && self.cause.name == "PUBREC"),
            _ => false,
        };
        Law::QuietSleep
            .check(!unsolicited, || format!("s{who} is asleep and is sent {} unasked", packet.name()))
    }

    /// PINGRESP answers at once, or ends a drain in which everything left that waited when it began (G4, R-133).
    fn pingresp_out(&mut self, who: Who, answers: bool) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        if session.state == State::Active {
            return Law::Manners.check(answers && self.cause.name == "PINGREQ", || {
                format!("PINGRESP to s{who} after {}", self.cause.name)
            });
        }
        Law::DrainComplete.check(session.exchange.is_none() && !session.awaits_suback(), || {
            format!("PINGRESP to s{who} before everything was answered")
        })?;
        session.state = State::Asleep;
        session.last_heard = self.now;
        for _ in 0..session.owed {
            session.take(0);
            self.vanished += 1;
        }
        Law::DrainComplete
            .check(self.vanished <= self.shed, || format!("PINGRESP to s{who} before everything was sent"))
    }

    /// After all outputs of one event.
    pub(crate) fn end(&mut self) -> Checked {
        if let Some(old) = self.cause.superseded.take() {
            return Err(Law::Manners.broken(format!("{old:?} was not told that its session is elsewhere")));
        }
        if let Some(answer) = self.cause.answer.take() {
            let name = self.cause.name;
            return Err(Law::Answered.broken(format!("{name} was not answered by any of {answer:?}")));
        }
        for (who, session) in &self.sessions {
            let drained = session.exchange.is_none() && !session.awaits_suback();
            Law::Answered.check(session.state != State::Awake || !drained, || {
                format!("s{who} is awake for nothing and has no PINGRESP")
            })?;
            if let Some(((name, msg_id), _)) = session.unanswered.iter().find(|(_, by)| **by < self.now) {
                return Err(Law::Answered.broken(format!("{name} {msg_id:#06x} of s{who} waits too long")));
            }
        }
        Ok(())
    }

    fn regack_out(&mut self, who: Who, ack: TopicAck) -> Checked {
        if ack.code != ReturnCode::Accepted {
            return Ok(());
        }
        let Some(name) = self.cause.register.take() else {
            return Err(Law::Manners.broken("REGACK without REGISTER"));
        };
        self.assigned(who, ack.topic_id, &name)
    }

    /// The client is told that `id` stands for `name`.
    fn assigned(&mut self, who: Who, id: u16, name: &TopicName) -> Checked {
        self.stable(who, id, name)?;
        if let Some(session) = self.sessions.get_mut(&who) {
            session.known.insert(id);
        }
        Ok(())
    }

    fn stable(&mut self, who: Who, id: u16, name: &TopicName) -> Checked {
        let own = self.settings.client_predefined.get(&client_id(who));
        let predefined =
            self.settings.predefined.contains_key(&id) || own.is_some_and(|own| own.contains_key(&id));
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let before = session.ids.insert(id, name.clone());
        let others = session.ids.iter().any(|(other, named)| *other != id && named == name);
        let fair =
            id != 0 && id != 0xFFFF && !predefined && !others && before.as_ref().is_none_or(|b| b == name);
        Law::IdsStable.check(fair, || format!("s{who} is given {id:#06x} for {name}, which was {before:?}"))
    }

    fn suback_out(&mut self, who: Who, ack: SubAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("SUBSCRIBE", ack.msg_id));
        let Some(asked) = session.asked.get(&ack.msg_id).cloned() else {
            return Err(Law::Manners.broken(format!("SUBACK {:#06x} to s{who} answers nothing", ack.msg_id)));
        };
        let Some(filter) = asked.filter else {
            return Law::Manners.check(ack.code != ReturnCode::Accepted, || {
                format!("s{who} is granted a subscription to nothing")
            });
        };
        if ack.code != ReturnCode::Accepted {
            let Session { subs, asked, unanswered, .. } = session;
            let same = |id: u16| asked.get(&id).is_some_and(|asked| asked.filter.as_ref() == Some(&filter));
            let again = unanswered.keys().any(|(name, id)| *name == "SUBSCRIBE" && same(*id));
            match subs.get_mut(&filter) {
                Some(sub) if sub.held || sub.doubtful || again => sub.doubtful = true,
                _ => {
                    session.subs.remove(&filter);
                    self.drop_unwanted(who, ledger);
                }
            }
            return Ok(());
        }
        Law::Manners.check(ack.qos <= asked.qos, || format!("s{who} is granted more than it asked for"))?;
        if let Some(sub) = session.subs.get_mut(&filter) {
            (sub.qos, sub.held, sub.doubtful) = (ack.qos, true, false);
        }
        match (asked.topic_id, filter.as_topic()) {
            (Some(id), _) => Law::IdsStable.check(ack.topic_id == id, || {
                format!("SUBACK to s{who} says {:#06x} and not {id:#06x}", ack.topic_id)
            }),
            (None, Some(name)) => self.assigned(who, ack.topic_id, &name),
            (None, None) => Ok(()),
        }
    }

    fn register_out(&mut self, who: Who, register: &Register<'_>, ledger: &Ledger) -> Checked {
        let name = TopicName::new(register.topic_name);
        let name = name.map_err(|_| Law::IdsStable.broken("REGISTER of something that is no topic"))?;
        let Register { topic_id, msg_id, .. } = *register;
        Law::MsgIds.check(msg_id != 0, || format!("REGISTER to s{who} has MsgId 0"))?;
        self.stable(who, topic_id, &name)?;
        let Some(session) = self.sessions.get(&who) else { return Ok(()) };
        let needless = session.known.contains(&topic_id) && !self.is_open(who, msg_id);
        Law::IdsStable.check(!needless, || format!("s{who} knows {topic_id:#06x} and is told of it"))?;
        // What it may have had already is finished, also after its name has rested.
        let begun = session.resumable.iter().any(|(_, no, ..)| ledger.entry(*no).topic == name);
        let wanted = begun || session.wants(&name) || session.under_way.as_ref() == Some(&name);
        Law::DownlinkWanted.check(wanted || self.is_open(who, msg_id), || {
            format!("{name} is registered at s{who}, which does not want it")
        })?;
        if let Some(session) = self.sessions.get_mut(&who) {
            session.offered.entry(name.clone()).or_insert(self.now);
            session.resting.remove(&name);
            session.silent = false;
        }
        self.sent(who, msg_id, Kind::Register(topic_id, name), false)
    }

    fn is_open(&self, who: Who, msg_id: u16) -> bool {
        let session = self.sessions.get(&who);
        session.and_then(|session| session.exchange.as_ref()).is_some_and(|open| open.msg_id == msg_id)
    }

    fn publish_out(&mut self, who: Who, publish: &Publish<'_>, ledger: &Ledger) -> Checked {
        let &Publish { dup, qos, retain, topic, msg_id, data } = publish;
        let Some(no) = ledger.find(data) else {
            return Err(Law::DownlinkFaithful.broken(format!("s{who} is sent {data:?} that nobody sent")));
        };
        let entry = ledger.entry(no);
        Law::MsgIds.check((msg_id == 0) == (qos == Qos::AtMostOnce), || {
            format!("PUBLISH of QoS {qos:?} to s{who} has MsgId {msg_id:#06x}")
        })?;
        let most = entry.qos.max(Qos::AtMostOnce);
        let repeated = self.is_open(who, msg_id) && qos != Qos::AtMostOnce;
        let name = self.resolve(who, topic, repeated)?;
        let faithful =
            name == entry.topic && qos != Qos::MinusOne && qos <= most && (!retain || entry.retain);
        Law::DownlinkFaithful
            .check(faithful, || format!("m{no} on {} is sent as {publish:?}", entry.topic))?;
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let open = session.resumable.len();
        session.resumable.retain(|(id, sent, ..)| (*id, *sent) != (msg_id, no));
        let resumed = session.resumable.len() < open;
        let repaired = session.repairing == Some(no);
        if !repeated && !resumed {
            Law::Retransmission.check(!dup, || format!("m{no} is new to s{who} and has DUP"))?;
            let wanted = session.wants(&entry.topic) || session.under_way.take() == Some(entry.topic.clone());
            Law::DownlinkWanted.check(wanted, || format!("s{who} is sent m{no} and does not want it"))?;
            if retain && session.repairing != Some(no) {
                let subscribes = session.subscribes.iter().filter(|(f, _)| f.matches(&entry.topic));
                let due: u32 = subscribes.map(|(_, count)| count).sum();
                let count = session.hand_outs.entry(no).or_default();
                *count += 1;
                Law::OneHandOut.check(*count <= due, || {
                    format!("s{who} subscribed {due} times and is sent the retained m{no} {count} times")
                })?;
            }
            if !retain && session.repairing != Some(no) {
                let copies = self.copies.get(&no);
                let changed = copies.is_some_and(|copies| session.has_changed(&entry.topic, copies.since));
                let came = copies.map_or(0, |copies| copies.due(entry.at_broker, changed));
                let count = session.copies.entry(no).or_default();
                *count += 1;
                Law::OneCopy.check(*count <= came, || {
                    format!("m{no} came {came} times and is sent to s{who} {count} times")
                })?;
                // Of what came twice nobody can tell which copy this is.
                if came == 1 {
                    self.overtaken(who, no, ledger)?;
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.repairing = None;
        session.under_way = None;
        if qos == Qos::AtMostOnce {
            self.settled(who, no, retain);
            return Ok(());
        }
        Law::Retransmission
            .check(dup || !resumed || repaired, || format!("m{no} is sent again to s{who} without DUP"))?;
        self.sent(who, msg_id, Kind::Publish { no, topic, qos, retain }, dup)?;
        if resumed
            && repaired
            && let Some(open) = self.sessions.get_mut(&who).and_then(|session| session.exchange.as_mut())
        {
            open.repaired = true;
        }
        Ok(())
    }

    /// Messages leave in the order in which they came (G4); what is passed over was shed by a limit. A drain has an end.
    fn overtaken(&mut self, who: Who, no: No, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let Some(at) = session.queue.iter().position(|(waiting, _)| *waiting == no) else { return Ok(()) };
        if session.state == State::Awake {
            Law::DrainComplete.check(session.drain > 0, || format!("the drain of s{who} has no end"))?;
            session.drain -= 1;
        }
        let topic = &ledger.entry(no).topic;
        let mut passed = Vec::new();
        for at in (0..at).rev() {
            let (before, _) = session.queue[at];
            if !session.overtaking || ledger.entry(before).topic == *topic {
                passed.extend(session.take(at));
            }
        }
        for &no in &passed {
            self.unblock(who, no);
        }
        self.vanished += passed.len() as u64;
        Law::InOrder.check(self.vanished <= self.shed, || {
            format!("s{who} is sent m{no} before {passed:?}, {} vanished, {} shed", self.vanished, self.shed)
        })
    }

    /// What a PUBLISH to this client is on. One that is `repeated` stays what it was.
    fn resolve(&self, who: Who, topic: TopicRef, repeated: bool) -> Checked<TopicName> {
        let Some(session) = self.sessions.get(&who) else {
            return Err(Law::Manners.broken(format!("PUBLISH to s{who}, which has no session")));
        };
        let name = match topic {
            TopicRef::Normal(id) => {
                Law::IdsAnnounced.check(repeated || session.known.contains(&id), || {
                    format!("PUBLISH to s{who} on {id:#06x}, which it was not told of in this connection")
                })?;
                session.ids.get(&id).cloned()
            }
            TopicRef::Predefined(id) => self.predefined(who, id),
            TopicRef::Short(name) => TopicName::new(name).ok(),
            TopicRef::Reserved(_) => None,
        };
        name.ok_or_else(|| Law::DownlinkFaithful.broken(format!("PUBLISH to s{who} on nothing: {topic:?}")))
    }

    fn predefined(&self, who: Who, id: u16) -> Option<TopicName> {
        let own = self.settings.client_predefined.get(&client_id(who)).and_then(|own| own.get(&id));
        own.or_else(|| self.settings.predefined.get(&id)).cloned()
    }

    /// A request left for a client: a new one, or a repetition of the one that is open.
    fn sent(&mut self, who: Who, msg_id: u16, kind: Kind, dup: bool) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let port = session.peer.as_ref().map_or(0, |peer| usize::from(peer.port.0));
        let port = &self.settings.ports[port];
        let now = self.now;
        let Some(open) = &mut session.exchange else {
            let (first, last) = (now, now);
            session.exchange = Some(Exchange {
                kind,
                msg_id,
                sent: 1,
                first,
                last,
                stray: false,
                repaired: false,
                rounds: 0,
            });
            return Ok(());
        };
        Law::OneExchange.check(open.msg_id == msg_id && open.kind == kind, || {
            format!("s{who} is sent {kind:?} while {:?} ({:#06x}) is open", open.kind, open.msg_id)
        })?;
        let marked = dup || !matches!(kind, Kind::Publish { .. });
        if session.state == State::Awake && self.cause.name == "PINGREQ" && open.sent > 0 {
            // asked again, it gets it again, once.
            let first = !std::mem::replace(&mut self.cause.repeated, true);
            return Law::Retransmission
                .check(first && marked, || format!("s{who} is sent {kind:?} again, DUP {dup}"));
        }
        let paced = open.sent == 0 || open.last + port.retry_interval <= now;
        open.sent += 1;
        open.last = now;
        if open.sent == 1 {
            open.first = now;
        }
        if open.sent == 2 {
            // From here on the broker does not wait for what this client has yet to take, but for the open message.
            let open_no = match kind {
                // Unless another copy of it waits behind: the broker had sent it again.
                Kind::Publish { no, retain: false, .. }
                    if session.queue.iter().filter(|(waiting, _)| *waiting == no).count() < 2 =>
                {
                    Some(no)
                }
                _ => None,
            };
            for ((_, no), whom) in &mut self.blocks {
                if Some(*no) != open_no {
                    whom.remove(&who);
                }
            }
        }
        Law::Retransmission.check(marked && paced && open.sent <= port.retry_limit + 1, || {
            format!("s{who} is sent {kind:?} for time {}, DUP {dup}, in time {paced}", open.sent)
        })
    }

    fn puback_out(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("PUBLISH", ack.msg_id));
        if ack.code != ReturnCode::Accepted {
            return Ok(());
        }
        let acked = match session.up.get(&ack.msg_id) {
            Some((no, Qos::AtLeastOnce)) => ledger.entry(*no).acked,
            _ => false,
        };
        Law::AckedByBroker.check(acked, || format!("PUBACK {:#06x} to s{who} comes of nothing", ack.msg_id))
    }

    fn pubrec_out(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("PUBLISH", msg_id));
        let received = match session.up.get(&msg_id) {
            Some((no, Qos::ExactlyOnce)) => ledger.entry(*no).received || ledger.entry(*no).acked,
            _ => false,
        };
        Law::AckedByBroker.check(received, || format!("PUBREC {msg_id:#06x} to s{who} comes of nothing"))
    }

    /// PUBCOMP for an unknown MsgId is the right answer.
    fn pubcomp_out(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let acked = match session.up.get(&msg_id) {
            Some((no, Qos::ExactlyOnce)) => ledger.entry(*no).acked,
            _ => true,
        };
        Law::AckedByBroker.check(acked, || format!("PUBCOMP {msg_id:#06x} to s{who} comes of nothing"))
    }

    /// A repetition of ours, or the answer to a PUBREC, however late.
    fn pubrel_out(&mut self, who: Who, msg_id: u16) -> Checked {
        let asked = self.cause.name == "PUBREC" && self.cause.msg_id == msg_id;
        if asked {
            if let Some(open) = self.sessions.get_mut(&who).and_then(|session| session.exchange.as_mut())
                && open.msg_id == msg_id
                && open.kind == Kind::Release
                && open.sent == 0
            {
                open.sent = 1;
            }
            return Ok(());
        }
        Law::OneExchange
            .check(self.is_open(who, msg_id), || format!("PUBREL {msg_id:#06x} comes of nothing"))?;
        self.sent(who, msg_id, Kind::Release, false)
    }

    /// What a client subscribes to, and the topic id its SUBACK must have unless that is the id of a name.
    fn filter(&self, who: Who, topic: FilterRef<'_>) -> (Option<TopicFilter>, Option<u16>) {
        match topic {
            FilterRef::Name(name) => {
                let filter = TopicFilter::new(name).ok();
                let id = filter.as_ref().and_then(|filter| filter.has_wildcard().then_some(0));
                (filter, id)
            }
            FilterRef::Short(name) => (TopicFilter::new(name).ok(), Some(u16::from_be_bytes(name))),
            FilterRef::Predefined(id) => {
                let name = self.predefined(who, id);
                (name.and_then(|name| TopicFilter::new(name.as_str()).ok()), Some(id))
            }
            FilterRef::Reserved(_) => (None, None),
        }
    }
}

/// The id of a sensor.
pub(crate) fn client_id(who: Who) -> ClientId {
    ClientId::new(format!("s{who}")).expect("a short name")
}

fn client(id: &[u8]) -> Option<Who> {
    std::str::from_utf8(id).ok()?.strip_prefix('s')?.parse().ok()
}
