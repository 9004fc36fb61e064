//! Reading a tree key by key: what is asked for is the schema, what was not asked for is unknown.
//!
//! A [`Kind`] says what may stand at a place; kinds for single values are in `value`, and [`list`], [`map`],
//! [`section`] and [`built`] make larger ones of them. Reading never stops at a problem: it is noted in the [`Report`]
//! and the value is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde_yaml::Value;

use super::problem::{At, Problem, nearest};
use super::yaml::{Content, Key, Node, Scalar, shorten};

/// A map in words.
const MAP: &str = "a map of keys and values";

/// What came to light while a file was read.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
    unknown: Vec<Unknown>,
    /// The path of every key that was asked for.
    asked: BTreeSet<String>,
}

/// A key nobody asked for, and those that were asked for in its place.
#[derive(Debug)]
struct Unknown {
    at: At,
    path: String,
    key: String,
    known: Vec<&'static str>,
}

impl Report {
    /// Notes that something is wrong at a place.
    pub(super) fn problem(&mut self, at: At, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem { at, path: path.into(), text: text.into() });
    }

    /// The problems that were noted, and the unknown keys, each with the key that may have been meant.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems;
        for Unknown { at, path, key, known } in self.unknown {
            let here = nearest(&key, known.iter().copied());
            let text = match here.or_else(|| only_place(&self.asked, &key)) {
                Some(meant) => format!("unknown key; did you mean \"{meant}\"?"),
                None => format!("unknown key, expected {}", one_of(&known)),
            };
            problems.push(Problem { at, path, text });
        }
        problems
    }

    /// The path of every key that was asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> impl Iterator<Item = &str> {
        self.asked.iter().map(String::as_str)
    }
}

/// The one path among `asked`, outside of lists, that ends with `key`.
fn only_place<'a>(asked: &'a BTreeSet<String>, key: &str) -> Option<&'a str> {
    let mut places = asked.iter().filter(|path| path.rsplit('.').next() == Some(key) && !path.contains('['));
    places.next().filter(|_| places.next().is_none()).map(String::as_str)
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".into(),
        [name] => (*name).into(),
        [names @ .., name] => format!("{} or {name}", names.join(", ")),
    }
}

/// What may stand at a place.
pub(super) trait Kind {
    /// What it means to us.
    type Value;

    /// In words, as in "expected a duration".
    fn expected(&self) -> String;

    /// Reads what stands at `spot`; `None` if it is wrong, which has been noted then.
    fn read(&mut self, spot: &mut Spot<'_>) -> Option<Self::Value>;
}

/// A kind of single value: what is `expected`, and how to tell whether a scalar is one.
pub(super) struct Leaf<T> {
    expected: String,
    parse: Box<Parse<T>>,
}

type Parse<T> = dyn Fn(&Scalar) -> Result<T, Unfit>;

/// Why a scalar is not of a kind, as far as there is more to say than what is expected.
#[derive(Debug, Default)]
pub(super) struct Unfit {
    /// As in `"a/+" contains a wildcard`.
    pub(super) because: Option<String>,
    /// What may have been meant.
    pub(super) meant: Option<String>,
}

impl<T: 'static> Leaf<T> {
    pub(super) fn new(
        expected: impl Into<String>,
        parse: impl Fn(&Scalar) -> Result<T, Unfit> + 'static,
    ) -> Self {
        Self { expected: expected.into(), parse: Box::new(parse) }
    }

    /// Those of this kind that are `further` something else.
    pub(super) fn and_then<U: 'static>(self, further: fn(T) -> Result<U, Unfit>) -> Leaf<U> {
        Leaf::new(self.expected, move |scalar| further((self.parse)(scalar)?))
    }

    /// The same kind, or a `word` that stands for no value.
    pub(super) fn or(self, word: &'static str) -> Leaf<Option<T>> {
        let expected = format!("{} or {word}", self.expected);
        Leaf::new(
            expected,
            move |scalar| {
                if scalar.text == word { Ok(None) } else { (self.parse)(scalar).map(Some) }
            },
        )
    }

    /// The value that `scalar` is, or in words what is wrong with it.
    pub(super) fn value(&self, scalar: &Scalar) -> Result<T, String> {
        (self.parse)(scalar).map_err(|Unfit { because, meant }| {
            let what = match because {
                Some(because) => format!("{} {because}", found(scalar)),
                None => format!("found {}", found(scalar)),
            };
            let meant = meant.filter(|_| scalar.written.is_none());
            let meant = meant.map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default();
            format!("{what}, expected {}{meant}", self.expected)
        })
    }
}

impl<T: 'static> Kind for Leaf<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.clone()
    }

    fn read(&mut self, spot: &mut Spot<'_>) -> Option<T> {
        let Content::Scalar(scalar) = &spot.node.content else { return spot.unlike(&self.expected) };
        self.value(scalar).map_err(|wrong| spot.wrong(wrong)).ok()
    }
}

/// A node on the way of a reader, which knows how it got there.
pub(super) struct Spot<'a> {
    node: &'a Node,
    path: String,
    report: &'a mut Report,
}

impl<'a> Spot<'a> {
    /// Notes that what stands here is not what was `expected`.
    fn unlike<T>(&mut self, expected: &str) -> Option<T> {
        match &self.node.content {
            Content::Unusable(why) => self.wrong(why.clone()),
            _ => self.wrong(format!("found {}, expected {expected}", self.found())),
        }
        None
    }

    /// Notes what is wrong with what stands here.
    pub(super) fn wrong(&mut self, text: impl Into<String>) {
        self.report.problem(self.node.at, self.path.as_str(), text);
    }

    /// What stands here, in words.
    fn found(&self) -> String {
        match &self.node.content {
            Content::Scalar(scalar) => found(scalar),
            Content::List(nodes) if nodes.is_empty() => "an empty list".into(),
            Content::List(nodes) => format!("a list of {}", nodes.len()),
            Content::Map(_) => MAP.into(),
            Content::Unusable(_) => "something unusable".into(),
        }
    }

    fn inner<'b>(&'b mut self, node: &'b Node, step: &str) -> Spot<'b> {
        Spot { node, path: format!("{}{step}", self.path), report: self.report }
    }
}

/// The entries of a map; nothing at all is an empty one.
fn entries(node: &Node) -> Option<&[(Key, Node)]> {
    match &node.content {
        Content::Map(entries) => Some(entries),
        Content::Scalar(Scalar { value: Value::Null, .. }) => Some(&[]),
        _ => None,
    }
}

/// A scalar as it is shown in a message.
pub(super) fn found(scalar: &Scalar) -> String {
    match (&scalar.value, &scalar.written) {
        (_, Some(written)) => format!("{:?} with its variables replaced", shorten(written)),
        (Value::Null, _) => "nothing".into(),
        (Value::String(_), _) => format!("{:?}", shorten(&scalar.text)),
        _ => shorten(&scalar.text),
    }
}

/// A list of `count` values of a kind; one value may stand without brackets.
pub(super) fn list<K: Kind>(kind: K, count: RangeInclusive<usize>) -> List<K> {
    List { kind, count }
}

pub(super) struct List<K> {
    kind: K,
    count: RangeInclusive<usize>,
}

impl<K: Kind> Kind for List<K> {
    type Value = Vec<K::Value>;

    fn expected(&self) -> String {
        format!("a list of {} to {}, each {}", self.count.start(), self.count.end(), self.kind.expected())
    }

    fn read(&mut self, spot: &mut Spot<'_>) -> Option<Self::Value> {
        let nodes = match &spot.node.content {
            Content::List(nodes) if self.count.contains(&nodes.len()) => nodes,
            Content::List(_) | Content::Scalar(Scalar { value: Value::Null, .. }) => {
                return spot.unlike(&self.expected());
            }
            _ => return self.kind.read(spot).map(|value| vec![value]),
        };
        let read = |(i, node)| self.kind.read(&mut spot.inner(node, &format!("[{i}]")));
        Some(nodes.iter().enumerate().filter_map(read).collect())
    }
}

/// A map whose keys are of one kind and whose values are of another.
pub(super) fn map<T, V: Kind>(key: Leaf<T>, value: V) -> Map<T, V> {
    Map { key, value, distinct: false }
}

pub(super) struct Map<T, V> {
    key: Leaf<T>,
    value: V,
    distinct: bool,
}

impl<T, V> Map<T, V> {
    /// The same kind where no value stands twice.
    pub(super) fn distinct(self) -> Self {
        Self { distinct: true, ..self }
    }
}

impl<T: Ord + Clone + 'static, V: Kind<Value: PartialEq>> Kind for Map<T, V> {
    type Value = BTreeMap<T, V::Value>;

    fn expected(&self) -> String {
        format!("a map from {} to {}", self.key.expected(), self.value.expected())
    }

    fn read(&mut self, spot: &mut Spot<'_>) -> Option<Self::Value> {
        let Some(entries) = entries(spot.node) else { return spot.unlike(&self.expected()) };
        let mut lines: BTreeMap<T, usize> = BTreeMap::new();
        let mut values: BTreeMap<T, V::Value> = BTreeMap::new();
        for (Key { at, scalar }, node) in entries {
            let mut inner = spot.inner(node, &format!(".{}", step(&scalar.text)));
            let value = self.value.read(&mut inner);
            let same = values.iter().find(|(_, other)| self.distinct && value.as_ref() == Some(other));
            if let Some(line) = same.and_then(|(key, _)| lines.get(key)) {
                inner.wrong(format!("{} stands in line {line} already, expected another", inner.found()));
            }
            let path = inner.path;
            let key = match self.key.value(scalar) {
                Ok(key) => key,
                Err(wrong) => {
                    spot.report.problem(*at, path, wrong);
                    continue;
                }
            };
            if let Some(line) = lines.insert(key.clone(), at.line) {
                spot.report.problem(*at, path, duplicate(line));
            }
            values.extend(value.map(|value| (key, value)));
        }
        Some(values)
    }
}

/// A key as a part of a path, in quotes unless it is a plain word.
fn step(key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if plain { shorten(key) } else { format!("{:?}", shorten(key)) }
}

fn duplicate(line: usize) -> String {
    format!("duplicate key, it stands in line {line} already")
}

/// A map with keys of ours, which `read` asks for.
pub(super) fn section<T, F: FnMut(&mut Keys<'_>) -> T>(read: F) -> Section<F> {
    Section(read)
}

pub(super) struct Section<F>(F);

impl<T, F: FnMut(&mut Keys<'_>) -> T> Kind for Section<F> {
    type Value = T;

    fn expected(&self) -> String {
        MAP.into()
    }

    fn read(&mut self, spot: &mut Spot<'_>) -> Option<T> {
        let Some(entries) = entries(spot.node) else { return spot.unlike(&self.expected()) };
        Some(Keys::read(entries, spot.node.at, &spot.path, spot.report, &mut self.0))
    }
}

/// A kind of which this version builds only what `is_built` says; the rest is refused at its place.
pub(super) fn built<K: Kind>(kind: K, is_built: fn(&K::Value) -> bool) -> Built<K> {
    Built { kind, is_built }
}

pub(super) struct Built<K: Kind> {
    kind: K,
    is_built: fn(&K::Value) -> bool,
}

impl<K: Kind> Kind for Built<K> {
    type Value = K::Value;

    fn expected(&self) -> String {
        self.kind.expected()
    }

    fn read(&mut self, spot: &mut Spot<'_>) -> Option<K::Value> {
        let value = self.kind.read(spot)?;
        if !(self.is_built)(&value) {
            spot.wrong(format!("{} is not in this version", spot.found()));
        }
        Some(value)
    }
}

/// A map with keys of ours on the way of a reader, which asks for one after the other.
pub(super) struct Keys<'a> {
    entries: &'a [(Key, Node)],
    at: At,
    /// With a dot at the end unless this is the whole file.
    path: String,
    report: &'a mut Report,
    asked: Vec<&'static str>,
    /// Whether further keys are none of our business.
    any_key: bool,
}

impl<'a> Keys<'a> {
    /// Reads a whole file, which is a map or empty.
    pub(super) fn read_file<T>(
        root: Option<&Node>,
        report: &mut Report,
        read: impl FnOnce(&mut Keys<'_>) -> T,
    ) -> T {
        let Some(node) = root else { return Keys::read(&[], At::START, "", report, read) };
        let entries = entries(node).unwrap_or_else(|| {
            Spot { node, path: String::new(), report }.unlike::<()>(MAP);
            &[]
        });
        Keys::read(entries, node.at, "", report, read)
    }

    fn read<T>(
        entries: &[(Key, Node)],
        at: At,
        path: &str,
        report: &mut Report,
        read: impl FnOnce(&mut Keys<'_>) -> T,
    ) -> T {
        let path = if path.is_empty() { String::new() } else { format!("{path}.") };
        let mut keys = Keys { entries, at, path, report, asked: Vec::new(), any_key: false };
        let value = read(&mut keys);
        keys.finish();
        value
    }

    /// What stands under `key`, if it is there and of that kind.
    pub(super) fn get<K: Kind>(&mut self, key: &'static str, mut kind: K) -> Option<K::Value> {
        kind.read(&mut self.spot(key)?)
    }

    /// What stands under `key`, or the `default`.
    pub(super) fn or<K: Kind>(&mut self, key: &'static str, kind: K, default: K::Value) -> K::Value {
        self.get(key, kind).unwrap_or(default)
    }

    /// What stands under `key`, which must be there.
    pub(super) fn required<K: Kind>(&mut self, key: &'static str, kind: K) -> Option<K::Value> {
        if !self.has(key) {
            let text = format!("missing, expected {}", kind.expected());
            self.report.problem(self.at, format!("{}{key}", self.path), text);
        }
        self.get(key, kind)
    }

    /// The keys of ours under `key`; where it is missing, all of them are.
    pub(super) fn section<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Keys<'_>) -> T) -> T {
        if let Some(value) = self.get(key, section(&mut read)) {
            return value;
        }
        Keys::read(&[], self.at, &format!("{}{key}", self.path), self.report, read)
    }

    /// Whether there is something under `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The line of what stands under `key`, or of the map if there is nothing.
    pub(super) fn line(&self, key: &str) -> usize {
        self.entry(key).map_or(self.at.line, |(_, node)| node.at.line)
    }

    /// Notes what is wrong with what stands under `key`; if nothing does, with the map.
    pub(super) fn wrong(&mut self, key: &'static str, text: impl Into<String>) {
        match self.spot(key) {
            Some(mut spot) => spot.wrong(text),
            None => self.report.problem(self.at, format!("{}{key}", self.path), text),
        }
    }

    /// Notes that `key` is there without `other`, if it is so.
    pub(super) fn need(&mut self, key: &'static str, other: &'static str) {
        if self.has(key) && !self.has(other) {
            self.wrong(key, format!("stands without {other}, expected both"));
        }
    }

    /// Takes any further key for known, because what is known cannot be told.
    pub(super) fn accept_any_key(&mut self) {
        self.any_key = true;
    }

    fn entry(&self, key: &str) -> Option<&'a (Key, Node)> {
        self.entries.iter().find(|(k, _)| k.scalar.text == key)
    }

    fn spot(&mut self, key: &'static str) -> Option<Spot<'_>> {
        let path = format!("{}{key}", self.path);
        if !self.asked.contains(&key) {
            self.asked.push(key);
            self.report.asked.insert(path.clone());
        }
        let (_, node) = self.entry(key)?;
        Some(Spot { node, path, report: self.report })
    }

    /// Notes the keys that nobody asked for and those that stand there twice.
    fn finish(self) {
        let Keys { entries, path, report, asked, any_key, .. } = self;
        let mut lines = BTreeMap::new();
        for (Key { at, scalar }, _) in entries {
            let (at, key) = (*at, scalar.text.as_str());
            let path = format!("{path}{}", step(key));
            if let Some(line) = lines.insert(key, at.line) {
                report.problem(at, path, duplicate(line));
            } else if !any_key && !asked.contains(&key) {
                report.unknown.push(Unknown { at, path, key: key.into(), known: asked.clone() });
            }
        }
    }
}
