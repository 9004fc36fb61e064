//! A long way to the broker: octets of either direction arrive a while after they were sent, and in any number.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Attempt, Failure};

/// Octets that are under way together.
const READ_MAX: usize = 64 << 10;

/// Relays every connection to `broker`, each octet later by `delay`; the address to connect to. It goes on until the program ends.
pub(crate) fn relay(broker: SocketAddr, delay: Duration) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).attempt("listen for the delayed way")?;
    let addr = listener.local_addr().attempt("find the port of the delayed way")?;
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(broker) else { continue };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                carry(from, to, delay);
            }
        }
    });
    Ok(addr)
}

fn carry(mut from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, receiver) = channel();
    thread::spawn(move || deliver(&receiver, to));
    thread::spawn(move || {
        let mut buffer = vec![0; READ_MAX];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    let octets = buffer.get(..len).unwrap_or_default().to_vec();
                    if sender.send((Instant::now() + delay, octets)).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
}

fn deliver(octets: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    // Whichever side closes, the other is told by the end of the way.
    let _ = to.set_nodelay(true);
    for (due, octets) in octets {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&octets).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
