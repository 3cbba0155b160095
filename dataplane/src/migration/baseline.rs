//! The baseline of a VM that left: written by a thread of its own, for the disk is slow.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::node::Node;
use crate::engine::Session;

/// Keeps the VM's RAM, which is held until it is on the disk.
pub(super) fn keep(node: &Arc<Node>, vm: &str, session: Arc<Session>) {
    if node.store.is_none() {
        return;
    }
    let (node, vm) = (Arc::clone(node), vm.to_owned());
    let work = move || {
        let Some(store) = &node.store else { return };
        match store.keep(&vm, &session.layout, &AtomicBool::new(false)) {
            Ok(bytes) => tracing::info!(vm, bytes, "baseline kept"),
            Err(error) => tracing::warn!(vm, %error, "no baseline is kept"),
        }
    };
    let thread = std::thread::Builder::new().name("dwcp-baseline".into());
    if let Err(error) = thread.spawn(work) {
        tracing::warn!(%error, "no thread for the store");
    }
}
