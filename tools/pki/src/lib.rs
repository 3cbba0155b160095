//! Certificates of nodes.
//!
//! | file | what |
//! |---|---|
//! | `certificate.rs` | what a certificate says: whom it names, until when |
//! | `authority.rs` | a small private CA in a folder: begun, rotated |
//! | `node.rs` | certificates that it issues to nodes |
//! | `names.rs` | names that certificates carry |
//! | `shown.rs` | what is there, and what is wrong with it |
//! | `pair.rs` | a certificate and its key, which change together |
//! | `lock.rs` | one command at a time |
//! | `files.rs` | keys that nobody else may read, and nothing overwritten by mistake |
//!
//! ```text
//! FOLDER/ca.pem                       what nodes trust: the CA, and for a while those before it
//! FOLDER/ca-key.pem                   its key: stays on the machine that issues
//! FOLDER/lock                         held by the command that works here
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
#[cfg(all(test, feature = "issue"))]
mod interrupted;
#[cfg(feature = "issue")]
mod lock;
#[cfg(feature = "issue")]
mod names;
#[cfg(feature = "issue")]
mod node;
#[cfg(feature = "issue")]
mod pair;
#[cfg(feature = "issue")]
mod shown;

#[cfg(feature = "issue")]
pub use authority::{Authority, AuthorityOptions};
pub use certificate::{CertificateError, CertificateFacts, SECONDS_PER_DAY, date_of, read_facts};
#[cfg(feature = "issue")]
pub use files::PkiError;
#[cfg(feature = "issue")]
pub use node::{NodeFiles, NodeOptions};
#[cfg(feature = "issue")]
pub use shown::{Shown, ShownNode};
