//! No page and no byte gets lost in counting: the classes add up to the pages visited, and each
//! end's counters are what the wire carried.

use dwcp_wire::RoundSummary;

use crate::sender::Sender;
use crate::world::World;

const NAME: &str = "conservation";

/// The source has sent a round.
pub(crate) fn check_sent(world: &mut World, attempt: usize, sender: &Sender) {
    let counts = sender.counts;
    let classes = counts.zero + counts.unchanged + counts.raw;
    if classes != sender.visited {
        let what = format!("{counts:?} of {} pages visited", sender.visited);
        world.break_invariant(NAME, what);
    }
    if counts.zero + counts.raw != sender.sent.pages {
        let what = format!("{counts:?}, but {} pages sent", sender.sent.pages);
        world.break_invariant(NAME, what);
    }
    let wire = wire(&world.links[attempt].sent, sender.round);
    if wire != sender.sent {
        let what = format!("source counts {:?}, the wire {wire:?}", sender.sent);
        world.break_invariant(NAME, what);
    }
}

/// The destination has applied a round.
pub(crate) fn check_applied(world: &mut World, attempt: usize, round: u32, applied: RoundSummary) {
    let link = &world.links[attempt];
    let (sent, wire) = (wire(&link.sent, round), wire(&link.delivered, round));
    if wire != applied || sent != applied {
        let what = format!("round {round}: applied {applied:?}, delivered {wire:?}, sent {sent:?}");
        world.break_invariant(NAME, what);
    }
}

fn wire(rounds: &std::collections::BTreeMap<u32, RoundSummary>, round: u32) -> RoundSummary {
    rounds.get(&round).copied().unwrap_or_default()
}
