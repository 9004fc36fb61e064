//! What the runner itself is held to: it must see the faults that it is there to find. The gateway here is a thread that answers
//! what it is told to, and the gateway's connection to the broker one that sends what it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe};

use crate::broker::{Broker, Seen};
use crate::combination::Combination;
use crate::runner::World;
use crate::script::{self, File, Mode, Whose};

const FIXTURES: File = ("fixtures.sn", "F0 nothing\n");

/// Answers of a gateway: to the datagram on the left come those on the right, in hexadecimal, separated by commas.
type Answers = &'static [(&'static str, &'static str)];

/// Runs the steps; the error is the report.
fn run(answers: Answers, steps: &'static str) -> Result<(), String> {
    run_beside(answers, steps, |_| {})
}

/// The same, with a connection to the broker that does something before the first step.
fn run_beside(answers: Answers, steps: &'static str, before: impl FnOnce(&mut Link)) -> Result<(), String> {
    let broker = Broker::stub();
    broker.up();
    let mut link = Link::connect(broker.addr());
    broker.name_all();
    before(&mut link);
    run_with(broker, answers, steps, Mode::Aggregating)
}

/// The same with any broker, in any mode.
fn run_with(broker: Broker, answers: Answers, steps: &'static str, mode: Mode) -> Result<(), String> {
    play(&mut World::around(gateway(answers), broker), steps, mode)
}

fn play(world: &mut World, steps: &'static str, mode: Mode) -> Result<(), String> {
    let text = format!("T-001 S R-001 title\n{steps}").leak();
    let rows = script::rows(("x.sn", text), FIXTURES, mode).unwrap();
    world.run(&rows[0])
}

/// A gateway that only knows these answers.
fn gateway(answers: Answers) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            for (_, outs) in answers.iter().filter(|(question, _)| octets(question) == buffer[..count]) {
                for out in outs.split(", ") {
                    socket.send_to(&octets(out), from).unwrap();
                }
            }
        }
    });
    addr
}

fn octets(hex: &str) -> Vec<u8> {
    hex.split(' ').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect()
}

/// The gateway's connection to the broker.
struct Link {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Link {
    fn connect(broker: SocketAddr) -> Self {
        Self::named(broker, "gateway", true).0
    }

    /// And whether the broker had a session.
    fn named(broker: SocketAddr, client: &str, clean: bool) -> (Self, bool) {
        let mut link = Self::open(broker);
        link.send(&Packet::Connect(Connect { clean_session: clean, ..Connect::new(client) }));
        let Some(Packet::ConnAck(ack)) = link.receive() else { panic!("no CONNACK") };
        assert_eq!(ack.code, ConnectReturnCode::Success);
        (link, ack.session_present)
    }

    /// Without CONNECT.
    fn open(broker: SocketAddr) -> Self {
        let stream = TcpStream::connect(broker).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends octets; what comes then, in hexadecimal.
    fn exchange(&mut self, request: &str, answer: &str) {
        self.stream.write_all(&octets(request)).unwrap();
        let mut came = vec![0; octets(answer).len()];
        self.stream.read_exact(&mut came).unwrap();
        let came: Vec<_> = came.iter().map(|octet| format!("{octet:02X}")).collect();
        assert_eq!(came.join(" "), answer);
    }

    fn send(&mut self, packet: &Packet) {
        let mut octets = BytesMut::new();
        packet.write(&mut octets, 10_000).unwrap();
        self.stream.write_all(&octets).unwrap();
    }

    /// None: the connection is closed or nothing comes.
    fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.buffer, 10_000) {
                return Some(packet);
            }
            let mut chunk = [0; 1024];
            let count = self.stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    fn publish(&mut self, topic: &str, qos: QoS, id: u16) {
        let mut publish = Publish::new(topic, qos, "on");
        publish.pkid = id;
        self.send(&Packet::Publish(publish));
    }

    fn subscribe(&mut self, filter: &str) {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 9;
        self.send(&Packet::Subscribe(subscribe));
    }
}

#[test]
fn a_gateway_that_answers_as_the_row_says_passes() {
    let answers: Answers = &[("02 16", "02 17"), ("02 18", "07 0B 12 34 00 01 00, 06 0D 12 34 56 78")];
    run(answers, "C> 02 16\nG> 02 17\nC> 02 18\nG> 07 0B <T1> 00 01 00\nG> 06 0D <T1> <M1>").unwrap();
}

#[test]
fn a_wrong_octet_is_reported_with_both_datagrams_and_the_line() {
    let report = run(&[("02 16", "03 05 01")], "C> 02 16\nG> 03 05 00").unwrap_err();
    for part in ["x.sn:3", "expected at S1: 03 05 00", "03 05 01", "octet 2", "T-001 title"] {
        assert!(report.contains(part), "{part} in {report}");
    }
}

#[test]
fn a_datagram_that_is_too_long_or_too_short_fails() {
    assert!(run(&[("02 16", "02 17 00")], "C> 02 16\nG> 02 17").is_err());
    assert!(run(&[("02 16", "02 17")], "C> 02 16\nG> 02 17 00").is_err());
    assert!(run(&[("02 16", "02 17 00")], "C> 02 16\nG> 02 17 <any>").is_err());
}

#[test]
fn reserved_ids_are_no_choice() {
    for reserved in ["00 00", "FF FF"] {
        let answers: Answers = vec![("02 16", &*reserved.to_owned().leak())].leak();
        assert!(run(answers, "C> 02 16\nG> <T1>").is_err(), "{reserved}");
    }
    assert!(run(&[("02 16", "00 00")], "C> 02 16\nG> <M1>").is_err());
    run(&[("02 16", "FF FF")], "C> 02 16\nG> <M1>").unwrap();
    run(&[("02 16", "00 00")], "C> 02 16\nG> <any>").unwrap();
}

#[test]
fn a_name_is_one_value_in_a_row() {
    let answers: Answers = &[("02 16", "00 01, 00 02")];
    let report = run(answers, "C> 02 16\nG> <T1>\nG> <T1>").unwrap_err();
    assert!(report.contains("<T1> is 00 02 here and was 00 01"), "{report}");
    run(answers, "C> 02 16\nG> <T1>\nG> <T2>\n<T2> != <T1>").unwrap();
    assert!(run(&[("02 16", "00 01, 00 01")], "C> 02 16\nG> <T1>\nG> <T2>\n<T2> != <T1>").is_err());
}

#[test]
fn what_a_name_stands_for_can_be_sent_back() {
    run(&[("02 16", "12 34"), ("12 34", "02 17")], "C> 02 16\nG> <T1>\nC> <T1>\nG> 02 17").unwrap();
}

#[test]
fn a_datagram_breaks_the_quiet() {
    let report = run(&[("02 16", "02 17")], "C> 02 16\nquiet 0.1 s: really").unwrap_err();
    assert!(report.contains("not quiet: S1 received 02 17"), "{report}");
}

#[test]
fn a_silence_is_a_quiet_that_began_with_the_last_datagram_of_a_client() {
    let began = Instant::now();
    run(&[("02 16", "02 17")], "C> 02 16\nG> 02 17\nsilent 0.6 s").unwrap();
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(run(&[("02 16", "02 17")], "C> 02 16\nsilent 0.2 s").is_err());
}

#[test]
fn a_datagram_that_nothing_asks_for_fails_the_row() {
    let report = run(&[("02 16", "02 17, 02 18")], "C> 02 16\nG> 02 17\nwait 0.1 s").unwrap_err();
    assert!(report.contains("left over: S1 received 02 18"), "{report}");
}

#[test]
fn an_optional_datagram_may_come_or_not_and_nothing_else_in_its_place() {
    let steps = "C> 02 16\nG?> 02 18\nC?> 02 01\nG> 02 17";
    run(&[("02 16", "02 17")], steps).unwrap();
    run(&[("02 16", "02 18"), ("02 01", "02 17")], steps).unwrap();
    assert!(run(&[("02 16", "02 19, 02 17")], steps).is_err());
}

#[test]
fn datagrams_in_free_order_must_all_come() {
    let steps = "C> 02 16\nG> 02 17\nG~> 02 18";
    run(&[("02 16", "02 17, 02 18")], steps).unwrap();
    run(&[("02 16", "02 18, 02 17")], steps).unwrap();
    assert!(run(&[("02 16", "02 18, 02 18")], steps).is_err());
}

#[test]
fn what_is_only_tolerated_fails_and_is_called_that() {
    let report = run(&[("02 16", "02 18")], "C> 02 16\nG> 02 17\nP> 02 18").unwrap_err();
    assert!(report.contains("tolerates"), "{report}");
    let report = run(&[("02 16", "02 19")], "C> 02 16\nG> 02 17\nP> 02 18").unwrap_err();
    assert!(!report.contains("tolerates"), "{report}");
}

#[test]
fn a_source_only_hears_what_is_for_it() {
    let answers: Answers = &[("02 16", "02 17")];
    run(answers, "C@S2> 02 16\nG@S2> 02 17").unwrap();
    assert!(run(answers, "C@S2> 02 16\nquiet 0.1 s").is_err());
}

#[test]
fn a_publication_must_have_the_topic_payload_and_qos_that_the_row_names() {
    let publish = |link: &mut Link| link.publish("a/b", QoS::AtLeastOnce, 1);
    let with = |steps| run_beside(&[], steps, publish);
    with("=>B PUBLISH a/b \"on\" QoS 1 retain 0 once").unwrap();
    with("=>B PUBLISH a/b").unwrap();
    for steps in [
        "=>B PUBLISH a/c",
        "=>B PUBLISH a/b \"off\"",
        "=>B PUBLISH a/b QoS 0",
        "=>B PUBLISH a/b retain 1",
        "wait 0.2 s",
        "quiet 0.2 s",
        "=>B no PUBLISH",
        "=>B nothing",
    ] {
        assert!(with(steps).is_err(), "{steps}");
    }
}

#[test]
fn once_is_not_twice() {
    let twice = |link: &mut Link| (1..=2).for_each(|id| link.publish("a/b", QoS::AtLeastOnce, id));
    assert!(run_beside(&[], "=>B PUBLISH a/b once", twice).is_err());
    run_beside(&[], "=>B PUBLISH a/b\n=>B PUBLISH a/b", twice).unwrap();
}

#[test]
fn an_answer_is_held_back_until_the_row_gives_it() {
    let broker = Broker::stub();
    let addr = {
        broker.up();
        broker.addr()
    };
    let mut link = Link::connect(addr);
    let gateway = Whose(Whose::GATEWAY.into());
    broker.withhold(&gateway, script::Ack::Publish);
    link.publish("a/b", QoS::AtLeastOnce, 7);
    link.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(link.receive(), None);
    broker.answer(&gateway, script::Ack::Publish, 0, Duration::from_secs(1)).unwrap();
    assert_eq!(link.receive(), Some(Packet::PubAck(PubAck::new(7))));
    assert!(
        broker.answer(&gateway, script::Ack::Publish, 0, Duration::ZERO).is_err(),
        "there is no second one"
    );
}

#[test]
fn a_broker_that_is_down_refuses_and_comes_back_on_its_port() {
    let broker = Broker::stub();
    assert!(TcpStream::connect(broker.addr()).is_err(), "not up yet");
    for _ in 0..3 {
        broker.up();
        let mut link = Link::connect(broker.addr());
        let gone = thread::spawn(move || link.receive());
        broker.down();
        assert_eq!(gone.join().unwrap(), None, "the connection is closed");
        assert!(TcpStream::connect(broker.addr()).is_err(), "down");
    }
}

#[test]
fn subscribers_get_what_matches_and_what_is_retained() {
    let message =
        |topic: &str| script::Message { topic: topic.into(), payload: b"on".to_vec(), qos: 2, retain: false };
    let broker = Broker::stub();
    broker.up();
    broker.hold(message("s/0"), true).unwrap();
    broker.hold(message("s/9"), false).unwrap();
    let mut link = Link::connect(broker.addr());
    assert_eq!(broker.publish(&message("s/1"), script::Delivery::Subscribers), Ok(Some(0)));
    link.subscribe("s/+");
    let mut topic = || match link.receive() {
        Some(Packet::Publish(publish)) => format!("{} {:?}", publish.topic, publish.qos),
        other => format!("{other:?}"),
    };
    assert_eq!(topic(), "s/0 AtLeastOnce");
    assert!(topic().contains("SubAck"));
    assert_eq!(topic(), "s/9 AtLeastOnce");
    assert_eq!(broker.publish(&message("t"), script::Delivery::Subscribers), Ok(Some(0)));
    assert_eq!(broker.publish(&message("s/1"), script::Delivery::Subscribers), Ok(Some(1)));
    assert_eq!(topic(), "s/1 AtLeastOnce");
    assert_eq!(broker.publish(&message("t"), script::Delivery::Regardless), Ok(Some(1)));
    assert_eq!(topic(), "t ExactlyOnce");
}

fn whose(client: &str) -> Whose {
    Whose(client.into())
}

fn message(topic: &str, qos: u8) -> script::Message {
    script::Message { topic: topic.into(), payload: b"on".to_vec(), qos, retain: false }
}

#[test]
fn connections_are_told_apart_by_the_client_id() {
    let steps = |own: &'static str, lines: &'static str| {
        let broker = Broker::stub();
        broker.up();
        let mut gateway = Link::connect(broker.addr());
        let (mut client, _) = Link::named(broker.addr(), "c1", true);
        broker.name_all();
        let link = if own == "gateway" { &mut gateway } else { &mut client };
        link.publish("a/b", QoS::AtMostOnce, 0);
        run_with(broker, &[], lines, Mode::Transparent)
    };
    steps("c1", "=>B PUBLISH a/b").unwrap();
    steps("c1", "=>B@c1 PUBLISH a/b").unwrap();
    steps("gateway", "=>B@gateway PUBLISH a/b").unwrap();
    thread::scope(|scope| {
        for (own, lines) in [
            ("gateway", "=>B PUBLISH a/b"),
            ("c1", "=>B@gateway PUBLISH a/b"),
            ("c1", "=>B@c2 PUBLISH a/b"),
            ("gateway", "=>B no PUBLISH"),
            ("c1", "=>B nothing"),
        ] {
            scope.spawn(move || assert!(steps(own, lines).is_err(), "{own}: {lines}"));
        }
    });
}

#[test]
fn what_the_broker_does_to_one_connection_leaves_the_others() {
    let broker = Broker::stub();
    broker.up();
    let mut gateway = Link::connect(broker.addr());
    let (mut client, _) = Link::named(broker.addr(), "c1", true);
    broker.withhold(&whose("c1"), script::Ack::Publish);
    client.publish("a/b", QoS::AtLeastOnce, 7);
    gateway.publish("a/b", QoS::AtLeastOnce, 7);
    assert_eq!(gateway.receive(), Some(Packet::PubAck(PubAck::new(7))));
    assert!(broker.answer(&whose("gateway"), script::Ack::Publish, 0, Duration::ZERO).is_err());
    broker.answer(&whose("c1"), script::Ack::Publish, 0, Duration::from_secs(1)).unwrap();
    assert_eq!(client.receive(), Some(Packet::PubAck(PubAck::new(7))));
    let gone = thread::spawn(move || client.receive());
    broker.close(&whose("c1"));
    assert_eq!(gone.join().unwrap(), None);
    gateway.publish("a/b", QoS::AtLeastOnce, 8);
    assert_eq!(gateway.receive(), Some(Packet::PubAck(PubAck::new(8))));
}

#[test]
fn one_connection_can_be_refused() {
    let broker = Broker::stub();
    broker.up();
    let _gateway = Link::connect(broker.addr());
    broker.withhold(&whose("c1"), script::Ack::Connect);
    let mut client = Link::open(broker.addr());
    client.send(&Packet::Connect(Connect::new("c1")));
    broker.answer(&whose("c1"), script::Ack::Connect, 5, Duration::from_secs(1)).unwrap();
    client.exchange("C0 00", "20 02 00 05");
    assert_eq!(client.receive(), None);
}

#[test]
fn a_kept_session_gets_what_came_meanwhile_and_a_clean_one_nothing() {
    let broker = Broker::stub();
    broker.up();
    for clean in [false, true] {
        let (mut client, present) = Link::named(broker.addr(), "c1", clean);
        assert!(!present || clean);
        client.subscribe("s/1");
        assert!(matches!(client.receive(), Some(Packet::SubAck(_))));
        client.send(&Packet::Disconnect);
        assert_eq!(client.receive(), None);
        let reached = broker.publish(&message("s/1", 1), script::Delivery::Subscribers);
        assert_eq!(reached, Ok(Some(usize::from(!clean))));
        let (mut client, present) = Link::named(broker.addr(), "c1", false);
        assert_eq!(present, !clean);
        if !clean {
            assert!(matches!(client.receive(), Some(Packet::Publish(publish)) if publish.topic == "s/1"));
        }
        let (mut other, _) = Link::named(broker.addr(), "c1", true);
        assert_eq!(client.receive(), None, "taken over");
        other.publish("a/b", QoS::AtLeastOnce, 1);
        assert!(matches!(other.receive(), Some(Packet::PubAck(_))));
    }
}

#[test]
fn the_stub_speaks_mqtt_5() {
    let broker = Broker::stub();
    broker.up();
    let mut link = Link::open(broker.addr());
    // Clean start, no expiry; identifier 5 for s/#; then a message at QoS 1, and the end.
    link.exchange("10 0F 00 04 4D 51 54 54 05 02 00 3C 00 00 02 63 31", "20 03 00 00 00");
    link.exchange("82 0B 00 01 02 0B 05 00 03 73 2F 23 01", "90 04 00 01 00 01");
    assert_eq!(broker.publish(&message("s/1", 1), script::Delivery::Subscribers), Ok(Some(1)));
    link.exchange("40 02 00 01", "32 0C 00 03 73 2F 31 00 01 02 0B 05 6F 6E");
    link.exchange("32 08 00 01 61 00 09 00 68 69", "40 02 00 09");
    link.exchange("A2 08 00 02 00 00 03 73 2F 23", "B0 04 00 02 00 00");
    run_with(
        broker,
        &[],
        "=>B CONNECT c1 clean 1 no will\n=>B SUBSCRIBE s/# QoS 1\n=>B PUBACK\n=>B PUBLISH a \"hi\" QoS 1\n=>B UNSUBSCRIBE s/#",
        Mode::Transparent,
    )
    .unwrap();
}

#[test]
fn a_clean_start_is_no_clean_session_if_the_session_is_kept() {
    for (connect, clean) in [
        ("10 0F 00 04 4D 51 54 54 05 02 00 3C 00 00 02 63 31", Some('1')),
        ("10 14 00 04 4D 51 54 54 05 00 00 3C 05 11 00 00 00 3C 00 02 63 31", Some('0')),
        ("10 14 00 04 4D 51 54 54 05 02 00 3C 05 11 00 00 00 3C 00 02 63 31", None),
        ("10 0F 00 04 4D 51 54 54 05 00 00 3C 00 00 02 63 31", None),
    ] {
        for steps in ["=>B CONNECT c1 clean 0", "=>B CONNECT c1 clean 1"] {
            let broker = Broker::stub();
            broker.up();
            let mut link = Link::open(broker.addr());
            link.exchange(connect, "20 03 00 00 00");
            let held = run_with(broker, &[], steps, Mode::Transparent).is_ok();
            assert_eq!(held, clean.is_some_and(|clean| steps.ends_with(clean)), "{connect}: {steps}");
        }
    }
}

#[test]
fn an_old_stub_refuses_mqtt_5_in_its_own_words() {
    let broker = Broker::new(Combination::named("aggregating_auto_stub").unwrap()).unwrap();
    broker.up();
    let mut link = Link::open(broker.addr());
    link.exchange("10 0F 00 04 4D 51 54 54 05 02 00 3C 00 00 02 63 31", "20 02 00 01");
    assert_eq!(link.receive(), None);
    Link::connect(broker.addr());
}

/// Real brokers behind the record of the test.
fn real() -> impl Iterator<Item = Broker> {
    ["mosquitto", "aggregating_v311_embedded"].into_iter().map(|name| {
        let broker = Broker::new(Combination::named(name).unwrap()).unwrap();
        broker.up();
        broker
    })
}

#[test]
fn a_real_broker_answers_and_hands_out_what_the_row_asks_for() {
    for broker in real() {
        let mut link = Link::connect(broker.addr());
        broker.name_all();
        link.subscribe("s/1");
        link.publish("a/b", QoS::AtLeastOnce, 3);
        let answers: Answers = &[("02 16", "02 17")];
        let steps = "=>B SUBSCRIBE s/1 QoS 1\nB> SUBACK 1\n=>B PUBLISH a/b \"on\" QoS 1 once\nB> PUBACK\n\
                     B> PUBLISH s/1 \"up\" QoS 2\nC> 02 16\nG> 02 17";
        let mut world = World::around(gateway(answers), broker);
        play(&mut world, steps, Mode::Aggregating).unwrap();
        let came: Vec<_> = std::iter::from_fn(|| link.receive()).take(3).collect();
        assert!(
            matches!(&came[..], [Packet::SubAck(_), Packet::PubAck(_), Packet::Publish(publish)]
                if publish.payload == "up" && publish.qos == QoS::AtLeastOnce),
            "{came:?}"
        );
    }
}

#[test]
fn what_a_real_broker_does_otherwise_fails_the_row() {
    let fails = |broker: Broker, steps: &'static str| {
        let mut link = Link::connect(broker.addr());
        broker.name_all();
        link.subscribe("s/1");
        link.publish("a/b", QoS::AtLeastOnce, 3);
        if !steps.contains("B> ") {
            link.publish("$x/y", QoS::AtMostOnce, 0);
            let is_there = |seen: &mut [Seen]| {
                let mut packets = seen.iter().map(|seen| &seen.packet);
                packets
                    .any(|packet| matches!(packet, Packet::Publish(other) if other.topic == "$x/y"))
                    .then_some(())
            };
            broker.wait_for(Duration::from_secs(5), is_there).unwrap();
        }
        assert!(run_with(broker, &[], steps, Mode::Aggregating).is_err(), "{steps}");
    };
    thread::scope(|scope| {
        for steps in [
            "=>B PUBLISH a/b",                       // $x/y is left
            "=>B PUBLISH a/b\n=>B PUBLISH $x/y",     // not handed out to who subscribes to everything
            "=>B PUBLISH a/b\nB> PUBACK\nB> PUBACK", // there is one
            "=>B PUBLISH a/b\nB> SUBACK 2",          // it grants what is asked for
        ] {
            real().for_each(|broker| drop(scope.spawn(move || fails(broker, steps))));
        }
    });
}

#[test]
fn a_real_broker_is_away_for_the_gateway_when_the_row_says_so() {
    for broker in real() {
        let mut link = Link::connect(broker.addr());
        let gone = thread::spawn(move || link.receive());
        broker.down();
        assert_eq!(gone.join().unwrap(), None);
        assert!(TcpStream::connect(broker.addr()).is_err(), "down");
        broker.publish(&message("s/1", 1), script::Delivery::Subscribers).unwrap();
        broker.up();
        Link::connect(broker.addr());
    }
}
