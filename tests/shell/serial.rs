//! Frames on serial lines, over pseudo-terminals.

use std::collections::VecDeque;
use std::fs;
use std::future::Future;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Decoder, Framing};
use mqtt_sn_gateway::gateway::io::{Address, Input, PortEvent, PortId, Route};
use mqtt_sn_gateway::transport::serial::{self, Spoken};
use mqtt_sn_gateway::transport::{Count, Flow, Intake, Line, Options, Parity, Status, Transport, inbox};

use nix::libc::O_NOCTTY;

use crate::pty::Pty;
use crate::{LIMIT, soon};

const BAUD: u32 = 115_200;

#[tokio::test]
async fn frames_go_both_ways_in_every_framing() {
    for framing in Framing::ALL {
        let (pty, mut port) = Port::plugged(framing, BAUD).await;
        let mut node = Node::new(framing);
        for len in [2, 3, 9, 100, 250, 255, 256, 1000] {
            let frame = message(len, len as u8);
            node.say(&pty, &frame).await;
            assert_eq!(port.frame().await, frame, "{framing}");
            port.transport.send(Address::Serial, Route::default(), &frame);
            assert_eq!(node.hear(&pty).await, frame, "{framing}");
        }
        port.transport.broadcast(3, &message(5, 0));
        assert_eq!(node.hear(&pty).await, message(5, 0), "{framing}");
        let counted =
            [Count::Received, Count::Sent, Count::Damaged, Count::QueueFull].map(|it| port.count(it));
        assert_eq!(counted, [8, 9, 0, 0], "{framing}");
    }
}

/// The operating system takes 4 KiB at once from whoever writes to a pseudo-terminal, which has no line speed of its own.
#[tokio::test]
async fn at_line_speed_nothing_is_lost_in_either_direction() {
    const FRAMES: usize = 400;
    for framing in Framing::ALL {
        let (pty, mut port) = Port::plugged(framing, BAUD).await;
        let mut node = Node::new(framing);
        let frames: Vec<_> = (0..FRAMES).map(|i| message(20 + i % 30, i as u8)).collect();
        let mut octets = BytesMut::new();
        frames.iter().for_each(|frame| framing.encode(frame, &mut octets));
        let begun = Instant::now();
        frames.iter().for_each(|frame| port.transport.send(Address::Serial, Route::default(), frame));
        let up = async {
            for frame in &frames {
                let mut octets = BytesMut::new();
                framing.encode(frame, &mut octets);
                pty.write(&octets).await;
            }
        };
        let down = async {
            for frame in &frames {
                assert_eq!(node.hear(&pty).await, frame, "{framing}");
            }
            begun.elapsed()
        };
        let heard = async {
            for frame in &frames {
                assert_eq!(port.frame().await, frame, "{framing}");
            }
        };
        let ((), took, ()) = tokio::join!(up, down, heard);
        // All but the last frame and what the line has in advance.
        let least = Duration::from_secs_f64(octets.len() as f64 * 10.0 / f64::from(BAUD)) - 50 * MILLI;
        assert!(took >= least, "{framing}: faster than the line: {took:?} of {least:?}");
        assert_eq!((port.count(Count::QueueFull), port.count(Count::Damaged)), (0, 0), "{framing}");
    }
}

#[tokio::test]
async fn what_the_line_cannot_send_in_time_is_dropped_and_counted_and_others_go_on() {
    let (pty, mut port) = Port::plugged(Framing::SlipCrc, 9600).await;
    let mut node = Node::new(Framing::SlipCrc);
    // 9600 baud send 1920 octets in two seconds.
    for i in 0..100 {
        port.transport.send(Address::Serial, Route::default(), &message(96, i));
    }
    node.say(&pty, &message(9, 1)).await;
    assert_eq!(port.frame().await, message(9, 1), "it is heard meanwhile");
    let dropped = port.count_until(Count::QueueFull, |dropped| dropped > 0).await;
    assert!((75..=85).contains(&dropped), "{dropped}");
    for i in 0..100 - dropped {
        assert_eq!(node.hear(&pty).await, message(96, i as u8), "the first ones, in order");
    }
    assert_eq!(port.count(Count::Sent) + dropped, 100);
}

#[tokio::test]
async fn a_line_on_which_nothing_is_understood_is_up_and_not_well_until_it_makes_sense() {
    let (pty, mut port) = Port::plugged(Framing::SlipCrc, BAUD).await;
    assert!(port.status(|status| status.up).await.well);
    // As a line at another rate sounds, again and again.
    let noise: Vec<u8> = (0..40u8).map(|i| i.wrapping_mul(37) | 0x80).collect();
    while port.transport.status().well {
        pty.write(&noise).await;
        tokio::time::sleep(100 * MILLI).await;
    }
    let status = port.transport.status();
    assert!(
        status.up && status.why.as_ref().is_some_and(|why| why.contains("gives only garbage")),
        "{status:?}"
    );
    let mut sense = BytesMut::new();
    Framing::SlipCrc.encode(&message(10, 1), &mut sense);
    pty.write(&sense).await;
    assert_eq!(port.frame().await, message(10, 1));
    assert_eq!(port.status(|status| status.well).await, Status::UP);
}

#[tokio::test]
async fn every_frame_after_a_damaged_one_arrives() {
    let mut rng = fastrand::Rng::with_seed(1);
    for framing in Framing::ALL {
        let (pty, mut port) = Port::plugged(framing, BAUD).await;
        let (mut whole, mut damaged) = (VecDeque::new(), 0);
        for i in 0..500 {
            let frame = message(10 + rng.usize(..40), i as u8);
            let mut octets = BytesMut::new();
            framing.encode(&frame, &mut octets);
            let hit = rng.u8(..100) == 0;
            if hit {
                damaged += 1;
                // Not a delimiter: that one would be of two frames.
                let inside = 1..octets.len() - 1;
                let at = rng.usize(inside);
                octets[at] ^= 1 << rng.u8(..8);
            } else {
                whole.push_back(frame);
            }
            pty.write(&octets).await;
            if hit && framing == Framing::Length {
                tokio::time::sleep(200 * MILLI).await;
            }
        }
        assert!(damaged > 0);
        let is_checked = matches!(framing, Framing::SlipCrc | Framing::CobsCrc);
        let mut others = 0;
        while let Some(expected) = whole.pop_front() {
            // Without a checksum damage may come out as frames of its own.
            loop {
                let frame = port.frame().await;
                if frame == expected {
                    break;
                }
                others += 1;
                assert!(!is_checked && others <= 50 * damaged, "{framing}: {frame:?}");
            }
        }
        assert!(!is_checked || port.count(Count::Damaged) >= damaged, "{framing}: not counted");
    }
}

#[tokio::test]
async fn a_device_may_come_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let mut port = Port::open(&name, Framing::SlipCrc, BAUD);
    let why = port.why(|status| status.why.as_ref().is_some_and(|why| why.contains("is not there"))).await;
    assert!(why.ends_with("; it is opened when it comes"), "{why}");
    port.transport.send(Address::Serial, Route::default(), &message(2, 0));
    assert_eq!(port.count(Count::NotUp), 1);
    for round in 0..3 {
        let pty = Pty::plugged(&name);
        let plugged = Instant::now();
        let mut node = Node::new(Framing::SlipCrc);
        node.say(&pty, &message(9, round)).await;
        port.event(PortEvent::Up).await;
        assert_eq!(port.transport.status(), Status::UP);
        assert_eq!(port.frame().await, message(9, round), "also what was said before it was opened");
        println!("first frame {:?} after the device came", plugged.elapsed());
        port.transport.send(Address::Serial, Route::default(), &message(7, round));
        assert_eq!(node.hear(&pty).await, message(7, round));
        drop(pty);
        port.event(PortEvent::Down).await;
        let why = port.why(|status| !status.up).await;
        assert!(
            why.ends_with(
                "is gone, pulled out or without power; sessions are kept, it is opened when it comes back"
            ),
            "{why}"
        );
        assert_eq!(port.count(Count::Vanished), u64::from(round) + 1);
    }
}

/// On a clock that stands still while anybody works, so that no machine is too slow for it.
#[tokio::test(start_paused = true)]
async fn the_first_frame_after_a_return_is_heard_within_two_seconds() {
    for framing in Framing::ALL {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("usb-radio-if00");
        let mut port = Port::open(&name, framing, BAUD);
        port.why(|status| status.why.as_ref().is_some_and(|why| why.contains("is not there"))).await;
        for (round, away) in [100, 130, 250, 1000, 60_000, 600_000].into_iter().enumerate() {
            tokio::time::sleep(away * MILLI).await;
            let frame = message(9, round as u8);
            let mut pty = Pty::new();
            Node::new(framing).say(&pty, &frame).await;
            pty.is_through().await;
            pty.plug(&name);
            let plugged = tokio::time::Instant::now();
            // When all wait it leaps, though there be something to read: with this not far.
            let pulse = tokio::spawn(async {
                loop {
                    tokio::time::sleep(10 * MILLI).await;
                }
            });
            port.event(PortEvent::Up).await;
            assert_eq!(port.frame().await, frame);
            let took = plugged.elapsed();
            assert!(took <= Duration::from_secs(2), "{took:?} after it had been away for {away} ms");
            drop(pty);
            port.event(PortEvent::Down).await;
            pulse.abort();
        }
    }
}

#[tokio::test]
async fn a_half_frame_before_the_device_went_is_not_joined_to_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let pty = Pty::plugged(&name);
    let mut port = Port::open(&name, Framing::Length, BAUD);
    port.event(PortEvent::Up).await;
    pty.write(&message(20, 1)[..12]).await;
    // Read, and then gone.
    tokio::time::sleep(20 * MILLI).await;
    drop(pty);
    port.event(PortEvent::Down).await;
    let pty = Pty::plugged(&name);
    port.event(PortEvent::Up).await;
    pty.write(&message(9, 2)).await;
    assert_eq!(port.frame().await, message(9, 2));
}

#[tokio::test]
async fn what_is_no_serial_device_is_told_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("file");
    fs::write(&name, "").unwrap();
    let mut port = Port::open(&name, Framing::Slip, BAUD);
    let expected = format!("{} is no serial device: `mqtt-sn-gateway devices` lists those", name.display());
    assert_eq!(port.why(|status| status.why.as_ref() == Some(&expected)).await, expected);
    let _pty = Pty::plugged(&name);
    port.event(PortEvent::Up).await;
}

#[tokio::test]
async fn a_device_in_use_names_its_user_and_is_taken_when_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let pty = Pty::plugged(&name);
    let mut other = Holder::of(&pty.device);
    let mut port = Port::open(&name, Framing::Slip, BAUD);
    let why = port.why(|status| status.why.as_ref().is_some_and(|why| why.contains("in use"))).await;
    let expected = format!("is in use by sleep (pid {}): stop that, or name another device", other.0.id());
    assert!(why.ends_with(&expected), "{why}");
    other.end();
    port.event(PortEvent::Up).await;
    // And it is ours alone.
    let mut second = Port::open(&name, Framing::Slip, BAUD);
    let ours = "in use by this gateway itself";
    second.why(|status| status.why.as_ref().is_some_and(|why| why.contains(ours))).await;
}

/// Only for a moment is it the name that was left behind.
#[tokio::test]
async fn what_refuses_to_be_opened_in_the_place_of_a_device_that_went_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let pty = Pty::plugged(&name);
    let mut port = Port::open(&name, Framing::Slip, BAUD);
    port.event(PortEvent::Up).await;
    let locked = Pty::locked();
    std::os::unix::fs::symlink(nix::pty::ptsname_r(&locked).unwrap(), dir.path().join("new")).unwrap();
    fs::rename(dir.path().join("new"), &name).unwrap();
    drop(pty);
    port.event(PortEvent::Down).await;
    let refused = "cannot be opened with 115200 baud 8N1: ";
    port.why(|status| status.why.as_ref().is_some_and(|why| why.contains(refused))).await;
}

/// As a login, minicom or cat does.
#[tokio::test]
async fn who_has_the_device_open_without_a_lock_is_named_as_long_as_he_does() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let pty = Pty::plugged(&name);
    let mut other = Holder::without_lock(&pty.device);
    let mut port = Port::open(&name, Framing::Slip, BAUD);
    port.event(PortEvent::Up).await;
    let expected = format!("is also open in sleep (pid {}), and what comes", other.0.id());
    port.why(|status| status.up && status.why.as_ref().is_some_and(|why| why.contains(&expected))).await;
    // Something else is wrong, and well again.
    let is_garbage = |status: &Status| status.why.as_ref().is_some_and(|why| why.contains("only garbage"));
    for _ in 0..200 {
        if is_garbage(&port.transport.status()) {
            break;
        }
        pty.write(&[b'x'; 40]).await;
        tokio::time::sleep(50 * MILLI).await;
    }
    port.why(is_garbage).await;
    let mut node = Node::new(Framing::Slip);
    node.say(&pty, &message(9, 1)).await;
    while port.frame().await != message(9, 1) {}
    port.why(|status| status.why.as_ref().is_some_and(|why| why.contains(&expected))).await;
    other.end();
    port.status(|status| *status == Status::UP).await;
}

/// As with `sudo minicom`.
#[tokio::test(start_paused = true)]
async fn who_opens_the_device_later_is_named_when_something_of_what_comes_is_missing() {
    let (mut pty, mut port) = Port::plugged(Framing::SlipCrc, BAUD).await;
    pty.let_go();
    let mut node = Node::new(Framing::SlipCrc);
    node.say(&pty, &message(9, 1)).await;
    assert_eq!(still(port.frame()).await, message(9, 1));
    port.status(|status| *status == Status::UP).await;
    // The look at its opening is over: the clock does not leap before.
    tokio::time::sleep(1000 * MILLI).await;
    let Ok(mut other) = Holder::late(&pty.device) else { return };
    let expected = format!("is also open in sleep (pid {}), and what comes", other.0.id());
    tokio::time::sleep(60_000 * MILLI).await;
    assert_eq!(port.transport.status(), Status::UP, "nobody is looked for without a reason");
    pty.write(&[0xC0, 9, 0x0C, 0xC0]).await;
    node.say(&pty, &message(9, 2)).await;
    assert_eq!(still(port.frame()).await, message(9, 2));
    port.why(|status| status.up && status.why.as_ref().is_some_and(|why| why.contains(&expected))).await;
    assert_eq!(port.count(Count::Damaged), 1);
    other.end();
    port.status(|status| *status == Status::UP).await;
}

#[tokio::test]
async fn what_waits_is_written_before_the_port_is_closed() {
    let (pty, mut port) = Port::plugged(Framing::Slip, 9600).await;
    let mut node = Node::new(Framing::Slip);
    for i in 0..5 {
        port.transport.send(Address::Serial, Route::default(), &message(50, i));
    }
    port.transport.close();
    let heard = async {
        for i in 0..5 {
            assert_eq!(node.hear(&pty).await, message(50, i));
        }
    };
    soon("the end", async { tokio::join!(port.transport.closed(), heard) }).await;
    port.transport.send(Address::Serial, Route::default(), &message(2, 0));
    assert_eq!(port.count(Count::NotUp), 1);
}

/// A client of the store whose transport was of another kind is not reached, and counted.
#[tokio::test]
async fn an_address_of_another_kind_is_no_address_here() {
    let (_pty, port) = Port::plugged(Framing::Slip, BAUD).await;
    let addr = Address::Udp(([127, 0, 0, 1], 9).into());
    port.transport.send(addr, Route::default(), &message(2, 0));
    assert_eq!(port.count(Count::NoRoute), 1);
}

const MILLI: Duration = Duration::from_millis(1);

/// The output of `future`, which waits for the kernel only: meanwhile a paused clock does not leap.
async fn still<T>(future: impl Future<Output = T>) -> T {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let held = tokio::task::spawn_blocking(move || wait.recv_timeout(LIMIT));
    let output = future.await;
    drop(done);
    let _ = held.await;
    output
}

/// A PUBLISH of so many octets, with a Length that is right and any octets behind it.
pub(crate) fn message(len: usize, seed: u8) -> Bytes {
    let head = match len {
        0..=6 => return [&[2, 0x16][..], &[2, 0x17], &[2, 0x18]][usize::from(seed) % 3].into(),
        7..=255 => vec![len as u8, 0x0C],
        _ => vec![1, (len >> 8) as u8, len as u8, 0x0C],
    };
    let body = (head.len()..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed));
    head.iter().copied().chain(body).collect()
}

/// The other end of a line.
pub(crate) struct Node {
    framing: Framing,
    decoder: Decoder,
}

impl Node {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, decoder: Decoder::new(framing) }
    }

    pub(crate) async fn say(&mut self, pty: &Pty, frame: &[u8]) {
        let mut octets = BytesMut::new();
        self.framing.encode(frame, &mut octets);
        pty.write(&octets).await;
    }

    /// The next frame. Cancel-safe.
    pub(crate) async fn listen(&mut self, pty: &Pty) -> Bytes {
        loop {
            if let Some(frame) = self.decoder.poll_frame() {
                return frame;
            }
            let octets = pty.read().await;
            self.decoder.push(&octets);
        }
    }

    pub(crate) async fn hear(&mut self, pty: &Pty) -> Bytes {
        soon("a frame on the line", self.listen(pty)).await
    }
}

/// A process that has a device to itself.
struct Holder(Child);

impl Holder {
    fn of(device: &Path) -> Self {
        let mut flock = Command::new("flock");
        let holder =
            Self(flock.arg("-x").arg("--no-fork").arg(device).args(["sleep", "60"]).spawn().unwrap());
        // It becomes the sleep when it has the lock.
        let name = PathBuf::from(format!("/proc/{}/comm", holder.0.id()));
        while fs::read_to_string(&name).unwrap().trim() != "sleep" {
            std::thread::sleep(MILLI);
        }
        holder
    }

    /// One that reads nothing, which is all that `cat` would do beyond this.
    fn without_lock(device: &Path) -> Self {
        Self::late(device).unwrap()
    }

    /// The same. What is open here already only root can open.
    fn late(device: &Path) -> std::io::Result<Self> {
        let device = fs::File::options().read(true).write(true).custom_flags(O_NOCTTY).open(device)?;
        Ok(Self(Command::new("sleep").arg("60").stdin(device).spawn()?))
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn options(device: &Path, baud: u32, speech: Spoken) -> Options {
    let line = Line {
        device: device.into(),
        baud,
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        flow: Flow::None,
    };
    Options::Serial(serial::Options { name: "radio".into(), line, speech })
}

/// A port under test and what it has told.
struct Port {
    transport: Transport,
    intake: Intake,
    taken: VecDeque<Input>,
    /// It has said that it is not up yet.
    begun: bool,
}

impl Port {
    fn open(device: &Path, framing: Framing, baud: u32) -> Self {
        let (inbox, intake) = inbox();
        let options = options(device, baud, Spoken::Framed(framing));
        let transport = Transport::open(PortId(0), &options, &inbox).unwrap();
        // The port has the last one: its events end with it.
        Self { transport, intake, taken: VecDeque::new(), begun: false }
    }

    async fn plugged(framing: Framing, baud: u32) -> (Pty, Self) {
        let pty = Pty::new();
        let mut port = Self::open(&pty.device, framing, baud);
        port.event(PortEvent::Up).await;
        (pty, port)
    }

    async fn next(&mut self, what: &'static str) -> Input {
        while self.taken.is_empty() {
            let mut inputs = Vec::new();
            assert!(soon(what, self.intake.recv_many(&mut inputs, 100)).await > 0, "the port is gone");
            self.taken.extend(inputs);
            if !std::mem::replace(&mut self.begun, true) {
                let first = self.taken.pop_front();
                assert!(matches!(first, Some(Input::Port(PortId(0), PortEvent::Down))), "{first:?}");
            }
        }
        self.taken.pop_front().unwrap()
    }

    async fn frame(&mut self) -> Bytes {
        match self.next("a frame").await {
            Input::Frame { from, frame, .. } => {
                assert_eq!((from.port, from.addr, from.node), (PortId(0), Address::Serial, None));
                frame
            }
            input => panic!("{input:?}"),
        }
    }

    async fn event(&mut self, expected: PortEvent) {
        let input = self.next("an event").await;
        assert!(matches!(&input, Input::Port(PortId(0), event) if *event == expected), "{input:?}");
    }

    fn count(&self, count: Count) -> u64 {
        self.transport.counters().get(count)
    }

    async fn count_until(&self, count: Count, is: impl Fn(u64) -> bool) -> u64 {
        let counted = async {
            while !is(self.count(count)) {
                tokio::time::sleep(MILLI).await;
            }
        };
        soon("a count", counted).await;
        self.count(count)
    }

    /// What is wrong, when the status is as awaited.
    async fn why(&mut self, is: impl Fn(&Status) -> bool) -> String {
        self.status(is).await.why.unwrap()
    }

    async fn status(&mut self, is: impl Fn(&Status) -> bool) -> Status {
        let awaited = async {
            while !is(&self.transport.status()) {
                tokio::time::sleep(MILLI).await;
            }
        };
        soon("that status", awaited).await;
        self.transport.status()
    }
}
