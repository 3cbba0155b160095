//! Which way pages leave on a stream: tried on its first frames, chosen by what they cost.
//!
//! Belief would choose wrongly somewhere: what a kernel, a driver, huge pages or an encrypted socket
//! make of a call is known only after the call. So each method carries a few frames of the first
//! round, the CPU time of its calls is measured, and the cheapest carries the rest. A method that the
//! kernel refuses is out at once. A frame is the same bytes by any method.

use std::io;

use super::SendMethod;
use dwcp_api::SendChoice;

/// Frames that each method carries before one is chosen. The cheapest of them counts: what an
/// interrupt adds to one is not the method's.
const FRAMES_EACH: u32 = 6;

/// A method's figures.
#[derive(Debug)]
struct Rung {
    method: SendMethod,
    frames: u32,
    least_ns_per_kib: f64,
    refused: Option<String>,
}

/// The methods of one stream.
#[derive(Debug)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
    chosen: Option<SendMethod>,
}

impl Ladder {
    /// The methods that `choice` allows.
    pub(super) fn new(choice: SendChoice) -> Self {
        let methods: &[SendMethod] = match choice {
            SendChoice::Auto => &SendMethod::ALL,
            SendChoice::Vmsplice => &[SendMethod::Vmsplice],
            SendChoice::Sendfile => &[SendMethod::Sendfile],
            SendChoice::Write | SendChoice::Copy => &[SendMethod::Write],
        };
        let rungs: Vec<_> = methods
            .iter()
            .map(|&method| Rung {
                method,
                frames: 0,
                least_ns_per_kib: f64::INFINITY,
                refused: None,
            })
            .collect();
        let chosen = (methods.len() == 1).then_some(methods[0]);
        Self { rungs, chosen }
    }

    /// The method for the next frame. Writing is what remains when all else is refused.
    pub(super) fn method(&self) -> SendMethod {
        if let Some(chosen) = self.chosen {
            return chosen;
        }
        let open = self.rungs.iter().filter(|rung| rung.refused.is_none());
        open.min_by_key(|rung| rung.frames)
            .map_or(SendMethod::Write, |rung| rung.method)
    }

    /// Whether frames are still to be measured.
    pub(super) const fn is_probing(&self) -> bool {
        self.chosen.is_none()
    }

    /// What was chosen, once it was.
    pub(super) const fn chosen(&self) -> Option<SendMethod> {
        self.chosen
    }

    /// Notes what a frame of `bytes` cost.
    pub(super) fn measured(&mut self, method: SendMethod, bytes: usize, cpu_ns: u64) {
        let Some(rung) = self.rungs.iter_mut().find(|rung| rung.method == method) else {
            return;
        };
        rung.frames += 1;
        let cost = cpu_ns as f64 / (bytes as f64 / 1024.0);
        rung.least_ns_per_kib = rung.least_ns_per_kib.min(cost);
        self.choose();
    }

    /// Notes that the kernel does not do it.
    pub(super) fn refused(&mut self, method: SendMethod, error: &io::Error) {
        tracing::info!(method = method.name(), %error, "pages cannot be sent this way here");
        if let Some(rung) = self.rungs.iter_mut().find(|rung| rung.method == method) {
            rung.refused = Some(error.to_string());
        }
        if self.chosen == Some(method) {
            self.chosen = Some(SendMethod::Write);
        }
        self.choose();
    }

    fn choose(&mut self) {
        let open = || self.rungs.iter().filter(|rung| rung.refused.is_none());
        if self.chosen.is_some() || open().any(|rung| rung.frames < FRAMES_EACH) {
            return;
        }
        let best = open().min_by(|a, b| a.least_ns_per_kib.total_cmp(&b.least_ns_per_kib));
        self.chosen = Some(best.map_or(SendMethod::Write, |rung| rung.method));
        tracing::info!(
            chosen = self.chosen.map(SendMethod::name),
            rungs = ?self.rungs,
            "how pages leave on this stream"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carry(ladder: &mut Ladder, cost_ns: impl Fn(SendMethod) -> u64) {
        for _ in 0..100 {
            let method = ladder.method();
            ladder.measured(method, 1024, cost_ns(method));
        }
    }

    #[test]
    fn the_cheapest_method_is_chosen_whichever_it_is() {
        for cheap in SendMethod::ALL {
            let mut ladder = Ladder::new(SendChoice::Auto);
            carry(&mut ladder, |method| if method == cheap { 5 } else { 9 });
            assert_eq!(ladder.chosen(), Some(cheap));
            assert_eq!(ladder.method(), cheap);
        }
    }

    #[test]
    fn every_method_carries_some_frames_before_the_choice() {
        let mut ladder = Ladder::new(SendChoice::Auto);
        for _ in 0..FRAMES_EACH as usize * SendMethod::ALL.len() {
            assert!(ladder.is_probing());
            let method = ladder.method();
            ladder.measured(method, 1024, 7);
        }
        assert!(!ladder.is_probing());
    }

    #[test]
    fn a_refused_method_is_never_taken_again() {
        let mut ladder = Ladder::new(SendChoice::Auto);
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        ladder.refused(SendMethod::Vmsplice, &error);
        carry(&mut ladder, |method| match method {
            SendMethod::Vmsplice => panic!("it was refused"),
            SendMethod::Sendfile => 5,
            SendMethod::Write => 9,
        });
        assert_eq!(ladder.chosen(), Some(SendMethod::Sendfile));
    }

    #[test]
    fn what_the_operator_chose_is_taken_until_the_kernel_refuses() {
        let mut ladder = Ladder::new(SendChoice::Sendfile);
        assert_eq!(ladder.method(), SendMethod::Sendfile);
        assert!(!ladder.is_probing());
        ladder.refused(SendMethod::Sendfile, &io::ErrorKind::Unsupported.into());
        assert_eq!(ladder.method(), SendMethod::Write);
    }
}
