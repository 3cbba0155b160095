//! The VMs of this node: attached at the data plane, and again whenever one of the two daemons was
//! restarted.

mod again;
mod store;
mod turns;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, Attachment, ErrorCode, VmInfo};

use crate::dataplane::Client;
use crate::folder::FolderError;
use again::Waiting;
use store::Store;
use turns::Turns;

/// VMs that a node may have.
pub const VMS_MAX: usize = 1000;

/// The VMs of this node.
#[derive(Clone, Debug)]
pub struct Vms {
    store: Arc<Mutex<Store>>,
    /// Attaching and detaching a VM take turns, so that record and data plane agree; other VMs, and
    /// who only looks, do not wait for a VMM that is slow.
    turns: Turns,
    waiting: Waiting,
    client: Client,
}

impl Vms {
    /// The VMs recorded in a state folder.
    ///
    /// # Errors
    /// [`FolderError`] when the record cannot be read.
    pub fn open(folder: &Path, client: Client) -> Result<Self, FolderError> {
        let store = Store::open(folder.join(store::FILE_NAME))?;
        Ok(Self {
            store: Arc::new(Mutex::new(store)),
            turns: Turns::default(),
            waiting: Waiting::default(),
            client,
        })
    }

    /// Attaches a VM and keeps it attached.
    ///
    /// # Errors
    /// The data plane's refusal; [`ErrorCode::BadRequest`] for a name or path that cannot be.
    pub async fn attach(&self, name: String, attachment: Attachment) -> Result<VmInfo, ApiError> {
        check_name(&name)?;
        check_attachment(&attachment)?;
        let _turn = self.turns.take(&name).await;
        if self.is_full_for(&name) {
            let message = format!("this node has {VMS_MAX} VMs already");
            return Err(ApiError::new(ErrorCode::Busy, message));
        }
        let request = Request::AttachVm {
            name: name.clone(),
            attachment: attachment.clone(),
        };
        let info = match self.client.call(request).await? {
            Reply::Vm(info) => info,
            other => return Err(unexpected(&other)),
        };
        self.waiting.end(&name);
        self.store()
            .insert(&name, attachment)
            .map_err(|error| system(&error))?;
        Ok(info)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full_for(&self, name: &str) -> bool {
        let store = self.store();
        store.vms().len() >= VMS_MAX && !store.vms().contains_key(name)
    }

    /// Forgets a VM, which goes on running; only if it is attached as `attached_as`, when that is
    /// given.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], and the data plane's refusal while the VM is being moved.
    pub async fn detach(
        &self,
        name: String,
        attached_as: Option<Attachment>,
    ) -> Result<(), ApiError> {
        let _turn = self.turns.take(&name).await;
        let recorded = self.store().vms().get(&name).cloned();
        if attached_as.is_some() && attached_as != recorded {
            let message = format!("no VM {name} is attached by these sockets");
            return Err(ApiError::new(ErrorCode::NotFound, message));
        }
        let known = recorded.is_some();
        match self
            .client
            .call(Request::DetachVm { name: name.clone() })
            .await
        {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::NotFound && known => {}
            Err(error) => return Err(error),
        }
        self.store().remove(&name).map_err(|error| system(&error))?;
        self.waiting.end(&name);
        Ok(())
    }

    /// All VMs; one that is recorded but that the data plane could not attach again is `not
    /// attached`, with the reason.
    ///
    /// # Errors
    /// [`ErrorCode::PlaneDown`].
    pub async fn list(&self) -> Result<Vec<VmInfo>, ApiError> {
        let mut list = match self.client.call(Request::ListVms).await? {
            Reply::Vms(list) => list,
            other => return Err(unexpected(&other)),
        };
        for (name, attachment) in self.store().vms() {
            let why = || self.waiting.why(name).unwrap_or_default();
            match list.iter_mut().find(|vm| vm.name == *name) {
                // Another try: what is in the way is still the reason of the last.
                Some(vm) if vm.state == "attaching" => vm.note = why(),
                Some(_) => {}
                None => list.push(VmInfo {
                    name: name.clone(),
                    attachment: attachment.clone(),
                    state: "not attached".to_owned(),
                    ram_bytes: 0,
                    tracker: String::new(),
                    vmm: String::new(),
                    note: why(),
                }),
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if dwcp_api::is_name(name) {
        return Ok(());
    }
    let message = format!("`{name:.80}` cannot name a VM");
    Err(ApiError::new(ErrorCode::BadRequest, message).with_hint(dwcp_api::NAME_RULE))
}

fn check_attachment(attachment: &Attachment) -> Result<(), ApiError> {
    let paths = match attachment {
        Attachment::Qemu {
            qmp_socket,
            uffd_socket,
        } => vec![Some(qmp_socket), uffd_socket.as_ref()],
        Attachment::Process { socket } => vec![Some(socket)],
    };
    for path in paths.into_iter().flatten() {
        if !Path::new(path).is_absolute() || path.len() > 107 {
            let message = format!("`{path:.120}` is not the absolute path of a Unix socket");
            let error = ApiError::new(ErrorCode::BadRequest, message);
            return Err(error.with_hint("it begins with / and has 107 bytes at most"));
        }
    }
    Ok(())
}

/// A reply of the wrong kind: the two daemons are of different releases.
pub(crate) fn unexpected(reply: &Reply) -> ApiError {
    let kind = format!("{reply:?}");
    let kind = kind.split(['(', ' ', '{']).next().unwrap_or_default();
    let message = format!("the data plane answered with `{kind}`, which fits no request made");
    ApiError::new(ErrorCode::System, message).with_hint("install the same release of both daemons")
}

fn system(error: &FolderError) -> ApiError {
    ApiError::new(ErrorCode::System, error.to_string())
}
