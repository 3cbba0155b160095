//! The attached VMs on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dwcp_api::Attachment;
use serde::{Deserialize, Serialize};

use crate::folder::{self, FolderError};

/// Name of the file in the state folder.
pub(super) const FILE_NAME: &str = "vms.json";

const SCHEMA: &str = "dwcp.vms/1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    vms: BTreeMap<String, Attachment>,
}

/// VMs by name; every change is on disk before it counts.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    vms: BTreeMap<String, Attachment>,
}

impl Store {
    pub(super) fn open(path: PathBuf) -> Result<Self, FolderError> {
        let Some(text) = folder::read(&path)? else {
            return Ok(Self {
                path,
                vms: BTreeMap::new(),
            });
        };
        let content = |why: String| FolderError::Content {
            path: path.clone(),
            why,
        };
        let file: File = serde_json::from_str(&text).map_err(|error| content(error.to_string()))?;
        if file.schema != SCHEMA {
            return Err(content(format!("schema is {}, not {SCHEMA}", file.schema)));
        }
        Ok(Self {
            path,
            vms: file.vms,
        })
    }

    pub(super) const fn vms(&self) -> &BTreeMap<String, Attachment> {
        &self.vms
    }

    pub(super) fn insert(&mut self, name: &str, attachment: Attachment) -> Result<(), FolderError> {
        let mut vms = self.vms.clone();
        vms.insert(name.to_owned(), attachment);
        self.replace(vms)
    }

    /// `false` when there was no such VM.
    pub(super) fn remove(&mut self, name: &str) -> Result<bool, FolderError> {
        let mut vms = self.vms.clone();
        if vms.remove(name).is_none() {
            return Ok(false);
        }
        self.replace(vms)?;
        Ok(true)
    }

    fn replace(&mut self, vms: BTreeMap<String, Attachment>) -> Result<(), FolderError> {
        let file = File {
            schema: SCHEMA.to_owned(),
            vms,
        };
        let text = serde_json::to_string_pretty(&file).map_err(|error| FolderError::Content {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        folder::replace(&self.path, text.as_bytes())?;
        self.vms = file.vms;
        Ok(())
    }
}
