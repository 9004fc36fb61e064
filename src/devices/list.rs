//! From the trees in which the system shows itself to a list of adapters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::access::{process_name, processes};
use super::known::Guess;
use super::{Adapter, Found, Holder, Holders, Roots, Usb, Without, holders, may_use, printable};

/// Adapters that are listed: more serial lines than any machine with radios has.
const ADAPTERS_MAX: usize = 256;

/// Octets of a text that a device says of itself: a string descriptor of USB has 126 characters.
const TEXT_MAX: usize = 126;

/// Programs that take serial lines for themselves.
const TAKERS: [&str; 2] = ["ModemManager", "brltty"];

impl Found {
    /// Reads what is there at the moment.
    pub fn read(roots: &Roots) -> Self {
        let links = links(&roots.dev);
        let class = roots.sys.join("class/tty");
        let consoles = text(&class.join("console/active"));
        let consoles: Vec<_> = consoles.split_whitespace().collect();
        let mut adapters: Vec<_> = entries(&class)
            .into_iter()
            .filter_map(|name| adapter(roots, &class, &name, &links, consoles.contains(&name.as_str())))
            .take(ADAPTERS_MAX)
            .collect();
        part_twins(&mut adapters);
        adapters.sort_by_key(|adapter| adapter.usb.is_none());
        let without = without_driver(&roots.sys, &adapters);
        Self { adapters, without, takers: takers(&roots.proc) }
    }
}

/// Sticks of a kind that say the same serial number, such as the 0001 that many a CP2102 has, are told apart by their place: there
/// is one name in by-id for all of them, and it is that of the last one that udev saw.
fn part_twins(adapters: &mut [Adapter]) {
    let mut ports: BTreeMap<(u16, u16, String), BTreeSet<String>> = BTreeMap::new();
    let key = |usb: &Usb| (usb.vendor, usb.product_id, usb.serial.clone());
    for usb in adapters.iter().filter_map(|adapter| adapter.usb.as_ref()).filter(|usb| !usb.serial.is_empty())
    {
        ports.entry(key(usb)).or_default().insert(usb.port.clone());
    }
    for Adapter { path, names, device, usb, .. } in adapters {
        let Some(usb) = usb.as_mut().filter(|usb| ports.get(&key(usb)).is_some_and(|ports| ports.len() > 1))
        else {
            continue;
        };
        usb.has_twin = true;
        if path.starts_with("/dev/serial/by-id") {
            let by_path = names.iter().position(|name| name.starts_with("/dev/serial/by-path"));
            let better = by_path.map_or_else(|| device.clone(), |at| names.remove(at));
            names.insert(0, std::mem::replace(path, better));
        }
    }
}

/// The names in a directory, in order. None if there is no such directory.
fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_by_key(|name| natural(name));
    names
}

/// ttyUSB10 comes after ttyUSB9.
fn natural(name: &str) -> (String, u64) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem.to_owned(), name[stem.len()..].parse().unwrap_or_default())
}

/// The content of an attribute, fit to be printed; empty if there is none.
fn text(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    printable(&String::from_utf8_lossy(&text).chars().take(TEXT_MAX).collect::<String>())
}

fn number(path: &Path) -> Option<u16> {
    u16::from_str_radix(&text(path), 16).ok()
}

/// The name of what a link leads to.
fn target(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The names that stay the same over a restart, the best first, of each device.
fn links(dev: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for dir in ["serial/by-id", "serial/by-path", "mqtt-sn"] {
        for name in entries(&dev.join(dir)) {
            if let Some(device) = target(&dev.join(dir).join(&name)) {
                found.entry(device).or_default().push(Path::new("/dev").join(dir).join(name));
            }
        }
    }
    // The Raspberry Pi's name for the one that is on its pins, whichever that is.
    for name in ["serial0", "serial1"] {
        if let Some(device) = target(&dev.join(name)) {
            found.entry(device).or_default().push(Path::new("/dev").join(name));
        }
    }
    found
}

fn adapter(
    roots: &Roots,
    class: &Path,
    name: &str,
    links: &BTreeMap<String, Vec<PathBuf>>,
    console: bool,
) -> Option<Adapter> {
    let tty = class.join(name);
    // Terminals of the screen and of other programs have no device. One of the type 0 was looked for and is not there.
    let device = fs::canonicalize(tty.join("device")).ok()?;
    if text(&tty.join("type")) == "0" || name.starts_with("ttyGS") {
        return None;
    }
    let usb = usb(&device);
    let driver = driver(&device);
    let guess = match &usb {
        Some(usb) => Guess::of_usb(usb, &driver),
        None => Guess::of_uart(&driver, name),
    };
    let node = roots.dev.join(name);
    let device = Path::new("/dev").join(name);
    let mut names = links.get(name).cloned().unwrap_or_default();
    names.push(device.clone());
    let holders: Holders = holders(&roots.proc, &device);
    Some(Adapter {
        path: names.remove(0),
        names: names.into_iter().filter(|name| *name != device).collect(),
        is_there: node.exists(),
        denied: may_use(&node).err(),
        modem_manager_ignores: is_ignored(roots, &tty),
        device,
        usb,
        driver,
        holders,
        console,
        guess,
    })
}

/// The driver of a device, else that of what it is part of: new kernels have two drivers of no interest between.
fn driver(device: &Path) -> String {
    let drivers = device.ancestors().filter_map(|part| target(&part.join("driver")));
    drivers.take(3).find(|name| name != "port" && name != "ctrl").unwrap_or_default()
}

/// The stick that a device is part of.
fn usb(device: &Path) -> Option<Usb> {
    let stick = device.ancestors().find(|part| part.join("idVendor").exists())?;
    let interface = device.ancestors().find(|part| part.join("bInterfaceNumber").exists());
    let interface = interface.and_then(|part| number(&part.join("bInterfaceNumber")));
    Some(Usb {
        vendor: number(&stick.join("idVendor"))?,
        product_id: number(&stick.join("idProduct"))?,
        manufacturer: text(&stick.join("manufacturer")),
        product: text(&stick.join("product")),
        serial: text(&stick.join("serial")),
        has_twin: false,
        interface: interface.and_then(|number| number.try_into().ok()),
        port: stick.file_name()?.to_string_lossy().into_owned(),
    })
}

/// Whether udev has told ModemManager to leave it alone.
fn is_ignored(roots: &Roots, tty: &Path) -> bool {
    let data = fs::read_to_string(roots.udev.join("data").join(format!("c{}", text(&tty.join("dev")))));
    data.is_ok_and(|data| {
        data.lines().any(|line| matches!(line, "E:ID_MM_DEVICE_IGNORE=1" | "E:ID_MM_PORT_IGNORE=1"))
    })
}

/// What is on the USB, looks like a serial adapter and has no serial line.
fn without_driver(sys: &Path, adapters: &[Adapter]) -> Vec<Without> {
    let dir = sys.join("bus/usb/devices");
    let has_line = |port: &str| adapters.iter().any(|it| it.usb.as_ref().is_some_and(|usb| usb.port == port));
    let found = entries(&dir).into_iter().filter(|port| !has_line(port)).filter_map(|port| {
        let (vendor, product) =
            (number(&dir.join(&port).join("idVendor"))?, number(&dir.join(&port).join("idProduct"))?);
        Some(Without { vendor, product, name: Guess::is_adapter(vendor, product)?, port })
    });
    found.take(ADAPTERS_MAX).collect()
}

/// The programs that run and take serial lines.
fn takers(proc: &Path) -> Vec<Holder> {
    let all = processes(proc).into_iter().map(|pid| (pid, process_name(&proc.join(pid.to_string()))));
    all.filter(|(_, name)| TAKERS.contains(&name.as_str())).map(|(pid, name)| Holder { pid, name }).collect()
}
