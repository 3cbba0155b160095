//! Pinning threads.

use core_affinity::CoreId;

/// Why a thread could not be pinned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The CPU is offline, does not exist, or is outside the process's affinity.
    #[error("CPU {cpu} is not among the {allowed_count} CPUs this thread may use")]
    NotAllowed {
        /// The CPU asked for.
        cpu: usize,
        /// How many are allowed.
        allowed_count: usize,
    },
    /// The kernel refused although the CPU is allowed.
    #[error("The kernel refused to pin this thread to CPU {cpu}")]
    Refused {
        /// The CPU asked for.
        cpu: usize,
    },
}

/// Returns the CPUs the current thread may run on, ascending. A pinned thread has one: ask before
/// pinning. Empty when the kernel does not say.
pub fn allowed_cpus() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// Pins the current thread to one CPU.
pub fn pin_current_thread(cpu: usize) -> Result<(), PinError> {
    let allowed = allowed_cpus();
    if !allowed.contains(&cpu) {
        return Err(PinError::NotAllowed {
            cpu,
            allowed_count: allowed.len(),
        });
    }
    if core_affinity::set_for_current(CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(PinError::Refused { cpu })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_one_cpu_only() {
        let cpu = *allowed_cpus().last().expect("this thread runs somewhere");
        let after = std::thread::spawn(move || {
            pin_current_thread(cpu).unwrap();
            allowed_cpus()
        });
        assert_eq!(after.join().unwrap(), [cpu]);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_name() {
        let allowed_count = allowed_cpus().len();
        let expected = PinError::NotAllowed {
            cpu: 1_000_000,
            allowed_count,
        };
        assert_eq!(pin_current_thread(1_000_000), Err(expected));
    }
}
