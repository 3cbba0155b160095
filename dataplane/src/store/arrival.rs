//! What the RAM of a VM was when it came here: 4 bytes a page, behind the header.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dwcp_api::StoreKind;

use super::header::{HEADER_BYTES, Header};
use super::{Store, StoreError, used};
use crate::engine::AsItCame;
use crate::ram::RamLayout;

/// Bytes of a page's word.
const WORD_BYTES: usize = 4;

/// What is kept of a VM that came. Nothing of its RAM.
#[derive(Debug)]
pub struct Arrival {
    header: Header,
    came: AsItCame,
}

impl Arrival {
    /// Of a VM that came by `migration`.
    #[must_use]
    pub fn of((vm, migration): (&str, u128), layout: &RamLayout, came: AsItCame) -> Self {
        let mut header = Header::of("dwcp.arrival/1", (vm, migration), layout);
        header.fingerprint_seed = Some(came.seed());
        Self { header, came }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = self.header.create(path)?;
        let words = self.came.words().iter();
        let words: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&words, HEADER_BYTES)?;
        file.sync_all()
    }
}

impl Store {
    /// Keeps what the RAM of a VM was when it came, in the place of what was kept of an earlier time. It takes a
    /// thousandth of RAM; nothing makes room for it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is kept of it.
    pub fn keep_arrival(&self, arrival: &Arrival) -> Result<(), StoreError> {
        let _turn = self.lock();
        let vm = &arrival.header.vm;
        self.remove_all(|kind| matches!(kind, StoreKind::Arrival { vm: of } if of == vm))?;
        let wanted_bytes = bytes(arrival.came.words().len() as u64);
        self.check_room(wanted_bytes, used(&self.entries()), 0)?;
        self.add("arrival", |part| {
            let failed = StoreError::disk(format!("cannot write {}", part.display()));
            arrival.write(part).map_err(failed)?;
            Ok(((), None))
        })
        .map(|((), _)| ())
    }

    /// What the RAM of a VM was when it came by `migration`, if that is known and RAM still has that shape.
    #[must_use]
    pub fn arrival(&self, vm: &str, migration: u128, layout: &RamLayout) -> Option<AsItCame> {
        let entry = self.newest(&StoreKind::Arrival { vm: vm.to_owned() })?;
        let came = read(&self.path(entry.number, "arrival"), migration, layout);
        entry.of_use(came)?
    }
}

/// Bytes of the file for so many pages.
const fn bytes(pages: u64) -> u64 {
    HEADER_BYTES + pages * WORD_BYTES as u64
}

/// Reads it, if it is of RAM of this shape that came by this migration.
fn read(path: &Path, migration: u128, layout: &RamLayout) -> io::Result<Option<AsItCame>> {
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
