//! What a line does to octets.

pub(crate) use fastrand::Rng;

/// Octets as they arrive, and whether any of them was hit.
pub(crate) struct Damage {
    pub(crate) octets: Vec<u8>,
    pub(crate) hit: bool,
}

/// Each octet is changed, lost or doubled with this probability.
pub(crate) fn damaged(octets: &[u8], rate: f64, random: &mut Rng) -> Damage {
    let mut damage = Damage { octets: Vec::with_capacity(octets.len()), hit: false };
    for octet in octets {
        if random.f64() >= rate {
            damage.octets.push(*octet);
            continue;
        }
        damage.hit = true;
        match random.u8(0..6) {
            0 => {}
            1 => damage.octets.extend([*octet, *octet]),
            _ => damage.octets.push(octet ^ random.u8(1..)),
        }
    }
    damage
}
