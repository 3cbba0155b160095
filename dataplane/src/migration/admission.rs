//! Few migrations at a time: each then has the cores and the link, and ends early, where a hundred at
//! once would take turns on them and all end late. The others wait by their priority, and in the order
//! they came; their guests run meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use dwcp_api::TransferSettings;

use super::node::lock;
use super::placement::worker_count;

/// What a migration is called back by when its turn comes.
type Call = Box<dyn FnOnce() + Send>;

/// Who is under way from this node, and who waits.
#[derive(Debug, Default)]
pub(super) struct Admission {
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    under_way: usize,
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
}

struct Waiting {
    ticket: u64,
    priority: u8,
    at_once: usize,
    call: Call,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line")
            .field("under_way", &self.under_way)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

/// A place in the line, and then under way; given up when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    admission: Arc<Admission>,
    ticket: u64,
}

impl Admission {
    /// Takes a place in the line, behind all of no lower priority. `call` is called, perhaps at once, when less than
    /// `at_once` migrations are under way and nobody waits before.
    pub(super) fn queue(
        self: &Arc<Self>,
        at_once: usize,
        priority: u8,
        call: impl FnOnce() + Send + 'static,
    ) -> Turn {
        let mut line = lock(&self.line);
        line.next_ticket += 1;
        let ticket = line.next_ticket;
        let place = line.waiting.partition_point(|w| w.priority >= priority);
        let waiting = Waiting {
            ticket,
            priority,
            at_once: at_once.max(1),
            call: Box::new(call),
        };
        line.waiting.insert(place, waiting);
        line.advance();
        Turn {
            admission: Arc::clone(self),
            ticket,
        }
    }
}

impl Turn {
    /// Whether its turn has come.
    #[cfg(test)]
    fn is_under_way(&self) -> bool {
        let line = lock(&self.admission.line);
        line.waiting.iter().all(|w| w.ticket != self.ticket)
    }
}

impl Line {
    fn advance(&mut self) {
        while let Some(first) = self.waiting.front()
            && self.under_way < first.at_once
            && let Some(first) = self.waiting.pop_front()
        {
            self.under_way += 1;
            (first.call)();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = lock(&self.admission.line);
        let waited = line.waiting.iter().position(|w| w.ticket == self.ticket);
        match waited {
            Some(place) => drop(line.waiting.remove(place)),
            None => line.under_way -= 1,
        }
        line.advance();
    }
}

/// Migrations that leave this node at once: what was asked for, or as many as keep its cores busy
/// while one of them waits for the other node.
pub(super) fn at_once(settings: &TransferSettings) -> usize {
    if settings.at_once > 0 {
        return settings.at_once.into();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = worker_count(settings, settings.streams).min(cores);
    (cores / workers + 1).min(CHOSEN_MAX)
}

/// More would only share the link.
const CHOSEN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A place in the line, and where its call is heard.
    fn queue(admission: &Arc<Admission>, at_once: usize) -> (Turn, Receiver<()>) {
        let (call, called) = channel();
        let turn = admission.queue(at_once, 10, move || assert_eq!(call.send(()), Ok(())));
        (turn, called)
    }

    #[test]
    fn a_higher_priority_comes_first_and_equal_ones_in_order() {
        let (admission, (call, called)) = (Arc::default(), channel());
        let (first, _) = queue(&admission, 1);
        let mut turns: Vec<_> = [(1, 10), (2, 20), (3, 10), (4, 20), (5, 1)]
            .map(|(name, priority)| {
                let call = call.clone();
                admission.queue(1, priority, move || assert_eq!(call.send(name), Ok(())))
            })
            .into();
        drop(first);
        let mut order = vec![];
        while let Ok(name) = called.try_recv() {
            order.push(name);
            drop(turns.remove(turns.iter().position(|turn| turn.is_under_way()).unwrap()));
        }
        assert_eq!(order, [2, 4, 1, 3, 5]);
    }

    #[test]
    fn turns_come_in_order_and_as_many_at_once_as_each_allows() {
        let admission = Arc::default();
        let mut line: Vec<_> = (0..5).map(|_| queue(&admission, 2)).collect();
        let called = |line: &[(Turn, Receiver<()>)]| -> Vec<bool> {
            line.iter().map(|(_, c)| c.try_recv().is_ok()).collect()
        };
        assert_eq!(called(&line), [true, true, false, false, false]);
        // One that waits gives up: nobody is called for it.
        drop(line.remove(3));
        assert_eq!(called(&line), [false; 4]);
        drop(line.remove(0));
        assert_eq!(called(&line), [false, true, false]);
        let (_, alone) = queue(&admission, 1);
        drop(line);
        // It was dropped while it waited.
        assert!(alone.try_recv().is_err());
        let (_turn, again) = queue(&admission, 1);
        assert!(again.try_recv().is_ok(), "all places were given back");
    }

    #[test]
    fn who_wants_to_be_alone_is_not_overtaken_for_ever() {
        let admission = Arc::default();
        let (first, _) = queue(&admission, 4);
        let (alone, alone_called) = queue(&admission, 1);
        let (_later, later_called) = queue(&admission, 4);
        assert!(alone_called.try_recv().is_err() && later_called.try_recv().is_err());
        drop(first);
        assert!(alone_called.try_recv().is_ok());
        assert!(later_called.try_recv().is_ok(), "it allows four");
        drop(alone);
    }
}
