//! Brokers that users have instead of Mosquitto: RabbitMQ with its MQTT plugin, and Aedes. `tools/test` installs them.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use mqtt_sn_gateway::mqtt::QoS;
use tempfile::TempDir;

use crate::process::{Mosquitto, Process, free_tcp, gateway_program, wait_until};

/// A broker of the test's own, which ends with the value.
pub struct Broker {
    pub port: u16,
    pub facts: Facts,
    kind: Kind,
}

enum Kind {
    Mosquitto(Mosquitto),
    RabbitMq(RabbitMq),
    Aedes { port: u16, process: Option<Process> },
    Amqtt(Amqtt),
}

/// What brokers differ in.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// In what the gateway gets through when it may choose.
    pub version: &'static str,
    /// The highest QoS; the broker lowers what is higher.
    pub qos_max: QoS,
    /// The highest QoS at which it hands out retained messages: Aedes 1.2 closes the connection at the PUBREC for one, if the
    /// session is to be kept.
    pub retained_qos_max: QoS,
    /// A filter with wildcards brings retained messages.
    pub retained_by_wildcards: bool,
    /// A filter that begins with a wildcard brings no topic that begins with a dollar.
    pub hides_dollar: bool,
    /// Dots and stars in topics become slashes and pluses.
    pub rewrites_topics: bool,
    /// It still knows its sessions after `kill -9`.
    pub keeps_sessions: bool,
}

impl Broker {
    pub fn mosquitto() -> Self {
        let mosquitto = Mosquitto::start();
        let facts = Facts {
            version: "MQTT 5",
            qos_max: QoS::ExactlyOnce,
            retained_qos_max: QoS::ExactlyOnce,
            retained_by_wildcards: true,
            hides_dollar: true,
            rewrites_topics: false,
            keeps_sessions: false, // not configured to
        };
        Self { port: mosquitto.port, facts, kind: Kind::Mosquitto(mosquitto) }
    }

    pub fn rabbitmq() -> Self {
        let rabbitmq = RabbitMq::start();
        let facts = Facts {
            version: "MQTT 3.1.1",
            qos_max: QoS::AtLeastOnce,
            retained_qos_max: QoS::AtLeastOnce,
            retained_by_wildcards: false,
            hides_dollar: false,
            rewrites_topics: true,
            keeps_sessions: true,
        };
        Self { port: rabbitmq.port, facts, kind: Kind::RabbitMq(rabbitmq) }
    }

    pub fn aedes() -> Self {
        let port = free_tcp();
        let facts = Facts {
            version: "MQTT 3.1.1",
            qos_max: QoS::ExactlyOnce,
            retained_qos_max: QoS::AtLeastOnce,
            retained_by_wildcards: true,
            hides_dollar: true,
            rewrites_topics: false,
            keeps_sessions: false,
        };
        let mut broker = Self { port, facts, kind: Kind::Aedes { port, process: None } };
        broker.up();
        broker
    }

    pub fn amqtt() -> Self {
        let port = free_tcp();
        let facts = Facts {
            version: "MQTT 3.1.1",
            qos_max: QoS::ExactlyOnce,
            retained_qos_max: QoS::ExactlyOnce,
            retained_by_wildcards: true,
            hides_dollar: true,
            rewrites_topics: false,
            keeps_sessions: false,
        };
        let mut amqtt = Amqtt { port, process: None, folder: TempDir::new().unwrap() };
        amqtt.up();
        Self { port, facts, kind: Kind::Amqtt(amqtt) }
    }

    /// It is back when this returns.
    pub fn up(&mut self) {
        match &mut self.kind {
            Kind::Mosquitto(mosquitto) => mosquitto.up(),
            Kind::RabbitMq(rabbitmq) => rabbitmq.up(),
            Kind::Aedes { port, process } => *process = Some(aedes(*port)),
            Kind::Amqtt(amqtt) => amqtt.up(),
        }
    }

    /// `kill -9`.
    pub fn down(&mut self) {
        match &mut self.kind {
            Kind::Mosquitto(mosquitto) => mosquitto.down(),
            Kind::RabbitMq(rabbitmq) => rabbitmq.node = None,
            Kind::Aedes { process, .. } => *process = None,
            Kind::Amqtt(amqtt) => amqtt.process = None,
        }
    }
}

/// A node of RabbitMQ and, since Erlang's nodes need one, a port mapper of its own.
struct RabbitMq {
    port: u16,
    port_of_nodes: u16,
    port_of_mapper: u16,
    node: Option<Process>,
    _mapper: Process,
    folder: TempDir,
}

impl RabbitMq {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let (port, port_of_nodes, port_of_mapper) = (free_tcp(), free_tcp(), free_tcp());
        std::fs::write(folder.path().join("enabled_plugins"), "[rabbitmq_mqtt].\n").unwrap();
        let config = format!(
            "listeners.tcp = none\n\
             mqtt.listeners.tcp.1 = 127.0.0.1:{port}\n\
             mqtt.allow_anonymous = true\n\
             log.file = false\n\
             log.console = true\n"
        );
        std::fs::write(folder.path().join("rabbitmq.conf"), config).unwrap();
        let mut epmd = Command::new(program("epmd", "rabbitmq-server"));
        let mapper =
            Process::start(epmd.args(["-address", "127.0.0.1", "-port", &port_of_mapper.to_string()]));
        let mut this = Self { port, port_of_nodes, port_of_mapper, node: None, _mapper: mapper, folder };
        this.up();
        this
    }

    fn up(&mut self) {
        // That of the same name in /usr/sbin wants to be root.
        let mut command = Command::new(program("rabbitmq-server", "rabbitmq-server"));
        let below = |name: &str| self.folder.path().join(name);
        command
            .env("HOME", self.folder.path())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", "test@localhost")
            .env("RABBITMQ_MNESIA_BASE", below("mnesia"))
            .env("RABBITMQ_LOG_BASE", below("log"))
            .env("RABBITMQ_CONFIG_FILE", below("rabbitmq"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", below("advanced"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", below("generated"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", below("feature_flags"))
            .env("RABBITMQ_PID_FILE", below("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", below("enabled_plugins"))
            .env("RABBITMQ_DIST_PORT", self.port_of_nodes.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("ERL_EPMD_PORT", self.port_of_mapper.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            // The process that we have started becomes the node, and no other is left behind.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        self.node = Some(Process::start(&mut command));
        wait_until("rabbitmq listening", || listens(self.port));
    }
}

struct Amqtt {
    port: u16,
    process: Option<Process>,
    folder: TempDir,
}

impl Amqtt {
    fn up(&mut self) {
        let config = self.folder.path().join("amqtt.yaml");
        let text = format!(
            "listeners:\n  default: {{ type: tcp, bind: 127.0.0.1:{} }}\n\
             plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin: {{ allow_anonymous: true }}\n",
            self.port
        );
        std::fs::write(&config, text).unwrap();
        let program = installed("amqtt-0.12.1").join("bin/amqtt");
        self.process = Some(Process::start(Command::new(program).arg("-c").arg(config)));
        wait_until("amqtt listening", || listens(self.port));
    }
}

fn aedes(port: u16) -> Process {
    let folder = installed("aedes-1.2.0");
    let script = format!(
        "import {{ createServer }} from 'node:net'\n\
         import {{ Aedes }} from 'aedes'\n\
         const aedes = await Aedes.createBroker()\n\
         createServer(aedes.handle).listen({port}, '127.0.0.1')\n"
    );
    let mut node = Command::new("node");
    let process = Process::start(node.args(["--input-type=module", "-e", &script]).current_dir(folder));
    wait_until("aedes listening", || listens(port));
    process
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn program(name: &str, package: &str) -> PathBuf {
    let folders = ["/usr/lib/rabbitmq/bin", "/usr/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("the package {package} is not installed; tools/test installs it"))
}

/// Where `tools/test` puts what comes from npm and PyPI.
fn installed(name: &str) -> PathBuf {
    let target = gateway_program().ancestors().nth(2).unwrap();
    let folder = target.join("brokers").join(name);
    assert!(folder.exists(), "{} is missing; tools/test installs it", folder.display());
    folder
}
