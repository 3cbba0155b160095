//! One node's data plane: its VMs, its journal, its migrations.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use dwcp_api::counters::{Counters, CountersPage};
use dwcp_api::{
    ApiError, ErrorCode, MigrationId, MigrationStatus, PhaseName, Role, TransferSettings, Tune,
};
use dwcp_journal::Journal;
use dwcp_pki::CertificateFacts;

use super::admission::Admission;
use super::destination::DestinationInput;
use super::handle::MigrationHandle;
pub(super) use super::journal_scope::JournalScope;
use super::placement;
use super::shares::Shares;
use super::vms::{self, VmTable};
use super::vms_look::Looking;
use crate::engine::Mailbox;
use crate::store::{Indexing, Store, StoreError};
use crate::tls::{TlsError, TlsFiles, TlsNode};
use crate::transport::{RdmaListener, Stock};
use crate::vmm::RunState;

/// How a node is to run.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name, told to other nodes.
    pub name: String,
    /// Folder of the journal and the sockets.
    pub state_folder: PathBuf,
    /// Address to listen on for other nodes.
    pub listen: String,
    /// Address to take queue pairs at: that of one of its RDMA devices. Without one that of `listen`.
    pub rdma_listen: Option<String>,
    /// Disk for the RAM of VMs that left; 0 keeps none.
    pub store_bytes_max: u64,
    /// Its certificate, if it has one.
    pub tls: Option<TlsFiles>,
    /// Migrations may come in plain text though it has one.
    pub allow_plain_text: bool,
    /// Bytes a second that all migrations that leave send at most, together; 0 is no limit.
    pub outgoing_bytes_per_s: u64,
    /// Migrations that come in at once; more wait until one of them has ended. 0 is no limit.
    pub incoming_at_once: usize,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct PeerNode {
    /// Its name, where it is known.
    pub name: Option<String>,
    /// `host:port` of its data plane.
    pub address: String,
}

impl PeerNode {
    /// The name, or what is known instead.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.address)
    }
}

impl From<&String> for PeerNode {
    fn from(address: &String) -> Self {
        Self {
            name: None,
            address: address.clone(),
        }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] dwcp_journal::JournalError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its certificate.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The counters page.
    #[error(transparent)]
    Counters(#[from] dwcp_api::counters::CountersError),
    /// A socket.
    #[error("{what}: {source}")]
    Socket {
        /// Which.
        what: String,
        /// The failure.
        source: std::io::Error,
    },
}

/// Nodes whose ways are remembered.
const PEERS_MAX: usize = 1024;

/// A node. Shared by its control socket, its listener and its drivers.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    journal: Journal,
    counters: CountersPage,
    /// Where other nodes reach this one, once it listens.
    pub(super) listening: OnceLock<SocketAddr>,
    /// Where it takes queue pairs, once it does.
    pub(super) rdma: Mutex<Option<Arc<RdmaListener>>>,
    /// What it grants to migrations that come in.
    pub(super) incoming_settings: OnceLock<TransferSettings>,
    pub(super) vms: Mutex<VmTable>,
    pub(super) looking: Looking,
    /// How long a page with data took on the way to a node, by its name; nanoseconds.
    page_times: Mutex<HashMap<String, u64>>,
    migrations: Mutex<Vec<Arc<MigrationHandle>>>,
    joins: Mutex<HashMap<u128, Mailbox<DestinationInput>>>,
    incoming: Mutex<HashMap<MigrationId, Mailbox<DestinationInput>>>,
    next_slot: AtomicUsize,
    pub(super) admission: Arc<Admission>,
    /// The same of those that come in.
    pub(super) admission_in: Arc<Admission>,
    /// What those that leave have of its bandwidth.
    pub(super) shares: Arc<Shares>,
    /// Its certificate.
    pub(super) tls: Option<TlsNode>,
    /// RAM of VMs that left.
    pub(super) store: Option<Arc<Store>>,
    pub(super) indexing: Indexing,
    /// What workers leave to those of the next migrations.
    pub(super) stock: Stock,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// A node over its state folder.
    ///
    /// # Errors
    /// [`NodeError::Journal`] when another data plane runs on the folder.
    pub fn new(options: NodeOptions) -> Result<Self, NodeError> {
        // Now: a first migration would wait for it. What is wrong with it is said then.
        let _ = placement::machine();
        let store = match options.store_bytes_max {
            0 => None,
            most => {
                let folder = options.state_folder.join("store");
                Some(Arc::new(Store::open(folder, most)?))
            }
        };
        let tls = options.tls.clone();
        let tls = tls.map(|files| TlsNode::new(files, &options.name));
        let tls = tls.transpose()?;
        Ok(Self {
            journal: Journal::open(&options.state_folder)?,
            counters: CountersPage::create()?,
            shares: Arc::new(Shares::new(options.outgoing_bytes_per_s)),
            options,
            listening: OnceLock::new(),
            rdma: Mutex::default(),
            incoming_settings: OnceLock::new(),
            vms: Mutex::default(),
            looking: Looking::default(),
            page_times: Mutex::default(),
            migrations: Mutex::default(),
            joins: Mutex::default(),
            incoming: Mutex::default(),
            next_slot: AtomicUsize::new(0),
            admission: Arc::default(),
            admission_in: Arc::default(),
            tls,
            store,
            indexing: Indexing::default(),
            stock: Stock::default(),
        })
    }

    /// Options it was started with.
    #[must_use]
    pub const fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Its journal.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What its certificate says, if it has one.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateFacts> {
        let tls = self.tls.as_ref()?;
        Some(tls.identity().facts().clone())
    }

    /// What is to be said of the files of its certificate, a line each.
    #[must_use]
    pub fn certificate_doubts(&self) -> Vec<String> {
        self.tls.as_ref().map(TlsNode::doubts).unwrap_or_default()
    }

    /// How long a page with data took when a VM was moved to that node last, in nanoseconds.
    pub(super) fn page_time(&self, peer: &str) -> Option<u64> {
        lock(&self.page_times).get(peer).copied()
    }

    pub(super) fn note_page_time(&self, peer: &str, page_ns: u64) {
        let mut times = lock(&self.page_times);
        if times.len() >= PEERS_MAX {
            times.clear();
        }
        times.insert(peer.to_owned(), page_ns);
    }

    /// Its counters page.
    #[must_use]
    pub const fn counters(&self) -> &CountersPage {
        &self.counters
    }

    pub(super) fn register(
        &self,
        id: MigrationId,
        status: MigrationStatus,
    ) -> Arc<MigrationHandle> {
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(MigrationHandle::new(id, slot, status));
        let mut migrations = lock(&self.migrations);
        // Old ends are history: the journal has them.
        if migrations.len() >= MIGRATIONS_SHOWN {
            let ended = migrations
                .iter()
                .position(|old| old.status().report.is_some());
            migrations.remove(ended.unwrap_or(0));
        }
        migrations.push(Arc::clone(&handle));
        handle
    }

    /// All migrations since the start, oldest first.
    #[must_use]
    pub fn migrations(&self) -> Vec<Arc<MigrationHandle>> {
        lock(&self.migrations).clone()
    }

    /// One migration; the newest part that this node has in it.
    #[must_use]
    pub fn migration(&self, id: MigrationId) -> Option<Arc<MigrationHandle>> {
        lock(&self.migrations)
            .iter()
            .rev()
            .find(|handle| handle.id == id)
            .cloned()
    }

    /// How a migration is.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn status(&self, id: MigrationId) -> Result<MigrationStatus, ApiError> {
        let handle = self.migration(id);
        handle
            .map(|handle| handle.status())
            .ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no migration {id} here")))
    }

    /// Asks for the guest back, while this node can still have it.
    ///
    /// # Errors
    /// [`ErrorCode::TooLate`] once the destination decides or has decided, [`ErrorCode::Peer`] when
    /// that is not known here.
    pub fn cancel(&self, id: MigrationId) -> Result<(), ApiError> {
        let status = self.status(id)?;
        if let Some(refusal) = vms::too_late(&status) {
            return Err(refusal);
        }
        if let Some(handle) = self.migration(id) {
            handle.cancel();
        }
        Ok(())
    }

    /// Changes how a VM is moved away.
    ///
    /// # Errors
    /// As [`Self::cancel`], and [`ErrorCode::BadRequest`] where it does not leave this node.
    pub fn tune(&self, id: MigrationId, tune: Tune) -> Result<(), ApiError> {
        let status = self.status(id)?;
        if status.role == Role::Destination {
            let text = format!("VM {} comes to this node", status.vm);
            return Err(ApiError::new(ErrorCode::BadRequest, text)
                .with_hint("how it is moved is said at its source"));
        }
        let is_postcopy = matches!(
            status.phase,
            PhaseName::Postcopy | PhaseName::PostcopyPaused
        );
        if is_postcopy && tune == Tune::PostCopy {
            let text = format!("VM {} is in post-copy already", status.vm);
            return Err(ApiError::new(ErrorCode::TooLate, text));
        }
        // Pages that follow the guest keep a limit, too.
        let is_in_time = is_postcopy && matches!(tune, Tune::BandwidthLimitMbit(_));
        if let Some(refusal) = vms::too_late(&status).filter(|_| !is_in_time) {
            return Err(refusal);
        }
        if let Some(handle) = self.migration(id) {
            handle.tune(tune);
        }
        Ok(())
    }

    pub(super) fn publish_counters(&self, handle: &MigrationHandle, counters: Counters) {
        self.counters.publish(handle.slot, handle.id, counters);
    }

    /// Lets streams that know `token` join.
    pub(super) fn expect_joins(&self, token: u128, mailbox: Mailbox<DestinationInput>) {
        lock(&self.joins).insert(token, mailbox);
    }

    pub(super) fn no_more_joins(&self, token: u128) {
        lock(&self.joins).remove(&token);
    }

    pub(super) fn joins_of(&self, token: u128) -> Option<Mailbox<DestinationInput>> {
        lock(&self.joins).get(&token).cloned()
    }

    /// Notes a migration to this node while its driver runs.
    pub(super) fn incoming_began(&self, id: MigrationId, mailbox: Mailbox<DestinationInput>) {
        lock(&self.incoming).insert(id, mailbox);
    }

    pub(super) fn incoming_ended(&self, id: MigrationId) {
        lock(&self.incoming).remove(&id);
    }

    pub(super) fn incoming(&self, id: MigrationId) -> Option<Mailbox<DestinationInput>> {
        lock(&self.incoming).get(&id).cloned()
    }

    /// Starts to move a VM away, on a thread of its own.
    ///
    /// # Errors
    /// When the VM is unknown, being moved, or not as it must be; when the destination is this node.
    pub fn start_migration(
        self: &Arc<Self>,
        id: MigrationId,
        vm: &str,
        destination: impl Into<PeerNode>,
        settings: TransferSettings,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        if self.migration(id).is_some() {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("migration {id} exists"),
            ));
        }
        let destination = destination.into();
        self.check_vm(vm)?;
        self.check_other(vm, &destination)?;
        let request = super::source::Request {
            id,
            vm: vm.to_owned(),
            destination,
            settings,
            dry_run,
        };
        super::source::start(self, &request)
    }
}

/// Migrations that are kept for `dwcp status`.
const MIGRATIONS_SHOWN: usize = 1024;

/// Whether a guest in this state may be moved away.
pub(super) fn check_running(state: &RunState) -> Result<(), String> {
    if *state == RunState::Running {
        return Ok(());
    }
    Err(format!("the guest is {}, not running", state.name()))
}
