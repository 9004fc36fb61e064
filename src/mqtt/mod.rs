//! One MQTT connection to a broker as a value: octets in, octets out, packet ids, windows, QoS 1 and 2 both ways.
