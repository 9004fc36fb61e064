//! A disk that fails, is full, or gives back something else than was written, beneath the real program.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Options, Outcome};
use mqtt_sn_gateway::wire::{Packet, PingReq, Qos, ReturnCode, TopicAck, TopicRef, decode};
use tempfile::TempDir;

use crate::apart::{apart, ip};
use crate::app::App;
use crate::cutter::Cutter;
use crate::process::{
    Beside, Gateway, Mosquitto, PATIENCE, Process, configuration, free_udp, gateway_program, receive,
    wait_until,
};
use crate::sensor::{Sensor, name, options};

/// More than fills a disk of the tests.
const MESSAGES_MAX: usize = 300;

/// Octets of some of them.
const LARGE: usize = 20_000;

#[test]
fn a_disk_that_fails_is_told_everywhere_and_used_again_when_it_works_and_costs_nothing_that_was_acknowledged()
{
    let limit = |gateway: &Gateway, octets: &str| {
        let (pid, limit) = (gateway.process.id().to_string(), format!("--fsize={octets}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    degrade("", |gateway| limit(gateway, "0"), |gateway| limit(gateway, "unlimited"));
}

#[test]
fn a_full_disk_is_told_everywhere_and_used_again_when_there_is_room_and_costs_nothing_that_was_acknowledged()
{
    if !apart(
        "disk::a_full_disk_is_told_everywhere_and_used_again_when_there_is_room_and_costs_nothing_that_was_acknowledged",
    ) {
        return;
    }
    ip("link set lo up");
    let dir = TempDir::new().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=4m", "none", dir.path().to_str().unwrap()]);
    let (store, filler) = (dir.path().join("state"), dir.path().join("filler"));
    let store = format!("store: {{ path: {} }}\n", store.display());
    degrade(&store, |_| fill(&filler), |_| fs::remove_file(&filler).unwrap());
}

#[test]
fn who_is_to_be_forgotten_on_a_full_disk_is_not_and_that_is_said() {
    if !apart("disk::who_is_to_be_forgotten_on_a_full_disk_is_not_and_that_is_said") {
        return;
    }
    ip("link set lo up");
    let dir = TempDir::new().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=4m", "none", dir.path().to_str().unwrap()]);
    let store = format!("\nstore: {{ path: {} }}\n", dir.path().join("state").display());
    let mut gateway = Gateway::start("mqtt://127.0.0.1:1", 1, &store, None);
    Sensor::connected(gateway.port, persistent("n1"));
    gateway.process.signal("TERM");
    gateway.process.wait_for_end();
    let config = gateway.folder().join("gateway.yaml");
    let forget =
        || Command::new(gateway_program()).args(["forget", "n1", "-c"]).arg(&config).output().unwrap();
    let filler = dir.path().join("filler");
    fill(&filler);
    let output = forget();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("store.redb") && said.contains("No space left on device"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    fs::remove_file(&filler).unwrap();
    assert!(String::from_utf8_lossy(&forget().stdout).contains("session"), "it is there, and goes");
}

#[test]
fn a_store_that_can_only_be_read_is_77_and_named() {
    if !apart("disk::a_store_that_can_only_be_read_is_77_and_named") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    mount(&["-t", "tmpfs", "none", path]);
    let folder = TempDir::new().unwrap();
    let store = format!("\nstore: {{ path: {path}/state }}\n");
    let config = configuration(folder.path(), "mqtt://127.0.0.1:1", free_udp(), &store);
    let start = || Process::start(Command::new(gateway_program()).arg("run").arg("-c").arg(&config));
    let process = start();
    process.wait_for_line("store opened");
    drop(process);
    mount(&["-o", "remount,ro", path]);
    let mut process = start();
    let code = process.wait_for_end().code();
    let printed = process.printed();
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.contains(path) && last.ends_with("Read-only file system (os error 30)"), "{printed}");
    assert_eq!(code, Some(77));
}

/// Takes what room there is.
fn fill(filler: &Path) {
    let mut file = fs::File::create(filler).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|len| len > 0) {}
}

/// Breaks and mends the disk beneath a gateway whose broker is out of reach.
fn degrade(store: &str, breaks: impl Fn(&Gateway), mends: impl Fn(&Gateway)) {
    let mosquitto = Mosquitto::that_names_subscriptions();
    let mut app = App::subscribed(mosquitto.port, "up/#");
    let cutter = Cutter::to(mosquitto.port);
    let url = format!("mqtt://127.0.0.1:{}", cutter.port);
    // The default action of a limit is to end who meets it; a disk has no such.
    let shielded = |command: &mut Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        *command = shell;
    };
    let mut gateway =
        Gateway::start_with(&url, cutter.port, &format!("\n{store}"), Some(mosquitto), shielded);
    let (mut sensor, mut unlucky) = left_alone(&gateway, &cutter);
    let mut acknowledged = Vec::new();
    let mut publish = |sensor: &mut Sensor, content: &str| {
        let outcome = sensor.publish(name("up/1"), content, Qos::ExactlyOnce, false);
        if outcome == Outcome::Acknowledged {
            acknowledged.push(content.to_owned());
        }
        outcome
    };
    assert_eq!(publish(&mut sensor, "before"), Outcome::Acknowledged);

    breaks(&gateway);
    // The one during which the disk fails is promised nothing, and perhaps told nothing.
    let mut fails = |number| publish(&mut unlucky, &format!("{number:0LARGE$}")) != Outcome::Acknowledged;
    assert!((0..MESSAGES_MAX).any(&mut fails), "the disk takes everything");
    gateway.process.wait_for_line("the store cannot be written, trying again");
    wait_until("bad health", || {
        let (code, said) = health(&gateway);
        code == Some(1) && said.contains("\nstore: cannot be written for ")
    });
    assert_eq!(publish(&mut sensor, "meanwhile"), Outcome::Refused(ReturnCode::Congestion));
    // Whose session cannot be kept is not given one.
    let mut other = Sensor::new(gateway.port, persistent("n2"));
    other.node.connect(Instant::now());
    let refused = other.wait_for(|event| match event {
        Event::ConnectRefused(code) => Some(Ok(*code)),
        Event::Connected => Some(Err("accepted")),
        _ => None,
    });
    assert_eq!(refused, Ok(ReturnCode::Congestion));

    mends(&gateway);
    gateway.process.wait_for_line("the store can be written again");
    wait_until("a store in good health", || health(&gateway).1.contains("\nstore: durable for "));
    assert_eq!(publish(&mut sensor, "after"), Outcome::Acknowledged);
    gateway.restart();
    cutter.come_back();
    judge(&mut app, &mut sensor, &acknowledged);
    wait_until("good health", || health(&gateway).0 == Some(0));
}

/// What was acknowledged comes, and nothing twice.
fn judge(app: &mut App, sensor: &mut Sensor, acknowledged: &[String]) {
    assert_eq!(sensor.publish(name("up/1"), "end", Qos::ExactlyOnce, false), Outcome::Acknowledged);
    let mut came = BTreeMap::<String, usize>::new();
    while !came.contains_key("end") {
        *came.entry(String::from_utf8(app.message().payload.to_vec()).unwrap()).or_default() += 1;
    }
    for content in acknowledged {
        assert!(came.contains_key(content), "acknowledged and lost: {}", content.trim_start_matches('0'));
    }
    let twice = came.iter().find(|(_, count)| **count != 1);
    assert!(twice.is_none(), "came twice: {twice:?}");
    app.quiet();
}

/// Two sensors, of which the second soon gives up, of a gateway whose broker has gone then.
fn left_alone(gateway: &Gateway, cutter: &Cutter) -> (Sensor, Sensor) {
    gateway.process.wait_for_line("connected to the broker");
    let sensor = Sensor::connected(gateway.port, persistent("n1"));
    let unlucky = Sensor::connected(gateway.port, hasty("n0"));
    cutter.leave();
    gateway.process.wait_for_line("no connection to the broker");
    (sensor, unlucky)
}

/// What `health` ends with and says.
fn health(gateway: &Gateway) -> (Option<i32>, String) {
    let config = gateway.folder().join("gateway.yaml");
    let ended = Command::new(gateway_program()).arg("health").arg("-c").arg(config).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap())
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success());
}

#[test]
fn a_store_that_somebody_deletes_or_replaces_costs_nothing_that_was_acknowledged() {
    type Deed = fn(&Path);
    let deeds: [(&str, Deed); 3] = [
        ("the file", |state| fs::remove_file(state.join("store.redb")).unwrap()),
        ("the directory", |state| fs::remove_dir_all(state).unwrap()),
        ("another file", |state| {
            fs::copy(state.join("store.redb"), state.join("copy")).unwrap();
            fs::rename(state.join("copy"), state.join("store.redb")).unwrap();
        }),
    ];
    for (what, deed) in deeds {
        let mosquitto = Mosquitto::that_names_subscriptions();
        let mut app = App::subscribed(mosquitto.port, "up/#");
        let cutter = Cutter::to(mosquitto.port);
        let url = format!("mqtt://127.0.0.1:{}", cutter.port);
        let mut gateway = Gateway::start(&url, cutter.port, "", Some(mosquitto));
        let (mut sensor, mut unlucky) = left_alone(&gateway, &cutter);
        let mut acknowledged = Vec::new();
        let mut publish = |sensor: &mut Sensor, content: &str| {
            let outcome = sensor.publish(name("up/1"), content, Qos::ExactlyOnce, false);
            if outcome == Outcome::Acknowledged {
                acknowledged.push(content.to_owned());
            }
        };
        publish(&mut sensor, "before");
        deed(&gateway.folder().join("state"));
        publish(&mut unlucky, "behind");
        gateway.process.wait_for_line("the store cannot be written, trying again");
        if what != "another file" {
            gateway.process.wait_for_line("the store can be written again");
            publish(&mut sensor, "after");
        }
        gateway.restart();
        cutter.come_back();
        judge(&mut app, &mut sensor, &acknowledged);
    }
}

/// Cuts and flipped bits of each file.
const DAMAGES: (usize, usize) = (12, 36);

/// Where redb says which of two commits is the newest: nothing confirms it in a file that was not closed.
const NEWEST: usize = 9;

#[test]
fn a_store_that_was_cut_or_has_a_flipped_bit_is_refused_or_gives_what_was_put_into_it() {
    let mut gateway = Gateway::beside(Beside::Mosquitto);
    let mut app = App::connected(gateway.broker_port);
    let mut sleeper = Sensor::connected(gateway.port, persistent("sleeper"));
    let mut witness = Sensor::connected(gateway.port, persistent("witness"));
    sleeper.subscribe("s/1", Qos::AtLeastOnce);
    sleeper.node.sleep(Instant::now(), Duration::from_secs(3600));
    sleeper.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
    witness.subscribe("s/1", Qos::AtLeastOnce);
    let payloads: Vec<String> = (0..8).map(|number| number.to_string().repeat(1 + 700 * number)).collect();
    for payload in &payloads {
        app.publish("s/1", payload, QoS::AtLeastOnce, false);
        witness.message();
    }
    assert_eq!(witness.publish(name("w"), "seen", Qos::ExactlyOnce, false), Outcome::Acknowledged);
    gateway.process.kill();
    let file = gateway.folder().join("state/store.redb");
    let open = fs::read(&file).unwrap();
    gateway.start_again();
    gateway.process.signal("TERM");
    gateway.process.wait_for_end();
    let closed = fs::read(&file).unwrap();

    let mut rng = fastrand::Rng::with_seed(4);
    let mut images = vec![open.clone(), closed.clone()];
    for image in [&open, &closed] {
        let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0 && *at != NEWEST).collect();
        let (cuts, flips) = DAMAGES;
        images.extend((0..cuts).map(|_| image[..rng.usize(..image.len())].to_vec()));
        images.extend((0..flips).map(|_| {
            let mut image = image.clone();
            image[used[rng.usize(..used.len())]] ^= 1 << rng.u8(..8);
            image
        }));
    }
    let next = AtomicUsize::new(0);
    let started = AtomicUsize::new(0);
    thread::scope(|scope| {
        let work = || {
            while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                started.fetch_add(usize::from(starts_right(image, &payloads)), Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| assert!(worker.join().is_ok(), "see above"));
    });
    let (started, all) = (started.into_inner(), images.len());
    println!("{} damaged stores, {started} of {all} started", all - 2);
    assert!(started >= 2 && all - started > all / 4);
}

/// Starts a gateway on such a file. It gives the sleeper all of these, or does not start, says why and what to do, and leaves the
/// file as it is.
fn starts_right(image: &[u8], payloads: &[String]) -> bool {
    let folder = TempDir::new().unwrap();
    let port = free_udp();
    let config = configuration(folder.path(), "mqtt://127.0.0.1:1", port, "");
    let file = folder.path().join("state/store.redb");
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(&file, image).unwrap();
    let mut process = Process::start(Command::new(gateway_program()).arg("run").arg("-c").arg(config));
    wait_until("a start, or not", || process.printed().contains("listening on udp") || !process.is_running());
    if process.is_running() {
        assert_eq!(fetch(port), payloads);
        return true;
    }
    let code = process.wait_for_end().code();
    let printed = process.printed();
    let last = printed.lines().last().unwrap_or_default();
    let told = format!("mqtt-sn-gateway: the store {} is damaged: ", file.display());
    let on = "; to start without what is in it, move the file away";
    assert!(code == Some(78) && last.starts_with(&told) && last.ends_with(on), "{code:?} {printed}");
    assert_eq!(fs::read(&file).unwrap(), image, "the file is another one");
    false
}

/// What waits for the sleeper, who knows nothing but its name.
fn fetch(port: u16) -> Vec<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let say = |packet: Packet<'_>| {
        let mut octets = BytesMut::new();
        packet.encode(&mut octets).unwrap();
        socket.send(&octets).unwrap();
    };
    let (mut payloads, mut buffer) = (Vec::new(), vec![0; 65_535]);
    say(Packet::PingReq(PingReq { client_id: b"sleeper" }));
    loop {
        let len = receive(&socket, &mut buffer).unwrap();
        match decode(&buffer[..len]).unwrap().packet {
            Packet::Publish(publish) => {
                if !publish.dup {
                    payloads.push(String::from_utf8(publish.data.to_vec()).unwrap());
                }
                let TopicRef::Normal(topic_id) = publish.topic else { panic!("{publish:?}") };
                let ack = TopicAck { topic_id, msg_id: publish.msg_id, code: ReturnCode::Accepted };
                say(Packet::PubAck(ack));
            }
            Packet::PingResp => return payloads,
            other => panic!("{other}"),
        }
    }
}

fn persistent(id: &str) -> Options {
    Options { clean_session: false, ..options(id) }
}

/// A sensor that soon gives up.
fn hasty(id: &str) -> Options {
    Options { retry_interval: Duration::from_millis(500), retry_limit: 5, ..persistent(id) }
}
