//! The core: what arrives goes in, what must leave comes out. No clock, socket, task, lock or file.

pub mod io;
