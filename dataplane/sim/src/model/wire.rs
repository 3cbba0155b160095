//! The control connection, the pages of the paused round, and the device state: what is between the nodes.

use std::collections::VecDeque;

use dwcp_wire::Control;

use crate::faults::Side;
use crate::link::DeviceStream;

/// One direction of the control connection: ordered, and lost with any end of what is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Direction {
    messages: VecDeque<Control>,
    state: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    Open,
    /// Nothing can be sent; what is under way still comes, and then the loss is noticed.
    Broken,
    /// The receiver knows, or is gone itself.
    Over,
}

/// What a receiver hears next.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    Message(Control),
    Lost,
}

impl Direction {
    const fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            state: Standing::Open,
        }
    }

    pub(super) fn push(&mut self, message: Control) {
        if self.state == Standing::Open {
            self.messages.push_back(message);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Control> {
        self.messages.iter()
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == Standing::Open
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == Standing::Over
    }

    /// Whether there is something to hear.
    pub(super) fn speaks(&self) -> bool {
        !self.messages.is_empty() || self.state == Standing::Broken
    }

    pub(super) fn hear(&mut self) -> Option<Heard> {
        if let Some(message) = self.messages.pop_front() {
            return Some(Heard::Message(message));
        }
        if self.state != Standing::Broken {
            return None;
        }
        self.state = Standing::Over;
        Some(Heard::Lost)
    }

    /// It breaks: so many of the messages under way still arrive.
    pub(super) fn cut(&mut self, kept: usize) {
        if self.state == Standing::Open {
            self.state = Standing::Broken;
        }
        self.messages.truncate(kept);
    }

    /// Its receiver is gone.
    pub(super) fn end(&mut self) {
        self.messages.clear();
        self.state = Standing::Over;
    }
}

/// Pages of a round under way, with their marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Round {
    pub(super) number: u32,
    /// Pages are sent, and not only named as missing.
    pub(super) sends_pages: bool,
}

/// All connections of the migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wire {
    to_source: Direction,
    to_destination: Direction,
    pub(super) round: Option<Round>,
    pub(super) device: DeviceStream,
}

impl Wire {
    pub(super) const fn new(device: DeviceStream) -> Self {
        Self {
            to_source: Direction::new(),
            to_destination: Direction::new(),
            round: None,
            device,
        }
    }

    pub(super) const fn to(&self, side: Side) -> &Direction {
        match side {
            Side::Source => &self.to_source,
            Side::Destination => &self.to_destination,
        }
    }

    pub(super) const fn to_mut(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Source => &mut self.to_source,
            Side::Destination => &mut self.to_destination,
        }
    }
}
