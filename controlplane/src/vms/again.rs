//! Attaching the recorded VMs again after a start of either daemon, for as long as it takes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::Vms;
use crate::dataplane::Link;

/// VMs that are attached again at once: one that is slow does not keep the others waiting.
const ATTACHING_MAX: usize = 16;

/// Before the second try; doubled before each further one.
const DELAY_FIRST: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// VMs that are to be attached again, with what was last in the way; empty before the first try.
/// Whoever takes a name out ends the tries for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    reasons: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Waiting {
    fn reasons(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, names: &[String]) {
        *self.reasons() = names
            .iter()
            .map(|name| (name.clone(), String::new()))
            .collect();
    }

    /// The VM is attached, or forgotten.
    pub(super) fn end(&self, name: &str) {
        self.reasons().remove(name);
    }

    /// What was last in the way of a VM that waits.
    pub(super) fn why(&self, name: &str) -> Option<String> {
        self.reasons().get(name).cloned()
    }

    /// Whether this is another reason than before.
    fn note(&self, name: &str, why: &str) -> bool {
        self.reasons()
            .get_mut(name)
            .is_some_and(|known| std::mem::replace(known, why.to_owned()) != why)
    }
}

impl Vms {
    /// Attaches the recorded VMs whenever the data plane comes up, and tries on with those that it
    /// cannot attach yet; ends with the connection's task.
    pub async fn keep_attached(self) {
        let mut links = self.client.watch();
        loop {
            let is_up = matches!(*links.borrow_and_update(), Link::Up(_));
            let attaching = async {
                if is_up {
                    self.attach_recorded().await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                // A data plane that is gone is not asked any more; the next one gets all VMs.
                changed = links.changed() => if changed.is_err() {
                    return;
                },
                () = attaching => {}
            }
        }
    }

    async fn attach_recorded(&self) {
        let names = {
            // Who forgets a VM takes it out of the record first: it cannot come to wait thereafter.
            let store = self.store();
            let names: Vec<_> = store.vms().keys().cloned().collect();
            self.waiting.begin(&names);
            names
        };
        self.end_attached().await;
        let places = Semaphore::new(ATTACHING_MAX);
        join_all(names.iter().map(|name| self.attach_again(name, &places))).await;
    }

    /// A data plane that was not restarted has its VMs: attaching them again would look at each anew,
    /// and keep users from it meanwhile.
    async fn end_attached(&self) {
        let Ok(Reply::Vms(list)) = self.client.call(Request::ListVms).await else {
            return;
        };
        let store = self.store();
        for vm in &list {
            // What is not settled may yet end without the VM.
            let is_settled = !["attaching", "in doubt"].contains(&vm.state.as_str());
            if is_settled && store.vms().get(&vm.name) == Some(&vm.attachment) {
                self.waiting.end(&vm.name);
            }
        }
    }

    async fn attach_again(&self, name: &str, places: &Semaphore) {
        let mut delay = DELAY_FIRST;
        loop {
            let tried = {
                let _place = places.acquire().await;
                self.try_again(name).await
            };
            if tried.is_break() {
                return;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }

    /// One try, in the VM's turn: what was recorded may have changed since the last.
    async fn try_again(&self, name: &str) -> ControlFlow<()> {
        let _turn = self.turns.take(name).await;
        let recorded = self.store().vms().get(name).cloned();
        let (Some(attachment), Some(_)) = (recorded, self.waiting.why(name)) else {
            self.waiting.end(name);
            return ControlFlow::Break(());
        };
        let request = Request::AttachVm {
            name: name.to_owned(),
            attachment,
        };
        match self.client.call(request).await {
            Ok(_) => {
                self.waiting.end(name);
                tracing::info!(vm = name, "attached again");
                ControlFlow::Break(())
            }
            Err(error) => {
                self.note_failure(name, &error);
                ControlFlow::Continue(())
            }
        }
    }

    fn note_failure(&self, name: &str, error: &ApiError) {
        let text = error.to_string();
        let why = text.strip_prefix(&format!("VM {name}: ")).unwrap_or(&text);
        // A VM that somebody has to himself is no fault: this daemon was restarted and the data plane
        // was not, or it is in doubt, or an earlier try goes on. That says less than a reason before.
        if matches!(error.code, ErrorCode::Busy | ErrorCode::PlaneDown) {
            if self.waiting.why(name).is_some_and(|known| known.is_empty()) {
                self.waiting.note(name, why);
            }
            tracing::debug!(vm = name, why, "not attached yet");
        } else if self.waiting.note(name, why) {
            tracing::warn!(vm = name, why, "not attached again yet, it is tried on");
        }
    }
}
