//! Links over a restart: filters, further links and clients' own links are as they were, and the broker has nothing that nobody
//! wants.

use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Mode, OutageQueue, Protocol, Settings};
use mqtt_sn_gateway::gateway::record::Key;
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::{Qos, ReturnCode, TopicRef};
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::*;

const A: At = 1;
const B: At = 2;
const C: At = 3;

fn keeping(settings: &mut Settings) {
    settings.lasting = true;
    let age = Duration::from_secs(3600);
    settings.broker.outage_queue = Some(OutageQueue { messages: 50, bytes: 2000, age });
}

fn lasting() -> World {
    world_with(keeping)
}

fn transparent() -> World {
    world_with(|settings| {
        keeping(settings);
        settings.ports[0].mode = Mode::Transparent;
    })
}

#[track_caller]
fn active(w: &mut World, at: At, id: &str) {
    w.connected(at, connect_with(id, false, false, 0));
}

#[track_caller]
fn served(w: &mut World, at: At, id: &str, clean: bool) {
    w.send(at, connect_with(id, false, clean, 0));
    w.admitted(at, id, false);
}

fn row(number: u16, filter: &str) -> Key {
    Key::Filter(number, TopicFilter::new(filter).unwrap())
}

#[test]
fn a_filter_is_asked_for_when_its_row_is_durable() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_quiet();
    // Nobody has heard of it.
    w.crash();
    w.broker_up(true);
    w.broker_quiet();
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.granted(A, "s/1", QoS::AtLeastOnce);
}

#[test]
fn a_filter_whose_client_was_not_answered_is_taken_back_after_a_restart() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.crash();
    w.broker_up(true);
    let pkid = w.broker_gets_unsubscribe("s/1");
    assert!(w.store.rows.contains_key(&row(1, "s/1")));
    w.broker_unsubacks(pkid);
    assert!(!w.store.rows.contains_key(&row(1, "s/1")));
}

#[test]
fn wherever_a_restart_interrupts_unsubscribe_the_broker_is_left_without_the_filter() {
    for answered in [true, false] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.subscribed(A, "s/1", QoS::AtLeastOnce);
        w.unsubscribed(A, "s/1");
        let pkid = w.broker_gets_unsubscribe("s/1");
        assert!(w.store.rows.contains_key(&row(1, "s/1")));
        if answered {
            w.store_answers(Answers::Never);
            w.broker_unsubacks(pkid);
        }
        for _ in 0..2 {
            w.crash();
            w.broker_up(true);
            w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
            let pkid = w.broker_gets_unsubscribe("s/1");
            w.broker_gets_puback(5);
            w.quiet();
            w.broker_unsubacks(pkid);
            assert!(!w.store.rows.contains_key(&row(1, "s/1")));
            w.crash();
            w.broker_up(true);
            w.broker_quiet();
            // Again, with the row of another try.
            w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
            w.granted(A, "s/1", QoS::AtLeastOnce);
            w.unsubscribed(A, "s/1");
        }
    }
}

/// A broker that kept its session has the filters; one that did not hears of them; neither brings retained messages again.
#[test]
fn filters_are_issued_again_after_a_restart_and_bring_no_retained_messages() {
    for session_present in [true, false] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
        w.crash();
        w.broker_up(session_present);
        let pkid = w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
        w.broker_publishes_retained("s/1", "old");
        w.broker_grants(pkid, QoS::AtLeastOnce);
        w.broker_publishes_retained("s/1", "old");
        w.quiet();
        w.broker_publishes(5, "s/1", "new", QoS::AtLeastOnce);
        w.expect_publish(A, topic, Qos::AtLeastOnce, false, "new");
        // What is subscribed to from here on is another matter.
        active(&mut w, B, "n2");
        w.send(B, subscribe(2, "s/1", Qos::AtLeastOnce));
        w.granted(B, "s/1", QoS::AtLeastOnce);
        w.broker_publishes_retained("s/1", "old");
        w.next(B);
        w.quiet();
    }
}

#[test]
fn further_links_come_back_with_what_they_carried() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    w.send(A, subscribe(2, "s/#", Qos::AtLeastOnce));
    w.pass(Duration::ZERO);
    w.on_lane(1);
    w.broker_up(false);
    w.granted(A, "s/#", QoS::AtLeastOnce);
    w.crash();
    for (lane, filter) in [(0, "s/1"), (1, "s/#")] {
        w.on_lane(lane);
        w.broker_up(true);
        if lane == 0 {
            w.broker_grants_subscribe(filter, QoS::AtLeastOnce);
        }
    }
    w.on_lane(1);
    w.broker_grants_subscribe("s/#", QoS::AtLeastOnce);
    assert_eq!(w.lanes(), 2);
    for lane in [1, 0] {
        w.on_lane(lane);
        w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    }
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.quiet();
    // When nothing rides on it, it is left, and the next process knows nothing of it.
    w.unsubscribed(A, "s/#");
    w.on_lane(1);
    w.broker_gets_puback(5);
    w.broker_answers_unsubscribe("s/#");
    w.crash();
    assert_eq!(w.lanes(), 1);
}

#[test]
fn subscription_identifiers_of_mqtt_5_stay_over_a_restart() {
    let mut w = offline_world(|settings| {
        keeping(settings);
        settings.broker.protocol = Protocol::V5;
    });
    let up = |w: &mut World, flags: u8| {
        w.broker_answers_tcp();
        w.broker_takes_octets();
        w.broker_octets(Bytes::from(vec![0x20, 3, flags, 0, 0]));
    };
    up(&mut w, 0);
    active(&mut w, A, "n1");
    let mut sent = Vec::new();
    for (filter, granted) in [("s/1", [0x90, 4, 0, 1, 0, 1]), ("s/#", [0x90, 4, 0, 2, 0, 1])] {
        w.send(A, subscribe(2, filter, Qos::AtLeastOnce));
        sent.push(w.broker_takes_octets()[4..].to_vec());
        w.broker_octets(Bytes::copy_from_slice(&granted));
        w.next(A);
    }
    assert_ne!(sent[0][..3], sent[1][..3]);
    w.crash();
    up(&mut w, 1);
    let octets = w.broker_takes_octets();
    // Property length, 0x0B, the identifier, and the filter.
    for sent in &sent {
        assert!(octets.windows(sent.len()).any(|found| found == sent), "{sent:02x?} in {octets:02x?}");
    }
    // A new one does not take the identifier of another.
    w.send(A, subscribe(3, "t/1", Qos::AtLeastOnce));
    let new = w.broker_takes_octets()[4..].to_vec();
    assert!(sent.iter().all(|sent| sent[..3] != new[..3]), "{new:02x?}");
}

// Links of clients' own.

/// The client's link comes up after a restart; what the broker kept follows.
#[track_caller]
fn comes_back(w: &mut World, id: &str, clean: bool, filter: Option<&str>) {
    w.on_link_of(Some(id));
    let connect = w.broker_hears_connect();
    assert_eq!((connect.client_id.as_str(), connect.clean_session), (id, clean));
    w.broker_accepts(!clean);
    if let Some(filter) = filter {
        w.broker_grants_subscribe(filter, QoS::AtLeastOnce);
    }
}

#[test]
fn clients_with_links_of_their_own_go_on_with_them_after_a_restart() {
    let mut w = transparent();
    served(&mut w, A, "n1", false);
    let a = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    served(&mut w, B, "n2", false);
    let b = TopicRef::Normal(w.subscribed(B, "s/1", QoS::AtLeastOnce));
    w.falls_asleep(B, 3600);
    served(&mut w, C, "n3", false);
    w.subscribed(C, "s/1", QoS::AtLeastOnce);
    w.takes_leave(C);
    w.crash();
    w.broker_up(true);
    w.pass(Duration::from_secs(5));
    for id in ["n1", "n2"] {
        comes_back(&mut w, id, false, Some("s/1"));
        w.broker_publishes(5, "s/1", id, QoS::AtLeastOnce);
    }
    w.expect_publish(A, a, Qos::AtLeastOnce, false, "n1");
    w.quiet();
    w.send(B, pingreq_of("n2"));
    w.expect_publish(B, b, Qos::AtLeastOnce, false, "n2");
    assert!(!w.try_link_of(Some("n3")), "it is away");
    // It comes back to a session that the broker has.
    w.send(C, connect_with("n3", false, false, 0));
    comes_back(&mut w, "n3", false, Some("s/1"));
    w.expect(C, connack(ReturnCode::Accepted));
    w.pass(Duration::from_secs(300));
    assert_eq!(w.gw.counters().clients_dismissed, 0);
}

#[test]
fn a_clean_session_begins_anew_at_the_broker_after_a_restart_and_the_client_does_not_notice() {
    let mut w = transparent();
    served(&mut w, A, "n1", true);
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    w.crash();
    w.broker_up(true);
    w.pass(Duration::from_secs(5));
    comes_back(&mut w, "n1", true, Some("s/1"));
    w.broker_publishes_retained("s/1", "old");
    w.quiet();
    w.broker_publishes(5, "s/1", "new", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "new");
}

#[test]
fn a_client_that_the_broker_refuses_after_a_restart_is_told() {
    for asleep in [false, true] {
        let mut w = transparent();
        served(&mut w, A, "n1", false);
        if asleep {
            w.falls_asleep(A, 3600);
        }
        w.crash();
        w.broker_up(true);
        w.pass(Duration::from_secs(5));
        w.on_link_of(Some("n1"));
        w.broker_answers_tcp();
        w.broker_next();
        w.broker_refuses(ConnectReturnCode::NotAuthorized);
        if asleep {
            w.quiet();
            w.send(A, pingreq_of("n1"));
        }
        w.expect(A, disconnect());
    }
}

#[test]
fn clients_whose_links_do_not_come_back_are_told_after_the_grace_time() {
    let mut w = transparent();
    served(&mut w, A, "n1", false);
    w.crash();
    w.pass(Duration::from_secs(59));
    w.quiet();
    w.pass(Duration::from_secs(1));
    w.expect(A, disconnect());
}

/// The broker may not have heard UNSUBSCRIBE.
#[test]
fn a_client_does_not_get_what_it_unsubscribed_from_before_a_restart() {
    let mut w = transparent();
    served(&mut w, A, "n1", false);
    w.subscribed(A, "s/1", QoS::AtLeastOnce);
    w.unsubscribed(A, "s/1");
    w.crash();
    w.broker_up(true);
    w.pass(Duration::from_secs(5));
    comes_back(&mut w, "n1", false, None);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_gets_puback(5);
    w.quiet();
}
