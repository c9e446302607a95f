//! List of the databases in which the current thread is inside the body of a transaction.
//!
//! - Inside the body of a transaction, a direct write to the same database is refused. If the body
//!   ran in a turn of a commit group (see `group`), the write would wait for a group that itself
//!   waits for the body. And each run of the body would repeat the write.
//! - The list has no destructor, so it can be used while other thread-local values are destroyed.
//!
//! Deliberately absent: an unbounded list. Nesting deeper than `DEPTH_MAX` is refused.

use std::cell::Cell;

use crate::engine::Engine;
use crate::error::{Error, Result};

/// Maximum number of transaction bodies, each of another database, that one thread may run inside
/// each other.
const DEPTH_MAX: usize = 4;

thread_local! {
    /// Addresses of the engines for which this thread is running the body of a transaction, in the
    /// order in which the thread entered the bodies. 0 marks a free entry.
    static BODIES: Cell<[usize; DEPTH_MAX]> = const { Cell::new([0; DEPTH_MAX]) };
}

/// Marks the current thread as running inside the body of a transaction, until dropped.
pub(crate) struct InBody([usize; DEPTH_MAX]);

impl InBody {
    /// Marks the current thread as running inside the body of a transaction on this database.
    ///
    /// # Errors
    /// [`Error::InTransaction`] if the thread is already inside a transaction on this database, or
    /// inside transactions on `DEPTH_MAX` other databases.
    pub(crate) fn enter(engine: &Engine) -> Result<Self> {
        check_outside(engine)?;
        let before = BODIES.get();
        let mut bodies = before;
        let free = bodies.iter_mut().find(|address| **address == 0);
        *free.ok_or(Error::InTransaction)? = address(engine);
        BODIES.set(bodies);
        Ok(Self(before))
    }
}

impl Drop for InBody {
    fn drop(&mut self) {
        BODIES.set(self.0);
    }
}

fn address(engine: &Engine) -> usize {
    std::ptr::from_ref(engine).addr()
}

/// Refuses operations that are forbidden inside the body of a transaction on this database.
///
/// # Errors
/// [`Error::InTransaction`] if the current thread is inside such a body.
#[inline]
pub(crate) fn check_outside(engine: &Engine) -> Result<()> {
    let bodies = BODIES.get();
    if bodies[0] != 0 && bodies.contains(&address(engine)) {
        return Err(Error::InTransaction);
    }
    Ok(())
}
