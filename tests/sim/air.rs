//! What the gateway owes its clients, followed from outside: every frame that enters and leaves it goes through
//! [`Air`], which keeps its own account of sessions, exchanges and what is due, and knows nothing of how the gateway does it.

mod broker;
mod carriers;
mod heard;
mod own;
mod sent;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::io::{Peer, PortId, Settings};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use self::own::Asking;
pub(crate) use self::own::Said;
pub(crate) use self::session::Session;
use self::session::{Exchange, Kind, ROUNDS, State};
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
    /// Answers wait for a store, and the process dies. What is followed here is what a gateway does that answers at once: its
    /// laws are kept elsewhere then, by accounts that know of batches and of crashes. See [`crate::talk`] and [`crate::told`].
    blind: bool,
    settings: Settings,
    now: Instant,
    bound: BTreeMap<Peer, Who>,
    sessions: BTreeMap<Who, Session>,
    handshakes: BTreeMap<Peer, Handshake>,
    /// CONNECTs that are with the broker.
    asking: BTreeMap<Peer, Asking>,
    /// Clients whose own link the broker has accepted and that has not ended.
    own: BTreeSet<Who>,
    /// Clients whose session has expired: it is removed from the broker too.
    expired: BTreeSet<Who>,
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
    /// Transports of which the gateway was told that they are down.
    down: BTreeSet<PortId>,
}

/// How a live message came.
#[derive(Default)]
struct Copies {
    since: Option<Instant>,
    /// By link: new ones, and repetitions that had to be taken for new.
    on: BTreeMap<Lane, (u32, u32)>,
}

impl Copies {
    /// One of them may be settled, and another one not.
    fn are_several(&self) -> bool {
        self.on.values().map(|(new, again)| new + again).sum::<u32>() > 1
    }

    /// How many a client is due that the broker took so many times: those of one link, whatever overlaps. `all`: what it
    /// subscribes to has changed in between.
    fn due(&self, taken: u32, all: bool) -> u32 {
        let due = self.on.values().map(|(new, again)| taken.min(*new) + again);
        if all { due.sum() } else { due.max().unwrap_or(0) }
    }
}

/// A PUBLISH of the broker as it reaches the gateway. `fresh`: not while an exchange under the same packet id was open.
#[derive(Clone)]
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
    /// What the broker says of the link of a client; and that it had a session of a client which has none here.
    said: Option<(Who, Said)>,
    inherits: bool,
    /// What came behind that.
    early: Vec<Arrival>,
    /// To whom CONNACK is due now that the broker has accepted the client.
    connack: Option<Peer>,
    /// Clients whose link was away for too long, and where they are told so.
    dismissed: BTreeSet<Who>,
    farewells: BTreeSet<Peer>,
    /// Clients whose connection has ended.
    left: BTreeSet<Who>,
    /// Octets of the frame that leaves.
    len: usize,
    /// Clients that can be reached again, and with which something was under way.
    resumes: BTreeSet<Who>,
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
    /// A link of its own.
    dedicated: bool,
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

impl Air {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            blind: settings.lasting,
            settings,
            now,
            bound: BTreeMap::new(),
            sessions: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            asking: BTreeMap::new(),
            own: BTreeSet::new(),
            expired: BTreeSet::new(),
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
            down: BTreeSet::new(),
        }
    }

    /// How many sessions the gateway should have.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len() + self.newcomers()
    }

    pub(crate) fn session(&self, who: Who) -> Option<&Session> {
        self.sessions.get(&who)
    }

    /// Every filter that somebody subscribes to by the gateway's own links.
    pub(crate) fn filters(&self) -> BTreeSet<TopicFilter> {
        let sessions = self.sessions.values().filter(|session| !session.dedicated);
        sessions.flat_map(|session| session.subs.keys().cloned()).collect()
    }

    /// Filters of which a client may not have been told that it has them, or not, because its transport was down.
    pub(crate) fn missed_filters(&self) -> BTreeSet<TopicFilter> {
        let subs = self.sessions.values().flat_map(|session| &session.subs);
        subs.filter(|(_, sub)| sub.missed).map(|(filter, _)| filter.clone()).collect()
    }

    /// Those who have links of their own.
    pub(crate) fn dedicated(&self) -> impl Iterator<Item = (Who, &Session)> {
        self.sessions.iter().filter(|(_, session)| session.dedicated).map(|(who, session)| (*who, session))
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
        if self.blind {
            // With a store they will not notice (design section 4).
            return Ok(());
        }
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

/// What time and the gateway itself bring.
impl Air {
    /// A client is done with a message; what was handed out because it was retained is not in the account.
    fn settled(&mut self, who: Who, no: No, retain: bool) {
        if retain && !self.serves_own(who) {
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

    /// Before the gateway's timeout is handled. Whose sessions are over.
    pub(crate) fn timeout(&mut self, now: Instant, ledger: &mut Ledger) -> Vec<Who> {
        self.begin(now);
        if self.blind {
            return Vec::new();
        }
        self.handshakes.retain(|_, handshake| handshake.until > now);
        let keys: Vec<Who> = self.sessions.keys().copied().collect();
        let mut expired = Vec::new();
        for who in keys {
            let asking = self.is_asking(who);
            if let Some(session) = self.sessions.get_mut(&who).filter(|session| !session.is_there())
                && session.expires <= now
            {
                if asking {
                    session.expires = now + self.settings.broker.ack_timeout;
                } else {
                    self.sessions.remove(&who);
                    self.own.remove(&who);
                    self.expired.insert(who);
                    expired.push(who);
                    ledger.forget(Some(who));
                }
            }
            let mut lost = self.is_unheard(who);
            if !lost {
                self.grace_over(who);
            }
            self.drop_outgrown(who, ledger);
            let Some(session) = self.sessions.get_mut(&who).filter(|session| session.is_there()) else {
                continue;
            };
            let dedicated = session.dedicated;
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
                    for no in waiting.into_iter().filter(|_| !dedicated) {
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
                    if session.overtaking && !session.dedicated {
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
        expired
    }

    /// A client counts as lost from now on, and its Will is due, unless it may have taken leave.
    fn lost(&mut self, who: Who, ledger: &mut Ledger) {
        if self.sessions.get(&who).is_some_and(|session| session.took_leave) {
            return self.leave(who, ledger);
        }
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
        session.expires = self.now + self.settings.sessions.expiry;
        (session.grace, session.overdue, session.watch) = (None, false, None);
        self.cause.left.insert(who);
        session.owed = 0;
        session.freeze(self.now, ledger);
        (session.connect, session.prompted) = (None, false);
        if let Some(peer) = session.peer.take() {
            self.bound.remove(&peer);
        }
        let waiting: Vec<(No, Qos)> = session.queue.iter().copied().collect();
        // What is on the client's own link waits there until it comes back.
        let keeps = session.dedicated && !session.clean;
        if session.clean {
            self.sessions.remove(&who);
        } else {
            session.queue.retain(|(_, qos)| *qos > Qos::AtMostOnce);
        }
        self.own.remove(&who);
        for (no, _) in waiting.into_iter().filter(|_| !keeps) {
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
        if self.blind {
            return Ok(());
        }
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
        self.counted_own(before, after, ledger)?;
        let accepted = after.connects_accepted - before.connects_accepted;
        match self.cause.setup.take() {
            Some(setup) if setup.dedicated => self.asked(setup, accepted, ledger)?,
            Some(setup) if accepted == 1 => {
                if let Some(peer) = self.cause.from.clone() {
                    self.set_up(peer, setup, ledger);
                }
            }
            Some(setup) => {
                let refused = after.connects_refused + after.sessions_full
                    > before.connects_refused + before.sessions_full;
                Law::Manners.check(refused, || {
                    format!("the gateway set up {accepted} connections for s{}", setup.who)
                })?;
            }
            None => self.answered_by_broker(accepted, ledger)?,
        }
        Ok(())
    }

    fn set_up(&mut self, peer: Peer, setup: Setup, ledger: &Ledger) {
        let Setup { who, dedicated, clean, keep_alive, will, frame } = setup;
        self.handshakes.remove(&peer);
        self.abandon(&peer, ledger);
        self.expired.remove(&who);
        if let Some(other) = self.bound.get(&peer).copied().filter(|other| *other != who) {
            self.leave(other, ledger);
        }
        let now = self.now;
        let session = self.sessions.get(&who);
        let old = session.and_then(|session| session.peer.clone()).filter(|old| *old != peer);
        if session.is_some_and(|session| matches!(session.state, State::Active | State::Awake)) {
            self.cause.superseded = old.filter(|old| !self.down.contains(&old.port));
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
        (session.last_heard, session.told, session.took_leave) = (now, None, false);
        session.dedicated = dedicated;
        session.inherited |= self.cause.inherits;
        (session.grace, session.overdue, session.watch) = (None, false, session.supervision());
        session.missed = None;
        (session.prompted, session.connect) = (frame.is_none(), frame);
        session.known.clear();
        session.freeze(now, ledger);
        session.offered.clear();
        session.resting.clear();
        session.rounds.clear();
        session.silent = false;
    }
}

/// The id of a sensor.
pub(crate) fn client_id(who: Who) -> ClientId {
    ClientId::new(format!("s{who}")).expect("a short name")
}

fn client(id: &[u8]) -> Option<Who> {
    std::str::from_utf8(id).ok()?.strip_prefix('s')?.parse().ok()
}
