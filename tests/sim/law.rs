//! What must hold in every world. A law is checked where its facts are seen, and named in the failure.

use std::fmt;

/// The laws. G-nn are promises of the design, N-nn and R-nnn rows of the digest, § sections of MQTT-SN 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    /// G1, N-11: PUBACK `00`, PUBREC and PUBCOMP leave for a client only after the broker's word of the same kind came in.
    AckedByBroker,
    /// G1: what a sensor's application is told is acknowledged has been seen at the broker.
    AcknowledgedIsPublished,
    /// G3: a QoS 2 message of a sensor is published once. Once more is allowed for every loss of the broker's memory
    /// while the message was open. Sensors with CleanSession 1 are held to it only where no late copy of a CONNECT can
    /// start their session afresh.
    UplinkExactlyOnce,
    /// N-01: a message is published on the topic that was meant, with its retain flag, at its QoS (never `11`).
    UplinkFaithful,
    /// §6.6: QoS 1 and 2 messages of one sensor are first published in the order in which it was given them.
    UplinkOrder,
    /// G2: the broker gets its acknowledgement once every recipient has settled the message, was away when it came or has
    /// gone, or the message was shed by a limit with a counter; with a store also once it is durable for those who have not.
    SettledBeforeAck,
    /// MQTT 3.1.1 §2.3.1, §4.3: packet ids are not 0 and not shared by two open exchanges; DUP and nothing but DUP is set on
    /// what is repeated; nothing is published again after its PUBREC; only what came is acknowledged.
    LinkExchanges,
    /// The broker finds nothing malformed, over a limit or stray in what the gateway sends.
    LinkWellFormed,
    /// G6: of the messages handed out for clients, each is delivered, waits, or is in a counter.
    Conservation,
    /// G6: what a client is due is sent to it, and settled or in a counter at the end.
    NothingLost,
    /// G3: QoS 2 towards a sensor is exactly once, unless it lost its memory or its clean session began anew.
    DownlinkExactlyOnce,
    /// §6.6: QoS 1 and 2 messages of one topic publisher reach a sensor first in the order in which the broker took them.
    DownlinkOrder,
    /// N-01, R-096: what a sensor gets is what was published on that topic, at no higher QoS, retain only if it was kept.
    DownlinkFaithful,
    /// a client gets what matches its subscriptions, and nothing else.
    DownlinkWanted,
    /// Design section 3: one copy of a retained message for each SUBSCRIBE.
    OneHandOut,
    /// Design section 3: one copy of a live message for each client, however many of its filters match.
    OneCopy,
    /// G4, R-131: a sleeping client is sent nothing unasked.
    QuietSleep,
    /// G4, R-132, R-133, R-143: PINGRESP comes when everything that waited has left and was answered, and it does come.
    DrainComplete,
    /// G4, G6: what waits for a client leaves in the order in which it came; what does not leave is in a counter.
    InOrder,
    /// a client is followed to another address exactly when it sleeps and the settings allow it.
    Rebinding,
    /// A sensor acknowledges what its application was given, not before.
    SensorHasIt,
    /// §6.6, N-15: one QoS 1 or 2 PUBLISH, REGISTER or PUBREL towards a client is open at a time.
    OneExchange,
    /// §6.13: repetitions are the same request, DUP set, T_RETRY apart, N_RETRY at most.
    Retransmission,
    /// N-02, R-058: a PUBLISH has a topic id that the client was told of in this connection.
    IdsAnnounced,
    /// §7.3, N-10, A-39: one id for one name, never `0000`, `FFFF` or a predefined number, nor another in the same session.
    IdsStable,
    /// N-10: MsgId is 0 for QoS 0 and never else.
    MsgIds,
    /// N-12, R-115, 3.20: what wants an answer has it, at once or within the broker's time.
    Answered,
    /// N-08: what wants no answer has none.
    Silence,
    /// What a gateway sends is what a gateway may send, to whom and when it may (3.14, N-04, N-05, N-09).
    Manners,
    /// a client counts as lost exactly when it was not heard in time or for all repetitions.
    LostWhenSilent,
    /// R-036, N-06: the Will is published once for each loss and not otherwise.
    WillOnLoss,
    /// Sessions, queues and what waits stay within their limits; `queued_octets` is 0 when nothing waits.
    Bounds,
    /// A deadline that fired has moved, and there are not too many of them.
    Deadlines,
    /// §4.1, N-11: in transparent mode a client has a link of its own, opened after a valid CONNECT, with its id and
    /// CleanSession and without its Will, and what is the client's goes by that link and no other.
    OwnLink,
    /// CONNACK `00` leaves after the broker's, a refusal when the broker refuses, is away or has had its
    /// time, with the code that is due.
    BrokerDecides,
    /// G3: the session that a client has at the broker goes on there as long as nobody ends it.
    SessionResumed,
    /// Design section 3: a client whose link is lost is told so when `broker.grace` is over, a sleeper when it wakes, and
    /// nobody else is.
    Grace,
    /// G3, G1: what a sensor's application was told is acknowledged was taken by the broker, at QoS 2 once, as long as nobody
    /// between them lost what it knew of the other.
    EndToEndUp,
    /// G3, G6: a message that the broker took while it had the subscription of a sensor's application, at QoS 1 or 2,
    /// reaches that application, at QoS 2 once, or is in a counter, as long as nobody between them lost what it knew of the
    /// other.
    EndToEndDown,
    /// Once faults stop, everybody connects, everything pending ends, and what is published arrives.
    Liveness,
    /// What clients hold, the gateway knows and the broker has, and no more.
    SubscriptionsAgree,
    /// Design section 4: a row is inserted where none is, changed or deleted where one is; every row belongs to something; at
    /// the end there are those of the sessions that there are and no others.
    Rows,
    /// G1, G2, G3, G5: what promises something, or is to be repeated by the next process, leaves once that is durable.
    Durable,
    /// G5: a client that was told that it is connected or may sleep, and what its topic ids are, is known by them after a
    /// crash.
    Survival,
    /// Of a client that the operator has forgotten nothing is left, here at once and for good when he is told so.
    Forgotten,
    /// Nothing is sent on a transport that has said that it cannot send.
    DownPort,
    /// A client whose transport is down waits: it is not lost nor told to connect before it has had its time anew, and what was
    /// under way goes on at once when the transport is up again.
    CutOff,
    /// Design section 3: the broker does not wait for clients that sleep or whose transport is down.
    BrokerFreed,
    /// No REGISTER or PUBLISH is longer than its transport has said that it takes.
    Fits,
    /// Nothing panics.
    NoPanic,
}

/// A law that was broken.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) law: Law,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.law, self.what)
    }
}

/// What every check returns.
pub(crate) type Checked<T = ()> = Result<T, Violation>;

impl Law {
    /// The law is broken unless `holds`.
    pub(crate) fn check(self, holds: bool, what: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(what())) }
    }

    pub(crate) fn broken(self, what: impl Into<String>) -> Violation {
        Violation { law: self, what: what.into() }
    }
}
