//! A verbs object is made once, destroyed once, and used by any thread in between.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use crate::RdmaError;

/// The function that takes an object apart again.
pub(crate) type Destroy<T> = unsafe extern "C" fn(*mut T) -> c_int;

/// An object of libibverbs or librdmacm.
///
/// What it was made from has to outlive it: each owner keeps its parents in fields *behind* this one, since fields are
/// dropped in their order.
pub(crate) struct Owned<T> {
    object: NonNull<T>,
    destroy: Destroy<T>,
}

// SAFETY: both libraries are thread-safe: an object is not bound to the thread that made it, and providers lock what calls
// change. Fields that we read ourselves (queue pair number, keys, descriptors) do not change while the object lives.
unsafe impl<T> Send for Owned<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// Takes what a constructor has returned; null is [`RdmaError::Create`] of `what`, with the reason in `errno`.
    ///
    /// # Safety
    /// `object` is null, or the library has just made it, nobody else destroys it, and `destroy` is its destructor.
    pub(crate) unsafe fn new(
        object: *mut T,
        destroy: Destroy<T>,
        what: &'static str,
    ) -> Result<Self, RdmaError> {
        match NonNull::new(object) {
            Some(object) => Ok(Self { object, destroy }),
            None => {
                let source = io::Error::last_os_error();
                Err(RdmaError::Create { what, source })
            }
        }
    }

    /// The object, for a call.
    pub(crate) const fn as_ptr(&self) -> *mut T {
        self.object.as_ptr()
    }

    /// Destroys the object and says whether that went well.
    pub(crate) fn destroy(self) -> io::Result<()> {
        ManuallyDrop::new(self).destroy_once()
    }

    fn destroy_once(&self) -> io::Result<()> {
        // SAFETY: the object is alive: it was when `new` took it, and this is called by `destroy`, which drops nothing, or by
        // `drop`, so once. Whoever owns this keeps the parents alive until after.
        let code = unsafe { (self.destroy)(self.object.as_ptr()) };
        result_of(code)
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // Children hold their parents: nothing is in use any more, and there is nobody to tell.
        let _ = self.destroy_once();
    }
}

impl<T> fmt::Debug for Owned<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:p}", self.object)
    }
}

/// Verbs return an error number, or its negative; calls of the connection manager -1, and the number in `errno`.
pub(crate) fn result_of(code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        code => Err(io::Error::from_raw_os_error(code.saturating_abs())),
    }
}
