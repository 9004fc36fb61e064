//! Messages of every kind in both directions, beside both brokers and in both versions of MQTT.

use std::time::Duration;

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Filter, Outcome, Topic, Will};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use crate::app::App;
use crate::process::{Beside, Gateway, Process};
use crate::sensor::{Sensor, name, options};

fn beside_both(test: impl Fn(Gateway)) {
    for broker in [Beside::Embedded, Beside::Mosquitto, Beside::MosquittoIn311] {
        eprintln!("beside {broker:?}");
        test(Gateway::beside(broker));
    }
}

#[test]
fn a_sensors_message_of_every_qos_reaches_the_broker() {
    beside_both(|gateway| {
        let mut app = App::subscribed(gateway.broker_port, "#");
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        assert_eq!(sensor.publish(name("a/b"), "zero", Qos::AtMostOnce, false), Outcome::Sent);
        app.expect("a/b", "zero", QoS::AtMostOnce, false);
        assert_eq!(sensor.publish(name("a/b"), "one", Qos::AtLeastOnce, false), Outcome::Acknowledged);
        app.expect("a/b", "one", QoS::AtLeastOnce, false);
        assert_eq!(sensor.publish(name("a/b"), "two", Qos::ExactlyOnce, false), Outcome::Acknowledged);
        app.expect("a/b", "two", QoS::ExactlyOnce, false);
        assert_eq!(sensor.publish(Topic::Predefined(1), "pre", Qos::MinusOne, false), Outcome::Sent);
        app.expect("pre/one", "pre", QoS::AtMostOnce, false);
        assert_eq!(
            sensor.publish(Topic::Short(*b"ab"), "ab", Qos::AtLeastOnce, false),
            Outcome::Acknowledged
        );
        app.expect("ab", "ab", QoS::AtLeastOnce, false);
        app.quiet();
    });
}

#[test]
fn a_message_of_every_qos_comes_to_the_sensor() {
    beside_both(|gateway| {
        let mut app = App::connected(gateway.broker_port);
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        sensor.subscribe("s/1", Qos::ExactlyOnce);
        for (qos, expected) in [
            (QoS::AtMostOnce, Qos::AtMostOnce),
            (QoS::AtLeastOnce, Qos::AtLeastOnce),
            (QoS::ExactlyOnce, Qos::ExactlyOnce),
        ] {
            app.publish("s/1", "on", qos, false);
            let message = sensor.message();
            assert_eq!((message.topic, message.qos, message.retain), (name("s/1"), expected, false));
            assert_eq!(message.payload, "on");
        }
    });
}

#[test]
fn a_wildcard_brings_topics_the_sensor_has_never_heard_of() {
    beside_both(|gateway| {
        let mut app = App::connected(gateway.broker_port);
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        sensor.subscribe("s/+/state", Qos::AtLeastOnce);
        for topic in ["s/1/state", "s/2/state", "s/1/state"] {
            app.publish(topic, "on", QoS::AtLeastOnce, false);
            assert_eq!(sensor.message().topic, name(topic));
        }
        app.publish("s/1/other", "on", QoS::AtLeastOnce, false);
        app.publish("s/3/state", "last", QoS::AtLeastOnce, false);
        assert_eq!(sensor.message().payload, "last");
    });
}

#[test]
fn retained_messages_are_kept_at_the_broker_and_come_to_a_new_subscriber() {
    beside_both(|gateway| {
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        let kept = sensor.publish(name("r/1"), "kept", Qos::AtLeastOnce, true);
        assert_eq!(kept, Outcome::Acknowledged);
        let mut app = App::subscribed(gateway.broker_port, "r/#");
        app.expect("r/1", "kept", QoS::AtLeastOnce, true);
        sensor.subscribe("r/1", Qos::AtMostOnce);
        assert!(sensor.message().retain);
        // Cleared by an empty one.
        sensor.publish(name("r/1"), "", Qos::AtLeastOnce, true);
        app.expect("r/1", "", QoS::AtLeastOnce, false);
        let mut late = App::subscribed(gateway.broker_port, "r/#");
        late.quiet();
    });
}

#[test]
fn two_subscribers_of_one_filter_get_one_copy_each() {
    beside_both(|gateway| {
        let mut app = App::connected(gateway.broker_port);
        let mut sensors = ["n1", "n2"].map(|id| Sensor::connected(gateway.port, options(id)));
        for sensor in &mut sensors {
            sensor.subscribe("s/#", Qos::AtLeastOnce);
        }
        for payload in ["one", "two"] {
            app.publish("s/1", payload, QoS::AtLeastOnce, false);
            for sensor in &mut sensors {
                assert_eq!(sensor.message().payload, payload);
            }
        }
    });
}

#[test]
fn the_will_of_a_sensor_that_vanishes_is_published_and_that_of_one_that_leaves_is_not() {
    beside_both(|gateway| {
        let mut app = App::subscribed(gateway.broker_port, "w/#");
        let with_will = |id: &str| {
            let mut options = options(id);
            options.keep_alive = Duration::from_secs(1);
            let topic = TopicName::new(format!("w/{id}")).unwrap();
            options.will = Some(Will { topic, message: "gone".into(), qos: Qos::AtLeastOnce, retain: false });
            Sensor::connected(gateway.port, options)
        };
        let mut leaves = with_will("leaves");
        leaves.node.disconnect(std::time::Instant::now());
        leaves.live(Duration::from_millis(100));
        drop(with_will("vanishes"));
        app.expect("w/vanishes", "gone", QoS::AtLeastOnce, false);
        app.quiet();
    });
}

#[test]
fn messages_of_60_kilobytes_pass_both_ways() {
    beside_both(|gateway| {
        let large = "x".repeat(60_000);
        let mut app = App::subscribed(gateway.broker_port, "big/up");
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        sensor.subscribe("big/down", Qos::AtLeastOnce);
        assert_eq!(sensor.publish(name("big/up"), &large, Qos::AtLeastOnce, false), Outcome::Acknowledged);
        app.expect("big/up", &large, QoS::AtLeastOnce, false);
        app.publish("big/down", &large, QoS::AtLeastOnce, false);
        assert_eq!(sensor.message().payload.len(), 60_000);
    });
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

#[test]
fn a_sensor_unsubscribes_and_hears_no_more() {
    beside_both(|gateway| {
        let mut app = App::connected(gateway.broker_port);
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        for filter in ["s/1", "s/2"] {
            sensor.subscribe(filter, Qos::AtLeastOnce);
        }
        let filter = Filter::Name(mqtt_sn_gateway::topic::TopicFilter::new("s/1").unwrap());
        sensor.node.unsubscribe(std::time::Instant::now(), filter).unwrap();
        sensor.wait_for(|event| {
            matches!(event, mqtt_sn_gateway::node::Event::Unsubscribed { .. }).then_some(())
        });
        app.publish("s/1", "unheard", QoS::AtLeastOnce, false);
        app.publish("s/2", "heard", QoS::AtLeastOnce, false);
        assert_eq!(sensor.message().payload, "heard");
    });
}

#[test]
fn overlapping_filters_bring_one_copy_to_each_client() {
    beside_both(|gateway| {
        let mut app = App::connected(gateway.broker_port);
        let mut sensors = ["n1", "n2"].map(|id| Sensor::connected(gateway.port, options(id)));
        for filter in ["ov/#", "ov/+", "ov/a"] {
            sensors[0].subscribe(filter, Qos::ExactlyOnce);
        }
        sensors[1].subscribe("ov/+", Qos::AtLeastOnce);
        for payload in ["one", "two"] {
            app.publish("ov/a", payload, QoS::ExactlyOnce, false);
        }
        for sensor in &mut sensors {
            for payload in ["one", "two"] {
                assert_eq!(sensor.message().payload, payload);
            }
            sensor.live(Duration::from_millis(300));
            assert_eq!(sensor.waiting_messages(), 0);
        }
    });
}
