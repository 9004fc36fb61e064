//! Values as they are written on the command line.

use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{NODE_ID_LEN_MAX, Qos};

/// The longest duration taken: what a clock can add to any moment without overflowing, and more than anybody waits.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The highest rate of one sensor, in messages a second.
const RATE_MAX: f64 = 10_000.0;

/// `500ms`, `10s`, `1.5m`, `2h`, `1d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err("expected a duration such as 500ms, 10s, 5m or 2h".into()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a duration such as 500ms, 10s, 5m or 2h")?;
    match Duration::try_from_secs_f64(number * scale) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err("is more than a year".into()),
    }
}

/// A duration that is not zero.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("must be more than 0".into()) } else { Ok(duration) }
}

/// A keep-alive: whole seconds, as CONNECT says it.
pub(crate) fn keep_alive(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.subsec_nanos() != 0 || duration.as_secs() > u16::MAX.into() {
        return Err("must be whole seconds, at most 65535".into());
    }
    Ok(duration)
}

/// `1/s`, `30/m`, `1/10s`: the time from one message to the next. A bare number is messages a second.
pub(crate) fn rate(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a rate such as 1/s, 0.5/s, 30/m or 1/10s";
    let (count, per) = text.split_once('/').unwrap_or((text, "s"));
    if per.is_empty() {
        return Err(EXPECTED.into());
    }
    let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
    let per = interval(&per).map_err(|_| EXPECTED)?;
    let count: f64 = count.parse().map_err(|_| EXPECTED)?;
    let rate = count / per.as_secs_f64();
    if !(rate.is_finite() && rate > 0.0) {
        return Err("must be more than 0".into());
    }
    if rate > RATE_MAX {
        return Err(format!("must be at most {RATE_MAX}/s for each sensor"));
    }
    Duration::try_from_secs_f64(rate.recip())
        .ok()
        .filter(|period| *period <= DURATION_MAX)
        .ok_or_else(|| "is less than one message a year".into())
}

/// `5%`, `0.5%`: a probability.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    const EXPECTED: &str = "expected percent such as 5% or 0.5%";
    let number: f64 = text.strip_suffix('%').ok_or(EXPECTED)?.trim().parse().map_err(|_| EXPECTED)?;
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err("must be between 0% and 100%".into())
    }
}

/// `01 ff`, `01ff`, `0x01ff`, `01:ff`.
pub(crate) fn hex(text: &str) -> Result<Bytes, String> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits: Vec<char> = text.chars().filter(|c| !c.is_ascii_whitespace() && *c != ':').collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("has an odd number of hex digits".into());
    }
    let octet = |[high, low]: &[char; 2]| {
        let digit = |c: char| c.to_digit(16).ok_or(format!("has {c:?}, which is not a hex digit"));
        Ok::<u8, String>((digit(*high)? * 16 + digit(*low)?) as u8)
    };
    pairs.iter().map(octet).collect()
}

pub(crate) fn node_id(text: &str) -> Result<Bytes, String> {
    let octets = hex(text)?;
    if octets.len() > NODE_ID_LEN_MAX {
        return Err(format!("is longer than {NODE_ID_LEN_MAX} octets"));
    }
    Ok(octets)
}

pub(crate) fn qos(text: &str) -> Result<Qos, String> {
    match text {
        "0" => Ok(Qos::AtMostOnce),
        "1" => Ok(Qos::AtLeastOnce),
        "2" => Ok(Qos::ExactlyOnce),
        _ => Err("must be 0, 1 or 2".into()),
    }
}

pub(crate) fn qos_or_minus_one(text: &str) -> Result<Qos, String> {
    if text == "-1" { Ok(Qos::MinusOne) } else { qos(text).map_err(|_| "must be -1, 0, 1 or 2".into()) }
}

pub(crate) fn topic(text: &str) -> Result<TopicName, String> {
    TopicName::new(text).map_err(|e| e.to_string())
}

pub(crate) fn filter(text: &str) -> Result<TopicFilter, String> {
    TopicFilter::new(text).map_err(|e| e.to_string())
}

pub(crate) fn client_id(text: &str) -> Result<ClientId, String> {
    ClientId::new(text).map_err(|e| e.to_string())
}

pub(crate) fn short(text: &str) -> Result<[u8; 2], String> {
    text.as_bytes().try_into().map_err(|_| "must be exactly two octets".into())
}

/// `7` or `7=some/name`.
pub(crate) fn predefined(text: &str) -> Result<(u16, Option<TopicName>), String> {
    let (id, name) = match text.split_once('=') {
        Some((id, name)) => (id, Some(topic(name)?)),
        None => (text, None),
    };
    Ok((predefined_id(id)?, name))
}

pub(crate) fn predefined_id(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(id @ 1..=0xFFFE) => Ok(id),
        _ => Err("a topic id is a number from 1 to 65534".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        for (text, millis) in
            [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("1.5m", 90_000), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "10x", "-1s", "1e3", "1..2s", "ten", "10 s", "99999999d", "١s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(interval("0").is_err());
        assert!(keep_alive("65536").is_err() && keep_alive("0.5s").is_err() && keep_alive("65535").is_ok());
    }

    #[test]
    fn a_rate_is_the_time_between_two_messages() {
        for (text, millis) in
            [("1/s", 1000), ("4", 250), ("0.5/s", 2000), ("30/m", 2000), ("1/10s", 10_000), ("6/h", 600_000)]
        {
            assert_eq!(rate(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "", "/s", "0/s", "-1/s", "1/", "1/0s", "1/s/s", "x/s", "1/x", "inf", "NaN", "10001/s", "1e-300/s",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percents_say_that_they_are() {
        assert_eq!(percent("5%"), Ok(0.05));
        assert_eq!(percent("0%"), Ok(0.0));
        assert_eq!(percent("100%"), Ok(1.0));
        for text in ["5", "0.05", "%", "-1%", "101%", "NaN%", "inf%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hex_is_read_with_and_without_separators() {
        for text in ["01ff", "01 FF", "0x01fF", "01:ff"] {
            assert_eq!(hex(text).as_deref(), Ok(&[1, 0xFF][..]), "{text}");
        }
        assert_eq!(hex("").as_deref(), Ok(&[][..]));
        for text in ["0", "0g", "é0", "0x1", "-1"] {
            assert!(hex(text).is_err(), "{text}");
        }
        assert!(node_id(&"00".repeat(252)).is_ok() && node_id(&"00".repeat(253)).is_err());
    }

    #[test]
    fn topics_of_the_three_kinds() {
        assert_eq!(short("ab"), Ok(*b"ab"));
        assert_eq!(short("é"), Ok([0xC3, 0xA9]));
        assert!(short("a").is_err() && short("abc").is_err());
        assert_eq!(predefined("7"), Ok((7, None)));
        assert_eq!(predefined("7=a/b"), Ok((7, Some(TopicName::new("a/b").unwrap()))));
        for text in ["0", "65535", "65536", "-1", "x", "7=", "7=a/#", "=a"] {
            assert!(predefined(text).is_err(), "{text}");
        }
        assert_eq!(qos_or_minus_one("-1"), Ok(Qos::MinusOne));
        assert!(qos_or_minus_one("3").is_err() && qos("-1").is_err());
    }
}
