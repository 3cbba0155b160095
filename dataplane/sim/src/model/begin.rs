//! Where the check begins: the report of the last round before the switchover is on its way.

use std::collections::VecDeque;

use dwcp_proto::{
    Destination, DestinationAction, DestinationEvent, IfNotConverged, Outlook, RoundLimits,
    RoundMeasure, Source, SourceAction, SourceConfig, SourceEvent,
};
use dwcp_wire::{Control, Offer, RamBlockInfo, RoundSummary};

use super::destination::{DestinationNode, DestinationProcess, DestinationRun, destination_config};
use super::source::{SourceNode, SourceProcess, SourceRun};
use super::wire::Wire;
use super::world::{ATTEMPT, EPOCH, NOW, SILENCE_MS, World};
use crate::faults::Side;
use crate::journal::Journal;
use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::pages::Content;
use crate::vmm::{DestinationVmm, SourceVmm};

/// What the guest's only page is at the pause.
pub(super) const GUEST: Content = 2;

/// What it was when the last round before the pause sent it.
pub(super) const STALE: Content = 1;

/// Which way the guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// All pages go before it runs there.
    Precopy,
    /// Its page follows when it runs there.
    Postcopy,
}

impl Variant {
    /// Both ways.
    pub const BOTH: [Self; 2] = [Self::Precopy, Self::Postcopy];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Precopy => "pre-copy",
            Self::Postcopy => "post-copy",
        }
    }
}

pub(super) fn config() -> SourceConfig {
    SourceConfig {
        offer: Offer {
            migration: 1,
            vm: String::new(),
            source_node: String::new(),
            epoch: EPOCH - 1,
            vmm: String::new(),
            ram: vec![RamBlockInfo {
                name: String::new(),
                bytes: dwcp_wire::limits::PAGE_BYTES as u64,
            }],
            streams: 1,
            fingerprint_seed: 0,
            verify_full: true,
            sample_pages: 0,
            ack_bytes: 0,
            peer_silence_ms: SILENCE_MS,
            dry_run: false,
            reuse: false,
        },
        // The first round is the last, unless the guest is foretold to outrun its link.
        limits: RoundLimits {
            downtime_ns_max: 0,
            downtime_ns_at_last: 0,
            rounds_max: 0,
            throttle_percent_max: 0,
            if_not_converged: IfNotConverged::PostCopy,
        },
        deadline_ns: 0,
        silence_ns: u64::from(SILENCE_MS) * 1_000_000,
    }
}

/// Both machines, as they have come so far.
struct Pair {
    source: Source,
    destination: Destination,
}

impl Pair {
    fn tell_source(&mut self, event: SourceEvent) {
        for action in self.source.on_event(NOW, event) {
            if let SourceAction::Send(message) = action {
                self.tell_destination(DestinationEvent::Peer(message));
            }
        }
    }

    /// What it says is known here, and not told on.
    fn tell_destination(&mut self, event: DestinationEvent) -> Vec<DestinationAction> {
        self.destination.on_event(NOW, event)
    }

    /// The first round, and the destination's report of it.
    fn round(&mut self, variant: Variant) -> Control {
        self.tell_source(SourceEvent::RoundSent(RoundMeasure::default()));
        if variant == Variant::Postcopy {
            self.tell_source(SourceEvent::Outlook(Outlook {
                dirty_pages: 1000,
                page_ns: 1,
                outruns: true,
            }));
        }
        let applied = DestinationEvent::RoundApplied {
            round: 0,
            applied: RoundSummary::default(),
            suspects: vec![],
            root: 0,
        };
        match self.tell_destination(applied).pop() {
            Some(DestinationAction::Send(report)) => report,
            _ => unreachable!("a round that is sent and applied is reported"),
        }
    }
}

fn connected() -> Pair {
    let mut pair = Pair {
        source: Source::new(config()),
        destination: Destination::new(destination_config()),
    };
    pair.tell_source(SourceEvent::Start);
    pair.tell_source(SourceEvent::Connected);
    let (token, streams, content_seed) = (0, 1, None);
    pair.tell_destination(DestinationEvent::VmReady {
        token,
        streams,
        content_seed,
    });
    pair.tell_destination(DestinationEvent::StreamsJoined);
    pair.tell_source(SourceEvent::Peer(Control::Accept {
        token,
        streams,
        content_seed,
    }));
    pair.tell_source(SourceEvent::TrackerArmed);
    pair.tell_source(SourceEvent::StreamsOpen);
    pair.tell_source(SourceEvent::Peer(Control::Ready));
    pair
}

/// The first state.
pub(super) fn begin(variant: Variant, mutation: Mutation, faults: u32) -> World {
    let mut pair = connected();
    let report = pair.round(variant);
    pair.source.forget_details();
    pair.destination.forget_details();
    let mut source = SourceNode {
        vmm: SourceVmm::new(),
        commands: VecDeque::new(),
        stream_lost: false,
        journal: Journal::new(Side::Source),
        process: SourceProcess::Moves(Box::new(SourceRun::new(pair.source))),
        ended: None,
        killed: false,
    };
    source.journal.begin(ATTEMPT);
    let run = DestinationRun::new(pair.destination);
    let mut destination = DestinationNode {
        vmm: DestinationVmm::new(1),
        orders: VecDeque::new(),
        journal: Journal::new(Side::Destination),
        process: DestinationProcess::Takes(Box::new(run)),
        ended: None,
        killed: false,
    };
    destination.journal.begin(ATTEMPT);
    destination.vmm.ram[0] = STALE;
    let mut wire = Wire::new(DeviceStream::Idle);
    wire.to_mut(Side::Source).push(report);
    World {
        mutation,
        faults_left: faults,
        source,
        destination,
        wire,
        questions: vec![],
        denied: false,
        broken: None,
    }
}
