//! Arguments as typed, and as meant: everything that can be wrong with them is found before anything starts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use mqtt_sn_gateway::framing::Framing;
use mqtt_sn_gateway::framing::xbee::Mode;
use mqtt_sn_gateway::node::{Backoff, Filter, Options, Topic, Will};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use crate::failure::Failure;
use crate::fleet;
use crate::serial;
use crate::shell::{Gateway, Way};
use crate::value;

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  failure: refused, not acknowledged, fewer messages than -C within -W, verification failed
   2  wrong usage
  66  the serial device is not there
  69  the gateway (or broker) cannot be reached or does not answer
  77  the serial device may not be opened";

/// A sensor from the command line: publish, subscribe, search for gateways, simulate fleets of sensors.
#[derive(Debug, Parser)]
#[command(name = "mqtt-sn-node", version, disable_version_flag = true, disable_help_flag = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print help.
    #[arg(long, action = ArgAction::Help, global = true)]
    help: Option<bool>,
    /// Print version.
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    /// Publish messages.
    #[command(disable_help_flag = true, after_help = EXIT_CODES)]
    Pub(PubArgs),
    /// Subscribe, and print the messages that come.
    #[command(disable_help_flag = true, after_help = EXIT_CODES)]
    Sub(SubArgs),
    /// Search for gateways.
    #[command(disable_help_flag = true, after_help = EXIT_CODES)]
    Search(SearchArgs),
    /// Simulate many sensors on a bad radio, and check what arrives at the broker.
    #[command(disable_help_flag = true, after_help = EXIT_CODES)]
    Fleet(FleetArgs),
}

#[derive(Debug, Args)]
struct GatewayArgs {
    /// Host name or address of the gateway [default: localhost].
    #[arg(short = 'h', long)]
    host: Option<String>,
    /// UDP port of the gateway [default: 1884].
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

impl GatewayArgs {
    fn meant(self) -> Gateway {
        Gateway { host: self.host.unwrap_or_else(|| "localhost".into()), port: self.port.unwrap_or(1884) }
    }
}

#[derive(Debug, Clone, Args)]
struct SerialArgs {
    /// Serial device the gateway listens at, instead of UDP.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    serial: Option<PathBuf>,
    /// Speed of the serial line.
    #[arg(long, value_name = "N", default_value_t = 115_200, requires = "serial", value_parser = clap::value_parser!(u32).range(1..))]
    baud: u32,
    /// Framing of the serial line, the same as the gateway's: length, slip, slip+crc, cobs or cobs+crc.
    #[arg(long, default_value_t = Framing::SlipCrc, requires = "serial")]
    framing: Framing,
}

impl SerialArgs {
    fn meant(self, gateway: Gateway) -> Way {
        match self.serial {
            Some(path) => Way::Serial(serial::Options { path, baud: self.baud, framing: self.framing }),
            None => Way::Udp(gateway),
        }
    }
}

#[derive(Debug, Args)]
struct NodeArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    serial: SerialArgs,
    /// Client id [default: mqtt-sn-node- and something random].
    #[arg(short, long, value_name = "ID", value_parser = value::client_id)]
    id: Option<ClientId>,
    /// Keep-alive.
    #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = value::keep_alive)]
    keepalive: Duration,
    /// Keep the session: the gateway remembers subscriptions and unfinished messages of this client id.
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
    /// Topic of the Will: what the gateway publishes when this client vanishes.
    #[arg(long, value_name = "TOPIC", value_parser = value::topic)]
    will_topic: Option<TopicName>,
    /// Payload of the Will [default: empty].
    #[arg(long, value_name = "TEXT", requires = "will_topic")]
    will_payload: Option<String>,
    /// QoS of the Will.
    #[arg(long, value_name = "QOS", default_value = "0", requires = "will_topic", value_parser = value::qos)]
    will_qos: Qos,
    /// Make the Will a retained message.
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// Speak as this node behind a forwarder: every frame is encapsulated.
    #[arg(long, value_name = "NODE ID HEX", value_parser = value::node_id)]
    forwarder: Option<Bytes>,
    /// Time after which an unanswered request is repeated.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = value::interval)]
    retry: Duration,
    /// How often it is repeated.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=1000))]
    retry_limit: u32,
    /// Print every frame to stderr.
    #[arg(short, long)]
    debug: bool,
}

/// Who to be, to whom.
#[derive(Debug)]
pub(crate) struct NodeMeant {
    pub(crate) way: Way,
    pub(crate) options: Options,
    pub(crate) debug: bool,
}

impl NodeArgs {
    fn meant(self) -> Result<NodeMeant, Failure> {
        let id = match self.id {
            Some(id) => id,
            None => random_id()?,
        };
        let will = self.will_topic.map(|topic| Will {
            topic,
            message: self.will_payload.unwrap_or_default().into(),
            qos: self.will_qos,
            retain: self.will_retain,
        });
        let options = Options {
            keep_alive: self.keepalive,
            clean_session: !self.disable_clean_session,
            will,
            retry_interval: self.retry,
            retry_limit: self.retry_limit,
            node_id: self.forwarder,
            seed: fastrand::u64(..),
            ..Options::new(id)
        };
        Ok(NodeMeant { way: self.serial.meant(self.gateway.meant()), options, debug: self.debug })
    }
}

fn random_id() -> Result<ClientId, Failure> {
    ClientId::new(format!("mqtt-sn-node-{:06x}", fastrand::u32(..) & 0xFF_FFFF))
        .map_err(|e| Failure::Usage(e.to_string()))
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("on").required(true).args(["topic", "predefined", "short"]))]
#[command(group = clap::ArgGroup::new("what").required(true).args(["message", "file", "stdin_line", "null_message"]))]
pub(crate) struct PubArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Topic to publish on.
    #[arg(short, long, value_parser = value::topic)]
    topic: Option<TopicName>,
    /// Predefined topic id to publish on, instead of -t.
    #[arg(long, value_name = "TOPIC ID", value_parser = value::predefined_id)]
    predefined: Option<u16>,
    /// Short topic name of two octets, instead of -t.
    #[arg(long, value_name = "AB", value_parser = value::short)]
    short: Option<[u8; 2]>,
    /// The message.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    message: Option<String>,
    /// A file whose content is the message.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Each line of standard input is a message.
    #[arg(short = 'l', long)]
    stdin_line: bool,
    /// A message without content.
    #[arg(short, long)]
    null_message: bool,
    /// QoS: -1, 0, 1 or 2. -1 needs no connection and gets no answer; it takes --predefined or --short.
    #[arg(short, long, default_value = "0", allow_hyphen_values = true, value_parser = value::qos_or_minus_one)]
    qos: Qos,
    /// Let the broker keep the message.
    #[arg(short, long)]
    retain: bool,
    /// -m and the lines of -l are hex.
    #[arg(long)]
    hex: bool,
    /// Give up after this time.
    #[arg(short = 'W', long, value_name = "SECONDS", value_parser = value::interval)]
    timeout: Option<Duration>,
}

/// What to publish.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) node: NodeMeant,
    pub(crate) topic: Topic,
    pub(crate) payload: Payload,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Where the payload comes from.
#[derive(Debug)]
pub(crate) enum Payload {
    One(Bytes),
    Lines { hex: bool },
}

impl PubArgs {
    pub(crate) fn meant(self) -> Result<Publish, Failure> {
        let topic = match (self.topic, self.predefined, self.short) {
            (Some(name), _, _) => Topic::Name(name),
            (_, Some(id), _) => Topic::Predefined(id),
            (_, _, Some(name)) => Topic::Short(name),
            _ => return Err(Failure::Usage("-t, --predefined or --short is missing".into())),
        };
        if self.qos == Qos::MinusOne && matches!(topic, Topic::Name(_)) {
            return Err(Failure::Usage("-q -1 takes --predefined or --short instead of -t".into()));
        }
        if let Topic::Short(name) = topic {
            value::topic(&String::from_utf8_lossy(&name))
                .map_err(|e| Failure::Usage(format!("the topic name of --short {e}")))?;
        }
        let payload = match (self.message, self.file, self.stdin_line) {
            (Some(text), _, _) if self.hex => {
                let bad = |reason| Failure::Usage(format!("the message of -m {reason}"));
                Payload::One(value::hex(&text).map_err(bad)?)
            }
            (Some(text), _, _) => Payload::One(text.into()),
            (_, Some(path), _) => match std::fs::read(&path) {
                Ok(content) => Payload::One(content.into()),
                Err(source) => return Err(Failure::Read { path, source }),
            },
            (_, _, true) => Payload::Lines { hex: self.hex },
            _ => Payload::One(Bytes::new()),
        };
        let (qos, retain, timeout) = (self.qos, self.retain, self.timeout);
        let mut node = self.node.meant()?;
        // A stream of lines outlives an absence of the gateway; a single message reports it.
        node.options.reconnect = matches!(payload, Payload::Lines { .. }).then(Backoff::default);
        Ok(Publish { node, topic, payload, qos, retain, timeout })
    }
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("on").required(true).multiple(true).args(["topic", "predefined", "short"]))]
pub(crate) struct SubArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Topic or filter (with + and #) to subscribe to; may be given several times, like the next two.
    #[arg(short, long, value_name = "FILTER", value_parser = value::filter)]
    topic: Vec<TopicFilter>,
    /// Predefined topic id to subscribe to; with a name, that is printed by -v.
    #[arg(long, value_name = "TOPIC ID[=NAME]", value_parser = value::predefined)]
    predefined: Vec<(u16, Option<TopicName>)>,
    /// Short topic name of two octets to subscribe to.
    #[arg(long, value_name = "AB", value_parser = value::short)]
    short: Vec<[u8; 2]>,
    /// QoS: 0, 1 or 2.
    #[arg(short, long, default_value = "0", allow_hyphen_values = true, value_parser = value::qos)]
    qos: Qos,
    /// End after so many messages.
    #[arg(short = 'C', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time; that is a failure if -C was given and fewer messages have come.
    #[arg(short = 'W', long, value_name = "SECONDS", value_parser = value::interval)]
    timeout: Option<Duration>,
    /// Sleep once subscribed, and wake this often for what has come.
    #[arg(long, value_name = "DURATION", value_parser = value::interval)]
    sleep: Option<Duration>,
    /// Print the topic before each message.
    #[arg(short, long)]
    verbose: bool,
    /// Print messages in hex.
    #[arg(long)]
    hex: bool,
}

/// What to subscribe to, and how to print it.
#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) node: NodeMeant,
    pub(crate) filters: Vec<Filter>,
    pub(crate) names: BTreeMap<u16, TopicName>,
    pub(crate) qos: Qos,
    pub(crate) count: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    /// What the gateway is told when it shall keep what comes.
    pub(crate) sleep: Option<Duration>,
    pub(crate) verbose: bool,
    pub(crate) hex: bool,
}

impl SubArgs {
    pub(crate) fn meant(self) -> Result<Subscribe, Failure> {
        let mut node = self.node.meant()?;
        node.options.reconnect = Some(Backoff::default());
        node.options.wake_every = self.sleep;
        let retries = node.options.retry_interval.saturating_mul(node.options.retry_limit);
        // The gateway shall not count a sleeper as lost whose PINGREQ has to be repeated.
        let sleep = self.sleep.map(|every| every.saturating_add(retries));
        if sleep.is_some_and(|sleep| sleep > Duration::from_secs(u16::MAX.into())) {
            let text = "--sleep with all repetitions (--retry, --retry-limit) must be less than 65535 s";
            return Err(Failure::Usage(text.into()));
        }
        let names = self.predefined.iter().filter_map(|(id, name)| Some((*id, name.clone()?))).collect();
        let filters = self
            .topic
            .into_iter()
            .map(Filter::Name)
            .chain(self.predefined.into_iter().map(|(id, _)| Filter::Predefined(id)))
            .chain(self.short.into_iter().map(Filter::Short))
            .collect();
        let (qos, count, timeout, verbose, hex) =
            (self.qos, self.count, self.timeout, self.verbose, self.hex);
        Ok(Subscribe { node, filters, names, qos, count, timeout, sleep, verbose, hex })
    }
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Whom to ask: a multicast group (for IPv6 with its interface, such as ff02::1%eth0), a broadcast address, or a host.
    #[arg(short = 'h', long, default_value = "225.1.1.1")]
    host: String,
    /// UDP port.
    #[arg(short, long, default_value_t = 1884, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    serial: SerialArgs,
    /// How many hops a multicast may go; 0: as far as it can.
    #[arg(long, value_name = "HOPS", default_value_t = 1)]
    pub(crate) radius: u8,
    /// IPv4 address of the interface by which a multicast leaves.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "serial")]
    pub(crate) interface: Option<std::net::Ipv4Addr>,
    /// End after so many gateways.
    #[arg(short = 'C', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// How long to wait for answers.
    #[arg(short = 'W', long, value_name = "SECONDS", default_value = "5", value_parser = value::interval)]
    pub(crate) timeout: Duration,
    /// Print every frame to stderr.
    #[arg(short, long)]
    pub(crate) debug: bool,
}

impl SearchArgs {
    pub(crate) fn way(&self) -> Way {
        let gateway = Gateway { host: self.host.clone(), port: self.port };
        self.serial.clone().meant(gateway)
    }
}

/// What the sensors speak through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ViaArg {
    /// A socket each, to the gateway named by -h and -p.
    Udp,
    /// A pseudo-terminal that the gateway opens as `type: serial`; more than one sensor is behind a forwarder.
    Pty,
    /// A pseudo-terminal that the gateway opens as `type: xbee`.
    XbeePty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ApiArg {
    /// Mode 1.
    Plain,
    /// Mode 2.
    Escaped,
}

#[derive(Debug, Args)]
struct RadioArgs {
    /// What the sensors speak through.
    #[arg(long, value_enum, default_value_t = ViaArg::Udp)]
    via: ViaArg,
    /// With a pseudo-terminal: a name for the end that the gateway opens, which is the same in every run.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// With --via pty: framing of the line, the same as the gateway's [default: slip+crc].
    #[arg(long)]
    framing: Option<Framing>,
    /// With a pseudo-terminal: speed of the line; 0: no octet takes any time [default: 115200].
    #[arg(long, value_name = "N")]
    baud: Option<u32>,
    /// With a pseudo-terminal: octets that arrive as others, in each direction [default: 0%].
    #[arg(long, value_name = "PERCENT", value_parser = value::percent)]
    corrupt: Option<f64>,
    /// With a pseudo-terminal: octets that do not arrive, in each direction [default: 0%].
    #[arg(long, value_name = "PERCENT", value_parser = value::percent)]
    byte_loss: Option<f64>,
    /// With --via xbee-pty: API mode, the same as the gateway's [default: escaped].
    #[arg(long, value_enum)]
    api: Option<ApiArg>,
    /// With --via xbee-pty: octets in the largest payload, which the radio tells as NP [default: 84].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(8..=256))]
    np: Option<u16>,
    /// With --via xbee-pty: which frames the radio hands over: 0 is 90, 1 is 91, 2 is 80 [default: 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=2))]
    ao: Option<u8>,
    /// With --via xbee-pty: transmissions to sensors that fail; half of them arrive without an acknowledgement
    /// [default: 0%].
    #[arg(long, value_name = "PERCENT", value_parser = value::percent)]
    tx_fail: Option<f64>,
}

impl RadioArgs {
    fn meant(self, gateway: GatewayArgs) -> Result<fleet::Via, Failure> {
        if let Some((option, needed)) = self.unused(&gateway) {
            return Err(Failure::Usage(format!("{option}: only with {needed}")));
        }
        let kind = match self.via {
            ViaArg::Udp => return Ok(fleet::Via::Udp(gateway.meant())),
            ViaArg::Pty => fleet::RadioKind::Modem(self.framing.unwrap_or(Framing::SlipCrc)),
            ViaArg::XbeePty => fleet::RadioKind::Xbee(fleet::XbeeOptions {
                mode: match self.api {
                    Some(ApiArg::Plain) => Mode::Plain,
                    Some(ApiArg::Escaped) | None => Mode::Escaped,
                },
                payload_max: self.np.unwrap_or(84),
                output: self.ao.unwrap_or_default(),
                failures: self.tx_fail.unwrap_or_default(),
            }),
        };
        let noise = fleet::Noise {
            baud: self.baud.unwrap_or(115_200),
            corrupt: self.corrupt.unwrap_or_default(),
            byte_loss: self.byte_loss.unwrap_or_default(),
        };
        Ok(fleet::Via::Pty { radio: fleet::RadioOptions { kind, noise }, link: self.link })
    }

    /// The first option given that what the sensors speak through has no use for, and what has.
    fn unused(&self, gateway: &GatewayArgs) -> Option<(&'static str, &'static str)> {
        const UDP: (&str, &[ViaArg]) = ("--via udp", &[ViaArg::Udp]);
        const MODEM: (&str, &[ViaArg]) = ("--via pty", &[ViaArg::Pty]);
        const XBEE: (&str, &[ViaArg]) = ("--via xbee-pty", &[ViaArg::XbeePty]);
        const PTY: (&str, &[ViaArg]) = ("a pty (--via)", &[ViaArg::Pty, ViaArg::XbeePty]);
        let given = [
            ("--host", gateway.host.is_some(), UDP),
            ("--port", gateway.port.is_some(), UDP),
            ("--link", self.link.is_some(), PTY),
            ("--baud", self.baud.is_some(), PTY),
            ("--corrupt", self.corrupt.is_some(), PTY),
            ("--byte-loss", self.byte_loss.is_some(), PTY),
            ("--framing", self.framing.is_some(), MODEM),
            ("--api", self.api.is_some(), XBEE),
            ("--np", self.np.is_some(), XBEE),
            ("--ao", self.ao.is_some(), XBEE),
            ("--tx-fail", self.tx_fail.is_some(), XBEE),
        ];
        let unused =
            |(_, is_given, (_, users)): &(_, bool, (_, &[ViaArg]))| *is_given && !users.contains(&self.via);
        given.into_iter().find(unused).map(|(option, _, (needed, _))| (option, needed))
    }
}

#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    radio: RadioArgs,
    /// Sensors, each with a socket of its own, or all of them behind one radio.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    nodes: u32,
    /// How often each sensor publishes: 1/s, 30/m, 1/10s.
    #[arg(long, default_value = "1/s", value_parser = value::rate)]
    rate: Duration,
    /// How often each sensor gets a message, which is published at the broker of --verify on the sensor's topic with /down
    /// behind it [default: never].
    #[arg(long, value_name = "RATE", value_parser = value::rate, requires = "verify")]
    down: Option<Duration>,
    /// QoS: 0, 1 or 2.
    #[arg(short, long, default_value = "1", allow_hyphen_values = true, value_parser = value::qos)]
    qos: Qos,
    /// Time after which an unanswered request is repeated.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = value::interval)]
    retry: Duration,
    /// How often it is repeated, before the sensor connects anew.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=1000))]
    retry_limit: u32,
    /// Datagrams lost, in each direction.
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = value::percent)]
    loss: f64,
    /// Datagrams that arrive twice, in each direction.
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = value::percent)]
    dup: f64,
    /// Datagrams that arrive late, so that later ones overtake them, in each direction.
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = value::percent)]
    reorder: f64,
    /// How long the sensors publish; then they finish what is unfinished.
    #[arg(long, default_value = "60s", value_parser = value::interval)]
    duration: Duration,
    /// The sensors connect one by one over this time [default: 5s, or a quarter of the duration if that is less].
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    spread: Option<Duration>,
    /// How long unfinished messages are waited for at the end [default: 6 times --retry and 10s, or
    /// 60s with --down: a gateway repeats in its own time].
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    settle: Option<Duration>,
    /// Sensors that sleep between two messages, and wake as often as --keepalive says.
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = value::percent)]
    sleepers: f64,
    /// What the radio does depends on this and nothing else.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Octets in each message.
    #[arg(long, value_name = "N", default_value_t = 32)]
    payload_size: usize,
    /// Topic of a sensor; {node} is its number.
    #[arg(long, value_name = "TEMPLATE", default_value = "fleet/{node}")]
    topic: String,
    /// Keep-alive of each sensor.
    #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = value::keep_alive)]
    keepalive: Duration,
    /// The sensors keep their sessions over reconnections.
    #[arg(short = 'c', long)]
    disable_clean_session: bool,
    /// Check at this broker that every acknowledged message arrives: at least once at QoS 1, exactly once at QoS 2. The
    /// same for messages to the sensors (--down).
    #[arg(long, value_name = "mqtt://HOST[:PORT]")]
    verify: Option<String>,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl FleetArgs {
    pub(crate) fn meant(self) -> Result<fleet::Plan, Failure> {
        let usage = |text: String| Failure::Usage(text);
        let via = self.radio.meant(self.gateway)?;
        if self.payload_size < fleet::PAYLOAD_MIN || self.payload_size > fleet::PAYLOAD_MAX {
            let (min, max) = (fleet::PAYLOAD_MIN, fleet::PAYLOAD_MAX);
            return Err(usage(format!(
                "--payload-size must be between {min} and {max}: each message says which it is"
            )));
        }
        let template = fleet::Template::new(&self.topic).map_err(|e| usage(format!("--topic {e}")))?;
        if self.down.is_some() && !template.is_of_one() {
            return Err(usage("--down needs {node} in --topic".into()));
        }
        let verify = self.verify.map(|url| broker(&url)).transpose()?;
        let spread = self.spread.unwrap_or(Duration::from_secs(5).min(self.duration / 4));
        if spread > self.duration {
            return Err(usage("--spread is longer than --duration".into()));
        }
        if let Some(path) = &self.report {
            // Before the run, not after it.
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|source| Failure::Write { path: path.clone(), source })?;
        }
        let last = Duration::from_secs(if self.down.is_some() { 60 } else { 10 });
        Ok(fleet::Plan {
            via,
            nodes: self.nodes,
            period: self.rate,
            down: self.down,
            qos: self.qos,
            retry: self.retry,
            retry_limit: self.retry_limit,
            weather: fleet::Weather { loss: self.loss, dup: self.dup, reorder: self.reorder },
            duration: self.duration,
            spread,
            settle: self.settle.unwrap_or(self.retry.saturating_mul(6) + last),
            sleepers: self.sleepers,
            seed: self.seed,
            payload_size: self.payload_size,
            template,
            keep_alive: self.keepalive,
            clean_session: !self.disable_clean_session,
            verify,
            report: self.report,
        })
    }
}

/// `mqtt://host:port`.
fn broker(url: &str) -> Result<Gateway, Failure> {
    let bad = |reason: &str| Failure::Usage(format!("--verify {url}: {reason}"));
    let rest = url.strip_prefix("mqtt://").ok_or_else(|| bad("expected mqtt://host or mqtt://host:port"))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port @ 1..) => (host, port),
            _ => return Err(bad("the port is a number from 1 to 65535")),
        },
        _ => (rest, 1883),
    };
    if host.is_empty()
        || host.contains(['/', '@', '?', ' '])
        || (host.contains(':') && !host.starts_with('['))
    {
        return Err(bad("expected mqtt://host or mqtt://host:port"));
    }
    Ok(Gateway { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_broker_is_named_by_its_url() {
        for (url, host, port) in [
            ("mqtt://a", "a", 1883),
            ("mqtt://a:77/", "a", 77),
            ("mqtt://127.0.0.1:1", "127.0.0.1", 1),
            ("mqtt://[::1]:1", "[::1]", 1),
            ("mqtt://[::1]", "[::1]", 1883),
        ] {
            let broker = broker(url).unwrap();
            assert_eq!((broker.host.as_str(), broker.port), (host, port), "{url}");
        }
        for url in [
            "a",
            "mqtts://a",
            "mqtt://",
            "mqtt://:1",
            "mqtt://a:0",
            "mqtt://a:x",
            "mqtt://a/b",
            "mqtt://::1:1",
            "mqtt://u:p@a:1",
        ] {
            assert!(broker(url).is_err(), "{url}");
        }
    }
}
