//! What was found, for people, for programs and for udev.

use std::fmt::{self, Display, Formatter, Write as _};

use serde_json::{Value, json};

use super::access::without_login;
use super::{Adapter, Found, Kind, Usb};

/// Where the rule of `--udev` belongs: after 60-serial.rules, which finds out what it asks for.
const RULES: &str = "/etc/udev/rules.d/61-mqtt-sn-radio.rules";

/// What is said instead of a rule for udev.
pub const NO_RULE: &str = "there is no radio on the USB, which a rule could be for: plug it in first";

/// For people: each adapter, then what to do.
impl Display for Found {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = self.names();
        for (adapter, name) in self.adapters.iter().zip(&names) {
            writeln!(f, "{}", adapter.path.display())?;
            for (label, text) in adapter.lines() {
                writeln!(f, "  {label:<9} {text}")?;
            }
            match name {
                Some(name) => writeln!(f, "  {:<9} {}\n", "paste", adapter.yaml(name))?,
                None => writeln!(f)?,
            }
        }
        let advice = self.advice();
        if self.adapters.is_empty() {
            writeln!(f, "no serial adapter found")?;
        } else if names.iter().any(Option::is_some) {
            writeln!(
                f,
                "Paste a line below `transports:` in gateway.yaml; `mqtt-sn-gateway check` reads it."
            )?;
        }
        advice.iter().try_for_each(|advice| writeln!(f, "- {advice}"))
    }
}

impl Adapter {
    /// What is said of it, with a label each.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let driver = if self.driver.is_empty() { "no driver known" } else { &self.driver };
        let mut lines = vec![("device", format!("{}, {driver}", self.device.display()))];
        lines.extend(self.names.iter().map(|name| ("also", name.display().to_string())));
        lines.extend(self.usb.as_ref().map(|usb| ("usb", usb.to_string())));
        lines.push(("what", self.guess.name.to_owned()));
        if self.guess.carries() {
            lines.push(("note", self.guess.note.to_owned()));
        } else {
            lines.push(("cannot", format!("carry MQTT-SN: {}", self.guess.note)));
        }
        lines.push(("access", self.access()));
        lines.push(("held by", self.holders.describe()));
        if self.console {
            lines.push(("console", "the kernel writes its messages here".to_owned()));
        }
        lines
    }

    fn access(&self) -> String {
        match &self.denied {
            _ if !self.is_there => format!("no: {} does not exist here", self.device.display()),
            None => "yes, to read and write".to_owned(),
            Some(denied) => format!("no: {denied}"),
        }
    }

    /// A line for `transports:` in gateway.yaml.
    fn yaml(&self, name: &str) -> String {
        let device = quoted(&self.path.display().to_string());
        match self.guess.kind {
            Kind::Xbee => {
                format!("- {{ name: {name}, type: xbee, device: {device}, baud: 9600, api: escaped }}")
            }
            _ => {
                format!(
                    "- {{ name: {name}, type: serial, device: {device}, baud: 115200, framing: slip+crc }}"
                )
            }
        }
    }
}

/// A path as it can stand in a flow mapping of YAML. `${` would be a variable.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+@=~-".contains(c);
    let is_tame = path.starts_with('/') && path.chars().all(plain);
    if is_tame { path.to_owned() } else { format!("'{}'", path.replace('\'', "''").replace("${", "$${")) }
}

/// `0403:6001 FTDI "FT232R USB UART", serial number A10K1234, port 1-1.2`
impl Display for Usb {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { vendor, product_id, manufacturer, product, serial, has_twin, port, .. } = self;
        write!(f, "{vendor:04x}:{product_id:04x}")?;
        if !manufacturer.is_empty() {
            write!(f, " {manufacturer}")?;
        }
        if !product.is_empty() {
            write!(f, " \"{product}\"")?;
        }
        if serial.is_empty() {
            f.write_str(", no serial number")?;
        } else {
            write!(f, ", serial number {serial}")?;
            if *has_twin {
                f.write_str(", which another one has too")?;
            }
        }
        write!(f, ", port {port}")
    }
}

impl Found {
    /// A name for each transport that could be made of an adapter: `radio`, `radio-2`, `xbee`.
    fn names(&self) -> Vec<Option<String>> {
        let (mut serial, mut xbee) = (0, 0);
        let mut next = |adapter: &Adapter| {
            let (stem, count) = match adapter.guess.kind {
                Kind::Foreign => return None,
                Kind::Xbee => ("xbee", &mut xbee),
                Kind::Bridge | Kind::Board | Kind::Uart | Kind::Unknown => ("radio", &mut serial),
            };
            *count += 1;
            Some(if *count == 1 { stem.to_owned() } else { format!("{stem}-{count}") })
        };
        self.adapters.iter().map(&mut next).collect()
    }

    /// What to do about what is in the way.
    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let usable = || self.adapters.iter().filter(|adapter| adapter.guess.carries());
        let mut remedies: Vec<_> =
            usable().filter_map(|adapter| Some(adapter.denied.as_ref()?.remedy())).collect();
        remedies.sort();
        remedies.dedup();
        advice.extend(remedies.into_iter().map(|remedy| format!("No access: {remedy}")));
        let taken = |name: &str| self.takers.iter().find(|taker| taker.name == name);
        if let Some(manager) = taken("ModemManager")
            && usable().any(|adapter| adapter.usb.is_some() && !adapter.modem_manager_ignores)
        {
            advice.push(format!(
                "{manager} runs and may send AT commands to a radio, mostly just after it was plugged in. To keep it away: \
                 mqtt-sn-gateway devices --udev | sudo tee {RULES}, then sudo udevadm control --reload and plug the radio in again"
            ));
        }
        let has_login =
            |it: &&Adapter| it.console || it.holders.seen.iter().any(|it| it.name.contains("getty"));
        for adapter in usable().filter(has_login) {
            let line = adapter.device.file_name().unwrap_or_default().to_string_lossy();
            let (device, remedy) = (adapter.device.display(), without_login(&line));
            advice.push(format!("A login or the kernel uses {device}: {remedy}"));
        }
        if usable().any(|adapter| adapter.usb.is_some() && adapter.path == adapter.device) {
            advice.push(
                "A stick without a name in /dev/serial/by-id may be another ttyUSB after the next restart: udev is not \
                 running, or this is a container"
                    .to_owned(),
            );
        }
        for it in &self.without {
            advice.push(format!(
                "{:04x}:{:04x} on port {} looks like a {} and has no serial line: see sudo dmesg for its driver{}",
                it.vendor,
                it.product,
                it.port,
                it.name,
                match taken("brltty") {
                    Some(brltty) => format!("; {brltty} takes some of them: sudo apt remove brltty"),
                    None => String::new(),
                }
            ));
        }
        if self.adapters.is_empty() {
            advice.extend(NOTHING_FOUND.map(str::to_owned));
        }
        advice
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let adapters = self.adapters.iter().zip(self.names()).map(|(adapter, name)| {
            let usb = adapter.usb.as_ref();
            json!({
                "path": adapter.path,
                "device": adapter.device,
                "names": adapter.names,
                "usb": usb.map(|usb| json!({
                    "vendor": format!("{:04x}", usb.vendor),
                    "product": format!("{:04x}", usb.product_id),
                    "manufacturer": usb.manufacturer,
                    "name": usb.product,
                    "serial": usb.serial,
                    "has_twin": usb.has_twin,
                    "interface": usb.interface,
                    "port": usb.port,
                })),
                "driver": adapter.driver,
                "kind": adapter.guess.kind,
                "what": adapter.guess.name,
                "carries": adapter.guess.carries(),
                "note": adapter.guess.note,
                "access": {
                    "ok": adapter.is_there && adapter.denied.is_none(),
                    "exists": adapter.is_there,
                    "denied": adapter.denied,
                    "remedy": adapter.denied.as_ref().map(|denied| denied.remedy()),
                },
                "holders": adapter.holders,
                "console": adapter.console,
                "modem_manager_ignores": adapter.modem_manager_ignores,
                "yaml": name.map(|name| adapter.yaml(&name)),
            })
        });
        json!({
            "adapters": adapters.collect::<Vec<_>>(),
            "without_driver": self.without,
            "takers": self.takers,
            "advice": self.advice(),
        })
    }

    /// Whether there is anything that [`Found::udev`] could have a rule for.
    pub fn has_rule(&self) -> bool {
        self.adapters.iter().any(|adapter| adapter.usb.is_some() && adapter.guess.carries())
    }

    /// A rule for udev that gives each radio on the USB a name, and keeps ModemManager away from it.
    pub fn udev(&self) -> String {
        let mut text = format!("# {RULES}, as written by: mqtt-sn-gateway devices --udev\n");
        if !self.has_rule() {
            let _ = writeln!(text, "# {NO_RULE}");
        }
        for (adapter, name) in self.adapters.iter().zip(self.names()) {
            let (Some(usb), Some(name)) = (&adapter.usb, name) else { continue };
            // Nothing here can fail.
            let _ = write!(text, "\n# {}, {}\n{}", adapter.guess.name, usb, rule(usb, &name));
        }
        text
    }
}

/// What a serial number may have in it, unquoted: others are told by their place.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c))
}

fn rule(usb: &Usb, name: &str) -> String {
    let Usb { vendor, product_id, serial, has_twin, port, interface, .. } = usb;
    // Two of a kind without serial numbers of their own differ by where they are plugged in alone.
    let which = if is_plain(serial) && !has_twin {
        format!(
            "ATTRS{{idVendor}}==\"{vendor:04x}\", ATTRS{{idProduct}}==\"{product_id:04x}\", ATTRS{{serial}}==\"{serial}\""
        )
    } else {
        format!(
            "KERNELS==\"{port}\", ATTRS{{idVendor}}==\"{vendor:04x}\", ATTRS{{idProduct}}==\"{product_id:04x}\""
        )
    };
    let line = match interface {
        Some(number) => format!("ENV{{ID_USB_INTERFACE_NUM}}==\"{number:02x}\", "),
        None => String::new(),
    };
    let device = which.replace("ATTRS", "ATTR").replace("KERNELS", "KERNEL");
    format!(
        "SUBSYSTEM==\"tty\", {line}{which}, SYMLINK+=\"mqtt-sn/{name}\", GROUP=\"dialout\", MODE=\"0660\", \
         TAG+=\"systemd\", ENV{{ID_MM_PORT_IGNORE}}=\"1\"\n\
         SUBSYSTEM==\"usb\", ENV{{DEVTYPE}}==\"usb_device\", {device}, ENV{{ID_MM_DEVICE_IGNORE}}=\"1\"\n"
    )
}

/// What is to be checked when there is no adapter at all.
const NOTHING_FOUND: [&str; 4] = [
    "A stick: is it listed by lsusb, and what does sudo dmesg say when it is plugged in? Some cables only charge",
    "A radio on the pins of a Raspberry Pi: sudo raspi-config, Interface Options, Serial Port: no login shell, but the \
     hardware enabled; then restart",
    "A container or a virtual machine sees only the devices that it was given",
    "A radio that is plugged in later is found then: name its path in gateway.yaml, the gateway waits for it",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_yaml_would_misread_is_quoted() {
        assert_eq!(
            quoted("/dev/serial/by-id/usb-FTDI_A-if00-port0"),
            "/dev/serial/by-id/usb-FTDI_A-if00-port0"
        );
        assert_eq!(quoted("/dev/serial/by-path/pci-0000:00:14.0"), "'/dev/serial/by-path/pci-0000:00:14.0'");
        assert_eq!(quoted("/dev/it's, ${HOME}"), "'/dev/it''s, $${HOME}'");
    }

    #[test]
    fn a_serial_number_that_could_change_a_rule_is_not_in_it() {
        let usb = Usb {
            vendor: 0x403,
            serial: "1\", RUN+=\"/bin/sh".to_owned(),
            port: "1-1.2".to_owned(),
            ..Usb::default()
        };
        let rule = rule(&usb, "radio");
        assert!(!rule.contains("RUN"), "{rule}");
        assert!(rule.contains("KERNELS==\"1-1.2\"") && rule.contains("KERNEL==\"1-1.2\""), "{rule}");
    }
}
