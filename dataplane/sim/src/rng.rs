//! The only source of chance: xoshiro256++ seeded by splitmix64, so that a seed means the same run
//! on every machine and after every update of a dependency.

/// A generator of reproducible numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator that `seed` names.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        let mut at = seed;
        Self {
            state: std::array::from_fn(|_| {
                at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
                mix(at)
            }),
        }
    }

    /// 64 even bits.
    pub(crate) const fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number of `least..=most`.
    pub(crate) const fn range(&mut self, least: u64, most: u64) -> u64 {
        assert!(least <= most);
        let width = most - least;
        if width == u64::MAX {
            return self.bits();
        }
        least + self.bits() % (width + 1)
    }

    /// An index below `count`.
    pub(crate) const fn index(&mut self, count: usize) -> usize {
        assert!(count > 0);
        (self.bits() % count as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub(crate) const fn chance(&mut self, percent: u64) -> bool {
        self.bits() % 100 < percent
    }

    /// A number of `least..=most` that is small far more often than large.
    pub(crate) const fn skewed(&mut self, least: u64, most: u64) -> u64 {
        let reach = self.range(0, most - least);
        least + self.range(0, reach)
    }
}

/// The finalizer of splitmix64: every input bit reaches every output bit.
#[must_use]
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers_and_others_do_not() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            [rng.bits(), rng.bits(), rng.bits()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn ranges_are_kept_and_reached() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 4];
        for _ in 0..200 {
            seen[rng.range(3, 6) as usize - 3] = true;
            assert!((5..=9).contains(&rng.skewed(5, 9)));
        }
        assert_eq!(seen, [true; 4]);
    }
}
