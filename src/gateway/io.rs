//! The whole boundary of the core in one file: what goes in, what comes out, and the settings it is made with.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::record::{Lsn, Outcome, Record};
use crate::topic::{ClientId, TopicName};

/// A transport instance: the index of its settings in [`Settings::ports`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// A connection to a broker. Never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The address a frame came from, in the terms of its carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Source address and port of a datagram.
    Udp(SocketAddr),
    /// Whoever is at the other end of a serial line: one node, or a forwarder with many.
    Serial,
    /// The 64-bit address of a radio module, which it keeps for life; its short one changes.
    Xbee(u64),
}

/// What a forwarder calls one of its nodes (§5.5); at most [`crate::wire::NODE_ID_LEN_MAX`] octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WirelessNodeId(pub Arc<[u8]>);

/// Who sent a frame: the identity by which messages are attributed to a client (§6.12).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The transport it came through.
    pub port: PortId,
    /// The address it came from; a forwarder's, if there is one between.
    pub addr: Address,
    /// The node behind the forwarder.
    pub node: Option<WirelessNodeId>,
}

/// In one piece where no forwarder stands between: every frame is looked up by its sender, and a keyed hash takes as long for each
/// of ten pieces as for all their octets together.
impl Hash for Peer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut octets = [0; 32];
        let (head, body) = octets.split_at_mut(8);
        let kind = match self.addr {
            Address::Udp(SocketAddr::V4(addr)) => {
                body[..4].copy_from_slice(&addr.ip().octets());
                head[4..6].copy_from_slice(&addr.port().to_ne_bytes());
                0
            }
            Address::Udp(SocketAddr::V6(addr)) => {
                body[..16].copy_from_slice(&addr.ip().octets());
                body[16..20].copy_from_slice(&addr.scope_id().to_ne_bytes());
                body[20..].copy_from_slice(&addr.flowinfo().to_ne_bytes());
                head[4..6].copy_from_slice(&addr.port().to_ne_bytes());
                1
            }
            Address::Serial => 2,
            Address::Xbee(addr) => {
                body[..8].copy_from_slice(&addr.to_ne_bytes());
                3
            }
        };
        (head[0], head[1]) = (kind, u8::from(self.node.is_some()));
        head[2..4].copy_from_slice(&self.port.0.to_ne_bytes());
        state.write(&octets);
        if let Some(node) = &self.node {
            node.hash(state);
        }
    }
}

/// How a frame reached a transport, handed back with the answer so that it leaves the same way. No part of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    /// Which of the transport's sockets.
    pub socket: u16,
    /// The address of ours that was spoken to, if it was not a group.
    pub local: Option<IpAddr>,
}

/// What the core is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A datagram or radio frame, as received. The core takes a forwarder's encapsulation off itself, so `from.node` is
    /// `None` here.
    Frame {
        /// The sender.
        from: Peer,
        /// For the answer.
        route: Route,
        /// The octets.
        frame: Bytes,
    },
    /// Something happened to a transport.
    Port(PortId, PortEvent),
    /// Something happened to a connection to a broker.
    Link(LinkId, LinkEvent),
    /// What became of a batch that [`Output::Store`] handed out, and of all before it.
    Stored(Lsn, Outcome),
    /// The operator wants something.
    Control(Control),
}

/// What happens to a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// It can send and receive.
    Up,
    /// It cannot.
    Down,
    /// What [`PortSettings::mtu`] is from now on: the carrier has said how much it takes.
    Mtu(usize),
}

/// What happens to a connection to a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The connection that [`LinkCommand::Connect`] asked for is open.
    Connected,
    /// The password to be shown on the connection, which comes next: files change while the gateway runs.
    Password(Bytes),
    /// Octets from the broker.
    Bytes(Bytes),
    /// Everything of the last [`LinkCommand::Write`] is with the operating system; the next one may come.
    Drained,
    /// The connection is gone or did not come about. It answers [`LinkCommand::Connect`] or ends what `Connected` began;
    /// after [`LinkCommand::Close`] nothing more comes.
    Closed(LinkFailure),
}

/// Why a connection to a broker is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkFailure {
    /// The name of the broker has no address.
    #[error("cannot find {host}: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        reason: String,
    },
    /// Nobody answers there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The broker cannot be trusted, or does not trust us, or does not speak TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The broker closed the connection.
    #[error("the broker closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("connection lost: {0}")]
    Io(String),
}

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Take leave: tell clients (§6.12), take leave of the broker. Ends with [`Output::Stopped`].
    Shutdown,
    /// Remove everything of a client. Answered by [`Output::Answer`] with the same number.
    Forget(RequestId, ClientId),
}

/// Numbers what the operator wants an answer to. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the operator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The client is forgotten, and will be after a crash.
    Forgotten(Forgotten),
    /// Nothing was done: what is asked for cannot be stored at the moment.
    Unstored,
}

/// What there was of a client that is forgotten; all of it nothing for one that was not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// A session, or a CONNECT under way.
    pub session: bool,
    /// A Will. It is not published.
    pub will: bool,
    /// Topic ids, whether or not the client has learnt them.
    pub topics: usize,
    /// Subscriptions that were granted.
    pub subscriptions: usize,
    /// Messages that waited for the client.
    pub waiting: usize,
    /// Exchanges of QoS 2 that were not finished, in both directions.
    pub exchanges: usize,
    /// Messages of the client that were kept for the broker. Those that are on their way already arrive.
    pub kept: usize,
    /// The broker may still have a session of the client's own, for it could not be told. Until the client connects again or
    /// that session expires, it goes on collecting messages.
    pub at_broker: bool,
}

impl Forgotten {
    /// Whether there was something.
    pub fn is_something(&self) -> bool {
        *self != Self::default()
    }
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Put a frame on the air. May be dropped, and is then counted by the one who drops it.
    Send {
        /// To whom.
        to: Target,
        /// The octets of one frame.
        frame: Bytes,
    },
    /// Do something with a connection to a broker.
    Link(LinkId, LinkCommand),
    /// Store these records, all or none of them. [`Input::Stored`] answers; batches are stored in their order, and one answer
    /// may be for many.
    Store {
        /// Its number.
        lsn: Lsn,
        /// What changes.
        records: Vec<Record>,
    },
    /// Tell the operator.
    Answer(RequestId, Answer),
    /// Everything [`Control::Shutdown`] asked for is done.
    Stopped,
}

/// Whom a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One address, by the route its frames come in.
    Unicast {
        /// The transport.
        port: PortId,
        /// The address; a forwarder's, if there is one between (the frame is then encapsulated).
        addr: Address,
        /// The way.
        route: Route,
    },
    /// Everybody a transport reaches: its broadcast or multicast service (§6.1).
    Broadcast {
        /// The transport.
        port: PortId,
        /// Hops it may travel; 0: as far as the carrier can.
        radius: u8,
    },
}

/// What to do with a connection to a broker. One [`LinkCommand::Write`] at a time: the next comes after
/// [`LinkEvent::Drained`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkCommand {
    /// Open it, within [`BrokerSettings::connect_timeout`]. Answered by `Connected` or `Closed`.
    Connect {
        /// To where.
        endpoint: Endpoint,
        /// Whose link it is: that client's, or the gateway's own. Each may have a certificate to show.
        client: Option<ClientId>,
    },
    /// Write these octets, in one go where the operating system takes them.
    Write(Bytes),
    /// Close it once what was written is out. Nothing more is reported of it.
    Close,
}

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether TLS is spoken there (`mqtts://`).
    pub tls: bool,
}

/// What a core is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// GwId, 1 to 255 (§5.3.6).
    pub gw_id: u8,
    /// T_ADV, 1 s to 65,535 s (§6.1).
    pub advertise_interval: Duration,
    /// The transports; a [`PortId`] is an index here.
    pub ports: Vec<PortSettings>,
    /// The broker.
    pub broker: BrokerSettings,
    /// Predefined topics of all clients (§6.7); ids 1 to 65,534.
    pub predefined: BTreeMap<u16, TopicName>,
    /// Predefined topics of single clients, looked up before the common ones.
    pub client_predefined: BTreeMap<ClientId, BTreeMap<u16, TopicName>>,
    /// Limits and times of sessions.
    pub sessions: SessionSettings,
    /// What is stored outlives this process. If it does not, a message of QoS 2 is left to the broker until a client has it.
    pub lasting: bool,
    /// Seeds what must not be guessed or must not coincide: where topic ids start, how far reconnects are apart.
    pub seed: u64,
}

/// One transport, as the core sees it.
#[derive(Debug, Clone)]
pub struct PortSettings {
    /// Its name in logs.
    pub name: String,
    /// How clients that begin their session here are served at the broker.
    pub mode: Mode,
    /// Octets in the largest frame it can send.
    pub mtu: usize,
    /// T_RETRY (§7.2).
    pub retry_interval: Duration,
    /// N_RETRY (§7.2).
    pub retry_limit: u32,
    /// Whether forwarders may speak here (§5.5).
    pub forwarders: bool,
    /// Whether QoS −1 is served (§6.8).
    pub qos_minus_one: bool,
    /// Whether ADVERTISE is sent here (§6.1): whether the transport can broadcast.
    pub advertise: bool,
}

/// The broker and how to deal with it.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Where it is; several are tried in turn. Never empty.
    pub endpoints: Vec<Endpoint>,
    /// The version of MQTT to speak.
    pub protocol: Protocol,
    /// The gateway's own client id there.
    pub client_id: String,
    /// Whether that id was made up for this process, so that its session at the broker is of no use to the next one.
    pub client_id_is_random: bool,
    /// User name and password of the gateway; a password in a file comes with [`LinkEvent::Password`] instead.
    pub credentials: Option<(String, Bytes)>,
    /// User names and passwords of single clients on their own links; the others show those of the gateway.
    pub client_credentials: BTreeMap<ClientId, (String, Bytes)>,
    /// The client id at the broker of a client's own link, with `%c` for its own.
    pub client_id_template: String,
    /// Who keeps and publishes the Wills of clients with links of their own.
    pub wills: Wills,
    /// MQTT keep-alive; zero: none.
    pub keep_alive: Duration,
    /// How long the broker may take to acknowledge before a client is told `congestion` (Interpretation: A-34).
    pub ack_timeout: Duration,
    /// How much is kept for the broker while it is away or slow; `None`: clients are told `congestion`.
    pub outage_queue: Option<OutageQueue>,
    /// How long a client whose own link is lost is kept before it is told (§6.12).
    pub grace: Duration,
    /// How long TCP, and TLS on it, may take to connect.
    pub connect_timeout: Duration,
}

/// Bounds of what is kept for the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutageQueue {
    /// Messages.
    pub messages: usize,
    /// Octets of topics and payloads.
    pub bytes: usize,
    /// How long a message waits for the broker at most; a restart begins it anew.
    pub age: Duration,
}

/// How clients are served at the broker (§4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All on the gateway's own link (§4.2).
    Aggregating,
    /// Each on a link of its own (§4.1).
    Transparent,
}

/// Who keeps and publishes Wills (§6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wills {
    /// The gateway, which alone can tell a client that is gone from an uplink that is.
    Gateway,
    /// The broker, for clients with links of their own: it publishes them also when only the link is lost.
    Broker,
}

/// Which version of MQTT to speak with a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5, and MQTT 3.1.1 with a broker that does not know it.
    Auto,
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

/// Limits and times of sessions.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Sessions and half-open handshakes together.
    pub max: usize,
    /// How long a session with CleanSession 0 outlives its connection (§6.3).
    pub expiry: Duration,
    /// Topic ids of one client.
    pub max_topics: usize,
    /// Subscriptions of one client.
    pub max_subscriptions: usize,
    /// Messages that wait for one client.
    pub queue: QueueSettings,
    /// Octets of messages that wait, all clients together.
    pub queue_total: usize,
    /// From where a known client may wake by PINGREQ.
    pub rebind: Rebind,
}

/// From where a sleeper may wake (Interpretation: R-104). CONNECT takes a session over from anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebind {
    /// From where it went to sleep, and nowhere else.
    None,
    /// From the same transport and address, whatever the port; in IPv6 from the same /64. On a serial line everybody has the
    /// same address.
    SameIp,
    /// From anywhere.
    Any,
}

impl Rebind {
    /// Whether a client that is known at one peer may wake at another.
    pub fn allows(self, known: &Peer, other: &Peer) -> bool {
        match self {
            Self::None => false,
            Self::SameIp => known.port == other.port && is_same_host(known.addr, other.addr),
            Self::Any => true,
        }
    }
}

/// Whether two addresses of one transport are of one host, as far as addresses tell.
fn is_same_host(one: Address, other: Address) -> bool {
    match (one, other) {
        (Address::Udp(one), Address::Udp(other)) => network(one.ip()) == network(other.ip()),
        (one, other) => one == other,
    }
}

/// The part of an address that stays when a host changes it by itself: all of IPv4, the first half of IPv6.
fn network(ip: IpAddr) -> [u8; 8] {
    let octets = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => {
            let [half @ .., _, _, _, _, _, _, _, _] = ip.octets();
            return half;
        }
    };
    let [_, _, _, _, _, _, _, _, half @ ..] = octets;
    half
}

/// Bounds of the messages that wait for one client, and what is shed beyond them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSettings {
    /// Messages.
    pub messages: usize,
    /// Octets of payloads and topics.
    pub bytes: usize,
    /// Which message goes when the queue is full.
    pub full: QueueFull,
    /// Whether QoS 0 is kept for a client that sleeps.
    pub qos0: bool,
}

/// What a full queue sheds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// The message of QoS 0 that has waited longest; if there is none, the message that has, though not for one of QoS 0.
    DropOldest,
    /// The message that would join.
    DropNewest,
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn peers_that_differ_in_anything_have_hashes_that_differ() {
        let v6 =
            |ip: &str, port, flow, scope| SocketAddrV6::new(ip.parse().unwrap(), port, flow, scope).into();
        let udp = ["10.0.0.1:1000", "10.0.0.1:1001", "10.0.0.2:1000", "[::a00:1]:1000"];
        let udp = udp.map(|text| text.parse().unwrap()).into_iter();
        let udp = udp.chain([v6("fe80::1", 9, 0, 1), v6("fe80::1", 9, 0, 2), v6("fe80::1", 9, 1, 1)]);
        let radios = [Address::Serial, Address::Xbee(0), Address::Xbee(1), Address::Xbee(1 << 56)];
        let addrs: Vec<_> = udp.map(Address::Udp).chain(radios).collect();
        let nodes = [None, Some(&[][..]), Some(&[0]), Some(&[0, 0])];
        let hasher = RandomState::new();
        let mut seen = BTreeMap::new();
        for port in [0, 1, 256].map(PortId) {
            for addr in &addrs {
                for node in nodes.map(|node| node.map(|node| WirelessNodeId(node.into()))) {
                    let peer = Peer { port, addr: *addr, node };
                    assert_eq!(hasher.hash_one(&peer), hasher.hash_one(peer.clone()));
                    let before = seen.insert(hasher.hash_one(&peer), peer.clone());
                    assert_eq!(before, None, "the same as that of {peer:?}");
                }
            }
        }
    }
}
