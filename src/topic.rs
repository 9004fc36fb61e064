//! Names that were checked once and can be trusted from then on: topics, topic filters, client ids.
//!
//! The rules are those of MQTT 3.1.1 §4.7 (topics) and MQTT-SN §5.3 (client ids). Every value is UTF-8 without U+0000
//! and cheap to clone.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

pub mod tree;

/// Octets in the longest topic name or filter (MQTT 3.1.1 §4.7.3: a two-octet length prefix).
pub const TOPIC_LEN_MAX: usize = 65_535;

/// Levels in the deepest filter, and in the deepest topic that is passed to a broker. Mosquitto allows as many; a bound
/// keeps recursion over a filter shallow.
pub const LEVELS_MAX: usize = 200;

/// Octets in the longest client id. §5.3.1 says 23; deployed clients use more, and brokers take them.
pub const CLIENT_ID_LEN_MAX: usize = 128;

/// Why octets are not a topic name, topic filter or client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// More octets than the kind of name may have.
    #[error("is too long")]
    TooLong,
    /// Octets that are not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// U+0000 is in it.
    #[error("contains U+0000")]
    Nul,
    /// A topic name with `+` or `#`.
    #[error("contains a wildcard")]
    Wildcard,
    /// A `+` or `#` that does not fill its level, or a `#` before the last level.
    #[error("has a misplaced wildcard")]
    MisplacedWildcard,
    /// More than [`LEVELS_MAX`] levels.
    #[error("has too many levels")]
    TooManyLevels,
    /// Control characters or noncharacters, on which brokers may close the connection (MQTT 3.1.1 §1.5.3).
    #[error("contains characters that not every broker takes")]
    Unportable,
}

fn checked(octets: &[u8], len_max: usize) -> Result<&str, NameError> {
    if octets.is_empty() {
        return Err(NameError::Empty);
    }
    if octets.len() > len_max {
        return Err(NameError::TooLong);
    }
    let text = std::str::from_utf8(octets).map_err(|_| NameError::NotUtf8)?;
    if text.contains('\0') { Err(NameError::Nul) } else { Ok(text) }
}

/// MQTT 3.1.1 §1.5.3: the characters that should not be in a text.
fn portable(text: &str) -> Result<(), NameError> {
    let noncharacter = |c: char| matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE;
    if text.chars().any(|c| c.is_control() || noncharacter(c)) { Err(NameError::Unportable) } else { Ok(()) }
}

/// A topic that can be published on: 1 to [`TOPIC_LEN_MAX`] octets, no wildcards (MQTT 3.1.1 §4.7.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks `octets` and keeps a copy.
    pub fn new(octets: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let text = checked(octets.as_ref(), TOPIC_LEN_MAX)?;
        if text.contains(['+', '#']) { Err(NameError::Wildcard) } else { Ok(Self(text.into())) }
    }

    /// The same for a name that comes from a client: only what every broker takes, since a broker may answer anything else
    /// by closing the connection that serves all clients.
    pub fn portable(octets: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let name = Self::new(octets)?;
        portable(&name.0)?;
        if name.levels().count() > LEVELS_MAX { Err(NameError::TooManyLevels) } else { Ok(name) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels between the slashes, from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// What a client subscribes to: a topic name in which levels may be wildcards (MQTT 3.1.1 §4.7.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    /// Checks `octets` and keeps a copy.
    pub fn new(octets: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let text = checked(octets.as_ref(), TOPIC_LEN_MAX)?;
        let mut levels = text.split('/');
        let mut count = 0;
        while let Some(level) = levels.next() {
            count += 1;
            let wild = level.contains(['+', '#']);
            let last = level == "#" && levels.clone().next().is_none();
            if wild && level != "+" && !last {
                return Err(NameError::MisplacedWildcard);
            }
        }
        if count > LEVELS_MAX { Err(NameError::TooManyLevels) } else { Ok(Self(text.into())) }
    }

    /// The same for a filter that comes from a client: only what every broker takes, as [`TopicName::portable`]. Shared
    /// subscriptions (`$share`) are not among it.
    pub fn portable(octets: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let filter = Self::new(octets)?;
        portable(&filter.0)?;
        if filter.levels().next() == Some("$share") { Err(NameError::Unportable) } else { Ok(filter) }
    }

    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels between the slashes, from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether any level is a wildcard.
    pub fn has_wildcard(&self) -> bool {
        self.0.contains(['+', '#'])
    }

    /// The one topic this filter stands for, if it has no wildcard.
    pub fn as_topic(&self) -> Option<TopicName> {
        (!self.has_wildcard()).then(|| TopicName(self.0.clone()))
    }

    /// Whether a message on `topic` is for this filter. A wildcard in the first level does not match a topic that
    /// begins with `$` (MQTT 3.1.1 §4.7.2).
    pub fn matches(&self, topic: &TopicName) -> bool {
        // Most have no wildcards: they match what has their name.
        if self.0 == topic.0 {
            return true;
        }
        if topic.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut filter, mut name) = (self.levels(), topic.levels());
        loop {
            match (filter.next(), name.next()) {
                (Some("#"), _) => return true,
                (Some("+"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }

    /// Whether every topic that `other` matches is matched by this filter too.
    pub fn covers(&self, other: &TopicFilter) -> bool {
        if other.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels(), other.levels());
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) => return true,
                (Some("+"), Some(level)) if level != "#" => {}
                (Some(a), Some(b)) if a == b => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }

    /// Whether some topic is matched by both filters.
    pub fn overlaps(&self, other: &TopicFilter) -> bool {
        let dollar = |filter: &TopicFilter| filter.0.starts_with('$');
        let wild = |filter: &TopicFilter| filter.0.starts_with(['+', '#']);
        if (dollar(self) && wild(other)) || (wild(self) && dollar(other)) {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels(), other.levels());
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (Some(a), Some(b)) if a == b => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

/// The identity of a client, unique at a gateway: 1 to [`CLIENT_ID_LEN_MAX`] octets (§5.3.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// Checks `octets` and keeps a copy.
    pub fn new(octets: impl AsRef<[u8]>) -> Result<Self, NameError> {
        checked(octets.as_ref(), CLIENT_ID_LEN_MAX).map(|text| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TopicFilter {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    #[test]
    fn names_are_utf8_without_nul_or_wildcards() {
        assert_eq!(TopicName::new(""), Err(NameError::Empty));
        assert_eq!(TopicName::new([0xC3, 0x28]), Err(NameError::NotUtf8));
        assert_eq!(TopicName::new("a\0"), Err(NameError::Nul));
        assert_eq!(TopicName::new("a/+"), Err(NameError::Wildcard));
        assert_eq!(TopicName::new("a".repeat(65_536)), Err(NameError::TooLong));
        assert!(TopicName::new("a".repeat(65_535)).is_ok());
        assert!(TopicName::new("é//").is_ok());
    }

    #[test]
    fn a_wildcard_fills_its_level_and_a_hash_is_last() {
        for good in ["#", "+", "/#", "+/", "a/+/b", "a/#", "/"] {
            assert!(TopicFilter::new(good).is_ok(), "{good}");
        }
        for bad in ["a#", "+a", "#/", "a/#/b", "a+/b"] {
            assert_eq!(TopicFilter::new(bad), Err(NameError::MisplacedWildcard), "{bad}");
        }
        assert_eq!(TopicFilter::new("/".repeat(200)), Err(NameError::TooManyLevels));
        assert!(TopicFilter::new("/".repeat(199)).is_ok());
    }

    #[test]
    fn filters_match_level_by_level() {
        for (f, yes, no) in [
            ("a/b", vec!["a/b"], vec!["a", "a/b/c", "a/c"]),
            ("a/+", vec!["a/b", "a/"], vec!["a", "a/b/c"]),
            ("a/#", vec!["a", "a/b", "a/b/c", "a/"], vec!["b", "ab"]),
            ("#", vec!["a", "/", "a/b"], vec!["$SYS/x", "$SYS"]),
            ("+/x", vec!["a/x", "/x"], vec!["$SYS/x", "a"]),
            ("$SYS/#", vec!["$SYS/x", "$SYS"], vec!["a"]),
        ] {
            for topic in yes {
                assert!(filter(f).matches(&name(topic)), "{f} matches {topic}");
            }
            for topic in no {
                assert!(!filter(f).matches(&name(topic)), "{f} does not match {topic}");
            }
        }
    }

    #[test]
    fn a_filter_covers_what_it_matches_whole_and_overlaps_what_it_shares() {
        for (a, b, covers, overlaps) in [
            ("#", "a/+", true, true),
            ("a/#", "a", true, true),
            ("a/+", "a/#", false, true),
            ("a/+", "+/b", false, true),
            ("a/b", "a/+", false, true),
            ("a/b", "a/c", false, false),
            ("+/+", "a", false, false),
            ("#", "$SYS/a", false, false),
            ("$SYS/#", "$SYS/+", true, true),
        ] {
            assert_eq!(filter(a).covers(&filter(b)), covers, "{a} covers {b}");
            assert_eq!(filter(a).overlaps(&filter(b)), overlaps, "{a} overlaps {b}");
            assert_eq!(filter(b).overlaps(&filter(a)), overlaps, "{b} overlaps {a}");
        }
    }

    #[test]
    fn a_client_id_has_1_to_128_octets() {
        assert_eq!(ClientId::new(""), Err(NameError::Empty));
        assert_eq!(ClientId::new("x".repeat(129)), Err(NameError::TooLong));
        assert!(ClientId::new("x".repeat(128)).is_ok());
    }
}
