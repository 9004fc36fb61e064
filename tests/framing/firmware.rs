//! The C code of tools/firmware against ours: compiled with every warning, run with sanitizers where they are installed.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::xbee::{self, Frame, Mode, SHORT_UNKNOWN};
use mqtt_sn_gateway::framing::{Decoder, Framing};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{encoded, frames, props, xbee as api};

#[test]
fn c_and_rust_write_the_same_octets() {
    let frames = samples(props::octets(), 2000);
    for (number, framing) in Framing::ALL.into_iter().enumerate() {
        let ours: Vec<_> = frames.iter().map(|frame| encoded(framing, frame)).collect();
        assert_eq!(records(&c("encode", number, &frames)), ours, "{framing}");
    }
}

#[test]
fn c_and_rust_read_the_same_frames_out_of_anything() {
    let lines = samples(props::noisy(), 1000);
    for (number, framing) in Framing::ALL.into_iter().enumerate() {
        let mut theirs = Reader(c("decode", number, &lines).into());
        for line in &lines {
            let mut decoder = Decoder::new(framing);
            decoder.push(line);
            decoder.idle();
            assert_eq!(theirs.list(), frames(&mut decoder), "{framing}: {line:02X?}");
            assert_eq!(u64::from(theirs.number()), decoder.counters().lost(), "{framing}: {line:02X?}");
        }
        assert!(theirs.0.is_empty());
    }
}

#[test]
fn c_and_rust_write_the_same_api_frames() {
    let frames = samples(api::frame(), 2000);
    for (number, mode) in [Mode::Plain, Mode::Escaped].into_iter().enumerate() {
        let data: Vec<_> = frames.iter().map(data).collect();
        let ours: Vec<_> = frames.iter().map(|frame| api::line(frame, mode)).collect();
        assert_eq!(records(&c("xbee-encode", number, &data)), ours, "{mode:?}");
    }
}

#[test]
fn c_and_rust_read_the_same_api_frames_out_of_anything() {
    let lines = samples(api::noisy(), 1000);
    for (number, mode) in [Mode::Plain, Mode::Escaped].into_iter().enumerate() {
        let mut theirs = Reader(c("xbee-decode", number, &lines).into());
        for line in &lines {
            let mut decoder = xbee::Decoder::new(mode);
            decoder.push(line);
            decoder.idle();
            let ours: Vec<_> = std::iter::from_fn(|| decoder.poll_frame()).collect();
            // What is of a known type and cut short is for its caller to see.
            let read = |data: Bytes| Frame::decode(data).ok();
            let list: Vec<_> = theirs.list().into_iter().filter_map(read).collect();
            assert_eq!(list, ours, "{mode:?}: {line:02X?}");
            assert!(u64::from(theirs.number()) <= decoder.counters().lost(), "{mode:?}: {line:02X?}");
        }
        assert!(theirs.0.is_empty());
    }
}

#[test]
fn a_message_sent_by_c_is_a_transmit_request() {
    let records_in = samples(prop::collection::vec(any::<u8>(), 9..100), 500);
    let theirs = records(&c("xbee-transmit", 0, &records_in));
    for (record, data) in records_in.iter().zip(theirs) {
        let frame = Frame::decode(data.into()).expect("a frame");
        let to = u64::from_be_bytes(record[1..9].try_into().expect("8 octets"));
        let payload = Bytes::copy_from_slice(&record[9..]);
        let (frame_id, to_short, radius, options) = (record[0], SHORT_UNKNOWN, 0, 0);
        assert_eq!(frame, Frame::TransmitRequest { frame_id, to, to_short, radius, options, payload });
    }
}

#[test]
fn a_message_received_by_c_is_what_was_sent() {
    let sent = samples(api::frame(), 2000);
    let data: Vec<_> = sent.iter().map(data).collect();
    for (frame, theirs) in sent.iter().zip(records(&c("xbee-received", 0, &data))) {
        let (from, options, payload) = match frame {
            Frame::Receive { from, options, payload, .. }
            | Frame::ExplicitReceive { from, options, payload, .. }
            | Frame::Rx64 { from, options, payload, .. } => (*from, *options, payload),
            Frame::Rx16 { from, options, payload, .. } => (u64::from(*from), *options, payload),
            _ => {
                assert!(theirs.is_empty(), "{frame:?}");
                continue;
            }
        };
        let broadcast = u8::from(options & xbee::RECEIVED_BROADCAST != 0);
        assert_eq!(theirs, [&from.to_be_bytes()[..], &[broadcast], payload].concat(), "{frame:?}");
    }
}

/// As with avr-gcc and msp430-gcc.
#[test]
fn where_two_octets_fill_an_int_nothing_is_read_or_shifted_out_of_bounds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let narrow = root.join("tests/framing/narrow.h");
    let files = ["tests/framing/narrow.c", "tools/firmware/framing.c", "tools/firmware/xbee.c"];
    let program = compiled("narrow", &files, &["-include".as_ref(), narrow.as_os_str()]);
    let output = Command::new(program).output().expect("the compiled program starts");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Frame data.
fn data(frame: &Frame) -> Vec<u8> {
    let line = api::line(frame, Mode::Plain);
    line[3..line.len() - 1].to_vec()
}

/// The same ones in every run.
fn samples<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("a sample").current()).collect()
}

/// What the C code makes of these records.
fn c(op: &str, number: usize, records: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut child = Command::new(program())
        .args([op, &number.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the compiled program starts");
    let mut input = BytesMut::new();
    for record in records {
        input.extend_from_slice(&(record.as_ref().len() as u32).to_be_bytes());
        input.extend_from_slice(record.as_ref());
    }
    let mut stdin = child.stdin.take().expect("piped");
    let writer = thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut output).expect("readable");
    writer.join().expect("no panic").expect("all was taken");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{op} {number}: {status}");
    output
}

fn records(output: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = Reader(Bytes::copy_from_slice(output));
    std::iter::from_fn(|| (!reader.0.is_empty()).then(|| reader.record().to_vec())).collect()
}

struct Reader(Bytes);

impl Reader {
    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.0.split_to(4)[..].try_into().expect("4 octets"))
    }

    fn record(&mut self) -> Bytes {
        let len = self.number() as usize;
        self.0.split_to(len)
    }

    fn list(&mut self) -> Vec<Bytes> {
        (0..self.number()).map(|_| self.record()).collect()
    }
}

/// The C code as a filter, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let files = ["tests/framing/firmware.c", "tools/firmware/framing.c", "tools/firmware/xbee.c"];
        compiled("firmware", &files, &["-Wconversion".as_ref()])
    })
}

/// A program of C; with sanitizers if the compiler has them.
fn compiled(name: &str, files: &[&str], options: &[&OsStr]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let compile = |more: &[&str]| {
        Command::new("cc")
            .args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-g"])
            .args(more)
            .args(options)
            .arg("-I")
            .arg(root.join("tools/firmware"))
            .args(files.iter().map(|file| root.join(file)))
            .arg("-o")
            .arg(&program)
            .output()
            .expect("cc, which cargo needs for linking as well")
    };
    let sanitized = compile(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    if !sanitized.status.success() {
        println!("without sanitizers: {}", String::from_utf8_lossy(&sanitized.stderr));
        let plain = compile(&[]);
        assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    }
    program
}
