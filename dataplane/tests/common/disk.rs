//! A disk that is full, for this process: the limit on the size of files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

pub(crate) fn fill_the_disk() {
    // SAFETY: no handler runs; a write beyond the limit fails instead.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 1, most).unwrap();
}

/// Has room again once this is dropped: by a failing test, too, or what it says could not be written either.
pub(crate) struct FullDisk;

impl Drop for FullDisk {
    fn drop(&mut self) {
        let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
    }
}
