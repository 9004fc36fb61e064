//! The bodies of the fuzz targets, on octets that proptest makes.

#[path = "../../tools/fuzz/src/framing.rs"]
mod framing;
#[path = "../../tools/fuzz/src/xbee.rs"]
mod xbee;

use proptest::prelude::*;

use super::{props, xbee as api};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_on_a_line(octets in props::noisy()) {
        framing::any_octets(&octets);
    }

    #[test]
    fn any_octets_from_a_radio(octets in api::noisy()) {
        xbee::any_octets(&octets);
    }
}
