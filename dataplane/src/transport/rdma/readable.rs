//! Which pieces of the source's RAM the destination may read, as far as it was told.

use std::collections::HashMap;

use dwcp_rdma::RemoteAddress;
use dwcp_wire::rdma::{PieceId, QueueMessage, READS_WANTED_MAX};

/// Where the parts of a piece begin, in the source's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) pages: RemoteAddress,
    pub(super) fingerprints: RemoteAddress,
}

#[derive(Debug)]
enum Piece {
    /// An answer will come; its first part may be here.
    Asked(Option<RemoteAddress>),
    At(Places),
    /// Much of it has no memory, or the source has no room for it. That does not change.
    Refused,
}

/// What is known of a piece that somebody waits for a page of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    At(Places),
    /// Nothing, and the source may be asked.
    Ask,
    No,
}

/// Pieces, and how many answers are due.
#[derive(Debug, Default)]
pub(super) struct Readable {
    pieces: HashMap<PieceId, Piece>,
    unanswered: u32,
}

impl Readable {
    pub(super) fn look(&self, piece: PieceId) -> Look {
        match self.pieces.get(&piece) {
            Some(Piece::At(places)) => Look::At(*places),
            None if self.unanswered < READS_WANTED_MAX => Look::Ask,
            _ => Look::No,
        }
    }

    pub(super) fn asked(&mut self, piece: PieceId) {
        self.pieces.insert(piece, Piece::Asked(None));
        self.unanswered += 1;
    }

    /// What the source says; false when nobody asked for that.
    #[must_use]
    pub(super) fn told(&mut self, message: QueueMessage) -> bool {
        let (piece, at) = match message {
            QueueMessage::PieceFingerprints {
                piece,
                address,
                key,
            }
            | QueueMessage::PieceGranted {
                piece,
                address,
                key,
            } => (piece, RemoteAddress { address, rkey: key }),
            QueueMessage::PieceRefused(piece) => return self.answered(piece, Piece::Refused),
            _ => return false,
        };
        match (message, self.pieces.get_mut(&piece)) {
            (QueueMessage::PieceFingerprints { .. }, Some(Piece::Asked(fingerprints @ None))) => {
                *fingerprints = Some(at);
                true
            }
            (QueueMessage::PieceGranted { .. }, Some(Piece::Asked(Some(fingerprints)))) => {
                let places = Places {
                    pages: at,
                    fingerprints: *fingerprints,
                };
                self.answered(piece, Piece::At(places))
            }
            _ => false,
        }
    }

    fn answered(&mut self, piece: PieceId, answer: Piece) -> bool {
        match self.pieces.get_mut(&piece) {
            Some(asked @ Piece::Asked(_)) => {
                *asked = answer;
                self.unanswered -= 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn piece(piece: u32) -> PieceId {
        PieceId {
            ram_block: 1,
            piece,
        }
    }

    const fn fingerprints(number: u32) -> QueueMessage {
        QueueMessage::PieceFingerprints {
            piece: piece(number),
            address: 4096,
            key: 6,
        }
    }

    const fn granted(number: u32) -> QueueMessage {
        QueueMessage::PieceGranted {
            piece: piece(number),
            address: 1 << 40,
            key: 7,
        }
    }

    #[test]
    fn a_piece_is_read_when_both_parts_of_the_answer_have_come() {
        let mut pieces = Readable::default();
        assert_eq!(pieces.look(piece(3)), Look::Ask);
        pieces.asked(piece(3));
        assert_eq!(pieces.look(piece(3)), Look::No);
        assert!(pieces.told(fingerprints(3)));
        assert_eq!(pieces.look(piece(3)), Look::No);
        assert!(pieces.told(granted(3)));
        let at = |address, rkey| RemoteAddress { address, rkey };
        let places = Places {
            pages: at(1 << 40, 7),
            fingerprints: at(4096, 6),
        };
        assert_eq!(pieces.look(piece(3)), Look::At(places));
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let mut pieces = Readable::default();
        let refused = QueueMessage::PieceRefused(piece(3));
        for message in [fingerprints(3), granted(3), refused] {
            assert!(!pieces.told(message), "{message:?}");
        }
        pieces.asked(piece(3));
        // Without its fingerprints nothing could be proven.
        assert!(!pieces.told(granted(3)));
        assert!(!pieces.told(QueueMessage::PieceWanted(piece(3))));
        assert!(pieces.told(refused) && !pieces.told(refused));
        assert_eq!(pieces.look(piece(3)), Look::No);
    }

    #[test]
    fn no_more_answers_are_due_than_there_is_room_for() {
        let mut pieces = Readable::default();
        for number in 0..READS_WANTED_MAX {
            assert_eq!(pieces.look(piece(number)), Look::Ask);
            pieces.asked(piece(number));
        }
        assert_eq!(pieces.look(piece(99)), Look::No);
        assert!(pieces.told(QueueMessage::PieceRefused(piece(0))));
        assert_eq!(pieces.look(piece(99)), Look::Ask);
    }
}
