//! A broker that is absent, goes, and returns.

use std::net::UdpSocket;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Loss, Outcome};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};

use crate::app::App;
use crate::node::node;
use crate::process::{Beside, Gateway, Mosquitto, Process, free_tcp, wait_until};
use crate::sensor::{Sensor, name, options};

#[test]
fn without_a_broker_the_gateway_runs_says_so_and_connects_when_it_can() {
    let mut mosquitto = Mosquitto::start();
    mosquitto.down();
    let url = format!("mqtt://127.0.0.1:{}", mosquitto.port);
    let mut gateway = Gateway::start(&url, mosquitto.port, "", None);
    gateway.process.wait_for_line("no connection to the broker");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    let kept = sensor.publish(name("a/b"), "kept", Qos::AtLeastOnce, true);
    assert_eq!(kept, Outcome::Acknowledged);
    sensor.subscribe("s/1", Qos::AtLeastOnce);
    mosquitto.up();
    gateway.process.wait_for_line("connected to the broker");
    let mut app = App::connected(mosquitto.port);
    // What was subscribed while the broker was away holds.
    wait_until("a delivery", || {
        app.publish("s/1", "on", QoS::AtMostOnce, true);
        sensor.live(Duration::from_millis(50));
        sensor.node.counters().frames_received > 4
    });
    assert_eq!(sensor.message().payload, "on");
    // As is what was published.
    App::subscribed(mosquitto.port, "a/b").expect("a/b", "kept", QoS::AtLeastOnce, true);
    assert!(gateway.process.is_running());
}

#[test]
fn without_a_broker_messages_are_refused_where_nothing_is_to_be_kept() {
    for more in ["  outage: reject\n", "  outage: queue\nstore: { path: none }\n"] {
        let gateway = Gateway::start("mqtt://127.0.0.1:1", 1, more, None);
        gateway.process.wait_for_line("no connection to the broker");
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let refused = sensor.publish(name("a/b"), "lost?", qos, false);
            assert_eq!(refused, Outcome::Refused(ReturnCode::Congestion), "{more}");
        }
    }
}

#[test]
fn after_a_restart_of_the_broker_subscriptions_are_issued_again_and_messages_flow() {
    let mut gateway = Gateway::beside(Beside::Mosquitto);
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    sensor.subscribe("s/1", Qos::AtLeastOnce);
    let mosquitto = gateway.mosquitto.as_mut().unwrap();
    for round in 1..=2 {
        mosquitto.down();
        gateway.process.wait_for_line("no connection to the broker");
        mosquitto.up();
        wait_until("a reconnect", || {
            gateway.process.printed().matches("connected to the broker").count() > round
        });
        assert_eq!(sensor.publish(name("a/b"), "up", Qos::ExactlyOnce, false), Outcome::Acknowledged);
        let mut app = App::connected(mosquitto.port);
        app.publish("s/1", "on", QoS::AtLeastOnce, false);
        assert_eq!(sensor.message().payload, "on");
    }
}

#[test]
fn a_broker_that_refuses_is_told_in_words_and_tried_again() {
    let port = free_tcp();
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let gateway = Gateway::start(&format!("mqtt://127.0.0.1:{port}"), port, "", None);
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, &[0x20, 0x02, 0x00, 0x05]).unwrap();
        gateway.process.wait_for_line("not authorized");
    }
    // Sensors are served meanwhile.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(&[3, 1, 0], ("127.0.0.1", gateway.port)).unwrap();
    let mut buffer = [0; 16];
    socket.set_read_timeout(Some(crate::process::PATIENCE)).unwrap();
    assert_eq!(
        crate::process::receive(&socket, &mut buffer).map(|len| buffer[..len].to_vec()).unwrap(),
        [3, 2, 42]
    );
}

#[test]
fn a_broker_that_restarts_and_hangs_again_and_again_under_load_costs_no_message() {
    come_and_go_under_load("aggregating", "1");
}

#[test]
fn a_broker_that_restarts_and_hangs_again_and_again_under_load_costs_no_message_of_clients_with_own_links() {
    come_and_go_under_load("transparent", "1");
}

#[test]
fn a_broker_that_restarts_and_hangs_again_and_again_costs_no_message_on_two_threads() {
    come_and_go_under_load("transparent", "2");
}

fn come_and_go_under_load(mode: &str, threads: &str) {
    let mosquitto = Mosquitto::persistent();
    let verify = format!("mqtt://127.0.0.1:{}", mosquitto.port);
    // On the gateway's own link, longer than a slow disk may take, or subscriptions are refused, and granted while the broker is away.
    let patience = if mode == "aggregating" { "1500ms" } else { "500ms" };
    let more = format!("  mode: {mode}\n  ack_timeout: {patience}\n");
    let mut gateway = Gateway::start_with(&verify, mosquitto.port, &more, Some(mosquitto), |command| {
        command.args(["--threads", threads]);
    });
    gateway.process.wait_for_line("connected to the broker");
    let mut fleets = ["1", "2"].map(|qos| {
        let fleet = "fleet --nodes 20 --spread 1s --sleepers 30% --keepalive 1 --rate 1/s --down 1/2s --retry 500ms \
                     --retry-limit 100 --loss 2% --duration 1h --settle 60s -c";
        let topic = format!("q{qos}/{{node}}");
        let mut arguments: Vec<_> = fleet.split_whitespace().collect();
        arguments.extend(["--seed", qos, "--qos", qos, "--topic", &topic, "--verify", &verify]);
        node(gateway.port, &arguments)
    });
    // Every sensor's subscription is at the broker before that goes away for the first time.
    let mosquitto = gateway.mosquitto.as_mut().unwrap();
    wait_until("the subscription of each sensor", || mosquitto.subscriptions("/down") >= 40);
    for round in 0..6 {
        if round % 2 == 0 {
            mosquitto.leave();
            sleep(Duration::from_secs(1));
            mosquitto.up();
        } else {
            mosquitto.signal("STOP");
            // Longer than the gateway waits for an acknowledgement.
            sleep(Duration::from_secs(2));
            mosquitto.signal("CONT");
        }
        let returned = Instant::now();
        App::subscribed(mosquitto.port, "+/+").message();
        let what = ["restarted", "hung"][round % 2];
        println!("{mode}, a broker that had {what}: a message {:.0?} after its return", returned.elapsed());
        sleep(Duration::from_secs(1));
    }
    fleets.iter().for_each(|fleet| fleet.signal("INT"));
    for fleet in &mut fleets {
        let end = Instant::now() + Duration::from_secs(150);
        while fleet.is_running() && Instant::now() < end {
            sleep(Duration::from_millis(20));
        }
        let table = fleet.printed();
        println!("{table}");
        assert_eq!(fleet.wait_for_end().code(), Some(0));
        assert!(table.contains("every promise kept"));
    }
}

/// Mosquitto closes the older connection without a word, in MQTT 5 too; mosquitto_sub comes back each time, as our link does.
#[test]
fn another_connection_with_a_clients_id_is_given_way_to_and_the_client_may_come_again() {
    let mosquitto = Mosquitto::start();
    let (url, port) = (format!("mqtt://127.0.0.1:{}", mosquitto.port), mosquitto.port.to_string());
    let gateway = Gateway::start(&url, mosquitto.port, "  mode: transparent\n", None);
    gateway.process.wait_for_line("connected to the broker");
    let mut sensor = Sensor::connected(gateway.port, options("n1"));
    let mut other = Sensor::connected(gateway.port, options("n2"));
    let mut stranger = Command::new("mosquitto_sub");
    let stranger = Process::start(stranger.args(["-p", &port, "-i", "n1", "-t", "x"]));
    let end = sensor.wait_for(|event| match event {
        Event::ConnectionLost(loss) => Some(*loss),
        _ => None,
    });
    assert_eq!(end, Loss::Disconnected);
    gateway.process.wait_for_line("client dismissed: its link to the broker is lost");
    // Not at the first sight of the other.
    let taken = mosquitto.printed().matches("already connected, closing old connection").count();
    assert!(taken >= 7, "{}", mosquitto.printed());
    // Nobody else notices, and the id is the other's for as long as the client is away.
    assert_eq!(other.publish(name("a/b"), "up", Qos::AtLeastOnce, false), Outcome::Acknowledged);
    assert!(
        !gateway.process.printed().contains("no connection to the broker"),
        "{}",
        gateway.process.printed()
    );
    drop(stranger);
    sensor.node.connect(Instant::now());
    sensor.wait_for(|event| matches!(event, Event::Connected).then_some(()));
    assert_eq!(sensor.publish(name("a/b"), "up", Qos::AtLeastOnce, false), Outcome::Acknowledged);
}
