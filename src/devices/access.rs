//! Whether this process may open a device, why not, and who has it open.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, faccessat, getegid, geteuid, getgroups};
use serde::Serialize;

/// Open files looked at in search of holders: as many as a server with ten thousand busy processes has.
const OPEN_FILES_MAX: usize = 1 << 20;

/// Holders that are told: a device with more has other troubles.
const HOLDERS_MAX: usize = 8;

/// Who has a device open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holders {
    /// Those that were seen, by process id; eight at most.
    pub seen: Vec<Holder>,
    /// There are processes whose files only root may see.
    pub hidden: bool,
    /// This process has.
    #[serde(skip)]
    pub own: bool,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, 15 octets at most.
    pub name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl Holders {
    /// `ModemManager (pid 612), agetty (pid 700)`; what to make of it if nobody was seen.
    pub fn describe(&self) -> String {
        match (self.seen.as_slice(), self.hidden) {
            ([], false) => "nobody".to_owned(),
            ([], true) => "nobody whom this user may see; root sees all".to_owned(),
            (seen, _) => seen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The processes below `proc` (`/proc`) that have open what the kernel calls `device`: a name without links
/// in it, such as `/dev/ttyUSB0`.
pub fn holders(proc: &Path, device: &Path) -> Holders {
    // Where the first process is not seen, none of others is: a unit with ProtectProc=.
    let mut found = Holders { hidden: !proc.join("1").exists(), ..Holders::default() };
    let mut left = OPEN_FILES_MAX;
    for pid in processes(proc) {
        if left == 0 || found.seen.len() == HOLDERS_MAX {
            break;
        }
        let dir = proc.join(pid.to_string());
        let files = match fs::read_dir(dir.join("fd")) {
            Ok(files) => files,
            Err(error) => {
                // It may have ended just now.
                found.hidden |= error.kind() == std::io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        let mut links = files.flatten().take(left).inspect(|_| left -= 1);
        if !links.any(|link| fs::read_link(link.path()).is_ok_and(|target| target == device)) {
            continue;
        }
        if pid == std::process::id() {
            found.own = true;
        } else {
            found.seen.push(Holder { pid, name: process_name(&dir) });
        }
    }
    found
}

/// The ids of all processes, in order.
pub(super) fn processes(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    pids.sort_unstable();
    pids
}

/// What the process in this directory of /proc calls itself.
pub(super) fn process_name(dir: &Path) -> String {
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let name = super::printable(name.trim_end());
    if name.is_empty() { "?".to_owned() } else { name }
}

/// Why this process may not read and write a device.
///
/// `Display` says why, [`Denied::remedy`] what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{}", self.why())]
pub struct Denied {
    /// Its name as the kernel has it, such as `ttyS0`.
    #[serde(skip)]
    pub line: Box<str>,
    /// Whose it is.
    pub owner: String,
    /// The group that it is for.
    pub group: String,
    /// Its permissions, such as 0o660.
    pub mode: u32,
    /// As whom this process runs.
    pub user: String,
    /// The groups of this process.
    pub groups: Vec<String>,
    /// What would mend it.
    pub cause: Cause,
}

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The user is not in the group.
    NotInGroup,
    /// The user is, but was not yet when this process was started.
    JoinedLater,
    /// Not even the group may use it.
    Closed,
    /// The permissions are right, something else forbids it.
    Forbidden,
}

/// Whether this process may read and write `device`, and if not, why. A device that is not there is no matter of permission.
///
/// # Errors
/// [`Denied`].
pub fn may_use(device: &Path) -> Result<(), Denied> {
    let both = AccessFlags::R_OK | AccessFlags::W_OK;
    if faccessat(AT_FDCWD, device, both, AtFlags::AT_EACCESS).is_ok() {
        return Ok(());
    }
    match Denied::of(device) {
        Some(denied) => Err(denied),
        None => Ok(()),
    }
}

/// To whom a device belongs.
struct Ownership {
    uid: u32,
    gid: u32,
    mode: u32,
    user: String,
    group: String,
    /// Who is in the group according to the system's database.
    members: Vec<String>,
}

impl Ownership {
    fn of(found: &fs::Metadata) -> Self {
        let (uid, gid) = (found.uid(), found.gid());
        let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
        Self {
            uid,
            gid,
            mode: found.mode() & 0o777,
            user: user_name(uid),
            group: group.as_ref().map_or_else(|| gid.to_string(), |group| group.name.clone()),
            members: group.map(|group| group.mem).unwrap_or_default(),
        }
    }
}

/// As whom a process acts.
struct Identity {
    uid: u32,
    user: String,
    groups: Vec<(u32, String)>,
}

impl Identity {
    fn own() -> Self {
        let uid = geteuid().as_raw();
        let mut gids: Vec<u32> = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        gids.push(getegid().as_raw());
        gids.sort_unstable();
        gids.dedup();
        Self {
            uid,
            user: user_name(uid),
            groups: gids.into_iter().map(|gid| (gid, group_name(gid))).collect(),
        }
    }
}

fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn group_name(gid: u32) -> String {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// Why the system, which has said no, did so.
fn explain(line: String, device: Ownership, who: Identity) -> Denied {
    let Ownership { uid, gid, mode, user: owner, group, members } = device;
    let for_both = |shift: u32| mode >> shift & 0o6 == 0o6;
    let belongs = who.groups.iter().any(|(own, _)| *own == gid);
    // The first of the three that fits decides, as the kernel has it.
    let allowed = if who.uid == uid { for_both(6) } else { for_both(if belongs { 3 } else { 0 }) };
    let cause = if allowed {
        Cause::Forbidden
    } else if who.uid == uid || belongs || !for_both(3) || gid == 0 {
        Cause::Closed
    } else if members.contains(&who.user) {
        Cause::JoinedLater
    } else {
        Cause::NotInGroup
    };
    let groups = who.groups.into_iter().map(|(_, name)| name).collect();
    Denied { line: line.into(), owner, group, mode, user: who.user, groups, cause }
}

impl Denied {
    /// Why the system, which has said no, did so; `None` if the device is not there.
    pub fn of(device: &Path) -> Option<Self> {
        let real = fs::canonicalize(device).ok()?;
        let line = super::printable(&real.file_name()?.to_string_lossy());
        Some(explain(line, Ownership::of(&fs::metadata(real).ok()?), Identity::own()))
    }

    fn why(&self) -> String {
        let Self { line: _, owner, group, mode, user, groups, cause } = self;
        let whose = format!("it belongs to {owner}:{group} with mode {mode:04o}");
        let us = format!("this is {user} in {}", groups.join(", "));
        match cause {
            Cause::Forbidden => format!("{whose}, which is enough for {user}, yet the system refuses"),
            _ => format!("{whose}, and {us}"),
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        let Self { line, group, user, .. } = self;
        match self.cause {
            // Whoever logs in there owns it, and that group is for writing to him.
            Cause::NotInGroup | Cause::Closed if group == "tty" && line.starts_with("tty") => {
                format!("a login has it: {}", without_login(line))
            }
            Cause::NotInGroup => format!(
                "sudo usermod -aG {group} {user}, then log in again; in a unit of systemd SupplementaryGroups={group}"
            ),
            Cause::JoinedLater => {
                format!("{user} joined {group} after this was started: log in again, or restart the service")
            }
            // The rule is for sticks.
            Cause::Closed if !is_on_usb(line) => match line.starts_with("tty") {
                true => format!("if a login has it: {}", without_login(line)),
                false => format!("whoever made it has to open it to {user}"),
            },
            Cause::Closed => "give it to a group by a udev rule: mqtt-sn-gateway devices --udev".to_owned(),
            Cause::Forbidden => {
                "DeviceAllow= of the unit, an access control list, or the container keeps it away".to_owned()
            }
        }
    }
}

/// By the name that the kernel gives it.
fn is_on_usb(line: &str) -> bool {
    line.starts_with("ttyUSB") || line.starts_with("ttyACM")
}

/// How a login is taken off a line, whose name is as the kernel has it.
pub(super) fn without_login(line: &str) -> String {
    format!(
        "sudo systemctl disable --now serial-getty@{line}; on a Raspberry Pi: sudo raspi-config, Interface Options, Serial \
         Port: no login shell, but the hardware enabled; then restart"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Of root, for group 20 (dialout), in which the database has `members`.
    fn dialout(mode: u32, members: &[&str]) -> Ownership {
        let members = members.iter().map(|name| (*name).to_owned()).collect();
        Ownership { uid: 0, gid: 20, mode, user: "root".to_owned(), group: "dialout".to_owned(), members }
    }

    fn usb() -> String {
        "ttyUSB0".to_owned()
    }

    fn pi(groups: &[(u32, &str)]) -> Identity {
        let groups = groups.iter().map(|(gid, name)| (*gid, (*name).to_owned())).collect();
        Identity { uid: 1000, user: "pi".to_owned(), groups }
    }

    #[test]
    fn who_is_not_in_the_group_is_told_which_and_how_to_join() {
        let denied = explain(usb(), dialout(0o660, &["anna"]), pi(&[(44, "video"), (1000, "pi")]));
        assert_eq!(
            denied.to_string(),
            "it belongs to root:dialout with mode 0660, and this is pi in video, pi"
        );
        assert_eq!(
            denied.remedy(),
            "sudo usermod -aG dialout pi, then log in again; in a unit of systemd SupplementaryGroups=dialout"
        );
    }

    #[test]
    fn who_has_joined_the_group_since_is_told_to_log_in_again() {
        let denied = explain(usb(), dialout(0o660, &["anna", "pi"]), pi(&[(1000, "pi")]));
        assert_eq!(denied.cause, Cause::JoinedLater);
        assert!(denied.remedy().contains("log in again"), "{}", denied.remedy());
    }

    #[test]
    fn a_group_that_may_not_use_it_either_is_no_advice() {
        assert_eq!(explain(usb(), dialout(0o600, &[]), pi(&[(1000, "pi")])).cause, Cause::Closed);
        assert_eq!(explain(usb(), dialout(0o640, &[]), pi(&[(20, "dialout")])).cause, Cause::Closed);
        let roots = Ownership { gid: 0, group: "root".to_owned(), ..dialout(0o660, &[]) };
        assert_eq!(explain(usb(), roots, pi(&[(1000, "pi")])).cause, Cause::Closed);
        let own = Ownership { uid: 1000, ..dialout(0o066, &[]) };
        assert_eq!(
            explain(usb(), own, pi(&[(20, "dialout")])).cause,
            Cause::Closed,
            "the owner's bits come first"
        );
    }

    #[test]
    fn a_line_with_a_login_is_not_mended_by_the_rule_for_sticks() {
        let of = |line: &str, gid, group: &str, mode| {
            let group = Ownership { gid, group: group.to_owned(), ..dialout(mode, &[]) };
            explain(line.to_owned(), group, pi(&[(1000, "pi")])).remedy()
        };
        let login = "a login has it: sudo systemctl disable --now serial-getty@ttyS0; on a Raspberry Pi: sudo raspi-config, \
                     Interface Options, Serial Port: no login shell, but the hardware enabled; then restart";
        assert_eq!(of("ttyS0", 5, "tty", 0o600), login);
        assert_eq!(of("ttyS0", 5, "tty", 0o660), login, "to join that group would open all terminals");
        assert_eq!(of("ttyS0", 0, "root", 0o600), format!("if {login}"));
        assert_eq!(of("ttyS0", 20, "dialout", 0o600), format!("if {login}"));
        assert!(of("ttyUSB0", 5, "tty", 0o620).contains("serial-getty@ttyUSB0"), "on the USB too");
        assert!(of("ttyS0", 20, "dialout", 0o660).starts_with("sudo usermod -aG dialout pi"));
        assert!(of("ttyUSB0", 0, "root", 0o660).contains("devices --udev"));
        assert_eq!(of("3", 5, "tty", 0o620), "whoever made it has to open it to pi");
    }

    #[test]
    fn what_the_mode_allows_is_forbidden_by_something_else() {
        let denied = explain(usb(), dialout(0o660, &[]), pi(&[(20, "dialout")]));
        assert_eq!(denied.cause, Cause::Forbidden);
        assert_eq!(
            denied.to_string(),
            "it belongs to root:dialout with mode 0660, which is enough for pi, yet the system refuses"
        );
        assert_eq!(explain(usb(), dialout(0o666, &[]), pi(&[])).cause, Cause::Forbidden);
    }

    #[test]
    fn holders_are_found_by_what_they_have_open() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, name: &str, files: &[&str]| {
            let dir = proc.path().join(pid);
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
            for (number, file) in files.iter().enumerate() {
                symlink(file, dir.join("fd").join(number.to_string())).unwrap();
            }
        };
        process("1", "systemd", &["/dev/null"]);
        process("1201", "agetty", &["/dev/ttyUSB1", "/dev/ttyUSB0"]);
        process("612", "Modem\x1bManager", &["/dev/null", "/dev/ttyUSB0"]);
        process("613", "bash", &["/dev/ttyUSB01", "/dev/pts/0"]);
        process("self", "mqtt-sn-gateway", &["/dev/ttyUSB0"]);
        let found = holders(proc.path(), Path::new("/dev/ttyUSB0"));
        assert_eq!(found.describe(), "Modem?Manager (pid 612), agetty (pid 1201)");
        let free = |proc: &Path| holders(proc, Path::new("/dev/ttyUSB7")).describe();
        assert_eq!(free(proc.path()), "nobody");
        fs::rename(proc.path().join("1"), proc.path().join("2")).unwrap();
        assert_eq!(free(proc.path()), "nobody whom this user may see; root sees all");
    }

    #[test]
    fn a_device_of_our_own_may_be_used_and_one_that_is_not_there_is_another_matter() {
        let own = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(may_use(own.path()), Ok(()));
        assert_eq!(may_use(Path::new("/nonexistent/ttyUSB0")), Ok(()));
    }
}
