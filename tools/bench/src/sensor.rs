//! Sensors that only talk: a socket each, a topic id, and PUBLISH with QoS 0 or −1 as fast as the socket takes it. They
//! cost a fraction of what the gateway does.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::wire::{Connect, Packet, Publish, Qos, Register, ReturnCode, TopicRef, decode};

use crate::failure::{Attempt, Failure};
use crate::stamp;

/// What all of them publish on.
pub(crate) const TOPIC: &str = "bench/up/registered";

/// The predefined one; the gateway's configuration has it too.
pub(crate) const PREDEFINED: u16 = 1;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest sleep between two messages of a steady stream; what has become due is then sent in a row.
pub(crate) const STEP: Duration = Duration::from_micros(200);

pub(crate) struct Sensors {
    all: Vec<Sensor>,
    next: usize,
}

struct Sensor {
    socket: UdpSocket,
    /// A PUBLISH; its end is the payload.
    frame: BytesMut,
}

impl Sensors {
    /// Connected to a gateway, with a topic id; with QoS −1 nothing of that is needed.
    pub(crate) fn new(gateway: SocketAddr, count: u32, qos: Qos) -> Result<Self, Failure> {
        let sensor = |number| {
            let socket = socket(gateway)?;
            let topic = match qos {
                Qos::MinusOne => TopicRef::Predefined(PREDEFINED),
                _ => TopicRef::Normal(connect(&socket, number)?),
            };
            Sensor::new(socket, topic, qos)
        };
        Ok(Self { all: (0..count).map(sensor).collect::<Result<_, _>>()?, next: 0 })
    }

    /// The same for a bare relay, which knows of no connection.
    pub(crate) fn unconnected(relay: SocketAddr, count: u32) -> Result<Self, Failure> {
        let sensor = |_| Sensor::new(socket(relay)?, TopicRef::Normal(1), Qos::AtMostOnce);
        Ok(Self { all: (0..count).map(sensor).collect::<Result<_, _>>()?, next: 0 })
    }

    /// Sends `rate` messages a second for so long, from each in its turn; how many that were.
    pub(crate) fn stream(&mut self, rate: f64, time: Duration) -> Result<u64, Failure> {
        let start = Instant::now();
        let mut sent = 0;
        loop {
            let elapsed = start.elapsed().min(time);
            let due = (elapsed.as_secs_f64() * rate) as u64;
            while sent < due {
                sent += u64::from(self.send()?);
            }
            if elapsed == time {
                return Ok(sent);
            }
            sleep(STEP.min(Duration::from_secs_f64(1.0 / rate)));
        }
    }

    /// Sends as fast as it goes for so long; how many that were.
    pub(crate) fn flood(&mut self, time: Duration) -> Result<u64, Failure> {
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < time {
            for _ in 0..64 {
                sent += u64::from(self.send()?);
            }
        }
        Ok(sent)
    }

    /// Whether the system took the message of the next one.
    fn send(&mut self) -> Result<bool, Failure> {
        let index = self.next;
        self.next = if index + 1 < self.all.len() { index + 1 } else { 0 };
        match self.all.get_mut(index) {
            Some(sensor) => sensor.send(),
            None => Ok(false),
        }
    }
}

/// A socket that is connected to a gateway and blocks, and a PUBLISH on a topic id.
pub(crate) fn registered(gateway: SocketAddr, qos: Qos) -> Result<(UdpSocket, Bytes), Failure> {
    let socket = socket(gateway)?;
    let topic = TopicRef::Normal(connect(&socket, 0)?);
    let data = stamp::now();
    let publish = Publish { dup: false, qos, retain: false, topic, msg_id: 1, data: &data };
    Ok((socket, encoded(&Packet::Publish(publish))?))
}

impl Sensor {
    fn new(socket: UdpSocket, topic: TopicRef, qos: Qos) -> Result<Self, Failure> {
        let data = stamp::now();
        let publish = Publish { dup: false, qos, retain: false, topic, msg_id: 0, data: &data };
        let frame = encoded(&Packet::Publish(publish))?;
        socket.set_nonblocking(true).attempt("make a socket non-blocking")?;
        Ok(Self { socket, frame: BytesMut::from(frame) })
    }

    fn send(&mut self) -> Result<bool, Failure> {
        let payload = self.frame.len() - stamp::LEN;
        if let Some(room) = self.frame.get_mut(payload..) {
            room.copy_from_slice(&stamp::now());
        }
        match self.socket.send(&self.frame) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).attempt("send a datagram"),
        }
    }
}

fn socket(to: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0").attempt("open a UDP socket")?;
    socket.connect(to).attempt("connect a UDP socket")?;
    socket.set_read_timeout(Some(PATIENCE)).attempt("set a timeout")?;
    Ok(socket)
}

/// Connects and registers [`TOPIC`]; its id.
fn connect(socket: &UdpSocket, number: u32) -> Result<u16, Failure> {
    let client_id = format!("sensor-{number}");
    let connect = Connect {
        will: false,
        clean_session: true,
        protocol_id: Connect::PROTOCOL_ID,
        duration: 0,
        client_id: client_id.as_bytes(),
    };
    let accepted = |packet: &Packet<'_>| match packet {
        Packet::ConnAck(ack) if ack.code == ReturnCode::Accepted => Some(0),
        _ => None,
    };
    ask(socket, &Packet::Connect(connect), accepted)?;
    let register = Register { topic_id: 0, msg_id: 1, topic_name: TOPIC.as_bytes() };
    ask(socket, &Packet::Register(register), |packet| match packet {
        Packet::RegAck(ack) if ack.code == ReturnCode::Accepted => Some(ack.topic_id),
        _ => None,
    })
}

fn ask(
    socket: &UdpSocket,
    request: &Packet<'_>,
    answer: impl Fn(&Packet<'_>) -> Option<u16>,
) -> Result<u16, Failure> {
    socket.send(&encoded(request)?).attempt("send a datagram")?;
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer).attempt(format!("get an answer to {request:?}"))?;
    let octets = buffer.get(..len).unwrap_or_default();
    let frame = decode(octets).map_err(|error| Failure::Gateway(error.to_string()))?;
    answer(&frame.packet)
        .ok_or_else(|| Failure::Gateway(format!("{request:?} was answered by {:?}", frame.packet)))
}

fn encoded(packet: &Packet<'_>) -> Result<Bytes, Failure> {
    let mut octets = BytesMut::new();
    packet.encode(&mut octets).map_err(|error| Failure::Gateway(error.to_string()))?;
    Ok(octets.freeze())
}
