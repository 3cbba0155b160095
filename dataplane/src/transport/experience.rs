//! What a node remembers of the ways to send, from one migration to the next: a guest of 64 MiB is
//! over before every way has been tried, and trying costs a larger one a few milliseconds.

use std::collections::HashMap;
use std::net::{IpAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dwcp_api::SendChoice;

use super::SendMethod;
use super::ladder::{Ladder, Rung};
use crate::ram::RamLayout;

/// After this the ways are tried again: a card, a route or a kernel module may have changed.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Places remembered at most.
const PLACES_MAX: usize = 256;

/// Where pages come from and go to, as far as the ways to send depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    peer: Option<IpAddr>,
    is_in_hugetlbfs: bool,
    /// The socket's records are sealed in the kernel.
    is_sealed: bool,
    /// The ways that there are: a ring has more.
    pub(super) has: &'static [SendMethod],
}

impl Place {
    fn of(
        (stream, is_sealed): (&TcpStream, bool),
        ram: Option<&RamLayout>,
        has: &'static [SendMethod],
    ) -> Self {
        let blocks = ram.map(RamLayout::blocks).unwrap_or_default();
        Self {
            peer: stream.peer_addr().ok().map(|address| address.ip()),
            is_in_hugetlbfs: blocks.iter().any(|block| block.is_in_hugetlbfs()),
            is_sealed,
            has,
        }
    }
}

/// Makes the ladders of a transport's streams.
#[derive(Clone, Debug)]
pub struct Ladders {
    choice: SendChoice,
    experience: Experience,
}

impl Ladders {
    pub(super) const fn new(choice: SendChoice, experience: Experience) -> Self {
        Self { choice, experience }
    }

    /// A ladder for pages of `ram` over `stream`, by a transport that `has` these ways. A socket that seals
    /// takes references from a pipe or a file, which it reads once, and refuses those of the ring.
    pub(super) fn for_stream(
        &self,
        (stream, is_sealed): (&TcpStream, bool),
        ram: Option<&RamLayout>,
        has: &'static [SendMethod],
    ) -> Ladder {
        let has = if is_sealed { &SendMethod::BY_CALL } else { has };
        let place = Place::of((stream, is_sealed), ram, has);
        Ladder::at(self.choice, place, &self.experience)
    }
}

/// What was found where.
#[derive(Clone, Debug, Default)]
pub(super) struct Experience {
    known: Arc<Mutex<HashMap<Place, Known>>>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    rungs: Vec<Rung>,
}

impl Known {
    fn is_young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < REMEMBERED_FOR
    }
}

impl Experience {
    /// The ways as far as they were tried from this place.
    pub(super) fn recall(&self, place: &Place, now: Instant) -> Option<Vec<Rung>> {
        let known = self.lock();
        let known = known.get(place)?;
        known.is_young(now).then(|| known.rungs.clone())
    }

    /// Remembers what a stream found, unless another found more. It is as old as the first of it.
    pub(super) fn note(&self, place: Place, rungs: Vec<Rung>, now: Instant) {
        let tried = |rungs: &[Rung]| rungs.iter().filter(|rung| !rung.is_open()).count();
        let mut known = self.lock();
        known.retain(|_, known| known.is_young(now));
        if known.len() >= PLACES_MAX && !known.contains_key(&place) {
            return;
        }
        let known = known.entry(place).or_insert(Known {
            since: now,
            rungs: vec![],
        });
        if tried(&rungs) >= tried(&known.rungs) {
            known.rungs = rungs;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ladder::Moment;

    const PLACE: Place = Place {
        peer: None,
        is_in_hugetlbfs: false,
        is_sealed: false,
        has: &SendMethod::ALL,
    };

    fn ladder(experience: &Experience) -> Ladder {
        Ladder::at(SendChoice::Auto, PLACE, experience)
    }

    /// Lets `frames` leave; `cost` gives a frame's time in microseconds.
    fn carry(ladder: &mut Ladder, frames: usize, cost: impl Fn(SendMethod) -> u64) {
        let mut now = Moment::now();
        for _ in 0..frames {
            let method = ladder.method();
            now = now.after(Duration::from_micros(cost(method)));
            if ladder.is_probing() {
                ladder.left(method, 1000, now);
            }
        }
    }

    fn vmsplice_is_fastest(method: SendMethod) -> u64 {
        if method == SendMethod::Vmsplice {
            50
        } else {
            60
        }
    }

    #[test]
    fn small_guests_try_the_ways_together() {
        let experience = Experience::default();
        let mut guests = 0;
        loop {
            let mut ladder = ladder(&experience);
            if !ladder.is_probing() {
                assert_eq!(ladder.chosen(), Some(SendMethod::Vmsplice));
                break;
            }
            // Each has one way's stretch and a bit.
            carry(&mut ladder, 40, vmsplice_is_fastest);
            guests += 1;
        }
        assert_eq!(guests, SendMethod::ALL.len());
    }

    #[test]
    fn a_way_that_is_refused_later_is_out_for_those_that_follow() {
        let experience = Experience::default();
        carry(&mut ladder(&experience), 1000, vmsplice_is_fastest);
        let mut second = ladder(&experience);
        assert_eq!(second.chosen(), Some(SendMethod::Vmsplice));
        second.refused(
            SendMethod::Vmsplice,
            &std::io::ErrorKind::Unsupported.into(),
        );
        drop(second);
        assert_ne!(ladder(&experience).method(), SendMethod::Vmsplice);
    }

    #[test]
    fn what_was_found_is_forgotten_in_time_and_true_of_its_place_alone() {
        let experience = Experience::default();
        carry(&mut ladder(&experience), 1000, vmsplice_is_fastest);
        let now = Instant::now();
        assert!(experience.recall(&PLACE, now).is_some());
        assert!(experience.recall(&PLACE, now + REMEMBERED_FOR).is_none());
        let huge = Place {
            is_in_hugetlbfs: true,
            ..PLACE
        };
        assert!(experience.recall(&huge, now).is_none());
        let by_call = Place {
            has: &SendMethod::BY_CALL,
            ..PLACE
        };
        assert!(experience.recall(&by_call, now).is_none());
        let sealed = Place {
            is_sealed: true,
            ..PLACE
        };
        assert!(experience.recall(&sealed, now).is_none());
    }

    #[test]
    fn what_the_operator_asks_for_by_name_needs_no_experience() {
        let experience = Experience::default();
        drop(Ladder::at(SendChoice::Write, PLACE, &experience));
        assert!(experience.recall(&PLACE, Instant::now()).is_none());
    }
}
