//! Clients on serial lines and radio modules: addresses that are no sockets, and a carrier that says how much it takes.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{
    Address, Input, Mode, Peer, PortEvent, PortId, Rebind, Route, Target, WirelessNodeId,
};
use mqtt_sn_gateway::wire::{Packet, Qos, Register, ReturnCode, TopicRef, WillTopic, decode};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const HOUR: Duration = Duration::from_secs(3600);

/// Also behind a forwarder on the line; from another module or another line it may not.
#[test]
fn a_sleeper_wakes_on_its_line_and_from_its_module() {
    let on = |port, addr, node: Option<&'static [u8]>| {
        let node = node.map(|node| WirelessNodeId(node.into()));
        Peer { port: PortId(port), addr, node }
    };
    let (line, module) = (on(0, Address::Serial, None), on(0, Address::Xbee(0x13A2), None));
    for (known, other, same) in [
        (&line, on(0, Address::Serial, Some(b"7")), true),
        (&line, on(1, Address::Serial, None), false),
        (&line, on(0, Address::Xbee(1), None), false),
        (&line, peer(1), false),
        (&module, on(0, Address::Xbee(0x13A2), Some(b"7")), true),
        (&module, on(0, Address::Xbee(0x13A3), None), false),
        (&module, on(1, Address::Xbee(0x13A2), None), false),
    ] {
        assert_eq!(Rebind::SameIp.allows(known, &other), same, "{known:?} {other:?}");
        assert!(Rebind::Any.allows(known, &other) && !Rebind::None.allows(known, &other));
    }
}

/// CONNECT takes a session over from any transport, with its subscriptions (§6.3).
#[test]
fn a_client_that_moves_from_one_transport_to_another_has_the_same_session() {
    let mut w = world_with(|settings| {
        for name in ["line", "other-line", "zigbee"] {
            let mut port = settings.ports[0].clone();
            port.name = name.to_owned();
            settings.ports.push(port);
        }
    });
    w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::AtMostOnce);
    let line = (1, Address::Serial);
    let mut before = Target::Unicast { port: PortId(0), addr: peer(A).addr, route: Route::default() };
    for (port, addr) in [line, (2, Address::Serial), (3, Address::Xbee(0x13A2)), line] {
        let from = Peer { port: PortId(port), addr, node: None };
        let frame = encode(&connect_with("n1", false, false, 60));
        w.input(Input::Frame { from, route: Route::default(), frame });
        let here = Target::Unicast { port: PortId(port), addr, route: Route::default() };
        let (to, told) = w.try_next().unwrap();
        assert_eq!((to, decode(&told).unwrap().packet), (before, disconnect()), "where it was");
        before = here;
        let (to, answer) = w.try_next().unwrap();
        assert_eq!((to, decode(&answer).unwrap().packet), (here, connack(ReturnCode::Accepted)));
        w.broker_publishes(0, "t/1", "x", QoS::AtMostOnce);
        let mut sent = Vec::new();
        while let Some((to, frame)) = w.try_next() {
            assert_eq!(to, here);
            sent.push(frame);
            if let Packet::Register(register) = decode(sent.last().unwrap()).unwrap().packet {
                let ack = encode(&regack(register.topic_id, register.msg_id, ReturnCode::Accepted));
                let from = Peer { port: PortId(port), addr, node: None };
                w.input(Input::Frame { from, route: Route::default(), frame: ack });
            }
        }
        assert!(matches!(decode(sent.last().unwrap()).unwrap().packet, Packet::Publish(_)), "{sent:?}");
        assert_eq!(w.gw.sessions(), 1);
    }
}

/// What is too long for the carrier as it was is sent when the carrier has said that it takes more, and the reverse.
#[test]
fn a_carrier_says_how_much_it_takes() {
    let mut w = world_with(|settings| settings.ports[0].mtu = 60);
    w.subscriber(A, connect("n1"), "t/1", QoS::AtMostOnce);
    let long = "A".repeat(70);
    for (mtu, fits) in [(None, false), (Some(84), true), (Some(72), false), (Some(77), true)] {
        if let Some(mtu) = mtu {
            w.input(Input::Port(PortId(0), PortEvent::Mtu(mtu)));
        }
        w.broker_publishes(0, "t/1", &long, QoS::AtMostOnce);
        assert_eq!(w.taken().len(), usize::from(fits), "{mtu:?}");
    }
    assert_eq!(w.gw.counters().downlink_oversize, 2);
}

/// The carrier would drop it, and the client be taken for lost.
#[test]
fn what_has_become_too_long_is_not_repeated() {
    let long = "A".repeat(50);
    for (qos, sn) in [(QoS::AtLeastOnce, Qos::AtLeastOnce), (QoS::ExactlyOnce, Qos::ExactlyOnce)] {
        for asleep in [false, true] {
            let mut w = world();
            let topic = w.subscriber(A, connect_with("n1", false, false, 0), "t/1", qos);
            if asleep {
                w.falls_asleep(A, 60);
            }
            w.broker_publishes(1, "t/1", &long, qos);
            if asleep {
                w.send(A, pingreq_of("n1"));
            }
            w.expect_publish(A, topic, sn, false, &long);
            w.input(Input::Port(PortId(0), PortEvent::Mtu(40)));
            if asleep {
                w.send(A, pingreq_of("n1"));
                w.quiet();
            }
            w.pass(RETRY);
            if asleep {
                w.expect(A, Packet::PingResp);
            }
            w.quiet();
            w.broker_publishes(2, "t/1", "b", QoS::AtMostOnce);
            if !asleep {
                w.expect_publish(A, topic, Qos::AtMostOnce, false, "b");
            }
            w.pass(HOUR / 60);
            let counters = w.gw.counters();
            assert_eq!((counters.downlink_oversize, counters.downlink_retransmissions), (1, 0));
            assert_eq!((counters.clients_lost, w.gw.unsettled_deliveries()), (0, 0));
        }
    }
}

#[test]
fn what_is_said_of_a_transport_that_is_not_there_changes_nothing() {
    let mut w = world();
    for event in [PortEvent::Up, PortEvent::Down, PortEvent::Mtu(1)] {
        w.input(Input::Port(PortId(9), event));
    }
    w.quiet();
}

fn port(w: &mut World, event: PortEvent) {
    w.input(Input::Port(PortId(0), event));
}

/// A radio that was pulled out: its clients cannot answer, and are not to blame.
#[test]
fn who_cannot_be_reached_is_not_lost_and_gets_in_order_what_came_meanwhile() {
    let mut w = world();
    let topic = w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::ExactlyOnce);
    w.broker_publishes(1, "t/1", "a", QoS::ExactlyOnce);
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    port(&mut w, PortEvent::Down);
    // The broker does not wait for a radio.
    assert_eq!(w.broker_next(), v4::Packet::PubRec(v4::PubRec::new(1)));
    w.broker_publishes(2, "t/1", "b", QoS::AtLeastOnce);
    assert_eq!(w.broker_next(), v4::Packet::PubAck(v4::PubAck::new(2)));
    w.broker_publishes(0, "t/1", "c", QoS::AtMostOnce);
    w.pass(HOUR);
    w.quiet();
    assert_eq!((w.gw.counters().clients_lost, w.gw.counters().downlink_retransmissions), (0, 0));

    port(&mut w, PortEvent::Up);
    assert_eq!(w.expect_publish(A, topic, Qos::ExactlyOnce, true, "a"), a);
    w.completes(A, a);
    w.takes(A, topic, "b");
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "c");
    // From then on it is missed in its time, and not before.
    w.pass(Duration::from_millis(89_999));
    assert_eq!(w.gw.counters().clients_lost, 0);
    w.pass(Duration::from_millis(1));
    assert_eq!(w.gw.counters().clients_lost, 1);
}

/// Its CONNECT was with the broker when the radio went.
#[test]
fn a_client_that_is_accepted_while_the_radio_is_gone_has_its_time_from_the_return_on() {
    let mut w = world_with(|settings| settings.ports[0].mode = Mode::Transparent);
    w.answers_pings = true;
    w.send(A, connect_with("n1", false, true, 60));
    w.on_link_of(Some("n1"));
    w.broker_hears_connect();
    port(&mut w, PortEvent::Down);
    w.broker_accepts(false);
    w.pass(HOUR);
    w.quiet();
    assert_eq!((w.gw.sessions(), w.gw.counters().clients_lost), (1, 0));
    port(&mut w, PortEvent::Up);
    w.pass(Duration::from_secs(1));
    w.send(A, connect_with("n1", false, true, 60));
    w.expect(A, connack(ReturnCode::Accepted));
    w.pass(Duration::from_millis(89_999));
    assert_eq!(w.gw.counters().clients_lost, 0);
    w.pass(Duration::from_millis(1));
    assert_eq!(w.gw.counters().clients_lost, 1);
}

/// A link that is back before the radio is was never missed.
#[test]
fn a_client_whose_link_is_lost_while_the_radio_is_gone_is_told_when_it_is_back() {
    for back in [false, true] {
        let mut w = world_with(|settings| settings.ports[0].mode = Mode::Transparent);
        w.answers_pings = true;
        w.send(A, connect_with("n1", false, true, 60));
        w.on_link_of(Some("n1"));
        w.broker_hears_connect();
        w.broker_accepts(false);
        w.expect(A, connack(ReturnCode::Accepted));
        port(&mut w, PortEvent::Down);
        w.broker_down();
        w.pass(HOUR);
        w.quiet();
        assert_eq!((w.gw.sessions(), w.gw.counters().clients_dismissed), (1, 0));
        if back {
            w.broker_hears_connect();
            w.broker_accepts(false);
        }
        port(&mut w, PortEvent::Up);
        if back {
            w.pings(A);
        } else {
            w.expect(A, disconnect());
        }
        w.quiet();
        assert_eq!((w.gw.sessions(), w.gw.counters().clients_dismissed), if back { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn the_end_of_an_exchange_waits_for_the_radio_too() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "t/1", QoS::ExactlyOnce);
    w.broker_publishes(1, "t/1", "a", QoS::ExactlyOnce);
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    w.send(A, pubrec(a));
    w.expect(A, pubrel(a));
    port(&mut w, PortEvent::Down);
    w.pass(HOUR);
    w.quiet();
    port(&mut w, PortEvent::Up);
    w.expect(A, pubrel(a));
    w.send(A, pubcomp(a));
    w.pass(RETRY);
    w.quiet();
}

/// What the broker has said while the radio was gone the client is told when it asks again.
#[test]
fn nothing_leaves_for_a_radio_that_is_gone() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "t/1", QoS::AtMostOnce);
    assert!(w.try_broadcast(), "ADVERTISE");
    let (taken, refused) = (w.gw.counters().frames_sent, w.gw.counters().frames_cut_off);
    w.send(A, publish(topic, Qos::AtLeastOnce, 7, "x"));
    w.send(A, subscribe(8, "t/2", Qos::AtLeastOnce));
    let published = w.broker_gets("t/1", "x", QoS::AtLeastOnce);
    let subscribed = w.broker_gets_subscribe("t/2", QoS::AtLeastOnce);
    port(&mut w, PortEvent::Down);
    w.broker_says(v4::Packet::PubAck(v4::PubAck::new(published)));
    w.broker_grants(subscribed, QoS::AtLeastOnce);
    w.pass(HOUR);
    w.quiet();
    w.no_broadcast();
    assert_eq!((w.gw.counters().frames_sent - taken, w.gw.counters().frames_cut_off - refused), (0, 2));
    port(&mut w, PortEvent::Up);
    assert!(w.try_broadcast(), "ADVERTISE");
    w.send(A, publish_again(topic, Qos::AtLeastOnce, 7, "x"));
    let again = w.broker_gets("t/1", "x", QoS::AtLeastOnce);
    w.broker_says(v4::Packet::PubAck(v4::PubAck::new(again)));
    w.expect(A, puback(topic, 7, ReturnCode::Accepted));
}

/// SUBACK would have told the client.
#[test]
fn a_topic_id_that_the_radio_did_not_carry_is_registered() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(8, "t/2", Qos::AtLeastOnce));
    let subscribed = w.broker_gets_subscribe("t/2", QoS::AtLeastOnce);
    port(&mut w, PortEvent::Down);
    w.broker_grants(subscribed, QoS::AtLeastOnce);
    w.broker_publishes(0, "t/2", "x", QoS::AtMostOnce);
    w.quiet();
    port(&mut w, PortEvent::Up);
    let (id, msg_id) = w.expect_register(A, "t/2");
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    w.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "x");
}

/// REGACK or SUBACK would have told the client; it waited for the store, or to leave.
#[test]
fn a_topic_id_that_was_about_to_be_told_when_the_radio_went_is_registered() {
    for (subscribes, stores) in [(true, true), (false, true), (false, false)] {
        let mut w = world_with(|settings| settings.lasting = stores);
        w.connected(A, connect_with("n1", false, false, 60));
        if subscribes {
            w.send(A, subscribe(8, "t/1", Qos::AtMostOnce));
            let subscribed = w.broker_gets_subscribe("t/1", QoS::AtMostOnce);
            w.store_answers(Answers::Never);
            w.broker_grants(subscribed, QoS::AtMostOnce);
        } else {
            assert_eq!(w.subscribed(A, "+/1", QoS::AtMostOnce), 0);
            w.store_answers(Answers::Never);
            let frame = encode(&Packet::Register(Register { topic_id: 0, msg_id: 8, topic_name: b"t/1" }));
            let input = Input::Frame { from: peer(A), route: Route::default(), frame };
            match stores {
                true => w.input(input),
                false => w.gw.handle(w.now, input),
            }
        }
        w.quiet();
        port(&mut w, PortEvent::Down);
        assert_eq!(w.gw.counters().frames_cut_off, 1);
        w.store_answers(Answers::AtOnce);
        port(&mut w, PortEvent::Up);
        w.quiet();
        w.broker_publishes(0, "t/1", "x", QoS::AtMostOnce);
        let id = w.learns(A, "t/1");
        w.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "x");
    }
}

/// Else it would come beside what is sent anew after the radio's return.
#[test]
fn what_waited_for_the_store_when_the_radio_went_goes_with_it() {
    for durable_before in [true, false] {
        let mut w = world_with(|settings| settings.lasting = true);
        let topic = w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::ExactlyOnce);
        w.store_answers(Answers::Never);
        w.send(A, Packet::WillTopicUpd(WillTopic { topic: b"w/1", qos: Qos::AtMostOnce, retain: false }));
        assert!(w.try_broadcast(), "ADVERTISE");
        let sent = w.gw.counters().frames_sent;
        w.broker_publishes(1, "t/1", "a", QoS::ExactlyOnce);
        w.quiet();
        port(&mut w, PortEvent::Down);
        if durable_before {
            w.store_answers(Answers::AtOnce);
        }
        assert_eq!((w.gw.counters().frames_sent - sent, w.gw.counters().frames_cut_off), (0, 2));
        port(&mut w, PortEvent::Up);
        w.store_answers(Answers::AtOnce);
        let a = w.expect_publish(A, topic, Qos::ExactlyOnce, true, "a");
        w.completes(A, a);
        w.quiet();
    }
}

/// PINGREQ was answered into nothing: the sleeper asks again, and its time is counted from the radio's return.
#[test]
fn a_sleeper_that_was_awake_when_the_radio_went_gets_everything_when_it_asks_again() {
    for awake in [false, true] {
        let mut w = world();
        let topic = w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::AtLeastOnce);
        w.falls_asleep(A, 60);
        w.broker_publishes(1, "t/1", "a", QoS::AtLeastOnce);
        if awake {
            w.send(A, pingreq_of("n1"));
            w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
        }
        port(&mut w, PortEvent::Down);
        w.pass(HOUR);
        port(&mut w, PortEvent::Up);
        w.pass(Duration::from_millis(89_999));
        w.quiet();
        assert_eq!(w.gw.counters().clients_lost, 0);
        w.send(A, pingreq_of("n1"));
        let a = w.expect_publish(A, topic, Qos::AtLeastOnce, awake, "a");
        w.send(A, puback(topic, a, ReturnCode::Accepted));
        w.expect(A, Packet::PingResp);
    }
}

/// After a restart the radio is still to be opened.
#[test]
fn who_was_there_before_a_restart_is_not_missed_before_the_radio_is_there() {
    let mut w = world_with(|settings| settings.lasting = true);
    let topic = w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::AtLeastOnce);
    w.falls_asleep(A, 60);
    w.broker_publishes(1, "t/1", "a", QoS::AtLeastOnce);
    w.restart();
    port(&mut w, PortEvent::Down);
    w.pass(HOUR);
    w.quiet();
    assert_eq!(w.gw.counters().clients_lost, 0);
    port(&mut w, PortEvent::Up);
    w.send(A, pingreq_of("n1"));
    w.takes(A, topic, "a");
    w.expect(A, Packet::PingResp);
}

#[test]
fn a_client_that_comes_over_another_transport_meanwhile_is_served_there() {
    let mut w = world_with(|settings| settings.ports.push(settings.ports[0].clone()));
    let topic = w.subscriber(A, connect_with("n1", false, false, 60), "t/1", QoS::AtLeastOnce);
    port(&mut w, PortEvent::Down);
    w.broker_publishes(1, "t/1", "a", QoS::AtLeastOnce);
    w.quiet();
    let from = Peer { port: PortId(1), ..peer(A) };
    let frame = encode(&connect_with("n1", false, false, 60));
    w.input(Input::Frame { from, route: Route::default(), frame });
    let sent: Vec<_> = std::iter::from_fn(|| w.try_next()).collect();
    let there = |target: &Target| matches!(target, Target::Unicast { port: PortId(1), .. });
    let at_the_new: Vec<_> = sent.iter().filter(|(to, _)| there(to)).collect();
    assert_eq!(decode(&at_the_new[0].1).unwrap().packet, connack(ReturnCode::Accepted));
    assert!(
        matches!(decode(&at_the_new[1].1).unwrap().packet, Packet::Register(_) | Packet::Publish(_)),
        "{topic:?}"
    );
}
