//! What has to be stored before octets leave, and the value that is made of it.

use super::*;

#[test]
fn who_does_not_ask_for_traces_gets_none_and_all_output() {
    let mut talk = Talk::up(Options::new("c"));
    talk.publish(QoS::ExactlyOnce, "m");
    talk.broker(publish(9, QoS::ExactlyOnce, false));
    talk.traces([]);
    talk.sends(["publish 1 q2 m"]);
}

#[test]
fn a_packet_id_is_traced_before_its_publish_leaves_and_no_output_is_given_before() {
    let mut talk = Talk::stored(traced());
    let token = talk.publish(QoS::ExactlyOnce, "m");
    assert_eq!(talk.connection.take_output(talk.now), None, "there is something to store");
    talk.traces([Trace::Sent(token, 1)]);
    talk.sends(["publish 1 q2 m"]);
}

#[test]
fn qos_1_and_subscriptions_leave_no_trace() {
    let mut talk = Talk::stored(traced());
    talk.publish(QoS::AtLeastOnce, "m");
    talk.subscribe(&["f"]);
    talk.broker(puback(1));
    talk.broker(publish(9, QoS::AtLeastOnce, false));
    let delivery = talk.deliveries()[0];
    assert_eq!(talk.packet_of(delivery), None);
    talk.connection.settle(delivery);
    talk.traces([]);
    talk.sends(["publish 1 q1 m", "subscribe 2 f:q1", "puback 9"]);
}

#[test]
fn a_publish_is_released_and_ended_each_before_its_packet_leaves() {
    let mut talk = Talk::stored(traced());
    let token = talk.publish(QoS::ExactlyOnce, "m");
    talk.stores();
    talk.broker(Packet::PubRec(PubRec::new(1)));
    assert_eq!(talk.connection.take_output(talk.now), None);
    talk.traces([Trace::Released(token, 1)]);
    talk.sends(["pubrel 1"]);
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.traces([]);
    talk.sends(["pubrel 1"]);
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.traces([Trace::Ended { token, packet: 1, waits: false }]);
}

#[test]
fn the_id_of_a_publish_that_waits_is_traced_when_it_is_chosen() {
    let mut options = traced();
    options.window_exactly_once = 1;
    let mut talk = Talk::stored(options);
    let (first, second) = (talk.publish(QoS::ExactlyOnce, "a"), talk.publish(QoS::ExactlyOnce, "b"));
    talk.traces([Trace::Sent(first, 1)]);
    talk.sends(["publish 1 q2 a"]);
    talk.broker(puback(1)); // of a broker without QoS 2
    talk.traces([Trace::Ended { token: first, packet: 1, waits: false }, Trace::Sent(second, 2)]);
    talk.sends(["publish 2 q2 b"]);
}

#[test]
fn what_has_no_room_in_the_output_is_readied_by_prepare_and_not_by_taking_the_output() {
    let mut options = traced();
    options.buffer = 1;
    let mut talk = Talk::stored(options);
    let (first, second) = (talk.publish(QoS::ExactlyOnce, "a"), talk.publish(QoS::ExactlyOnce, "b"));
    talk.traces([Trace::Sent(first, 1)]);
    talk.sends(["publish 1 q2 a"]);
    talk.traces([]);
    talk.sends([]);
    talk.connection.prepare();
    talk.traces([Trace::Sent(second, 2)]);
    talk.sends(["publish 2 q2 b"]);
}

#[test]
fn a_refused_publish_and_one_that_is_given_up_have_ended() {
    let mut talk = Talk::stored(traced());
    let (first, second) = (talk.publish(QoS::ExactlyOnce, "a"), talk.publish(QoS::ExactlyOnce, "b"));
    talk.stores();
    talk.connection.handle_packet(talk.now, packet::Packet::PubRec(1, Err(Refused(0x80)))).unwrap();
    talk.traces([Trace::Ended { token: first, packet: 1, waits: false }]);
    talk.connection.give_up_first();
    talk.traces([Trace::Ended { token: second, packet: 2, waits: false }]);
}

#[test]
fn what_the_broker_does_not_take_any_more_has_ended() {
    let mut talk = Talk::stored(traced());
    let token = talk.publish(QoS::ExactlyOnce, "m");
    talk.stores();
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    let terms = packet::Terms { qos_max: QoS::AtLeastOnce, ..packet::Terms::default() };
    let accepted = packet::Packet::ConnAck { session_present: true, result: Ok(terms) };
    talk.connection.handle_packet(talk.now, accepted).unwrap();
    talk.traces([Trace::Ended { token, packet: 1, waits: false }]);
}

#[test]
fn a_lost_session_is_traced_for_every_publish_before_the_ids_it_gets_next() {
    let mut talk = Talk::stored(traced());
    let tokens = ["a", "b", "c"].map(|payload| talk.publish(QoS::ExactlyOnce, payload));
    talk.stores();
    talk.broker(Packet::PubRec(PubRec::new(2)));
    talk.stores();
    talk.connection.handle_closed();
    talk.connect(false);
    let ended = |token, packet| Trace::Ended { token, packet, waits: true };
    talk.traces([
        ended(tokens[0], 1),
        ended(tokens[1], 2),
        ended(tokens[2], 3),
        Trace::ForgotAll,
        Trace::Sent(tokens[0], 4),
        Trace::Sent(tokens[1], 5),
        Trace::Sent(tokens[2], 6),
    ]);
    talk.sends(["publish 4 q2 a", "publish 5 q2 b", "publish 6 q2 c"]);
}

#[test]
fn a_message_of_the_broker_is_forgotten_when_the_broker_has_pubcomp() {
    let mut talk = Talk::stored(traced());
    talk.broker(publish(9, QoS::ExactlyOnce, false));
    let delivery = talk.deliveries()[0];
    assert_eq!(talk.packet_of(delivery), Some(9));
    talk.connection.settle(delivery);
    talk.traces([]);
    talk.sends(["pubrec 9"]);
    talk.broker(Packet::PubRel(PubRel::new(9)));
    talk.traces([]);
    talk.sends(["pubcomp 9"]);
    assert_eq!(talk.packet_of(delivery), None);
    talk.answers_a_ping();
    talk.traces([Trace::Forgot(9)]);
    talk.sends(["pingreq"]);
    // An unknown id has nothing to be forgotten and is answered.
    talk.broker(Packet::PubRel(PubRel::new(9)));
    talk.traces([]);
    talk.sends(["pubcomp 9"]);
}

#[test]
fn a_message_that_the_broker_has_let_go_of_unasked_is_not_to_be_stored() {
    let mut talk = Talk::stored(traced());
    talk.broker(publish(9, QoS::ExactlyOnce, false));
    let delivery = talk.deliveries()[0];
    talk.broker(Packet::PubRel(PubRel::new(9)));
    assert_eq!(talk.packet_of(delivery), None);
    talk.broker(publish(9, QoS::ExactlyOnce, false));
    let again = talk.deliveries()[0];
    assert_eq!((talk.packet_of(delivery), talk.packet_of(again)), (None, Some(9)));
    talk.traces([Trace::Forgot(9)]);
    talk.connection.handle_closed();
    talk.connect(false);
    assert_eq!(talk.packet_of(again), None);
    talk.traces([Trace::ForgotAll]);
}

#[test]
fn an_id_that_the_broker_uses_for_something_else_is_forgotten() {
    let mut talk = Talk::stored(traced());
    talk.broker(publish(9, QoS::ExactlyOnce, false));
    talk.settle_all();
    talk.broker(publish(9, QoS::AtLeastOnce, false));
    talk.traces([Trace::Forgot(9)]);
}

#[test]
fn restored_publishes_are_repeated_in_their_order_and_new_ids_avoid_theirs() {
    let (mut talk, tokens) = Talk::restored(
        vec![
            released(2, "a"),
            RestoredPublish::Sent(4, message(QoS::ExactlyOnce, "b")),
            RestoredPublish::Waiting(message(QoS::AtLeastOnce, "c")),
            RestoredPublish::Sent(1, message(QoS::ExactlyOnce, "d")),
            RestoredPublish::Waiting(message(QoS::ExactlyOnce, "e")),
        ],
        &[],
    );
    assert_eq!(talk.connection.unfinished(), 5);
    let new = talk.publish(QoS::ExactlyOnce, "f");
    talk.connect(true);
    talk.traces([Trace::Sent(tokens[4], 5), Trace::Sent(new, 6)]);
    talk.sends([
        "pubrel 2",
        "publish 4 dup q2 b",
        "publish 1 dup q2 d",
        "publish 3 q1 c",
        // What the connection before gave up, the broker may still have.
        "pubrel 5",
        "publish 5 q2 e",
        "pubrel 6",
        "publish 6 q2 f",
    ]);
    for id in [2, 5, 6] {
        talk.broker(Packet::PubRec(PubRec::new(id)));
        talk.broker(Packet::PubComp(PubComp::new(id)));
    }
    talk.broker(puback(3));
    let over = [tokens[0], tokens[4], new, tokens[2]];
    let completed = |token| Event::Completed(token, Ok(()));
    let events: Vec<_> = talk.events();
    let finished: Vec<_> = events.into_iter().filter(|event| matches!(event, Event::Completed(..))).collect();
    assert_eq!(finished, over.map(completed));
    assert_eq!(talk.connection.unfinished(), 2);
}

#[test]
fn restored_publishes_wait_again_if_the_broker_has_no_session_also_one_that_was_released() {
    let (mut talk, tokens) = Talk::restored(
        vec![
            RestoredPublish::Sent(4, message(QoS::ExactlyOnce, "a")),
            released(2, "b"),
            RestoredPublish::Waiting(message(QoS::ExactlyOnce, "c")),
        ],
        &[7],
    );
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take();
    talk.broker(connack(false));
    talk.says([Event::Connected { session_present: false }]);
    talk.traces([
        Trace::Ended { token: tokens[0], packet: 4, waits: true },
        Trace::Ended { token: tokens[1], packet: 2, waits: true },
        Trace::ForgotAll,
        Trace::Sent(tokens[0], 1),
        Trace::Sent(tokens[1], 2),
        Trace::Sent(tokens[2], 3),
    ]);
    talk.sends(["publish 1 q2 a", "publish 2 q2 b", "publish 3 q2 c"]);
    assert_eq!((talk.connection.unfinished(), talk.connection.counters().sessions_lost), (3, 1));
    talk.broker(publish(7, QoS::ExactlyOnce, false));
    assert_eq!(talk.deliveries().len(), 1);
}

#[test]
fn a_message_that_was_taken_care_of_is_answered_and_not_handed_on_again() {
    let (mut talk, _) = Talk::restored(vec![], &[7, 8]);
    talk.connect(true);
    talk.broker(publish(7, QoS::ExactlyOnce, true));
    talk.broker(publish(9, QoS::ExactlyOnce, true));
    talk.sends(["pubrec 7"]);
    assert_eq!(talk.deliveries().len(), 1, "nothing was known of 9");
    for id in [7, 8] {
        talk.broker(Packet::PubRel(PubRel::new(id)));
    }
    talk.traces([]);
    talk.sends(["pubcomp 7", "pubcomp 8"]);
    assert_eq!((talk.connection.counters().duplicates, talk.connection.counters().strays), (1, 0));
}

/// Mosquitto 2.0 does so if the connection breaks while it repeats PUBREL.
#[test]
fn a_message_is_known_again_after_its_pubrel_until_the_broker_has_shown_that_it_has_pubcomp() {
    for restarts in [false, true] {
        let mut talk = Talk::stored(traced());
        for id in [7, 8] {
            talk.broker(publish(id, QoS::ExactlyOnce, false));
        }
        talk.settle_all();
        talk.broker(Packet::PubRel(PubRel::new(7)));
        talk.sends(["pubrec 7", "pubrec 8", "pubcomp 7"]);
        if restarts {
            (talk, _) = Talk::restored(vec![], &[7, 8]);
        } else {
            talk.connection.handle_closed();
        }
        talk.connect(true);
        for id in [7, 8] {
            talk.broker(publish(id, QoS::ExactlyOnce, true));
        }
        talk.sends(["pubrec 7", "pubrec 8"]);
        for id in [7, 8] {
            talk.broker(Packet::PubRel(PubRel::new(id)));
        }
        talk.sends(["pubcomp 7", "pubcomp 8"]);
        talk.traces([]);
        assert_eq!((talk.deliveries(), talk.connection.counters().strays), (vec![], 0));
        talk.answers_a_ping();
        talk.traces([Trace::Forgot(7), Trace::Forgot(8)]);
        talk.broker(publish(7, QoS::ExactlyOnce, true));
        assert_eq!(talk.deliveries().len(), 1, "its first copy was lost");
    }
}

#[test]
fn after_pubrel_a_packet_id_is_free_for_another_message_also_one_that_is_lost_once() {
    for dup in [false, true] {
        let mut talk = Talk::stored(traced());
        talk.broker(publish(7, QoS::ExactlyOnce, false));
        talk.settle_all();
        talk.broker(Packet::PubRel(PubRel::new(7)));
        talk.connection.handle_closed();
        talk.connect(true);
        let mut other = Publish::new("t", QoS::ExactlyOnce, if dup { "other" } else { "m" });
        (other.pkid, other.dup) = (7, dup);
        talk.broker(Packet::Publish(other));
        talk.traces([Trace::Forgot(7)]);
        assert_eq!(talk.deliveries().len(), 1);
    }
}

#[test]
fn no_more_than_a_brokers_window_is_known_after_pubrel() {
    let mut talk = Talk::stored(traced());
    for id in 1..=70 {
        talk.broker(publish(id, QoS::ExactlyOnce, false));
        talk.settle_all();
        talk.broker(Packet::PubRel(PubRel::new(id)));
    }
    talk.traces([1, 2, 3, 4, 5, 6].map(Trace::Forgot));
    talk.answers_a_ping();
    talk.broker(Packet::PubRel(PubRel::new(70)));
    assert_eq!(talk.connection.counters().strays, 1, "the others are forgotten with PINGRESP");
}

/// The process before may have died between a CONNECT that found no session and what it had to store of that.
#[test]
fn a_restored_id_stands_for_its_message_only_as_long_as_the_broker_says_that_it_repeats_it() {
    let (mut talk, _) = Talk::restored(vec![], &[7]);
    talk.connect(true);
    talk.broker(publish(7, QoS::ExactlyOnce, false));
    talk.traces([Trace::Forgot(7)]);
    assert_eq!(talk.deliveries().len(), 1);
}

#[test]
fn what_the_broker_has_not_repeated_before_its_first_new_message_it_does_not_have() {
    let (mut talk, _) = Talk::restored(vec![], &[7, 8, 9]);
    talk.connect(true);
    talk.broker(publish(8, QoS::ExactlyOnce, true));
    talk.traces([]);
    talk.sends(["pubrec 8"]);
    talk.broker(publish(3, QoS::AtLeastOnce, false));
    talk.traces([Trace::Forgot(7), Trace::Forgot(9)]);
    talk.deliveries();
    talk.broker(publish(8, QoS::ExactlyOnce, false));
    talk.sends(["pubrec 8"]);
    talk.broker(publish(7, QoS::ExactlyOnce, true));
    assert_eq!(talk.deliveries().len(), 1);
}

#[test]
fn who_doubts_the_session_is_told_that_there_is_none_and_keeps_the_packet_ids() {
    let (mut talk, tokens) =
        Talk::restored(vec![RestoredPublish::Sent(4, message(QoS::ExactlyOnce, "a"))], &[7]);
    talk.connection.doubt();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take();
    talk.broker(connack(true));
    talk.says([Event::Connected { session_present: false }]);
    talk.traces([]);
    talk.sends(["publish 4 dup q2 a"]);
    talk.broker(publish(7, QoS::ExactlyOnce, true));
    talk.sends(["pubrec 7"]);
    talk.broker(Packet::PubRec(PubRec::new(4)));
    talk.traces([Trace::Released(tokens[0], 4)]);
    talk.stores();
    talk.connection.handle_closed();
    talk.connect(true);
}

#[test]
fn a_restored_id_that_is_none_or_is_there_twice_does_no_harm() {
    let (mut talk, tokens) = Talk::restored(
        vec![
            RestoredPublish::Sent(0, message(QoS::ExactlyOnce, "a")),
            RestoredPublish::Sent(1, message(QoS::ExactlyOnce, "b")),
            RestoredPublish::Sent(1, message(QoS::ExactlyOnce, "c")),
            released(1, "d"),
            RestoredPublish::Waiting(message(QoS::AtMostOnce, "e")),
        ],
        &[0, 7, 7],
    );
    talk.connect(true);
    talk.traces([Trace::Sent(tokens[0], 2), Trace::Sent(tokens[2], 3), Trace::Sent(tokens[3], 4)]);
    talk.sends([
        "publish 1 dup q2 b",
        "pubrel 2",
        "publish 2 q2 a",
        "pubrel 3",
        "publish 3 q2 c",
        "pubrel 4",
        "publish 4 q2 d",
        "publish 5 q1 e",
    ]);
}

#[test]
fn more_than_the_windows_and_the_queue_may_be_restored_and_what_follows_waits() {
    let (mut talk, _) = Talk::restored_with(
        |options| (options.window, options.window_exactly_once, options.queue) = (2, 1, 1),
        (1..=4)
            .map(|id| RestoredPublish::Sent(id, message(QoS::ExactlyOnce, "m")))
            .chain((5..=7).map(|_| RestoredPublish::Waiting(message(QoS::ExactlyOnce, "n"))))
            .collect(),
        &[],
    );
    assert_eq!(talk.connection.publishes_left(), 0);
    assert_eq!(talk.connection.publish(message(QoS::ExactlyOnce, "o")), Err(Full::Queue));
    talk.connect(true);
    // The window of QoS 2 holds for what is repeated too.
    assert_eq!(talk.take(), ["publish 1 dup q2 m"]);
    for id in 1..=3 {
        talk.broker(Packet::PubRec(PubRec::new(id)));
        talk.broker(Packet::PubComp(PubComp::new(id)));
        while talk.connection.poll_trace().is_some() {}
        assert_eq!(talk.take().pop(), Some(format!("publish {} dup q2 m", id + 1)));
    }
    talk.broker(puback(4));
    assert_eq!(talk.connection.poll_trace().map(|_| ()), Some(()));
    talk.stores();
    assert_eq!((talk.connection.unfinished(), talk.connection.publishes_left()), (3, 0));
}

#[test]
fn the_queue_says_how_many_publishes_it_takes() {
    let mut options = Options::new("c");
    (options.queue, options.queue_octets) = (3, 20);
    let mut talk = Talk::new(options);
    for left in [3, 2] {
        assert_eq!(talk.connection.publishes_left(), left);
        talk.publish(QoS::AtLeastOnce, "12345"); // 10 octets with topic and packet id
    }
    assert_eq!(talk.connection.publishes_left(), 0, "its octets are used up");
    talk.connect(false);
    talk.take();
    talk.broker(puback(1));
    assert_eq!(talk.connection.publishes_left(), 3);
}

/// No more traces than packets in the output and open exchanges, whatever the broker does.
#[test]
fn traces_that_nobody_takes_do_not_pile_up() {
    let mut options = traced();
    (options.window, options.window_exactly_once, options.buffer) = (4, 4, 100);
    let mut talk = Talk::stored(options);
    for _ in 0..50 {
        talk.publish(QoS::ExactlyOnce, "m");
    }
    let mut failure = None;
    while failure.is_none() {
        talk.broker(publish(9, QoS::ExactlyOnce, false));
        talk.settle_all();
        failure = talk.try_broker(Packet::PubRel(PubRel::new(9))).err();
    }
    assert_eq!(failure, Some(Failure::NotReading));
    let mut traces = 0;
    while talk.connection.poll_trace().is_some() {
        traces += 1;
    }
    assert!(traces <= (100 + PACKET_LEN_MAX + ANSWERS_MAX) / 4, "{traces}");
    assert_eq!(talk.connection.take_output(talk.now), None, "the connection has failed");
}

/// A publish that was stored after PUBREC.
fn released(id: u16, payload: &str) -> RestoredPublish {
    RestoredPublish::Released(id, message(QoS::ExactlyOnce, payload))
}

fn traced() -> Options {
    Options { traced: true, ..Options::new("c") }
}

impl Talk {
    /// A new connection that the broker has accepted.
    #[track_caller]
    fn stored(options: Options) -> Self {
        let mut talk = Self::up(options);
        talk.traces([Trace::ForgotAll]);
        talk
    }

    fn packet_of(&self, delivery: DeliveryId) -> Option<u16> {
        self.connection.received(delivery).map(|received| received.packet)
    }

    /// The broker shows that it has read what was sent to it.
    #[track_caller]
    fn answers_a_ping(&mut self) {
        self.now = self.connection.poll_timeout().unwrap();
        self.connection.handle_timeout(self.now).unwrap();
        self.broker(Packet::PingResp);
    }

    fn restored(publishes: Vec<RestoredPublish>, received: &[u16]) -> (Self, Vec<Token>) {
        Self::restored_with(|_| {}, publishes, received)
    }

    fn restored_with(
        change: impl FnOnce(&mut Options),
        publishes: Vec<RestoredPublish>,
        received: &[u16],
    ) -> (Self, Vec<Token>) {
        let mut options = traced();
        change(&mut options);
        let mut talk = Self::new(options.clone());
        let digest = digest_of(&message(QoS::ExactlyOnce, "m"));
        let received = received.iter().map(|&packet| Received { packet, digest }).collect();
        let restored = Restored { publishes, received };
        let (connection, tokens) = Connection::restore(options, restored);
        talk.connection = connection;
        (talk, tokens)
    }

    #[track_caller]
    fn traces<const N: usize>(&mut self, expected: [Trace; N]) {
        let traces: Vec<_> = std::iter::from_fn(|| self.connection.poll_trace()).collect();
        assert_eq!(traces, expected);
    }

    /// Takes traces and output.
    fn stores(&mut self) {
        while self.connection.poll_trace().is_some() {}
        self.take();
    }
}
