//! TLS or plain text: what this node's operator has said decides, never the other node.
//!
//! | as | what decides |
//! |---|---|
//! | source | `transfer.tls` of the migration; mode `internet` is TLS always |
//! | destination | whether this node has a certificate, and then `--allow-plain-text` |

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use dwcp_api::{ApiError, ErrorCode, TlsChoice, TransferSettings};
use rustls_pki_types::ServerName;

use super::dial;
use super::node::{JournalScope, Node, PeerNode};
use super::peer::PeerError;
use crate::tls::{self, Connection, RECORD_HANDSHAKE};

/// The mode whose links anybody may listen to.
pub(super) const INTERNET: &str = "internet";

const HOW: &str = "make certificates with `dwcp pki init` and `dwcp pki issue`, and start the data \
                   planes of both nodes with --tls-ca, --tls-certificate and --tls-key";

/// How a source talks to a destination.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Anybody on the way can read it.
    Plain,
    /// TLS, to whom this name is in the certificate of.
    Tls(ServerName<'static>),
}

impl Way {
    /// How a migration to `peer` talks to it.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`], before anything is begun: TLS is demanded and cannot be had, or plain
    /// text is wanted where it is not allowed.
    pub(super) fn choose(
        node: &Node,
        settings: &TransferSettings,
        peer: &PeerNode,
    ) -> Result<Self, ApiError> {
        let refused = |message: &str, hint: &str| {
            Err(ApiError::new(ErrorCode::BadRequest, message).with_hint(hint))
        };
        let is_internet = settings.mode == INTERNET;
        match (settings.tls, node.tls.is_some()) {
            (TlsChoice::Off, _) if is_internet => refused(
                "mode internet is never plain text: transfer.tls = \"off\" is not for it",
                "leave transfer.tls out; a path that you trust is mode hybrid or datacenter",
            ),
            (TlsChoice::Off, _) => Ok(Self::Plain),
            (TlsChoice::Auto, false) if !is_internet => Ok(Self::Plain),
            (_, false) if is_internet => refused(
                "mode internet is TLS always, and this node has no certificate",
                HOW,
            ),
            (_, false) => refused(
                "transfer.tls = \"on\", and this node has no certificate",
                HOW,
            ),
            (TlsChoice::On | TlsChoice::Auto, true) => {
                name_of(peer.name.as_deref(), &peer.address).map(Self::Tls)
            }
        }
    }

    /// How a migration of the journal talked to its other node.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub(super) fn of_record(scope: &JournalScope) -> Result<Self, ApiError> {
        if !scope.tls {
            return Ok(Self::Plain);
        }
        let (name, address) = (&scope.peer_node, &scope.peer_address);
        let name = (name != address).then_some(name.as_str());
        name_of(name, address).map(Self::Tls)
    }

    pub(super) const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Makes a connection of it, within `time`.
    pub(super) fn secure(
        &self,
        node: &Node,
        socket: TcpStream,
        time: Duration,
    ) -> Result<Connection, PeerError> {
        let Self::Tls(name) = self else {
            return Ok(socket.into());
        };
        let identity = node
            .tls
            .as_ref()
            .ok_or(PeerError::NoCertificate)?
            .identity();
        Ok(tls::connect(&identity, socket, name, time)?)
    }

    /// Connects to `address`, within `time` each for the socket and for TLS.
    pub(super) fn connect(
        &self,
        node: &Node,
        address: &str,
        time: Duration,
    ) -> Result<Connection, PeerError> {
        self.secure(node, dial::connect(address, time, None)?, time)
    }
}

/// What the destination's certificate must name: the node, or the address where no name is known.
fn name_of(name: Option<&str>, address: &str) -> Result<ServerName<'static>, ApiError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let text = name.unwrap_or_else(|| host.trim_matches(['[', ']']));
    ServerName::try_from(text.to_owned()).map_err(|_| {
        let message = format!("`{text}` cannot be the name in a certificate");
        ApiError::new(ErrorCode::BadRequest, message).with_hint(
            "TLS needs node names of letters, digits, `-` and `_`, joined by single dots",
        )
    })
}

/// A connection that was taken, and why no migration may come by it.
pub(super) struct Admitted {
    pub(super) connection: Connection,
    pub(super) refusal: Option<String>,
}

/// Takes a connection: its first byte says whether it is TLS.
pub(super) fn admit(
    node: &Node,
    mut socket: TcpStream,
    time: Duration,
) -> Result<Admitted, String> {
    let text = |error: io::Error| error.to_string();
    let mut first = [0];
    if socket.peek(&mut first).map_err(text)? == 0 {
        return Err("the other side closed the connection".into());
    }
    match (&node.tls, first[0] == RECORD_HANDSHAKE) {
        (Some(tls), true) => Ok(Admitted {
            connection: tls::accept(&tls.identity(), socket, time)
                .map_err(|error| error.to_string())?,
            refusal: None,
        }),
        (None, true) => {
            tls::say_no_tls(&mut socket);
            Err(
                "the other node speaks TLS, and this one was started without --tls-certificate"
                    .into(),
            )
        }
        (tls, false) => {
            let refused = tls.is_some() && !node.options().allow_plain_text;
            Ok(Admitted {
                connection: socket.into(),
                refusal: refused.then(|| {
                    "plain text is not taken here: the source must have a certificate, and its \
                     transfer.tls must not be \"off\" (or this node --allow-plain-text)"
                        .into()
                }),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_the_node_or_else_its_address() {
        let name = |name, address| name_of(name, address).unwrap().to_str().into_owned();
        assert_eq!(name(Some("node-b"), "192.0.2.2:7440"), "node-b");
        assert_eq!(name(None, "192.0.2.2:7440"), "192.0.2.2");
        assert_eq!(name(None, "[2001:db8::1]:7440"), "2001:db8::1");
        assert_eq!(name(None, "b.example.org:7440"), "b.example.org");
        let error = name_of(Some("b..c"), "192.0.2.2:7440").unwrap_err();
        assert!(error.message.contains("`b..c`"), "{error}");
    }
}
