//! Certificates for tests' nodes.

use std::path::Path;

use dwcp_dataplane::migration::{NodeOptions, PeerNode};
use dwcp_dataplane::tls::TlsFiles;
use dwcp_pki::{Authority, AuthorityOptions, NodeFiles, SECONDS_PER_DAY};

/// A CA in `folder`.
pub(crate) fn authority(folder: &Path) -> Authority {
    let options = AuthorityOptions {
        name: "test".into(),
        seconds: SECONDS_PER_DAY,
        force: true,
    };
    Authority::init(folder, &options).unwrap()
}

/// A certificate for `node`, good for `seconds`.
pub(crate) fn issue(authority: &Authority, node: &str, seconds: i64) -> TlsFiles {
    let options = dwcp_pki::NodeOptions {
        seconds,
        force: true,
        ..Default::default()
    };
    files(authority.issue(node, &options).unwrap())
}

pub(crate) fn files(files: NodeFiles) -> TlsFiles {
    TlsFiles {
        ca: files.ca,
        certificate: files.certificate,
        key: files.key,
    }
}

/// A node with a certificate of the CA in `folder`, which is made for the first.
pub(crate) fn with_certificate(folder: &Path, options: NodeOptions) -> NodeOptions {
    let folder = folder.join("pki");
    let authority = Authority::open(&folder).unwrap_or_else(|_| authority(&folder));
    NodeOptions {
        tls: Some(issue(&authority, &options.name, SECONDS_PER_DAY)),
        ..options
    }
}

/// The node `name`, at `address`.
pub(crate) fn peer(name: &str, address: &str) -> PeerNode {
    PeerNode {
        name: Some(name.into()),
        address: address.into(),
    }
}
