//! Baselines of VMs that leave and come back: each with a thread of its own, for the disk is slow.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::node::Node;
use crate::engine::Session;
use crate::ram::RamLayout;
use crate::store::Store;

/// The VM has left: keeps its RAM, which is held until it is on the disk.
pub(super) fn keep(node: &Arc<Node>, vm: &str, session: Arc<Session>) {
    let vm = vm.to_owned();
    apart(node, move |store| {
        match store.keep(&vm, &session.layout, &AtomicBool::new(false)) {
            Ok(bytes) => tracing::info!(vm, bytes, "baseline kept"),
            Err(error) => tracing::warn!(vm, %error, "no baseline is kept"),
        }
    });
}

/// The VM runs here: what was kept of it is old from now on.
pub(super) fn forget(node: &Arc<Node>, vm: &str) {
    let vm = vm.to_owned();
    apart(node, move |store| store.forget(&vm));
}

/// The VM is about to come: what was kept of it is put into its RAM. What there is to say of it.
pub(super) fn fill(node: &Node, vm: &str, ram: &RamLayout, stop: &AtomicBool) -> Option<String> {
    match node.store.as_ref()?.fill(vm, ram, stop) {
        Ok(0) => None,
        Ok(pages) => Some(format!(
            "{pages} pages are here since the VM left this node"
        )),
        Err(error) => Some(format!("what was kept of the VM is of no use: {error}")),
    }
}

fn apart(node: &Arc<Node>, work: impl FnOnce(&Store) + Send + 'static) {
    if node.store.is_none() {
        return;
    }
    let node = Arc::clone(node);
    let work = move || {
        if let Some(store) = &node.store {
            work(store);
        }
    };
    let thread = std::thread::Builder::new().name("dwcp-baseline".into());
    if let Err(error) = thread.spawn(work) {
        tracing::warn!(%error, "no thread for the store");
    }
}
