//! A network of its own for one test, and its own view of /etc: the test starts itself again in new namespaces.

use std::process::Command;

const INSIDE: &str = "MQTT_SN_TEST_INSIDE";

/// Whether the caller, the test `name`, is to go on: it runs in a namespace with nothing but `lo`. Outside it runs itself
/// there and passes on the verdict, or says why it cannot.
pub(crate) fn apart(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let Some(flags) = ["-nm", "-rnm"].into_iter().find(|flags| succeeds("unshare", &[flags, "ip", "link"]))
    else {
        skip(name, "unshare(1) cannot make namespaces here");
        return false;
    };
    let this = std::env::current_exe().unwrap();
    let inside = Command::new("unshare")
        .args([flags, "--"])
        .arg(this)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said =
        [inside.stdout, inside.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(inside.status.success(), "{said}");
    assert!(said.contains("1 passed"), "no test is named {name}: {said}");
    false
}

/// Says that a test cannot run here, which is an error where all are to run, as in `tools/test`.
pub(crate) fn skip(name: &str, why: &str) {
    assert!(std::env::var_os("MQTT_SN_TEST_ALL").is_none(), "{name}: {why}");
    eprintln!("SKIPPED {name}: {why}");
}

/// What `ip` of iproute2 says, inside.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> String {
    assert!(std::env::var_os(INSIDE).is_some(), "not on this machine's own network");
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = Command::new("ip").args(&arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Replaces /etc/hosts, inside.
pub(crate) fn hosts(lines: &str) {
    assert!(std::env::var_os(INSIDE).is_some(), "not on this machine's own /etc");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    assert!(succeeds("mount", &["--bind", file.path().to_str().unwrap(), "/etc/hosts"]));
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}
