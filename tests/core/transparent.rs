//! Clients with links of their own to the broker (§4.1).

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{
    Endpoint, Input, LinkCommand, LinkEvent, LinkFailure, Mode, Peer, PortId, Route, Settings, Wills,
};
use mqtt_sn_gateway::wire::{
    FilterRef, Packet, Qos, Response, ReturnCode, SearchGw, Subscribe, TopicRef, WillMsg, WillTopic,
};
use rumqttc::mqttbytes::v4;
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::*;

const A: At = 1000;
const B: At = 2000;

fn transparent(settings: &mut Settings) {
    settings.ports[0].mode = Mode::Transparent;
    settings.broker.keep_alive = Duration::from_secs(60);
}

/// The gateway's own link is up.
fn world() -> World {
    changed_world(|_| {})
}

fn changed_world(change: impl FnOnce(&mut Settings)) -> World {
    let mut world = world_with(|settings| {
        transparent(settings);
        change(settings);
    });
    world.commands.clear();
    world.answers_pings = true;
    world
}

/// With a second transport, whose clients it serves in aggregating mode.
fn world_with_radio() -> World {
    changed_world(|settings| {
        let mut second = settings.ports[0].clone();
        (second.name, second.mode) = ("radio".into(), Mode::Aggregating);
        settings.ports.push(second);
    })
}

impl World {
    /// The broker sees a client connect on a link of its own.
    #[track_caller]
    fn broker_sees_connect(&mut self, id: &str) -> v4::Connect {
        self.on_link_of(Some(id));
        self.broker_hears_connect()
    }

    /// A client that the broker has accepted; the test plays the broker on its link.
    #[track_caller]
    fn served(&mut self, at: At, id: &str, clean: bool) {
        self.send(at, connect_with(id, false, clean, 60));
        self.quiet();
        self.admitted(at, id, false);
    }

    /// A client whose session the broker had before the gateway.
    #[track_caller]
    fn inherited(&mut self, at: At, id: &str) {
        self.send(at, connect_with(id, false, false, 60));
        self.admitted(at, id, true);
    }

    /// The broker accepts the link of a client.
    #[track_caller]
    fn link_up(&mut self, id: &str, session_present: bool) {
        self.broker_sees_connect(id);
        self.broker_accepts(session_present);
    }

    /// A frame from a client in aggregating mode: see [`world_with_radio`].
    fn send_by_radio(&mut self, at: At, packet: Packet<'_>) {
        let from = Peer { port: PortId(1), ..peer(at) };
        self.input(Input::Frame { from, route: Route::default(), frame: encode(&packet) });
    }

    #[track_caller]
    fn no_command(&mut self) {
        assert_eq!(self.commands.pop_front(), None);
    }

    #[track_caller]
    fn expect_close(&mut self) {
        let closed = self.commands.iter().any(|(_, command)| *command == LinkCommand::Close);
        assert!(closed, "{:?}", self.commands);
        self.commands.clear();
    }
}

#[test]
fn a_client_is_connected_in_its_own_name_and_answered_after_the_broker() {
    let mut world = world();
    for (at, id, clean, duration, keep_alive) in [(A, "c1", true, 60, 60), (B, "c2", false, 7, 7)] {
        world.send(at, connect_with(id, false, clean, duration));
        world.quiet();
        let connect = world.broker_sees_connect(id);
        assert_eq!(connect.client_id, id);
        assert_eq!((connect.clean_session, connect.keep_alive), (clean, keep_alive));
        assert!(connect.last_will.is_none() && connect.login.is_none());
        world.quiet();
        world.broker_accepts(false);
        world.expect(at, connack(ReturnCode::Accepted));
    }
    // What the client does not want to be supervised, or only after a day, is for us to keep alive.
    for (id, duration) in [("c3", 0), ("c4", 65_535)] {
        world.send(3000, connect_with(id, false, true, duration));
        assert_eq!(world.broker_sees_connect(id).keep_alive, 60);
    }
}

#[test]
fn the_template_and_the_credentials_of_a_client_are_shown_to_the_broker() {
    let mut world = changed_world(|settings| {
        settings.broker.client_id_template = "site-%c-7".into();
        settings.broker.credentials = Some(("gateway".into(), "g".into()));
        let own = ("pump".to_owned(), "p".into());
        let id = mqtt_sn_gateway::topic::ClientId::new(b"c1").unwrap();
        settings.broker.client_credentials.insert(id, own);
    });
    for (id, username) in [("c1", "pump"), ("c2", "gateway")] {
        world.send(A, connect(id));
        let connect = world.broker_sees_connect(id);
        assert_eq!(connect.client_id, format!("site-{id}-7"));
        assert_eq!(connect.login.unwrap().username, username);
    }
}

#[test]
fn a_client_that_would_take_the_id_of_the_gateway_is_refused() {
    let mut world = world();
    world.send(A, connect("gw"));
    world.expect(A, connack(ReturnCode::NotSupported));
    world.no_command();
    assert_eq!(world.gw.sessions(), 0);
}

#[test]
fn what_the_broker_says_of_a_client_is_what_the_client_is_told() {
    for (code, told) in [
        (ConnectReturnCode::ServiceUnavailable, ReturnCode::Congestion),
        (ConnectReturnCode::BadClientId, ReturnCode::NotSupported),
        (ConnectReturnCode::BadUserNamePassword, ReturnCode::NotSupported),
        (ConnectReturnCode::NotAuthorized, ReturnCode::NotSupported),
        (ConnectReturnCode::RefusedProtocolVersion, ReturnCode::NotSupported),
    ] {
        let mut world = world();
        world.send(A, connect("c1"));
        world.broker_sees_connect("c1");
        world.broker_refuses(code);
        world.expect(A, connack(told));
        assert_eq!(world.gw.sessions(), 0, "there is no session");
        world.expect_close();
        world.pass(Duration::from_secs(100));
        world.no_command();
        world.send(A, pingreq());
        world.expect(A, disconnect());
    }
}

#[test]
fn a_broker_that_is_away_is_congestion_once_every_address_was_tried() {
    let mut world = changed_world(|settings| {
        settings.broker.endpoints.push(Endpoint { host: "other".into(), port: 1883, tls: false });
    });
    world.send(A, connect("c1"));
    world.on_link_of(Some("c1"));
    world.broker_down();
    world.quiet();
    world.pass(Duration::ZERO);
    world.on_link_of(Some("c1"));
    let (_, LinkCommand::Connect { endpoint, client }) = world.commands.back().unwrap() else { panic!() };
    assert_eq!((endpoint.host.as_str(), client.as_ref().unwrap().as_str()), ("other", "c1"));
    world.broker_down();
    world.expect(A, connack(ReturnCode::Congestion));
    assert_eq!(world.gw.sessions(), 0);
    assert_eq!(world.gw.counters().connects_refused_by_broker, 1);
}

#[test]
fn a_broker_that_does_not_answer_is_congestion_before_the_client_gives_up() {
    let mut world = world();
    world.send(A, connect("c1"));
    world.broker_sees_connect("c1");
    world.pass(Duration::from_secs(7));
    world.quiet();
    world.pass(Duration::from_secs(2));
    world.expect(A, connack(ReturnCode::Congestion));
    world.expect_close();
}

#[test]
fn while_the_broker_is_asked_a_repeated_connect_waits_and_all_else_is_dropped() {
    let mut world = world();
    world.send(A, connect("c1"));
    world.commands.truncate(1);
    world.send(A, connect("c1"));
    world.send(A, pingreq());
    world.send(A, publish(TopicRef::Predefined(1), Qos::AtLeastOnce, 1, "x"));
    world.quiet();
    assert_eq!(world.commands.len(), 1, "one connection");
    assert_eq!(world.gw.counters().frames_unexpected, 2);
    world.admitted(A, "c1", false);
    world.quiet();
    // The copy of a CONNECT whose CONNACK was lost.
    world.connected(A, connect("c1"));
    world.broker_quiet();
}

#[test]
fn a_client_that_takes_leave_while_the_broker_is_asked_has_no_session() {
    let mut world = world();
    world.send(A, connect("c1"));
    world.takes_leave(A);
    world.expect_close();
    assert_eq!(world.gw.sessions(), 0);
}

#[test]
fn another_client_at_the_peer_takes_the_place_of_one_that_waits() {
    let mut world = world();
    world.send(A, connect("c1"));
    world.served(A, "c2", true);
    world.pass(Duration::from_secs(9));
    assert_eq!(world.gw.sessions(), 1);
    // And the same id from another peer.
    world.send(A, connect("c3"));
    world.served(B, "c3", true);
    world.pass(Duration::from_secs(20));
    world.quiet();
}

#[test]
fn a_client_is_asked_for_its_will_before_the_broker_hears_of_it() {
    let mut world = world();
    world.send(A, connect_with("c1", true, true, 60));
    world.expect(A, Packet::WillTopicReq);
    let topic = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w" };
    world.send(A, Packet::WillTopic(topic));
    world.expect(A, Packet::WillMsgReq);
    world.no_command();
    world.send(A, Packet::WillMsg(WillMsg { message: b"bye" }));
    world.quiet();
    assert!(world.broker_sees_connect("c1").last_will.is_none(), "the gateway keeps it");
    world.broker_accepts(false);
    world.expect(A, connack(ReturnCode::Accepted));
    // Its CONNACK was lost.
    world.send(A, Packet::WillMsg(WillMsg { message: b"bye" }));
    world.expect(A, connack(ReturnCode::Accepted));
    world.pass(Duration::from_secs(91));
    world.broker_gets_disconnect();
    world.on_link_of(None);
    world.broker_gets("w", "bye", QoS::AtLeastOnce);
}

#[test]
fn messages_go_up_on_the_link_of_the_client_and_are_acknowledged_end_to_end() {
    let mut world = world();
    world.served(A, "c1", true);
    let topic = TopicRef::Predefined(1);
    world.send(A, publish(topic, Qos::AtMostOnce, 0, "0"));
    world.broker_gets("pre/one", "0", QoS::AtMostOnce);
    world.send(A, publish(topic, Qos::AtLeastOnce, 1, "1"));
    let pkid = world.broker_gets("pre/one", "1", QoS::AtLeastOnce);
    world.quiet();
    world.broker_pubacks(pkid);
    world.expect(A, puback(topic, 1, ReturnCode::Accepted));
    world.send(A, publish(topic, Qos::ExactlyOnce, 2, "2"));
    let pkid = world.broker_gets("pre/one", "2", QoS::ExactlyOnce);
    world.quiet();
    world.broker_pubrecs(pkid);
    world.expect(A, pubrec(2));
    world.broker_next();
    world.send(A, pubrel(2));
    world.quiet();
    world.broker_pubcomps(pkid);
    world.expect(A, pubcomp(2));
    // QoS −1 is for everybody, and goes by the gateway's own link.
    world.send(A, publish(topic, Qos::MinusOne, 0, "-1"));
    world.broker_quiet();
    world.on_link_of(None);
    world.broker_gets("pre/one", "-1", QoS::AtMostOnce);
    world.broker_quiet();
}

#[test]
fn subscriptions_are_passed_on_as_they_are() {
    let mut world = world();
    world.served(A, "c1", true);
    world.served(B, "c2", true);
    for (at, id) in [(A, "c1"), (B, "c2")] {
        world.on_link_of(Some(id));
        for (msg_id, filter) in [(1, "a/#"), (2, "a/b")] {
            world.send(at, subscribe(msg_id, filter, Qos::AtLeastOnce));
            let pkid = world.broker_gets_subscribe(filter, QoS::AtLeastOnce);
            world.quiet();
            world.broker_grants(pkid, QoS::AtMostOnce);
            let frame = world.next(at);
            assert_eq!(frame[2], 0, "QoS 0 was granted");
        }
    }
    world.unsubscribed(B, "a/b");
    world.broker_gets_unsubscribe("a/b");
    world.unsubscribed(B, "no");
    world.broker_quiet();
}

#[test]
fn what_crosses_the_unsubscribe_on_its_way_to_the_broker_is_settled_and_not_delivered() {
    let mut world = world();
    world.served(A, "c1", true);
    world.subscribed(A, "a/b", QoS::AtLeastOnce);
    world.unsubscribed(A, "a/b");
    let v4::Packet::Unsubscribe(_) = world.broker_next() else { panic!() };
    world.broker_publishes(1, "a/b", "late", QoS::AtLeastOnce);
    world.broker_gets_puback(1);
    world.quiet();
}

#[test]
fn a_filter_that_the_broker_refuses_is_refused() {
    let mut world = world();
    world.served(A, "c1", true);
    world.send(A, subscribe(1, "no", Qos::AtLeastOnce));
    let pkid = world.broker_gets_subscribe("no", QoS::AtLeastOnce);
    world.broker_denies(pkid);
    let frame = world.next(A);
    assert_eq!(frame[7], 3, "not supported");
}

/// It may have granted the first, and the answer was lost with the connection.
#[test]
fn a_filter_that_the_broker_refuses_when_it_is_asked_again_is_taken_back() {
    for session_present in [true, false] {
        let mut world = world();
        world.served(A, "c1", false);
        world.send(A, subscribe(1, "no", Qos::AtLeastOnce));
        world.broker_gets_subscribe("no", QoS::AtLeastOnce);
        world.broker_down();
        world.pass(Duration::from_secs(3));
        world.broker_sees_connect("c1");
        world.broker_accepts(session_present);
        let pkid = world.broker_gets_subscribe("no", QoS::AtLeastOnce);
        let return_codes = vec![v4::SubscribeReasonCode::Failure];
        world.broker_says(v4::Packet::SubAck(v4::SubAck { pkid, return_codes }));
        assert_eq!(world.next(A)[7], 3, "not supported");
        if session_present {
            let v4::Packet::Unsubscribe(unsubscribe) = world.broker_next() else { panic!("no UNSUBSCRIBE") };
            assert_eq!(unsubscribe.topics, ["no"]);
        }
        world.broker_quiet();
    }
}

#[test]
fn the_broker_has_no_acknowledgement_before_the_client_has_acknowledged_even_if_it_sleeps() {
    let mut world = world();
    world.served(A, "c1", true);
    let id = world.subscribed(A, "t", QoS::AtLeastOnce);
    world.falls_asleep(A, 600);
    world.broker_quiet();
    world.broker_publishes(1, "t", "one", QoS::AtLeastOnce);
    world.broker_publishes(2, "t", "two", QoS::AtLeastOnce);
    world.pass(Duration::from_secs(300));
    world.quiet();
    world.broker_quiet();
    world.send(A, pingreq_of("c1"));
    for (pkid, payload) in [(1, "one"), (2, "two")] {
        let topic = TopicRef::Normal(id);
        let msg_id = world.expect_publish(A, topic, Qos::AtLeastOnce, false, payload);
        world.broker_quiet();
        world.send(A, puback(topic, msg_id, ReturnCode::Accepted));
        world.broker_gets_puback(pkid);
    }
    world.expect(A, Packet::PingResp);
}

#[test]
fn a_lost_link_is_back_within_the_grace_unnoticed() {
    let mut world = world();
    world.served(A, "c1", true);
    let id = world.subscribed(A, "t", QoS::AtLeastOnce);
    world.send(A, publish(TopicRef::Normal(id), Qos::AtLeastOnce, 7, "open"));
    world.broker_gets("t", "open", QoS::AtLeastOnce);
    world.broker_down();
    world.send(A, publish(TopicRef::Normal(id), Qos::AtLeastOnce, 8, "x"));
    world.expect(A, puback(TopicRef::Normal(id), 8, ReturnCode::Congestion));
    world.send(A, subscribe(9, "u", Qos::AtMostOnce));
    assert_eq!(world.next(A)[7], 1, "congestion");
    world.pings(A);
    world.pass(Duration::from_secs(3));
    world.link_up("c1", false);
    // The broker kept nothing: the message that was on its way, and the subscription.
    let mut seen = (false, false);
    for _ in 0..2 {
        match world.broker_next() {
            v4::Packet::Publish(publish) => {
                assert_eq!(publish.payload, "open");
                world.broker_pubacks(publish.pkid);
                seen.0 = true;
            }
            v4::Packet::Subscribe(subscribe) => {
                assert_eq!(subscribe.filters[0].path, "t");
                world.broker_grants(subscribe.pkid, QoS::AtLeastOnce);
                seen.1 = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, (true, true));
    world.expect(A, puback(TopicRef::Normal(id), 7, ReturnCode::Accepted));
    // The retained message was there before; a live one is new.
    world.broker_publishes_retained("t", "old");
    world.quiet();
    world.broker_publishes(5, "t", "new", QoS::AtLeastOnce);
    world.expect_publish(A, TopicRef::Normal(id), Qos::AtLeastOnce, false, "new");
    world.pass(Duration::from_secs(5));
    world.quiet();
    assert_eq!(world.gw.counters().clients_dismissed, 0);
}

#[test]
fn a_retained_message_of_a_subscribe_after_the_link_was_lost_is_the_clients() {
    let mut world = world();
    world.served(A, "c1", true);
    let id = world.subscribed(A, "t", QoS::AtMostOnce);
    world.broker_down();
    world.pass(Duration::from_secs(3));
    world.link_up("c1", false);
    world.broker_next();
    assert_eq!(world.subscribed(A, "t", QoS::AtMostOnce), id);
    world.broker_publishes_retained("t", "kept");
    world.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "kept");
}

#[test]
fn what_the_broker_keeps_comes_to_nobody_when_filters_are_issued_again() {
    let mut world = world();
    world.served(A, "c1", false);
    let id = world.subscribed(A, "t", QoS::AtMostOnce);
    world.broker_down();
    world.pass(Duration::from_secs(3));
    world.link_up("c1", false);
    world.broker_grants_subscribe("t", QoS::AtMostOnce);
    world.broker_publishes_retained("t", "kept");
    world.quiet();
    world.broker_publishes(0, "t", "new", QoS::AtMostOnce);
    world.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "new");
}

#[test]
fn a_client_whose_link_stays_away_is_told_when_the_grace_is_over() {
    let mut world = world();
    world.served(A, "c1", false);
    world.broker_down();
    world.pings(A);
    for _ in 0..5 {
        world.pass(Duration::from_secs(10));
        world.quiet();
        world.pings(A);
    }
    world.pass(Duration::from_secs(10));
    world.expect(A, disconnect());
    assert_eq!(world.gw.counters().clients_dismissed, 1);
    world.quiet();
    // Its answer is not answered.
    world.send(A, disconnect());
    world.quiet();
    world.commands.clear();
    world.pass(Duration::from_secs(600));
    assert!(
        world
            .commands
            .iter()
            .all(|(_, command)| { !matches!(command, LinkCommand::Connect { client: Some(_), .. }) })
    );
}

#[test]
fn a_sleeper_whose_link_stayed_away_is_told_when_it_wakes() {
    let mut world = world();
    world.served(A, "c1", true);
    world.falls_asleep(A, 3600);
    world.broker_down();
    world.pass(Duration::from_secs(90));
    world.quiet();
    world.send(A, pingreq_of("c1"));
    world.expect(A, disconnect());
    assert_eq!(world.gw.sessions(), 0);
}

#[test]
fn a_sleeper_whose_link_came_back_hears_nothing_of_it() {
    let mut world = world();
    world.served(A, "c1", false);
    world.falls_asleep(A, 3600);
    world.broker_down();
    world.pass(Duration::from_secs(90));
    world.link_up("c1", true);
    world.send(A, pingreq_of("c1"));
    world.expect(A, Packet::PingResp);
}

#[test]
fn a_session_that_lives_on_goes_on_at_the_broker_with_what_was_open() {
    let mut world = world();
    world.served(A, "c1", false);
    let id = world.subscribed(A, "t", QoS::ExactlyOnce);
    world.broker_publishes(1, "t", "two", QoS::ExactlyOnce);
    world.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, false, "two");
    world.takes_leave(A);
    world.broker_gets_disconnect();
    world.expect_close();
    world.pass(Duration::from_secs(100));
    world.no_command();
    world.send(A, connect_with("c1", false, false, 60));
    assert!(!world.broker_sees_connect("c1").clean_session);
    world.broker_accepts(true);
    world.expect(A, connack(ReturnCode::Accepted));
    world.broker_quiet();
    // The broker repeats what it has no acknowledgement of; the client gets it once.
    let mut again = v4::Publish::new("t", QoS::ExactlyOnce, "two");
    (again.pkid, again.dup) = (1, true);
    world.broker_says(v4::Packet::Publish(again));
    let topic_id = world.learns(A, "t");
    assert_eq!(topic_id, id);
    let msg_id = world.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, true, "two");
    world.send(A, pubrec(msg_id));
    world.expect(A, pubrel(msg_id));
    world.broker_gets_pubrec(1);
    world.send(A, pubcomp(msg_id));
    world.quiet();
}

#[test]
fn a_session_that_the_broker_had_before_the_gateway_brings_what_it_has() {
    let mut world = world();
    world.inherited(A, "c1");
    world.broker_quiet();
    world.broker_publishes(3, "from/before", "kept", QoS::AtLeastOnce);
    let topic_id = world.learns(A, "from/before");
    world.expect_publish(A, TopicRef::Normal(topic_id), Qos::AtLeastOnce, false, "kept");
}

#[test]
fn a_connect_keeps_the_link_only_where_both_sessions_live_on() {
    for (before, after, kept) in
        [(false, false, true), (false, true, false), (true, false, false), (true, true, false)]
    {
        let mut world = world();
        world.served(A, "c1", before);
        world.subscribed(A, "t", QoS::AtMostOnce);
        world.commands.clear();
        world.send(B, connect_with("c1", false, after, 60));
        if kept {
            world.no_command();
        } else {
            world.broker_gets_disconnect();
            let leaves = world.broker_sees_connect("c1");
            assert_eq!(leaves.clean_session, after);
            world.broker_accepts(false);
        }
        // The old peer is told, and the new one owns the session.
        let mut frames = [world.next_to(A), world.next_to(B)];
        frames.sort();
        assert_eq!(frames, [encode(&disconnect()), encode(&connack(ReturnCode::Accepted))]);
        world.broker_quiet();
        world.pings(B);
    }
}

#[test]
fn a_clean_connect_leaves_the_old_link_with_disconnect() {
    let mut world = world();
    world.served(A, "c1", false);
    world.send(A, connect_with("c1", false, true, 60));
    world.broker_gets_disconnect();
    assert!(world.broker_sees_connect("c1").clean_session);
}

#[test]
fn another_connection_with_the_same_id_ends_the_client_at_once_in_mqtt_5() {
    for (reason, told) in [(0x8E, true), (0x98, true), (0x8B, false)] {
        let mut world = changed_world_in_mqtt_5();
        world.send(A, connect("c1"));
        world.on_link_of(Some("c1"));
        let link = world.commands.back().unwrap().0;
        world.input(Input::Link(link, LinkEvent::Connected));
        world.broker_takes_octets();
        world.broker_octets(vec![0x20, 3, 0, 0, 0].into());
        world.expect(A, connack(ReturnCode::Accepted));
        world.commands.clear();
        world.broker_octets(vec![0xE0, 2, reason, 0].into());
        world.expect_close();
        if told {
            world.expect(A, disconnect());
        }
        world.quiet();
        world.pass(Duration::from_secs(40));
        let again = world.commands.iter().any(|(_, it)| matches!(it, LinkCommand::Connect { .. }));
        assert_eq!(again, !told, "{reason:#x}");
    }
}

fn changed_world_in_mqtt_5() -> World {
    let mut world = offline_world(|settings| {
        transparent(settings);
        settings.broker.protocol = mqtt_sn_gateway::gateway::io::Protocol::V5;
    });
    let link = world.commands.back().unwrap().0;
    world.input(Input::Link(link, LinkEvent::Connected));
    world.broker_takes_octets();
    world.broker_octets(vec![0x20, 3, 0, 0, 0].into());
    world.commands.clear();
    world
}

#[test]
fn the_version_that_the_gateway_speaks_is_what_its_clients_speak() {
    let mut world = offline_world(|settings| {
        transparent(settings);
        settings.broker.protocol = mqtt_sn_gateway::gateway::io::Protocol::Auto;
    });
    world.input(Input::Link(world.commands.back().unwrap().0, LinkEvent::Connected));
    world.broker_takes_octets();
    world.broker_octets(vec![0x20, 2, 0, 1].into());
    world.on_link_of(None);
    world.broker_up(false);
    world.send(A, connect("c1"));
    assert_eq!(world.broker_sees_connect("c1").client_id, "c1", "in MQTT 3.1.1 at once");
}

#[test]
fn a_client_that_is_lost_has_its_will_published_by_the_gateway_and_its_link_closed() {
    for clean in [true, false] {
        let mut world = world();
        let will = WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w" };
        world.gives_will(A, connect_with("c1", true, clean, 60), will, "gone");
        world.admitted(A, "c1", false);
        world.pass(Duration::from_secs(91));
        world.broker_gets_disconnect();
        world.on_link_of(None);
        world.broker_gets("w", "gone", QoS::AtMostOnce);
        assert_eq!(world.gw.sessions(), usize::from(!clean));
    }
}

fn with_will_at_broker() -> World {
    let mut world = changed_world(|settings| settings.broker.wills = Wills::Broker);
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w" };
    world.gives_will(A, connect_with("c1", true, false, 60), will, "gone");
    let will = world.broker_sees_connect("c1").last_will.expect("a will");
    let expected = ("w", &b"gone"[..], QoS::AtLeastOnce, true);
    assert_eq!((will.topic.as_str(), &will.message[..], will.qos, will.retain), expected);
    world.broker_accepts(false);
    world.expect(A, connack(ReturnCode::Accepted));
    world.commands.clear();
    world
}

#[test]
fn a_will_that_the_broker_keeps_is_left_to_it_by_a_close_without_disconnect() {
    let mut world = with_will_at_broker();
    world.pass(Duration::from_secs(91));
    world.expect_close();
    world.broker_quiet();
    world.on_link_of(None);
    world.broker_quiet();
}

#[test]
fn a_will_that_the_broker_keeps_is_not_published_on_an_orderly_goodbye_or_a_shutdown() {
    let mut world = with_will_at_broker();
    world.takes_leave(A);
    world.broker_gets_disconnect();
    let mut world = with_will_at_broker();
    world.input(Input::Control(mqtt_sn_gateway::gateway::io::Control::Shutdown));
    world.broker_gets_disconnect();
}

#[test]
fn a_will_that_the_broker_keeps_is_changed_by_a_new_connection() {
    let mut world = with_will_at_broker();
    world.send(A, Packet::WillMsgUpd(WillMsg { message: b"other" }));
    world.expect(A, Packet::WillMsgResp(Response { code: ReturnCode::Accepted }));
    world.broker_gets_disconnect();
    let will = world.broker_sees_connect("c1").last_will.expect("a will");
    assert_eq!(&will.message[..], b"other");
    world.broker_accepts(true);
    world.quiet();
    let deleted = WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"" };
    world.send(A, Packet::WillTopicUpd(deleted));
    world.expect(A, Packet::WillTopicResp(Response { code: ReturnCode::Accepted }));
    world.broker_gets_disconnect();
    assert!(world.broker_sees_connect("c1").last_will.is_none());
    world.broker_accepts(true);
    // The same again is no reason to connect.
    world.commands.clear();
    world.send(A, Packet::WillMsgUpd(WillMsg { message: b"x" }));
    world.expect(A, Packet::WillMsgResp(Response { code: ReturnCode::Accepted }));
    world.no_command();
}

#[test]
fn a_session_whose_life_is_over_is_removed_from_the_broker_too() {
    let mut world = world();
    world.served(A, "c1", false);
    world.takes_leave(A);
    world.broker_gets_disconnect();
    world.pass(Duration::from_secs(86_399));
    assert_eq!(world.gw.sessions(), 1);
    world.commands.clear();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.gw.sessions(), 0);
    let connect = world.broker_sees_connect("c1");
    assert!(connect.clean_session && connect.client_id == "c1");
    world.broker_accepts(false);
    world.broker_gets_disconnect();
    world.expect_close();
}

#[test]
fn a_transport_may_have_a_mode_of_its_own_and_a_session_keeps_the_one_it_began_in() {
    let mut world = world_with_radio();
    world.send_by_radio(A, connect_with("c1", false, false, 60));
    world.no_command();
    assert_eq!(world.next_frame(), encode(&connack(ReturnCode::Accepted)));
    // It moves to the other transport, and its session goes on.
    world.send(B, connect_with("c1", false, false, 60));
    world.no_command();
    world.next_frame();
    world.next_frame();
    // A new session is served as the transport says.
    world.send(B, connect_with("c1", false, true, 60));
    world.admitted(B, "c1", false);
    world.commands.clear();
    world.send_by_radio(A, connect_with("c1", false, true, 60));
    world.expect_close();
    assert_eq!(world.gw.sessions(), 1);
}

#[test]
fn a_session_of_which_half_is_subscribed_elsewhere_leaves_nothing_behind_when_it_changes_its_mode() {
    let mut world = world_with_radio();
    world.send_by_radio(A, connect("c1"));
    world.send_by_radio(A, subscribe(1, "t", Qos::AtMostOnce));
    world.on_link_of(None);
    world.broker_grants_subscribe("t", QoS::AtMostOnce);
    world.send(B, connect("c1"));
    world.on_link_of(None);
    world.broker_gets_unsubscribe("t");
}

#[test]
fn what_waits_for_the_broker_counts_once_against_the_limit_of_sessions() {
    let mut world = changed_world(|settings| settings.sessions.max = 2);
    world.send(A, connect("c1"));
    world.send(B, connect("c2"));
    world.quiet();
    world.send(3000, connect("c3"));
    world.expect(3000, connack(ReturnCode::Congestion));
    assert_eq!(world.gw.sessions(), 2);
}

#[test]
fn at_shutdown_every_link_is_left_with_disconnect_before_it_is_over() {
    let mut world = world();
    world.served(A, "c1", true);
    world.served(B, "c2", false);
    world.hold_drained();
    world.input(Input::Control(mqtt_sn_gateway::gateway::io::Control::Shutdown));
    world.expect(A, disconnect());
    world.expect(B, disconnect());
    for id in [None, Some("c1"), Some("c2")] {
        world.on_link_of(id);
        assert_eq!(world.broker_next(), v4::Packet::Disconnect, "{id:?}");
    }
    assert!(world.stopped);
}

#[test]
fn nobody_is_answered_who_searches_while_the_broker_is_away() {
    let mut world = offline_world(transparent);
    world.send(A, Packet::SearchGw(SearchGw { radius: 0 }));
    world.quiet();
    world.broker_up(false);
    world.send(A, Packet::SearchGw(SearchGw { radius: 0 }));
    world.next(A);
}

#[test]
fn a_link_that_breaks_while_the_client_connects_again_is_congestion_and_the_grace_goes_on() {
    let mut world = world();
    world.served(A, "c1", false);
    world.broker_down();
    world.pass(Duration::from_millis(500));
    world.commands.clear();
    world.send(A, connect_with("c1", false, false, 30));
    world.pass(Duration::ZERO);
    world.on_link_of(Some("c1"));
    let link = world.commands.back().unwrap().0;
    world.input(Input::Link(link, LinkEvent::Closed(LinkFailure::Closed)));
    world.expect(A, connack(ReturnCode::Congestion));
    world.pings(A);
    world.pass(Duration::from_secs(5));
    world.link_up("c1", true);
    world.pass(Duration::from_secs(70));
    assert_eq!(world.gw.counters().clients_dismissed, 0);
}

#[test]
fn a_handshake_that_a_connect_without_will_replaces_is_over_also_when_the_broker_refuses() {
    let mut world = changed_world(|settings| settings.sessions.max = 2);
    for at in [A, B] {
        world.send(at, connect_with("c1", true, true, 60));
        world.expect(at, Packet::WillTopicReq);
        world.send(at, connect("c1"));
        world.broker_sees_connect("c1");
        world.broker_refuses(ConnectReturnCode::BadUserNamePassword);
        world.expect(at, connack(ReturnCode::NotSupported));
        // The prompts that were, are no more.
        world.send(at, Packet::WillMsg(WillMsg { message: b"late" }));
        world.quiet();
        world.pass(Duration::from_secs(100));
    }
    world.commands.clear();
    world.served(3000, "c2", true);
    world.served(3001, "c3", true);
}

#[test]
fn what_a_client_says_of_a_will_after_a_connect_without_one_does_not_undo_that_connect() {
    let mut world = world();
    world.send(A, connect_with("c1", true, true, 60));
    world.expect(A, Packet::WillTopicReq);
    world.send(A, connect("c1"));
    let topic = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w" };
    world.send(A, Packet::WillTopic(topic));
    world.quiet();
    world.admitted(A, "c1", false);
}

#[test]
fn a_client_that_would_take_the_id_of_a_further_link_is_refused() {
    let mut world = world();
    for id in ["gw-2", "gw-8", "gw-16"] {
        world.send(A, connect(id));
        world.expect(A, connack(ReturnCode::NotSupported));
        world.no_command();
    }
    for id in ["gw-1", "gw-02", "gw-17", "gw-", "gw-2x", "gw2", "x-gw-2"] {
        world.served(A, id, true);
    }
}

#[test]
fn filters_that_the_broker_takes_only_one_by_one_are_issued_again_one_by_one() {
    let mut world = changed_world_in_mqtt_5();
    // CONNACK with a Maximum Packet Size of 60 octets.
    let connack_of_small_broker = vec![0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 60];
    world.send(A, connect_with("c1", false, false, 600));
    world.on_link_of(Some("c1"));
    world.broker_answers_tcp();
    world.broker_takes_octets();
    world.broker_octets(connack_of_small_broker.clone().into());
    world.expect(A, connack(ReturnCode::Accepted));
    let filters = ["a".repeat(30), "b".repeat(30), "c".repeat(30)];
    for filter in &filters {
        world.send(A, subscribe(1, filter, Qos::AtMostOnce));
        let octets = world.broker_takes_octets();
        world.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, 0].into());
        world.next(A);
    }
    world.broker_down();
    world.pass(Duration::from_secs(3));
    world.on_link_of(Some("c1"));
    world.broker_answers_tcp();
    world.broker_takes_octets();
    world.broker_octets(connack_of_small_broker.into());
    let octets = world.broker_takes_octets();
    for filter in &filters {
        assert!(octets.windows(30).any(|part| part == filter.as_bytes()), "{filter} is lost");
    }
}

#[test]
fn a_goodbye_and_a_return_in_one_breath_leave_nothing_unsaid_to_the_broker() {
    let mut world = with_will_at_broker();
    let message = publish(TopicRef::Predefined(1), Qos::AtMostOnce, 0, "last");
    world.batch(&[(A, message), (A, disconnect()), (A, connect_with("c1", false, false, 60))]);
    world.expect(A, disconnect());
    world.broker_gets("pre/one", "last", QoS::AtMostOnce);
    assert_eq!(world.broker_next(), v4::Packet::Disconnect, "else the broker publishes the Will");
    world.expect_close();
    assert!(world.broker_sees_connect("c1").last_will.is_some());
    world.broker_accepts(true);
    world.expect(A, connack(ReturnCode::Accepted));
}

#[test]
fn a_grace_that_ends_while_the_client_connects_again_waits_for_the_broker() {
    let mut world = world();
    world.served(A, "c1", false);
    world.broker_down();
    // Its link is tried all the time; at 58 s the client connects again, and the broker takes its time.
    let mut passed = 0;
    while passed < 58 {
        world.pass(Duration::from_secs(1));
        passed += 1;
        if let Some((_, LinkCommand::Connect { .. })) = world.commands.pop_back() {
            world.commands.clear();
            if passed < 50 {
                world.on_link_of(Some("c1"));
                world.broker_down();
            }
        }
    }
    world.send(A, connect_with("c1", false, false, 61));
    world.quiet();
    world.pass(Duration::from_secs(4));
    world.quiet();
    world.admitted(A, "c1", true);
    world.pass(Duration::from_secs(50));
    world.quiet();
}

#[test]
fn a_client_that_connects_elsewhere_is_not_lost_while_the_broker_is_asked() {
    let mut world = world();
    let will = WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w" };
    world.gives_will(A, connect_with("c1", true, true, 60), will, "gone");
    world.admitted(A, "c1", false);
    world.pass(Duration::from_secs(88));
    world.send(B, connect("c1"));
    world.pass(Duration::from_secs(5));
    world.on_link_of(None);
    world.broker_quiet();
    world.on_link_of(Some("c1"));
    world.broker_gets_disconnect();
    world.link_up("c1", false);
    world.next_to(A);
    let frame = world.next_to(B);
    assert_eq!(frame, encode(&connack(ReturnCode::Accepted)));
}

#[test]
fn a_client_that_takes_leave_where_it_was_is_connected_where_it_is() {
    for (clean, accepted) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut world = world();
        world.served(A, "c1", clean);
        world.broker_down();
        world.send(B, connect_with("c1", false, clean, 60));
        // It said so before, and the radio was slow.
        world.takes_leave(A);
        world.on_link_of(Some("c1"));
        world.broker_sees_connect("c1");
        if accepted {
            world.broker_accepts(!clean);
            world.expect(B, connack(ReturnCode::Accepted));
            world.pings(B);
            world.pass(Duration::from_secs(80));
            assert_eq!(world.gw.sessions(), 1);
        } else {
            world.broker_refuses(ConnectReturnCode::BadUserNamePassword);
            world.expect(B, connack(ReturnCode::NotSupported));
            assert_eq!(world.gw.sessions(), usize::from(!clean));
            // Of one that lives on nothing is left when its time is over.
            world.pass(Duration::from_secs(86_401));
            assert_eq!(world.gw.sessions(), 0);
        }
        world.quiet();
    }
}

#[test]
fn a_client_that_another_follows_where_it_was_is_connected_where_it_is() {
    let mut world = world();
    world.served(A, "c1", true);
    world.send(B, connect("c1"));
    world.served(A, "c2", true);
    world.on_link_of(Some("c1"));
    world.broker_gets_disconnect();
    world.admitted(B, "c1", false);
    assert_eq!(world.gw.sessions(), 2);
}

/// It would go on as if it were connected, or go to sleep for hours.
#[test]
fn a_client_whose_link_had_to_go_for_a_connect_from_elsewhere_that_came_to_nothing_is_told() {
    for sleeps in [false, true] {
        let mut world = world();
        world.served(A, "c1", true);
        if sleeps {
            world.falls_asleep(A, 600);
        }
        world.send(B, connect("c1"));
        world.quiet();
        // No answer from the broker.
        world.pass(Duration::from_secs(8));
        world.expect(B, connack(ReturnCode::Congestion));
        assert_eq!(world.gw.sessions(), 0);
        if sleeps {
            world.quiet();
            world.send(A, pingreq_of("c1"));
        }
        world.expect(A, disconnect());
        world.quiet();
    }
}

#[test]
fn a_client_whose_other_will_the_broker_does_not_take_has_its_grace_and_its_old_will() {
    let mut world = with_will_at_broker();
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w" };
    world.gives_will(A, connect_with("c1", true, false, 61), will, "other");
    world.broker_gets_disconnect();
    let will = world.broker_sees_connect("c1").last_will.expect("a will");
    assert_eq!(&will.message[..], b"other");
    world.broker_refuses(ConnectReturnCode::ServiceUnavailable);
    world.expect(A, connack(ReturnCode::Congestion));
    world.pass(Duration::from_secs(3));
    let will = world.broker_sees_connect("c1").last_will.expect("a will");
    assert_eq!(&will.message[..], b"gone", "all is as it was");
    world.broker_down();
    for _ in 0..57 {
        world.quiet();
        world.pings(A);
        world.pass(Duration::from_secs(1));
    }
    world.expect(A, disconnect());
}

#[test]
fn nobody_is_connected_any_more_after_the_order_to_stop() {
    for mode in [Mode::Transparent, Mode::Aggregating] {
        let mut world = changed_world(|settings| settings.ports[0].mode = mode);
        world.send(A, connect_with("c1", true, true, 60));
        world.expect(A, Packet::WillTopicReq);
        let topic = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w" };
        world.send(A, Packet::WillTopic(topic));
        world.expect(A, Packet::WillMsgReq);
        world.input(Input::Control(mqtt_sn_gateway::gateway::io::Control::Shutdown));
        world.send(A, Packet::WillMsg(WillMsg { message: b"late" }));
        world.expect(A, connack(ReturnCode::Congestion));
        assert_eq!(world.gw.sessions(), 0);
        assert!(world.stopped);
    }
}

#[test]
fn a_filter_that_is_refused_on_top_of_a_subscription_is_issued_again_as_it_was() {
    let mut world = world();
    world.served(A, "c1", false);
    world.subscribed(A, "t", QoS::AtMostOnce);
    world.send(A, subscribe(9, "t", Qos::AtLeastOnce));
    let pkid = world.broker_gets_subscribe("t", QoS::AtLeastOnce);
    world.broker_denies(pkid);
    world.next(A);
    world.broker_down();
    world.pass(Duration::from_secs(3));
    world.link_up("c1", false);
    world.broker_gets_subscribe("t", QoS::AtMostOnce);
}

#[test]
fn what_is_said_late_of_a_connection_that_is_gone_does_not_touch_the_next() {
    let mut world = world();
    world.served(A, "c1", true);
    let (before, _) = world.commands[0];
    world.broker_down();
    world.pass(Duration::from_secs(3));
    world.link_up("c1", true);
    world.commands.clear();
    world.input(Input::Link(before, LinkEvent::Closed(LinkFailure::Closed)));
    world.input(Input::Link(before, LinkEvent::Bytes(vec![0xFF; 9].into())));
    world.no_command();
    assert_eq!(world.gw.counters().link_stale, 2);
}

#[test]
fn a_session_that_was_inherited_stays_so_when_the_client_connects_again() {
    let mut world = world();
    for present_and_new in [true, false] {
        world.send(A, connect_with("c1", false, false, if present_and_new { 60 } else { 61 }));
        world.admitted(A, "c1", true);
        if present_and_new {
            world.takes_leave(A);
            world.broker_next();
        }
    }
    world.broker_publishes(3, "from/before", "kept", QoS::AtLeastOnce);
    world.expect_register(A, "from/before");
}

/// Two connections under one id would end each other, and what the client begins would be removed.
#[test]
fn a_client_that_is_back_while_its_session_is_removed_from_the_broker_connects_behind_that() {
    for clean in [false, true] {
        let mut world = world();
        world.served(A, "c1", false);
        world.takes_leave(A);
        world.broker_gets_disconnect();
        world.commands.clear();
        world.pass(Duration::from_secs(86_401));
        assert_eq!(world.gw.sessions(), 0);
        world.commands.clear();
        world.send(A, connect_with("c1", false, clean, 60));
        world.no_command();
        let purge = world.broker_sees_connect("c1");
        assert!(purge.clean_session);
        world.commands.clear();
        world.broker_accepts(false);
        world.broker_gets_disconnect();
        world.expect_close();
        world.quiet();
        let connect = world.broker_sees_connect("c1");
        assert_eq!(connect.clean_session, clean);
        world.broker_accepts(false);
        world.expect(A, connack(ReturnCode::Accepted));
    }
}

#[test]
fn a_client_that_is_back_connects_though_its_session_cannot_be_removed() {
    let mut world = world();
    world.served(A, "c1", false);
    world.takes_leave(A);
    world.broker_gets_disconnect();
    world.commands.clear();
    world.pass(Duration::from_secs(86_401));
    world.send(A, connect_with("c1", false, false, 60));
    world.on_link_of(Some("c1"));
    world.commands.clear();
    world.broker_down();
    world.admitted(A, "c1", true);
}

#[test]
fn a_session_that_cannot_be_removed_from_the_broker_is_tried_once() {
    let mut world = world();
    world.served(A, "c1", false);
    world.takes_leave(A);
    world.pass(Duration::from_secs(86_401));
    world.on_link_of(Some("c1"));
    world.commands.clear();
    world.broker_down();
    world.pass(Duration::from_secs(100));
    let again =
        world.commands.iter().any(|(_, it)| matches!(it, LinkCommand::Connect { client: Some(_), .. }));
    assert!(!again, "{:?}", world.commands);
}

#[test]
fn when_the_broker_is_back_no_client_waits_for_its_turn_until_the_grace_is_over() {
    let mut world = changed_world(|settings| settings.broker.grace = Duration::from_secs(120));
    let clients = ["c0", "c1", "c2", "c3", "c4"];
    for (at, id) in (1..).zip(clients) {
        world.served(at, id, false);
    }
    // The broker goes, and refuses TCP for a minute.
    for id in [None].into_iter().chain(clients.map(Some)) {
        world.on_link_of(id);
        world.broker_down();
    }
    for _ in 0..600 {
        world.pass(Duration::from_millis(100));
        for id in [None].into_iter().chain(clients.map(Some)) {
            world.on_link_of(id);
            if world.is_asked_for() {
                world.broker_down();
            }
        }
    }
    // It is back, and takes whoever comes first; the others come within two seconds.
    let mut connected = std::collections::BTreeSet::new();
    let mut first = None;
    for tick in 0..400 {
        world.pass(Duration::from_millis(100));
        for id in [None].into_iter().chain(clients.map(Some)) {
            world.on_link_of(id);
            if world.is_asked_for() && connected.insert(id) {
                world.broker_answers_tcp();
                world.broker_takes_octets();
                world.broker_accepts(true);
                first.get_or_insert(tick);
            }
        }
        if connected.len() == 6 {
            assert!(tick - first.unwrap() <= 21, "{} ticks", tick - first.unwrap());
            assert_eq!(world.gw.counters().clients_dismissed, 0);
            return;
        }
    }
    panic!("{connected:?}");
}

#[test]
fn a_client_whose_id_another_connection_takes_back_each_time_is_told_and_gives_way() {
    let mut world = world();
    world.served(A, "c1", false);
    for again in 1..=20 {
        // The broker closes without a word: the other is there.
        world.on_link_of(Some("c1"));
        world.broker_down();
        if world.gw.counters().clients_dismissed > 0 {
            assert_eq!(again, 7);
            world.expect(A, disconnect());
            world.commands.clear();
            world.pass(Duration::from_secs(100));
            world.no_command();
            // It comes again, and one lost connection is no reason to send it away.
            world.send(A, connect_with("c1", false, false, 60));
            world.admitted(A, "c1", true);
            world.broker_down();
            world.quiet();
            return;
        }
        world.pass(Duration::from_secs(3));
        world.link_up("c1", true);
        world.pings(A);
    }
    panic!("it fights for ever");
}

#[test]
fn a_client_on_a_bad_way_to_the_broker_is_not_taken_for_one_whose_id_is_taken() {
    let mut world = world();
    world.served(A, "c1", false);
    for _ in 1..=20 {
        // The way breaks for everybody.
        for id in [None, Some("c1")] {
            world.on_link_of(id);
            world.broker_down();
        }
        world.pass(Duration::from_secs(3));
        world.on_link_of(None);
        world.broker_up(true);
        world.link_up("c1", true);
        world.pings(A);
    }
    assert_eq!(world.gw.counters().clients_dismissed, 0);
}

/// Seed 20204 of the simulator: the CONNECT had no answer.
#[test]
fn a_goodbye_from_where_the_client_was_does_not_end_its_connect_from_elsewhere() {
    for clean in [true, false] {
        let mut world = world();
        world.served(A, "c1", clean);
        world.broker_down();
        world.send(B, connect_with("c1", false, clean, 60));
        world.broker_sees_connect("c1");
        world.takes_leave(A);
        world.broker_accepts(!clean);
        world.expect(B, connack(ReturnCode::Accepted));
        world.send(A, pingreq());
        world.expect(A, disconnect());
    }
}

#[test]
fn a_clean_client_that_takes_leave_while_it_connects_again_is_answered() {
    let mut world = world();
    world.served(A, "c1", true);
    world.send(A, connect_with("c1", false, true, 61));
    world.quiet();
    world.takes_leave(A);
    assert_eq!(world.gw.sessions(), 0);
}

/// Seed 20968 of the simulator: SUBACK gave an id that stood for nothing.
#[test]
fn a_second_request_that_is_refused_leaves_the_first_the_id_of_the_name() {
    let mut world = world();
    world.served(A, "c1", false);
    world.send(A, subscribe(1, "t", Qos::AtLeastOnce));
    world.broker_gets_subscribe("t", QoS::AtLeastOnce);
    world.broker_down();
    world.send(A, subscribe(2, "t", Qos::AtLeastOnce));
    assert_eq!(world.next(A)[7], 1, "congestion");
    world.pass(Duration::from_secs(3));
    world.link_up("c1", true);
    world.broker_grants_subscribe("t", QoS::AtLeastOnce);
    let suback = world.next(A);
    let id = u16::from_be_bytes([suback[3], suback[4]]);
    assert_eq!(world.registered(A, "t"), id);
}

/// Seed 22071 of the simulator: from then on nobody was heard at the first place.
#[test]
fn a_connect_in_the_other_mode_takes_the_place_of_one_that_waits_for_the_broker() {
    let mut world = world_with_radio();
    world.send(A, connect("c1"));
    world.broker_sees_connect("c1");
    world.send_by_radio(B, connect("c1"));
    assert_eq!(world.next_frame(), encode(&connack(ReturnCode::Accepted)));
    world.expect_close();
    assert_eq!(world.gw.sessions(), 1);
    world.pass(Duration::from_secs(10));
    world.send(A, connect("c2"));
    world.admitted(A, "c2", false);
}

/// Seed 21679 of the simulator: a QoS 2 message came twice to a client that tells messages apart by more than the MsgId.
#[test]
fn what_is_sent_again_names_its_topic_as_it_did() {
    let mut world = world();
    world.served(A, "c1", false);
    world.subscribed(A, "+", QoS::ExactlyOnce);
    world.broker_publishes(5, "ab", "on", QoS::ExactlyOnce);
    let id = world.learns(A, "ab");
    let sent_as = world.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, false, "on");
    let (topic, qos) = (FilterRef::Short(*b"ab"), Qos::AtMostOnce);
    world.send(A, Packet::Subscribe(Subscribe { dup: false, qos, msg_id: 9, topic }));
    world.broker_grants_subscribe("ab", QoS::AtMostOnce);
    world.next(A);
    world.connected(A, connect_with("c1", false, false, 61));
    world.learns(A, "ab");
    assert_eq!(world.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, true, "on"), sent_as);
}

#[test]
fn what_a_client_unsubscribes_from_in_a_session_older_than_the_gateway_ends_at_the_broker() {
    let mut world = world();
    world.inherited(A, "c1");
    world.unsubscribed(A, "t");
    world.broker_gets_unsubscribe("t");
}

/// a session older than the gateway may have other subscriptions that bring it, as soon as the broker has ended this one.
#[test]
fn in_a_session_older_than_the_gateway_nothing_follows_unsuback_until_the_broker_has_ended_it_too() {
    let mut world = world();
    world.inherited(A, "c1");
    let topic = TopicRef::Normal(world.subscribed(A, "t", QoS::AtLeastOnce));
    world.falls_asleep(A, 60);
    world.broker_publishes(1, "t", "waits", QoS::AtLeastOnce);
    world.unsubscribed(A, "t");
    let v4::Packet::Unsubscribe(unsubscribe) = world.broker_next() else { panic!() };
    world.broker_gets_puback(1);
    world.broker_publishes(2, "t", "crosses", QoS::AtLeastOnce);
    world.broker_gets_puback(2);
    world.broker_publishes(3, "u", "another", QoS::AtLeastOnce);
    assert_eq!(world.gw.counters().downlink_ended, 2);
    world.broker_says(v4::Packet::UnsubAck(v4::UnsubAck::new(unsubscribe.pkid)));
    world.broker_publishes(4, "t", "by +", QoS::AtLeastOnce);
    world.send(A, pingreq_of("c1"));
    let id = world.learns(A, "u");
    world.takes(A, TopicRef::Normal(id), "another");
    world.takes(A, topic, "by +");
    world.expect(A, Packet::PingResp);
}

/// Its filter was never heard of here.
#[test]
fn an_unsubscribe_from_what_the_broker_alone_knows_ends_messages_too() {
    let mut world = world();
    world.inherited(A, "c1");
    world.unsubscribed(A, "t");
    world.broker_publishes(1, "t", "x", QoS::AtLeastOnce);
    world.quiet();
    // It changes its mind.
    world.send(A, subscribe(4, "t", Qos::AtLeastOnce));
    let v4::Packet::Unsubscribe(_) = world.broker_next() else { panic!() };
    world.broker_gets_puback(1);
    world.broker_grants_subscribe("t", QoS::AtLeastOnce);
    let suback = world.next(A);
    let topic = TopicRef::Normal(u16::from_be_bytes([suback[3], suback[4]]));
    world.broker_publishes(2, "t", "y", QoS::AtLeastOnce);
    world.expect_publish(A, topic, Qos::AtLeastOnce, false, "y");
}
