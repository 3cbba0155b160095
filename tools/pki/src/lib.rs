//! Certificates of nodes.
//!
//! | file | what |
//! |---|---|
//! | `certificate.rs` | what a certificate says: whom it names, until when |
//! | `authority.rs` | a small private CA in a folder: begun, rotated |
//! | `node.rs` | certificates that it issues to nodes |
//! | `files.rs` | keys that nobody else may read, and nothing overwritten by mistake |
//!
//! ```text
//! FOLDER/ca.pem                       what nodes trust: the CA, and for a while the one before it
//! FOLDER/ca-key.pem                   its key: stays on the machine that issues
//! FOLDER/nodes/NODE/ca.pem            these three go to the node
//! FOLDER/nodes/NODE/certificate.pem
//! FOLDER/nodes/NODE/key.pem
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "issue")]
mod authority;
mod certificate;
#[cfg(feature = "issue")]
mod files;
#[cfg(feature = "issue")]
mod node;

#[cfg(feature = "issue")]
pub use authority::{Authority, AuthorityOptions, Shown, ShownNode};
pub use certificate::{CertificateError, CertificateFacts, SECONDS_PER_DAY, date_of, read_facts};
#[cfg(feature = "issue")]
pub use files::PkiError;
#[cfg(feature = "issue")]
pub use node::{NodeFiles, NodeOptions};
