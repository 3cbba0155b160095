//! What is kept of a VM that left, and of one that came: written by a thread of its own, for the disk is slow.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::node::Node;
use crate::engine::{AsItCame, Session};
use crate::store::{Arrival, Store, StoreError};

/// Keeps the RAM of a VM that left by `migration`; it is held until it is on the disk.
pub(super) fn keep(node: &Arc<Node>, vm: &str, migration: u128, session: Arc<Session>) {
    let owned = vm.to_owned();
    write(node, vm, "no baseline is kept", move |store| {
        let stop = AtomicBool::new(false);
        let bytes = store.keep((&owned, migration), &session.layout, &stop)?;
        tracing::info!(vm = owned, bytes, "baseline kept");
        Ok(())
    });
}

/// Keeps what the RAM of a VM was when it came by `migration`.
pub(super) fn keep_arrival(node: &Arc<Node>, vm: &str, migration: u128, session: &Arc<Session>) {
    let (owned, session) = (vm.to_owned(), Arc::clone(session));
    write(
        node,
        vm,
        "its way back will not be as short",
        move |store| {
            let came = AsItCame::of(&session);
            let arrival = Arrival::of((&owned, migration), &session.layout, came);
            // The store may be busy for minutes.
            drop(session);
            store.keep_arrival(&arrival)
        },
    );
}

fn write(
    node: &Arc<Node>,
    vm: &str,
    otherwise: &'static str,
    work: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
) {
    let Some(store) = node.store.clone() else {
        return;
    };
    let vm = vm.to_owned();
    let run = move || {
        if let Err(error) = work(&store) {
            tracing::warn!(vm, %error, otherwise);
        }
    };
    let thread = std::thread::Builder::new().name("dwcp-baseline".into());
    if let Err(error) = thread.spawn(run) {
        tracing::warn!(%error, "no thread for the store");
    }
}
