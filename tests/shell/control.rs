//! The control socket: who may reach it, what becomes of one that is there already, and what it makes of bad company.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mqtt_sn_gateway::admin::{
    Ask, AskError, Asked, CONNECTIONS_MAX, Health, LINE_MAX, OpenError, Options, Order, PATIENCE, Reply,
    Request, Socket, StoreState, ask,
};
use mqtt_sn_gateway::runtime::{Runtime, Setup};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::task::spawn_blocking;

use crate::{runtime, soon};

fn options(path: impl Into<PathBuf>) -> Options {
    Options { path: path.into(), own_dir: false, store: "none".into(), patience: PATIENCE }
}

fn request(ask: Ask) -> Request {
    Request { store: None, ask }
}

fn forget(client: &str) -> Request {
    request(Ask::Forget { client: client.into() })
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Asks from another thread, as another process does.
async fn asks(path: &Path, request: Request) -> Result<Reply, AskError> {
    let path = path.to_owned();
    soon("an answer", spawn_blocking(move || ask(&path, &request))).await.unwrap()
}

/// What comes back for these octets, line by line until the end.
async fn says(path: &Path, octets: Vec<u8>) -> Vec<String> {
    let path = path.to_owned();
    let talk = spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        // It may be closed before it has taken everything in.
        let _ = stream.write_all(&octets);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        BufReader::new(stream).lines().map_while(Result::ok).collect()
    });
    soon("an answer", talk).await.unwrap()
}

/// Answers every request with its order.
fn echo(mut asked: Receiver<Asked>) {
    tokio::spawn(async move {
        while let Some(Asked { order, reply }) = asked.recv().await {
            let _ = reply.send(Reply::error(format!("{order:?}")));
        }
    });
}

// The file.

#[tokio::test]
async fn only_this_user_can_reach_it_and_it_goes_with_the_gateway() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run/gateway/control.sock");
    let (socket, _asked) = Socket::open(&options(&path)).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(mode(&dir.path().join("run")), 0o700);
    drop(socket);
    let left: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["control.sock.lock"]);
}

#[tokio::test]
async fn a_directory_of_its_own_is_closed_to_others_and_no_other() {
    for (own_dir, expected) in [(true, 0o700), (false, 0o755)] {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("control.sock");
        let _socket = Socket::open(&Options { own_dir, ..options(&path) }).unwrap();
        assert_eq!((mode(&path), mode(dir.path())), (0o600, expected));
    }
}

#[tokio::test]
async fn the_socket_of_a_process_that_died_is_replaced() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    // It may have died in the middle of making one.
    fs::create_dir(dir.path().join("control.sock.new")).unwrap();
    drop(UnixListener::bind(dir.path().join("control.sock.new/s")).unwrap());
    assert!(matches!(asks(&path, request(Ask::Health)).await, Err(AskError::NotRunning(_))));
    let (_socket, asked) = Socket::open(&options(&path)).unwrap();
    echo(asked);
    assert_eq!(asks(&path, request(Ask::Health)).await.unwrap(), Reply::error("Health"));
    assert_eq!(mode(&path), 0o600);
    assert!(!dir.path().join("control.sock.new").exists());
}

#[tokio::test]
async fn the_socket_of_a_living_process_is_left_to_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (first, asked) = Socket::open(&options(&path)).unwrap();
    echo(asked);
    assert!(matches!(Socket::open(&options(&path)), Err(OpenError::InUse(_))));
    assert_eq!(asks(&path, request(Ask::Health)).await.unwrap(), Reply::error("Health"));
    drop(first);
    // One that knows nothing of our lock.
    let other = UnixListener::bind(&path).unwrap();
    assert!(matches!(Socket::open(&options(&path)), Err(OpenError::InUse(_))));
    assert!(path.exists());
    drop(other);
    Socket::open(&options(&path)).unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    fs::write(&path, "mine").unwrap();
    assert!(matches!(Socket::open(&options(&path)), Err(OpenError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(Socket::open(&options(&long)), Err(OpenError::Io { .. })));
}

// Bad company.

#[tokio::test]
async fn what_is_no_request_is_answered_with_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (socket, asked) = Socket::open(&options(&path)).unwrap();
    echo(asked);
    let bad: [&[u8]; 9] = [
        b"hello\n",
        b"{}\n",
        b"\n",
        b"{\"ask\":\"dance\"}\n",
        b"{\"ask\":\"forget\"}\n",
        b"{\"ask\":\"forget\",\"client\":\"\"}\n",
        b"{\"ask\":\"forget\",\"client\":7}\n",
        b"\xff\xfe\x00\n",
        b"[[[[[[[[[[[[[[[[[[[[\n",
    ];
    for (count, octets) in bad.into_iter().enumerate() {
        let answers = says(&path, octets.to_vec()).await;
        assert_eq!(answers.len(), 1, "{:?}", String::from_utf8_lossy(octets));
        assert!(answers[0].starts_with("{\"answer\":\"error\",\"text\":\"not a "), "{answers:?}");
        assert_eq!(socket.refused(), count as u64 + 1);
    }
    // The connection stays for the next line, and a last one needs no end.
    let answers = says(&path, b"hello\n{\"ask\":\"health\"}\n{\"ask\":\"health\",\"more\":1}".to_vec()).await;
    let health = "{\"answer\":\"error\",\"text\":\"Health\"}";
    assert_eq!(answers[1..], [health, health]);
    assert!(says(&path, Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_line_that_is_too_long_is_not_read_to_its_end() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (_socket, asked) = Socket::open(&options(&path)).unwrap();
    echo(asked);
    let line = |len: usize| {
        let mut line = br#"{"ask":"health","x":""#.to_vec();
        line.resize(len - 2, b'x');
        line.extend(b"\"}\n");
        line
    };
    assert_eq!(says(&path, line(LINE_MAX)).await, ["{\"answer\":\"error\",\"text\":\"Health\"}"]);
    for len in [LINE_MAX + 1, 1 << 20] {
        let answers = says(&path, line(len)).await;
        assert_eq!(
            answers,
            [format!("{{\"answer\":\"error\",\"text\":\"a request has {LINE_MAX} octets at most\"}}")]
        );
    }
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let patience = Duration::from_millis(20);
    let (_socket, asked) = Socket::open(&Options { patience, ..options(&path) }).unwrap();
    echo(asked);
    for begun in [&b""[..], b"{\"ask\":"] {
        let path = path.clone();
        let end = spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(begun).unwrap();
            stream.read_to_end(&mut Vec::new())
        });
        // It is closed, in whatever way.
        let _ = soon("the end", end).await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_bounded_and_those_beyond_are_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (socket, asked) = Socket::open(&options(&path)).unwrap();
    echo(asked);
    let mut held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let refused = Reply::error("too many connections, try again later");
    assert_eq!(asks(&path, request(Ask::Health)).await.unwrap(), refused);
    assert_eq!(socket.refused(), 1);
    held.pop();
    // Its end may take a moment to be seen.
    let mut answer = refused.clone();
    while answer == refused {
        answer = asks(&path, request(Ask::Health)).await.unwrap();
    }
    assert_eq!(answer, Reply::error("Health"));
}

#[tokio::test]
async fn a_request_for_another_gateway_is_not_carried_out() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (_socket, asked) = Socket::open(&Options { store: "/var/a".into(), ..options(&path) }).unwrap();
    echo(asked);
    let request = |store: Option<&str>| Request { store: store.map(Into::into), ask: Ask::Health };
    let other = Reply::Other { store: "/var/a".into() };
    for (store, reply) in
        [(Some("/var/b"), other.clone()), (Some("none"), other), (Some("/var/a"), Reply::error("Health"))]
    {
        assert_eq!(asks(&path, request(store)).await.unwrap(), reply);
    }
}

#[tokio::test]
async fn a_gateway_that_stops_says_so_to_who_waits() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (_socket, mut asked) = Socket::open(&options(&path)).unwrap();
    let waits = tokio::spawn({
        let path = path.clone();
        async move { asks(&path, forget("n1")).await }
    });
    let Asked { order, reply } = soon("a request", asked.recv()).await.unwrap();
    assert!(matches!(order, Order::Forget(client) if client.as_str() == "n1"));
    drop(reply);
    assert_eq!(waits.await.unwrap().unwrap(), Reply::error("the gateway stops"));
    drop(asked);
    let answer = asks(&path, forget("n1")).await.unwrap();
    assert_eq!(answer, Reply::error("the gateway is busy or about to stop, try again later"));
}

// The loop.

fn setup(broker: SocketAddr, path: &Path) -> Setup {
    Setup { control: Some(options(path)), ..runtime::setup(broker) }
}

async fn health(path: &Path) -> Health {
    match asks(path, request(Ask::Health)).await.unwrap() {
        Reply::Health(health) => health,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_of_a_running_gateway_is_forgotten_and_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (broker, _broker) = runtime::start_broker().await;
    let gateway = runtime::Running::start(setup(broker, &path)).await;
    let node = gateway.node().await;
    node.connect().await;
    let mut now = health(&path).await;
    while !now.ok {
        now = health(&path).await;
    }
    assert_eq!((now.sessions, now.waiting, now.kept), (1, 0, 0));
    assert_eq!((now.broker.connected, now.store.state), (true, StoreState::None));
    let Reply::Forgotten(gone) = asks(&path, forget("n1")).await.unwrap() else { panic!("not forgotten") };
    assert!(gone.session && !gone.at_rest);
    assert_eq!(node.hear().await, [2, 0x18]);
    assert_eq!(health(&path).await.sessions, 0);
    let counts = gateway.stop().await;
    assert_eq!((counts["clients_forgotten"], counts["control_refused"]), (1, 0));
    assert!(!path.exists());
}

#[tokio::test]
async fn without_a_broker_a_gateway_is_not_well() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = runtime::Running::start(setup(nobody, &path)).await;
    let now = health(&path).await;
    assert_eq!((now.ok, now.broker.connected), (false, false));
    gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_whose_socket_is_taken_goes_on_without() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    let (broker, _broker) = runtime::start_broker().await;
    let first = runtime::Running::start(setup(broker, &path)).await;
    let second = runtime::Running::start(setup(broker, &path)).await;
    second.node().await.connect().await;
    second.stop().await;
    // The first one still answers.
    assert_eq!(health(&path).await.sessions, 0);
    first.stop().await;
    drop(Runtime::open(setup(broker, &path)).unwrap());
    assert!(!path.exists());
}
