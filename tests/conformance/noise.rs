//! Random and damaged datagrams against the real program, from strangers: it goes on, and nobody is sent more than was received.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::combination::Combination;
use crate::runner::World;
use crate::script::{Part, Settings, Step};
use crate::{example, table};

/// Strangers, each with one datagram. Few enough at a time for the socket of the gateway to hold.
const STRANGERS: u32 = 2000;
const AT_ONCE: u32 = 50;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn strangers_are_sent_no_more_than_they_send_and_nothing_stops_an_aggregating_gateway() {
    make_noise("aggregating", 1);
}

#[test]
fn strangers_are_sent_no_more_than_they_send_and_nothing_stops_a_transparent_gateway() {
    make_noise("transparent", 2);
}

fn make_noise(combination: &str, seed: u64) {
    let combination = Combination::named(combination).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let models = datagrams(combination);
    let mut world = World::start(&Settings::default(), combination).unwrap();
    let gateway = world.gateway();
    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        let socket = stranger(number);
        let datagram = noise(&models, &mut rng);
        socket.send_to(&datagram, gateway).unwrap();
        strangers.push((socket, datagram));
        if (number + 1) % AT_ONCE == 0 {
            // It answers a stranger's PINGREQ, so it has dealt with what came before.
            exchange(&stranger(STRANGERS + number), gateway, &[0x02, 0x16], &[0x02, 0x18]);
            strangers.drain(..).for_each(|(socket, datagram)| {
                let answers = received(&socket);
                let most = answers.iter().copied().max().unwrap_or(0);
                // Who connects is a stranger no more, and told when another takes the id.
                let sum: usize = answers.iter().sum();
                let enough = most <= datagram.len() && sum <= 2 * datagram.len();
                assert!(enough, "seed {seed}: answers of {answers:?} octets to {datagram:02X?}");
            });
        }
    }
    let client = stranger(2 * STRANGERS);
    exchange(&client, gateway, &[0x08, 0x04, 0x04, 0x01, 0x00, 0x3C, 0x63, 0x31], &[0x03, 0x05, 0x00]);
    world.is_running().unwrap();
}

/// Every datagram that a client sends in the table.
fn datagrams(combination: Combination) -> Vec<Vec<u8>> {
    let lines = table(combination.mode).values().flat_map(|row| row.given.iter().chain(&row.steps));
    let sent = lines.filter_map(|line| match &line.step {
        Step::Send(send) => Some(send.octets.0.iter().flat_map(|part: &Part| example(part)).collect()),
        _ => None,
    });
    sent.collect()
}

fn noise(models: &[Vec<u8>], rng: &mut fastrand::Rng) -> Vec<u8> {
    if rng.u8(..4) == 0 {
        let len = rng.usize(..40);
        return std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
    }
    let mut octets = models[rng.usize(..models.len())].clone();
    for _ in 0..rng.usize(..4) {
        match rng.u8(..3) {
            0 if !octets.is_empty() => {
                let at = rng.usize(..octets.len());
                octets[at] = rng.u8(..);
            }
            1 => octets.truncate(rng.usize(..=octets.len())),
            _ => octets.push(rng.u8(..)),
        }
    }
    octets
}

/// A socket at an address of its own: a port alone comes back, and with it what the gateway remembers of who had it.
fn stranger(number: u32) -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number), 0)).unwrap()
}

/// A request and its answer.
#[track_caller]
fn exchange(socket: &UdpSocket, gateway: SocketAddr, request: &[u8], answer: &[u8]) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(request, gateway).unwrap();
    let mut buffer = [0; 64];
    let count = socket.recv(&mut buffer).expect("the gateway does not answer");
    assert_eq!(&buffer[..count], answer);
}

/// The size of everything that has come.
fn received(socket: &UdpSocket) -> Vec<usize> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 65_536];
    let mut sizes = Vec::new();
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) => sizes.push(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sizes,
            Err(_) => thread::yield_now(),
        }
    }
}
