//! Disk images that are being indexed: each by a thread of its own, which an operator can look at.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Store, StoreError};

/// How far reading an image is.
#[derive(Debug, Default)]
pub struct Reading {
    /// Bytes looked at.
    pub done_bytes: AtomicU64,
    /// Its bytes, once it was found.
    pub total_bytes: AtomicU64,
}

/// One image.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where it is.
    pub path: PathBuf,
    reading: Arc<Reading>,
    /// Why it ended without an index.
    pub failure: Option<String>,
}

impl Job {
    /// Bytes looked at so far, of how many.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        let total = of(&self.reading.total_bytes);
        (of(&self.reading.done_bytes).min(total), total)
    }
}

/// All that are under way, and those that failed until they are tried again.
#[derive(Clone, Debug, Default)]
pub struct Indexing(Arc<Mutex<Vec<Job>>>);

impl Indexing {
    /// Begins to index an image; nothing happens when it is being indexed already. The file is not touched here: one on a
    /// server that is gone would hold up whoever asks.
    ///
    /// # Errors
    /// [`StoreError::Disk`]: the system has no thread.
    pub fn begin(&self, store: &Arc<Store>, path: &Path) -> Result<(), StoreError> {
        let mut jobs = self.lock();
        if jobs
            .iter()
            .any(|job| job.path == path && job.failure.is_none())
        {
            return Ok(());
        }
        let reading = Arc::<Reading>::default();
        jobs.retain(|job| job.path != path);
        jobs.push(Job {
            path: path.to_owned(),
            reading: Arc::clone(&reading),
            failure: None,
        });
        drop(jobs);
        let (all, store, path) = (self.clone(), Arc::clone(store), path.to_owned());
        let job_path = path.clone();
        let work = move || {
            let added = store.add_image(&job_path, &reading, &AtomicBool::new(false));
            all.ended(&job_path, added.err());
        };
        let thread = std::thread::Builder::new().name("dwcp-index".into());
        thread.spawn(work).map(drop).map_err(|error| {
            self.ended(&path, None);
            StoreError::disk(format!("cannot index {}", path.display()))(error)
        })
    }

    /// Forgets that an image could not be indexed. Returns whether that was known.
    pub fn forget(&self, path: &Path) -> bool {
        let mut jobs = self.lock();
        let before = jobs.len();
        jobs.retain(|job| job.path != path || job.failure.is_none());
        jobs.len() < before
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
