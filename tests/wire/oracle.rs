//! An oracle that is not ours: Wireshark's MQTT-SN dissector reads what we write, field by field.
//!
//! Checked against tshark 4.0.17. Where the dissector says something else than the specification, [`Oracle`] says so.

use std::fmt::Write as _;
use std::process::Command;

use mqtt_sn_gateway::wire::{FilterRef, Frame, Packet, Qos, TopicRef, decode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::frames::{Parts, encoded, hex, long_form, parts, tails};
use crate::{conformance, vectors};

/// Octets in a UDP datagram, to stay below what IPv4 can carry.
const DATAGRAM_MAX: usize = 60_000;

#[test]
fn wiresharks_dissector_reads_the_same() {
    let mut datagrams: Vec<Vec<u8>> = vectors::VECTORS.iter().map(|(octets, ..)| hex(octets)).collect();
    datagrams.extend(vectors::TOLERATED.iter().map(|(octets, ..)| hex(octets)));
    datagrams.extend(conformance::MESSAGES.iter().map(|(_, octets, ..)| hex(octets)));
    datagrams.extend(random(4_000, parts(tails(), vec(any::<u8>(), 0..12))));
    datagrams.extend(random(30, parts(vec(any::<u8>(), 1..DATAGRAM_MAX), vec(any::<u8>(), 0..=252))));
    let long: Vec<_> = datagrams.iter().step_by(3).filter_map(|octets| long_form(octets)).collect();
    datagrams.extend(long);
    datagrams.retain(|datagram| datagram.len() <= DATAGRAM_MAX);

    let dissected = dissect(&datagrams);
    assert_eq!(dissected.len(), datagrams.len());
    let mut kinds = std::collections::BTreeSet::new();
    for (datagram, theirs) in datagrams.iter().zip(&dissected) {
        let frame = decode(datagram).expect("a frame of ours");
        kinds.insert(frame.packet.name());
        assert_eq!(
            theirs,
            &Oracle::expect(&frame, datagram),
            "{frame}\n{:02X?}",
            &datagram[..datagram.len().min(40)]
        );
    }
    assert_eq!(kinds.len(), Parts::KINDS, "every message was seen");
}

fn random(count: usize, parts: impl Strategy<Value = Parts>) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut one = || encoded(&parts.new_tree(&mut runner).expect("no filters").current().frame());
    (0..count).map(|_| one()).collect()
}

/// What the dissector shows: names and values in hex in order, and whether it ends with "malformed".
#[derive(Debug, Default, PartialEq, Eq)]
struct Oracle {
    fields: Vec<(String, String)>,
    malformed: bool,
}

impl Oracle {
    /// What it has to show of the frame that we decoded from `datagram`.
    fn expect(frame: &Frame<'_>, datagram: &[u8]) -> Self {
        let mut this = Self::default();
        let mut message = datagram;
        if let Some(encapsulation) = frame.encapsulation {
            let (header, inner) = datagram.split_at(encapsulation.node_id.len() + 3);
            message = inner;
            this.msg_type(0xFE, "Encapsulated Message");
            this.field("msg.len", &header[..1]);
            // The dissector shows the reserved bits beside the radius.
            this.bits("control.info", encapsulation.radius, header[2]);
            // §5.5 gives the node id no size. The dissector makes a number of it: one of more than four octets is
            // shown, but called malformed, and behind one of none it stops.
            this.malformed = !(1..=4).contains(&encapsulation.node_id.len());
            if encapsulation.node_id.is_empty() {
                return this;
            }
            this.field("wireless.node.id", encapsulation.node_id);
        }
        this.message(&frame.packet, message);
        this
    }

    fn message(&mut self, packet: &Packet<'_>, message: &[u8]) {
        let (msg_type, length, flags) = match message {
            [1, high, low, msg_type, body @ ..] => (*msg_type, &[*high, *low][..], body.first()),
            [length, msg_type, body @ ..] => (*msg_type, std::slice::from_ref(length), body.first()),
            _ => unreachable!("a frame was decoded from it"),
        };
        self.msg_type(msg_type, their_name(packet));
        self.field("msg.len", length);
        // The octet itself is shown too, with bits that the message does not use.
        let flags = flags.copied().unwrap_or_default();
        match packet {
            Packet::WillTopicReq | Packet::WillMsgReq | Packet::PingResp => {}
            Packet::Advertise(m) => {
                self.field("gw.id", &[m.gw_id]);
                self.field("adv.interv", &m.duration.to_be_bytes());
            }
            Packet::SearchGw(m) => self.field("radius", &[m.radius]),
            Packet::GwInfo(m) => {
                self.field("gw.id", &[m.gw_id]);
                self.unless_empty("gw.addr", m.gw_add);
            }
            Packet::Connect(m) => {
                self.bits("will", m.will.into(), flags);
                self.bits("clean.session", m.clean_session.into(), flags);
                // Shown, though CONNECT does not use it (§5.4.4).
                self.bits("topic.id.type", flags & 3, flags);
                self.field("protocol.id", &[m.protocol_id]);
                self.field("keep.alive", &m.duration.to_be_bytes());
                self.field("client.id", m.client_id);
            }
            Packet::ConnAck(m) | Packet::WillTopicResp(m) | Packet::WillMsgResp(m) => {
                self.field("return.code", &[m.code.code()]);
            }
            Packet::WillTopic(m) | Packet::WillTopicUpd(m) => {
                // Not used by the message, but shown; Will QoS and Will retain are not shown, the octet has them.
                assert!(m.topic.is_empty() || (qos(m.qos) << 5 | u8::from(m.retain) << 4) == flags & 0x70);
                match message {
                    // The dissector wants flags in the empty form, which has none (§5.4.7).
                    [2, _] | [1, 0, 4, _] => self.malformed = true,
                    _ => {
                        self.bits("topic.id.type", flags & 3, flags);
                        self.field("will.topic", m.topic);
                    }
                }
            }
            Packet::WillMsg(m) | Packet::WillMsgUpd(m) => self.field("will.msg", m.message),
            Packet::Register(m) => {
                self.field("topic.id", &m.topic_id.to_be_bytes());
                self.field("msg.id", &m.msg_id.to_be_bytes());
                self.field("topic", m.topic_name);
            }
            Packet::RegAck(m) | Packet::PubAck(m) => {
                self.field("topic.id", &m.topic_id.to_be_bytes());
                self.field("msg.id", &m.msg_id.to_be_bytes());
                self.field("return.code", &[m.code.code()]);
            }
            Packet::Publish(m) => {
                self.bits("dup", m.dup.into(), flags);
                self.bits("qos", qos(m.qos), flags);
                self.bits("retain", m.retain.into(), flags);
                let (kind, topic) = match m.topic {
                    TopicRef::Normal(id) => (0, id.to_be_bytes()),
                    TopicRef::Predefined(id) => (1, id.to_be_bytes()),
                    TopicRef::Short(name) => (2, name),
                    TopicRef::Reserved(id) => (3, id.to_be_bytes()),
                };
                self.bits("topic.id.type", kind, flags);
                self.field("topic.id", &topic);
                self.field("msg.id", &m.msg_id.to_be_bytes());
                self.field("pub.msg", m.data);
            }
            Packet::PubComp(m) | Packet::PubRec(m) | Packet::PubRel(m) | Packet::UnsubAck(m) => {
                self.field("msg.id", &m.msg_id.to_be_bytes());
            }
            Packet::Subscribe(m) => {
                // DUP and QoS are not shown, the octet has them.
                assert_eq!((u8::from(m.dup) << 7) | (qos(m.qos) << 5), flags & 0xE0);
                self.filter(m.topic, m.msg_id, flags);
            }
            Packet::Unsubscribe(m) => self.filter(m.topic, m.msg_id, flags),
            Packet::SubAck(m) => {
                // QoS is not shown, the octet has it; TopicIdType is shown, though not used (§5.4.16).
                assert_eq!(qos(m.qos) << 5, flags & 0x60);
                self.bits("topic.id.type", flags & 3, flags);
                self.field("topic.id", &m.topic_id.to_be_bytes());
                self.field("msg.id", &m.msg_id.to_be_bytes());
                self.field("return.code", &[m.code.code()]);
            }
            Packet::PingReq(m) => self.unless_empty("client.id", m.client_id),
            Packet::Disconnect(m) => {
                if let Some(duration) = m.duration {
                    self.field("sleep.timer", &duration.to_be_bytes());
                }
            }
        }
    }

    fn filter(&mut self, topic: FilterRef<'_>, msg_id: u16, flags: u8) {
        let (kind, topic) = match topic {
            FilterRef::Name(name) => (0, name.to_vec()),
            FilterRef::Predefined(id) => (1, id.to_be_bytes().to_vec()),
            FilterRef::Short(name) => (2, name.to_vec()),
            FilterRef::Reserved(octets) => (3, octets.to_vec()),
        };
        self.bits("topic.id.type", kind, flags);
        self.field("msg.id", &msg_id.to_be_bytes());
        self.field("topic.name.or.id", &topic);
    }

    fn msg_type(&mut self, value: u8, name: &str) {
        self.fields.push(("msg.type".to_owned(), format!("{name} (0x{value:02x})")));
    }

    fn field(&mut self, name: &str, value: &[u8]) {
        self.fields.push((name.to_owned(), digits(value)));
    }

    fn unless_empty(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.field(name, value);
        }
    }

    fn bits(&mut self, name: &str, value: u8, octet: u8) {
        self.fields.push((name.to_owned(), format!("{value:X} of {octet:02x}")));
    }
}

/// What the dissector calls a message.
fn their_name(packet: &Packet<'_>) -> &'static str {
    match packet {
        Packet::Advertise(_) => "Advertise Gateway",
        Packet::SearchGw(_) => "Search Gateway",
        Packet::GwInfo(_) => "Gateway Info",
        Packet::Connect(_) => "Connect Command",
        Packet::ConnAck(_) => "Connect Ack",
        Packet::WillTopicReq => "Will Topic Request",
        Packet::WillTopic(_) => "Will Topic",
        Packet::WillMsgReq => "Will Message Request",
        Packet::WillMsg(_) => "Will Message",
        Packet::Register(_) => "Register",
        Packet::RegAck(_) => "Register Ack",
        Packet::Publish(_) => "Publish Message",
        Packet::PubAck(_) => "Publish Ack",
        Packet::PubComp(_) => "Publish Complete",
        Packet::PubRec(_) => "Publish Received",
        Packet::PubRel(_) => "Publish Release",
        Packet::Subscribe(_) => "Subscribe Request",
        Packet::SubAck(_) => "Subscribe Ack",
        Packet::Unsubscribe(_) => "Unsubscribe Request",
        Packet::UnsubAck(_) => "Unsubscribe Ack",
        Packet::PingReq(_) => "Ping Request",
        Packet::PingResp => "Ping Response",
        Packet::Disconnect(_) => "Disconnect Req",
        Packet::WillTopicUpd(_) => "Will Topic Update",
        Packet::WillTopicResp(_) => "Will Topic Response",
        Packet::WillMsgUpd(_) => "Will Message Update",
        Packet::WillMsgResp(_) => "Will Message Response",
    }
}

/// As on the wire (§5.3.4).
fn qos(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
        Qos::MinusOne => 3,
    }
}

fn digits(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut digits, octet| {
        write!(digits, "{octet:02x}").expect("a String takes all");
        digits
    })
}

/// What tshark says about each datagram.
fn dissect(datagrams: &[Vec<u8>]) -> Vec<Oracle> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let capture = dir.path().join("frames.pcap");
    std::fs::write(&capture, pcap(datagrams)).expect("a file in it");
    let output = Command::new("tshark")
        .arg("-r")
        .arg(&capture)
        .args(["-d", "udp.port==1884,mqttsn", "-T", "pdml", "-J", "mqttsn _ws.malformed"])
        .env("HOME", dir.path()) // no preferences of whoever runs the test
        .env_remove("XDG_CONFIG_HOME")
        .output()
        .unwrap_or_else(|error| panic!("tshark does not run ({error}): install the Debian package tshark"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {}: {said}", output.status);
    let pdml = String::from_utf8_lossy(&output.stdout);
    pdml.split("<packet>").skip(1).map(shown).collect()
}

/// One packet of tshark's PDML. Attributes are escaped, so what looks like the beginning of a field is one.
fn shown(packet: &str) -> Oracle {
    let field = |field: &str| {
        let (name, attributes) = field.split_once('"').expect("a name in quotes");
        let attribute = |key: &str| Some(attributes.split_once(key)?.1.split_once('"')?.0.to_owned());
        if let Some(msg_type) = attribute(" showname=\"Message Type: ") {
            return (name.to_owned(), msg_type);
        }
        let value = attribute(" value=\"").unwrap_or_default();
        let value = match attribute(" unmaskedvalue=\"") {
            Some(octet) => format!("{value} of {octet}"),
            None => value,
        };
        (name.to_owned(), value)
    };
    let fields = packet.split("<field name=\"mqttsn.").skip(1).map(field);
    Oracle {
        fields: fields.filter(|(name, _)| name != "msg").collect(), // the message as a whole
        malformed: packet.contains("<proto name=\"_ws.malformed\""),
    }
}

/// A capture file of UDP datagrams over IPv4 without a link layer; the checksums are left out.
fn pcap(datagrams: &[Vec<u8>]) -> Vec<u8> {
    const MAGIC: u32 = 0xA1B2_C3D4;
    const LINKTYPE_RAW: u32 = 101;
    const SNAPLEN: u32 = 262_144;
    let mut file = Vec::new();
    file.extend(MAGIC.to_be_bytes());
    file.extend([0, 2, 0, 4]); // version 2.4
    file.extend([0; 8]);
    file.extend(SNAPLEN.to_be_bytes());
    file.extend(LINKTYPE_RAW.to_be_bytes());
    for datagram in datagrams {
        let udp_len = u16::try_from(8 + datagram.len()).expect("a datagram");
        let ip_len = 20 + udp_len;
        file.extend([0; 8]); // the beginning of time
        file.extend(u32::from(ip_len).to_be_bytes());
        file.extend(u32::from(ip_len).to_be_bytes());
        let [high, low] = ip_len.to_be_bytes();
        file.extend([0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
        let [high, low] = udp_len.to_be_bytes();
        file.extend([0x9C, 0x40, 0x07, 0x5C, high, low, 0, 0]); // 40000 to 1884
        file.extend(datagram);
    }
    file
}
