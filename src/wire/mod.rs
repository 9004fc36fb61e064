//! Octets to MQTT-SN packets and back: no state, no IO, no panic.
