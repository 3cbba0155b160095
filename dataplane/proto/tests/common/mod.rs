//! Machines brought to the phase that a test is about.

#![allow(dead_code, reason = "each test file uses a part")]

use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, IfNotConverged, Instant,
    JournalEntry, Phase, RoundLimits, RoundMeasure, Source, SourceAction, SourceConfig,
    SourceEvent,
};
use dwcp_wire::{Control, Offer, PageRange, RamBlockInfo, RoundSummary};

pub(crate) const EPOCH: u64 = 7;
pub(crate) const ROOT: u128 = 99;
pub(crate) const NOW: Instant = Instant(1_000);

pub(crate) fn offer() -> Offer {
    Offer {
        migration: 1,
        vm: "guest".into(),
        source_node: "a".into(),
        epoch: EPOCH,
        vmm: "qemu".into(),
        ram: vec![RamBlockInfo {
            name: "ram".into(),
            bytes: 64 * 4096,
        }],
        streams: 2,
        fingerprint_seed: 1,
        verify_full: false,
        sample_pages: 8,
        ack_bytes: 64 * 1024,
        peer_silence_ms: 2000,
        dry_run: false,
        reuse: false,
    }
}

pub(crate) const SENT: RoundSummary = RoundSummary {
    frames: 1,
    wire_bytes: 5000,
    pages: 1,
    marks_again: 0,
};

pub(crate) fn measure() -> RoundMeasure {
    RoundMeasure {
        sent: SENT,
        pages: 1,
        dirty_ns: 1,
        root: ROOT,
    }
}

pub(crate) fn round_report(round: u32, suspects: Vec<PageRange>, proven: bool) -> Control {
    Control::RoundReport {
        round,
        applied: SENT,
        suspects,
        root: ROOT,
        pages_proven: proven.then_some(8),
    }
}

pub(crate) fn source_config() -> SourceConfig {
    SourceConfig {
        offer: offer(),
        limits: RoundLimits {
            downtime_ns_max: 1_000_000_000,
            downtime_ns_at_last: 1_000_000_000,
            throttle_percent_max: 0,
            rounds_max: 0,
            if_not_converged: IfNotConverged::SwitchOver,
        },
        deadline_ns: 0,
        silence_ns: 2_000_000_000,
    }
}

/// A source in pre-copy; round 0 has been asked for.
pub(crate) fn source_in_precopy() -> Source {
    source_in_precopy_with(source_config())
}

pub(crate) fn source_in_precopy_with(config: SourceConfig) -> Source {
    let mut source = Source::new(config);
    let accept = Control::Accept {
        token: 5,
        streams: 2,
        content_seed: None,
    };
    for event in [
        SourceEvent::Start,
        SourceEvent::Connected,
        SourceEvent::Peer(accept),
        SourceEvent::TrackerArmed,
        SourceEvent::StreamsOpen,
        SourceEvent::Peer(Control::Ready),
    ] {
        let _ = source.on_event(NOW, event);
    }
    assert_eq!(source.phase(), Phase::Precopy);
    source
}

/// A source whose guest is paused and whose last round is under way.
pub(crate) fn source_in_switchover() -> Source {
    let mut source = source_in_precopy();
    for event in [
        SourceEvent::RoundSent(measure()),
        SourceEvent::Peer(round_report(0, vec![], false)),
        SourceEvent::Journaled(JournalEntry::Prepared),
        SourceEvent::Paused,
    ] {
        let _ = source.on_event(NOW, event);
    }
    assert_eq!(source.phase(), Phase::Switchover);
    source
}

/// A source that has sent the handover.
pub(crate) fn source_in_handover() -> Source {
    let mut source = source_in_switchover();
    for event in [
        SourceEvent::RoundSent(measure()),
        SourceEvent::SampleRead { missed: 0 },
        SourceEvent::DeviceSent,
        SourceEvent::Peer(round_report(1, vec![], true)),
        SourceEvent::Peer(Control::DeviceLoaded),
    ] {
        let _ = source.on_event(NOW, event);
    }
    assert_eq!(source.phase(), Phase::Handover);
    source
}

pub(crate) fn round_end(round: u32, paused: bool) -> DestinationEvent {
    DestinationEvent::Peer(Control::RoundEnd {
        round,
        sent: SENT,
        paused,
        root: ROOT,
    })
}

pub(crate) fn round_applied(round: u32) -> DestinationEvent {
    DestinationEvent::RoundApplied {
        round,
        applied: SENT,
        suspects: vec![],
        root: ROOT,
    }
}

/// A destination that waits for the handover.
pub(crate) fn destination_loaded() -> Destination {
    let mut destination = destination_proven();
    let _ = destination.on_event(NOW, DestinationEvent::DeviceLoaded);
    destination
}

/// A destination whose RAM is proven and whose VMM loads device state.
pub(crate) fn destination_proven() -> Destination {
    let mut destination = Destination::new(DestinationConfig {
        silence_ns: 2_000_000_000,
    });
    let ready = DestinationEvent::VmReady {
        token: 5,
        streams: 2,
        content_seed: None,
    };
    for event in [
        DestinationEvent::Peer(Control::Offer(offer())),
        ready,
        DestinationEvent::StreamsJoined,
        round_end(0, false),
        round_applied(0),
        DestinationEvent::Peer(Control::SwitchoverStart),
        round_end(1, true),
        round_applied(1),
        DestinationEvent::Proven { pages: 8 },
    ] {
        let _ = destination.on_event(NOW, event);
    }
    assert_eq!(destination.phase(), Phase::Switchover);
    destination
}

/// A destination that has asked for the commit to be made durable.
pub(crate) fn destination_committing() -> Destination {
    let mut destination = destination_loaded();
    let handover = Control::Handover { epoch: EPOCH + 1 };
    let actions = destination.on_event(NOW, DestinationEvent::Peer(handover));
    let entry = JournalEntry::Committed { epoch: EPOCH + 1 };
    assert_eq!(actions, [DestinationAction::Journal(entry)]);
    destination
}

pub(crate) fn tells_source(actions: &[SourceAction]) -> bool {
    let mut actions = actions.iter();
    actions.any(|action| matches!(action, SourceAction::Send(Control::Abort { .. })))
}

pub(crate) fn aborts(actions: &[DestinationAction]) -> bool {
    let mut actions = actions.iter();
    actions.any(|action| matches!(action, DestinationAction::Send(Control::Abort { .. })))
}
