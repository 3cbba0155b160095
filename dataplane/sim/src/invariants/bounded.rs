//! Everything has an upper bound: bytes in flight, actions of one event, queues.

use crate::world::World;

pub(crate) const NAME: &str = "bounded";

/// Actions of one event.
const ACTIONS_MAX: usize = 6;

/// Actions that wait behind a journal write.
const ACTIONS_WAITING_MAX: usize = 24;

/// Control messages under way: a few of the protocol's, and a sign of life each quarter of the
/// silence limit, for as long as a stall keeps them.
const MESSAGES_MAX: usize = 64;

/// Things scheduled.
const SCHEDULED_MAX: usize = 1024;

/// An event was handed to a machine.
pub(crate) fn check_step(world: &mut World, actions: usize) {
    if actions > ACTIONS_MAX {
        world.break_invariant(NAME, format!("{actions} actions of one event"));
    }
}

pub(crate) fn check(world: &mut World) {
    let window = world.plan.window_bytes;
    if let Some(link) = world
        .links
        .iter()
        .find(|link| link.in_flight_bytes > window)
    {
        let what = format!("{} bytes in flight, window {window}", link.in_flight_bytes);
        world.break_invariant(NAME, what);
    }
    let waiting = world.source.run.as_ref().map_or(0, |run| run.actions.len());
    let runs = world.destination.runs.iter().flatten();
    let waiting = runs.map(|run| run.actions.len()).fold(waiting, usize::max);
    if waiting > ACTIONS_WAITING_MAX {
        world.break_invariant(NAME, format!("{waiting} actions wait"));
    }
    if let Some(link) = world
        .links
        .iter()
        .find(|link| link.messages() > MESSAGES_MAX)
    {
        let what = format!("{} control messages under way", link.messages());
        world.break_invariant(NAME, what);
    }
    if world.schedule.len() > SCHEDULED_MAX {
        let what = format!("{} things are scheduled", world.schedule.len());
        world.break_invariant(NAME, what);
    }
}
