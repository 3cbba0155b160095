//! The begin of a file about a VM's RAM: whose it is, of which shape, and how it came or left.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ram::{RamBlock, RamLayout};

pub(super) const HEADER_BYTES: u64 = 64 * 1024;

/// JSON, then zeros.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    schema: String,
    pub(super) vm: String,
    /// Name and bytes of each block.
    blocks: Vec<(String, u64)>,
    /// The migration by which it came or left, in hex; files of earlier releases do not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    migration: String,
    /// Seed of the fingerprints, where the file has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fingerprint_seed: Option<u64>,
}

impl Header {
    pub(super) fn of(schema: &str, (vm, migration): (&str, u128), layout: &RamLayout) -> Self {
        Self {
            schema: schema.to_owned(),
            vm: vm.to_owned(),
            blocks: shape(layout),
            migration: format!("{migration:032x}"),
            fingerprint_seed: None,
        }
    }

    pub(super) fn migration(&self) -> Option<u128> {
        u128::from_str_radix(&self.migration, 16).ok()
    }

    pub(super) fn has_shape_of(&self, layout: &RamLayout) -> bool {
        self.blocks == shape(layout)
    }

    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(serde_json::from_slice(text)?)
    }

    /// Makes the file that begins with it.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let text = serde_json::to_vec(self)?;
        if text.len() as u64 >= HEADER_BYTES {
            return Err(io::Error::other("the names of the RAM blocks are too long"));
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all_at(&text, 0)?;
        Ok(file)
    }
}

fn shape(layout: &RamLayout) -> Vec<(String, u64)> {
    let block = |block: &RamBlock| (block.name().to_owned(), block.bytes());
    layout.blocks().iter().map(block).collect()
}
