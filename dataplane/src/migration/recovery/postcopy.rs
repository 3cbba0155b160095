//! Post-copy after a restart: pages that a guest lacks here, or that one elsewhere needs from here.

use std::sync::Arc;

use dwcp_api::TransferSettings;
use dwcp_journal::{RecordKind, Stage, Unfinished};
use dwcp_proto::{LastRecord, SourceRecovery, recover_source};

use super::{Reached, fail, reach_at_last, spawn_question};
use crate::migration::destination::fetch_again;
use crate::migration::doubt::ASK_AGAIN;
use crate::migration::node::{JournalScope, Node};
use crate::migration::source::serve_again;
use crate::vmm::{self, VmmError};

/// Goes on with what is post-copied here or from here; gives back what is not.
pub(super) fn recover(
    node: &Arc<Node>,
    unfinished: Unfinished,
    settings: &TransferSettings,
) -> Option<Unfinished> {
    let (fetches, serves) = (is_fetching(&unfinished), unfinished.stage == Stage::Serving);
    if !fetches && !serves {
        lift_missing(&unfinished);
        return Some(unfinished);
    }
    // Nobody else may have it, or look at it, from the first moment on.
    if let Some(attachment) = &unfinished.attachment {
        node.hold_moving(&unfinished.vm, attachment, unfinished.migration);
    }
    // Its VMM may wait for a page, and answer when that has come.
    let (node, settings) = (Arc::clone(node), settings.clone());
    spawn_question(move || {
        if fetches {
            recover_fetching(&node, &unfinished, &settings);
        } else {
            recover_serving(&node, &unfinished, &settings);
        }
    });
    None
}

/// Whether pages of a guest that this node owns may be missing.
const fn is_fetching(unfinished: &Unfinished) -> bool {
    unfinished.fetching.is_some() && matches!(unfinished.stage, Stage::Committed | Stage::Resumed)
}

/// A guest that was to be post-copied here, and never was handed over: its VMM may wait for a page.
pub(super) fn lift_missing(unfinished: &Unfinished) {
    let (Some(memory), Some(attachment)) = (&unfinished.fetching, &unfinished.attachment) else {
        return;
    };
    if is_fetching(unfinished) {
        return;
    }
    if let Err(error) = vmm::lift_missing(attachment, memory) {
        tracing::info!(vm = unfinished.vm, %error, "its faults are the kernel's");
    }
}

fn recover_fetching(node: &Arc<Node>, unfinished: &Unfinished, settings: &TransferSettings) {
    loop {
        match fetch_again(node, JournalScope::from(unfinished), unfinished, settings) {
            Ok(()) => return,
            Err(VmmError::Gone(reason)) => {
                let reason =
                    format!("owned here, and its VMM is gone with the pages it had: {reason}");
                tracing::error!(vm = unfinished.vm, reason);
                // The source asks until it is told.
                let kind = RecordKind::Failed { reason };
                while let Err(error) = JournalScope::from(unfinished).write(node, kind.clone()) {
                    tracing::error!(vm = unfinished.vm, error, "journal");
                    std::thread::sleep(ASK_AGAIN);
                }
                node.give_vm(&unfinished.vm);
                return;
            }
            Err(error) => {
                tracing::error!(vm = unfinished.vm, %error, "its pages cannot be fetched yet");
                std::thread::sleep(ASK_AGAIN);
            }
        }
    }
}

/// The destination needs pages of a guest that stands here.
pub(in crate::migration) fn recover_serving(
    node: &Arc<Node>,
    unfinished: &Unfinished,
    settings: &TransferSettings,
) {
    loop {
        let Reached { vm, state, .. } = reach_at_last(unfinished);
        let (SourceRecovery::Serve, Some(vm)) = (recover_source(LastRecord::Serving, state), vm)
        else {
            let reason = "handed over, and its VMM is gone from here with pages that the \
                          destination may still need";
            fail(node, &JournalScope::from(unfinished), reason.into());
            node.give_vm(&unfinished.vm);
            return;
        };
        match serve_again(node, JournalScope::from(unfinished), vm, settings) {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(vm = unfinished.vm, %error, "pages cannot be served yet");
                std::thread::sleep(ASK_AGAIN);
            }
        }
    }
}
