//! `devices`, in trees like those in which a system shows its serial lines.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::Folder;

/// A machine: /sys, /dev, /proc and /run/udev below one directory.
struct Machine {
    dir: TempDir,
    sticks: u32,
}

/// A stick in a port.
struct Stick<'a> {
    tty: &'a str,
    ids: (u16, u16),
    says: (&'a str, &'a str),
    serial: &'a str,
    driver: &'a str,
    interface: u8,
}

/// One whose interface is 0 and that has a serial number.
fn stick<'a>(tty: &'a str, ids: (u16, u16), says: (&'a str, &'a str), driver: &'a str) -> Stick<'a> {
    Stick { tty, ids, says, serial: "A10K1234", driver, interface: 0 }
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: TempDir::new().unwrap(), sticks: 0 };
        for dir in ["sys/class/tty", "sys/bus/usb/devices", "dev", "proc", "udev/data"] {
            fs::create_dir_all(machine.at(dir)).unwrap();
        }
        machine.process("1", "systemd", "/dev/null");
        // Another user has to look into it.
        fs::set_permissions(machine.dir.path(), Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A USB device in the next port; its path in /sys.
    fn device(&mut self, ids: (u16, u16), says: (&str, &str), serial: &str) -> String {
        self.sticks += 1;
        let port = format!("1-1.{}", self.sticks);
        let device = format!("sys/devices/pci0000:00/0000:00:14.0/usb1/1-1/{port}");
        self.write(&format!("{device}/idVendor"), &format!("{:04x}", ids.0));
        self.write(&format!("{device}/idProduct"), &format!("{:04x}", ids.1));
        for (name, text) in [("manufacturer", says.0), ("product", says.1), ("serial", serial)] {
            if !text.is_empty() {
                self.write(&format!("{device}/{name}"), text);
            }
        }
        self.link(&format!("sys/bus/usb/devices/{port}"), &format!("../../../{}", &device["sys/".len()..]));
        device
    }

    fn plug_in(&mut self, stick: &Stick<'_>) {
        let device = self.device(stick.ids, stick.says, stick.serial);
        self.line(&device, stick);
    }

    /// A serial line of a USB device.
    fn line(&self, device: &str, stick: &Stick<'_>) {
        let Stick { tty, interface, driver, serial, .. } = stick;
        let port = device.rsplit('/').next().unwrap();
        let part = format!("{device}/{port}:1.{interface}");
        self.write(&format!("{part}/bInterfaceNumber"), &format!("{interface:02x}"));
        let (owner, id) = if *driver == "cdc_acm" {
            (part.clone(), format!("usb-Maker_Stick_{serial}-if{interface:02x}"))
        } else {
            (format!("{part}/{tty}"), format!("usb-Maker_Stick_{serial}-if{interface:02x}-port0"))
        };
        self.tty(&owner, tty, driver);
        if !serial.is_empty() {
            self.link(&format!("dev/serial/by-id/{id}-{tty}"), &format!("../../{tty}"));
        }
        let path = format!("dev/serial/by-path/pci-0000:00:14.0-usb-0:{}:1.{interface}-port0", &port[2..]);
        self.link(&path, &format!("../../{tty}"));
    }

    /// A serial line with its device file.
    fn tty(&self, owner: &str, tty: &str, driver: &str) {
        let up = "../".repeat(owner.matches('/').count());
        self.link(&format!("{owner}/driver"), &format!("{up}bus/drivers/{driver}"));
        self.write(&format!("{owner}/tty/{tty}/dev"), &format!("188:{tty}"));
        self.link(
            &format!("{owner}/tty/{tty}/device"),
            &format!("../../../{}", Path::new(owner).file_name().unwrap().to_str().unwrap()),
        );
        self.link(&format!("sys/class/tty/{tty}"), &format!("../../{}/tty/{tty}", &owner["sys/".len()..]));
        fs::write(self.at(&format!("dev/{tty}")), "").unwrap();
    }

    fn process(&self, pid: &str, name: &str, opens: &str) {
        self.write(&format!("proc/{pid}/comm"), name);
        self.link(&format!("proc/{pid}/fd/5"), opens);
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let trees = [("--sysfs", "sys"), ("--dev", "dev"), ("--proc", "proc"), ("--udev-data", "udev")];
        let trees =
            trees.iter().flat_map(|(key, dir)| [(*key).to_owned(), self.at(dir).display().to_string()]);
        ["devices".to_owned()]
            .into_iter()
            .chain(trees)
            .chain(more.iter().map(|it| (*it).to_owned()))
            .collect()
    }

    fn devices(&self, more: &[&str]) -> super::Ended {
        let arguments = self.arguments(more);
        super::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn json(&self) -> Value {
        let ended = self.devices(&["--json"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

/// What people have on their desks: a stick of each sort, and what a Raspberry Pi has on its pins.
fn desk() -> Machine {
    let mut machine = Machine::new();
    let ftdi = (0x0403, 0x6001);
    let cp210x = (0x10c4, 0xea60);
    let sticks = [
        stick("ttyUSB0", ftdi, ("FTDI", "FT232R USB UART"), "ftdi_sio"),
        stick("ttyUSB1", cp210x, ("Silicon Labs", "CP2102N USB to UART Bridge Controller"), "cp210x"),
        // Two of these have no serial numbers and the same names.
        Stick { serial: "", ..stick("ttyUSB2", (0x1a86, 0x7523), ("", "USB Serial"), "ch341-uart") },
        Stick { serial: "", ..stick("ttyUSB3", (0x1a86, 0x7523), ("", "USB Serial"), "ch341-uart") },
        stick("ttyUSB4", (0x067b, 0x2303), ("Prolific Technology Inc.", "USB-Serial Controller"), "pl2303"),
        stick("ttyUSB5", (0x0403, 0x6015), ("Digi International", "XBee USB Adapter"), "ftdi_sio"),
        stick("ttyUSB6", cp210x, ("ITead", "Sonoff Zigbee 3.0 USB Dongle Plus"), "cp210x"),
        stick("ttyACM0", (0x1a86, 0x55d4), ("ITEAD", "SONOFF Zigbee 3.0 USB Dongle Plus V2"), "cdc_acm"),
        stick("ttyUSB7", cp210x, ("Nabu Casa", "SkyConnect v1.0"), "cp210x"),
        stick("ttyUSB8", cp210x, ("Silicon Labs", "slae.sh cc2652rb stick - slaesh's iot stuff"), "cp210x"),
        stick("ttyUSB9", (0x1a86, 0x7523), ("Electrolama", "zig-a-zig-ah! (zzh!)"), "ch341-uart"),
        stick("ttyUSB10", (0x0403, 0x6015), ("dresden elektronik", "ConBee"), "ftdi_sio"),
        stick(
            "ttyACM1",
            (0x1cf1, 0x0030),
            ("dresden elektronik ingenieurtechnik GmbH", "ConBee II"),
            "cdc_acm",
        ),
        stick("ttyUSB11", (0x0403, 0x6015), ("dresden elektronik", "ConBee III"), "ftdi_sio"),
        stick("ttyUSB12", cp210x, ("Silicon Labs", "ZiGate"), "cp210x"),
        stick("ttyACM2", (0x0451, 0x16a8), ("Texas Instruments", "TI CC2531 USB CDC"), "cdc_acm"),
        stick("ttyACM3", (0x0658, 0x0200), ("", ""), "cdc_acm"),
        stick("ttyACM4", (0x2341, 0x0043), ("Arduino (www.arduino.cc)", "Uno"), "cdc_acm"),
        stick("ttyACM5", (0x2e8a, 0x000a), ("Raspberry Pi", "Pico"), "cdc_acm"),
        stick("ttyACM6", (0x303a, 0x1001), ("Espressif", "USB JTAG/serial debug unit"), "cdc_acm"),
    ];
    for (number, stick) in (1234..).zip(&sticks) {
        let own = format!("A10K{number}");
        let serial = if stick.serial.is_empty() { "" } else { &own };
        machine.plug_in(&Stick { serial, ..*stick });
    }
    // One stick with two radios.
    let ids = (0x10c4, 0x8a2a);
    let both = machine.device(ids, ("Silicon Labs", "HubZ Smart Home Controller"), "71200");
    for (interface, tty) in [(0, "ttyUSB13"), (1, "ttyUSB14")] {
        let line = Stick { serial: "71200", interface, ..stick(tty, ids, ("", ""), "cp210x") };
        machine.line(&both, &line);
    }
    machine.tty("sys/devices/platform/soc/fe201000.serial", "ttyAMA0", "uart-pl011");
    machine.link("dev/serial0", "ttyAMA0");
    machine
}

#[test]
fn a_desk_full_of_sticks_is_told_apart() {
    let ended = desk().devices(&[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let golden = include_str!("devices.txt");
    assert_eq!(ended.stdout, golden, "what it prints is in tests/cli/devices.txt");
}

#[test]
fn programs_get_the_same_in_json() {
    let found = desk().json();
    let adapters = found["adapters"].as_array().unwrap();
    assert_eq!(adapters.len(), 23);
    let of = |tty: &str| {
        let device = format!("/dev/{tty}");
        adapters.iter().find(|adapter| adapter["device"] == device.as_str()).unwrap()
    };
    let ftdi = of("ttyUSB0");
    assert_eq!(ftdi["path"], "/dev/serial/by-id/usb-Maker_Stick_A10K1234-if00-port0-ttyUSB0");
    assert_eq!((&ftdi["usb"]["vendor"], &ftdi["usb"]["product"]), (&"0403".into(), &"6001".into()));
    assert_eq!(ftdi["driver"], "ftdi_sio");
    assert_eq!((&ftdi["kind"], &ftdi["carries"]), (&"bridge".into(), &true.into()));
    assert_eq!(ftdi["access"]["ok"], true);
    assert_eq!(ftdi["holders"]["seen"], Value::Array(Vec::new()));
    // Sticks without serial numbers are known by their place.
    assert_eq!(of("ttyUSB2")["path"], "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1.3:1.0-port0");
    assert_eq!(of("ttyUSB5")["kind"], "xbee");
    let foreign = [
        "ttyUSB6", "ttyUSB7", "ttyUSB8", "ttyUSB9", "ttyUSB10", "ttyUSB11", "ttyUSB12", "ttyUSB13",
        "ttyUSB14",
    ];
    for tty in foreign.into_iter().chain(["ttyACM0", "ttyACM1", "ttyACM2", "ttyACM3"]) {
        assert_eq!((&of(tty)["carries"], &of(tty)["yaml"]), (&false.into(), &Value::Null), "{tty}");
    }
    assert_eq!(of("ttyUSB13")["what"], "HUSBZB-1, its Z-Wave side");
    assert_eq!(of("ttyUSB14")["what"], "HUSBZB-1, its Zigbee side");
    assert_eq!(of("ttyAMA0")["path"], "/dev/serial0");
    assert_eq!(of("ttyAMA0")["usb"], Value::Null);
}

/// The transports of a configuration are its lines, all of them.
#[test]
fn check_accepts_what_is_to_be_pasted() {
    let found = desk().json();
    let lines: Vec<_> =
        found["adapters"].as_array().unwrap().iter().filter_map(|adapter| adapter["yaml"].as_str()).collect();
    assert_eq!(lines.len(), 10);
    let ended = Folder::with(format!("transports:\n  {}\n", lines.join("\n  "))).run(&["check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.contains("transport xbee: xbee /dev/serial/by-id/"), "{}", ended.stdout);
}

#[test]
fn who_has_a_line_open_is_named_and_who_takes_lines_too() {
    let mut machine = Machine::new();
    machine.plug_in(&stick("ttyUSB0", (0x0403, 0x6001), ("FTDI", "FT232R USB UART"), "ftdi_sio"));
    machine.plug_in(&stick("ttyUSB1", (0x0403, 0x6001), ("FTDI", "FT232R USB UART"), "ftdi_sio"));
    machine.process("612", "ModemManager", "/dev/ttyUSB0");
    machine.process("700", "agetty", "/dev/ttyUSB10");
    let ended = machine.devices(&[]);
    let held: Vec<_> = ended.stdout.lines().filter(|line| line.contains("held by")).collect();
    assert_eq!(held, ["  held by   ModemManager (pid 612)", "  held by   nobody"]);
    assert!(
        ended.stdout.contains("- ModemManager (pid 612) runs and may send AT commands"),
        "{}",
        ended.stdout
    );
    // Once it leaves both alone there is nothing to be said.
    for tty in ["ttyUSB0", "ttyUSB1"] {
        machine.write(&format!("udev/data/c188:{tty}"), "E:ID_BUS=usb\nE:ID_MM_DEVICE_IGNORE=1");
    }
    let ended = machine.devices(&[]);
    assert!(!ended.stdout.contains("AT commands"), "{}", ended.stdout);
}

#[test]
fn a_line_that_we_may_not_use_says_whose_it_is_and_what_to_do() {
    let mut machine = Machine::new();
    machine.plug_in(&stick("ttyUSB0", (0x0403, 0x6001), ("FTDI", "FT232R USB UART"), "ftdi_sio"));
    let device = machine.at("dev/ttyUSB0");
    let is_root = fs::metadata(&device).unwrap().uid() == 0;
    // Root may do anything: ask as somebody else.
    fs::set_permissions(&device, Permissions::from_mode(if is_root { 0o660 } else { 0o000 })).unwrap();
    let program = machine.at("mqtt-sn-gateway");
    fs::copy(env!("CARGO_BIN_EXE_mqtt-sn-gateway"), &program).unwrap();
    let mut command = Command::new(program);
    command.args(machine.arguments(&["--json"])).current_dir("/");
    if is_root {
        // Of group daemon, which may use the second of two lines.
        command.uid(65_534).gid(1);
        machine.plug_in(&stick("ttyUSB1", (0x0403, 0x6001), ("FTDI", "FT232R USB UART"), "ftdi_sio"));
        let other = machine.at("dev/ttyUSB1");
        fs::set_permissions(&other, Permissions::from_mode(0o660)).unwrap();
        std::os::unix::fs::chown(other, None, Some(1)).unwrap();
    }
    let output = command.output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let access = &found["adapters"][0]["access"];
    assert_eq!((&access["ok"], &access["exists"]), (&false.into(), &true.into()), "{found}");
    let denied = &access["denied"];
    assert_eq!(
        denied["cause"], "closed",
        "nothing is gained in the group of root, or without permissions: {found}"
    );
    assert_eq!(denied["mode"], if is_root { 0o660 } else { 0 });
    assert!(access["remedy"].as_str().unwrap().contains("devices --udev"), "{found}");
    if is_root {
        assert_eq!((&denied["owner"], &denied["user"]), (&"root".into(), &"nobody".into()), "{found}");
        assert_eq!(found["adapters"][1]["access"]["ok"], true, "{found}");
    }
}

#[test]
fn the_rule_for_udev_names_each_radio_and_no_other_stick() {
    let mut machine = Machine::new();
    let ftdi = (0x0403, 0x6001);
    machine.plug_in(&stick("ttyUSB0", ftdi, ("FTDI", "FT232R USB UART"), "ftdi_sio"));
    machine.plug_in(&Stick {
        serial: "",
        ..stick("ttyUSB1", (0x1a86, 0x7523), ("", "USB Serial"), "ch341-uart")
    });
    machine.plug_in(&stick("ttyUSB2", (0x0403, 0x6015), ("dresden elektronik", "ConBee"), "ftdi_sio"));
    let ended = machine.devices(&["--udev"]);
    assert_eq!(
        ended.stdout,
        "# /etc/udev/rules.d/61-mqtt-sn-radio.rules, as written by: mqtt-sn-gateway devices --udev\n\
         \n\
         # USB serial bridge (FTDI), 0403:6001 FTDI \"FT232R USB UART\", serial number A10K1234, port 1-1.1\n\
         SUBSYSTEM==\"tty\", ENV{ID_USB_INTERFACE_NUM}==\"00\", ATTRS{idVendor}==\"0403\", ATTRS{idProduct}==\"6001\", \
         ATTRS{serial}==\"A10K1234\", SYMLINK+=\"mqtt-sn/radio\", GROUP=\"dialout\", MODE=\"0660\", TAG+=\"systemd\", \
         ENV{ID_MM_PORT_IGNORE}=\"1\"\n\
         SUBSYSTEM==\"usb\", ENV{DEVTYPE}==\"usb_device\", ATTR{idVendor}==\"0403\", ATTR{idProduct}==\"6001\", \
         ATTR{serial}==\"A10K1234\", ENV{ID_MM_DEVICE_IGNORE}=\"1\"\n\
         \n\
         # USB serial bridge (WCH CH340), 1a86:7523 \"USB Serial\", no serial number, port 1-1.2\n\
         SUBSYSTEM==\"tty\", ENV{ID_USB_INTERFACE_NUM}==\"00\", KERNELS==\"1-1.2\", ATTRS{idVendor}==\"1a86\", \
         ATTRS{idProduct}==\"7523\", SYMLINK+=\"mqtt-sn/radio-2\", GROUP=\"dialout\", MODE=\"0660\", TAG+=\"systemd\", \
         ENV{ID_MM_PORT_IGNORE}=\"1\"\n\
         SUBSYSTEM==\"usb\", ENV{DEVTYPE}==\"usb_device\", KERNEL==\"1-1.2\", ATTR{idVendor}==\"1a86\", \
         ATTR{idProduct}==\"7523\", ENV{ID_MM_DEVICE_IGNORE}=\"1\"\n"
    );
}

/// As cheap ones with a CP2102 are sold.
#[test]
fn two_sticks_of_a_kind_with_one_serial_number_are_told_by_their_place() {
    let mut machine = Machine::new();
    let cp2102 = |tty| Stick {
        serial: "0001",
        ..stick(tty, (0x10c4, 0xea60), ("Silicon Labs", "CP2102 USB to UART Bridge Controller"), "cp210x")
    };
    machine.plug_in(&cp2102("ttyUSB0"));
    machine.plug_in(&cp2102("ttyUSB1"));
    // Of another kind: the number is its own.
    machine
        .plug_in(&Stick { serial: "0001", ..stick("ttyUSB2", (0x0403, 0x6001), ("FTDI", ""), "ftdi_sio") });
    // What udev makes of them: one link for both.
    let by_id = machine.at("dev/serial/by-id");
    fs::remove_file(by_id.join("usb-Maker_Stick_0001-if00-port0-ttyUSB0")).unwrap();

    let rules = machine.devices(&["--udev"]).stdout;
    let rules: Vec<_> = rules.lines().filter(|line| line.starts_with("SUBSYSTEM==\"tty\"")).collect();
    for (rule, port) in rules[..2].iter().zip(["1-1.1", "1-1.2"]) {
        assert!(rule.contains(&format!("KERNELS==\"{port}\"")) && !rule.contains("serial"), "{rule}");
    }
    assert!(rules[2].contains("ATTRS{serial}==\"0001\"") && !rules[2].contains("KERNELS"), "{}", rules[2]);

    let found = machine.json();
    let of = |index: usize, key: &str| found["adapters"][index][key].as_str().unwrap().to_owned();
    for (index, place) in ["1.1", "1.2"].into_iter().enumerate() {
        let path = format!("/dev/serial/by-path/pci-0000:00:14.0-usb-0:{place}:1.0-port0");
        assert_eq!(of(index, "path"), path);
        assert!(of(index, "yaml").contains(&path), "{found}");
        assert_eq!(found["adapters"][index]["usb"]["has_twin"], true);
    }
    assert!(of(2, "path").starts_with("/dev/serial/by-id/"), "{found}");
    let told = machine.devices(&[]).stdout;
    assert_eq!(told.matches("serial number 0001, which another one has too, port").count(), 2, "{told}");
}

/// What is on the pins and what speaks Zigbee get no rule either.
#[test]
fn a_rule_for_no_stick_says_that_there_is_none() {
    let mut machine = Machine::new();
    let expected = "there is no radio on the USB, which a rule could be for: plug it in first\n";
    let says_so = |machine: &Machine, code: i32| {
        let ended = machine.devices(&["--udev"]);
        assert_eq!((ended.code, ended.stderr), (code, format!("mqtt-sn-gateway: {expected}")));
        let (header, rest) = ended.stdout.split_once('\n').unwrap();
        assert!(header.starts_with("# /etc/udev/rules.d/"), "{header}");
        assert_eq!(rest, format!("# {expected}"));
    };
    says_so(&machine, 66);
    machine.tty("sys/devices/platform/soc/fe215040.serial", "ttyS0", "bcm2835-aux-uart");
    machine.plug_in(&stick("ttyUSB0", (0x0403, 0x6015), ("dresden elektronik", "ConBee"), "ftdi_sio"));
    says_so(&machine, 0);
    machine.plug_in(&stick("ttyUSB1", (0x0403, 0x6001), ("FTDI", ""), "ftdi_sio"));
    assert_eq!(machine.devices(&["--udev"]).stderr, "");
}

#[test]
fn a_tree_that_is_no_sysfs_is_told() {
    let dir = TempDir::new().unwrap();
    for more in [&[][..], &["--json"], &["--udev"]] {
        let arguments = [&["devices", "--sysfs", dir.path().to_str().unwrap()], more].concat();
        let ended = super::run(&arguments);
        let expected =
            format!("mqtt-sn-gateway: {} is no sysfs: there is no class/tty in it\n", dir.path().display());
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr), (66, "", expected));
    }
}

#[test]
fn a_machine_without_adapters_says_what_to_check_and_ends_with_66() {
    let machine = Machine::new();
    // What every machine has: terminals, and serial lines that were looked for in vain.
    machine.write("sys/devices/virtual/tty/tty1/dev", "4:1");
    machine.link("sys/class/tty/tty1", "../../devices/virtual/tty/tty1");
    machine.tty("sys/devices/platform/serial8250", "ttyS1", "serial8250");
    machine.write("sys/devices/platform/serial8250/tty/ttyS1/type", "0");
    let ended = machine.devices(&[]);
    assert_eq!(ended.code, 66);
    assert!(
        ended.stdout.starts_with("no serial adapter found\n- A stick: is it listed by lsusb"),
        "{}",
        ended.stdout
    );
    let ended = machine.devices(&["--json"]);
    assert_eq!(ended.code, 66);
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(found["adapters"], Value::Array(Vec::new()));
    assert_eq!(found["advice"].as_array().unwrap().len(), 4);
}

#[test]
fn a_stick_without_a_driver_is_named_and_who_may_have_taken_it() {
    let mut machine = Machine::new();
    machine.device((0x1a86, 0x7523), ("", "USB Serial"), "");
    machine.process("301", "brltty", "/dev/null");
    let ended = machine.devices(&[]);
    assert_eq!(ended.code, 66);
    let expected = "- 1a86:7523 on port 1-1.1 looks like a USB serial bridge (WCH CH340) and has no serial line: see sudo dmesg \
                    for its driver; brltty (pid 301) takes some of them: sudo apt remove brltty\n";
    assert!(ended.stdout.contains(expected), "{}", ended.stdout);
}

#[test]
fn the_pins_of_a_raspberry_pi_with_a_login_on_them_are_told() {
    let machine = Machine::new();
    machine.tty("sys/devices/platform/soc/fe215040.serial", "ttyS0", "bcm2835-aux-uart");
    machine.link("dev/serial0", "ttyS0");
    machine.write("sys/class/tty/console/active", "tty1 ttyS0");
    machine.process("700", "agetty", "/dev/ttyS0");
    let ended = machine.devices(&[]);
    assert_eq!(ended.code, 0);
    for words in [
        "/dev/serial0\n  device    /dev/ttyS0, bcm2835-aux-uart\n  what      the Raspberry Pi's mini UART\n",
        "held by   agetty (pid 700)\n",
        "the kernel writes its messages here\n",
        "- A login or the kernel uses /dev/ttyS0: sudo systemctl disable --now serial-getty@ttyS0; on a Raspberry Pi: sudo \
         raspi-config, Interface Options, Serial Port: no login shell, but the hardware enabled; then restart\n",
        "device: /dev/serial0, baud: 115200",
    ] {
        assert!(ended.stdout.contains(words), "{words:?} in {}", ended.stdout);
    }
}

/// Names and texts come from whoever made the stick.
#[test]
fn what_a_stick_says_cannot_write_to_the_terminal_or_into_the_rule() {
    let mut machine = Machine::new();
    let evil = "\x1b[2Jradio\nRUN+=\"/bin/sh\"";
    machine.plug_in(&stick("ttyUSB0", (0x0403, 0x6001), (evil, evil), "ftdi_sio"));
    for arguments in [&[][..], &["--udev"], &["--json"]] {
        let ended = machine.devices(arguments);
        assert_eq!(ended.code, 0);
        assert!(!ended.stdout.contains('\x1b'), "{}", ended.stdout);
        assert!(!ended.stdout.lines().any(|line| line.starts_with("RUN")), "{}", ended.stdout);
    }
}
