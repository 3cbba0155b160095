//! Pages for tests.

use dwcp_simd::{PAGE_BYTES, Page};

/// A page of words whose high bytes hardly change, as arrays of pointers and offsets have them.
pub(super) fn words_page(seed: u32) -> Page {
    let mut page = [0; PAGE_BYTES];
    for (index, word) in (0u32..).zip(page.as_chunks_mut().0) {
        let low = index.wrapping_add(seed).wrapping_mul(0x9e37_79b1) >> 18;
        *word = (0x4567_0000 + (seed << 20) + low).to_le_bytes();
    }
    page
}

/// A page that cannot be compressed, another one for each seed.
pub(super) fn noise(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = [0; PAGE_BYTES];
    for chunk in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    page
}
