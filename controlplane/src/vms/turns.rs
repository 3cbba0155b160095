//! One at a time for each VM.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Who changes a VM takes its turn; VMs do not wait for each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    by_name: Arc<Mutex<HashMap<String, Arc<Turn<()>>>>>,
}

impl Turns {
    /// Waits until nobody else changes this VM; the turn ends with the guard.
    pub(super) async fn take(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
            // Names come from outside: those that nobody holds or waits for are forgotten.
            by_name.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(by_name.entry(name.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}
