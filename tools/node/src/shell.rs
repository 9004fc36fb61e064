//! A [`Node`] with a socket or a serial line, and a clock.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{Event, Loss, Node, Options};
use mqtt_sn_gateway::wire::{ReturnCode, decode};
use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use crate::failure::Failure;
use crate::serial::{self, Line};

/// Octets in the largest datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Frames kept to say them again at the next address, while no address has answered.
const UNHEARD_MAX: usize = 16;

/// How a gateway is reached.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Udp(Gateway),
    Serial(serial::Options),
}

/// Who is spoken to, for messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Udp(SocketAddr),
    Serial(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(addr) => addr.fmt(f),
            Self::Serial(path) => path.display().fmt(f),
        }
    }
}

/// Where a gateway is that has a socket.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Gateway {
    /// Its addresses, at least one.
    pub(crate) async fn resolve(&self) -> Result<VecDeque<SocketAddr>, Failure> {
        let failed = |source| Failure::Resolve { host: self.host.clone(), source };
        // Brackets are how addresses of IPv6 are written elsewhere.
        let host = self.host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&self.host);
        let addresses: VecDeque<_> =
            tokio::net::lookup_host((host, self.port)).await.map_err(failed)?.collect();
        if addresses.is_empty() {
            return Err(failed(io::Error::new(ErrorKind::NotFound, "it has no address")));
        }
        Ok(addresses)
    }
}

/// A UDP socket that speaks with `to` and hears of nobody else, but of ICMP that nobody is there.
pub(crate) async fn open(to: SocketAddr) -> Result<UdpSocket, Failure> {
    let local: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let failed = |source| Failure::Socket { to, source };
    let socket = UdpSocket::bind(local).await.map_err(failed)?;
    socket.connect(to).await.map_err(failed)?;
    Ok(socket)
}

/// Prints a frame to stderr, for `-d`.
pub(crate) fn print_frame(arrow: &str, frame: &[u8]) {
    match decode(frame) {
        Ok(frame) => eprintln!("{arrow} {frame}"),
        Err(error) => eprintln!("{arrow} not a frame, {error}: {frame:02X?}"),
    }
}

/// A node, and the way to its gateway.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) node: Node,
    /// The node falls asleep whenever it has nothing to do, and tells the gateway this.
    pub(crate) sleep: Option<Duration>,
    attempts: u32,
    interval: Duration,
    end: End,
    heard: bool,
    /// A frame on its way out; here, so that [`Shell::event`] may be dropped at any time.
    sending: Option<Bytes>,
    debug: bool,
}

/// Our end of the way.
#[derive(Debug)]
enum End {
    Udp(Socket),
    Serial(Box<Line>, PathBuf),
}

#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    to: SocketAddr,
    /// Further addresses of the host, tried while the one before is unreachable and none has answered.
    others: VecDeque<SocketAddr>,
    unheard: Vec<Bytes>,
    buffer: Vec<u8>,
}

impl Shell {
    pub(crate) async fn open(way: &Way, options: Options, debug: bool) -> Result<Self, Failure> {
        match way {
            Way::Udp(gateway) => Self::towards(gateway.resolve().await?, options, debug).await,
            Way::Serial(line) => {
                let end = End::Serial(Box::new(Line::open(line)?), line.path.clone());
                Ok(Self::new(end, options, debug))
            }
        }
    }

    /// A shell for a gateway at one of these addresses, of which there is one or more.
    async fn towards(
        mut others: VecDeque<SocketAddr>,
        options: Options,
        debug: bool,
    ) -> Result<Self, Failure> {
        let Some(to) = others.pop_front() else {
            return Err(Failure::Usage("a host without an address".into()));
        };
        let socket = open(to).await?;
        let socket = Socket { socket, to, others, unheard: Vec::new(), buffer: vec![0; DATAGRAM_MAX] };
        Ok(Self::new(End::Udp(socket), options, debug))
    }

    fn new(end: End, options: Options, debug: bool) -> Self {
        Self {
            attempts: options.retry_limit + 1,
            interval: options.retry_interval,
            node: Node::new(options),
            sleep: None,
            end,
            heard: false,
            sending: None,
            debug,
        }
    }

    /// Who is spoken to.
    pub(crate) fn to(&self) -> Place {
        match &self.end {
            End::Udp(socket) => Place::Udp(socket.to),
            End::Serial(_, path) => Place::Serial(path.clone()),
        }
    }

    /// How often a request is sent before the node gives up.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether anything has come from there.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard
    }

    /// Connects for the first time.
    pub(crate) async fn connect(&mut self) -> Result<(), Failure> {
        self.node.connect(Instant::now());
        loop {
            match self.event().await? {
                Event::Connected => return Ok(()),
                event => self.report(event, false)?,
            }
        }
    }

    /// What an event means to whoever waits for another one: a line for the terminal if the node goes on by itself, else
    /// the end.
    pub(crate) fn report(&self, event: Event, goes_on: bool) -> Result<(), Failure> {
        let to = self.to();
        let failure = match event {
            Event::ConnectRefused(code) => Failure::ConnectRefused { to, code },
            Event::ConnectionLost(Loss::NoAnswer) => Failure::NoAnswer { to, attempts: self.attempts },
            Event::ConnectionLost(loss) => Failure::Lost(loss),
            _ => return Ok(()),
        };
        if !goes_on || matches!(event, Event::ConnectRefused(code) if code != ReturnCode::Congestion) {
            return Err(failure);
        }
        eprintln!("mqtt-sn-node: {}; trying again", crate::chain(&failure));
        Ok(())
    }

    /// What happens next. May be dropped and called again.
    pub(crate) async fn event(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(sleep) = self.sleep
                && self.node.is_idle()
            {
                self.node.sleep(Instant::now(), sleep);
            }
            self.flush().await?;
            if let Some(event) = self.node.poll_event() {
                return Ok(event);
            }
            let deadline = self.node.poll_timeout();
            let timeout = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.end.recv() => match received {
                    Ok(frame) => self.handle_frame(&frame),
                    Err(error) => self.handle_error(error, 0).await?,
                },
                () = timeout => self.node.handle_timeout(Instant::now()),
            }
        }
    }

    /// Sends what the node wants to send.
    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        loop {
            if self.sending.is_none() {
                self.sending = self.node.poll_transmit();
            }
            let frame = self.sending.clone();
            let sent = match (&mut self.end, &frame) {
                (End::Udp(socket), Some(frame)) => socket.send(frame, self.heard).await,
                (End::Udp(_), None) => return Ok(()),
                (End::Serial(line, _), frame) => {
                    if let Some(frame) = frame {
                        line.queue(frame);
                        self.sending = None;
                    }
                    line.flush().await
                }
            };
            self.sending = None;
            let Some(frame) = frame else { return sent.map_err(|source| self.gone(source)) };
            if self.debug {
                print_frame("->", &frame);
            }
            if let Err(error) = sent {
                self.handle_error(error, frame.len()).await?;
            }
        }
    }

    /// Whether the host has answered by now that nobody listens; for those who expect no other answer.
    pub(crate) async fn check(&mut self) -> Result<(), Failure> {
        while let End::Udp(socket) = &self.end
            && let Ok(Some(error)) = socket.socket.take_error()
        {
            self.handle_error(error, 0).await?;
        }
        Ok(())
    }

    /// End the connection, with the patience of one T_RETRY: it matters little whether the gateway hears it.
    /// What happens meanwhile is handed to `take`.
    pub(crate) async fn disconnect(&mut self, mut take: impl FnMut(Event)) -> Result<(), Failure> {
        self.node.disconnect(Instant::now());
        let interval = self.interval;
        let disconnected = async {
            loop {
                match self.event().await? {
                    Event::Disconnected => return Ok(()),
                    event => take(event),
                }
            }
        };
        timeout(interval, disconnected).await.unwrap_or(Ok(()))
    }

    fn handle_frame(&mut self, frame: &[u8]) {
        self.heard = true;
        if self.debug {
            print_frame("<-", frame);
        }
        self.node.handle_frame(Instant::now(), frame);
    }

    /// A serial line that fails is not there any more.
    fn gone(&self, source: io::Error) -> Failure {
        match &self.end {
            End::Udp(socket) => Failure::Send { to: Place::Udp(socket.to), source },
            End::Serial(_, path) => Failure::Gone { path: path.clone(), source },
        }
    }

    /// Port unreachable: try the next address, or say so if nobody has ever answered. Later it is a gateway that is away
    /// for a moment, and the node deals with that.
    async fn handle_error(&mut self, error: io::Error, octets: usize) -> Result<(), Failure> {
        let End::Udp(socket) = &mut self.end else { return Err(self.gone(error)) };
        match error.kind() {
            ErrorKind::ConnectionRefused if self.heard => Ok(()),
            ErrorKind::ConnectionRefused => socket.turn_to_next().await,
            _ if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => {
                Err(Failure::TooLong { to: socket.to, octets })
            }
            _ if self.heard => Ok(()),
            _ => Err(self.gone(error)),
        }
    }
}

impl End {
    /// The next frame. May be dropped and called again.
    async fn recv(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Udp(Socket { socket, buffer, .. }) => {
                let len = socket.recv(buffer).await?;
                Ok(Bytes::copy_from_slice(&buffer[..len]))
            }
            Self::Serial(line, _) => line.recv().await,
        }
    }
}

impl Socket {
    async fn send(&mut self, frame: &Bytes, heard: bool) -> io::Result<()> {
        let sent = self.socket.send(frame).await;
        if heard {
            self.unheard.clear();
        } else if self.unheard.len() < UNHEARD_MAX {
            self.unheard.push(frame.clone());
        }
        sent.map(drop)
    }

    /// Says everything again at the next address of the host.
    async fn turn_to_next(&mut self) -> Result<(), Failure> {
        let Some(next) = self.others.pop_front() else { return Err(Failure::Unreachable(self.to)) };
        self.socket = open(next).await?;
        self.to = next;
        for frame in std::mem::take(&mut self.unheard) {
            let _ = self.socket.send(&frame).await;
            self.unheard.push(frame);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mqtt_sn_gateway::topic::ClientId;

    use super::*;

    #[tokio::test]
    async fn the_next_address_of_a_host_is_tried_where_nobody_listens_at_the_first() {
        let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let there = gateway.local_addr().unwrap();
        let options = Options::new(ClientId::new("c1").unwrap());

        let mut shell = Shell::towards([nobody, there].into(), options.clone(), false).await.unwrap();
        let answer = async {
            let mut buffer = [0; 64];
            let (len, from) = gateway.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..len], [8, 4, 4, 1, 0, 60, b'c', b'1']);
            gateway.send_to(&[3, 5, 0], from).await.unwrap();
            Ok(())
        };
        tokio::try_join!(shell.connect(), answer).unwrap();
        assert_eq!(shell.to(), Place::Udp(there));

        let mut shell = Shell::towards([nobody, nobody].into(), options, false).await.unwrap();
        assert!(matches!(shell.connect().await, Err(Failure::Unreachable(to)) if to == nobody));
    }
}
