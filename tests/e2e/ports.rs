//! Ports that nobody has.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where ports are picked, by tests of the real program.
const PORTS: Range<u16> = 12_000..32_000;

pub fn free_tcp() -> u16 {
    free(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
}

pub fn free_udp() -> u16 {
    free(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// A port below those that Linux gives to whoever asks for any: who has it loses it to nobody while it restarts.
fn free(can_bind: impl Fn(u16) -> bool) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Each process of tests begins elsewhere.
    let next = || std::process::id().wrapping_mul(997).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let mut ports = std::iter::repeat_with(|| PORTS.start + (next() % PORTS.len() as u32) as u16);
    ports.by_ref().take(PORTS.len()).find(|port| can_bind(*port)).unwrap()
}
