//! The fields that several messages share (§5.3). Values the specification reserves survive decoding and print.

use std::fmt;

/// Quality of service of a message (§5.3.4), two bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Qos {
    /// −1: for clients without a session, never answered (§6.8).
    MinusOne,
    /// 0: no acknowledgement.
    #[default]
    AtMostOnce,
    /// 1: PUBACK.
    AtLeastOnce,
    /// 2: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce,
}

impl Qos {
    fn from_flags(flags: u8) -> Self {
        match flags & Flags::QOS {
            0x00 => Self::AtMostOnce,
            0x20 => Self::AtLeastOnce,
            0x40 => Self::ExactlyOnce,
            _ => Self::MinusOne,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::AtMostOnce => 0x00,
            Self::AtLeastOnce => 0x20,
            Self::ExactlyOnce => 0x40,
            Self::MinusOne => 0x60,
        }
    }
}

/// The Flags octet (§5.3.4). What a message does not use is ignored on receipt and sent as 0.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    const DUP: u8 = 0x80;
    const QOS: u8 = 0x60;
    const RETAIN: u8 = 0x10;
    const WILL: u8 = 0x08;
    const CLEAN_SESSION: u8 = 0x04;
    const TOPIC_ID_TYPE: u8 = 0x03;

    /// DUP: the message was sent before.
    pub fn dup(self) -> bool {
        self.0 & Self::DUP != 0
    }

    /// The QoS of a PUBLISH or Will, or the QoS asked for or granted.
    pub fn qos(self) -> Qos {
        Qos::from_flags(self.0)
    }

    /// Retain.
    pub fn retain(self) -> bool {
        self.0 & Self::RETAIN != 0
    }

    /// Will: the client asks to be prompted for its Will (§6.2).
    pub fn will(self) -> bool {
        self.0 & Self::WILL != 0
    }

    /// CleanSession (§6.3).
    pub fn clean_session(self) -> bool {
        self.0 & Self::CLEAN_SESSION != 0
    }

    /// TopicIdType, 0 to 3.
    pub fn topic_id_type(self) -> u8 {
        self.0 & Self::TOPIC_ID_TYPE
    }

    pub(super) fn with_dup(self, dup: bool) -> Self {
        Self(self.0 | if dup { Self::DUP } else { 0 })
    }

    pub(super) fn with_qos(self, qos: Qos) -> Self {
        Self(self.0 | qos.bits())
    }

    pub(super) fn with_retain(self, retain: bool) -> Self {
        Self(self.0 | if retain { Self::RETAIN } else { 0 })
    }

    pub(super) fn with_will(self, will: bool) -> Self {
        Self(self.0 | if will { Self::WILL } else { 0 })
    }

    pub(super) fn with_clean_session(self, clean: bool) -> Self {
        Self(self.0 | if clean { Self::CLEAN_SESSION } else { 0 })
    }

    pub(super) fn with_topic_id_type(self, kind: u8) -> Self {
        Self(self.0 | (kind & Self::TOPIC_ID_TYPE))
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:02X})", self.0)
    }
}

/// What became of a request (§5.3.10). Reserved values are rejections and print as hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReturnCode {
    /// `00`
    Accepted,
    /// `01`: try again after T_WAIT.
    Congestion,
    /// `02`
    InvalidTopicId,
    /// `03`
    NotSupported,
    /// `04` to `FF`: never sent by us.
    Reserved(u8),
}

impl ReturnCode {
    /// The value on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Congestion => 1,
            Self::InvalidTopicId => 2,
            Self::NotSupported => 3,
            Self::Reserved(code) => code,
        }
    }
}

impl From<u8> for ReturnCode {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Accepted,
            1 => Self::Congestion,
            2 => Self::InvalidTopicId,
            3 => Self::NotSupported,
            code => Self::Reserved(code),
        }
    }
}

/// The topic of a PUBLISH: two octets and what they mean (§5.3.4, §6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicRef {
    /// TopicIdType `00`: an id given by REGISTER or SUBACK, valid for one client.
    Normal(u16),
    /// TopicIdType `01`: an id both sides know from their configuration.
    Predefined(u16),
    /// TopicIdType `10`: the two octets are the topic name.
    Short([u8; 2]),
    /// TopicIdType `11`.
    Reserved(u16),
}

impl TopicRef {
    /// The two octets, as acknowledgements echo them.
    pub fn raw(self) -> u16 {
        match self {
            Self::Normal(id) | Self::Predefined(id) | Self::Reserved(id) => id,
            Self::Short(name) => u16::from_be_bytes(name),
        }
    }

    pub(super) fn new(kind: u8, raw: u16) -> Self {
        match kind {
            0 => Self::Normal(raw),
            1 => Self::Predefined(raw),
            2 => Self::Short(raw.to_be_bytes()),
            _ => Self::Reserved(raw),
        }
    }

    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Normal(_) => 0,
            Self::Predefined(_) => 1,
            Self::Short(_) => 2,
            Self::Reserved(_) => 3,
        }
    }
}

/// The topic of a SUBSCRIBE or UNSUBSCRIBE (§5.4.15). A message without one is refused by [`decode`](super::decode), so
/// do not send what is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilterRef<'a> {
    /// TopicIdType `00`: a topic name or filter, not yet validated.
    Name(&'a [u8]),
    /// TopicIdType `01`: a predefined id.
    Predefined(u16),
    /// TopicIdType `10`: a topic name of two octets.
    Short([u8; 2]),
    /// TopicIdType `11`, with whatever followed.
    Reserved(&'a [u8]),
}

impl FilterRef<'_> {
    /// Octets of the field.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Name(octets) | Self::Reserved(octets) => octets.len(),
            Self::Predefined(_) | Self::Short(_) => 2,
        }
    }

    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Name(_) => 0,
            Self::Predefined(_) => 1,
            Self::Short(_) => 2,
            Self::Reserved(_) => 3,
        }
    }
}
