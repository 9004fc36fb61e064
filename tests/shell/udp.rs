//! Datagrams in and out.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Address, Input, PortEvent, PortId, Route};
use mqtt_sn_gateway::transport::udp::{self, Group};
use mqtt_sn_gateway::transport::{
    Count, INBOX_FRAMES_MAX, INBOX_OCTETS_MAX, Intake, OpenError, Options, Transport, inbox,
};
use tokio::net::UdpSocket;

use crate::apart::{apart, ip};
use crate::soon;

#[tokio::test]
async fn a_datagram_reaches_the_core_and_the_answer_its_sender() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut port = Port::open(&[listen], None);
        let node = node_of(port.addr(0)).await;
        node.send(&[3, 1, 0]).await.unwrap();
        let frame = port.frame().await;
        assert_eq!(frame.from, node.local_addr().unwrap());
        assert_eq!(frame.octets, [3, 1, 0][..]);
        port.answer(&frame, &[3, 2, 9]);
        assert_eq!(received(&node).await, [3, 2, 9]);
        assert_eq!(port.count(Count::Received), 1);
        assert_eq!(port.count(Count::Sent), 1);
    }
}

#[tokio::test]
async fn ipv4_and_ipv6_share_a_port_and_their_nodes_are_told_apart() {
    // Another test may take the free port first.
    let both = |number| options(&[&format!("0.0.0.0:{number}"), &format!("[::]:{number}")], None);
    let (number, mut port) = (0..20)
        .find_map(|_| {
            let number = free_port();
            Some((number, Port::try_open(&both(number)).ok()?))
        })
        .unwrap();
    let nodes = [node_of(local("127.0.0.1", number)).await, node_of(local("::1", number)).await];
    for (socket, node) in (0..).zip(&nodes) {
        node.send(&[1, 2]).await.unwrap();
        let frame = port.frame().await;
        // Not ::ffff:127.0.0.1, which would be another peer after a change of the configuration.
        assert_eq!(frame.from, node.local_addr().unwrap());
        assert_eq!(frame.route, Route { socket, local: Some(node.peer_addr().unwrap().ip()) });
    }
}

#[tokio::test]
async fn an_answer_leaves_from_the_address_that_was_spoken_to() {
    let mut port = Port::open(&["0.0.0.0:0"], None);
    for spoken_to in ["127.0.0.2", "127.0.0.1", "127.9.9.9"] {
        // Connected: it hears nobody else.
        let node = node_of(local(spoken_to, port.addr(0).port())).await;
        let frame = port.question_and_answer(&node).await;
        assert_eq!(frame.route.local, Some(spoken_to.parse().unwrap()));
    }
}

#[tokio::test]
async fn an_answer_leaves_from_the_ipv6_address_that_was_spoken_to() {
    if !apart("udp::an_answer_leaves_from_the_ipv6_address_that_was_spoken_to") {
        return;
    }
    ip("link set lo up");
    ip("addr add fd00::a/128 dev lo");
    ip("addr add fd00::b/128 dev lo");
    link_v0();
    let mut port = Port::open(&["[::]:0"], None);
    for spoken_to in ["fd00::a", "fd00::b", "::1", "fe80::5"] {
        let mut to = local(spoken_to, port.addr(0).port());
        if let SocketAddr::V6(to) = &mut to
            && spoken_to.starts_with("fe80")
        {
            to.set_scope_id(index_of("v0"));
        }
        let node = node_of(to).await;
        let frame = port.question_and_answer(&node).await;
        assert_eq!(frame.route.local, Some(spoken_to.parse().unwrap()));
    }
}

#[tokio::test]
async fn a_search_by_broadcast_is_answered_from_an_address_of_ours() {
    let mut port = Port::open(&["0.0.0.0:0"], None);
    let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    node.set_broadcast(true).unwrap();
    let (_, from) = port.search_and_answer(&node, local("127.255.255.255", port.addr(0).port())).await;
    assert_eq!(from, local("127.0.0.1", port.addr(0).port()));
}

#[tokio::test]
async fn every_listen_address_answers_for_itself() {
    let mut port = Port::open(&["127.0.0.1:0", "127.0.0.2:0"], None);
    for socket in [1, 0] {
        let node = node_of(port.addr(socket)).await;
        let frame = port.question_and_answer(&node).await;
        assert_eq!(frame.route.socket, socket as u16);
    }
}

#[tokio::test]
async fn datagrams_of_any_size_arrive_whole() {
    for (listen, largest) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_527)] {
        let mut port = Port::open(&[listen], None);
        let node = node_of(port.addr(0)).await;
        for size in [largest, 0, 1, 1024, largest] {
            let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            node.send(&sent).await.unwrap();
            assert_eq!(port.frame().await.octets, sent);
        }
        assert_eq!(port.count(Count::Truncated), 0);
    }
}

#[tokio::test]
async fn a_flood_is_counted_to_the_last_datagram_and_the_next_one_is_served() {
    let mut port = Port::open(&["127.0.0.1:0"], None);
    port.up().await;
    let node = node_of(port.addr(0)).await;
    let mut sent = 0;
    // More than fits into inbox and socket together, whatever the system grants that one.
    for _ in 0..10 {
        for _ in 0..5000 {
            sent += u64::from(node.try_send(b"flood").is_ok());
        }
        idle(&port).await;
    }
    // The rest is for lines and radios.
    let most = INBOX_FRAMES_MAX / 8 * 7;
    assert_eq!(port.count(Count::Received), most as u64);
    // What is taken out makes room for what waits in the socket.
    for _ in 0..most {
        assert_eq!(port.frame().await.octets, b"flood"[..]);
    }
    idle(&port).await;
    assert!(port.count(Count::Received) > most as u64);
    node.send(b"next").await.unwrap();
    while port.frame().await.octets != b"next"[..] {}
    let counted = [Count::Received, Count::InboxFull, Count::KernelFull].map(|count| port.count(count));
    assert_eq!(counted.iter().sum::<u64>(), sent + 1, "{counted:?}");
    assert_eq!(counted[1], 0, "what finds no room waits in the socket: {counted:?}");
    assert!(counted[2] > 0, "the socket was never full: {counted:?}");
}

#[tokio::test]
async fn large_datagrams_fill_the_inbox_by_their_octets() {
    let mut port = Port::open(&["127.0.0.1:0"], None);
    port.up().await;
    let node = node_of(port.addr(0)).await;
    // As long as one of any size would fit into seven eighths.
    let most = (INBOX_OCTETS_MAX / 8 * 7 - 65_535) as u64 / 60_000 + 1;
    for _ in 0..most + 1 {
        node.send(&vec![0; 60_000]).await.unwrap();
        idle(&port).await;
    }
    assert_eq!((port.count(Count::Received), port.count(Count::InboxFull)), (most, 0));
    // What is taken out makes room for the one in the socket.
    port.frame().await;
    idle(&port).await;
    assert_eq!(port.count(Count::Received), most + 1);
}

#[tokio::test]
async fn an_address_in_use_is_an_error() {
    for listen in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let first = Port::open(&[listen], None);
        let again = Port::try_open(&options(&[&first.addr(0).to_string()], None));
        let Err(OpenError::Bind { addr, source }) = again else { panic!("opened twice: {listen}") };
        assert_eq!((addr, source.kind()), (first.addr(0), io::ErrorKind::AddrInUse));
    }
}

#[tokio::test]
async fn a_listen_address_with_a_group_is_not_shared_with_a_second_gateway() {
    if !apart("udp::a_listen_address_with_a_group_is_not_shared_with_a_second_gateway") {
        return;
    }
    ip("link set lo up");
    let group = Group { addr: local("225.1.1.1", 1884), interface: Some("lo".into()) };
    let _first = Port::open(&["0.0.0.0:1884"], Some(group.clone()));
    let again = Port::try_open(&options(&["0.0.0.0:1884"], Some(group)));
    assert!(matches!(again, Err(OpenError::Bind { .. })), "opened twice");
}

#[tokio::test]
async fn a_group_without_a_listen_address_of_its_kind_is_an_error() {
    let group = Group { addr: local("225.1.1.1", 1884), interface: None };
    let opened = Port::try_open(&options(&["[::1]:0"], Some(group)));
    assert!(matches!(opened, Err(OpenError::Group { .. })), "opened");
}

#[tokio::test]
async fn an_address_that_is_not_there_yet_is_listened_on_as_soon_as_it_is() {
    if !apart("udp::an_address_that_is_not_there_yet_is_listened_on_as_soon_as_it_is") {
        return;
    }
    ip("link set lo up");
    let mut port = Port::open(&["10.1.2.3:1884"], None);
    assert_eq!(port.transport.local_addrs(), []);
    // Nothing can be sent so far; that is no reason to fail.
    let route = Route { socket: 0, local: None };
    port.transport.send(Address::Udp(local("127.0.0.1", 9)), route, &Bytes::from_static(&[1]));
    assert_eq!(port.count(Count::NotUp), 1);
    // Beyond the first try, which nothing tells of.
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    assert_eq!(port.transport.local_addrs(), []);
    ip("addr add 10.1.2.3/32 dev lo");
    port.up().await;
    assert_eq!(port.transport.local_addrs(), [local("10.1.2.3", 1884)]);
    let node = node_of(port.addr(0)).await;
    node.send(&[7]).await.unwrap();
    assert_eq!(port.frame().await.octets, [7][..]);
}

#[tokio::test]
async fn a_search_by_the_group_is_answered_by_unicast_from_the_listen_socket() {
    if !apart("udp::a_search_by_the_group_is_answered_by_unicast_from_the_listen_socket") {
        return;
    }
    ip("link set lo up");
    link_v0();
    // The group on the port of the listen socket, on a port of its own, and beside a listen socket of one address.
    for (listen, group, interface, ours) in [
        ("0.0.0.0:1884", "225.1.1.1:1884", "lo", "127.0.0.1"),
        ("0.0.0.0:1884", "225.1.1.1:1883", "lo", "127.0.0.1"),
        ("127.0.0.1:1884", "225.1.1.1:1884", "lo", "127.0.0.1"),
        ("[::]:1884", "[ff02::1:7]:1884", "v0", "fe80::5"),
        ("[::]:1884", "[ff02::1:7]:1883", "v0", "fe80::5"),
    ] {
        let mut group: SocketAddr = group.parse().unwrap();
        let mut port = Port::open(&[listen], Some(Group { addr: group, interface: Some(interface.into()) }));
        port.up().await;
        let node = UdpSocket::bind(if group.is_ipv4() { "127.0.0.1:0" } else { "[::]:0" }).await.unwrap();
        match &mut group {
            SocketAddr::V4(_) => {
                socket2::SockRef::from(&node).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap()
            }
            SocketAddr::V6(group) => group.set_scope_id(index_of(interface)),
        }
        let (frame, from) = port.search_and_answer(&node, group).await;
        assert_eq!(frame.octets, [3, 1, 0][..]);
        assert_eq!(frame.route, Route { socket: 0, local: None }, "{listen} {group}");
        assert_eq!((from.ip(), from.port()), (ours.parse().unwrap(), 1884));
        // Once, though two sockets of the transport might have taken it.
        idle(&port).await;
        assert_eq!(port.count(Count::Received), 1);
        port.close().await;
    }
}

#[tokio::test]
async fn what_a_listen_address_of_its_own_says_to_the_group_and_answers_comes_from_there() {
    if !apart("udp::what_a_listen_address_of_its_own_says_to_the_group_and_answers_comes_from_there") {
        return;
    }
    ip("link set lo up");
    let group: SocketAddr = "225.1.1.1:1884".parse().unwrap();
    // Routes would choose 127.0.0.1.
    let ours = local("127.0.0.2", 1884);
    let mut port = Port::open(&["127.0.0.2:1884"], Some(Group { addr: group, interface: Some("lo".into()) }));
    port.up().await;
    let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket2::SockRef::from(&node).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    let (_, from) = port.search_and_answer(&node, group).await;
    assert_eq!(from, ours);
    // The broadcast comes back to the group's own socket.
    port.transport.broadcast(1, &Bytes::from_static(&[5, 0, 1, 0, 9]));
    assert_eq!(port.frame().await.from, ours);
}

#[tokio::test]
async fn a_group_that_others_joined_is_none_of_our_business() {
    if !apart("udp::a_group_that_others_joined_is_none_of_our_business") {
        return;
    }
    ip("link set lo up");
    let mut port = Port::open(&["0.0.0.0:1884"], None);
    let other = UdpSocket::bind("225.1.1.1:1885").await.unwrap();
    other.join_multicast_v4(Ipv4Addr::new(225, 1, 1, 1), Ipv4Addr::LOCALHOST).unwrap();
    let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket2::SockRef::from(&node).set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    node.send_to(&[1], "225.1.1.1:1884").await.unwrap();
    node.send_to(&[2], "127.0.0.1:1884").await.unwrap();
    assert_eq!(port.frame().await.octets, [2][..]);
}

#[tokio::test]
async fn a_broadcast_reaches_the_group_as_far_as_its_radius() {
    if !apart("udp::a_broadcast_reaches_the_group_as_far_as_its_radius") {
        return;
    }
    ip("link set lo up");
    let group: SocketAddr = "225.1.1.1:1883".parse().unwrap();
    let mut port = Port::open(&["0.0.0.0:1884"], Some(Group { addr: group, interface: Some("lo".into()) }));
    port.up().await;
    let node = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    node.set_reuse_address(true).unwrap();
    node.bind(&group.into()).unwrap();
    node.set_read_timeout(Some(crate::LIMIT)).unwrap();
    node.join_multicast_v4(&Ipv4Addr::new(225, 1, 1, 1), &Ipv4Addr::LOCALHOST).unwrap();
    nix::sys::socket::setsockopt(&node, nix::sys::socket::sockopt::Ipv4RecvTtl, &true).unwrap();
    for (radius, hops) in [(0, 255), (1, 1), (7, 7)] {
        port.transport.broadcast(radius, &Bytes::from_static(&[5, 0, 1, 0, 9]));
        assert_eq!(received_with_hops(&node), (vec![5, 0, 1, 0, 9], hops));
    }
    assert_eq!(port.count(Count::Sent), 3);
}

#[tokio::test]
async fn a_group_on_an_interface_that_is_not_there_yet_is_joined_as_soon_as_it_is() {
    if !apart("udp::a_group_on_an_interface_that_is_not_there_yet_is_joined_as_soon_as_it_is") {
        return;
    }
    ip("link set lo up");
    let group: SocketAddr = "225.1.1.1:1884".parse().unwrap();
    let mut port = Port::open(&["0.0.0.0:1884"], Some(Group { addr: group, interface: Some("v0".into()) }));
    port.up().await;
    port.transport.broadcast(1, &Bytes::from_static(&[1]));
    assert_eq!(port.count(Count::NoRoute), 1);
    // The interface is no reason not to serve whom it does not concern.
    let near = node_of(local("127.0.0.1", 1884)).await;
    near.send(&[7]).await.unwrap();
    assert_eq!(port.frame().await.octets, [7][..]);
    ip("link add v0 type veth peer name v1");
    ip("addr add 10.1.2.3/24 dev v0");
    ip("link set v0 up");
    ip("link set v1 up");
    // Up once more: there is somebody to advertise to.
    port.up().await;
    let node = socket2::SockRef::from(&near);
    node.set_multicast_if_v4(&Ipv4Addr::new(10, 1, 2, 3)).unwrap();
    let node = UdpSocket::bind("10.1.2.3:0").await.unwrap();
    node.send_to(&[8], group).await.unwrap();
    assert_eq!(port.frame().await.octets, [8][..]);
}

#[tokio::test]
async fn what_cannot_be_sent_is_counted_by_its_reason_and_nobody_waits() {
    if !apart("udp::what_cannot_be_sent_is_counted_by_its_reason_and_nobody_waits") {
        return;
    }
    ip("link set lo up");
    let port = Port::open(&["0.0.0.0:0"], None);
    let send = |to: &str, local: Option<&str>, len: usize| {
        let route = Route { socket: 0, local: local.map(|ip| ip.parse().unwrap()) };
        port.transport.send(Address::Udp(to.parse().unwrap()), route, &vec![0; len].into());
    };
    send("10.1.1.1:9", None, 1);
    assert_eq!(port.count(Count::NoRoute), 1);
    send("127.0.0.1:9", Some("10.5.5.5"), 1);
    assert_eq!(port.count(Count::NoRoute), 2);
    send("127.0.0.1:9", None, 65_508);
    assert_eq!(port.count(Count::TooLong), 1);
    port.transport.broadcast(0, &Bytes::from_static(&[1]));
    assert_eq!(port.count(Count::NotUp), 1);
    // Frames for a neighbour that does not answer ARP wait in the kernel until the socket's buffer is full.
    ip("link add v0 type veth peer name v1");
    ip("addr add 10.1.1.1/24 dev v0");
    ip("link set v0 up");
    ip("link set v1 up");
    std::fs::write("/proc/sys/net/ipv4/neigh/v0/unres_qlen_bytes", "1000000000").unwrap();
    for _ in 0..10_000 {
        send("10.1.1.2:9", None, 1000);
    }
    assert!(port.count(Count::SendFull) > 0);
    assert!(port.count(Count::Sent) > 0);
    assert_eq!(port.count(Count::Sent) + port.count(Count::SendFull), 10_000);
    assert_eq!(port.count(Count::SendFailed), 0);
}

#[tokio::test]
async fn a_transport_that_is_dropped_gives_its_address_back() {
    let port = Port::open(&["127.0.0.1:0"], None);
    port.close().await;
}

/// A transport and what it told the core.
struct Port {
    transport: Transport,
    intake: Intake,
}

struct Received {
    from: SocketAddr,
    route: Route,
    octets: Bytes,
}

impl Port {
    #[track_caller]
    fn open(listen: &[&str], group: Option<Group>) -> Self {
        Self::try_open(&options(listen, group)).unwrap()
    }

    fn try_open(options: &Options) -> Result<Self, OpenError> {
        let (inbox, intake) = inbox();
        Transport::open(PortId(0), options, &inbox).map(|transport| Self { transport, intake })
    }

    /// Drops it and waits until its address is free: its tasks end at their next turn.
    async fn close(self) {
        let addr = self.addr(0);
        drop(self);
        let free = async {
            while UdpSocket::bind(addr).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        soon("the address", free).await;
    }

    fn addr(&self, index: usize) -> SocketAddr {
        self.transport.local_addrs()[index]
    }

    fn count(&self, count: Count) -> u64 {
        self.transport.counters().get(count)
    }

    async fn next(&mut self, what: &'static str) -> Input {
        let mut inputs = Vec::new();
        soon(what, self.intake.recv_many(&mut inputs, 1)).await;
        inputs.remove(0)
    }

    /// The next frame.
    async fn frame(&mut self) -> Received {
        loop {
            if let Input::Frame { from, route, frame } = self.next("a frame").await {
                assert_eq!((from.port, from.node), (PortId(0), None));
                let Address::Udp(from) = from.addr else { panic!("{:?}", from.addr) };
                return Received { from, route, octets: frame };
            }
        }
    }

    fn answer(&self, frame: &Received, octets: &'static [u8]) {
        self.transport.send(Address::Udp(frame.from), frame.route, &Bytes::from_static(octets));
    }

    /// The node, which hears nobody else, says something and gets an answer; returns what it said.
    async fn question_and_answer(&mut self, node: &UdpSocket) -> Received {
        node.send(&[7]).await.unwrap();
        let frame = self.frame().await;
        self.answer(&frame, &[8]);
        assert_eq!(received(node).await, [8]);
        frame
    }

    /// The node says SEARCHGW to whoever hears it there and has GWINFO; returns what it said, and who answered.
    async fn search_and_answer(&mut self, node: &UdpSocket, to: SocketAddr) -> (Received, SocketAddr) {
        node.send_to(&[3, 1, 0], to).await.unwrap();
        let frame = self.frame().await;
        self.answer(&frame, &[3, 2, 9]);
        let mut answer = [0; 9];
        let (len, from) = soon("GWINFO", node.recv_from(&mut answer)).await.unwrap();
        assert_eq!(answer[..len], [3, 2, 9]);
        (frame, from)
    }

    /// The next event, which says that it is up.
    async fn up(&mut self) {
        let input = self.next("up").await;
        assert!(matches!(input, Input::Port(PortId(0), PortEvent::Up)), "{input:?}");
    }
}

fn options(listen: &[&str], group: Option<Group>) -> Options {
    let listen = listen.iter().map(|addr| addr.parse().unwrap()).collect();
    Options::Udp(udp::Options { name: "lan".into(), listen, group })
}

/// Lets the port's tasks run until they have counted nothing more for a while.
async fn idle(port: &Port) {
    let seen = || port.transport.counters().iter().map(|(_, n)| n).sum::<u64>();
    let mut quiet = 0;
    while quiet < 50 {
        let before = seen();
        tokio::task::yield_now().await;
        quiet = if seen() == before { quiet + 1 } else { 0 };
    }
}

fn local(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

/// A node that hears only `gateway`.
async fn node_of(gateway: SocketAddr) -> UdpSocket {
    let any = if gateway.is_ipv4() { local("0.0.0.0", 0) } else { local("::", 0) };
    let node = UdpSocket::bind(any).await.unwrap();
    node.connect(gateway).await.unwrap();
    node
}

/// An interface v0 with the address fe80::5; there is nobody at its other end.
fn link_v0() {
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up addrgenmode none");
    ip("link set v1 up addrgenmode none");
    ip("addr add fe80::5/64 dev v0 nodad");
    // The kernel takes the address in only some time later; a socket connected before would never find it.
    for _ in 0..1000 {
        let known = ip("-6 route show table local").contains("local fe80::5 dev v0");
        if known && ip("link show dev v0").contains("state UP") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("v0 does not come up");
}

fn index_of(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

async fn received(node: &UdpSocket) -> Vec<u8> {
    let mut octets = vec![0; 2000];
    let len = soon("the answer", node.recv(&mut octets)).await.unwrap();
    octets.truncate(len);
    octets
}

fn received_with_hops(node: &socket2::Socket) -> (Vec<u8>, i32) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::os::fd::AsRawFd;

    let (mut octets, mut control) = (vec![0; 2000], nix::cmsg_space!(i32));
    let mut parts = [std::io::IoSliceMut::new(&mut octets)];
    let message =
        recvmsg::<SockaddrStorage>(node.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())
            .unwrap();
    let hops = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::Ipv4Ttl(hops) => Some(hops),
        _ => None,
    });
    let (len, hops) = (message.bytes, hops.unwrap());
    octets.truncate(len);
    (octets, hops)
}
