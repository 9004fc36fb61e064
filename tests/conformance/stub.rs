//! A broker that does what a row says: answers at once, holds answers back, refuses. It is a value: packets in, packets out, in
//! words of MQTT 3.1.1; `broker.rs` has the sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Publish, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{QoS, matches};

use crate::dialect::{Heard, quality};
use crate::script::{Ack, Delivery, Message, Whose};

/// The broker. A connection goes by a number that is never used again.
#[derive(Debug, Default)]
pub(crate) struct Stub {
    /// Every CONNECT gets this return code.
    refuses: Option<u8>,
    withheld: BTreeSet<(Whose, Ack)>,
    held: VecDeque<Held>,
    /// True: handed out before the SUBACK.
    retained: Vec<(Message, bool)>,
    links: BTreeMap<u64, Whose>,
    sessions: BTreeMap<Whose, Session>,
    acts: Vec<Act>,
}

/// What the broker does on a connection.
#[derive(Debug)]
pub(crate) enum Act {
    /// With the subscription identifiers of a PUBLISH.
    Send(u64, Packet, Vec<usize>),
    Close(u64),
}

#[derive(Debug, Default)]
struct Session {
    link: Option<u64>,
    /// It outlives its connection.
    kept: bool,
    filters: BTreeMap<String, (QoS, Option<usize>)>,
    queue: Vec<Message>,
    packet_id: u16,
    /// What the gateway has yet to acknowledge, by packet id: sent again when the session goes on (MQTT 3.1.1 §4.4).
    open: BTreeMap<u16, (Packet, Vec<usize>)>,
}

/// An answer held back.
#[derive(Debug)]
struct Held {
    link: u64,
    whose: Whose,
    packet: HeldPacket,
}

#[derive(Debug)]
enum HeldPacket {
    Connect(Connect, bool),
    Publish(u16),
    Subscribe(Subscribe, Option<usize>),
}

impl Stub {
    /// Every CONNECT from here on gets this return code.
    pub(crate) fn refuse(&mut self, code: u8) {
        self.refuses = Some(code);
    }

    pub(crate) fn withhold(&mut self, whose: Whose, ack: Ack) {
        self.withheld.insert((whose, ack));
    }

    /// Gives the oldest answer of this kind that is held back. Whether there is one.
    pub(crate) fn answer(&mut self, whose: &Whose, ack: Ack, code: u8) -> bool {
        let oldest = self.held.iter().position(|held| held.whose == *whose && held.packet.ack() == ack);
        let Some(held) = oldest.and_then(|at| self.held.remove(at)) else { return false };
        self.give(held, code);
        true
    }

    /// Retains a message.
    pub(crate) fn hold(&mut self, message: Message, before_suback: bool) {
        self.retained.push((message, before_suback));
    }

    /// Sends a message to whoever has subscribed to it, or to everybody. How many that were.
    pub(crate) fn publish(&mut self, message: &Message, delivery: Delivery) -> usize {
        let Self { sessions, acts, .. } = self;
        sessions.values_mut().filter_map(|session| session.publish(message, delivery, acts)).count()
    }

    /// Does what a broker does with a packet, unless it was told otherwise.
    pub(crate) fn serve(&mut self, from: u64, heard: &Heard) {
        if let Packet::Connect(connect) = &heard.packet {
            let whose = Whose(connect.client_id.clone());
            self.links.insert(from, whose.clone());
            let is_withheld = self.withheld.contains(&(whose.clone(), Ack::Connect));
            let packet = HeldPacket::Connect(connect.clone(), heard.kept);
            return self.hold_or_give(is_withheld, Held { link: from, whose, packet });
        }
        let Some(whose) = self.links.get(&from).cloned() else { return };
        let is_withheld = |ack| self.withheld.contains(&(whose.clone(), ack));
        match &heard.packet {
            Packet::Publish(Publish { qos: QoS::AtLeastOnce, pkid, .. }) => {
                let packet = HeldPacket::Publish(*pkid);
                self.hold_or_give(is_withheld(Ack::Publish), Held { link: from, whose, packet });
            }
            Packet::Publish(Publish { qos: QoS::ExactlyOnce, pkid, .. }) => {
                self.send(from, Packet::PubRec(PubRec::new(*pkid)));
            }
            Packet::PubRel(rel) => self.send(from, Packet::PubComp(PubComp::new(rel.pkid))),
            Packet::PubRec(rec) => {
                let release = Packet::PubRel(PubRel::new(rec.pkid));
                if let Some(session) = self.sessions.get_mut(&whose) {
                    session.open.insert(rec.pkid, (release.clone(), Vec::new()));
                }
                self.send(from, release);
            }
            Packet::PubAck(PubAck { pkid }) | Packet::PubComp(PubComp { pkid }) => {
                if let Some(session) = self.sessions.get_mut(&whose) {
                    session.open.remove(pkid);
                }
            }
            Packet::Subscribe(subscribe) => {
                let packet = HeldPacket::Subscribe(subscribe.clone(), heard.subscription);
                self.hold_or_give(is_withheld(Ack::Subscribe), Held { link: from, whose, packet });
            }
            Packet::Unsubscribe(unsubscribe) => {
                if let Some(session) = self.sessions.get_mut(&whose) {
                    session.filters.retain(|filter, _| !unsubscribe.topics.contains(filter));
                }
                self.send(from, Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
            }
            Packet::PingReq => self.send(from, Packet::PingResp),
            Packet::Disconnect => {
                if let Some(session) = self.sessions.get_mut(&whose) {
                    session.kept &= heard.kept;
                }
                self.handle_closed(from);
                self.acts.push(Act::Close(from));
            }
            _ => {}
        }
    }

    /// The connection is gone.
    pub(crate) fn handle_closed(&mut self, link: u64) {
        self.held.retain(|held| held.link != link);
        let Some(whose) = self.links.remove(&link) else { return };
        let Some(session) = self.sessions.get_mut(&whose).filter(|session| session.link == Some(link)) else {
            return;
        };
        session.link = None;
        if !session.kept {
            self.sessions.remove(&whose);
        }
    }

    /// What is to be done.
    pub(crate) fn take_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    fn send(&mut self, link: u64, packet: Packet) {
        self.acts.push(Act::Send(link, packet, Vec::new()));
    }

    fn hold_or_give(&mut self, is_withheld: bool, held: Held) {
        if is_withheld {
            self.held.push_back(held);
        } else {
            let code = match &held.packet {
                HeldPacket::Connect(..) => self.refuses.unwrap_or(0),
                HeldPacket::Publish(_) => 0,
                HeldPacket::Subscribe(subscribe, _) => {
                    return self.subscribe(&held, subscribe, None);
                }
            };
            self.give(held, code);
        }
    }

    fn give(&mut self, held: Held, code: u8) {
        match &held.packet {
            HeldPacket::Connect(..) if code != 0 => {
                self.send(held.link, Packet::ConnAck(ConnAck::new(connect_code(code), false)));
                self.acts.push(Act::Close(held.link));
            }
            HeldPacket::Connect(connect, kept) => self.connect(&held, connect, *kept),
            HeldPacket::Publish(id) => self.send(held.link, Packet::PubAck(PubAck::new(*id))),
            HeldPacket::Subscribe(subscribe, _) => self.subscribe(&held, subscribe, Some(code)),
        }
    }

    fn connect(&mut self, held: &Held, connect: &Connect, kept: bool) {
        if connect.clean_session
            && let Some(Session { link: Some(old), .. }) = self.sessions.remove(&held.whose)
        {
            self.acts.push(Act::Close(old));
        }
        let present = self.sessions.contains_key(&held.whose);
        self.send(held.link, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, present)));
        let session = self.sessions.entry(held.whose.clone()).or_default();
        if let Some(old) = session.link.replace(held.link) {
            self.acts.push(Act::Close(old));
        }
        session.kept = kept;
        for (packet, ids) in session.open.values_mut() {
            if let Packet::Publish(publish) = packet {
                publish.dup = true;
            }
            self.acts.push(Act::Send(held.link, packet.clone(), ids.clone()));
        }
        for message in std::mem::take(&mut session.queue) {
            session.publish(&message, Delivery::Subscribers, &mut self.acts);
        }
    }

    fn subscribe(&mut self, held: &Held, subscribe: &Subscribe, code: Option<u8>) {
        let HeldPacket::Subscribe(_, id) = held.packet else { return };
        let Some(session) = self.sessions.get_mut(&held.whose) else { return };
        let mut codes = Vec::new();
        for filter in &subscribe.filters {
            let granted = code.unwrap_or(filter.qos as u8);
            codes.push(SubscribeReasonCode::try_from(granted).unwrap());
            if let Some(SubscribeReasonCode::Success(qos)) = codes.last() {
                session.filters.insert(filter.path.clone(), (*qos, id));
            }
        }
        let (early, late): (Vec<_>, Vec<_>) = self
            .retained
            .iter()
            .filter(|(message, _)| subscribe.filters.iter().any(|asked| matches(&message.topic, &asked.path)))
            .partition(|(_, before_suback)| *before_suback);
        for (message, _) in early {
            session.publish(message, Delivery::Subscribers, &mut self.acts);
        }
        let ack = Packet::SubAck(SubAck::new(subscribe.pkid, codes));
        self.acts.push(Act::Send(held.link, ack, Vec::new()));
        for (message, _) in late {
            session.publish(message, Delivery::Subscribers, &mut self.acts);
        }
    }
}

impl Session {
    /// Sends a message, or keeps it; nothing if it is not for this session.
    fn publish(&mut self, message: &Message, delivery: Delivery, acts: &mut Vec<Act>) -> Option<()> {
        let matching = self.filters.iter().filter(|(filter, _)| matches(&message.topic, filter));
        let matching: Vec<_> = matching.map(|(_, filter)| *filter).collect();
        let granted = matching.iter().map(|(qos, _)| *qos as u8).max();
        let qos = match delivery {
            Delivery::Subscribers => message.qos.min(granted?),
            Delivery::Regardless => message.qos,
        };
        let Some(link) = self.link else {
            // What is kept is for who has subscribed, and no QoS 0 (MQTT 3.1.1 §3.1.2.4).
            if granted.is_some() && qos > 0 {
                self.queue.push(message.clone());
            }
            return granted.map(|_| ());
        };
        let mut publish = Publish::new(&message.topic, quality(qos), message.payload.clone());
        publish.retain = message.retain;
        if qos > 0 {
            self.packet_id += 1;
            publish.pkid = self.packet_id;
        }
        let ids: Vec<_> = matching.iter().filter_map(|(_, id)| *id).collect();
        let packet = Packet::Publish(publish);
        if qos > 0 {
            self.open.insert(self.packet_id, (packet.clone(), ids.clone()));
        }
        acts.push(Act::Send(link, packet, ids));
        Some(())
    }
}

impl HeldPacket {
    fn ack(&self) -> Ack {
        match self {
            Self::Connect(..) => Ack::Connect,
            Self::Publish(_) => Ack::Publish,
            Self::Subscribe(..) => Ack::Subscribe,
        }
    }
}

fn connect_code(code: u8) -> ConnectReturnCode {
    match code {
        0 => ConnectReturnCode::Success,
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        _ => ConnectReturnCode::NotAuthorized,
    }
}
