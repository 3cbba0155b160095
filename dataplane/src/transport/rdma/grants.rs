//! Keys to pieces of the other end's RAM that one stream has.

use std::collections::HashMap;

use dwcp_rdma::RemoteAddress;
use dwcp_wire::rdma::PieceId;

/// What is had of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Have {
    Nothing,
    /// An answer will come.
    Asked,
    /// Where it begins.
    Key(RemoteAddress),
    /// The other end cannot register it, for now.
    Refused,
}

/// Keys, and how long ago each was used.
#[derive(Debug, Default)]
pub(super) struct Grants {
    pieces: HashMap<PieceId, (Have, u64)>,
    /// Counts looks.
    clock: u64,
}

impl Grants {
    /// What is had of a piece that is to be used now.
    pub(super) fn look(&mut self, piece: PieceId) -> Have {
        self.clock += 1;
        let Some((have, used)) = self.pieces.get_mut(&piece) else {
            return Have::Nothing;
        };
        *used = self.clock;
        *have
    }

    /// It is asked for.
    pub(super) fn ask(&mut self, piece: PieceId) {
        self.pieces.insert(piece, (Have::Asked, self.clock));
    }

    /// The answer; false when nobody asked.
    #[must_use]
    pub(super) fn granted(&mut self, piece: PieceId, at: RemoteAddress) -> bool {
        self.answered(piece, Have::Key(at))
    }

    /// The other answer.
    #[must_use]
    pub(super) fn refused(&mut self, piece: PieceId) -> bool {
        self.answered(piece, Have::Refused)
    }

    fn answered(&mut self, piece: PieceId, answer: Have) -> bool {
        match self.pieces.get_mut(&piece) {
            Some((have, _)) if *have == Have::Asked => {
                *have = answer;
                true
            }
            _ => false,
        }
    }

    /// They may be asked for again.
    pub(super) fn forget_refusals(&mut self, pieces: &[PieceId]) {
        for piece in pieces {
            if let Some((Have::Refused, _)) = self.pieces.get(piece) {
                self.pieces.remove(piece);
            }
        }
    }

    /// Forgets all keys. What was asked for is answered with new ones.
    pub(super) fn forget(&mut self) {
        self.pieces.retain(|_, (have, _)| *have == Have::Asked);
    }

    /// Gives up the key that was used longest ago, if it is none of `needed`.
    pub(super) fn let_one_go(&mut self, needed: &[PieceId]) -> Option<PieceId> {
        let is_free =
            |piece: &PieceId, have: &Have| matches!(have, Have::Key(_)) && !needed.contains(piece);
        let pieces = self.pieces.iter();
        let (oldest, _) = pieces
            .filter(|(piece, (have, _))| is_free(piece, have))
            .min_by_key(|(_, (_, used))| *used)?;
        let oldest = *oldest;
        self.pieces.remove(&oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn piece(piece: u32) -> PieceId {
        PieceId {
            ram_block: 0,
            piece,
        }
    }

    const AT: RemoteAddress = RemoteAddress {
        address: 1 << 40,
        rkey: 7,
    };

    #[test]
    fn an_answer_that_nobody_asked_for_is_refused() {
        let mut grants = Grants::default();
        assert!(!grants.granted(piece(1), AT));
        grants.ask(piece(1));
        assert_eq!(grants.look(piece(1)), Have::Asked);
        assert!(grants.granted(piece(1), AT));
        assert_eq!(grants.look(piece(1)), Have::Key(AT));
        assert!(!grants.granted(piece(1), AT) && !grants.refused(piece(1)));
    }

    #[test]
    fn the_piece_used_longest_ago_goes_unless_it_is_needed() {
        let mut grants = Grants::default();
        for number in 1..=3 {
            grants.ask(piece(number));
            assert!(grants.granted(piece(number), AT));
        }
        for number in [2, 1, 3] {
            grants.look(piece(number));
        }
        grants.ask(piece(9));
        assert_eq!(grants.let_one_go(&[piece(2)]), Some(piece(1)));
        assert_eq!(grants.let_one_go(&[piece(2)]), Some(piece(3)));
        assert_eq!(grants.let_one_go(&[piece(2)]), None);
        assert_eq!(grants.look(piece(1)), Have::Nothing);
    }

    #[test]
    fn a_piece_that_was_refused_is_asked_for_again_later() {
        let mut grants = Grants::default();
        grants.ask(piece(1));
        assert!(grants.refused(piece(1)));
        assert_eq!(grants.look(piece(1)), Have::Refused);
        grants.forget_refusals(&[piece(1), piece(2)]);
        assert_eq!(grants.look(piece(1)), Have::Nothing);
    }
}
