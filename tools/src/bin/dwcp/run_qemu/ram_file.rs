//! The file behind guest RAM: without a name, so that a kill leaves nothing behind.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::failure::Failure;

/// An open file that QEMU inherits. The data plane opens it by QEMU's own descriptor, also after a
/// restart.
#[derive(Debug)]
pub(super) struct RamFile(File);

impl RamFile {
    /// An empty file in `folder`; QEMU gives it its size.
    pub(super) fn make(folder: &Path) -> Result<Self, Failure> {
        let file = tempfile::tempfile_in(folder).with_context(|| {
            format!(
                "cannot make a file for guest RAM in {}; name a tmpfs or hugetlbfs with --mem-path",
                folder.display()
            )
        })?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(Failure::other)?;
        Ok(Self(file))
    }

    /// Its path as QEMU will see it.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
