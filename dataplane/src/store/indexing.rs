//! Disk images that are being indexed: each by a thread of its own, which an operator can look at.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Store, StoreError};

/// One image.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub total_bytes: u64,
    done_bytes: Arc<AtomicU64>,
    /// Why it ended without an index.
    pub failure: Option<String>,
}

impl Job {
    /// Bytes looked at so far.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
            .load(Ordering::Relaxed)
            .min(self.total_bytes)
    }
}

/// All that are under way, and those that failed until they are tried again.
#[derive(Clone, Debug, Default)]
pub struct Indexing(Arc<Mutex<Vec<Job>>>);

impl Indexing {
    /// Begins to index an image; nothing happens when it is being indexed already.
    ///
    /// # Errors
    /// [`StoreError::Disk`]: it cannot be read, or the system has no thread.
    pub fn begin(&self, store: &Arc<Store>, path: &Path) -> Result<(), StoreError> {
        let cannot = || StoreError::disk(format!("cannot index {}", path.display()));
        let path = path.canonicalize().map_err(cannot())?;
        let total_bytes = std::fs::File::open(&path)
            .and_then(|file| Ok(file.metadata()?.len()))
            .map_err(cannot())?;
        let done_bytes = Arc::<AtomicU64>::default();
        let mut jobs = self.lock();
        if jobs
            .iter()
            .any(|job| job.path == path && job.failure.is_none())
        {
            return Ok(());
        }
        jobs.retain(|job| job.path != path);
        jobs.push(Job {
            path: path.clone(),
            total_bytes,
            done_bytes: Arc::clone(&done_bytes),
            failure: None,
        });
        drop(jobs);
        let (all, store) = (self.clone(), Arc::clone(store));
        let job_path = path.clone();
        let work = move || {
            let added = store.add_image(&job_path, &done_bytes, &AtomicBool::new(false));
            all.ended(&job_path, added.err());
        };
        let thread = std::thread::Builder::new().name("dwcp-index".into());
        thread.spawn(work).map(drop).map_err(|error| {
            self.ended(&path, None);
            cannot()(error)
        })
    }

    fn ended(&self, path: &Path, failure: Option<StoreError>) {
        let mut jobs = self.lock();
        match failure {
            None => jobs.retain(|job| job.path != path),
            Some(error) => {
                tracing::warn!(path = %path.display(), %error, "not indexed");
                let jobs = jobs.iter_mut().filter(|job| job.path == path);
                jobs.for_each(|job| job.failure = Some(error.to_string()));
            }
        }
    }

    /// All of them.
    #[must_use]
    pub fn jobs(&self) -> Vec<Job> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
