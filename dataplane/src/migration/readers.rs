//! Threads that read RAM for a migration before its workers have anything to do.

use std::num::NonZero;
use std::thread::{Builder, available_parallelism};

use dwcp_api::TransferSettings;

use super::placement::worker_count;

/// How many: as many as there are to be workers, up to the CPUs that are ours.
pub(super) fn reader_count(settings: &TransferSettings, streams: u16) -> usize {
    let cpus = available_parallelism().map_or(1, NonZero::get);
    worker_count(settings, streams).min(cpus)
}

/// Does `work` on so many threads of this name, and waits for them. Fewer do where the system has no more.
///
/// # Errors
/// There is not even one.
pub(super) fn read_on(name: &str, count: usize, work: impl Fn() + Sync) -> std::io::Result<()> {
    let mut begun = Ok(());
    std::thread::scope(|scope| {
        for made in 0..count {
            let thread = Builder::new().name(name.into());
            match thread.spawn_scoped(scope, &work) {
                Ok(_) => {}
                Err(error) if made == 0 => begun = Err(error),
                Err(_) => break,
            }
        }
    });
    begun
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_of_them_work_at_once_and_are_waited_for() {
        let (all, done) = (Barrier::new(3), AtomicUsize::new(0));
        read_on("dwcp-test", 3, || {
            all.wait();
            done.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(done.into_inner(), 3);
    }
}
