//! The messages as the specification draws them: octets, what they mean, how they are dumped.

use bytes::BytesMut;
use mqtt_sn_gateway::wire::ReturnCode::{Accepted, Congestion, InvalidTopicId, NotSupported, Reserved};
use mqtt_sn_gateway::wire::{DecodeError, FilterRef, Frame, Packet, TooLong, TopicRef, decode};

use crate::frames::*;
use crate::fuzz::any_octets;

/// Octets, field by field; the frame; its dump.
type Vector = (&'static str, Frame<'static>, &'static str);

/// Every message of §5.4 at its smallest, with each of its flags, return codes and forms, at the largest size of the
/// short form of Length and the smallest of the long one.
#[rustfmt::skip]
pub(crate) const VECTORS: &[Vector] = &[
    // ADVERTISE
    ("05 00 2A 0384", advertise(42, 900), "ADVERTISE gw=42 duration=900s"),
    ("05 00 00 0000", advertise(0, 0), "ADVERTISE gw=0 duration=0s"),
    ("05 00 FF FFFF", advertise(255, 65535), "ADVERTISE gw=255 duration=65535s"),
    // SEARCHGW
    ("03 01 00", searchgw(0), "SEARCHGW radius=0"),
    ("03 01 FF", searchgw(255), "SEARCHGW radius=255"),
    // GWINFO
    ("03 02 00", gwinfo(0, b""), "GWINFO gw=0"),
    ("04 02 2A 07", gwinfo(42, b"\x07"), "GWINFO gw=42 addr=0x07"),
    ("07 02 2A C0A80001", gwinfo(42, b"\xC0\xA8\x00\x01"), "GWINFO gw=42 addr=0xC0A80001"),
    ("FF 02 2A 41x252", gwinfo(42, &[0x41; 252]), r#"GWINFO gw=42 addr="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 252 octets"#),
    ("01 0102 02 2A 41x253", gwinfo(42, &[0x41; 253]), r#"GWINFO gw=42 addr="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 253 octets"#),
    // CONNECT
    ("06 04 04 01 003C", connect(CLEAN, NO_WILL, 60, b""), r#"CONNECT client="" clean duration=60s"#),
    ("07 04 00 01 0000 61", connect(KEEP, NO_WILL, 0, b"a"), r#"CONNECT client="a" duration=0s"#),
    ("07 04 04 01 FFFF 61", connect(CLEAN, NO_WILL, 65535, b"a"), r#"CONNECT client="a" clean duration=65535s"#),
    ("07 04 08 01 003C 61", connect(KEEP, WILL, 60, b"a"), r#"CONNECT client="a" will duration=60s"#),
    ("1D 04 0C 01 003C 6162636465666768696A6B6C6D6E6F7071727374757677", connect(CLEAN, WILL, 60, b"abcdefghijklmnopqrstuvw"), r#"CONNECT client="abcdefghijklmnopqrstuvw" clean will duration=60s"#),
    ("08 04 04 00 003C 6331", connect_as(0x00, CLEAN, NO_WILL, 60, b"c1"), r#"CONNECT client="c1" clean duration=60s protocol=0x00"#),
    ("08 04 04 FF 003C 6331", connect_as(0xFF, CLEAN, NO_WILL, 60, b"c1"), r#"CONNECT client="c1" clean duration=60s protocol=0xFF"#),
    ("07 04 04 01 003C FF", connect(CLEAN, NO_WILL, 60, b"\xFF"), "CONNECT client=0xFF clean duration=60s"),
    ("FF 04 00 01 0000 41x249", connect(KEEP, NO_WILL, 0, &[0x41; 249]), r#"CONNECT client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 249 octets duration=0s"#),
    ("01 0102 04 00 01 0000 41x250", connect(KEEP, NO_WILL, 0, &[0x41; 250]), r#"CONNECT client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 250 octets duration=0s"#),
    // CONNACK
    ("03 05 00", connack(Accepted), "CONNACK accepted"),
    ("03 05 01", connack(Congestion), "CONNACK rejected: congestion"),
    ("03 05 02", connack(InvalidTopicId), "CONNACK rejected: invalid topic id"),
    ("03 05 03", connack(NotSupported), "CONNACK rejected: not supported"),
    ("03 05 04", connack(Reserved(0x04)), "CONNACK rejected: 0x04"),
    ("03 05 80", connack(Reserved(0x80)), "CONNACK rejected: 0x80"),
    ("03 05 FF", connack(Reserved(0xFF)), "CONNACK rejected: 0xFF"),
    // WILLTOPICREQ
    ("02 06", bare(Packet::WillTopicReq), "WILLTOPICREQ"),
    // WILLTOPIC
    ("02 07", willtopic(Q0, LIVE, b""), "WILLTOPIC empty"),
    ("04 07 00 77", willtopic(Q0, LIVE, b"w"), r#"WILLTOPIC qos=0 topic="w""#),
    ("04 07 10 77", willtopic(Q0, RETAIN, b"w"), r#"WILLTOPIC qos=0 retain topic="w""#),
    ("04 07 20 77", willtopic(Q1, LIVE, b"w"), r#"WILLTOPIC qos=1 topic="w""#),
    ("04 07 40 77", willtopic(Q2, LIVE, b"w"), r#"WILLTOPIC qos=2 topic="w""#),
    ("04 07 60 77", willtopic(QM1, LIVE, b"w"), r#"WILLTOPIC qos=-1 topic="w""#),
    ("FF 07 50 41x252", willtopic(Q2, RETAIN, &[0x41; 252]), r#"WILLTOPIC qos=2 retain topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 252 octets"#),
    ("01 0102 07 00 41x253", willtopic(Q0, LIVE, &[0x41; 253]), r#"WILLTOPIC qos=0 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 253 octets"#),
    // WILLMSGREQ
    ("02 08", bare(Packet::WillMsgReq), "WILLMSGREQ"),
    // WILLMSG
    ("02 09", willmsg(b""), "WILLMSG message=0"),
    ("03 09 00", willmsg(b"\x00"), "WILLMSG message=1 0x00"),
    ("FF 09 41x253", willmsg(&[0x41; 253]), r#"WILLMSG message=253 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 0102 09 41x254", willmsg(&[0x41; 254]), r#"WILLMSG message=254 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    // REGISTER
    ("06 0A 0000 0001", register(0x0000, 0x0001, b""), r#"REGISTER topic=0x0000 msg=0x0001 name="""#),
    ("07 0A 1A2B 0010 61", register(0x1A2B, 0x0010, b"a"), r#"REGISTER topic=0x1A2B msg=0x0010 name="a""#),
    ("08 0A FFFF FFFF C3A9", register(0xFFFF, 0xFFFF, b"\xC3\xA9"), r#"REGISTER topic=0xFFFF msg=0xFFFF name="é""#),
    ("FF 0A 0001 0002 41x249", register(0x0001, 0x0002, &[0x41; 249]), r#"REGISTER topic=0x0001 msg=0x0002 name="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 249 octets"#),
    ("01 0102 0A 0001 0002 41x250", register(0x0001, 0x0002, &[0x41; 250]), r#"REGISTER topic=0x0001 msg=0x0002 name="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 250 octets"#),
    // REGACK
    ("07 0B 1A2B 0010 00", regack(0x1A2B, 0x0010, Accepted), "REGACK topic=0x1A2B msg=0x0010 accepted"),
    ("07 0B 0000 0000 01", regack(0x0000, 0x0000, Congestion), "REGACK topic=0x0000 msg=0x0000 rejected: congestion"),
    ("07 0B FFFF FFFF 02", regack(0xFFFF, 0xFFFF, InvalidTopicId), "REGACK topic=0xFFFF msg=0xFFFF rejected: invalid topic id"),
    ("07 0B 0001 0001 03", regack(0x0001, 0x0001, NotSupported), "REGACK topic=0x0001 msg=0x0001 rejected: not supported"),
    ("07 0B 0001 0001 FE", regack(0x0001, 0x0001, Reserved(0xFE)), "REGACK topic=0x0001 msg=0x0001 rejected: 0xFE"),
    // PUBLISH
    ("07 0C 00 1A2B 0000", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, b""), "PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=0"),
    ("07 0C 20 1A2B 0010", publish(Q1, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0010, b""), "PUBLISH qos=1 topic=0x1A2B msg=0x0010 data=0"),
    ("07 0C 40 1A2B 0010", publish(Q2, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0010, b""), "PUBLISH qos=2 topic=0x1A2B msg=0x0010 data=0"),
    ("07 0C 61 0001 0000", publish(QM1, FIRST, LIVE, TopicRef::Predefined(0x0001), 0x0000, b""), "PUBLISH qos=-1 topic=predefined:0x0001 msg=0x0000 data=0"),
    ("07 0C 62 6162 0000", publish(QM1, FIRST, LIVE, TopicRef::Short(*b"ab"), 0x0000, b""), r#"PUBLISH qos=-1 topic=short:"ab" msg=0x0000 data=0"#),
    ("07 0C 63 0001 0000", publish(QM1, FIRST, LIVE, TopicRef::Reserved(0x0001), 0x0000, b""), "PUBLISH qos=-1 topic=reserved:0x0001 msg=0x0000 data=0"),
    ("07 0C 80 1A2B 0010", publish(Q0, DUP, LIVE, TopicRef::Normal(0x1A2B), 0x0010, b""), "PUBLISH qos=0 dup topic=0x1A2B msg=0x0010 data=0"),
    ("07 0C 10 1A2B 0010", publish(Q0, FIRST, RETAIN, TopicRef::Normal(0x1A2B), 0x0010, b""), "PUBLISH qos=0 retain topic=0x1A2B msg=0x0010 data=0"),
    ("0A 0C F3 FFFF FFFF 000102", publish(QM1, DUP, RETAIN, TopicRef::Reserved(0xFFFF), 0xFFFF, b"\x00\x01\x02"), "PUBLISH qos=-1 dup retain topic=reserved:0xFFFF msg=0xFFFF data=3 0x000102"),
    ("FE 0C 00 1A2B 0000 41x247", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 247]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=247 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("FF 0C 00 1A2B 0000 41x248", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 248]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=248 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 0102 0C 00 1A2B 0000 41x249", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 249]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=249 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    // PUBACK
    ("07 0D 1A2B 0010 00", puback(0x1A2B, 0x0010, Accepted), "PUBACK topic=0x1A2B msg=0x0010 accepted"),
    ("07 0D 6162 0010 02", puback(0x6162, 0x0010, InvalidTopicId), "PUBACK topic=0x6162 msg=0x0010 rejected: invalid topic id"),
    ("07 0D 0001 0010 FF", puback(0x0001, 0x0010, Reserved(0xFF)), "PUBACK topic=0x0001 msg=0x0010 rejected: 0xFF"),
    // PUBCOMP
    ("04 0E 0011", pubcomp(0x0011), "PUBCOMP msg=0x0011"),
    ("04 0E FFFF", pubcomp(0xFFFF), "PUBCOMP msg=0xFFFF"),
    // PUBREC
    ("04 0F 0011", pubrec(0x0011), "PUBREC msg=0x0011"),
    ("04 0F 0000", pubrec(0x0000), "PUBREC msg=0x0000"),
    // PUBREL
    ("04 10 0011", pubrel(0x0011), "PUBREL msg=0x0011"),
    ("04 10 1234", pubrel(0x1234), "PUBREL msg=0x1234"),
    // SUBSCRIBE
    ("06 12 00 0020 2B", subscribe(Q0, FIRST, 0x0020, FilterRef::Name(b"+")), r#"SUBSCRIBE qos=0 msg=0x0020 topic="+""#),
    ("06 12 20 0020 23", subscribe(Q1, FIRST, 0x0020, FilterRef::Name(b"#")), r##"SUBSCRIBE qos=1 msg=0x0020 topic="#""##),
    ("06 12 C0 FFFF 23", subscribe(Q2, DUP, 0xFFFF, FilterRef::Name(b"#")), r##"SUBSCRIBE qos=2 dup msg=0xFFFF topic="#""##),
    ("07 12 21 0020 0001", subscribe(Q1, FIRST, 0x0020, FilterRef::Predefined(0x0001)), "SUBSCRIBE qos=1 msg=0x0020 topic=predefined:0x0001"),
    ("07 12 42 0020 6162", subscribe(Q2, FIRST, 0x0020, FilterRef::Short(*b"ab")), r#"SUBSCRIBE qos=2 msg=0x0020 topic=short:"ab""#),
    ("07 12 E3 0020 0001", subscribe(QM1, DUP, 0x0020, FilterRef::Reserved(b"\x00\x01")), "SUBSCRIBE qos=-1 dup msg=0x0020 topic=reserved:0x0001"),
    ("06 12 03 0020 07", subscribe(Q0, FIRST, 0x0020, FilterRef::Reserved(b"\x07")), "SUBSCRIBE qos=0 msg=0x0020 topic=reserved:0x07"),
    ("FF 12 00 0020 41x250", subscribe(Q0, FIRST, 0x0020, FilterRef::Name(&[0x41; 250])), r#"SUBSCRIBE qos=0 msg=0x0020 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 250 octets"#),
    ("01 0102 12 00 0020 41x251", subscribe(Q0, FIRST, 0x0020, FilterRef::Name(&[0x41; 251])), r#"SUBSCRIBE qos=0 msg=0x0020 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 251 octets"#),
    // SUBACK
    ("08 13 20 1A2B 0020 00", suback(Q1, 0x1A2B, 0x0020, Accepted), "SUBACK qos=1 topic=0x1A2B msg=0x0020 accepted"),
    ("08 13 00 0000 0020 03", suback(Q0, 0x0000, 0x0020, NotSupported), "SUBACK qos=0 topic=0x0000 msg=0x0020 rejected: not supported"),
    ("08 13 40 6162 0020 00", suback(Q2, 0x6162, 0x0020, Accepted), "SUBACK qos=2 topic=0x6162 msg=0x0020 accepted"),
    ("08 13 60 FFFF FFFF 81", suback(QM1, 0xFFFF, 0xFFFF, Reserved(0x81)), "SUBACK qos=-1 topic=0xFFFF msg=0xFFFF rejected: 0x81"),
    // UNSUBSCRIBE
    ("06 14 00 0028 2B", unsubscribe(0x0028, FilterRef::Name(b"+")), r#"UNSUBSCRIBE msg=0x0028 topic="+""#),
    ("07 14 01 0028 0001", unsubscribe(0x0028, FilterRef::Predefined(0x0001)), "UNSUBSCRIBE msg=0x0028 topic=predefined:0x0001"),
    ("07 14 02 0028 6162", unsubscribe(0x0028, FilterRef::Short(*b"ab")), r#"UNSUBSCRIBE msg=0x0028 topic=short:"ab""#),
    ("07 14 03 0028 0001", unsubscribe(0x0028, FilterRef::Reserved(b"\x00\x01")), "UNSUBSCRIBE msg=0x0028 topic=reserved:0x0001"),
    ("FF 14 00 0028 41x250", unsubscribe(0x0028, FilterRef::Name(&[0x41; 250])), r#"UNSUBSCRIBE msg=0x0028 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 250 octets"#),
    ("01 0102 14 00 0028 41x251", unsubscribe(0x0028, FilterRef::Name(&[0x41; 251])), r#"UNSUBSCRIBE msg=0x0028 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 251 octets"#),
    // UNSUBACK
    ("04 15 0028", unsuback(0x0028), "UNSUBACK msg=0x0028"),
    ("04 15 FFFF", unsuback(0xFFFF), "UNSUBACK msg=0xFFFF"),
    // PINGREQ
    ("02 16", pingreq(b""), "PINGREQ"),
    ("03 16 61", pingreq(b"a"), r#"PINGREQ client="a""#),
    ("FF 16 41x253", pingreq(&[0x41; 253]), r#"PINGREQ client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 253 octets"#),
    ("01 0102 16 41x254", pingreq(&[0x41; 254]), r#"PINGREQ client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 254 octets"#),
    // PINGRESP
    ("02 17", bare(Packet::PingResp), "PINGRESP"),
    // DISCONNECT
    ("02 18", disconnect(None), "DISCONNECT"),
    ("04 18 0000", disconnect(Some(0)), "DISCONNECT duration=0s"),
    ("04 18 003C", disconnect(Some(60)), "DISCONNECT duration=60s"),
    ("04 18 FFFF", disconnect(Some(65535)), "DISCONNECT duration=65535s"),
    // WILLTOPICUPD
    ("02 1A", willtopicupd(Q0, LIVE, b""), "WILLTOPICUPD empty"),
    ("04 1A 00 77", willtopicupd(Q0, LIVE, b"w"), r#"WILLTOPICUPD qos=0 topic="w""#),
    ("04 1A 70 77", willtopicupd(QM1, RETAIN, b"w"), r#"WILLTOPICUPD qos=-1 retain topic="w""#),
    ("FF 1A 00 41x252", willtopicupd(Q0, LIVE, &[0x41; 252]), r#"WILLTOPICUPD qos=0 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 252 octets"#),
    ("01 0102 1A 00 41x253", willtopicupd(Q0, LIVE, &[0x41; 253]), r#"WILLTOPICUPD qos=0 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 253 octets"#),
    // WILLTOPICRESP
    ("03 1B 00", willtopicresp(Accepted), "WILLTOPICRESP accepted"),
    ("03 1B 03", willtopicresp(NotSupported), "WILLTOPICRESP rejected: not supported"),
    ("03 1B 04", willtopicresp(Reserved(0x04)), "WILLTOPICRESP rejected: 0x04"),
    // WILLMSGUPD
    ("02 1C", willmsgupd(b""), "WILLMSGUPD message=0"),
    ("05 1C 6E6577", willmsgupd(b"new"), r#"WILLMSGUPD message=3 "new""#),
    ("FF 1C 41x253", willmsgupd(&[0x41; 253]), r#"WILLMSGUPD message=253 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 0102 1C 41x254", willmsgupd(&[0x41; 254]), r#"WILLMSGUPD message=254 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    // WILLMSGRESP
    ("03 1D 00", willmsgresp(Accepted), "WILLMSGRESP accepted"),
    ("03 1D 01", willmsgresp(Congestion), "WILLMSGRESP rejected: congestion"),
    ("03 1D FF", willmsgresp(Reserved(0xFF)), "WILLMSGRESP rejected: 0xFF"),
    // Encapsulated message (§5.5)
    ("03 FE 00 02 16", via(0, b"", pingreq(b"")), "[via node - radius 0] PINGREQ"),
    ("05 FE 00 0A0B 08 04 04 01 003C 6331", via(0, b"\x0A\x0B", connect(CLEAN, NO_WILL, 60, b"c1")), r#"[via node 0A0B radius 0] CONNECT client="c1" clean duration=60s"#),
    ("04 FE 01 07 03 02 2A", via(1, b"\x07", gwinfo(42, b"")), "[via node 07 radius 1] GWINFO gw=42"),
    ("04 FE 03 07 05 00 2A 0384", via(3, b"\x07", advertise(42, 900)), "[via node 07 radius 3] ADVERTISE gw=42 duration=900s"),
    ("0B FE 00 0013A20040522BAA 02 17", via(0, b"\x00\x13\xA2\x00@R+\xAA", bare(Packet::PingResp)), "[via node 0013A20040522BAA radius 0] PINGRESP"),
    ("FF FE 00 07x252 02 17", via(0, &[0x07; 252], bare(Packet::PingResp)), "[via node 07070707070707070707070707070707… 252 octets radius 0] PINGRESP"),
    ("04 FE 00 07 FF 0C 00 1A2B 0000 41x248", via(0, b"\x07", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 248])), r#"[via node 07 radius 0] PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=248 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("04 FE 00 07 01 0102 0C 00 1A2B 0000 41x249", via(0, b"\x07", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 249])), r#"[via node 07 radius 0] PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=249 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("04 FE 00 01 01 FE00 0C 00 1A2B 0000 41x65015", via(0, b"\x01", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 65015])), r#"[via node 01 radius 0] PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=65015 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    // The long form up to its end, and Lengths that begin with FE
    ("01 0103 0C 00 1A2B 0000 41x250", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 250]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=250 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 FDFF 0C 00 1A2B 0000 41x65014", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 65014]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=65014 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 FE00 0C 00 1A2B 0000 41x65015", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 65015]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=65015 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 FEFF 16 41x65275", pingreq(&[0x41; 65275]), r#"PINGREQ client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 65275 octets"#),
    ("01 FF00 16 41x65276", pingreq(&[0x41; 65276]), r#"PINGREQ client="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 65276 octets"#),
    ("01 FFE3 0C 00 1A2B 0000 41x65498", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 65498]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=65498 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 FFFF 0C 00 1A2B 0000 41x65526", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 65526]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=65526 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 FFFF 0A 0001 0002 41x65527", register(0x0001, 0x0002, &[0x41; 65527]), r#"REGISTER topic=0x0001 msg=0x0002 name="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 65527 octets"#),
    ("01 FFFF 12 00 0020 41x65528", subscribe(Q0, FIRST, 0x0020, FilterRef::Name(&[0x41; 65528])), r#"SUBSCRIBE qos=0 msg=0x0020 topic="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"… 65528 octets"#),
    ("01 FFFF 09 41x65531", willmsg(&[0x41; 65531]), r#"WILLMSG message=65531 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
];

/// What is read but not sent: the long form where the short one serves, flags that the message does not use, reserved
/// bits of Ctrl, flags of an empty Will topic. Octets; those we would send; the frame; its dump.
#[rustfmt::skip]
pub(crate) const TOLERATED: &[(&str, &str, Frame<'static>, &str)] = &[
    ("01 0007 00 2A 0384", "05 00 2A 0384", advertise(42, 900), "ADVERTISE gw=42 duration=900s"),
    ("01 0005 01 07", "03 01 07", searchgw(7), "SEARCHGW radius=7"),
    ("07 04 F7 01 003C 61", "07 04 04 01 003C 61", connect(CLEAN, NO_WILL, 60, b"a"), r#"CONNECT client="a" clean duration=60s"#),
    ("07 04 FF 01 003C 61", "07 04 0C 01 003C 61", connect(CLEAN, WILL, 60, b"a"), r#"CONNECT client="a" clean will duration=60s"#),
    ("03 07 70", "02 07", willtopic(Q0, LIVE, b""), "WILLTOPIC empty"),
    ("03 07 FF", "02 07", willtopic(Q0, LIVE, b""), "WILLTOPIC empty"),
    ("01 0005 07 00", "02 07", willtopic(Q0, LIVE, b""), "WILLTOPIC empty"),
    ("03 1A 10", "02 1A", willtopicupd(Q0, LIVE, b""), "WILLTOPICUPD empty"),
    ("04 07 8F 77", "04 07 00 77", willtopic(Q0, LIVE, b"w"), r#"WILLTOPIC qos=0 topic="w""#),
    ("06 12 9C 0020 2B", "06 12 80 0020 2B", subscribe(Q0, DUP, 0x0020, FilterRef::Name(b"+")), r#"SUBSCRIBE qos=0 dup msg=0x0020 topic="+""#),
    ("08 13 9F 1A2B 0020 00", "08 13 00 1A2B 0020 00", suback(Q0, 0x1A2B, 0x0020, Accepted), "SUBACK qos=0 topic=0x1A2B msg=0x0020 accepted"),
    ("06 14 FC 0028 2B", "06 14 00 0028 2B", unsubscribe(0x0028, FilterRef::Name(b"+")), r#"UNSUBSCRIBE msg=0x0028 topic="+""#),
    ("07 14 FE 0028 6162", "07 14 02 0028 6162", unsubscribe(0x0028, FilterRef::Short(*b"ab")), r#"UNSUBSCRIBE msg=0x0028 topic=short:"ab""#),
    ("07 0C 0C 1A2B 0000", "07 0C 00 1A2B 0000", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, b""), "PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=0"),
    ("01 0004 17", "02 17", bare(Packet::PingResp), "PINGRESP"),
    ("01 0006 18 003C", "04 18 003C", disconnect(Some(60)), "DISCONNECT duration=60s"),
    ("01 00FF 0C 00 1A2B 0000 41x246", "FD 0C 00 1A2B 0000 41x246", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 246]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=246 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 0100 0C 00 1A2B 0000 41x247", "FE 0C 00 1A2B 0000 41x247", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 247]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=247 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("01 0101 0C 00 1A2B 0000 41x248", "FF 0C 00 1A2B 0000 41x248", publish(Q0, FIRST, LIVE, TopicRef::Normal(0x1A2B), 0x0000, &[0x41; 248]), r#"PUBLISH qos=0 topic=0x1A2B msg=0x0000 data=248 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"…"#),
    ("04 FE FC 07 02 16", "04 FE 00 07 02 16", via(0, b"\x07", pingreq(b"")), "[via node 07 radius 0] PINGREQ"),
    ("04 FE FF 07 02 16", "04 FE 03 07 02 16", via(3, b"\x07", pingreq(b"")), "[via node 07 radius 3] PINGREQ"),
    ("04 FE 00 07 01 0004 16", "04 FE 00 07 02 16", via(0, b"\x07", pingreq(b"")), "[via node 07 radius 0] PINGREQ"),
];

#[test]
fn every_message_is_decoded_dumped_and_encoded() {
    for (octets, frame, dump) in VECTORS {
        check(octets, octets, frame, dump);
    }
}

#[test]
fn what_is_tolerated_is_decoded_and_sent_as_it_should_be() {
    for (octets, canonical, frame, dump) in TOLERATED {
        check(octets, canonical, frame, dump);
    }
}

#[test]
fn every_message_is_decoded_in_the_long_form_of_length_too() {
    let mut checked = 0;
    for (octets, frame, _) in VECTORS {
        let octets = hex(octets);
        if let Some(long) = long_form(&octets) {
            assert_eq!(decode(&long), Ok(*frame));
            assert_eq!(encoded(frame), octets);
            checked += 1;
        }
    }
    assert!(checked > 100);
}

#[track_caller]
pub(crate) fn check(octets: &str, canonical: &str, frame: &Frame<'_>, dump: &str) {
    let (octets, canonical, shown) = (hex(octets), hex(canonical), octets);
    assert_eq!(decode(&octets).as_ref(), Ok(frame), "{shown}");
    assert_eq!(frame.to_string(), dump, "{shown}");
    assert!(encoded(frame) == canonical, "{shown} is encoded as {:02X?}", encoded(frame));
    assert_eq!(any_octets(&octets), Ok(()), "{shown}");
}

/// What is not a frame, and why: §5.2 and §5.5. T-nnn are rows of the conformance table in which such a datagram has to
/// be ignored.
#[rustfmt::skip]
const REFUSED: &[(&str, DecodeError)] = &[
    // No Length and MsgType.
    ("", DecodeError::TooShort(0)),
    ("00", DecodeError::TooShort(1)),
    ("01", DecodeError::TooShort(1)),
    ("02", DecodeError::TooShort(1)), // T-009
    ("01 00", DecodeError::TooShort(2)), // T-007
    ("01 0004", DecodeError::TooShort(3)),
    ("01 FE", DecodeError::TooShort(2)),
    ("01 FE00", DecodeError::TooShort(3)),
    // Lengths that no message has.
    ("00 16", DecodeError::Length(0)), // T-006
    ("00 FE 00 02 16", DecodeError::Length(0)),
    ("01 0000 16", DecodeError::Length(0)),
    ("01 0001 16", DecodeError::Length(1)),
    ("01 0002 16", DecodeError::Length(2)),
    ("01 0003 16", DecodeError::Length(3)), // T-008
    // Length and what came.
    ("09 04 04 01 003C 6331", DecodeError::LengthMismatch { declared: 9, received: 8 }), // T-004
    ("07 04 04 01 003C 6331", DecodeError::LengthMismatch { declared: 7, received: 8 }), // T-005
    ("02 16 02 16", DecodeError::LengthMismatch { declared: 2, received: 4 }), // A-29: two messages
    ("03 17", DecodeError::LengthMismatch { declared: 3, received: 2 }),
    ("01 0005 16", DecodeError::LengthMismatch { declared: 5, received: 4 }),
    ("01 0004 16 00", DecodeError::LengthMismatch { declared: 4, received: 5 }),
    ("FF 0C 00 1A2B 0000 41x249", DecodeError::LengthMismatch { declared: 255, received: 256 }),
    ("01 00FF 0C 00 1A2B 0000 41x247", DecodeError::LengthMismatch { declared: 255, received: 256 }),
    ("01 00FF 0C 00 1A2B 0000 41x249", DecodeError::LengthMismatch { declared: 255, received: 258 }),
    ("01 00FE 0C 00 1A2B 0000 41x247", DecodeError::LengthMismatch { declared: 254, received: 256 }),
    ("01 0100 0C 00 1A2B 0000 41x249", DecodeError::LengthMismatch { declared: 256, received: 258 }),
    ("01 0101 0C 00 1A2B 0000 41x250", DecodeError::LengthMismatch { declared: 257, received: 259 }),
    ("01 FE00 0C 00 1A2B 0000 41x65014", DecodeError::LengthMismatch { declared: 65024, received: 65023 }),
    // Reserved types.
    ("02 03", DecodeError::ReservedType(0x03)), // T-010, these five
    ("02 11", DecodeError::ReservedType(0x11)),
    ("02 19", DecodeError::ReservedType(0x19)),
    ("02 1E", DecodeError::ReservedType(0x1E)),
    ("02 FF", DecodeError::ReservedType(0xFF)),
    ("05 03 00 00 00", DecodeError::ReservedType(0x03)),
    ("01 0004 FD", DecodeError::ReservedType(0xFD)),
    // Sizes.
    ("05 10 0001 00", DecodeError::Trailing { message: "PUBREL", octets: 1 }), // T-012
    ("06 0B 0001 0001", DecodeError::Cut { message: "REGACK", field: "ReturnCode" }), // T-012
    ("02 01", DecodeError::Cut { message: "SEARCHGW", field: "Radius" }), // T-026
    ("0C 01 01 00 01 02 00 3C 00 00 63 31", DecodeError::Trailing { message: "SEARCHGW", octets: 9 }), // T-028
    ("03 18 00", DecodeError::Cut { message: "DISCONNECT", field: "Duration" }),
    ("05 18 003C 00", DecodeError::Trailing { message: "DISCONNECT", octets: 1 }),
    ("01 0005 18 00", DecodeError::Cut { message: "DISCONNECT", field: "Duration" }),
    // The last field of SUBSCRIBE and UNSUBSCRIBE, whose size depends on TopicIdType.
    ("05 12 00 0020", DecodeError::Cut { message: "SUBSCRIBE", field: "TopicName" }),
    ("05 12 01 0020", DecodeError::Cut { message: "SUBSCRIBE", field: "TopicId" }),
    ("06 12 01 0020 00", DecodeError::Cut { message: "SUBSCRIBE", field: "TopicId" }),
    ("08 12 01 0020 0001 00", DecodeError::Trailing { message: "SUBSCRIBE", octets: 1 }),
    ("06 12 02 0020 61", DecodeError::Cut { message: "SUBSCRIBE", field: "TopicName" }),
    ("08 12 02 0020 6162 63", DecodeError::Trailing { message: "SUBSCRIBE", octets: 1 }),
    ("05 12 03 0020", DecodeError::Cut { message: "SUBSCRIBE", field: "TopicName" }),
    ("05 14 00 0028", DecodeError::Cut { message: "UNSUBSCRIBE", field: "TopicName" }),
    ("06 14 01 0028 00", DecodeError::Cut { message: "UNSUBSCRIBE", field: "TopicId" }),
    ("09 14 01 0028 0001 0002", DecodeError::Trailing { message: "UNSUBSCRIBE", octets: 2 }),
    ("06 14 02 0028 61", DecodeError::Cut { message: "UNSUBSCRIBE", field: "TopicName" }),
    ("05 14 03 0028", DecodeError::Cut { message: "UNSUBSCRIBE", field: "TopicName" }),
    // Encapsulation.
    ("02 FE", DecodeError::Length(2)), // T-197
    ("02 FE 00 02 16", DecodeError::Length(2)),
    ("03 FE", DecodeError::TooShort(2)),
    ("05 FE 00 0A", DecodeError::LengthMismatch { declared: 5, received: 4 }),
    ("05 FE 00 0A0B", DecodeError::Hollow), // T-196
    ("05 FE 00 0A0B 02", DecodeError::TooShort(1)),
    ("05 FE 00 0A0B 01 FE", DecodeError::TooShort(2)),
    ("05 FE 00 0A0B 00 16", DecodeError::Length(0)),
    ("05 FE 00 0A0B 09 04 04 01 003C 6331", DecodeError::LengthMismatch { declared: 9, received: 8 }), // T-195
    ("07 FE 00 0A0B 02 16", DecodeError::Hollow), // Length must not cover the message inside
    ("05 FE 00 0A0B 02 1E", DecodeError::ReservedType(0x1E)),
    ("05 FE 00 0A0B 04 10 00", DecodeError::LengthMismatch { declared: 4, received: 3 }),
    ("05 FE 00 0A0B 03 10 00", DecodeError::Cut { message: "PUBREL", field: "MsgId" }),
    ("05 FE 00 0A0B 04 FE 00 01 02 16", DecodeError::Nested), // T-201
    ("05 FE 00 0A0B 02 FE", DecodeError::Nested),
    ("05 FE 00 0A0B 01 0006 FE 00 01 02 16", DecodeError::Nested),
    ("01 0006 FE 00 01 02 16", DecodeError::LongEncapsulation),
    ("01 FE00 FE 00 01 02 16", DecodeError::LongEncapsulation),
];

#[test]
fn what_is_not_a_frame_is_refused_for_the_right_reason() {
    for (octets, error) in REFUSED {
        assert_eq!(decode(&hex(octets)), Err(*error), "{octets}");
        assert_eq!(any_octets(&hex(octets)), Err(*error), "{octets}");
    }
}

/// Type, name, mandatory fields with their sizes, and whether anything may follow.
type Layout = (u8, &'static str, &'static [(&'static str, usize)], bool);

/// The catalogue of §5.4 once more, as a table. DISCONNECT is not in it: it has all or nothing.
#[rustfmt::skip]
const LAYOUTS: &[Layout] = &[
    (0x00, "ADVERTISE", &[("GwId", 1), ("Duration", 2)], false),
    (0x01, "SEARCHGW", &[("Radius", 1)], false),
    (0x02, "GWINFO", &[("GwId", 1)], true),
    (0x04, "CONNECT", &[("Flags", 1), ("ProtocolId", 1), ("Duration", 2)], true),
    (0x05, "CONNACK", &[("ReturnCode", 1)], false),
    (0x06, "WILLTOPICREQ", &[], false),
    (0x07, "WILLTOPIC", &[], true),
    (0x08, "WILLMSGREQ", &[], false),
    (0x09, "WILLMSG", &[], true),
    (0x0A, "REGISTER", &[("TopicId", 2), ("MsgId", 2)], true),
    (0x0B, "REGACK", &[("TopicId", 2), ("MsgId", 2), ("ReturnCode", 1)], false),
    (0x0C, "PUBLISH", &[("Flags", 1), ("TopicId", 2), ("MsgId", 2)], true),
    (0x0D, "PUBACK", &[("TopicId", 2), ("MsgId", 2), ("ReturnCode", 1)], false),
    (0x0E, "PUBCOMP", &[("MsgId", 2)], false),
    (0x0F, "PUBREC", &[("MsgId", 2)], false),
    (0x10, "PUBREL", &[("MsgId", 2)], false),
    (0x12, "SUBSCRIBE", &[("Flags", 1), ("MsgId", 2), ("TopicName", 1)], true),
    (0x13, "SUBACK", &[("Flags", 1), ("TopicId", 2), ("MsgId", 2), ("ReturnCode", 1)], false),
    (0x14, "UNSUBSCRIBE", &[("Flags", 1), ("MsgId", 2), ("TopicName", 1)], true),
    (0x15, "UNSUBACK", &[("MsgId", 2)], false),
    (0x16, "PINGREQ", &[], true),
    (0x17, "PINGRESP", &[], false),
    (0x1A, "WILLTOPICUPD", &[], true),
    (0x1B, "WILLTOPICRESP", &[("ReturnCode", 1)], false),
    (0x1C, "WILLMSGUPD", &[], true),
    (0x1D, "WILLMSGRESP", &[("ReturnCode", 1)], false),
];

#[test]
fn a_message_has_the_size_that_its_type_allows() {
    for &(msg_type, message, fields, open) in LAYOUTS {
        let mandatory: usize = fields.iter().map(|(_, size)| size).sum();
        for size in 0..mandatory + 3 {
            let result = decode_body(msg_type, size);
            match size.checked_sub(mandatory) {
                None => assert_eq!(result, Err(DecodeError::Cut { message, field: field_at(fields, size) })),
                Some(octets @ 1..) if !open => {
                    assert_eq!(result, Err(DecodeError::Trailing { message, octets }));
                }
                Some(_) => assert_eq!(result, Ok(message), "{size} octets"),
            }
        }
    }
}

/// The name of a message with a body of so many zeros, in both forms of Length.
#[track_caller]
fn decode_body(msg_type: u8, size: usize) -> Result<&'static str, DecodeError> {
    let length = u8::try_from(size + 2).expect("short");
    let octets = [&[length, msg_type][..], &vec![0; size]].concat();
    let name = |octets: &[u8]| decode(octets).map(|frame| frame.packet.name());
    assert_eq!(name(&octets), name(&long_form(&octets).expect("short")));
    name(&octets)
}

fn field_at(fields: &[(&'static str, usize)], size: usize) -> &'static str {
    let mut end = 0;
    let cut = fields.iter().find(|(_, size_of)| {
        end += size_of;
        size < end
    });
    cut.expect("a mandatory field").0
}

#[test]
fn all_other_types_are_reserved() {
    let known = |msg_type| LAYOUTS.iter().any(|layout| layout.0 == msg_type) || msg_type == 0x18;
    for msg_type in (0..=0xFF).filter(|msg_type| !known(*msg_type) && *msg_type != 0xFE) {
        assert_eq!(decode_body(msg_type, 0), Err(DecodeError::ReservedType(msg_type)));
        assert_eq!(decode_body(msg_type, 5), Err(DecodeError::ReservedType(msg_type)));
    }
}

/// Octets before the field that runs to the end, in the short form; a message with that field.
type Tail = (usize, fn(&[u8]) -> Frame<'_>);

const TAILS: &[Tail] = &[
    (3, |tail| gwinfo(1, tail)),
    (6, |tail| connect(CLEAN, NO_WILL, 60, tail)),
    (3, |tail| willtopic(Q1, RETAIN, tail)),
    (2, |tail| willmsg(tail)),
    (6, |tail| register(1, 2, tail)),
    (7, |tail| publish(Q1, FIRST, LIVE, TopicRef::Normal(1), 2, tail)),
    (5, |tail| subscribe(Q1, FIRST, 2, FilterRef::Name(tail))),
    (5, |tail| unsubscribe(2, FilterRef::Name(tail))),
    (2, |tail| pingreq(tail)),
    (3, |tail| willtopicupd(Q1, RETAIN, tail)),
    (2, |tail| willmsgupd(tail)),
];

/// A-30: the Paho library means 255 octets and sends 257.
#[test]
fn a_long_form_that_does_not_count_itself_is_understood_at_255_octets() {
    let miscounted = [&[1, 0, 255, 0x0C, 0, 0x1A, 0x2B, 0, 0][..], &[0x41; 248]].concat();
    let right = [&[255, 0x0C, 0, 0x1A, 0x2B, 0, 0][..], &[0x41; 248]].concat();
    assert_eq!(decode(&miscounted), decode(&right));
    let forwarded = |message: &[u8]| [&[4, 0xFE, 0, 7][..], message].concat();
    let forwarded = [forwarded(&miscounted), forwarded(&right)];
    assert!(decode(&forwarded[1]).is_ok());
    assert_eq!(decode(&forwarded[0]), decode(&forwarded[1]));
    // What has the fields cut is no message for that.
    assert!(decode(&[1, 0, 255]).is_err());
}

#[test]
fn no_message_has_a_size_of_256_or_257_octets() {
    let tail = vec![b't'; 65_536];
    // Total in the short form, and what is sent.
    let sizes = [
        (254, 254),
        (255, 255),
        (256, 258),
        (257, 259),
        (0xFDFD, 0xFDFF),
        (0xFDFE, 0xFE00),
        (0xFEFD, 0xFEFF),
        (0xFEFE, 0xFF00),
        (0xFFFD, 0xFFFF),
    ];
    for (head, frame) in TAILS {
        for (short, sent) in sizes {
            let frame = frame(&tail[..short - head]);
            let octets = encoded(&frame);
            assert_eq!((octets.len(), frame.encoded_len()), (sent, sent), "{frame}");
            assert_eq!(
                octets[0],
                if sent <= 255 { u8::try_from(sent).expect("short") } else { 1 },
                "{frame}"
            );
            assert_eq!(decode(&octets), Ok(frame));
        }
        let mut out = BytesMut::from(&b"as it was"[..]);
        assert_eq!(frame(&tail[..0xFFFE - head]).encode(&mut out), Err(TooLong(0x1_0000)));
        assert_eq!(out[..], b"as it was"[..]);
    }
}
