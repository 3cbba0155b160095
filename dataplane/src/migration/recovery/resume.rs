//! A guest that a restarted data plane has its VMM run.

use std::time::Duration;

use dwcp_proto::RESUME_TRIES_MAX;

use crate::migration::doubt::ASK_AGAIN;
use crate::vmm::{Vm, VmmError};

/// A VMM that does not run the guest is asked again, as often as in a migration, before it is said to stand.
pub(in crate::migration) fn resume(vm: &mut dyn Vm) -> Result<(), VmmError> {
    ask_again(|| vm.resume(), ASK_AGAIN)
}

fn ask_again(
    mut resume: impl FnMut() -> Result<u64, VmmError>,
    pause: Duration,
) -> Result<(), VmmError> {
    for _ in 1..RESUME_TRIES_MAX {
        match resume() {
            Ok(_) => return Ok(()),
            Err(error @ VmmError::Gone(_)) => return Err(error),
            Err(error) => tracing::warn!(%error, "the VMM does not run the guest yet"),
        }
        std::thread::sleep(pause);
    }
    resume().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a VMM was asked that fails so often, and whether it runs the guest in the end.
    fn asked(failures: u32, error: fn() -> VmmError) -> (u32, bool) {
        let mut asked = 0;
        let resume = || {
            asked += 1;
            if asked > failures {
                Ok(0)
            } else {
                Err(error())
            }
        };
        let runs = ask_again(resume, Duration::ZERO).is_ok();
        (asked, runs)
    }

    #[test]
    fn a_vmm_that_fails_is_asked_again_and_one_that_is_gone_is_not() {
        let busy = || VmmError::Failed("busy".into());
        assert_eq!(asked(0, busy), (1, true));
        assert_eq!(asked(1, busy), (2, true));
        assert_eq!(asked(RESUME_TRIES_MAX, busy), (RESUME_TRIES_MAX, false));
        assert_eq!(asked(1, || VmmError::Gone("no socket".into())), (1, false));
    }
}
