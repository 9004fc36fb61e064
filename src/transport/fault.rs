//! What can be wrong with a serial line, told apart, each with what to do next.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups};

use super::line::{Flow, Line};
use crate::framing::xbee;

/// Devices that are listed where one is missing: more than a line of the log should have.
const LISTED_MAX: usize = 8;

/// Processes that are looked into for who holds a device: all of a machine that this is meant for.
const PROCESSES_MAX: usize = 4096;

/// What is wrong with a serial line. `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There is no such device.
    NotFound {
        /// Its name.
        device: PathBuf,
        /// Serial devices that there are.
        there: Vec<PathBuf>,
    },
    /// This user may not open it.
    Denied(Denied),
    /// Another process has it.
    Busy {
        /// Its name.
        device: PathBuf,
        /// Who, as far as we may know.
        holder: Option<Holder>,
    },
    /// It is no serial device.
    NotSerial {
        /// Its name.
        device: PathBuf,
    },
    /// The driver refuses, for another reason.
    Refused {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
        /// What the system says.
        reason: String,
    },
    /// It was there and is not.
    Vanished {
        /// Its name.
        device: PathBuf,
    },
    /// It takes nothing.
    Held {
        /// Its name.
        device: PathBuf,
        /// Why that may be.
        flow: Flow,
    },
    /// Nothing was heard for a long time after it was opened.
    Unheard {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
        /// For how long.
        minutes: u64,
    },
    /// What is heard is no message.
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
    ApiFrames {
        /// Its name.
        device: PathBuf,
        /// How they are written.
        mode: xbee::Mode,
    },
    /// An XBee says nothing.
    Silent {
        /// Its name.
        device: PathBuf,
        /// `9600 baud 8N1`
        spoken: String,
    },
    /// An XBee is a plain line, where it should speak in frames.
    Transparent {
        /// Its name.
        device: PathBuf,
    },
    /// An XBee writes frames otherwise than the configuration says.
    OtherMode {
        /// Its name.
        device: PathBuf,
        /// How it does.
        says: xbee::Mode,
    },
}

/// Who may open a device, and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Its name.
    pub device: PathBuf,
    /// Who owns it.
    pub owner: String,
    /// Its group.
    pub group: String,
    /// Its permissions.
    pub mode: u32,
    /// Who we are.
    pub user: String,
    /// Whether we are in that group.
    pub member: bool,
}

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl Fault {
    /// Why opening failed.
    pub(super) fn of_open(line: &Line, error: &tokio_serial::Error) -> Self {
        use tokio_serial::ErrorKind;
        let device = line.device.clone();
        match error.kind() {
            ErrorKind::Io(io::ErrorKind::NotFound) => {
                return Self::NotFound { device, there: serial_devices(Path::new("/dev")) };
            }
            ErrorKind::Io(io::ErrorKind::PermissionDenied) => return Self::Denied(Denied::of(&device)),
            ErrorKind::NoDevice => {
                let holder = holder_of(&device, Path::new("/proc"));
                return Self::Busy { device, holder };
            }
            _ => {}
        }
        match fs::metadata(&device) {
            Ok(meta) if !meta.file_type().is_char_device() => Self::NotSerial { device },
            // It went in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::NotFound { device, there: serial_devices(Path::new("/dev")) }
            }
            _ => match error.description.as_str() {
                "Not a typewriter" | "Inappropriate ioctl for device" => Self::NotSerial { device },
                reason => Self::Refused { device, spoken: line.spoken(), reason: reason.to_owned() },
            },
        }
    }

    /// Whether the line cannot be used because of it.
    pub fn is_fatal(&self) -> bool {
        !matches!(
            self,
            Self::Held { .. }
                | Self::Unheard { .. }
                | Self::Garbage { framing: Some(_), .. }
                | Self::ApiFrames { .. }
                | Self::OtherMode { .. }
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { device, there } => {
                write!(f, "{} is not there; ", device.display())?;
                match there.as_slice() {
                    [] => f.write_str("there is no serial device at all: is the radio plugged in?")?,
                    [one] => write!(f, "there is {}", one.display())?,
                    [first, more @ ..] => {
                        write!(f, "there are {}", first.display())?;
                        more.iter()
                            .take(LISTED_MAX - 1)
                            .try_for_each(|device| write!(f, ", {}", device.display()))?;
                        if there.len() > LISTED_MAX {
                            write!(f, " and {} more", there.len() - LISTED_MAX)?;
                        }
                    }
                }
                f.write_str("; it is opened when it comes")
            }
            Self::Denied(denied) => denied.fmt(f),
            Self::Busy { device, holder } => {
                write!(f, "{} is in use by ", device.display())?;
                match holder {
                    Some(Holder { pid, name }) if name == "ModemManager" => write!(
                        f,
                        "ModemManager (pid {pid}), which takes it for a modem: keep it away with the rule of `mqtt-sn-gateway devices \
                         --udev`"
                    ),
                    Some(Holder { pid, name }) => {
                        write!(f, "{name} (pid {pid}): stop that, or name another device")
                    }
                    None => write!(
                        f,
                        "a process that this user may not see: `sudo fuser -v {}` shows it",
                        device.display()
                    ),
                }
            }
            Self::NotSerial { device } => {
                write!(f, "{} is no serial device: `mqtt-sn-gateway devices` lists those", device.display())
            }
            Self::Refused { device, spoken, reason } => write!(
                f,
                "{} cannot be opened with {spoken}: {reason}; if it can at another baud, its driver does not take this one",
                device.display()
            ),
            Self::Vanished { device } => write!(
                f,
                "{} is gone, pulled out or without power; sessions are kept, it is opened when it comes back",
                device.display()
            ),
            Self::Held { device, flow } => {
                write!(f, "{} takes nothing that is sent: ", device.display())?;
                f.write_str(match flow {
                    Flow::None => "its driver is stuck, pull it out and put it back",
                    Flow::RtsCts => "the other side holds CTS; is it wired? else set flow: none",
                    Flow::XonXoff => {
                        "the other side sent XOFF; does it use flow control? else set flow: none"
                    }
                })
            }
            Self::Unheard { device, spoken, minutes } => write!(
                f,
                "{} is open and nothing was heard for {minutes} minutes: are RX and TX crossed, does the other side speak {spoken}, \
                 is a sensor in reach?",
                device.display()
            ),
            Self::Garbage { device, spoken, framing: Some(framing), octets } => write!(
                f,
                "{} gives only garbage, {octets} octets and no message: does the other side speak {spoken} and framing {framing}?",
                device.display()
            ),
            Self::Garbage { device, spoken, framing: None, octets } => write!(
                f,
                "{} gives only garbage, {octets} octets and no API frame: does the radio speak {spoken} (BD, NB, SB)?",
                device.display()
            ),
            Self::ApiFrames { device, mode } => write!(
                f,
                "{} gives frames of an XBee in API mode: set type: xbee and api: {}, or its AP to 0",
                device.display(),
                name(*mode)
            ),
            Self::Silent { device, spoken } => write!(
                f,
                "{} is open and the radio does not answer: has it power, does it speak {spoken} (BD, NB, SB), is its AP 1 or 2, \
                 is it an XBee?",
                device.display()
            ),
            Self::Transparent { device } => write!(
                f,
                "{} is an XBee in transparent mode (AP 0): set its AP to 2, or to 1 and api: plain; for one peer alone type: serial \
                 does too",
                device.display()
            ),
            Self::OtherMode { device, says } => write!(
                f,
                "{} is an XBee with AP {}: set api: {}; it is spoken with like that for now",
                device.display(),
                match says {
                    xbee::Mode::Plain => 1,
                    xbee::Mode::Escaped => 2,
                },
                name(*says)
            ),
        }
    }
}

/// As it is called in the configuration.
fn name(mode: xbee::Mode) -> &'static str {
    match mode {
        xbee::Mode::Plain => "plain",
        xbee::Mode::Escaped => "escaped",
    }
}

impl Denied {
    fn of(device: &Path) -> Self {
        let name_of = |uid: u32| {
            let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            user.map_or_else(|| uid.to_string(), |user| user.name)
        };
        let meta = fs::metadata(device).ok();
        let (owner, gid, mode) =
            meta.map_or((0, 0, 0), |meta| (meta.uid(), meta.gid(), meta.mode() & 0o7777));
        let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
        let groups = getgroups().unwrap_or_default();
        Self {
            device: device.to_owned(),
            owner: name_of(owner),
            group: group.map_or_else(|| gid.to_string(), |group| group.name),
            mode,
            user: name_of(geteuid().as_raw()),
            member: getegid().as_raw() == gid || groups.iter().any(|group| group.as_raw() == gid),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, owner, group, mode, user, member } = self;
        write!(
            f,
            "{user} may not open {}, which is {owner}'s and group {group}'s with mode {mode:04o}: ",
            device.display()
        )?;
        if mode & 0o060 != 0o060 {
            return write!(f, "its group may not either, a udev rule with MODE=\"0660\" lets it");
        }
        if *member {
            return f.write_str(
                "its group may, so something else forbids it, such as DeviceAllow= of a systemd unit",
            );
        }
        write!(
            f,
            "`sudo usermod -aG {group} {user}` and a new login, or SupplementaryGroups={group} in a systemd unit"
        )
    }
}

/// Serial devices below `dev`, by their lasting names if they have some.
fn serial_devices(dev: &Path) -> Vec<PathBuf> {
    let list = |dir: PathBuf, is: fn(&str) -> bool| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found
    };
    let by_id = list(dev.join("serial/by-id"), |_| true);
    let named: Vec<_> = by_id.iter().filter_map(|name| name.canonicalize().ok()).collect();
    let kinds = |name: &str| {
        ["ttyUSB", "ttyACM", "ttyAMA", "serial"].iter().any(|kind| {
            name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let others = list(dev.to_owned(), kinds).into_iter();
    let others = others.filter(|path| !path.canonicalize().is_ok_and(|real| named.contains(&real)));
    by_id.iter().cloned().chain(others).collect()
}

/// A process below `proc` that has this device open, if we may see it; this one, under another name, if there is no other.
fn holder_of(device: &Path, proc: &Path) -> Option<Holder> {
    let device = device.canonicalize().ok()?;
    let holds = |pid: &u32| {
        let files = fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == device)
    };
    let processes = fs::read_dir(proc).ok()?.flatten().take(PROCESSES_MAX);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holders: Vec<_> = pids.filter(holds).collect();
    let other = holders.iter().find(|pid| **pid != std::process::id());
    let pid = *other.or(holders.first())?;
    let name = fs::read_to_string(proc.join(format!("{pid}/comm"))).unwrap_or_default();
    Some(Holder { pid, name: name.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            device: tty(),
            owner: "root".into(),
            group: "dialout".into(),
            mode: 0o660,
            user: "pi".into(),
            member: false,
        };
        let text = "pi may not open /dev/ttyUSB0, which is root's and group dialout's with mode 0660: ";
        let says = |denied: Denied, rest: &str| says(Fault::Denied(denied), &format!("{text}{rest}"));
        says(
            denied.clone(),
            "`sudo usermod -aG dialout pi` and a new login, or SupplementaryGroups=dialout in a systemd unit",
        );
        says(
            Denied { member: true, ..denied.clone() },
            "its group may, so something else forbids it, such as DeviceAllow= of a systemd unit",
        );
        let closed = Denied { mode: 0o600, ..denied };
        let text = text.replace("0660", "0600");
        assert_eq!(
            closed.to_string(),
            format!("{text}its group may not either, a udev rule with MODE=\"0660\" lets it")
        );
    }

    #[test]
    fn who_holds_it_is_named() {
        let busy =
            |name: &str| Fault::Busy { device: tty(), holder: Some(Holder { pid: 42, name: name.into() }) };
        says(
            busy("minicom"),
            "/dev/ttyUSB0 is in use by minicom (pid 42): stop that, or name another device",
        );
        says(
            busy("ModemManager"),
            "/dev/ttyUSB0 is in use by ModemManager (pid 42), which takes it for a modem: keep it away with the rule of \
             `mqtt-sn-gateway devices --udev`",
        );
        says(
            Fault::Busy { device: tty(), holder: None },
            "/dev/ttyUSB0 is in use by a process that this user may not see: `sudo fuser -v /dev/ttyUSB0` shows it",
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

    #[test]
    fn devices_are_listed_once_by_their_lasting_names() {
        let dev = tempfile::tempdir().unwrap();
        let root = dev.path().canonicalize().unwrap();
        assert_eq!(serial_devices(&root), [""; 0].map(PathBuf::from));
        for name in ["ttyUSB0", "ttyUSB1", "ttyACM3", "tty1", "ttyUSBx", "null"] {
            fs::write(root.join(name), "").unwrap();
        }
        fs::create_dir_all(root.join("serial/by-id")).unwrap();
        std::os::unix::fs::symlink("../../ttyUSB1", root.join("serial/by-id/usb-radio-if00")).unwrap();
        let expected = ["serial/by-id/usb-radio-if00", "ttyACM3", "ttyUSB0"].map(|name| root.join(name));
        assert_eq!(serial_devices(&root), expected);
    }

    #[test]
    fn the_holder_is_the_process_with_the_device_open() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("ttyUSB0");
        fs::write(&device, "").unwrap();
        let proc = dir.path().join("proc");
        for (pid, name, file) in [("7", "cat\n", "/dev/null"), ("4000000", "minicom\n", "ttyUSB0")] {
            fs::create_dir_all(proc.join(pid).join("fd")).unwrap();
            fs::write(proc.join(pid).join("comm"), name).unwrap();
            let file = dir.path().join(file).canonicalize().unwrap();
            std::os::unix::fs::symlink(file, proc.join(pid).join("fd/3")).unwrap();
        }
        fs::create_dir_all(proc.join("self/fd")).unwrap();
        let holder = holder_of(&device, &proc);
        assert_eq!(holder, Some(Holder { pid: 4_000_000, name: "minicom".into() }));
        assert_eq!(holder_of(Path::new("/dev/null"), &dir.path().join("none")), None);
    }
}
