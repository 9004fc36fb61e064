//! A serial line instead of a socket, and what is said when it is not there.

use std::io::{Read, Write};
use std::thread::sleep;
use std::time::Duration;

use bytes::BytesMut;
use mqtt_sn_gateway::framing::{Decoder, Framing};
use mqtt_sn_gateway::wire::decode;
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::gateway::good;
use crate::{command, ran, run};

#[test]
fn a_message_is_published_and_acknowledged_over_each_framing() {
    for framing in Framing::ALL {
        let (master, name) = pty();
        let args = format!("pub --serial {name} --framing {framing} -t a/b -m 21.5 -q 1");
        let child = command(&args).spawn().unwrap();
        let log = serve(&master, framing, "DISCONNECT");
        ran(child.wait_with_output().unwrap()).ends_with(0);
        let names: Vec<_> = log.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["CONNECT", "REGISTER", "PUBLISH", "DISCONNECT"], "{framing}");
        assert!(log[2].contains("21.5"), "{framing}: {log:?}");
    }
}

/// Nothing but silence says with `length` where a message begins.
#[test]
fn after_garbage_and_a_silence_a_message_of_length_is_heard() {
    let (mut master, name) = pty();
    let args = format!("pub --serial {name} --framing length -t a/b -m 21.5 -q 1 --retry 1s");
    let child = command(&args).spawn().unwrap();
    // To the first CONNECT.
    while master.read(&mut [0; 100]).is_err() {
        sleep(Duration::from_millis(5));
    }
    master.write_all(&[0, 0, 0]).unwrap();
    serve(&master, Framing::Length, "DISCONNECT");
    ran(child.wait_with_output().unwrap()).ends_with(0);
}

#[test]
fn a_gateway_at_the_line_is_found() {
    let (master, name) = pty();
    let child = command(&format!("search --serial {name} -C 1 -W 20")).spawn().unwrap();
    serve(&master, Framing::SlipCrc, "SEARCHGW");
    let expected = format!("gateway 42 at {name}\n");
    ran(child.wait_with_output().unwrap()).ends_with(0).prints(&expected);
}

#[test]
fn a_device_that_is_pulled_out_ends_with_66() {
    let (master, name) = pty();
    let child = command(&format!("sub --serial {name} -t a -W 20")).spawn().unwrap();
    serve(&master, Framing::SlipCrc, "SUBSCRIBE");
    drop(master);
    ran(child.wait_with_output().unwrap()).ends_with(66).says(&format!("{name} has vanished"));
}

#[test]
fn a_device_that_is_not_there_ends_with_66() {
    let words = "there is no /dev/never-there; is the device plugged in?";
    run("pub --serial /dev/never-there -t a -m x").ends_with(66).says(words);
    run("search --serial /dev/never-there").ends_with(66).says(words);
}

#[test]
fn what_is_no_terminal_is_not_opened() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = file.path().display().to_string();
    run(&format!("sub --serial {name} -t a")).ends_with(69).says(&format!("{name} is no serial device"));
    run("sub --serial /dev/null -t a").ends_with(69).says("/dev/null is no serial device");
    run("sub --serial /tmp -t a").ends_with(69).says("/tmp is no serial device");
}

#[test]
fn a_line_and_a_host_exclude_each_other() {
    run("pub --serial /dev/x -h localhost -t a -m x").ends_with(2).says("cannot be used with");
    run("pub --framing cobs -t a -m x").ends_with(2).says("--serial");
    run("pub --serial /dev/x --framing tube -t a -m x").ends_with(2).says("length, slip, slip+crc");
}

#[test]
fn what_a_fleet_would_not_use_is_refused() {
    let refused = |via: &str, options: &[&str], needed: &str| {
        for option in options {
            let (name, _) = option.split_once(' ').unwrap();
            let words = format!("{name}: only with {needed}");
            run(&format!("fleet --via {via} {option}")).ends_with(2).says(&words);
        }
    };
    let udp = ["--host localhost", "--port 1884"];
    let pty = ["--link /tmp/x", "--baud 115200", "--corrupt 0%", "--byte-loss 1%"];
    let xbee = ["--api escaped", "--np 84", "--ao 0", "--tx-fail 1%"];
    let modem = ["--framing slip"];
    refused("udp", &pty, "a pty");
    refused("udp", &xbee, "--via xbee-pty");
    refused("udp", &modem, "--via pty");
    refused("pty", &xbee, "--via xbee-pty");
    refused("pty", &udp, "--via udp");
    refused("xbee-pty", &modem, "--via pty");
    refused("xbee-pty", &udp, "--via udp");
}

#[test]
fn a_name_that_is_taken_is_not_replaced_by_a_pty() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = file.path().display().to_string();
    run(&format!("fleet --via pty --link {name}")).ends_with(69).says(&format!(
        "{name} is there and no link, and is not replaced: remove it, or name another by --link"
    ));
    assert!(file.path().is_file());
}

fn pty() -> (PtyMaster, String) {
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname_r(&master).unwrap();
    (master, name)
}

/// Answers as a gateway without faults until a message of this name has come, and that too; what has come, one line each.
#[track_caller]
fn serve(mut master: &PtyMaster, framing: Framing, last: &str) -> Vec<String> {
    let (mut decoder, mut log) = (Decoder::new(framing), Vec::new());
    let mut buffer = [0; 1024];
    for _ in 0..4000 {
        match master.read(&mut buffer) {
            Ok(len) => decoder.push(&buffer[..len]),
            // Nobody has opened it, or said anything.
            Err(_) => sleep(Duration::from_millis(5)),
        }
        while let Some(octets) = decoder.poll_frame() {
            let frame = decode(&octets).unwrap();
            log.push(frame.to_string());
            let mut line = BytesMut::new();
            good(&frame).iter().for_each(|answer| framing.encode(answer, &mut line));
            master.write_all(&line).unwrap();
        }
        if log.last().is_some_and(|line| line.starts_with(last)) {
            return log;
        }
    }
    panic!("no {last}, but {log:?}");
}
