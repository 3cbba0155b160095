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
            StoreRequest::Remove { number } => {
                store.remove(*number).map_err(|error| failed(&error))?;
            }
            StoreRequest::RemoveImage { path } => {
                let was_known = self.indexing.forget(path);
                if !store.remove_image(path).map_err(|error| failed(&error))? && !was_known {
                    let unknown = format!("entry for {}", path.display());
                    return Err(failed(&StoreError::Unknown(unknown)));
                }
            }
            StoreRequest::List => {}
        }
        let jobs = self.indexing.jobs();
        let under_way = jobs.into_iter().map(|job| StoreEntry {
            number: None,
            state: match &job.failure {
                Some(reason) => StoreState::Failed {
                    reason: reason.clone(),
                },
                None => {
                    let (done_bytes, total_bytes) = job.bytes();
                    StoreState::Indexing {
                        done_bytes,
                        total_bytes,
                    }
                }
            },
            kind: StoreKind::Image { path: job.path },
            pages: 0,
            disk_bytes: 0,
        });
        let there = store.entries().into_iter().map(ready);
        Ok(there.chain(under_way).collect())
    }

    fn add_image(&self, store: &Arc<Store>, path: &Path) -> Result<(), ApiError> {
        if !path.is_absolute() {
            let text = format!("{}: not an absolute path", path.display());
            return Err(ApiError::new(ErrorCode::BadRequest, text));
        }
        let begun = self.indexing.begin(store, path);
        begun.map_err(|error| ApiError::new(ErrorCode::System, error.to_string()))
    }
}

fn failed(error: &StoreError) -> ApiError {
    let code = match error {
        StoreError::Unknown(_) => ErrorCode::NotFound,
        _ => ErrorCode::System,
    };
    ApiError::new(code, error.to_string()).with_hint("`dwcp store list` shows them")
}

fn ready(entry: Entry) -> StoreEntry {
    StoreEntry {
        number: Some(entry.number),
        kind: entry.kind,
        state: match entry.is_damaged {
            false => StoreState::Ready,
            true => StoreState::Failed {
                reason: "its index is damaged: remove it, and add it again if it is an image"
                    .into(),
            },
        },
        pages: entry.pages,
        disk_bytes: entry.disk_bytes,
    }
}
