//! A journal file. Lines come with the right length and checksum where the input asks for it.
//! Reading never panics; what can be read can be opened, and says the same after compaction.
//!
//! Input: the first byte's bit 0 seals each line, bit 1 leaves the first line out.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use dwcp_journal::{FILE_NAME, Journal};
use libfuzzer_sys::fuzz_target;

const FIRST_LINE: &[u8] = b"dwcp.journal/1\n";

fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| tempfile::tempdir().expect("a folder"))
        .path()
}

fuzz_target!(|input: &[u8]| {
    let Some((&flags, text)) = input.split_first() else {
        return;
    };
    let mut file = vec![];
    if flags & 2 == 0 {
        file.extend_from_slice(FIRST_LINE);
    }
    if flags & 1 == 0 {
        file.extend_from_slice(text);
    } else {
        for line in text.split(|byte| *byte == b'\n') {
            let checksum = dwcp_simd::kernels().crc32c(0, line);
            file.extend_from_slice(format!("{:08x} {checksum:08x} ", line.len()).as_bytes());
            file.extend_from_slice(line);
            file.push(b'\n');
        }
    }
    let path = folder().join(FILE_NAME);
    std::fs::write(&path, &file).expect("written");
    let Ok(contents) = Journal::read(folder()) else {
        assert!(Journal::open(folder()).is_err());
        return;
    };
    let state = contents.state();
    let journal = Journal::open_with_limit(folder(), 0).expect("what can be read can be opened");
    assert_eq!(journal.state().ownership(), state.ownership());
    assert_eq!(journal.state().unfinished(), state.unfinished());
});
