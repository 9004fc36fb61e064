//! UDP: a socket and a task for every listen address, and the multicast group for discovery (§6.1).
//!
//! Linux's packet information (`ip(7)` IP_PKTINFO, `ipv6(7)` IPV6_PKTINFO) tells for every datagram which of our addresses
//! it was sent to, and lets the answer leave from that one: a client behind a NAT or with a connected socket takes it
//! from nobody else. The same mechanism chooses the interface of a multicast.
//!
//! The group is received by the listen socket that is bound to its port and to all addresses, or else by a socket of its
//! own. That one alone shares its port with other programs; a listen socket never does, or two gateways could start on
//! one port and each see half of the clients.

use std::future::pending;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::libc::{in_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use self::outgoing::Outgoing;
use super::{Count, Counters, Inbox, OpenError, Status};
use crate::deadline::Deadline;
use crate::gateway::io::{Address, Input, Peer, PortEvent, PortId, Route};

mod outgoing;

/// Octets of the operating system's receive buffer that each socket asks for (it grants at most `net.core.rmem_max`, and takes
/// them only while frames wait): it counts twice as much, a frame with its overhead as some 770, so that 10,000 sensors
/// may speak in the same instant.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Octets of the send buffer, the only queue on the way out: a message for 1,500 subscribers fits while the radio is busy.
const SEND_BUFFER: usize = 1 << 20;

/// Octets of the longest datagram there can be; the Length field of an IP packet has no room for more.
pub(super) const DATAGRAM_MAX: usize = 65_535;

/// Datagrams read from one socket in a row before others get their turn: a millisecond of work. More than the loop hands to the
/// core in one go, so that a burst comes to wait in our inbox, and not in the system's buffer, which may be small.
const BURST: usize = 1024;

/// How long reading rests after it failed, so that a fault that stays does not eat the processor.
const FAULT_PAUSE: Duration = Duration::from_millis(10);

/// The first wait for an address or interface that is not there yet. Doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);

/// The longest such wait; also how often a membership is renewed: an interface that went away and came back has forgotten
/// it, and nothing tells.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What a UDP transport is opened with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its name in logs.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The group for discovery.
    pub group: Option<Group>,
}

/// A multicast group on an interface.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its address and port.
    pub addr: SocketAddr,
    /// The name of the interface; `None` leaves the choice to the routes.
    pub interface: Option<String>,
}

impl Group {
    /// The number of the interface at the moment, 0 for any.
    fn interface_index(&self) -> io::Result<u32> {
        let Some(name) = &self.interface else { return Ok(0) };
        Ok(nix::net::if_::if_nametoindex(name.as_str())?)
    }

    /// Its address as the socket calls take it: a link-local group of IPv6 needs its interface.
    fn scoped(&self, interface: u32) -> SocketAddr {
        let mut addr = self.addr;
        if let SocketAddr::V6(addr) = &mut addr
            && addr.scope_id() == 0
        {
            addr.set_scope_id(interface);
        }
        addr
    }
}

/// The sockets of one transport. Dropped, it stops listening.
#[derive(Debug)]
pub struct Udp {
    /// In the order of [`Options::listen`], a socket for the group last if there is one: [`Route::socket`] is the index.
    slots: Vec<Arc<Slot>>,
    /// The group, and which slot speaks to it.
    group: Option<(Group, u16)>,
    counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

impl Udp {
    /// Binds every address of `options`, those that are not there yet later, in the background. Needs a tokio runtime.
    ///
    /// # Errors
    /// An address is in use or not permitted; a group has no listen address of its IP version.
    pub fn open(port: PortId, options: &Options, inbox: &Inbox) -> Result<Self, OpenError> {
        let counters = Arc::new(Counters::default());
        let up = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let mut slots = Vec::new();
        for plan in Plan::of(options)? {
            let slot = Arc::new(Slot::new(plan));
            let plan = &slot.plan;
            match plan.bind() {
                Ok(socket) => slot.fill(socket, &options.name),
                Err(source) if super::is_for_good(&source) => {
                    return Err(OpenError::Bind { addr: plan.addr, source });
                }
                Err(error) => {
                    warn!(
                        port = options.name,
                        "cannot listen on udp {} yet: {error}; trying again", plan.addr
                    );
                }
            }
            slots.push(slot.clone());
            let listener = Listener {
                port,
                name: options.name.clone(),
                slot,
                up: up.clone(),
                inbox: inbox.clone(),
                counters: counters.clone(),
                kernel_full: 0,
                control: nix::cmsg_space!(in6_pktinfo, u32),
            };
            tasks.spawn(listener.run());
        }
        let group = options.group.clone().and_then(|group| Some((group.clone(), speaker(options, &group)?)));
        Ok(Self { slots, group, counters, _tasks: tasks })
    }

    /// Sends one datagram to `addr` by the socket and from the address of `route`, or drops and counts it.
    pub fn send(&self, addr: SocketAddr, route: Route, frame: &Bytes) {
        self.transmit(
            route.socket,
            Outgoing { to: addr, from: route.local, interface: 0, hops: None },
            frame,
        );
    }

    /// Sends one datagram to the group, at most `radius` hops far, or drops and counts it.
    pub fn broadcast(&self, radius: u8, frame: &Bytes) {
        let Some((group, speaker)) = &self.group else { return self.counters.add(Count::NotUp, 1) };
        let Ok(interface) = group.interface_index() else { return self.counters.add(Count::NoRoute, 1) };
        // §5.4.2: the radius is the carrier's; 0 is its maximum.
        let hops = Some(if radius == 0 { u8::MAX } else { radius });
        let outgoing = Outgoing { to: group.scoped(interface), from: None, interface, hops };
        self.transmit(*speaker, outgoing, frame);
    }

    /// The addresses it listens on at the moment, without the group's.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let listening = self.slots.iter().filter(|slot| !slot.plan.only_group);
        listening.filter_map(|slot| slot.socket.get()?.get_ref().local_addr().ok()).collect()
    }

    /// Whether it listens on every address.
    pub fn status(&self) -> Status {
        match self.slots.iter().find(|slot| slot.socket.get().is_none()) {
            None => Status::UP,
            Some(slot) => Status {
                up: self.slots.iter().any(|slot| slot.socket.get().is_some()),
                why: Some(format!("cannot listen on udp {} yet", slot.plan.addr)),
                well: false,
            },
        }
    }

    /// What its sockets have counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn transmit(&self, slot: u16, mut outgoing: Outgoing, frame: &Bytes) {
        let fits = |slot: &Slot| slot.plan.addr.is_ipv4() == outgoing.to.is_ipv4();
        let known = self.slots.get(usize::from(slot)).filter(|slot| fits(slot));
        // After a restart nobody knows by which socket a client was reached.
        let slot = known.or_else(|| self.slots.iter().find(|slot| fits(slot)));
        // Packet information that names no source would leave it to the routes, even for a socket bound to one.
        outgoing.from = outgoing.from.or_else(|| slot?.own_ip());
        let count = match slot
            .and_then(|slot| slot.socket.get())
            .map(|socket| outgoing.send(socket.get_ref(), frame))
        {
            None => Count::NotUp,
            Some(Ok(())) => Count::Sent,
            Some(Err(errno)) => {
                debug!(to = %outgoing.to, octets = frame.len(), %errno, "datagram not sent");
                outgoing::failure(errno)
            }
        };
        self.counters.add(count, 1);
    }
}

/// What one socket is for.
#[derive(Debug, Clone)]
struct Plan {
    /// Where to bind it; of a group's own socket the group's address.
    addr: SocketAddr,
    /// The group it receives too.
    group: Option<Group>,
    /// Whether it receives nothing else.
    only_group: bool,
    /// The slot that answers what it receives.
    answers: u16,
}

impl Plan {
    /// The sockets `options` take, in the order of the slots.
    fn of(options: &Options) -> Result<Vec<Self>, OpenError> {
        let mut plans: Vec<Self> = (0..)
            .zip(&options.listen)
            .map(|(answers, &addr)| Self { addr, group: None, only_group: false, answers })
            .collect();
        let Some(group) = &options.group else { return Ok(plans) };
        let Some(answers) = speaker(options, group) else {
            return Err(OpenError::Group { group: group.addr });
        };
        let covers = |addr: SocketAddr| {
            addr.ip().is_unspecified()
                && addr.is_ipv4() == group.addr.is_ipv4()
                && addr.port() == group.addr.port()
        };
        match plans.iter_mut().find(|plan| covers(plan.addr)) {
            Some(plan) => plan.group = Some(group.clone()),
            None => {
                plans.push(Self { addr: group.addr, group: Some(group.clone()), only_group: true, answers })
            }
        }
        Ok(plans)
    }

    /// An option that emulators and old kernels (IPV6_MULTICAST_ALL is of Linux 4.20) do not have. The gateway works without it.
    fn wish<E: Into<io::Error>>(&self, without: &str, granted: Result<(), E>) -> io::Result<()> {
        match granted.map_err(E::into) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {
                debug!(addr = %self.addr, %error, "{without}");
                Ok(())
            }
            result => result,
        }
    }

    /// A socket with all its options, bound.
    fn bind(&self) -> io::Result<Readable> {
        let mut addr = self.addr;
        if let (true, Some(group)) = (self.only_group, &self.group) {
            addr = group.scoped(group.interface_index()?);
        }
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        self.wish("what the system drops is not counted", setsockopt(&socket, sockopt::RxqOvfl, &1))?;
        // Only the groups this socket joins itself, not those of all programs on this machine.
        if addr.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            self.wish("groups of other programs are heard", socket.set_multicast_all_v4(false))?;
        } else {
            // Beside 0.0.0.0, not instead of it.
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            self.wish("groups of other programs are heard", socket.set_multicast_all_v6(false))?;
        }
        // Before bind, or what arrives between would lack all that.
        socket.set_reuse_address(self.only_group)?;
        socket.bind(&addr.into())?;
        #[expect(
            deprecated,
            reason = "only for what might lend a descriptor that is not its own; a socket does not"
        )]
        AsyncFd::with_interest(socket.into(), Interest::READABLE)
    }
}

/// The slot that speaks to `group` and answers what came by it: the first listen socket of the same IP version.
fn speaker(options: &Options, group: &Group) -> Option<u16> {
    (0..)
        .zip(&options.listen)
        .find(|(_, addr)| addr.is_ipv4() == group.addr.is_ipv4())
        .map(|(index, _)| index)
}

/// A socket that is waited for only to read it. Sending never waits, and that a datagram has been taken at the other end is no
/// reason to wake up.
type Readable = AsyncFd<UdpSocket>;

/// A socket as soon as it is there.
#[derive(Debug)]
struct Slot {
    plan: Plan,
    socket: OnceLock<Readable>,
}

impl Slot {
    fn new(plan: Plan) -> Self {
        Self { plan, socket: OnceLock::new() }
    }

    fn fill(&self, socket: Readable, name: &str) {
        let addr = socket.get_ref().local_addr().unwrap_or(self.plan.addr);
        info!(port = name, "listening on udp {addr}");
        let filled = self.socket.set(socket);
        debug_assert!(filled.is_ok(), "a slot is filled once");
    }

    /// The address that what is sent comes from, if the socket has only that one.
    fn own_ip(&self) -> Option<IpAddr> {
        Some(self.plan.addr.ip()).filter(|ip| !ip.is_unspecified())
    }
}

/// The task of one socket: waits until it can be bound, keeps its membership, reads.
struct Listener {
    port: PortId,
    name: String,
    slot: Arc<Slot>,
    /// Whether the port has been reported as up; shared by its listeners.
    up: Arc<AtomicBool>,
    inbox: Inbox,
    counters: Arc<Counters>,
    /// What the operating system said last of how many it has dropped.
    kernel_full: u32,
    /// Room for what it says beside each datagram.
    control: Vec<u8>,
}

impl Listener {
    async fn run(mut self) {
        let slot = self.slot.clone();
        let Some(socket) = self.bound(&slot).await else { return };
        let mut membership = slot.plan.group.clone().map(Membership::new);
        if let Some(membership) = &mut membership {
            membership.renew(socket, &self.name);
        }
        if !self.up.swap(true, Ordering::Relaxed) {
            self.inbox.tell(Input::Port(self.port, PortEvent::Up)).await;
        }
        let (mut buffer, mut deadline) = (vec![0; DATAGRAM_MAX], Deadline::default());
        loop {
            // The membership first: it is due twice a minute at most, and a flood must not keep it waiting.
            tokio::select! {
                biased;
                membership = due(&mut membership, &mut deadline) => {
                    // ADVERTISE has not reached the group so far.
                    if membership.renew(socket, &self.name) {
                        self.inbox.tell(Input::Port(self.port, PortEvent::Up)).await;
                    }
                }
                readable = self.readable(socket) => match readable.and_then(|()| self.burst(socket, &mut buffer)) {
                    Ok(Burst::Over) => {}
                    Ok(Burst::Long) => yield_now().await,
                    Err(error) => {
                        // An ICMP error about what was sent earlier, or a lack of memory: the socket is as good as before.
                        debug!(port = self.name, %error, "reading failed");
                        self.counters.add(Count::ReceiveFailed, 1);
                        sleep(FAULT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// The socket, once its address is there.
    async fn bound<'a>(&self, slot: &'a Slot) -> Option<&'a Readable> {
        let mut wait = RETRY_MIN;
        while slot.socket.get().is_none() {
            sleep(wait).await;
            wait = RETRY_MAX.min(wait * 2);
            match slot.plan.bind() {
                Ok(socket) => slot.fill(socket, &self.name),
                Err(error) => debug!(port = self.name, addr = %slot.plan.addr, %error, "still cannot listen"),
            }
        }
        slot.socket.get()
    }

    /// Completes when there is something to read and room to put it. Cancel-safe.
    async fn readable(&self, socket: &Readable) -> io::Result<()> {
        self.inbox.room().await;
        socket.readable().await.map(drop)
    }

    /// Reads until the socket is empty or the inbox full, but not for long.
    fn burst(&mut self, socket: &Readable, buffer: &mut [u8]) -> io::Result<Burst> {
        for _ in 0..BURST {
            if !self.inbox.has_room() {
                return Ok(Burst::Over);
            }
            match receive(socket, buffer, &mut self.control) {
                Ok(datagram) => self.accept(&datagram, buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Burst::Over),
                Err(error) => return Err(error),
            }
        }
        Ok(Burst::Long)
    }

    fn accept(&mut self, datagram: &Datagram, buffer: &[u8]) {
        let dropped = datagram.kernel_full.map_or(0, |now| now.wrapping_sub(self.kernel_full));
        if dropped > 0 {
            self.kernel_full = self.kernel_full.wrapping_add(dropped);
            self.counters.add(Count::KernelFull, dropped as usize);
        }
        let Some(len) = datagram.len else { return self.counters.add(Count::Truncated, 1) };
        let frame = Input::Frame {
            from: Peer { port: self.port, addr: Address::Udp(datagram.from), node: None },
            route: Route {
                socket: self.slot.plan.answers,
                local: datagram.to.filter(|to| !to.is_multicast()),
            },
            // A copy of its own size: what is kept of a frame must not keep the buffer.
            frame: Bytes::copy_from_slice(&buffer[..len]),
        };
        let count = if self.inbox.offer(frame) { Count::Received } else { Count::InboxFull };
        self.counters.add(count, 1);
    }
}

/// How reading in a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Burst {
    /// The socket is empty, or there is no more room: reading waits for it to change.
    Over,
    /// There may be more, and others have their turn.
    Long,
}

/// Completes when the membership is to be renewed; never, if there is none. Cancel-safe.
async fn due<'a>(membership: &'a mut Option<Membership>, deadline: &mut Deadline) -> &'a mut Membership {
    match membership {
        Some(membership) => {
            deadline.reached(Some(membership.due.into_std())).await;
            membership
        }
        None => pending().await,
    }
}

/// The membership of a socket in a group.
struct Membership {
    group: Group,
    due: Instant,
    wait: Duration,
    state: Joined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joined {
    NotTried,
    No,
    Yes,
}

impl Membership {
    fn new(group: Group) -> Self {
        Self { group, due: Instant::now(), wait: RETRY_MIN, state: Joined::NotTried }
    }

    /// Joins the group unless it is joined already; reports changes. Whether it is joined and was not at the last try.
    fn renew(&mut self, socket: &Readable, name: &str) -> bool {
        let before = self.state;
        match self.join(socket) {
            Ok(()) => {
                (self.state, self.wait) = (Joined::Yes, RETRY_MIN);
                self.due = Instant::now() + RETRY_MAX;
                if before != Joined::Yes {
                    info!(
                        port = name,
                        interface = self.group.interface,
                        "joined multicast group {}",
                        self.group.addr
                    );
                }
            }
            Err(error) => {
                self.state = Joined::No;
                self.due = Instant::now() + self.wait;
                self.wait = RETRY_MAX.min(self.wait * 2);
                if before != Joined::No {
                    let (group, interface) = (self.group.addr, &self.group.interface);
                    warn!(
                        port = name,
                        interface, "cannot join multicast group {group} yet: {error}; trying again"
                    );
                }
            }
        }
        (before, self.state) == (Joined::No, Joined::Yes)
    }

    fn join(&self, socket: &Readable) -> io::Result<()> {
        let interface = self.group.interface_index()?;
        let socket = SockRef::from(socket);
        let joined = match self.group.addr.ip() {
            IpAddr::V4(ip) => socket.join_multicast_v4_n(&ip, &InterfaceIndexOrAddress::Index(interface)),
            IpAddr::V6(ip) => socket.join_multicast_v6(&ip, interface),
        };
        match joined {
            // It is joined already.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
            joined => joined,
        }
    }
}

/// One datagram, its octets in the buffer.
#[derive(Debug, PartialEq, Eq)]
struct Datagram {
    from: SocketAddr,
    /// The address it was sent to.
    to: Option<IpAddr>,
    /// `None`: it did not fit in the buffer.
    len: Option<usize>,
    /// How many datagrams the socket has lost for want of room, if any.
    kernel_full: Option<u32>,
}

/// `control` has room for what the system tells beside the octets.
fn receive(socket: &Readable, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Datagram> {
    socket.try_io(Interest::READABLE, |socket| {
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
        let from = message.address.and_then(socket_addr).ok_or(io::ErrorKind::InvalidData)?;
        let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
        let mut datagram =
            Datagram { from, to: None, len: whole.then_some(message.bytes), kernel_full: None };
        for control in message.cmsgs()? {
            match control {
                // The header's destination, unless it is a broadcast address, from which no answer can leave.
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let (header, ours) = (ipv4(info.ipi_addr), ipv4(info.ipi_spec_dst));
                    datagram.to = Some(if header.is_multicast() { header } else { ours }.into());
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    datagram.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                ControlMessageOwned::RxqOvfl(total) => datagram.kernel_full = Some(total),
                _ => {}
            }
        }
        Ok(datagram)
    })
}

fn ipv4(addr: in_addr) -> Ipv4Addr {
    Ipv4Addr::from(addr.s_addr.to_ne_bytes())
}

fn socket_addr(addr: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = addr.as_sockaddr_in().map(|addr| std::net::SocketAddrV4::from(*addr).into());
    v4.or_else(|| addr.as_sockaddr_in6().map(|addr| std::net::SocketAddrV6::from(*addr).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::inbox;

    #[tokio::test]
    async fn a_datagram_that_does_not_fit_is_no_frame() {
        let (mut listener, socket, node) = listener();
        let mut buffer = [0; 8];
        for (octets, len) in [(&b"12345678"[..], Some(8)), (b"123456789", None), (b"1", Some(1))] {
            node.send_to(octets, socket.get_ref().local_addr().unwrap()).unwrap();
            drop(socket.readable().await.unwrap());
            let datagram = receive(&socket, &mut buffer, &mut listener.control).unwrap();
            assert_eq!((datagram.from, datagram.len), (node.local_addr().unwrap(), len));
            listener.accept(&datagram, &buffer);
        }
        assert_eq!(listener.counters.get(Count::Truncated), 1);
        assert_eq!(listener.counters.get(Count::Received), 2);
    }

    #[tokio::test]
    async fn an_icmp_error_does_not_end_reading() {
        let (listener, socket, node) = listener();
        let addr = socket.get_ref().local_addr().unwrap();
        let counters = listener.counters.clone();
        // Only a connected socket is told of ICMP errors: one that sent to a port nobody listens on.
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        socket.get_ref().connect(nobody).unwrap();
        socket.get_ref().send(&[1]).unwrap();
        socket.get_ref().connect(node.local_addr().unwrap()).unwrap();
        node.send_to(&[1], addr).unwrap();
        assert!(listener.slot.socket.set(socket).is_ok());
        let task = tokio::spawn(listener.run());
        let served = async {
            while counters.get(Count::Received) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), served).await.unwrap();
        assert_eq!(counters.get(Count::ReceiveFailed), 1);
        task.abort();
    }

    /// A listener whose slot is empty, a socket for it, and a node.
    fn listener() -> (Listener, Readable, UdpSocket) {
        let plan = Plan { addr: ([127, 0, 0, 1], 0).into(), group: None, only_group: false, answers: 0 };
        let socket = plan.bind().unwrap();
        // What is offered after the other side is gone would be dropped.
        let (inbox, intake) = inbox();
        std::mem::forget(intake);
        let listener = Listener {
            port: PortId(0),
            name: "lan".into(),
            slot: Arc::new(Slot::new(plan)),
            up: Arc::default(),
            inbox,
            counters: Arc::default(),
            kernel_full: 0,
            control: nix::cmsg_space!(in6_pktinfo, u32),
        };
        (listener, socket, UdpSocket::bind("127.0.0.1:0").unwrap())
    }
}
