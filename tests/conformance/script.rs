//! The language the table is written in. One row is a headline and lines; every line stands alone:
//!
//! ```text
//! T-079 R R-062 QoS 1: PUBACK is held until the broker acknowledges      number, level, requirement, title
//! given FR, mtu 60                  a fixture of fixtures.sn and settings of the gateway (see `Settings`)
//! given B> withholds PUBACK         any step may be part of what is given
//! C> 09 0C 20 <T1> 00 10 68 69 PUBLISH      the client sends; C@S2> from a second source
//! C> 02 03 (must be ignored)                ill-formed or not allowed from a client
//! C?> 07 0B <T1> <M1> 00 REGACK             sent only if the last G?> was seen
//! G> 07 0D <T1> 00 10 00 PUBACK             the next datagram to the client; G@S2> to the second source
//! G~> …                                     the same, in any order with the G> before it
//! G?> …  G~?> …                             may come or not
//! P> 03 05 03                               what a tolerant run accepts besides the last G>; `P> silence`
//! B> PUBLISH s/1 "on" QoS 1 retain 1        the broker has a message; `regardless`: whether subscribed to or not
//! B> holds s/1 "on" before SUBACK           the broker retains a message, and hands it out before its SUBACK
//! B> withholds PUBACK                       from here on
//! B> PUBACK   B> SUBACK 1   B> CONNACK 5    the oldest one withheld; a row that says so withholds it from its first step on
//! B> down   B> up                           refuses TCP connections and drops those there are; accepts them again
//! B> closes                                 drops the connection
//! =>B PUBLISH a/b "hi!" QoS 0 retain 0 once  the next PUBLISH at the broker; what is not said is not checked
//! =>B SUBSCRIBE s/1 QoS 1   =>B UNSUBSCRIBE s/1   =>B PUBACK   =>B DISCONNECT   =>B CONNECT c1 clean 1 no will
//! =>B no SUBSCRIBE CONNECT          none that is not named elsewhere in the row; =>B nothing: none of any kind
//! =>B@c2 SUBSCRIBE s/1   B@c2> closes       on the connection of this client; without @: on that of c1
//! =>B@gateway PUBLISH w/1           on the connection of the gateway's own; in aggregating mode there is no other, whatever is said
//! quiet 2.5 s: why                  nothing reaches a client meanwhile, and no PUBLISH or DISCONNECT the broker
//! silent 2.3 s: why                 the same, for so long after the last datagram of a client's
//! wait 1 s: why                     time passes
//! <T2> != <T1>                      the gateway's choices differ
//! gateway stops                     SIGTERM, and it ends in good order
//! gateway restarts without its state
//! aggregating: …   transparent: …   the line holds in this mode only
//! note …                            for the reader
//! ```
//!
//! `<T1>` is a topic id of the gateway's choice, neither 0000 nor FFFF, `<M1>` a MsgId of its choice, not 0000; the same name is the
//! same value in one row. `<any>` is any two octets, `<41 x248>` 248 times 41. Payloads are `"text"`, `<41 x248>` or `empty`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How long nothing may happen in a `quiet` without a time.
const QUIET: Duration = Duration::from_millis(500);

/// How a gateway serves clients at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Aggregating,
    Transparent,
}

/// One row of the table, in one mode.
#[derive(Debug)]
pub(crate) struct Row {
    /// `T-079`: of the digest's table; `N-01`: beyond it.
    pub(crate) name: String,
    /// `S`: stated by the specification; `R`: what the digest recommends where it is silent.
    pub(crate) level: char,
    pub(crate) requirement: String,
    pub(crate) title: String,
    pub(crate) settings: Settings,
    pub(crate) given: Vec<Line>,
    pub(crate) steps: Vec<Line>,
}

/// What a row wants of the gateway's configuration and of the broker at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) advertise: Option<Duration>,
    pub(crate) mtu: usize,
    pub(crate) max_topics: usize,
    pub(crate) qos_minus_one: bool,
    /// Of the gateway's own connection to the broker, and the longest of a client's.
    pub(crate) keep_alive: Duration,
    /// How long a client outlives its connection to the broker (transparent mode).
    pub(crate) grace: Duration,
    pub(crate) broker: BrokerAtStart,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            advertise: None,
            mtu: 65_507,
            max_topics: 1000,
            qos_minus_one: true,
            keep_alive: Duration::from_secs(60),
            grace: Duration::from_secs(60),
            broker: BrokerAtStart::Up,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokerAtStart {
    Up,
    Down,
    /// Every CONNECT gets this return code of MQTT 3.1.1.
    Refuses(u8),
}

/// A step and where it is written.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) file: &'static str,
    pub(crate) number: usize,
    pub(crate) text: String,
    pub(crate) step: Step,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Send(Send),
    /// Datagrams in any order among each other.
    Receive(Vec<Receive>),
    Broker(BrokerAct),
    AtBroker(Whose, AtBroker),
    Quiet {
        window: Duration,
        /// The window began when a client last sent something, however late the answer was.
        silent: bool,
        source: Option<Source>,
        or: Vec<Alternative>,
    },
    Wait(Duration),
    Differ(Name, Name),
    Stop,
    Restart,
}

#[derive(Debug, Clone)]
pub(crate) struct Send {
    pub(crate) from: Source,
    pub(crate) octets: Pattern,
    pub(crate) ill_formed: bool,
    /// Only if the last optional datagram was seen.
    pub(crate) conditional: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Receive {
    pub(crate) at: Source,
    pub(crate) octets: Pattern,
    pub(crate) optional: bool,
    pub(crate) or: Vec<Alternative>,
}

/// What a tolerant run accepts instead.
#[derive(Debug, Clone)]
pub(crate) enum Alternative {
    Octets(Pattern),
    Silence,
}

/// A socket of the test's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    S1,
    S2,
    /// Member of the multicast group.
    Group,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::Group => "group",
        })
    }
}

/// Octets with gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(pub(crate) Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Octets(Vec<u8>),
    Name(Name),
    Any,
}

/// `T1`, `M3`: a topic id or a MsgId of the gateway's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) kind: char,
    pub(crate) index: char,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}{}>", self.kind, self.index)
    }
}

/// Whose connection to the broker: the client id there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Whose(pub(crate) String);

impl Whose {
    /// The gateway's own client id in all rows.
    pub(crate) const GATEWAY: &str = "gateway";

    /// The client of nearly all rows.
    const CLIENT: &str = "c1";

    fn named(name: Option<&str>, mode: Mode) -> Self {
        Self(match mode {
            Mode::Aggregating => Self::GATEWAY.into(),
            Mode::Transparent => name.unwrap_or(Self::CLIENT).into(),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BrokerAct {
    Publish(Message, Delivery),
    Holds { message: Message, before_suback: bool },
    Withholds(Whose, Ack),
    Answers(Whose, Ack, u8),
    Down,
    Up,
    Closes(Whose),
}

/// To whom the broker sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Subscribers,
    Regardless,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
}

/// What the broker can be told to leave unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ack {
    Connect,
    Publish,
    Subscribe,
}

/// What is expected at the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AtBroker {
    Publish { topic: String, payload: Option<Vec<u8>>, qos: Option<u8>, retain: Option<bool>, once: bool },
    Subscribe { filter: String, qos: Option<u8> },
    Unsubscribe { filter: String },
    PubAck,
    Connect { client: Option<String>, clean: Option<bool>, no_will: bool },
    Disconnect,
    No(Vec<Kind>),
}

/// Packets whose absence can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Connect,
    Publish,
    PubAck,
    Subscribe,
    Unsubscribe,
    Disconnect,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Connect, Self::Publish, Self::PubAck, Self::Subscribe, Self::Unsubscribe, Self::Disconnect];
}

/// A file of the table by name and content.
pub(crate) type File = (&'static str, &'static str);

/// Reads the rows of one file.
pub(crate) fn rows(file: File, fixtures: File, mode: Mode) -> Result<Vec<Row>, String> {
    let fixtures = Fixtures::read(fixtures)?;
    let mut rows: Vec<Row> = Vec::new();
    for (number, text) in significant(file.1) {
        let result = if is_headline(text) {
            headline(text).map(|row| rows.push(row))
        } else {
            match rows.last_mut() {
                Some(row) => row.add(Place { file: file.0, number }, text, &fixtures, mode),
                None => Err("a line before the first row".into()),
            }
        };
        result.map_err(|problem| format!("{}:{number}: {problem}: {text}", file.0))?;
    }
    Ok(rows)
}

fn significant(content: &'static str) -> impl Iterator<Item = (usize, &'static str)> {
    let numbered = content.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// The first line of a row.
pub(crate) fn is_headline(text: &str) -> bool {
    text.starts_with("T-") || text.starts_with("N-")
}

fn headline(text: &str) -> Result<Row, String> {
    let mut words = text.splitn(4, ' ');
    let mut word = || words.next().filter(|word| !word.is_empty()).ok_or("number, level, requirement, title");
    let name = word()?;
    name["T-".len()..].parse::<u16>().map_err(|_| "the number of the row")?;
    let level = match word()? {
        "S" => 'S',
        "R" => 'R',
        _ => return Err("the level is S or R".into()),
    };
    Ok(Row {
        name: name.to_owned(),
        level,
        requirement: word()?.to_owned(),
        title: word()?.to_owned(),
        settings: Settings::default(),
        given: Vec::new(),
        steps: Vec::new(),
    })
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: &'static str,
    number: usize,
}

impl Row {
    fn add(&mut self, place: Place, text: &str, fixtures: &Fixtures, mode: Mode) -> Result<(), String> {
        let (only, text) = match text.split_once(": ") {
            Some(("aggregating", rest)) => (Mode::Aggregating, rest.trim()),
            Some(("transparent", rest)) => (Mode::Transparent, rest.trim()),
            _ => (mode, text),
        };
        if only != mode || text.starts_with("note ") {
            return Ok(());
        }
        let Some(given) = text.strip_prefix("given ") else {
            return add_step(&mut self.steps, place, text, mode);
        };
        if !given.starts_with('F') {
            return add_step(&mut self.given, place, given, mode);
        }
        let mut items = given.split(", ");
        fixtures.expand(items.next().unwrap_or_default(), mode, &mut self.given)?;
        items.try_for_each(|item| self.settings.set(item))
    }
}

impl Settings {
    fn set(&mut self, item: &str) -> Result<(), String> {
        let words: Vec<_> = item.split(' ').collect();
        match words.as_slice() {
            ["advertise", seconds, "s"] => {
                self.advertise = Some(Duration::from_secs(number(seconds)?));
            }
            ["mtu", octets] => self.mtu = number(octets)?,
            ["max_topics", topics] => self.max_topics = number(topics)?,
            ["qos_minus_one", "off"] => self.qos_minus_one = false,
            ["keep_alive", seconds, "s"] => self.keep_alive = duration(seconds)?,
            ["grace", seconds, "s"] => self.grace = duration(seconds)?,
            ["broker", "down"] => self.broker = BrokerAtStart::Down,
            ["broker", "refuses", code] => self.broker = BrokerAtStart::Refuses(number(code)?),
            _ => return Err(format!("no such setting: {item}")),
        }
        Ok(())
    }
}

/// The fixtures as text, because rows may change octets in them.
struct Fixtures {
    file: &'static str,
    lines: BTreeMap<&'static str, Vec<(usize, &'static str)>>,
}

impl Fixtures {
    fn read((file, content): File) -> Result<Self, String> {
        let mut lines: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut current = None;
        for (number, text) in significant(content) {
            match (text.split(' ').next(), current) {
                (Some(name), _) if name.starts_with('F') => {
                    current = Some(name);
                    lines.insert(name, Vec::new());
                }
                (_, Some(name)) => lines.entry(name).or_default().push((number, text)),
                _ => return Err(format!("{file}:{number}: a line before the first fixture")),
            }
        }
        Ok(Self { file, lines })
    }

    /// `FW flags=08 duration=0002`
    fn expand(&self, call: &str, mode: Mode, into: &mut Vec<Line>) -> Result<(), String> {
        let mut words = call.split(' ');
        let name = words.next().unwrap_or_default();
        let mut values = BTreeMap::new();
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is not name=octets"))?;
            values.insert(key, value);
        }
        let mut used = Vec::new();
        self.expand_with(name, &values, mode, &mut used, into)?;
        match values.keys().find(|key| !used.iter().any(|used| used == *key)) {
            Some(key) => Err(format!("{name} has no {key}")),
            None => Ok(()),
        }
    }

    fn expand_with(
        &self,
        name: &str,
        values: &BTreeMap<&str, &str>,
        mode: Mode,
        used: &mut Vec<String>,
        into: &mut Vec<Line>,
    ) -> Result<(), String> {
        for (number, text) in self.lines.get(name).ok_or_else(|| format!("no such fixture: {name}"))? {
            if let Some(base) = text.strip_prefix("given ") {
                self.expand_with(base, values, mode, used, into)?;
                continue;
            }
            let mut filled = String::new();
            let mut rest = *text;
            while let Some((before, after)) = rest.split_once('{') {
                let (gap, after) = after.split_once('}').ok_or("an open {")?;
                let (key, default) = gap.split_once('=').ok_or("{name=octets}")?;
                filled.push_str(before);
                filled.push_str(values.get(key).copied().unwrap_or(default));
                used.push(key.to_owned());
                rest = after;
            }
            filled.push_str(rest);
            add_step(into, Place { file: self.file, number: *number }, &filled, mode)?;
        }
        Ok(())
    }
}

fn add_step(lines: &mut Vec<Line>, place: Place, text: &str, mode: Mode) -> Result<(), String> {
    let last = lines.last_mut().map(|line| &mut line.step);
    if let Some(alternative) = text.strip_prefix("P> ") {
        let alternative = match alternative {
            "silence" => Alternative::Silence,
            octets => Alternative::Octets(datagram(octets)?.0),
        };
        match last {
            Some(Step::Receive(expected)) => {
                expected.last_mut().ok_or("P> without G>")?.or.push(alternative);
            }
            Some(Step::Quiet { or, .. }) => or.push(alternative),
            _ => return Err("P> follows a G> or a quiet".into()),
        }
        return Ok(());
    }
    if let Some((true, expected)) = receive(text)? {
        let Some(Step::Receive(group)) = last else { return Err("G~> follows a G>".into()) };
        group.push(expected);
        return Ok(());
    }
    let step = step(text, mode)?;
    lines.push(Line { file: place.file, number: place.number, text: text.to_owned(), step });
    Ok(())
}

fn step(text: &str, mode: Mode) -> Result<Step, String> {
    if let Some((_, expected)) = receive(text)? {
        return Ok(Step::Receive(vec![expected]));
    }
    if let Some(send) = send(text)? {
        return Ok(Step::Send(send));
    }
    if let Some((whose, act)) = text.strip_prefix('B').and_then(|rest| rest.split_once("> ")) {
        let named = whose.strip_prefix('@');
        return Ok(Step::Broker(broker_act(&words(act)?, named, mode)?));
    }
    if let Some((whose, expected)) = text.strip_prefix("=>B").and_then(|rest| rest.split_once(' ')) {
        let whose = Whose::named(whose.strip_prefix('@'), mode);
        return Ok(Step::AtBroker(whose, at_broker(&words(expected)?)?));
    }
    let (plain, _why) = text.split_once(':').unwrap_or((text, ""));
    let plain: Vec<_> = plain.split(' ').collect();
    match plain.as_slice() {
        ["quiet"] => Ok(Step::Quiet { window: QUIET, silent: false, source: None, or: Vec::new() }),
        [word @ ("quiet" | "silent"), seconds, "s"] => {
            let (window, silent) = (duration(seconds)?, *word == "silent");
            Ok(Step::Quiet { window, silent, source: None, or: Vec::new() })
        }
        ["quiet", source, seconds, "s"] => {
            let source = Some(source_named(source)?);
            Ok(Step::Quiet { window: duration(seconds)?, silent: false, source, or: Vec::new() })
        }
        ["wait", seconds, "s"] => Ok(Step::Wait(duration(seconds)?)),
        ["gateway", "stops"] => Ok(Step::Stop),
        ["gateway", "restarts", ..] => Ok(Step::Restart),
        [one, "!=", other] => Ok(Step::Differ(name(one)?, name(other)?)),
        _ => Err("no such step".into()),
    }
}

/// A `G>` line, and whether it may change places with the one before.
fn receive(text: &str) -> Result<Option<(bool, Receive)>, String> {
    let Some((head, octets)) = text.split_once('>').filter(|_| text.starts_with('G')) else {
        return Ok(None);
    };
    let octets = datagram(octets)?.0;
    let (head, optional) = match head.strip_suffix('?') {
        Some(head) => (head, true),
        None => (head, false),
    };
    let (head, free) = match head.strip_suffix('~') {
        Some(head) => (head, true),
        None => (head, false),
    };
    let at = source_of(head)?;
    Ok(Some((free, Receive { at, octets, optional, or: Vec::new() })))
}

fn send(text: &str) -> Result<Option<Send>, String> {
    let Some((head, octets)) = text.split_once('>').filter(|_| text.starts_with('C')) else {
        return Ok(None);
    };
    let (octets, ill_formed) = datagram(octets)?;
    let (head, conditional) = match head.strip_suffix('?') {
        Some(head) => (head, true),
        None => (head, false),
    };
    Ok(Some(Send { from: source_of(head)?, octets, ill_formed, conditional }))
}

/// `C`, `G`, `C@S2`, `G@group`
fn source_of(head: &str) -> Result<Source, String> {
    match head.split_once('@') {
        Some((_, source)) => source_named(source),
        None => Ok(Source::S1),
    }
}

fn source_named(text: &str) -> Result<Source, String> {
    match text {
        "S1" => Ok(Source::S1),
        "S2" => Ok(Source::S2),
        "group" => Ok(Source::Group),
        _ => Err(format!("no such source: {text}")),
    }
}

/// Octets, then the name of the message or a remark in parentheses. True: it must be ignored.
fn datagram(text: &str) -> Result<(Pattern, bool), String> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = if rest.starts_with('<') { rest.find('>').ok_or("an open <")? + 1 } else { 0 };
        let end = end + rest[end..].find(' ').unwrap_or(rest.len() - end);
        let (token, tail) = rest.split_at(end);
        match part(token)? {
            Some(Part::Octets(more)) => match parts.last_mut() {
                Some(Part::Octets(octets)) => octets.extend(more),
                _ => parts.push(Part::Octets(more)),
            },
            Some(part) => parts.push(part),
            None => break,
        }
        rest = tail.trim_start();
    }
    let remark = rest.split(' ').find(|word| *word != "ENC").unwrap_or_default();
    if !rest.is_empty() && !remark.starts_with('(') && !MESSAGES.contains(&remark) {
        return Err(format!("neither octets nor a message: {rest}"));
    }
    Ok((Pattern(parts), rest.contains("(must be ignored)")))
}

/// The messages of MQTT-SN 1.2 by name (§5.2.2).
const MESSAGES: [&str; 27] = [
    "ADVERTISE",
    "SEARCHGW",
    "GWINFO",
    "CONNECT",
    "CONNACK",
    "WILLTOPICREQ",
    "WILLTOPIC",
    "WILLMSGREQ",
    "WILLMSG",
    "REGISTER",
    "REGACK",
    "PUBLISH",
    "PUBACK",
    "PUBCOMP",
    "PUBREC",
    "PUBREL",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "WILLTOPICUPD",
    "WILLTOPICRESP",
    "WILLMSGUPD",
    "WILLMSGRESP",
];

fn part(token: &str) -> Result<Option<Part>, String> {
    if let Some(inner) = token.strip_prefix('<').and_then(|token| token.strip_suffix('>')) {
        return Ok(Some(match inner.split_once(" x") {
            Some((octet, times)) => Part::Octets(vec![hex(octet).ok_or("an octet")?[0]; number(times)?]),
            None if inner == "any" => Part::Any,
            None => Part::Name(name(token)?),
        }));
    }
    Ok(hex(token).map(Part::Octets))
}

/// Pairs of hexadecimal digits.
fn hex(text: &str) -> Option<Vec<u8>> {
    let whole = !text.is_empty()
        && text.len().is_multiple_of(2)
        && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    whole.then(|| {
        let pairs = (0..text.len()).step_by(2);
        pairs.filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
    })
}

/// `<T1>`
fn name(text: &str) -> Result<Name, String> {
    match text.chars().collect::<Vec<_>>()[..] {
        ['<', kind @ ('T' | 'M'), index @ '1'..='9', '>'] => Ok(Name { kind, index }),
        _ => Err(format!("no such placeholder: {text}")),
    }
}

/// Words, with payloads in one piece.
fn words(text: &str) -> Result<Vec<&str>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let close = match rest.as_bytes()[0] {
            b'"' => Some('"'),
            b'<' => Some('>'),
            _ => None,
        };
        let end = match close {
            Some(close) => rest[1..].find(close).ok_or("an open payload")? + 2,
            None => rest.find(' ').unwrap_or(rest.len()),
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

fn payload(word: &str) -> Result<Option<Vec<u8>>, String> {
    if let Some(text) = word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        return Ok(Some(text.as_bytes().to_vec()));
    }
    match part(word)? {
        Some(Part::Octets(octets)) if word.starts_with('<') => Ok(Some(octets)),
        _ => Ok((word == "empty").then(Vec::new)),
    }
}

fn broker_act(words: &[&str], named: Option<&str>, mode: Mode) -> Result<BrokerAct, String> {
    if let Some(act) = act_on_connection(words, Whose::named(named, mode))? {
        return Ok(act);
    }
    if named.is_some() {
        return Err("this is not about one connection".into());
    }
    Ok(match words {
        ["PUBLISH", topic, content, "QoS", qos, rest @ ..] => {
            let payload = payload(content)?.ok_or("a payload")?;
            let mut message = Message { topic: (*topic).into(), payload, qos: number(qos)?, retain: false };
            let delivery = match rest {
                [] => Delivery::Subscribers,
                ["regardless"] => Delivery::Regardless,
                ["retain", "1"] => {
                    message.retain = true;
                    Delivery::Subscribers
                }
                _ => return Err("retain 1 or regardless".into()),
            };
            BrokerAct::Publish(message, delivery)
        }
        ["holds", topic, content, rest @ ..] => {
            let payload = payload(content)?.ok_or("a payload")?;
            let message = Message { topic: (*topic).into(), payload, qos: 0, retain: true };
            let before_suback = match rest {
                [] => false,
                ["before", "SUBACK"] => true,
                _ => return Err("before SUBACK".into()),
            };
            BrokerAct::Holds { message, before_suback }
        }
        ["down"] => BrokerAct::Down,
        ["up"] => BrokerAct::Up,
        _ => return Err("the broker cannot do that".into()),
    })
}

fn act_on_connection(words: &[&str], whose: Whose) -> Result<Option<BrokerAct>, String> {
    Ok(Some(match words {
        ["withholds", "PUBACK"] => BrokerAct::Withholds(whose, Ack::Publish),
        ["withholds", "SUBACK"] => BrokerAct::Withholds(whose, Ack::Subscribe),
        ["PUBACK"] => BrokerAct::Answers(whose, Ack::Publish, 0),
        ["SUBACK", "0x80"] => BrokerAct::Answers(whose, Ack::Subscribe, 0x80),
        ["SUBACK", code] => BrokerAct::Answers(whose, Ack::Subscribe, number(code)?),
        ["CONNACK", code] => BrokerAct::Answers(whose, Ack::Connect, number(code)?),
        ["closes"] => BrokerAct::Closes(whose),
        _ => return Ok(None),
    }))
}

fn at_broker(words: &[&str]) -> Result<AtBroker, String> {
    let Some((kind, rest)) = words.split_first() else { return Err("a packet".into()) };
    Ok(match (*kind, rest) {
        ("PUBLISH", [topic, rest @ ..]) => at_broker_publish(topic, rest)?,
        ("SUBSCRIBE", [filter]) => AtBroker::Subscribe { filter: (*filter).into(), qos: None },
        ("SUBSCRIBE", [filter, "QoS", qos]) => {
            AtBroker::Subscribe { filter: (*filter).into(), qos: Some(number(qos)?) }
        }
        ("UNSUBSCRIBE", [filter]) => AtBroker::Unsubscribe { filter: (*filter).into() },
        ("PUBACK", []) => AtBroker::PubAck,
        ("DISCONNECT", []) => AtBroker::Disconnect,
        ("CONNECT", []) => AtBroker::Connect { client: None, clean: None, no_will: false },
        ("CONNECT", [client, "clean", clean, rest @ ..]) => AtBroker::Connect {
            client: Some((*client).into()),
            clean: Some(flag(clean)?),
            no_will: rest == ["no", "will"],
        },
        ("nothing", []) => AtBroker::No(Kind::ALL.to_vec()),
        ("no", kinds) if !kinds.is_empty() => {
            AtBroker::No(kinds.iter().map(|kind| kind_named(kind)).collect::<Result<_, _>>()?)
        }
        _ => return Err("no such expectation at the broker".into()),
    })
}

fn at_broker_publish(topic: &str, words: &[&str]) -> Result<AtBroker, String> {
    let (mut content, mut level, mut retained, mut single) = (None, None, None, false);
    let mut rest = words;
    loop {
        rest = match rest {
            [] => break,
            ["QoS", value, rest @ ..] => {
                level = Some(number(value)?);
                rest
            }
            ["retain", value, rest @ ..] => {
                retained = Some(flag(value)?);
                rest
            }
            ["once", rest @ ..] => {
                single = true;
                rest
            }
            [word, rest @ ..] => {
                content = Some(payload(word)?.ok_or_else(|| format!("no payload: {word}"))?);
                rest
            }
        };
    }
    Ok(AtBroker::Publish {
        topic: topic.into(),
        payload: content,
        qos: level,
        retain: retained,
        once: single,
    })
}

fn kind_named(text: &str) -> Result<Kind, String> {
    Ok(match text {
        "CONNECT" => Kind::Connect,
        "PUBLISH" => Kind::Publish,
        "PUBACK" => Kind::PubAck,
        "SUBSCRIBE" => Kind::Subscribe,
        "UNSUBSCRIBE" => Kind::Unsubscribe,
        "DISCONNECT" => Kind::Disconnect,
        _ => return Err(format!("no such packet: {text}")),
    })
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("0 or 1, not {text}")),
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("no number: {text}"))
}

fn duration(seconds: &str) -> Result<Duration, String> {
    number(seconds).map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURES: File = (
        "fixtures.sn",
        "F0 nothing\nFA client\nC> 08 04 {flags=04} 01 {duration=003C} 63 31 CONNECT\nFS subscribed\ngiven FA\nC> 02 16\n",
    );

    fn read(text: &'static str) -> Result<Vec<Row>, String> {
        rows(("x.sn", text), FIXTURES, Mode::Aggregating)
    }

    fn one(line: &'static str) -> Result<Step, String> {
        step(line, Mode::Aggregating)
    }

    #[test]
    fn a_row_has_a_headline_a_fixture_and_steps() {
        let rows =
            read("# comment\nT-007 R R-002 A title, long\ngiven FS flags=00, mtu 60\nC> 02 17\n").unwrap();
        let row = &rows[0];
        assert_eq!((row.name.as_str(), row.level, row.requirement.as_str()), ("T-007", 'R', "R-002"));
        assert_eq!(row.title, "A title, long");
        assert_eq!(row.settings, Settings { mtu: 60, ..Settings::default() });
        assert_eq!((row.given.len(), row.steps.len()), (2, 1));
        assert_eq!(row.given[0].text, "C> 08 04 00 01 003C 63 31 CONNECT");
        assert_eq!((row.steps[0].file, row.steps[0].number), ("x.sn", 4));
    }

    #[test]
    fn lines_of_the_other_mode_are_left_out() {
        let text = "T-001 S R-001 t\ntransparent: given F0, mtu 60\naggregating: C> 02 16\ntransparent: C> 02 17\nC> 02 18\n";
        let rows = read(text).unwrap();
        let texts: Vec<_> = rows[0].steps.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["C> 02 16", "C> 02 18"]);
        assert_eq!(rows[0].settings, Settings::default());
    }

    #[test]
    fn octets_gaps_and_fills_make_a_pattern() {
        let Ok(Step::Receive(group)) = one("G@S2> 01 0002 <T1> <M2> <any> <41 x3> ENC PUBLISH") else {
            panic!()
        };
        assert_eq!(group[0].at, Source::S2);
        let expected = vec![
            Part::Octets(vec![1, 0, 2]),
            Part::Name(Name { kind: 'T', index: '1' }),
            Part::Name(Name { kind: 'M', index: '2' }),
            Part::Any,
            Part::Octets(vec![0x41; 3]),
        ];
        assert_eq!(group[0].octets, Pattern(expected));
    }

    #[test]
    fn an_empty_datagram_that_must_be_ignored_is_a_step() {
        let Ok(Step::Send(send)) = one("C> (must be ignored)") else { panic!() };
        assert!(send.ill_formed && send.octets.0.is_empty());
    }

    #[test]
    fn what_the_broker_does_and_sees_is_read_word_by_word() {
        let message = Message { topic: "s/1".into(), payload: b"a b".to_vec(), qos: 1, retain: true };
        let Ok(Step::Broker(act)) = one("B> PUBLISH s/1 \"a b\" QoS 1 retain 1") else { panic!() };
        assert_eq!(act, BrokerAct::Publish(message, Delivery::Subscribers));
        let Ok(Step::AtBroker(_, seen)) = one("=>B PUBLISH a/b <41 x2> QoS 0 once") else { panic!() };
        let expected = AtBroker::Publish {
            topic: "a/b".into(),
            payload: Some(vec![0x41; 2]),
            qos: Some(0),
            retain: None,
            once: true,
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_slip_of_the_pen_is_an_error_and_not_a_shorter_datagram() {
        for line in [
            "C> 02 1G",
            "C> 02 16 PINGRE",
            "G> <T0>",
            "G> <41 xx>",
            "B> PUBLISH s/1",
            "=>B PUBLISH a on",
            "quiet 1",
        ] {
            assert!(one(line).is_err(), "{line}");
        }
        for text in [
            "C> 02 16",
            "T-1 X R t",
            "T-1 S R t\ngiven FQ",
            "T-1 S R t\ngiven FA nosuch=00",
            "T-1 S R t\ngiven F0, mtu",
            "T-1 S R t\nP> 02 18",
            "T-1 S R t\nG~> 02 18",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
