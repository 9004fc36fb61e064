//! One counter per fact, incremented where the fact is established.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What the core has counted since it was made.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Every counter by name, in a fixed order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Frames that came in.
    frames_received,
    /// Frames that went out.
    frames_sent,
    /// Frames dropped: not one well-formed message (§5.2).
    frames_malformed,
    /// Frames dropped: a message only a gateway may send.
    frames_misdirected,
    /// Frames dropped: encapsulated, where forwarders may not speak.
    forwarders_refused,
    /// Frames dropped: the state of the client has no use for them.
    frames_unexpected,
    /// Frames dropped: they promise what the store could not keep at the moment.
    frames_unstored,
    /// Frames that did not go out: their transport is down.
    frames_cut_off,
    /// Times that a client was not told that it may sleep, because the store could not keep that at the moment. There is no
    /// other answer; it is served as a sleeper as long as this process lives.
    sleeps_unstored,
    /// What clients asked for and was refused because the store could not keep it at the moment.
    refused_unstored,
    /// How often too much waited for the store, or something for too long, and clients were refused what would need it until it
    /// had caught up.
    store_behind,
    /// Stored rows that belong to nothing, left out at the start.
    rows_orphaned,
    /// DISCONNECTs sent to peers without a session (§6.12).
    peers_without_session,
    /// DISCONNECTs not sent because the peer had one a moment ago.
    disconnects_withheld,
    /// Connections set up.
    connects_accepted,
    /// CONNECTs refused: something in them is not supported.
    connects_refused,
    /// CONNECTs refused by the broker, or answered with congestion because it is away (§4.1).
    connects_refused_by_broker,
    /// CONNECTs refused: as many sessions as allowed.
    sessions_full,
    /// Handshakes abandoned by the client.
    handshakes_expired,
    /// Sessions moved to another peer (§6.1).
    sessions_taken_over,
    /// Sleepers that woke at another peer (§6.14).
    sessions_rebound,
    /// Clients lost: not heard in time, or deaf to every repetition.
    clients_lost,
    /// Clients told to connect again because their own link to the broker is lost (§6.12).
    clients_dismissed,
    /// Sessions ended by their life time.
    sessions_expired,
    /// Clients forgotten because the operator wants it.
    clients_forgotten,
    /// Sessions left at the broker that were to end there, because the store did not answer for so long.
    removals_unstored,
    /// Changes of Wills refused: something in them is not supported, or too long.
    wills_refused,
    /// Wills published.
    wills_published,
    /// Wills shed: more than may wait for the broker.
    wills_shed,
    /// Messages of clients passed to the broker.
    uplink_messages,
    /// Repetitions of a message that is or was on its way already.
    uplink_duplicates,
    /// Messages of clients refused: no topic by that id.
    uplink_invalid_topic,
    /// Messages of clients refused: a topic that cannot be published on.
    uplink_unsupported,
    /// Messages of clients refused: the broker is away, or too much is on its way to it.
    uplink_congestion,
    /// Messages answered with congestion because the broker took too long; its answer still counts (§6.6).
    uplink_late,
    /// Messages kept for the broker, which is away or slow, with the client being told that all is well.
    uplink_kept,
    /// Messages given up: the broker was away for longer than they may be kept.
    uplink_expired,
    /// QoS 0 given up: there was no more room for QoS 1 and 2 beside it while the broker was away.
    uplink_shed,
    /// Messages refused by the broker.
    uplink_refused,
    /// Messages given up because the broker closes the connection for them each time.
    uplink_given_up,
    /// Messages with QoS -1 dropped (§6.8).
    qos_minus_one_dropped,
    /// Messages from the broker.
    downlink_messages,
    /// Messages from the broker for which there is no client.
    downlink_unrouted,
    /// Messages handed out, one for each client they are for. Each is in one of the counters below, or waits
    /// ([`Gateway::waiting_messages`](super::Gateway::waiting_messages)).
    downlink_recipients,
    /// Messages clients have taken, one for each client.
    downlink_delivered,
    /// Messages to clients sent again.
    downlink_retransmissions,
    /// Messages shed: the queue of the client was full.
    downlink_queue_full,
    /// Messages shed: the queues of all clients together were full.
    downlink_total_full,
    /// Messages shed: for a client that was away, or QoS 0 for one that was asleep where that is not kept.
    downlink_offline,
    /// Messages dropped: too large for the transport (§6.10).
    downlink_oversize,
    /// Messages dropped: the client refused them or their topic.
    downlink_refused,
    /// Messages dropped: the client never answered.
    downlink_unanswered,
    /// PUBRELs given up: the client has the message, was heard, and did not answer. It may take another message under that MsgId
    /// for a repetition.
    releases_unanswered,
    /// Messages dropped: no topic id left for the client.
    downlink_no_topic_id,
    /// Messages dropped: they were worth nothing any more (MQTT 5 §3.3.2.3.3).
    downlink_expired,
    /// Messages dropped: the session ended or the subscription did.
    downlink_ended,
    /// REGISTERs refused: as many topic ids as allowed.
    topics_full,
    /// SUBSCRIBEs refused: as many subscriptions as allowed, or the broker is congested.
    subscriptions_full,
    /// SUBSCRIBEs refused by the broker.
    subscriptions_refused,
    /// Filters that share a link with others that overlap them, for want of further links.
    filters_crowded,
    /// Connections to the broker that came about.
    link_connects,
    /// Connections to the broker that were lost or did not come about.
    link_failures,
    /// Second tries in MQTT 3.1.1, because the broker seemed not to know MQTT 5.
    link_fallbacks,
    /// Events of connections that are no more.
    link_stale,
}

/// Facts that are no loss. A counter that is not named here is told when it moves.
const ROUTINE: [&str; 18] = [
    "frames_received",
    "frames_sent",
    "connects_accepted",
    "sessions_taken_over",
    "sessions_rebound",
    "sessions_expired",
    "clients_forgotten",
    "wills_published",
    "uplink_messages",
    "uplink_kept",
    "uplink_duplicates",
    "downlink_messages",
    "downlink_recipients",
    "downlink_delivered",
    "downlink_retransmissions",
    "link_connects",
    "link_fallbacks",
    "link_stale",
];

impl Counters {
    /// Whether somebody was refused something or has to do without it when the counter of this name moves.
    pub fn is_loss(name: &str) -> bool {
        !ROUTINE.contains(&name)
    }
}
