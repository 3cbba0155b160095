//! Requests in, replies out; a thread per client. See [`dwcp_api::dataplane`].

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode, Listener, SocketError, receive, send};

use crate::doctor;
use crate::migration::{self, Node, PeerNode};

/// Serves clients for ever. `listen` is the address told to them.
pub fn serve(socket: &Listener, node: &Arc<Node>, listen: &str) {
    loop {
        let stream = match socket.accept() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "control connection refused");
                continue;
            }
        };
        let (node, listen) = (Arc::clone(node), listen.to_owned());
        let serve = move || match session(stream, &node, &listen) {
            Ok(()) | Err(SocketError::Closed) => {}
            Err(error) => tracing::warn!(%error, "control connection"),
        };
        if let Err(error) = std::thread::Builder::new()
            .name("dwcp-control".into())
            .spawn(serve)
        {
            tracing::error!(%error, "no thread for a control connection");
        }
    }
}

fn session(mut stream: UnixStream, node: &Arc<Node>, listen: &str) -> Result<(), SocketError> {
    let (hello, _) = receive::<Request>(&mut stream)?;
    if !matches!(hello, Request::Hello(_)) {
        let error = ApiError::new(ErrorCode::BadRequest, "a connection begins with Hello");
        return send(&mut stream, &Reply::Error(error), &[]);
    }
    let reply = Reply::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: listen.to_owned(),
        pid: std::process::id(),
    };
    let counters = node.counters().file().as_fd().as_raw_fd();
    send(&mut stream, &reply, &[counters])?;
    loop {
        let (request, _) = receive::<Request>(&mut stream)?;
        let reply = answer(node, request).unwrap_or_else(Reply::Error);
        send(&mut stream, &reply, &[])?;
    }
}

fn answer(node: &Arc<Node>, request: Request) -> Result<Reply, ApiError> {
    Ok(match request {
        Request::AttachVm { name, attachment } => Reply::Vm(node.attach(&name, attachment)?),
        Request::DetachVm { name } => {
            node.detach(&name)?;
            Reply::Done
        }
        Request::ListVms => Reply::Vms(node.list()),
        Request::StartMigration {
            id,
            vm,
            destination,
            destination_name,
            settings,
            dry_run,
        } => {
            let peer = PeerNode {
                name: destination_name,
                address: destination,
            };
            node.start_migration(id, &vm, peer, settings, dry_run)?;
            Reply::Done
        }
        Request::CancelMigration { id } => {
            node.cancel(id)?;
            Reply::Done
        }
        Request::TuneMigration { id, tune } => {
            node.tune(id, tune)?;
            Reply::Done
        }
        Request::ProbePath { destination } => Reply::Path(migration::probe_path(&destination)?),
        Request::Status { id } => Reply::Migration(Box::new(node.status(id)?)),
        Request::ListMigrations => Reply::Migrations(
            node.migrations()
                .iter()
                .map(|handle| handle.status())
                .collect(),
        ),
        Request::Recover(request) => Reply::Recovery(node.recover(&request)?),
        Request::Store(request) => Reply::Store(node.ask_store(&request)?),
        Request::Doctor => {
            let mut findings = doctor::findings();
            let facts = node.certificate();
            findings.push(doctor::certificate(
                facts.as_ref(),
                &node.certificate_doubts(),
            ));
            Reply::Doctor(findings)
        }
        _ => return Err(ApiError::new(ErrorCode::BadRequest, "unknown request")),
    })
}
