/// What tells one message from another under the same number: FNV-1a over 64 bits. It is stored, so it stays as it is, whatever
/// becomes of the hashes of the standard library.
pub(crate) fn digest(octets: impl IntoIterator<Item = u8>) -> u64 {
    let fold = |digest: u64, octet| (digest ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01B3);
    octets.into_iter().fold(0xCBF2_9CE4_8422_2325, fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published vectors of FNV-1a.
    #[test]
    fn it_is_what_it_was() {
        assert_eq!(digest(*b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(digest(*b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(digest(*b"foobar"), 0x8594_4171_F739_67E8);
    }
}
