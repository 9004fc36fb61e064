//! What an adapter probably is: by its numbers on the USB, and by what it says of itself.

use serde::Serialize;

use super::Usb;

/// What an adapter is for the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A chip between USB and a serial line: what is behind it decides.
    Bridge,
    /// An XBee, or a board that is made for one.
    Xbee,
    /// A board with a processor of its own.
    Board,
    /// A serial line of this machine.
    Uart,
    /// A device that cannot carry MQTT-SN.
    Foreign,
    /// Nobody knows.
    Unknown,
}

/// A guess at what an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    /// What it is for the gateway.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// What somebody should know who wants to use it, or why it cannot be used.
    pub note: &'static str,
}

/// A line of the table of what is known.
struct Known {
    vendor: Option<u16>,
    /// Any product of the vendor if empty.
    products: &'static [u16],
    /// Any of these is in what it says of itself; empty: whatever it says.
    words: &'static [&'static str],
    /// The number of the interface, where a stick has several.
    interface: Option<u8>,
    guess: Guess,
}

const ZNP: &str = "it speaks ZNP, the protocol of Zigbee coordinators by Texas Instruments; Zigbee2MQTT and ZHA use it. \
     Its radio takes Zigbee frames only";
const EZSP: &str = "it speaks EZSP, the protocol of Zigbee coordinators by Silicon Labs; Zigbee2MQTT and ZHA use it. \
     Its radio takes Zigbee frames only";
const DECONZ: &str = "it speaks the protocol of deCONZ, of a Zigbee coordinator; deCONZ, Zigbee2MQTT and ZHA use it. \
     Its radio takes Zigbee frames only";
const ZIGATE: &str =
    "it speaks the protocol of ZiGate, of a Zigbee coordinator. Its radio takes Zigbee frames only";
const ZIGBEE: &str =
    "it is a Zigbee coordinator with a protocol of its own. Its radio takes Zigbee frames only";
const ZWAVE: &str =
    "it speaks the Serial API of Z-Wave; Z-Wave JS uses it. Its radio takes Z-Wave frames only";
const OWN_RADIO: &str = "its radio speaks a protocol of its own to devices of its kind";
const MODEM: &str =
    "it reaches the mobile network by AT commands; the gateway uses it as a network, by ModemManager or PPP";
const GPS: &str = "it tells positions and takes no data";
const BEHIND: &str = "what is behind it decides: a transparent radio or a board takes the line below, an XBee in API mode \
     `type: xbee, baud: 9600, api: escaped`";
const BOARD: &str = "its program has to speak one of the framings (tools/firmware has them in C); baud does not matter on USB";
const XBEE: &str = "the module has to be in API mode: AP 2 is `escaped`, AP 1 `plain`; in transparent mode (AP 0) use \
     `type: serial`";
const UART: &str = "what is wired to its pins decides";
const NONE: &str = "try the line below if a radio or a board is behind it";

const fn known(
    vendor: u16,
    products: &'static [u16],
    words: &'static [&'static str],
    kind: Kind,
    name: &'static str,
    note: &'static str,
) -> Known {
    Known { vendor: Some(vendor), products, words, interface: None, guess: Guess { kind, name, note } }
}

/// Whatever the numbers.
const fn called(words: &'static [&'static str], kind: Kind, name: &'static str, note: &'static str) -> Known {
    Known { vendor: None, products: &[], words, interface: None, guess: Guess { kind, name, note } }
}

const fn interface(mut known: Known, number: u8) -> Known {
    known.interface = Some(number);
    known
}

/// The first that fits is taken: makers of sticks leave the numbers of the bridge's chip as they are, so names come before.
const KNOWN: &[Known] = &[
    // Sticks that say by name what they are.
    called(
        &["sonoff zigbee 3.0 usb dongle plus v2", "dongle plus mg"],
        Kind::Foreign,
        "Sonoff ZBDongle-E",
        EZSP,
    ),
    called(&["sonoff zigbee 3.0 usb dongle plus"], Kind::Foreign, "Sonoff ZBDongle-P (CC2652P)", ZNP),
    called(&["slae.sh", "cc2652rb stick"], Kind::Foreign, "slaesh's CC2652RB stick", ZNP),
    called(&["electrolama", "zig-a-zig", "zzh"], Kind::Foreign, "Electrolama zig-a-zig-ah (CC2652)", ZNP),
    called(
        &["cc2531", "cc2538", "cc1352", "cc2652"],
        Kind::Foreign,
        "Zigbee stick with a chip of Texas Instruments",
        ZNP,
    ),
    called(&["slzb-07", "slzb-06"], Kind::Foreign, "SMLIGHT SLZB", ZIGBEE),
    called(&["tubeszb", "zigstar"], Kind::Foreign, "Zigbee coordinator (CC2652)", ZNP),
    called(
        &["skyconnect", "connect zbt-1", "zbt-2"],
        Kind::Foreign,
        "Home Assistant SkyConnect or Connect ZBT",
        EZSP,
    ),
    called(&["conbee iii"], Kind::Foreign, "ConBee III", DECONZ),
    called(&["conbee ii"], Kind::Foreign, "ConBee II", DECONZ),
    called(&["conbee", "raspbee"], Kind::Foreign, "ConBee", DECONZ),
    called(&["zigate"], Kind::Foreign, "ZiGate", ZIGATE),
    called(&["z-wave", "zwave", "z-stick", "uzb"], Kind::Foreign, "Z-Wave stick", ZWAVE),
    called(&["rfxtrx"], Kind::Foreign, "RFXtrx transceiver", OWN_RADIO),
    called(&["enocean"], Kind::Foreign, "EnOcean stick", OWN_RADIO),
    called(&["cul868", "cul433", "nanocul"], Kind::Foreign, "CUL", OWN_RADIO),
    called(&["xbee", "xstick", "xbib", "maxstream"], Kind::Xbee, "XBee adapter", XBEE),
    called(&["zigbee"], Kind::Foreign, "Zigbee stick", ZIGBEE),
    // Sticks that have numbers of their own.
    interface(known(0x10c4, &[0x8a2a], &[], Kind::Foreign, "HUSBZB-1, its Z-Wave side", ZWAVE), 0),
    known(0x10c4, &[0x8a2a], &[], Kind::Foreign, "HUSBZB-1, its Zigbee side", EZSP),
    known(0x10c4, &[0x8b34], &[], Kind::Foreign, "Bitron Video Zigbee stick", EZSP),
    known(0x0451, &[0x16a8], &[], Kind::Foreign, "Texas Instruments CC2531", ZNP),
    known(0x0451, &[0x16c8], &[], Kind::Foreign, "Texas Instruments CC2538", ZNP),
    known(0x1cf1, &[0x0030], &[], Kind::Foreign, "ConBee II", DECONZ),
    known(0x0658, &[0x0200], &[], Kind::Foreign, "Z-Wave stick (Sigma Designs)", ZWAVE),
    known(0x03eb, &[0x204b], &[], Kind::Foreign, "CUL", OWN_RADIO),
    known(0x0403, &[0xee18], &[], Kind::Xbee, "XBee adapter (MaxStream PKG-U)", XBEE),
    known(0x08b7, &[], &[], Kind::Xbee, "Digi XBee adapter", XBEE),
    known(0x1546, &[], &[], Kind::Foreign, "GPS receiver (u-blox)", GPS),
    known(0x12d1, &[], &[], Kind::Foreign, "modem (Huawei)", MODEM),
    known(0x2c7c, &[], &[], Kind::Foreign, "modem (Quectel)", MODEM),
    known(0x1e0e, &[], &[], Kind::Foreign, "modem (SIMCom)", MODEM),
    known(0x1199, &[], &[], Kind::Foreign, "modem (Sierra Wireless)", MODEM),
    // Boards.
    known(0x2341, &[], &[], Kind::Board, "Arduino", BOARD),
    known(0x2a03, &[], &[], Kind::Board, "Arduino", BOARD),
    known(0x1b4f, &[], &[], Kind::Board, "SparkFun board", BOARD),
    known(0x239a, &[], &[], Kind::Board, "Adafruit board", BOARD),
    known(0x2e8a, &[], &[], Kind::Board, "Raspberry Pi Pico", BOARD),
    known(0x303a, &[], &[], Kind::Board, "ESP32 (its own USB)", BOARD),
    known(0x16c0, &[0x0483, 0x0487], &[], Kind::Board, "Teensy", BOARD),
    known(0x1915, &[], &[], Kind::Board, "nRF52 board (Nordic)", BOARD),
    known(0x1366, &[], &[], Kind::Board, "board with a SEGGER J-Link", BOARD),
    known(0x0483, &[0x374b, 0x374e, 0x3752, 0x5740], &[], Kind::Board, "STM32 board", BOARD),
    known(0x0d28, &[], &[], Kind::Board, "board with DAPLink (micro:bit)", BOARD),
    known(0x0451, &[0xbef3], &[], Kind::Board, "Texas Instruments LaunchPad", BOARD),
    // Chips.
    known(
        0x0403,
        &[0x6001, 0x6010, 0x6011, 0x6014, 0x6015],
        &[],
        Kind::Bridge,
        "USB serial bridge (FTDI)",
        BEHIND,
    ),
    known(
        0x10c4,
        &[0xea60, 0xea70, 0xea71],
        &[],
        Kind::Bridge,
        "USB serial bridge (Silicon Labs CP210x)",
        BEHIND,
    ),
    known(
        0x1a86,
        &[0x7522, 0x7523, 0x5523, 0xe523],
        &[],
        Kind::Bridge,
        "USB serial bridge (WCH CH340)",
        BEHIND,
    ),
    known(
        0x1a86,
        &[0x55d2, 0x55d3, 0x55d4],
        &[],
        Kind::Bridge,
        "USB serial bridge (WCH CH343, CH9102)",
        BEHIND,
    ),
    known(
        0x067b,
        &[0x2303, 0x2304, 0x23a3, 0x23b3, 0x23c3, 0x23d3, 0x23e3, 0x23f3],
        &[],
        Kind::Bridge,
        "USB serial bridge (Prolific PL2303)",
        BEHIND,
    ),
    known(0x04d8, &[0x00dd], &[], Kind::Bridge, "USB serial bridge (Microchip MCP2221)", BEHIND),
    known(0x04e2, &[], &[], Kind::Bridge, "USB serial bridge (MaxLinear)", BEHIND),
    known(0x9710, &[], &[], Kind::Bridge, "USB serial bridge (MosChip)", BEHIND),
];

impl Guess {
    /// What a stick on the USB is, driven by `driver`.
    pub(super) fn of_usb(usb: &Usb, driver: &str) -> Self {
        let says = format!("{} {}", usb.manufacturer, usb.product).to_lowercase().replace('_', " ");
        let fits = |known: &&Known| {
            known.vendor.is_none_or(|vendor| vendor == usb.vendor)
                && (known.products.is_empty() || known.products.contains(&usb.product_id))
                && (known.words.is_empty() || known.words.iter().any(|word| says.contains(word)))
                && known.interface.is_none_or(|number| usb.interface == Some(number))
        };
        let unknown = match driver {
            "cdc_acm" => {
                Self { kind: Kind::Board, name: "USB device with a serial line (CDC-ACM)", note: BOARD }
            }
            _ => Self { kind: Kind::Unknown, name: "unknown USB serial adapter", note: NONE },
        };
        KNOWN.iter().find(fits).map_or(unknown, |known| known.guess)
    }

    /// What a serial line is that is not on the USB, from its driver and the name of its device.
    pub(super) fn of_uart(driver: &str, name: &str) -> Self {
        let name = match (driver, name) {
            ("uart-pl011", _) => "the Raspberry Pi's PL011",
            ("bcm2835-aux-uart", _) => "the Raspberry Pi's mini UART",
            (_, name) if name.starts_with("ttyAMA") => "serial line of this machine (PL011)",
            _ => "serial line of this machine",
        };
        Self { kind: Kind::Uart, name, note: UART }
    }

    /// Whether a device with these numbers would be a serial adapter that the gateway can use, had it a driver.
    pub(super) fn is_adapter(vendor: u16, product: u16) -> Option<&'static str> {
        let chip = |known: &&Known| {
            known.vendor == Some(vendor)
                && known.products.contains(&product)
                && matches!(known.guess.kind, Kind::Bridge | Kind::Xbee)
        };
        KNOWN.iter().find(chip).map(|known| known.guess.name)
    }

    /// Whether messages of MQTT-SN can go through it.
    pub fn carries(&self) -> bool {
        self.kind != Kind::Foreign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stick(vendor: u16, product_id: u16, manufacturer: &str, product: &str) -> Guess {
        let usb = Usb {
            vendor,
            product_id,
            manufacturer: manufacturer.to_owned(),
            product: product.to_owned(),
            ..Usb::default()
        };
        Guess::of_usb(&usb, "cp210x")
    }

    #[test]
    fn sticks_with_the_numbers_of_a_bridge_are_known_by_their_names() {
        let bridge = |product| stick(0x10c4, 0xea60, "Silicon Labs", product);
        assert_eq!(bridge("CP2102 USB to UART Bridge Controller").kind, Kind::Bridge);
        for name in [
            "Sonoff Zigbee 3.0 USB Dongle Plus",
            "Sonoff_Zigbee_3.0_USB_Dongle_Plus",
            "slae.sh cc2652rb stick - slaesh's iot stuff",
            "SkyConnect v1.0",
            "Home Assistant Connect ZBT-1",
            "tubeszb-cc2652-usb",
            "ZIGSTAR GATEWAY",
            "SLZB-07",
            "ZiGate",
            "Aeotec Z-Stick 7",
            "Some new Zigbee stick",
        ] {
            assert_eq!(bridge(name).kind, Kind::Foreign, "{name}");
        }
        assert_eq!(stick(0x0403, 0x6015, "dresden elektronik", "ConBee III").name, "ConBee III");
        assert_eq!(stick(0x0403, 0x6001, "Digi", "XBee USB Adapter").kind, Kind::Xbee);
        assert_eq!(stick(0x0403, 0x6001, "Digi", "XBee ZigBee USB").kind, Kind::Xbee, "Digi calls them both");
    }

    #[test]
    fn an_unknown_device_with_the_common_driver_is_a_board() {
        let usb = Usb { vendor: 0xffff, ..Usb::default() };
        assert_eq!(Guess::of_usb(&usb, "cdc_acm").kind, Kind::Board);
        assert_eq!(Guess::of_usb(&usb, "whatever").kind, Kind::Unknown);
    }

    #[test]
    fn the_table_is_in_lower_case_and_no_line_hides_another_of_its_numbers() {
        for (index, known) in KNOWN.iter().enumerate() {
            assert!(known.words.iter().all(|word| *word == word.to_lowercase()), "{}", known.guess.name);
            assert!(!known.words.is_empty() || known.vendor.is_some(), "{}", known.guess.name);
            let hides = |before: &Known| {
                let same =
                    before.vendor == known.vendor && before.words.is_empty() && before.interface.is_none();
                same && known.words.is_empty()
                    && known
                        .products
                        .iter()
                        .any(|p| before.products.is_empty() || before.products.contains(p))
            };
            assert!(!KNOWN[..index].iter().any(hides), "{}", known.guess.name);
        }
    }
}
