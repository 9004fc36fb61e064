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
        let fits = millis % 1000 == 0 && range.contains(&(millis / 1000));
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
    let Ok(number) = digits.parse::<u64>() else { return Err(Unfit::default()) };
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => number.checked_mul(*factor).ok_or_else(Unfit::default),
        None if unit.is_empty() => Err(Unfit { because: Some("has no unit".into()), meant: None }),
        None => {
            // 10S, 1 h, 64KB, 64k: the unit that begins alike.
            let initial = unit.trim_start().chars().next().map(|c| c.to_ascii_lowercase());
            let alike = |name: &str| name.chars().next().map(|c| c.to_ascii_lowercase()) == initial;
            let unit = units.iter().rfind(|(name, _)| alike(name)).map(|(name, _)| name);
            Err(Unfit { because: None, meant: unit.map(|unit| format!("{number}{unit}")) })
        }
    }
}

/// `amount` in the largest unit that divides it.
fn with_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| amount >= *factor && amount % factor == 0);
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
        match self.because {
            Some(because) => write!(f, "{because}, ")?,
            None => {}
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
