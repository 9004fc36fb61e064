//! The embedded broker in a process of its own, with room for everything that is measured.

use std::future::pending;
use std::net::SocketAddr;

use mqtt_sn_gateway::broker::{Limits, tcp};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::failure::{Attempt, Failure};

/// Serves until it is ended.
pub(crate) fn run(addr: SocketAddr) -> Result<(), Failure> {
    let limits = Limits {
        connections: 20_000,
        sessions: 20_000,
        window: 1000,
        subscriptions: 1_000_000,
        queue_messages: 1_000_000,
        queue_bytes: 256 << 20,
        ..Limits::default()
    };
    let runtime = Builder::new_current_thread().enable_all().build().attempt("wait for sockets")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(addr).await.attempt(format!("listen on {addr}"))?;
        tcp::serve(listener, limits, pending()).await;
        Ok(())
    })
}
