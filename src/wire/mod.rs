//! Octets to MQTT-SN packets and back: no state, no IO, no panic.
//!
//! [`decode`] is strict (§5.2): a frame holds exactly one message, Length says what was received, and every message has
//! the size its type allows. Parsers are nom's and do not leave this module: callers see [`DecodeError`].

mod dump;
mod field;
mod packet;
mod v1;

pub use field::{FilterRef, Flags, Qos, ReturnCode, TopicRef};
pub use packet::{
    DecodeError, Encapsulation, Frame, MESSAGE_LEN_MAX, NODE_ID_LEN_MAX, Packet, TooLong, decode,
};
pub use v1::{
    Advertise, Connect, Disconnect, GwInfo, MsgIdOnly, PingReq, Publish, Register, Response, SearchGw,
    SubAck, Subscribe, TopicAck, Unsubscribe, WillMsg, WillTopic,
};
