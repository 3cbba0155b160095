//! Fingerprint of a page: XXH3-128 with a seed, specialised to 4096 bytes.
//!
//! The value is bit-compatible with the public XXH3 specification (`XXH3_128bits_withSeed`); what is
//! ours is the shape: the length is a constant, so the stripe counts are too, and the secret that
//! depends on the seed is derived once per key instead of once per page.
//!
//! | constant | value | from |
//! |---|---|---|
//! | stripe | 64 bytes | the specification: eight 64-bit accumulators |
//! | block | 16 stripes = 1024 bytes | (192 - 64) secret bytes / 8 per stripe |
//! | full blocks before the last | 3 | (4096 - 1) / 1024 |
//! | stripes of the last block | 15, then the last stripe again with its own secret offset | 1023 / 64 |
//!
//! One read of a page answers all that is asked of it: its fingerprint is its identity (has it
//! changed?), its checksum (did the wire damage it?), and its zero test, since the fingerprint of the
//! zero page is known beforehand ([`FingerprintKey::is_zero`]).
//!
//! Not a cryptographic hash: it finds damage and change, it does not stop a forger. A migration
//! draws a fresh seed, so contents prepared in advance do not collide by design.

use std::fmt;

use crate::{Kernels, LivePage, PAGE_BYTES, Page};

/// Returns the fingerprint of a page under a key.
pub(crate) type FingerprintPage = unsafe fn(&FingerprintKey, LivePage<'_>) -> Fingerprint;

/// Bytes of the secret.
pub(crate) const SECRET_BYTES: usize = 192;
/// Bytes of a stripe: what the accumulators take in at once.
pub(crate) const STRIPE_BYTES: usize = 64;
/// Stripes of a block; after each full block the accumulators are scrambled.
pub(crate) const STRIPES_PER_BLOCK: usize = (SECRET_BYTES - STRIPE_BYTES) / 8;
/// Secret offset of the scramble.
pub(crate) const SCRAMBLE_OFFSET: usize = SECRET_BYTES - STRIPE_BYTES;
/// Secret offset of the last stripe.
pub(crate) const LAST_STRIPE_OFFSET: usize = SECRET_BYTES - STRIPE_BYTES - 7;

pub(crate) const PRIME32_1: u64 = 0x9E37_79B1;
const PRIME32_2: u64 = 0x85EB_CA77;
const PRIME32_3: u64 = 0xC2B2_AE3D;
const PRIME64_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME64_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME64_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME64_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME64_5: u64 = 0x27D4_EB2F_1656_67C5;

/// What the eight accumulators start from.
pub(crate) const ACCUMULATORS: [u64; 8] = [
    PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1,
];

/// The specification's default secret.
const DEFAULT_SECRET: [u8; SECRET_BYTES] = *b"\
    \xb8\xfe\x6c\x39\x23\xa4\x4b\xbe\x7c\x01\x81\x2c\xf7\x21\xad\x1c\
    \xde\xd4\x6d\xe9\x83\x90\x97\xdb\x72\x40\xa4\xa4\xb7\xb3\x67\x1f\
    \xcb\x79\xe6\x4e\xcc\xc0\xe5\x78\x82\x5a\xd0\x7d\xcc\xff\x72\x21\
    \xb8\x08\x46\x74\xf7\x43\x24\x8e\xe0\x35\x90\xe6\x81\x3a\x26\x4c\
    \x3c\x28\x52\xbb\x91\xc3\x00\xcb\x88\xd0\x65\x8b\x1b\x53\x2e\xa3\
    \x71\x64\x48\x97\xa2\x0d\xf9\x4e\x38\x19\xef\x46\xa9\xde\xac\xd8\
    \xa8\xfa\x76\x3f\xe3\x9c\x34\x3f\xf9\xdc\xbb\xc7\xc7\x0b\x4f\x1d\
    \x8a\x51\xe0\x4b\xcd\xb4\x59\x31\xc8\x9f\x7e\xc9\xd9\x78\x73\x64\
    \xea\xc5\xac\x83\x34\xd3\xeb\xc3\xc5\x81\xa0\xff\xfa\x13\x63\xeb\
    \x17\x0d\xdd\x51\xb7\xf0\xda\x49\xd3\x16\x55\x26\x29\xd4\x68\x9e\
    \x2b\x16\xbe\x58\x7d\x47\xa1\xfc\x8f\xf8\xb8\xd1\x7a\xd0\x31\xce\
    \x45\xcb\x3a\x8f\x95\x16\x04\x28\xaf\xd7\xfb\xca\xbb\x4b\x40\x7e";

/// XXH3-128 of a page. `lo` and `hi` are the halves of the specification's `XXH128_hash_t`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct Fingerprint {
    /// The low 64 bits.
    pub lo: u64,
    /// The high 64 bits.
    pub hi: u64,
}

impl Fingerprint {
    /// Returns both halves as one number, `hi` above `lo`.
    #[inline]
    pub const fn as_u128(self) -> u128 {
        (self.hi as u128) << 64 | self.lo as u128
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.as_u128())
    }
}

/// A seed, expanded to the secret that the fingerprint of a page needs.
///
/// Both ends of a migration must build it from the same seed.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FingerprintKey {
    secret: [u8; SECRET_BYTES],
    seed: u64,
    zero: Fingerprint,
}

impl FingerprintKey {
    /// Derives the secret of `seed`: each 16 bytes of the default secret, `+ seed` on the low
    /// half, `- seed` on the high half.
    pub fn new(seed: u64) -> Self {
        let mut secret = DEFAULT_SECRET;
        let (words, _) = secret.as_chunks_mut::<8>();
        for (position, word) in words.iter_mut().enumerate() {
            let plain = u64::from_le_bytes(*word);
            let shifted = if position % 2 == 0 {
                plain.wrapping_add(seed)
            } else {
                plain.wrapping_sub(seed)
            };
            *word = shifted.to_le_bytes();
        }
        let mut key = Self {
            secret,
            seed,
            zero: Fingerprint::default(),
        };
        key.zero = crate::kernels().fingerprint(&key, &[0; PAGE_BYTES]);
        key
    }

    /// Returns whether `fingerprint` is that of a page of zeros.
    ///
    /// A page that is not zero has it with a chance of 2^-128, as two pages have the same.
    #[inline]
    pub fn is_zero(&self, fingerprint: Fingerprint) -> bool {
        fingerprint == self.zero
    }

    /// Returns the seed this key was built from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns 64 bytes of secret from `offset` on.
    ///
    /// # Panics
    /// When fewer than 64 bytes follow; every caller passes a constant.
    #[inline(always)]
    pub(crate) fn stripe(&self, offset: usize) -> &[u8; STRIPE_BYTES] {
        self.secret[offset..]
            .first_chunk()
            .expect("secret offset is one of the constants")
    }
}

/// Redacted: the secret follows from the seed.
impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintKey")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Kernels {
    /// Returns XXH3-128 of `page` with the key's seed.
    #[inline]
    pub fn fingerprint(&self, key: &FingerprintKey, page: &Page) -> Fingerprint {
        self.fingerprint_live(key, LivePage::of(page))
    }

    /// Returns XXH3-128 of what `page` holds, with the key's seed. Each byte is read once. If others
    /// write the page meanwhile, the answer is that of some mix of old and new bytes.
    #[inline]
    pub fn fingerprint_live(&self, key: &FingerprintKey, page: LivePage<'_>) -> Fingerprint {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.fingerprint)(key, page) }
    }
}

/// Folds the accumulators of a whole page to its fingerprint.
#[inline(always)]
pub(crate) fn merge(accumulators: &[u64; 8], key: &FingerprintKey) -> Fingerprint {
    const LOW_START: u64 = (PAGE_BYTES as u64).wrapping_mul(PRIME64_1);
    const HIGH_START: u64 = !(PAGE_BYTES as u64).wrapping_mul(PRIME64_2);
    Fingerprint {
        lo: merge_half(accumulators, key.stripe(11), LOW_START),
        hi: merge_half(
            accumulators,
            key.stripe(SECRET_BYTES - STRIPE_BYTES - 11),
            HIGH_START,
        ),
    }
}

/// Folds the accumulators to one half: four 128-bit products, then the avalanche.
#[inline(always)]
fn merge_half(accumulators: &[u64; 8], secret: &[u8; STRIPE_BYTES], start: u64) -> u64 {
    let (words, _) = secret.as_chunks::<8>();
    let mut result = start;
    for pair in 0..4 {
        let left = accumulators[2 * pair] ^ u64::from_le_bytes(words[2 * pair]);
        let right = accumulators[2 * pair + 1] ^ u64::from_le_bytes(words[2 * pair + 1]);
        let product = u128::from(left) * u128::from(right);
        result = result.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    result ^= result >> 37;
    result = result.wrapping_mul(0x1656_6791_9E37_79F9);
    result ^ (result >> 32)
}
