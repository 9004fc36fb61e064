//! TCP to brokers: connects, reads, and writes what is ready in one go.
