//! Packets and the frames they travel in.

use bytes::{BufMut, BytesMut};

use super::v1::{
    Advertise, BadField, Connect, Disconnect, GwInfo, MsgIdOnly, Parsed, PingReq, Publish, Register,
    Response, SearchGw, SubAck, Subscribe, TopicAck, Unsubscribe, WillMsg, WillTopic,
};

/// Octets in the longest message: what the long form of Length can say (§5.2.1).
pub const MESSAGE_LEN_MAX: usize = 65_535;

/// Octets in the longest Wireless Node Id: what the one Length octet of an encapsulation leaves (§5.5).
pub const NODE_ID_LEN_MAX: usize = 252;

/// The largest total for which the short form of Length serves (§5.2.1).
const SHORT_LEN_MAX: usize = 255;

/// First octet of the long form of Length (§5.2.1).
const LONG_FORM: u8 = 0x01;

/// Message type of an encapsulated message (§5.5).
const ENCAPSULATED: u8 = 0xFE;

/// One message as it travels: bare, or encapsulated by a forwarder (§5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Set if a forwarder stands between.
    pub encapsulation: Option<Encapsulation<'a>>,
    /// The message.
    pub packet: Packet<'a>,
}

/// What a forwarder puts before a message (§5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulation<'a> {
    /// How far a broadcast shall go, 0 to [`Self::RADIUS_MAX`], and no more is sent; 0 for unicast. The reserved bits
    /// of Ctrl are ignored and sent as 0.
    pub radius: u8,
    /// Which node; opaque, at most [`NODE_ID_LEN_MAX`] octets.
    pub node_id: &'a [u8],
}

/// Any message of MQTT-SN 1.2 (§5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum Packet<'a> {
    Advertise(Advertise),
    SearchGw(SearchGw),
    GwInfo(GwInfo<'a>),
    Connect(Connect<'a>),
    ConnAck(Response),
    WillTopicReq,
    WillTopic(WillTopic<'a>),
    WillMsgReq,
    WillMsg(WillMsg<'a>),
    Register(Register<'a>),
    RegAck(TopicAck),
    Publish(Publish<'a>),
    PubAck(TopicAck),
    PubComp(MsgIdOnly),
    PubRec(MsgIdOnly),
    PubRel(MsgIdOnly),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(MsgIdOnly),
    PingReq(PingReq<'a>),
    PingResp,
    Disconnect(Disconnect),
    WillTopicUpd(WillTopic<'a>),
    WillTopicResp(Response),
    WillMsgUpd(WillMsg<'a>),
    WillMsgResp(Response),
}

/// Why octets are not a frame. Such a datagram is counted and dropped, nothing else happens (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too few octets for a Length and a MsgType.
    #[error("{0} octet{are} too few for a message", are = if *.0 == 1 { " is" } else { "s are" })]
    TooShort(usize),
    /// A Length that no message can have.
    #[error("Length {0} is impossible")]
    Length(usize),
    /// A Length that is not what was received.
    #[error("Length says {declared} octets, received were {received}")]
    LengthMismatch {
        /// What Length says.
        declared: usize,
        /// What came.
        received: usize,
    },
    /// A message type that MQTT-SN 1.2 reserves.
    #[error("message type {0:02X} is reserved")]
    ReservedType(u8),
    /// A mandatory field that is cut off or missing.
    #[error("{message} is cut off in {field}")]
    Cut {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// Octets behind the last field of a message of fixed size.
    #[error("{message} has {octets} octets too many")]
    Trailing {
        /// Which message.
        message: &'static str,
        /// How many.
        octets: usize,
    },
    /// An encapsulation with the long form of Length, which §5.5 does not know.
    #[error("an encapsulation has the long form of Length")]
    LongEncapsulation,
    /// An encapsulation that ends where its message should begin.
    #[error("an encapsulation holds no message")]
    Hollow,
    /// An encapsulation inside an encapsulation.
    #[error("an encapsulated message is encapsulated again")]
    Nested,
}

/// A message, or an encapsulation for the length of its node id, that no Length can announce; holds its octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} octets are more than Length can say")]
pub struct TooLong(pub usize);

/// Reads one datagram or radio frame, which holds exactly one message (§5.2, §5.5). Nothing is copied.
///
/// Interpretation: Length has to be what was received, without exceptions for clients that get totals near 255 wrong
/// (A-29, A-30).
///
/// # Errors
/// [`DecodeError`] says what is wrong and where; nothing of such a frame may be used.
///
/// # Examples
/// ```
/// use mqtt_sn_gateway::wire::{DecodeError, Packet, decode};
///
/// let frame = decode(b"\x08\x04\x04\x01\x00\x3Cc1")?;
/// let Packet::Connect(connect) = frame.packet else { panic!("{frame}") };
/// assert_eq!((connect.client_id, connect.duration, connect.clean_session), (&b"c1"[..], 60, true));
///
/// assert_eq!(decode(b"\x02\x11"), Err(DecodeError::ReservedType(0x11)));
/// # Ok::<(), DecodeError>(())
/// ```
pub fn decode(datagram: &[u8]) -> Result<Frame<'_>, DecodeError> {
    // The type decides before Length is compared: an encapsulation's Length does not cover the message inside (§5.5).
    match datagram {
        [LONG_FORM, _, _, ENCAPSULATED, ..] => Err(DecodeError::LongEncapsulation),
        // In the long form the second octet belongs to Length, whatever it is.
        [length @ (0 | 2..), ENCAPSULATED, rest @ ..] => decode_encapsulated(*length, rest),
        _ => Ok(decode_message(datagram)?.into()),
    }
}

fn decode_encapsulated(length: u8, rest: &[u8]) -> Result<Frame<'_>, DecodeError> {
    let (declared, received) = (usize::from(length), rest.len() + 2);
    let node_id_len = declared.checked_sub(3).ok_or(DecodeError::Length(declared))?;
    let [ctrl, rest @ ..] = rest else { return Err(DecodeError::TooShort(received)) };
    let Some((node_id, message)) = rest.split_at_checked(node_id_len) else {
        return Err(DecodeError::LengthMismatch { declared, received });
    };
    match message {
        [] => return Err(DecodeError::Hollow),
        [LONG_FORM, _, _, ENCAPSULATED, ..] | [0 | 2.., ENCAPSULATED, ..] => return Err(DecodeError::Nested),
        _ => {}
    }
    let encapsulation = Some(Encapsulation { radius: ctrl & Encapsulation::RADIUS_MAX, node_id });
    Ok(Frame { encapsulation, packet: decode_message(message)? })
}

fn decode_message(octets: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let (declared, minimum, msg_type, body) = match octets {
        [LONG_FORM, high, low, msg_type, body @ ..] => {
            (usize::from(u16::from_be_bytes([*high, *low])), 4, *msg_type, body)
        }
        [LONG_FORM, ..] => return Err(DecodeError::TooShort(octets.len())),
        [length, msg_type, body @ ..] => (usize::from(*length), 2, *msg_type, body),
        _ => return Err(DecodeError::TooShort(octets.len())),
    };
    if declared < minimum {
        return Err(DecodeError::Length(declared));
    }
    // A widespread library does not count the two octets that the long form has more, where the short one would just do; no
    // other message can look like that (Interpretation: A-30).
    let is_miscounted = minimum == 4 && declared == SHORT_LEN_MAX && octets.len() == SHORT_LEN_MAX + 2;
    if declared != octets.len() && !is_miscounted {
        return Err(DecodeError::LengthMismatch { declared, received: octets.len() });
    }
    decode_body(msg_type, body)
}

fn decode_body(msg_type: u8, body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    use Packet as P;
    match msg_type {
        0x00 => whole("ADVERTISE", Advertise::parse(body)).map(P::Advertise),
        0x01 => whole("SEARCHGW", SearchGw::parse(body)).map(P::SearchGw),
        0x02 => whole("GWINFO", GwInfo::parse(body)).map(P::GwInfo),
        0x04 => whole("CONNECT", Connect::parse(body)).map(P::Connect),
        0x05 => whole("CONNACK", Response::parse(body)).map(P::ConnAck),
        0x06 => whole("WILLTOPICREQ", Ok((body, ()))).map(|()| P::WillTopicReq),
        0x07 => whole("WILLTOPIC", WillTopic::parse(body)).map(P::WillTopic),
        0x08 => whole("WILLMSGREQ", Ok((body, ()))).map(|()| P::WillMsgReq),
        0x09 => whole("WILLMSG", WillMsg::parse(body)).map(P::WillMsg),
        0x0A => whole("REGISTER", Register::parse(body)).map(P::Register),
        0x0B => whole("REGACK", TopicAck::parse(body)).map(P::RegAck),
        0x0C => whole("PUBLISH", Publish::parse(body)).map(P::Publish),
        0x0D => whole("PUBACK", TopicAck::parse(body)).map(P::PubAck),
        0x0E => whole("PUBCOMP", MsgIdOnly::parse(body)).map(P::PubComp),
        0x0F => whole("PUBREC", MsgIdOnly::parse(body)).map(P::PubRec),
        0x10 => whole("PUBREL", MsgIdOnly::parse(body)).map(P::PubRel),
        0x12 => whole("SUBSCRIBE", Subscribe::parse(body)).map(P::Subscribe),
        0x13 => whole("SUBACK", SubAck::parse(body)).map(P::SubAck),
        0x14 => whole("UNSUBSCRIBE", Unsubscribe::parse(body)).map(P::Unsubscribe),
        0x15 => whole("UNSUBACK", MsgIdOnly::parse(body)).map(P::UnsubAck),
        0x16 => whole("PINGREQ", PingReq::parse(body)).map(P::PingReq),
        0x17 => whole("PINGRESP", Ok((body, ()))).map(|()| P::PingResp),
        0x18 => whole("DISCONNECT", Disconnect::parse(body)).map(P::Disconnect),
        0x1A => whole("WILLTOPICUPD", WillTopic::parse(body)).map(P::WillTopicUpd),
        0x1B => whole("WILLTOPICRESP", Response::parse(body)).map(P::WillTopicResp),
        0x1C => whole("WILLMSGUPD", WillMsg::parse(body)).map(P::WillMsgUpd),
        0x1D => whole("WILLMSGRESP", Response::parse(body)).map(P::WillMsgResp),
        reserved => Err(DecodeError::ReservedType(reserved)),
    }
}

/// Where nom's result becomes ours: all octets read, or which field of which message is at fault.
fn whole<T>(message: &'static str, parsed: Parsed<'_, T>) -> Result<T, DecodeError> {
    match parsed {
        Ok(([], value)) => Ok(value),
        Ok((left, _)) => Err(DecodeError::Trailing { message, octets: left.len() }),
        Err(nom::Err::Error(BadField(field)) | nom::Err::Failure(BadField(field))) => {
            Err(DecodeError::Cut { message, field })
        }
        Err(nom::Err::Incomplete(_)) => Err(DecodeError::Cut { message, field: "message" }),
    }
}

impl Frame<'_> {
    /// Appends the frame to `out`, in the short form of Length wherever it serves (§5.2.1).
    ///
    /// # Errors
    /// [`TooLong`], and `out` is as it was, if the message passes [`MESSAGE_LEN_MAX`] or the node id
    /// [`NODE_ID_LEN_MAX`].
    ///
    /// # Examples
    /// ```
    /// use bytes::BytesMut;
    /// use mqtt_sn_gateway::wire::{Encapsulation, Frame, Packet, Response, ReturnCode};
    ///
    /// let packet = Packet::ConnAck(Response { code: ReturnCode::Accepted });
    /// let encapsulation = Some(Encapsulation { radius: 0, node_id: b"\x0A\x0B" });
    /// let mut out = BytesMut::new();
    /// Frame { encapsulation, packet }.encode(&mut out)?;
    /// assert_eq!(out[..], *b"\x05\xFE\x00\x0A\x0B\x03\x05\x00");
    /// # Ok::<(), mqtt_sn_gateway::wire::TooLong>(())
    /// ```
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        let Some(Encapsulation { radius, node_id }) = self.encapsulation else {
            return self.packet.encode(out);
        };
        let length = u8::try_from(3 + node_id.len()).map_err(|_| TooLong(3 + node_id.len()))?;
        self.packet.length()?;
        out.reserve(self.encoded_len());
        out.put_slice(&[length, ENCAPSULATED, radius.min(Encapsulation::RADIUS_MAX)]);
        out.put_slice(node_id);
        self.packet.encode(out)
    }

    /// Octets that [`Self::encode`] appends: what a carrier has to take in one piece.
    pub fn encoded_len(&self) -> usize {
        let encapsulation = self.encapsulation.map_or(0, |encapsulation| 3 + encapsulation.node_id.len());
        encapsulation + self.packet.encoded_len()
    }
}

impl Encapsulation<'_> {
    /// The largest broadcast radius: two bits of Ctrl (§5.5).
    pub const RADIUS_MAX: u8 = 3;
}

impl<'a> From<Packet<'a>> for Frame<'a> {
    fn from(packet: Packet<'a>) -> Self {
        Self { encapsulation: None, packet }
    }
}

impl Packet<'_> {
    /// Appends the message to `out`, in the short form of Length wherever it serves (§5.2.1).
    ///
    /// # Errors
    /// [`TooLong`], and `out` is as it was, if the message passes [`MESSAGE_LEN_MAX`].
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        let length = self.length()?;
        let start = out.len();
        out.reserve(usize::from(length));
        match u8::try_from(length) {
            Ok(length) => out.put_u8(length),
            Err(_) => {
                out.put_u8(LONG_FORM);
                out.put_u16(length);
            }
        }
        out.put_u8(self.msg_type());
        self.emit(out);
        debug_assert_eq!(out.len() - start, usize::from(length), "{self}");
        Ok(())
    }

    /// Octets that [`Self::encode`] appends. Never 256 or 257: what the short form cannot say grows by two.
    pub fn encoded_len(&self) -> usize {
        match 2 + self.body_len() {
            short @ ..=SHORT_LEN_MAX => short,
            long => long + 2,
        }
    }

    fn length(&self) -> Result<u16, TooLong> {
        let total = self.encoded_len();
        u16::try_from(total).map_err(|_| TooLong(total))
    }

    /// Octets that [`Self::emit`] appends.
    fn body_len(&self) -> usize {
        match self {
            Self::WillTopicReq | Self::WillMsgReq | Self::PingResp => 0,
            Self::SearchGw(_) | Self::ConnAck(_) | Self::WillTopicResp(_) | Self::WillMsgResp(_) => 1,
            Self::PubComp(_) | Self::PubRec(_) | Self::PubRel(_) | Self::UnsubAck(_) => 2,
            Self::Advertise(_) => 3,
            Self::RegAck(_) | Self::PubAck(_) => 5,
            Self::SubAck(_) => 6,
            Self::GwInfo(m) => 1 + m.gw_add.len(),
            Self::Connect(m) => 4 + m.client_id.len(),
            Self::WillTopic(m) | Self::WillTopicUpd(m) if m.topic.is_empty() => 0,
            Self::WillTopic(m) | Self::WillTopicUpd(m) => 1 + m.topic.len(),
            Self::WillMsg(m) | Self::WillMsgUpd(m) => m.message.len(),
            Self::Register(m) => 4 + m.topic_name.len(),
            Self::Publish(m) => 5 + m.data.len(),
            Self::Subscribe(m) => 3 + m.topic.len(),
            Self::Unsubscribe(m) => 3 + m.topic.len(),
            Self::PingReq(m) => m.client_id.len(),
            Self::Disconnect(m) => m.duration.map_or(0, |_| 2),
        }
    }

    fn msg_type(&self) -> u8 {
        match self {
            Self::Advertise(_) => 0x00,
            Self::SearchGw(_) => 0x01,
            Self::GwInfo(_) => 0x02,
            Self::Connect(_) => 0x04,
            Self::ConnAck(_) => 0x05,
            Self::WillTopicReq => 0x06,
            Self::WillTopic(_) => 0x07,
            Self::WillMsgReq => 0x08,
            Self::WillMsg(_) => 0x09,
            Self::Register(_) => 0x0A,
            Self::RegAck(_) => 0x0B,
            Self::Publish(_) => 0x0C,
            Self::PubAck(_) => 0x0D,
            Self::PubComp(_) => 0x0E,
            Self::PubRec(_) => 0x0F,
            Self::PubRel(_) => 0x10,
            Self::Subscribe(_) => 0x12,
            Self::SubAck(_) => 0x13,
            Self::Unsubscribe(_) => 0x14,
            Self::UnsubAck(_) => 0x15,
            Self::PingReq(_) => 0x16,
            Self::PingResp => 0x17,
            Self::Disconnect(_) => 0x18,
            Self::WillTopicUpd(_) => 0x1A,
            Self::WillTopicResp(_) => 0x1B,
            Self::WillMsgUpd(_) => 0x1C,
            Self::WillMsgResp(_) => 0x1D,
        }
    }

    fn emit(&self, out: &mut BytesMut) {
        match self {
            Self::Advertise(m) => m.emit(out),
            Self::SearchGw(m) => m.emit(out),
            Self::GwInfo(m) => m.emit(out),
            Self::Connect(m) => m.emit(out),
            Self::ConnAck(m) | Self::WillTopicResp(m) | Self::WillMsgResp(m) => m.emit(out),
            Self::WillTopicReq | Self::WillMsgReq | Self::PingResp => {}
            Self::WillTopic(m) | Self::WillTopicUpd(m) => m.emit(out),
            Self::WillMsg(m) | Self::WillMsgUpd(m) => m.emit(out),
            Self::Register(m) => m.emit(out),
            Self::RegAck(m) | Self::PubAck(m) => m.emit(out),
            Self::Publish(m) => m.emit(out),
            Self::PubComp(m) | Self::PubRec(m) | Self::PubRel(m) | Self::UnsubAck(m) => m.emit(out),
            Self::Subscribe(m) => m.emit(out),
            Self::SubAck(m) => m.emit(out),
            Self::Unsubscribe(m) => m.emit(out),
            Self::PingReq(m) => m.emit(out),
            Self::Disconnect(m) => m.emit(out),
        }
    }
}
