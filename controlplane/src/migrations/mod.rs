//! Migrations: started, cancelled, told of. The data plane carries them out.

use std::sync::Arc;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    ApiError, ErrorCode, MigrationId, MigrationStatus, PathSample, TransferSettings, Tune,
};

use crate::config;
use crate::dataplane::{Client, Link, Peer};
use crate::folder::random_u128;
use crate::ledger::Ledger;
use crate::mode::{self, Detector, Finding, Mode};
use crate::vms::unexpected;

/// The migrations of this node.
#[derive(Clone, Debug)]
pub struct Migrations {
    client: Client,
    ledger: Ledger,
}

impl Migrations {
    /// Migrations by a data plane, under a ledger.
    #[must_use]
    pub const fn new(client: Client, ledger: Ledger) -> Self {
        Self { client, ledger }
    }

    /// Starts moving `vm` to `to`: a peer's name, or `host:port`. A dry run checks and negotiates
    /// only.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] for an unknown peer or VM, [`ErrorCode::Busy`] for a VM whose owner is in
    /// doubt, the data plane's refusal.
    pub async fn start(
        &self,
        vm: String,
        to: &str,
        peers: &[(String, String)],
        settings: TransferSettings,
        dry_run: bool,
    ) -> Result<MigrationId, ApiError> {
        self.check_other(&vm, to, peers).await?;
        let (destination_name, destination) = resolve_peer(to, peers)?;
        if let Some(ownership) = self.ledger.ownership_of(&vm).await?
            && ownership.owner == "in-doubt"
        {
            let message = format!("VM {vm} is in doubt: {}", ownership.note);
            return Err(ApiError::new(ErrorCode::Busy, message));
        }
        let random = random_u128();
        let id = random.map_err(|error| ApiError::new(ErrorCode::System, error.to_string()))?;
        let id = MigrationId(id);
        let follows = settings.follow_path && !dry_run;
        let mode = Mode::named(&settings.mode).filter(|_| follows);
        let request = Request::StartMigration {
            id,
            vm,
            destination,
            destination_name,
            settings,
            dry_run,
        };
        match self.client.call(request).await? {
            Reply::Error(error) => Err(error),
            _ => {
                if let Some(mode) = mode {
                    tokio::spawn(mode::follow(self.client.clone(), id, mode));
                }
                Ok(id)
            }
        }
    }

    /// Looks at the path to a node, and says what kind of path it is.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] for an unknown peer, the data plane's.
    pub async fn probe(
        &self,
        to: &str,
        peers: &[(String, String)],
    ) -> Result<(PathSample, Finding), ApiError> {
        let (_, destination) = resolve_peer(to, peers)?;
        match self.client.call(Request::ProbePath { destination }).await? {
            Reply::Path(sample) => Ok((sample, Detector::first(&sample))),
            Reply::Error(error) => Err(error),
            other => Err(unexpected(&other)),
        }
    }

    /// Refuses this node's own name, for a VM that it has; an address is looked at by the data plane.
    async fn check_other(
        &self,
        vm: &str,
        to: &str,
        peers: &[(String, String)],
    ) -> Result<(), ApiError> {
        if to != self.client.node_name() || peers.iter().any(|(name, _)| name == to) {
            return Ok(());
        }
        if let Ok(Reply::Vms(list)) = self.client.call(Request::ListVms).await
            && !list.iter().any(|known| known.name == vm)
        {
            let message = format!("no VM {vm:.80} is attached to this node");
            return Err(ApiError::new(ErrorCode::NotFound, message)
                .with_hint("`dwcp vm list` shows those that are"));
        }
        let error = ApiError::new(ErrorCode::BadRequest, format!("`{to}` is this node"));
        Err(error.with_hint("name another node: `dwcp node` shows the peers"))
    }

    /// Cancels by id or VM name.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], the data plane's refusal.
    pub async fn cancel(&self, which: &str) -> Result<(), ApiError> {
        let id = self.id_of(which).await?;
        self.client.call(Request::CancelMigration { id }).await?;
        Ok(())
    }

    /// Changes how a VM is moved away, by id or VM name.
    ///
    /// # Errors
    /// As [`Self::cancel`].
    pub async fn tune(&self, which: &str, tune: Tune) -> Result<(), ApiError> {
        let id = self.id_of(which).await?;
        let request = Request::TuneMigration { id, tune };
        self.client.call(request).await?;
        Ok(())
    }

    async fn id_of(&self, which: &str) -> Result<MigrationId, ApiError> {
        match as_id(which) {
            Some(id) => Ok(id),
            None => Ok(self.newest_of(which).await?.id),
        }
    }

    /// One migration by id or VM name (its newest), or all.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], [`ErrorCode::PlaneDown`].
    pub async fn status(&self, which: Option<&str>) -> Result<Vec<MigrationStatus>, ApiError> {
        let mut list = match which.map(|which| (which, as_id(which))) {
            None => self.all().await?,
            Some((_, Some(id))) => match self.client.call(Request::Status { id }).await? {
                Reply::Migration(status) => vec![*status],
                other => return Err(unexpected(&other)),
            },
            Some((vm, None)) => vec![self.newest_of(vm).await?],
        };
        if let Link::Up(peer) = self.client.link() {
            for status in &mut list {
                refresh(status, &peer);
            }
        }
        Ok(list)
    }

    async fn all(&self) -> Result<Vec<MigrationStatus>, ApiError> {
        match self.client.call(Request::ListMigrations).await? {
            Reply::Migrations(list) => Ok(list),
            other => Err(unexpected(&other)),
        }
    }

    async fn newest_of(&self, vm: &str) -> Result<MigrationStatus, ApiError> {
        let newest = self
            .all()
            .await?
            .into_iter()
            .rev()
            .find(|status| status.vm == vm);
        newest.ok_or_else(|| {
            let message = format!("no migration of VM `{vm:.80}` since the data plane started");
            ApiError::new(ErrorCode::NotFound, message).with_hint("dwcp status lists all")
        })
    }
}

/// Puts the counters page's numbers, which are newer, into a running migration's status.
fn refresh(status: &mut MigrationStatus, peer: &Arc<Peer>) {
    if status.report.is_some() {
        return;
    }
    let counters = peer.counters.as_ref().and_then(|page| page.read(status.id));
    let Some(counters) = counters else {
        return;
    };
    let progress = &mut status.progress;
    let round = u32::try_from(counters.round).unwrap_or(u32::MAX);
    if round < progress.round || counters.wire_bytes < progress.wire_bytes {
        return;
    }
    progress.round = round;
    progress.pages_in_round = counters.pages_in_round;
    progress.pages_left = counters.pages_in_round.saturating_sub(counters.pages_done);
    progress.wire_bytes = counters.wire_bytes;
}

/// 32 hex digits.
fn as_id(which: &str) -> Option<MigrationId> {
    let is_id = which.len() == 32 && which.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| which.parse().ok())?
}

/// Name, where it is known, and address.
fn resolve_peer(
    to: &str,
    peers: &[(String, String)],
) -> Result<(Option<String>, String), ApiError> {
    let known = |(name, address): &&(String, String)| name == to || address == to;
    if let Some((name, address)) = peers.iter().find(known) {
        return Ok((Some(name.clone()), address.clone()));
    }
    if config::is_address(to) {
        return Ok((None, to.to_owned()));
    }
    let names = peers.iter().map(|(name, _)| name.as_str());
    let hint = match config::nearest_word(to, names.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None if peers.is_empty() => {
            "this node has no peers: add [peers] to its file, or give host:port".to_owned()
        }
        None => format!(
            "known: {}; or give host:port",
            names.collect::<Vec<_>>().join(", ")
        ),
    };
    Err(ApiError::new(ErrorCode::NotFound, format!("no peer `{to:.80}`")).with_hint(hint))
}
