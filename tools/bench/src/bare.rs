//! The least that any gateway does: datagrams in, the same messages as MQTT out over one connection, nothing known of
//! either. It reads as many datagrams with one call as there are, and writes what they came to with one call. And the least
//! that any server of datagrams does: each is sent back.

use std::io::{IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendto, setsockopt, sockopt};

use crate::failure::{Attempt, Failure};
use crate::sensor;

/// Datagrams read with one call.
const BATCH: usize = 64;

/// Octets of the longest datagram.
const DATAGRAM_MAX: usize = 256;

/// Octets of the receive buffer it asks for: as many as the gateway.
const RECEIVE_BUFFER: usize = 4 << 20;

/// CONNECT of MQTT 3.1.1, clean, without keep-alive, as `bare`.
const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04bare";

/// Accepted.
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

/// Relays to a broker until it is ended. Says where it listens.
pub(crate) fn relay(broker: SocketAddr) -> Result<(), Failure> {
    let mut tcp = TcpStream::connect(broker).attempt("connect to the broker")?;
    tcp.set_nodelay(true).attempt("set TCP_NODELAY")?;
    tcp.write_all(CONNECT).attempt("write to the broker")?;
    let mut answer = [0; 4];
    tcp.read_exact(&mut answer).attempt("read the broker's answer")?;
    if answer != CONNACK {
        return Err(Failure::Broker(format!("answered {answer:x?} to CONNECT")));
    }
    let mut out = Vec::with_capacity(BATCH * DATAGRAM_MAX);
    receive(|_, batch| {
        batch.for_each(|(octets, _)| translate(octets, &mut out));
        tcp.write_all(&out).attempt("write to the broker")?;
        out.clear();
        Ok(())
    })
}

/// Sends each datagram back until it is ended. Says where it listens.
pub(crate) fn echo() -> Result<(), Failure> {
    receive(|udp, batch| {
        for (octets, from) in batch {
            let Some(from) = from else { continue };
            // Nobody reads it there: the sensor's socket is full at last.
            let _ = sendto(udp.as_raw_fd(), octets, &from, MsgFlags::MSG_DONTWAIT);
        }
        Ok(())
    })
}

/// Hands on all datagrams that are there, read with one call, and waits in the same call if there are none.
fn receive(
    mut take: impl FnMut(&UdpSocket, &mut dyn Iterator<Item = (&[u8], Option<SockaddrIn>)>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let udp = UdpSocket::bind("127.0.0.1:0").attempt("open a UDP socket")?;
    setsockopt(&udp, sockopt::RcvBuf, &RECEIVE_BUFFER).attempt("set a receive buffer")?;
    println!("listening on udp {}", udp.local_addr().attempt("find the port")?);
    let mut buffers = [[0_u8; DATAGRAM_MAX]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    loop {
        let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        match recvmmsg(udp.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(datagrams) => {
                let mut batch = datagrams.map(|datagram| {
                    let octets = datagram.iovs().next().unwrap_or_default();
                    (octets.get(..datagram.bytes).unwrap_or_default(), datagram.address)
                });
                take(&udp, &mut batch)?;
            }
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
