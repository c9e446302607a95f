//! Applies a parsed stock upload to the memory and the rows of a volume.
//!
//! **Invariants**
//! - One upload is applied at a time. So the stock in memory and the rows get all uploads in the
//!   same order.
//! - If a commit fails, the stock in memory is made equal to the stock in the volume's rows again.
//!   If some stores have their new quantities then, or may have them, the result is the problem
//!   "partly applied".
//! - If the volume's set of slots changed since the upload was split or its reading began, or if a
//!   slot of the volume is sealed, the result is the problem "moved" (421).
//!
//! HTTP and CSV are handled in `stock_upload`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::StatusCode;

use crate::api::problem::Problem;
use crate::domain::csv::FieldFault;
use crate::domain::stock::{Arrival, Cell, CellStep};
use crate::domain::stock_matrix::{Layout, StockMatrix};
use crate::domain::stock_snapshot::StockSnapshot;
use crate::error::StorageError;
use crate::runtime;
use crate::storage::group_commit::Ticket;
use crate::storage::owned_slots::Slots;
use crate::storage::write_batch::{StockPart, WriteBatch};
use crate::volume::app::App;
use crate::volume::state::{OrderError, VolumeState};

/// A whole snapshot, encoded as write batches and as the stock matrix that replaces the matrix in
/// memory.
pub(super) struct Prepared {
    matrix: StockMatrix,
    stores: Vec<u32>,
    /// Parts that may be committed before the batch `last`; see `WriteBatch::stock_in_parts`.
    pub(super) parts: Vec<StockPart>,
    last: WriteBatch,
}

impl Prepared {
    /// Encodes a snapshot for a volume with the products and stores of `known`.
    pub(super) fn of(snapshot: StockSnapshot, known: &Arc<Layout>) -> Prepared {
        let mut last = WriteBatch::default();
        let parts = if snapshot.has_layout(known) {
            WriteBatch::stock_in_parts(&snapshot)
        } else {
            last.stock(&snapshot, &known.stores);
            Vec::new()
        };
        Prepared {
            stores: snapshot.stores().to_vec(),
            matrix: snapshot.into_matrix(known),
            parts,
            last,
        }
    }
}

/// The parts of a snapshot that are in the rows of the volume.
#[derive(Default)]
struct Written {
    /// The stores of all durable parts.
    stores: Vec<u32>,
    /// `true` if a part may be durable although its commit failed.
    is_unknown: bool,
}

impl Written {
    /// Records the end of the commit of a part.
    async fn note(&mut self, stores: Vec<u32>, ticket: Ticket) -> Result<(), Problem> {
        let durable = ticket.durable().await;
        match &durable {
            Ok(()) => self.stores.extend(stores),
            Err(error) => self.is_unknown |= matches!(error, StorageError::EngineAway),
        }
        Ok(durable?)
    }

    /// Returns the problem of an upload of `stores` that failed with `problem`.
    fn problem(self, problem: Problem, stores: &[u32]) -> Problem {
        if self.stores.is_empty() && !self.is_unknown {
            return problem;
        }
        let failed = stores
            .iter()
            .copied()
            .filter(|store| !self.stores.contains(store))
            .collect();
        let reason = problem.detail_in_part().to_owned();
        Problem::partly_applied(StatusCode::SERVICE_UNAVAILABLE, &reason, self.stores, failed)
    }
}

/// Applies a whole snapshot. The snapshot is encoded on a blocking thread, and its parts are
/// written between the commits of orders. Then the stock in memory is replaced under its lock.
///
/// If the snapshot has exactly the products and stores of the current stock, it is written in parts
/// with the rows of one or more stores. After a crash or a failure between two parts, only some
/// stores have their new quantities. Each store's row records the last delivery that its quantities
/// count, so no delivery is subtracted twice. If neither snapshots nor deliveries are numbered, too
/// few units may be sold until the next snapshot, but never too many.
pub(super) async fn apply(
    app: Arc<App>,
    snapshot: StockSnapshot,
    as_of: Option<u64>,
    arrival: Arrival,
    slots: u64,
) -> Result<(), Problem> {
    // The lock lets only one upload run at a time in this volume. A snapshot is encoded for the
    // products and stores of the stock that it replaces, and another upload could change these
    // products and stores in between.
    let _applying = app.applying.lock().await;
    let state = app.state();
    let known = {
        let stock = state.stock();
        stock.accepts(as_of)?;
        stock.layout()
    };
    let prepared = runtime::blocking(move || Prepared::of(snapshot, &known)).await;
    let Prepared {
        matrix,
        stores,
        parts,
        mut last,
    } = prepared.map_err(|error| Problem::internal(error.to_string()))?;
    let has_parts = !parts.is_empty();
    let mut written = Written::default();
    let replaced = async {
        write(state, parts, &stores, slots, &mut written).await?;
        let permit = state.storage.permit().await?;
        let mut stock = state.stock();
        check_stores(&state.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| last.fence(state.slots.fence_of_store(*store)));
        let applied = stock.apply(matrix, as_of, arrival)?;
        last.stock_head(&applied.head);
        applied
            .counted
            .iter()
            .for_each(|(order, delivery)| last.forget_delivery(order, delivery.store));
        Ok::<_, Problem>((applied, permit.send(last)))
    };
    let (applied, ticket) = match replaced.await {
        Ok(replaced) => replaced,
        Err(problem) => {
            if has_parts {
                // The rows of some stores may have been written. So the stock in memory is replaced
                // by the stock in the rows.
                log_failure(restore(state).await);
            }
            return Err(written.problem(problem, &stores));
        }
    };
    if let Err(error) = ticket.durable().await {
        match read_stored(state).await {
            Ok(StoredStock {
                matrix,
                counted_to_overrides,
            }) => state.stock().undo(applied, matrix, counted_to_overrides),
            Err(problem) => log_failure(Err(problem)),
        }
        written.is_unknown |= matches!(error, StorageError::EngineAway);
        return Err(written.problem(error.into(), &stores));
    }
    app.counters.stock_snapshots.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Logs that the stock in memory could not be replaced by the stock in the rows. The client gets
/// the problem of the upload instead, which may say that some stores have their new quantities.
fn log_failure(restored: Result<(), Problem>) {
    if let Err(problem) = restored {
        tracing::error!(reason = problem.detail(), "stock not read after a failed upload");
    }
}

/// Writes the parts of a snapshot. Each part is queued while the previous part is being synced.
async fn write(
    state: &VolumeState,
    parts: Vec<StockPart>,
    stores: &[u32],
    slots: u64,
    written: &mut Written,
) -> Result<(), Problem> {
    let mut before: Option<(Vec<u32>, Ticket)> = None;
    let mut failure = None;
    for part in parts {
        let sent = async {
            let permit = state.storage.permit().await?;
            let _stock = state.stock();
            check_stores(&state.slots, stores, slots)?;
            Ok::<_, Problem>((part.stores, permit.send(part.batch)))
        };
        let now = match sent.await {
            Ok(now) => Some(now),
            Err(problem) => {
                failure = Some(problem);
                None
            }
        };
        if let Some((stores, ticket)) = std::mem::replace(&mut before, now) {
            let noted = written.note(stores, ticket).await;
            failure = failure.or(noted.err());
        }
        if failure.is_some() {
            break;
        }
    }
    if let Some((stores, ticket)) = before {
        // A part that was sent may be durable although an earlier part has failed.
        let noted = written.note(stores, ticket).await;
        failure = failure.or(noted.err());
    }
    failure.map_or(Ok(()), Err)
}

/// The stock of a volume as read from its rows.
struct StoredStock {
    matrix: StockMatrix,
    /// Number of the last delivery that a store's quantities count, for each store for which this
    /// number differs from the number of the whole stock. `None` if the store's snapshot had no
    /// number.
    counted_to_overrides: BTreeMap<u32, Option<u64>>,
}

/// Reads the stock of the volume from its rows.
async fn read_stored(state: &Arc<VolumeState>) -> Result<StoredStock, Problem> {
    let state = Arc::clone(state);
    let read = runtime::blocking(move || {
        let known = state.stock().layout();
        let snapshot = state.storage.snapshot(&state.slots)?;
        let counted_to_overrides = snapshot.counted_to_overrides(&state.storage.stock_head()?);
        Ok::<_, Problem>(StoredStock {
            matrix: snapshot.into_matrix(&known),
            counted_to_overrides,
        })
    });
    read.await.map_err(|error| Problem::internal(error.to_string()))?
}

/// Replaces the stock in memory by the stock in the rows of the volume.
async fn restore(state: &Arc<VolumeState>) -> Result<(), Problem> {
    loop {
        let version = state.slots.version();
        // Commits are in order. So once the commit of this empty batch has ended, every earlier
        // batch is durable or has failed. This holds also if the empty batch fails, so its result
        // is ignored.
        let _ = state
            .storage
            .permit()
            .await?
            .send(WriteBatch::default())
            .durable()
            .await;
        let stored = read_stored(state).await?;
        let mut stock = state.stock();
        if state.slots.version() == version {
            let before = stock.replace_quantities(stored.matrix, stored.counted_to_overrides);
            drop(stock);
            drop(before);
            return Ok(());
        }
    }
}

/// Rejects an upload with stores that this volume does not own, and an upload that began to arrive
/// under another set of slots. Rejects every upload while a slot of this volume is sealed for a
/// migration.
fn check_stores(slots: &Slots, stores: &[u32], version: u64) -> Result<(), Problem> {
    if slots.version() != version {
        return Err(OrderError::Moved.into());
    }
    if slots.is_alone() && !slots.some_sealed() {
        return Ok(());
    }
    for store in stores {
        if !slots.check_store(*store)? {
            return Err(OrderError::Moved.into());
        }
    }
    // A snapshot empties the stores that it omits. A sealed store may already be copied to another
    // volume, so it must not be emptied here.
    if slots.some_sealed() {
        Err(OrderError::Moved.into())
    } else {
        Ok(())
    }
}

/// Applies the lines of a `PATCH`, and returns the number of stores in them. The new quantities
/// count all deliveries until `arrival`, so a part that is applied twice has the same result.
///
/// The quantities of other stores are neither changed nor written. If a product or store is new,
/// the rows of all stores are read. Each product in `products` gets a cell in every store.
pub(super) async fn change(
    app: Arc<App>,
    cells: Vec<[u32; 3]>,
    products: Vec<u32>,
    arrival: Arrival,
    slots: u64,
) -> Result<usize, Problem> {
    let _applying = app.applying.lock().await;
    let state = Arc::clone(app.state());
    let prepared = runtime::blocking(move || {
        let stores: BTreeSet<u32> = cells.iter().map(|[_, store, _]| *store).collect();
        let known = cells.iter().map(|[product, store, _]| Cell {
            product: *product,
            store: *store,
        });
        let has_products = {
            let stock = state.stock();
            products.iter().all(|product| stock.has_product(*product))
        };
        let mut snapshot = if state.stock().has_all(known) && has_products {
            state.storage.snapshot_of(&stores)?
        } else {
            // New products or stores enlarge the stock. The size limit applies to the whole stock,
            // so the whole stock is read.
            state.storage.snapshot(&state.slots)?
        };
        let too_large = |fault: FieldFault| Problem::body(fault.reason);
        for product in products {
            snapshot.name_product(product).map_err(too_large)?;
        }
        // `domain::stock` subtracts the units of deliveries that the stored snapshot does not count
        // from the quantity in a row. The new quantity already excludes those of them until
        // `arrival`, so their units are added to the row.
        let left = state.stock().uncounted(arrival);
        let mut steps = Vec::with_capacity(cells.len());
        for [product, store, quantity] in cells {
            let cell = Cell { product, store };
            let left = left.get(&cell).copied().unwrap_or(0);
            let before = snapshot.quantity(product, store);
            let after = quantity.saturating_add(left);
            snapshot.set([product, store, after]).map_err(too_large)?;
            steps.push(CellStep {
                cell,
                by: after as i32 - before,
            });
        }
        let mut batch = WriteBatch::default();
        batch.stores(&snapshot, &stores);
        let stores: Vec<u32> = stores.into_iter().collect();
        Ok::<_, Problem>((batch, steps, stores, has_products))
    });
    let (mut batch, mut steps, stores, has_products) = prepared
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    let state = app.state();
    let permit = state.storage.permit().await?;
    let (has_room, ticket) = {
        let mut stock = state.stock();
        check_stores(&state.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| batch.fence(state.slots.fence_of_store(*store)));
        (has_products && stock.step(&steps), permit.send(batch))
    };
    let durable = ticket.durable().await;
    if let Err(StorageError::EngineAway) = durable {
        let written = Written {
            stores: Vec::new(),
            is_unknown: true,
        };
        let problem = written.problem(StorageError::EngineAway.into(), &stores);
        restore(state).await?;
        return Err(problem);
    }
    if has_room && durable.is_err() {
        steps.iter_mut().for_each(|step| step.by = -step.by);
        state.stock().step(&steps);
    } else if !has_room && durable.is_ok() {
        // The matrix in memory has no cell for a new product or store, so it is rebuilt from the
        // rows.
        restore(state).await?;
    }
    durable?;
    Ok(stores.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::stock_upload::tests::open;

    #[tokio::test]
    async fn an_upload_that_fails_after_a_durable_part_names_the_stores() {
        let folder = tempfile::tempdir().unwrap();
        let app = open(folder.path());
        let storage = &app.state().storage;
        let send = async || storage.permit().await.unwrap().send(WriteBatch::default());
        let failure = || Problem::busy("the disk is full; nothing was changed");
        let unchanged = Written::default().problem(failure(), &[1, 2, 3]);
        assert_eq!(unchanged, failure());
        let mut written = Written::default();
        written.note(vec![1, 2], send().await).await.unwrap();
        // A database that has lost its lock accepts no more commits.
        std::fs::remove_file(folder.path().join("LOCK")).unwrap();
        assert!(written.note(vec![3], send().await).await.is_err());
        let problem = written.problem(failure(), &[1, 2, 3]);
        let expected = Problem::partly_applied(
            StatusCode::SERVICE_UNAVAILABLE,
            "the disk is full",
            vec![1, 2],
            vec![3],
        );
        assert_eq!(problem, expected);
        drop(app);
    }
}
