//! Faults that tests inject into a [`Broker`](super::Broker): what brokers and networks do on bad days, on command.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{ConnectReturnCode, Packet, SubscribeReasonCode};

use crate::topic::ClientId;

/// Something to go wrong. Client ids need not be connected or known: the fault waits for them.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Hold back packets of one kind to a client: let `skip` pass, then hold `count` of them. What they acknowledge
    /// has happened all the same. Held packets leave on [`Fault::Release`] if the connection still stands then.
    Withhold {
        /// To whom.
        client: ClientId,
        /// Which packets.
        kind: Kind,
        /// How many of them pass first.
        skip: usize,
        /// How many are held; `usize::MAX` holds all.
        count: usize,
    },
    /// Send to this client what was held back, in order, and hold nothing more.
    Release {
        /// To whom.
        client: ClientId,
    },
    /// Drop the connection once `after` octets have come in from now on. They are handled, but nothing that they cause
    /// reaches the client any more. 0: at once.
    CutReceived {
        /// Whose connection.
        whom: Whom,
        /// Octets.
        after: usize,
    },
    /// Drop the connection once `after` octets have gone out from now on. 0: at once.
    CutSent {
        /// Whose connection.
        whom: Whom,
        /// Octets.
        after: usize,
    },
    /// Lose the session of this client with its subscriptions, queue and packet ids; its connection is dropped.
    ForgetSession {
        /// Whose.
        client: ClientId,
    },
    /// Answer the next `count` CONNECTs with `code`. `Success` is not a refusal and does nothing.
    Refuse {
        /// Of one client, or of all.
        client: Option<ClientId>,
        /// The return code.
        code: ConnectReturnCode,
        /// How many; `usize::MAX` refuses all until the fault is replaced.
        count: usize,
    },
    /// Let everything to this client leave that much later, until the fault is replaced. Zero ends it.
    Delay {
        /// To whom.
        client: ClientId,
        /// How much later.
        by: Duration,
    },
    /// Send this packet, whatever the state: a stray acknowledgement, a PUBREL with an unknown id, a PUBLISH.
    Send {
        /// To whom; nothing happens if it is not connected.
        client: ClientId,
        /// What.
        packet: Packet,
    },
    /// Send these octets as they are.
    SendBytes {
        /// To whom; nothing happens if it is not connected.
        client: ClientId,
        /// What.
        bytes: Bytes,
    },
    /// Answer the next `count` filters that this client subscribes to with `code`: a lower QoS or a failure.
    Grant {
        /// To whom.
        client: ClientId,
        /// What it is granted at most.
        code: SubscribeReasonCode,
        /// How many filters; `usize::MAX`: all.
        count: usize,
    },
}

/// Whose connection is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// That of this client: the present one from now on, else its next one from after its CONNECT packet.
    Client(ClientId),
    /// The next one that is opened, from its first octet.
    NextConnection,
}

/// A kind of packet that a broker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named as in MQTT 3.1.1 §2.2.1")]
pub enum Kind {
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    SubAck,
    UnsubAck,
    PingResp,
}
