//! The shipped file, every key of the schema, and what is refused.

use proptest::prelude::*;

use super::*;

fn none(_: &str) -> Option<String> {
    None
}

/// The configuration and the messages without excerpts.
fn read(text: &str) -> (Config, Vec<String>) {
    let (config, report) = examine(text, &none).unwrap();
    let problems = report.into_problems().into_iter();
    (config, problems.map(|problem| format!("{}: {}", problem.path, problem.text)).collect())
}

#[test]
fn the_shipped_file_is_the_default() {
    assert_eq!(read(SHIPPED), (Config::default(), vec![]));
}

#[test]
fn what_is_missing_has_its_default() {
    for text in ["", "# nothing\n", "---\n", "{}", "version: 1", "broker:\nsessions:\n  queue:\n"] {
        assert_eq!(read(text), (Config::default(), vec![]), "{text}");
    }
    let (config, problems) = read("transports: [{ name: a, type: udp }]");
    assert_eq!(config.transports, [Transport::new("a", TransportKind::Udp(Udp::default()))]);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn the_shipped_file_shows_every_key_of_the_schema() {
    for (file, text) in [("gateway.yaml", uncommented()), ("EVERY_KEY", EVERY_KEY.into())] {
        let (config, report) = examine(&text, &none).unwrap();
        assert_eq!(config.transports.len(), value::variants::<schema::TransportType>().len());
        assert_eq!(config.broker.clients.len(), 1);
        let tree: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        assert!(report.asked().count() > 80);
        for path in report.asked() {
            // What all transports share is shown at the first, and url at the place of urls in one of the files.
            let first = path.replace("[1]", "[0]").replace("[2]", "[0]").replace("[3]", "[0]");
            let stands = [path, &first].into_iter().any(|path| stands(&tree, path));
            assert!(stands || (path, file) == ("broker.url", "EVERY_KEY"), "{path} is missing in {file}");
        }
    }
}

/// Whether there is something at a path such as `a.b[0].c`.
fn stands(tree: &serde_yaml::Value, path: &str) -> bool {
    let steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
    let inner = |value: &serde_yaml::Value, step: &str| match step.parse::<usize>() {
        Ok(index) => value.get(index).cloned(),
        Err(_) => value.get(step).cloned(),
    };
    steps.into_iter().try_fold(tree.clone(), |value, step| inner(&value, step)).is_some()
}

/// The shipped file with the options that are commented out in it.
fn uncommented() -> String {
    let line = |line: &str| match line.trim_start().strip_prefix("# ") {
        Some(rest) if line.starts_with(' ') => {
            format!("{}{rest}\n", " ".repeat(line.len() - line.trim_start().len()))
        }
        _ => format!("{line}\n"),
    };
    SHIPPED.lines().map(line).collect()
}

#[test]
fn what_is_commented_out_in_the_shipped_file_is_right_but_for_this_version() {
    let (config, problems) = read(&uncommented());
    assert_eq!(config.broker.username.as_deref(), Some("gateway"));
    let expected =
        |problem: &&String| problem.contains("not in this version") || problem.contains("beside url");
    assert_eq!(problems.iter().filter(expected).count(), problems.len(), "{problems:#?}");
    assert_eq!(problems.len(), 2, "{problems:#?}");
}

#[test]
fn every_key_sets_what_it_names() {
    let (config, _) = read(EVERY_KEY);
    let path = |path: &str| Some(PathBuf::from(path));
    let text = |text: &str| Some(text.to_string());
    let millis = Duration::from_millis;
    let id = |id: &str| ClientId::new(id).unwrap();
    let topic = |topic: &str| TopicName::new(topic).unwrap();
    let any = |port| SocketAddr::from(([0; 16], port));
    let line = |device: &str| Line {
        data_bits: 7,
        parity: Parity::Even,
        stop_bits: 2,
        flow: Flow::XonXoff,
        ..Line::new(device, 300)
    };
    let udp = Udp {
        listen: vec!["10.0.0.1:1".parse().unwrap()],
        multicast: Some("224.0.0.9:9".parse().unwrap()),
        multicast_interface: text("eth7"),
    };
    let new = Transport::new;
    let expected = Config {
        gateway: Gateway { id: 9, advertise_interval: millis(30_000) },
        broker: Broker {
            urls: vec![
                BrokerUrl::Mqtt { host: "a".into(), port: 1 },
                BrokerUrl::Mqtts { host: "b".into(), port: 2 },
            ],
            mode: Mode::Transparent,
            protocol: Protocol::V5,
            client_id: Some(id("me")),
            username: text("u"),
            password_file: path("/p"),
            tls: Tls { ca: path("/ca"), cert: path("/cert"), key: path("/key") },
            clients: BTreeMap::from([(
                id("c"),
                Credentials {
                    username: text("cu"),
                    password_file: path("/cp"),
                    cert: path("/cc"),
                    key: path("/ck"),
                },
            )]),
            client_id_template: "x-%c".into(),
            wills: Wills::Broker,
            keep_alive: millis(7000),
            outage: Outage::Reject,
            outage_queue: OutageQueue { messages: 5, bytes: 6 << 10, age: millis(7000) },
            ack_timeout: millis(900),
            grace: millis(8000),
            listen: "127.0.0.1:2".parse().unwrap(),
        },
        transports: vec![
            Transport {
                mtu: Some(100),
                mode: Some(Mode::Aggregating),
                retry_interval: Some(millis(50)),
                retry_limit: Some(7),
                forwarders: false,
                qos_minus_one: false,
                ..new("u", TransportKind::Udp(udp))
            },
            Transport {
                mtu: Some(99),
                ..new("s", TransportKind::Serial(Serial { line: line("/dev/x"), framing: Framing::Cobs }))
            },
            new("x", TransportKind::Xbee(Xbee { line: Line::new("/dev/y", 400), api: XbeeApi::Plain })),
            new("d", TransportKind::Dtls(Dtls { listen: vec![any(4)], psk_file: "/psk".into() })),
        ],
        topics: Topics {
            predefined: BTreeMap::from([(1, topic("a")), (65_534, topic("b/c"))]),
            clients: BTreeMap::from([(id("7"), BTreeMap::from([(1, topic("d"))]))]),
        },
        sessions: Sessions {
            max: 3,
            expiry: millis(4000),
            max_topics: 5,
            max_subscriptions: 6,
            retry_interval: millis(7000),
            retry_limit: 8,
            queue: Queue { messages: 9, bytes: 10 << 10, full: QueueFull::DropNewest, qos0: false },
            queue_total: 11 << 10,
            rebind: Rebind::Any,
        },
        store: Store { path: Place::Path("/store".into()), commit: millis(12) },
        http: Http { listen: Some("127.0.0.1:13".parse().unwrap()) },
        control: Control { socket: Place::Path("/socket".into()) },
        log: Log { level: LogLevel::Trace, format: LogFormat::Plain },
    };
    assert_eq!(config, expected);
}

const EVERY_KEY: &str = r#"
version: 1
gateway: { id: 9, advertise_interval: 30s }
broker:
  urls: ["mqtt://a:1", "mqtts://b:2"]
  mode: transparent
  protocol: 5
  client_id: me
  username: u
  password_file: /p
  tls: { ca: /ca, cert: /cert, key: /key }
  clients: { c: { username: cu, password_file: /cp, cert: /cc, key: /ck } }
  client_id_template: "x-%c"
  wills: broker
  keep_alive: 7s
  outage: reject
  outage_queue: { messages: 5, bytes: 6KiB, age: 7s }
  ack_timeout: 900ms
  grace: 8s
  listen: 127.0.0.1:2
transports:
  - name: u
    type: udp
    listen: 10.0.0.1:1
    multicast: 224.0.0.9:9
    multicast_interface: eth7
    mtu: 100
    mode: aggregating
    retry_interval: 50ms
    retry_limit: 7
    forwarders: false
    qos_minus_one: false
  - name: s
    type: serial
    device: /dev/x
    baud: 300
    framing: cobs
    data_bits: 7
    parity: even
    stop_bits: 2
    flow: xon-xoff
    mtu: 99
  - name: x
    type: xbee
    device: /dev/y
    baud: 400
    api: plain
    data_bits: 8
    parity: none
    stop_bits: 1
    flow: none
    mtu: auto
  - { name: d, type: dtls, listen: "[::]:4", psk_file: /psk }
topics:
  predefined: { 1: a, 65534: b/c }
  clients: { 7: { 1: d } }
sessions:
  max: 3
  expiry: 4s
  max_topics: 5
  max_subscriptions: 6
  retry_interval: 7s
  retry_limit: 8
  queue: { messages: 9, bytes: 10KiB, full: drop-newest, qos0: false }
  queue_total: 11KiB
  rebind: any
store: { path: /store, commit: 12ms }
http: { listen: 127.0.0.1:13 }
control: { socket: /socket }
log: { level: trace, format: plain }
"#;

#[test]
fn only_what_is_not_built_yet_is_refused_in_a_file_with_every_key() {
    let (_, problems) = read(EVERY_KEY);
    assert_eq!(problems, ["transports[3].type: \"dtls\" is not in this version"]);
}

#[test]
fn extras_that_are_not_built_yet_are_noted() {
    assert_eq!(Config::default().notes(), [""; 0]);
    let (config, problems) = read("store: { path: none }\nbroker: { outage: reject }");
    assert_eq!((config.notes().len(), problems), (1, vec![]));
    let (config, problems) = read("http: { listen: 127.0.0.1:8090 }\ncontrol: { socket: /run/x }");
    assert_eq!(problems, [""; 0]);
    let notes = config.notes();
    assert!(notes.iter().all(|note| note.contains("not in this version")), "{notes:?}");
    assert_eq!(notes.len(), 1);
    let (config, _) = read("broker: { outage_queue: { messages: 5 } }\nstore: { path: none, commit: 5ms }");
    let without = |note: &&String| note.ends_with("has no effect without a store");
    assert_eq!((config.notes().len(), config.notes().iter().filter(without).count()), (4, 2));
    let text = "broker: { outage: reject, wills: broker, client_id_template: 'gw-%c' }";
    let ends = " has no effect without a transport in transparent mode";
    let (config, _) = read(text);
    assert_eq!(
        config.notes(),
        ["broker.client_id_template:", "broker.wills:"].map(|key| format!("{key}{ends}"))
    );
    let (config, _) = read(&text.replace("wills", "mode: transparent, wills"));
    assert_eq!(config.notes().len(), 1, "{:?}", config.notes());
    assert!(config.notes()[0].starts_with("broker.wills: broker: when the uplink drops"));
}

fn transports(lines: &str) -> (Config, Vec<String>) {
    read(&format!("transports:\n{lines}"))
}

#[test]
fn what_a_line_cannot_be_is_refused() {
    let (_, problems) = transports(
        "  - { name: a, type: serial, device: /dev/a, baud: 49, data_bits: 9, parity: mark, stop_bits: 3, flow: dtr, mtu: auto }\n  \
         - { name: b, type: xbee, device: /dev/a, flow: xon-xoff, mtu: 2 }\n  \
         - { name: c, type: udp, mtu: auto }\n",
    );
    let expected = [
        "transports[0].baud: found 49, expected a number from 50 to 20000000",
        "transports[0].data_bits: found 9, expected a number from 5 to 8",
        "transports[0].parity: found \"mark\", expected none, odd or even",
        "transports[0].stop_bits: found 3, expected a number from 1 to 2",
        "transports[0].flow: found \"dtr\", expected none, rts-cts or xon-xoff",
        "transports[0].mtu: found \"auto\", expected a number from 32 to 2048",
        "transports[1].device: the transport in line 2 has the same device, expected another",
        "transports[1].flow: found \"xon-xoff\", which no such module knows, expected none or rts-cts",
        "transports[1].mtu: found 2, expected a number from 32 to 65507 or auto",
        "transports[2].mtu: found \"auto\", expected a number from 32 to 65507",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn what_a_radio_cannot_carry_is_noted() {
    let line = "  - { name: r, type: serial, device: /dev/a, data_bits: 7, flow: xon-xoff }\n";
    let (config, problems) = transports(line);
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        config.notes(),
        [
            "transport r: data_bits: 7: octets of messages have 8, so nearly all messages are damaged",
            "transport r: flow: xon-xoff: messages with the octets 0x11 or 0x13 in them are damaged; rts-cts has no such octets",
        ]
    );
    let (long, fits) = ("n".repeat(67), "m".repeat(66));
    let text = format!(
        "  - {{ name: z, type: xbee, device: /dev/a }}\n  - {{ name: s, type: serial, device: /dev/b, mtu: 72 }}\n  \
         - {{ name: lan, type: udp, mtu: 32 }}\n  - {{ name: big, type: xbee, device: /dev/c, mtu: 84 }}\n\
         topics: {{ predefined: {{ 7: {long}, 8: {fits} }}, clients: {{ pump: {{ 9: {long}s }} }} }}\n"
    );
    let (config, problems) = transports(&text);
    assert_eq!(problems, [""; 0]);
    let note = |key, id, octets, port, mtu| {
        format!(
            "{key}: the topic of {id} takes a REGISTER of {octets} octets, which transport {port} cannot send (mtu: {mtu}): \
             only clients that know the id get its messages"
        )
    };
    let of_big = "84 if the radio takes that, at least 72";
    let expected = [
        note("topics.predefined", 7, 73, "z", "auto, at least 72"),
        note("topics.predefined", 7, 73, "s", "72"),
        note("topics.predefined", 7, 73, "big", of_big),
        note("topics.clients.pump", 9, 74, "z", "auto, at least 72"),
        note("topics.clients.pump", 9, 74, "s", "72"),
        note("topics.clients.pump", 9, 74, "big", of_big),
    ];
    assert_eq!(config.notes(), expected);
}

#[test]
fn more_than_any_xbee_takes_is_noted() {
    let notes = |mtu: &str| {
        let (config, problems) =
            transports(&format!("  - {{ name: z, type: xbee, device: /dev/a, mtu: {mtu} }}\n"));
        assert_eq!(problems, [""; 0]);
        config.notes()
    };
    assert_eq!(
        notes("257"),
        [
            "transport z: mtu: 257: no XBee takes more than 256 octets; what is longer than the radio takes (NP) is dropped, as with auto"
        ]
    );
    assert!(notes("256").is_empty() && notes("auto").is_empty());
}

#[test]
fn variables_of_the_environment_are_values() {
    let env = |name: &str| (name == "HOST").then(|| "broker.example".into());
    let config = Config::parse("f", b"broker:\n  url: mqtt://${HOST}:1884\n", &env).unwrap();
    assert_eq!(config.broker.urls, [BrokerUrl::Mqtt { host: "broker.example".into(), port: 1884 }]);
}

#[test]
fn what_is_not_text_or_too_long_is_refused() {
    let error = |octets: &[u8]| Config::parse("f", octets, &none).unwrap_err().to_string();
    assert_eq!(
        error(b"a: 1\nb: \xC3\xA9\xFF\n"),
        "f:2:5: the octet 0xFF is not UTF-8, expected text in UTF-8\n    b: é�\n        ^\n"
    );
    assert!(error(&vec![b'#'; (1 << 20) + 1]).starts_with("f:1:1: more than 1048576 octets"));
    assert!(Config::parse("f", &vec![b'#'; 1 << 20], &none).is_ok());
    assert!(
        Config::parse("f", "\u{feff}version: 1".as_bytes(), &none).is_ok(),
        "a byte order mark is no error"
    );
}
proptest! {
    #[test]
    fn any_damage_to_the_shipped_file_is_read_or_refused(
        at in 0..SHIPPED.len(),
        length in 0..40usize,
        put in "[-a-z0-9 \t\n:,#'\"&*!|>%@`?{}\\[\\]$é\u{7}\u{202e}]{0,6}",
    ) {
        let mut octets = SHIPPED.as_bytes().to_vec();
        octets.splice(at..SHIPPED.len().min(at + length), put.bytes());
        if let Err(problems) = Config::parse("f", &octets, &none) {
            let shown = problems.to_string();
            prop_assert!(shown.starts_with("f:"));
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        }
    }
}
