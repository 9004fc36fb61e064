//! A [`Node`] with a socket and a clock.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{Event, Loss, Node, Options};
use mqtt_sn_gateway::wire::{ReturnCode, decode};
use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use crate::failure::Failure;

/// Octets in the largest datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Frames kept to say them again at the next address, while no address has answered.
const UNHEARD_MAX: usize = 16;

/// Where a gateway is.
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

/// A node, and the socket to its gateway.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) node: Node,
    /// The node falls asleep whenever it has nothing to do, and tells the gateway this.
    pub(crate) sleep: Option<Duration>,
    attempts: u32,
    interval: Duration,
    socket: UdpSocket,
    to: SocketAddr,
    /// Further addresses of the host, tried while the one before is unreachable and none has answered.
    others: VecDeque<SocketAddr>,
    unheard: Vec<Bytes>,
    heard: bool,
    /// A frame on its way into the socket; here, so that [`Shell::event`] may be dropped at any time.
    sending: Option<Bytes>,
    buffer: Vec<u8>,
    debug: bool,
}

impl Shell {
    pub(crate) async fn open(gateway: &Gateway, options: Options, debug: bool) -> Result<Self, Failure> {
        Self::towards(gateway.resolve().await?, options, debug).await
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
        Ok(Self {
            attempts: options.retry_limit + 1,
            interval: options.retry_interval,
            node: Node::new(options),
            sleep: None,
            socket: open(to).await?,
            to,
            others,
            unheard: Vec::new(),
            heard: false,
            sending: None,
            buffer: vec![0; DATAGRAM_MAX],
            debug,
        })
    }

    /// Who is spoken to.
    pub(crate) fn to(&self) -> SocketAddr {
        self.to
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
        let to = self.to;
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
                received = self.socket.recv(&mut self.buffer) => match received {
                    Ok(len) => self.handle_frame(len),
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
            let Some(frame) = self.sending.clone() else { return Ok(()) };
            let sent = self.socket.send(&frame).await;
            self.sending = None;
            if self.debug {
                print_frame("->", &frame);
            }
            if !self.heard && self.unheard.len() < UNHEARD_MAX {
                self.unheard.push(frame.clone());
            }
            if let Err(error) = sent {
                self.handle_error(error, frame.len()).await?;
            }
        }
    }

    /// Whether the host has answered by now that nobody listens; for those who expect no other answer.
    pub(crate) async fn check(&mut self) -> Result<(), Failure> {
        while let Ok(Some(error)) = self.socket.take_error() {
            self.handle_error(error, 0).await?;
        }
        Ok(())
    }

    /// Ends the connection, with the patience of one T_RETRY: it matters little whether the gateway hears it.
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

    fn handle_frame(&mut self, len: usize) {
        self.heard = true;
        self.unheard.clear();
        if self.debug {
            print_frame("<-", &self.buffer[..len]);
        }
        self.node.handle_frame(Instant::now(), &self.buffer[..len]);
    }

    /// Port unreachable: try the next address, or say so if nobody has ever answered. Later it is a gateway that is away
    /// for a moment, and the node deals with that.
    async fn handle_error(&mut self, error: io::Error, octets: usize) -> Result<(), Failure> {
        let to = self.to;
        match error.kind() {
            ErrorKind::ConnectionRefused if self.heard => Ok(()),
            ErrorKind::ConnectionRefused => {
                let Some(next) = self.others.pop_front() else { return Err(Failure::Unreachable(to)) };
                self.socket = open(next).await?;
                self.to = next;
                for frame in std::mem::take(&mut self.unheard) {
                    let _ = self.socket.send(&frame).await;
                    self.unheard.push(frame);
                }
                Ok(())
            }
            _ if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => {
                Err(Failure::TooLong { to, octets })
            }
            _ if self.heard => Ok(()),
            _ => Err(Failure::Send { to, source: error }),
        }
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
        assert_eq!(shell.to(), there);

        let mut shell = Shell::towards([nobody, nobody].into(), options, false).await.unwrap();
        assert!(matches!(shell.connect().await, Err(Failure::Unreachable(to)) if to == nobody));
    }
}
