//! An MQTT-SN client as a value: the other end of the wire, for the demo, the tools and the tests.
