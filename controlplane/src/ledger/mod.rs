//! Who owns which VM. Today by this node's handover journal, which the data plane writes; a ledger
//! of several nodes comes behind the same door.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dwcp_api::dataplane::{Finding, FindingLevel};
use dwcp_api::node::Ownership;
use dwcp_api::{ApiError, ErrorCode, HalfDone};
use dwcp_journal::{Follower, JournalError, Live, State};

/// Reads the journal of a state folder.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
    journal: Arc<Mutex<Follower>>,
}

impl Ledger {
    /// The ledger of a state folder.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            journal: Arc::new(Mutex::new(Follower::new(folder))),
        }
    }

    /// Who owns each VM that was ever migrated from or to this node.
    ///
    /// # Errors
    /// [`ErrorCode::System`] when the journal is damaged or cannot be read.
    pub async fn ownership(&self) -> Result<Vec<Ownership>, ApiError> {
        Ok(self.read().await.map_err(refuse)?.0.ownership())
    }

    /// Who owns one VM.
    ///
    /// # Errors
    /// As [`Self::ownership`].
    pub async fn ownership_of(&self, vm: &str) -> Result<Option<Ownership>, ApiError> {
        Ok(self.read().await.map_err(refuse)?.0.ownership_of(vm))
    }

    /// What is half done, as far as the journal alone says it: for a node whose data plane is down.
    ///
    /// # Errors
    /// As [`Self::ownership`].
    pub async fn half_done(&self) -> Result<Vec<HalfDone>, ApiError> {
        let open = self.read().await.map_err(refuse)?.0.half_done();
        let nothing = Live::default();
        Ok(open.iter().map(|open| open.explain(&nothing)).collect())
    }

    /// The journal's line of `dwcp doctor`.
    pub async fn finding(&self) -> Finding {
        let (level, found, advice) = match self.read().await {
            Ok((state, records)) => {
                let in_doubt: Vec<_> = state
                    .ownership()
                    .into_iter()
                    .filter(|ownership| ownership.owner == "in-doubt")
                    .map(|ownership| ownership.vm)
                    .collect();
                if in_doubt.is_empty() {
                    let found = format!("{records} records, all good");
                    (FindingLevel::Good, found, String::new())
                } else {
                    let found = format!("in doubt: {}", in_doubt.join(", "));
                    let advice = "these stay paused until the other node is reachable and says \
                                  whether it took over; `dwcp recover` says more";
                    (FindingLevel::Missing, found, advice.to_owned())
                }
            }
            Err(error) => {
                let advice = "no migration can be handed over until this is mended";
                (FindingLevel::Missing, error.to_string(), advice.to_owned())
            }
        };
        Finding {
            subject: "handover journal".to_owned(),
            level,
            found,
            advice,
        }
    }

    /// What it says, and of how many records.
    async fn read(&self) -> Result<(Arc<State>, usize), JournalError> {
        let journal = Arc::clone(&self.journal);
        let read = move || {
            journal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .state()
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| {
            Err(JournalError::Io {
                path: self.folder.clone(),
                doing: "read",
                source: std::io::Error::other(error.to_string()),
            })
        })
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn refuse(error: JournalError) -> ApiError {
    ApiError::new(ErrorCode::System, error.to_string())
}
