//! The connections of one attempt: control, data streams, device state.

use std::collections::{BTreeMap, VecDeque};

use dwcp_wire::RoundSummary;

use crate::faults::Side;
use crate::pages::Frame;

/// Ordered bytes in one direction: messages and their order; the schedule knows when they arrive.
#[derive(Debug)]
pub(crate) struct Pipe<T> {
    in_flight: VecDeque<T>,
    last_arrival: u64,
    broken: bool,
    /// It broke, and is about to be replaced.
    held: bool,
}

impl<T> Pipe<T> {
    pub(crate) const fn new() -> Self {
        Self {
            in_flight: VecDeque::new(),
            last_arrival: 0,
            broken: false,
            held: false,
        }
    }

    /// Puts an item in; the time of its arrival, never before an earlier item's. `None` when the
    /// connection is gone.
    pub(crate) fn push(&mut self, arrival: u64, item: T) -> Option<u64> {
        if self.broken {
            return None;
        }
        self.in_flight.push_back(item);
        self.last_arrival = self.last_arrival.max(arrival);
        Some(self.last_arrival)
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.in_flight.pop_front()
    }

    pub(crate) fn cut(&mut self) {
        self.in_flight.clear();
        self.broken = true;
    }

    /// Takes out what is in flight. Nothing is put in until it is released.
    pub(crate) fn hold(&mut self) -> Vec<T> {
        self.held = true;
        self.in_flight.drain(..).collect()
    }

    pub(crate) const fn release(&mut self) {
        self.held = false;
    }

    pub(crate) const fn is_held(&self) -> bool {
        self.held
    }

    /// Nothing more is put in, what is on its way arrives.
    pub(crate) const fn close(&mut self) {
        self.broken = true;
    }

    pub(crate) const fn last_arrival(&self) -> u64 {
        self.last_arrival
    }

    pub(crate) const fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }
}

/// What a data stream carries.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Pages(Frame),
    /// Every page frame of the round has been sent on this stream.
    Mark {
        round: u32,
        /// How often it was lost before.
        again: u32,
    },
}

/// The device state's way from VMM to VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DeviceStream {
    /// The source VMM has not begun.
    Idle,
    /// It gives state.
    Flowing,
    /// It has given all; the relay has not brought all of it across.
    InFlight,
    /// The destination's relay holds it.
    Arrived,
    Broken,
}

/// All connections of one attempt.
#[derive(Debug)]
pub(crate) struct Link {
    to_source: Pipe<Vec<u8>>,
    to_destination: Pipe<Vec<u8>>,
    pub(crate) streams: Vec<Pipe<Item>>,
    pub(crate) device: DeviceStream,
    /// Bytes of page frames sent and not acknowledged.
    pub(crate) in_flight_bytes: u64,
    /// What went onto the wire, by round.
    pub(crate) sent: BTreeMap<u32, RoundSummary>,
    /// What came off it.
    pub(crate) delivered: BTreeMap<u32, RoundSummary>,
    /// Ends that hold their sockets open.
    source_open: bool,
    destination_open: bool,
}

impl Link {
    pub(crate) fn new(streams: u16) -> Self {
        Self {
            to_source: Pipe::new(),
            to_destination: Pipe::new(),
            streams: (0..streams).map(|_| Pipe::new()).collect(),
            device: DeviceStream::Idle,
            in_flight_bytes: 0,
            sent: BTreeMap::new(),
            delivered: BTreeMap::new(),
            source_open: true,
            destination_open: true,
        }
    }

    pub(crate) const fn control(&mut self, to: Side) -> &mut Pipe<Vec<u8>> {
        match to {
            Side::Source => &mut self.to_source,
            Side::Destination => &mut self.to_destination,
        }
    }

    pub(crate) const fn is_open(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source_open,
            Side::Destination => self.destination_open,
        }
    }

    pub(crate) const fn close(&mut self, side: Side) {
        match side {
            Side::Source => self.source_open = false,
            Side::Destination => self.destination_open = false,
        }
    }

    /// Messages under way, both directions.
    pub(crate) fn messages(&self) -> usize {
        self.to_source.len() + self.to_destination.len()
    }
}
