//! Certificates of the lab's nodes.

use std::net::IpAddr;
use std::path::Path;

use dwcp_api::{TlsChoice, TransferSettings};
use dwcp_pki::{Authority, AuthorityOptions, NodeFiles, NodeOptions, SECONDS_PER_DAY};

use super::LabError;

/// Longer than any lab lives.
const LIFE_SECONDS: i64 = 2 * SECONDS_PER_DAY;

/// Whether migrations with these settings need nodes with certificates.
pub(super) fn is_needed(settings: &TransferSettings) -> bool {
    settings.tls == TlsChoice::On
}

/// A certificate for the node `name` at `address`, of the CA in `folder`, which the first node of a lab
/// begins.
pub(super) fn issue(folder: &Path, name: &str, address: &str) -> Result<NodeFiles, LabError> {
    let folder = folder.join("pki");
    let authority = match Authority::open(&folder) {
        Ok(authority) => authority,
        Err(_) => Authority::init(
            &folder,
            &AuthorityOptions {
                name: "DWCP lab".into(),
                seconds: LIFE_SECONDS,
                force: false,
            },
        )?,
    };
    let options = NodeOptions {
        // Nodes of a lab are called by their addresses.
        addresses: address.parse::<IpAddr>().into_iter().collect(),
        seconds: LIFE_SECONDS,
        force: true,
        ..NodeOptions::default()
    };
    Ok(authority.issue(name, &options)?)
}
