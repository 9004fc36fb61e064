//! The shells on real sockets of the loopback interface. What needs addresses, interfaces or a resolver of its own runs
//! in a network namespace of its own: see [`apart`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod apart;
mod control;
mod damage;
mod link;
#[path = "../e2e/pki.rs"]
#[allow(dead_code, unreachable_pub, reason = "made for another binary")]
mod pki;
#[path = "../e2e/process.rs"]
#[allow(dead_code, unreachable_pub, reason = "made for another binary")]
mod process;
mod pty;
mod radios;
mod runtime;
mod serial;
mod tls;
mod udp;

use std::future::Future;
use std::time::Duration;

/// When what is awaited counts as not coming. No test waits that long unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

/// The output of `future`, which must not take longer than [`LIMIT`].
#[track_caller]
fn soon<T>(what: &'static str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => panic!("{what} does not come, awaited at {caller}"),
        }
    }
}
