//! Connections to brokers.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Endpoint, LinkCommand, LinkEvent, LinkFailure, LinkId};
use mqtt_sn_gateway::link::{Certificates, Links, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use crate::apart::{apart, hosts, ip};
use crate::{LIMIT, soon};

const LINK: LinkId = LinkId(7);

#[tokio::test]
async fn octets_go_both_ways() {
    let (mut shell, mut broker) = connected().await;
    shell.command(LinkCommand::Write(Bytes::from_static(b"CONNECT")));
    assert_eq!(shell.event().await, LinkEvent::Drained);
    let mut heard = [0; 7];
    soon("CONNECT", broker.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"CONNECT");
    broker.write_all(b"CONNACK").await.unwrap();
    assert_eq!(shell.octets(7).await, b"CONNACK");
}

#[tokio::test]
async fn nobody_who_listens_is_a_refused_connection() {
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut shell = Shell::new(LIMIT);
    shell.connect(addr);
    let failure = LinkFailure::Connect("connection refused".into());
    assert_eq!(failure.to_string(), "cannot connect: connection refused");
    assert_eq!(shell.event().await, LinkEvent::Closed(failure));
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_in_time() {
    let deaf = Deaf::listen();
    let mut shell = Shell::new(Duration::from_millis(200));
    shell.connect(deaf.addr);
    assert_eq!(shell.event().await, LinkEvent::Closed(LinkFailure::Connect("no answer within 1 s".into())));
}

#[tokio::test]
async fn a_name_without_an_address_is_told_by_its_name() {
    if !apart("link::a_name_without_an_address_is_told_by_its_name") {
        return;
    }
    ip("link set lo up");
    let mut shell = Shell::new(LIMIT);
    shell.links.command(
        LINK,
        LinkCommand::Connect {
            endpoint: Endpoint { host: "broker.invalid".into(), port: 1883, tls: false },
            client: None,
        },
    );
    let LinkEvent::Closed(failure) = shell.event().await else { panic!("broker.invalid has an address") };
    assert!(failure.to_string().starts_with("cannot find broker.invalid: "), "{failure}");
    assert!(!failure.to_string().contains("os error"), "{failure}");
}

#[tokio::test]
async fn a_name_with_several_addresses_is_found_at_any_of_them() {
    if !apart("link::a_name_with_several_addresses_is_found_at_any_of_them") {
        return;
    }
    ip("link set lo up");
    hosts("127.0.0.3 broker.test\n127.0.0.4 broker.test\n::1 broker.test\n");
    for listen in ["127.0.0.3:1883", "127.0.0.4:1883", "[::1]:1883"] {
        let listener = TcpListener::bind(listen).await.unwrap();
        let mut shell = Shell::new(LIMIT);
        let endpoint = Endpoint { host: "broker.test".into(), port: 1883, tls: false };
        shell.links.command(LINK, LinkCommand::Connect { endpoint, client: None });
        assert_eq!(shell.event().await, LinkEvent::Connected, "{listen}");
        soon("the connection", listener.accept()).await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_closes_is_heard_to_the_end() {
    let (mut shell, mut broker) = connected().await;
    broker.write_all(b"the last words").await.unwrap();
    drop(broker);
    assert_eq!(shell.octets(14).await, b"the last words");
    assert_eq!(shell.event().await, LinkEvent::Closed(LinkFailure::Closed));
}

#[tokio::test]
async fn a_reset_is_a_lost_connection() {
    let (mut shell, broker) = connected().await;
    socket2::SockRef::from(&broker).set_linger(Some(Duration::ZERO)).unwrap();
    drop(broker);
    let failure = LinkFailure::Io("connection reset by peer".into());
    assert_eq!(shell.event().await, LinkEvent::Closed(failure));
}

#[tokio::test]
async fn the_last_words_of_a_broker_are_heard_when_writing_fails() {
    // Blocking, so that the task of the link does not run before all has happened.
    let (mut shell, broker) = connected().await;
    let mut broker = broker.into_std().unwrap();
    broker.write_all(b"not authorized").unwrap();
    socket2::SockRef::from(&broker).set_linger(Some(Duration::ZERO)).unwrap();
    drop(broker);
    shell.command(LinkCommand::Write(Bytes::from_static(b"PUBLISH")));
    assert_eq!(shell.octets(14).await, b"not authorized");
    let LinkEvent::Closed(LinkFailure::Io(_)) = shell.event().await else { panic!("still open") };
}

#[tokio::test]
async fn a_broker_that_does_not_read_is_waited_for_and_nothing_is_lost() {
    let (mut shell, mut broker) = connected().await;
    let sent: Bytes = (0..64 << 20).map(|i: u32| (i % 251) as u8).collect();
    shell.command(LinkCommand::Write(sent.clone()));
    for _ in 0..1000 {
        yield_now().await;
    }
    assert!(shell.events.try_recv().is_err(), "it is drained though nobody has read it");
    let mut heard = vec![0; sent.len()];
    soon("all of it", broker.read_exact(&mut heard)).await.unwrap();
    assert!(heard == sent);
    assert_eq!(shell.event().await, LinkEvent::Drained);
}

#[tokio::test]
async fn a_core_that_does_not_listen_makes_the_broker_wait() {
    let (mut shell, broker) = connected().await;
    let sent: Vec<u8> = (0..64 << 20).map(|i: u32| (i % 251) as u8).collect();
    let mut written = 0;
    // Until the broker can write no more for a long while.
    let mut idle = 0;
    while idle < 1000 {
        match broker.try_write(&sent[written..]) {
            Ok(len) => (written, idle) = (written + len, 0),
            Err(_) => idle += 1,
        }
        yield_now().await;
    }
    assert!(written < sent.len(), "all {written} octets are in memory");
    assert!(shell.events.len() <= 128);
    // All that is told later, in order.
    assert_eq!(shell.octets(written).await, sent[..written]);
    broker.try_write(b"more").unwrap();
    assert_eq!(shell.octets(4).await, b"more");
}

#[tokio::test]
async fn an_idle_connection_takes_no_room_in_the_inbox() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut shell = Shell::new(LIMIT);
    let mut brokers = Vec::new();
    // More than there are places in the inbox.
    for id in 0..200 {
        shell.connect_as(LinkId(id), listener.local_addr().unwrap());
        brokers.push(soon("the connection", listener.accept()).await.unwrap().0);
        assert_eq!(shell.event_of(LinkId(id)).await, LinkEvent::Connected);
    }
    brokers[199].write_all(b"hello").await.unwrap();
    assert_eq!(shell.event_of(LinkId(199)).await, LinkEvent::Bytes(Bytes::from_static(b"hello")));
}

#[tokio::test]
async fn close_lets_what_was_written_leave_and_then_says_nothing_more() {
    let (mut shell, mut broker) = connected().await;
    // Octets that the link has not read when it closes: closing now would reset the connection.
    let unread = vec![1; 100_000];
    broker.try_write(&unread).unwrap();
    let sent = Bytes::from(vec![2; 8 << 20]);
    shell.command(LinkCommand::Write(sent.clone()));
    shell.command(LinkCommand::Close);
    let mut heard = Vec::new();
    soon("the end", broker.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard.len(), sent.len());
    drop(broker);
    let Shell { mut links, mut events } = shell;
    while let Ok(report) = events.try_recv() {
        assert!(!links.accept(&report), "{report:?}");
    }
    links.close().await;
    assert!(events.recv().await.is_none());
}

#[tokio::test]
async fn close_waits_for_a_slow_broker_though_it_leaves_octets_unread() {
    let (mut shell, mut broker) = connected().await;
    socket2::SockRef::from(&broker).set_recv_buffer_size(4096).unwrap();
    broker.try_write(&[1; 1000]).unwrap();
    // More than the broker's buffer takes, less than ours: all of it is with the operating system at once.
    let sent = Bytes::from(vec![2; 100_000]);
    shell.command(LinkCommand::Write(sent.clone()));
    shell.command(LinkCommand::Close);
    let ((), heard) = tokio::join!(shell.links.close(), async {
        for _ in 0..100 {
            yield_now().await;
        }
        let mut heard = Vec::new();
        soon("the end", broker.read_to_end(&mut heard)).await.map(|_| heard.len())
    });
    assert_eq!(heard.unwrap(), sent.len());
}

#[tokio::test]
async fn close_ends_a_connection_that_is_not_there_yet() {
    let deaf = Deaf::listen();
    let mut shell = Shell::new(LIMIT);
    shell.connect(deaf.addr);
    yield_now().await;
    shell.command(LinkCommand::Close);
    let Shell { links, mut events } = shell;
    let begun = Instant::now();
    links.close().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(events.recv().await.is_none());
}

#[tokio::test]
async fn a_broker_that_does_not_read_cannot_keep_us_from_stopping() {
    let (mut shell, broker) = connected().await;
    shell.command(LinkCommand::Write(Bytes::from(vec![0; 64 << 20])));
    let begun = Instant::now();
    soon("the end", shell.links.close()).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(broker);
}

#[tokio::test]
async fn commands_and_events_of_connections_that_are_gone_are_counted() {
    let (mut shell, mut broker) = connected().await;
    shell.links.command(LinkId(1), LinkCommand::Write(Bytes::from_static(b"who?")));
    shell.links.command(LinkId(2), LinkCommand::Close);
    assert_eq!(shell.links.stale(), 2);
    broker.write_all(b"late").await.unwrap();
    let late = soon("octets", shell.events.recv()).await.unwrap();
    shell.command(LinkCommand::Close);
    assert!(!shell.links.accept(&late));
    shell.command(LinkCommand::Close);
    assert_eq!(shell.links.stale(), 4);
}

#[tokio::test]
async fn a_connection_that_ended_takes_no_more_commands() {
    let (mut shell, broker) = connected().await;
    drop(broker);
    assert_eq!(shell.event().await, LinkEvent::Closed(LinkFailure::Closed));
    shell.command(LinkCommand::Write(Bytes::from_static(b"?")));
    shell.command(LinkCommand::Close);
    assert_eq!(shell.links.stale(), 2);
}

/// The links and what they tell.
struct Shell {
    links: Links,
    events: mpsc::Receiver<Report>,
}

impl Shell {
    fn new(connect_timeout: Duration) -> Self {
        let (links, events) = Links::new(connect_timeout, Certificates::default());
        Self { links, events }
    }

    fn command(&mut self, command: LinkCommand) {
        self.links.command(LINK, command);
    }

    fn connect(&mut self, addr: SocketAddr) {
        self.connect_as(LINK, addr);
    }

    fn connect_as(&mut self, id: LinkId, addr: SocketAddr) {
        let endpoint = Endpoint { host: addr.ip().to_string(), port: addr.port(), tls: false };
        self.links.command(id, LinkCommand::Connect { endpoint, client: None });
    }

    async fn event(&mut self) -> LinkEvent {
        self.event_of(LINK).await
    }

    async fn event_of(&mut self, id: LinkId) -> LinkEvent {
        let report = soon("an event", self.events.recv()).await.unwrap();
        assert!(self.links.accept(&report), "{report:?}");
        assert_eq!(report.0, id);
        report.1
    }

    /// The next `len` octets, in however many pieces.
    async fn octets(&mut self, len: usize) -> Vec<u8> {
        let mut octets = Vec::new();
        while octets.len() < len {
            match self.event().await {
                LinkEvent::Bytes(more) => octets.extend_from_slice(&more),
                event => panic!("{event:?} after {} of {len} octets", octets.len()),
            }
        }
        octets
    }
}

/// An open link and the broker's end of it.
async fn connected() -> (Shell, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut shell = Shell::new(LIMIT);
    shell.connect(listener.local_addr().unwrap());
    let (broker, _) = soon("the connection", listener.accept()).await.unwrap();
    assert_eq!(shell.event().await, LinkEvent::Connected);
    (shell, broker)
}

/// Listens and answers nobody: its queue of connections is full.
struct Deaf {
    addr: SocketAddr,
    _sockets: (socket2::Socket, Vec<socket2::Socket>),
}

impl Deaf {
    fn listen() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap();
        let waiting = (0..2).map(|_| {
            let socket = socket();
            socket.set_nonblocking(true).unwrap();
            // In progress, for ever.
            let _ = socket.connect(&addr);
            socket
        });
        Self { addr: addr.as_socket().unwrap(), _sockets: (listener, waiting.collect()) }
    }
}
