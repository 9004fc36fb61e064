//! Messages of every kind in both directions, beside every broker and in the versions of MQTT that it knows.

use std::sync::Mutex;
use std::thread::{available_parallelism, scope};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Filter, Options, Outcome, Topic, Will};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use crate::app::App;
use crate::brokers::Broker;
use crate::process::{Beside, Gateway, Process, wait_until};
use crate::sensor::{Sensor, name, options};

const AGGREGATING: &str = "aggregating";
const TRANSPARENT: &str = "transparent";

#[test]
fn beside_the_embedded_broker() {
    run(None, "auto", AGGREGATING);
}

#[test]
fn beside_mosquitto() {
    everything_beside(Broker::mosquitto(), &["auto", "3.1.1", "5"]);
}

#[test]
fn beside_rabbitmq() {
    let broker = Broker::rabbitmq();
    a_broker_without_mqtt_5_is_named_and_tried_again(&broker);
    everything_beside(broker, &["auto", "3.1.1"]);
}

#[test]
fn beside_aedes() {
    let broker = Broker::aedes();
    a_broker_without_mqtt_5_is_named_and_tried_again(&broker);
    everything_beside(broker, &["auto", "3.1.1"]);
}

/// All scenarios in these versions of MQTT and in both modes; at the end the broker is started again.
#[track_caller]
fn everything_beside(mut broker: Broker, versions: &[&'static str]) {
    for version in versions {
        run(Some(&broker), version, AGGREGATING);
    }
    run(Some(&broker), "auto", TRANSPARENT);
    after_a_restart_subscriptions_hold_and_messages_flow(&mut broker);
}

/// It sends one copy for each filter in MQTT 3.1.1, as EMQX does; too much else of it does not work for the other scenarios.
#[test]
fn beside_amqtt_overlaps_bring_one_copy() {
    let broker = Broker::amqtt();
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains("overlap")) {
        eprintln!("{name}");
        scenario(&Place { name, broker: Some(&broker), version: "auto", mode: AGGREGATING });
    }
}

macro_rules! scenarios {
    ($($name:ident,)*) => {
        const SCENARIOS: &[(&str, fn(&Place<'_>))] = &[$((stringify!($name), $name)),*];
    };
}

scenarios! {
    a_sensors_message_of_every_qos_reaches_the_broker,
    a_message_of_every_qos_comes_to_the_sensor,
    a_wildcard_brings_topics_the_sensor_has_never_heard_of,
    a_wildcard_at_the_end_brings_its_parent_and_empty_levels,
    wildcards_bring_no_topics_with_a_dollar,
    topics_with_stars_and_dots_do_no_harm,
    retained_messages_are_kept_at_the_broker_and_come_to_a_new_subscriber,
    retained_messages_come_to_the_new_subscriber_alone_each_time,
    retained_messages_come_by_wildcards,
    two_subscribers_of_one_filter_get_one_copy_each,
    overlapping_filters_bring_one_copy_to_each_client,
    filters_that_overlap_at_different_qos_bring_one_copy_to_each_client,
    a_sensor_unsubscribes_and_hears_no_more,
    one_of_two_unsubscribes_and_the_other_hears_on,
    a_sensor_hears_itself_only_if_it_subscribed,
    the_will_of_a_sensor_that_vanishes_is_published_and_that_of_one_that_leaves_is_not,
    a_sleeper_gets_what_came_when_it_wakes_and_nothing_before,
    a_persistent_session_gets_what_was_published_while_it_was_away,
    messages_of_60_kilobytes_pass_both_ways,
    empty_messages_pass_both_ways,
    messages_keep_their_order_both_ways,
}

/// Where a scenario plays: on topics of its own, with a gateway of its own.
struct Place<'a> {
    name: &'static str,
    /// `None`: the embedded one.
    broker: Option<&'a Broker>,
    /// `broker.protocol`.
    version: &'static str,
    /// `broker.mode`.
    mode: &'static str,
}

impl Place<'_> {
    /// A gateway that is connected to the broker.
    fn gateway(&self) -> Gateway {
        let Some(broker) = self.broker else { return Gateway::beside(Beside::Embedded) };
        let mut more = format!("  protocol: {}\n  mode: {}\n", self.version, self.mode);
        if self.mode == TRANSPARENT {
            // Every scenario has a client n1.
            more += &format!("  client_id_template: \"{}-%c\"\n", self.root());
        }
        let gateway = Gateway::start(&format!("mqtt://127.0.0.1:{}", broker.port), broker.port, &more, None);
        gateway.process.wait_for_line("connected to the broker");
        let printed = gateway.process.printed();
        let spoken = match self.version {
            "auto" => broker.facts.version,
            "5" => "MQTT 5",
            _ => "MQTT 3.1.1",
        };
        assert!(printed.contains(&format!("protocol={spoken} ")), "{printed}");
        let retried = self.version == "auto" && spoken != "MQTT 5";
        assert_eq!(printed.contains("trying MQTT 3.1.1"), retried, "{printed}");
        gateway
    }

    /// A gateway, and beside it an application and these sensors, all connected.
    fn stage<const N: usize>(&self, ids: [&str; N]) -> (Gateway, App, [Sensor; N]) {
        let gateway = self.gateway();
        let app = App::connected(gateway.broker_port);
        let sensors = ids.map(|id| Sensor::connected(gateway.port, options(id)));
        (gateway, app, sensors)
    }

    /// The first level of all its topics. Without a dot: to RabbitMQ that is a slash.
    fn root(&self) -> String {
        format!("{}-{}-{}", self.name, self.version.replace('.', ""), self.mode)
    }

    /// A topic or filter of this scenario.
    fn of(&self, below: &str) -> String {
        format!("{}/{below}", self.root())
    }

    fn topic(&self, below: &str) -> Topic {
        name(&self.of(below))
    }

    /// An application that has subscribed to this.
    fn app(&self, gateway: &Gateway, filter: &str) -> App {
        App::subscribed(gateway.broker_port, &self.of(filter))
    }

    /// What becomes of a QoS beyond the broker's.
    fn lowered(&self, qos: QoS) -> QoS {
        self.broker.map_or(qos, |broker| if qos > broker.facts.qos_max { broker.facts.qos_max } else { qos })
    }

    #[track_caller]
    fn subscribe(&self, sensor: &mut Sensor, filter: &str, qos: QoS) {
        let granted = sensor.subscribe_for(&self.of(filter), sn(qos));
        assert_eq!(granted, Ok(sn(self.lowered(qos))));
    }

    /// The next message of the sensor is this one.
    #[track_caller]
    fn expect(&self, sensor: &mut Sensor, topic: &str, payload: &str, qos: QoS, retain: bool) {
        let message = sensor.message();
        let expected = (self.topic(topic), sn(self.lowered(qos)), retain);
        assert_eq!((message.topic, message.qos, message.retain), expected);
        assert_eq!(message.payload, payload.as_bytes());
    }
}

/// All scenarios, a few at a time; one that fails has said why on its thread.
#[track_caller]
fn run(broker: Option<&Broker>, version: &'static str, mode: &'static str) {
    let waiting = Mutex::new(SCENARIOS.iter());
    let failed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some((name, scenario)) = waiting.lock().unwrap().next() else { return };
            let place = Place { name, broker, version, mode };
            if scope(|scope| scope.spawn(|| scenario(&place)).join()).is_err() {
                failed.lock().unwrap().push(*name);
            }
        }
    };
    scope(|scope| {
        // They wait more than they work.
        for _ in 0..4 * available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "in {version}, {mode}: {} of {} failed: {failed:#?}",
        failed.len(),
        SCENARIOS.len()
    );
}

fn sn(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn a_sensors_message_of_every_qos_reaches_the_broker(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut app = at.app(&gateway, "#");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    for (qos, outcome) in QOS.into_iter().zip([Outcome::Sent, Outcome::Acknowledged, Outcome::Acknowledged]) {
        assert_eq!(sensor.publish(at.topic("a/b"), "m", sn(qos), false), outcome);
        app.expect(&at.of("a/b"), "m", at.lowered(qos), false);
    }
    app.quiet();
    // Only this scenario publishes on these.
    for (topic, name, qos) in [
        (Topic::Predefined(1), "pre/one", Qos::MinusOne),
        (Topic::Short(*b"ab"), "ab", Qos::MinusOne),
        (Topic::Short(*b"ab"), "ab", Qos::AtLeastOnce),
    ] {
        let mut app = App::subscribed(gateway.broker_port, name);
        sensor.publish(topic, "m", qos, false);
        assert_eq!(app.message().topic.as_str(), name);
        app.quiet();
    }
}

fn a_message_of_every_qos_comes_to_the_sensor(at: &Place<'_>) {
    let (_gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    at.subscribe(&mut sensor, "s/1", QoS::ExactlyOnce);
    for qos in QOS {
        app.publish(&at.of("s/1"), "on", qos, false);
        at.expect(&mut sensor, "s/1", "on", qos, false);
    }
    sensor.quiet();
}

fn a_wildcard_brings_topics_the_sensor_has_never_heard_of(at: &Place<'_>) {
    let (_gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    at.subscribe(&mut sensor, "s/+/state", QoS::AtLeastOnce);
    for topic in ["s/1/state", "s/2/state", "s/1/state", "s/ü €/state"] {
        app.publish(&at.of(topic), "on", QoS::AtLeastOnce, false);
        at.expect(&mut sensor, topic, "on", QoS::AtLeastOnce, false);
    }
    app.publish(&at.of("s/1/other"), "on", QoS::AtLeastOnce, false);
    app.publish(&at.of("s/3/state"), "last", QoS::AtLeastOnce, false);
    at.expect(&mut sensor, "s/3/state", "last", QoS::AtLeastOnce, false);
}

fn a_wildcard_at_the_end_brings_its_parent_and_empty_levels(at: &Place<'_>) {
    let (_gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    at.subscribe(&mut sensor, "a/#", QoS::AtLeastOnce);
    for topic in ["a", "a/", "a//b", "a/b/c"] {
        app.publish(&at.of(topic), "on", QoS::AtLeastOnce, false);
        at.expect(&mut sensor, topic, "on", QoS::AtLeastOnce, false);
    }
}

/// MQTT 3.1.1 §4.7.2. RabbitMQ sends them all the same. In aggregating mode the gateway does not pass them on; in transparent
/// mode it leaves to the broker what a filter brings.
fn wildcards_bring_no_topics_with_a_dollar(at: &Place<'_>) {
    if at.mode == TRANSPARENT && at.broker.is_some_and(|broker| !broker.facts.hides_dollar) {
        return;
    }
    let (_gateway, mut app, mut sensors) = at.stage(["n1", "n2"]);
    let (hidden, seen) = (format!("$data/{}", at.root()), format!("data/{}", at.root()));
    sensors[0].subscribe(&format!("+/{}", at.root()), Qos::AtLeastOnce);
    app.publish(&hidden, "hidden", QoS::AtLeastOnce, false);
    sensors[1].subscribe(&hidden, Qos::AtLeastOnce);
    app.publish(&hidden, "asked for", QoS::AtLeastOnce, false);
    app.publish(&seen, "seen", QoS::AtLeastOnce, false);
    assert_eq!(sensors[0].message().topic, name(&seen));
    assert_eq!(sensors[1].message().payload, "asked for");
    for sensor in &mut sensors {
        sensor.quiet();
    }
}

/// Inside RabbitMQ a dot is a slash and a star is a plus: the one comes on another topic, and the other on none at all.
fn topics_with_stars_and_dots_do_no_harm(at: &Place<'_>) {
    let rewritten = at.broker.is_some_and(|broker| broker.facts.rewrites_topics);
    let (gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    at.subscribe(&mut sensor, "s/#", QoS::ExactlyOnce);
    for qos in QOS {
        app.publish(&at.of("s/a*b"), "star", qos, false);
        app.publish(&at.of("s/a.b"), "dot", qos, false);
        if !rewritten {
            at.expect(&mut sensor, "s/a*b", "star", qos, false);
        }
        at.expect(&mut sensor, if rewritten { "s/a/b" } else { "s/a.b" }, "dot", qos, false);
    }
    sensor.quiet();
    let printed = gateway.process.printed();
    assert!(!printed.contains("leaving the connection"), "{printed}");
}

fn retained_messages_are_kept_at_the_broker_and_come_to_a_new_subscriber(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    let kept = sensor.publish(at.topic("r/1"), "kept", Qos::AtLeastOnce, true);
    assert_eq!(kept, Outcome::Acknowledged);
    let mut app = at.app(&gateway, "r/1");
    app.expect(&at.of("r/1"), "kept", QoS::AtLeastOnce, true);
    at.subscribe(&mut sensor, "r/1", QoS::AtMostOnce);
    at.expect(&mut sensor, "r/1", "kept", QoS::AtMostOnce, true);
    // Cleared by an empty one.
    sensor.publish(at.topic("r/1"), "", Qos::AtLeastOnce, true);
    app.expect(&at.of("r/1"), "", QoS::AtLeastOnce, false);
    at.expect(&mut sensor, "r/1", "", QoS::AtMostOnce, false);
    at.app(&gateway, "r/1").quiet();
    let mut late = Sensor::connected(gateway.port, options("n2"));
    at.subscribe(&mut late, "r/1", QoS::AtLeastOnce);
    late.quiet();
}

fn retained_messages_come_to_the_new_subscriber_alone_each_time(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut app = App::connected(gateway.broker_port);
    let qos = at.broker.map_or(QoS::ExactlyOnce, |broker| broker.facts.retained_qos_max);
    app.publish(&at.of("r/1"), "kept", qos, true);
    let mut sensors = ["n1", "n2"].map(|id| Sensor::connected(gateway.port, options(id)));
    for _ in 0..2 {
        for new in 0..2 {
            at.subscribe(&mut sensors[new], "r/1", QoS::ExactlyOnce);
            at.expect(&mut sensors[new], "r/1", "kept", qos, true);
            sensors[1 - new].quiet();
        }
    }
    app.publish(&at.of("r/1"), "fresh", QoS::AtLeastOnce, true);
    for sensor in &mut sensors {
        at.expect(sensor, "r/1", "fresh", QoS::AtLeastOnce, false);
        sensor.quiet();
    }
}

/// RabbitMQ 3.10 does not look its retained messages through for a filter with wildcards.
fn retained_messages_come_by_wildcards(at: &Place<'_>) {
    let come = at.broker.is_none_or(|broker| broker.facts.retained_by_wildcards);
    let gateway = at.gateway();
    let mut app = App::connected(gateway.broker_port);
    for topic in ["r/1", "r/2", "r/3"] {
        app.publish(&at.of(topic), topic, QoS::AtLeastOnce, true);
    }
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    at.subscribe(&mut sensor, "r/#", QoS::AtLeastOnce);
    let mut topics: Vec<_> =
        if come { (0..3).map(|_| sensor.message().payload).collect() } else { Vec::new() };
    topics.sort();
    let expected: &[&str] = if come { &["r/1", "r/2", "r/3"] } else { &[] };
    assert_eq!(topics, expected);
    sensor.quiet();
}

fn two_subscribers_of_one_filter_get_one_copy_each(at: &Place<'_>) {
    let (_gateway, mut app, mut sensors) = at.stage(["n1", "n2"]);
    for sensor in &mut sensors {
        at.subscribe(sensor, "s/#", QoS::AtLeastOnce);
    }
    for payload in ["one", "two"] {
        app.publish(&at.of("s/1"), payload, QoS::AtLeastOnce, false);
        for sensor in &mut sensors {
            at.expect(sensor, "s/1", payload, QoS::AtLeastOnce, false);
        }
    }
    for sensor in &mut sensors {
        sensor.quiet();
    }
}

/// In transparent mode it is the broker that decides: Mosquitto sends one copy for each filter in MQTT 5.
fn overlapping_filters_bring_one_copy_to_each_client(at: &Place<'_>) {
    if at.mode == TRANSPARENT {
        return;
    }
    let (_gateway, mut app, mut sensors) = at.stage(["n1", "n2"]);
    for filter in ["ov/#", "ov/+", "ov/a"] {
        at.subscribe(&mut sensors[0], filter, QoS::ExactlyOnce);
    }
    at.subscribe(&mut sensors[1], "ov/+", QoS::AtLeastOnce);
    one_copy_each(at, &mut app, &mut sensors);
}

/// Each sensor gets each of two messages on `ov/a` once.
#[track_caller]
fn one_copy_each(at: &Place<'_>, app: &mut App, sensors: &mut [Sensor]) {
    for payload in ["one", "two"] {
        app.publish(&at.of("ov/a"), payload, QoS::ExactlyOnce, false);
    }
    for sensor in sensors {
        for payload in ["one", "two"] {
            assert_eq!(sensor.message().payload, payload);
        }
        sensor.quiet();
    }
}

/// RabbitMQ has a queue for QoS 0 and one for the others, and sends a copy from each: also where one filter was subscribed to
/// at both, one after the other.
fn filters_that_overlap_at_different_qos_bring_one_copy_to_each_client(at: &Place<'_>) {
    if at.mode == TRANSPARENT {
        return;
    }
    let (_gateway, mut app, mut sensors) = at.stage(["n1", "n2"]);
    at.subscribe(&mut sensors[0], "ov/#", QoS::AtMostOnce);
    at.subscribe(&mut sensors[0], "ov/a", QoS::ExactlyOnce);
    at.subscribe(&mut sensors[1], "ov/#", QoS::AtLeastOnce);
    one_copy_each(at, &mut app, &mut sensors);
}

fn a_sensor_unsubscribes_and_hears_no_more(at: &Place<'_>) {
    let (_gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    for filter in ["s/1", "s/2"] {
        at.subscribe(&mut sensor, filter, QoS::AtLeastOnce);
    }
    unsubscribe(&mut sensor, &at.of("s/1"));
    app.publish(&at.of("s/1"), "unheard", QoS::AtLeastOnce, false);
    app.publish(&at.of("s/2"), "heard", QoS::AtLeastOnce, false);
    at.expect(&mut sensor, "s/2", "heard", QoS::AtLeastOnce, false);
}

fn one_of_two_unsubscribes_and_the_other_hears_on(at: &Place<'_>) {
    let (_gateway, mut app, mut sensors) = at.stage(["n1", "n2"]);
    for sensor in &mut sensors {
        at.subscribe(sensor, "s/+", QoS::AtLeastOnce);
    }
    unsubscribe(&mut sensors[0], &at.of("s/+"));
    app.publish(&at.of("s/1"), "on", QoS::AtLeastOnce, false);
    at.expect(&mut sensors[1], "s/1", "on", QoS::AtLeastOnce, false);
    sensors[0].quiet();
    // The last one takes the filter back from the broker, and the first may have it again.
    unsubscribe(&mut sensors[1], &at.of("s/+"));
    at.subscribe(&mut sensors[0], "s/+", QoS::AtLeastOnce);
    app.publish(&at.of("s/1"), "again", QoS::AtLeastOnce, false);
    at.expect(&mut sensors[0], "s/1", "again", QoS::AtLeastOnce, false);
    sensors[1].quiet();
}

#[track_caller]
fn unsubscribe(sensor: &mut Sensor, filter: &str) {
    sensor.node.unsubscribe(Instant::now(), Filter::Name(TopicFilter::new(filter).unwrap())).unwrap();
    sensor.wait_for(|event| matches!(event, Event::Unsubscribed { .. }).then_some(()));
}

fn a_sensor_hears_itself_only_if_it_subscribed(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    at.subscribe(&mut sensor, "heard", QoS::ExactlyOnce);
    for topic in ["unheard", "heard"] {
        sensor.publish(at.topic(topic), topic, Qos::ExactlyOnce, false);
    }
    at.expect(&mut sensor, "heard", "heard", QoS::ExactlyOnce, false);
    sensor.quiet();
}

fn the_will_of_a_sensor_that_vanishes_is_published_and_that_of_one_that_leaves_is_not(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut app = at.app(&gateway, "w/#");
    let with_will = |id: &str| {
        let topic = TopicName::new(at.of(&format!("w/{id}"))).unwrap();
        let will = Will { topic, message: "gone".into(), qos: Qos::AtLeastOnce, retain: true };
        let options = Options { keep_alive: Duration::from_secs(1), will: Some(will), ..options(id) };
        Sensor::connected(gateway.port, options)
    };
    let mut leaves = with_will("leaves");
    leaves.node.disconnect(Instant::now());
    leaves.wait_for(|event| matches!(event, Event::Disconnected).then_some(()));
    drop(with_will("vanishes"));
    app.expect(&at.of("w/vanishes"), "gone", QoS::AtLeastOnce, false);
    app.quiet();
    at.app(&gateway, "w/vanishes").expect(&at.of("w/vanishes"), "gone", QoS::AtLeastOnce, true);
}

fn a_sleeper_gets_what_came_when_it_wakes_and_nothing_before(at: &Place<'_>) {
    let (_gateway, mut app, [mut sensor]) = at.stage(["n1"]);
    at.subscribe(&mut sensor, "s/#", QoS::ExactlyOnce);
    sensor.node.sleep(Instant::now(), Duration::from_secs(60));
    sensor.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
    let messages = [("s/1", QoS::AtLeastOnce), ("s/2", QoS::ExactlyOnce), ("s/1", QoS::ExactlyOnce)];
    for (topic, qos) in messages {
        app.publish(&at.of(topic), topic, qos, false);
    }
    sensor.quiet();
    assert_eq!(sensor.node.counters().slept_through, 0);
    // The broker has them; the gateway may have to wait for them.
    wait_until("three messages", || {
        sensor.node.wake(Instant::now());
        sensor.wait_for(|event| matches!(event, Event::Drained { .. }).then_some(()));
        sensor.waiting_messages() >= messages.len()
    });
    for (topic, qos) in messages {
        at.expect(&mut sensor, topic, topic, qos, false);
    }
    app.publish(&at.of("s/1"), "later", QoS::AtLeastOnce, false);
    sensor.quiet();
    assert_eq!(sensor.node.counters().slept_through, 0);
}

fn a_persistent_session_gets_what_was_published_while_it_was_away(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut app = App::connected(gateway.broker_port);
    let mut sensor = Sensor::connected(gateway.port, Options { clean_session: false, ..options("n1") });
    at.subscribe(&mut sensor, "s/#", QoS::ExactlyOnce);
    sensor.node.disconnect(Instant::now());
    sensor.wait_for(|event| matches!(event, Event::Disconnected).then_some(()));
    let messages = [("s/1", QoS::AtLeastOnce), ("s/2", QoS::ExactlyOnce), ("s/1", QoS::ExactlyOnce)];
    for (topic, qos) in messages {
        app.publish(&at.of(topic), topic, qos, false);
    }
    sensor.quiet();
    sensor.node.connect(Instant::now());
    for (topic, qos) in messages {
        at.expect(&mut sensor, topic, topic, qos, false);
    }
    sensor.quiet();
}

fn messages_of_60_kilobytes_pass_both_ways(at: &Place<'_>) {
    let gateway = at.gateway();
    let large = "x".repeat(60_000);
    let mut app = at.app(&gateway, "up");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    at.subscribe(&mut sensor, "down", QoS::AtLeastOnce);
    assert_eq!(sensor.publish(at.topic("up"), &large, Qos::AtLeastOnce, false), Outcome::Acknowledged);
    app.expect(&at.of("up"), &large, QoS::AtLeastOnce, false);
    app.publish(&at.of("down"), &large, QoS::AtLeastOnce, false);
    assert_eq!(sensor.message().payload.len(), 60_000);
}

fn empty_messages_pass_both_ways(at: &Place<'_>) {
    let gateway = at.gateway();
    let mut app = at.app(&gateway, "up");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    at.subscribe(&mut sensor, "down", QoS::ExactlyOnce);
    for qos in QOS {
        sensor.publish(at.topic("up"), "", sn(qos), false);
        app.expect(&at.of("up"), "", at.lowered(qos), false);
        app.publish(&at.of("down"), "", qos, false);
        at.expect(&mut sensor, "down", "", qos, false);
    }
}

fn messages_keep_their_order_both_ways(at: &Place<'_>) {
    const COUNT: usize = 60;
    let gateway = at.gateway();
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut app = at.app(&gateway, "up");
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        at.subscribe(&mut sensor, "down", QoS::ExactlyOnce);
        for n in 0..COUNT {
            app.publish(&at.of("down"), &n.to_string(), qos, false);
        }
        for n in 0..COUNT {
            at.expect(&mut sensor, "down", &n.to_string(), qos, false);
            sensor.publish(at.topic("up"), &n.to_string(), sn(qos), false);
        }
        for n in 0..COUNT {
            app.expect(&at.of("up"), &n.to_string(), at.lowered(qos), false);
        }
        app.quiet();
        sensor.quiet();
    }
}

fn after_a_restart_subscriptions_hold_and_messages_flow(broker: &mut Broker) {
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let gateway = Gateway::start(&url, broker.port, "", None);
    gateway.process.wait_for_line("connected to the broker");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    let mut sleeper = Sensor::connected(gateway.port, options("n2"));
    // One filter, so that there is one connection to wait for.
    for sensor in [&mut sensor, &mut sleeper] {
        assert!(sensor.subscribe_for("restart/1", Qos::ExactlyOnce).is_ok());
    }
    sleeper.node.sleep(Instant::now(), Duration::from_secs(60));
    sleeper.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
    App::connected(broker.port).publish("restart/1", "before", QoS::AtLeastOnce, false);
    assert_eq!(sensor.message().payload, "before");
    broker.down();
    gateway.process.wait_for_line("no connection to the broker");
    broker.up();
    let connected = || gateway.process.printed().matches("connected to the broker").count() > 1;
    wait_until("a reconnect", || {
        sensor.live(Duration::from_millis(20));
        connected()
    });
    let printed = gateway.process.printed();
    let last = printed.lines().rfind(|line| line.contains("connected to the broker")).unwrap();
    assert!(last.contains(&format!("session_present={}", broker.facts.keeps_sessions)), "{printed}");
    // Subscriptions that were issued again are in force once a later request was answered.
    assert!(sensor.subscribe_for("restart/2", Qos::AtLeastOnce).is_ok());
    App::connected(broker.port).publish("restart/1", "after", QoS::AtLeastOnce, false);
    next_but_repeated(&mut sensor, broker, "before", "after");
    assert_eq!(sensor.publish(name("a/b"), "up", Qos::ExactlyOnce, false), Outcome::Acknowledged);
    sleeper.node.wake(Instant::now());
    assert_eq!(sleeper.message().payload, "before");
    next_but_repeated(&mut sleeper, broker, "before", "after");
}

/// The next message is this one. A broker that kept its session over `kill -9` may not have kept our last acknowledgement, and
/// repeats what it was for.
#[track_caller]
fn next_but_repeated(sensor: &mut Sensor, broker: &Broker, repeated: &str, next: &str) {
    let mut message = sensor.message();
    while broker.facts.keeps_sessions && message.payload == repeated {
        message = sensor.message();
    }
    assert_eq!(message.payload, next);
}

fn a_broker_without_mqtt_5_is_named_and_tried_again(broker: &Broker) {
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let gateway = Gateway::start(&url, broker.port, "  protocol: 5\n", None);
    // RabbitMQ 3.10 closes where it should refuse.
    let words = ["unacceptable protocol version", "closed without a word"];
    wait_until("a word on the broker", || {
        words.iter().any(|words| gateway.process.printed().contains(words))
    });
    assert!(!gateway.process.printed().contains("connected to the broker"), "{}", gateway.process.printed());
}

#[test]
fn after_any_malformed_datagram_the_next_one_is_served() {
    let gateway = Gateway::beside(Beside::Embedded);
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    let mut rng = fastrand::Rng::with_seed(3);
    for len in (0..300).chain([1400, 9000, 65_000]) {
        let noise: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
        sensor.socket.send(&noise).unwrap();
    }
    sensor.live(Duration::from_millis(50));
    assert_eq!(sensor.publish(name("a/b"), "still", Qos::AtLeastOnce, false), Outcome::Acknowledged);
}

#[test]
fn mosquitto_sub_beside_the_embedded_broker_shows_what_sensors_say() {
    let gateway = Gateway::beside(Beside::Embedded);
    let port = gateway.broker_port.to_string();
    // Line by line, also into a pipe.
    let mut watching = std::process::Command::new("stdbuf");
    let watching = watching.args(["-oL", "mosquitto_sub", "-d", "-p", &port, "-t", "#", "-v"]);
    let watching = Process::start(watching);
    watching.wait_for_line("Subscribed");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    sensor.publish(name("a/b"), "21.5", Qos::AtLeastOnce, false);
    watching.wait_for_line("a/b 21.5");
}
