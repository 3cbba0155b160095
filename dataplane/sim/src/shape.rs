//! What a scenario fixes of a run; the seed decides the rest, faults included.

use crate::plan::{MS, Plan};

/// The distance of the nodes and the busyness of the guest.
///
/// A run has no bandwidth and no RAM size: its guest has the few pages of the plan, of which the
/// given share is rewritten per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// One-way delay of the network; single messages take up to a tenth longer.
    pub one_way_delay_ms: u64,
    /// Thousandths of the guest's pages that are rewritten per second; 0: it never writes.
    pub rewritten_per_mille_per_s: u64,
}

/// Longer than any run.
const NEVER_NS: u64 = 1_000_000 * MS;

impl Shape {
    /// Before the faults are drawn: they come at times that the delay decides.
    pub(crate) fn apply(self, plan: &mut Plan) {
        let delay_ns = self.one_way_delay_ms * MS;
        plan.delay_ns = (delay_ns, delay_ns + delay_ns / 10);
        plan.hot_pages = plan.pages;
        let written_per_mille = self.rewritten_per_mille_per_s * plan.pages as u64;
        plan.write_ns = (1_000_000 * MS)
            .checked_div(written_per_mille)
            .unwrap_or(NEVER_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_shape_fixes_the_distance_and_the_writes() {
        for seed in 0..50 {
            let shape = Shape {
                one_way_delay_ms: 25,
                rewritten_per_mille_per_s: 100,
            };
            let plan = Plan::draw(&mut Rng::new(seed), Some(shape));
            assert_eq!(plan.delay_ns, (25 * MS, 27_500_000));
            let per_s = 1_000 * MS / plan.write_ns;
            let wanted = plan.pages as u64 / 10;
            assert!(per_s.abs_diff(wanted) <= 1, "{plan:?}");
            let idle = Shape {
                rewritten_per_mille_per_s: 0,
                ..shape
            };
            let plan = Plan::draw(&mut Rng::new(seed), Some(idle));
            assert_eq!(plan.write_ns, NEVER_NS);
        }
    }
}
