//! What the RAM of a VM was when it came here: 4 bytes a page, behind the header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::header::{HEADER_BYTES, Header};
use crate::engine::AsItCame;
use crate::ram::RamLayout;

/// Bytes of a page's word.
const WORD_BYTES: usize = 4;

/// Bytes of the file for so many pages.
pub(super) const fn bytes(pages: u64) -> u64 {
    HEADER_BYTES + pages * WORD_BYTES as u64
}

/// Writes it to a new file.
pub(super) fn write(
    path: &Path,
    of: (&str, u128),
    layout: &RamLayout,
    came: &AsItCame,
) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut header = Header::of("dwcp.arrival/1", of, layout);
    header.fingerprint_seed = Some(came.seed());
    header.write(&file)?;
    let words: Vec<u8> = came
        .words()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    file.write_all_at(&words, HEADER_BYTES)?;
    file.sync_all()
}

/// Reads it, if it is of RAM of this shape that came by this migration.
pub(super) fn read(
    path: &Path,
    migration: u128,
    layout: &RamLayout,
) -> io::Result<Option<AsItCame>> {
    let file = File::open(path)?;
    let header = Header::read(&file)?;
    let is_it = header.migration() == Some(migration) && header.has_shape_of(layout);
    let Some(seed) = header.fingerprint_seed.filter(|_| is_it) else {
        return Ok(None);
    };
    let mut bytes = vec![0; layout.pages() as usize * WORD_BYTES];
    file.read_exact_at(&mut bytes, HEADER_BYTES)?;
    let (words, _) = bytes.as_chunks();
    let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    Ok(Some(AsItCame::new(seed, words)))
}
