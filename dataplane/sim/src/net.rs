//! The network: control messages, page frames and questions about ownership under way.

use dwcp_proto::{DestinationEvent, SourceEvent};
use dwcp_wire::{Control, decode_control, encode_control};

use crate::faults::{Damage, Side};
use crate::link::{DeviceStream, Item};
use crate::pages::{Frame, add, damaged};
use crate::world::{Happening, World};

impl World {
    /// When something sent now arrives at a side that may be stalled.
    fn arrival(&mut self, to: Side) -> u64 {
        let arrival = self.now + self.network_time();
        arrival.max(self.stalled_until[to as usize])
    }

    /// Puts a control message on the wire, if the connection still stands.
    pub(crate) fn send(&mut self, attempt: usize, to: Side, message: &Control) {
        let bytes = match encode_control(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.break_invariant("bounded", format!("{message:?} cannot be sent: {error}"));
                return;
            }
        };
        let arrival = self.arrival(to);
        let Some(at) = self.links[attempt].control(to).push(arrival, bytes) else {
            return;
        };
        self.schedule
            .put(at, Happening::ControlArrives { attempt, to });
    }

    pub(crate) fn control_arrives(&mut self, attempt: usize, to: Side) {
        if self.stalled_until[to as usize] > self.now {
            let at = self.stalled_until[to as usize];
            self.schedule
                .put(at, Happening::ControlArrives { attempt, to });
            return;
        }
        let Some(bytes) = self.links[attempt].control(to).pop() else {
            return;
        };
        if !self.links[attempt].is_open(to) {
            return;
        }
        let message = match decode_control(&bytes) {
            Ok(message) => message,
            Err(error) => {
                self.break_invariant("bounded", format!("own message refused: {error}"));
                return;
            }
        };
        match to {
            Side::Source => self.feed_source(attempt, SourceEvent::Peer(message)),
            Side::Destination => self.feed_destination(attempt, DestinationEvent::Peer(message)),
        }
    }

    /// The connections of an attempt break; what is in flight is lost.
    pub(crate) fn cut(&mut self, attempt: usize) {
        for side in [Side::Source, Side::Destination] {
            self.links[attempt].control(side).cut();
            let wait = self.network_time();
            self.after(wait, Happening::ConnectionLost { attempt, side });
        }
        for stream in &mut self.links[attempt].streams {
            stream.cut();
        }
        self.break_device(attempt);
    }

    /// One side closes its sockets; what it has sent still arrives, unless the node dropped it.
    pub(crate) fn close(&mut self, attempt: usize, side: Side, flushed: bool) {
        if !self.links[attempt].is_open(side) {
            return;
        }
        self.links[attempt].close(side);
        let other = side.other();
        let arrival = self.arrival(other);
        let pipe = self.links[attempt].control(other);
        if flushed {
            pipe.close();
        } else {
            pipe.cut();
        }
        let at = pipe.last_arrival().max(arrival);
        let side = other;
        self.schedule
            .put(at, Happening::ConnectionLost { attempt, side });
        if side == Side::Destination {
            for stream in &mut self.links[attempt].streams {
                if flushed {
                    stream.close();
                } else {
                    stream.cut();
                }
            }
        }
        self.break_device(attempt);
    }

    pub(crate) fn connection_lost(&mut self, attempt: usize, side: Side) {
        let stalled = self.stalled_until[side as usize];
        if stalled > self.now {
            self.schedule
                .put(stalled, Happening::ConnectionLost { attempt, side });
            return;
        }
        if !self.links[attempt].is_open(side) {
            return;
        }
        self.note("connection lost", [attempt as u64, side as u64], |_| {
            format!("attempt {attempt}, at the {side:?}")
        });
        let reason = "connection reset".to_owned();
        match side {
            Side::Source => self.feed_source(attempt, SourceEvent::PeerLost(reason)),
            Side::Destination => self.feed_destination(attempt, DestinationEvent::PeerLost(reason)),
        }
    }

    /// Sends a page frame; the caller has looked at the window.
    pub(crate) fn send_frame(&mut self, attempt: usize, stream: usize, mut frame: Frame) {
        self.damage(&mut frame);
        let arrival = self.arrival(Side::Destination);
        let link = &mut self.links[attempt];
        add(link.sent.entry(frame.round).or_default(), frame.summary());
        link.in_flight_bytes += frame.bytes();
        if let Some(at) = link.streams[stream].push(arrival, Item::Pages(frame)) {
            self.schedule
                .put(at, Happening::StreamArrives { attempt, stream });
        }
    }

    pub(crate) fn send_mark(&mut self, attempt: usize, stream: usize, round: u32, again: u32) {
        let arrival = self.arrival(Side::Destination);
        if let Some(at) =
            self.links[attempt].streams[stream].push(arrival, Item::Mark { round, again })
        {
            self.schedule
                .put(at, Happening::StreamArrives { attempt, stream });
        }
    }

    fn damage(&mut self, frame: &mut Frame) {
        let Some(damage) = self.damage_next.take() else {
            return;
        };
        match damage {
            Damage::Header => frame.header_damaged = true,
            Damage::Table => frame.table_damaged = true,
            Damage::Page => {
                let index = self.rng.index(frame.pages.len());
                let page = &mut frame.pages[index];
                if page.announced == 0 {
                    // A zero page has no data that could be damaged.
                    frame.table_damaged = true;
                } else {
                    page.carried = damaged(page.carried);
                }
            }
        }
        self.note("frame damaged", [frame.pages.len() as u64, 0], |_| {
            format!("{damage:?}: {frame:?}")
        });
    }

    pub(crate) fn stream_arrives(&mut self, attempt: usize, stream: usize) {
        let stalled = self.stalled_until[Side::Destination as usize];
        if stalled > self.now {
            self.schedule
                .put(stalled, Happening::StreamArrives { attempt, stream });
            return;
        }
        let Some(item) = self.links[attempt].streams[stream].pop() else {
            return;
        };
        if !self.links[attempt].is_open(Side::Destination) {
            return;
        }
        match item {
            Item::Mark { round, again } => self.mark_arrives(attempt, round, again),
            Item::Pages(frame) if frame.header_damaged => self.cut(attempt),
            Item::Pages(frame) if frame.table_damaged && self.plan.table_loses_stream => {
                self.cut(attempt);
            }
            Item::Pages(frame) => {
                let link = &mut self.links[attempt];
                add(
                    link.delivered.entry(frame.round).or_default(),
                    frame.summary(),
                );
                self.apply_frame(attempt, &frame);
                let bytes = frame.bytes();
                let at = self.arrival(Side::Source);
                self.schedule
                    .put(at, Happening::AckArrives { attempt, bytes });
            }
        }
    }

    pub(crate) fn ack_arrives(&mut self, attempt: usize, bytes: u64) {
        let link = &mut self.links[attempt];
        link.in_flight_bytes = link.in_flight_bytes.saturating_sub(bytes);
        self.wake_sender(attempt);
    }

    /// The device state's connection breaks. A source VMM that still gives state resumes by itself.
    pub(crate) fn break_device(&mut self, attempt: usize) {
        let device = self.links[attempt].device;
        if matches!(device, DeviceStream::Broken) {
            return;
        }
        if device != DeviceStream::Arrived {
            self.links[attempt].device = DeviceStream::Broken;
            self.device_lost_at_destination(attempt);
        }
        if device != DeviceStream::Idle {
            self.device_lost_at_source();
        }
    }

    /// Sends a question or an answer on a connection of its own, which may fail.
    pub(crate) fn send_alone(&mut self, to: Side, happening: Happening) {
        let down = self.network_down_until > self.now || self.destination.gone;
        if down || self.queries_to_lose > 0 {
            self.queries_to_lose = self.queries_to_lose.saturating_sub(1);
            self.note("query lost", [to as u64, 0], |_| format!("{happening:?}"));
            return;
        }
        // A handshake of its own first.
        let at = self.arrival(to) + self.network_time();
        self.schedule.put(at, happening);
    }
}
