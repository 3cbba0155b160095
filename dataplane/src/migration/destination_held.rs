//! What the waiting VM's RAM holds already, or gets from the node's store: read, and told to the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::RamRoot;
use dwcp_wire::{AbortCode, RefuseCode};

use super::baseline;
use super::destination::{DestinationDriver, DestinationInput};
use super::destination_actions::Refusal;
use super::node::Node;
use crate::engine::{Session, held_messages, keep_allocated, look_at_unknown};

/// What came of looking.
#[derive(Debug)]
pub(super) struct Looked {
    /// For the streams.
    token: u128,
    /// The part of the root that RAM has already.
    root: Result<RamRoot, String>,
    notes: Vec<String>,
}

impl DestinationDriver {
    /// Reads RAM. On a thread of its own: gigabytes take seconds, and meanwhile the source must hear that
    /// this side lives.
    pub(super) fn look_at_ram(&mut self, token: u128) -> Result<(), Refusal> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let (stop, mailbox) = (Arc::clone(&self.vm_stop), self.mailbox.clone());
        let (node, vm) = (Arc::clone(&self.node), self.offer.vm.clone());
        let meter = Arc::clone(&self.recorder.meter);
        let look = move || {
            let _helper = meter.helper();
            let mut notes = vec![];
            let root = look(&node, &vm, &session, &stop, &mut notes);
            let looked = Looked { token, root, notes };
            let _ = mailbox.push(DestinationInput::Looked(looked));
        };
        let thread = std::thread::Builder::new().name("dwcp-look".into());
        let thread = thread.spawn(look);
        self.ram_thread =
            Some(thread.map_err(|error| (RefuseCode::Other, format!("no thread: {error}")))?);
        Ok(())
    }

    pub(super) fn was_looked_at(&mut self, looked: Looked) {
        if self.vm_stop.load(Ordering::Acquire) {
            return;
        }
        for note in looked.notes {
            self.recorder.remark(note);
        }
        match looked.root {
            Ok(root) => {
                self.recorder.ram_root = Some(root.0);
                self.vm_is_ready(looked.token);
            }
            Err(reason) => self.failed(AbortCode::Other, reason),
        }
    }

    /// Tells the source what RAM holds, once it was told that the VM is ready for the rest.
    pub(super) fn tell_held(&mut self) {
        let Some(session) = self.session.clone().filter(|_| self.offer.tell_held) else {
            return;
        };
        for message in held_messages(&session) {
            self.send(&message);
        }
    }
}

fn look(
    node: &Node,
    vm: &str,
    session: &Session,
    stop: &AtomicBool,
    notes: &mut Vec<String>,
) -> Result<RamRoot, String> {
    notes.extend(baseline::fill(node, vm, &session.layout, stop));
    keep_allocated(session).map_err(|error| error.to_string())?;
    look_at_unknown(session, stop).map_err(|error| error.to_string())
}
