//! Attaching a QEMU that was just started, for as long as it lives.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_api::{Attachment, ErrorCode};

use crate::context::Context;
use crate::failure::Failure;
use crate::vm;

/// A QEMU that is not attached within this is waited for in words. One that allocates its RAM first
/// (`prealloc=on`) needs minutes before its monitor answers.
const QUIET: Duration = Duration::from_secs(10);

/// Between two looks for the monitor; doubled after each try to attach that failed, up to the most.
const PERIOD: Duration = Duration::from_millis(20);
const PERIOD_MAX: Duration = Duration::from_secs(5);

/// The QEMU that is to be attached.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) name: String,
    pub(super) qmp_socket: String,
    pub(super) attachment: Attachment,
}

/// What a failed try means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    /// It may pass by itself, usually soon.
    Soon,
    /// It passes when somebody does something, who must know of it.
    WhenMended,
    /// QEMU must be started otherwise.
    None,
}

/// When to say what is waited for: once.
#[derive(Debug)]
struct Said {
    began: Instant,
    is_said: bool,
}

impl Said {
    fn is_due(&mut self, now: Instant, hope: Hope) -> bool {
        let late = hope == Hope::WhenMended || now.duration_since(self.began) >= QUIET;
        late && !std::mem::replace(&mut self.is_said, true)
    }
}

impl Started {
    /// Attaches the VM, unless `ended` is set first. What cannot be attached as it was started is
    /// said, and QEMU runs on.
    pub(super) fn attach(&self, ended: &AtomicBool, context: &mut Context) {
        let mut said = Said {
            began: Instant::now(),
            is_said: false,
        };
        let mut period = PERIOD;
        while !ended.load(Ordering::Acquire) {
            let (hope, why) = match self.try_attach(context) {
                Ok(()) => return,
                Err(failure) => failure,
            };
            if hope == Hope::None {
                let name = &self.name;
                eprintln!(
                    "dwcp: {why}\ndwcp: {name} runs, but is not attached; later: {}",
                    self.by_hand()
                );
                return;
            }
            if said.is_due(Instant::now(), hope) {
                eprintln!(
                    "dwcp: {}: not attached yet, tried on while QEMU runs: {why}",
                    self.name
                );
            }
            std::thread::sleep(period);
            if Path::new(&self.qmp_socket).exists() {
                period = (period * 2).min(PERIOD_MAX);
            }
        }
    }

    fn try_attach(&self, context: &mut Context) -> Result<(), (Hope, String)> {
        if !Path::new(&self.qmp_socket).exists() {
            let why = format!("QEMU's monitor has not appeared at {}", self.qmp_socket);
            return Err((Hope::Soon, why));
        }
        match vm::attach(&self.name, self.attachment.clone(), context) {
            Ok(vm) => {
                let (name, state, tracker) = (&self.name, &vm.state, &vm.tracker);
                eprintln!("dwcp: {name} attached: {state}, tracker {tracker}");
                Ok(())
            }
            Err(failure) => Err((hope(&failure), failure.text())),
        }
    }

    fn by_hand(&self) -> String {
        let (name, qmp) = (&self.name, &self.qmp_socket);
        match &self.attachment {
            Attachment::Qemu {
                uffd_socket: Some(uffd),
                ..
            } => format!("dwcp vm attach {name} --qmp {qmp} --uffd-socket {uffd}"),
            _ => format!("dwcp vm attach {name} --qmp {qmp}"),
        }
    }
}

fn hope(failure: &Failure) -> Hope {
    let Failure::Api(error) = failure else {
        return Hope::None;
    };
    match error.code {
        // The monitor does not answer yet; or nobody listens: the socket is bound a moment before.
        ErrorCode::System | ErrorCode::NotFound => Hope::Soon,
        ErrorCode::PlaneDown | ErrorCode::Busy => Hope::WhenMended,
        _ => Hope::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said_once_and_late_unless_somebody_must_act() {
        for (hope, first) in [(Hope::Soon, QUIET), (Hope::WhenMended, Duration::ZERO)] {
            let began = Instant::now();
            let mut said = Said {
                began,
                is_said: false,
            };
            let times = [0, 5, 9, 10, 11, 60].map(Duration::from_secs);
            let due: Vec<_> = times
                .into_iter()
                .filter(|time| said.is_due(began + *time, hope))
                .collect();
            assert_eq!(due, [first]);
        }
    }
}
