//! The command line of `mqtt-sn-gateway`: arguments, exit codes, and what each command prints.

mod control;
mod devices;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand, value_parser};
use tracing_subscriber::EnvFilter;

use self::control::ControlError;
use self::devices::Devices;
use crate::config::{
    BrokerUrl, Config, LoadError, Log, LogFormat, LogLevel, Mode, Place, SHIPPED, Serial, Tls, TransportKind,
    UrlError, Xbee, parse_duration,
};
use crate::demo::{self, DemoError};
use crate::runtime::{self, RuntimeError, Setup};
use crate::setup::{self, SetupError, SetupErrors};
use crate::store::StoreError;
use crate::topic::{ClientId, NameError};
use crate::transport::OpenError;
use crate::wire;

/// Commands of later versions.
const LATER: [&str; 6] = ["nodes", "topics", "kick", "top", "tap", "reload"];

/// Where `run` and `check` look when they are not told, in this order; `init` writes the first.
const CONFIG_FILES: [&str; 2] = ["./gateway.yaml", "/etc/mqtt-sn-gateway/gateway.yaml"];

/// A gateway between MQTT-SN sensors and any MQTT broker.
#[derive(Debug, Parser)]
#[command(
    name = "mqtt-sn-gateway",
    version,
    disable_help_subcommand = true,
    after_help = "Try it:  mqtt-sn-gateway demo\n\
                  Use it:  mqtt-sn-gateway init && mqtt-sn-gateway run"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or SIGINT
    #[command(after_help = "Example:  mqtt-sn-gateway run -c /etc/mqtt-sn-gateway/gateway.yaml")]
    Run {
        /// The configuration [default: ./gateway.yaml, else /etc/mqtt-sn-gateway/gateway.yaml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Threads: one answers soonest; with more, sockets have the others, and more messages get through at once
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u8).range(1..=64))]
        threads: u8,
    },
    /// Show a gateway, a broker and simulated sensors at work, on this machine, with nothing to configure
    #[command(after_help = "Example:  mqtt-sn-gateway demo --exit-after 5s")]
    Demo {
        /// Stop after this time, such as 5s
        #[arg(long, value_name = "TIME", value_parser = time)]
        exit_after: Option<Duration>,
    },
    /// Show everything that is wrong with a configuration, each with its line and column
    #[command(after_help = "Example:  mqtt-sn-gateway check gateway.yaml")]
    Check {
        /// The configuration, - for standard input [default: as for run]
        file: Option<PathBuf>,
    },
    /// Write ./gateway.yaml with every option, commented
    #[command(after_help = "Example:  mqtt-sn-gateway init --broker mqtt://broker.example:1883")]
    Init {
        /// The broker: mqtt://host:port, mqtts://host:port or embedded
        #[arg(long, value_name = "URL", value_parser = broker_url)]
        broker: Option<BrokerUrl>,
        /// The serial port of a radio, best its name in /dev/serial/by-id
        #[arg(long, value_name = "PATH", value_parser = device)]
        serial: Option<String>,
    },
    /// List serial adapters: what each probably is, who may use it, who has it open, and a line for gateway.yaml
    #[command(after_help = "Example:  mqtt-sn-gateway devices\n\
                            Ends with 66 if there is none")]
    Devices(Devices),
    /// Remove everything of a client, from the running gateway and its store; from the store alone if none is running
    #[command(after_help = "Example:  mqtt-sn-gateway forget pump-7")]
    Forget {
        /// The client's id
        #[arg(value_name = "ID", value_parser = client_id)]
        id: ClientId,
        /// The configuration of the gateway [default: as for run]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the answer as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Say how the running gateway is: 0 if all is well, 1 if not, 69 if it is not running
    #[command(after_help = "Example:  mqtt-sn-gateway health --json")]
    Health {
        /// The configuration of the gateway [default: as for run]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the answer as a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain an MQTT-SN frame
    #[command(after_help = "Example:  mqtt-sn-gateway decode 09 0C 62 61 62 00 00 68 69")]
    Decode {
        /// The octets, with or without blanks, colons and 0x
        #[arg(required = true, value_name = "HEX")]
        hex: Vec<String>,
    },
}

/// How the program ends: the same numbers in every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A device is absent.
    NoDevice = 66,
    /// A broker or the running gateway cannot be reached (commands that run once).
    Unreachable = 69,
    /// A file exists that would be overwritten.
    WouldOverwrite = 73,
    /// Permission is missing, or an address or the store is in use.
    NoPermission = 77,
    /// The configuration is missing or wrong, or the store is from a newer version.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended without doing what it was asked for.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "no configuration: neither {} nor {} exists; `mqtt-sn-gateway init` writes one",
        CONFIG_FILES[0],
        CONFIG_FILES[1]
    )]
    NoConfiguration,
    #[error(transparent)]
    Load(LoadError),
    #[error("{0} exists and is not overwritten")]
    Exists(&'static str),
    #[error("cannot write {path}")]
    Write { path: &'static str, source: io::Error },
    #[error("{} is no sysfs: there is no class/tty in it", .0.display())]
    NoSysfs(PathBuf),
    #[error("{0:?} is no hexadecimal, expected pairs of digits such as 05 or 0x0516")]
    NotHex(String),
    #[error("not a frame")]
    NotAFrame(#[source] wire::DecodeError),
    #[error("{0} is not in this version")]
    NotBuilt(String),
    #[error(transparent)]
    Setup(#[from] SetupErrors),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Load(LoadError::Read { source, .. }) | Self::Write { source, .. } if denied(source) => {
                Exit::NoPermission
            }
            Self::NoConfiguration | Self::Load(_) => Exit::Configuration,
            Self::Exists(_) => Exit::WouldOverwrite,
            Self::NoSysfs(_) => Exit::NoDevice,
            Self::NotHex(_) | Self::NotBuilt(_) => Exit::Usage,
            Self::Setup(SetupErrors(errors)) if errors.iter().all(SetupError::is_denied) => {
                Exit::NoPermission
            }
            Self::Setup(_) => Exit::Configuration,
            Self::Runtime(error) | Self::Demo(DemoError::Gateway(error)) => exit_of(error),
            Self::Control(error) => error.exit(),
            Self::Write { .. } | Self::NotAFrame(_) | Self::Demo(_) => Exit::Failure,
        }
    }
}

fn exit_of(error: &RuntimeError) -> Exit {
    match error {
        RuntimeError::Port { source: OpenError::Bind { .. }, .. } | RuntimeError::Broker { .. } => {
            Exit::NoPermission
        }
        RuntimeError::Port { source: OpenError::Group { .. }, .. } => Exit::Configuration,
        RuntimeError::Store(error) => exit_of_store(error),
        RuntimeError::Reactor(_) | RuntimeError::Signals(_) => Exit::Failure,
    }
}

fn exit_of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::Newer { .. } | StoreError::Damaged { .. } => Exit::Configuration,
        StoreError::InUse { .. } | StoreError::Exposed { .. } | StoreError::Io { .. } => Exit::NoPermission,
    }
}

fn denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Does what the command line asks for and says how it went.
pub fn main() -> ExitCode {
    let done = arguments().and_then(|arguments| match arguments.command {
        Command::Run { config, threads } => run(config, threads),
        Command::Demo { exit_after } => demo(exit_after),
        Command::Check { file } => check(file),
        Command::Init { broker, serial } => init(broker.as_ref(), serial.as_deref()),
        Command::Forget { id, config, json } => control::forget(&id, config, json),
        Command::Health { config, json } => control::health(config, json),
        Command::Devices(wanted) => devices::devices(wanted),
        Command::Decode { hex } => decode(&hex),
    });
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(&failure);
            failure.exit().into()
        }
    }
}

/// The command line; ends here if it is wrong or asks for help.
fn arguments() -> Result<Arguments, Failure> {
    Arguments::try_parse().map_err(|error| match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(command)) if LATER.contains(&command.as_str()) => {
            Failure::NotBuilt(command.clone())
        }
        _ => error.exit(),
    })
}

/// Prints an error and its causes once, as `mqtt-sn-gateway: a: b: c`, after what is wrong with a configuration.
fn complain(failure: &Failure) {
    let mut text = match failure {
        Failure::Load(LoadError::Wrong(problems)) => problems.to_string(),
        _ => String::new(),
    };
    let files = match failure {
        Failure::Load(LoadError::Wrong(problems)) => problems.config().and_then(SetupErrors::of_files),
        _ => None,
    };
    let files = files.map(|files| format!("{files}\n")).unwrap_or_default();
    // Files that are of no use have a line each.
    let lines = format!("{files}{failure}").replace('\n', "\nmqtt-sn-gateway: ");
    text.push_str(&format!("mqtt-sn-gateway: {lines}"));
    let mut cause = failure.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints to standard output; nobody has to listen.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn run(file: Option<PathBuf>, threads: u8) -> Result<Exit, Failure> {
    let file = find(file)?;
    let config = load(&file)?;
    start_log(&config.log);
    tracing::info!(configuration = %name(&file), "mqtt-sn-gateway {}", env!("CARGO_PKG_VERSION"));
    for note in config.notes() {
        tracing::info!("{note}");
    }
    let wants_socket = config.control.socket != Place::None;
    let setup = Setup::new(config)?;
    if wants_socket && setup.control.is_none() {
        tracing::info!("no control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR says where");
    }
    runtime::block_on(threads.into(), runtime::run(setup))??;
    Ok(Exit::Ok)
}

fn demo(exit_after: Option<Duration>) -> Result<Exit, Failure> {
    runtime::block_on(1, demo::run(exit_after))??;
    Ok(Exit::Ok)
}

fn check(file: Option<PathBuf>) -> Result<Exit, Failure> {
    let file = find(file)?;
    let config = load(&file)?;
    let defaults = if config == Config::default() { "; every option has its default" } else { "" };
    let (summary, notes, path) = (summary(&config), config.notes(), config.store.path.clone());
    let setup = Setup::new(config)?;
    say(format_args!("{}: no errors{defaults}", name(&file)));
    say(summary);
    say(match (path, setup.store) {
        (Place::Auto, Some(store)) => format!("store: {} (auto)", store.dir.display()),
        (_, Some(store)) => format!("store: {}", store.dir.display()),
        (_, None) => "store: none".into(),
    });
    notes.into_iter().for_each(|note| say(format_args!("note: {note}")));
    Ok(Exit::Ok)
}

/// The file that was named, else the first of [`CONFIG_FILES`] that is not missing.
fn find(file: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let missing =
        |path: &Path| fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let usual = || CONFIG_FILES.into_iter().map(PathBuf::from).find(|path| !missing(path));
    file.or_else(usual).ok_or(Failure::NoConfiguration)
}

/// Reads the configuration in `file`; `-` is standard input.
fn load(file: &Path) -> Result<Config, Failure> {
    let config = match is_stdin(file) {
        true => Config::read(&name(file), io::stdin()),
        false => Config::load(file),
    };
    config.map_err(Failure::Load)
}

/// `file` as it stands in messages.
fn name(file: &Path) -> String {
    if is_stdin(file) { "<stdin>".into() } else { file.display().to_string() }
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// What a configuration comes to, in a few lines.
fn summary(config: &Config) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let urls = list(config.broker.urls.iter().map(BrokerUrl::to_string).collect());
    let mut lines = vec![match config.broker.urls.contains(&BrokerUrl::Embedded) {
        true => {
            format!("broker: embedded, listens on {}, {}", config.broker.listen, mode(config.broker.mode))
        }
        false => format!("broker: {urls}, {}", mode(config.broker.mode)),
    }];
    if config.broker.urls.iter().any(|url| matches!(url, BrokerUrl::Mqtts { .. })) {
        let Tls { ca, cert, .. } = &config.broker.tls;
        let trusts =
            ca.as_ref().map_or("the CAs of this system".into(), |ca| format!("those in {}", ca.display()));
        let shows = cert.as_ref().map_or("nothing".into(), |cert| cert.display().to_string());
        lines.push(format!("tls: trusts {trusts}, shows {shows}"));
    }
    for transport in &config.transports {
        let what = match &transport.kind {
            TransportKind::Udp(udp) => {
                let group =
                    udp.multicast.map_or("no multicast group".into(), |group| format!("group {group}"));
                format!("udp {}, {group}", list(udp.listen.iter().map(ToString::to_string).collect()))
            }
            TransportKind::Serial(serial) => {
                let Serial { line, framing } = serial;
                let framing = setup::framing(*framing);
                format!("serial {}, {} baud, {framing}", line.device.display(), line.baud)
            }
            TransportKind::Xbee(Xbee { line, .. }) => {
                format!("xbee {}, {} baud", line.device.display(), line.baud)
            }
            TransportKind::Dtls(dtls) => {
                format!("dtls {}", list(dtls.listen.iter().map(ToString::to_string).collect()))
            }
        };
        let mode = mode(transport.mode.unwrap_or(config.broker.mode));
        lines.push(format!("transport {}: {what}, {mode}", transport.name));
    }
    let common = config.topics.predefined.len();
    let single: usize = config.topics.clients.values().map(BTreeMap::len).sum();
    lines.push(format!("predefined topics: {common} for all clients, {single} for single ones"));
    lines.join("\n")
}

/// As it is written in the configuration.
fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Aggregating => "aggregating",
        Mode::Transparent => "transparent",
    }
}

fn init(broker: Option<&BrokerUrl>, serial: Option<&str>) -> Result<Exit, Failure> {
    let path = CONFIG_FILES[0];
    let text = filled_in(broker, serial);
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Failure::Exists(path),
        _ => Failure::Write { path, source },
    })?;
    say(format_args!("{path} written"));
    if serial.is_some() {
        say(
            "its transport radio has the line and framing of most boards: set baud and framing as your radio has them",
        );
    }
    say("start the gateway with: mqtt-sn-gateway run");
    Ok(Exit::Ok)
}

/// The shipped configuration with a broker and a serial port put in.
fn filled_in(broker: Option<&BrokerUrl>, serial: Option<&str>) -> String {
    let mut text = SHIPPED.to_string();
    if let Some(url) = broker {
        // As wide as the default, so that the comments stay aligned.
        text = text.replacen("url: mqtt://127.0.0.1:1883 ", &format!("url: {:<21} ", url.to_string()), 1);
    }
    match serial {
        Some(device) => with_radio(&text, device),
        None => text,
    }
}

/// The shipped configuration with its first serial transport, which is commented out, in use.
fn with_radio(text: &str, device: &str) -> String {
    let mut is_radio = false;
    let line = |line: &str| {
        is_radio = match line.strip_prefix("  # - name: ") {
            Some(name) => name == "radio",
            None => is_radio && line.starts_with("  # "),
        };
        match line.strip_prefix("  # ").filter(|_| is_radio) {
            Some(line) => {
                let quoted = format!("{:<20} #", format!("\"{device}\""));
                format!("  {}\n", line.replace("/dev/ttyUSB0         #", &quoted))
            }
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn decode(hex: &[String]) -> Result<Exit, Failure> {
    let octets = octets(hex)?;
    say(wire::decode(&octets).map_err(Failure::NotAFrame)?);
    Ok(Exit::Ok)
}

/// The octets that were typed as pairs of digits, in groups divided by blanks, colons or arguments.
fn octets(hex: &[String]) -> Result<Vec<u8>, Failure> {
    let mut octets = Vec::new();
    for group in
        hex.iter().flat_map(|word| word.split([' ', '\t', '\n', ':'])).filter(|group| !group.is_empty())
    {
        let digits = group.strip_prefix("0x").or(group.strip_prefix("0X")).unwrap_or(group).as_bytes();
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        match digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>() {
            Some(group) if !group.is_empty() => octets.extend(group),
            _ => return Err(Failure::NotHex(group.into())),
        }
    }
    if octets.is_empty() { Err(Failure::NotHex(hex.join(" "))) } else { Ok(octets) }
}

/// `--exit-after`
fn time(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("expected a number and a unit such as 5s, 500ms or 2m")
}

/// `ID`
fn client_id(text: &str) -> Result<ClientId, NameError> {
    ClientId::new(text)
}

/// `--broker`
fn broker_url(text: &str) -> Result<BrokerUrl, String> {
    text.parse().map_err(|error: UrlError| error.to_string())
}

/// `--serial`: a path that can stand in quotes.
fn device(text: &str) -> Result<String, &'static str> {
    let plain = !text.contains(|c: char| c.is_control() || matches!(c, '"' | '\\' | '$'));
    if plain && text.starts_with('/') { Ok(text.into()) } else { Err("expected a path such as /dev/ttyUSB0") }
}

/// Sends the log to standard error, from now on and until the end.
fn start_log(log: &Log) {
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse_lossy(directives),
        _ => EnvFilter::new(level),
    };
    let format = match log.format {
        LogFormat::Auto if io::stderr().is_terminal() => LogFormat::Human,
        LogFormat::Auto if under_journald() => LogFormat::Journal,
        LogFormat::Auto => LogFormat::Plain,
        format => format,
    };
    let builder =
        tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter).with_target(false);
    let builder = builder.with_ansi(format == LogFormat::Human);
    match format {
        LogFormat::Journal => builder.without_time().init(),
        _ => builder.init(),
    }
}

/// Whether standard error is the stream that systemd's JOURNAL_STREAM names.
fn under_journald() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
