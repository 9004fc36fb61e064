//! A small MQTT 3.1.1 broker in memory, as a value like the core, for first steps and for tests.
