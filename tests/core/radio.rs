//! Clients on serial lines and radio modules: addresses that are no sockets, and a carrier that says how much it takes.

use mqtt_sn_gateway::gateway::io::{
    Address, Input, Peer, PortEvent, PortId, Rebind, Route, Target, WirelessNodeId,
};
use mqtt_sn_gateway::wire::{Packet, ReturnCode, decode};
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;

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

#[test]
fn what_is_said_of_a_transport_that_is_not_there_changes_nothing() {
    let mut w = world();
    for event in [PortEvent::Up, PortEvent::Down, PortEvent::Mtu(1)] {
        w.input(Input::Port(PortId(9), event));
    }
    w.quiet();
}
