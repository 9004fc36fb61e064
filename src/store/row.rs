//! Rows and keys to octets and back. What is written here stays readable: the types that are stored are apart from the core's.
//!
//! A key is its kind and what tells rows of that kind apart. Keys as octets sort as [`Key`] does, and all of one client
//! stand together:
//!
//! ```text
//! gateway        01
//! message        02  message id, 8 octets
//! received       03  link, 2 octets; packet id, 2 octets
//! filter         04  link, 2 octets; filter
//! of a client    40  client id  00  kind, 41 to 49; number or filter
//! ```
//!
//! Numbers are big-endian. A value is one octet of version, the fields as postcard writes them, and a CRC-32 over key and
//! value in little-endian: a bit that flipped and a value under the wrong key are found.
//!
//! A field is never added to or taken from a version that was released; a kind gets another version instead, and a value of
//! an older version is still read.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::gateway::io::{Address, Mode, WirelessNodeId};
use crate::gateway::record::{
    ClientKey, ExchangeRow, ExchangeState, FilterRow, GatewayRow, Key, MessageId, PeerRow, Row, SessionRow,
    Standing, SubscriptionRow, TopicRow, TopicStanding, UplinkRow, WaitingRow, WillRow,
};
use crate::mqtt::{Message, QoS, Received};
use crate::topic::{ClientId, NameError, TopicFilter, TopicName};
use crate::wire::TopicRef;

/// The version of every kind of row that this program writes, and the only one there has been.
const VERSION: u8 = 1;

/// What the keys of clients begin with.
const CLIENT: u8 = 0x40;

/// Octets of the CRC.
const CRC_LEN: usize = 4;

/// A kind of row, as keys name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Gateway = 0x01,
    Message = 0x02,
    Received = 0x03,
    Filter = 0x04,
    Session = 0x41,
    Will = 0x42,
    Topic = 0x43,
    Subscription = 0x44,
    Waiting = 0x45,
    Releasing = 0x46,
    Exchange = 0x47,
    Uplink = 0x48,
    ClientReceived = 0x49,
}

impl Kind {
    /// Every kind and the name it has in the file, which a program that does not know the kind shows.
    pub(super) const NAMES: [(Self, &'static str); 13] = [
        (Self::Gateway, "gateway"),
        (Self::Message, "message"),
        (Self::Received, "received"),
        (Self::Filter, "filter"),
        (Self::Session, "session"),
        (Self::Will, "will"),
        (Self::Topic, "topic"),
        (Self::Subscription, "subscription"),
        (Self::Waiting, "waiting"),
        (Self::Releasing, "releasing"),
        (Self::Exchange, "exchange"),
        (Self::Uplink, "uplink"),
        (Self::ClientReceived, "client-received"),
    ];

    fn new(code: u8) -> Option<Self> {
        Self::NAMES.iter().map(|(kind, _)| *kind).find(|kind| *kind as u8 == code)
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// Why octets are not a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RowError {
    /// Not what was written: too short for a row, or the CRC is another.
    #[error("a row fails its checksum")]
    Checksum,
    /// Written by a program that knows more.
    #[error("a row is of the unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Written by a program that knows more.
    #[error("a row of kind {} is of the unknown version {version}", kind.name())]
    UnknownVersion { kind: Kind, version: u8 },
    /// Written as it stands here, by a program that was wrong.
    #[error("a row of kind {} makes no sense", .0.name())]
    Nonsense(Kind),
    /// The same, of a key.
    #[error("a key makes no sense")]
    Key,
}

/// The octets of a key.
pub(super) fn encode_key(key: &Key) -> Vec<u8> {
    let mut octets = Vec::with_capacity(32);
    match key {
        Key::Gateway => octets.push(Kind::Gateway as u8),
        Key::Message(MessageId(id)) => {
            octets.push(Kind::Message as u8);
            octets.extend(id.to_be_bytes());
        }
        Key::Received(link, packet) => {
            octets.push(Kind::Received as u8);
            octets.extend(link.to_be_bytes());
            octets.extend(packet.to_be_bytes());
        }
        Key::Filter(link, filter) => {
            octets.push(Kind::Filter as u8);
            octets.extend(link.to_be_bytes());
            octets.extend(filter.as_str().as_bytes());
        }
        Key::Client(id, key) => {
            octets.push(CLIENT);
            octets.extend(id.as_str().as_bytes());
            // No client id has it in it, and no other octet sorts before it.
            octets.push(0);
            encode_client_key(key, &mut octets);
        }
    }
    octets
}

fn encode_client_key(key: &ClientKey, octets: &mut Vec<u8>) {
    match key {
        ClientKey::Session => octets.push(Kind::Session as u8),
        ClientKey::Will => octets.push(Kind::Will as u8),
        ClientKey::Topic(id) => {
            octets.push(Kind::Topic as u8);
            octets.extend(id.to_be_bytes());
        }
        ClientKey::Subscription(filter) => {
            octets.push(Kind::Subscription as u8);
            octets.extend(filter.as_str().as_bytes());
        }
        ClientKey::Waiting(number) => {
            octets.push(Kind::Waiting as u8);
            octets.extend(number.to_be_bytes());
        }
        ClientKey::Releasing(id) => {
            octets.push(Kind::Releasing as u8);
            octets.extend(id.to_be_bytes());
        }
        ClientKey::Exchange(id) => {
            octets.push(Kind::Exchange as u8);
            octets.extend(id.to_be_bytes());
        }
        ClientKey::Uplink(number) => {
            octets.push(Kind::Uplink as u8);
            octets.extend(number.to_be_bytes());
        }
        ClientKey::Received(packet) => {
            octets.push(Kind::ClientReceived as u8);
            octets.extend(packet.to_be_bytes());
        }
    }
}

/// The key of these octets.
pub(super) fn decode_key(octets: &[u8], client: &mut Option<ClientId>) -> Result<Key, RowError> {
    let (&code, rest) = octets.split_first().ok_or(RowError::Key)?;
    if code == CLIENT {
        let end = rest.iter().position(|octet| *octet == 0).ok_or(RowError::Key)?;
        let id = match client {
            Some(same) if same.as_str().as_bytes() == &rest[..end] => same.clone(),
            _ => client.insert(ClientId::new(&rest[..end]).map_err(|_| RowError::Key)?).clone(),
        };
        let (&code, rest) = rest[end + 1..].split_first().ok_or(RowError::Key)?;
        return Ok(Key::Client(id, decode_client_key(code, rest)?));
    }
    match Kind::new(code).ok_or(RowError::UnknownKind(code))? {
        Kind::Gateway if rest.is_empty() => Ok(Key::Gateway),
        Kind::Message => Ok(Key::Message(MessageId(long(rest)?))),
        Kind::Received => {
            let (link, packet) = rest.split_at_checked(2).ok_or(RowError::Key)?;
            Ok(Key::Received(short(link)?, short(packet)?))
        }
        Kind::Filter => {
            let (link, filter) = rest.split_at_checked(2).ok_or(RowError::Key)?;
            Ok(Key::Filter(short(link)?, TopicFilter::new(filter).map_err(|_| RowError::Key)?))
        }
        _ => Err(RowError::Key),
    }
}

fn decode_client_key(code: u8, rest: &[u8]) -> Result<ClientKey, RowError> {
    match Kind::new(code).ok_or(RowError::UnknownKind(code))? {
        Kind::Session if rest.is_empty() => Ok(ClientKey::Session),
        Kind::Will if rest.is_empty() => Ok(ClientKey::Will),
        Kind::Topic => Ok(ClientKey::Topic(short(rest)?)),
        Kind::Subscription => Ok(ClientKey::Subscription(TopicFilter::new(rest).map_err(|_| RowError::Key)?)),
        Kind::Waiting => Ok(ClientKey::Waiting(long(rest)?)),
        Kind::Releasing => Ok(ClientKey::Releasing(short(rest)?)),
        Kind::Exchange => Ok(ClientKey::Exchange(short(rest)?)),
        Kind::Uplink => Ok(ClientKey::Uplink(long(rest)?)),
        Kind::ClientReceived => Ok(ClientKey::Received(short(rest)?)),
        _ => Err(RowError::Key),
    }
}

fn short(octets: &[u8]) -> Result<u16, RowError> {
    octets.try_into().map(u16::from_be_bytes).map_err(|_| RowError::Key)
}

fn long(octets: &[u8]) -> Result<u64, RowError> {
    octets.try_into().map(u64::from_be_bytes).map_err(|_| RowError::Key)
}

/// The octets of the value that stands under `key`, which is that of the row.
///
/// # Errors
/// Memory that is not there, and nothing else that is known.
pub(super) fn encode_row(key: &[u8], row: &Row) -> Result<Vec<u8>, postcard::Error> {
    let octets = vec![VERSION];
    let mut octets = match row {
        Row::Gateway(GatewayRow { client_id }) => postcard::to_extend(&StoredGateway { client_id }, octets),
        Row::Message(_, message) => postcard::to_extend(&StoredMessage::from(&**message), octets),
        Row::Received(_, received) | Row::ClientReceived(_, received) => {
            postcard::to_extend(&StoredReceived { digest: received.digest }, octets)
        }
        Row::Releasing(..) => Ok(octets),
        Row::Filter(_, _, row) => postcard::to_extend(&StoredFilter::from(row), octets),
        Row::Session(_, row) => postcard::to_extend(&StoredSession::from(row), octets),
        Row::Will(_, row) => postcard::to_extend(&StoredWill::from(row), octets),
        Row::Topic(_, _, row) => postcard::to_extend(&StoredTopic::from(row), octets),
        Row::Subscription(_, _, row) => postcard::to_extend(&StoredSubscription::from(row), octets),
        Row::Waiting(_, _, row) => postcard::to_extend(&StoredWaiting::from(row), octets),
        Row::Exchange(_, _, row) => postcard::to_extend(&StoredExchange::from(row), octets),
        Row::Uplink(_, _, row) => postcard::to_extend(&StoredUplink::from(row), octets),
    }?;
    let crc = crc(key, &octets);
    octets.extend(crc.to_le_bytes());
    Ok(octets)
}

/// The row of these octets. `client` is whose row was the last before it: rows of one client stand together, and share its id.
pub(super) fn decode_row(key: &[u8], value: &[u8], client: &mut Option<ClientId>) -> Result<Row, RowError> {
    let (body, stored) = value.split_last_chunk::<CRC_LEN>().ok_or(RowError::Checksum)?;
    if crc(key, body) != u32::from_le_bytes(*stored) {
        return Err(RowError::Checksum);
    }
    let row = decode_key(key, client)?;
    let kind = kind_of(&row);
    let (&version, fields) = body.split_first().ok_or(RowError::Checksum)?;
    if version != VERSION {
        return Err(RowError::UnknownVersion { kind, version });
    }
    decode_fields(row, fields).map_err(|Nonsense| RowError::Nonsense(kind))
}

fn kind_of(key: &Key) -> Kind {
    match key {
        Key::Gateway => Kind::Gateway,
        Key::Message(_) => Kind::Message,
        Key::Received(..) => Kind::Received,
        Key::Filter(..) => Kind::Filter,
        Key::Client(_, ClientKey::Session) => Kind::Session,
        Key::Client(_, ClientKey::Will) => Kind::Will,
        Key::Client(_, ClientKey::Topic(_)) => Kind::Topic,
        Key::Client(_, ClientKey::Subscription(_)) => Kind::Subscription,
        Key::Client(_, ClientKey::Waiting(_)) => Kind::Waiting,
        Key::Client(_, ClientKey::Releasing(_)) => Kind::Releasing,
        Key::Client(_, ClientKey::Exchange(_)) => Kind::Exchange,
        Key::Client(_, ClientKey::Uplink(_)) => Kind::Uplink,
        Key::Client(_, ClientKey::Received(_)) => Kind::ClientReceived,
    }
}

fn decode_fields(key: Key, octets: &[u8]) -> Result<Row, Nonsense> {
    let (id, key) = match key {
        Key::Gateway => {
            let StoredGateway { client_id } = fields(octets)?;
            return Ok(Row::Gateway(GatewayRow { client_id: client_id.to_owned() }));
        }
        Key::Message(id) => {
            return Ok(Row::Message(id, Arc::new(fields::<StoredMessage>(octets)?.try_into()?)));
        }
        Key::Received(link, packet) => {
            let StoredReceived { digest } = fields(octets)?;
            return Ok(Row::Received(link, Received { packet, digest }));
        }
        Key::Filter(link, filter) => {
            return Ok(Row::Filter(link, filter, fields::<StoredFilter>(octets)?.into()));
        }
        Key::Client(id, key) => (id, key),
    };
    Ok(match key {
        ClientKey::Session => Row::Session(id, fields::<StoredSession>(octets)?.into()),
        ClientKey::Will => Row::Will(id, fields::<StoredWill>(octets)?.try_into()?),
        ClientKey::Topic(topic) => Row::Topic(id, topic, fields::<StoredTopic>(octets)?.try_into()?),
        ClientKey::Subscription(filter) => {
            Row::Subscription(id, filter, fields::<StoredSubscription>(octets)?.into())
        }
        ClientKey::Waiting(number) => Row::Waiting(id, number, fields::<StoredWaiting>(octets)?.into()),
        ClientKey::Releasing(msg_id) => nothing(octets).map(|()| Row::Releasing(id, msg_id))?,
        ClientKey::Exchange(msg_id) => Row::Exchange(id, msg_id, fields::<StoredExchange>(octets)?.into()),
        ClientKey::Uplink(number) => Row::Uplink(id, number, fields::<StoredUplink>(octets)?.try_into()?),
        ClientKey::Received(packet) => {
            let StoredReceived { digest } = fields(octets)?;
            Row::ClientReceived(id, Received { packet, digest })
        }
    })
}

fn crc(key: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    // Where the key ends belongs to it.
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(body);
    crc.finalize()
}

/// Fields that are not what they should be.
struct Nonsense;

impl From<NameError> for Nonsense {
    fn from(_: NameError) -> Self {
        Self
    }
}

fn fields<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Result<T, Nonsense> {
    match postcard::take_from_bytes(octets) {
        Ok((fields, [])) => Ok(fields),
        _ => Err(Nonsense),
    }
}

fn nothing(octets: &[u8]) -> Result<(), Nonsense> {
    if octets.is_empty() { Ok(()) } else { Err(Nonsense) }
}

// What is stored, version 1, in the order of `record.rs`. The order of fields and of variants is the format.

#[derive(Serialize, Deserialize)]
struct StoredReceived {
    digest: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredGateway<'a> {
    client_id: &'a str,
}

#[derive(Serialize, Deserialize)]
struct StoredMessage<'a> {
    topic: &'a str,
    payload: &'a [u8],
    qos: StoredQos,
    retain: bool,
}

impl<'a> From<&'a Message> for StoredMessage<'a> {
    fn from(message: &'a Message) -> Self {
        let Message { topic, payload, qos, retain } = message;
        Self { topic: topic.as_str(), payload, qos: (*qos).into(), retain: *retain }
    }
}

impl TryFrom<StoredMessage<'_>> for Message {
    type Error = Nonsense;

    fn try_from(stored: StoredMessage<'_>) -> Result<Self, Nonsense> {
        let StoredMessage { topic, payload, qos, retain } = stored;
        let payload = Bytes::copy_from_slice(payload);
        Ok(Self { topic: TopicName::new(topic)?, payload, qos: qos.into(), retain })
    }
}

#[derive(Serialize, Deserialize)]
enum StoredQos {
    Zero,
    One,
    Two,
}

impl From<QoS> for StoredQos {
    fn from(qos: QoS) -> Self {
        match qos {
            QoS::AtMostOnce => Self::Zero,
            QoS::AtLeastOnce => Self::One,
            QoS::ExactlyOnce => Self::Two,
        }
    }
}

impl From<StoredQos> for QoS {
    fn from(stored: StoredQos) -> Self {
        match stored {
            StoredQos::Zero => Self::AtMostOnce,
            StoredQos::One => Self::AtLeastOnce,
            StoredQos::Two => Self::ExactlyOnce,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredFilter {
    qos: StoredQos,
    subscription: Option<u32>,
    granted: bool,
}

impl From<&FilterRow> for StoredFilter {
    fn from(row: &FilterRow) -> Self {
        let FilterRow { qos, subscription, granted } = *row;
        Self { qos: qos.into(), subscription, granted }
    }
}

impl From<StoredFilter> for FilterRow {
    fn from(stored: StoredFilter) -> Self {
        let StoredFilter { qos, subscription, granted } = stored;
        Self { qos: qos.into(), subscription, granted }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredSession<'a> {
    standing: StoredStanding,
    clean: bool,
    mode: StoredMode,
    inherited: bool,
    keep_alive: Duration,
    sleep: Duration,
    connections: u32,
    #[serde(borrow)]
    peer: Option<StoredPeer<'a>>,
}

impl<'a> From<&'a SessionRow> for StoredSession<'a> {
    fn from(row: &'a SessionRow) -> Self {
        let SessionRow { standing, clean, mode, inherited, keep_alive, sleep, connections, peer } = row;
        Self {
            standing: (*standing).into(),
            clean: *clean,
            mode: (*mode).into(),
            inherited: *inherited,
            keep_alive: *keep_alive,
            sleep: *sleep,
            connections: *connections,
            peer: peer.as_ref().map(StoredPeer::from),
        }
    }
}

impl From<StoredSession<'_>> for SessionRow {
    fn from(stored: StoredSession<'_>) -> Self {
        let StoredSession { standing, clean, mode, inherited, keep_alive, sleep, connections, peer } = stored;
        Self {
            standing: standing.into(),
            clean,
            mode: mode.into(),
            inherited,
            keep_alive,
            sleep,
            connections,
            peer: peer.map(PeerRow::from),
        }
    }
}

#[derive(Serialize, Deserialize)]
enum StoredStanding {
    Active,
    Asleep,
    Disconnected,
    Lost,
    Leaving,
}

impl From<Standing> for StoredStanding {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Asleep => Self::Asleep,
            Standing::Disconnected => Self::Disconnected,
            Standing::Lost => Self::Lost,
            Standing::Leaving => Self::Leaving,
        }
    }
}

impl From<StoredStanding> for Standing {
    fn from(stored: StoredStanding) -> Self {
        match stored {
            StoredStanding::Active => Self::Active,
            StoredStanding::Asleep => Self::Asleep,
            StoredStanding::Disconnected => Self::Disconnected,
            StoredStanding::Lost => Self::Lost,
            StoredStanding::Leaving => Self::Leaving,
        }
    }
}

#[derive(Serialize, Deserialize)]
enum StoredMode {
    Aggregating,
    Transparent,
}

impl From<Mode> for StoredMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Aggregating => Self::Aggregating,
            Mode::Transparent => Self::Transparent,
        }
    }
}

impl From<StoredMode> for Mode {
    fn from(stored: StoredMode) -> Self {
        match stored {
            StoredMode::Aggregating => Self::Aggregating,
            StoredMode::Transparent => Self::Transparent,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredPeer<'a> {
    port: &'a str,
    addr: StoredAddress,
    node: Option<&'a [u8]>,
}

impl<'a> From<&'a PeerRow> for StoredPeer<'a> {
    fn from(row: &'a PeerRow) -> Self {
        let PeerRow { port, addr, node } = row;
        Self { port, addr: (*addr).into(), node: node.as_ref().map(|node| node.0.as_ref()) }
    }
}

impl From<StoredPeer<'_>> for PeerRow {
    fn from(stored: StoredPeer<'_>) -> Self {
        let StoredPeer { port, addr, node } = stored;
        let node = node.map(|node| WirelessNodeId(node.into()));
        Self { port: port.to_owned(), addr: addr.into(), node }
    }
}

#[derive(Serialize, Deserialize)]
enum StoredAddress {
    Udp4 {
        ip: [u8; 4],
        port: u16,
    },
    /// With the scope, without which a link-local address is none.
    Udp6 {
        ip: [u8; 16],
        port: u16,
        flow: u32,
        scope: u32,
    },
    Serial,
    Xbee(u64),
}

impl From<Address> for StoredAddress {
    fn from(addr: Address) -> Self {
        match addr {
            Address::Udp(SocketAddr::V4(addr)) => Self::Udp4 { ip: addr.ip().octets(), port: addr.port() },
            Address::Udp(SocketAddr::V6(addr)) => Self::Udp6 {
                ip: addr.ip().octets(),
                port: addr.port(),
                flow: addr.flowinfo(),
                scope: addr.scope_id(),
            },
            Address::Serial => Self::Serial,
            Address::Xbee(addr) => Self::Xbee(addr),
        }
    }
}

impl From<StoredAddress> for Address {
    fn from(stored: StoredAddress) -> Self {
        match stored {
            StoredAddress::Udp4 { ip, port } => Self::Udp(SocketAddrV4::new(ip.into(), port).into()),
            StoredAddress::Udp6 { ip, port, flow, scope } => {
                Self::Udp(SocketAddrV6::new(ip.into(), port, flow, scope).into())
            }
            StoredAddress::Serial => Self::Serial,
            StoredAddress::Xbee(addr) => Self::Xbee(addr),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredWill<'a> {
    #[serde(borrow)]
    topic: Option<(&'a str, StoredQos, bool)>,
    message: &'a [u8],
}

impl<'a> From<&'a WillRow> for StoredWill<'a> {
    fn from(row: &'a WillRow) -> Self {
        let WillRow { topic, message } = row;
        let topic = topic.as_ref().map(|(name, qos, retain)| (name.as_str(), (*qos).into(), *retain));
        Self { topic, message }
    }
}

impl TryFrom<StoredWill<'_>> for WillRow {
    type Error = Nonsense;

    fn try_from(stored: StoredWill<'_>) -> Result<Self, Nonsense> {
        let StoredWill { topic, message } = stored;
        let topic = match topic {
            Some((name, qos, retain)) => Some((TopicName::new(name)?, qos.into(), retain)),
            None => None,
        };
        Ok(Self { topic, message: Bytes::copy_from_slice(message) })
    }
}

#[derive(Serialize, Deserialize)]
struct StoredTopic<'a> {
    name: &'a str,
    nth: u16,
    standing: StoredTopicStanding,
}

impl<'a> From<&'a TopicRow> for StoredTopic<'a> {
    fn from(row: &'a TopicRow) -> Self {
        let TopicRow { name, nth, standing } = row;
        Self { name: name.as_str(), nth: *nth, standing: (*standing).into() }
    }
}

impl TryFrom<StoredTopic<'_>> for TopicRow {
    type Error = Nonsense;

    fn try_from(stored: StoredTopic<'_>) -> Result<Self, Nonsense> {
        let StoredTopic { name, nth, standing } = stored;
        Ok(Self { name: TopicName::new(name)?, nth, standing: standing.into() })
    }
}

#[derive(Serialize, Deserialize)]
enum StoredTopicStanding {
    Unconfirmed,
    Known(u32),
    Rejected,
}

impl From<TopicStanding> for StoredTopicStanding {
    fn from(standing: TopicStanding) -> Self {
        match standing {
            TopicStanding::Unconfirmed => Self::Unconfirmed,
            TopicStanding::Known(connection) => Self::Known(connection),
            TopicStanding::Rejected => Self::Rejected,
        }
    }
}

impl From<StoredTopicStanding> for TopicStanding {
    fn from(stored: StoredTopicStanding) -> Self {
        match stored {
            StoredTopicStanding::Unconfirmed => Self::Unconfirmed,
            StoredTopicStanding::Known(connection) => Self::Known(connection),
            StoredTopicStanding::Rejected => Self::Rejected,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredSubscription {
    topic: StoredTopicRef,
    qos: StoredQos,
    since: u64,
}

impl From<&SubscriptionRow> for StoredSubscription {
    fn from(row: &SubscriptionRow) -> Self {
        let SubscriptionRow { topic, qos, since } = *row;
        Self { topic: topic.into(), qos: qos.into(), since }
    }
}

impl From<StoredSubscription> for SubscriptionRow {
    fn from(stored: StoredSubscription) -> Self {
        let StoredSubscription { topic, qos, since } = stored;
        Self { topic: topic.into(), qos: qos.into(), since }
    }
}

#[derive(Serialize, Deserialize)]
enum StoredTopicRef {
    Normal(u16),
    Predefined(u16),
    Short([u8; 2]),
    Reserved(u16),
}

impl From<TopicRef> for StoredTopicRef {
    fn from(topic: TopicRef) -> Self {
        match topic {
            TopicRef::Normal(id) => Self::Normal(id),
            TopicRef::Predefined(id) => Self::Predefined(id),
            TopicRef::Short(name) => Self::Short(name),
            TopicRef::Reserved(id) => Self::Reserved(id),
        }
    }
}

impl From<StoredTopicRef> for TopicRef {
    fn from(stored: StoredTopicRef) -> Self {
        match stored {
            StoredTopicRef::Normal(id) => Self::Normal(id),
            StoredTopicRef::Predefined(id) => Self::Predefined(id),
            StoredTopicRef::Short(name) => Self::Short(name),
            StoredTopicRef::Reserved(id) => Self::Reserved(id),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredWaiting {
    message: u64,
    qos: StoredQos,
    sent_as: Option<u16>,
    sent_on: Option<StoredTopicRef>,
    expiry: Option<Duration>,
}

impl From<&WaitingRow> for StoredWaiting {
    fn from(row: &WaitingRow) -> Self {
        let WaitingRow { message: MessageId(message), qos, sent_as, sent_on, expiry } = *row;
        Self { message, qos: qos.into(), sent_as, sent_on: sent_on.map(Into::into), expiry }
    }
}

impl From<StoredWaiting> for WaitingRow {
    fn from(stored: StoredWaiting) -> Self {
        let StoredWaiting { message, qos, sent_as, sent_on, expiry } = stored;
        let sent_on = sent_on.map(Into::into);
        Self { message: MessageId(message), qos: qos.into(), sent_as, sent_on, expiry }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredExchange {
    digest: u64,
    topic: StoredTopicRef,
    state: StoredExchangeState,
}

impl From<&ExchangeRow> for StoredExchange {
    fn from(row: &ExchangeRow) -> Self {
        let ExchangeRow { digest, topic, state } = *row;
        Self { digest, topic: topic.into(), state: state.into() }
    }
}

impl From<StoredExchange> for ExchangeRow {
    fn from(stored: StoredExchange) -> Self {
        let StoredExchange { digest, topic, state } = stored;
        Self { digest, topic: topic.into(), state: state.into() }
    }
}

#[derive(Serialize, Deserialize)]
enum StoredExchangeState {
    Open(u64),
    Received,
    Finished,
}

impl From<ExchangeState> for StoredExchangeState {
    fn from(state: ExchangeState) -> Self {
        match state {
            ExchangeState::Open(number) => Self::Open(number),
            ExchangeState::Received => Self::Received,
            ExchangeState::Finished => Self::Finished,
        }
    }
}

impl From<StoredExchangeState> for ExchangeState {
    fn from(stored: StoredExchangeState) -> Self {
        match stored {
            StoredExchangeState::Open(number) => Self::Open(number),
            StoredExchangeState::Received => Self::Received,
            StoredExchangeState::Finished => Self::Finished,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredUplink<'a> {
    #[serde(borrow)]
    message: StoredMessage<'a>,
    dedicated: bool,
    packet: Option<u16>,
    released: bool,
    promised: bool,
}

impl<'a> From<&'a UplinkRow> for StoredUplink<'a> {
    fn from(row: &'a UplinkRow) -> Self {
        let UplinkRow { message, dedicated, packet, released, promised } = row;
        let (dedicated, packet) = (*dedicated, *packet);
        Self { message: message.into(), dedicated, packet, released: *released, promised: *promised }
    }
}

impl TryFrom<StoredUplink<'_>> for UplinkRow {
    type Error = Nonsense;

    fn try_from(stored: StoredUplink<'_>) -> Result<Self, Nonsense> {
        let StoredUplink { message, dedicated, packet, released, promised } = stored;
        Ok(Self { message: message.try_into()?, dedicated, packet, released, promised })
    }
}
