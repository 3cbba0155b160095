//! CPU time that is taken from a guest which dirties its pages faster than they leave.

use dwcp_api::NotConverged;

use super::node::lock;
use super::source::SourceDriver;
use crate::vmm::{Throttle, VmmError};

impl SourceDriver {
    /// From now on it counts what the guest uses, of which some may be taken.
    pub(super) fn watch_cpu_time(&mut self) {
        let settings = &self.request.settings;
        if settings.throttle_percent_max == 0 {
            return;
        }
        if settings.if_not_converged == NotConverged::PostCopy {
            let note = "none of the guest's CPU time is taken: switchover.if_not_converged is post-copy, which comes first";
            return self.recorder.note(note.to_owned());
        }
        let watched = lock(&self.vm)
            .facts()
            .and_then(|facts| Throttle::watch(facts.pid, &self.node.options().state_folder));
        match watched {
            Ok(throttle) => self.throttle = Some(throttle),
            Err(error) => self.cannot_throttle(&error),
        }
    }

    pub(super) fn take_cpu_time(&mut self, percent: u8) {
        let Some(throttle) = &mut self.throttle else {
            return;
        };
        match throttle.take(percent) {
            Ok(()) => {
                self.recorder.throttle_percent = percent;
                let round = self.recorder.round;
                self.recorder.remark(format!(
                    "{percent}% of the guest's CPU time is taken after round {round}"
                ));
            }
            Err(error) => self.cannot_throttle(&error),
        }
    }

    /// Before the guest is paused, or given back: the VMM has to answer now.
    pub(super) fn give_cpu_time_back(&mut self) {
        self.throttle = None;
    }

    fn cannot_throttle(&mut self, error: &VmmError) {
        self.throttle = None;
        self.recorder.throttle_percent = 0;
        let hint = match error {
            VmmError::Unsuitable { hint, .. } => format!("; {hint}"),
            _ => String::new(),
        };
        let note = format!("the guest's CPU time cannot be limited: {error}{hint}");
        self.recorder.note(note);
    }
}
