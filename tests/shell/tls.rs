//! TLS with a real Mosquitto, and with servers that do what Mosquitto does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Endpoint, LinkCommand, LinkEvent, LinkFailure, LinkId};
use mqtt_sn_gateway::link::{Certificates, File, Files, Links, Pair, Report};
use mqtt_sn_gateway::topic::ClientId;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ProtocolVersion, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

use crate::apart::{apart, hosts, ip};
use crate::pki::{self, Ca, Leaf};
use crate::process::Mosquitto;
use crate::soon;

/// CONNECT of MQTT 3.1.1, and what answers it.
const CONNECT: &[u8] = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02gw";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

#[tokio::test]
async fn a_broker_whose_ca_is_named_is_spoken_to() {
    let pki = Pki::new();
    for name in ["localhost", "127.0.0.1"] {
        let broker = Mosquitto::with_tls(&pki.ca.sign(&[name]), &pki.ca.pem, "");
        let mut shell = Shell::new(pki.files());
        shell.connect(name, broker.tls_port).await;
        shell.speaks_mqtt().await;
    }
}

#[tokio::test]
async fn a_broker_that_is_not_to_be_trusted_is_told_why() {
    let pki = Pki::new();
    let (ca, other) = (&pki.ca, Ca::new("another"));
    let itself = Leaf { cert: ca.pem.clone(), key: ca.key.clone() };
    let today = today();
    for (server, expected) in [
        (
            other.sign(&["localhost"]),
            format!("the certificate of localhost is not signed by a CA in {}", pki.path("ca.pem").display()),
        ),
        (
            ca.expired(),
            format!("the certificate of localhost expired on 2020-02-29; the clock of this machine says {today}"),
        ),
        (
            ca.not_yet_valid(),
            format!("the certificate of localhost is not valid before 2999-12-31; the clock of this machine says {today}"),
        ),
        (
            ca.sign(&["broker.example", "10.9.8.7"]),
            "the certificate of localhost is for broker.example, 10.9.8.7, not for localhost".into(),
        ),
        (
            ca.sign(&[]),
            "the certificate of localhost is for nobody (it has no subjectAltName), not for localhost".into(),
        ),
        (
            ca.sign_with(&["localhost"], |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            }),
            "the certificate of localhost is not meant for a server".into(),
        ),
        (
            itself,
            "the certificate of localhost is that of a CA itself, expected one of its own that the CA has signed".into(),
        ),
    ] {
        let broker = Mosquitto::with_tls(&server, &ca.pem, "");
        let mut shell = Shell::new(pki.files());
        assert_eq!(shell.refused("localhost", broker.tls_port).await, expected);
    }
}

#[tokio::test]
async fn an_address_is_compared_with_the_addresses_of_the_certificate() {
    let pki = Pki::new();
    let broker = Mosquitto::with_tls(&pki.ca.sign(&["localhost"]), &pki.ca.pem, "");
    let mut shell = Shell::new(pki.files());
    assert_eq!(
        shell.refused("127.0.0.1", broker.tls_port).await,
        "the certificate of 127.0.0.1 is for localhost, not for 127.0.0.1"
    );
}

#[tokio::test]
async fn a_broker_that_wants_a_certificate_says_so_before_or_after_the_handshake() {
    let pki = Pki::new();
    let (server, other) = (pki.ca.sign(&["localhost"]), Ca::new("another"));
    let wants = "the broker wants a certificate of ours (broker.tls.cert)";
    let may_want = "the broker refuses the handshake: it may want a certificate of ours (broker.tls.cert)";
    let unknown = "the broker refuses our certificate: it does not know the CA that signed it";
    let expired = "the broker refuses our certificate: by its clock it is expired or not yet valid";
    for (is_old, without) in [(false, wants), (true, may_want)] {
        let mut broker = Mosquitto::with_tls(&server, &pki.ca.pem, "require_certificate true\n");
        if is_old {
            broker.limit_to_tls_1_2();
        }
        for (shown, expected) in [
            (None, Some(without)),
            (Some(other.sign(&["gw"])), Some(unknown)),
            (Some(pki.ca.expired()), Some(expired)),
            (Some(pki.ca.sign(&["gw"])), None),
        ] {
            let own = shown.map(|leaf| pki.pair("own", &leaf));
            let mut shell = Shell::new(Files { own, ..pki.files() });
            match expected {
                Some(expected) => assert_eq!(shell.refused("localhost", broker.tls_port).await, expected),
                None => {
                    shell.connect("localhost", broker.tls_port).await;
                    shell.speaks_mqtt().await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_shows_its_own_certificate_and_the_others_that_of_the_gateway() {
    let pki = Pki::new();
    let other = Ca::new("another");
    // It takes nobody but the client.
    let broker = Mosquitto::with_tls(&pki.ca.sign(&["localhost"]), &other.pem, "require_certificate true\n");
    let id = |id: &str| ClientId::new(id).unwrap();
    let files = Files {
        own: Some(pki.pair("own", &pki.ca.sign(&["gw"]))),
        clients: [(id("pump-7"), pki.pair("pump", &other.sign(&["pump-7"])))].into(),
        ..pki.files()
    };
    for (client, is_taken) in [(None, false), (Some(id("pump-8")), false), (Some(id("pump-7")), true)] {
        let mut shell = Shell::new(files.clone());
        shell.dial("localhost", broker.tls_port, client);
        if is_taken {
            assert_eq!(shell.event().await, LinkEvent::Connected);
            shell.speaks_mqtt().await;
        } else {
            let refused = "the broker refuses our certificate: it does not know the CA that signed it";
            assert_eq!(shell.failure().await, refused);
        }
    }
}

#[tokio::test]
async fn certificates_are_read_again_before_each_handshake_and_broken_ones_are_not_taken() {
    let pki = Pki::new();
    let (newer, client_ca) = (Ca::new("the newer CA"), Ca::new("of clients"));
    let require = "require_certificate true\n";
    let mut broker = Mosquitto::with_tls(&pki.ca.sign(&["localhost"]), &client_ca.pem, require);
    let own = pki.pair("own", &pki.ca.sign(&["gw"]));
    let mut shell = Shell::new(Files { own: Some(own), ..pki.files() });
    let unknown = "the broker refuses our certificate: it does not know the CA that signed it";
    assert_eq!(shell.refused("localhost", broker.tls_port).await, unknown);
    // What the gateway shows is renewed, first the certificate, then the key to it.
    let right = client_ca.sign(&["gw"]);
    pki::write(pki.folder.path(), "own.cert", &right.cert);
    assert_eq!(shell.refused("localhost", broker.tls_port).await, unknown);
    pki::write(pki.folder.path(), "own.key", &right.key);
    shell.connect("localhost", broker.tls_port).await;
    shell.speaks_mqtt().await;
    // The broker is renewed, with another CA.
    broker.renew(&newer.sign(&["localhost"]));
    let refused = shell.refused("localhost", broker.tls_port).await;
    assert!(refused.contains("is not signed by a CA in"), "{refused}");
    for broken in ["", "-----BEGIN CERTIFICATE-----\n####\n-----END CERTIFICATE-----\n", &newer.key] {
        pki::write(pki.folder.path(), "ca.pem", broken);
        assert_eq!(shell.refused("localhost", broker.tls_port).await, refused, "the old one stays in force");
    }
    pki::write(pki.folder.path(), "ca.pem", format!("{}{}", pki.ca.pem, newer.pem));
    shell.connect("localhost", broker.tls_port).await;
    shell.speaks_mqtt().await;
    // Nothing is there any more, and everything was read.
    for name in ["ca.pem", "own.cert", "own.key"] {
        std::fs::remove_file(pki.path(name)).unwrap();
    }
    shell.connect("localhost", broker.tls_port).await;
    shell.speaks_mqtt().await;
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told() {
    let pki = Pki::new();
    let mut shell = Shell::new(pki.files());
    let broker = Mosquitto::start();
    let closed =
        |port| format!("localhost closed the connection instead of answering: is {port} its port for TLS?");
    assert_eq!(shell.refused("localhost", broker.port).await, closed(broker.port));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        stream.read_to_end(&mut Vec::new())
    });
    assert_eq!(shell.refused("localhost", port).await, closed(port));
    let refused = shell.refused("localhost", port).await;
    assert_eq!(refused, format!("what answers on port {port} of localhost is not TLS"));
    let _ = server.join().unwrap();
}

#[tokio::test]
async fn a_broker_that_speaks_tls_where_we_do_not_is_recognised() {
    let pki = Pki::new();
    let mut shell = Shell::new(pki.files());
    // Mosquitto closes, others send an alert.
    let broker = Mosquitto::with_tls(&pki.ca.sign(&["localhost"]), &pki.ca.pem, "");
    shell.dial_without_tls(broker.tls_port);
    assert_eq!(shell.event().await, LinkEvent::Connected);
    shell.command(LinkCommand::Write(Bytes::from_static(CONNECT)));
    assert_eq!(shell.event().await, LinkEvent::Drained);
    let silent = LinkFailure::Io("closed without a word: is it the broker's port for TLS (mqtts://)?".into());
    assert_eq!(shell.event().await, LinkEvent::Closed(silent));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.accept().unwrap().0.write_all(&[0x15, 3, 1, 0, 2, 2, 70]));
    shell.dial_without_tls(port);
    assert_eq!(shell.failure().await, "the broker speaks TLS on this port, so its url begins with mqtts://");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_given_up_in_time() {
    let pki = Pki::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut shell = Shell::within(Duration::from_millis(300), pki.files());
    let refused = shell.refused("localhost", listener.local_addr().unwrap().port()).await;
    assert_eq!(refused, "localhost did not finish the handshake within 1 s");
}

#[tokio::test]
async fn octets_that_come_with_the_end_of_the_handshake_are_heard() {
    // In TLS 1.2 the broker is the last to speak: here its Finished and its first words are one segment, after which the
    // socket has nothing more to say.
    let pki = Pki::new();
    let (port, server) = serve(&pki, &TLS12, |mut session, mut tcp| {
        while session.is_handshaking() {
            if session.wants_write() {
                session.write_tls(&mut tcp).unwrap();
            } else {
                session.read_tls(&mut tcp).unwrap();
                session.process_new_packets().unwrap();
            }
        }
        session.writer().write_all(b"first words").unwrap();
        let mut octets = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut octets).unwrap();
        }
        tcp.write_all(&octets).unwrap();
        tcp.read_to_end(&mut Vec::new())
    });
    let mut shell = Shell::new(pki.files());
    shell.connect("localhost", port).await;
    assert_eq!(shell.event().await, LinkEvent::Bytes(Bytes::from_static(b"first words")));
    shell.links.close().await;
    let _ = server.join().unwrap();
}

#[tokio::test]
async fn megabytes_go_both_ways_at_once_whatever_the_pieces() {
    const LEN: usize = 8 << 20;
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let (port, server) = serve(&pki, version, |mut session, mut tcp| {
            let mut rng = fastrand::Rng::with_seed(7);
            let mut reading = tcp.try_clone().unwrap();
            session.complete_io(&mut tcp).unwrap();
            session.set_buffer_limit(None);
            let (mut sent, mut heard, mut octets) = (0, Vec::new(), Vec::new());
            tcp.set_nonblocking(true).unwrap();
            while sent < LEN || heard.len() < LEN || !octets.is_empty() {
                if octets.is_empty() && sent < LEN {
                    let len = rng.usize(1..=40_000).min(LEN - sent);
                    session.writer().write_all(&pattern(sent, len)).unwrap();
                    sent += len;
                    // New keys in the middle, which have to be answered.
                    if rng.u8(..) < 8 && version.version == ProtocolVersion::TLSv1_3 {
                        session.refresh_traffic_keys().unwrap();
                    }
                }
                while session.wants_write() {
                    session.write_tls(&mut octets).unwrap();
                }
                // Records are cut anywhere.
                let piece = rng.usize(1..=octets.len().clamp(1, 20_000)).min(octets.len());
                if let Ok(written) = tcp.write(&octets[..piece]) {
                    octets.drain(..written);
                }
                while session.read_tls(&mut reading).is_ok_and(|len| len > 0) {
                    session.process_new_packets().unwrap();
                    let _ = session.reader().read_to_end(&mut heard);
                }
            }
            heard
        });
        let mut shell = Shell::new(pki.files());
        shell.connect("localhost", port).await;
        let (mut sent, mut heard, mut drained) = (0, Vec::new(), true);
        while heard.len() < LEN || sent < LEN || !drained {
            if drained && sent < LEN {
                let len = fastrand::usize(1..=200_000).min(LEN - sent);
                shell.command(LinkCommand::Write(pattern(sent, len).into()));
                (sent, drained) = (sent + len, false);
            }
            match shell.event().await {
                LinkEvent::Bytes(octets) => heard.extend_from_slice(&octets),
                LinkEvent::Drained => drained = true,
                event => panic!("{event:?}"),
            }
        }
        assert!(heard == pattern(0, LEN));
        assert!(server.join().unwrap() == pattern(0, LEN));
    }
}

#[tokio::test]
async fn a_core_that_does_not_listen_makes_a_broker_with_tls_wait() {
    const LEN: usize = 64 << 20;
    let pki = Pki::new();
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let (port, server) = serve(&pki, &TLS13, move |mut session, mut tcp| {
        session.complete_io(&mut tcp).unwrap();
        for at in (0..LEN).step_by(16 << 10) {
            session.writer().write_all(&pattern(at, 16 << 10)).unwrap();
            session.complete_io(&mut tcp).unwrap();
            counted.store(at, Ordering::Relaxed);
        }
    });
    let mut shell = Shell::new(pki.files());
    shell.connect("localhost", port).await;
    // Until the broker has not got any further for a while.
    let (mut last, mut idle) = (0, 0);
    while idle < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = written.load(Ordering::Relaxed);
        (last, idle) = if now == last && now > 0 { (now, idle + 1) } else { (now, 0) };
    }
    assert!(last < LEN / 2, "{last} octets are in memory");
    assert!(shell.events.len() <= 128);
    // All that is told later, in order.
    let mut heard = 0;
    while heard < LEN {
        let LinkEvent::Bytes(octets) = shell.event().await else { panic!("at {heard}") };
        assert!(octets.len() <= 20_000 && octets == pattern(heard, octets.len()), "at {heard}");
        heard += octets.len();
    }
    server.join().unwrap();
}

#[tokio::test]
async fn an_idle_connection_takes_no_time_of_the_processor() {
    let pki = Pki::new();
    let broker = Mosquitto::with_tls(&pki.ca.sign(&["localhost"]), &pki.ca.pem, "");
    let mut shell = Shell::new(pki.files());
    shell.connect("localhost", broker.tls_port).await;
    shell.speaks_mqtt().await;
    let before = ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A loop that spins gets far more, even of a machine that it shares with ten others.
    let used = ticks() - before;
    assert!(used < 4, "{used} of 100");
}

#[tokio::test]
async fn a_close_says_what_was_written_and_goodbye_of_tls() {
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let (port, server) = serve(&pki, version, |mut session, mut tcp| {
            session.complete_io(&mut tcp).unwrap();
            // Octets that the link has not read when it closes.
            session.writer().write_all(&[1; 30_000]).unwrap();
            let _ = session.complete_io(&mut tcp);
            let mut heard = Vec::new();
            // Without a goodbye this would be an error.
            let end = StreamOwned::new(session, tcp).read_to_end(&mut heard);
            (end.map_err(|error| error.kind()), heard)
        });
        let mut shell = Shell::new(pki.files());
        shell.connect("localhost", port).await;
        shell.command(LinkCommand::Write(pattern(0, 5 << 20).into()));
        shell.command(LinkCommand::Close);
        soon("the end", shell.links.close()).await;
        let (end, heard) = server.join().unwrap();
        assert_eq!(end, Ok(5 << 20));
        assert!(heard == pattern(0, 5 << 20));
    }
}

#[tokio::test]
async fn a_broker_that_closes_is_heard_to_the_end_with_or_without_a_goodbye() {
    let pki = Pki::new();
    for says_goodbye in [true, false] {
        let (port, server) = serve(&pki, &TLS13, move |mut session, mut tcp| {
            session.complete_io(&mut tcp).unwrap();
            session.writer().write_all(b"the last words").unwrap();
            if says_goodbye {
                session.send_close_notify();
            }
            session.complete_io(&mut tcp).unwrap();
            tcp.shutdown(std::net::Shutdown::Write).unwrap();
            tcp.read_to_end(&mut Vec::new())
        });
        let mut shell = Shell::new(pki.files());
        shell.connect("localhost", port).await;
        assert_eq!(shell.event().await, LinkEvent::Bytes(Bytes::from_static(b"the last words")));
        assert_eq!(shell.event().await, LinkEvent::Closed(LinkFailure::Closed));
        let _ = server.join().unwrap();
    }
}

#[tokio::test]
async fn what_is_not_tls_any_more_ends_the_connection() {
    let pki = Pki::new();
    let (port, server) = serve(&pki, &TLS13, |mut session, mut tcp| {
        session.complete_io(&mut tcp).unwrap();
        // A record whose content is not what it was.
        session.writer().write_all(b"words").unwrap();
        let mut octets = Vec::new();
        session.write_tls(&mut octets).unwrap();
        *octets.last_mut().unwrap() ^= 1;
        tcp.write_all(&octets).unwrap();
        tcp.read_to_end(&mut Vec::new())
    });
    let mut shell = Shell::new(pki.files());
    shell.connect("localhost", port).await;
    assert_eq!(
        shell.event().await,
        LinkEvent::Closed(LinkFailure::Tls("cannot decrypt peer's message".into()))
    );
    let _ = server.join().unwrap();
}

#[tokio::test]
async fn every_address_of_a_name_is_tried_until_one_is_trusted() {
    if !apart("tls::every_address_of_a_name_is_tried_until_one_is_trusted") {
        return;
    }
    ip("link set lo up");
    hosts("127.0.0.3 broker.test\n127.0.0.4 broker.test\n127.0.0.5 broker.test\n");
    let pki = Pki::new();
    let other = Ca::new("another");
    let serve_at = |ip: &str, ca: &Ca| {
        let listener = std::net::TcpListener::bind((ip, 8883)).unwrap();
        serve_on(listener, &ca.sign(&["broker.test"]), &TLS13, |mut session, mut tcp| {
            let _ = session.complete_io(&mut tcp);
            tcp.read_to_end(&mut Vec::new())
        });
    };
    serve_at("127.0.0.4", &other);
    let mut shell = Shell::new(pki.files());
    let untrusted = shell.refused("broker.test", 8883).await;
    // What the one says that answers, and not that the others do not.
    assert!(untrusted.starts_with("the certificate of broker.test is not signed"), "{untrusted}");
    assert!(!untrusted.contains("refused"), "{untrusted}");
    serve_at("127.0.0.4", &other);
    serve_at("127.0.0.5", &pki.ca);
    shell.connect("broker.test", 8883).await;
}

/// Octets `at` to `at + len` of an endless text in which no part is like its neighbours.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| (i % 251) as u8 ^ (i >> 13) as u8).collect()
}

/// Processor time of this process so far, in hundredths of a second.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].iter().map(|&i| fields[i].parse::<u64>().unwrap()).sum()
}

/// Serves one connection as "localhost" in a thread of its own.
fn serve<T: Send + 'static>(
    pki: &Pki,
    version: &'static SupportedProtocolVersion,
    talk: impl FnOnce(ServerConnection, TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, serve_on(listener, &pki.ca.sign(&["localhost"]), version, talk))
}

fn serve_on<T: Send + 'static>(
    listener: std::net::TcpListener,
    leaf: &Leaf,
    version: &'static SupportedProtocolVersion,
    talk: impl FnOnce(ServerConnection, TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let chain = vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let session = ServerConnection::new(Arc::new(config)).unwrap();
    thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        drop(listener);
        talk(session, tcp)
    })
}

struct Pki {
    ca: Ca,
    folder: TempDir,
}

impl Pki {
    /// An authority, and its certificate in a file.
    fn new() -> Self {
        let (ca, folder) = (Ca::new("the CA"), TempDir::new().unwrap());
        pki::write(folder.path(), "ca.pem", &ca.pem);
        Self { ca, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Files {
        Files { ca: Some(file("broker.tls.ca", &self.path("ca.pem"))), ..Files::default() }
    }

    fn pair(&self, name: &str, leaf: &Leaf) -> Pair {
        let write = |kind: &str, text: &str| pki::write(self.folder.path(), &format!("{name}.{kind}"), text);
        Pair {
            cert: file("broker.tls.cert", &write("cert", &leaf.cert)),
            key: file("broker.tls.key", &write("key", &leaf.key)),
        }
    }
}

fn file(key: &str, path: &Path) -> File {
    File { key: key.into(), path: path.into() }
}

/// As `date` prints it.
fn today() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%F"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// One link and what it tells.
struct Shell {
    links: Links,
    events: mpsc::Receiver<Report>,
    link: LinkId,
}

impl Shell {
    fn new(files: Files) -> Self {
        Self::within(Duration::from_secs(20), files)
    }

    fn within(time: Duration, files: Files) -> Self {
        let (links, events) = Links::new(time, Certificates::load(files).unwrap());
        Self { links, events, link: LinkId(0) }
    }

    /// Begins a new connection.
    fn dial(&mut self, host: &str, port: u16, client: Option<ClientId>) {
        self.link.0 += 1;
        let endpoint = Endpoint { host: host.into(), port, tls: true };
        self.command(LinkCommand::Connect { endpoint, client });
    }

    fn dial_without_tls(&mut self, port: u16) {
        self.link.0 += 1;
        let endpoint = Endpoint { host: "localhost".into(), port, tls: false };
        self.command(LinkCommand::Connect { endpoint, client: None });
    }

    async fn connect(&mut self, host: &str, port: u16) {
        self.dial(host, port, None);
        assert_eq!(self.event().await, LinkEvent::Connected);
    }

    /// Why TLS ends, whether before or after the handshake.
    async fn refused(&mut self, host: &str, port: u16) -> String {
        self.dial(host, port, None);
        self.failure().await
    }

    async fn failure(&mut self) -> String {
        loop {
            match self.event().await {
                // As the core does, which does not know that it will be refused.
                LinkEvent::Connected => self.command(LinkCommand::Write(Bytes::from_static(CONNECT))),
                LinkEvent::Drained => {}
                LinkEvent::Closed(LinkFailure::Tls(reason)) => return reason,
                event => panic!("{event:?}"),
            }
        }
    }

    async fn speaks_mqtt(&mut self) {
        self.command(LinkCommand::Write(Bytes::from_static(CONNECT)));
        assert_eq!(self.event().await, LinkEvent::Drained);
        assert_eq!(self.event().await, LinkEvent::Bytes(Bytes::from_static(CONNACK)));
    }

    fn command(&mut self, command: LinkCommand) {
        self.links.command(self.link, command);
    }

    async fn event(&mut self) -> LinkEvent {
        loop {
            let (id, event) = soon("an event", self.events.recv()).await.unwrap();
            // Those of earlier connections do not matter.
            if id == self.link {
                return event;
            }
        }
    }
}
