//! The two journals never both claim the VM.
//!
//! The source claims it from `Begin` until `Prepared`, where it comes to be in doubt, and again from
//! `Aborted` on. The destination claims it from `Committed` on, with a higher epoch.

use crate::journal::Stage;
use crate::world::World;

pub(crate) fn check(world: &mut World) {
    let (source, destination) = (&world.source.journal, &world.destination.journal);
    let Some(taken) = (0..destination.attempts()).find(|&at| destination.is_committed(at)) else {
        return;
    };
    let claims = |attempt: usize| {
        let stage = source.stage(attempt);
        let claimed = matches!(stage, Some(Stage::Begun | Stage::Aborted));
        claimed && attempt >= taken
    };
    if let Some(attempt) = (0..source.attempts()).find(|&attempt| claims(attempt)) {
        let what = format!("attempt {taken} is committed, yet the source claims it by {attempt}");
        world.break_invariant("owner_agrees", what);
    }
}
