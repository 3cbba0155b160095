//! What an operator does with the node's store.

use std::path::Path;
use std::sync::Arc;

use dwcp_api::{ApiError, ErrorCode, StoreEntry, StoreKind, StoreRequest, StoreState};

use super::node::Node;
use crate::store::{Entry, Store, StoreError};

impl Node {
    /// Does what is asked of the store, and tells what it has then.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn ask_store(&self, request: &StoreRequest) -> Result<Vec<StoreEntry>, ApiError> {
        let store = self.store.as_ref().ok_or_else(|| {
            let text = "this node keeps no pages: its data plane runs with --store-mib 0";
            ApiError::new(ErrorCode::BadRequest, text)
        })?;
        match request {
            StoreRequest::AddImage { path } => self.add_image(store, path)?,
            StoreRequest::Remove { number } => store.remove(*number).map_err(|error| {
                let code = match error {
                    StoreError::Unknown(_) => ErrorCode::NotFound,
                    _ => ErrorCode::System,
                };
                ApiError::new(code, error.to_string()).with_hint("`dwcp store list` shows them")
            })?,
            StoreRequest::List => {}
        }
        let jobs = self.indexing.jobs();
        let under_way = jobs.into_iter().map(|job| StoreEntry {
            number: None,
            state: match &job.failure {
                Some(reason) => StoreState::Failed {
                    reason: reason.clone(),
                },
                None => StoreState::Indexing {
                    done_bytes: job.done_bytes(),
                    total_bytes: job.total_bytes,
                },
            },
            kind: StoreKind::Image { path: job.path },
            pages: 0,
            disk_bytes: 0,
        });
        let there = store.entries().into_iter().map(ready);
        Ok(there.chain(under_way).collect())
    }

    fn add_image(&self, store: &Arc<Store>, path: &Path) -> Result<(), ApiError> {
        let refused = |text: &str| {
            let text = format!("{}: {text}", path.display());
            ApiError::new(ErrorCode::BadRequest, text)
        };
        if !path.is_absolute() {
            return Err(refused("not an absolute path"));
        }
        if path.is_dir() {
            return Err(refused("a folder, not a disk image"));
        }
        self.indexing.begin(store, path).map_err(|error| {
            let hint = "the data plane must be able to read the image";
            ApiError::new(ErrorCode::BadRequest, error.to_string()).with_hint(hint)
        })
    }
}

fn ready(entry: Entry) -> StoreEntry {
    StoreEntry {
        number: Some(entry.number),
        kind: entry.kind,
        state: StoreState::Ready,
        pages: entry.pages,
        disk_bytes: entry.disk_bytes,
    }
}
