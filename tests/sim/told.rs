//! What clients were told, and what the gateway was heard to take over: the account of worlds with a store, in which answers
//! wait for it and the process dies: what must be durable before it is said, and what survives. What is under way with each
//! client, frame by frame, is in [`crate::talk`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Mode, Peer, PortId, Settings, WirelessNodeId};
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Row};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{FilterRef, Packet, Qos, ReturnCode, decode};

use crate::air::client_id;
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::store::Store;

/// The account.
pub(crate) struct Told {
    settings: Settings,
    on: bool,
    /// Whose frames come from where, since they were told that they are connected.
    bound: BTreeMap<Peer, Who>,
    connecting: BTreeMap<Peer, Connecting>,
    clients: BTreeMap<Who, Client>,
    /// Clients that are to be told that they are forgotten.
    farewells: BTreeSet<Who>,
    /// Clients whose id several sensors have: nobody can tell what they know.
    shared: BTreeSet<Who>,
    /// Of what the last frame from a peer was.
    cause: Option<(Peer, &'static str)>,
    /// Since when the process lives, if it does.
    up: Option<Instant>,
    /// Transports of which it was told that they are down: the silence of those there is not theirs.
    down: BTreeSet<PortId>,
}

struct Connecting {
    who: Who,
    clean: bool,
    keep_alive: Duration,
    will: Option<No>,
    since: Instant,
    last_heard: Instant,
    /// What it has said since: that it leaves, or sleeps.
    leaves: bool,
    naps: Option<(Duration, Duration)>,
    goodbyes: u32,
    /// Its Will may have been due.
    allowed: bool,
    /// It was forgotten since: what it is yet told is of the session that is over.
    over: bool,
}

struct Client {
    peer: Peer,
    /// It was told that it is connected, and no goodbye was heard since.
    connected: bool,
    clean: bool,
    keep_alive: Duration,
    will: Option<No>,
    /// It was told that it may sleep; and has not asked for what it missed since.
    asleep: bool,
    awake: bool,
    /// It has asked for what it missed since it last said that it sleeps.
    wakes: bool,
    /// It asked once more while the answers wait for the store: they are in a row.
    asks_again: bool,
    /// The shortest and the longest time that it said since it connected.
    naps: Option<(Duration, Duration)>,
    asked_to_sleep: bool,
    /// DISCONNECTs of it that were not answered.
    goodbyes: u32,
    last_heard: Instant,
    /// Topic ids that it was told.
    ids: BTreeMap<u16, TopicName>,
    registers: BTreeMap<u16, (TopicName, Instant)>,
    subscribes: BTreeMap<u16, (Option<TopicFilter>, Instant)>,
    publishes: BTreeMap<u16, (No, Qos)>,
    /// Its goodbye was answered.
    gone: bool,
    /// Names that it was asked to learn, by their ids, and has not answered for.
    offered: BTreeSet<u16>,
    /// Its Will may have been due, since it was last heard.
    may: bool,
    /// That was so at some time since it connected.
    overdue: bool,
    /// Frames came from places that the gateway need not know it by.
    unsteady: bool,
    /// The session is over: what has waited for the store since is of no account, until it is told that it is connected.
    over: bool,
}

impl Told {
    pub(crate) fn new(settings: Settings, shared: BTreeSet<Who>, now: Instant) -> Self {
        Self {
            on: settings.lasting,
            settings,
            bound: BTreeMap::new(),
            connecting: BTreeMap::new(),
            clients: BTreeMap::new(),
            farewells: BTreeSet::new(),
            shared,
            cause: None,
            up: Some(now),
            down: BTreeSet::new(),
        }
    }

    /// The shortest silence after which this client may count as lost. To a PUBREL that left before a crash it was silent then.
    fn patience(&self, client: &Client) -> Duration {
        let port = &self.settings.ports[usize::from(client.peer.port.0)];
        let heard = self.up.is_some_and(|up| up <= client.last_heard);
        let deaf = port.retry_interval * (port.retry_limit + u32::from(heard));
        let times = [client.keep_alive, client.naps.map_or(Duration::ZERO, |(least, _)| least)];
        times.into_iter().filter(|time| !time.is_zero()).chain([deaf]).min().unwrap_or(deaf)
    }

    /// The silence after which it counts as lost for certain.
    fn limit(client: &Client) -> Option<Duration> {
        let time = client.keep_alive.max(client.naps.map_or(Duration::ZERO, |(_, most)| most));
        (!client.keep_alive.is_zero()).then(|| time + time / 2 + Duration::from_secs(3))
    }

    /// What the silence of a client has brought about so far.
    fn look(&mut self, who: Who, now: Instant, ledger: &mut Ledger) {
        let Some(client) = self.clients.get(&who).filter(|client| !client.gone) else { return };
        // Where it was told so; it may have been heard elsewhere, and be lost there.
        let is_cut_off = client.connected && self.down.contains(&client.peer.port);
        let Some(up) = self.up.filter(|_| !is_cut_off) else { return };
        let silent = now.saturating_duration_since(client.last_heard.max(up));
        let (may, must) =
            (silent >= self.patience(client), Self::limit(client).is_some_and(|limit| silent > limit));
        // With a link of its own a client may be dismissed instead.
        let aggregating = self.aggregating();
        let Some(client) = self.clients.get_mut(&who) else { return };
        let newly = may && !std::mem::replace(&mut client.may, true);
        let certain = must && aggregating && client.connected && !client.unsteady;
        client.connected &= !certain;
        if let Some(will) = client.will {
            let entry = ledger.entry_mut(will);
            entry.wills_due += u32::from(newly);
            entry.wills_certain += u32::from(certain);
        }
    }

    /// The silence of all, until now.
    pub(crate) fn look_at_all(&mut self, now: Instant, ledger: &mut Ledger) {
        if !self.on {
            return;
        }
        let waits = |connecting: &Connecting| connecting.since + Duration::from_secs(3) <= now;
        for connecting in self.connecting.values_mut().filter(|connecting| waits(connecting)) {
            // The gateway may have it for connected, and nobody has told it.
            if let Some(will) = connecting.will.filter(|_| !std::mem::replace(&mut connecting.allowed, true))
            {
                ledger.entry_mut(will).wills_due += 1;
            }
        }
        let clients: Vec<Who> = self.clients.keys().copied().collect();
        clients.into_iter().for_each(|who| self.look(who, now, ledger));
    }

    /// The process has died.
    pub(crate) fn died(&mut self, now: Instant, ledger: &mut Ledger) {
        self.look_at_all(now, ledger);
        self.untold(ledger);
        self.connecting.clear();
        self.farewells.clear();
        (self.cause, self.up) = (None, None);
        self.down.clear();
        self.clients
            .values_mut()
            .for_each(|client| (client.awake, client.asks_again, client.goodbyes) = (false, false, 0));
    }

    /// Before the gateway is told that a transport can send and receive, or cannot.
    pub(crate) fn carrier(&mut self, now: Instant, port: PortId, up: bool, ledger: &mut Ledger) {
        if !self.on {
            return;
        }
        self.begin();
        let there = self.clients.iter().filter(|(_, client)| client.peer.port == port);
        let there: Vec<Who> = there.map(|(who, _)| *who).collect();
        for who in there {
            self.look(who, now, ledger);
            self.change(who, |client| {
                if up && client.connected {
                    client.last_heard = now;
                } else if !up {
                    (client.awake, client.asks_again, client.goodbyes) = (false, false, 0);
                }
            });
        }
        if up {
            self.down.remove(&port)
        } else {
            self.down.insert(port)
        };
    }

    /// Clients that have said all that a connection needs are not told that they have one.
    pub(crate) fn untold(&mut self, ledger: &mut Ledger) {
        for will in self.connecting.values_mut().filter_map(|connecting| connecting.will) {
            ledger.entry_mut(will).wills_due += 1;
        }
    }

    /// The next one is there: all times begin anew.
    pub(crate) fn restarted(&mut self, now: Instant) {
        self.up = Some(now);
    }

    /// Before the gateway is told of anything but a frame.
    pub(crate) fn begin(&mut self) {
        self.cause = None;
    }

    /// The session of a client is over.
    pub(crate) fn session_ended(&mut self, who: Who) {
        if let Some(client) = self.clients.get_mut(&who) {
            client.ids.clear();
            client.over = true;
        }
    }

    /// The operator has a client forgotten: if it listens it is told that it is not connected, behind what it was told before;
    /// and its Will is not published.
    pub(crate) fn forgotten(&mut self, who: Who, listens: bool) {
        if listens {
            self.farewells.insert(who);
        }
        if let Some(client) = self.clients.get_mut(&who) {
            (client.connected, client.over) = (false, true);
        }
        for connecting in self.connecting.values_mut().filter(|connecting| connecting.who == who) {
            connecting.over = true;
        }
    }

    /// The operator has been told that everything of a client is gone for good: so was the client, before.
    pub(crate) fn answered(&mut self, who: Who) {
        self.farewells.remove(&who);
    }

    /// Frames of this client come from places by which the gateway need not know it.
    pub(crate) fn unsteady(&mut self, who: Who) {
        if let Some(client) = self.clients.get_mut(&who) {
            client.unsteady = true;
        }
    }

    /// Before the gateway gets a frame.
    pub(crate) fn frame_in(&mut self, now: Instant, from: &Peer, frame: &Bytes, ledger: &mut Ledger) {
        if !self.on {
            return;
        }
        self.cause = None;
        let Ok(decoded) = decode(frame) else { return };
        let mut from = from.clone();
        from.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        self.cause = Some((from.clone(), decoded.packet.name()));
        match decoded.packet {
            Packet::Connect(connect) => {
                let Some(who) = who_is(connect.client_id) else { return };
                let (clean, keep_alive) =
                    (connect.clean_session, Duration::from_secs(connect.duration.into()));
                let known = self.connecting.get(&from).filter(|known| known.who == who);
                let (will, since) = known.map_or((None, now), |known| (known.will, known.since));
                // The answer to a goodbye in between may wait for the store too.
                let goodbyes = known.map_or(0, |known| known.goodbyes);
                // Without one of its own it keeps that of its session.
                let kept = self.clients.get(&who).filter(|_| !connect.will && !clean);
                let will = will.or(kept.and_then(|client| client.will));
                let new = Connecting {
                    who,
                    clean,
                    keep_alive,
                    will,
                    since,
                    last_heard: now,
                    leaves: false,
                    naps: None,
                    goodbyes,
                    allowed: false,
                    over: false,
                };
                self.connecting.insert(from.clone(), new);
                self.look(who, now, ledger);
                if let Some(client) = self.clients.get_mut(&who) {
                    if client.peer != from {
                        client.connected = false;
                    }
                    // It may be connected, and not hear of it.
                    (client.unsteady, client.asleep) = (true, false);
                }
            }
            Packet::WillMsg(will) => {
                if let Some(connecting) = self.connecting.get_mut(&from) {
                    connecting.last_heard = now;
                    connecting.will = ledger.find(will.message);
                }
            }
            Packet::Disconnect(disconnect) => {
                if let Some(connecting) = self.connecting.get_mut(&from) {
                    connecting.goodbyes += 1;
                    match disconnect.duration.filter(|seconds| *seconds > 0) {
                        Some(seconds) => connecting.naps = longer(connecting.naps, seconds),
                        None => connecting.leaves = true,
                    }
                }
            }
            _ => {}
        }
        if let Packet::PingReq(ping) = &decoded.packet
            && let Some(who) = who_is(ping.client_id)
        {
            if self.bound.get(&from).is_some_and(|other| *other != who) {
                // It is not for the client there.
                self.cause = None;
                return;
            }
            self.look(who, now, ledger);
            let moves = |client: &&mut Client| client.asleep && client.peer != from;
            if let Some(client) = self.clients.get_mut(&who).filter(moves) {
                // It may wake there, or not: then this is no sign of life.
                let before = std::mem::replace(&mut client.peer, from.clone());
                (client.connected, client.unsteady, client.awake) = (false, true, true);
                self.unbind(&before, who);
                self.bound.insert(from.clone(), who);
                return;
            }
        }
        let Some(who) = self.bound.get(&from).copied() else { return };
        self.look(who, now, ledger);
        let Some(client) = self.clients.get_mut(&who) else { return };
        let sleeps = client.asleep && !client.awake;
        if matches!(decoded.packet, Packet::Connect(_) | Packet::WillTopic(_) | Packet::WillMsg(_)) {
            // Of a handshake that the gateway knows nothing of, it takes no notice.
            return;
        }
        client.last_heard = now;
        client.overdue |= client.may;
        client.may = false;
        match decoded.packet {
            Packet::Register(register) => {
                if let Ok(name) = TopicName::new(register.topic_name) {
                    client.registers.insert(register.msg_id, (name, now));
                }
            }
            Packet::Subscribe(subscribe) => {
                let filter = match subscribe.topic {
                    FilterRef::Name(name) => TopicFilter::new(name).ok(),
                    FilterRef::Short(name) => TopicFilter::new(name).ok(),
                    FilterRef::Predefined(_) | FilterRef::Reserved(_) => None,
                };
                client.subscribes.insert(subscribe.msg_id, (filter, now));
            }
            Packet::Publish(publish) if publish.qos > Qos::AtMostOnce => {
                if let Some(no) = ledger.find(publish.data) {
                    client.publishes.insert(publish.msg_id, (no, publish.qos));
                }
            }
            Packet::RegAck(ack) => _ = client.offered.remove(&ack.topic_id),
            Packet::PingReq(_) if sleeps => (client.awake, client.wakes) = (true, true),
            Packet::PingReq(_) => (client.asks_again, client.wakes) = (client.awake, true),
            Packet::Disconnect(disconnect) => match disconnect.duration.filter(|seconds| *seconds > 0) {
                Some(seconds) => {
                    client.goodbyes += 1;
                    client.naps = longer(client.naps, seconds);
                    (client.asked_to_sleep, client.wakes) = (true, false);
                }
                None => (client.connected, client.goodbyes) = (false, client.goodbyes + 1),
            },
            _ => {}
        }
    }

    /// A frame leaves.
    pub(crate) fn frame_out(
        &mut self,
        now: Instant,
        to: &Peer,
        frame: &Bytes,
        ledger: &mut Ledger,
        store: &Store,
    ) -> Checked {
        if !self.on {
            return Ok(());
        }
        let Ok(decoded) = decode(frame) else { return Ok(()) };
        let mut to = to.clone();
        to.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        if let Packet::ConnAck(ack) = &decoded.packet {
            return self.connack_out(&to, ack.code, store);
        }
        let Some(who) = self.bound.get(&to).copied().filter(|who| !self.shared.contains(who)) else {
            return Ok(());
        };
        let Some(client) = self.clients.get(&who) else { return Ok(()) };
        let unasked = matches!(decoded.packet, Packet::Publish(_) | Packet::Register(_));
        // Where the CONNACK of another client could not leave, what is for that may.
        let unasked = unasked && !self.connecting.contains_key(&to);
        Law::QuietSleep.check(!(unasked && client.connected && client.asleep && !client.awake), || {
            format!("s{who} is asleep and is sent {} unasked", decoded.packet.name())
        })?;
        let durable =
            |key: ClientKey, since: Instant| store.has_had(&Key::Client(client_id(who), key), since);
        match decoded.packet {
            Packet::PingResp => {
                self.change(who, |client| client.awake = std::mem::take(&mut client.asks_again));
            }
            Packet::Disconnect(_) => return self.disconnect_out(now, who, &to),
            Packet::RegAck(ack) if ack.code == ReturnCode::Accepted => {
                let Some((name, at)) = client.registers.get(&ack.msg_id).cloned() else { return Ok(()) };
                let kept = durable(ClientKey::Topic(ack.topic_id), at);
                let known = self.is_predefined(who, ack.topic_id);
                Law::Durable.check(kept || known, || {
                    format!("s{who} is told {:#06x} for {name}, which is not stored", ack.topic_id)
                })?;
                return self.tell_id(who, ack.topic_id, name);
            }
            Packet::SubAck(ack) if ack.code == ReturnCode::Accepted => {
                let Some((Some(filter), at)) = client.subscribes.get(&ack.msg_id).cloned() else {
                    return Ok(());
                };
                Law::Durable.check(durable(ClientKey::Subscription(filter.clone()), at), || {
                    format!("s{who} is granted {filter}, which is not stored")
                })?;
                if let Some(name) = filter.as_topic()
                    && ack.topic_id != 0
                    && name.as_str().len() > 2
                {
                    return self.tell_id(who, ack.topic_id, name);
                }
            }
            Packet::Publish(_) if !client.offered.is_empty() => {
                // It overtakes what waits for a name.
                ledger.overtaken(who);
            }
            Packet::Register(register) => {
                if !client.offered.is_empty() {
                    ledger.overtaken(who);
                }
                self.change(who, |client| _ = client.offered.insert(register.topic_id));
                if let Ok(name) = TopicName::new(register.topic_name) {
                    return self.tell_id(who, register.topic_id, name);
                }
            }
            Packet::PubAck(ack) => {
                let Some((no, qos)) = client.publishes.get(&ack.msg_id).copied() else { return Ok(()) };
                match ack.code {
                    ReturnCode::Accepted if qos == Qos::AtLeastOnce => {
                        let kept = is_kept(no, ledger, store);
                        let entry = ledger.entry_mut(no);
                        // What was kept for too long is given up, and its sender may ask once more.
                        entry.is_kept |= kept;
                        // And what the operator had forgotten meanwhile is his to answer for.
                        let fair = entry.acked || entry.is_kept || entry.disowned;
                        return Law::AckedByBroker
                            .check(fair, || format!("PUBACK of m{no} comes of nothing"));
                    }
                    ReturnCode::InvalidTopicId => {
                        let known = client.connected && client.ids.contains_key(&ack.topic_id);
                        return Law::Survival.check(!known, || {
                            format!("s{who} was told {:#06x}, which is not known any more", ack.topic_id)
                        });
                    }
                    _ => {}
                }
            }
            Packet::PubRec(ack) => {
                let Some((no, Qos::ExactlyOnce)) = client.publishes.get(&ack.msg_id).copied() else {
                    return Ok(());
                };
                let kept = is_kept(no, ledger, store);
                let entry = ledger.entry_mut(no);
                entry.is_kept |= kept;
                let fair = entry.received || entry.acked || entry.is_kept || entry.disowned;
                return Law::AckedByBroker.check(fair, || format!("PUBREC of m{no} comes of nothing"));
            }
            Packet::PubComp(ack) => {
                let Some((no, Qos::ExactlyOnce)) = client.publishes.get(&ack.msg_id).copied() else {
                    return Ok(());
                };
                let entry = ledger.entry(no);
                // Of what the broker has taken over it needs no more, if it loses its session.
                let fair = entry.acked || entry.received || entry.is_kept || entry.disowned;
                let fair = fair || is_kept(no, ledger, store);
                return Law::AckedByBroker.check(fair, || format!("PUBCOMP of m{no} comes of nothing"));
            }
            _ => {}
        }
        Ok(())
    }

    fn change(&mut self, who: Who, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.clients.get_mut(&who) {
            change(client);
        }
    }

    fn connack_out(&mut self, to: &Peer, code: ReturnCode, store: &Store) -> Checked {
        let Some(connecting) = self.connecting.get(to).filter(|_| code == ReturnCode::Accepted) else {
            return Ok(());
        };
        let &Connecting {
            who, clean, keep_alive, will, since, last_heard, leaves, naps, goodbyes, over, ..
        } = connecting;
        let key = Key::Client(client_id(who), ClientKey::Session);
        Law::Durable.check(store.has_had(&key, since), || format!("s{who} is connected and not stored"))?;
        self.connecting.remove(to);
        if let Some(other) = self.bound.get(to).copied().filter(|other| *other != who) {
            self.change(other, |other| other.connected = false);
        }
        let before = self.clients.remove(&who);
        if let Some(before) = &before {
            self.unbind(&before.peer, who);
        }
        self.bound.insert(to.clone(), who);
        let offered = before.as_ref().map(|before| before.offered.clone()).unwrap_or_default();
        let goes_on = before.filter(|before| !clean && !before.clean);
        let same = will.or_else(|| goes_on.as_ref().and_then(|before| before.will));
        self.clients.insert(
            who,
            Client {
                peer: to.clone(),
                connected: !leaves && !over,
                clean,
                keep_alive,
                will: same,
                asleep: false,
                awake: false,
                wakes: false,
                asks_again: false,
                naps,
                asked_to_sleep: naps.is_some(),
                goodbyes,
                last_heard,
                ids: goes_on.map(|before| before.ids).unwrap_or_default(),
                registers: BTreeMap::new(),
                subscribes: BTreeMap::new(),
                publishes: BTreeMap::new(),
                gone: false,
                offered,
                may: false,
                overdue: false,
                unsteady: self.shared.contains(&who),
                over,
            },
        );
        Ok(())
    }

    /// A client is elsewhere now. Where it was another one may be.
    fn unbind(&mut self, peer: &Peer, who: Who) {
        if self.bound.get(peer) == Some(&who) {
            self.bound.remove(peer);
        }
    }

    fn aggregating(&self) -> bool {
        self.settings.ports.iter().all(|port| port.mode == Mode::Aggregating)
    }

    /// A client is told that it is not connected, or may sleep.
    fn disconnect_out(&mut self, now: Instant, who: Who, to: &Peer) -> Checked {
        // One with a link of its own may have been dismissed.
        let aggregating = self.aggregating();
        let farewell = self.farewells.contains(&who);
        let Some(client) = self.clients.get_mut(&who) else { return Ok(()) };
        client.unsteady |= farewell;
        let cause = self.cause.as_ref().filter(|(from, _)| from == to).map(|(_, name)| *name);
        if client.goodbyes > 0 {
            client.goodbyes -= 1;
            if client.asked_to_sleep {
                (client.asleep, client.awake) = (true, client.wakes);
            } else {
                client.gone = true;
            }
            return Ok(());
        }
        let silent = now.saturating_duration_since(client.last_heard);
        let known = std::mem::replace(&mut client.connected, false);
        Law::Survival.check(!known || !aggregating || client.may || client.overdue || client.unsteady, || {
            format!(
                "s{who} is told that it is not connected, {silent:?} after it was heard, because of {cause:?}"
            )
        })
    }

    /// G5, §7.3: one id for one name, over crashes too.
    fn tell_id(&mut self, who: Who, id: u16, name: TopicName) -> Checked {
        let Some(client) = self.clients.get_mut(&who).filter(|client| !client.over) else { return Ok(()) };
        let before = client.ids.insert(id, name.clone());
        let others = client.ids.iter().any(|(other, named)| *other != id && *named == name);
        let fair = before.as_ref().is_none_or(|before| *before == name) && !others;
        Law::IdsStable.check(fair || !client.connected, || {
            format!("s{who} is given {id:#06x} for {name}, which was {before:?}; it knows {:?}", client.ids)
        })
    }

    fn is_predefined(&self, who: Who, id: u16) -> bool {
        let own = self.settings.client_predefined.get(&client_id(who));
        self.settings.predefined.contains_key(&id) || own.is_some_and(|own| own.contains_key(&id))
    }
}

fn longer(naps: Option<(Duration, Duration)>, seconds: u16) -> Option<(Duration, Duration)> {
    let nap = Duration::from_secs(seconds.into());
    let (least, most) = naps.unwrap_or((nap, nap));
    Some((least.min(nap), most.max(nap)))
}

/// Whether a message is stored for the broker, its sender being told that all is well.
fn is_kept(no: No, ledger: &Ledger, store: &Store) -> bool {
    store.rows().any(|row| match row {
        Row::Uplink(_, _, row) => row.promised && ledger.find(&row.message.payload) == Some(no),
        _ => false,
    })
}

fn who_is(id: &[u8]) -> Option<Who> {
    std::str::from_utf8(id).ok()?.strip_prefix('s')?.parse().ok()
}
