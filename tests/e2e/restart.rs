//! The gateway ends, by `kill -9` or in order, and starts again: sensors do not notice.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::gateway::io::{Address, Mode};
use mqtt_sn_gateway::gateway::record::{
    FilterRow, GatewayRow, Lsn, MessageId, PeerRow, Record, Row, SessionRow, Standing, SubscriptionRow,
    TopicRow, TopicStanding, WaitingRow,
};
use mqtt_sn_gateway::mqtt::{self, QoS};
use mqtt_sn_gateway::node::{Event, Options, Outcome, Will};
use mqtt_sn_gateway::store::{self, Store};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{Qos, TopicRef};
use tempfile::TempDir;

use crate::apart::skip;
use crate::app::App;
use crate::process::{
    Beside, Gateway, Mosquitto, Process, configuration, free_udp, gateway_program, wait_until,
};
use crate::proxy::Proxy;
use crate::sensor::{Sensor, name, options};

/// Sessions in the store of a gateway whose start is timed, unless `RESTART_SESSIONS` says more.
const SESSIONS: u32 = 5_000;

#[test]
fn a_sleeper_wakes_with_pingreq_and_gets_what_came_before_kill_9() {
    for broker in [Beside::Mosquitto, Beside::Embedded] {
        let mut gateway = Gateway::beside(broker);
        let mut app = App::connected(gateway.broker_port);
        let mut sleeper = persistent(&gateway, "sleeper");
        sleeper.subscribe("s/#", Qos::ExactlyOnce);
        assert_eq!(sleeper.publish(name("a/b"), "up", Qos::AtLeastOnce, false), Outcome::Acknowledged);
        sleeper.node.sleep(Instant::now(), Duration::from_secs(60));
        sleeper.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
        let mut witness = persistent(&gateway, "witness");
        witness.subscribe("s/#", Qos::AtLeastOnce);
        let messages = [
            ("s/1", "a", QoS::AtLeastOnce),
            ("s/2", "b", QoS::ExactlyOnce),
            ("s/1", "c", QoS::ExactlyOnce),
            ("s/3", "d", QoS::AtLeastOnce),
        ];
        for (topic, payload, qos) in messages {
            app.publish(topic, payload, qos, false);
            witness.message();
        }
        // What was put down before this is safe when this is acknowledged.
        assert_eq!(witness.publish(name("w"), "seen", Qos::ExactlyOnce, false), Outcome::Acknowledged);

        gateway.restart();
        sleeper.node.wake(Instant::now());
        for (topic, payload, _) in messages {
            let message = sleeper.message();
            assert_eq!((message.topic, &message.payload[..]), (name(topic), payload.as_bytes()));
        }
        let drained = sleeper.wait_for(|event| match event {
            Event::Drained { messages } => Some(*messages),
            _ => None,
        });
        assert_eq!(drained, 4);
        assert_eq!(sleeper.node.counters().connections, 1, "no CONNECT was needed");
        assert!(!gateway.process.printed().contains("client connected"), "{}", gateway.process.printed());
    }
}

#[test]
fn active_sensors_go_on_after_kill_9_with_their_topic_ids_and_the_broker_with_its_session() {
    let mut gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::subscribed(gateway.broker_port, "up/#");
    let mut sensor = persistent(&gateway, "n1");
    sensor.subscribe("s/1", Qos::AtLeastOnce);
    let publish = |sensor: &mut Sensor, app: &mut App, topic: &str, payload: &str| {
        assert_eq!(sensor.publish(name(topic), payload, Qos::AtLeastOnce, false), Outcome::Acknowledged);
        app.expect(topic, payload, QoS::AtLeastOnce, false);
    };
    publish(&mut sensor, &mut app, "up/1", "a");
    publish(&mut sensor, &mut app, "up/2", "b");
    for round in ["c", "d"] {
        gateway.process.signal("KILL");
        gateway.process.wait_for_end();
        // The broker keeps this: its session is resumed.
        app.publish("s/1", round, QoS::ExactlyOnce, false);
        gateway.start_again();
        gateway.process.wait_for_line("session_present=true");
        assert_eq!(sensor.message().payload, round);
        sensor.live(Duration::ZERO); // its PUBACK is on its way
        let before = sensor.node.counters();
        publish(&mut sensor, &mut app, "up/1", round);
        publish(&mut sensor, &mut app, "up/2", round);
        let after = sensor.node.counters();
        // No REGISTER, no CONNECT.
        let said = after.frames_sent - after.retransmissions - (before.frames_sent - before.retransmissions);
        assert_eq!((said, after.connections), (2, 1));
    }
}

#[test]
fn after_kill_9_the_will_of_a_sensor_that_does_not_come_back_is_published_and_no_other() {
    let mut gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::subscribed(gateway.broker_port, "will/#");
    let with_will = |id: &str| Options {
        will: Some(Will {
            topic: TopicName::new(format!("will/{id}")).unwrap(),
            message: "gone".into(),
            qos: Qos::AtLeastOnce,
            retain: false,
        }),
        keep_alive: Duration::from_secs(1),
        clean_session: false,
        ..options(id)
    };
    let gone = Sensor::connected(gateway.port, with_will("gone"));
    let mut here = Sensor::connected(gateway.port, with_will("here"));
    gateway.restart();
    drop(gone);
    wait_until("the loss of a client", || {
        here.live(Duration::from_millis(100));
        gateway.process.printed().contains("client lost")
    });
    app.expect("will/gone", "gone", QoS::AtLeastOnce, false);
    here.live(Duration::from_secs(1));
    app.quiet();
    assert_eq!(here.node.counters().connections, 1);
}

#[test]
fn what_was_acknowledged_while_the_broker_was_away_outlives_kill_9_and_comes_once_and_in_order() {
    let mosquitto = Mosquitto::start();
    let mut app = App::subscribed(mosquitto.port, "up/#");
    let way = Proxy::to(mosquitto.port);
    let url = format!("mqtt://127.0.0.1:{}", way.port);
    let mut gateway = Gateway::start(&url, way.port, "", Some(mosquitto));
    gateway.process.wait_for_line("connected to the broker");
    let mut sensors = ["n1", "n2"].map(|id| persistent(&gateway, id));
    way.cut();
    gateway.process.wait_for_line("no connection to the broker");
    for round in 0..4 {
        for number in 0..5 {
            for (sensor, id) in sensors.iter_mut().zip(["n1", "n2"]) {
                let qos = [Qos::AtLeastOnce, Qos::ExactlyOnce][number % 2];
                let payload = format!("{round} {number}");
                let outcome = sensor.publish(name(&format!("up/{id}")), &payload, qos, false);
                assert_eq!(outcome, Outcome::Acknowledged);
            }
        }
        gateway.restart();
    }
    way.mend();
    let mut got = BTreeMap::<_, Vec<_>>::new();
    for _ in 0..40 {
        let message = app.message();
        got.entry((message.topic.to_string(), message.qos as u8)).or_default().push(message.payload);
    }
    app.quiet();
    // The broker hands a message of QoS 2 on when it is released, and one of QoS 1 at once: both have their own order.
    for (id, qos) in [("n1", 1), ("n1", 2), ("n2", 1), ("n2", 2)] {
        let sent = (0..4).flat_map(|round| (0..5).map(move |number| (round, number)));
        let sent = sent.filter(|(_, number)| number % 2 + 1 == qos);
        let sent: Vec<_> = sent.map(|(round, number)| format!("{round} {number}")).collect();
        assert_eq!(got[&(format!("up/{id}"), qos)], sent, "{id} at QoS {qos}");
    }
    assert!(sensors.iter().all(|sensor| sensor.node.counters().connections == 1));
}

#[test]
fn sigterm_tells_sensors_nothing_and_the_next_start_goes_on() {
    let mut gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::connected(gateway.broker_port);
    let mut sensor = persistent(&gateway, "n1");
    sensor.subscribe("s/1", Qos::AtLeastOnce);
    let heard = sensor.node.counters().frames_received;
    gateway.process.signal("TERM");
    let status = gateway.process.wait_for_end();
    assert_eq!(status.code(), Some(0), "{}", gateway.process.printed());
    sensor.live(Duration::from_millis(100));
    assert_eq!(sensor.node.counters().frames_received, heard);
    app.publish("s/1", "on", QoS::AtLeastOnce, false);
    gateway.start_again();
    assert_eq!(sensor.message().payload, "on");
    assert_eq!(sensor.publish(name("a/b"), "up", Qos::ExactlyOnce, false), Outcome::Acknowledged);
    assert_eq!(sensor.node.counters().connections, 1);
}

/// As on a board without a clock of its own, which takes each boot for 1970 until it has asked somebody.
#[test]
fn a_clock_that_jumps_by_decades_at_boot_and_under_way_changes_nothing() {
    let Some(library) = std::fs::read_dir("/usr/lib").ok().and_then(|folders| {
        let places =
            folders.filter_map(Result::ok).map(|folder| folder.path().join("faketime/libfaketime.so.1"));
        places.into_iter().find(|place| place.exists())
    }) else {
        let name = "a_clock_that_jumps_by_decades_at_boot_and_under_way_changes_nothing";
        return skip(name, "there is no faketime");
    };
    let clock = TempDir::new().unwrap();
    let clock = clock.path().join("clock");
    let set = |time: &str| std::fs::write(&clock, time).unwrap();
    let fake = |command: &mut Command| {
        command.env("LD_PRELOAD", &library).env("FAKETIME_TIMESTAMP_FILE", &clock);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    };
    set("@2000-01-01 00:00:00");
    let mosquitto = Mosquitto::start();
    let port = mosquitto.port;
    let url = format!("mqtt://127.0.0.1:{port}");
    let mut gateway = Gateway::start_with(&url, port, "", Some(mosquitto), fake);
    gateway.process.wait_for_line("connected to the broker");
    let mut app = App::subscribed(port, "up/#");
    let will = Will {
        topic: TopicName::new("up/will").unwrap(),
        message: "gone".into(),
        qos: Qos::AtLeastOnce,
        retain: false,
    };
    let asleep = Options { will: Some(will), clean_session: false, ..options("sleeper") };
    let mut sleeper = Sensor::connected(gateway.port, asleep);
    let mut active = persistent(&gateway, "active");
    sleeper.subscribe("s/1", Qos::ExactlyOnce);
    sleeper.node.sleep(Instant::now(), Duration::from_secs(600));
    sleeper.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
    let times =
        ["@2030-01-01 00:00:00", "@1970-01-02 00:00:00", "@2060-01-01 00:00:00", "@2000-01-01 00:00:00"];
    for (round, time) in times.into_iter().enumerate() {
        if round % 2 == 0 {
            set(time);
        } else {
            gateway.process.kill();
            set(time);
            gateway.start_again_with(fake);
        }
        let content = round.to_string();
        app.publish("s/1", &content, QoS::ExactlyOnce, false);
        let acknowledged = active.publish(name("up/1"), &content, Qos::ExactlyOnce, false);
        assert_eq!(acknowledged, Outcome::Acknowledged);
        app.expect("up/1", &content, QoS::ExactlyOnce, false);
        if round % 2 == 1 {
            // The log has that time, so the program has it.
            gateway.process.wait_for_line(&format!("{}T00:", &time[1..11]));
        }
    }
    sleeper.node.wake(Instant::now());
    for round in 0..times.len() {
        assert_eq!(sleeper.message().payload, round.to_string());
    }
    app.quiet();
    assert_eq!((sleeper.node.counters().connections, active.node.counters().connections), (1, 1));
}

/// Figures to look at. `RESTART_SESSIONS=100000 cargo test --release --test e2e ready -- --nocapture`
#[test]
fn a_gateway_with_many_sessions_is_ready_again() {
    let sessions = std::env::var("RESTART_SESSIONS").map_or(SESSIONS, |text| text.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let config = configuration(folder.path(), "mqtt://127.0.0.1:1", free_udp(), "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(&store::Options::new(folder.path().join("state"))).unwrap();
        let own = Row::Gateway(GatewayRow { client_id: "gateway".into() });
        let rows = std::iter::once(own).chain((0..sessions).flat_map(session));
        store.submit(Lsn(1), rows.map(Record::Insert).collect());
        while store.stored().await.0 < Lsn(1) {}
    });
    let started = Instant::now();
    let mut gateway = Process::start(Command::new(gateway_program()).arg("run").arg("-c").arg(config));
    gateway.wait_for_line("listening on udp");
    let listening = started.elapsed();
    // Then it has restored them, and looked for a broker.
    gateway.wait_for_line("no connection to the broker");
    println!(
        "{sessions} sessions: listening after {listening:.2?}, at work after {:.2?}, {:.2?} of it on a processor, {} kB resident",
        started.elapsed(),
        gateway.processor_time(),
        gateway.resident_kb()
    );
    assert!(gateway.is_running());
}

/// A sensor whose session outlives its connection.
fn persistent(gateway: &Gateway, id: &str) -> Sensor {
    Sensor::connected(gateway.port, Options { clean_session: false, ..options(id) })
}

/// A sleeper with three topic ids, two subscriptions, which the broker has, and a message that waits for it.
fn session(number: u32) -> Vec<Row> {
    let id = ClientId::new(format!("sensor-{number:06}")).unwrap();
    let topic = |at: u16| TopicName::new(format!("site/{id}/value/{at}")).unwrap();
    let [_, a, b, c] = number.to_be_bytes();
    let peer =
        PeerRow { port: "lan".into(), addr: Address::Udp(([127, a, b, c.max(1)], 1884).into()), node: None };
    let session = SessionRow {
        standing: Standing::Asleep,
        clean: false,
        mode: Mode::Aggregating,
        inherited: false,
        keep_alive: Duration::from_secs(60),
        sleep: Duration::from_secs(600),
        connections: 1,
        peer: Some(peer),
    };
    let mut rows = vec![Row::Session(id.clone(), session)];
    rows.extend((1..=3).map(|at| {
        let row = TopicRow { name: topic(at), nth: at, standing: TopicStanding::Known(1) };
        Row::Topic(id.clone(), at, row)
    }));
    rows.extend((1..=2).flat_map(|at| {
        let filter = TopicFilter::new(topic(at).to_string()).unwrap();
        let held = FilterRow { qos: QoS::AtLeastOnce, subscription: None, granted: true };
        let row = SubscriptionRow { topic: TopicRef::Normal(at), qos: QoS::AtLeastOnce, since: at.into() };
        [Row::Filter(1, filter.clone(), held), Row::Subscription(id.clone(), filter, row)]
    }));
    let message = MessageId(u64::from(number) + 1);
    let text = mqtt::Message {
        topic: topic(1),
        payload: vec![b'x'; 64].into(),
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    rows.push(Row::Message(message, text.into()));
    let row = WaitingRow { message, qos: QoS::AtLeastOnce, sent_as: None, sent_on: None, expiry: None };
    rows.push(Row::Waiting(id, message.0, row));
    rows
}
