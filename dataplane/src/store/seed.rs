//! The seed of a store's hashes.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The seed of the store in `folder`; chosen, when there is none or it cannot be read: indexes of another seed
/// find nothing.
pub(super) fn read(folder: &Path) -> io::Result<u64> {
    let path = folder.join("seed");
    let written = fs::read_to_string(&path).unwrap_or_default();
    if let Ok(seed) = u64::from_str_radix(written.trim(), 16) {
        return Ok(seed);
    }
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    let seed = u64::from_le_bytes(bytes);
    let part = path.with_extension("part");
    fs::write(&part, format!("{seed:016x}\n"))?;
    File::open(&part)?.sync_all()?;
    fs::rename(&part, &path)?;
    Ok(seed)
}
