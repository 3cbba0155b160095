//! A data plane that was started anew while a destination needed pages of a guest that stands here.

use std::sync::Arc;

use dwcp_api::TransferSettings;
use dwcp_proto::{Source, SourceAction, SourceConfig};

use super::Request;
use super::begin::{Parts, driver, limits, offer, recorder, session};
use crate::engine::Mailbox;
use crate::migration::node::{JournalScope, Node, PeerNode};
use crate::migration::secure::Way;
use crate::vmm::tracker::Fingerprints;
use crate::vmm::{Vm, VmmError};

/// Time limit for connecting, and of silence: what was agreed on is forgotten.
const TIME_MS: u32 = 5000;

/// Serves pages until the destination needs none any more. Runs on the caller's thread.
///
/// # Errors
/// In words: nobody serves them.
pub(in crate::migration) fn serve_again(
    node: &Arc<Node>,
    scope: JournalScope,
    mut vm: Box<dyn Vm>,
    settings: &TransferSettings,
) -> Result<(), VmmError> {
    let failed = |text: String| VmmError::Failed(text);
    let way = Way::of_record(&scope).map_err(|error| failed(error.message))?;
    let facts = vm.facts()?;
    let layout = vm.ram()?;
    let request = Request {
        id: scope.migration,
        vm: scope.vm.clone(),
        destination: PeerNode {
            name: Some(scope.peer_node.clone()).filter(|name| *name != scope.peer_address),
            address: scope.peer_address.clone(),
        },
        settings: TransferSettings {
            connect_timeout_ms: TIME_MS,
            peer_silence_ms: TIME_MS,
            ..settings.clone()
        },
        dry_run: false,
    };
    let config = SourceConfig {
        offer: offer(node, &request, &facts, scope.epoch, 0),
        limits: limits(&request.settings),
        deadline_ns: 0,
        silence_ns: u64::from(TIME_MS) * 1_000_000,
    };
    let machine = Source::serving_again(config, scope.epoch + 1);
    let mut recorder = recorder(&request, "", layout.bytes());
    recorder.accepted = true;
    recorder.note("the data plane was started anew while the destination needed pages".into());
    let handle = node.register(
        scope.migration,
        recorder.status(machine.phase(), false, None),
    );
    let mailbox = Mailbox::new().map_err(|error| failed(error.to_string()))?;
    let mut driver = driver(Parts {
        node: Arc::clone(node),
        session: session(layout, 0, &request.settings),
        request,
        handle,
        journal: scope,
        machine,
        mailbox,
        recorder,
        way,
        tracker: Box::new(Fingerprints),
        vm,
    });
    driver.join_shares();
    driver.perform(SourceAction::ServeAgain);
    driver.drive();
    Ok(())
}
