//! Serial devices as the system shows them: who may use one, and who does.

mod access;

pub use self::access::{Cause, Denied, Holder, Holders, holders, may_use};

/// A text from a device or a process, fit for a terminal.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
