//! TLS, with the real program.
