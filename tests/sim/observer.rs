//! An MQTT client that is connected to the broker without a network in between: it sees at once whatever is published,
//! and publishes to the sensors.

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::broker::ConnectionId;
use rumqttc::{Connect, Packet, PubAck, PubComp, PubRec, PubRel, Publish, QoS, Subscribe};

use crate::law::Checked;
use crate::link::{encode, packets};

/// Connections of the observer are numbered from here, those of the gateway by its own numbers.
const FIRST: u64 = 1 << 40;

/// The observer.
pub(crate) struct Observer {
    connection: u64,
    input: BytesMut,
    pub(crate) connected: bool,
    last_id: u16,
}

/// A message that the broker took.
pub(crate) struct Seen {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
}

impl Observer {
    pub(crate) fn new() -> Self {
        Self { connection: FIRST, input: BytesMut::new(), connected: false, last_id: 0 }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        ConnectionId(self.connection)
    }

    /// Octets for a new connection.
    pub(crate) fn connect(&mut self) -> Bytes {
        self.connection += 1;
        self.input.clear();
        self.connected = true;
        let mut connect = Connect::new("observer");
        (connect.clean_session, connect.keep_alive) = (false, 0);
        encode(&[Packet::Connect(connect)])
    }

    /// The connection is gone.
    pub(crate) fn closed(&mut self) {
        self.connected = false;
    }

    /// Octets of a message.
    pub(crate) fn publish(&mut self, topic: &str, payload: Bytes, qos: QoS, retain: bool) -> Bytes {
        let mut publish = Publish::from_bytes(topic, qos, payload);
        publish.retain = retain;
        if qos != QoS::AtMostOnce {
            publish.pkid = self.next_id();
        }
        encode(&[Packet::Publish(publish)])
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id % 60_000 + 1;
        self.last_id
    }

    /// Takes what the broker says and gives what is to be answered.
    pub(crate) fn handle(&mut self, octets: &[u8]) -> Checked<(Vec<Seen>, Bytes)> {
        self.input.extend_from_slice(octets);
        let (mut seen, mut answers) = (Vec::new(), Vec::new());
        for packet in packets(&mut self.input)? {
            match packet {
                Packet::ConnAck(ack) if !ack.session_present => {
                    let mut subscribe = Subscribe::new("#", QoS::ExactlyOnce);
                    subscribe.pkid = self.next_id();
                    answers.push(Packet::Subscribe(subscribe));
                }
                Packet::Publish(publish) => {
                    match publish.qos {
                        QoS::AtMostOnce => {}
                        QoS::AtLeastOnce => answers.push(Packet::PubAck(PubAck::new(publish.pkid))),
                        QoS::ExactlyOnce => answers.push(Packet::PubRec(PubRec::new(publish.pkid))),
                    }
                    if !publish.retain {
                        seen.push(Seen { topic: publish.topic, payload: publish.payload });
                    }
                }
                Packet::PubRel(release) => answers.push(Packet::PubComp(PubComp::new(release.pkid))),
                Packet::PubRec(ack) => answers.push(Packet::PubRel(PubRel::new(ack.pkid))),
                _ => {}
            }
        }
        Ok((seen, encode(&answers)))
    }
}
