//! The broker as the gateway sees it: a port that a row can take away and give back, and a record of every packet of the
//! gateway's. Behind it stands the stub, or a real broker to which every octet goes as it is, and the other way.
//! Threads and blocking sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet};
use socket2::{Domain, Socket, Type};

use crate::combination::{self, Combination, Protocol};
use crate::dialect::{self, Heard, Version};
use crate::real::Real;
use crate::script::{Ack, Delivery, Kind, Message, Whose};
use crate::stub::{Act, Stub};

/// Publications on this topic only show that the gateway reaches the broker; no row sees them.
pub(crate) const PROBE_TOPIC: &str = "~~";

/// How long a gateway may take to notice that a connection is gone.
const NOTICE: Duration = Duration::from_secs(5);

/// How long a real broker may take to send to the gateway what it has sent to the test's own client.
const BRINGING: Duration = Duration::from_secs(1);

/// The broker. Everything ends with it.
pub(crate) struct Broker {
    addr: SocketAddr,
    /// See [`reserved`]: nobody else is given it while the broker is down.
    _port: Socket,
    shared: Arc<Shared>,
    real: Option<Real>,
}

struct Shared {
    /// Where octets go; none: the stub answers.
    behind: Option<SocketAddr>,
    /// The stub knows MQTT 5.
    modern: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    answered: Vec<Answered>,
    /// SUBSCRIBEs and UNSUBSCRIBEs that a real broker has dealt with, by connection and packet id.
    settled: BTreeSet<(u64, u16)>,
    /// Messages that a real broker has sent to the gateway.
    brought: usize,
    links: BTreeMap<u64, Link>,
    opened: u64,
    listener: Option<Socket>,
    probes: usize,
    stub: Stub,
}

/// A packet from the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    link: u64,
    pub(crate) whose: Whose,
    pub(crate) packet: Packet,
    /// CONNECT: the session is to outlive the connection.
    pub(crate) kept: bool,
    /// A row has asked for it, or it came before the row's steps.
    pub(crate) named: bool,
}

/// An answer of a real broker's.
#[derive(Debug)]
struct Answered {
    whose: Whose,
    ack: Ack,
    code: u8,
    named: bool,
}

/// A connection of the gateway's.
struct Link {
    stream: TcpStream,
    whose: Whose,
    version: Option<Version>,
    /// In seconds; 0: none.
    keep_alive: u16,
}

impl Broker {
    /// A broker for this combination, not listening yet.
    pub(crate) fn new(combination: Combination) -> Result<Self, String> {
        let real = match combination.broker {
            combination::Kind::Stub => None,
            combination::Kind::Mosquitto => Some(Real::mosquitto()?),
            combination::Kind::Embedded => Some(Real::embedded()?),
        };
        Ok(Self::before(real, combination.protocol == Protocol::V5))
    }

    /// The stub.
    pub(crate) fn stub() -> Self {
        Self::before(None, true)
    }

    fn before(real: Option<Real>, modern: bool) -> Self {
        let (port, addr) = reserved(Ipv4Addr::LOCALHOST).unwrap();
        let behind = real.as_ref().map(Real::addr);
        let shared = Shared { behind, modern, state: Mutex::default(), changed: Condvar::new() };
        Self { addr, _port: port, shared: Arc::new(shared), real }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn refuse(&self, code: u8) {
        self.state().stub.refuse(code);
    }

    pub(crate) fn up(&self) {
        let listener = bound(self.addr);
        listener.listen(16).unwrap();
        self.state().listener = Some(listener.try_clone().unwrap());
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || accept(&listener.into(), &shared));
    }

    /// Refuses connections and drops those there are; returns when the gateway has noticed.
    pub(crate) fn down(&self) {
        if let Some(listener) = self.state().listener.take() {
            // Wakes the thread that accepts, which then lets go of the other handle.
            let _ = listener.shutdown(Shutdown::Both);
        }
        self.close_where(|_| true);
    }

    /// Drops a connection; returns when the gateway has noticed.
    pub(crate) fn close(&self, whose: &Whose) {
        self.close_where(|link| link.whose == *whose);
    }

    fn close_where(&self, mut is_meant: impl FnMut(&Link) -> bool) {
        let mut state = self.state();
        let mut closed = Vec::new();
        for (id, link) in state.links.iter().filter(|(_, link)| is_meant(link)) {
            let _ = link.stream.shutdown(Shutdown::Write);
            closed.push(*id);
        }
        let deadline = Instant::now() + NOTICE;
        while closed.iter().any(|link| state.links.contains_key(link)) && Instant::now() < deadline {
            state = self.shared.changed.wait_timeout(state, NOTICE).unwrap().0;
        }
        drop(state);
        // The gateway's socket is closed; its core hears of it a moment later.
        thread::sleep(Duration::from_millis(50));
    }

    /// A real broker cannot be told to.
    pub(crate) fn withhold(&self, whose: &Whose, ack: Ack) {
        self.state().stub.withhold(whose.clone(), ack);
    }

    /// Gives the oldest answer of this kind that is held back; waits for the packet to arrive, if need be. A real broker gives
    /// it by itself and is waited for.
    pub(crate) fn answer(&self, whose: &Whose, ack: Ack, code: u8, patience: Duration) -> Result<(), String> {
        let is_real = self.real.is_some();
        let given = self.wait_for_state(patience, |state| {
            if is_real {
                let oldest =
                    |given: &&mut Answered| !given.named && given.whose == *whose && given.ack == ack;
                let given = state.answered.iter_mut().find(oldest)?;
                given.named = true;
                return Some(given.code);
            }
            state.stub.answer(whose, ack, code).then(|| {
                state.perform();
                code
            })
        });
        match given {
            Some(given) if given == code => Ok(()),
            Some(given) => Err(format!("the broker answers {ack:?} by {given:#04X}")),
            None if is_real => Err(format!("the broker has not answered {ack:?} on the link of {}", whose.0)),
            None => Err(format!("nothing has come from {} that the broker could answer: {ack:?}", whose.0)),
        }
    }

    /// Retains a message.
    pub(crate) fn hold(&self, message: Message, before_suback: bool) -> Result<(), String> {
        match &self.real {
            Some(real) => real.publish(&message),
            None => {
                self.state().stub.hold(message, before_suback);
                Ok(())
            }
        }
    }

    /// Sends a message to whoever has subscribed to it, or to everybody, which only the stub does. How many that were, if
    /// that is known.
    pub(crate) fn publish(&self, message: &Message, delivery: Delivery) -> Result<Option<usize>, String> {
        if let Some(real) = &self.real {
            let before = self.state().brought;
            real.publish(message)?;
            if delivery == Delivery::Subscribers {
                // Nobody may have subscribed, or who has may be away.
                self.wait_for_state(BRINGING, |state| (state.brought > before).then_some(()));
            }
            return Ok(None);
        }
        let mut state = self.state();
        let reached = state.stub.publish(message, delivery);
        state.perform();
        Ok(Some(reached))
    }

    /// Waits for the gateway to have sent something that fits.
    pub(crate) fn wait_for<T>(
        &self,
        patience: Duration,
        mut found: impl FnMut(&mut [Seen]) -> Option<T>,
    ) -> Option<T> {
        self.wait_for_state(patience, |state| found(&mut state.seen))
    }

    /// Waits for a real broker to have dealt with a SUBSCRIBE or UNSUBSCRIBE: only then does it hold for what is published. The
    /// stub deals with it at once, or when the row says so.
    pub(crate) fn deals_with(&self, seen: &Seen, patience: Duration) -> Result<(), String> {
        let id = match &seen.packet {
            Packet::Subscribe(subscribe) => subscribe.pkid,
            Packet::Unsubscribe(unsubscribe) => unsubscribe.pkid,
            _ => return Ok(()),
        };
        let is_settled = |state: &mut State| state.settled.contains(&(seen.link, id)).then_some(());
        if self.real.is_none() || self.wait_for_state(patience, is_settled).is_some() {
            return Ok(());
        }
        Err(format!("the broker has not answered: {seen}"))
    }

    /// Waits for a real broker to have handed a message out to who subscribes to everything; there is nothing to wait for at
    /// the stub.
    pub(crate) fn hands_out(&self, topic: &str, payload: &[u8], patience: Duration) -> Result<(), String> {
        self.real.as_ref().map_or(Ok(()), |real| real.hands_out(topic, payload, patience))
    }

    /// What a real broker has handed out and nobody has asked for.
    pub(crate) fn handed_out(&self) -> Option<String> {
        self.real.as_ref().and_then(Real::handed_out)
    }

    /// Waits for a probe after this many.
    pub(crate) fn probed(&self, before: usize, patience: Duration) -> bool {
        self.wait_for_state(patience, |state| (state.probes > before).then_some(())).is_some()
    }

    pub(crate) fn probes(&self) -> usize {
        self.state().probes
    }

    pub(crate) fn connected(&self) -> bool {
        !self.state().links.is_empty()
    }

    /// The version of MQTT on the gateway's own connection.
    pub(crate) fn version(&self) -> Option<Version> {
        let state = self.state();
        let mut links = state.links.values().filter(|link| link.whose.0 == Whose::GATEWAY);
        links.next_back().and_then(|link| link.version)
    }

    /// Everything so far is what was given.
    pub(crate) fn name_all(&self) {
        let mut state = self.state();
        state.seen.iter_mut().for_each(|seen| seen.named = true);
        state.answered.iter_mut().for_each(|answered| answered.named = true);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    fn wait_for_state<T>(
        &self,
        patience: Duration,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(value) = found(&mut state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let mut state = self.state();
        if let Some(listener) = state.listener.take() {
            let _ = listener.shutdown(Shutdown::Both);
        }
        for link in state.links.values() {
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// How long the gateway may be silent on a connection: as long as it said, and half as long again, and what a busy machine
    /// takes.
    fn patience_with(&self, link: u64) -> Option<Duration> {
        let state = self.state.lock().unwrap();
        let keep_alive = state.links.get(&link)?.keep_alive;
        (keep_alive > 0).then(|| Duration::from_secs(keep_alive.into()).mul_f64(1.5) + Duration::from_secs(1))
    }
}

impl State {
    /// Takes in a packet of the gateway's.
    fn hear(&mut self, from: u64, heard: Heard, by_stub: bool) {
        let Some(link) = self.links.get_mut(&from) else { return };
        if let Packet::Connect(connect) = &heard.packet {
            link.whose = Whose(connect.client_id.clone());
            link.keep_alive = connect.keep_alive;
        }
        let whose = link.whose.clone();
        if by_stub {
            self.stub.serve(from, &heard);
            self.perform();
        }
        match heard.packet {
            Packet::Publish(publish) if publish.topic == PROBE_TOPIC => self.probes += 1,
            Packet::PingReq => {}
            packet => {
                let (at, kept) = (Instant::now(), heard.kept);
                self.seen.push(Seen { at, link: from, whose, packet, kept, named: false });
            }
        }
    }

    /// Does what the stub wants. A gateway that is gone shows in what it does not do.
    fn perform(&mut self) {
        for act in self.stub.take_acts() {
            match act {
                Act::Send(to, packet, subscriptions) => {
                    let Some(Link { stream, version: Some(version), .. }) = self.links.get_mut(&to) else {
                        continue;
                    };
                    let mut octets = BytesMut::new();
                    version.write(&packet, &subscriptions, &mut octets);
                    let _ = stream.write_all(&octets);
                }
                Act::Close(link) => {
                    if let Some(link) = self.links.get(&link) {
                        let _ = link.stream.shutdown(Shutdown::Write);
                    }
                }
            }
        }
    }
}

impl Seen {
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self.packet {
            Packet::Connect(_) => Some(Kind::Connect),
            Packet::Publish(_) => Some(Kind::Publish),
            Packet::PubAck(_) => Some(Kind::PubAck),
            Packet::Subscribe(_) => Some(Kind::Subscribe),
            Packet::Unsubscribe(_) => Some(Kind::Unsubscribe),
            Packet::Disconnect => Some(Kind::Disconnect),
            _ => None,
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(stream, &shared));
    }
}

/// Reads one connection to its end.
fn serve(mut stream: TcpStream, shared: &Arc<Shared>) {
    let Ok(writer) = stream.try_clone() else { return };
    let mut behind = match shared.behind.map(TcpStream::connect) {
        Some(Ok(behind)) => {
            let _ = behind.set_nodelay(true);
            Some(behind)
        }
        Some(Err(_)) => return,
        None => None,
    };
    let id = {
        let mut state = shared.state.lock().unwrap();
        if state.listener.is_none() {
            return;
        }
        state.opened += 1;
        let id = state.opened;
        let whose = Whose(String::new());
        state.links.insert(id, Link { stream: writer, whose, version: None, keep_alive: 0 });
        id
    };
    if let (Some(behind), Ok(to)) = (&behind, stream.try_clone()) {
        let (from, shared) = (behind.try_clone().unwrap(), Arc::clone(shared));
        thread::spawn(move || bring_answers(from, to, id, &shared));
    }
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..count]);
        if take_packets(&mut buffer, id, shared).is_none() {
            break;
        }
        // Only now: what comes of it is not to come before the record of it.
        if behind.as_mut().is_some_and(|behind| behind.write_all(&chunk[..count]).is_err()) {
            break;
        }
        if behind.is_none() {
            // As brokers do with who is silent for longer (MQTT 3.1.1 §3.1.2.10).
            let _ = stream.set_read_timeout(shared.patience_with(id));
        }
    }
    if let Some(behind) = behind {
        let _ = behind.shutdown(Shutdown::Both);
    }
    let _ = stream.shutdown(Shutdown::Both);
    let mut state = shared.state.lock().unwrap();
    state.links.remove(&id);
    state.stub.handle_closed(id);
    drop(state);
    shared.changed.notify_all();
}

/// None: what came is not MQTT, or not for this broker.
fn take_packets(buffer: &mut BytesMut, id: u64, shared: &Shared) -> Option<()> {
    while let Some(frame) = dialect::next(buffer).ok()? {
        let mut state = shared.state.lock().unwrap();
        let link = state.links.get_mut(&id)?;
        if link.version.is_none() {
            link.version = Version::of_connect(&frame);
        }
        let version = link.version?;
        let is_too_new = shared.behind.is_none() && version == Version::V5 && !shared.modern;
        if is_too_new {
            // As brokers do that only know MQTT 3.1.1 (§3.1.2.2 there).
            let mut octets = BytesMut::new();
            let refusal = ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false);
            Version::V4.write(&Packet::ConnAck(refusal), &[], &mut octets);
            let _ = link.stream.write_all(&octets);
            return None;
        }
        state.hear(id, version.read(frame).ok()?, shared.behind.is_none());
        drop(state);
        shared.changed.notify_all();
    }
    Some(())
}

/// Passes on what a real broker says, and remembers how it answered.
fn bring_answers(mut from: TcpStream, mut to: TcpStream, link: u64, shared: &Shared) {
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..count]);
        let mut messages = 0;
        while let Ok(Some(frame)) = dialect::next(&mut buffer) {
            messages += usize::from(frame[0] >> 4 == 3);
            let mut state = shared.state.lock().unwrap();
            let Some(Link { whose, version: Some(version), .. }) = state.links.get(&link) else { continue };
            let (whose, version) = (whose.clone(), *version);
            if let Some((ack, code)) = version.answer(&frame) {
                state.answered.push(Answered { whose, ack, code, named: false });
            }
            state.settled.extend(Version::settled(&frame).map(|id| (link, id)));
            drop(state);
            shared.changed.notify_all();
        }
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
        shared.state.lock().unwrap().brought += messages;
        shared.changed.notify_all();
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A port that nobody else is given while the socket is there, but for who asks for it by its number to listen.
pub(crate) fn reserved(host: Ipv4Addr) -> std::io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((host, 0)).into())?;
    let addr = socket.local_addr()?.as_socket().unwrap();
    // Only now: the port was nobody's.
    socket.set_reuse_address(true)?;
    Ok((socket, addr))
}

/// A socket that shares its port with others of ours, of which one at a time listens.
fn bound(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket
}
