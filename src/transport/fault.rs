//! What can be wrong with a serial line, told apart, each with what to do next.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::line::{Flow, Line};
use crate::devices::{self, Denied, Found, Holders, Roots};
use crate::framing::xbee;

/// Devices that are listed where one is missing: more than a line of the log should have.
const LISTED_MAX: usize = 8;

/// What is wrong with a serial line. `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no such device.
    #[error("{} is not there; {}; it is opened when it comes", device.display(), listed(there))]
    NotFound {
        /// Its name.
        device: PathBuf,
        /// Serial devices that there are.
        there: Vec<PathBuf>,
    },
    /// This user may not open it.
    #[error("{} may not be opened: {denied}; {}", device.display(), denied.remedy())]
    Denied {
        /// Its name.
        device: PathBuf,
        /// Why not.
        denied: Box<Denied>,
    },
    /// Another process has it.
    #[error("{} is in use by {}", device.display(), users(device, holders))]
    Busy {
        /// Its name.
        device: PathBuf,
        /// Who, as far as we may know.
        holders: Holders,
    },
    /// It is open here, and another process has it open too.
    #[error("{} is also open in {}, and what comes is heard by one of the two only: stop that, or name another device", device.display(), holders.describe())]
    Shared {
        /// Its name.
        device: PathBuf,
        /// Who, as far as we may know.
        holders: Holders,
    },
    /// It is no serial device.
    #[error("{} is no serial device: `mqtt-sn-gateway devices` lists those", device.display())]
    NotSerial {
        /// Its name.
        device: PathBuf,
    },
    /// The driver refuses, for another reason.
    #[error("{} cannot be opened with {spoken}: {reason}; if it can at another baud, its driver does not take this one", device.display())]
    Refused {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
        /// What the system says.
        reason: String,
    },
    /// It was there and is not.
    #[error("{} is gone, pulled out or without power; sessions are kept, it is opened when it comes back", device.display())]
    Vanished {
        /// Its name.
        device: PathBuf,
    },
    /// It takes nothing.
    #[error("{} takes nothing that is sent: {}", device.display(), held_by(*flow))]
    Held {
        /// Its name.
        device: PathBuf,
        /// Why that may be.
        flow: Flow,
    },
    /// Nothing was heard for a long time after it was opened.
    #[error("{} is open and nothing was heard for {minutes} minutes: are RX and TX crossed, does the other side speak {spoken}, is a sensor in reach?", device.display())]
    Unheard {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
        /// For how long.
        minutes: u64,
    },
    /// What is heard is no message.
    #[error("{} gives only garbage, {octets} octets and no {}?", device.display(), expected(*framing, spoken))]
    Garbage {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
        /// How frames are told apart; `None`: as an XBee does.
        framing: Option<&'static str>,
        /// Octets of it.
        octets: u64,
    },
    /// What is heard on a plain line are frames of an XBee.
    #[error("{} gives frames of an XBee in API mode: set type: xbee and api: {}, or its AP to 0", device.display(), name(*mode))]
    ApiFrames {
        /// Its name.
        device: PathBuf,
        /// How they are written.
        mode: xbee::Mode,
    },
    /// An XBee says nothing.
    #[error("{} is open and the radio does not answer: has it power, does it speak {spoken} (BD, NB, SB), is its AP 1 or 2, is it an XBee?", device.display())]
    Silent {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
    },
    /// An XBee is a plain line, where it should speak in frames.
    #[error("{} is an XBee in transparent mode (AP 0): set its AP to 2, or to 1 and api: plain; for one peer alone type: serial does too", device.display())]
    Transparent {
        /// Its name.
        device: PathBuf,
    },
    /// An XBee writes frames otherwise than the configuration says.
    #[error("{} is an XBee with AP {}: set api: {}; it is spoken with like that for now", device.display(), number(*says), name(*says))]
    OtherMode {
        /// Its name.
        device: PathBuf,
        /// How it does.
        says: xbee::Mode,
    },
}

impl Fault {
    /// Why opening failed.
    pub(super) fn of_open(line: &Line, error: &tokio_serial::Error) -> Self {
        use tokio_serial::ErrorKind;
        let device = line.device.clone();
        match error.kind() {
            ErrorKind::Io(io::ErrorKind::NotFound) => {
                return Self::not_found(device);
            }
            ErrorKind::Io(io::ErrorKind::PermissionDenied) => return Self::denied(device),
            ErrorKind::NoDevice => {
                let real = device.canonicalize().unwrap_or_else(|_| device.clone());
                let holders = devices::holders(&Roots::default().proc, &real);
                return Self::Busy { device, holders };
            }
            _ => {}
        }
        match fs::metadata(&device) {
            Ok(meta) if !meta.file_type().is_char_device() => Self::NotSerial { device },
            // It went in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::not_found(device),
            _ => match error.description.as_str() {
                // Not by its mode, but by DeviceAllow= of a unit, say.
                "Operation not permitted" => Self::denied(device),
                "Not a typewriter" | "Inappropriate ioctl for device" => Self::NotSerial { device },
                reason => Self::Refused { device, spoken: line.spoken(), reason: reason.to_owned() },
            },
        }
    }

    fn denied(device: PathBuf) -> Self {
        match Denied::of(&device) {
            Some(denied) => Self::Denied { device, denied: Box::new(denied) },
            None => Self::not_found(device),
        }
    }

    fn not_found(device: PathBuf) -> Self {
        let there = Found::read(&Roots::default()).adapters.into_iter().filter(|it| it.is_there);
        Self::NotFound { device, there: there.map(|it| it.path).collect() }
    }

    /// Whether somebody has to look after it. Not where sensors may just have nothing to say, or where the gateway has helped
    /// itself.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Self::Unheard { .. } | Self::OtherMode { .. })
    }
}

/// `there are /dev/ttyUSB0, /dev/ttyACM0`
fn listed(there: &[PathBuf]) -> String {
    let names: Vec<_> = there.iter().take(LISTED_MAX).map(|device| device.display().to_string()).collect();
    match there.len() {
        0 => "there is no serial device at all: is the radio plugged in?".to_owned(),
        1 => format!("there is {}", names.join(", ")),
        2..=LISTED_MAX => format!("there are {}", names.join(", ")),
        all => format!("there are {} and {} more", names.join(", "), all - LISTED_MAX),
    }
}

/// Who has a device, and what to do about it.
fn users(device: &Path, holders: &Holders) -> String {
    match holders.seen.as_slice() {
        [] if holders.own => "this gateway itself: is it another transport's too?".to_owned(),
        [] => format!(
            "a process that this user may not see, often ModemManager: `sudo mqtt-sn-gateway devices` and `sudo fuser -v {}` \
             show it",
            device.display()
        ),
        seen if seen.iter().any(|holder| holder.name == "ModemManager") => format!(
            "{}, which takes it for a modem: keep it away with the rule of `mqtt-sn-gateway devices --udev`",
            holders.describe()
        ),
        _ => format!("{}: stop that, or name another device", holders.describe()),
    }
}

fn held_by(flow: Flow) -> &'static str {
    match flow {
        Flow::None => "its driver is stuck, pull it out and put it back",
        Flow::RtsCts => "the other side holds CTS; is it wired? else set flow: none",
        Flow::XonXoff => "the other side sent XOFF; does it use flow control? else set flow: none",
    }
}

/// What was to be heard, and what may be why it was not.
fn expected(framing: Option<&str>, spoken: &str) -> String {
    match framing {
        Some(framing) => format!("message: does the other side speak {spoken} and framing {framing}"),
        None => format!("API frame: does the radio speak {spoken} (BD, NB, SB)"),
    }
}

/// The parameter AP of an XBee.
fn number(mode: xbee::Mode) -> u8 {
    match mode {
        xbee::Mode::Plain => 1,
        xbee::Mode::Escaped => 2,
    }
}

/// As it is called in the configuration.
fn name(mode: xbee::Mode) -> &'static str {
    match mode {
        xbee::Mode::Plain => "plain",
        xbee::Mode::Escaped => "escaped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Holder;
    use crate::transport::line::Parity;

    #[track_caller]
    fn says(fault: Fault, text: &str) {
        assert_eq!(fault.to_string(), text);
    }

    fn tty() -> PathBuf {
        "/dev/ttyUSB0".into()
    }

    fn spoken() -> String {
        "9600 baud 8N1".into()
    }

    #[test]
    fn a_device_that_is_missing_comes_with_those_that_are_there() {
        let missing = |there: &[&str]| Fault::NotFound {
            device: tty(),
            there: there.iter().map(PathBuf::from).collect(),
        };
        says(
            missing(&[]),
            "/dev/ttyUSB0 is not there; there is no serial device at all: is the radio plugged in?; it is opened when it comes",
        );
        says(missing(&["/dev/a"]), "/dev/ttyUSB0 is not there; there is /dev/a; it is opened when it comes");
        says(
            missing(&["/dev/a", "/dev/b"]),
            "/dev/ttyUSB0 is not there; there are /dev/a, /dev/b; it is opened when it comes",
        );
        let many = missing(&["/dev/x"; 10]).to_string();
        assert!(many.contains("/dev/x and 2 more; it is opened"), "{many}");
        assert_eq!(many.matches("/dev/x").count(), 8);
    }

    #[test]
    fn who_may_not_open_it_is_told_how_to() {
        let denied = Denied {
            line: "ttyUSB0".into(),
            owner: "root".into(),
            group: "dialout".into(),
            mode: 0o660,
            user: "pi".into(),
            groups: vec!["pi".into(), "video".into()],
            cause: devices::Cause::NotInGroup,
        };
        says(
            Fault::Denied { device: tty(), denied: Box::new(denied) },
            "/dev/ttyUSB0 may not be opened: it belongs to root:dialout with mode 0660, and this is pi in pi, video; \
             sudo usermod -aG dialout pi, then log in again; in a unit of systemd SupplementaryGroups=dialout",
        );
    }

    /// `DeviceAllow=` of a unit, which the mode of the device does not show.
    #[test]
    fn what_is_forbidden_by_something_else_than_its_mode_says_so() {
        let device = PathBuf::from("/dev/null");
        let line =
            Line { device, baud: 9600, data_bits: 8, parity: Parity::None, stop_bits: 1, flow: Flow::None };
        let refused = |text: &str| tokio_serial::Error::new(tokio_serial::ErrorKind::Unknown, text);
        let fault = Fault::of_open(&line, &refused("Operation not permitted"));
        assert!(
            matches!(&fault, Fault::Denied { denied, .. } if denied.cause == devices::Cause::Forbidden),
            "{fault}"
        );
        assert!(matches!(Fault::of_open(&line, &refused("Input/output error")), Fault::Refused { .. }));
        assert!(matches!(Fault::of_open(&line, &refused("Not a typewriter")), Fault::NotSerial { .. }));
    }

    #[test]
    fn who_holds_it_is_named() {
        let busy = |names: &[&str], own| {
            let seen =
                names.iter().zip(42..).map(|(name, pid)| Holder { pid, name: (*name).into() }).collect();
            Fault::Busy { device: tty(), holders: Holders { seen, own, hidden: !own } }
        };
        says(
            busy(&["minicom", "cat"], false),
            "/dev/ttyUSB0 is in use by minicom (pid 42), cat (pid 43): stop that, or name another device",
        );
        says(
            busy(&["ModemManager"], false),
            "/dev/ttyUSB0 is in use by ModemManager (pid 42), which takes it for a modem: keep it away with the rule of \
             `mqtt-sn-gateway devices --udev`",
        );
        says(
            busy(&[], false),
            "/dev/ttyUSB0 is in use by a process that this user may not see, often ModemManager: `sudo mqtt-sn-gateway devices` \
             and `sudo fuser -v /dev/ttyUSB0` show it",
        );
        says(
            busy(&[], true),
            "/dev/ttyUSB0 is in use by this gateway itself: is it another transport's too?",
        );
    }

    #[test]
    fn who_has_it_open_too_is_named_and_the_line_is_used() {
        let seen = vec![Holder { pid: 700, name: "agetty".into() }];
        let shared = Fault::Shared { device: tty(), holders: Holders { seen, own: true, hidden: true } };
        says(
            shared,
            "/dev/ttyUSB0 is also open in agetty (pid 700), and what comes is heard by one of the two only: stop that, or name \
             another device",
        );
    }

    #[test]
    fn what_is_no_line_or_none_any_more_is_told() {
        says(
            Fault::NotSerial { device: "/etc/passwd".into() },
            "/etc/passwd is no serial device: `mqtt-sn-gateway devices` lists those",
        );
        says(
            Fault::Refused { device: tty(), spoken: spoken(), reason: "Invalid argument".into() },
            "/dev/ttyUSB0 cannot be opened with 9600 baud 8N1: Invalid argument; if it can at another baud, its driver does not \
             take this one",
        );
        says(
            Fault::Vanished { device: tty() },
            "/dev/ttyUSB0 is gone, pulled out or without power; sessions are kept, it is opened when it comes back",
        );
    }

    #[test]
    fn a_line_that_takes_nothing_says_what_holds_it() {
        for (flow, why) in [
            (Flow::None, "its driver is stuck, pull it out and put it back"),
            (Flow::RtsCts, "the other side holds CTS; is it wired? else set flow: none"),
            (Flow::XonXoff, "the other side sent XOFF; does it use flow control? else set flow: none"),
        ] {
            let text = format!("/dev/ttyUSB0 takes nothing that is sent: {why}");
            says(Fault::Held { device: tty(), flow }, &text);
        }
    }

    #[test]
    fn silence_and_garbage_are_told_apart() {
        says(
            Fault::Unheard { device: tty(), spoken: spoken(), minutes: 5 },
            "/dev/ttyUSB0 is open and nothing was heard for 5 minutes: are RX and TX crossed, does the other side speak \
             9600 baud 8N1, is a sensor in reach?",
        );
        says(
            Fault::Silent { device: tty(), spoken: spoken() },
            "/dev/ttyUSB0 is open and the radio does not answer: has it power, does it speak 9600 baud 8N1 (BD, NB, SB), is its \
             AP 1 or 2, is it an XBee?",
        );
        let garbage = |framing| Fault::Garbage { device: tty(), spoken: spoken(), framing, octets: 99 };
        says(
            garbage(Some("slip+crc")),
            "/dev/ttyUSB0 gives only garbage, 99 octets and no message: does the other side speak 9600 baud 8N1 and framing \
             slip+crc?",
        );
        says(
            garbage(None),
            "/dev/ttyUSB0 gives only garbage, 99 octets and no API frame: does the radio speak 9600 baud 8N1 (BD, NB, SB)?",
        );
    }

    #[test]
    fn a_wrong_mode_says_which_one_is_right() {
        says(
            Fault::ApiFrames { device: tty(), mode: xbee::Mode::Escaped },
            "/dev/ttyUSB0 gives frames of an XBee in API mode: set type: xbee and api: escaped, or its AP to 0",
        );
        says(
            Fault::Transparent { device: tty() },
            "/dev/ttyUSB0 is an XBee in transparent mode (AP 0): set its AP to 2, or to 1 and api: plain; for one peer alone \
             type: serial does too",
        );
        says(
            Fault::OtherMode { device: tty(), says: xbee::Mode::Plain },
            "/dev/ttyUSB0 is an XBee with AP 1: set api: plain; it is spoken with like that for now",
        );
    }
}
