//! The way from gateways to their broker, cut or held up at chosen packets. Of MQTT it knows where a packet ends and which
//! it is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use crate::process::PATIENCE;

/// Passes on connections to a broker. Its threads end with the test.
pub struct Cutter {
    pub port: u16,
    way: Arc<Way>,
}

/// Who sends a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Gateway,
    Broker,
}

/// Packets from one end whose first octet is `first` under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub from: End,
    first: u8,
    mask: u8,
}

impl Kind {
    /// The type of a packet, as in the high half of its first octet.
    pub const fn of(from: End, packet_type: u8) -> Self {
        Self { from, first: packet_type << 4, mask: 0xF0 }
    }

    /// PUBLISH of this QoS, as a copy or not.
    pub const fn publish(from: End, qos: u8) -> Self {
        Self { from, first: 0x30 | qos << 1, mask: 0xF6 }
    }

    fn is(self, from: End, packet: &[u8]) -> bool {
        self.from == from && packet[0] & self.mask == self.first
    }
}

/// How much of a packet passes before the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Before,
    Middle,
    After,
}

/// What happens at a cut, before either end can know of it.
type Blow = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Way {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where the next cut is to be.
    cut: Option<(Kind, At, Blow)>,
    /// What does not pass for now, and all behind it.
    withheld: Vec<Kind>,
    /// Packets that wait for that.
    waiting: usize,
    is_away: bool,
    connections: Vec<Weak<Connection>>,
}

struct Connection {
    near: TcpStream,
    far: TcpStream,
    is_cut: AtomicBool,
}

impl Cutter {
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::<Way>::default();
        let theirs = way.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                theirs.open(near, broker);
            }
        });
        Self { port, way }
    }

    /// Cuts the connection on which the next such packet is sent, once. `blow` falls in that moment.
    pub fn arm(&self, kind: Kind, at: At, blow: impl FnOnce() + Send + 'static) {
        self.way.state().cut = Some((kind, at, Box::new(blow)));
    }

    /// Closes every connection; new ones are made.
    pub fn cut(&self) {
        let open = std::mem::take(&mut self.way.state().connections);
        open.iter().filter_map(Weak::upgrade).for_each(|connection| connection.close());
        self.way.changed.notify_all();
    }

    /// From here on the broker is out of reach.
    pub fn leave(&self) {
        self.way.state().is_away = true;
        self.cut();
    }

    pub fn come_back(&self) {
        self.way.state().is_away = false;
    }

    /// Such packets wait from now on, and all that come behind them.
    pub fn withhold(&self, kinds: &[Kind]) {
        self.way.state().withheld = kinds.to_vec();
    }

    /// Returns when a packet waits.
    #[track_caller]
    pub fn wait_for_withheld(&self) {
        let waits = |state: &mut State| state.waiting == 0;
        let waited = self.way.changed.wait_timeout_while(self.way.state(), PATIENCE, waits).unwrap();
        assert!(!waited.1.timed_out(), "no packet to withhold has come");
    }

    /// What waits passes, as does all that comes.
    pub fn release(&self) {
        self.way.state().withheld.clear();
        self.way.changed.notify_all();
    }
}

impl Way {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn open(self: &Arc<Self>, near: TcpStream, broker: u16) {
        let mut state = self.state();
        if state.is_away {
            return;
        }
        let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { return };
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let connection = Arc::new(Connection { near, far, is_cut: AtomicBool::new(false) });
        state.connections.retain(|connection| connection.strong_count() > 0);
        state.connections.push(Arc::downgrade(&connection));
        for from in [End::Gateway, End::Broker] {
            let (way, connection) = (self.clone(), connection.clone());
            thread::spawn(move || way.carry(from, &connection));
        }
    }

    /// Carries what one end sends, until either end closes.
    fn carry(&self, from: End, connection: &Connection) {
        let (mut source, sink) = connection.ends(from);
        let (mut octets, mut buffer) = (Vec::new(), [0; 16 << 10]);
        while let Ok(len @ 1..) = source.read(&mut buffer) {
            octets.extend_from_slice(&buffer[..len]);
            while let Some(len) = packet_len(&octets) {
                let packet: Vec<u8> = octets.drain(..len).collect();
                self.pass(from, &packet, connection);
            }
        }
        // Of a connection that was cut nothing is closed here: the other side is woken, and the last one out resets it.
        let how = if connection.is_cut() { Shutdown::Read } else { Shutdown::Both };
        let _ = sink.shutdown(how);
        connection.is_cut.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn pass(&self, from: End, packet: &[u8], connection: &Connection) {
        let mut state = self.state();
        while state.withheld.iter().any(|kind| kind.is(from, packet)) && !connection.is_cut() {
            state.waiting += 1;
            self.changed.notify_all();
            (state, _) = self.changed.wait_timeout(state, Duration::from_secs(1)).unwrap();
            state.waiting -= 1;
        }
        if connection.is_cut() {
            return;
        }
        let (_, mut sink) = connection.ends(from);
        let Some((_, at, blow)) = state.cut.take_if(|(kind, ..)| kind.is(from, packet)) else {
            drop(state);
            let _ = sink.write_all(packet);
            return;
        };
        drop(state);
        connection.is_cut.store(true, Ordering::SeqCst);
        let passes = match at {
            At::Before => 0,
            At::Middle => packet.len() / 2,
            At::After => packet.len(),
        };
        let _ = sink.write_all(&packet[..passes]);
        blow();
        connection.sever(from);
    }
}

impl Connection {
    /// Where it is read, and where it is written.
    fn ends(&self, from: End) -> (&TcpStream, &TcpStream) {
        match from {
            End::Gateway => (&self.near, &self.far),
            End::Broker => (&self.far, &self.near),
        }
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        let _ = self.near.shutdown(Shutdown::Both);
        let _ = self.far.shutdown(Shutdown::Both);
    }

    /// An orderly end for the one who was sent to, so that what has passed arrives; a reset for the one who sent, as soon as the
    /// other has closed, too.
    fn sever(&self, from: End) {
        let (source, sink) = self.ends(from);
        let _ = sink.shutdown(Shutdown::Write);
        let _ = socket2::SockRef::from(source).set_linger(Some(Duration::ZERO));
    }
}

/// How long the packet is that these octets begin with, if it is complete.
fn packet_len(octets: &[u8]) -> Option<usize> {
    let mut len = 0;
    for (at, octet) in octets.iter().enumerate().skip(1).take(4) {
        len |= usize::from(octet & 0x7F) << (7 * (at - 1));
        if octet & 0x80 == 0 {
            let len = at + 1 + len;
            return (octets.len() >= len).then_some(len);
        }
    }
    None
}
