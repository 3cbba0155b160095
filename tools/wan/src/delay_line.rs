//! Packets on their way, by time of arrival.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

type Frame = Box<[u8]>;

/// Two queues: packets that were held back need sorting, all others come in order.
#[derive(Debug)]
pub(crate) struct DelayLine {
    in_order: VecDeque<(u64, Frame)>,
    late: BinaryHeap<Reverse<(u64, u64, Frame)>>,
    late_count: u64,
    bytes: usize,
    bytes_max: usize,
}

impl DelayLine {
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self {
            in_order: VecDeque::new(),
            late: BinaryHeap::new(),
            late_count: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes a packet, unless it holds too much already.
    pub(crate) fn push(&mut self, at_ns: u64, is_late: bool, frame: Frame) -> bool {
        if self.bytes + frame.len() > self.bytes_max {
            return false;
        }
        self.bytes += frame.len();
        if is_late {
            // Those of the same time leave as they came.
            self.late_count += 1;
            self.late.push(Reverse((at_ns, self.late_count, frame)));
        } else {
            debug_assert!(self.in_order.back().is_none_or(|(last, _)| *last <= at_ns));
            self.in_order.push_back((at_ns, frame));
        }
        true
    }

    /// When the next one arrives.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let in_order = self.in_order.front().map(|(at_ns, _)| *at_ns);
        let late = self.late.peek().map(|Reverse((at_ns, ..))| *at_ns);
        in_order.into_iter().chain(late).min()
    }

    /// The next one, if its time has come.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<Frame> {
        let next_ns = self.next_ns().filter(|next_ns| *next_ns <= now_ns)?;
        let is_in_order = self
            .in_order
            .front()
            .is_some_and(|(at_ns, _)| *at_ns == next_ns);
        let frame = if is_in_order {
            self.in_order.pop_front().map(|(_, frame)| frame)
        } else {
            self.late.pop().map(|Reverse((.., frame))| frame)
        };
        self.bytes -= frame.as_ref().map_or(0, |frame| frame.len());
        frame
    }

    pub(crate) fn len(&self) -> usize {
        self.in_order.len() + self.late.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_by_time_and_not_before() {
        let mut line = DelayLine::new(100);
        let frame = |n: u8| Box::from([n]);
        assert!(line.push(10, false, frame(1)));
        assert!(line.push(25, true, frame(2)));
        assert!(line.push(20, false, frame(3)));
        assert!(line.push(30, false, frame(4)));
        assert!(!line.push(31, false, Box::from([0; 97])), "too much");
        assert_eq!(line.pop_due(9), None);
        let order: Vec<_> = std::iter::from_fn(|| line.pop_due(30))
            .map(|f| f[0])
            .collect();
        assert_eq!(order, [1, 3, 2, 4]);
        assert_eq!((line.len(), line.bytes()), (0, 0));
    }
}
