//! Who connects from another node, and to which migration.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use dwcp_api::{MigrationId, Role, TransferSettings};
use dwcp_journal::Unfinished;
use dwcp_wire::{Control, FetchSummary, FrameKind, Offer, RefuseCode, StreamHello, StreamRole};

use super::control_writer::ControlWriter;
use super::destination::{self, DestinationInput};
use super::destination_streams::{JoinLink, StreamJoin};
use super::meter::Meter;
use super::node::{Node, NodeError};
use super::peer::{self, PeerError};
use super::secure::{Admitted, admit};
use super::seldom::Seldom;
use super::{recall, recovery};
use crate::tls::Connection;
use crate::transport::hasten_losses;

/// A peer must say who it is within this time.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// A driver answers a question about ownership within this time, or the peer asks again.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Connections in their first words at once; more wait in the kernel's queue.
const GREETING_MAX: usize = 256;

/// Accepts connections of other nodes' data planes.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens on the node's address.
    ///
    /// # Errors
    /// [`NodeError::Socket`] when it is in use.
    pub fn bind(node: &Node) -> Result<Self, NodeError> {
        let address = &node.options().listen;
        let socket = TcpListener::bind(address).map_err(|source| NodeError::Socket {
            what: format!("cannot listen on {address}"),
            source,
        })?;
        if let Ok(address) = socket.local_addr() {
            node.listens_on(address);
            node.listen_for_queue_pairs(address.ip());
        }
        Ok(Self { socket })
    }

    /// The address in use.
    ///
    /// # Errors
    /// From the system.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts for ever, each connection on a thread of its own.
    pub fn run(&self, node: &Arc<Node>, settings: &TransferSettings) {
        let queue_pairs = Arc::clone(node);
        let thread = std::thread::Builder::new().name("dwcp-rdma".into());
        if let Err(error) = thread.spawn(move || queue_pairs.take_queue_pairs()) {
            tracing::error!(%error, "no thread for queue pairs");
        }
        let (greeting, seldom) = (Arc::new(()), Arc::new(Seldom::new()));
        for stream in self.socket.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            if Arc::strong_count(&greeting) > GREETING_MAX {
                if let Some(left_out) = seldom.line(Instant::now()) {
                    tracing::warn!(left_out, "too many connections at once, one is dropped");
                }
                continue;
            }
            let (node, settings, turn) =
                (Arc::clone(node), settings.clone(), Arc::clone(&greeting));
            let seldom = Arc::clone(&seldom);
            let serve = move || {
                let peer = stream.peer_addr();
                if let Err(reason) = greet(&node, stream, settings, turn)
                    && let Some(left_out) = seldom.line(Instant::now())
                {
                    tracing::warn!(?peer, left_out, "connection refused: {reason}");
                }
            };
            if let Err(error) = std::thread::Builder::new()
                .name("dwcp-greet".into())
                .spawn(serve)
            {
                tracing::error!(%error, "no thread for a connection");
            }
        }
    }
}

/// `turn` counts connections that have not said who they are.
fn greet(
    node: &Arc<Node>,
    socket: TcpStream,
    settings: TransferSettings,
    turn: Arc<()>,
) -> Result<(), String> {
    let text = |error: PeerError| error.to_string();
    let io = |error: std::io::Error| error.to_string();
    socket.set_nodelay(true).map_err(io)?;
    let _ = hasten_losses(&socket);
    socket.set_read_timeout(Some(HELLO_TIME)).map_err(io)?;
    // One that only looked how long the way is, or found that somebody listens.
    match socket.peek(&mut [0]) {
        Ok(0) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            tracing::debug!("a connection on which nothing was said");
            return Ok(());
        }
        _ => {}
    }
    let Admitted {
        connection: mut stream,
        refusal,
    } = admit(node, socket, HELLO_TIME)?;
    let meter = Arc::default();
    let (header, payload) = match peer::read_frame(&mut stream, &meter) {
        // One that was made before it was known what for, and is not needed: what it has said is a handshake.
        Err(error) if stream.is_sealed() && error.is_loss() => {
            tracing::debug!(%error, "a connection on which nothing was said");
            return Ok(());
        }
        first => first.map_err(text)?,
    };
    if header.kind != FrameKind::StreamHello {
        stream.read_ahead();
    }
    match header.kind {
        FrameKind::StreamHello => match refusal {
            Some(why) => Err(why),
            None => join(node, stream, &payload),
        },
        FrameKind::Hello => {
            let (_, can) = peer::answer_hello(&mut stream, &payload, &meter).map_err(text)?;
            match peer::read_control(&mut stream, &meter).map_err(text)? {
                Control::Offer(offer) => {
                    if let Some(why) = refusal.or_else(|| why_not(node, &stream, &offer)) {
                        refuse(stream, &meter, &why).map_err(text)?;
                        return Err(why);
                    }
                    drop(turn);
                    destination::run(node, (stream, can), offer, settings, &meter)
                }
                question => answer(node, stream, &question, (refusal, &meter)),
            }
        }
        kind => Err(format!("{kind:?} frame before a hello")),
    }
}

/// Answers what the other node of a migration asks, or says, on a connection of its own.
fn answer(
    node: &Arc<Node>,
    stream: Connection,
    question: &Control,
    (refusal, meter): (Option<String>, &Arc<Meter>),
) -> Result<(), String> {
    let (Control::OwnerQuery { migration, .. }
    | Control::TakenBack { migration, .. }
    | Control::RecallQuery { migration, .. }
    | Control::PostcopyResume { migration }) = question
    else {
        return Err("neither an offer nor a question came first".into());
    };
    if let Some(why) = refusal {
        return Err(why);
    }
    let id = MigrationId(*migration);
    check_asker(node, &stream, id)?;
    let is_for_its_source = !matches!(question, Control::RecallQuery { .. });
    if is_for_its_source && !knows(node, id) {
        let name = &node.options().name;
        let why = format!(
            "the journal of {name} knows nothing of this migration: it runs with another state folder, \
             is another node, or has forgotten an end of long ago"
        );
        refuse(stream, meter, &why).map_err(|error| error.to_string())?;
        return Err(why);
    }
    let committed = |committed| Control::OwnerAnswer { committed };
    let words = match question {
        Control::OwnerQuery { .. } => committed(owner(node, id)?),
        Control::RecallQuery { .. } => {
            // Another node at the source's address, or one that has lost its journal, knows nothing.
            let stands = recall::stands(node, id).ok_or("this node is not its source")?;
            Control::RecallAnswer { stands }
        }
        Control::TakenBack { epoch, .. } => {
            // One that is not committed yet is refused for good, as by a question.
            if owner(node, id)? {
                recall::yield_guest(node, id, *epoch)?;
            }
            committed(false)
        }
        _ => {
            let resumed = stream.set_read_timeout(None).map_err(PeerError::from);
            return resumed
                .and_then(|()| resume_postcopy(node, stream, id, meter))
                .map_err(|error| error.to_string());
        }
    };
    let writer = ControlWriter::new(stream, HELLO_TIME, meter).map_err(PeerError::from);
    writer
        .and_then(|mut writer| writer.send(&words))
        .map_err(|error| error.to_string())
}

/// A further connection of a migration: its driver takes it.
fn join(node: &Node, stream: Connection, payload: &[u8]) -> Result<(), String> {
    let hello = payload.first_chunk().map(StreamHello::from_bytes);
    let Some(Ok(hello)) = hello else {
        return Err("malformed stream hello".into());
    };
    stream
        .set_read_timeout(None)
        .map_err(|error| error.to_string())?;
    let mailbox = node
        .joins_of(hello.token)
        .ok_or("no migration has this token")?;
    if hello.role != StreamRole::Data {
        stream.read_ahead();
    }
    let join = StreamJoin {
        role: hello.role,
        index: hello.index,
        generation: hello.generation,
        link: JoinLink::Connection(stream),
    };
    mailbox
        .push(DestinationInput::Join(join))
        .map_err(|error| error.to_string())
}

/// Says why a migration does not come in, or why a question has no answer here. That does not pass: it is not `Busy`.
fn refuse(stream: Connection, meter: &Arc<Meter>, why: &str) -> Result<(), PeerError> {
    let mut writer = ControlWriter::new(stream, HELLO_TIME, meter)?;
    writer.send(&Control::Refuse {
        code: RefuseCode::Other,
        reason: why.to_owned(),
    })
}

/// Why an offer cannot be taken, whatever the VM.
fn why_not(node: &Node, stream: &Connection, offer: &Offer) -> Option<String> {
    let said = &offer.source_node;
    if !stream.names(said) {
        let names = stream.peer_names().join(", ");
        return Some(format!(
            "the source calls itself `{said}`, and its certificate names it {names}"
        ));
    }
    // Its address of the destination leads back to it, by a name or a way that it did not see.
    node.is_source_of(MigrationId(offer.migration))
        .then(|| "the source and the destination are one node".to_owned())
}

/// A source in post-copy comes again: to a driver that fetches pages, or to the end of it.
fn resume_postcopy(
    node: &Node,
    stream: Connection,
    id: MigrationId,
    meter: &Arc<Meter>,
) -> Result<(), PeerError> {
    if let Some(mailbox) = node.incoming(id) {
        // A driver that is too busy is asked again.
        let _ = mailbox.push(DestinationInput::SourceIsBack(stream));
        return Ok(());
    }
    let state = node.journal().state();
    if !state.committed(id) || state.unfinished().iter().any(|open| open.migration == id) {
        tracing::warn!(migration = %id, "its source is back, and its pages cannot be taken yet");
        return Ok(());
    }
    let report = node.migration(id).and_then(|handle| handle.status().report);
    // Its copy is the last that there is.
    let verified = match report {
        _ if state.needs_a_look(id) => Some(false),
        // Without a root it was not known.
        report => report
            .filter(|report| report.ram_root.is_some())
            .map(|report| report.verified),
    };
    let mut writer = ControlWriter::new(stream, HELLO_TIME, meter)?;
    writer.send(&Control::Whole {
        verified,
        summary: FetchSummary::default(),
    })
}

/// To answer `no` is a promise that ends a migration: only its source may have it.
fn check_asker(node: &Node, stream: &Connection, id: MigrationId) -> Result<(), String> {
    let Some(source) = node.source_of(id) else {
        return Ok(());
    };
    if stream.names(&source) {
        return Ok(());
    }
    let names = stream.peer_names().join(", ");
    Err(format!(
        "{names} asks for a migration whose source is {source}"
    ))
}

/// The durable answer: a driver under way gives it, or the journal. `false` is a promise, made
/// durable before it is given.
fn owner(node: &Node, id: MigrationId) -> Result<bool, String> {
    if let Some(mailbox) = node.incoming(id) {
        let (answer, answered) = sync_channel(1);
        mailbox
            .push(DestinationInput::OwnerQuery(answer))
            .map_err(|error| error.to_string())?;
        let deadline = Instant::now() + ANSWER_TIME;
        // A driver that ends meanwhile leaves the question unread: then the journal answers.
        while node.incoming(id).is_some() {
            if let Ok(committed) = answered.recv_timeout(Duration::from_millis(20)) {
                return Ok(committed);
            }
            if Instant::now() >= deadline {
                return Err("no answer yet".to_owned());
            }
        }
        if let Ok(committed) = answered.try_recv() {
            return Ok(committed);
        }
    }
    // It has promised nothing, whatever it knows.
    if recall::stands(node, id).is_some() {
        return Err("this node is its source".to_owned());
    }
    let state = node.journal().state();
    if state.committed(id) {
        return Ok(true);
    }
    let is_it = |unfinished: &Unfinished| {
        unfinished.migration == id && unfinished.role == Role::Destination
    };
    if let Some(unfinished) = state.unfinished().into_iter().find(is_it) {
        recovery::refuse(node, &unfinished)?;
    }
    Ok(false)
}

/// A source in doubt was accepted, so its migration began at the destination, durably. A journal that does not
/// know it is not the one that decides, whatever runs here: its "no" would let a second guest run.
fn knows(node: &Node, id: MigrationId) -> bool {
    let stage = |role| node.journal().state().stage(id, role);
    node.incoming(id).is_some() || stage(Role::Destination).is_some()
}
