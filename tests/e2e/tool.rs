//! `mqtt-sn-node` against the real gateway, as a user types it.

use mqtt_sn_gateway::mqtt::QoS;
use serde_json::Value;
use tempfile::TempDir;

use crate::app::App;
use crate::node::{expect_end, node};
use crate::process::{Beside, Gateway, free_udp};

#[test]
fn what_pub_publishes_is_at_the_broker() {
    let gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::subscribed(gateway.broker_port, "#");
    for (qos, expected) in [("0", QoS::AtMostOnce), ("1", QoS::AtLeastOnce), ("2", QoS::ExactlyOnce)] {
        expect_end(node(gateway.port, &["pub", "-t", "a/b", "-m", "21.5", "-q", qos]), 0);
        app.expect("a/b", "21.5", expected, false);
    }
    expect_end(node(gateway.port, &["pub", "--predefined", "1", "-m", "hi", "-q", "-1"]), 0);
    app.expect("pre/one", "hi", QoS::AtMostOnce, false);
}

#[test]
fn sub_prints_what_comes_and_ends_after_its_count() {
    let gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::connected(gateway.broker_port);
    app.publish("s/1", "kept", QoS::AtLeastOnce, true);
    let sub = node(gateway.port, &["sub", "-t", "s/#", "-v", "-C", "1", "-W", "20", "-q", "1"]);
    assert!(expect_end(sub, 0).contains("s/1 kept"));
}

#[test]
fn search_finds_the_gateway() {
    let gateway = Gateway::beside(Beside::Embedded);
    let found = expect_end(node(gateway.port, &["search", "-W", "2"]), 0);
    assert!(found.contains("42"), "{found}");
}

#[test]
fn where_nobody_listens_the_tool_says_so() {
    let said =
        expect_end(node(free_udp(), &["pub", "-t", "a/b", "-m", "x", "-q", "1", "--retry", "200ms"]), 69);
    assert!(said.contains("127.0.0.1"), "{said}");
}

#[test]
fn a_fleet_on_a_bad_radio_loses_nothing_and_doubles_nothing_at_qos_2() {
    for qos in ["1", "2"] {
        let gateway = Gateway::beside(Beside::Mosquitto);
        let broker = format!("mqtt://127.0.0.1:{}", gateway.broker_port);
        // Persistent sessions: a late copy of CONNECT would end a clean one, and with it what exactly once means.
        let fleet = node(
            gateway.port,
            &[
                "fleet",
                "--nodes",
                "50",
                "--rate",
                "2/s",
                "--qos",
                qos,
                "--retry",
                "500ms",
                "--loss",
                "10%",
                "--dup",
                "2%",
                "--reorder",
                "2%",
                "--duration",
                "5s",
                "--seed",
                "7",
                "-c",
                "--verify",
                &broker,
            ],
        );
        let table = expect_end(fleet, 0);
        assert!(table.contains("every promise kept"), "{table}");
    }
}

#[test]
fn a_fleet_with_sleepers_on_a_bad_radio_loses_nothing_either_way() {
    let folder = TempDir::new().unwrap();
    for qos in ["1", "2"] {
        let gateway = Gateway::beside(Beside::Mosquitto);
        let broker = format!("mqtt://127.0.0.1:{}", gateway.broker_port);
        let report = folder.path().join(qos);
        let fleet = "fleet --nodes 40 --sleepers 30% --keepalive 1 --rate 1/2s --down 1/s --retry 500ms --loss 10% \
                     --dup 2% --reorder 2% --duration 5s --seed 7 -c";
        let mut arguments: Vec<_> = fleet.split_whitespace().collect();
        arguments.extend(["--qos", qos, "--verify", &broker, "--report", report.to_str().unwrap()]);
        let table = expect_end(node(gateway.port, &arguments), 0);
        assert!(table.contains("every promise kept"), "{table}");
        // Nothing was promised that was not tried.
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        let number = |part: &str, name: &str| report[part][name].as_u64().unwrap();
        assert!(report["acked"].as_u64().unwrap() > 50 && report["naps"].as_u64().unwrap() > 12, "{report}");
        assert!(
            number("to_sensors", "acked") > 100 && number("to_sensors", "fetched_by_sleepers") > 12,
            "{report}"
        );
        assert!(number("to_sensors", "delivered") >= number("to_sensors", "acked"), "{report}");
        assert_eq!(number("verified", "lost") + number("to_sensors", "lost"), 0, "{report}");
        assert_eq!(number("to_sensors", "forgotten_with_clean_sessions"), 0, "{report}");
    }
}
