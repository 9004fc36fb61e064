//! One task per socket: datagrams and frames between the world and the core.
//!
//! What arrives goes into one bounded [`inbox`] for all ports, what leaves is sent at once or dropped; a port never makes
//! the loop wait. Whatever is dropped is counted where it is dropped, in the port's [`Counters`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::gateway::io::{Address, Input, PortId, Route};

pub mod udp;

/// Frames that wait for the core: at 10,000 frames a second the loop may be busy for 0.4 s before one is lost.
pub const INBOX_FRAMES_MAX: usize = 4096;

/// Octets of frames that wait for the core: frames of 1 KiB reach both limits together; larger ones fill memory no faster.
pub const INBOX_OCTETS_MAX: usize = 4 << 20;

/// One way into and out of the gateway, of any kind.
#[derive(Debug)]
pub enum Transport {
    /// Datagrams.
    Udp(udp::Udp),
}

impl Transport {
    /// Opens it; frames and events of it go to `inbox` as those of `port`. What is not there yet is waited for in the
    /// background. Needs a tokio runtime.
    ///
    /// # Errors
    /// What waiting does not mend: an address in use, a lack of permission.
    pub fn open(port: PortId, options: &Options, inbox: &Inbox) -> Result<Self, OpenError> {
        match options {
            Options::Udp(options) => udp::Udp::open(port, options, inbox).map(Self::Udp),
        }
    }

    /// Sends one frame to one address, now or never.
    pub fn send(&self, addr: Address, route: Route, frame: &Bytes) {
        match (self, addr) {
            (Self::Udp(udp), Address::Udp(addr)) => udp.send(addr, route, frame),
            // A client of the store whose transport has become another one.
            (Self::Udp(udp), _) => udp.counters().add(Count::NoRoute, 1),
        }
    }

    /// Sends one frame to everybody in reach, now or never; `radius` 0 is as far as it goes.
    pub fn broadcast(&self, radius: u8, frame: &Bytes) {
        match self {
            Self::Udp(udp) => udp.broadcast(radius, frame),
        }
    }

    /// The addresses it listens on at the moment.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        match self {
            Self::Udp(udp) => udp.local_addrs(),
        }
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        match self {
            Self::Udp(udp) => udp.counters(),
        }
    }
}

/// What a [`Transport`] is opened with.
#[derive(Debug, Clone)]
pub enum Options {
    /// Datagrams.
    Udp(udp::Options),
}

/// Why a transport cannot be opened, now or later.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has the address, or it takes a permission that this process lacks.
    #[error("cannot listen on udp {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Answers to a group leave from a listen address of the same family, and there is none.
    #[error("the multicast group {group} needs a listen address of the same IP version")]
    Group {
        /// The group.
        group: SocketAddr,
    },
}

/// Whether an error of binding a socket is one that waiting does not mend. An address that is not there yet may come.
pub(crate) fn is_for_good(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

/// The way of all ports to the core: bounded in frames and in octets.
pub fn inbox() -> (Inbox, Intake) {
    let (sender, receiver) = mpsc::channel(INBOX_FRAMES_MAX);
    let octets = Arc::new(AtomicUsize::new(0));
    (Inbox { sender, octets: octets.clone() }, Intake { receiver, octets })
}

/// Where ports put what arrives.
#[derive(Debug, Clone)]
pub struct Inbox {
    sender: mpsc::Sender<Input>,
    octets: Arc<AtomicUsize>,
}

impl Inbox {
    /// Whether there was room for this frame.
    #[must_use]
    fn offer(&self, input: Input) -> bool {
        let octets = octets_of(&input);
        // Counted first: the other side takes off what it finds in the channel.
        let before = self.octets.fetch_add(octets, Ordering::Relaxed);
        if before + octets <= INBOX_OCTETS_MAX && self.sender.try_send(input).is_ok() {
            return true;
        }
        self.octets.fetch_sub(octets, Ordering::Relaxed);
        false
    }

    /// Waits for room: for events, which must not be lost. Cancel-safe.
    async fn tell(&self, event: Input) {
        // The other side is gone only when the gateway stops.
        let _ = self.sender.send(event).await;
    }
}

/// Where the loop takes it out.
#[derive(Debug)]
pub struct Intake {
    receiver: mpsc::Receiver<Input>,
    octets: Arc<AtomicUsize>,
}

impl Intake {
    /// Waits for something to arrive and takes up to `max` of it, in the order of arrival, to the end of `into`.
    /// Cancel-safe. Returns at once, having taken nothing, when all ports are gone.
    pub async fn recv_many(&mut self, into: &mut Vec<Input>, max: usize) -> usize {
        let before = into.len();
        let taken = self.receiver.recv_many(into, max).await;
        self.release(&into[before..]);
        taken
    }

    /// Takes up to `max` of what is there.
    pub fn take(&mut self, into: &mut Vec<Input>, max: usize) {
        let before = into.len();
        into.extend(std::iter::from_fn(|| self.receiver.try_recv().ok()).take(max));
        self.release(&into[before..]);
    }

    fn release(&self, taken: &[Input]) {
        self.octets.fetch_sub(taken.iter().map(octets_of).sum(), Ordering::Relaxed);
    }
}

fn octets_of(input: &Input) -> usize {
    match input {
        Input::Frame { frame, .. } => frame.len(),
        Input::Port(..) | Input::Link(..) | Input::Stored(..) | Input::Control(_) => 0,
    }
}

/// A fact that a port counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// Frames handed to the core.
    Received,
    /// Frames handed to the operating system.
    Sent,
    /// Frames dropped: the core's inbox was full.
    InboxFull,
    /// Frames dropped by the operating system before they could be read.
    KernelFull,
    /// Frames dropped: longer than any datagram may be.
    Truncated,
    /// Reading failed; it goes on.
    ReceiveFailed,
    /// Frames not sent: no room in the operating system's buffers.
    SendFull,
    /// Frames not sent: no way to the address, or none back to ours.
    NoRoute,
    /// Frames not sent: too long for the carrier.
    TooLong,
    /// Frames not sent: refused by the operating system for another reason.
    SendFailed,
    /// Frames not sent: the port is not up, or has no such way out.
    NotUp,
}

impl Count {
    const ALL: [Self; 11] = [
        Self::Received,
        Self::Sent,
        Self::InboxFull,
        Self::KernelFull,
        Self::Truncated,
        Self::ReceiveFailed,
        Self::SendFull,
        Self::NoRoute,
        Self::TooLong,
        Self::SendFailed,
        Self::NotUp,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "port_received",
            Self::Sent => "port_sent",
            Self::InboxFull => "port_inbox_full",
            Self::KernelFull => "port_kernel_full",
            Self::Truncated => "port_truncated",
            Self::ReceiveFailed => "port_receive_failed",
            Self::SendFull => "port_send_full",
            Self::NoRoute => "port_no_route",
            Self::TooLong => "port_too_long",
            Self::SendFailed => "port_send_failed",
            Self::NotUp => "port_not_up",
        }
    }

    /// Whether something was lost.
    pub fn is_loss(self) -> bool {
        !matches!(self, Self::Received | Self::Sent)
    }
}

/// What a port has counted since it was opened. Its sockets' tasks and the loop add to it and read it without a lock.
#[derive(Debug, Default)]
pub struct Counters([AtomicUsize; Count::ALL.len()]);

impl Counters {
    /// How often so far.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed) as u64
    }

    /// All of them, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Count, u64)> {
        Count::ALL.into_iter().map(|count| (count, self.get(count)))
    }

    fn add(&self, count: Count, n: usize) {
        self.0[count as usize].fetch_add(n, Ordering::Relaxed);
    }
}
