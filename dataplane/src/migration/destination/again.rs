//! A data plane that was started anew while pages of a guest that runs here were missing.
//!
//! What came before is in RAM, and what did not has no memory: the guest's memory itself says what is
//! missing. A zero page that never had memory counts too; the source says that it is zero.

use std::sync::{Arc, Mutex};

use dwcp_api::{Attachment, TransferSettings};
use dwcp_journal::{Stage, Unfinished};
use dwcp_proto::{Destination, DestinationConfig, DestinationEvent};
use dwcp_wire::{Offer, RamBlockInfo};

use super::begin::driver;
use super::{DestinationDriver, DestinationInput, FIRST_SILENCE};
use crate::engine::{Mailbox, Session};
use crate::migration::doubt::ASK_AGAIN;
use crate::migration::node::{JournalScope, Node};
use crate::migration::source::random;
use crate::ram::{RamBitmap, RamLayout};
use crate::vmm::{self, Faults, Userfault, VmmError};

/// Fetches what is missing, to its end. Runs on the caller's thread.
///
/// # Errors
/// In words: the guest waits for its pages until it is tried again, or its VMM is gone.
pub(in crate::migration) fn fetch_again(
    node: &Arc<Node>,
    scope: JournalScope,
    unfinished: &Unfinished,
    settings: &TransferSettings,
) -> Result<(), VmmError> {
    let failed = |text: &str| VmmError::Failed(text.to_owned());
    let attachment = unfinished.attachment.as_ref();
    let attachment = attachment.ok_or_else(|| failed("how its VMM is reached is not known"))?;
    let (layout, handed) = vmm::reopen_memory(attachment, &scope.memory)?;
    let runs = unfinished.stage == Stage::Resumed;
    let machine = Destination::fetching_again(
        DestinationConfig {
            silence_ns: FIRST_SILENCE.as_nanos() as u64,
        },
        scope.epoch + 1,
        runs,
    );
    let (id, token) = (
        scope.migration,
        random().map_err(|error| failed(&error.message))?,
    );
    let offer = offer(&scope, &layout);
    let driver = driver(
        node,
        (machine, scope),
        offer,
        settings.clone(),
        &Arc::default(),
    );
    let mut driver = driver.map_err(|error| failed(&error))?;
    driver.began = true;
    driver.vm_taken = true;
    driver
        .recorder
        .note("the data plane was started anew while pages of the guest were missing".into());
    let missing = holes(&layout)?;
    let session = Session::new(layout, driver.offer.fingerprint_seed, settings.codec);
    driver.session = Some(Arc::new(session));
    driver.postcopy.root_is_forgotten();
    driver.start_fetching(Userfault::new(handed.fd, Faults::Missing)?, missing)?;
    if !runs {
        driver.reopen_vm(attachment.clone());
    }
    driver.expect_streams(token, 0);
    node.incoming_began(id, driver.mailbox.clone());
    driver.run();
    Ok(())
}

/// What the source had offered, as far as it still matters.
fn offer(scope: &JournalScope, layout: &RamLayout) -> Offer {
    let ram = layout.blocks().iter().map(|block| RamBlockInfo {
        name: block.name().to_owned(),
        bytes: block.bytes(),
    });
    Offer {
        migration: scope.migration.0,
        vm: scope.vm.clone(),
        source_node: scope.peer_node.clone(),
        epoch: scope.epoch,
        vmm: String::new(),
        ram: ram.collect(),
        streams: 0,
        fingerprint_seed: scope.memory.fingerprint_seed,
        verify_full: false,
        sample_pages: 0,
        ack_bytes: 0,
        peer_silence_ms: FIRST_SILENCE.as_millis() as u32,
        dry_run: false,
        reuse: false,
    }
}

/// Pages without memory.
fn holes(layout: &RamLayout) -> Result<RamBitmap, VmmError> {
    let mut missing = layout.empty_bitmap();
    for (block, missing) in layout.blocks().iter().zip(&mut missing.blocks) {
        let mut data = missing.clone();
        block.mark_data(&mut data)?;
        missing.set_range(0, block.pages());
        missing.subtract(&data);
    }
    Ok(missing)
}

impl DestinationDriver {
    /// Reaches the VM, which may answer only when pages have come, to run it.
    fn reopen_vm(&self, attachment: Attachment) {
        let (mailbox, stop) = (self.mailbox.clone(), Arc::clone(&self.vm_stop));
        let reopen = move || reopen(&attachment, &mailbox, &stop);
        if let Err(error) = std::thread::Builder::new()
            .name("dwcp-device".into())
            .spawn(reopen)
        {
            tracing::error!(%error, "no thread to reach the VM");
        }
    }

    pub(super) fn vm_is_back(&mut self, vm: Box<dyn vmm::Vm>) {
        self.vm = Some(Arc::new(Mutex::new(vm)));
        self.resume_vm();
    }
}

fn reopen(
    attachment: &Attachment,
    mailbox: &Mailbox<DestinationInput>,
    stop: &std::sync::atomic::AtomicBool,
) {
    while !stop.load(std::sync::atomic::Ordering::Acquire) {
        match vmm::open(attachment) {
            Ok(vm) => return drop(mailbox.push(DestinationInput::VmIsBack(vm))),
            Err(VmmError::Gone(reason)) => {
                let event = DestinationEvent::Failed(dwcp_wire::AbortCode::Vmm, reason);
                return drop(mailbox.push(DestinationInput::Event(event)));
            }
            Err(error) => tracing::info!(%error, "the VM does not answer yet"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
}
