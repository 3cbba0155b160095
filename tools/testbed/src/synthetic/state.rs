//! The device state of a synthetic guest: all that is not RAM, and its form on the wire.
//!
//! | bytes | what                                                                        |
//! |------:|-----------------------------------------------------------------------------|
//! |     8 | `DWCPGST1`                                                                  |
//! |  13×8 | the fields of [`DeviceState`] in order, little-endian; kind is 0, 1 or 2    |
//! |     8 | number of pages                                                             |
//! |     … | the generation of each page, LEB128                                         |
//! |     8 | FNV-1a over everything before                                               |

use dwcp_guest_page::{GuestOptions, Kind};

const MAGIC: &[u8; 8] = b"DWCPGST1";
const FIELDS: usize = 13;
/// Bytes of a generation in LEB128, at most.
const GENERATION_BYTES_MAX: u64 = 5;

/// Everything that a guest must carry along besides RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceState {
    pub(crate) hot_pages: u64,
    pub(crate) rate: u64,
    pub(crate) verify_rate: u64,
    pub(crate) kind: Kind,
    /// Mixed into the identity of each page, so that two guests do not hold the same ones.
    pub(crate) salt: u64,
    pub(crate) random: u64,
    /// Next page of the checking pass.
    pub(crate) cursor: u64,
    pub(crate) writes: u64,
    pub(crate) verified: u64,
    pub(crate) bad: u64,
    pub(crate) passes: u64,
    pub(crate) max_gap_us: u64,
    /// Wall clock of the last turn of the loop; 0 before the first.
    pub(crate) last_beat_us: u64,
    pub(crate) generations: Vec<u32>,
}

impl DeviceState {
    /// The state of a guest that never ran, with RAM of zeros.
    pub(crate) fn new(options: &GuestOptions, seed: u64, pages: usize) -> Self {
        Self {
            hot_pages: (options.hot_mib << 8).min(pages as u64),
            rate: options.rate,
            verify_rate: options.verify_rate,
            kind: options.kind,
            salt: seed << 40,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            cursor: 0,
            writes: 0,
            verified: 0,
            bad: 0,
            passes: 0,
            max_gap_us: 0,
            last_beat_us: 0,
            generations: vec![0; pages],
        }
    }

    /// Most bytes that a state for `pages` pages can have.
    pub(crate) fn bytes_max(pages: usize) -> u64 {
        (MAGIC.len() + FIELDS * 8 + 16) as u64 + pages as u64 * GENERATION_BYTES_MAX
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.generations.len() + 256);
        out.extend_from_slice(MAGIC);
        for field in self.fields() {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&(self.generations.len() as u64).to_le_bytes());
        for &generation in &self.generations {
            let mut rest = generation;
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
        let sum = fnv(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a state for a guest of `pages` pages. Everything is checked; the error says what failed.
    pub(crate) fn decode(bytes: &[u8], pages: usize) -> Result<Self, &'static str> {
        let (body, sum) = bytes
            .split_last_chunk::<8>()
            .ok_or("device state too short")?;
        if fnv(body) != u64::from_le_bytes(*sum) {
            return Err("device state damaged");
        }
        let mut rest = body.strip_prefix(MAGIC).ok_or("not a device state")?;
        let mut fields = [0; FIELDS];
        for field in &mut fields {
            *field = take_u64(&mut rest)?;
        }
        if take_u64(&mut rest)? != pages as u64 {
            return Err("device state of a guest with another RAM size");
        }
        let mut generations = Vec::with_capacity(pages);
        for _ in 0..pages {
            generations.push(take_generation(&mut rest)?);
        }
        if !rest.is_empty() {
            return Err("bytes after the device state");
        }
        Self::from_fields(fields, generations)
    }

    fn fields(&self) -> [u64; FIELDS] {
        let kind = match self.kind {
            Kind::Random => 0,
            Kind::Text => 1,
            Kind::Sparse => 2,
        };
        [
            self.hot_pages,
            self.rate,
            self.verify_rate,
            kind,
            self.salt,
            self.random,
            self.cursor,
            self.writes,
            self.verified,
            self.bad,
            self.passes,
            self.max_gap_us,
            self.last_beat_us,
        ]
    }

    fn from_fields(fields: [u64; FIELDS], generations: Vec<u32>) -> Result<Self, &'static str> {
        let [
            hot_pages,
            rate,
            verify_rate,
            kind,
            salt,
            random,
            cursor,
            rest @ ..,
        ] = fields;
        let [writes, verified, bad, passes, max_gap_us, last_beat_us] = rest;
        let pages = generations.len() as u64;
        if hot_pages > pages || cursor >= pages || random == 0 {
            return Err("device state out of range");
        }
        let kind = match kind {
            0 => Kind::Random,
            1 => Kind::Text,
            2 => Kind::Sparse,
            _ => return Err("device state of an unknown kind"),
        };
        Ok(Self {
            hot_pages,
            rate,
            verify_rate,
            kind,
            salt,
            random,
            cursor,
            writes,
            verified,
            bad,
            passes,
            max_gap_us,
            last_beat_us,
            generations,
        })
    }
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let (head, tail) = rest
        .split_first_chunk::<8>()
        .ok_or("device state too short")?;
    *rest = tail;
    Ok(u64::from_le_bytes(*head))
}

fn take_generation(rest: &mut &[u8]) -> Result<u32, &'static str> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or("device state too short")?;
        *rest = tail;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| "generation out of range");
        }
    }
    Err("generation out of range")
}

/// FNV-1a of 64 bits: finds accidents, which is all that is asked of it here.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> DeviceState {
        let mut state = DeviceState::new(&GuestOptions::default(), 9, 300);
        state.generations[7] = u32::MAX;
        state.generations[8] = 128;
        state.writes = 77;
        state
    }

    #[test]
    fn a_state_survives_the_wire_within_its_bound() {
        let state = sample();
        let bytes = state.encode();
        assert!(bytes.len() as u64 <= DeviceState::bytes_max(300));
        assert_eq!(DeviceState::decode(&bytes, 300), Ok(state));
        assert!(DeviceState::decode(&bytes, 299).is_err());
    }

    #[test]
    fn fields_that_would_break_the_guest_are_refused() {
        for change in [
            |state: &mut DeviceState| state.cursor = 300,
            |state: &mut DeviceState| state.hot_pages = 301,
            |state: &mut DeviceState| state.random = 0,
        ] {
            let mut state = sample();
            change(&mut state);
            assert!(DeviceState::decode(&state.encode(), 300).is_err());
        }
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0_usize..400, bit in 0_u32..8, cut in 0_usize..400) {
            let good = sample().encode();
            let mut bytes = good.clone();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(DeviceState::decode(&bytes, 300).is_err());
            prop_assert!(DeviceState::decode(&good[..cut % good.len()], 300).is_err());
        }

        #[test]
        fn any_bytes_with_a_right_sum_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut framed = MAGIC.to_vec();
            framed.append(&mut bytes);
            let sum = fnv(&framed);
            framed.extend_from_slice(&sum.to_le_bytes());
            let _ = DeviceState::decode(&framed, 3);
        }
    }
}
