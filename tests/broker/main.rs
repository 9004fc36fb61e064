//! The embedded broker over TCP: the list of [`checks`], run on it and on Mosquitto, which tells whether the list is
//! right; and what only our own server can be asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so a test says no")]

mod checks;
mod client;
mod servers;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Stdio;
use std::thread::{scope, sleep};
use std::time::Duration;

use mqtt_sn_gateway::broker::{Fault, Limits, Whom};
use mqtt_sn_gateway::topic::ClientId;
use rumqttc::{ConnectReturnCode, Packet, QoS};

use client::{Client, publish};
use servers::{Mosquitto, Ours, missing, tool};

#[test]
fn our_broker_passes_the_checks() {
    let ours = Ours::start(Limits::default());
    run_checks(ours.port);
    let broker = ours.stop();
    assert_eq!(broker.counters().shed_queue_messages, 0);
}

#[test]
fn mosquitto_passes_the_checks() {
    let mosquitto = Mosquitto::start();
    run_checks(mosquitto.port);
}

/// All at once; a check that fails has said why on its thread.
#[track_caller]
fn run_checks(port: u16) {
    let failed: Vec<_> = scope(|scope| {
        let start = |(name, check): &(&'static str, checks::Check)| {
            let place = checks::Place { port, name };
            let check = *check;
            (*name, scope.spawn(move || check(&place)))
        };
        let running: Vec<_> = checks::CHECKS.iter().map(start).collect();
        running.into_iter().filter_map(|(name, check)| check.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "{} of {} checks failed: {failed:#?}", failed.len(), checks::CHECKS.len());
}

#[test]
fn mosquitto_sub_shows_what_is_published() {
    let ours = Ours::start(Limits::default());
    let port = ours.port.to_string();
    let watcher = tool("mosquitto_sub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-i",
            "watcher",
            "-t",
            "#",
            "-v",
            "-q",
            "1",
            "-C",
            "2",
            "-W",
            "15",
        ])
        .stdout(Stdio::piped())
        .spawn();
    let mut watcher = watcher.unwrap_or_else(|error| missing("mosquitto_sub", &error));
    let subscribed = (0..200).any(|_| {
        sleep(Duration::from_millis(50));
        ours.with(|broker, _| {
            broker.session("watcher").is_some_and(|session| !session.subscriptions.is_empty())
        })
    });
    assert!(subscribed, "mosquitto_sub did not subscribe");
    let mut p = Client::clean(ours.port, "p");
    p.publish(publish("sensors/kitchen", QoS::AtMostOnce, "21.5"));
    p.publish(publish("sensors/cellar", QoS::AtLeastOnce, "12.0"));
    let lines: Vec<_> = BufReader::new(watcher.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["sensors/kitchen 21.5", "sensors/cellar 12.0"]);
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn a_client_that_does_not_read_loses_its_own_messages_and_holds_up_nobody() {
    let limits = Limits { queue_bytes: 1 << 20, ..Limits::default() };
    let ours = Ours::start(limits);
    let mut asleep = Client::clean(ours.port, "asleep");
    asleep.subscribe("t", QoS::AtMostOnce);
    let mut p = Client::clean(ours.port, "p");
    let payload = "x".repeat(100_000);
    for _ in 0..400 {
        p.publish(publish("t", QoS::AtMostOnce, &payload));
    }
    p.publish(publish("other", QoS::AtLeastOnce, "the 40 MB before are handled"));
    let counters = ours.with(|broker, _| broker.counters().clone());
    assert!(counters.shed_slow_qos0 > 0);
    assert_eq!(counters.delivered + counters.shed_slow_qos0 + 10, 400, "10 wait: 1 MiB");
    // The answer to the first PINGREQ overtakes what still waits.
    let woken = asleep.take_all().len() + asleep.take_all().len();
    assert_eq!(woken as u64, 400 - counters.shed_slow_qos0);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read_either() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Connections inherit them; small buffers of the kernel are full sooner.
    socket2::SockRef::from(&listener).set_send_buffer_size(4096).unwrap();
    socket2::SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let ours = Ours::start_on(listener, Limits::default());
    let mut deaf = Client::clean(ours.port, "deaf");
    deaf.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let message = rumqttc::Publish { pkid: 1, ..publish("t", QoS::AtLeastOnce, "") };
    let mut octets = bytes::BytesMut::new();
    while octets.len() < 60_000 {
        Packet::Publish(message.clone()).write(&mut octets, usize::MAX).unwrap();
    }
    let blocked = (0..1_000).find_map(|_| deaf.stream().write_all(&octets).err());
    assert_eq!(blocked.map(|error| error.kind()), Some(ErrorKind::WouldBlock), "60 MB were answered");
    let published = || ours.with(|broker, _| broker.counters().published);
    let before = published();
    sleep(Duration::from_millis(300));
    assert_eq!(published(), before, "its answers pile up");
    let mut other = Client::clean(ours.port, "other");
    assert!(other.take_all().is_empty());
    // Stopping does not wait for it.
    let broker = ours.stop();
    assert!(deaf.stream().shutdown(Shutdown::Both).is_ok());
    assert_eq!(broker.clients().count(), 0);
}

#[test]
fn a_refusal_reaches_a_client_that_goes_on_sending() {
    let ours = Ours::start(Limits::default());
    for _ in 0..5 {
        let mut hasty = Client::open(ours.port);
        hasty.write(b"\x10\x0d\0\x04MQTT\x07\x02\0\x3c\0\x01a");
        hasty.write(&[0xC0, 0].repeat(500_000));
        assert!(matches!(hasty.recv(), Packet::ConnAck(ack) if ack.code != ConnectReturnCode::Success));
    }
}

#[test]
fn faults_are_injected_while_it_runs() {
    let ours = Ours::start(Limits::default());
    let mut a = Client::clean(ours.port, "a");
    let whom = || Whom::Client(ClientId::new("a").unwrap());
    ours.with(move |broker, now| broker.inject(now, Fault::CutSent { whom: whom(), after: 3 }));
    a.send(Packet::PingReq);
    assert_eq!(a.recv(), Packet::PingResp);
    a.send(Packet::PingReq);
    assert!(a.is_closed());
    let by = Duration::from_millis(200);
    let client = ClientId::new("a").unwrap();
    ours.with(move |broker, now| broker.inject(now, Fault::Delay { client, by }));
    let started = std::time::Instant::now();
    Client::clean(ours.port, "a");
    assert!(started.elapsed() >= by);
}

#[test]
fn a_stopped_server_closes_all_connections_and_gives_its_broker_back() {
    let ours = Ours::start(Limits::default());
    let (mut a, _) = Client::kept(ours.port, "a");
    a.publish(client::retained("t", QoS::AtLeastOnce, "x"));
    let port = ours.port;
    let broker = ours.stop();
    assert!(a.is_closed());
    assert_eq!(broker.retained().count(), 1);
    assert!(broker.session("a").is_some_and(|session| session.connection.is_none()));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
