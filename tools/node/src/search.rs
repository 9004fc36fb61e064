//! `mqtt-sn-node search`.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{Found, Search};
use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use crate::args::SearchArgs;
use crate::failure::Failure;
use crate::serial::Line;
use crate::shell::{Place, Way, open, print_frame};

/// Time from the first SEARCHGW to the second; shorter than §7.2 has it, since somebody is watching.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: SearchArgs) -> Result<(), Failure> {
    let mut end = match args.way() {
        Way::Udp(gateway) => {
            let addresses = gateway.resolve().await?;
            let Some(to) = addresses.front().copied() else { return Err(Failure::NoGateway(args.timeout)) };
            let socket = socket(to, &args).await?;
            End::Udp { connected: socket.peer_addr().is_ok(), socket, to, buffer: vec![0; 65_535] }
        }
        Way::Serial(line) => End::Serial(Box::new(Line::open(&line)?), line.path),
    };
    let mut found = BTreeSet::new();
    match timeout(args.timeout, search(&mut end, &args, &mut found)).await {
        Ok(Err(failure)) => Err(failure),
        Err(_) if found.is_empty() => Err(Failure::NoGateway(args.timeout)),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// A socket towards one host, which hears if nobody listens there, or one towards many.
async fn socket(to: SocketAddr, args: &SearchArgs) -> Result<UdpSocket, Failure> {
    let broadcast = to.ip() == IpAddr::from([255; 4]);
    if !to.ip().is_multicast() && !broadcast {
        match open(to).await {
            // Connecting to the broadcast address of a network is forbidden, and shows that it is one.
            Err(Failure::Socket { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {}
            socket => return socket,
        }
    }
    many(to, args).map_err(|source| Failure::Socket { to, source })
}

fn many(to: SocketAddr, args: &SearchArgs) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let hops = if args.radius == 0 { 255 } else { args.radius.into() };
    match to {
        SocketAddr::V4(_) => {
            socket.bind(&SocketAddr::from(([0; 4], 0)).into())?;
            socket.set_broadcast(true)?;
            socket.set_multicast_ttl_v4(hops)?;
            if let Some(interface) = &args.interface {
                socket.set_multicast_if_v4(interface)?;
            }
        }
        SocketAddr::V6(group) => {
            socket.bind(&SocketAddr::from(([0; 16], 0)).into())?;
            socket.set_multicast_hops_v6(hops)?;
            if group.scope_id() != 0 {
                socket.set_multicast_if_v6(group.scope_id())?;
            }
        }
    }
    UdpSocket::from_std(socket.into())
}

/// Asks, and prints who answers, until there are enough.
async fn search(end: &mut End, args: &SearchArgs, found: &mut BTreeSet<(Place, u8)>) -> Result<(), Failure> {
    let mut search = Search::new(Instant::now(), args.radius, Duration::ZERO, INTERVAL, 0);
    while args.count.is_none_or(|count| (found.len() as u64) < count) {
        search.handle_timeout(Instant::now());
        if let Some(frame) = search.poll_transmit() {
            if args.debug {
                print_frame("->", &frame);
            }
            end.send(&frame).await?;
        }
        let (frame, from) = tokio::select! {
            received = end.recv() => received?,
            () = sleep_until(search.poll_timeout().into()) => continue,
        };
        if args.debug {
            print_frame("<-", &frame);
        }
        if let Some(gateway) = search.handle_frame(&frame)
            && found.insert((from.clone(), gateway.gw_id))
        {
            print(&gateway, &from).map_err(Failure::Stdout)?;
        }
    }
    Ok(())
}

/// Our end of the way to gateways.
enum End {
    Udp { socket: UdpSocket, connected: bool, to: SocketAddr, buffer: Vec<u8> },
    Serial(Box<Line>, PathBuf),
}

impl End {
    async fn send(&mut self, frame: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Udp { socket, connected, to, .. } => {
                let sent =
                    if *connected { socket.send(frame).await } else { socket.send_to(frame, *to).await };
                sent.map(drop).map_err(|error| failure(*to, error))
            }
            Self::Serial(line, path) => {
                line.queue(frame);
                line.flush().await.map_err(|source| Failure::Gone { path: path.clone(), source })
            }
        }
    }

    async fn recv(&mut self) -> Result<(Bytes, Place), Failure> {
        match self {
            Self::Udp { socket, to, buffer, .. } => {
                let (len, from) = socket.recv_from(buffer).await.map_err(|error| failure(*to, error))?;
                Ok((Bytes::copy_from_slice(&buffer[..len]), Place::Udp(from)))
            }
            Self::Serial(line, path) => match line.recv().await {
                Ok(frame) => Ok((frame, Place::Serial(path.clone()))),
                Err(source) => Err(Failure::Gone { path: path.clone(), source }),
            },
        }
    }
}

/// A host without a default route has none to a group either, and needs to be told by which interface.
fn failure(to: SocketAddr, source: io::Error) -> Failure {
    match source.kind() {
        ErrorKind::ConnectionRefused => Failure::Unreachable(to),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable if to.ip().is_multicast() => {
            Failure::NoWay { to, source }
        }
        _ => Failure::Send { to: Place::Udp(to), source },
    }
}

fn print(gateway: &Found, from: &Place) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "gateway {} at {from}", gateway.gw_id)?;
    if let Some(interval) = gateway.advertised_for {
        write!(out, " (advertises every {} s)", interval.as_secs())?;
    }
    if let Some(address) = &gateway.gw_add {
        write!(out, " (known to a node; address {address:02X?})")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_way_to_the_group_is_told_what_to_name() {
        let failure = |to: &str| failure(to.parse().unwrap(), ErrorKind::NetworkUnreachable.into());
        let group = failure("225.1.1.1:1884");
        assert_eq!(group.exit_code(), 69);
        for word in ["225.1.1.1:1884", "-h HOST", "--interface"] {
            assert!(group.to_string().contains(word), "{word} in {group}");
        }
        assert!(matches!(failure("192.0.2.1:1884"), Failure::Send { .. }));
    }
}
