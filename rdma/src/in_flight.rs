//! Requests that are posted and not yet complete, and the memory regions that they hold.
//!
//! Every queue has a ledger of its own, with a number that no other has in this process. A work request's `wr_id` is that
//! number and the request's place in the ledger; so a completion is matched without its queue pair's number, which the system
//! may give away again. What the caller called the request is kept here.
//!
//! Requests of a send queue complete in order, and one that is not signalled is complete when a later one is. Receives
//! complete in any order when queue pairs share them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{LocalSpan, MemoryRegion, RdmaError};

/// A ledger's number. After 2³² queues in one process numbers come again; those of the first are long gone.
fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a request keeps alive: one region, mostly.
#[derive(Debug, Default)]
pub(crate) enum Held {
    #[default]
    Nothing,
    One {
        _region: Arc<MemoryRegion>,
    },
    Many {
        _regions: Vec<Arc<MemoryRegion>>,
    },
}

impl Held {
    /// The regions of a request's spans, each once if it is the only one.
    pub(crate) fn of(spans: &[LocalSpan]) -> Self {
        let Some((first, others)) = spans.split_first() else {
            return Self::Nothing;
        };
        let region = first.region();
        if others.iter().all(|span| Arc::ptr_eq(span.region(), region)) {
            return Self::One {
                _region: region.clone(),
            };
        }
        Self::Many {
            _regions: spans.iter().map(|span| span.region().clone()).collect(),
        }
    }
}

/// A posted request.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) id: u64,
    pub(crate) _held: Held,
}

/// A request that is complete, with the others that are since then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Retired {
    pub(crate) id: u64,
    pub(crate) requests: u32,
}

/// What a driver did of a batch: how many it posted, and why no more.
pub(crate) type PostOutcome = Result<(), (usize, io::Error)>;

/// The ledger of a queue of either kind, as a completion queue knows it.
#[derive(Clone, Debug)]
pub(crate) enum Ledger {
    Send(Arc<SendLedger>),
    Receive(Arc<ReceiveLedger>),
}

impl Ledger {
    pub(crate) fn number(&self) -> u32 {
        match self {
            Self::Send(ledger) => ledger.number,
            Self::Receive(ledger) => ledger.number,
        }
    }

    /// Takes a completed request out; `None` when there is none of that place.
    pub(crate) fn retire(&self, place: u32) -> Option<Retired> {
        match self {
            Self::Send(ledger) => ledger.retire(place),
            Self::Receive(ledger) => ledger.retire(place),
        }
    }
}

/// Parts of a `wr_id`: ledger, place.
pub(crate) const fn parts(wr_id: u64) -> (u32, u32) {
    ((wr_id >> 32) as u32, wr_id as u32)
}

const fn wr_id(ledger: u32, place: u32) -> u64 {
    (ledger as u64) << 32 | place as u64
}

/// Requests of one send queue, in the order in which they were posted.
#[derive(Debug)]
pub(crate) struct SendLedger {
    number: u32,
    limit: u32,
    state: Mutex<InOrder>,
}

#[derive(Debug)]
struct InOrder {
    posted: VecDeque<Posted>,
    /// Place of the next one; wraps.
    next: u32,
}

impl SendLedger {
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            number: next_number(),
            limit,
            state: Mutex::new(InOrder {
                posted: VecDeque::with_capacity(limit as usize),
                next: 0,
            }),
        })
    }

    /// Requests whose completion has not been seen, by themselves or by a later one.
    pub(crate) fn outstanding(&self) -> usize {
        self.lock().posted.len()
    }

    /// Whether so many more have room.
    pub(crate) fn reserve(&self, more: usize) -> Result<(), RdmaError> {
        room(self.outstanding(), more, self.limit)
    }

    /// Enters requests and posts them: `post` is given the `wr_id` of the first, and those that follow count up. Completions
    /// of another thread wait meanwhile, so none comes for a request that is not entered. What was not posted is taken back.
    pub(crate) fn post(
        &self,
        requests: impl Iterator<Item = Posted>,
        post: impl FnOnce(&mut dyn FnMut() -> u64) -> PostOutcome,
    ) -> PostOutcome {
        let mut state = self.lock();
        let (before, mut place) = (state.posted.len(), state.next);
        state.posted.extend(requests);
        let mut name = || {
            let id = wr_id(self.number, place);
            place = place.wrapping_add(1);
            id
        };
        let outcome = post(&mut name);
        if let Err((posted, _)) = &outcome {
            state.posted.truncate(before + posted);
        }
        let entered = state.posted.len() - before;
        state.next = state.next.wrapping_add(entered as u32);
        outcome
    }

    fn retire(&self, place: u32) -> Option<Retired> {
        let mut state = self.lock();
        let first = state.next.wrapping_sub(state.posted.len() as u32);
        let index = place.wrapping_sub(first) as usize;
        let id = state.posted.get(index)?.id;
        state.posted.drain(..=index);
        Some(Retired {
            id,
            requests: index as u32 + 1,
        })
    }

    fn lock(&self) -> MutexGuard<'_, InOrder> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives of one queue, or of a shared one.
#[derive(Debug)]
pub(crate) struct ReceiveLedger {
    number: u32,
    limit: u32,
    state: Mutex<AnyOrder>,
}

#[derive(Debug)]
struct AnyOrder {
    places: Vec<Option<Posted>>,
    free: Vec<u32>,
}

impl ReceiveLedger {
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            number: next_number(),
            limit,
            state: Mutex::new(AnyOrder {
                places: (0..limit).map(|_| None).collect(),
                free: (0..limit).rev().collect(),
            }),
        })
    }

    pub(crate) fn outstanding(&self) -> usize {
        let state = self.lock();
        state.places.len() - state.free.len()
    }

    /// Enters one receive and posts it: `post` is given its `wr_id`.
    pub(crate) fn post(
        &self,
        request: Posted,
        post: impl FnOnce(u64) -> io::Result<()>,
    ) -> Result<(), RdmaError> {
        let mut state = self.lock();
        let outstanding = state.places.len() - state.free.len();
        room(outstanding, 1, self.limit)?;
        let place = state.free.pop().unwrap_or_default();
        state.places[place as usize] = Some(request);
        post(wr_id(self.number, place)).map_err(|source| {
            state.places[place as usize] = None;
            state.free.push(place);
            RdmaError::Post {
                posted: 0,
                requests: 1,
                source,
            }
        })
    }

    fn retire(&self, place: u32) -> Option<Retired> {
        let mut state = self.lock();
        let posted = state.places.get_mut(place as usize)?.take()?;
        state.free.push(place);
        Some(Retired {
            id: posted.id,
            requests: 1,
        })
    }

    fn lock(&self) -> MutexGuard<'_, AnyOrder> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room(outstanding: usize, more: usize, limit: u32) -> Result<(), RdmaError> {
    if outstanding + more <= limit as usize {
        return Ok(());
    }
    Err(RdmaError::QueueFull {
        outstanding,
        more,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn request(id: u64) -> Posted {
        Posted {
            id,
            _held: Held::Nothing,
        }
    }

    /// Posts requests of these ids, of which the driver takes `taken`, and returns their `wr_id`s.
    fn post(ledger: &SendLedger, ids: &[u64], taken: usize) -> Vec<u64> {
        let mut names = vec![];
        let _ = ledger.post(ids.iter().copied().map(request), |name| {
            names.extend(ids.iter().map(|_| name()));
            if taken == ids.len() {
                return Ok(());
            }
            Err((taken, io::ErrorKind::OutOfMemory.into()))
        });
        names
    }

    #[test]
    fn a_signalled_send_completes_those_before_it() {
        let ledger = SendLedger::new(8);
        let names = post(&ledger, &[10, 11, 12, 13], 4);
        let all = Ledger::Send(ledger.clone());
        let (number, place) = parts(names[2]);
        assert_eq!(number, all.number());
        let retired = all.retire(place).unwrap();
        assert_eq!((retired.id, retired.requests), (12, 3));
        assert_eq!(ledger.outstanding(), 1);
        assert_eq!(all.retire(place), None, "a completion comes once");
        let retired = all.retire(parts(names[3]).1).unwrap();
        assert_eq!((retired.id, retired.requests), (13, 1));
    }

    #[test]
    fn what_the_driver_refused_is_not_outstanding() {
        let ledger = SendLedger::new(8);
        let first = post(&ledger, &[1, 2, 3], 1);
        assert_eq!(ledger.outstanding(), 1);
        let second = post(&ledger, &[4], 1);
        assert_eq!(second[0], first[1], "its place is used again");
        let retired = ledger.retire(parts(second[0]).1).unwrap();
        assert_eq!((retired.id, retired.requests), (4, 2));
    }

    #[test]
    fn a_full_queue_takes_nothing() {
        let ledger = SendLedger::new(2);
        post(&ledger, &[1, 2], 2);
        let error = ledger.reserve(1).unwrap_err();
        assert!(
            matches!(
                error,
                RdmaError::QueueFull {
                    outstanding: 2,
                    limit: 2,
                    ..
                }
            ),
            "{error}"
        );
        let receives = ReceiveLedger::new(1);
        receives.post(request(1), |_| Ok(())).unwrap();
        assert!(receives.post(request(2), |_| Ok(())).is_err());
    }

    #[test]
    fn places_of_a_long_lived_queue_wrap() {
        let ledger = SendLedger::new(4);
        ledger.lock().next = u32::MAX - 1;
        let names = post(&ledger, &[1, 2, 3, 4], 4);
        assert_eq!(parts(names[3]).1, 1);
        let retired = ledger.retire(parts(names[2]).1).unwrap();
        assert_eq!((retired.id, retired.requests), (3, 3));
    }

    #[test]
    fn receives_complete_in_any_order() {
        let ledger = ReceiveLedger::new(3);
        let mut names = vec![];
        for id in 1..=3 {
            let entered = ledger.post(request(id), |name| {
                names.push(name);
                Ok(())
            });
            entered.unwrap();
        }
        assert_eq!(ledger.retire(parts(names[1]).1).unwrap().id, 2);
        assert_eq!(ledger.retire(parts(names[1]).1), None);
        assert_eq!(ledger.outstanding(), 2);
        let refused = ledger.post(request(4), |_| Err(io::ErrorKind::OutOfMemory.into()));
        assert!(refused.is_err());
        assert_eq!(ledger.outstanding(), 2);
        assert_eq!(ledger.retire(parts(names[2]).1).unwrap().id, 3);
    }

    #[test]
    fn ledgers_have_numbers_of_their_own() {
        let (one, other) = (SendLedger::new(1), ReceiveLedger::new(1));
        assert_ne!(one.number, other.number);
    }
}
