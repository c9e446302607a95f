//! Ends orders that are not paid in time.
//!
//! Orders wait in the volume in order of arrival, page by page, so nothing is kept in memory for them: the first
//! page not yet looked at says when there is something to do. Each order on a page that is due is asked to expire
//! if it is still unpaid; asking one twice, after a crash, changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::changes::Changes;
use crate::desk::Fault;
use crate::order::{Command, State};
use crate::transactor::{Ask, Transactors};

/// Longest wait before looking again: how late an expiry may come.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Pages after which progress is written down; a crash repeats the look at these at most.
const PAGES_PER_NOTE: u64 = 256;

/// Expires unpaid orders until told to stop.
pub(crate) async fn expire_always(
    transactors: Arc<Transactors>,
    payment_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut page = transactors.desk().store.book().expired_page;
    loop {
        match expire_due(&transactors, payment_timeout, page).await {
            Ok(reached) => page = reached,
            // The order's slot is on its way; where it goes, this is looked at again.
            Err(Fault::Moved) => {}
            Err(fault) => tracing::warn!(?fault, page, "cannot look for unpaid orders"),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK_AT_LEAST_EVERY) => {}
        }
    }
}

/// Expires what is due from `page` on, and says which page is the first that is not.
pub(crate) async fn expire_due(
    transactors: &Arc<Transactors>,
    payment_timeout: Duration,
    mut page: u64,
) -> Result<u64, Fault> {
    let desk = transactors.desk();
    let timeout_ms = payment_timeout.as_millis() as u64;
    let noted = desk.store.book().expired_page;
    // What is arriving from another volume is looked at once it is in force.
    let in_force = desk.store.pages_in_force.load(Ordering::Acquire);
    let end = desk.store.book().next_page.min(in_force);
    while page < end {
        for id in desk.store.arrivals(page)? {
            if !desk.slots.has_order(&id) {
                continue;
            }
            let Some(order) = desk.store.order(&id)? else {
                continue;
            };
            if order.created_at_ms().saturating_add(timeout_ms) > desk.clock.now_ms() {
                note(transactors, noted, page).await?;
                return Ok(page);
            }
            if matches!(order.state, State::Reserved | State::Announced) {
                transactors.ask(&id, Ask::Command(Command::Expire)).await?;
            }
        }
        page += 1;
        if page.is_multiple_of(PAGES_PER_NOTE) {
            note(transactors, noted, page).await?;
        }
    }
    note(transactors, noted, page).await?;
    Ok(page)
}

async fn note(transactors: &Transactors, noted: u64, page: u64) -> Result<(), Fault> {
    if page < noted + PAGES_PER_NOTE {
        return Ok(());
    }
    let mut changes = Changes::default();
    changes.expired_to(page);
    let permit = transactors.desk().store.permit().await?;
    permit.send(changes).durable().await?;
    Ok(())
}
