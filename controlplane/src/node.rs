//! All rooms together: a node from its options, until it is told to end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use dwcp_api::dataplane::{Finding, FindingLevel, Reply, Request};
use dwcp_api::node::NodeStatus;
use dwcp_api::{
    ApiError, ErrorCode, NodeIdentity, RecoverRequest, Recovery, StoreEntry, StoreRequest,
    TransferSettings,
};
use tokio::task::JoinSet;

use crate::api::{ListenError, Server};
use crate::dataplane::{Client, Link};
use crate::folder::{FolderError, StateFolder};
use crate::ledger::Ledger;
use crate::migrations::Migrations;
use crate::vms::{Vms, unexpected};

/// What a node is started with: flags over the file over built-in values.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the node.
    pub name: String,
    /// State folder, shared with the data plane.
    pub state_folder: PathBuf,
    /// Socket to serve.
    pub socket: PathBuf,
    /// Socket of the data plane.
    pub dataplane_socket: PathBuf,
    /// What SIGHUP reads again.
    pub reloadable: Reloadable,
}

/// What can be changed while the node runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloadable {
    /// Peers: name and `host:port`.
    pub peers: Vec<(String, String)>,
    /// The default profile, resolved.
    pub default_settings: TransferSettings,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The state folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl StartError {
    /// Whether another process stands in the way.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::Folder(FolderError::InUse { .. }) | Self::Listen(ListenError::InUse { .. })
        )
    }
}

/// A node's rooms.
#[derive(Debug)]
pub struct Node {
    identity: NodeIdentity,
    reloadable: RwLock<Reloadable>,
    client: Client,
    vms: Vms,
    migrations: Migrations,
    ledger: Ledger,
    folder: StateFolder,
}

/// A node that serves; ends when [`Running::run`] does.
#[derive(Debug)]
pub struct Running {
    node: Arc<Node>,
    server: Server,
    tasks: JoinSet<()>,
}

impl Node {
    /// Takes the state folder, binds the socket, starts looking for the data plane.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(options: Options) -> Result<Running, StartError> {
        let folder = StateFolder::open(&options.state_folder)?;
        let identity = NodeIdentity {
            name: options.name,
            id: folder.node_id()?,
        };
        let server = Server::bind(&options.socket)?;
        let (client, connection) = Client::new(options.dataplane_socket, identity.clone());
        let vms = Vms::open(folder.path(), client.clone())?;
        let ledger = Ledger::new(folder.path());
        let migrations = Migrations::new(client.clone(), ledger.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(vms.clone().keep_attached());
        let node = Arc::new(Self {
            identity,
            reloadable: RwLock::new(options.reloadable),
            client,
            vms,
            migrations,
            ledger,
            folder,
        });
        Ok(Running {
            node,
            server,
            tasks,
        })
    }

    /// VMs.
    #[must_use]
    pub const fn vms(&self) -> &Vms {
        &self.vms
    }

    /// Migrations.
    #[must_use]
    pub const fn migrations(&self) -> &Migrations {
        &self.migrations
    }

    /// Ownership.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The peers now.
    #[must_use]
    pub fn peers(&self) -> Vec<(String, String)> {
        self.reloadable().peers
    }

    /// Takes over what may change while the node runs.
    pub fn reload(&self, reloadable: Reloadable) {
        *self
            .reloadable
            .write()
            .unwrap_or_else(PoisonError::into_inner) = reloadable;
    }

    fn reloadable(&self) -> Reloadable {
        self.reloadable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The node as others see it.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let (dataplane, dataplane_pid) = match self.client.link() {
            Link::Up(peer) => (Some(peer.listen.clone()), Some(peer.pid)),
            Link::Down(_) => (None, None),
        };
        let reloadable = self.reloadable();
        NodeStatus {
            node: self.identity.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dataplane,
            dataplane_pid,
            peers: reloadable.peers,
            default_settings: reloadable.default_settings,
        }
    }

    /// Has the data plane do what is asked of its store; returns what that has then.
    ///
    /// # Errors
    /// What the data plane says.
    pub async fn ask_store(&self, request: StoreRequest) -> Result<Vec<StoreEntry>, ApiError> {
        match self.client.call(Request::Store(request)).await? {
            Reply::Store(entries) => Ok(entries),
            other => Err(unexpected(&other)),
        }
    }

    /// Half-done migrations; without a data plane, those that the journal knows.
    ///
    /// # Errors
    /// What the data plane says.
    pub async fn recover(&self, request: RecoverRequest) -> Result<Recovery, ApiError> {
        let lists = request == RecoverRequest::List;
        match self.client.call(Request::Recover(request)).await {
            Ok(Reply::Recovery(recovery)) => Ok(recovery),
            Ok(other) => Err(unexpected(&other)),
            Err(error) if lists && error.code == ErrorCode::PlaneDown => Ok(Recovery {
                said: error.message,
                half_done: self.ledger.half_done().await?,
            }),
            Err(error) => Err(error),
        }
    }

    /// What the data plane and the control plane found; without a data plane, that.
    ///
    /// # Errors
    /// An answer that is none.
    pub async fn doctor(&self) -> Result<Vec<Finding>, ApiError> {
        let mut findings = match self.client.call(Request::Doctor).await {
            Ok(Reply::Doctor(findings)) => findings,
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if error.code == ErrorCode::PlaneDown => vec![Finding {
                subject: "data plane".to_owned(),
                level: FindingLevel::Missing,
                found: error.message,
                advice: error.hint.unwrap_or_default(),
            }],
            Err(error) => return Err(error),
        };
        findings.push(state_folder_finding(self.folder.path()));
        findings.push(self.ledger.finding().await);
        Ok(findings)
    }
}

impl Running {
    /// The node's rooms.
    #[must_use]
    pub fn node(&self) -> Arc<Node> {
        Arc::clone(&self.node)
    }

    /// Serves until `end` completes, then closes and removes the socket. Migrations go on: they
    /// are the data plane's.
    pub async fn run(mut self, end: impl Future<Output = ()>) {
        tokio::select! {
            () = self.server.serve(Arc::clone(&self.node)) => {}
            () = end => {}
        }
        self.tasks.shutdown().await;
    }
}

/// A journal in memory does not survive a power cut, and with it goes what keeps a VM from running
/// twice.
fn state_folder_finding(path: &Path) -> Finding {
    let in_memory = nix::sys::statfs::statfs(path)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    let (level, advice) = if in_memory {
        let advice = "it is in memory: a restart of the machine loses the handover journal; use a \
                      folder on a disk";
        (FindingLevel::Fallback, advice)
    } else {
        (FindingLevel::Good, "")
    };
    Finding {
        subject: "state folder".to_owned(),
        level,
        found: path.display().to_string(),
        advice: advice.to_owned(),
    }
}
