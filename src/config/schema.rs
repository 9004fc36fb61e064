//! The schema of gateway.yaml: every key, what may stand there, and what this version does not build yet.
//!
//! A key is known because it is asked for here and nowhere else. Defaults stand at the types of [`Config`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::read::{Keys, Leaf, Unfit, built, list, map, section};
use super::value::{
    address, boolean, broker_url, choice, client_id, device, duration, file, group, interface, number, place,
    port_name, size, text, topic, topic_id, whole_seconds,
};
use super::{
    Broker, BrokerUrl, Config, Control, Credentials, Dtls, Flow, Gateway, Http, Line, Log, OutageQueue,
    Place, Queue, Serial, Sessions, Store, Tls, Topics, Transport, TransportKind, Udp, Xbee,
};

/// Transports in a file: far more than a computer has ports for.
const TRANSPORTS_MAX: usize = 64;

/// Addresses of one transport.
const LISTEN_MAX: usize = 16;

/// Brokers that are tried in turn.
const URLS_MAX: usize = 16;

/// Ten years, the longest time that is remembered.
const AGE_MAX: Duration = Duration::from_secs(3650 * 86_400);

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// Reads a whole file.
pub(super) fn config(keys: &mut Keys<'_>) -> Config {
    let default = Config::default();
    let mut taken = Taken::default();
    let transports = list(section(|keys: &mut Keys<'_>| transport(keys, &mut taken)), 1..=TRANSPORTS_MAX);
    keys.get("version", number::<u8>(1..=1));
    Config {
        gateway: keys.section("gateway", gateway),
        broker: keys.section("broker", broker),
        transports: match keys.get("transports", transports) {
            Some(transports) => transports.into_iter().flatten().collect(),
            None => default.transports,
        },
        topics: keys.section("topics", topics),
        sessions: keys.section("sessions", sessions),
        store: keys.section("store", store),
        http: keys.section("http", http),
        control: keys.section("control", control),
        log: keys.section("log", log),
    }
}

fn gateway(keys: &mut Keys<'_>) -> Gateway {
    let default = Gateway::default();
    let advertise_interval = keys.get("advertise_interval", whole_seconds(1..=65_535));
    Gateway {
        id: keys.or("id", number(1..=255), default.id),
        advertise_interval: advertise_interval.unwrap_or(default.advertise_interval),
    }
}

fn broker(keys: &mut Keys<'_>) -> Broker {
    let default = Broker::default();
    keys.need("password_file", "username");
    let urls = urls(keys);
    let are_known = urls.is_some() || !(keys.has("url") || keys.has("urls"));
    let broker = Broker {
        urls: urls.unwrap_or(default.urls),
        mode: keys.or("mode", choice(), default.mode),
        protocol: keys.or("protocol", choice(), default.protocol),
        client_id: keys.or("client_id", client_id().or("auto"), default.client_id),
        username: keys.get("username", text("a user name")),
        password_file: keys.get("password_file", file()),
        tls: keys.section("tls", tls),
        clients: keys.get("clients", map(client_id(), section(credentials))).unwrap_or_default(),
        client_id_template: keys.or("client_id_template", template(), default.client_id_template),
        wills: keys.or("wills", choice(), default.wills),
        keep_alive: keys.or("keep_alive", whole_seconds(1..=65_535), default.keep_alive),
        outage: keys.or("outage", choice(), default.outage),
        outage_queue: keys.section("outage_queue", outage_queue),
        ack_timeout: keys.or("ack_timeout", duration(millis(100)..=secs(3600)), default.ack_timeout),
        grace: keys.or("grace", duration(secs(1)..=secs(86_400)), default.grace),
        listen: keys.or("listen", reachable_address(), default.listen),
    };
    // A url that was wrong has been told, and may have been meant for one of TLS.
    if are_known && !broker.urls.iter().any(|url| matches!(url, BrokerUrl::Mqtts { .. })) {
        refuse_certificates(keys, &broker);
    }
    broker
}

/// Whoever names certificates means to be safe, and is not without a broker that speaks TLS.
fn refuse_certificates(keys: &mut Keys<'_>, broker: &Broker) {
    if broker.tls != Tls::default() {
        keys.wrong("tls", "stands without a url that begins with mqtts://, expected both");
    }
    if let Some((id, _)) = broker.clients.iter().find(|(_, client)| client.cert.is_some()) {
        let text = format!("the cert of {id} stands without a url that begins with mqtts://, expected both");
        keys.wrong("clients", text);
    }
}

fn urls(keys: &mut Keys<'_>) -> Option<Vec<BrokerUrl>> {
    let one = keys.get("url", broker_url());
    let several = keys.get("urls", list(broker_url(), 1..=URLS_MAX));
    if keys.has("url") && keys.has("urls") {
        keys.wrong("urls", "stands beside url, expected one of the two");
    }
    if several.as_ref().is_some_and(|urls| urls.len() > 1 && urls.contains(&BrokerUrl::Embedded)) {
        keys.wrong("urls", "\"embedded\" stands beside others, expected it alone");
    }
    several.or(one.map(|url| vec![url]))
}

/// An address that the gateway itself can connect to: a free port would be known to nobody.
fn reachable_address() -> Leaf<SocketAddr> {
    address().and_then(|address| match address.port() {
        0 => Err(Unfit { because: Some("has no port from 1 to 65535".into()), meant: None }),
        _ => Ok(address),
    })
}

fn template() -> Leaf<String> {
    text("a client id in which %c stands for the client's")
        .and_then(|template| if template.contains("%c") { Ok(template) } else { Err(Unfit::default()) })
}

fn tls(keys: &mut Keys<'_>) -> Tls {
    keys.need("cert", "key");
    keys.need("key", "cert");
    Tls { ca: keys.get("ca", file()), cert: keys.get("cert", file()), key: keys.get("key", file()) }
}

fn credentials(keys: &mut Keys<'_>) -> Credentials {
    keys.need("password_file", "username");
    keys.need("cert", "key");
    keys.need("key", "cert");
    Credentials {
        username: keys.get("username", text("a user name")),
        password_file: keys.get("password_file", file()),
        cert: keys.get("cert", file()),
        key: keys.get("key", file()),
    }
}

fn outage_queue(keys: &mut Keys<'_>) -> OutageQueue {
    let default = OutageQueue::default();
    OutageQueue {
        messages: keys.or("messages", number(1..=1_000_000_000), default.messages),
        bytes: keys.or("bytes", size(KIB..=1024 * GIB), default.bytes),
        age: keys.or("age", duration(secs(1)..=AGE_MAX), default.age),
    }
}

/// What other transports have, and in which line.
#[derive(Default)]
struct Taken {
    names: BTreeMap<String, usize>,
    addresses: BTreeMap<SocketAddr, usize>,
    devices: BTreeMap<PathBuf, usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TransportType {
    Udp,
    Serial,
    Xbee,
    Dtls,
}

fn transport(keys: &mut Keys<'_>, taken: &mut Taken) -> Option<Transport> {
    let name = keys.required("name", port_name());
    if let Some(line) = name.clone().and_then(|name| taken.names.insert(name, keys.line("name"))) {
        keys.wrong("name", format!("the transport in line {line} has the same name, expected another"));
    }
    let kind = keys.required("type", built(choice(), |kind| *kind != TransportType::Dtls));
    let kind = match kind {
        Some(TransportType::Udp) => Some(TransportKind::Udp(udp(keys, taken))),
        Some(TransportType::Serial) => serial(keys, taken).map(TransportKind::Serial),
        Some(TransportType::Xbee) => xbee(keys, taken).map(TransportKind::Xbee),
        Some(TransportType::Dtls) => dtls(keys, taken).map(TransportKind::Dtls),
        None => {
            keys.accept_any_key();
            None
        }
    };
    // The common options are read even where the transport is already lost, for the sake of what is wrong with them.
    let mode = keys.get("mode", choice());
    let mtu = match &kind {
        Some(TransportKind::Xbee(_)) => keys.get("mtu", number(MTU_MIN..=MTU_MAX).or("auto")),
        Some(TransportKind::Serial(_)) => keys.get("mtu", number(MTU_MIN..=SERIAL_MTU_MAX)).map(Some),
        _ => keys.get("mtu", number(MTU_MIN..=MTU_MAX)).map(Some),
    };
    let retry_interval = keys.get("retry_interval", retry_interval());
    let retry_limit = keys.get("retry_limit", retry_limit());
    let forwarders = keys.get("forwarders", boolean());
    let qos_minus_one = keys.get("qos_minus_one", boolean());
    let default = Transport::new(name?, kind?);
    Some(Transport {
        mode,
        mtu: mtu.unwrap_or(default.mtu),
        retry_interval,
        retry_limit,
        forwarders: forwarders.unwrap_or(default.forwarders),
        qos_minus_one: qos_minus_one.unwrap_or(default.qos_minus_one),
        ..default
    })
}

/// Enough for every message of MQTT-SN but those with a text (§5.4).
const MTU_MIN: u64 = 32;

/// What fits a UDP datagram over IPv4.
const MTU_MAX: u64 = 65_507;

/// What the framings of serial lines take.
const SERIAL_MTU_MAX: u64 = 2048;

fn udp(keys: &mut Keys<'_>, taken: &mut Taken) -> Udp {
    keys.need("multicast_interface", "multicast");
    let listen = listen(keys, taken).unwrap_or(Udp::default().listen);
    let multicast = keys.get("multicast", group().or("none")).flatten();
    if multicast.is_some_and(|group| listen.iter().all(|address| address.is_ipv4() != group.is_ipv4())) {
        keys.wrong("multicast", "has another IP version than every listen address, expected one of the same");
    }
    let multicast_interface = keys.get("multicast_interface", interface().or("auto")).flatten();
    Udp { listen, multicast, multicast_interface }
}

fn listen(keys: &mut Keys<'_>, taken: &mut Taken) -> Option<Vec<SocketAddr>> {
    let addresses = keys.get("listen", list(address(), 1..=LISTEN_MAX));
    for address in addresses.iter().flatten().filter(|address| address.port() != 0) {
        if let Some(line) = taken.addresses.insert(*address, keys.line("listen")) {
            keys.wrong(
                "listen",
                format!("{address} is listened on in line {line} too, expected another address"),
            );
        }
    }
    addresses
}

fn serial(keys: &mut Keys<'_>, taken: &mut Taken) -> Option<Serial> {
    let line = line(keys, taken, 115_200);
    let framing = keys.or("framing", choice(), super::Framing::SlipCrc);
    Some(Serial { line: line?, framing })
}

fn xbee(keys: &mut Keys<'_>, taken: &mut Taken) -> Option<Xbee> {
    let line = line(keys, taken, 9600);
    if line.as_ref().is_some_and(|line| line.flow == Flow::XonXoff) {
        keys.wrong("flow", "found \"xon-xoff\", which no such module knows, expected none or rts-cts");
    }
    let api = keys.or("api", choice(), super::XbeeApi::Escaped);
    Some(Xbee { line: line?, api })
}

fn line(keys: &mut Keys<'_>, taken: &mut Taken, baud: u32) -> Option<Line> {
    let device: Option<PathBuf> = keys.required("device", device());
    let other = device.clone().and_then(|device| taken.devices.insert(device, keys.line("device")));
    if let Some(line) = other {
        keys.wrong("device", format!("the transport in line {line} has the same device, expected another"));
    }
    let default = Line::new(device.clone().unwrap_or_default(), baud);
    let line = Line {
        baud: keys.or("baud", number(50..=20_000_000), default.baud),
        data_bits: keys.or("data_bits", number(5..=8), default.data_bits),
        parity: keys.or("parity", choice(), default.parity),
        stop_bits: keys.or("stop_bits", number(1..=2), default.stop_bits),
        flow: keys.or("flow", choice(), default.flow),
        ..default
    };
    device.map(|_| line)
}

fn dtls(keys: &mut Keys<'_>, taken: &mut Taken) -> Option<Dtls> {
    let listen = listen(keys, taken).unwrap_or(vec![SocketAddr::from(([0; 16], 8883))]);
    let psk_file: Option<PathBuf> = keys.required("psk_file", file());
    Some(Dtls { listen, psk_file: psk_file? })
}

fn topics(keys: &mut Keys<'_>) -> Topics {
    let predefined = || map(topic_id(), topic()).distinct();
    Topics {
        predefined: keys.get("predefined", predefined()).unwrap_or_default(),
        clients: keys.get("clients", map(client_id(), predefined())).unwrap_or_default(),
    }
}

fn sessions(keys: &mut Keys<'_>) -> Sessions {
    let default = Sessions::default();
    let queue = keys.section("queue", queue);
    let queue_total = keys.or("queue_total", size(KIB..=GIB), default.queue_total);
    if queue_total < queue.bytes {
        keys.wrong("queue_total", "is less than queue.bytes, expected room for at least one client");
    }
    Sessions {
        max: keys.or("max", number(1..=10_000_000), default.max),
        expiry: keys.or("expiry", duration(secs(1)..=AGE_MAX), default.expiry),
        max_topics: keys.or("max_topics", number(1..=65_534), default.max_topics),
        max_subscriptions: keys.or("max_subscriptions", number(1..=65_535), default.max_subscriptions),
        retry_interval: keys.or("retry_interval", retry_interval(), default.retry_interval),
        retry_limit: keys.or("retry_limit", retry_limit(), default.retry_limit),
        queue,
        queue_total,
        rebind: keys.or("rebind", choice(), default.rebind),
    }
}

fn retry_interval() -> Leaf<Duration> {
    duration(millis(10)..=secs(3600))
}

fn retry_limit() -> Leaf<u32> {
    number(0..=100)
}

fn queue(keys: &mut Keys<'_>) -> Queue {
    let default = Queue::default();
    Queue {
        messages: keys.or("messages", number(1..=1_000_000), default.messages),
        bytes: keys.or("bytes", size(KIB..=GIB), default.bytes),
        full: keys.or("full", choice(), default.full),
        qos0: keys.or("qos0", boolean(), default.qos0),
    }
}

fn store(keys: &mut Keys<'_>) -> Store {
    let default = Store::default();
    Store {
        path: keys.or("path", place(), default.path),
        commit: keys.or("commit", duration(millis(0)..=secs(10)), default.commit),
    }
}

fn http(keys: &mut Keys<'_>) -> Http {
    Http { listen: keys.get("listen", address().or("none")).flatten() }
}

fn control(keys: &mut Keys<'_>) -> Control {
    Control { socket: keys.or("socket", place(), Place::Auto) }
}

fn log(keys: &mut Keys<'_>) -> Log {
    let default = Log::default();
    Log {
        level: keys.or("level", choice(), default.level),
        format: keys.or("format", choice(), default.format),
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
