//! What is different in MQTT 5. That everything else is the same, `tests/mqtt` shows: it plays its worlds in both.

use rumqttc::v5::mqttbytes::QoS as Qos5;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Packet as Packet5, PubAck, PubAckReason, PubComp,
    PubCompReason, PubRec, PubRecReason, PubRel as PubRel5, PubRelReason, Publish, PublishProperties, SubAck,
    SubscribeReasonCode, UnsubAck, UnsubAckReason,
};

use super::*;
use crate::mqtt::packet::Packet as Heard;

#[test]
fn no_connect_begins_the_session_anew() {
    let mut talk = Talk::new(options());
    talk.connection.handle_connected(talk.now).unwrap();
    let size = PACKET_LEN_MAX + 4;
    talk.sends5([&format!("connect c resume keep-alive 60 expiry 4294967295 size {size}")]);
    talk.accept(|_| {});
    talk.says([Event::Connected { session_present: false }]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends5([&format!("connect c resume keep-alive 60 expiry 4294967295 size {size}")]);
    talk.say(connack5(true, |_| {}));
    talk.says([Event::Connected { session_present: true }]);
}

#[test]
fn a_session_that_somebody_else_left_is_removed_on_a_connection_of_its_own() {
    let size = PACKET_LEN_MAX + 4;
    let mut talk = Talk::new(options());
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take5();
    talk.say(connack5(true, |_| {}));
    talk.says([Event::Reconnect]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends5([&format!("connect c clean keep-alive 60 size {size}")]);
    talk.say(connack5(false, |_| {}));
    talk.says([Event::Reconnect]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends5([&format!("connect c resume keep-alive 60 expiry 4294967295 size {size}")]);
    talk.say(connack5(false, |_| {}));
    talk.says([Event::Connected { session_present: false }]);
    assert_eq!((talk.connection.counters().purges, talk.connection.counters().sessions_lost), (1, 0));
}

#[test]
fn the_session_lives_as_long_as_asked_and_a_clean_one_not_at_all() {
    let size = PACKET_LEN_MAX + 4;
    for (session, expiry, expected) in [
        (Session::Resume, Duration::from_millis(6500), "resume keep-alive 60 expiry 7 "),
        (Session::Resume, Duration::ZERO, "resume keep-alive 60 expiry 0 "),
        (Session::Clean, Duration::MAX, "clean keep-alive 60 "),
    ] {
        let mut talk = Talk::new(Options { session, session_expiry: expiry, ..options() });
        talk.connection.handle_connected(talk.now).unwrap();
        talk.sends5([&format!("connect c {expected}size {size}")]);
    }
}

#[test]
fn a_connect_carries_will_and_credentials_and_a_password_is_octets() {
    let mut options = options();
    options.will = Some(Message { retain: true, ..message(QoS::ExactlyOnce, "gone") });
    options.credentials = Some(Credentials { username: "u".into(), password: "pass".into() });
    let mut talk = Talk::new(options.clone());
    talk.connection.handle_connected(talk.now).unwrap();
    let sent = &talk.take5()[0];
    assert!(sent.ends_with("will q2 retain gone login u pass"), "{sent}");

    let password = Bytes::from_static(&[0xFF, 0, 0xC3, 0x28]);
    options.credentials = Some(Credentials { username: "u".into(), password });
    let mut talk = Talk::new(options);
    talk.connection.handle_connected(talk.now).unwrap();
    let output = talk.connection.take_output(talk.now).unwrap();
    assert!(output.ends_with(&[0, 1, b'u', 0, 4, 0xFF, 0, 0xC3, 0x28]));
}

#[test]
fn purge_ends_the_session_with_the_connection() {
    let mut talk = Talk::up5(|_| {});
    talk.connection.purge();
    talk.says([Event::Purged]);
    talk.sends5(["disconnect 0 expiry 0"]);
    assert_eq!(talk.connection.counters().purges, 1);
    talk.connection.handle_closed();

    // Without a connection it takes one.
    let mut talk = Talk::up5(|_| {});
    talk.connection.handle_closed();
    talk.connection.purge();
    talk.says([Event::Reconnect]);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends5([&format!("connect c clean keep-alive 60 size {}", PACKET_LEN_MAX + 4)]);
    talk.accept(|_| {});
    talk.says([Event::Purged]);
    talk.sends5(["disconnect 0"]);

    let mut talk = Talk::up5(|_| {});
    talk.connection.disconnect();
    talk.sends5(["disconnect 0"]);
}

#[test]
fn a_refusal_is_said_in_words() {
    for (code, words, of_version) in [
        (ConnectReturnCode::NotAuthorized, "not authorized (CONNACK 135)", false),
        (ConnectReturnCode::ServerBusy, "server busy (CONNACK 137)", false),
        (ConnectReturnCode::UnsupportedProtocolVersion, "unsupported protocol version (CONNACK 132)", true),
    ] {
        let mut talk = Talk::new(options());
        talk.connection.handle_connected(talk.now).unwrap();
        talk.say(Packet5::ConnAck(ConnAck { session_present: false, code, properties: None }));
        let Some(Event::Refused(refusal)) = talk.connection.poll_event() else { panic!() };
        assert_eq!((refusal.to_string().as_str(), refusal.is_of_version()), (words, of_version));
    }
}

#[test]
fn a_broker_that_knows_only_3_1_1_is_understood_and_may_be_spoken_to_in_it() {
    let mut talk = Talk::new(options());
    let token = talk.publish(QoS::ExactlyOnce, "m");
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take5();
    talk.octets(&[0x20, 2, 0, 1]).unwrap();
    talk.says([Event::Refused(ConnectRefusal(1))]);
    assert!(ConnectRefusal(1).is_of_version());
    talk.connection.handle_closed();
    talk.connection.set_protocol(Protocol::V4);
    talk.connect(false);
    talk.sends(["publish 1 q2 m"]);
    talk.broker(super::Packet::PubRec(super::PubRec::new(1)));
    talk.broker(super::Packet::PubComp(super::PubComp::new(1)));
    talk.says([Event::Received(token), Event::Completed(token, Ok(()))]);
}

#[test]
fn what_is_unfinished_goes_over_to_the_other_version_and_so_does_the_session() {
    let mut talk = Talk::up5(|_| {});
    let token = talk.publish(QoS::AtLeastOnce, "m");
    talk.take5();
    talk.connection.handle_closed();
    talk.connection.set_protocol(Protocol::V4);
    talk.connect(true);
    talk.sends(["publish 1 dup q1 m"]);
    talk.broker(puback(1));
    talk.says([Event::Completed(token, Ok(()))]);
}

/// MQTT 5 has opened more of QoS 2 than a broker of MQTT 3.1.1 may take at a time.
#[test]
fn what_goes_over_to_a_version_with_a_smaller_window_of_qos_2_is_repeated_within_it() {
    let mut talk = Talk::up5(|_| {});
    let window = usize::from(WINDOW_EXACTLY_ONCE);
    for _ in 0..window + 2 {
        talk.publish(QoS::ExactlyOnce, "m");
    }
    talk.publish(QoS::AtLeastOnce, "m");
    assert_eq!(talk.take5().len(), window + 3);
    talk.connection.handle_closed();
    talk.connection.set_protocol(Protocol::V4);
    talk.connect(true);
    let repeated: Vec<_> = (1..=window).map(|id| format!("publish {id} dup q2 m")).collect();
    assert_eq!(talk.take(), repeated);
    for id in 1..=2 {
        talk.broker(super::Packet::PubRec(super::PubRec::new(id)));
        talk.sends([format!("pubrel {id}").as_str()]);
        talk.broker(super::Packet::PubComp(super::PubComp::new(id)));
        let next = usize::from(id) + window;
        let mut sends = vec![format!("publish {next} dup q2 m")];
        // In its order, though it would have had room.
        sends.extend((id == 2).then(|| format!("publish {} dup q1 m", next + 1)));
        assert_eq!(talk.take(), sends);
    }
}

#[test]
fn no_more_is_in_flight_than_the_broker_takes() {
    let mut talk = Talk::up5(|terms| terms.receive_max = Some(2));
    for payload in ["a", "b", "c"] {
        talk.publish(QoS::AtLeastOnce, payload);
    }
    talk.publish(QoS::ExactlyOnce, "d");
    talk.sends5(["publish 1 q1 a", "publish 2 q1 b"]);
    talk.say(puback5(1, PubAckReason::Success));
    talk.sends5(["publish 3 q1 c"]);
    talk.say(puback5(2, PubAckReason::NoMatchingSubscribers));
    talk.sends5(["publish 4 q2 d"]);
}

#[test]
fn what_is_repeated_respects_what_the_broker_takes_now() {
    let mut talk = Talk::up5(|_| {});
    for payload in ["a", "b", "c", "d"] {
        talk.publish(QoS::ExactlyOnce, payload);
    }
    talk.take5();
    talk.say(Packet5::PubRec(PubRec::new(1, None)));
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take5();
    talk.say(connack5(true, |terms| terms.receive_max = Some(2)));
    talk.sends5(["pubrel 1", "publish 2 dup q2 b"]);
    talk.publish(QoS::AtLeastOnce, "e");
    talk.sends5([]);
    talk.say(Packet5::PubComp(PubComp::new(1, None)));
    talk.sends5(["publish 3 dup q2 c"]);
    talk.say(Packet5::PubRec(PubRec::new(2, None)));
    talk.sends5(["pubrel 2"]);
    talk.say(Packet5::PubComp(PubComp::new(2, None)));
    talk.sends5(["publish 4 dup q2 d"]);
    for id in [3, 4] {
        talk.say(Packet5::PubRec(PubRec::new(id, None)));
        talk.say(Packet5::PubComp(PubComp::new(id, None)));
    }
    talk.sends5(["pubrel 3", "publish 5 q1 e", "pubrel 4"]);
}

/// rumqttc #1060: a failure in PUBREC or PUBCOMP leaks its place in the window, one in PUBACK the publish behind it.
#[test]
fn a_refused_publish_completes_with_its_code_and_gives_its_place_back() {
    let mut talk = Talk::up5(|terms| terms.receive_max = Some(1));
    let tokens: Vec<_> = [QoS::ExactlyOnce, QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::AtLeastOnce]
        .into_iter()
        .map(|qos| talk.publish(qos, "m"))
        .collect();
    talk.sends5(["publish 1 q2 m"]);
    let mut pubrec = PubRec::new(1, None);
    pubrec.reason = PubRecReason::NotAuthorized;
    talk.say(Packet5::PubRec(pubrec));
    talk.sends5(["publish 2 q1 m"]);
    talk.say(puback5(2, PubAckReason::QuotaExceeded));
    talk.sends5(["publish 3 q2 m"]);
    talk.say(Packet5::PubRec(PubRec::new(3, None)));
    talk.sends5(["pubrel 3"]);
    talk.octets(&[0x70, 3, 0, 3, 0x80]).unwrap(); // no such code in PUBCOMP, and yet
    talk.sends5(["publish 4 q1 m"]);
    talk.octets(&[0x40, 3, 0, 4, 0xFE]).unwrap(); // no such code at all
    talk.says([
        Event::Completed(tokens[0], Err(Refused(0x87))),
        Event::Completed(tokens[1], Err(Refused::QUOTA_EXCEEDED)),
        Event::Received(tokens[2]),
        Event::Completed(tokens[2], Err(Refused(0x80))),
        Event::Completed(tokens[3], Err(Refused(0xFE))),
    ]);
    assert_eq!(Refused(0xFE).to_string(), "refused by the broker: unknown reason (0xfe)");
    assert_eq!(talk.connection.counters().strays, 0);
}

/// It was taken over with PUBREC; after a reconnect the broker may have forgotten the id because it is done with it.
#[test]
fn restored_publishes_respect_what_the_broker_takes_and_a_refusal_ends_one() {
    let publishes = (1..=3).map(|id| RestoredPublish::Sent(id, message(QoS::ExactlyOnce, "m"))).collect();
    let restored = Restored { publishes, received: vec![Received { packet: 7, digest: 1 }] };
    let (connection, tokens) = Connection::restore(Options { traced: true, ..options() }, restored);
    let mut talk = Talk { connection, now: Instant::now() };
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take5();
    talk.say(connack5(true, |properties| properties.receive_max = Some(2)));
    talk.says([Event::Connected { session_present: true }]);
    talk.sends5(["publish 1 dup q2 m", "publish 2 dup q2 m"]);
    let refused = PubRec { pkid: 1, reason: PubRecReason::QuotaExceeded, properties: None };
    talk.say(Packet5::PubRec(refused));
    talk.says([Event::Completed(tokens[0], Err(Refused::QUOTA_EXCEEDED))]);
    assert_eq!(
        talk.connection.poll_trace(),
        Some(Trace::Ended { token: tokens[0], packet: 1, waits: false })
    );
    talk.connection.prepare();
    talk.sends5(["publish 3 dup q2 m"]);
    talk.say(Packet5::PubRel(PubRel5 { pkid: 7, reason: PubRelReason::Success, properties: None }));
    talk.sends5(["pubcomp 7"]);
}

#[test]
fn a_release_of_an_id_that_the_broker_has_forgotten_completes() {
    let mut talk = Talk::up5(|_| {});
    let token = talk.publish(QoS::ExactlyOnce, "m");
    talk.say(Packet5::PubRec(PubRec::new(1, None)));
    let mut pubcomp = PubComp::new(1, None);
    pubcomp.reason = PubCompReason::PacketIdentifierNotFound;
    talk.say(Packet5::PubComp(pubcomp));
    talk.says([Event::Received(token), Event::Completed(token, Ok(()))]);
}

#[test]
fn what_the_broker_does_not_take_is_refused_by_name() {
    let mut talk = Talk::up5(|terms| {
        (terms.max_qos, terms.retain_available, terms.max_packet_size) = (Some(1), Some(0), Some(20));
    });
    let refused = |talk: &mut Talk, message| match talk.connection.publish(message) {
        Err(full @ Full::Unsupported(_)) => full.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(&mut talk, message(QoS::ExactlyOnce, "m")),
        "not sent, as it would be refused by the broker: QoS not supported (0x9b)"
    );
    let retained = Message { retain: true, ..message(QoS::AtMostOnce, "m") };
    assert_eq!(
        refused(&mut talk, retained),
        "not sent, as it would be refused by the broker: retain not supported (0x9a)"
    );
    // Two octets of fixed header, three of topic, two of packet id, one of properties.
    talk.publish(QoS::AtLeastOnce, &"x".repeat(12));
    assert_eq!(
        refused(&mut talk, message(QoS::AtLeastOnce, &"x".repeat(13))),
        "not sent, as it would be refused by the broker: packet too large (0x95)"
    );
    let filters = [TopicFilter::new("x".repeat(20)).unwrap()];
    let too_large = Err(Full::Unsupported(Refused::PACKET_TOO_LARGE));
    assert_eq!(talk.connection.unsubscribe(&filters), too_large);
    assert_eq!(talk.connection.subscribe(&[(filters[0].clone(), QoS::AtMostOnce)]), too_large);
    assert_eq!(talk.connection.counters().refused, 5);
    assert!(too_large.is_err_and(Full::is_final) && !Full::Queue.is_final());
}

#[test]
fn what_was_queued_for_a_broker_that_does_not_take_it_completes_as_refused() {
    let mut talk = Talk::new(options());
    let large = talk.publish(QoS::AtLeastOnce, &"x".repeat(100));
    let twice = talk.publish(QoS::ExactlyOnce, "m");
    let taken = talk.publish(QoS::AtLeastOnce, "m");
    let subscribe = talk.subscribe(&["0123456789", "0123456789"]);
    let unsubscribe = talk.connection.unsubscribe(&[TopicFilter::new("x".repeat(40)).unwrap()]).unwrap();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.accept(|terms| {
        (terms.max_qos, terms.max_packet_size, terms.receive_max) = (Some(1), Some(20), Some(1));
    });
    let too_large = Err(Refused::PACKET_TOO_LARGE);
    talk.says([
        Event::Connected { session_present: false },
        Event::Subscribed(subscribe, vec![Err(Refused::PACKET_TOO_LARGE); 2]),
        Event::Unsubscribed(unsubscribe),
        Event::Completed(large, too_large),
        Event::Completed(twice, Err(Refused::QOS_NOT_SUPPORTED)),
    ]);
    assert_eq!(talk.take5().pop().unwrap(), "publish 5 q1 m");
    talk.say(puback5(5, PubAckReason::Success));
    talk.says([Event::Completed(taken, Ok(()))]);
    assert_eq!(talk.connection.unfinished(), 0);
}

#[test]
fn the_brokers_keep_alive_counts_if_it_is_the_shorter_one() {
    for (ours, brokers, expected) in [(60, 20, 20), (60, 90, 60), (0, 30, 30), (60, 0, 60)] {
        let mut options = options();
        options.keep_alive = secs(ours);
        let mut talk = Talk::new(options);
        talk.connection.handle_connected(talk.now).unwrap();
        talk.take5();
        talk.accept(|terms| terms.server_keep_alive = Some(brokers));
        assert_eq!(talk.connection.poll_timeout(), Some(talk.now + secs(expected)));
        talk.now += secs(expected);
        talk.connection.handle_timeout(talk.now).unwrap();
        talk.sends5(["pingreq"]);
        assert_eq!(talk.connection.poll_timeout(), Some(talk.now + PING_TIMEOUT_MIN.max(secs(expected) / 2)));
        // On the next connection it may be another one.
        talk.connection.handle_closed();
    }
}

#[test]
fn subscription_identifiers_go_out_and_come_with_messages() {
    let id = |id| SubscriptionId::new(id).unwrap();
    let filters = [(TopicFilter::new("a").unwrap(), QoS::AtLeastOnce)];
    let mut talk = Talk::up5(|_| {});
    assert!(talk.connection.has_subscription_ids());
    talk.connection.subscribe_as(&filters, Some(id(268_435_455))).unwrap();
    talk.subscribe(&["b"]);
    talk.sends5(["subscribe 1 as 268435455 a:q1", "subscribe 2 b:q1"]);
    talk.say(publish5(7, |properties| properties.subscription_identifiers = vec![3, 268_435_455]));
    let Some(Event::Message { subscriptions, expiry: None, .. }) = talk.events().pop() else { panic!() };
    assert_eq!(subscriptions, [id(3), id(268_435_455)]);
    for count in [3, 5, 100, 1000] {
        let ids: Vec<usize> = (1..=count).collect();
        talk.say(publish5(7, |properties| properties.subscription_identifiers = ids.clone()));
        let Some(Event::Message { subscriptions, message, .. }) = talk.events().pop() else { panic!() };
        assert_eq!(subscriptions.iter().map(|id| id.get() as usize).collect::<Vec<_>>(), ids);
        assert_eq!(&message.payload[..], b"m");
    }
    assert_eq!((SubscriptionId::new(0), SubscriptionId::new(268_435_456)), (None, None));

    let mut talk = Talk::up5(|terms| terms.subscription_identifiers_available = Some(0));
    assert!(!talk.connection.has_subscription_ids());
    talk.connection.subscribe_as(&filters, Some(id(1))).unwrap();
    talk.sends5(["subscribe 1 a:q1"]);
    assert!(!Talk::up(Options::new("c")).connection.has_subscription_ids());
}

#[test]
fn a_message_says_how_long_it_is_worth_anything() {
    let mut talk = Talk::up5(|_| {});
    talk.say(publish5(7, |properties| properties.message_expiry_interval = Some(90)));
    let Some(Event::Message { expiry, message, .. }) = talk.events().pop() else { panic!() };
    assert_eq!((expiry, &message.payload[..]), (Some(secs(90)), &b"m"[..]));
}

#[test]
fn a_suback_says_why() {
    let mut talk = Talk::up5(|_| {});
    let token = talk.subscribe(&["a", "b", "c"]);
    talk.say(Packet5::SubAck(SubAck {
        pkid: 1,
        return_codes: vec![
            SubscribeReasonCode::Success(Qos5::ExactlyOnce),
            SubscribeReasonCode::QuotaExceeded,
            SubscribeReasonCode::WildcardSubscriptionsNotSupported,
        ],
        properties: None,
    }));
    let granted = vec![Ok(QoS::ExactlyOnce), Err(Refused::QUOTA_EXCEEDED), Err(Refused(0xA2))];
    talk.says([Event::Subscribed(token, granted)]);
    let token = talk.connection.unsubscribe(&[TopicFilter::new("a").unwrap()]).unwrap();
    let reasons = vec![UnsubAckReason::NoSubscriptionExisted];
    talk.say(Packet5::UnsubAck(UnsubAck { pkid: 2, reasons, properties: None }));
    talk.says([Event::Unsubscribed(token)]);
}

#[test]
fn a_disconnect_of_the_broker_is_a_failure_in_words() {
    for (octets, words) in [
        (&[0xE0, 1, 0x8E][..], "disconnected by the broker: session taken over (0x8e)"),
        (&[0xE0, 2, 0x8B, 0], "disconnected by the broker: server shutting down (0x8b)"),
        (&[0xE0, 0], "disconnected by the broker: normal disconnection (0x00)"),
        (&[0xE0, 6, 0x98, 4, 0x1F, 0, 1, b'x'], "disconnected by the broker: administrative action (0x98)"),
    ] {
        let mut talk = Talk::up5(|_| {});
        assert_eq!(talk.octets(octets).unwrap_err().to_string(), words);
        assert!(!talk.connection.is_connected());
        // Also in place of CONNACK.
        talk.connection.handle_closed();
        talk.connection.handle_connected(talk.now).unwrap();
        assert_eq!(talk.octets(octets).unwrap_err().to_string(), words);
    }
    assert_eq!(Talk::up(Options::new("c")).octets(&[0xE0, 0]), Err(Failure::Unexpected(PacketType(14))));
}

#[test]
fn properties_are_read_from_their_own_octets() {
    let malformed = |packet, what| Err(Failure::Malformed { packet: PacketType(packet), what });
    for (octets, expected) in [
        // The length of the properties ends in the middle of one; the codec would read on in the payload.
        (
            &[0x30, 12, 0, 1, b't', 2, 0x03, 0, 5, b'a', b'b', b'c', b'd', b'e'][..],
            malformed(3, Malformed::Properties),
        ),
        (&[0x90, 6, 0, 1, 1, 0x1F, 0, 0], malformed(9, Malformed::Properties)),
        (&[0x30, 4, 0, 1, b't', 1], malformed(3, Malformed::Size)),
        (&[0x30, 8, 0, 1, b't', 0x80, 0x80, 0x80, 0x80, 1], malformed(3, Malformed::Properties)),
        (&[0x30, 7, 0, 1, b't', 3, 0x23, 0, 1], malformed(3, Malformed::TopicAlias)),
        (&[0x30, 6, 0, 1, b't', 2, 0x0B, 0], malformed(3, Malformed::Properties)),
        (&[0x30, 7, 0, 1, b't', 3, 0x21, 0, 1], malformed(3, Malformed::Properties)), // of CONNACK
        (&[0x32, 6, 0, 1, b't', 0, 0, 0], malformed(3, Malformed::PacketId)),
        (&[0x40, 2, 0], Ok(())),
        (&[0x40, 5, 0, 1, 0, 0, 9], malformed(4, Malformed::Size)),
        (&[0x90, 4, 0, 1, 0, 5], malformed(9, Malformed::ReturnCodes)),
        (&[0xB0, 3, 0, 1, 0], malformed(11, Malformed::Size)),
        (&[0xD0, 1, 0], malformed(13, Malformed::Size)),
        (&[0xF0, 2, 0, 0], Err(Failure::Unexpected(PacketType(15)))),
        (&[0xE1, 0], malformed(14, Malformed::Flags)),
    ] {
        assert_eq!(Talk::up5(|_| {}).octets(octets), expected, "{octets:02x?}");
    }
    for (octets, expected) in [
        (&[0x20, 2, 0, 0][..], malformed(2, Malformed::Size)),
        (&[0x20, 3, 2, 0, 0], malformed(2, Malformed::Flags)),
        (&[0x20, 6, 0, 0, 3, 0x21, 0, 0], malformed(2, Malformed::Properties)), // receive maximum 0
        (&[0x20, 5, 0, 0, 2, 0x24, 2], malformed(2, Malformed::Properties)),    // maximum QoS 2
        (&[0x20, 5, 0, 0, 2, 0x25, 2], malformed(2, Malformed::Properties)),
        (&[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 0], malformed(2, Malformed::Properties)),
        (&[0x20, 4, 0, 0, 0, 0], malformed(2, Malformed::Size)),
    ] {
        let mut talk = Talk::new(options());
        talk.connection.handle_connected(talk.now).unwrap();
        assert_eq!(talk.octets(octets), expected, "{octets:02x?}");
    }
}

#[test]
fn a_message_too_large_is_acknowledged_counted_and_dropped_here_too() {
    let mut talk = Talk::new(Options { packet_len_max: 100, ..options() });
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take5();
    talk.accept(|_| {});
    talk.events();
    let mut publish = Publish::new("t", Qos5::AtLeastOnce, vec![0xE0; 200], None);
    publish.pkid = 7;
    talk.say(Packet5::Publish(publish));
    talk.says([]);
    talk.sends5(["puback 7"]);
    assert_eq!(talk.connection.counters().oversized, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bodies_of_every_type_never_panic(
        first: u8,
        body in prop::collection::vec(prop_oneof![0..4u8, 0x1F..0x2Bu8, any::<u8>()], 0..60),
    ) {
        let mut input = vec![first, u8::try_from(body.len()).unwrap()];
        input.extend(body);
        if let Ok(Some(frame)) = codec::Codec::new(Protocol::V5).decode(&input, 4096) {
            prop_assert_eq!(frame.len, input.len());
        }
    }

    #[test]
    fn arbitrary_octets_never_panic(input in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = codec::Codec::new(Protocol::V5).decode(&input, 4096);
    }

    /// The codec and we agree on what is well-formed, as far as the codec can be believed.
    #[test]
    fn what_the_codec_writes_is_read_as_it_was_meant(
        payload: Vec<u8>, id in 1..=u16::MAX, qos in 0..3u8, dup: bool, retain: bool,
        expiry: Option<u32>, ids in prop::collection::vec(1..268_435_456u32, 0..4), user in "[a-z]{0,200}",
    ) {
        let mut publish = Publish::new("a/b", rumqttc::v5::mqttbytes::qos(qos).unwrap(), payload.clone(), None);
        publish.pkid = if qos == 0 { 0 } else { id };
        (publish.dup, publish.retain) = (dup, retain);
        publish.properties = Some(PublishProperties {
            message_expiry_interval: expiry,
            subscription_identifiers: ids.iter().map(|id| *id as usize).collect(),
            user_properties: vec![(user.clone(), user)],
            correlation_data: Some(payload.clone().into()),
            ..PublishProperties::default()
        });
        let mut out = BytesMut::new();
        publish.write(&mut out).unwrap();
        let read = codec::Codec::new(Protocol::V5).decode(&out, 1 << 20).unwrap().unwrap();
        prop_assert_eq!(read.len, out.len());
        let Heard::Publish { id, dup: again, message, extras } = read.packet else { panic!() };
        prop_assert_eq!((id, again, message.retain), (publish.pkid, dup, retain));
        prop_assert_eq!(message.qos as u8, qos);
        prop_assert_eq!(&message.payload[..], &payload[..]);
        prop_assert_eq!(extras.expiry, expiry.map(|seconds| secs(seconds.into())));
        prop_assert_eq!(extras.subscriptions.iter().map(|id| id.get()).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn what_is_written_is_as_long_as_said(topic in "[a-z/]{1,40}", payload: Vec<u8>, qos in 0..3u8, id in 1..=u16::MAX) {
        let qos = rumqttc::mqttbytes::qos(qos).unwrap();
        let id = if qos == QoS::AtMostOnce { 0 } else { id };
        let message = Message { topic: TopicName::new(&topic).unwrap(), payload: payload.into(), qos, retain: false };
        let mut codec = codec::Codec::new(Protocol::V5);
        let mut out = BytesMut::new();
        for _ in 0..2 { // the second time the topic is written over the first
            out.clear();
            codec.publish(&message, id, false, &mut out);
        }
        let unused = if qos == QoS::AtMostOnce { 2 } else { 0 };
        prop_assert_eq!(codec::frame_len(codec.publish_len(&message) - unused), out.len());
        let Packet5::Publish(read) = Packet5::read(&mut out, None).unwrap() else { panic!() };
        prop_assert_eq!(&read.topic[..], topic.as_bytes());
        prop_assert_eq!((read.pkid, read.payload), (id, message.payload));
    }
}

impl Talk {
    /// A connection that a broker on such terms has accepted.
    #[track_caller]
    fn up5(terms: impl FnOnce(&mut ConnAckProperties)) -> Self {
        let mut talk = Self::new(options());
        talk.connection.handle_connected(talk.now).unwrap();
        talk.take5();
        talk.accept(terms);
        talk.says([Event::Connected { session_present: false }]);
        talk
    }

    #[track_caller]
    fn accept(&mut self, terms: impl FnOnce(&mut ConnAckProperties)) {
        self.say(connack5(false, terms));
    }

    #[track_caller]
    fn say(&mut self, packet: Packet5) {
        let mut octets = BytesMut::new();
        packet.write(&mut octets, None).unwrap();
        self.octets(&octets).unwrap();
    }

    fn octets(&mut self, octets: &[u8]) -> Result<(), Failure> {
        self.connection.handle_bytes(self.now, octets)
    }

    fn take5(&mut self) -> Vec<String> {
        let mut stream = BytesMut::from(&self.connection.take_output(self.now).unwrap_or_default()[..]);
        let mut lines = Vec::new();
        while !stream.is_empty() {
            lines.push(next_line(&mut stream));
        }
        lines
    }

    #[track_caller]
    fn sends5<const N: usize>(&mut self, expected: [&str; N]) {
        assert_eq!(self.take5(), expected);
    }
}

fn options() -> Options {
    Options { protocol: Protocol::V5, ..Options::new("c") }
}

fn connack5(session_present: bool, change: impl FnOnce(&mut ConnAckProperties)) -> Packet5 {
    // There is no other way to an empty one: a property, read and taken away again.
    let mut octets = Bytes::from_static(&[3, 0x21, 0, 1]);
    let mut properties = ConnAckProperties::read(&mut octets).unwrap().unwrap();
    properties.receive_max = None;
    change(&mut properties);
    let code = ConnectReturnCode::Success;
    Packet5::ConnAck(ConnAck { session_present, code, properties: Some(properties) })
}

fn puback5(id: u16, reason: PubAckReason) -> Packet5 {
    Packet5::PubAck(PubAck { pkid: id, reason, properties: None })
}

fn publish5(id: u16, change: impl FnOnce(&mut PublishProperties)) -> Packet5 {
    let mut properties = PublishProperties::default();
    change(&mut properties);
    let mut publish = Publish::new("t", Qos5::AtLeastOnce, "m", Some(properties));
    publish.pkid = id;
    Packet5::Publish(publish)
}

/// The next packet of a client as [`super::line`] writes it, with what only MQTT 5 has.
fn next_line(stream: &mut BytesMut) -> String {
    if stream.starts_with(&[0xE0, 0]) {
        drop(stream.split_to(2)); // the codec wants a reason code
        return "disconnect 0".into();
    }
    let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
    match Packet5::read(stream, None).expect("a whole packet") {
        Packet5::Connect(connect, will, login) => {
            let session = if connect.clean_start { "clean" } else { "resume" };
            let properties = connect.properties.unwrap();
            assert_eq!((properties.topic_alias_max, properties.receive_maximum), (None, None));
            let expiry = properties.session_expiry_interval.map(|expiry| format!(" expiry {expiry}"));
            let size = properties.max_packet_size.map(|size| format!(" size {size}"));
            let will = will.map(|will| {
                let retain = if will.retain { "retain " } else { "" };
                format!(" will q{} {retain}{}", will.qos as u8, text(&will.message))
            });
            let login = login.map(|login| format!(" login {} {}", login.username, login.password));
            let more: String = [expiry, size, will, login].into_iter().flatten().collect();
            format!("connect {} {session} keep-alive {}{more}", connect.client_id, connect.keep_alive)
        }
        Packet5::Publish(publish) => {
            let dup = if publish.dup { "dup " } else { "" };
            format!("publish {} {dup}q{} {}", publish.pkid, publish.qos as u8, text(&publish.payload))
        }
        Packet5::PubAck(ack) => format!("puback {}", ack.pkid),
        Packet5::PubRec(ack) => format!("pubrec {}", ack.pkid),
        Packet5::PubRel(ack) => format!("pubrel {}", ack.pkid),
        Packet5::PubComp(ack) => format!("pubcomp {}", ack.pkid),
        Packet5::Subscribe(subscribe) => {
            let id = subscribe.properties.and_then(|properties| properties.id);
            let id = id.map_or_else(String::new, |id| format!("as {id} "));
            let filters =
                subscribe.filters.iter().map(|filter| format!("{}:q{}", filter.path, filter.qos as u8));
            format!("subscribe {} {id}{}", subscribe.pkid, filters.collect::<Vec<_>>().join(" "))
        }
        Packet5::PingReq(_) => "pingreq".into(),
        Packet5::Disconnect(disconnect) => {
            let expiry = disconnect.properties.and_then(|properties| properties.session_expiry_interval);
            let expiry = expiry.map_or_else(String::new, |expiry| format!(" expiry {expiry}"));
            format!("disconnect {}{expiry}", disconnect.reason_code as u8)
        }
        other => format!("{other:?}"),
    }
}
