//! What is under way with each client in worlds with a store, frame by frame and over crashes: requests and their
//! repetitions, answers that are due, the order of messages, what is kept for whom and what becomes of it, who counts as
//! lost.
//!
//! [`crate::air`] follows a gateway that answers in the moment in which it is told something. Where answers wait for a store
//! two things differ: what leaves was made some time before, and when the process dies what it had in mind is gone. Both are
//! known here. Of what leaves when a batch is durable the time at which it was made lies between then and the moment in which
//! that batch was handed out; where a client stands in the mind of the gateway its session row says, as it was handed out;
//! and a crash leaves what is durable: of QoS 2 the MsgIds under which messages left or were about to, and the PUBRELs
//! without an answer. A message of QoS 1 begins anew then, under another MsgId and without DUP.
//!
//! What a failure of the store takes away is seen nowhere: frames that promise something are dropped (design section 4).
//! Until the next connection a client may then hear a repetition of what it has not heard, and no answer.

mod exchange;
mod owed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::io::{Mode, Peer, PortId, PortSettings, Settings, WirelessNodeId};
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Lsn, Record, Row, SessionRow, Standing};
use mqtt_sn_gateway::wire::{MsgIdOnly, Packet, PingReq, Qos, ReturnCode, Unsubscribe, decode};

use self::exchange::Talking;
use self::owed::{Due, Owed, explained};
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::store::{Store, client};

/// The account.
pub(crate) struct Talk {
    on: bool,
    settings: Settings,
    /// Clients whose id several sensors have: what one of them says ends what another one has under way. And clients that have
    /// been in one place after each other: for whom a frame was made cannot be seen there.
    unclear: BTreeSet<Who>,
    now: Instant,
    /// What leaves now was not made before.
    made: Instant,
    /// Since when the process lives.
    up: Instant,
    /// The gateway has heard that the store cannot write, and not that it can.
    failing: bool,
    /// Where the gateway has its clients.
    bound: BTreeMap<Peer, Who>,
    /// Who was there last: what has waited for the store may leave when the connection is over.
    left: BTreeMap<Peer, Who>,
    /// Where clients are according to the batch that is handed out.
    taken: BTreeSet<Peer>,
    /// Batches that were not reported, and when they were handed out.
    handed: VecDeque<(Lsn, Instant)>,
    last: Lsn,
    reported: Lsn,
    clients: BTreeMap<Who, Client>,
    /// Where clients have asked to be connected and have not been told: while the broker is asked, nothing else is taken notice
    /// of there.
    asking: BTreeSet<Peer>,
    /// Where they have yet to say what their Will is; and whether they have said where it is to be published.
    prompted: BTreeMap<Peer, bool>,
    /// CONNECTs without an answer.
    connects: BTreeMap<Peer, (Who, Due)>,
    owed: Owed,
    /// Transports of which the gateway was told that they are down.
    down: BTreeSet<PortId>,
}

/// A client.
struct Client {
    talking: Talking,
    /// What it waits for, by the name of what it sent and its MsgId.
    due: BTreeMap<(&'static str, u16), Due>,
    /// When it was last heard for certain, and when perhaps.
    heard: Instant,
    perhaps: Instant,
    /// It has asked for what waits, and not been told that this is all.
    woke: bool,
}

impl Client {
    fn new(now: Instant) -> Self {
        Self { talking: Talking::default(), due: BTreeMap::new(), heard: now, perhaps: now, woke: false }
    }
}

impl Talk {
    pub(crate) fn new(settings: Settings, shared: BTreeSet<Who>, now: Instant) -> Self {
        Self {
            on: settings.lasting,
            settings,
            unclear: shared,
            now,
            made: now,
            up: now,
            failing: false,
            bound: BTreeMap::new(),
            left: BTreeMap::new(),
            taken: BTreeSet::new(),
            handed: VecDeque::new(),
            last: Lsn(0),
            reported: Lsn(0),
            clients: BTreeMap::new(),
            asking: BTreeSet::new(),
            prompted: BTreeMap::new(),
            connects: BTreeMap::new(),
            owed: Owed::default(),
            down: BTreeSet::new(),
        }
    }

    /// Before the gateway is told of something.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.now, self.made) = (now, now);
    }

    /// Before it is told that a batch is durable.
    pub(crate) fn durable(&mut self, lsn: Lsn) {
        self.made = self.handed.front().map_or(self.now, |(_, at)| *at);
        while self.handed.front().is_some_and(|(waiting, _)| *waiting <= lsn) {
            self.handed.pop_front();
        }
        (self.reported, self.failing) = (lsn, false);
    }

    /// Before it is told that the store cannot write: what waits is dropped, if it promises something.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.begin(now);
        self.failing = true;
        self.connects.clear();
        for client in self.clients.values_mut() {
            client.talking.murky = true;
            client.due.clear();
        }
    }

    /// Before it is told that a transport can send and receive, or cannot: then what has waited for the store is lost too, and
    /// all times begin anew when it can again.
    pub(crate) fn carrier(&mut self, now: Instant, port: PortId, up: bool) {
        self.begin(now);
        if up {
            self.down.remove(&port)
        } else {
            self.down.insert(port)
        };
        for (_, who) in self.bound.iter().filter(|(peer, _)| peer.port == port) {
            let Some(client) = self.clients.get_mut(who) else { continue };
            if up {
                (client.heard, client.perhaps) = (now, now);
                client.talking.is_back();
            } else {
                client.due.clear();
                client.woke = false;
                client.talking.cut_off();
            }
        }
        if !up {
            self.connects.retain(|peer, _| peer.port != port);
        }
    }

    /// Before it is told how much a transport takes.
    pub(crate) fn resized(&mut self, now: Instant, port: PortId, mtu: usize) {
        self.begin(now);
        self.settings.ports[usize::from(port.0)].mtu = mtu;
    }

    /// The process dies: what is left is what is durable.
    pub(crate) fn died(&mut self, store: &Store, ledger: &Ledger) {
        self.handed.clear();
        self.connects.clear();
        self.asking.clear();
        self.prompted.clear();
        self.bound.clear();
        (self.last, self.reported, self.failing) = (Lsn(0), Lsn(0), false);
        self.down.clear();
        self.owed.died();
        for (who, client) in &mut self.clients {
            client.due.clear();
            client.woke = false;
            client.talking.died(*who, store, ledger);
        }
        for row in store.rows() {
            if let Row::Session(_, session) = row
                && let Some(who) = client(&row.key())
            {
                self.clients.entry(who).or_insert_with(|| Client::new(self.now));
                if let Some(peer) = self.peer(session) {
                    self.bind(peer, who);
                }
            }
        }
    }

    /// The next one is there.
    pub(crate) fn restarted(&mut self, now: Instant) {
        self.begin(now);
        self.up = now;
    }

    /// The session of a client is over.
    pub(crate) fn session_ended(&mut self, who: Who) {
        if let Some(client) = self.clients.get_mut(&who) {
            client.talking.end_session();
            client.due.clear();
        }
    }

    fn peer(&self, row: &SessionRow) -> Option<Peer> {
        let row = row.peer.as_ref()?;
        let port = self.settings.ports.iter().position(|port| port.name == row.port)?;
        Some(Peer { port: PortId(port as u16), addr: row.addr, node: row.node.clone() })
    }

    fn bind(&mut self, peer: Peer, who: Who) {
        self.bound.retain(|_, other| *other != who);
        self.bound.insert(peer.clone(), who);
        if let Some(other) = self.left.insert(peer, who).filter(|other| *other != who) {
            self.unclear.extend([who, other]);
        }
    }

    fn port(&self, peer: &Peer) -> &PortSettings {
        &self.settings.ports[usize::from(peer.port.0)]
    }

    /// A batch is handed out, and `store` does not have it yet.
    pub(crate) fn batch(
        &mut self,
        lsn: Lsn,
        records: &[Record],
        store: &Store,
        counters: &Counters,
        ledger: &Ledger,
    ) -> Checked {
        self.last = lsn;
        // Who connects where another client was takes its place.
        let taken = records.iter().filter_map(|record| match record {
            Record::Insert(Row::Session(_, row)) | Record::Update(Row::Session(_, row)) => self.peer(row),
            _ => None,
        });
        self.taken = taken.collect();
        self.handed.push_back((lsn, self.now));
        for record in records {
            match record {
                Record::Insert(Row::Session(_, row)) | Record::Update(Row::Session(_, row)) => {
                    self.session_stored(record, row, store)?;
                }
                Record::Delete(key @ Key::Client(_, ClientKey::Session)) => {
                    if let Some(who) = client(key) {
                        self.bound.retain(|_, other| *other != who);
                        self.session_ended(who);
                    }
                }
                Record::Delete(key @ Key::Client(_, ClientKey::Waiting(_))) => {
                    let no = store.message_of(key, ledger);
                    if let (Some(no), Some(who)) = (no, client(key))
                        && !self.unclear.contains(&who)
                    {
                        let has = self.clients.get(&who).is_some_and(|client| client.talking.has(no));
                        self.owed.dropped(who, no, has);
                    }
                }
                _ => {}
            }
        }
        self.owed.check_dropped(explained(counters))
    }

    /// The gateway sees a client in another light.
    fn session_stored(&mut self, record: &Record, row: &SessionRow, store: &Store) -> Checked {
        let (Record::Insert(stored) | Record::Update(stored)) = record else { return Ok(()) };
        let Some(who) = client(&stored.key()) else { return Ok(()) };
        let before = match store.row(&stored.key()) {
            Some(Row::Session(_, before)) => Some(before.clone()),
            _ => None,
        };
        let now = self.now;
        self.clients.entry(who).or_insert_with(|| Client::new(now));
        let is_there = |standing| matches!(standing, Standing::Active | Standing::Asleep | Standing::Leaving);
        if let Some(before) = &before
            && row.standing == Standing::Lost
            && is_there(before.standing)
        {
            self.check_lost(who, before)?;
        }
        let moved = before.as_ref().is_none_or(|before| before.peer != row.peer);
        let connected = before.as_ref().is_none_or(|before| before.connections != row.connections);
        let changed = before.as_ref().is_none_or(|before| before.standing != row.standing);
        let peer = self.peer(row);
        if moved {
            match peer.clone() {
                Some(peer) => self.bind(peer, who),
                None => self.bound.retain(|_, other| *other != who),
            }
        }
        let Some(client) = self.clients.get_mut(&who) else { return Ok(()) };
        client.talking.loose |= connected || changed;
        if (moved && is_there(row.standing)) || connected {
            (client.heard, client.perhaps) = (now, now);
        }
        if connected && let Some(peer) = &peer {
            // It need not hear of it.
            self.asking.remove(peer);
        }
        if connected || !is_there(row.standing) {
            client.due.clear();
            client.woke = false;
        }
        Ok(())
    }

    /// Before the gateway gets a frame.
    pub(crate) fn frame_in(&mut self, now: Instant, from: &Peer, frame: &Bytes, store: &Store) {
        if !self.on {
            return;
        }
        self.begin(now);
        let Ok(decoded) = decode(frame) else { return };
        let mut from = from.clone();
        from.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        let packet = decoded.packet;
        let links = self.port(&from).mode == Mode::Transparent;
        self.follow_connect(&from, &packet);
        if let Packet::Connect(connect) = &packet {
            if let Some(who) = who_is(connect.client_id)
                && !self.failing
                && !self.unclear.contains(&who)
            {
                self.connects.retain(|_, (other, _)| *other != who);
                let links = links || store.is_dedicated(who);
                let wait = if links { self.settings.broker.ack_timeout } else { Duration::ZERO };
                self.connects.insert(from.clone(), (who, Due::new(now + wait)));
            }
        } else if matches!(packet, Packet::Disconnect(_)) {
            // It is not meant any more.
            self.connects.remove(&from);
        }
        if let Packet::PingReq(PingReq { client_id }) = &packet
            && let Some(client) = who_is(client_id).and_then(|who| self.clients.get_mut(&who))
        {
            // It may wake elsewhere.
            client.talking.asked_again();
            (client.woke, client.perhaps) = (true, now);
        }
        let Some(who) = self.bound.get(&from).copied() else { return };
        let standing = standing(store, who);
        let is_asking = self.asking.contains(&from) && (links || store.is_dedicated(who));
        let Some(client) = self.clients.get_mut(&who) else { return };
        client.perhaps = now;
        let unread = matches!(
            packet,
            Packet::Connect(_)
                | Packet::WillTopic(_)
                | Packet::WillMsg(_)
                | Packet::Advertise(_)
                | Packet::GwInfo(_)
                | Packet::SearchGw(_)
                | Packet::ConnAck(_)
                | Packet::WillTopicReq
                | Packet::WillMsgReq
                | Packet::SubAck(_)
                | Packet::UnsubAck(_)
                | Packet::WillTopicResp(_)
                | Packet::WillMsgResp(_)
        );
        if unread || is_asking {
            return;
        }
        client.heard = now;
        client.talking.hear(&packet, now);
        let awaited = |client: &mut Client, name, msg_id, wait| {
            client.due.entry((name, msg_id)).or_insert_with(|| Due::new(now + wait));
        };
        if self.failing || self.unclear.contains(&who) {
            return;
        }
        let time = self.settings.broker.ack_timeout;
        match packet {
            Packet::Register(register) => awaited(client, "REGISTER", register.msg_id, Duration::ZERO),
            Packet::Subscribe(subscribe) => awaited(client, "SUBSCRIBE", subscribe.msg_id, time),
            Packet::Publish(publish) if publish.qos > Qos::AtMostOnce => {
                awaited(client, "PUBLISH", publish.msg_id, time);
            }
            Packet::Unsubscribe(Unsubscribe { msg_id, .. }) => {
                // Whether it takes back what is being asked for is not looked at here.
                client.due.retain(|(name, _), _| *name != "SUBSCRIBE");
                awaited(client, "UNSUBSCRIBE", msg_id, Duration::ZERO);
            }
            Packet::PingReq(PingReq { client_id }) => {
                let own = client_id.is_empty() || who_is(client_id) == Some(who);
                if own && standing == Some(Standing::Active) {
                    awaited(client, "PINGREQ", 0, Duration::ZERO);
                }
                if own && standing == Some(Standing::Asleep) {
                    if client_id.is_empty() {
                        client.talking.asked_again();
                    }
                    client.woke = true;
                }
            }
            _ => {}
        }
    }

    /// Whether all is said that a connection needs, and the broker may be asked.
    fn follow_connect(&mut self, from: &Peer, packet: &Packet<'_>) {
        let prompted = self.prompted.get(from).copied();
        let whole = match packet {
            Packet::Connect(connect) if connect.will => {
                self.prompted.insert(from.clone(), false);
                self.asking.remove(from);
                false
            }
            Packet::Connect(_) => true,
            Packet::WillTopic(will) if prompted.is_some() && !will.topic.is_empty() => {
                self.prompted.insert(from.clone(), true);
                false
            }
            Packet::WillTopic(_) => prompted.is_some(),
            Packet::WillMsg(_) => prompted == Some(true),
            Packet::Disconnect(_) => {
                self.asking.remove(from);
                self.prompted.remove(from);
                false
            }
            Packet::RegAck(_)
            | Packet::PubAck(_)
            | Packet::PubComp(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PingResp => false,
            _ => {
                // It goes on with its session.
                self.prompted.remove(from);
                false
            }
        };
        if whole {
            self.prompted.remove(from);
            self.asking.insert(from.clone());
        }
    }

    /// A frame leaves.
    pub(crate) fn frame_out(
        &mut self,
        to: &Peer,
        frame: &Bytes,
        ledger: &Ledger,
        store: &Store,
        lanes: bool,
    ) -> Checked {
        if !self.on {
            return Ok(());
        }
        let Ok(decoded) = decode(frame) else { return Ok(()) };
        let mut to = to.clone();
        to.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        if matches!(decoded.packet, Packet::ConnAck(_) | Packet::WillTopicReq) {
            self.connects.remove(&to);
        }
        if matches!(decoded.packet, Packet::ConnAck(_)) {
            self.asking.remove(&to);
        }
        let Some(who) = self.left.get(&to).copied() else { return Ok(()) };
        if self.unclear.contains(&who) {
            return Ok(());
        }
        let port = self.port(&to).clone();
        let (now, made) = (self.now, self.made);
        let Some(client) = self.clients.get_mut(&who) else { return Ok(()) };
        match &decoded.packet {
            Packet::RegAck(ack) => _ = client.due.remove(&("REGISTER", ack.msg_id)),
            Packet::SubAck(ack) => _ = client.due.remove(&("SUBSCRIBE", ack.msg_id)),
            Packet::UnsubAck(MsgIdOnly { msg_id }) => _ = client.due.remove(&("UNSUBSCRIBE", *msg_id)),
            Packet::PubAck(ack) => _ = client.due.remove(&("PUBLISH", ack.msg_id)),
            Packet::PubRec(MsgIdOnly { msg_id }) => _ = client.due.remove(&("PUBLISH", *msg_id)),
            Packet::PingResp => {
                client.due.remove(&("PINGREQ", 0));
                (client.woke, client.perhaps) = (false, now);
            }
            Packet::ConnAck(ack) if ack.code == ReturnCode::Accepted => {
                client.talking.connected(store.session(who).is_some());
            }
            Packet::Disconnect(_) => client.talking.loose = true,
            Packet::Publish(publish) => {
                if let Some(no) = ledger.find(publish.data) {
                    if client.talking.is_new(no, publish) {
                        self.owed.check_order(who, no, publish.retain, lanes, ledger)?;
                    }
                    let entry = ledger.entry(no);
                    let copies = ledger.copies(who, no).max(entry.at_broker);
                    let one = copies == 1 && !entry.redelivered && !entry.retain && !lanes;
                    client.talking.len = frame.len();
                    client.talking.publish(who, no, publish, one, &port, (made, now))?;
                }
            }
            Packet::Register(register) => {
                client.talking.len = frame.len();
                client.talking.register(who, register, &port, (made, now))?;
            }
            Packet::PubRel(MsgIdOnly { msg_id }) => {
                client.talking.pubrel(who, *msg_id, &port, (made, now))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A message of the broker reaches the gateway.
    pub(crate) fn arrived(&mut self, no: No, retain: bool) {
        if self.on {
            self.owed.arrived(no, retain);
        }
    }

    /// After all outputs of one event.
    pub(crate) fn end(&mut self, store: &Store) -> Checked {
        if !self.on {
            return Ok(());
        }
        let (now, last, reported) = (self.now, self.last, self.reported);
        for (peer, (who, due)) in &mut self.connects {
            let overdue = due.is_overdue(now, last, reported);
            Law::Answered.check(!overdue, || format!("CONNECT of s{who} at {peer:?} waits too long"))?;
        }
        for (who, client) in self.clients.iter_mut().filter(|(who, _)| !self.unclear.contains(who)) {
            for ((name, msg_id), due) in &mut client.due {
                let overdue = due.is_overdue(now, last, reported);
                Law::Answered.check(!overdue, || format!("{name} {msg_id:#06x} of s{who} waits too long"))?;
            }
        }
        self.check_silent(store)
    }

    /// not heard in time, or for all repetitions, or nowhere to be found after a restart.
    fn check_lost(&self, who: Who, row: &SessionRow) -> Checked {
        let Some(client) = self.clients.get(&who).filter(|_| !self.unclear.contains(&who)) else {
            return Ok(());
        };
        let peer = self.peer(row);
        if peer.as_ref().is_none_or(|peer| self.taken.contains(peer)) {
            return Ok(());
        }
        let port = peer.map_or(PortId(0), |peer| peer.port);
        Law::CutOff.check(!self.down.contains(&port), || {
            format!("s{who} counts as lost, and its transport is down: {row:?}")
        })?;
        let port = &self.settings.ports[usize::from(port.0)];
        let heard = client.heard.max(self.up);
        let unheard = patience(row).is_some_and(|patience| heard + patience <= self.now);
        let deaf = client.talking.is_deaf(heard, port, self.now);
        Law::LostWhenSilent.check(unheard || deaf, || {
            let silent = self.now.saturating_duration_since(heard);
            format!("s{who} counts as lost, silent for {silent:?}: {row:?}")
        })
    }

    /// Who was not heard in time does count as lost.
    fn check_silent(&self, store: &Store) -> Checked {
        for (who, client) in self.clients.iter().filter(|(who, _)| !self.unclear.contains(who)) {
            let Some(row) = store.session(*who) else { continue };
            let is_there = matches!(row.standing, Standing::Active | Standing::Asleep | Standing::Leaving);
            let is_awake = client.woke && row.standing == Standing::Asleep;
            // With a link of its own it may be about to be connected again.
            let is_cut_off = self.peer(row).is_some_and(|peer| self.down.contains(&peer.port));
            if !is_there || is_awake || is_cut_off || row.mode == Mode::Transparent {
                continue;
            }
            let heard = client.perhaps.max(self.up);
            let over = patience(row).is_some_and(|patience| heard + patience < self.now);
            Law::LostWhenSilent.check(!over, || {
                let silent = self.now.saturating_duration_since(heard);
                format!("s{who} was not heard for {silent:?} and is not lost: {row:?}")
            })?;
        }
        Ok(())
    }
}

/// how long a client may be silent.
fn patience(row: &SessionRow) -> Option<Duration> {
    let silence = match row.standing {
        Standing::Active | Standing::Leaving => row.keep_alive,
        Standing::Asleep => row.sleep,
        Standing::Disconnected | Standing::Lost => return None,
    };
    let tolerance = if silence > Duration::from_secs(60) { 10 } else { 2 };
    (!silence.is_zero()).then(|| silence + silence / tolerance)
}

fn standing(store: &Store, who: Who) -> Option<Standing> {
    store.session(who).map(|row| row.standing)
}

fn who_is(id: &[u8]) -> Option<Who> {
    std::str::from_utf8(id).ok()?.strip_prefix('s')?.parse().ok()
}
