//! Runs the corpus through every available instruction set, against the oracles.

use super::corpus::{Rng, lengths, page_from_words, pages, positions};
use super::naive;
use crate::{Fingerprint, FingerprintKey, Kernels, LivePage, PAGE_BYTES, RamRoot, page_hash};

const SEEDS: [u64; 4] = [0, 1, 0x5EED_0042, u64::MAX];

#[test]
fn zero_test_agrees_with_the_oracle() {
    for kernels in Kernels::all_available() {
        for (name, page) in pages() {
            assert_eq!(
                kernels.is_zero(&page),
                naive::is_zero(&page),
                "{} {name}",
                kernels.name()
            );
        }
    }
}

#[test]
fn fingerprint_is_xxh3_128_with_seed() {
    for kernels in Kernels::all_available() {
        for seed in SEEDS {
            let key = FingerprintKey::new(seed);
            for (name, page) in pages() {
                let expected = naive::fingerprint(seed, &page);
                let found = kernels.fingerprint(&key, &page);
                assert_eq!(found, expected, "{} seed {seed} {name}", kernels.name());
            }
        }
    }
}

#[test]
fn only_the_zero_page_has_the_fingerprint_of_zeros() {
    for kernels in Kernels::all_available() {
        for seed in SEEDS {
            let key = FingerprintKey::new(seed);
            for (name, page) in pages() {
                let found = kernels.fingerprint_live(&key, LivePage::of(&page));
                let expected = naive::is_zero(&page);
                assert_eq!(
                    key.is_zero(found),
                    expected,
                    "{} seed {seed} {name}",
                    kernels.name()
                );
            }
        }
    }
}

#[test]
fn one_set_byte_is_not_zero_at_every_position() {
    let key = FingerprintKey::new(1);
    for kernels in Kernels::all_available() {
        for position in 0..PAGE_BYTES {
            let mut page = [0; PAGE_BYTES];
            page[position] = 0x80;
            let found = kernels.fingerprint(&key, &page);
            assert!(!key.is_zero(found), "{} {position}", kernels.name());
        }
    }
}

#[test]
fn delta_and_comparison_agree_with_the_oracle() {
    let mut rng = Rng::new(0x5EED_0002);
    let base = rng.page();
    for kernels in Kernels::all_available() {
        for (name, page) in pages() {
            let other = naive::xor(&base, &page);
            for (a, b) in [(&base, &other), (&page, &base), (&page, &page)] {
                let expected = naive::differing_bytes(a, b);
                let mut out = [0xA5; PAGE_BYTES];
                assert_eq!(
                    kernels.xor(a, b, &mut out),
                    expected,
                    "{} {name}",
                    kernels.name()
                );
                assert_eq!(out, naive::xor(a, b), "{} {name}", kernels.name());
                assert_eq!(
                    kernels.differing_bytes(a, b),
                    expected,
                    "{} {name}",
                    kernels.name()
                );
                assert_eq!(
                    kernels.equal(a, b),
                    expected == 0,
                    "{} {name}",
                    kernels.name()
                );
            }
        }
    }
}

#[test]
fn one_changed_byte_is_seen_at_every_position() {
    let base = Rng::new(0x5EED_0003).page();
    for kernels in Kernels::all_available() {
        for position in positions() {
            let mut changed = base;
            changed[position] ^= 0x80;
            assert!(
                !kernels.equal(&base, &changed),
                "{} {position}",
                kernels.name()
            );
            assert_eq!(
                kernels.differing_bytes(&base, &changed),
                1,
                "{}",
                kernels.name()
            );
        }
    }
}

#[test]
fn shuffle_agrees_with_the_oracle() {
    for kernels in Kernels::all_available() {
        for (name, page) in pages() {
            let mut out = [0xA5; PAGE_BYTES];
            kernels.shuffle(&page, &mut out);
            assert_eq!(out, naive::shuffle(&page), "{} {name}", kernels.name());
            let mut out = [0xA5; PAGE_BYTES];
            kernels.unshuffle(&page, &mut out);
            assert_eq!(out, naive::unshuffle(&page), "{} {name}", kernels.name());
        }
    }
}

#[test]
fn shuffle_gain_agrees_with_the_oracle() {
    for kernels in Kernels::all_available() {
        for (name, page) in pages() {
            assert_eq!(
                kernels.shuffle_gain(&page),
                naive::shuffle_gain(&page),
                "{} {name}",
                kernels.name()
            );
        }
    }
}

/// Words `0x00010000 + i`, bytes `[i & 255, i >> 8, 1, 0]`, all of them new. `i` is in `16..1024`.
///
/// Equal to the byte above: byte 0 never; byte 1 except at the three `i` that are multiples of 256,
/// 1005 times; bytes 2 and 3 always, 1008 times each. That is 3021.
///
/// Equal to the byte before: byte 0 is 0 at those three; byte 1 equals byte 0 at 257, 514 and 771;
/// byte 2 equals byte 1 where `i >> 8` is 1, 256 times; byte 3 never. That is 262.
#[test]
fn shuffle_gain_of_a_counter_is_known() {
    let page = page_from_words(|i| 0x0001_0000 + i);
    for kernels in Kernels::all_available() {
        assert_eq!(
            kernels.shuffle_gain(&page),
            3021 - 262,
            "{}",
            kernels.name()
        );
    }
}

/// Words `0x40000000 + i % period`, bytes `[i % period, 0, 0, 0x40]`. A period that is a distance
/// looked at leaves no new word. Any other leaves only new words: three bytes of each equal those
/// above, at most two the byte before.
#[test]
fn shuffle_gain_sees_no_new_word_at_the_distances_it_looks_at() {
    for period in 1..=64 {
        let page = page_from_words(|i| 0x4000_0000 + i % period);
        let is_found = [1, 2, 3, 4, 8, 16].contains(&period);
        for kernels in Kernels::all_available() {
            let gain = kernels.shuffle_gain(&page);
            let least = if is_found { 0 } else { 1008 };
            assert!(gain >= least, "{} {period} {gain}", kernels.name());
            assert_eq!(gain == 0, is_found, "{} {period}", kernels.name());
        }
    }
}

#[test]
fn shuffle_gain_of_text_is_little() {
    let text = "Every page of the guest goes through here, and most of them only once. ";
    let bytes: Vec<u8> = text.bytes().cycle().take(PAGE_BYTES).collect();
    let page = bytes.try_into().expect("asked for a page");
    for kernels in Kernels::all_available() {
        let gain = kernels.shuffle_gain(&page);
        assert!(gain.abs() < 300, "{} {gain}", kernels.name());
    }
}

#[test]
fn checksum_agrees_with_the_oracle_at_every_length_and_alignment() {
    let bytes = Rng::new(0x5EED_0004).bytes(262_144 + 64);
    for kernels in Kernels::all_available() {
        for length in lengths() {
            let offset = length * 7 % 61;
            let piece = &bytes[offset..][..length];
            let start = (length as u32).wrapping_mul(0x9E37_79B1);
            let found = kernels.crc32c(start, piece);
            assert_eq!(
                found,
                naive::crc32c(start, piece),
                "{} {length}",
                kernels.name()
            );
        }
    }
}

#[test]
fn checksum_has_the_catalogued_check_values() {
    for kernels in Kernels::all_available() {
        assert_eq!(
            kernels.crc32c(0, b"123456789"),
            0xE306_9283,
            "{}",
            kernels.name()
        );
        assert_eq!(
            kernels.crc32c(0, &[0; 32]),
            0x8A91_36AA,
            "{}",
            kernels.name()
        );
        assert_eq!(
            kernels.crc32c(0, &[0xFF; 32]),
            0x62A8_AB43,
            "{}",
            kernels.name()
        );
        assert_eq!(
            kernels.crc32c(0xDEAD_BEEF, &[]),
            0xDEAD_BEEF,
            "{}",
            kernels.name()
        );
    }
}

/// Golden: these bytes are on the wire. A change here is a change of the protocol version.
#[test]
fn page_hash_keeps_its_golden_values() {
    let fp = Fingerprint {
        lo: 0x0123_4567_89AB_CDEF,
        hi: 0xFEDC_BA98_7654_3210,
    };
    assert_eq!(page_hash(0, Fingerprint::default()), 0);
    assert_eq!(page_hash(0, fp), 0x31371937_0BD81951_B2C058E4_EBB5112C);
    assert_eq!(page_hash(1, fp), 0x2DC7C12C_81D71AFF_8E398032_3F3DCE39);
    assert_eq!(
        page_hash(u64::MAX, fp),
        0xE2412A8B_39E2CD97_86CCE50F_6507F95C
    );
    assert_eq!(
        page_hash(1, Fingerprint::default()),
        0x48218226_FF3CD4BF_E220A839_7B1DCDAF
    );
}

#[test]
fn root_does_not_depend_on_order_and_replaces_exactly() {
    let fp = |value: u64| Fingerprint {
        lo: value,
        hi: value.rotate_left(17),
    };
    let mut forward = RamRoot::default();
    let mut parts = [RamRoot::default(); 2];
    for index in 0..100 {
        forward.add(index, fp(index * 3));
        parts[index as usize % 2].add(99 - index, fp((99 - index) * 3));
    }
    let mut merged = parts[1];
    merged.merge(parts[0]);
    assert_eq!(merged, forward);

    let mut changed = forward;
    changed.replace(7, fp(21), fp(22));
    assert_ne!(changed, forward);
    changed.replace(7, fp(22), fp(21));
    assert_eq!(changed, forward);

    let mut swapped = RamRoot::default();
    swapped.add(0, fp(3));
    swapped.add(1, fp(0));
    let mut straight = RamRoot::default();
    straight.add(0, fp(0));
    straight.add(1, fp(3));
    assert_ne!(swapped, straight, "the index is part of the term");
}

#[test]
fn values_print_as_32_hex_digits() {
    let fp = Fingerprint { lo: 0xAB, hi: 1 };
    assert_eq!(fp.to_string(), "000000000000000100000000000000ab");
    assert_eq!(fp.as_u128(), 1 << 64 | 0xAB);
    assert_eq!(RamRoot(0xF0).to_string(), format!("{:032x}", 0xF0));
}
