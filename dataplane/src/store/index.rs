//! Where the pages of a file are, by their hashes.
//!
//! ```text
//! NUMBER.index = magic 8 | bits u32 | pages u64 | 2^bits + 1 places u32 | pages × (hash u64, page u32)
//! ```
//! All little-endian. The entries are sorted by hash; the `n`th place says how many entries have a hash whose
//! upper `bits` bits are below `n`. So a page is found with one read of about 64 entries, and little of an
//! index need be in memory. Nothing in it is believed: whoever reads a page hashes it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: [u8; 8] = *b"DWCPIDX1";
/// Magic, bits, pages.
const HEAD_BYTES: u64 = 20;

const ENTRY_BYTES: usize = 12;

/// log2 of the entries per place.
const BUCKET_LOG: u32 = 6;

/// Entries of one place: more is no hash, or damage.
const BUCKET_MAX: u32 = 4096;

/// Hashes with the pages of a file that have them.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder(Vec<(u64, u32)>);

impl IndexBuilder {
    pub(super) fn push(&mut self, hash: u64, page: u32) {
        self.0.push((hash, page));
    }

    /// Writes the index of what was pushed; of equal pages, the first. Returns the pages in it.
    pub(super) fn write(mut self, path: &Path) -> io::Result<u64> {
        self.0.sort_unstable();
        self.0.dedup_by_key(|(hash, _)| *hash);
        let entries = self.0;
        let bits = (entries.len() as u64 >> BUCKET_LOG)
            .checked_ilog2()
            .unwrap_or(0);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut out = BufWriter::new(file);
        out.write_all(&MAGIC)?;
        out.write_all(&bits.to_le_bytes())?;
        out.write_all(&(entries.len() as u64).to_le_bytes())?;
        for place in 0..=1u64 << bits {
            let below = entries.partition_point(|(hash, _)| upper(*hash, bits) < place);
            out.write_all(&(below as u32).to_le_bytes())?;
        }
        for (hash, page) in &entries {
            out.write_all(&hash.to_le_bytes())?;
            out.write_all(&page.to_le_bytes())?;
        }
        out.into_inner()?.sync_all()?;
        Ok(entries.len() as u64)
    }
}

/// The upper `bits` bits.
fn upper(hash: u64, bits: u32) -> u64 {
    hash.checked_shr(64 - bits).unwrap_or(0)
}

/// The pages in an index, by its head alone.
pub(super) fn pages(path: &Path) -> io::Result<u64> {
    head(&File::open(path)?).map(|(_, pages)| pages)
}

/// The bits and the pages that an index says it has, if its length fits.
fn head(file: &File) -> io::Result<(u32, u64)> {
    let mut head = [0; HEAD_BYTES as usize];
    file.read_exact_at(&mut head, 0)?;
    let bits = u32::from_le_bytes(*head[8..].first_chunk().ok_or_else(bad)?);
    let pages = u64::from_le_bytes(*head[12..].first_chunk().ok_or_else(bad)?);
    if !head.starts_with(&MAGIC) || bits > 26 || pages > u64::from(u32::MAX) {
        return Err(bad());
    }
    let bytes = HEAD_BYTES + ((1 << bits) + 1) * 4 + pages * ENTRY_BYTES as u64;
    match file.metadata()?.len() == bytes {
        true => Ok((bits, pages)),
        false => Err(bad()),
    }
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an index of pages")
}

/// An index that is read from.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    bits: u32,
    places: Vec<u32>,
}

impl Index {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let (bits, pages) = head(&file)?;
        let count = (1 << bits) + 1;
        let mut read = vec![0; count * 4];
        file.read_exact_at(&mut read, HEAD_BYTES)?;
        let (read, _) = read.as_chunks();
        let places: Vec<u32> = read
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect();
        if !places.is_sorted() || places.last().map(|&last| u64::from(last)) != Some(pages) {
            return Err(bad());
        }
        Ok(Self { file, bits, places })
    }

    pub(super) fn pages(&self) -> u64 {
        self.places.last().copied().unwrap_or(0).into()
    }

    /// The page with this hash. What cannot be read is not there.
    pub(super) fn find(&self, hash: u64) -> Option<u32> {
        let place = upper(hash, self.bits) as usize;
        let (from, upto) = (self.places[place], self.places[place + 1]);
        let count = upto.saturating_sub(from).min(BUCKET_MAX) as usize;
        let mut entries = vec![0; count * ENTRY_BYTES];
        let start =
            HEAD_BYTES + self.places.len() as u64 * 4 + u64::from(from) * ENTRY_BYTES as u64;
        self.file.read_exact_at(&mut entries, start).ok()?;
        let wanted = hash.to_le_bytes();
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        let entry = entries.iter().find(|entry| entry.starts_with(&wanted))?;
        entry.last_chunk().map(|page| u32::from_le_bytes(*page))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn written(pages: &[(u64, u32)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.index");
        let mut builder = IndexBuilder::default();
        pages
            .iter()
            .for_each(|&(hash, page)| builder.push(hash, page));
        builder.write(&path).unwrap();
        (folder, path)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn what_was_pushed_is_found_and_nothing_else(
            hashes in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..50], 0..3000),
            others in prop::collection::vec(any::<u64>(), 50),
        ) {
            let pages: Vec<_> = hashes.iter().copied().zip(0..).collect();
            let mut first = HashMap::new();
            pages.iter().for_each(|&(hash, page)| { first.entry(hash).or_insert(page); });
            let (_folder, path) = written(&pages);
            let index = Index::open(&path).unwrap();
            prop_assert_eq!(index.pages(), first.len() as u64);
            for hash in hashes.iter().chain(&others) {
                prop_assert_eq!(index.find(*hash), first.get(hash).copied());
            }
        }

        #[test]
        fn damage_is_refused_or_finds_something_else(
            at in any::<prop::sample::Index>(),
            to: u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let pages: Vec<_> = (0..500).map(|n| (u64::from(n) << 50 | 1, n)).collect();
            let (_folder, path) = written(&pages);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = to;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(index) = Index::open(&path) {
                pages.iter().for_each(|(hash, _)| { index.find(*hash); });
            }
            std::fs::write(&path, &bytes[..cut.index(bytes.len())]).unwrap();
            prop_assert!(Index::open(&path).is_err());
        }
    }
}
