//! The VMMs, after QEMU: what they do when told, and what they do by themselves.

use std::collections::BTreeSet;

use dwcp_proto::VmState;

use crate::pages::Content;

/// State of the source's VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceVm {
    Running,
    Paused,
    /// Gives device state. When its stream breaks now, it runs the guest again BY ITSELF.
    Giving,
    /// All device state is given; stands until told to run.
    Postmigrate,
    /// The process is gone.
    Gone,
    /// Somebody started an empty one in its place.
    Empty,
}

impl SourceVm {
    pub(crate) const fn seen(self) -> VmState {
        match self {
            Self::Running => VmState::Running,
            Self::Paused | Self::Giving | Self::Postmigrate => VmState::Paused,
            Self::Gone => VmState::Gone,
            Self::Empty => VmState::Incoming,
        }
    }
}

/// Commands to the source's VMM, carried out one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceCommand {
    Pause,
    GiveDeviceState,
    Resume,
}

/// The source's VMM. It outlives the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceVmm {
    pub(crate) vm: SourceVm,
    /// The last command is through by then.
    pub(crate) busy_until: u64,
    pub(crate) fail_next: bool,
    /// Tells a process from the one before it.
    pub(crate) instance: u32,
}

impl SourceVmm {
    pub(crate) const fn new() -> Self {
        Self {
            vm: SourceVm::Running,
            busy_until: 0,
            fail_next: false,
            instance: 0,
        }
    }

    /// Whether the command succeeds, and what becomes of the VM.
    pub(crate) const fn obey(&mut self, command: SourceCommand) -> bool {
        if self.fail_next || matches!(self.vm, SourceVm::Gone | SourceVm::Empty) {
            self.fail_next = false;
            return false;
        }
        self.vm = match (command, self.vm) {
            (SourceCommand::Pause, SourceVm::Running) => SourceVm::Paused,
            (SourceCommand::Pause, as_it_is) => as_it_is,
            (SourceCommand::GiveDeviceState, SourceVm::Paused) => SourceVm::Giving,
            (SourceCommand::GiveDeviceState, _) => return false,
            (SourceCommand::Resume, _) => SourceVm::Running,
        };
        true
    }
}

/// State of the destination's VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DestinationVm {
    /// Waits for device state.
    Incoming,
    /// Device state is loaded; stands until told to run.
    Loaded,
    Running,
    Gone,
}

/// The destination's VMM and its RAM. It outlives the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DestinationVmm {
    pub(crate) vm: DestinationVm,
    pub(crate) ram: Vec<Content>,
    /// Pages without memory, whose content is at the source.
    pub(crate) missing: BTreeSet<usize>,
    /// RAM was read again and found right, and nothing was applied since.
    pub(crate) proven: bool,
    pub(crate) busy_until: u64,
    pub(crate) fail_next: bool,
    pub(crate) instance: u32,
}

impl DestinationVmm {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            vm: DestinationVm::Incoming,
            ram: vec![0; pages],
            missing: BTreeSet::new(),
            proven: false,
            busy_until: 0,
            fail_next: false,
            instance: 0,
        }
    }

    pub(crate) const fn seen(&self) -> VmState {
        match self.vm {
            DestinationVm::Incoming => VmState::Incoming,
            DestinationVm::Loaded => VmState::Paused,
            DestinationVm::Running => VmState::Running,
            DestinationVm::Gone => VmState::Gone,
        }
    }

    /// A new, empty process in the old one's place.
    pub(crate) fn replace(&mut self) {
        self.vm = DestinationVm::Incoming;
        self.ram.fill(0);
        self.missing.clear();
        self.proven = false;
        self.fail_next = false;
        self.instance += 1;
    }

    pub(crate) const fn die(&mut self) {
        self.vm = DestinationVm::Gone;
        self.proven = false;
        self.instance += 1;
    }
}
