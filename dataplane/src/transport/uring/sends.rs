//! What leaves by the ring, and what it waits for.

use std::io;
use std::os::fd::AsFd;

use super::entry::{self, Tag, tagged};
use super::{Completion, Progress, Slot, UringTransport, error_of};

impl UringTransport {
    /// Hands the front frame to the ring if it has no guest pages.
    fn start_plain_send(&mut self, slot: Slot) {
        let stream = &mut self.streams[slot];
        let Some((buffer, range)) = stream.sends.plain_front() else {
            return;
        };
        stream.sending = true;
        let address = self.buffers.address(buffer).wrapping_add(range.start);
        let registered = self.registered.then_some(buffer.0);
        let bytes = range.len() as u32;
        let entry = entry::send(&stream.socket, address, bytes, registered);
        self.push(tagged(entry, Tag::Send, slot));
    }

    /// Hands what is left of the front frame's pages to the ring.
    fn start_pages(&mut self, slot: Slot) {
        let stream = &mut self.streams[slot];
        let Some(ram) = self.ram.as_deref() else {
            return;
        };
        stream.sending = true;
        let more = stream.sends.pages_for_ring(ram, stream.pages.spans_mut());
        stream.pages.seal();
        let entry = entry::send_pages(&stream.socket, &stream.pages, more);
        self.push(tagged(entry, Tag::Pages, slot));
    }

    /// Sends what can be sent at once on every stream, and asks for room where there is none.
    pub(super) fn progress_sends(&mut self, completions: &mut Vec<Completion>) {
        for slot in 0..self.streams.len() {
            self.tell_end(slot, completions);
            loop {
                let stream = &mut self.streams[slot];
                if stream.closed || stream.sending || stream.sends.is_empty() {
                    break;
                }
                if stream.sends.plain_front().is_some() {
                    self.start_plain_send(slot);
                    break;
                }
                let ram = self.ram.as_deref();
                match stream
                    .sends
                    .progress(stream.socket.as_fd(), &mut self.buffers, ram)
                {
                    Ok(Progress::Sent(buffer)) => {
                        completions.push(Completion::Sent { slot, buffer });
                    }
                    Ok(Progress::Blocked) => {
                        stream.sending = true;
                        self.watch(slot, libc::POLLOUT, Tag::Room);
                    }
                    Ok(Progress::ByRing) => {
                        self.start_pages(slot);
                        break;
                    }
                    Ok(Progress::Idle) => break,
                    Err(error) => {
                        self.close(slot, error, completions);
                        break;
                    }
                }
            }
        }
    }

    pub(super) fn complete_pages(
        &mut self,
        slot: Slot,
        outcome: io::Result<usize>,
        completions: &mut Vec<Completion>,
    ) {
        let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        if outcome.as_ref().is_err_and(would_block) {
            return self.watch(slot, libc::POLLOUT, Tag::Room);
        }
        let stream = &mut self.streams[slot];
        stream.sending = false;
        match stream.sends.ring_took(outcome) {
            Ok(Progress::Sent(buffer)) => completions.push(Completion::Sent { slot, buffer }),
            Ok(_) => {}
            Err(error) => self.close(slot, error, completions),
        }
    }

    pub(super) fn complete_send(
        &mut self,
        slot: Slot,
        result: i32,
        completions: &mut Vec<Completion>,
    ) {
        if result == -libc::EAGAIN {
            return self.watch(slot, libc::POLLOUT, Tag::Room);
        }
        let stream = &mut self.streams[slot];
        stream.sending = false;
        if result <= 0 {
            return self.close(slot, error_of(result), completions);
        }
        if let Some(buffer) = stream.sends.plain_sent(result as usize) {
            completions.push(Completion::Sent { slot, buffer });
        }
    }
}
