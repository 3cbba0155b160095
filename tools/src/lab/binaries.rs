//! Where the daemons are: beside the running program, as they are built and installed.

use std::path::{Path, PathBuf};

/// Paths of what a node consists of.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `dwcp-dataplane`.
    pub dataplane: PathBuf,
    /// `dwcp-controlplane`.
    pub controlplane: PathBuf,
    /// `dwcp-load`.
    pub load: PathBuf,
    /// `libdwcp_preload.so`.
    pub preload: PathBuf,
    /// `dwcp-wan`.
    pub wan: PathBuf,
    /// `libdwcp_clock.so`.
    pub clock: PathBuf,
}

/// Something is missing.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not in {}: build everything first (`make build`)", folder.display())]
pub struct BinariesError {
    /// What.
    pub name: &'static str,
    /// Where it was looked for.
    pub folder: PathBuf,
}

impl Binaries {
    /// Finds them beside the running program, or one folder up when that is a test.
    ///
    /// # Errors
    /// [`BinariesError`] names what is missing.
    pub fn find() -> Result<Self, BinariesError> {
        let exe = std::env::current_exe().unwrap_or_default();
        let beside = exe.parent().unwrap_or_else(|| Path::new("."));
        let above = beside.parent().unwrap_or(beside);
        let test = beside.file_name().is_some_and(|name| name == "deps");
        let folder = if test { above } else { beside };
        let find = |name: &'static str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(BinariesError {
                    name,
                    folder: folder.into(),
                })
            }
        };
        Ok(Self {
            dataplane: find("dwcp-dataplane")?,
            controlplane: find("dwcp-controlplane")?,
            load: find("dwcp-load")?,
            preload: find("libdwcp_preload.so")?,
            wan: find("dwcp-wan")?,
            clock: find("libdwcp_clock.so")?,
        })
    }
}
