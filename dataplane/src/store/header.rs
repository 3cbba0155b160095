//! The begin of a file about a VM's RAM: whose it is, of which shape, and how it came or left.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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

    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        if text.len() as u64 >= HEADER_BYTES {
            return Err(io::Error::other("the names of the RAM blocks are too long"));
        }
        file.write_all_at(&text, 0)
    }
}

fn shape(layout: &RamLayout) -> Vec<(String, u64)> {
    let block = |block: &RamBlock| (block.name().to_owned(), block.bytes());
    layout.blocks().iter().map(block).collect()
}
