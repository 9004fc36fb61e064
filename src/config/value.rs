//! The kinds of single values: numbers, durations, sizes, addresses, names, and words of which there are a few.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde_yaml::Value;

use super::problem::nearest;
use super::read::{Leaf, Unfit, one_of};
use super::{BrokerUrl, Place};
use crate::topic::{ClientId, NameError, TopicName};

/// Characters of a text without a meaning of its own (user names, paths): more is a mistake.
const TEXT_LEN_MAX: usize = 4096;

/// Units of a duration, largest first, in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of a size, largest first, in octets.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A whole number in `range`.
pub(super) fn number<T: TryFrom<u64> + 'static>(range: RangeInclusive<u64>) -> Leaf<T> {
    let expected = match (range.start(), range.end()) {
        (only, end) if only == end => only.to_string(),
        (from, to) => format!("a number from {from} to {to}"),
    };
    Leaf::new(expected, move |scalar| {
        let number: u64 = serde_yaml::from_value(scalar.value.clone()).map_err(|_| Unfit::default())?;
        let fits = if range.contains(&number) { T::try_from(number).ok() } else { None };
        fits.ok_or_else(Unfit::default)
    })
}

/// `true` or `false`.
pub(super) fn boolean() -> Leaf<bool> {
    Leaf::new("true or false", |scalar| {
        let meant = match scalar.text.to_lowercase().as_str() {
            "yes" | "on" | "y" => Some("true".into()),
            "no" | "off" | "n" => Some("false".into()),
            _ => None,
        };
        serde_yaml::from_value(scalar.value.clone()).map_err(|_| Unfit { because: None, meant })
    })
}

/// A duration in `range`: a whole number and a unit.
pub(super) fn duration(range: RangeInclusive<Duration>) -> Leaf<Duration> {
    let words = |d: &Duration| with_unit(u64::try_from(d.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS);
    let expected = format!("a duration from {} to {}", words(range.start()), words(range.end()));
    Leaf::new(expected, move |scalar| {
        let millis = quantity(&scalar.text, &DURATION_UNITS)?;
        let fits = Some(Duration::from_millis(millis)).filter(|duration| range.contains(duration));
        fits.ok_or_else(Unfit::default)
    })
}

/// A duration in `range` that a protocol carries in whole seconds.
pub(super) fn whole_seconds(range: RangeInclusive<u64>) -> Leaf<Duration> {
    let expected = format!("a duration from {}s to {}s in whole seconds", range.start(), range.end());
    Leaf::new(expected, move |scalar| {
        let millis = quantity(&scalar.text, &DURATION_UNITS)?;
        let fits = millis.is_multiple_of(1000) && range.contains(&(millis / 1000));
        if fits { Ok(Duration::from_millis(millis)) } else { Err(Unfit::default()) }
    })
}

/// A size in `range` octets: a whole number and a unit.
pub(super) fn size<T: TryFrom<u64> + 'static>(range: RangeInclusive<u64>) -> Leaf<T> {
    let words = |octets| with_unit(octets, &SIZE_UNITS);
    let expected = format!("a size from {} to {}", words(*range.start()), words(*range.end()));
    Leaf::new(expected, move |scalar| {
        let octets = quantity(&scalar.text, &SIZE_UNITS)?;
        let fits = if range.contains(&octets) { T::try_from(octets).ok() } else { None };
        fits.ok_or_else(Unfit::default)
    })
}

/// A duration as it stands in a command line or a file: `10s`, `20ms`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    quantity(text, &DURATION_UNITS).ok().map(Duration::from_millis)
}

/// A whole number and one of `units`.
fn quantity(text: &str, units: &[(&str, u64)]) -> Result<u64, Unfit> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    // A sign would be taken for part of a number.
    let Some(number) = digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+')) else {
        return Err(Unfit::default());
    };
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => number.checked_mul(*factor).ok_or_else(Unfit::default),
        None if unit.is_empty() => Err(Unfit { because: Some("has no unit".into()), meant: None }),
        None => {
            // 10S, 1 hour, 5min: a unit with something added. 64KB, 64k: one that begins alike.
            let typed = unit.trim_start().to_lowercase();
            let added = |name: &&str| typed.starts_with(&name.to_lowercase());
            let alike = |name: &&str| name.to_lowercase().chars().next() == typed.chars().next();
            let names = || units.iter().map(|(name, _)| *name);
            let unit = names().filter(added).max_by_key(|name| name.len()).or_else(|| names().find(alike));
            Err(Unfit { because: None, meant: unit.map(|unit| format!("{number}{unit}")) })
        }
    }
}

/// `amount` in the largest unit that divides it.
fn with_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    match unit.or(units.last()) {
        Some((name, factor)) => format!("{}{name}", amount / factor),
        None => amount.to_string(),
    }
}

/// One of the words that serde knows the variants of `T` by.
pub(super) fn choice<T: DeserializeOwned + 'static>() -> Leaf<T> {
    let names = variants::<T>();
    Leaf::new(one_of(names), move |scalar| {
        let word: StrDeserializer<'_, Error> = scalar.text.as_str().into_deserializer();
        T::deserialize(word).map_err(|_| {
            let meant = nearest(&scalar.text, names.iter().copied()).map(Into::into);
            Unfit { because: None, meant }
        })
    })
}

/// The words that serde knows the variants of the enum `T` by: it names them when it asks for one of them.
pub(super) fn variants<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Asked<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = Error;

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _name: &'static str,
            variants: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Error> {
            *self.0 = variants;
            Err(serde::de::Error::custom("only asking"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
            Err(serde::de::Error::custom("not an enum"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Asked(&mut names));
    names
}

/// A text without control characters; what it means is for others to say. A number is one too.
pub(super) fn text(expected: &str) -> Leaf<String> {
    Leaf::new(expected, |scalar| {
        let because = match &scalar.text {
            _ if scalar.value == Value::Null => return Err(Unfit::default()),
            text if text.is_empty() => "is empty",
            text if text.chars().count() > TEXT_LEN_MAX => "is too long",
            text if text.chars().any(char::is_control) => "contains a control character",
            text => return Ok(text.clone()),
        };
        Err(Unfit { because: Some(because.into()), meant: None })
    })
}

/// The path of a file.
pub(super) fn file() -> Leaf<PathBuf> {
    text("the path of a file").and_then(|text| Ok(text.into()))
}

/// The path of a serial device: absolute, as it is for whoever starts the gateway from elsewhere.
pub(super) fn device() -> Leaf<PathBuf> {
    text("a path such as /dev/ttyUSB0").and_then(|text| {
        if text.starts_with('/') {
            return Ok(text.into());
        }
        let name = text.strip_prefix("dev/").unwrap_or(&text);
        let is_of_dev = ["tty", "serial"].iter().any(|known| name.starts_with(known));
        Err(Unfit { because: None, meant: is_of_dev.then(|| format!("/dev/{name}")) })
    })
}

/// `auto`, `none` or a path that begins with a slash, as every other word is rather a mistake.
pub(super) fn place() -> Leaf<Place> {
    text("auto, none or a path that begins with /").and_then(|text| match text.as_str() {
        "auto" => Ok(Place::Auto),
        "none" => Ok(Place::None),
        path if path.starts_with('/') => Ok(Place::Path(path.into())),
        word => {
            let meant = nearest(word, ["auto", "none"]).map(Into::into);
            Err(Unfit { because: None, meant })
        }
    })
}

/// The name of a transport.
pub(super) fn port_name() -> Leaf<String> {
    text("1 to 32 letters, digits, - and _").and_then(|name| {
        let word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if word && name.len() <= 32 { Ok(name) } else { Err(Unfit::default()) }
    })
}

/// The name of a network interface; Linux has room for 15 octets.
pub(super) fn interface() -> Leaf<String> {
    text("the name of a network interface such as eth0").and_then(|name| {
        let odd = name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace());
        if odd { Err(Unfit::default()) } else { Ok(name) }
    })
}

/// An IP address and a port.
pub(super) fn address() -> Leaf<SocketAddr> {
    text("an IP address and a port such as 0.0.0.0:1884 or \"[::]:1884\"").and_then(|text| {
        text.parse().map_err(|_| {
            let bare = text.parse::<IpAddr>().is_ok() || bracketed(&text).is_some();
            Unfit { because: bare.then(|| "has no port".into()), meant: None }
        })
    })
}

/// A multicast group and a port.
pub(super) fn group() -> Leaf<SocketAddr> {
    text("a multicast group and a port such as 225.1.1.1:1884").and_then(|text| {
        let Ok(address) = text.parse::<SocketAddr>() else { return Err(Unfit::default()) };
        let fits = address.ip().is_multicast() && address.port() != 0;
        if fits { Ok(address) } else { Err(Unfit::default()) }
    })
}

/// The URL of a broker.
pub(super) fn broker_url() -> Leaf<BrokerUrl> {
    text("mqtt://host:port, mqtts://host:port or embedded").and_then(|text| {
        text.parse().map_err(|UrlError { because, meant }| Unfit { because: because.map(Into::into), meant })
    })
}

/// A topic id that can be agreed beforehand (§5.3.11 reserves 0 and 65,535).
pub(super) fn topic_id() -> Leaf<u16> {
    number(1..=65_534)
}

/// A topic name.
pub(super) fn topic() -> Leaf<TopicName> {
    name("a topic name", |text| TopicName::new(text))
}

/// A client id.
pub(super) fn client_id() -> Leaf<ClientId> {
    name("a client id of 1 to 128 octets", |text| ClientId::new(text))
}

/// A name that was checked once: a text, or a number that is written like one.
fn name<T: 'static>(expected: &str, check: fn(&str) -> Result<T, NameError>) -> Leaf<T> {
    Leaf::new(expected, move |scalar| match scalar.value {
        Value::Null => Err(Unfit::default()),
        _ => check(&scalar.text).map_err(|error| Unfit { because: Some(error.to_string()), meant: None }),
    })
}

/// Why a text is not the URL of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlError {
    because: Option<&'static str>,
    meant: Option<String>,
}

impl std::error::Error for UrlError {}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(because) = self.because {
            write!(f, "{because}, ")?;
        }
        f.write_str("expected mqtt://host:port, mqtts://host:port or embedded")?;
        match &self.meant {
            Some(meant) => write!(f, "; did you mean \"{meant}\"?"),
            None => Ok(()),
        }
    }
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let wrong = |because| Err(UrlError { because: Some(because), meant: None });
        let meant = |meant: String| Err(UrlError { because: None, meant: Some(meant) });
        let (tls, rest) = match text.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            Some(("tcp", rest)) => return meant(format!("mqtt://{rest}")),
            Some(("ssl" | "tls", rest)) => return meant(format!("mqtts://{rest}")),
            Some((scheme, _)) => {
                let scheme = nearest(scheme, ["mqtt", "mqtts"]).map(|scheme| format!("{scheme}://"));
                return Err(UrlError { because: None, meant: scheme });
            }
            None if host_and_port(text, 0).is_ok_and(|(_, port)| port != 0) => {
                return meant(format!("mqtt://{text}"));
            }
            None => {
                let meant = nearest(text, ["embedded"]).map(Into::into);
                return Err(UrlError { because: None, meant });
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return wrong("holds credentials, which belong into username and password_file");
        }
        if rest.contains(['/', '?', '#']) {
            return wrong("goes on after the port");
        }
        match host_and_port(rest, if tls { 8883 } else { 1883 }) {
            Ok((host, port)) if tls => Ok(Self::Mqtts { host, port }),
            Ok((host, port)) => Ok(Self::Mqtt { host, port }),
            Err(because) => wrong(because),
        }
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Embedded => return f.write_str("embedded"),
            Self::Mqtt { host, port } => ("mqtt", host, port),
            Self::Mqtts { host, port } => ("mqtts", host, port),
        };
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// The inside of `[…]`, if it is an IPv6 address.
fn bracketed(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    inside.parse::<Ipv6Addr>().is_ok().then_some(inside)
}

/// Splits `host`, `host:port`, `[v6]` and `[v6]:port`.
fn host_and_port(text: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        _ if text.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let port = match port.map(str::parse) {
        None => default,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => return Err("has no port from 1 to 65535"),
    };
    if let Some(host) = bracketed(host) {
        return Ok((host.into(), port));
    }
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match host {
        "" => Err("has no host"),
        _ if host.contains(':') => Err("has an IPv6 address without brackets"),
        _ if host.len() > 253 || !host.chars().all(label) => Err("has no valid host name"),
        _ => Ok((host.into(), port)),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::yaml::Scalar;
    use super::*;

    /// What `text` without quotes means to `kind`, or the message.
    fn read<T: 'static>(kind: &Leaf<T>, text: &str) -> Result<T, String> {
        kind.value(&Scalar::plain(text.into()))
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_number_is_whole_and_in_its_range() {
        let kind = number::<u8>(1..=255);
        assert_eq!(read(&kind, "1"), Ok(1));
        assert_eq!(read(&kind, "255"), Ok(255));
        assert_eq!(read(&kind, "0x10"), Ok(16));
        for bad in ["0", "256", "-1", "1.5", "1e2", "99999999999999999999", "one", "true"] {
            assert!(read(&kind, bad).unwrap_err().ends_with("expected a number from 1 to 255"), "{bad}");
        }
        assert_eq!(read(&kind, "").unwrap_err(), "found nothing, expected a number from 1 to 255");
        assert!(read(&number::<u8>(1..=1000), "300").is_err(), "what does not fit the type is not cut");
        assert_eq!(read(&number::<u8>(1..=1), "2").unwrap_err(), "found 2, expected 1");
    }

    #[test]
    fn a_boolean_is_true_or_false() {
        assert_eq!(read(&boolean(), "true"), Ok(true));
        assert_eq!(read(&boolean(), "false"), Ok(false));
        assert_eq!(
            read(&boolean(), "yes").unwrap_err(),
            "found \"yes\", expected true or false; did you mean \"true\"?"
        );
        assert!(read(&boolean(), "1").is_err());
    }

    #[test]
    fn a_duration_is_a_whole_number_with_a_unit() {
        let kind = duration(millis(10)..=millis(7 * 86_400_000));
        for (text, expected) in
            [("20ms", 20), ("10s", 10_000), ("20m", 1_200_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(read(&kind, text), Ok(millis(expected)), "{text}");
        }
        for bad in [
            "9ms",
            "8d",
            "s",
            "1.5s",
            "-1s",
            "1s1s",
            "1x",
            "",
            "99999999999999999d",
            "１s",
            "1é",
            "1 ",
            "+1s",
        ] {
            assert!(
                read(&kind, bad).unwrap_err().ends_with(", expected a duration from 10ms to 7d"),
                "{bad}"
            );
        }
        for (typed, meant) in [
            ("10 s", "10s"),
            ("10S", "10s"),
            ("5sec", "5s"),
            ("5min", "5m"),
            ("2hours", "2h"),
            ("9msec", "9ms"),
        ] {
            assert!(
                read(&kind, typed).unwrap_err().ends_with(&format!("did you mean \"{meant}\"?")),
                "{typed}"
            );
        }
        assert_eq!(read(&kind, "60").unwrap_err(), "60 has no unit, expected a duration from 10ms to 7d");
    }

    #[test]
    fn some_durations_are_whole_seconds() {
        let kind = whole_seconds(1..=65_535);
        assert_eq!(read(&kind, "1000ms"), Ok(millis(1000)));
        assert_eq!(read(&kind, "65535s"), Ok(millis(65_535_000)));
        for bad in ["1500ms", "0s", "65536s", "19h"] {
            let expected = "expected a duration from 1s to 65535s in whole seconds";
            assert!(read(&kind, bad).unwrap_err().ends_with(expected), "{bad}");
        }
    }

    #[test]
    fn a_size_is_a_whole_number_with_a_unit() {
        let kind = size::<usize>(16..=1 << 30);
        for (text, expected) in [("16B", 16), ("16KiB", 16 << 10), ("64MiB", 64 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(read(&kind, text), Ok(expected), "{text}");
        }
        for bad in ["15B", "2GiB", "KiB", "1.5MiB", "-1B", "99999999999GiB", "1TiB"] {
            assert!(read(&kind, bad).unwrap_err().contains("expected a size from 16B to 1GiB"), "{bad}");
        }
        for (typed, meant) in [("64KB", "64KiB"), ("64k", "64KiB"), ("64 MiB", "64MiB"), ("1gb", "1GiB")] {
            assert!(
                read(&kind, typed).unwrap_err().ends_with(&format!("did you mean \"{meant}\"?")),
                "{typed}"
            );
        }
        assert_eq!(read(&kind, "65536").unwrap_err(), "65536 has no unit, expected a size from 16B to 1GiB");
    }

    #[test]
    fn a_choice_is_one_of_the_words_that_serde_knows() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Taste {
            Sweet,
            QuiteSour,
            #[serde(rename = "5")]
            Five,
        }
        let kind = choice::<Taste>();
        assert_eq!(read(&kind, "sweet"), Ok(Taste::Sweet));
        assert_eq!(read(&kind, "quite-sour"), Ok(Taste::QuiteSour));
        assert_eq!(read(&kind, "5"), Ok(Taste::Five), "what looks like a number is a word too");
        let wrong = read(&kind, "quite_sour").unwrap_err();
        assert_eq!(
            wrong,
            "found \"quite_sour\", expected sweet, quite-sour or 5; did you mean \"quite-sour\"?"
        );
        assert_eq!(read(&kind, "").unwrap_err(), "found nothing, expected sweet, quite-sour or 5");
        assert_eq!(variants::<u8>(), [""; 0], "what is no enum has no variants");
    }

    #[test]
    fn a_url_names_a_broker() {
        let mqtt = |host: &str, port| Ok(BrokerUrl::Mqtt { host: host.into(), port });
        for (text, expected) in [
            ("embedded", Ok(BrokerUrl::Embedded)),
            ("mqtt://broker.example:1884", mqtt("broker.example", 1884)),
            ("mqtt://broker", mqtt("broker", 1883)),
            ("mqtt://broker/", mqtt("broker", 1883)),
            ("mqtt://10.0.0.1:1", mqtt("10.0.0.1", 1)),
            ("mqtt://[::1]:1884", mqtt("::1", 1884)),
            ("mqtt://[fe80::1]", mqtt("fe80::1", 1883)),
            ("mqtts://broker", Ok(BrokerUrl::Mqtts { host: "broker".into(), port: 8883 })),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for url in ["embedded", "mqtt://broker:1883", "mqtt://[::1]:1", "mqtts://10.0.0.1:8883"] {
            assert_eq!(url.parse::<BrokerUrl>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn a_wrong_url_says_why_or_what_was_meant() {
        let expected = "expected mqtt://host:port, mqtts://host:port or embedded";
        for (text, why) in [
            ("mqtt://", format!("has no host, {expected}")),
            ("mqtt://:1883", format!("has no host, {expected}")),
            ("mqtt://a:0", format!("has no port from 1 to 65535, {expected}")),
            ("mqtt://a:65536", format!("has no port from 1 to 65535, {expected}")),
            ("mqtt://a:", format!("has no port from 1 to 65535, {expected}")),
            ("mqtt://::1:1883", format!("has an IPv6 address without brackets, {expected}")),
            ("mqtt://a b", format!("has no valid host name, {expected}")),
            ("mqtt://[x]", format!("has no valid host name, {expected}")),
            (
                "mqtt://u:p@a",
                format!("holds credentials, which belong into username and password_file, {expected}"),
            ),
            ("mqtt://a/b", format!("goes on after the port, {expected}")),
            ("tcp://a:1883", format!("{expected}; did you mean \"mqtt://a:1883\"?")),
            ("ssl://a", format!("{expected}; did you mean \"mqtts://a\"?")),
            ("mqt://a", format!("{expected}; did you mean \"mqtt://\"?")),
            ("a:1883", format!("{expected}; did you mean \"mqtt://a:1883\"?")),
            ("embeded", format!("{expected}; did you mean \"embedded\"?")),
            ("broker", expected.to_string()),
            ("", expected.to_string()),
        ] {
            assert_eq!(text.parse::<BrokerUrl>().unwrap_err().to_string(), why, "{text}");
        }
    }

    #[test]
    fn an_address_has_an_ip_and_a_port() {
        assert_eq!(read(&address(), "0.0.0.0:1884"), Ok(SocketAddr::from(([0, 0, 0, 0], 1884))));
        assert_eq!(read(&address(), "[::1]:0"), Ok(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))));
        let expected = "expected an IP address and a port such as 0.0.0.0:1884 or \"[::]:1884\"";
        for (text, why) in [
            ("10.0.0.1", "\"10.0.0.1\" has no port"),
            ("::", "\"::\" has no port"),
            ("[::]", "\"[::]\" has no port"),
            ("localhost:1884", "found \"localhost:1884\""),
            ("0.0.0.0:70000", "found \"0.0.0.0:70000\""),
            ("1884", "found 1884"),
        ] {
            assert_eq!(read(&address(), text).unwrap_err(), format!("{why}, {expected}"));
        }
    }

    #[test]
    fn a_group_is_multicast() {
        assert!(read(&group(), "225.1.1.1:1884").is_ok());
        assert!(read(&group(), "[ff02::1]:1884").is_ok());
        for bad in ["10.0.0.1:1884", "225.1.1.1", "225.1.1.1:0", "none"] {
            assert!(read(&group(), bad).is_err(), "{bad}");
        }
        assert_eq!(read(&group().or("none"), "none"), Ok(None));
        assert!(read(&group().or("none"), "no").unwrap_err().ends_with(" or none"));
    }

    #[test]
    fn a_place_is_a_word_or_an_absolute_path() {
        assert_eq!(read(&place(), "auto"), Ok(Place::Auto));
        assert_eq!(read(&place(), "none"), Ok(Place::None));
        assert_eq!(read(&place(), "/a b"), Ok(Place::Path("/a b".into())));
        assert!(read(&place(), "nnoe").unwrap_err().ends_with("did you mean \"none\"?"));
        assert!(read(&place(), "state").is_err());
    }

    #[test]
    fn a_device_is_an_absolute_path() {
        assert_eq!(read(&device(), "/dev/ttyUSB0"), Ok("/dev/ttyUSB0".into()));
        for (text, meant) in [
            ("ttyUSB0", "; did you mean \"/dev/ttyUSB0\"?"),
            ("dev/serial0", "; did you mean \"/dev/serial0\"?"),
            ("./radio", ""),
            ("COM3", ""),
        ] {
            let problem = format!("found \"{text}\", expected a path such as /dev/ttyUSB0{meant}");
            assert_eq!(read(&device(), text).unwrap_err(), problem);
        }
    }

    #[test]
    fn names_have_their_rules() {
        assert!(read(&port_name(), "lan-1_B").is_ok());
        for bad in ["", "a b", "ä", &"x".repeat(33)] {
            assert!(read(&port_name(), bad).is_err(), "{bad}");
        }
        assert!(read(&interface(), "br-lan.7@x").is_ok());
        for bad in ["", "a/b", "a b", "sixteen-octets-x"] {
            assert!(read(&interface(), bad).is_err(), "{bad}");
        }
        assert_eq!(read(&topic(), "7"), Ok(TopicName::new("7").unwrap()));
        assert_eq!(read(&topic(), "a/#").unwrap_err(), "\"a/#\" contains a wildcard, expected a topic name");
        assert_eq!(read(&client_id(), "007"), Ok(ClientId::new("007").unwrap()));
        let long = read(&client_id(), &"x".repeat(129)).unwrap_err();
        assert!(long.ends_with("…\" is too long, expected a client id of 1 to 128 octets"), "{long}");
        assert!(read(&text("a text"), "a\tb").unwrap_err().contains("contains a control character"));
    }
}
