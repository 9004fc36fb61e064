//! A datagram on its way out: from which of our addresses, by which interface, how many hops far.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use bytes::BufMut;
use nix::errno::Errno;
use nix::libc::{IP_PKTINFO, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_PKTINFO, MSG_DONTWAIT};
use socket2::{MsgHdr, SockAddr, SockRef};

use crate::transport::Count;

/// Where one datagram goes and how.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The address of ours it leaves from; `None`: the socket's or the route's.
    pub(super) from: Option<IpAddr>,
    /// The interface it leaves by; 0: the route's.
    pub(super) interface: u32,
    /// How many hops it may travel; `None`: the system's default.
    pub(super) hops: Option<u8>,
}

impl Outgoing {
    pub(super) fn send(&self, socket: &UdpSocket, frame: &[u8]) -> Result<(), Errno> {
        let control = self.control();
        let (to, buffers) = (SockAddr::from(self.to), [IoSlice::new(frame)]);
        let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(control.octets());
        // Not by the readiness that tokio keeps: it is known only once somebody has waited for it.
        let sent = SockRef::from(socket).sendmsg(&message, MSG_DONTWAIT);
        sent.map(drop).map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
    }

    /// `in_pktinfo` of `ip(7)` is the interface, the address to send from, and one that counts only for what was received;
    /// `in6_pktinfo` of `ipv6(7)` the address and the interface.
    fn control(&self) -> Control {
        let hops: Option<[u8; 4]> = self.hops.map(|hops| i32::from(hops).to_ne_bytes());
        let mut control = Control { octets: [0; ROOM], len: 0 };
        match self.to {
            SocketAddr::V4(_) => {
                let from = if let Some(IpAddr::V4(from)) = self.from { from } else { Ipv4Addr::UNSPECIFIED };
                let interface = self.interface.to_ne_bytes();
                control.add(IPPROTO_IP, IP_PKTINFO, [&interface, &from.octets(), &[0; 4]]);
                if let Some(hops) = &hops {
                    control.add(IPPROTO_IP, IP_TTL, [hops]);
                }
            }
            SocketAddr::V6(to) => {
                let from = if let Some(IpAddr::V6(from)) = self.from { from } else { Ipv6Addr::UNSPECIFIED };
                // A link-local address of ours is one only on its interface.
                let interface = if self.interface == 0 { to.scope_id() } else { self.interface };
                control.add(IPPROTO_IPV6, IPV6_PKTINFO, [&from.octets(), &interface.to_ne_bytes()]);
                if let Some(hops) = &hops {
                    control.add(IPPROTO_IPV6, IPV6_HOPLIMIT, [hops]);
                }
            }
        }
        control
    }
}

/// Octets of packet information of IPv6 and a number of hops, each with its header.
const ROOM: usize = 2 * Control::HEADER + 24 + 8;

/// Control messages (`cmsg(3)`), made where they are used: a datagram takes no memory but its frame's.
#[derive(Debug)]
struct Control {
    octets: [u8; ROOM],
    len: usize,
}

impl Control {
    /// Of the length, the level and the type.
    const HEADER: usize = size_of::<usize>() + 2 * size_of::<i32>();

    fn add<const N: usize>(&mut self, level: i32, kind: i32, data: [&[u8]; N]) {
        let len = Self::HEADER + data.iter().map(|part| part.len()).sum::<usize>();
        let mut room = &mut self.octets[self.len..];
        room.put_slice(&len.to_ne_bytes());
        room.put_i32_ne(level);
        room.put_i32_ne(kind);
        data.iter().for_each(|part| room.put_slice(part));
        self.len += len.next_multiple_of(size_of::<usize>());
    }

    fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// What became of a datagram that could not be sent.
pub(super) fn failure(errno: Errno) -> Count {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Count::SendFull,
        Errno::EMSGSIZE => Count::TooLong,
        // EINVAL: the address to send from is not ours any more, or the one to send to is none.
        Errno::ENETUNREACH
        | Errno::EHOSTUNREACH
        | Errno::ENETDOWN
        | Errno::EHOSTDOWN
        | Errno::EADDRNOTAVAIL
        | Errno::ENODEV
        | Errno::EINVAL => Count::NoRoute,
        _ => Count::SendFailed,
    }
}
