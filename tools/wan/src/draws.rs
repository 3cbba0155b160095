//! Seeded decisions. Each is a hash of seed, kind and number: none depends on how many others were
//! made, so changing the loss does not move the jitter.

/// What is decided.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Draw {
    /// Whether a packet is lost.
    Loss = 1,
    /// Whether a packet is held back.
    Reorder = 2,
    /// Where the jitter goes next.
    Jitter = 3,
}

/// A source of decisions for one way of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    seed: u64,
}

impl Draws {
    pub(crate) const fn new(seed: u64, way: u64) -> Self {
        Self {
            seed: mix(seed ^ mix(way)),
        }
    }

    /// Uniform in 0 to 1, without 1.
    pub(crate) fn unit(self, kind: Draw, number: u64) -> f64 {
        let bits = mix(mix(self.seed ^ ((kind as u64) << 56)).wrapping_add(number)) >> 11;
        #[expect(
            clippy::cast_precision_loss,
            reason = "53 bits fit a double's mantissa"
        )]
        let unit = bits as f64 / (1u64 << 53) as f64;
        unit
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_each_kind_has_its_own() {
        let draws = Draws::new(7, 0);
        let count = 100_000;
        let mean = |kind| (0..count).map(|n| draws.unit(kind, n)).sum::<f64>() / f64::from(100_000);
        assert!((mean(Draw::Loss) - 0.5).abs() < 0.01);
        assert!((mean(Draw::Jitter) - 0.5).abs() < 0.01);
        let same =
            (0..count).filter(|n| draws.unit(Draw::Loss, *n) == draws.unit(Draw::Jitter, *n));
        assert!(same.count() < 5);
    }
}
