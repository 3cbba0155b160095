//! Places in a ring, as both ends count them: a record lies in one piece, and what is left at the end is passed over.

use dwcp_wire::rdma::{CREDIT_BYTES, CREDIT_RECORDS, RECORDS_MAX, RING_BYTES};

/// Where a record of `bytes` lies when `total` bytes were given out before it, and the total behind it.
pub(super) const fn place(total: u64, bytes: u32) -> (usize, u64) {
    let at = total % RING_BYTES as u64;
    if at + bytes as u64 <= RING_BYTES as u64 {
        return (at as usize, total + bytes as u64);
    }
    (0, total + (RING_BYTES as u64 - at) + bytes as u64)
}

/// What a source may still send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SendRoom {
    sent_bytes: u64,
    sent_records: u64,
    free_bytes: u64,
    free_records: u64,
}

impl SendRoom {
    /// Whether a message may be sent.
    pub(super) const fn takes_message(&self) -> bool {
        self.sent_records - self.free_records < RECORDS_MAX as u64
    }

    /// Where a record may go, if it may.
    pub(super) const fn record(&self, bytes: u32) -> Option<usize> {
        let (at, end) = place(self.sent_bytes, bytes);
        if self.takes_message() && end - self.free_bytes <= RING_BYTES as u64 {
            Some(at)
        } else {
            None
        }
    }

    pub(super) const fn message_sent(&mut self) {
        self.sent_records += 1;
    }

    pub(super) const fn record_sent(&mut self, bytes: u32) {
        self.sent_bytes = place(self.sent_bytes, bytes).1;
        self.sent_records += 1;
    }

    /// Takes what the other end says that it has consumed; false when that cannot be.
    #[must_use]
    pub(super) const fn credit(&mut self, bytes: u64, records: u64) -> bool {
        let is_possible = bytes >= self.free_bytes
            && bytes <= self.sent_bytes
            && records >= self.free_records
            && records <= self.sent_records;
        if is_possible {
            self.free_bytes = bytes;
            self.free_records = records;
        }
        is_possible
    }
}

/// What a destination has got and consumed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Consumed {
    came_bytes: u64,
    bytes: u64,
    records: u64,
    told_bytes: u64,
    told_records: u64,
}

impl Consumed {
    /// A record has come: where it lies, and the total behind it. `None` when the ring had no room for it.
    pub(super) const fn record_came(&mut self, bytes: u32) -> Option<(usize, u64)> {
        let (at, end) = place(self.came_bytes, bytes);
        if end - self.bytes > RING_BYTES as u64 {
            return None;
        }
        self.came_bytes = end;
        Some((at, end))
    }

    /// The record behind which the total is `end` was read.
    pub(super) const fn record_read(&mut self, end: u64) {
        self.bytes = end;
        self.records += 1;
    }

    pub(super) const fn message_read(&mut self) {
        self.records += 1;
    }

    /// What to tell the source, if it is enough to be worth it.
    pub(super) const fn credit(&mut self) -> Option<(u64, u64)> {
        let is_much = self.bytes - self.told_bytes >= CREDIT_BYTES as u64
            || self.records - self.told_records >= CREDIT_RECORDS as u64;
        if !is_much {
            return None;
        }
        self.told_bytes = self.bytes;
        self.told_records = self.records;
        Some((self.bytes, self.records))
    }
}

#[cfg(test)]
mod tests {
    use dwcp_wire::limits::FRAME_BYTES_MAX;

    use super::*;

    const LARGEST: u32 = FRAME_BYTES_MAX as u32;

    #[test]
    fn both_ends_find_every_record_in_the_same_place_and_none_waits_for_ever() {
        let (mut room, mut consumed) = (SendRoom::default(), Consumed::default());
        let mut under_way = std::collections::VecDeque::new();
        let mut number = 1u32;
        for _ in 0..20_000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = match number >> 30 {
                0 => 64,
                1 => LARGEST,
                _ => 1 + (number >> 8) % LARGEST,
            };
            while room.record(bytes).is_none() {
                // All that is under way is read: then there is room.
                let end = under_way
                    .pop_front()
                    .expect("nothing is under way, and no room");
                consumed.record_read(end);
                if let Some((bytes, records)) = consumed.credit() {
                    assert!(room.credit(bytes, records));
                }
            }
            let at = room.record(bytes).unwrap();
            room.record_sent(bytes);
            let (found, end) = consumed.record_came(bytes).unwrap();
            assert_eq!(at, found);
            assert!(at + bytes as usize <= RING_BYTES as usize);
            under_way.push_back(end);
        }
    }

    #[test]
    fn a_source_that_sends_more_than_there_is_room_for_is_noticed() {
        let mut consumed = Consumed::default();
        assert!(consumed.record_came(LARGEST).is_some());
        assert!(consumed.record_came(LARGEST).is_some());
        assert_eq!(consumed.record_came(LARGEST), None);
    }

    #[test]
    fn credit_for_what_was_not_sent_is_refused() {
        let mut room = SendRoom::default();
        room.record_sent(1000);
        assert!(!room.credit(1001, 1) && !room.credit(1000, 2));
        assert!(room.credit(1000, 1));
        assert!(!room.credit(999, 1) && !room.credit(1000, 0));
    }

    #[test]
    fn messages_and_records_share_what_the_other_end_has_posted() {
        let mut room = SendRoom::default();
        for _ in 0..RECORDS_MAX - 1 {
            room.message_sent();
        }
        assert!(room.record(64).is_some());
        room.record_sent(64);
        assert!(room.record(64).is_none() && !room.takes_message());
        assert!(room.credit(0, 16));
        assert!(room.takes_message());
    }
}
