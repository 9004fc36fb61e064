//! TLS with the real program: what it says of files, of brokers that are not to be trusted, and what passes through.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Outcome};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};
use rcgen::DnType;
use tempfile::TempDir;

use crate::app::App;
use crate::pki::{self, Ca, Leaf};
use crate::process::{
    Gateway, Mosquitto, PATIENCE, Process, configuration, free_tcp, gateway_program, wait_until,
};
use crate::sensor::{Sensor, name, options};

#[test]
fn messages_pass_both_ways_in_both_versions_of_mqtt() {
    for protocol in ["5", "3.1.1"] {
        let world = World::new();
        let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
        let more = format!("{}  protocol: {protocol}\n", world.tls());
        let gateway = Gateway::start(&url(&broker), broker.port, &more, None);
        gateway.process.wait_for_line("connected to the broker");
        passes_both_ways(&gateway);
    }
}

#[test]
fn without_a_ca_of_ours_those_of_the_system_are_trusted() {
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let world = World::new();
        let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
        let place = if variable == "SSL_CERT_DIR" { world.path() } else { &world.path().join("ca.pem") };
        let start = |variable: &'static str| {
            let env = |command: &mut Command| {
                command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env(variable, place);
            };
            Gateway::start_with(&url(&broker), broker.port, "", None, env)
        };
        let gateway = start(variable);
        gateway.process.wait_for_line("connected to the broker");
        passes_both_ways(&gateway);
        // This machine's own do not know it.
        let gateway = start("NOTHING");
        gateway
            .process
            .wait_for_line("TLS: the certificate of localhost is not signed by a CA that this system trusts");
    }
}

#[test]
fn a_system_that_trusts_nobody_is_told_at_the_start() {
    let world = World::new();
    let none = world.write("none.pem", "");
    for command in ["check", "run"] {
        let mut program = Command::new(gateway_program());
        let config = configuration(world.path(), "mqtts://localhost", 1, "");
        let flag = if command == "run" { "-c" } else { "--" };
        program.args([command, flag]).arg(config).env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", &none);
        let mut ended = Process::start(&mut program);
        assert_eq!(ended.wait_for_end().code(), Some(78), "{}", ended.printed());
        ended.wait_for_line("mqtt-sn-gateway: broker.tls.ca: missing, and this system trusts no CA");
    }
}

#[test]
fn a_ca_that_did_not_sign_is_told_until_the_file_holds_the_right_one() {
    let (world, other) = (World::new(), Ca::new("another"));
    let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
    let ca = world.write("ca.pem", &other.pem);
    let gateway = Gateway::start(&url(&broker), broker.port, &world.tls(), None);
    gateway.process.wait_for_line(&format!(
        "no connection to the broker broker=localhost:{} reason=TLS: \
         the certificate of localhost is not signed by a CA in {}",
        broker.tls_port,
        ca.display()
    ));
    fs::write(&ca, "rubbish").unwrap();
    gateway.process.wait_for_line("holds no certificate in PEM");
    gateway.process.wait_for_line("what was there before stays in use");
    fs::write(&ca, &world.ca.pem).unwrap();
    gateway.process.wait_for_line("connected to the broker");
    assert_eq!(gateway.process.printed().matches("stays in use").count(), 1, "{}", gateway.process.printed());
    passes_both_ways(&gateway);
}

#[test]
fn an_expired_certificate_is_told_until_the_broker_has_a_new_one() {
    renewed(World::expired, "expired on 2020-02-29; the clock of this machine says ");
}

#[test]
fn a_certificate_of_the_future_is_told_until_the_broker_has_another() {
    renewed(World::not_yet_valid, "is not valid before 2999-12-31; the clock of this machine says ");
}

#[test]
fn a_certificate_for_another_name_is_told_until_the_broker_has_one_for_its_own() {
    let server = |world: &World| world.ca.sign(&["broker.example", "10.0.0.1"]);
    renewed(server, "is for broker.example, 10.0.0.1, not for localhost");
}

/// A gateway says that `reason` of a broker with the certificate `server`, and connects when it has a right one.
#[track_caller]
fn renewed(server: impl FnOnce(&World) -> Leaf, reason: &str) {
    let world = World::new();
    let mut broker = Mosquitto::with_tls(&server(&world), &world.ca.pem, "");
    let mut gateway = Gateway::start(&url(&broker), broker.port, &world.tls(), None);
    gateway.process.wait_for_line(&format!("reason=TLS: the certificate of localhost {reason}"));
    assert!(gateway.process.is_running());
    assert!(!gateway.process.printed().contains("trying MQTT 3.1.1"), "{}", gateway.process.printed());
    broker.renew(&world.ca.sign(&["localhost"]));
    gateway.process.wait_for_line("connected to the broker");
    passes_both_ways(&gateway);
}

#[test]
fn a_broker_that_wants_our_certificate_is_told_until_it_is_the_right_one() {
    let (world, clients) = (World::new(), Ca::new("of clients"));
    let broker =
        Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &clients.pem, "require_certificate true\n");
    let gateway = Gateway::start(&url(&broker), broker.port, &world.tls(), None);
    gateway.process.wait_for_line("reason=TLS: the broker wants a certificate of ours (broker.tls.cert)");
    drop(gateway);
    let wrong = world.ca.sign(&["gw"]);
    world.write("cert.pem", &wrong.cert);
    world.write("key.pem", &wrong.key);
    let more = world.tls_with("    cert: FOLDER/cert.pem\n    key: FOLDER/key.pem\n");
    let gateway = Gateway::start(&url(&broker), broker.port, &more, None);
    gateway.process.wait_for_line(
        "reason=TLS: the broker refuses our certificate: it does not know the CA that signed it",
    );
    assert!(!gateway.process.printed().contains("trying MQTT 3.1.1"), "{}", gateway.process.printed());
    // Whenever it looks in between, the two do not belong to each other.
    let right = clients.sign(&["gw"]);
    world.write("key.pem", &right.key);
    thread::sleep(Duration::from_millis(10));
    world.write("cert.pem", &right.cert);
    gateway.process.wait_for_line("connected to the broker");
    passes_both_ways(&gateway);
}

/// Who its user is Mosquitto takes from the certificate.
#[test]
fn a_client_in_transparent_mode_is_who_its_own_certificate_says() {
    let (world, clients) = (World::new(), Ca::new("of clients"));
    let more = "require_certificate true\nuse_identity_as_username true\n";
    let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &clients.pem, more);
    for (user, ca) in [("gw", &clients), ("pump", &clients), ("stranger", &world.ca)] {
        let leaf = ca.sign_with(&[user], |params| params.distinguished_name.push(DnType::CommonName, user));
        world.write(&format!("{user}.cert"), &leaf.cert);
        world.write(&format!("{user}.key"), &leaf.key);
    }
    let more = world.tls_with(
        "    cert: FOLDER/gw.cert\n    key: FOLDER/gw.key\n  mode: transparent\n  client_id: gateway\n  \
         clients:\n    n1: { cert: FOLDER/pump.cert, key: FOLDER/pump.key }\n    \
         n3: { cert: FOLDER/stranger.cert, key: FOLDER/stranger.key }\n",
    );
    let gateway = Gateway::start(&url(&broker), broker.port, &more, None);
    gateway.process.wait_for_line("connected to the broker");
    passes_both_ways(&gateway);
    // Who has none of its own shows the gateway's.
    let mut other = Sensor::connected(gateway.port, options("n2"));
    assert_eq!(other.publish(name("a/b"), "up", Qos::AtLeastOnce, false), Outcome::Acknowledged);
    for (client, user) in [("gateway", "gw"), ("n1", "pump"), ("n2", "gw")] {
        wait_until("a word of the broker", || {
            let (id, user) = (format!(" as {client} ("), format!("u'{user}')"));
            broker.printed().lines().any(|line| line.contains(&id) && line.contains(&user))
        });
    }
    // A certificate that the broker does not trust keeps out its client alone.
    let mut stranger = Sensor::new(gateway.port, options("n3"));
    stranger.node.connect(Instant::now());
    let code = stranger.wait_for(|event| match event {
        Event::ConnectRefused(code) => Some(*code),
        _ => None,
    });
    assert_eq!(code, ReturnCode::Congestion);
    assert!(!broker.printed().contains(" as n3 ("), "{}", broker.printed());
    assert_eq!(other.publish(name("a/b"), "up", Qos::AtLeastOnce, false), Outcome::Acknowledged);
}

#[test]
fn a_wrong_password_is_told_until_the_broker_takes_it() {
    let world = World::new();
    let (passwords, secret) = (world.path().join("passwords"), world.write("secret", "right\n"));
    let allow = |password: &str| {
        let passwords = passwords.to_str().unwrap();
        let mut allow = Command::new("mosquitto_passwd");
        assert!(allow.args(["-c", "-b", passwords, "gw", password]).status().unwrap().success());
        // Mosquitto reads it as somebody else.
        assert!(
            Command::new("chmod").args(["a+rX", passwords]).arg(world.path()).status().unwrap().success()
        );
    };
    allow("wrong");
    let listener = format!("allow_anonymous false\npassword_file {}\n", passwords.display());
    let mut broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, &listener);
    let more = format!("{}  username: gw\n  password_file: {}\n", world.tls(), secret.display());
    let gateway = Gateway::start(&url(&broker), broker.port, &more, None);
    gateway.process.wait_for_line("refused");
    gateway.process.wait_for_line("not authorized");
    allow("right");
    broker.down();
    broker.up();
    gateway.process.wait_for_line("connected to the broker");
    passes_both_ways(&gateway);
    // A new one is used from the next connection on, and one that is gone stays in use.
    let connections = || gateway.process.printed().matches("connected to the broker").count();
    for change in [Some("new"), None, None] {
        let before = connections();
        broker.down();
        match change {
            Some(password) => {
                allow(password);
                fs::write(&secret, password).unwrap();
            }
            None => drop(fs::remove_file(&secret)),
        }
        broker.up();
        wait_until("a reconnect", || connections() > before);
    }
    let printed = gateway.process.printed();
    assert_eq!(printed.matches("broker.password_file read again").count(), 1, "{printed}");
    assert_eq!(printed.matches("what was there before stays in use").count(), 1, "{printed}");
}

#[test]
fn of_several_brokers_each_says_what_is_wrong_with_it_and_the_right_one_is_found() {
    let (world, other) = (World::new(), Ca::new("another"));
    let ca = &world.ca;
    let broken = [
        (other.sign(&["localhost"]), "", "is not signed by a CA in"),
        (ca.expired(), "", "expired on 2020-02-29"),
        (ca.not_yet_valid(), "", "is not valid before 2999-12-31"),
        (ca.sign(&["other.example"]), "", "is for other.example, not for localhost"),
        (ca.sign(&["localhost"]), "require_certificate true\n", "wants a certificate of ours"),
        (ca.sign(&["localhost"]), "allow_anonymous false\n", "not authorized"),
    ];
    let brokers: Vec<_> =
        broken.iter().map(|(leaf, more, _)| Mosquitto::with_tls(leaf, &ca.pem, more)).collect();
    let right = Mosquitto::with_tls(&ca.sign(&["localhost"]), &ca.pem, "");
    // Nobody there, no TLS there, TLS where none is expected, and nobody who answers.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut urls: Vec<String> = brokers.iter().map(url).collect();
    urls.push(format!("mqtts://localhost:{}", free_tcp()));
    urls.push(format!("mqtts://localhost:{}", right.port));
    urls.push(format!("mqtt://localhost:{}", right.tls_port));
    urls.push(format!("mqtts://localhost:{}", deaf.local_addr().unwrap().port()));
    urls.push(url(&right));
    let gateway = Gateway::start_with(&urls[0], right.port, &world.tls(), None, |command| {
        let config = command.get_args().last().unwrap().to_owned();
        let text = fs::read_to_string(&config).unwrap();
        fs::write(
            &config,
            text.replace(&format!("url: {}", urls[0]), &format!("urls: [{}]", urls.join(", "))),
        )
        .unwrap();
    });
    for (_, _, reason) in &broken {
        gateway.process.wait_for_line(reason);
    }
    gateway.process.wait_for_line("cannot connect: connection refused");
    gateway.process.wait_for_line("closed the connection instead of answering");
    gateway.process.wait_for_line("is it the broker's port for TLS (mqtts://)?");
    gateway.process.wait_for_line("did not finish the handshake within 10 s");
    gateway.process.wait_for_line("connected to the broker");
    passes_both_ways(&gateway);
}

#[test]
fn a_stop_takes_leave_of_the_broker() {
    let world = World::new();
    let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
    let more = format!("{}  client_id: gw\n", world.tls());
    let mut gateway = Gateway::start(&url(&broker), broker.port, &more, None);
    gateway.process.wait_for_line("connected to the broker");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait_for_end().code(), Some(0));
    // What it says of a DISCONNECT.
    broker.wait_for_line("Client gw disconnected.");
}

/// Sensors that publish at the same time, and messages of each.
const SENSORS: usize = 40;
const MESSAGES: usize = 500;

#[test]
fn of_20_000_messages_each_way_none_is_lost() {
    let world = World::new();
    let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
    let gateway = Gateway::start_with(&url(&broker), broker.port, &world.tls(), None, with_long_queues);
    gateway.process.wait_for_line("connected to the broker");
    burst_up(&gateway);
    burst_down(&gateway, broker.port);
}

#[test]
fn of_20_000_messages_each_way_none_is_lost_though_the_connection_is_cut_again_and_again() {
    let world = World::new();
    let broker = Mosquitto::with_tls(&world.ca.sign(&["localhost"]), &world.ca.pem, "");
    let (port, cuts) = cutting_proxy(broker.tls_port);
    // A name of its own for the session at the broker, which has to outlive the cuts.
    let more = format!("{}  client_id: gw\n", world.tls());
    let url = format!("mqtts://localhost:{port}");
    let gateway = Gateway::start_with(&url, broker.port, &more, None, with_long_queues);
    gateway.process.wait_for_line("connected to the broker");
    burst_up(&gateway);
    burst_down(&gateway, broker.port);
    assert!(cuts.load(Ordering::Relaxed) >= 10, "{} cuts", cuts.load(Ordering::Relaxed));
}

/// Room for all messages: Mosquitto 2.0.11 sends 20 more with each acknowledgement, so that they soon wait in the gateway.
fn with_long_queues(command: &mut Command) {
    configured(command, |text| text + "sessions: { queue: { messages: 30000, bytes: 16MiB } }\n");
}

/// Changes the configuration with which a command starts.
fn configured(command: &Command, change: impl Fn(String) -> String) {
    let file = command.get_args().last().unwrap();
    fs::write(file, change(fs::read_to_string(file).unwrap())).unwrap();
}

/// Sensors publish, and an application hears everything at least once.
#[track_caller]
fn burst_up(gateway: &Gateway) {
    let mut app = App::subscribed(gateway.broker_port, "up/#");
    let port = gateway.port;
    let sensors: Vec<_> = (0..SENSORS)
        .map(|index| {
            thread::spawn(move || {
                let mut sensor = Sensor::connected(port, options(&format!("n{index}")));
                for number in 0..MESSAGES {
                    let topic = name(&format!("up/{index}"));
                    loop {
                        match sensor.publish(topic.clone(), &number.to_string(), Qos::AtLeastOnce, false) {
                            Outcome::Acknowledged => break,
                            Outcome::Refused(ReturnCode::Congestion) => {
                                sensor.live(Duration::from_millis(100))
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    let mut missing: BTreeSet<(String, String)> = (0..SENSORS)
        .flat_map(|index| (0..MESSAGES).map(move |number| (format!("up/{index}"), number.to_string())))
        .collect();
    assert_eq!(missing.len(), 20_000);
    while !missing.is_empty() {
        let message = app.message();
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        missing.remove(&(message.topic.as_str().to_string(), payload));
    }
    for sensor in sensors {
        sensor.join().unwrap();
    }
}

/// An application publishes, and a sensor hears everything, in order but for what comes twice.
#[track_caller]
fn burst_down(gateway: &Gateway, broker_port: u16) {
    let mut sensor = Sensor::connected(gateway.port, options("listener"));
    sensor.subscribe("down", Qos::AtLeastOnce);
    let publish = format!("seq 1 20000 | mosquitto_pub -p {broker_port} -t down -q 1 -l");
    let mut publish = Process::start(Command::new("sh").args(["-c", &publish]));
    let mut last = 0;
    while last < 20_000 {
        let message = sensor.message();
        let number: u32 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        assert!(number <= last + 1, "{number} after {last}");
        last = last.max(number);
    }
    assert!(publish.wait_for_end().success());
}

/// Passes connections on to `port`, and cuts one after the other after some octets, in the handshake or later.
fn cutting_proxy(port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    thread::spawn(move || {
        let mut rng = fastrand::Rng::with_seed(5);
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { return };
            let count = counted.load(Ordering::Relaxed);
            // Some end early: within the handshake, with CONNECT, with its answer.
            let len = if count.is_multiple_of(3) { rng.usize(1..4000) } else { rng.usize(4000..400_000) };
            pass_on(near, far, if count < 40 { len } else { usize::MAX });
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (own, cuts)
}

/// Passes on what comes from either side until `len` octets have come.
fn pass_on(near: TcpStream, far: TcpStream, mut len: usize) {
    let mut buffer = [0; 4096];
    for side in [&near, &far] {
        side.set_nodelay(true).unwrap();
        side.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    while len > 0 {
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            let most = buffer.len().min(len);
            match from.read(&mut buffer[..most]) {
                Ok(0) => return,
                Ok(read) if to.write_all(&buffer[..read]).is_ok() => len -= read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                _ => return,
            }
        }
    }
    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
}

#[test]
fn every_file_that_is_of_no_use_is_named_by_check_and_by_run() {
    let world = World::new();
    let (ca, own, other) = (&world.ca, world.ca.sign(&["gw"]), world.ca.sign(&["other"]));
    let cut = &own.cert[..own.cert.len() / 2];
    let der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_locked = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                      -----END RSA PRIVATE KEY-----\n";
    let p521 = openssl(&["ecparam", "-name", "secp521r1", "-genkey", "-noout"]);
    let rsa_1024 = openssl(&["genrsa", "1024"]);
    let unsupported = "FOLDER/key.pem holds a key that is not supported, expected RSA with 2048 to 8192 bits";
    let (is_ca, is_cert, is_key) = ("broker.tls.ca", "broker.tls.cert", "broker.tls.key");
    for (file, text, key, expected) in [
        ("ca.pem", None, is_ca, "cannot read FOLDER/ca.pem: No such file or directory"),
        ("ca.pem", Some(""), is_ca, "FOLDER/ca.pem holds no certificate in PEM"),
        ("ca.pem", Some(ca.key.as_str()), is_ca, "FOLDER/ca.pem holds a private key, expected a certificate"),
        ("ca.pem", Some(cut), is_ca, "FOLDER/ca.pem is broken"),
        ("ca.pem", Some(der), is_ca, "FOLDER/ca.pem holds a certificate that cannot be understood"),
        ("cert.pem", None, is_cert, "cannot read FOLDER/cert.pem: No such file or directory"),
        ("cert.pem", Some("\n"), is_cert, "FOLDER/cert.pem holds no certificate in PEM"),
        ("cert.pem", Some(&own.key), is_cert, "FOLDER/cert.pem holds a private key, expected a certificate"),
        ("cert.pem", Some(der), is_cert, "FOLDER/cert.pem holds a certificate that cannot be understood"),
        ("key.pem", None, is_key, "cannot read FOLDER/key.pem: No such file or directory"),
        ("key.pem", Some("\n"), is_key, "FOLDER/key.pem holds no private key in PEM"),
        ("key.pem", Some(&own.cert), is_key, "FOLDER/key.pem holds a certificate, expected a private key"),
        ("key.pem", Some(&own.key[..60]), is_key, "FOLDER/key.pem is broken"),
        (
            "key.pem",
            Some(locked),
            is_key,
            "FOLDER/key.pem holds a key with a passphrase, expected one without",
        ),
        (
            "key.pem",
            Some(old_locked),
            is_key,
            "FOLDER/key.pem holds a key with a passphrase, expected one without",
        ),
        ("key.pem", Some(&p521), is_key, unsupported),
        ("key.pem", Some(&rsa_1024), is_key, unsupported),
        (
            "key.pem",
            Some(&other.key),
            is_key,
            "the key in FOLDER/key.pem does not belong to the certificate in FOLDER/cert.pem",
        ),
        ("secret", None, "broker.password_file", "cannot read FOLDER/secret"),
        (
            "pump.key",
            Some(&other.key),
            "broker.clients.pump-7.key",
            "the key in FOLDER/pump.key does not belong to the certificate in FOLDER/pump.cert",
        ),
    ] {
        for (name, text) in [
            ("ca.pem", &ca.pem),
            ("cert.pem", &own.cert),
            ("key.pem", &own.key),
            ("secret", &String::from("s")),
            ("pump.cert", &own.cert),
            ("pump.key", &own.key),
        ] {
            world.write(name, text);
        }
        match text {
            Some(text) => drop(world.write(file, text)),
            None => fs::remove_file(world.path().join(file)).unwrap(),
        }
        let expected = format!("mqtt-sn-gateway: {key}: {}", world.named(expected));
        let (code, said) = world.check();
        assert!(code == 78 && said.lines().count() == 1 && said.starts_with(&expected), "{expected}\n{said}");
        let (code, said) = world.run();
        assert!(code == 78 && said.lines().last().is_some_and(|line| line.starts_with(&expected)), "{said}");
    }
}

#[test]
fn all_files_that_are_of_no_use_are_named_at_once() {
    let world = World::new();
    fs::remove_file(world.path().join("ca.pem")).unwrap();
    for name in ["cert.pem", "key.pem", "pump.cert", "pump.key"] {
        world.write(name, "");
    }
    let (code, said) = world.check();
    assert_eq!(code, 78);
    let keys: Vec<&str> = said.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    let expected = ["broker.tls.ca", "broker.tls.cert", "broker.clients.pump-7.cert", "broker.password_file"];
    assert_eq!(keys, expected, "{said}");
}

/// An authority, a folder with its certificate, and a configuration that names files there.
struct World {
    ca: Ca,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let (ca, folder) = (Ca::new("the CA"), TempDir::new().unwrap());
        pki::write(folder.path(), "ca.pem", &ca.pem);
        Self { ca, folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        pki::write(self.path(), name, text)
    }

    fn expired(&self) -> Leaf {
        self.ca.expired()
    }

    fn not_yet_valid(&self) -> Leaf {
        self.ca.not_yet_valid()
    }

    /// `text` with the folder put in.
    fn named(&self, text: &str) -> String {
        text.replace("FOLDER", &self.path().display().to_string())
    }

    /// What goes below `broker:` to trust the authority.
    fn tls(&self) -> String {
        self.tls_with("")
    }

    fn tls_with(&self, more: &str) -> String {
        self.named(&format!("  tls:\n    ca: FOLDER/ca.pem\n{more}"))
    }

    fn check(&self) -> (i32, String) {
        self.ends(&["check", "--"])
    }

    fn run(&self) -> (i32, String) {
        self.ends(&["run", "-c"])
    }

    /// How a command ends for which all files matter, and what it says.
    fn ends(&self, arguments: &[&str]) -> (i32, String) {
        let more = "    cert: FOLDER/cert.pem\n    key: FOLDER/key.pem\n  username: u\n  password_file: FOLDER/secret\n  \
                    clients: { pump-7: { cert: FOLDER/pump.cert, key: FOLDER/pump.key } }\n";
        let config = configuration(self.path(), "mqtts://localhost", 1, &self.tls_with(more));
        let output = Command::new(gateway_program()).args(arguments).arg(config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

fn url(broker: &Mosquitto) -> String {
    format!("mqtts://localhost:{}", broker.tls_port)
}

fn openssl(arguments: &[&str]) -> String {
    String::from_utf8(Command::new("openssl").args(arguments).output().unwrap().stdout).unwrap()
}

#[track_caller]
fn passes_both_ways(gateway: &Gateway) {
    let mut app = App::subscribed(gateway.broker_port, "a/b");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    // The link may be about to come up for good.
    let end = Instant::now() + PATIENCE;
    while sensor.publish(name("a/b"), "up", Qos::ExactlyOnce, false) != Outcome::Acknowledged {
        assert!(Instant::now() < end);
        sensor.live(Duration::from_millis(100));
    }
    app.expect("a/b", "up", QoS::ExactlyOnce, false);
    sensor.subscribe("s/1", Qos::ExactlyOnce);
    app.publish("s/1", "down", QoS::ExactlyOnce, false);
    assert_eq!(sensor.message().payload, "down");
}
