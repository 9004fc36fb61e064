//! gateway.yaml to a validated [`Config`]; the only module that knows `serde_yaml`.
//!
//! A file passes three stages, and only the first can stop it early: `yaml` turns the text into a tree that knows where
//! everything stands, `schema` asks the tree for each key it knows, and `value` says what a key may hold. Whatever is
//! wrong is noted with its place and reading goes on with the default, so that one run shows all [`Problems`].
//!
//! What this version does not build yet is read all the same and then refused at its place, or, where it is only an
//! extra, accepted and named by [`Config::notes`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use self::problem::{At, Problem};
use self::read::{Keys, Report};
use crate::topic::{ClientId, TopicName};

mod problem;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub use self::problem::Problems;
pub use self::value::UrlError;
pub(crate) use self::value::parse_duration;

/// The shipped gateway.yaml: every option, commented, with its default.
pub const SHIPPED: &str = include_str!("../gateway.yaml");

/// Everything that gateway.yaml says. The default is what the shipped file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How this gateway presents itself to clients.
    pub gateway: Gateway,
    /// The MQTT broker and how it is used.
    pub broker: Broker,
    /// Where clients are heard: at least one, each with a name of its own.
    pub transports: Vec<Transport>,
    /// Topic ids that were agreed beforehand (§6.7).
    pub topics: Topics,
    /// Limits and timers of clients.
    pub sessions: Sessions,
    /// Where state survives a restart.
    pub store: Store,
    /// Metrics, health and the live page.
    pub http: Http,
    /// The socket through which commands ask the running gateway.
    pub control: Control,
    /// What is logged and how.
    pub log: Log,
}

/// Octets of the longest file that is read: a hundred times what a long one has.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file as the user named it.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{} in {}", count(.0.len(), "error"), .0.file())]
    Wrong(Problems),
}

impl Config {
    /// Reads the file at `path`, with the environment of this process.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(opened) => Self::read(&file, opened),
            Err(source) => Err(LoadError::Read { file, source }),
        }
    }

    /// Reads what is called `file` in messages, with the environment of this process.
    pub fn read(file: &str, from: impl Read) -> Result<Self, LoadError> {
        let mut octets = Vec::new();
        let read = from.take(FILE_LEN_MAX + 1).read_to_end(&mut octets);
        read.map_err(|source| LoadError::Read { file: file.into(), source })?;
        Self::parse(file, &octets, &|name| std::env::var(name).ok()).map_err(LoadError::Wrong)
    }

    /// Reads `octets`, which are called `file` in messages; `env` looks up environment variables.
    ///
    /// Everything that is missing has its default, so that an empty file is the default configuration.
    pub fn parse(file: &str, octets: &[u8], env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let whole = |text: String| {
            Problems::new(file, "", vec![Problem { at: At::START, path: String::new(), text }])
        };
        if octets.len() as u64 > FILE_LEN_MAX {
            return Err(whole(format!("more than {FILE_LEN_MAX} octets, expected a configuration")));
        }
        let octets = octets.strip_prefix("\u{feff}".as_bytes()).unwrap_or(octets);
        let text = match std::str::from_utf8(octets) {
            Ok(text) => text,
            Err(error) => return Err(not_utf8(file, octets, error.valid_up_to())),
        };
        let (config, report) =
            examine(text, env).map_err(|problem| Problems::new(file, text, vec![problem]))?;
        match report.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(Problems::new(file, text, problems).beside(config)),
        }
    }

    /// What is asked for and not in this version, but only an extra: a line for the log each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let default = Config::default();
        if self.store.path == Place::None {
            let text = "sessions, topic ids and messages that wait end with the gateway, clients are told when it stops";
            notes.push(format!("store.path: none: {text}"));
            if self.broker.outage == Outage::Queue {
                let text = "messages are refused while the broker is away, for there is no store";
                notes.push(format!("broker.outage: queue: {text}"));
            }
        }
        let keeps = self.store.path != Place::None;
        let of_store = [
            ("broker.outage_queue", self.broker.outage_queue != default.broker.outage_queue),
            ("store.commit", self.store.commit != default.store.commit),
        ];
        for (key, _) in of_store.into_iter().filter(|(_, set)| *set && !keeps) {
            notes.push(format!("{key}: has no effect without a store"));
        }
        let own_links =
            |transport: &Transport| transport.mode.unwrap_or(self.broker.mode) == Mode::Transparent;
        let is_transparent = self.transports.iter().any(own_links);
        let of_transparent = [
            ("broker.clients", !self.broker.clients.is_empty()),
            (
                "broker.client_id_template",
                self.broker.client_id_template != default.broker.client_id_template,
            ),
            ("broker.wills", self.broker.wills != default.broker.wills),
        ];
        for (key, _) in of_transparent.into_iter().filter(|(_, set)| *set && !is_transparent) {
            notes.push(format!("{key}: has no effect without a transport in transparent mode"));
        }
        if self.broker.wills == Wills::Broker && is_transparent {
            let text = "when the uplink drops, the broker publishes the Wills of all its clients";
            notes.push(format!("broker.wills: broker: {text}"));
        }
        self.transports.iter().for_each(|transport| notes.extend(transport.notes()));
        for (key, topics) in self.predefined() {
            for (id, topic) in topics {
                notes.extend(self.transports.iter().filter_map(|it| it.unregistrable(&key, *id, topic)));
            }
        }
        if let Some(address) = self.http.listen {
            notes.push(format!("http.listen: not in this version, nothing listens on {address}"));
        }
        notes
    }
}

impl Config {
    /// All predefined topics, by the key they stand under.
    fn predefined(&self) -> impl Iterator<Item = (String, &BTreeMap<u16, TopicName>)> {
        let clients = self.topics.clients.iter();
        let clients = clients.map(|(id, topics)| (format!("topics.clients.{id}"), topics));
        std::iter::once(("topics.predefined".to_owned(), &self.topics.predefined)).chain(clients)
    }
}

/// Octets of a REGISTER without the name of the topic, which is short enough for the short form (§5.4.10).
const REGISTER_LEN: usize = 6;

/// What is expected of a radio module that has not said how much it takes: all of them take this.
pub const XBEE_MTU_LEAST: usize = 72;

/// The most that one takes in a frame: those of DigiMesh and of ZigBee in pieces.
const XBEE_MTU_MOST: usize = 256;

impl Transport {
    /// What is allowed here and is of less use than it seems.
    fn notes(&self) -> Vec<String> {
        let line = match &self.kind {
            TransportKind::Serial(serial) => &serial.line,
            TransportKind::Xbee(xbee) => &xbee.line,
            TransportKind::Udp(_) | TransportKind::Dtls(_) => return Vec::new(),
        };
        let mut notes = Vec::new();
        if line.data_bits < 8 {
            let bits = line.data_bits;
            notes.push(format!(
                "transport {}: data_bits: {bits}: octets of messages have 8, so nearly all messages are damaged",
                self.name
            ));
        }
        if line.flow == Flow::XonXoff {
            let text =
                "messages with the octets 0x11 or 0x13 in them are damaged; rts-cts has no such octets";
            notes.push(format!("transport {}: flow: xon-xoff: {text}", self.name));
        }
        let is_xbee = matches!(self.kind, TransportKind::Xbee(_));
        if let Some(mtu) = self.mtu.filter(|mtu| is_xbee && *mtu > XBEE_MTU_MOST) {
            let text = "what is longer than the radio takes (NP) is dropped, as with auto";
            notes.push(format!(
                "transport {}: mtu: {mtu}: no XBee takes more than {XBEE_MTU_MOST} octets; {text}",
                self.name
            ));
        }
        notes
    }

    /// That a predefined topic does not fit into a REGISTER here, as a client needs it whose filter has wildcards.
    fn unregistrable(&self, key: &str, id: u16, topic: &TopicName) -> Option<String> {
        if matches!(self.kind, TransportKind::Udp(_) | TransportKind::Dtls(_)) {
            return None;
        }
        let is_xbee = matches!(self.kind, TransportKind::Xbee(_));
        // A radio may take less than is set.
        let (mtu, says) = match self.mtu {
            Some(mtu) if is_xbee && mtu > XBEE_MTU_LEAST => {
                (XBEE_MTU_LEAST, format!("{mtu} if the radio takes that, at least {XBEE_MTU_LEAST}"))
            }
            Some(mtu) => (mtu, format!("{mtu}")),
            None => (XBEE_MTU_LEAST, format!("auto, at least {XBEE_MTU_LEAST}")),
        };
        let octets = REGISTER_LEN + topic.as_str().len();
        (octets > mtu).then(|| {
            format!(
                "{key}: the topic of {id} takes a REGISTER of {octets} octets, which transport {} cannot send (mtu: {says}): \
                 only clients that know the id get its messages",
                self.name
            )
        })
    }
}

/// What `text` says where it is right, and what came to light beside it; a problem if it is not even YAML.
fn examine(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(Config, Report), Problem> {
    let root = yaml::parse(text, env)?;
    let mut report = Report::default();
    let config = Keys::read_file(root.as_ref(), &mut report, schema::config);
    Ok((config, report))
}

/// `1 error`, `2 errors`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The problem that the octet after `valid` is not text.
fn not_utf8(file: &str, octets: &[u8], valid: usize) -> Problems {
    let text = String::from_utf8_lossy(octets);
    let before = String::from_utf8_lossy(&octets[..valid]);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let octet = octets.get(valid).copied().unwrap_or_default();
    let problem = Problem {
        at: At { line, column, width: 1 },
        path: String::new(),
        text: format!("the octet 0x{octet:02X} is not UTF-8, expected text in UTF-8"),
    };
    Problems::new(file, &text, vec![problem])
}

impl Default for Config {
    fn default() -> Self {
        let udp = Udp { multicast: Some(SocketAddr::from(([225, 1, 1, 1], 1884))), ..Udp::default() };
        Self {
            gateway: Gateway::default(),
            broker: Broker::default(),
            transports: vec![Transport::new("lan", TransportKind::Udp(udp))],
            topics: Topics::default(),
            sessions: Sessions::default(),
            store: Store::default(),
            http: Http::default(),
            control: Control::default(),
            log: Log::default(),
        }
    }
}

/// `gateway`: how this gateway presents itself to clients (§6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// GwId, 1 to 255 (§5.3.6).
    pub id: u8,
    /// Time between two ADVERTISE, 1 s to 65,535 s in whole seconds (the Duration field of §5.4.1).
    pub advertise_interval: Duration,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { id: 1, advertise_interval: Duration::from_secs(20 * 60) }
    }
}

/// `broker`: the MQTT broker and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Where it is: at least one, tried in turn. [`BrokerUrl::Embedded`] stands alone.
    pub urls: Vec<BrokerUrl>,
    /// One link for all clients, or one each.
    pub mode: Mode,
    /// The version of MQTT to speak.
    pub protocol: Protocol,
    /// The id of the gateway's own link; `None` makes one up.
    pub client_id: Option<ClientId>,
    /// The user name of the gateway's own link.
    pub username: Option<String>,
    /// The file that holds the password to `username`.
    pub password_file: Option<PathBuf>,
    /// Certificates for `mqtts://`.
    pub tls: Tls,
    /// Credentials of single clients on their own links (transparent mode).
    pub clients: BTreeMap<ClientId, Credentials>,
    /// The id at the broker of a client's own link; `%c` is the client's id (transparent mode).
    pub client_id_template: String,
    /// Who fires the wills of clients in transparent mode.
    pub wills: Wills,
    /// Silence after which the link is probed, 1 s to 65,535 s in whole seconds (MQTT 3.1.1 §3.1.2.10).
    pub keep_alive: Duration,
    /// What happens to messages of clients while the broker is away.
    pub outage: Outage,
    /// How much `outage: queue` keeps.
    pub outage_queue: OutageQueue,
    /// Time the broker has to acknowledge a message before it counts as away.
    pub ack_timeout: Duration,
    /// Time a connected client is kept while its own link is down (transparent mode).
    pub grace: Duration,
    /// Where the embedded broker listens.
    pub listen: SocketAddr,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            urls: vec![BrokerUrl::Mqtt { host: "127.0.0.1".into(), port: 1883 }],
            mode: Mode::Aggregating,
            protocol: Protocol::Auto,
            client_id: None,
            username: None,
            password_file: None,
            tls: Tls::default(),
            clients: BTreeMap::new(),
            client_id_template: "%c".into(),
            wills: Wills::Gateway,
            keep_alive: Duration::from_secs(60),
            outage: Outage::Queue,
            outage_queue: OutageQueue::default(),
            ack_timeout: Duration::from_secs(8),
            grace: Duration::from_secs(60),
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
        }
    }
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// `embedded`: the broker in this program, started on `broker.listen`.
    Embedded,
    /// `mqtt://host:port`: plain TCP.
    Mqtt {
        /// A host name or an IP address, without brackets.
        host: String,
        /// The TCP port; 1883 unless given.
        port: u16,
    },
    /// `mqtts://host:port`: TLS.
    Mqtts {
        /// A host name or an IP address, without brackets.
        host: String,
        /// The TCP port; 8883 unless given.
        port: u16,
    },
}

/// How clients are served at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One link for all.
    Aggregating,
    /// One link for each, in its name.
    Transparent,
}

/// The version of MQTT to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// The best both sides know.
    #[serde(rename = "auto")]
    Auto,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.
    #[serde(rename = "5")]
    V5,
}

/// `broker.tls`: certificates for `mqtts://`, as PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who may have signed the broker's certificate; the system's authorities unless given.
    pub ca: Option<PathBuf>,
    /// The gateway's own certificate.
    pub cert: Option<PathBuf>,
    /// The key to `cert`.
    pub key: Option<PathBuf>,
}

/// One entry of `broker.clients`: what a client's own link shows to the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: Option<String>,
    /// The file that holds the password to `username`.
    pub password_file: Option<PathBuf>,
    /// A certificate, as a PEM file.
    pub cert: Option<PathBuf>,
    /// The key to `cert`.
    pub key: Option<PathBuf>,
}

/// Who fires the wills of clients in transparent mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wills {
    /// The gateway, when the client is lost.
    Gateway,
    /// The broker; they fire for everybody when the uplink drops.
    Broker,
}

/// What happens to messages of clients while the broker is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outage {
    /// They are stored and acknowledged; without a store the same as `reject`.
    Queue,
    /// They are refused with `congestion`.
    Reject,
}

/// `broker.outage_queue`: how much `outage: queue` keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutageQueue {
    /// Messages.
    pub messages: u64,
    /// Octets of topics and payloads.
    pub bytes: u64,
    /// Age after which a message is shed.
    pub age: Duration,
}

impl Default for OutageQueue {
    fn default() -> Self {
        Self { messages: 100_000, bytes: 64 << 20, age: Duration::from_secs(7 * 86_400) }
    }
}

/// One entry of `transports`: a place where clients are heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// The name of the port in logs, metrics and the store: 1 to 32 letters, digits, `-` and `_`.
    pub name: String,
    /// What it is.
    pub kind: TransportKind,
    /// Octets in the longest MQTT-SN message that is sent; any length is received. `None`: as many as the radio says.
    pub mtu: Option<usize>,
    /// Overrides `broker.mode`.
    pub mode: Option<Mode>,
    /// Overrides `sessions.retry_interval`.
    pub retry_interval: Option<Duration>,
    /// Overrides `sessions.retry_limit`.
    pub retry_limit: Option<u32>,
    /// Whether clients may come through forwarders (§5.5).
    pub forwarders: bool,
    /// Whether messages of QoS −1 are taken from peers that are not connected (§6.8).
    pub qos_minus_one: bool,
}

impl Transport {
    /// A transport with the default of every option that all kinds share.
    pub fn new(name: impl Into<String>, kind: TransportKind) -> Self {
        Self {
            name: name.into(),
            mtu: kind.mtu_default(),
            kind,
            mode: None,
            retry_interval: None,
            retry_limit: None,
            forwarders: true,
            qos_minus_one: true,
        }
    }
}

/// What a transport is, with the options of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportKind {
    /// `type: udp`
    Udp(Udp),
    /// `type: serial`
    Serial(Serial),
    /// `type: xbee`
    Xbee(Xbee),
    /// `type: dtls`
    Dtls(Dtls),
}

impl TransportKind {
    /// Octets of a message where the file does not say: what fits the usual frame of that medium unfragmented.
    fn mtu_default(&self) -> Option<usize> {
        match self {
            Self::Udp(_) | Self::Dtls(_) => Some(1024),
            Self::Serial(_) => Some(250),
            Self::Xbee(_) => None,
        }
    }
}

/// `type: udp`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Where it listens: 1 to 16 addresses; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The group for ADVERTISE and SEARCHGW (§6.1); `None` joins none.
    pub multicast: Option<SocketAddr>,
    /// The interface on which the group is joined; `None` leaves the choice to the kernel's routes.
    pub multicast_interface: Option<String>,
}

impl Default for Udp {
    fn default() -> Self {
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        Self {
            listen: any.map(|ip| SocketAddr::new(ip, 1884)).into(),
            multicast: None,
            multicast_interface: None,
        }
    }
}

/// `type: serial`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serial {
    /// The line.
    pub line: Line,
    /// How frames are told apart.
    pub framing: Framing,
}

/// A serial device and how it is spoken with; both ends must have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The device, best named by /dev/serial/by-id.
    pub device: PathBuf,
    /// Bits per second, 50 to 20,000,000; the driver may take less.
    pub baud: u32,
    /// Bits of an octet, 5 to 8.
    pub data_bits: u8,
    /// The check bit of each octet.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
    /// How the other side holds up what is sent.
    pub flow: Flow,
}

impl Line {
    /// A line with the default of every option but these.
    pub fn new(device: impl Into<PathBuf>, baud: u32) -> Self {
        Self {
            device: device.into(),
            baud,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            flow: Flow::None,
        }
    }
}

/// The check bit of each octet on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    /// There is none.
    None,
    /// The number of ones is odd.
    Odd,
    /// The number of ones is even.
    Even,
}

/// How the other side of a line holds up what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// It does not.
    None,
    /// By a wire.
    RtsCts,
    /// By the octets 0x11 and 0x13, which cannot be in messages then.
    XonXoff,
}

/// How frames are told apart in a stream of octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Framing {
    /// By the Length field of the message alone.
    #[serde(rename = "length")]
    Length,
    /// SLIP.
    #[serde(rename = "slip")]
    Slip,
    /// SLIP with a CRC.
    #[serde(rename = "slip+crc")]
    SlipCrc,
    /// COBS.
    #[serde(rename = "cobs")]
    Cobs,
    /// COBS with a CRC.
    #[serde(rename = "cobs+crc")]
    CobsCrc,
}

/// `type: xbee`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xbee {
    /// The line; its flow is not by octets.
    pub line: Line,
    /// The API mode of the module.
    pub api: XbeeApi,
}

/// The API mode of an XBee module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XbeeApi {
    /// `AP=1`
    Plain,
    /// `AP=2`
    Escaped,
}

/// `type: dtls`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dtls {
    /// Where it listens: 1 to 16 addresses; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The file of identities and pre-shared keys.
    pub psk_file: PathBuf,
}

/// `topics`: topic ids that were agreed beforehand (§6.7), each 1 to 65,534.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    /// For all clients.
    pub predefined: BTreeMap<u16, TopicName>,
    /// For single clients, before the common ones.
    pub clients: BTreeMap<ClientId, BTreeMap<u16, TopicName>>,
}

/// `sessions`: limits and timers of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// Clients, connected or remembered.
    pub max: usize,
    /// Time a client is remembered after it was last heard of.
    pub expiry: Duration,
    /// Topic ids per client.
    pub max_topics: usize,
    /// Subscriptions per client.
    pub max_subscriptions: usize,
    /// Tretry: time an answer is waited for (§6.13).
    pub retry_interval: Duration,
    /// Nretry: repeats before a client counts as lost (§6.13).
    pub retry_limit: u32,
    /// Messages kept for one client.
    pub queue: Queue,
    /// Octets of messages kept for all clients together.
    pub queue_total: usize,
    /// From where a known client may wake by PINGREQ; CONNECT always takes over.
    pub rebind: Rebind,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            max: 100_000,
            expiry: Duration::from_secs(86_400),
            max_topics: 1000,
            max_subscriptions: 100,
            retry_interval: Duration::from_secs(10),
            retry_limit: 3,
            queue: Queue::default(),
            queue_total: 256 << 20,
            rebind: Rebind::SameIp,
        }
    }
}

/// `sessions.queue`: messages kept for one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Messages.
    pub messages: usize,
    /// Octets of topics and payloads.
    pub bytes: usize,
    /// What goes when a limit is reached.
    pub full: QueueFull,
    /// Whether messages of QoS 0 are kept for a client that sleeps.
    pub qos0: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { messages: 100, bytes: 64 << 10, full: QueueFull::DropOldest, qos0: true }
    }
}

/// What goes when a queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueFull {
    /// The message that waited longest.
    DropOldest,
    /// The message that just came.
    DropNewest,
}

/// From where a known client may wake by PINGREQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rebind {
    /// The very same address and port.
    None,
    /// The same transport and IP address (in IPv6 the same /64), any port.
    SameIp,
    /// Anywhere.
    Any,
}

/// `store`: where state survives a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The directory; [`Place::None`] keeps everything in memory.
    pub path: Place,
    /// The longest time that a write waits for others to join it.
    pub commit: Duration,
}

impl Default for Store {
    fn default() -> Self {
        Self { path: Place::Auto, commit: Duration::from_millis(20) }
    }
}

/// A path that may be left to the gateway, or to nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// `auto`: the gateway chooses.
    #[default]
    Auto,
    /// `none`: there is none.
    None,
    /// This one.
    Path(PathBuf),
}

/// `http`: metrics, health and the live page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http {
    /// Where it listens; `None` does not.
    pub listen: Option<SocketAddr>,
}

/// `control`: the socket through which commands ask the running gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control {
    /// Where it is.
    pub socket: Place,
}

/// `log`: what is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is logged; the environment's `RUST_LOG` overrides it.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Auto }
    }
}

/// How important a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Something stops.
    Error,
    /// A limit bites.
    Warn,
    /// A client or link comes or goes.
    Info,
    /// A decision off the usual path.
    Debug,
    /// Every frame.
    Trace,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// `human` on a terminal, `journal` under journald, else `plain`.
    Auto,
    /// With colours and time.
    Human,
    /// With time, without colours.
    Plain,
    /// Without colours and time, which the journal adds itself.
    Journal,
}
