//! The two journals never both claim the VM.
//!
//! The source claims it from `Begin` until `Prepared`, where it comes to be in doubt, and again from
//! `Aborted` on. The destination claims it from `Committed` on, with a higher epoch.

use crate::journal::{Journal, Stage};
use crate::world::World;

pub(crate) const NAME: &str = "owner_agrees";

pub(crate) fn check(world: &mut World) {
    if let Some(what) = find(&world.source.journal, &world.destination.journal) {
        world.break_invariant(NAME, what);
    }
}

pub(crate) fn find(source: &Journal, destination: &Journal) -> Option<String> {
    let taken = (0..destination.attempts()).find(|&at| destination.is_committed(at))?;
    let claims = |attempt: usize| {
        let stage = source.stage(attempt);
        let claimed = matches!(stage, Some(Stage::Begun | Stage::Aborted));
        claimed && attempt >= taken
    };
    let attempt = (0..source.attempts()).find(|&attempt| claims(attempt))?;
    Some(format!(
        "attempt {taken} is committed, yet the source claims it by {attempt}"
    ))
}
