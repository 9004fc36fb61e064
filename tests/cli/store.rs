//! Where state is kept, what keeps a gateway from using it, and `forget`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mqtt_sn_gateway::gateway::record::{Lsn, MessageId, Record, Row, TopicRow, TopicStanding, WaitingRow};
use mqtt_sn_gateway::mqtt::{Message, QoS};
use mqtt_sn_gateway::store::{Options, Store};
use mqtt_sn_gateway::topic::{ClientId, TopicName};
use redb::{Database, TableDefinition};
use tempfile::TempDir;

use super::Folder;
use super::run::{LOCAL, Running};

/// Somebody who may do little: the user and group `nobody`.
const NOBODY: u32 = 65_534;

#[test]
fn check_says_where_state_is_kept() {
    for (path, shown) in
        [("auto", "store: $/state (auto)\n"), ("/x/y", "store: /x/y\n"), ("none", "store: none\n")]
    {
        let folder = Folder::with(format!("store: {{ path: {path} }}\n"));
        let ended = folder.run(&["check"]);
        let shown = shown.replace('$', &folder.path().display().to_string());
        assert!(ended.stdout.contains(&shown), "{path}: {}", ended.stdout);
        assert_eq!(ended.code, 0);
        // It looks, and touches nothing.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn where_state_is_kept_depends_on_who_starts_the_gateway() {
    let shown = |env: &[(&str, &str)]| {
        let ended = as_nobody("check", "", env);
        let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        (said.lines().last().unwrap().to_string(), ended.status.code())
    };
    let here = |place: &str| (format!("store: {place} (auto)"), Some(0));
    let (home, xdg, unit) = (("HOME", "/h"), ("XDG_STATE_HOME", "/x"), ("STATE_DIRECTORY", "/s:/t"));
    assert_eq!(shown(&[home]), here("/h/.local/state/mqtt-sn-gateway"));
    assert_eq!(shown(&[home, xdg]), here("/x/mqtt-sn-gateway"));
    // A unit may name several: the first is meant.
    assert_eq!(shown(&[home, xdg, unit]), here("/s"));
    let nowhere = "mqtt-sn-gateway: store.path: auto: none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set; \
                   name a directory, or none";
    assert_eq!(shown(&[]), (nowhere.into(), Some(78)));
    assert_eq!(shown(&[("HOME", ""), ("XDG_STATE_HOME", "")]), (nowhere.into(), Some(78)));
}

#[test]
fn what_it_makes_is_for_its_user_alone() {
    let folder = Folder::with(LOCAL);
    let mut gateway = Running::start(folder, &[]);
    gateway.logs("listening on udp ");
    let state = gateway.folder.path().join("state");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    for file in ["store.redb", "store.lock"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
}

#[test]
fn a_store_in_use_is_77_or_69_and_names_the_process() {
    let mut gateway = Running::start(Folder::with(LOCAL), &[]);
    gateway.logs("listening on udp ");
    let state = gateway.folder.path().join("state");
    let expected =
        format!("the store {}/store.redb is in use by process {}\n", state.display(), gateway.child.id());
    let other = Folder::with(format!("{LOCAL}store: {{ path: {} }}\n", state.display()));
    let ended = other.run(&["run"]);
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 77));
    assert!(ended.stderr.ends_with(&format!("mqtt-sn-gateway: {expected}")), "{}", ended.stderr);
    // It cannot be asked where this configuration says.
    let ended = other.run(&["forget", "n1"]);
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 69));
    assert!(
        ended.stderr.ends_with(&format!("/runtime/control.sock, yet one is running: {expected}")),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_77() {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    let state = folder.path().join("state");
    let ended = as_nobody("run", LOCAL, &[("STATE_DIRECTORY", state.to_str().unwrap())]);
    let last = format!(
        "mqtt-sn-gateway: cannot create the directory {}: Permission denied (os error 13)",
        state.display()
    );
    assert_eq!((last_line(&ended), ended.status.code()), (last, Some(77)));
    // Where a file stands in the way, nobody may.
    let blocked = Folder::with(LOCAL);
    fs::write(blocked.path().join("state"), "").unwrap();
    let ended = blocked.run(&["run"]);
    assert!(ended.stderr.contains("mqtt-sn-gateway: cannot "), "{}", ended.stderr);
    assert_eq!(ended.code, 77);
}

#[test]
fn a_directory_that_others_use_is_77() {
    let shared = TempDir::new().unwrap();
    fs::write(shared.path().join("of somebody else"), "").unwrap();
    fs::set_permissions(shared.path(), Permissions::from_mode(0o755)).unwrap();
    let dir = shared.path().display();
    let ended = Folder::with(format!("{LOCAL}store: {{ path: {dir} }}\n")).run(&["run"]);
    let last = format!(
        "mqtt-sn-gateway: {dir} is open to other users (mode 755): give the store a directory of its own, mode 700"
    );
    assert_eq!((ended.stderr.lines().last(), ended.code), (Some(last.as_str()), 77));
}

#[test]
fn a_store_of_a_newer_version_is_78() {
    let folder = stored(&[]);
    let file = folder.path().join("state/store.redb");
    let database = Database::open(&file).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
    write.commit().unwrap();
    drop(database);
    for (command, before) in [(&["run"][..], ""), (&["forget", "n1"], "cannot forget n1: ")] {
        let ended = folder.run(command);
        let last = format!(
            "mqtt-sn-gateway: {before}the store {} was written by a newer version of this program: it has format 99, known is 1",
            file.display()
        );
        assert_eq!((ended.stderr.lines().last(), ended.code), (Some(last.as_str()), 78));
    }
}

#[test]
fn a_damaged_store_is_78_stays_as_it_is_and_the_way_on_is_told() {
    let folder = stored(&[waiting("n1", 1)]);
    let file = folder.path().join("state/store.redb");
    let mut octets = fs::read(&file).unwrap();
    octets.truncate(octets.len() / 2);
    fs::write(&file, &octets).unwrap();
    for command in [&["run"][..], &["forget", "n1"]] {
        let ended = folder.run(command);
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 78));
        let last = ended.stderr.lines().last().unwrap();
        let told = format!("the store {} is damaged: ", file.display());
        let on = "; to start without what is in it, move the file away";
        assert!(last.contains(&told) && last.ends_with(on), "{last}");
        assert_eq!(fs::read(&file).unwrap(), octets);
    }
    fs::rename(&file, folder.path().join("away")).unwrap();
    let mut gateway = Running::start(folder, &[]);
    gateway.logs("listening on udp ");
}

#[test]
fn a_store_that_was_deleted_is_there_again_after_the_end() {
    let folder = Folder::with(LOCAL);
    let file = folder.path().join("state/store.redb");
    let mut gateway = Running::start(folder, &[]);
    gateway.logs("listening on udp ");
    let before = fs::metadata(&file).unwrap().ino();
    // Its number is not given to another.
    let held = fs::File::open(&file).unwrap();
    fs::remove_file(&file).unwrap();
    gateway.signal("-TERM");
    gateway.logs("somebody had deleted the store, it is put back");
    gateway.logs("stopped");
    assert_ne!(fs::metadata(&file).unwrap().ino(), before);
    assert_eq!(gateway.end().code, 0);
    drop(held);
}

#[test]
fn forget_removes_everything_of_one_client() {
    let rows = [topic("n1", 1), topic("n1", 2), message(1), waiting("n1", 1), topic("n10", 1)];
    let folder = stored(&rows);
    let state = folder.path().join("state").display().to_string();
    for (id, said) in [
        ("n1", "forgotten in the store, no gateway is running: 2 topic ids, 1 waiting message"),
        ("n1", "nothing was known of it in the store, no gateway is running"),
        ("n10", "forgotten in the store, no gateway is running: 1 topic id"),
    ] {
        let ended = folder.run(&["forget", id]);
        assert_eq!((ended.stdout, ended.stderr.as_str()), (format!("{id}: {said}\n"), ""));
        assert_eq!(ended.code, 0);
    }
    let (_store, left) = Store::open(&Options::new(state)).unwrap();
    assert_eq!(left, []);
}

#[test]
fn forget_makes_no_store() {
    let folder = Folder::with("");
    let ended = folder.run(&["forget", "n1"]);
    let state = folder.path().join("state");
    let said = "n1: nothing was known of it in the store, no gateway is running\n";
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code), (said, "", 0));
    assert!(!state.exists());
    let folder = Folder::with("store: { path: none }\n");
    let ended = folder.run(&["forget", "n1", "-c", "gateway.yaml"]);
    assert_eq!(ended.stdout, said);
    assert_eq!(ended.code, 0);
}

/// A folder with [`LOCAL`] and a store that has these rows.
fn stored(rows: &[Row]) -> Folder {
    let folder = Folder::with(LOCAL);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(&Options::new(folder.path().join("state"))).unwrap();
        store.submit(Lsn(1), rows.iter().cloned().map(Record::Insert).collect());
        store.close().await.unwrap();
    });
    folder
}

fn topic(client: &str, id: u16) -> Row {
    let name = TopicName::new(format!("topic/{id}")).unwrap();
    let row = TopicRow { name, nth: id, standing: TopicStanding::Known(1) };
    Row::Topic(ClientId::new(client).unwrap(), id, row)
}

fn message(number: u64) -> Row {
    let topic = TopicName::new("topic").unwrap();
    let message = Message { topic, payload: "on".into(), qos: QoS::AtLeastOnce, retain: false };
    Row::Message(MessageId(number), message.into())
}

fn waiting(client: &str, number: u64) -> Row {
    let row = WaitingRow {
        message: MessageId(number),
        qos: QoS::AtLeastOnce,
        sent_as: None,
        sent_on: None,
        expiry: None,
    };
    Row::Waiting(ClientId::new(client).unwrap(), number, row)
}

/// Runs the program with this configuration and environment, and not as root.
fn as_nobody(command: &str, config: &str, env: &[(&str, &str)]) -> Output {
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("mqtt-sn-gateway");
    let built = Path::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"));
    // Where it was built may be closed to others.
    let reachable = fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop));
    reachable.unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("gateway.yaml");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let mut run = Command::new(program);
    run.arg(command).current_dir(folder.path()).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    if fs::metadata(folder.path()).unwrap().uid() == 0 {
        run.uid(NOBODY).gid(NOBODY);
    }
    run.output().unwrap()
}

fn last_line(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or_default().into()
}
