//! Serial devices as the system shows them: which there are, what they probably are, who may use them, and who does.
//!
//! [`Found::read`] reads sysfs, /dev, /proc and udev's data, all of them below [`Roots`]; nothing is opened, so a radio does not
//! notice. The page for people, the JSON for programs and the rule for udev are made from it. Transports use [`holders`] and
//! [`may_use`] to say why a port cannot be opened.

mod access;
mod known;
mod list;
mod report;

use std::path::PathBuf;

use serde::Serialize;

pub use self::access::{Cause, Denied, Holder, Holders, holders, may_use};
pub use self::known::{Guess, Kind};
pub use self::report::NO_RULE;

/// Where the system shows itself.
#[derive(Debug, Clone)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// The device files.
    pub dev: PathBuf,
    /// The processes.
    pub proc: PathBuf,
    /// What udev knows.
    pub udev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into(), udev: "/run/udev".into() }
    }
}

/// What there is.
#[derive(Debug, Clone)]
pub struct Found {
    /// Serial adapters, those on the USB first; 256 at most.
    pub adapters: Vec<Adapter>,
    /// What should be a serial adapter and has no serial line.
    pub without: Vec<Without>,
    /// Programs that run and take serial lines for themselves.
    pub takers: Vec<Holder>,
}

/// A serial line and what is at its end.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The name by which it is found again after a restart, else [`Adapter::device`].
    pub path: PathBuf,
    /// The name that the kernel gave it.
    pub device: PathBuf,
    /// Its other names.
    pub names: Vec<PathBuf>,
    /// The file of that name exists: udev or a container may have left it out.
    pub is_there: bool,
    /// Why this process may not use it.
    pub denied: Option<Denied>,
    /// Who has it open.
    pub holders: Holders,
    /// ModemManager was told to leave it alone.
    pub modem_manager_ignores: bool,
    /// The kernel writes its messages to it.
    pub console: bool,
    /// What it is on the USB, if it is.
    pub usb: Option<Usb>,
    /// Its driver; empty if unknown.
    pub driver: String,
    /// What it probably is.
    pub guess: Guess,
}

/// What a device on the USB says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usb {
    /// idVendor.
    pub vendor: u16,
    /// idProduct.
    pub product_id: u16,
    /// Who made it; empty if it does not say. So are the next two.
    pub manufacturer: String,
    /// What it is.
    pub product: String,
    /// Its serial number.
    pub serial: String,
    /// Another stick of its kind says the same one: it tells nothing.
    pub has_twin: bool,
    /// bInterfaceNumber of this serial line: a stick may have several.
    pub interface: Option<u8>,
    /// Where it is plugged in, such as `1-1.2`.
    pub port: String,
}

/// What is on the USB and has no serial line: its driver is missing, or somebody took it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Without {
    /// idVendor.
    pub vendor: u16,
    /// idProduct.
    pub product: u16,
    /// What it should be.
    pub name: &'static str,
    /// Where it is plugged in.
    pub port: String,
}

/// A text from a device or a process, fit for a terminal.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
