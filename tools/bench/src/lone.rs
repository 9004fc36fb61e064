//! One who publishes one message after the other, and does next to nothing else: octets that were made beforehand, on a socket
//! that blocks. What is measured with it is the way, and not who walks it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use crate::app::App;
use crate::failure::{Attempt, Failure};
use crate::figures::Histogram;
use crate::scenario::mqtt;
use crate::sensor::{self, TOPIC};

/// Octets of the longest answer.
const ANSWER_MAX: usize = 64;

/// How long something is measured, and for how long before it is not: caches and queues are to be as they stay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// What came of one after the other.
pub(crate) struct Spoken {
    pub(crate) latency: Histogram,
    /// Messages, those of the warm-up too.
    pub(crate) all: u64,
}

/// A sensor at the gateway.
pub(crate) fn sensor(gateway: SocketAddr, qos: Qos, span: Span) -> Result<Spoken, Failure> {
    let (socket, publish) = sensor::registered(gateway, qos)?;
    // Length, MsgType, Flags and TopicId come before the MsgId (§5.4.12); PUBACK has a TopicId before it too (§5.4.13).
    let (ack, rec, comp) = (Answer::new(1, 0x0d, 4), Answer::new(1, 0x0f, 2), Answer::new(1, 0x0e, 2));
    let ack = Answer { accepted_at: Some(6), ..ack };
    Lone::new(socket, publish, 5, qos, ack, (rec, &[4, 0x10], comp)).speak(span)
}

/// An MQTT client at the broker.
pub(crate) fn direct(broker: SocketAddr, qos: Qos, span: Span) -> Result<Spoken, Failure> {
    let topic = TopicName::new(TOPIC).map_err(|error| Failure::Broker(error.to_string()))?;
    let (socket, publish) = App::connect(broker, "direct")?.take_apart(&topic, mqtt(qos))?;
    // Behind the fixed header and the topic with its length (MQTT 3.1.1 §3.3).
    let (ack, rec, comp) = (Answer::new(0, 0x40, 2), Answer::new(0, 0x50, 2), Answer::new(0, 0x70, 2));
    Lone::new(socket, publish, 4 + TOPIC.len(), qos, ack, (rec, &[0x62, 2], comp)).speak(span)
}

/// Whole packets in and out.
trait Talk {
    fn say(&mut self, packet: &[u8]) -> io::Result<()>;
    fn hear(&mut self, room: &mut [u8]) -> io::Result<usize>;
}

impl Talk for UdpSocket {
    fn say(&mut self, packet: &[u8]) -> io::Result<()> {
        self.send(packet).map(drop)
    }

    fn hear(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.recv(room)
    }
}

impl Talk for TcpStream {
    fn say(&mut self, packet: &[u8]) -> io::Result<()> {
        self.write_all(packet)
    }

    /// The broker has only one thing to say at a time, and says it in one go.
    fn hear(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.read(room)
    }
}

/// What is waited for: where in it the type is and which, where the id, and where 0 says that all is well.
#[derive(Debug, Clone, Copy)]
struct Answer {
    type_at: usize,
    kind: u8,
    id_at: usize,
    accepted_at: Option<usize>,
}

impl Answer {
    fn new(type_at: usize, kind: u8, id_at: usize) -> Self {
        Self { type_at, kind, id_at, accepted_at: None }
    }

    fn is(&self, octets: &[u8], id: [u8; 2]) -> bool {
        octets.get(self.type_at) == Some(&self.kind)
            && octets.get(self.id_at..self.id_at + 2) == Some(&id)
            && self.accepted_at.is_none_or(|at| octets.get(at) == Some(&0))
    }
}

struct Lone<S> {
    socket: S,
    /// PUBLISH, with the id of a message at `id_at`.
    publish: BytesMut,
    id_at: usize,
    /// What answers it, and what has to be said to that before its id: the last is said to nobody.
    steps: Vec<(Answer, &'static [u8])>,
}

impl<S: Talk> Lone<S> {
    fn new(
        socket: S,
        publish: Bytes,
        id_at: usize,
        qos: Qos,
        ack: Answer,
        (rec, rel, comp): (Answer, &'static [u8], Answer),
    ) -> Self {
        let steps =
            if qos == Qos::ExactlyOnce { vec![(rec, rel), (comp, &[][..])] } else { vec![(ack, &[][..])] };
        Self { socket, publish: BytesMut::from(publish), id_at, steps }
    }

    fn speak(mut self, span: Span) -> Result<Spoken, Failure> {
        let (mut latency, mut all) = (Histogram::default(), 0_u64);
        let start = Instant::now();
        while start.elapsed() < span.warm_up + span.time {
            let id = u16::try_from(all % u64::from(u16::MAX)).unwrap_or_default() + 1;
            let sent = Instant::now();
            self.exchange(id.to_be_bytes())?;
            if start.elapsed() > span.warm_up {
                latency.add(sent.elapsed());
            }
            all += 1;
        }
        Ok(Spoken { latency, all })
    }

    fn exchange(&mut self, id: [u8; 2]) -> Result<(), Failure> {
        if let Some(room) = self.publish.get_mut(self.id_at..self.id_at + id.len()) {
            room.copy_from_slice(&id);
        }
        self.socket.say(&self.publish).attempt("publish")?;
        for (answer, then) in &self.steps {
            let mut room = [0; ANSWER_MAX];
            let len = self.socket.hear(&mut room).attempt("get an answer to a message")?;
            let octets = room.get(..len).unwrap_or_default();
            if !answer.is(octets, id) {
                return Err(Failure::Unexpected(octets.to_vec()));
            }
            if !then.is_empty() {
                self.socket.say(&[then, &id[..]].concat()).attempt("answer")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_waited_for_is_an_answer() {
        let ack = Answer { accepted_at: Some(6), ..Answer::new(1, 0x0d, 4) };
        assert!(ack.is(&[7, 0x0d, 0, 1, 0x12, 0x34, 0], [0x12, 0x34]));
        let refused = [7, 0x0d, 0, 1, 0x12, 0x34, 1];
        let of_another = [7, 0x0d, 0, 1, 0x12, 0x35, 0];
        let something_else = [7, 0x0b, 0, 1, 0x12, 0x34, 0];
        for octets in [&refused[..], &of_another, &something_else, &[7, 0x0d, 0, 1], &[]] {
            assert!(!ack.is(octets, [0x12, 0x34]), "{octets:?}");
        }
    }
}
