//! What is in a CA's folder, and what is wrong with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::authority::Authority;
use crate::certificate::is_signed_by_one_of;
use crate::files::{self, PkiError};
use crate::{CertificateFacts, node};

/// What is in a CA's folder.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Its folder.
    pub folder: PathBuf,
    /// What nodes trust, the newest first.
    pub trusted: Vec<CertificateFacts>,
    /// Nodes with a certificate.
    pub nodes: Vec<ShownNode>,
    /// What is wrong, each with what to do.
    pub warnings: Vec<String>,
}

/// A node of a CA.
#[derive(Clone, Debug, Serialize)]
pub struct ShownNode {
    /// Its name.
    pub name: String,
    /// Whether nodes trust its certificate: a CA that they know signed it.
    pub is_trusted: bool,
    /// What its certificate says.
    pub certificate: CertificateFacts,
}

impl Authority {
    /// What is there.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn show(&self) -> Result<Shown, PkiError> {
        let bundle = self.bundle()?;
        let nodes = self.nodes()?.into_iter().map(|name| {
            let path = self.node_files(&name).certificate;
            let text = files::read(&path, node::NO_CERTIFICATE)?;
            let is_trusted = is_signed_by_one_of(&text, &bundle)
                .map_err(|source| PkiError::Certificate { path, source })?;
            Ok(ShownNode {
                certificate: self.node_facts(&name)?,
                is_trusted,
                name,
            })
        });
        let nodes = nodes.collect::<Result<Vec<_>, PkiError>>()?;
        let mut warnings = self.warnings();
        // It may be kept elsewhere, and put here to issue.
        if self.ca_pair().key.exists() {
            warnings.extend(self.ca_key().err().map(|error| error.to_string()));
        }
        for node in &nodes {
            warnings.extend(self.warning_of(node));
        }
        Ok(Shown {
            folder: self.folder().to_owned(),
            trusted: self.trusted()?,
            nodes,
            warnings,
        })
    }

    /// What others may do here that they should not, each with what helps.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let (folder, key) = (self.folder(), self.ca_pair().key);
        let mut warnings = vec![];
        if let Some(mode) = mode_with(folder, 0o022) {
            let folder = folder.display();
            warnings.push(format!(
                "{folder} can be written by others (mode {mode:04o}), who can so become the CA: \
                 `chmod go-w {folder}`"
            ));
        }
        if let Some(mode) = mode_with(&key, 0o077) {
            let key = key.display();
            warnings.push(format!(
                "{key} can be read by others (mode {mode:04o}), and who has it can be any node: \
                 `chmod 600 {key}`; if somebody may have read it, begin a new CA by `dwcp pki rotate --ca`"
            ));
        }
        warnings
    }

    fn warning_of(&self, node: &ShownNode) -> Option<String> {
        let (name, folder) = (&node.name, self.folder().display());
        if !node.is_trusted {
            return Some(format!(
                "the certificate of {name} is of no CA that nodes trust now: `dwcp pki rotate {folder} {name}`, \
                 and bring it its three files"
            ));
        }
        let pair = self.node_pair(name);
        // It may have been brought to the node and deleted here.
        if !pair.key.exists() {
            return None;
        }
        let mend = format!("`dwcp pki rotate {folder} {name}` makes both anew");
        pair.read_key("", &mend)
            .err()
            .map(|error| error.to_string())
    }
}

/// The permissions of a file, if they are among these.
fn mode_with(path: &Path, bits: u32) -> Option<u32> {
    let mode = path.metadata().ok()?.permissions().mode() & 0o7777;
    (mode & bits != 0).then_some(mode)
}
