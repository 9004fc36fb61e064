//! What stands between a client of MQTT 5 and the embedded broker, which knows only MQTT 3.1.1, so that the faults of that
//! broker are there in both.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use rumqttc::mqttbytes::{Error, check, v4};
use rumqttc::v5::mqttbytes::v5;
use rumqttc::{Connect, LastWill, Login, Packet, Publish, QoS, Subscribe, SubscribeFilter, Unsubscribe};

/// One connection, with what is not a whole packet yet.
#[derive(Default)]
pub(crate) struct Translator {
    up: BytesMut,
    down: BytesMut,
    client: Option<ClientId>,
    /// Subscription identifiers by filter: part of the session, which may outlive the connection.
    pub(crate) subscriptions: BTreeMap<String, usize>,
    /// Filters of SUBSCRIBEs without an answer, and the identifiers they had before.
    asked: BTreeMap<u16, Vec<(String, Option<usize>)>>,
}

/// What the client's octets mean to the broker.
pub(crate) enum Meaning {
    Octets(Bytes),
    /// MQTT 3.1.1 has no word for it: the session of this client ends.
    Forget(ClientId),
}

impl Translator {
    /// Octets of the client; as much of them as are whole packets.
    pub(crate) fn up(&mut self, octets: &[u8]) -> Vec<Meaning> {
        self.up.extend_from_slice(octets);
        let mut meanings = Vec::new();
        while let Some(frame) = next(&mut self.up) {
            if frame[0] == 0xE0 && frame.len() > 2 {
                meanings.push(Meaning::Octets(Bytes::from_static(&[0xE0, 0])));
                meanings.extend(self.client.clone().map(Meaning::Forget));
                continue;
            }
            match frame[0] >> 4 {
                1 => self.connect(frame, &mut meanings),
                3 | 8 | 10 => meanings.push(Meaning::Octets(encoded(&self.request(frame)))),
                _ => meanings.push(Meaning::Octets(frame.freeze())), // the same in both
            }
        }
        meanings
    }

    fn connect(&mut self, mut frame: BytesMut, meanings: &mut Vec<Meaning>) {
        let Ok(v5::Packet::Connect(from, will, login)) = v5::Packet::read(&mut frame, None) else {
            panic!("not a CONNECT of MQTT 5");
        };
        let expiry = from.properties.and_then(|properties| properties.session_expiry_interval);
        let is_kept = expiry.is_some_and(|expiry| expiry > 0);
        self.client = ClientId::new(&from.client_id).ok();
        if from.clean_start && is_kept {
            meanings.extend(self.client.clone().map(Meaning::Forget));
        }
        let mut connect = Connect::new(from.client_id);
        connect.keep_alive = from.keep_alive;
        connect.clean_session = !is_kept;
        connect.last_will =
            will.map(|will| LastWill::new(text(&will.topic), will.message, qos(will.qos as u8), will.retain));
        connect.login = login.map(|login| Login::new(login.username, login.password));
        meanings.push(Meaning::Octets(encoded(&Packet::Connect(connect))));
    }

    /// Octets of the broker; as much of them as are whole packets. What is no packet stays what it is.
    pub(crate) fn down(&mut self, octets: &[u8]) -> BytesMut {
        self.down.extend_from_slice(octets);
        let mut out = BytesMut::new();
        while let Some(frame) = next(&mut self.down) {
            match frame[..] {
                [0x20, 2, present, 0] => {
                    if present == 0 {
                        self.subscriptions.clear();
                    }
                    out.extend_from_slice(&[0x20, 3, present, 0, 0]);
                }
                [0x20, 2, _, code @ 1..=5] => {
                    let reason = [0x84, 0x85, 0x88, 0x86, 0x87][usize::from(code) - 1];
                    out.extend_from_slice(&[0x20, 3, 0, reason, 0]);
                }
                [0x90, _, high, low, ref codes @ ..] => {
                    self.answered(u16::from_be_bytes([high, low]), codes);
                    let len = u8::try_from(3 + codes.len()).unwrap();
                    out.extend_from_slice(&[0x90, len, high, low, 0]);
                    out.extend_from_slice(codes);
                }
                [0xB0, 2, high, low] => out.extend_from_slice(&[0xB0, 4, high, low, 0, 0]),
                [first, ..] if first >> 4 == 3 => self.publish(frame, &mut out),
                _ => out.extend_from_slice(&frame),
            }
        }
        out
    }

    /// PUBLISH, SUBSCRIBE, UNSUBSCRIBE of the client.
    fn request(&mut self, mut frame: BytesMut) -> Packet {
        match v5::Packet::read(&mut frame, None).expect("a packet of ours") {
            v5::Packet::Publish(from) => {
                assert_eq!(from.properties, None);
                let mut publish = Publish::from_bytes(text(&from.topic), qos(from.qos as u8), from.payload);
                (publish.pkid, publish.dup, publish.retain) = (from.pkid, from.dup, from.retain);
                Packet::Publish(publish)
            }
            v5::Packet::Subscribe(from) => {
                let id = from.properties.and_then(|properties| properties.id);
                let mut asked = Vec::new();
                for filter in &from.filters {
                    let before = match id {
                        Some(id) => self.subscriptions.insert(filter.path.clone(), id),
                        None => self.subscriptions.remove(&filter.path),
                    };
                    asked.push((filter.path.clone(), before));
                }
                self.asked.insert(from.pkid, asked);
                let filters = from.filters.into_iter();
                let mut subscribe = Subscribe::new_many(
                    filters.map(|filter| SubscribeFilter::new(filter.path, qos(filter.qos as u8))),
                );
                subscribe.pkid = from.pkid;
                Packet::Subscribe(subscribe)
            }
            v5::Packet::Unsubscribe(from) => {
                for filter in &from.filters {
                    self.subscriptions.remove(filter);
                }
                Packet::Unsubscribe(Unsubscribe { pkid: from.pkid, topics: from.filters })
            }
            other => panic!("{other:?}"),
        }
    }

    /// What was refused has the identifier that it had, unless it is asked for again.
    fn answered(&mut self, id: u16, codes: &[u8]) {
        for ((filter, before), code) in self.asked.remove(&id).unwrap_or_default().into_iter().zip(codes) {
            let mut others = self.asked.values().flatten();
            match before {
                _ if *code < 0x80 || others.any(|(other, _)| *other == filter) => {}
                Some(before) => drop(self.subscriptions.insert(filter, before)),
                None => drop(self.subscriptions.remove(&filter)),
            }
        }
    }

    /// A PUBLISH of the broker, with the identifiers of all subscriptions it is for; a malformed one, too, becomes what it
    /// would be.
    fn publish(&self, frame: BytesMut, out: &mut BytesMut) {
        match v4::Packet::read(&mut frame.clone(), usize::MAX) {
            Ok(Packet::Publish(from)) => {
                let at = rumqttc::v5::mqttbytes::qos(from.qos as u8).unwrap();
                let properties = self.properties(&from.topic);
                let mut publish = v5::Publish::new(from.topic, at, from.payload, properties);
                (publish.pkid, publish.dup, publish.retain) = (from.pkid, from.dup, from.retain);
                publish.write(out).unwrap();
            }
            _ => out.extend_from_slice(&frame),
        }
    }

    fn properties(&self, topic: &str) -> Option<v5::PublishProperties> {
        let topic = TopicName::new(topic).ok()?;
        let matches = |filter: &str| TopicFilter::new(filter).is_ok_and(|filter| filter.matches(&topic));
        let matching = self.subscriptions.iter().filter(|(filter, _)| matches(filter));
        let subscription_identifiers: Vec<usize> = matching.map(|(_, id)| *id).collect();
        let properties = v5::PublishProperties { subscription_identifiers, ..Default::default() };
        (!properties.subscription_identifiers.is_empty()).then_some(properties)
    }
}

/// The next whole packet, or everything that is no packet.
pub(crate) fn next(stream: &mut BytesMut) -> Option<BytesMut> {
    match check(stream.iter(), usize::MAX) {
        Ok(header) => Some(stream.split_to(header.frame_length())),
        Err(Error::InsufficientBytes(_)) => None,
        Err(_) => Some(stream.split()),
    }
}

fn encoded(packet: &Packet) -> Bytes {
    let mut out = BytesMut::new();
    packet.write(&mut out, usize::MAX).unwrap();
    out.freeze()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

fn qos(qos: u8) -> QoS {
    rumqttc::mqttbytes::qos(qos).unwrap()
}
