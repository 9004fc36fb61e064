//! One task per port: datagrams and frames between sockets and the core.
