//! A gateway for the tests: a thread, a socket, and whatever a test wants it to do wrong.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use mqtt_sn_gateway::wire::{
    Disconnect, FilterRef, Frame, GwInfo, MsgIdOnly, Packet, Publish, Qos, Register, Response, ReturnCode,
    SubAck, TopicAck, TopicRef, decode,
};

/// Octets of one frame.
pub(crate) type Octets = Vec<u8>;

pub(crate) struct Gateway {
    pub(crate) addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// A gateway that answers each frame with what `answer` gives.
    pub(crate) fn start(
        mut answer: impl FnMut(SocketAddr, &Frame<'_>) -> Vec<Octets> + Send + 'static,
    ) -> Self {
        Self::on("127.0.0.1:0", move |from, frame| answer(from, frame))
    }

    pub(crate) fn on(
        addr: &str,
        mut answer: impl FnMut(SocketAddr, &Frame<'_>) -> Vec<Octets> + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (their_log, their_stop) = (Arc::clone(&log), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !their_stop.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let frame = decode(&buffer[..len]).unwrap();
                their_log.lock().unwrap().push(frame.to_string());
                for octets in answer(from, &frame) {
                    socket.send_to(&octets, from).unwrap();
                }
            }
        });
        Self { addr, log, stop, thread: Some(thread) }
    }

    /// A gateway without faults.
    pub(crate) fn good() -> Self {
        Self::start(|_, frame| good(frame))
    }

    /// A gateway that never says anything.
    pub(crate) fn silent() -> Self {
        Self::start(|_, _| Vec::new())
    }

    /// The arguments that lead here.
    pub(crate) fn args(&self) -> String {
        format!("-h {} -p {}", self.addr.ip(), self.addr.port())
    }

    /// What has come, one line each.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a message of this name has come: datagrams are read by a thread of their own.
    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str) {
        for _ in 0..2000 {
            if self.names().iter().any(|came| came == name) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no {name} in ten seconds, but {:?}", self.log());
    }

    /// The names of the messages that have come.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        self.log().iter().map(name).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a gateway without faults answers. Every name has topic id 7.
pub(crate) fn good(frame: &Frame<'_>) -> Vec<Octets> {
    let code = ReturnCode::Accepted;
    let accepted = Response { code };
    let answer = match frame.packet {
        Packet::Connect(connect) if connect.will => Packet::WillTopicReq,
        Packet::WillTopic(_) => Packet::WillMsgReq,
        Packet::Connect(_) | Packet::WillMsg(_) => Packet::ConnAck(accepted),
        Packet::Register(Register { msg_id, .. }) => Packet::RegAck(TopicAck { topic_id: 7, msg_id, code }),
        Packet::Publish(Publish { qos: Qos::AtLeastOnce, topic, msg_id, .. }) => {
            Packet::PubAck(TopicAck { topic_id: topic.raw(), msg_id, code })
        }
        Packet::Publish(Publish { qos: Qos::ExactlyOnce, msg_id, .. }) => {
            Packet::PubRec(MsgIdOnly { msg_id })
        }
        Packet::PubRel(ids) => Packet::PubComp(ids),
        Packet::Subscribe(subscribe) => {
            let topic_id = match subscribe.topic {
                FilterRef::Name(name) if name.contains(&b'#') || name.contains(&b'+') => 0,
                FilterRef::Name(_) | FilterRef::Reserved(_) => 7,
                FilterRef::Predefined(id) => id,
                FilterRef::Short(name) => u16::from_be_bytes(name),
            };
            Packet::SubAck(SubAck { qos: subscribe.qos, topic_id, msg_id: subscribe.msg_id, code })
        }
        Packet::Unsubscribe(unsubscribe) => Packet::UnsubAck(MsgIdOnly { msg_id: unsubscribe.msg_id }),
        Packet::PingReq(_) => Packet::PingResp,
        Packet::Disconnect(_) => Packet::Disconnect(Disconnect { duration: None }),
        Packet::SearchGw(_) => Packet::GwInfo(GwInfo { gw_id: 42, gw_add: &[] }),
        _ => return Vec::new(),
    };
    vec![encode(frame, answer)]
}

/// The octets of a packet, behind the forwarder of `to` if it has one.
pub(crate) fn encode(to: &Frame<'_>, packet: Packet<'_>) -> Octets {
    let mut out = BytesMut::new();
    Frame { encapsulation: to.encapsulation, packet }.encode(&mut out).unwrap();
    out.to_vec()
}

/// A message for a subscriber.
pub(crate) fn message(to: &Frame<'_>, topic: TopicRef, qos: Qos, msg_id: u16, data: &[u8]) -> Octets {
    encode(to, Packet::Publish(Publish { dup: false, qos, retain: false, topic, msg_id, data }))
}
