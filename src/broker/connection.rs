//! One connection of a client: octets that are no packet yet, octets to be written, the will, the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rumqttc::Packet;

use super::io::Message;
use super::session::Queue;
use crate::topic::ClientId;

#[derive(Debug)]
pub(super) struct Connection {
    /// Whose it is, from an accepted CONNECT on.
    pub(super) client: Option<ClientId>,
    pub(super) input: BytesMut,
    /// Encoded and not yet handed out for writing.
    pub(super) out: BytesMut,
    /// Delayed by a fault until now, goes before `out`.
    pub(super) due: BytesMut,
    /// A [`Write`](super::Output::Write) is out and its [`Drained`](super::Input::Drained) is not yet in.
    pub(super) writing: bool,
    pub(super) will: Option<Will>,
    /// How long it may be silent: one and a half keep-alive times.
    pub(super) silence_max: Option<Duration>,
    /// CONNECT or any packet is due by then.
    pub(super) deadline: Option<Instant>,
    /// QoS 0 messages that wait for the writing; they end with the connection.
    pub(super) waiting: Queue,
}

/// What is published if the connection ends without DISCONNECT (MQTT 3.1.1 §3.1.2.5).
#[derive(Debug)]
pub(super) struct Will {
    pub(super) message: Arc<Message>,
    pub(super) retain: bool,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            client: None,
            input: BytesMut::new(),
            out: BytesMut::new(),
            due: BytesMut::new(),
            writing: false,
            will: None,
            silence_max: None,
            deadline: None,
            waiting: Queue::default(),
        }
    }

    /// Encodes `packet` behind what is ready. A packet that cannot be encoded (a fault may ask for one) is left out.
    pub(super) fn encode(&mut self, packet: &Packet) {
        let len = self.out.len();
        if packet.write(&mut self.out, usize::MAX).is_err() {
            self.out.truncate(len);
        }
    }

    /// Everything ready, in order.
    pub(super) fn take_ready(&mut self) -> Bytes {
        if self.due.is_empty() {
            return self.out.split().freeze();
        }
        self.due.extend_from_slice(&self.out);
        self.out.clear();
        self.due.split().freeze()
    }

    /// Whether there is something to write and nothing being written.
    pub(super) fn is_ready(&self) -> bool {
        !self.writing && (!self.out.is_empty() || !self.due.is_empty())
    }
}
