//! What belongs together: `ibv_alloc_pd`.

use std::sync::Arc;

use rdma_sys::{ibv_alloc_pd, ibv_dealloc_pd, ibv_pd};

use crate::owned::Owned;
use crate::{Context, RdmaError};

/// A protection domain. A queue pair reaches memory regions of its own domain, and no others. See `ibv_alloc_pd(3)`.
#[derive(Debug)]
pub struct ProtectionDomain {
    domain: Owned<ibv_pd>,
    context: Arc<Context>,
}

impl ProtectionDomain {
    /// Makes one.
    ///
    /// # Errors
    /// [`RdmaError::Create`] when the device has no more of them.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, RdmaError> {
        // SAFETY: the context is open and stays so: the domain keeps it.
        let domain = unsafe { ibv_alloc_pd(context.as_ptr()) };
        // SAFETY: it was returned just now, and `ibv_dealloc_pd` is its destructor.
        let domain = unsafe { Owned::new(domain, ibv_dealloc_pd, "protection domain") }?;
        let context = context.clone();
        Ok(Arc::new(Self { domain, context }))
    }

    /// Returns the device that it is of.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) const fn as_ptr(&self) -> *mut ibv_pd {
        self.domain.as_ptr()
    }
}
