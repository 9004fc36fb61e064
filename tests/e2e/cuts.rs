//! The connection to the broker is cut before, in and after each kind of packet, with and without `kill -9` of the gateway in
//! that moment. Nothing is lost, and at QoS 2 nothing comes twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Filter, Options, Outcome};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::{Qos, ReturnCode};

use crate::app::App;
use crate::cutter::{At, Cutter, End, Kind};
use crate::process::{Gateway, Mosquitto, PATIENCE, wait_until};
use crate::sensor::{Sensor, name, options};

/// Every kind of packet that a round of [`Lane::play`] brings.
const KINDS: [(&str, Kind); 18] = [
    ("CONNECT", Kind::of(End::Gateway, 1)),
    ("CONNACK", Kind::of(End::Broker, 2)),
    ("SUBSCRIBE", Kind::of(End::Gateway, 8)),
    ("SUBACK", Kind::of(End::Broker, 9)),
    ("UNSUBSCRIBE", Kind::of(End::Gateway, 10)),
    ("UNSUBACK", Kind::of(End::Broker, 11)),
    ("PUBLISH 1 up", Kind::publish(End::Gateway, 1)),
    ("PUBACK for it", Kind::of(End::Broker, 4)),
    ("PUBLISH 2 up", Kind::publish(End::Gateway, 2)),
    ("PUBREC for it", Kind::of(End::Broker, 5)),
    ("PUBREL up", Kind::of(End::Gateway, 6)),
    ("PUBCOMP for it", Kind::of(End::Broker, 7)),
    ("PUBLISH 1 down", Kind::publish(End::Broker, 1)),
    ("PUBACK of it", Kind::of(End::Gateway, 4)),
    ("PUBLISH 2 down", Kind::publish(End::Broker, 2)),
    ("PUBREC of it", Kind::of(End::Gateway, 5)),
    ("PUBREL down", Kind::of(End::Broker, 6)),
    ("PUBCOMP of it", Kind::of(End::Gateway, 7)),
];

/// Gateways at work in each mode and version: most of a round is a wait for the next connection.
const LANES: usize = 8;

/// One row of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    kind: Kind,
    at: At,
    kill: bool,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.kill { " with kill -9" } else { "" };
        write!(f, "{:?} {}{with}", self.at, self.name)
    }
}

#[test]
fn a_cut_at_any_packet_with_or_without_kill_9_loses_nothing_and_doubles_nothing_at_qos_2() {
    let began = Instant::now();
    let mut played = 0;
    thread::scope(|scope| {
        let mut lanes = Vec::new();
        for mode in ["aggregating", "transparent"] {
            for protocol in ["3.1.1", "5"] {
                // Half of the cases each, so that every kind of packet is cut in each version of MQTT.
                let odd = (mode == "aggregating") == (protocol == "5");
                let cases: Vec<_> = cases().skip(usize::from(odd)).step_by(2).collect();
                played += cases.len();
                for number in 0..LANES {
                    // Every third with `kill -9`: a client whose link alone is cut seven times in a row is one whose id somebody
                    // else has.
                    let cases: Vec<_> = cases.iter().copied().skip(number).step_by(LANES).collect();
                    lanes.push(scope.spawn(move || {
                        let mut lane = Lane::new(mode, protocol);
                        cases.into_iter().for_each(|case| lane.play(case));
                        lane.judge();
                    }));
                }
            }
        }
        for lane in lanes {
            assert!(lane.join().is_ok(), "see above");
        }
    });
    println!("{played} cuts in {:.1?}", began.elapsed());
}

/// Neighbours differ in everything but the kind of packet.
fn cases() -> impl Iterator<Item = Case> {
    let how = [
        (At::Before, false),
        (At::Before, true),
        (At::Middle, true),
        (At::Middle, false),
        (At::After, false),
        (At::After, true),
    ];
    KINDS.into_iter().flat_map(move |(name, kind)| how.map(|(at, kill)| Case { name, kind, at, kill }))
}

/// A gateway, its broker, a sensor and an application.
struct Lane {
    mode: &'static str,
    protocol: &'static str,
    cutter: Cutter,
    gateway: Arc<Mutex<Gateway>>,
    sensor: Sensor,
    app: App,
    rounds: u32,
    /// How often each message has come, by its topic and content.
    up: BTreeMap<(String, String), u32>,
    down: BTreeMap<(String, String), u32>,
    /// What has been played, for the report of a failure.
    played: Vec<Case>,
}

impl Lane {
    fn new(mode: &'static str, protocol: &'static str) -> Self {
        let mosquitto = Mosquitto::that_names_subscriptions();
        let app = App::subscribed(mosquitto.port, "up/#");
        let cutter = Cutter::to(mosquitto.port);
        let url = format!("mqtt://127.0.0.1:{}", cutter.port);
        // A sensor is slow to answer while its thread waits for something else.
        let more = format!("  mode: {mode}\n  protocol: {protocol}\nsessions: {{ retry_limit: 100 }}\n");
        let gateway = Gateway::start(&url, cutter.port, &more, Some(mosquitto));
        gateway.process.wait_for_line("connected to the broker");
        let patient = Options {
            clean_session: false,
            retry_interval: Duration::from_millis(500),
            retry_limit: 100,
            ..options("n1")
        };
        let mut sensor = Sensor::connected(gateway.port, patient);
        sensor.subscribe("down/1", Qos::AtLeastOnce);
        sensor.subscribe("down/2", Qos::ExactlyOnce);
        let mut lane = Self {
            mode,
            protocol,
            cutter,
            gateway: Arc::new(Mutex::new(gateway)),
            sensor,
            app,
            rounds: 0,
            up: BTreeMap::new(),
            down: BTreeMap::new(),
            played: Vec::new(),
        };
        lane.wait_for_subscription("down/2");
        lane
    }

    /// One cut, and a round of everything that brings it about.
    fn play(&mut self, case: Case) {
        self.played.push(case);
        let cut = self.arm(case);
        if ["CONNECT", "CONNACK"].contains(&case.name) {
            self.cutter.cut();
        }
        self.rounds += 1;
        let (round, extra) = (self.rounds.to_string(), format!("extra/{}", self.rounds));
        for (topic, qos) in [("up/1", Qos::AtLeastOnce), ("up/2", Qos::ExactlyOnce)] {
            let outcome = self.sensor.publish(name(topic), &round, qos, false);
            assert_eq!(outcome, Outcome::Acknowledged, "{self}");
        }
        self.send_down("down/1", QoS::AtLeastOnce);
        self.send_down("down/2", QoS::ExactlyOnce);
        // While a client's own link is away nobody else can grant it anything.
        while let Err(refusal) = self.sensor.subscribe_for(&extra, Qos::ExactlyOnce) {
            let is_fair = (refusal, self.mode) == (ReturnCode::Congestion, "transparent");
            assert!(is_fair, "{refusal:?} for {extra}: {self}\n{}", self.printed());
        }
        self.wait_for_subscription(&extra);
        self.send_down(&extra, QoS::ExactlyOnce);
        let filter = Filter::Name(TopicFilter::new(&extra).unwrap());
        self.sensor.node.unsubscribe(Instant::now(), filter).unwrap();
        self.sensor.wait_for(|event| matches!(event, Event::Unsubscribed { .. }).then_some(()));
        self.app.publish(&extra, "late", QoS::ExactlyOnce, false);
        for topic in ["up/1", "up/2"] {
            let key = (topic.to_owned(), round.clone());
            while !self.up.contains_key(&key) {
                self.hear_app();
            }
        }
        let end = Instant::now() + PATIENCE;
        let mut happened = Err(std::sync::mpsc::TryRecvError::Empty);
        while happened == Err(std::sync::mpsc::TryRecvError::Empty) && Instant::now() < end {
            self.sensor.live(Duration::from_millis(5));
            happened = cut.try_recv();
        }
        assert_eq!(happened, Ok(()), "the cut did not happen, or no gateway came up after it: {self}");
    }

    /// What is sent down when the cut has happened.
    fn arm(&self, case: Case) -> Receiver<()> {
        let (done, cut) = channel();
        let gateway = self.gateway.clone();
        self.cutter.arm(case.kind, case.at, move || {
            if !case.kill {
                let _ = done.send(());
                return;
            }
            gateway.lock().unwrap().process.kill();
            // The ends of the connection are closed meanwhile.
            thread::spawn(move || {
                gateway.lock().unwrap().start_again();
                let _ = done.send(());
            });
        });
        cut
    }

    /// Publishes at the broker, and waits until the sensor has it.
    fn send_down(&mut self, topic: &str, qos: QoS) {
        let round = self.rounds.to_string();
        self.app.publish(topic, &round, qos, false);
        let key = (topic.to_owned(), round);
        while !self.down.contains_key(&key) {
            let message = self.sensor.message();
            let content = String::from_utf8(message.payload.to_vec()).unwrap();
            *self.down.entry((message.topic.to_string(), content)).or_default() += 1;
        }
    }

    fn hear_app(&mut self) {
        let message = self.app.message();
        let content = String::from_utf8(message.payload.to_vec()).unwrap();
        *self.up.entry((message.topic.to_string(), content)).or_default() += 1;
    }

    /// What the gateway said of all this.
    fn printed(&self) -> String {
        self.gateway.lock().unwrap().process.printed()
    }

    /// The broker has this filter: what is published before that does not come.
    fn wait_for_subscription(&mut self, filter: &str) {
        let Self { gateway, sensor, .. } = self;
        wait_until("a subscription at the broker", || {
            sensor.live(Duration::from_millis(5));
            gateway.lock().unwrap().mosquitto.as_ref().unwrap().subscriptions(filter) > 0
        });
    }

    /// Nothing came twice that must not. What was to come has come, in each round.
    fn judge(&mut self) {
        // Whatever is still under way is before this.
        self.sensor.publish(name("up/end"), "end", Qos::ExactlyOnce, false);
        while !self.up.contains_key(&("up/end".to_owned(), "end".to_owned())) {
            self.hear_app();
        }
        self.sensor.quiet();
        self.app.quiet();
        let all = self.up.iter().chain(&self.down);
        let doubled: Vec<_> = all
            .filter(|((topic, _), count)| !["up/1", "down/1"].contains(&&topic[..]) && **count != 1)
            .collect();
        assert!(doubled.is_empty(), "{doubled:?} {self}");
        assert!(!self.down.keys().any(|(_, content)| content == "late"), "{:?} {self}", self.down);
        assert_eq!(self.sensor.node.counters().connections, 1, "the sensor has noticed something: {self}");
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, MQTT {}, {:?}", self.mode, self.protocol, self.played)
    }
}
