//! gateway.yaml to a validated configuration; the only file that knows `serde_yaml`.
