//! Filters that overlap, with a broker of MQTT 3.1.1: it may send one copy or several, and each client gets one.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{Control, Input, LinkFailure, Protocol, Settings};
use mqtt_sn_gateway::gateway::record::Key;
use mqtt_sn_gateway::wire::{Packet, Qos, ReturnCode, SubAck, TopicRef, decode};
use rumqttc::mqttbytes::v4;
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::*;

const A: At = 1000;
const B: At = 2000;

impl World {
    /// A further link comes up; the broker sees with which client id.
    #[track_caller]
    fn lane_up(&mut self, lane: usize, client_id: &str) {
        self.pass(Duration::ZERO);
        self.on_lane(lane);
        let connect = self.broker_hears_connect();
        assert_eq!(connect.client_id, client_id);
        self.broker_accepts(false);
    }

    /// The client subscribes, and the broker hears it on this lane.
    #[track_caller]
    fn subscribed_on(&mut self, lane: usize, at: At, filter: &str, qos: QoS) -> u16 {
        self.on_lane(lane);
        self.subscribed(at, filter, qos)
    }

    /// What the client has subscribed to is what the broker hears next on this lane.
    #[track_caller]
    fn granted_on(&mut self, lane: usize, at: At, filter: &str, qos: QoS) -> u16 {
        self.on_lane(lane);
        self.granted(at, filter, qos)
    }

    /// The client subscribes to what the broker has at QoS 0, and the broker hears it on its first lane.
    #[track_caller]
    fn raised(&mut self, at: At, filter: &str, qos: QoS) -> u16 {
        self.on_lane(0);
        self.send(at, subscribe(2, filter, sn_qos(qos)));
        self.broker_answers_unsubscribe(filter);
        self.granted(at, filter, qos)
    }
}

/// A client at A has a filter on the first link and asks for one that overlaps it.
fn overlapping_asked_for() -> (World, TopicRef) {
    let mut w = world();
    let topic = w.subscriber(A, connect_with("n1", false, true, 6000), "s/1", QoS::AtMostOnce);
    w.send(A, subscribe(2, "s/#", sn_qos(QoS::AtLeastOnce)));
    w.on_lane(0);
    w.broker_quiet();
    w.pass(Duration::ZERO);
    (w, topic)
}

/// That client with one filter on the first link and one on the second.
fn two_lanes() -> (World, TopicRef) {
    let (mut w, topic) = overlapping_asked_for();
    w.lane_up(1, "gw-2");
    w.granted(A, "s/#", QoS::AtLeastOnce);
    (w, topic)
}

/// The client unsubscribes from the only filter on the second link.
#[track_caller]
fn second_lane_empties(w: &mut World) {
    w.unsubscribed(A, "s/#");
    w.on_lane(1);
    w.broker_answers_unsubscribe("s/#");
}

/// The second link is lost, and the broker has heard CONNECT on it again.
#[track_caller]
fn second_lane_connects_again(w: &mut World) {
    w.on_lane(1);
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.on_lane(1);
    w.broker_hears_connect();
}

#[test]
fn of_two_copies_a_client_gets_the_one_for_its_best_filter() {
    let (mut w, topic) = two_lanes();
    w.on_lane(0);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.quiet();
    w.on_lane(1);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.quiet();
    assert_eq!(w.gw.counters().downlink_unrouted, 1);
}

#[test]
fn a_copy_that_is_nobodys_best_is_acknowledged_at_once_on_its_own_link() {
    let (mut w, _) = two_lanes();
    w.active(B, "n2");
    w.raised(B, "s/1", QoS::AtLeastOnce);
    w.unsubscribed(B, "s/1");
    w.on_lane(0);
    w.broker_publishes(9, "s/1", "on", QoS::AtLeastOnce);
    w.broker_gets_puback(9);
    w.on_lane(1);
    w.broker_quiet();
}

#[test]
fn each_of_several_clients_gets_one_copy_whatever_overlaps() {
    let (mut w, a) = two_lanes();
    w.active(B, "n2");
    let b = TopicRef::Normal(w.raised(B, "s/1", QoS::AtLeastOnce));
    // The copy on the first link is the second client's, and the acknowledgement waits for it alone.
    w.on_lane(0);
    w.broker_publishes(3, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(B, b, Qos::AtLeastOnce, false, "on");
    w.quiet();
    w.send(B, puback(b, msg_id, ReturnCode::Accepted));
    w.broker_gets_puback(3);
    w.on_lane(1);
    w.broker_publishes(3, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, a, Qos::AtLeastOnce, false, "on");
    w.quiet();
    w.on_lane(0);
    w.broker_quiet();
    w.send(A, puback(a, msg_id, ReturnCode::Accepted));
    w.on_lane(1);
    w.broker_gets_puback(3);
}

#[test]
fn what_does_not_overlap_stays_on_the_gateways_own_link() {
    let mut w = world();
    w.active(A, "n1");
    for filter in ["a", "b", "s/+", "t/+", "u/#"] {
        w.subscribed_on(0, A, filter, QoS::AtMostOnce);
    }
    assert_eq!(w.lanes(), 1);
}

#[test]
fn three_filters_that_overlap_each_other_take_three_links_and_a_fourth_goes_where_there_is_room() {
    let (mut w, _) = two_lanes();
    w.send(A, subscribe(2, "+/1", sn_qos(QoS::AtMostOnce)));
    w.lane_up(2, "gw-3");
    w.granted(A, "+/1", QoS::AtMostOnce);
    // It overlaps what is on the second and the third link only by s/#.
    w.subscribed_on(0, A, "s/2", QoS::AtMostOnce);
    assert_eq!(w.lanes(), 3);
}

#[test]
fn retained_messages_come_once_from_whichever_link() {
    let (mut w, topic) = two_lanes();
    w.on_lane(0);
    w.broker_publishes_retained("s/1", "kept");
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "kept");
    w.on_lane(1);
    w.broker_publishes_retained("s/1", "kept");
    w.quiet();
}

#[test]
fn a_further_link_that_carries_nothing_is_left_with_its_session() {
    let (mut w, topic) = two_lanes();
    second_lane_empties(&mut w);
    w.broker_gets_disconnect();
    let connect = w.broker_hears_connect();
    assert!(connect.clean_session && connect.client_id == "gw-2");
    w.broker_accepts(false);
    w.broker_gets_disconnect();
    assert_eq!(w.lanes(), 1);
    // What is left gets its copy.
    w.on_lane(0);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "on");
}

#[test]
fn a_further_link_that_is_lost_comes_back_with_what_it_carried() {
    let (mut w, topic) = two_lanes();
    w.on_lane(1);
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.on_lane(0);
    w.broker_quiet();
    w.on_lane(1);
    w.broker_up(false);
    w.broker_grants_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_quiet();
    w.on_lane(0);
    w.broker_quiet();
    w.on_lane(1);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
}

#[test]
fn filters_asked_for_while_the_broker_is_away_are_spread_when_it_returns() {
    let mut w = offline_world(|_| {});
    w.connected(A, connect_with("n1", false, true, 600));
    for (msg_id, filter) in [(1, "s/#"), (2, "s/1")] {
        w.send(A, subscribe(msg_id, filter, sn_qos(QoS::AtMostOnce)));
        w.next(A);
    }
    w.broker_up(false);
    w.on_lane(0);
    let first = w.broker_next();
    w.lane_up(1, "gw-2");
    let second = w.broker_next();
    let mut filters = [first, second].map(|packet| match packet {
        v4::Packet::Subscribe(subscribe) => {
            assert_eq!(subscribe.filters.len(), 1);
            subscribe.filters[0].path.clone()
        }
        other => panic!("{other:?}"),
    });
    filters.sort();
    assert_eq!(filters, ["s/#", "s/1"]);
}

#[test]
fn filters_of_a_broker_that_told_copies_apart_are_spread_when_it_no_longer_does() {
    let (mut w, _) = one_link_for_two(|_| {});
    knows_no_5(&mut w);
    are_spread(&mut w);
}

#[test]
fn filters_of_a_broker_that_told_copies_apart_are_spread_when_it_no_longer_does_after_a_restart() {
    let (mut w, _) = one_link_for_two(|settings| settings.lasting = true);
    w.crash_with(|settings| settings.broker.protocol = Protocol::V311);
    are_spread(&mut w);
}

#[test]
fn what_has_waited_for_a_filter_comes_on_the_link_that_it_leaves() {
    let (mut w, topic) = one_link_for_two(|_| {});
    knows_no_5(&mut w);
    let pkid = leaves_the_first_link(&mut w);
    w.broker_publishes(7, "s/1", "waited", QoS::AtLeastOnce);
    w.takes(A, topic, "waited");
    w.broker_gets_puback(7);
    // Until the other link has it, it comes for the filter that stays.
    w.broker_unsubacks(pkid);
    w.broker_publishes(0, "s/1", "between", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "between");
    w.lane_up(1, "gw-2");
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    w.on_lane(0);
    w.broker_publishes(0, "s/1", "both", QoS::AtMostOnce);
    w.quiet();
    w.on_lane(1);
    w.broker_publishes(7, "s/1", "both", QoS::AtLeastOnce);
    w.takes(A, topic, "both");
}

#[test]
fn what_has_waited_for_a_filter_comes_on_the_link_that_it_leaves_after_a_restart() {
    let (mut w, topic) = one_link_for_two(|settings| settings.lasting = true);
    knows_no_5(&mut w);
    leaves_the_first_link(&mut w);
    w.crash_with(|settings| settings.broker.protocol = Protocol::V311);
    w.on_lane(0);
    w.broker_up(true);
    w.broker_publishes(7, "s/1", "waited", QoS::AtLeastOnce);
    w.takes(A, topic, "waited");
}

#[test]
fn a_filter_that_leaves_a_link_is_asked_for_on_the_next_when_it_has_left() {
    let (mut w, _) = one_link_for_two(|_| {});
    knows_no_5(&mut w);
    let pkid = leaves_the_first_link(&mut w);
    w.lane_up(1, "gw-2");
    w.broker_quiet();
    w.on_lane(0);
    w.broker_unsubacks(pkid);
    w.on_lane(1);
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    w.broker_quiet();
    w.on_lane(0);
    w.broker_quiet();
}

/// Another broker takes its place: it knows only 3.1.1, and has our session.
fn knows_no_5(w: &mut World) {
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.broker_answers_tcp();
    w.broker_takes_octets();
    w.broker_octets(vec![0x20, 2, 0, 1].into());
}

/// A client has two filters that overlap, on one link in MQTT 5.
fn one_link_for_two(change: impl FnOnce(&mut Settings)) -> (World, TopicRef) {
    let mut w = offline_world(|settings| {
        settings.broker.protocol = Protocol::Auto;
        change(settings);
    });
    w.broker_answers_tcp();
    w.broker_takes_octets();
    w.broker_octets(vec![0x20, 3, 0, 0, 0].into());
    w.connected(A, connect_with("n1", false, true, 600));
    let mut topic_id = 0;
    for (msg_id, filter, qos) in [(1, "s/#", QoS::AtMostOnce), (2, "s/1", QoS::AtLeastOnce)] {
        w.send(A, subscribe(msg_id, filter, sn_qos(qos)));
        // SUBACK in MQTT 5: packet id, no properties, QoS.
        let octets = w.broker_takes_octets();
        w.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, qos as u8].into());
        let frame = w.next(A);
        let Packet::SubAck(suback) = decode(&frame).unwrap().packet else { panic!("{frame:02x?}") };
        topic_id = suback.topic_id;
    }
    assert_eq!(w.lanes(), 1, "MQTT 5 needs no further link");
    (w, TopicRef::Normal(topic_id))
}

/// The broker takes the session over in MQTT 3.1.1, and one of the two filters goes to another link.
#[track_caller]
fn are_spread(w: &mut World) {
    let pkid = leaves_the_first_link(w);
    w.broker_unsubacks(pkid);
    w.lane_up(1, "gw-2");
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
}

/// It takes the session over, one filter stays there, and it is to forget the other: under which packet id.
#[track_caller]
fn leaves_the_first_link(w: &mut World) -> u16 {
    w.on_lane(0);
    w.broker_up(true);
    let pkid = w.broker_gets_unsubscribe("s/1");
    w.broker_grants_subscribe("s/#", QoS::AtMostOnce);
    w.broker_quiet();
    pkid
}

#[test]
fn beyond_eight_links_filters_share_one_and_that_is_counted() {
    let mut w = world();
    w.active(A, "n1");
    let mut filters = vec!["#".to_owned()];
    for depth in 1..10 {
        filters.push(format!("{}#", "a/".repeat(depth)));
    }
    for (index, filter) in filters.iter().enumerate() {
        w.send(A, subscribe(2, filter, sn_qos(QoS::AtMostOnce)));
        let lane = if index < 8 { index } else { 0 };
        if (1..8).contains(&index) {
            w.lane_up(lane, &format!("gw-{}", lane + 1));
        }
        w.on_lane(lane);
        w.granted(A, filter, QoS::AtMostOnce);
    }
    assert_eq!(w.lanes(), 8);
    w.unsubscribed(A, "#");
    assert_eq!(w.gw.counters().filters_crowded, 2);
}

#[test]
fn at_a_stop_the_sessions_of_further_links_are_removed() {
    let (mut w, _) = two_lanes();
    w.input(Input::Control(Control::Shutdown));
    w.expect(A, disconnect());
    w.on_lane(0);
    w.broker_gets_disconnect();
    assert!(!w.stopped);
    w.on_lane(1);
    w.broker_gets_disconnect();
}

#[test]
fn a_further_link_that_is_needed_again_does_not_take_the_id_of_one_that_is_being_left() {
    let (mut w, _) = two_lanes();
    second_lane_empties(&mut w);
    w.send(A, subscribe(2, "s/#", sn_qos(QoS::AtLeastOnce)));
    // The broker has yet to hear the end of the first: it would end the new one with it.
    w.pass(Duration::ZERO);
    w.on_lane(2);
    let connect = w.broker_hears_connect();
    assert_eq!(connect.client_id, "gw-3");
}

#[test]
fn a_further_link_whose_only_filter_the_broker_refuses_is_left() {
    let (mut w, _) = overlapping_asked_for();
    w.lane_up(1, "gw-2");
    let pkid = w.broker_gets_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_denies(pkid);
    w.next(A);
    w.broker_gets_disconnect();
}

#[test]
fn what_was_on_its_way_when_a_filter_as_good_was_added_comes() {
    for [first, second] in [["s/1", "s/#"], ["s/#", "s/1"]] {
        let mut w = world();
        w.active(A, "n1");
        w.subscribed_on(0, A, first, QoS::AtLeastOnce);
        w.send(A, subscribe(2, second, sn_qos(QoS::AtLeastOnce)));
        w.lane_up(1, "gw-2");
        w.granted(A, second, QoS::AtLeastOnce);
        // It has waited at the broker since before the second SUBSCRIBE, so that there is no other copy.
        w.on_lane(0);
        w.broker_publishes(1, "s/1", "before", QoS::AtLeastOnce);
        let packet = w.next(A);
        assert!(packet.windows(3).any(|part| part == b"s/1" || part == b"bef"), "{first}: {packet:02x?}");
    }
}

#[test]
fn what_was_on_its_way_for_the_older_of_two_filters_as_good_comes_after_a_restart() {
    for [first, second] in [["s/1", "s/#"], ["s/#", "s/1"]] {
        let mut w = world_with(|settings| settings.lasting = true);
        w.active(A, "n1");
        w.subscribed_on(0, A, first, QoS::AtLeastOnce);
        w.send(A, subscribe(2, second, sn_qos(QoS::AtLeastOnce)));
        w.lane_up(1, "gw-2");
        let pkid = w.broker_gets_subscribe(second, QoS::AtLeastOnce);
        w.broker_grants(pkid, QoS::AtLeastOnce);
        w.next(A);
        // Of two copies this one is nobody's.
        w.broker_publishes(5, "s/1", "before", QoS::AtLeastOnce);
        w.broker_gets_puback(5);
        w.crash();
        for lane in [1, 0] {
            w.on_lane(lane);
            w.broker_up(true);
        }
        w.broker_publishes(9, "s/1", "before", QoS::AtLeastOnce);
        let packet = w.next(A);
        assert!(packet.windows(3).any(|part| part == b"s/1" || part == b"bef"), "{first}: {packet:02x?}");
    }
}

/// The broker has yet to forget the filter on one link when it is asked for on another, and a crash comes in between.
#[test]
fn a_filter_that_a_crash_found_on_two_links_is_taken_back_from_the_one_where_it_was_given_up() {
    let mut w = world_with(|settings| settings.lasting = true);
    w.active(A, "n1");
    w.subscribed_on(0, A, "s/1", QoS::AtLeastOnce);
    w.send(A, subscribe(2, "s/#", sn_qos(QoS::AtLeastOnce)));
    w.lane_up(1, "gw-2");
    let pkid = w.broker_gets_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_grants(pkid, QoS::AtLeastOnce);
    w.next(A);
    w.unsubscribed(A, "s/#");
    let v4::Packet::Unsubscribe(_) = w.broker_next() else { panic!("UNSUBSCRIBE") };
    w.on_lane(0);
    w.unsubscribed(A, "s/1");
    w.broker_answers_unsubscribe("s/1");
    w.subscribed_on(0, A, "s/#", QoS::AtLeastOnce);
    w.crash();
    w.on_lane(0);
    w.broker_up(true);
    w.on_lane(1);
    w.broker_up(true);
    w.broker_answers_unsubscribe("s/#");
    w.on_lane(0);
    w.broker_publishes(9, "s/1", "waited", QoS::AtLeastOnce);
    let packet = w.next(A);
    assert!(packet.ends_with(b"waited"), "{packet:02x?}");
    let filters: Vec<_> = w.store.rows.keys().filter(|key| matches!(key, Key::Filter(..))).collect();
    assert_eq!(filters.len(), 1, "{filters:?}");
}

#[test]
fn a_further_link_that_is_down_is_left_when_it_is_back() {
    let (mut w, _) = two_lanes();
    w.on_lane(1);
    w.broker_down();
    w.unsubscribed(A, "s/#");
    w.pass(Duration::from_secs(3));
    w.broker_up(true);
    w.broker_answers_unsubscribe("s/#");
    w.broker_gets_disconnect();
}

#[test]
fn what_waited_on_a_further_link_comes_also_when_a_connect_before_was_not_answered() {
    let (mut w, topic) = two_lanes();
    second_lane_connects_again(&mut w);
    w.broker_down();
    w.pass(Duration::from_secs(5));
    w.on_lane(1);
    // It may be a younger session, but it is ours.
    w.broker_up(true);
    w.broker_gets_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "waited", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "waited");
}

// A broker that does not want a further link.

/// For that client the broker has got CONNECT on the second link, and has yet to accept it.
fn second_lane_asked_for() -> World {
    let (mut w, _) = overlapping_asked_for();
    w.on_lane(1);
    w.broker_answers_tcp();
    w.broker_takes_octets();
    w
}

/// What was to be on a further link is on the first one, and the client is told that it is there.
#[track_caller]
fn falls_back(w: &mut World) {
    w.granted_on(0, A, "s/#", QoS::AtLeastOnce);
    assert_eq!(w.lanes(), 1);
    assert_eq!(w.gw.counters().filters_crowded, 1);
}

#[test]
fn a_subscription_for_which_the_broker_refuses_a_further_link_goes_by_the_first() {
    let mut w = second_lane_asked_for();
    w.broker_refuses(ConnectReturnCode::NotAuthorized);
    falls_back(&mut w);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.next(A);
    w.quiet();
    // Nor is it asked for another one before it has accepted us anew.
    w.subscribed_on(0, A, "+/1", QoS::AtLeastOnce);
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.broker_up(true);
    w.send(A, subscribe(2, "#", sn_qos(QoS::AtLeastOnce)));
    w.lane_up(1, "gw-2");
}

#[test]
fn a_broker_that_has_no_room_at_the_moment_is_asked_for_the_further_link_again() {
    let mut w = second_lane_asked_for();
    w.broker_refuses(ConnectReturnCode::ServiceUnavailable);
    w.on_lane(0);
    w.broker_quiet();
    w.pass(Duration::from_secs(2));
    w.on_lane(1);
    w.broker_up(false);
    w.granted_on(1, A, "s/#", QoS::AtLeastOnce);
}

/// How a broker does without a further link that it has not refused for good.
#[derive(Debug, Clone, Copy)]
enum Shunned {
    Closed,
    ClosedAfterConnect,
    NoRoom,
    /// It cannot be reached.
    Away,
}

/// The further link is tried once more, in vain.
#[track_caller]
fn shun(w: &mut World, how: Shunned) {
    w.on_lane(1);
    assert!(w.is_asked_for(), "{how:?}");
    if let Shunned::Away = how {
        return w.broker_down_with(LinkFailure::Connect("no route to host".into()));
    }
    w.broker_answers_tcp();
    match how {
        Shunned::NoRoom => {
            w.broker_takes_octets();
            w.broker_refuses(ConnectReturnCode::ServiceUnavailable);
        }
        Shunned::ClosedAfterConnect => {
            w.broker_takes_octets();
            w.broker_down();
        }
        Shunned::Closed | Shunned::Away => w.broker_down(),
    }
}

/// More than the longest pause of a link.
const PAUSE: Duration = Duration::from_secs(31);

#[test]
fn a_further_link_that_the_broker_never_accepts_is_given_up_after_five_tries() {
    for how in [Shunned::Closed, Shunned::ClosedAfterConnect, Shunned::NoRoom] {
        let (mut w, _) = overlapping_asked_for();
        for _ in 0..4 {
            shun(&mut w, how);
            w.on_lane(0);
            w.broker_quiet();
            w.pass(PAUSE);
        }
        let frame = w.next(A);
        let Packet::SubAck(SubAck { code: ReturnCode::Congestion, .. }) = decode(&frame).unwrap().packet
        else {
            panic!("{frame:02x?}")
        };
        w.send(A, subscribe(2, "s/#", sn_qos(QoS::AtLeastOnce)));
        shun(&mut w, how);
        w.on_lane(0);
        // Once for the one that was told to try again, and once for the one that waits.
        w.broker_grants_subscribe("s/#", QoS::AtLeastOnce);
        falls_back(&mut w);
        w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
        w.next(A);
        w.quiet();
        w.pass(PAUSE);
        w.subscribed_on(0, A, "+/1", QoS::AtLeastOnce);
        assert_eq!(w.lanes(), 1, "not before the own link connects anew");
        w.on_lane(0);
        w.broker_down();
        w.pass(PAUSE);
        w.on_lane(0);
        w.broker_up(true);
        w.send(A, subscribe(2, "#", sn_qos(QoS::AtLeastOnce)));
        w.lane_up(1, "gw-2");
    }
}

#[test]
fn what_a_further_link_carried_is_on_the_first_when_the_broker_accepts_it_no_more() {
    let (mut w, topic) = two_lanes();
    w.on_lane(1);
    w.broker_down();
    for _ in 0..4 {
        w.pass(PAUSE);
        w.pings(A);
        shun(&mut w, Shunned::Closed);
    }
    w.on_lane(0);
    w.broker_grants_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    assert_eq!(w.lanes(), 1);
}

#[test]
fn a_further_link_is_not_given_up_while_the_broker_is_out_of_reach() {
    let (mut w, _) = overlapping_asked_for();
    for _ in 0..12 {
        shun(&mut w, Shunned::Away);
        w.pass(PAUSE);
    }
    w.taken();
    w.send(A, subscribe(2, "s/#", sn_qos(QoS::AtLeastOnce)));
    w.on_lane(1);
    w.broker_up(false);
    w.broker_gets_subscribe("s/#", QoS::AtLeastOnce);
}

#[test]
fn failures_of_a_further_link_count_from_the_last_of_the_first_link_and_the_last_that_it_was_accepted() {
    for first_fails in [true, false] {
        let (mut w, _) = overlapping_asked_for();
        for _ in 0..4 {
            shun(&mut w, Shunned::Closed);
            w.pass(PAUSE);
        }
        if first_fails {
            w.on_lane(0);
            w.broker_down();
            w.pass(PAUSE);
            w.on_lane(0);
            w.broker_up(true);
        } else {
            w.on_lane(1);
            w.broker_up(false);
            w.broker_down();
            w.pass(PAUSE);
        }
        for _ in 0..if first_fails { 4 } else { 3 } {
            shun(&mut w, Shunned::Closed);
            w.pass(PAUSE);
        }
        w.on_lane(1);
        w.broker_up(false);
        w.broker_gets_subscribe("s/#", QoS::AtLeastOnce);
    }
}

#[test]
fn what_a_further_link_carried_is_on_the_first_when_the_broker_refuses_it_later() {
    let (mut w, topic) = two_lanes();
    second_lane_connects_again(&mut w);
    w.broker_refuses(ConnectReturnCode::NotAuthorized);
    w.on_lane(0);
    w.broker_grants_subscribe("s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
}

// A SUBSCRIBE that is repeated and refused.

/// A SUBSCRIBE of a client whose answer is lost with the connection, and that is refused when it is repeated.
fn refused_when_repeated(session_present: bool) -> World {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", sn_qos(QoS::AtMostOnce)));
    w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.broker_up(session_present);
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_denies(pkid);
    let frame = w.next(A);
    let Packet::SubAck(SubAck { code: ReturnCode::NotSupported, .. }) = decode(&frame).unwrap().packet else {
        panic!("{frame:02x?}")
    };
    w
}

#[test]
fn a_filter_that_the_broker_refuses_when_asked_again_is_taken_back_for_it_may_have_taken_it_before() {
    let mut w = refused_when_repeated(true);
    w.broker_answers_unsubscribe("s/1");
    // Who asks for what overlaps gets one copy, by the one filter that is there.
    w.subscribed_on(0, A, "+/1", QoS::AtMostOnce);
    assert_eq!(w.lanes(), 1);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.next(A);
    w.quiet();
}

#[test]
fn a_filter_that_the_broker_refuses_once_it_has_lost_the_session_is_not_there() {
    let mut w = refused_when_repeated(false);
    w.broker_quiet();
    // Nor is one that was asked for on this connection.
    for present in [false, true] {
        w.broker_down();
        w.pass(Duration::from_secs(3));
        w.broker_up(present);
        w.send(A, subscribe(2, "s/2", sn_qos(QoS::AtMostOnce)));
        let pkid = w.broker_gets_subscribe("s/2", QoS::AtMostOnce);
        w.broker_denies(pkid);
        w.next(A);
        w.broker_quiet();
    }
}

#[test]
fn a_filter_that_is_refused_when_repeated_and_granted_to_another_stays() {
    let mut w = world();
    for (at, id) in [(A, "n1"), (B, "n2")] {
        w.active(at, id);
        w.send(at, subscribe(2, "s/1", sn_qos(QoS::AtMostOnce)));
        w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    }
    w.broker_down();
    w.pass(Duration::from_secs(3));
    w.broker_up(true);
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_denies(pkid);
    w.next(A);
    w.granted(B, "s/1", QoS::AtMostOnce);
    w.broker_quiet();
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.next(B);
    w.quiet();
}

#[test]
fn a_filter_whose_holder_left_while_another_asked_in_vain_is_taken_back() {
    let mut w = one_holder(QoS::AtMostOnce);
    w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtMostOnce)));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.unsubscribed(A, "s/1");
    w.broker_quiet();
    w.broker_denies(pkid);
    w.next(B);
    w.broker_answers_unsubscribe("s/1");
}

// One filter at several QoS. RabbitMQ 3 has a queue for QoS 0 and one for the others, and SUBSCRIBE takes nothing from the other.

/// Two clients; the first has a filter at this QoS.
fn one_holder(qos: QoS) -> World {
    let mut w = world();
    w.active(A, "n1");
    w.active(B, "n2");
    w.subscribed(A, "s/1", qos);
    w
}

#[test]
fn a_filter_that_rises_from_qos_0_is_taken_back_in_the_same_write() {
    let mut w = one_holder(QoS::AtMostOnce);
    w.writes = 0;
    w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtLeastOnce)));
    assert_eq!(w.writes, 1);
    w.broker_answers_unsubscribe("s/1");
    w.granted(B, "s/1", QoS::AtLeastOnce);
    // From there it rises no more.
    w.subscribed(B, "s/1", QoS::ExactlyOnce);
    w.broker_quiet();
}

#[test]
fn the_qos_of_a_filter_at_the_broker_does_not_fall_while_anybody_holds_it() {
    let mut w = one_holder(QoS::AtMostOnce);
    w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtLeastOnce)));
    w.broker_answers_unsubscribe("s/1");
    for _ in 0..3 {
        w.granted(B, "s/1", QoS::AtLeastOnce);
        w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtMostOnce)));
    }
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.broker_down();
    w.unsubscribed(B, "s/1");
    w.pass(Duration::from_secs(3));
    w.broker_up(false);
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.broker_quiet();
    // Who comes when it was given up begins anew.
    w.unsubscribed(A, "s/1");
    w.broker_answers_unsubscribe("s/1");
    w.subscribed(A, "s/1", QoS::AtMostOnce);
}

#[test]
fn a_filter_that_rose_while_the_broker_was_away_is_taken_back_if_the_broker_still_has_it() {
    for has_it in [true, false] {
        let mut w = one_holder(QoS::AtMostOnce);
        w.broker_down();
        w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtLeastOnce)));
        w.next(B);
        w.pass(Duration::from_secs(3));
        w.broker_up(has_it);
        if has_it {
            w.broker_answers_unsubscribe("s/1");
        }
        w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
        w.broker_quiet();
    }
}

#[test]
fn a_rise_that_the_broker_refuses_leaves_the_filter_to_those_who_had_it() {
    let mut w = one_holder(QoS::AtMostOnce);
    w.send(B, subscribe(2, "s/1", sn_qos(QoS::AtLeastOnce)));
    w.broker_answers_unsubscribe("s/1");
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.broker_denies(pkid);
    w.next(B);
    w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
    w.broker_quiet();
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.next(A);
    w.quiet();
}

#[test]
fn in_mqtt_5_a_filter_rises_without_an_interruption() {
    let mut w = offline_world(|settings| settings.broker.protocol = Protocol::V5);
    w.broker_answers_tcp();
    w.broker_takes_octets();
    w.broker_octets(vec![0x20, 3, 0, 0, 0].into());
    w.active(A, "n1");
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        w.send(A, subscribe(2, "s/1", sn_qos(qos)));
        let octets = w.broker_takes_octets();
        assert_eq!(octets[0], 0x82);
        w.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, qos as u8].into());
        w.next(A);
    }
}
