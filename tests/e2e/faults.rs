//! A broker that hangs, is slow, refuses, or dies in the middle of an exchange; and a sensor that is out of reach.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Options, Outcome};
use mqtt_sn_gateway::wire::Qos;

use crate::app::App;
use crate::cutter::{Cutter, End, Kind};
use crate::process::{Gateway, Mosquitto, wait_until};
use crate::sensor::{Sensor, name, options};

const MODES: [&str; 2] = ["aggregating", "transparent"];

/// How many QoS 1 and 2 messages Mosquitto has under way on one connection.
const WINDOW: usize = 20;

/// A gateway that reaches its broker by a way that can be cut, and a sensor that has subscribed to `down/#`.
struct Scene {
    cutter: Cutter,
    gateway: Gateway,
    sensor: Sensor,
    /// What is no row of its own in a failure.
    what: String,
}

impl Scene {
    fn new(mosquitto: Mosquitto, more: &str) -> Self {
        let cutter = Cutter::to(mosquitto.port);
        let url = format!("mqtt://127.0.0.1:{}", cutter.port);
        let more = format!("{more}sessions: {{ retry_limit: 100 }}\n");
        let gateway = Gateway::start(&url, cutter.port, &more, Some(mosquitto));
        gateway.process.wait_for_line("connected to the broker");
        let mut sensor = Sensor::connected(gateway.port, patient("n1"));
        sensor.subscribe("down/#", Qos::ExactlyOnce);
        let mut scene = Self { cutter, gateway, sensor, what: more };
        scene.wait_for_subscription();
        scene
    }

    fn mosquitto(&mut self) -> &mut Mosquitto {
        self.gateway.mosquitto.as_mut().unwrap()
    }

    fn app(&mut self, filter: &str) -> App {
        App::subscribed(self.mosquitto().port, filter)
    }

    /// The broker has the sensor's filter since its last start.
    fn wait_for_subscription(&mut self) {
        let Self { gateway, sensor, .. } = self;
        wait_until("a subscription at the broker", || {
            sensor.live(Duration::from_millis(5));
            gateway.mosquitto.as_ref().unwrap().subscriptions("down/#") > 0
        });
    }

    #[track_caller]
    fn publish(&mut self, qos: Qos, content: &str) {
        let outcome = self.sensor.publish(name("up/1"), content, qos, false);
        assert_eq!(outcome, Outcome::Acknowledged, "{content}: {}", self.what);
    }
}

/// At the same time: most of it is waiting.
fn in_both_modes(test: impl Fn(&str) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        let tests = MODES.map(|mode| scope.spawn(move || test(mode)));
        tests.into_iter().for_each(|test| assert!(test.join().is_ok(), "see above"));
    });
}

/// A sensor that keeps its session, and asks again for as long as a busy machine may need.
fn patient(id: &str) -> Options {
    Options {
        clean_session: false,
        retry_interval: Duration::from_millis(500),
        retry_limit: 100,
        ..options(id)
    }
}

#[test]
fn a_broker_that_hangs_without_closing_is_found_by_keep_alive_and_what_was_published_meanwhile_comes_once() {
    in_both_modes(|mode| {
        let more = format!("  mode: {mode}\n  keep_alive: 2s\n  ack_timeout: 500ms\n");
        let mut scene = Scene::new(Mosquitto::that_names_subscriptions(), &more);
        let mut app = scene.app("up/#");
        scene.mosquitto().signal("STOP");
        // The first waits for the broker, and then for the disk.
        scene.publish(Qos::ExactlyOnce, "a");
        scene.gateway.process.wait_for_line("the broker did not answer PINGREQ");
        scene.publish(Qos::ExactlyOnce, "b");
        scene.mosquitto().signal("CONT");
        scene.publish(Qos::ExactlyOnce, "c");
        for content in ["a", "b", "c"] {
            app.expect("up/1", content, QoS::ExactlyOnce, false);
        }
        app.publish("down/1", "d", QoS::ExactlyOnce, false);
        assert_eq!(scene.sensor.message().payload, "d");
        scene.sensor.quiet();
        app.quiet();
        assert_eq!(scene.sensor.node.counters().connections, 1);
    });
}

#[test]
fn what_a_slow_broker_acknowledges_late_was_acknowledged_from_the_disk_and_comes_once() {
    in_both_modes(|mode| {
        let more = format!("  mode: {mode}\n  ack_timeout: 300ms\n");
        let mut scene = Scene::new(Mosquitto::that_names_subscriptions(), &more);
        let mut app = scene.app("up/#");
        let mut due = BTreeMap::new();
        for kill in [false, true] {
            for (qos, packet_type) in [(Qos::AtLeastOnce, 4), (Qos::ExactlyOnce, 5), (Qos::ExactlyOnce, 7)] {
                scene.cutter.withhold(&[Kind::of(End::Broker, packet_type)]);
                let once = qos == Qos::ExactlyOnce || !kill;
                let mut publish = |scene: &mut Scene, part: &str| {
                    let content = format!("{part}, {packet_type}, {kill}");
                    scene.publish(qos, &content);
                    due.insert(content, once);
                };
                publish(&mut scene, "late");
                publish(&mut scene, "behind it");
                scene.cutter.wait_for_withheld();
                if kill {
                    scene.gateway.restart();
                }
                scene.cutter.release();
                publish(&mut scene, "in time");
            }
        }
        scene.publish(Qos::ExactlyOnce, "end");
        let mut came = BTreeMap::<_, usize>::new();
        while due.keys().any(|content| !came.contains_key(content)) {
            let content = String::from_utf8(app.message().payload.to_vec()).unwrap();
            *came.entry(content).or_default() += 1;
        }
        if !came.contains_key("end") {
            app.expect("up/1", "end", QoS::ExactlyOnce, false);
        }
        app.quiet();
        for (content, once) in due {
            assert!(came[&content] == 1 || !once, "{mode}: {content} came {} times", came[&content]);
        }
        assert_eq!(scene.sensor.node.counters().connections, 1);
    });
}

/// How a broker goes away, and what it knows when it is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// It forgets everything.
    Forgets,
    /// It is in the middle of the exchange still.
    Remembers,
    /// It knows the session, but nothing of the exchange: it counts packet ids from where they were before.
    Dates,
}

#[test]
fn a_broker_that_dies_in_the_middle_of_an_exchange_gets_it_done_when_it_is_back() {
    thread::scope(|scope| {
        let mut tests = Vec::new();
        for death in [Death::Forgets, Death::Remembers, Death::Dates] {
            for (mode, kill) in MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
                // PUBACK, PUBREC, PUBCOMP for the sensor's message, PUBREL for the application's.
                let withheld = [4, 5, 7, 6].into_iter();
                tests.push(
                    scope.spawn(move || withheld.for_each(|it| die_withholding(death, kill, mode, it))),
                );
            }
        }
        tests.into_iter().for_each(|test| assert!(test.join().is_ok(), "see above"));
    });
}

fn die_withholding(death: Death, kill: bool, mode: &str, packet_type: u8) {
    let mosquitto = match death {
        Death::Forgets => Mosquitto::that_names_subscriptions(),
        Death::Remembers | Death::Dates => Mosquitto::persistent(),
    };
    let mut scene = Scene::new(mosquitto, &format!("  mode: {mode}\n  ack_timeout: 300ms\n"));
    scene.what = format!("{death:?} {mode}, gateway killed: {kill}, withheld: {packet_type}");
    if death == Death::Dates {
        scene.mosquitto().save();
    }
    let mut app = scene.app("up/#");
    scene.cutter.withhold(&[Kind::of(End::Broker, packet_type)]);
    let qos = if packet_type == 4 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
    if packet_type == 6 {
        app.publish("down/1", "first", QoS::ExactlyOnce, false);
    } else {
        scene.publish(qos, "first");
    }
    scene.cutter.wait_for_withheld();
    let mut came = heard(&mut app);
    drop(app);
    if death == Death::Remembers {
        scene.mosquitto().leave();
    } else {
        scene.mosquitto().down();
    }
    scene.cutter.leave();
    scene.cutter.release();
    if kill {
        scene.gateway.restart();
    }
    scene.mosquitto().up();
    // It has subscribed before the gateway is back.
    let mut app = scene.app("up/#");
    scene.cutter.come_back();
    scene.publish(qos, "second");
    while !came.contains(&"second".to_owned()) {
        let message = app.message();
        came.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    if death == Death::Forgets {
        scene.wait_for_subscription();
    }
    // With a broker that has forgotten, under the packet id of the first.
    app.publish("down/1", "second", QoS::ExactlyOnce, false);
    let mut told = vec![scene.sensor.message().payload];
    while told.last().is_some_and(|payload| payload != "second") {
        told.push(scene.sensor.message().payload);
    }
    app.quiet();
    scene.sensor.quiet();
    came.extend(heard(&mut app));
    let count = |content: &str| came.iter().filter(|it| *it == content).count();
    if packet_type == 6 {
        assert_eq!(told, ["first", "second"], "{}", scene.what);
    } else {
        let firsts = count("first");
        // At QoS 1, or for a broker that does not know what it had, once more is right.
        let once = death == Death::Remembers && qos == Qos::ExactlyOnce;
        assert!(firsts == 1 || firsts > 1 && !once, "{}: {came:?}", scene.what);
        assert_eq!(told, ["second"], "{}", scene.what);
    }
    assert_eq!(count("second"), 1, "{}: {came:?}", scene.what);
    assert_eq!(scene.sensor.node.counters().connections, 1, "{}", scene.what);
}

/// What has come to the application.
fn heard(app: &mut App) -> Vec<String> {
    app.waiting().into_iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()).collect()
}

#[test]
fn a_broker_that_refuses_is_tried_until_it_takes_us_and_gets_what_was_kept_for_it() {
    for more in ["allow_anonymous false\n", "clientid_prefixes app-\n"] {
        let mut mosquitto = Mosquitto::that_names_subscriptions();
        mosquitto.reconfigure(more);
        let url = format!("mqtt://127.0.0.1:{}", mosquitto.port);
        let mut gateway = Gateway::start(&url, mosquitto.port, "", Some(mosquitto));
        gateway.process.wait_for_line("refused by the broker");
        let mut sensor = Sensor::connected(gateway.port, patient("n1"));
        assert_eq!(sensor.publish(name("up/1"), "kept", Qos::ExactlyOnce, false), Outcome::Acknowledged);
        let mosquitto = gateway.mosquitto.as_mut().unwrap();
        mosquitto.down();
        mosquitto.reconfigure("");
        let mut app = App::subscribed(mosquitto.port, "up/#");
        app.expect("up/1", "kept", QoS::ExactlyOnce, false);
        app.quiet();
    }
}

#[test]
fn a_sensor_with_a_dead_radio_does_not_hold_up_the_others_in_the_window_they_share() {
    let mosquitto = Mosquitto::that_names_subscriptions();
    let port = mosquitto.port;
    // Such that nobody gives the dead one up.
    let more = "sessions: { retry_limit: 100 }\n";
    let gateway = Gateway::start(&format!("mqtt://127.0.0.1:{port}"), port, more, Some(mosquitto));
    gateway.process.wait_for_line("connected to the broker");
    let mut dead = Sensor::connected(gateway.port, patient("dead"));
    let mut alive = Sensor::connected(gateway.port, patient("alive"));
    for (sensor, filter) in [(&mut dead, "down/dead"), (&mut alive, "down/alive")] {
        sensor.subscribe(filter, Qos::ExactlyOnce);
        wait_until("a subscription", || gateway.mosquitto.as_ref().unwrap().subscriptions(filter) > 0);
    }
    let mut app = App::connected(port);
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        // From here on nobody answers for the dead one.
        for number in 0..2 * WINDOW {
            app.publish("down/dead", &number.to_string(), qos, false);
        }
        app.publish("down/alive", "on", qos, false);
        assert_eq!(alive.message().payload, "on");
    }
    assert!(!gateway.process.printed().contains("client lost"), "{}", gateway.process.printed());
    // Nothing of it is lost either.
    for round in 0..2 {
        for number in 0..2 * WINDOW {
            assert_eq!(dead.message().payload, number.to_string(), "round {round}");
        }
    }
}
