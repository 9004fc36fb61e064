//! What other clients of brokers get wrong: the bugs met in rumqttc 0.25.1 and its fork, one test each, in the order of
//! the catalogue. Each shows that [`Connection`] does the right thing against the broker that brought the bug out.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::broker::{Fault, Kind, Limits, Memory};
use mqtt_sn_gateway::mqtt::{Connection, Event, Options, Protocol, QoS, Session, Token, WINDOW_MAX};
use mqtt_sn_gateway::topic::TopicFilter;
use rumqttc::{Packet, PubAck, PubComp, PubRec, PubRel, Publish};

use crate::translator::{Meaning, Translator};
use crate::world::{World, id, message, options};

in_both_versions! {
    a_missing_acknowledgement_and_a_lost_session_do_not_livelock,
    the_id_of_an_open_release_is_not_handed_out_again,
    a_publish_that_a_pubcomp_made_room_for_completes,
    twenty_unfinished_messages_survive_a_resumption_with_a_small_window,
    five_hundred_messages_are_repeated_in_one_buffer,
    a_new_process_is_not_upset_by_the_open_exchanges_of_the_old_one,
    a_release_of_an_unknown_id_is_answered_and_does_not_end_the_connection,
    a_repeated_exactly_once_message_is_handed_on_once,
    stray_acknowledgements_do_not_end_the_connection,
    a_broker_without_qos_2_ends_such_a_publish_with_puback,
    a_blocked_socket_loses_nothing,
    connection_attempts_that_are_cut_do_no_harm,
    the_id_of_an_unanswered_subscribe_is_not_handed_out_again,
    a_batch_of_publishes_is_one_write,
    an_idle_connection_with_the_largest_window_is_small,
    nothing_vanishes_with_a_lost_session,
    acknowledgements_that_arrived_count_although_the_connection_ended,
    a_message_too_large_does_not_come_again_for_ever,
    a_message_on_no_topic_does_not_come_again_for_ever,
    a_full_window_does_not_hold_back_settlements,
    a_silent_broker_is_noticed_and_a_busy_one_is_not_pinged,
    octets_that_are_no_packet_end_the_connection_and_no_more,
}

/// A publisher "p" and a broker; the publisher is connected.
fn world(protocol: Protocol, change: impl FnOnce(&mut Options)) -> World {
    let mut options = options(protocol, "p");
    change(&mut options);
    let mut world = World::new(Limits::default());
    world.client(options);
    world.run();
    world
}

/// The same and a subscriber "s" to `t` with QoS 2, connected by a client that settles nothing by itself.
fn world_with_subscriber(protocol: Protocol, change: impl FnOnce(&mut Options)) -> World {
    let mut world = world(protocol, change);
    let subscriber = world.client(options(protocol, "s"));
    world.subscribe(subscriber, QoS::ExactlyOnce);
    world.run();
    world.clients[subscriber].events.clear();
    world
}

fn withhold(client: &str, kind: Kind, skip: usize, count: usize) -> Fault {
    Fault::Withhold { client: id(client), kind, skip, count }
}

/// All packets of the next output.
fn packets(connection: &mut Connection, now: std::time::Instant) -> Vec<Packet> {
    let output = connection.take_output(now).unwrap_or_default();
    let mut stream = BytesMut::new();
    match connection.options().protocol {
        Protocol::V4 => stream.extend_from_slice(&output),
        Protocol::V5 => {
            for meaning in Translator::default().up(&output) {
                let Meaning::Octets(octets) = meaning else { continue };
                stream.extend_from_slice(&octets);
            }
        }
    }
    std::iter::from_fn(|| (!stream.is_empty()).then(|| Packet::read(&mut stream, usize::MAX).unwrap()))
        .collect()
}

fn healthy(world: &World) {
    for client in &world.clients {
        assert_eq!(client.failures, [], "no failure");
        assert_eq!(client.connection.unfinished(), 0, "nothing unfinished");
        assert!(client.connection.is_connected());
    }
}

/// Case A (rumqttc #1056, #1014): one acknowledgement is missing while the packet ids come round, then the broker
/// loses the session. There it livelocks for ever; here the id is not used again and everything completes.
fn a_missing_acknowledgement_and_a_lost_session_do_not_livelock(protocol: Protocol) {
    let mut world = world(protocol, |options| options.window = 10);
    world.inject(withhold("p", Kind::PubAck, 0, 1));
    let mut tokens = vec![world.publish(0, QoS::AtLeastOnce, "stuck")];
    world.run();
    for n in 0..70_000 {
        tokens.push(world.publish(0, QoS::AtLeastOnce, n));
        world.run();
        world.clients[0].events.clear();
    }
    assert_eq!(world.clients[0].connection.unfinished(), 1);
    world.inject(Fault::ForgetSession { client: id("p") });
    world.run_for(Duration::from_secs(600));
    assert_eq!(world.clients[0].completed(), [tokens[0].unwrap()]);
    assert_eq!(world.clients[0].connects, 2);
    healthy(&world);
}

/// Case C: the id of a QoS 2 publish is not used again between PUBREC and PUBCOMP.
fn the_id_of_an_open_release_is_not_handed_out_again(protocol: Protocol) {
    let mut world = world(protocol, |options| options.window = 10);
    world.inject(withhold("p", Kind::PubComp, 0, 1));
    world.publish(0, QoS::ExactlyOnce, "stuck");
    world.run();
    let now = world.now;
    for round in 0..70_000 {
        let connection = &mut world.clients[0].connection;
        connection.publish(message(QoS::AtLeastOnce, "x")).unwrap();
        let Packet::Publish(publish) = &packets(connection, now)[0] else { panic!() };
        assert_ne!(publish.pkid, 1, "round {round}");
        connection.handle_bytes(now, &[&[0x40, 2][..], &publish.pkid.to_be_bytes()].concat()).unwrap();
    }
    assert_eq!(world.clients[0].connection.unfinished(), 1);
}

/// Case B: a publish that could leave only after a PUBCOMP is known when its PUBACK comes.
fn a_publish_that_a_pubcomp_made_room_for_completes(protocol: Protocol) {
    let mut world = world(protocol, |options| options.window = 1);
    world.inject(withhold("p", Kind::PubComp, 0, 1));
    let first = world.publish(0, QoS::ExactlyOnce, 1).unwrap();
    let second = world.publish(0, QoS::AtLeastOnce, 2).unwrap();
    world.run();
    assert_eq!(world.clients[0].completed(), []);
    world.inject(Fault::Release { client: id("p") });
    world.run();
    assert_eq!(world.clients[0].completed(), [first, second]);
    assert_eq!(world.clients[0].connection.counters().strays, 0);
    healthy(&world);
}

/// Case D: what is repeated on a resumed session respects the window, and nothing is overwritten.
fn twenty_unfinished_messages_survive_a_resumption_with_a_small_window(protocol: Protocol) {
    for memory in [Memory::Kept, Memory::Lost] {
        let mut world = world_with_subscriber(protocol, |options| options.window = 5);
        world.inject(withhold("p", Kind::PubAck, 0, usize::MAX));
        let tokens: Vec<Token> = (0..20).map(|n| world.publish(0, QoS::AtLeastOnce, n).unwrap()).collect();
        world.run();
        world.inject(Fault::Release { client: id("p") });
        world.cut(0, true);
        if memory == Memory::Lost {
            world.inject(Fault::ForgetSession { client: id("p") });
        }
        for _ in 0..3 {
            world.run();
            world.clients[1].settle_all(); // the broker sends it 20 at a time
        }
        assert_eq!(world.clients[0].completed(), tokens);
        let mut seen = world.clients[1].payloads();
        seen.sort_unstable_by_key(|payload| payload.parse::<u32>().unwrap());
        seen.dedup();
        assert_eq!(seen, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
        healthy(&world);
    }
}

/// Case F: a resumption costs one write, not one timer tick for every message.
fn five_hundred_messages_are_repeated_in_one_buffer(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    world.inject(withhold("p", Kind::PubAck, 0, usize::MAX));
    for n in 0..500 {
        world.publish(0, QoS::AtLeastOnce, n);
    }
    world.run();
    world.cut(0, true);
    world.connect(0);
    while world.clients[0].connection.counters().resent == 0 {
        world.send(0);
        world.deliver_up(0, usize::MAX);
        world.serve();
        world.deliver_down(0, usize::MAX);
    }
    let repeated = packets(&mut world.clients[0].connection, world.now);
    assert_eq!(repeated.len(), 500);
    assert!(repeated.iter().all(|packet| matches!(packet, Packet::Publish(publish) if publish.dup)));
}

/// Case L (rumqttc #1053): a new process meets QoS 2 exchanges that the old one left open. There it reconnects some
/// thousand times a second; here the session is removed, once.
fn a_new_process_is_not_upset_by_the_open_exchanges_of_the_old_one(protocol: Protocol) {
    let mut world = world_with_subscriber(protocol, |_| {});
    world.inject(withhold("s", Kind::PubRel, 0, usize::MAX));
    for n in 0..5 {
        world.publish(0, QoS::ExactlyOnce, n);
    }
    world.run();
    world.clients[1].settle_all();
    world.run();
    assert_eq!(world.broker.session("s").unwrap().releasing.len(), 5);
    world.cut(1, true);
    world.clients[1].online = false;

    world.inject(Fault::Release { client: id("s") });
    let subscriber = world.client(options(protocol, "s"));
    world.subscribe(subscriber, QoS::ExactlyOnce);
    world.run();
    let client = &world.clients[subscriber];
    assert_eq!(client.connects, 3, "look, remove, begin");
    assert_eq!(client.failures, []);
    assert_eq!(client.payloads(), [""; 0]);
    assert!(client.events.contains(&Event::Connected { session_present: false }));
    world.publish(0, QoS::ExactlyOnce, "new");
    world.run();
    assert_eq!(world.clients[subscriber].payloads(), ["new"]);
}

/// Case L, the other half: a PUBREL for an id that nobody knows is answered.
fn a_release_of_an_unknown_id_is_answered_and_does_not_end_the_connection(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    world.inject(Fault::Send { client: id("p"), packet: Packet::PubRel(PubRel::new(77)) });
    world.run();
    assert_eq!(world.broker.counters().stray_acks, 1, "the PUBCOMP has come");
    assert_eq!(world.clients[0].connects, 1);
    healthy(&world);
}

/// Case J: a QoS 2 message that the broker repeats is handed on once, over two restarts of the broker.
fn a_repeated_exactly_once_message_is_handed_on_once(protocol: Protocol) {
    let mut world = world_with_subscriber(protocol, |_| {});
    let count = 300;
    for n in 0..count {
        world.publish(0, QoS::ExactlyOnce, n);
        if n % 7 == 0 {
            world.run();
            world.clients[1].settle_all();
        }
        if n % 100 == 50 {
            world.run();
            world.broker.restart(Memory::Kept); // unsettled and unreleased messages come again
        }
        if n % 100 == 75 {
            world.clients[1].settle_all();
            world.broker.restart(Memory::Kept); // PUBRECs on their way are lost
        }
    }
    for _ in 0..count {
        world.run();
        world.clients[1].settle_all();
    }
    assert_eq!(world.clients[1].payloads(), (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(world.clients[1].connection.counters().duplicates > 0, "some were repeated");
    healthy(&world);
}

/// Case K: stray acknowledgements are counted, no reason to disconnect.
fn stray_acknowledgements_do_not_end_the_connection(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    for packet in [
        Packet::PubAck(PubAck::new(9)),
        Packet::PubRec(PubRec::new(9)),
        Packet::PubComp(PubComp::new(9)),
        Packet::PubAck(PubAck::new(u16::MAX)),
    ] {
        world.inject(Fault::Send { client: id("p"), packet });
        world.run();
    }
    // The broker answers the PUBREL that the stray PUBREC brought with a PUBCOMP: one more.
    assert_eq!(world.clients[0].connection.counters().strays, 5);
    let token = world.publish(0, QoS::ExactlyOnce, "m").unwrap();
    world.run();
    assert_eq!(world.clients[0].completed(), [token]);
    assert_eq!(world.clients[0].connects, 1);
    healthy(&world);
}

/// RabbitMQ 3.10 answers a QoS 2 publish with PUBACK and is done with it: so is its publisher, who would else wait for ever,
/// with its window full after sixteen of them.
fn a_broker_without_qos_2_ends_such_a_publish_with_puback(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    world.inject(withhold("p", Kind::PubRec, 0, usize::MAX));
    let mut tokens = Vec::new();
    for number in 1..=50 {
        tokens.push(world.publish(0, QoS::ExactlyOnce, number).unwrap());
        world.run();
        world.inject(Fault::Send { client: id("p"), packet: Packet::PubAck(PubAck::new(number)) });
        world.run();
    }
    assert_eq!(world.clients[0].completed(), tokens);
    world.broker.restart(Memory::Kept);
    world.run();
    let counters = world.clients[0].connection.counters();
    assert_eq!((counters.lowered, counters.strays, counters.resent), (50, 0, 0), "nothing comes again");
    healthy(&world);
}

/// Case G (rumqttc #601): nothing is lost from the middle when the socket takes no more.
fn a_blocked_socket_loses_nothing(protocol: Protocol) {
    let mut world = world_with_subscriber(protocol, |options| options.window = 100);
    let mut sent = 0;
    let mut blocked = 0;
    while sent < 2_000 || world.clients[0].connection.unfinished() > 0 {
        for _ in 0..10 {
            let publish = message(QoS::AtLeastOnce, sent);
            sent += usize::from(sent < 2_000 && world.clients[0].connection.publish(publish).is_ok());
        }
        // The socket takes seven octets at a time.
        world.send(0);
        blocked += usize::from(!world.deliver_up(0, 7));
        world.serve();
        world.deliver_down(0, usize::MAX);
        world.collect(0);
        world.deliver_down(1, usize::MAX);
        world.collect(1);
        world.clients[1].settle_all();
        world.send(1);
        world.deliver_up(1, usize::MAX);
        assert!(blocked < 1_000_000, "stuck");
    }
    world.run();
    assert_eq!(world.clients[0].completed().len(), 2_000);
    assert_eq!(world.clients[1].payloads(), (0..2_000).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// Case G, in the connect phase: a connection attempt that is cut does no harm.
fn connection_attempts_that_are_cut_do_no_harm(protocol: Protocol) {
    let mut world = World::new(Limits::default());
    world.client(options(protocol, "p"));
    let token = world.publish(0, QoS::AtLeastOnce, "m").unwrap();
    for octets in 0..20 {
        world.connect(0);
        world.send(0);
        world.deliver_up(0, octets);
        world.serve();
        world.deliver_down(0, octets % 4);
        world.cut(0, octets % 2 == 0);
    }
    world.run();
    assert_eq!(world.clients[0].completed(), [token]);
    healthy(&world);
}

/// rumqttc #1057: the ids of SUBSCRIBE and UNSUBSCRIBE are as exclusive as those of PUBLISH.
fn the_id_of_an_unanswered_subscribe_is_not_handed_out_again(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    world.inject(withhold("p", Kind::SubAck, 0, 1));
    world.inject(withhold("p", Kind::UnsubAck, 0, 1));
    world.subscribe(0, QoS::AtMostOnce);
    world.clients[0].connection.unsubscribe(&[TopicFilter::new("u").unwrap()]).unwrap();
    world.run();
    let now = world.now;
    for round in 0..70_000 {
        let connection = &mut world.clients[0].connection;
        connection.publish(message(QoS::AtLeastOnce, "x")).unwrap();
        let Packet::Publish(publish) = &packets(connection, now)[0] else { panic!() };
        assert!(publish.pkid > 2, "round {round}");
        connection.handle_bytes(now, &[&[0x40, 2][..], &publish.pkid.to_be_bytes()].concat()).unwrap();
    }
}

/// rumqttc #810: one write for a batch, not one for each publish.
fn a_batch_of_publishes_is_one_write(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    for n in 0..1_000 {
        world.publish(0, QoS::AtMostOnce, n);
    }
    assert_eq!(packets(&mut world.clients[0].connection, world.now).len(), 1_000);
    assert_eq!(world.clients[0].connection.take_output(world.now), None);
}

/// MQTT 5 in rumqttc allocates 14 MB for the window of every connection.
fn an_idle_connection_with_the_largest_window_is_small(protocol: Protocol) {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let now = std::time::Instant::now();
    let connections: Vec<Connection> = (0..10_000)
        .map(|n| {
            let mut options = options(protocol, &n.to_string());
            (options.window, options.session) = (WINDOW_MAX, Session::Clean);
            let mut connection = Connection::new(options);
            connection.handle_connected(now).unwrap();
            drop(connection.take_output(now));
            let connack: &[u8] = match protocol {
                Protocol::V4 => &[0x20, 2, 0, 0],
                Protocol::V5 => &[0x20, 3, 0, 0, 0],
            };
            connection.handle_bytes(now, connack).unwrap();
            connection
        })
        .collect();
    let each = resident().saturating_sub(before) / connections.len();
    assert!(each < 10_000, "{each} octets"); // other tests run beside this one
    assert!(size_of::<Connection>() < 1_024, "{}", size_of::<Connection>());
}

/// A session that the broker lost costs no message: not those in flight, not those that wait, no subscribe.
fn nothing_vanishes_with_a_lost_session(protocol: Protocol) {
    for session in [Session::Resume, Session::Clean] {
        let mut world = world(protocol, |options| (options.window, options.session) = (3, session));
        for kind in [Kind::PubAck, Kind::PubRec, Kind::PubComp, Kind::SubAck] {
            world.inject(withhold("p", kind, 0, usize::MAX));
        }
        let qos = |n| if n % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let mut tokens: Vec<Token> = (0..10).map(|n| world.publish(0, qos(n), n).unwrap()).collect();
        let subscribe = world.subscribe(0, QoS::AtLeastOnce);
        world.run();
        world.inject(Fault::Release { client: id("p") });
        world.broker.restart(Memory::Lost);
        world.run();
        let mut completed = world.clients[0].completed();
        completed.sort_unstable();
        tokens.sort_unstable();
        assert_eq!(completed, tokens);
        assert!(world.clients[0].events.contains(&Event::Subscribed(subscribe, vec![Ok(QoS::AtLeastOnce)])));
        healthy(&world);
    }
}

/// Case E, and "acknowledgements already taken in survive the end of the connection": none is lost however it ends.
fn acknowledgements_that_arrived_count_although_the_connection_ended(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    let tokens: Vec<Token> = (0..10).map(|n| world.publish(0, QoS::AtLeastOnce, n).unwrap()).collect();
    world.send(0);
    world.deliver_up(0, usize::MAX);
    world.serve();
    world.deliver_down(0, 4 * 7 + 2); // seven PUBACKs and a half
    world.cut(0, true);
    assert_eq!(world.clients[0].connection.unfinished(), 3);
    world.run();
    assert_eq!(world.clients[0].completed(), tokens);
    assert_eq!(world.clients[0].connection.counters().resent, 3);
}

/// A message larger than the limit ends in a storm of reconnects there; here it is acknowledged, counted and dropped.
fn a_message_too_large_does_not_come_again_for_ever(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    let mut options = options(protocol, "s");
    options.packet_len_max = 10_000;
    let subscriber = world.client(options);
    world.subscribe(subscriber, QoS::AtLeastOnce);
    world.run();
    world.publish(0, QoS::AtLeastOnce, "x".repeat(20_000));
    world.publish(0, QoS::AtLeastOnce, "small");
    world.run();
    let client = &world.clients[subscriber];
    assert_eq!((client.payloads(), client.connects), (vec!["small".to_owned()], 1));
    assert_eq!(client.connection.counters().oversized, 1);
    assert_eq!(world.broker.session("s").unwrap().unacknowledged.len(), 1, "the small one");
}

/// RabbitMQ turns the `*` of a topic into a `+`, which no topic may have. It is acknowledged, counted and dropped: whoever
/// closes gets it again on every connection, and one publisher cuts everybody else off.
fn a_message_on_no_topic_does_not_come_again_for_ever(protocol: Protocol) {
    let mut world = world_with_subscriber(protocol, |_| {});
    for (pkid, qos) in [(0, QoS::AtMostOnce), (7, QoS::AtLeastOnce), (8, QoS::ExactlyOnce)] {
        let mut publish = Publish::new("s/a+b", qos, "x");
        publish.pkid = pkid;
        world.inject(Fault::Send { client: id("s"), packet: Packet::Publish(publish) });
        world.run();
    }
    world.publish(0, QoS::AtLeastOnce, "named");
    world.run();
    let client = &world.clients[1];
    assert_eq!((client.payloads(), client.connects), (vec!["named".to_owned()], 1));
    assert_eq!(client.connection.counters().misnamed, 3);
    assert_eq!(world.broker.counters().stray_acks, 3, "PUBACK, PUBREC and, at its PUBREL, PUBCOMP");
}

/// Held acknowledgements do not stand still behind a full window of our own publishes.
fn a_full_window_does_not_hold_back_settlements(protocol: Protocol) {
    let mut world = world_with_subscriber(protocol, |_| {});
    world.inject(withhold("s", Kind::PubAck, 0, usize::MAX));
    for n in 0..20 {
        world.publish(0, QoS::AtLeastOnce, n);
    }
    for _ in 0..1_500 {
        let publish = message(QoS::AtLeastOnce, "own");
        world.clients[1].connection.publish(publish).unwrap();
    }
    world.run();
    assert!(world.clients[1].connection.unfinished() >= 1_024);
    world.clients[1].settle_all();
    world.run();
    assert_eq!(world.broker.session("s").unwrap().unacknowledged.len(), 20, "the next ones have come");
}

/// The PINGREQ comes after silence, not at every interval, and a silent broker is noticed.
fn a_silent_broker_is_noticed_and_a_busy_one_is_not_pinged(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    for n in 0..30 {
        world.publish(0, QoS::AtLeastOnce, n);
        world.run_for(Duration::from_secs(20));
    }
    assert_eq!(world.clients[0].connection.counters().pings, 0);
    world.run_for(Duration::from_secs(600));
    assert!((9..=10).contains(&world.clients[0].connection.counters().pings));
    healthy(&world);
    world.inject(withhold("p", Kind::PingResp, 0, 1));
    world.run_for(Duration::from_secs(100));
    assert_eq!(world.clients[0].connects, 2);
}

/// A PUBLISH from nobody's client: stray octets of a broker end the connection, and the next one works.
fn octets_that_are_no_packet_end_the_connection_and_no_more(protocol: Protocol) {
    let mut world = world(protocol, |_| {});
    for bytes in [&[0xF0, 0][..], &[0x36, 3, 0, 1, b'a'], &[0x10, 0], &[0x30, 0xFF, 0xFF, 0xFF, 0xFF]] {
        world.inject(Fault::SendBytes { client: id("p"), bytes: Bytes::copy_from_slice(bytes) });
        world.run();
    }
    assert_eq!(std::mem::take(&mut world.clients[0].failures).len(), 4);
    let mut wild = Publish::new("t", QoS::AtLeastOnce, "m");
    wild.pkid = 5;
    world.inject(Fault::Send { client: id("p"), packet: Packet::Publish(wild) });
    let token = world.publish(0, QoS::AtLeastOnce, "m").unwrap();
    world.run();
    world.clients[0].settle_all();
    world.run();
    assert_eq!(world.clients[0].completed(), [token]);
    healthy(&world);
}
