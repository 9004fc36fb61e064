//! `devices`: what could be a radio.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, say};
use crate::devices::{Found, NO_RULE, Roots};

/// Where to look and what to print.
#[derive(Debug, Args)]
pub(super) struct Devices {
    /// Print a line of JSON
    #[arg(long, conflicts_with = "udev")]
    json: bool,
    /// Print a rule for udev that names each radio and keeps ModemManager away from it
    #[arg(long)]
    udev: bool,
    /// Look into this tree instead of /sys
    #[arg(long, value_name = "DIR")]
    sysfs: Option<PathBuf>,
    /// Look into this tree instead of /dev
    #[arg(long, value_name = "DIR")]
    dev: Option<PathBuf>,
    /// Look into this tree instead of /proc
    #[arg(long, value_name = "DIR")]
    proc: Option<PathBuf>,
    /// Look into this tree instead of /run/udev
    #[arg(long, value_name = "DIR")]
    udev_data: Option<PathBuf>,
}

/// 66 if there is none, or no tree to look into: a script then knows without reading.
pub(super) fn devices(wanted: Devices) -> Result<Exit, Failure> {
    let usual = Roots::default();
    let roots = Roots {
        sys: wanted.sysfs.unwrap_or(usual.sys),
        dev: wanted.dev.unwrap_or(usual.dev),
        proc: wanted.proc.unwrap_or(usual.proc),
        udev: wanted.udev_data.unwrap_or(usual.udev),
    };
    if !roots.sys.join("class/tty").is_dir() {
        return Err(Failure::NoSysfs(roots.sys));
    }
    let found = Found::read(&roots);
    if wanted.json {
        say(found.json());
    } else if wanted.udev {
        say(found.udev().trim_end());
        if !found.has_rule() {
            // The rule is in a pipe, most likely.
            let _ = writeln!(io::stderr(), "mqtt-sn-gateway: {NO_RULE}");
        }
    } else {
        say(found.to_string().trim_end());
    }
    Ok(if found.adapters.is_empty() { Exit::NoDevice } else { Exit::Ok })
}
