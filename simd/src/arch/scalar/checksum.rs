//! CRC-32C by eight tables: eight bytes per step, one look-up per byte.

use crate::checksum::POLYNOMIAL_REFLECTED;

/// `TABLES[n][b]` is the contribution of byte `b` that is followed by `n` more bytes. 8 KiB.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ POLYNOMIAL_REFLECTED
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut depth = 1;
    while depth < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[depth - 1][byte];
            tables[depth][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        depth += 1;
    }
    tables
}

/// Continues a CRC-32C over `bytes`.
pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = u64::from(!crc);
    for word in words {
        let folded = (u64::from_le_bytes(*word) ^ state).to_le_bytes();
        let mut next = 0;
        for (position, byte) in folded.into_iter().enumerate() {
            next ^= TABLES[7 - position][usize::from(byte)];
        }
        state = u64::from(next);
    }
    let mut state = state as u32;
    for byte in rest {
        state = state >> 8 ^ TABLES[0][usize::from(state as u8 ^ byte)];
    }
    !state
}
