//! A configuration as the parts of the program take it: [`Config`] in the user's terms becomes [`Setup`] in theirs.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{self, Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use nix::unistd::geteuid;

use crate::admin;
use crate::config::{
    self, Broker, BrokerUrl, Config, Outage, Place, QueueFull, Sessions, Transport, TransportKind,
    XBEE_MTU_LEAST, XbeeApi,
};
use crate::framing::{Framing, xbee};
use crate::gateway::io::{
    BrokerSettings, Endpoint, Mode, OutageQueue, PortSettings, Protocol, QueueFull as Full, QueueSettings,
    Rebind, SessionSettings, Settings, Wills,
};
use crate::link::{Certificates, File, FileError, Files, Pair, Passwords};
use crate::runtime::Setup;
use crate::store;
use crate::topic::ClientId;
use crate::transport::serial::{self, Spoken};
use crate::transport::{self, Flow, Line, Parity, udp};

/// Of the directory of state, where it is one of many.
const NAME: &str = "mqtt-sn-gateway";

/// How long TCP may take to connect: two lost packets on a slow uplink, and not the two minutes of the system.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a right configuration cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A certificate, key or password is of no use.
    #[error(transparent)]
    File(FileError),
    /// `store.path: auto` finds no place.
    #[error(
        "store.path: auto: none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set; name a directory, or none"
    )]
    NoPlace,
    /// Something that [`Config`] refuses already when it is read.
    #[error("{0} is not in this version")]
    NotBuilt(&'static str),
}

impl SetupError {
    /// Whether somebody who may read more would not meet with it.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::File(FileError::Read { source, .. }) => source.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}

/// Everything that keeps a right configuration from being used here: never empty.
///
/// `Display` gives a line for each, with its cause.
#[derive(Debug)]
pub struct SetupErrors(pub Vec<SetupError>);

impl Error for SetupErrors {}

impl fmt::Display for SetupErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
            let mut cause = error.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl SetupErrors {
    /// What is wrong with the files that a configuration names, if anything is.
    pub fn of_files(config: &Config) -> Option<Self> {
        let mut errors = Vec::new();
        certificates(&config.broker, &mut errors);
        passwords(&config.broker, &mut errors);
        (!errors.is_empty()).then_some(Self(errors))
    }
}

impl Setup {
    /// What a gateway with this configuration is started with; reads every file that it names and makes up what is `auto`.
    ///
    /// # Errors
    /// [`SetupErrors`], all of them at once.
    pub fn new(config: Config) -> Result<Self, SetupErrors> {
        let mut errors = Vec::new();
        let certificates = certificates(&config.broker, &mut errors);
        let passwords = passwords(&config.broker, &mut errors);
        let mode = config.broker.mode;
        let ports =
            config.transports.iter().map(|transport| port(transport, mode, &config.sessions)).collect();
        let options =
            config.transports.into_iter().filter_map(|it| noted(options(it), &mut errors)).collect();
        let store = noted(store(&config.store), &mut errors).flatten();
        let control = control(&config.control, store.as_ref().map(|store| store.dir.as_path()));
        let embedded = config.broker.urls.contains(&BrokerUrl::Embedded);
        let embedded_broker = embedded.then_some(config.broker.listen);
        let settings = Settings {
            gw_id: config.gateway.id,
            advertise_interval: config.gateway.advertise_interval,
            ports,
            broker: broker(config.broker),
            predefined: config.topics.predefined,
            client_predefined: config.topics.clients,
            sessions: sessions(config.sessions),
            lasting: store.is_some(),
            seed: random(),
        };
        if errors.is_empty() {
            Ok(Self { settings, ports: options, embedded_broker, certificates, passwords, store, control })
        } else {
            Err(SetupErrors(errors))
        }
    }
}

/// The directory of state that `store.path` means, if any is kept.
///
/// # Errors
/// [`SetupErrors`] with [`SetupError::NoPlace`] alone.
pub fn state_dir(path: &Place) -> Result<Option<PathBuf>, SetupErrors> {
    dir(path).map_err(|error| SetupErrors(vec![error]))
}

fn dir(path: &Place) -> Result<Option<PathBuf>, SetupError> {
    match path {
        Place::None => Ok(None),
        Place::Path(dir) => Ok(Some(dir.clone())),
        Place::Auto => usual_place().map(Some).ok_or(SetupError::NoPlace),
    }
}

/// Where state is kept and how, if it is.
fn store(store: &config::Store) -> Result<Option<store::Options>, SetupError> {
    let options = |dir| store::Options { commit: store.commit, ..store::Options::new(dir) };
    Ok(dir(&store.path)?.map(options))
}

/// Where the commands that ask the running gateway find it, which keeps its state in this directory; `None`: nowhere.
pub fn control(control: &config::Control, store: Option<&Path>) -> Option<admin::Options> {
    let (path, own_dir) = match &control.socket {
        Place::None => return None,
        Place::Path(path) => (path.clone(), false),
        Place::Auto => (usual_socket()?, true),
    };
    let store = store.map_or("none".to_owned(), |dir| real_name(dir).display().to_string());
    Some(admin::Options { path, own_dir, store, patience: admin::PATIENCE })
}

/// The name of a directory that is the same from wherever it is asked, and before it is made.
fn real_name(dir: &Path) -> PathBuf {
    let dir = path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let real = |there: &Path| Some(there.canonicalize().ok()?.join(dir.strip_prefix(there).ok()?));
    // What is not there yet has no links in it. Nothing joined would end the name with a slash.
    dir.ancestors().find_map(real).map_or(dir.clone(), |real| real.components().collect())
}

/// Where systemd wants it, else where root or a user has what lasts as long as the system runs.
fn usual_socket() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = if let Some(dirs) = var("RUNTIME_DIRECTORY") {
        dirs.to_str().and_then(|dirs| dirs.split(':').next()).map_or(dirs.clone(), PathBuf::from)
    } else if geteuid().is_root() {
        PathBuf::from("/run").join(NAME)
    } else {
        var("XDG_RUNTIME_DIR")?.join(NAME)
    };
    Some(dir.join("control.sock"))
}

/// Where systemd wants it, else where root or a user keeps such things.
fn usual_place() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dirs) = var("STATE_DIRECTORY") {
        // There are several if the unit names several.
        return dirs.to_str().map_or(Some(dirs.clone()), |dirs| dirs.split(':').next().map(PathBuf::from));
    }
    if geteuid().is_root() {
        return Some(PathBuf::from("/var/lib").join(NAME));
    }
    let state = var("XDG_STATE_HOME").or_else(|| Some(var("HOME")?.join(".local/state")))?;
    Some(state.join(NAME))
}

/// What there is, unless there is an error, which is noted.
fn noted<T>(result: Result<T, SetupError>, errors: &mut Vec<SetupError>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}

fn port(transport: &Transport, mode: config::Mode, sessions: &Sessions) -> PortSettings {
    PortSettings {
        name: transport.name.clone(),
        mode: match transport.mode.unwrap_or(mode) {
            config::Mode::Aggregating => Mode::Aggregating,
            config::Mode::Transparent => Mode::Transparent,
        },
        // Until the radio has said more.
        mtu: transport.mtu.unwrap_or(XBEE_MTU_LEAST),
        retry_interval: transport.retry_interval.unwrap_or(sessions.retry_interval),
        retry_limit: transport.retry_limit.unwrap_or(sessions.retry_limit),
        forwarders: transport.forwarders,
        qos_minus_one: transport.qos_minus_one,
        advertise: match &transport.kind {
            TransportKind::Udp(udp) => udp.multicast.is_some(),
            TransportKind::Serial(_) | TransportKind::Xbee(_) => true,
            TransportKind::Dtls(_) => false,
        },
    }
}

fn options(transport: Transport) -> Result<transport::Options, SetupError> {
    let Transport { name, kind, mtu, .. } = transport;
    match kind {
        TransportKind::Udp(udp) => {
            let group = udp.multicast.map(|addr| udp::Group { addr, interface: udp.multicast_interface });
            Ok(transport::Options::Udp(udp::Options { name, listen: udp.listen, group }))
        }
        TransportKind::Serial(config::Serial { line: it, framing: framed }) => {
            let speech = Spoken::Framed(framing(framed));
            Ok(transport::Options::Serial(serial::Options { name, line: line(it), speech }))
        }
        TransportKind::Xbee(config::Xbee { line: it, api }) => {
            let mode = match api {
                XbeeApi::Plain => xbee::Mode::Plain,
                XbeeApi::Escaped => xbee::Mode::Escaped,
            };
            let speech = Spoken::Xbee { mode, mtu };
            Ok(transport::Options::Serial(serial::Options { name, line: line(it), speech }))
        }
        TransportKind::Dtls(_) => Err(SetupError::NotBuilt("type: dtls")),
    }
}

/// How frames are told apart on a line.
pub(crate) fn framing(framing: config::Framing) -> Framing {
    match framing {
        config::Framing::Length => Framing::Length,
        config::Framing::Slip => Framing::Slip,
        config::Framing::SlipCrc => Framing::SlipCrc,
        config::Framing::Cobs => Framing::Cobs,
        config::Framing::CobsCrc => Framing::CobsCrc,
    }
}

fn line(line: config::Line) -> Line {
    let config::Line { device, baud, data_bits, parity, stop_bits, flow } = line;
    let parity = match parity {
        config::Parity::None => Parity::None,
        config::Parity::Odd => Parity::Odd,
        config::Parity::Even => Parity::Even,
    };
    let flow = match flow {
        config::Flow::None => Flow::None,
        config::Flow::RtsCts => Flow::RtsCts,
        config::Flow::XonXoff => Flow::XonXoff,
    };
    Line { device, baud, data_bits, parity, stop_bits, flow }
}

fn broker(broker: Broker) -> BrokerSettings {
    let endpoint = |url| match url {
        BrokerUrl::Embedded => reachable(broker.listen),
        BrokerUrl::Mqtt { host, port } => Endpoint { host, port, tls: false },
        BrokerUrl::Mqtts { host, port } => Endpoint { host, port, tls: true },
    };
    let client_id_is_random = broker.client_id.is_none();
    let client_id = broker.client_id.map_or_else(made_up_id, |id| id.as_str().into());
    BrokerSettings {
        outage_queue: (broker.outage == Outage::Queue).then(|| OutageQueue {
            messages: usize::try_from(broker.outage_queue.messages).unwrap_or(usize::MAX),
            bytes: usize::try_from(broker.outage_queue.bytes).unwrap_or(usize::MAX),
            age: broker.outage_queue.age,
        }),
        endpoints: broker.urls.into_iter().map(endpoint).collect(),
        protocol: match broker.protocol {
            config::Protocol::Auto => Protocol::Auto,
            config::Protocol::V311 => Protocol::V311,
            config::Protocol::V5 => Protocol::V5,
        },
        client_id,
        client_id_is_random,
        credentials: credentials(broker.username),
        client_credentials: broker
            .clients
            .into_iter()
            .filter_map(|(id, client)| Some((id, credentials(client.username)?)))
            .collect(),
        client_id_template: broker.client_id_template,
        wills: match broker.wills {
            config::Wills::Gateway => Wills::Gateway,
            config::Wills::Broker => Wills::Broker,
        },
        keep_alive: broker.keep_alive,
        ack_timeout: broker.ack_timeout,
        grace: broker.grace,
        connect_timeout: CONNECT_TIMEOUT,
    }
}

/// The files of passwords, read.
fn passwords(broker: &Broker, errors: &mut Vec<SetupError>) -> Passwords {
    let file = |key: &str, path: &Option<PathBuf>| {
        path.clone().map(|path| File { key: format!("{key}.password_file"), path })
    };
    let client = |(id, client): (&ClientId, &config::Credentials)| {
        client.username.as_ref()?;
        Some((id.clone(), file(&format!("broker.clients.{id}"), &client.password_file)))
    };
    let clients = broker.clients.iter().filter_map(client).collect();
    Passwords::load(file("broker", &broker.password_file), clients).unwrap_or_else(|wrong| {
        errors.extend(wrong.into_iter().map(SetupError::File));
        Passwords::default()
    })
}

/// A user name; its password comes with each connection.
fn credentials(username: Option<String>) -> Option<(String, Bytes)> {
    username.map(|username| (username, Bytes::new()))
}

/// What TLS trusts and shows. Without a broker that speaks it nothing is read.
fn certificates(broker: &Broker, errors: &mut Vec<SetupError>) -> Certificates {
    if !broker.urls.iter().any(|url| matches!(url, BrokerUrl::Mqtts { .. })) {
        return Certificates::default();
    }
    let file = |key: String| move |path: &PathBuf| File { key, path: path.clone() };
    let pair = |key: &str, cert: &Option<PathBuf>, private: &Option<PathBuf>| {
        let cert = cert.as_ref().map(file(format!("{key}.cert")));
        let key = private.as_ref().map(file(format!("{key}.key")));
        cert.zip(key).map(|(cert, key)| Pair { cert, key })
    };
    let client = |(id, client): (&ClientId, &config::Credentials)| {
        Some((id.clone(), pair(&format!("broker.clients.{id}"), &client.cert, &client.key)?))
    };
    let files = Files {
        ca: broker.tls.ca.as_ref().map(file("broker.tls.ca".into())),
        own: pair("broker.tls", &broker.tls.cert, &broker.tls.key),
        clients: broker.clients.iter().filter_map(client).collect(),
    };
    Certificates::load(files).unwrap_or_else(|wrong| {
        errors.extend(wrong.into_iter().map(SetupError::File));
        Certificates::default()
    })
}

/// Where a broker that listens on `addr` is reached from this machine.
fn reachable(addr: SocketAddr) -> Endpoint {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Endpoint { host: ip.to_string(), port: addr.port(), tls: false }
}

/// `mqtt-sn-gateway-<random>`, with the 23 octets that every broker takes (MQTT 3.1.1 §3.1.3.1).
fn made_up_id() -> String {
    let mut random = random();
    let mut id = String::from("mqtt-sn-gateway-");
    while id.len() < 23 {
        id.extend(char::from_digit((random % 36) as u32, 36));
        random /= 36;
    }
    id
}

/// A number that nobody can guess: the keys of a hash map are the operating system's, and a keyed hash is all it shows.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn sessions(sessions: Sessions) -> SessionSettings {
    SessionSettings {
        max: sessions.max,
        expiry: sessions.expiry,
        max_topics: sessions.max_topics,
        max_subscriptions: sessions.max_subscriptions,
        queue: QueueSettings {
            messages: sessions.queue.messages,
            bytes: sessions.queue.bytes,
            full: match sessions.queue.full {
                QueueFull::DropOldest => Full::DropOldest,
                QueueFull::DropNewest => Full::DropNewest,
            },
            qos0: sessions.queue.qos0,
        },
        queue_total: sessions.queue_total,
        rebind: match sessions.rebind {
            config::Rebind::None => Rebind::None,
            config::Rebind::SameIp => Rebind::SameIp,
            config::Rebind::Any => Rebind::Any,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of(yaml: &str) -> Result<Setup, SetupErrors> {
        Setup::new(Config::parse("f", yaml.as_bytes(), &|_| None).unwrap())
    }

    #[test]
    fn the_default_configuration_is_a_setup() {
        let setup = Setup::new(Config::default()).unwrap();
        assert_eq!(setup.embedded_broker, None);
        let settings = setup.settings;
        assert_eq!(
            settings.broker.endpoints,
            [Endpoint { host: "127.0.0.1".into(), port: 1883, tls: false }]
        );
        assert_eq!(settings.broker.credentials, None);
        assert_eq!((settings.ports.len(), setup.ports.len()), (1, 1));
        let port = &settings.ports[0];
        assert_eq!((port.name.as_str(), port.mtu, port.retry_limit), ("lan", 1024, 3));
        assert!(port.advertise && port.forwarders && port.qos_minus_one);
        let transport::Options::Udp(udp) = &setup.ports[0] else { panic!("{:?}", setup.ports) };
        assert_eq!((udp.name.as_str(), udp.listen.len()), ("lan", 2));
        assert_eq!(udp.group.as_ref().unwrap().addr, SocketAddr::from(([225, 1, 1, 1], 1884)));
    }

    #[test]
    fn a_transport_overrides_what_holds_for_all() {
        let setup = made_of(
            "sessions: { retry_interval: 2s, retry_limit: 5 }\ntransports:\n  - { name: a, type: udp, listen: 0.0.0.0:1 }\n  \
             - { name: b, type: udp, listen: 0.0.0.0:2, retry_interval: 1s, retry_limit: 0, mtu: 99 }\n",
        )
        .unwrap();
        let [a, b] = setup.settings.ports.as_slice() else { panic!("{:?}", setup.settings.ports) };
        assert_eq!((a.retry_interval, a.retry_limit, a.mtu), (Duration::from_secs(2), 5, 1024));
        assert_eq!((b.retry_interval, b.retry_limit, b.mtu), (Duration::from_secs(1), 0, 99));
        assert!(!a.advertise, "there is no group to advertise to");
    }

    #[test]
    fn the_embedded_broker_is_reached_where_it_listens() {
        for (listen, host) in [
            ("127.0.0.1:1", "127.0.0.1"),
            ("0.0.0.0:1", "127.0.0.1"),
            ("'[::]:1'", "::1"),
            ("10.0.0.1:1", "10.0.0.1"),
        ] {
            let setup = made_of(&format!("broker: {{ url: embedded, listen: {listen} }}")).unwrap();
            assert_eq!(
                setup.settings.broker.endpoints,
                [Endpoint { host: host.into(), port: 1, tls: false }]
            );
            assert_eq!(setup.embedded_broker.unwrap().port(), 1);
        }
    }

    #[test]
    fn a_made_up_client_id_has_23_octets_and_does_not_come_twice() {
        let id = || made_of("").unwrap().settings.broker;
        let (one, two) = (id(), id());
        assert!(one.client_id_is_random && one.client_id.starts_with("mqtt-sn-gateway-"));
        assert_eq!(one.client_id.len(), 23);
        assert_ne!(one.client_id, two.client_id);
        let given = made_of("broker: { client_id: gw }").unwrap().settings.broker;
        assert_eq!((given.client_id.as_str(), given.client_id_is_random), ("gw", false));
    }

    #[test]
    fn every_password_file_that_cannot_be_read_is_named() {
        let alone = made_of("broker: { username: u }").unwrap().settings.broker.credentials;
        assert_eq!(alone, Some(("u".into(), Bytes::new())));
        let error = made_of(
            "broker: { username: u, password_file: /nowhere/p, clients: { a: { username: b, password_file: /nowhere/q } } }",
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "broker.password_file: cannot read /nowhere/p: No such file or directory (os error 2)\n\
             broker.clients.a.password_file: cannot read /nowhere/q: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_url_says_whether_tls_is_spoken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let yaml =
            format!("broker: {{ urls: [mqtts://a, mqtt://b], tls: {{ ca: {} }} }}", file.path().display());
        // Nobody is in that file; without TLS it is not looked at.
        assert!(made_of(&yaml).unwrap_err().to_string().contains("holds no certificate"));
        let endpoint = |host: &str, port, tls| Endpoint { host: host.into(), port, tls };
        let mut config = Config::default();
        config.broker.urls = vec![
            BrokerUrl::Mqtts { host: "a".into(), port: 8883 },
            BrokerUrl::Mqtt { host: "b".into(), port: 1883 },
        ];
        let settings = broker(config.broker);
        assert_eq!(settings.endpoints, [endpoint("a", 8883, true), endpoint("b", 1883, false)]);
    }

    #[test]
    fn what_is_not_built_is_refused_even_if_it_was_not_read_from_a_file() {
        let dtls = config::Dtls { listen: vec![], psk_file: "/psk".into() };
        let mut config = Config::default();
        config.transports.push(Transport::new("secure", TransportKind::Dtls(dtls)));
        assert_eq!(Setup::new(config).unwrap_err().to_string(), "type: dtls is not in this version");
    }

    #[test]
    fn a_line_is_set_as_the_file_says() {
        let setup = made_of(
            "transports:\n  - { name: r, type: serial, device: /dev/a, baud: 1200, data_bits: 7, parity: odd, stop_bits: 2, flow: \
             rts-cts, framing: cobs }\n  - { name: z, type: xbee, device: /dev/b, api: plain }\n  \
             - { name: y, type: xbee, device: /dev/c, mtu: 50 }\n",
        )
        .unwrap();
        let ports: Vec<_> = setup.settings.ports.iter().map(|port| (port.mtu, port.advertise)).collect();
        assert_eq!(ports, [(250, true), (72, true), (50, true)]);
        let lines: Vec<_> = setup
            .ports
            .into_iter()
            .map(|options| match options {
                transport::Options::Serial(options) => (options.line, options.speech),
                options => panic!("{options:?}"),
            })
            .collect();
        let first = Line {
            device: "/dev/a".into(),
            baud: 1200,
            data_bits: 7,
            parity: Parity::Odd,
            stop_bits: 2,
            flow: Flow::RtsCts,
        };
        let line = |device: &str| Line {
            device: device.into(),
            baud: 9600,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            flow: Flow::None,
        };
        let xbee = |mode, mtu| Spoken::Xbee { mode, mtu };
        let expected = [
            (first, Spoken::Framed(Framing::Cobs)),
            (line("/dev/b"), xbee(xbee::Mode::Plain, None)),
            (line("/dev/c"), xbee(xbee::Mode::Escaped, Some(50))),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn every_framing_has_the_name_that_the_file_knows() {
        for framing in Framing::ALL {
            let yaml =
                format!("transports: [{{ name: r, type: serial, device: /dev/a, framing: {framing} }}]");
            let setup = made_of(&yaml).unwrap();
            let [transport::Options::Serial(options)] = setup.ports.as_slice() else { panic!("{framing}") };
            assert_eq!(options.speech, Spoken::Framed(framing));
        }
    }
}
