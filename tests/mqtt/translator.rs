//! What stands between a client of MQTT 5 and the embedded broker, which knows only MQTT 3.1.1, so that the faults of that
//! broker are there in both.

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::topic::ClientId;
use rumqttc::mqttbytes::{Error, check, v4};
use rumqttc::v5::mqttbytes::v5;
use rumqttc::{Connect, LastWill, Login, Packet, Publish, QoS, Subscribe, SubscribeFilter, Unsubscribe};

/// One connection, with what is not a whole packet yet.
#[derive(Default)]
pub(crate) struct Translator {
    up: BytesMut,
    down: BytesMut,
    client: Option<ClientId>,
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
                3 | 8 | 10 => meanings.push(Meaning::Octets(encoded(&request(frame)))),
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
                [0x20, 2, present, 0] => out.extend_from_slice(&[0x20, 3, present, 0, 0]),
                [0x90, _, high, low, ref codes @ ..] => {
                    let len = u8::try_from(3 + codes.len()).unwrap();
                    out.extend_from_slice(&[0x90, len, high, low, 0]);
                    out.extend_from_slice(codes);
                }
                [0xB0, 2, high, low] => out.extend_from_slice(&[0xB0, 4, high, low, 0, 0]),
                [first, ..] if first >> 4 == 3 => publish(frame, &mut out),
                _ => out.extend_from_slice(&frame),
            }
        }
        out
    }
}

/// PUBLISH, SUBSCRIBE, UNSUBSCRIBE of the client.
fn request(mut frame: BytesMut) -> Packet {
    match v5::Packet::read(&mut frame, None).expect("a packet of ours") {
        v5::Packet::Publish(from) => {
            assert_eq!(from.properties, None);
            let mut publish = Publish::from_bytes(text(&from.topic), qos(from.qos as u8), from.payload);
            (publish.pkid, publish.dup, publish.retain) = (from.pkid, from.dup, from.retain);
            Packet::Publish(publish)
        }
        v5::Packet::Subscribe(from) => {
            let filters = from.filters.into_iter();
            let mut subscribe = Subscribe::new_many(
                filters.map(|filter| SubscribeFilter::new(filter.path, qos(filter.qos as u8))),
            );
            subscribe.pkid = from.pkid;
            Packet::Subscribe(subscribe)
        }
        v5::Packet::Unsubscribe(from) => {
            Packet::Unsubscribe(Unsubscribe { pkid: from.pkid, topics: from.filters })
        }
        other => panic!("{other:?}"),
    }
}

/// A PUBLISH of the broker; a malformed one, too, becomes what it would be.
fn publish(frame: BytesMut, out: &mut BytesMut) {
    match v4::Packet::read(&mut frame.clone(), usize::MAX) {
        Ok(Packet::Publish(from)) => {
            let at = rumqttc::v5::mqttbytes::qos(from.qos as u8).unwrap();
            let mut publish = v5::Publish::new(from.topic, at, from.payload, None);
            (publish.pkid, publish.dup, publish.retain) = (from.pkid, from.dup, from.retain);
            publish.write(out).unwrap();
        }
        _ => out.extend_from_slice(&frame),
    }
}

/// The next whole packet, or everything that is no packet.
fn next(stream: &mut BytesMut) -> Option<BytesMut> {
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
