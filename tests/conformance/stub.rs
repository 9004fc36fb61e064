//! A broker that does what a row says: sees every packet, answers at once, holds answers back, refuses, goes away and comes back
//! on the same port. MQTT 3.1.1 on rumqttc's codec, threads and blocking sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Publish, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck,
};
use rumqttc::mqttbytes::{Error, QoS, matches};
use socket2::{Domain, Socket, Type};

use crate::script::{Ack, Delivery, Kind, Message};

/// Publications on this topic only show that the gateway reaches the broker; no row sees them.
pub(crate) const PROBE_TOPIC: &str = "~~";

/// Octets in the largest packet: a PUBLISH of the largest datagram and its topic.
const PACKET_MAX: usize = 140_000;

/// How long a gateway may take to notice that a connection is gone.
const NOTICE: Duration = Duration::from_secs(5);

/// The broker. Everything ends with it.
pub(crate) struct Stub {
    addr: SocketAddr,
    /// Bound to the same port without listening, so that nobody else is given it while the broker is down.
    _port: Socket,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    links: BTreeMap<u64, Link>,
    opened: u64,
    listener: Option<Socket>,
    refuses: Option<u8>,
    withheld: BTreeSet<Ack>,
    held: VecDeque<Held>,
    retained: Vec<(Message, bool)>,
    probes: usize,
}

/// A packet from the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) packet: Packet,
    /// A row has asked for it, or it came before the row's steps.
    pub(crate) named: bool,
}

struct Link {
    stream: TcpStream,
    filters: BTreeMap<String, QoS>,
    packet_id: u16,
}

/// An answer held back.
struct Held {
    link: u64,
    packet: HeldPacket,
}

enum HeldPacket {
    Connect,
    Publish(u16),
    Subscribe(Subscribe),
}

impl Stub {
    pub(crate) fn new() -> Self {
        let port = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let addr = port.local_addr().unwrap().as_socket().unwrap();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        Self { addr, _port: port, shared }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every CONNECT from here on gets this return code.
    pub(crate) fn refuse(&self, code: u8) {
        self.state().refuses = Some(code);
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
        self.close();
    }

    /// Drops all connections; returns when the gateway has noticed.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        let closed: Vec<_> = state.links.keys().copied().collect();
        for link in state.links.values() {
            let _ = link.stream.shutdown(Shutdown::Write);
        }
        let deadline = Instant::now() + NOTICE;
        while closed.iter().any(|link| state.links.contains_key(link)) && Instant::now() < deadline {
            state = self.shared.changed.wait_timeout(state, NOTICE).unwrap().0;
        }
        drop(state);
        // The gateway's socket is closed; its core hears of it a moment later.
        thread::sleep(Duration::from_millis(50));
    }

    pub(crate) fn withhold(&self, ack: Ack) {
        self.state().withheld.insert(ack);
    }

    /// Gives the oldest answer of this kind that is held back; waits for the packet to arrive, if need be.
    pub(crate) fn answer(&self, ack: Ack, code: u8, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(at) = state.held.iter().position(|held| held.packet.ack() == ack) {
                let Some(held) = state.held.remove(at) else { continue };
                state.give(held, code);
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("nothing has come that the broker could answer: {ack:?}"));
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(crate) fn hold(&self, message: Message, before_suback: bool) {
        self.state().retained.push((message, before_suback));
    }

    /// Sends a message to whoever has subscribed to it, or to everybody. How many that were.
    pub(crate) fn publish(&self, message: &Message, delivery: Delivery) -> usize {
        let mut state = self.state();
        state.links.values_mut().filter_map(|link| link.publish(message, delivery)).count()
    }

    /// Waits for the gateway to have sent something that fits.
    pub(crate) fn wait_for<T>(
        &self,
        patience: Duration,
        mut found: impl FnMut(&mut [Seen]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(value) = found(&mut state.seen) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for a probe after this many.
    pub(crate) fn probed(&self, before: usize, patience: Duration) -> bool {
        let state = self.state();
        self.shared
            .changed
            .wait_timeout_while(state, patience, |state| state.probes <= before)
            .unwrap()
            .0
            .probes
            > before
    }

    pub(crate) fn probes(&self) -> usize {
        self.state().probes
    }

    pub(crate) fn connected(&self) -> bool {
        !self.state().links.is_empty()
    }

    /// Everything so far is what was given.
    pub(crate) fn name_all(&self) {
        self.state().seen.iter_mut().for_each(|seen| seen.named = true);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Stub {
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

impl State {
    fn give(&mut self, held: Held, code: u8) {
        let Self { links, retained, .. } = self;
        let Some(link) = links.get_mut(&held.link) else { return };
        match held.packet {
            HeldPacket::Connect => {
                link.send(&Packet::ConnAck(ConnAck::new(connect_code(code), false)));
                if code != 0 {
                    let _ = link.stream.shutdown(Shutdown::Write);
                }
            }
            HeldPacket::Publish(id) => link.send(&Packet::PubAck(PubAck::new(id))),
            HeldPacket::Subscribe(subscribe) => link.subscribe(&subscribe, Some(code), retained),
        }
    }

    /// Does what a broker does, unless it was told otherwise.
    fn serve(&mut self, from: u64, packet: &Packet) {
        let Some(link) = self.links.get_mut(&from) else { return };
        let mut hold = |packet| self.held.push_back(Held { link: from, packet });
        match packet {
            Packet::Connect(_) if self.withheld.contains(&Ack::Connect) => hold(HeldPacket::Connect),
            Packet::Connect(_) => {
                self.held.push_back(Held { link: from, packet: HeldPacket::Connect });
                let code = self.refuses.unwrap_or(0);
                if let Some(held) = self.held.pop_back() {
                    self.give(held, code);
                }
            }
            Packet::Publish(Publish { qos: QoS::AtLeastOnce, pkid, .. }) => {
                if self.withheld.contains(&Ack::Publish) {
                    hold(HeldPacket::Publish(*pkid));
                } else {
                    link.send(&Packet::PubAck(PubAck::new(*pkid)));
                }
            }
            Packet::Publish(Publish { qos: QoS::ExactlyOnce, pkid, .. }) => {
                link.send(&Packet::PubRec(PubRec::new(*pkid)));
            }
            Packet::PubRel(rel) => link.send(&Packet::PubComp(PubComp::new(rel.pkid))),
            Packet::PubRec(rec) => link.send(&Packet::PubRel(PubRel::new(rec.pkid))),
            Packet::Subscribe(subscribe) if self.withheld.contains(&Ack::Subscribe) => {
                hold(HeldPacket::Subscribe(subscribe.clone()));
            }
            Packet::Subscribe(subscribe) => link.subscribe(subscribe, None, &self.retained),
            Packet::Unsubscribe(unsubscribe) => {
                unsubscribe.topics.iter().for_each(|filter| {
                    link.filters.remove(filter);
                });
                link.send(&Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
            }
            Packet::PingReq => link.send(&Packet::PingResp),
            _ => {}
        }
    }
}

impl Link {
    fn send(&mut self, packet: &Packet) {
        let mut octets = BytesMut::new();
        packet.write(&mut octets, PACKET_MAX).unwrap();
        // A gateway that is gone shows in what it does not do.
        let _ = self.stream.write_all(&octets);
    }

    fn subscribe(&mut self, subscribe: &Subscribe, code: Option<u8>, retained: &[(Message, bool)]) {
        let mut codes = Vec::new();
        for filter in &subscribe.filters {
            let granted = code.unwrap_or(filter.qos as u8);
            codes.push(SubscribeReasonCode::try_from(granted).unwrap());
            if let Some(SubscribeReasonCode::Success(qos)) = codes.last() {
                self.filters.insert(filter.path.clone(), *qos);
            }
        }
        let hand_out = |link: &mut Self, early: bool| {
            for (message, before_suback) in retained {
                let asked = subscribe.filters.iter().any(|filter| matches(&message.topic, &filter.path));
                if asked && *before_suback == early {
                    link.publish(message, Delivery::Subscribers);
                }
            }
        };
        hand_out(self, true);
        self.send(&Packet::SubAck(SubAck::new(subscribe.pkid, codes)));
        hand_out(self, false);
    }

    fn publish(&mut self, message: &Message, delivery: Delivery) -> Option<()> {
        let granted = self.filters.iter().filter(|(filter, _)| matches(&message.topic, filter));
        let granted = granted.map(|(_, qos)| *qos as u8).max();
        let qos = match delivery {
            Delivery::Subscribers => message.qos.min(granted?),
            Delivery::Regardless => message.qos,
        };
        let mut publish = Publish::new(&message.topic, quality(qos), message.payload.clone());
        publish.retain = message.retain;
        if qos > 0 {
            self.packet_id += 1;
            publish.pkid = self.packet_id;
        }
        self.send(&Packet::Publish(publish));
        Some(())
    }
}

impl HeldPacket {
    fn ack(&self) -> Ack {
        match self {
            Self::Connect => Ack::Connect,
            Self::Publish(_) => Ack::Publish,
            Self::Subscribe(_) => Ack::Subscribe,
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
        thread::spawn(move || read(stream, &shared));
    }
}

/// Reads one connection to its end.
fn read(mut stream: TcpStream, shared: &Shared) {
    let Ok(writer) = stream.try_clone() else { return };
    let id = {
        let mut state = shared.state.lock().unwrap();
        if state.listener.is_none() {
            return;
        }
        state.opened += 1;
        let id = state.opened;
        state.links.insert(id, Link { stream: writer, filters: BTreeMap::new(), packet_id: 0 });
        id
    };
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..count]);
        if take_packets(&mut buffer, id, shared).is_err() {
            break;
        }
    }
    shared.state.lock().unwrap().links.remove(&id);
    shared.changed.notify_all();
}

fn take_packets(buffer: &mut BytesMut, link: u64, shared: &Shared) -> Result<(), Error> {
    loop {
        let packet = match Packet::read(buffer, PACKET_MAX) {
            Ok(packet) => packet,
            Err(Error::InsufficientBytes(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut state = shared.state.lock().unwrap();
        state.serve(link, &packet);
        match &packet {
            Packet::Publish(publish) if publish.topic == PROBE_TOPIC => state.probes += 1,
            Packet::PingReq => {}
            _ => state.seen.push(Seen { at: Instant::now(), packet, named: false }),
        }
        shared.changed.notify_all();
    }
}

/// A socket that shares its port with others of ours, of which one at a time listens.
fn bound(addr: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket
}

fn quality(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

fn connect_code(code: u8) -> ConnectReturnCode {
    match code {
        0 => ConnectReturnCode::Success,
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        _ => ConnectReturnCode::NotAuthorized,
    }
}
