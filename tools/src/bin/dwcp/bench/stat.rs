//! Figures of several runs.

/// The middle value; of two, the greater. 0 of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The chance that shuffling all values over two groups of these sizes gives means as far apart: an
/// exact permutation test. Large groups are cut to their first [`VALUES_MAX`] values. 1 when a group
/// is empty.
pub(crate) fn chance_of_difference(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (&a[..a.len().min(VALUES_MAX)], &b[..b.len().min(VALUES_MAX)]);
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let total: f64 = all.iter().sum();
    let distance = |sum_a: f64| {
        let (mean_a, mean_b) = (sum_a / a.len() as f64, (total - sum_a) / b.len() as f64);
        (mean_a - mean_b).abs()
    };
    // Sums in another order differ in their last bits.
    let least = distance(a.iter().sum()) * (1.0 - 1e-9);
    let (mut as_far, mut shuffles) = (0_u64, 0_u64);
    for members in 0_u32..1 << all.len() {
        if members.count_ones() as usize != a.len() {
            continue;
        }
        let sum = (0..all.len())
            .filter(|index| members >> index & 1 == 1)
            .map(|index| all[index])
            .sum();
        shuffles += 1;
        as_far += u64::from(distance(sum) >= least);
    }
    as_far as f64 / shuffles as f64
}

/// Of each group: 2^20 shuffles are looked at then, which takes milliseconds.
const VALUES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_that_of_the_definition() {
        // Of the 20 ways to share six values, only the given one and its mirror are as far apart.
        let chance = chance_of_difference(&[1.0, 2.0, 3.0], &[10.0, 11.0, 12.0]);
        assert!((chance - 2.0 / 20.0).abs() < 1e-12, "{chance}");
        assert_eq!(chance_of_difference(&[5.0; 4], &[5.0; 4]), 1.0);
        assert_eq!(chance_of_difference(&[], &[1.0]), 1.0);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
