//! A migration as others see it: its status, and what they ask of its driver.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_api::{MigrationId, MigrationReport, MigrationStatus, Tune};

use super::node::lock;
use super::settle::{Settled, Settlement};

/// A migration as others see it.
#[derive(Debug)]
pub struct MigrationHandle {
    /// Which.
    pub id: MigrationId,
    /// VM name.
    pub vm: String,
    cancelled: AtomicBool,
    /// What is to change, until the driver takes it.
    tunes: Mutex<VecDeque<Tune>>,
    /// What an operator has decided, until whoever waits for the other node takes it.
    settlement: Mutex<Option<Settlement>>,
    /// What was done of it, until the migration has ended.
    settled: Mutex<Option<Settled>>,
    /// Why the other node has not answered yet, in words.
    trouble: Mutex<String>,
    /// Its place on the page of counters.
    pub(super) slot: usize,
    status: Mutex<MigrationStatus>,
}

impl MigrationHandle {
    pub(super) fn new(id: MigrationId, slot: usize, status: MigrationStatus) -> Self {
        Self {
            id,
            vm: status.vm.clone(),
            cancelled: AtomicBool::new(false),
            tunes: Mutex::default(),
            settlement: Mutex::default(),
            settled: Mutex::default(),
            trouble: Mutex::default(),
            slot,
            status: Mutex::new(status),
        }
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> MigrationStatus {
        lock(&self.status).clone()
    }

    /// Asks for the guest back.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether that was asked; true once.
    pub(super) fn take_cancel(&self) -> bool {
        self.cancelled.swap(false, Ordering::AcqRel)
    }

    /// Lets the driver change something. One that is busy needs the last wish of a kind only.
    pub(super) fn tune(&self, tune: Tune) {
        let mut tunes = lock(&self.tunes);
        tunes.retain(|other| std::mem::discriminant(other) != std::mem::discriminant(&tune));
        tunes.push_back(tune);
    }

    /// What is to change, in the order in which it was asked for.
    pub(super) fn take_tune(&self) -> Option<Tune> {
        lock(&self.tunes).pop_front()
    }

    /// Lets the driver, or the question, carry out what an operator has decided.
    pub(super) fn settle(&self, settlement: Settlement) {
        *lock(&self.settlement) = Some(settlement);
    }

    pub(super) fn has_settlement(&self) -> bool {
        lock(&self.settlement).is_some()
    }

    pub(super) fn take_settlement(&self) -> Option<Settlement> {
        lock(&self.settlement).take()
    }

    /// Answers an operator's decision once the migration has ended by it: what he asks next finds it ended.
    pub(super) fn answer_at_end(&self, settled: Settled) {
        *lock(&self.settled) = Some(settled);
    }

    /// Notes why the other node has not answered yet.
    pub(super) fn note_trouble(&self, text: String) {
        *lock(&self.trouble) = text;
    }

    /// Why the other node has not answered yet; empty when it was not asked.
    pub(super) fn trouble(&self) -> String {
        lock(&self.trouble).clone()
    }

    pub(super) fn publish(&self, status: MigrationStatus) {
        *lock(&self.status) = status;
    }

    pub(super) fn finish(&self, mut status: MigrationStatus, report: MigrationReport) {
        status.report = Some(report);
        self.publish(status);
        if let Some(settled) = lock(&self.settled).take() {
            settled.answer();
        }
    }
}
