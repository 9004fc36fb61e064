//! One task per socket or serial device: datagrams and frames between the world and the core.
//!
//! What arrives goes into one bounded [`inbox`] for all ports, what leaves is sent at once or dropped; a port never makes
//! the loop wait. Whatever is dropped is counted where it is dropped, in the port's [`Counters`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::gateway::io::{Address, Input, PortId, Route};

mod fault;
mod framed;
mod line;
pub mod serial;
mod speech;
pub mod udp;
mod xbee;

pub use self::fault::Fault;
pub use self::framed::QUEUE_TIME_MAX;
pub use self::line::{Flow, Line, Parity};

/// Frames that wait for the core: 10,000 sensors that speak in the same moment, and some of them twice. Then sockets are not read.
pub const INBOX_FRAMES_MAX: usize = 16 << 10;

/// Of both, what sockets leave to lines and radios, whose frames have nowhere else to wait.
const RESERVED_PART: usize = 8;

/// Octets of frames that wait for the core: frames of 256 octets reach both limits together; larger ones fill memory no faster.
pub const INBOX_OCTETS_MAX: usize = 4 << 20;

/// One way into and out of the gateway, of any kind.
#[derive(Debug)]
pub enum Transport {
    /// Datagrams.
    Udp(udp::Udp),
    /// Frames on a serial device.
    Serial(serial::Serial),
}

/// Whether a transport can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Frames can be sent and received.
    pub up: bool,
    /// What is wrong, if something is: it may be up, and still nobody may be understood.
    pub why: Option<String>,
    /// Nobody has to look after it.
    pub well: bool,
}

impl Status {
    /// It can be used.
    pub const UP: Self = Self { up: true, why: None, well: true };

    /// It cannot, for this reason.
    pub fn down(why: impl Into<String>) -> Self {
        Self { up: false, why: Some(why.into()), well: false }
    }
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
            Options::Serial(options) => Ok(Self::Serial(serial::Serial::open(port, options, inbox))),
        }
    }

    /// Sends one frame to one address, now or never.
    pub fn send(&self, addr: Address, route: Route, frame: &Bytes) {
        match (self, addr) {
            (Self::Udp(udp), Address::Udp(addr)) => udp.send(addr, route, frame),
            (Self::Serial(serial), Address::Serial | Address::Xbee(_)) => serial.send(addr, frame),
            // A client of the store whose transport has become another one.
            (_, _) => self.counters().add(Count::NoRoute, 1),
        }
    }

    /// Sends one frame to everybody in reach, now or never; `radius` 0 is as far as it goes.
    pub fn broadcast(&self, radius: u8, frame: &Bytes) {
        match self {
            Self::Udp(udp) => udp.broadcast(radius, frame),
            Self::Serial(serial) => serial.broadcast(radius, frame),
        }
    }

    /// The addresses it listens on at the moment.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        match self {
            Self::Udp(udp) => udp.local_addrs(),
            Self::Serial(_) => Vec::new(),
        }
    }

    /// Whether it can be used at the moment, and what is wrong.
    pub fn status(&self) -> Status {
        match self {
            Self::Udp(udp) => udp.status(),
            Self::Serial(serial) => serial.status(),
        }
    }

    /// Takes no more frames; what waits for a slow line is still written: [`Self::closed`].
    pub fn close(&mut self) {
        match self {
            Self::Udp(_) => {}
            Self::Serial(serial) => serial.close(),
        }
    }

    /// Waits until nothing waits any more, after [`Self::close`]. It may be never: the other side may hold it up.
    pub async fn closed(&mut self) {
        match self {
            Self::Udp(_) => {}
            Self::Serial(serial) => serial.closed().await,
        }
    }

    /// Closes it now. What waits is dropped and counted.
    pub async fn abandon(&mut self) {
        match self {
            Self::Udp(_) => {}
            Self::Serial(serial) => serial.abandon().await,
        }
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        match self {
            Self::Udp(udp) => udp.counters(),
            Self::Serial(serial) => serial.counters(),
        }
    }
}

/// What a [`Transport`] is opened with.
#[derive(Debug, Clone)]
pub enum Options {
    /// Datagrams.
    Udp(udp::Options),
    /// Frames on a serial device.
    Serial(serial::Options),
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
    let (octets, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let intake = Intake { receiver, octets: octets.clone(), taken: taken.clone() };
    (Inbox { sender, octets, taken }, intake)
}

/// Where ports put what arrives.
#[derive(Debug, Clone)]
pub struct Inbox {
    sender: mpsc::Sender<Input>,
    octets: Arc<AtomicUsize>,
    /// Tells sockets that wait for room.
    taken: Arc<Notify>,
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

    /// Whether a frame more of a socket, of any size, finds room; what is left in the socket meanwhile is not lost.
    fn has_room(&self) -> bool {
        let octets = self.octets.load(Ordering::Relaxed) + udp::DATAGRAM_MAX;
        self.sender.capacity() > INBOX_FRAMES_MAX / RESERVED_PART
            && octets <= INBOX_OCTETS_MAX - INBOX_OCTETS_MAX / RESERVED_PART
    }

    /// Completes when [`Inbox::has_room`]. Cancel-safe.
    async fn room(&self) {
        let taken = self.taken.notified();
        tokio::pin!(taken);
        loop {
            // What is taken from here on is noticed.
            taken.as_mut().enable();
            if self.has_room() {
                return;
            }
            taken.as_mut().await;
            taken.set(self.taken.notified());
        }
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
    taken: Arc<Notify>,
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
        self.taken.notify_waiters();
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
    /// Frames not sent: the port is not up, was closed before their turn came, or has no such way out.
    NotUp,
    /// Frames not sent: as many wait for the line as it sends in [`QUEUE_TIME_MAX`], or the radio is as slow.
    QueueFull,
    /// Frames lost on the way in: damaged, or cut short. What looks like several counts for each.
    Damaged,
    /// Octets of them, and between frames.
    GarbageOctets,
    /// A device that was open went away.
    Vanished,
    /// Frames that a radio could not deliver and that were sent again.
    Retried,
    /// Frames given up: the radio could not deliver them.
    Undelivered,
    /// Frames of which the radio did not say what became of them.
    Unanswered,
    /// What a radio said that is not for us: frames of other kinds, for other services, late or unknown.
    Foreign,
}

impl Count {
    const ALL: [Self; 19] = [
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
        Self::QueueFull,
        Self::Damaged,
        Self::GarbageOctets,
        Self::Vanished,
        Self::Retried,
        Self::Undelivered,
        Self::Unanswered,
        Self::Foreign,
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
            Self::QueueFull => "port_queue_full",
            Self::Damaged => "port_damaged",
            Self::GarbageOctets => "port_garbage_octets",
            Self::Vanished => "port_vanished",
            Self::Retried => "port_retried",
            Self::Undelivered => "port_undelivered",
            Self::Unanswered => "port_unanswered",
            Self::Foreign => "port_foreign",
        }
    }

    /// Whether something was lost.
    pub fn is_loss(self) -> bool {
        let no_loss =
            [Self::Received, Self::Sent, Self::GarbageOctets, Self::Vanished, Self::Retried, Self::Foreign];
        !no_loss.contains(&self)
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
