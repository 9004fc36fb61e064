//! What a configuration means to the parts: [`Config`] in the user's terms becomes [`Setup`] in theirs.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{BrokerUrl, Config, QueueFull, Sessions, Transport, TransportKind};
use crate::gateway::io::{
    self as core, BrokerSettings, Endpoint, PortSettings, QueueSettings, SessionSettings, Settings,
};
use crate::runtime::Setup;
use crate::transport::{self, udp};

/// How long a broker may take to accept a TCP connection, and then a CONNECT: longer than a packet lost on a 4G uplink
/// takes to be sent again, twice.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a valid configuration cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The password file.
    #[error("broker.password_file: cannot read {path}")]
    Password {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that [`Config`] refuses when it is read.
    #[error("{0} is not in this version")]
    NotBuilt(String),
}

impl Setup {
    /// Reads the password, makes up what is `auto`, and leaves the rest to [`crate::runtime`].
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        let mut ports = Vec::new();
        let mut port_settings = Vec::new();
        for transport in &config.transports {
            let TransportKind::Udp(udp) = &transport.kind else {
                return Err(SetupError::NotBuilt(format!("transport {}", transport.name)));
            };
            let interface = udp.multicast_interface.clone();
            let group = udp.multicast.map(|addr| udp::Group { addr, interface });
            port_settings.push(port(transport, &config.sessions, group.is_some()));
            let (name, listen) = (transport.name.clone(), udp.listen.clone());
            ports.push(transport::Options::Udp(udp::Options { name, listen, group }));
        }
        let embedded = config.broker.urls.contains(&BrokerUrl::Embedded);
        let settings = Settings {
            gw_id: config.gateway.id,
            advertise_interval: config.gateway.advertise_interval,
            ports: port_settings,
            broker: broker(config)?,
            predefined: config.topics.predefined.clone(),
            client_predefined: config.topics.clients.clone(),
            sessions: sessions(&config.sessions),
            seed: random(),
        };
        Ok(Self { settings, ports, embedded_broker: embedded.then_some(config.broker.listen) })
    }
}

fn port(transport: &Transport, sessions: &Sessions, advertise: bool) -> PortSettings {
    PortSettings {
        name: transport.name.clone(),
        mtu: transport.mtu,
        retry_interval: transport.retry_interval.unwrap_or(sessions.retry_interval),
        retry_limit: transport.retry_limit.unwrap_or(sessions.retry_limit),
        forwarders: transport.forwarders,
        qos_minus_one: transport.qos_minus_one,
        advertise,
    }
}

fn broker(config: &Config) -> Result<BrokerSettings, SetupError> {
    let broker = &config.broker;
    let mut endpoints = Vec::new();
    for url in &broker.urls {
        endpoints.push(match url {
            BrokerUrl::Embedded => loopback(broker.listen),
            BrokerUrl::Mqtt { host, port } => Endpoint { host: host.clone(), port: *port },
            BrokerUrl::Mqtts { .. } => return Err(SetupError::NotBuilt(url.to_string())),
        });
    }
    let password = match &broker.password_file {
        Some(path) => {
            let read = std::fs::read(path);
            let octets = read.map_err(|source| SetupError::Password { path: path.clone(), source })?;
            Bytes::copy_from_slice(octets.trim_ascii_end())
        }
        None => Bytes::new(),
    };
    let made_up = || format!("mqtt-sn-gateway-{:016x}", random());
    Ok(BrokerSettings {
        endpoints,
        client_id: broker.client_id.as_ref().map_or_else(made_up, |id| id.as_str().into()),
        client_id_is_random: broker.client_id.is_none(),
        credentials: broker.username.clone().map(|username| (username, password)),
        keep_alive: broker.keep_alive,
        ack_timeout: broker.ack_timeout,
        connect_timeout: CONNECT_TIMEOUT,
    })
}

/// Where the embedded broker is reached from this process.
fn loopback(listen: SocketAddr) -> Endpoint {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Endpoint { host: ip.to_string(), port: listen.port() }
}

fn sessions(sessions: &Sessions) -> SessionSettings {
    let queue = &sessions.queue;
    SessionSettings {
        max: sessions.max,
        expiry: sessions.expiry,
        max_topics: sessions.max_topics,
        max_subscriptions: sessions.max_subscriptions,
        queue: QueueSettings {
            messages: queue.messages,
            bytes: queue.bytes,
            full: match queue.full {
                QueueFull::DropOldest => core::QueueFull::DropOldest,
                QueueFull::DropNewest => core::QueueFull::DropNewest,
            },
            qos0: queue.qos0,
        },
        queue_total: sessions.queue_total,
    }
}

/// 64 bits nobody can guess: the keys of a hasher come from the operating system.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
