//! The least that any gateway does: datagrams in, the same messages as MQTT out over one connection, nothing known of
//! either. It reads as many datagrams with one call as there are, and writes what they came to with one call.

use std::io::{IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt};
use std::os::fd::AsFd;

use crate::failure::{Attempt, Failure};
use crate::sensor;

/// Datagrams read with one call.
const BATCH: usize = 64;

/// Octets of the longest datagram.
const DATAGRAM_MAX: usize = 256;

/// CONNECT of MQTT 3.1.1, clean, without keep-alive, as `bare`.
const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04bare";

/// Relays until it is ended. Says where it listens.
pub(crate) fn run(broker: SocketAddr) -> Result<(), Failure> {
    let mut tcp = TcpStream::connect(broker).attempt("connect to the broker")?;
    tcp.set_nodelay(true).attempt("set TCP_NODELAY")?;
    tcp.write_all(CONNECT).attempt("write to the broker")?;
    tcp.read_exact(&mut [0; 4]).attempt("read the broker's answer")?;
    let udp = UdpSocket::bind("127.0.0.1:0").attempt("open a UDP socket")?;
    setsockopt(&udp, sockopt::RcvBuf, &(1 << 20)).attempt("set a receive buffer")?;
    println!("listening on udp {}", udp.local_addr().attempt("find the port")?);

    let mut buffers = vec![[0_u8; DATAGRAM_MAX]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut out = Vec::with_capacity(BATCH * DATAGRAM_MAX);
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(udp.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
            Ok(datagrams) => {
                for datagram in datagrams {
                    let octets = datagram.iovs().next().unwrap_or_default();
                    let octets = octets.get(..datagram.bytes).unwrap_or_default();
                    translate(octets, &mut out);
                }
                tcp.write_all(&out).attempt("write to the broker")?;
                out.clear();
            }
            Err(Errno::EAGAIN) => wait(&udp)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).attempt("read datagrams"),
        }
    }
}

/// A PUBLISH of MQTT-SN with QoS 0 as one of MQTT; whatever else comes is dropped.
fn translate(datagram: &[u8], out: &mut Vec<u8>) {
    let [_, 0x0C, _, _, _, _, _, payload @ ..] = datagram else { return };
    let topic = sensor::TOPIC.as_bytes();
    let Ok(remaining) = u8::try_from(2 + topic.len() + payload.len()) else { return };
    out.extend([0x30, remaining, 0, topic.len() as u8]);
    out.extend(topic);
    out.extend(payload);
}

fn wait(udp: &UdpSocket) -> Result<(), Failure> {
    let mut wanted = [PollFd::new(udp.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(Duration::from_secs(1)).unwrap_or(PollTimeout::NONE);
    match poll(&mut wanted, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).attempt("wait for datagrams"),
    }
}
