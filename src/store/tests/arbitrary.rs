//! Rows of every kind.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::gateway::io::{Address, Mode, WirelessNodeId};
use crate::gateway::record::{
    ExchangeRow, ExchangeState, FilterRow, GatewayRow, MessageId, PeerRow, Row, SessionRow, Standing,
    SubscriptionRow, TopicRow, TopicStanding, UplinkRow, WaitingRow, WillRow,
};
use crate::mqtt::{Message, QoS, Received};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::TopicRef;

pub(super) fn row() -> BoxedStrategy<Row> {
    let of_client = prop_oneof![
        (id(), session()).prop_map(|(id, row)| Row::Session(id, row)),
        (id(), will()).prop_map(|(id, row)| Row::Will(id, row)),
        (id(), any::<u16>(), topic_row()).prop_map(|(id, topic, row)| Row::Topic(id, topic, row)),
        (id(), filter(), topic_ref(), qos(), any::<u64>()).prop_map(|(id, filter, topic, qos, since)| {
            Row::Subscription(id, filter, SubscriptionRow { topic, qos, since })
        }),
        (id(), any::<u64>(), waiting()).prop_map(|(id, number, row)| Row::Waiting(id, number, row)),
        (id(), any::<u16>()).prop_map(|(id, msg_id)| Row::Releasing(id, msg_id)),
        (id(), any::<u16>(), exchange()).prop_map(|(id, msg_id, row)| Row::Exchange(id, msg_id, row)),
        (id(), any::<u64>(), uplink()).prop_map(|(id, number, row)| Row::Uplink(id, number, row)),
        (id(), received()).prop_map(|(id, received)| Row::ClientReceived(id, received)),
    ];
    prop_oneof![
        1 => ".{0,30}".prop_map(|client_id| Row::Gateway(GatewayRow { client_id })),
        2 => (any::<u64>(), message()).prop_map(|(id, message)| Row::Message(MessageId(id), message.into())),
        1 => (any::<u16>(), received()).prop_map(|(link, received)| Row::Received(link, received)),
        2 => (any::<u16>(), filter(), qos(), any::<Option<u32>>(), any::<bool>()).prop_map(
            |(link, filter, qos, subscription, granted)| {
                Row::Filter(link, filter, FilterRow { qos, subscription, granted })
            }
        ),
        9 => of_client,
    ]
    .boxed()
}

/// Few, so that rows share them; among them what sorts in odd places.
fn id() -> BoxedStrategy<ClientId> {
    let short = prop_oneof![Just("a"), Just("ab"), Just("a b"), Just("b"), Just("é"), Just("\u{1}")];
    let text = prop_oneof![4 => short.prop_map(str::to_owned), 1 => "[^\u{0}]{1,30}"];
    text.prop_map(|text| ClientId::new(text).unwrap()).boxed()
}

fn received() -> BoxedStrategy<Received> {
    any::<(u16, u64)>().prop_map(|(packet, digest)| Received { packet, digest }).boxed()
}

fn name() -> BoxedStrategy<TopicName> {
    "[^\u{0}+#]{1,20}".prop_map(|text| TopicName::new(text).unwrap()).boxed()
}

fn filter() -> BoxedStrategy<TopicFilter> {
    "([a-c]{0,2}/|\\+/){0,3}([a-cé]{1,2}|\\+|#)".prop_map(|text| TopicFilter::new(text).unwrap()).boxed()
}

fn qos() -> BoxedStrategy<QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)].boxed()
}

fn octets() -> BoxedStrategy<Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from).boxed()
}

fn message() -> BoxedStrategy<Message> {
    let parts = (name(), octets(), qos(), any::<bool>());
    parts.prop_map(|(topic, payload, qos, retain)| Message { topic, payload, qos, retain }).boxed()
}

fn session() -> BoxedStrategy<SessionRow> {
    let standing = prop_oneof![
        Just(Standing::Active),
        Just(Standing::Asleep),
        Just(Standing::Disconnected),
        Just(Standing::Lost),
        Just(Standing::Leaving)
    ];
    let mode = prop_oneof![Just(Mode::Aggregating), Just(Mode::Transparent)];
    let flags = any::<(bool, bool)>();
    let parts = (standing, mode, flags, any::<(Duration, Duration)>(), any::<u32>(), option::of(peer()));
    parts
        .prop_map(|(standing, mode, (clean, inherited), (keep_alive, sleep), connections, peer)| SessionRow {
            standing,
            clean,
            mode,
            inherited,
            keep_alive,
            sleep,
            connections,
            peer,
        })
        .boxed()
}

fn peer() -> BoxedStrategy<PeerRow> {
    let v4 =
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::V4(SocketAddrV4::new(ip.into(), port)));
    let v6 = any::<([u8; 16], u16, u32, u32)>()
        .prop_map(|(ip, port, flow, scope)| SocketAddr::V6(SocketAddrV6::new(ip.into(), port, flow, scope)));
    let node = option::of(octets().prop_map(|node| WirelessNodeId(node.as_ref().into())));
    let addr = prop_oneof![
        prop_oneof![v4, v6].prop_map(Address::Udp),
        Just(Address::Serial),
        any::<u64>().prop_map(Address::Xbee),
    ];
    (".{0,10}", addr, node).prop_map(|(port, addr, node)| PeerRow { port, addr, node }).boxed()
}

fn will() -> BoxedStrategy<WillRow> {
    let topic = option::of((name(), qos(), any::<bool>()));
    (topic, octets()).prop_map(|(topic, message)| WillRow { topic, message }).boxed()
}

fn topic_row() -> BoxedStrategy<TopicRow> {
    let standing = prop_oneof![
        Just(TopicStanding::Unconfirmed),
        any::<u32>().prop_map(TopicStanding::Known),
        Just(TopicStanding::Rejected)
    ];
    (name(), any::<u16>(), standing)
        .prop_map(|(name, nth, standing)| TopicRow { name, nth, standing })
        .boxed()
}

fn topic_ref() -> BoxedStrategy<TopicRef> {
    prop_oneof![
        any::<u16>().prop_map(TopicRef::Normal),
        any::<u16>().prop_map(TopicRef::Predefined),
        any::<[u8; 2]>().prop_map(TopicRef::Short),
        any::<u16>().prop_map(TopicRef::Reserved),
    ]
    .boxed()
}

fn waiting() -> BoxedStrategy<WaitingRow> {
    let sent = (any::<Option<u16>>(), option::of(topic_ref()));
    let parts = (any::<u64>(), qos(), sent, any::<Option<Duration>>());
    parts
        .prop_map(|(message, qos, (sent_as, sent_on), expiry)| WaitingRow {
            message: MessageId(message),
            qos,
            sent_as,
            sent_on,
            expiry,
        })
        .boxed()
}

fn exchange() -> BoxedStrategy<ExchangeRow> {
    let state = prop_oneof![
        any::<u64>().prop_map(ExchangeState::Open),
        Just(ExchangeState::Received),
        Just(ExchangeState::Finished)
    ];
    (any::<u64>(), topic_ref(), state)
        .prop_map(|(digest, topic, state)| ExchangeRow { digest, topic, state })
        .boxed()
}

fn uplink() -> BoxedStrategy<UplinkRow> {
    let parts = (message(), any::<bool>(), any::<Option<u16>>(), any::<bool>(), any::<bool>());
    parts
        .prop_map(|(message, dedicated, packet, released, promised)| UplinkRow {
            message,
            dedicated,
            packet,
            released,
            promised,
        })
        .boxed()
}
