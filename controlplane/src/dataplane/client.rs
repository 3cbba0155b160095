//! The client that others hold: calls, and the state of the connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::counters::CountersPage;
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode, NodeIdentity, RecoverRequest};
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::{self, Call, SILENT, Waiting};

/// Calls that may wait for the connection.
const CALLS_MAX: usize = 64;

/// What a request may take at the data plane, when nothing in it takes longer.
const PATIENCE: Duration = Duration::from_secs(15);

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The data plane at the other end.
#[derive(Debug)]
pub struct Peer {
    /// Version of its package.
    pub version: String,
    /// Where it listens for other nodes, `host:port`.
    pub listen: String,
    /// Its process id.
    pub pid: u32,
    /// Its counters, when it passed a page that can be read.
    pub counters: Option<CountersPage>,
}

/// State of the connection.
#[derive(Clone, Debug)]
pub enum Link {
    /// Greeted and in use.
    Up(Arc<Peer>),
    /// Not there; why.
    Down(Arc<str>),
}

/// The way to the data plane. Cheap to clone; the connection ends with the last one.
#[derive(Clone, Debug)]
pub struct Client {
    calls: mpsc::Sender<Call>,
    link: watch::Receiver<Link>,
    path: Arc<Path>,
    identity: Arc<NodeIdentity>,
}

impl Client {
    /// A client, and the future that connects to `path` and keeps at it. Where that one runs is the
    /// caller's choice; it ends after the last clone of the client was dropped.
    pub fn new(
        path: PathBuf,
        identity: NodeIdentity,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (call_sender, call_receiver) = mpsc::channel(CALLS_MAX);
        let (link_sender, link) = watch::channel(Link::Down("not yet connected".into()));
        let connecting = run(path.clone(), identity.clone(), call_receiver, link_sender);
        let client = Self {
            calls: call_sender,
            link,
            path: path.into(),
            identity: identity.into(),
        };
        (client, connecting)
    }

    /// What this node is called.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.identity.name
    }

    /// State of the connection now.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Changes of the connection's state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Makes a request.
    ///
    /// # Errors
    /// [`ErrorCode::PlaneDown`] at once without a connection, and when it is lost on the way;
    /// the data plane's own refusal otherwise.
    pub async fn call(&self, request: Request) -> Result<Reply, ApiError> {
        if let Link::Down(why) = self.link() {
            return Err(self.down(&why));
        }
        if let Some(what) = waits_for_others(&request) {
            return self.call_apart(&request, what).await;
        }
        let (reply, answer) = oneshot::channel();
        let call = Call {
            request,
            patience: PATIENCE,
            reply,
        };
        if self.calls.try_send(call).is_err() {
            let error = ApiError::new(ErrorCode::Busy, "too many requests wait for the data plane");
            return Err(error.with_hint("try again"));
        }
        match answer.await {
            Ok(Reply::Error(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(_) => match self.link() {
                Link::Down(why) => Err(self.down(&why)),
                Link::Up(_) => Err(self.down("the connection was lost during the request")),
            },
        }
    }

    /// Makes a request on a connection of its own: others need not wait for a VMM that is slow.
    async fn call_apart(&self, request: &Request, what: &str) -> Result<Reply, ApiError> {
        let patience = PATIENCE + extra_patience(request);
        let asked = async {
            let connected = connection::connect(&self.path, &self.identity).await;
            let (mut connection, _) = connected.map_err(|error| connection::why(&error))?;
            connection.ask(request).await
        };
        match tokio::time::timeout(patience, asked).await {
            Ok(Ok(Reply::Error(error))) => Err(error),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(why)) => Err(self.down(&why)),
            Err(_) => {
                let message = format!("{what}: not done within {} s", patience.as_secs());
                Err(ApiError::new(ErrorCode::System, message).with_hint(
                    "a VM's monitor does not answer, or another client holds it: see the data \
                     plane's log; it may still be done, `dwcp status` and `dwcp vm list` show it",
                ))
            }
        }
    }

    fn down(&self, why: &str) -> ApiError {
        let path = self.path.display();
        if why == SILENT {
            let message = format!("{path}: the data plane does not answer");
            return ApiError::new(ErrorCode::PlaneDown, message).with_hint(
                "it is there, but stopped or stuck: see its log, and `ps -o pid,stat,wchan -C \
                 dwcp-dataplane` (T: stopped, kill -CONT lets it go on; D: waits for a disk); a \
                 restart gives unfinished migrations an end",
            );
        }
        ApiError::new(
            ErrorCode::PlaneDown,
            format!("{path}: no data plane: {why}"),
        )
        .with_hint("start dwcp-dataplane on this node, with the same state folder")
    }
}

/// Requests that wait for VMMs, or for another node, in words.
const fn waits_for_others(request: &Request) -> Option<&'static str> {
    match request {
        Request::AttachVm { .. } => Some("attaching the VM"),
        Request::ListVms => Some("listing the VMs"),
        Request::StartMigration { .. } => Some("starting the migration"),
        Request::ProbePath { .. } => Some("looking at the path"),
        Request::Recover(request) if !matches!(request, RecoverRequest::List) => {
            Some("settling what is half done")
        }
        _ => None,
    }
}

/// What a request may take at the data plane beyond the usual.
fn extra_patience(request: &Request) -> Duration {
    match request {
        Request::StartMigration { settings, .. } => {
            let ms = u64::from(settings.connect_timeout_ms) + u64::from(settings.peer_silence_ms);
            Duration::from_millis(ms)
        }
        // The other node is asked, and whoever waits for its answer carries out the decision.
        Request::Recover(_) => Duration::from_secs(45),
        _ => Duration::ZERO,
    }
}

async fn run(
    path: PathBuf,
    identity: NodeIdentity,
    mut calls: mpsc::Receiver<Call>,
    link: watch::Sender<Link>,
) {
    let mut pause = BACKOFF_FIRST;
    while !calls.is_closed() {
        // Dropped after the link is seen to be down: the callers look at it for the reason.
        let mut waiting = Waiting::new();
        let why = match connection::connect(&path, &identity).await {
            Ok((connection, peer)) => {
                pause = BACKOFF_FIRST;
                tracing::info!(listen = peer.listen, pid = peer.pid, "data plane is up");
                link.send_replace(Link::Up(Arc::new(peer)));
                let why = connection.serve(&mut calls, &mut waiting).await;
                tracing::warn!(why, "data plane is down");
                why
            }
            Err(error) => connection::why(&error),
        };
        link.send_replace(Link::Down(why.into()));
        drop(waiting);
        while calls.try_recv().is_ok() {}
        if wait_dropping_calls(&mut calls, pause).await {
            return;
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Waits before the next attempt; calls that slipped in are dropped, so that their callers get an
/// answer. `true` when no client is left.
async fn wait_dropping_calls(calls: &mut mpsc::Receiver<Call>, pause: Duration) -> bool {
    let until = tokio::time::Instant::now() + pause;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return false,
            call = calls.recv() => if call.is_none() {
                return true;
            },
        }
    }
}
