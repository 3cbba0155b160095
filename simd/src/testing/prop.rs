//! Properties over random pages and buffers.

use proptest::collection::vec;
use proptest::prelude::*;

use super::corpus::Rng;
use super::naive;
use crate::{FingerprintKey, Kernels, PAGE_BYTES, Page};

/// A page, and a copy of it changed at a few places.
fn page_pair() -> impl Strategy<Value = (Page, Page)> {
    let changes = vec((0..PAGE_BYTES, any::<u8>()), 0..300);
    (any::<u64>(), changes).prop_map(|(seed, changes)| {
        let page = Rng::new(seed).page();
        let mut changed = page;
        for (position, byte) in changes {
            changed[position] = byte;
        }
        (page, changed)
    })
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 1 } else { 256 };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn delta_applied_to_the_old_page_gives_the_new_one((old, new) in page_pair()) {
        for kernels in Kernels::all_available() {
            let mut delta = [0; PAGE_BYTES];
            let mut restored = [0; PAGE_BYTES];
            let count = kernels.xor(&old, &new, &mut delta);
            kernels.xor(&old, &delta, &mut restored);
            prop_assert_eq!(restored, new);
            prop_assert_eq!(count, naive::differing_bytes(&old, &new));
            prop_assert_eq!(count, kernels.differing_bytes(&old, &new));
            prop_assert_eq!(kernels.equal(&old, &new), count == 0);
        }
    }

    #[test]
    fn unshuffle_undoes_shuffle(seed: u64) {
        let page = Rng::new(seed).page();
        for kernels in Kernels::all_available() {
            let mut shuffled = [0xA5; PAGE_BYTES];
            let mut restored = [0xA5; PAGE_BYTES];
            kernels.shuffle(&page, &mut shuffled);
            prop_assert_eq!(shuffled, naive::shuffle(&page));
            kernels.unshuffle(&shuffled, &mut restored);
            prop_assert_eq!(restored, page);
            kernels.unshuffle(&page, &mut restored);
            prop_assert_eq!(restored, naive::unshuffle(&page));
        }
    }

    #[test]
    fn shuffle_gain_agrees_with_the_oracle_where_words_repeat(
        seed: u64, distinct in 1usize..200, mask: u32,
    ) {
        let page = Rng::new(seed).page_of_words(distinct, mask);
        let expected = naive::shuffle_gain(&page);
        for kernels in Kernels::all_available() {
            prop_assert_eq!(kernels.shuffle_gain(&page), expected);
        }
    }

    #[test]
    fn fingerprints_are_equal_exactly_when_pages_are((old, new) in page_pair(), seed: u64) {
        let key = FingerprintKey::new(seed);
        for kernels in Kernels::all_available() {
            let (before, after) = (kernels.fingerprint(&key, &old), kernels.fingerprint(&key, &new));
            prop_assert_eq!(before, naive::fingerprint(seed, &old));
            prop_assert_eq!(before == after, old == new);
        }
    }

    #[test]
    fn checksum_of_pieces_is_the_checksum_of_the_whole(
        bytes in vec(any::<u8>(), 0..6000), cut in any::<prop::sample::Index>(), start: u32,
    ) {
        let cut = cut.index(bytes.len() + 1);
        let whole = naive::crc32c(start, &bytes);
        for kernels in Kernels::all_available() {
            let (front, back) = bytes.split_at(cut);
            prop_assert_eq!(kernels.crc32c(start, &bytes), whole);
            prop_assert_eq!(kernels.crc32c(kernels.crc32c(start, front), back), whole);
        }
    }
}
