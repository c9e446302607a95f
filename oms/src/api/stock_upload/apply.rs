//! Applies a parsed stock upload to the memory and the rows of a volume.
//!
//! **Invariants**
//! - One upload is applied at a time. So the stock in memory and the rows get all uploads in the
//!   same order.
//! - If a commit fails, the stock in memory is made equal to the stock in the volume's rows again.
//! - If the volume's set of slots changed since the upload was split or its reading began, or if a
//!   slot of the volume is sealed, the result is the problem "moved" (421).
//!
//! HTTP and CSV are handled in `stock_upload`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::api::problem::Problem;
use crate::domain::csv::FieldFault;
use crate::domain::stock::{Arrival, Cell, CellStep};
use crate::domain::stock_matrix::{Layout, StockMatrix};
use crate::domain::stock_snapshot::StockSnapshot;
use crate::runtime;
use crate::storage::group_commit::Ticket;
use crate::storage::owned_slots::Slots;
use crate::storage::write_batch::WriteBatch;
use crate::volume::app::App;
use crate::volume::state::{OrderError, VolumeState};

/// A whole snapshot, encoded as write batches and as the stock matrix that replaces the matrix in
/// memory.
pub(super) struct Prepared {
    matrix: StockMatrix,
    stores: Vec<u32>,
    /// Batches that may be committed before the batch `last`; see `WriteBatch::stock_in_parts`.
    pub(super) parts: Vec<WriteBatch>,
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
    let replaced = async {
        write(state, parts, &stores, slots).await?;
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
                restore(state).await?;
            }
            return Err(problem);
        }
    };
    if let Err(error) = ticket.durable().await {
        let stored = read_stored(state).await?;
        state
            .stock()
            .undo(applied, stored.matrix, stored.counted_to_overrides);
        return Err(error.into());
    }
    app.counters.stock_snapshots.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Writes the parts of a snapshot. Each part is queued while the previous part is being synced.
async fn write(
    state: &VolumeState,
    parts: Vec<WriteBatch>,
    stores: &[u32],
    slots: u64,
) -> Result<(), Problem> {
    let mut before: Option<Ticket> = None;
    for part in parts {
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            check_stores(&state.slots, stores, slots)?;
            permit.send(part)
        };
        if let Some(before) = before.replace(ticket) {
            before.durable().await?;
        }
    }
    match before {
        Some(ticket) => Ok(ticket.durable().await?),
        None => Ok(()),
    }
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

/// Applies the lines of a `PATCH`, and returns the number of stores in them. The quantities of
/// other stores are neither changed nor written. If a product or store is new, the rows of all
/// stores are read. Each product in `products` gets a cell in every store.
pub(super) async fn change(
    app: Arc<App>,
    cells: Vec<[u32; 3]>,
    products: Vec<u32>,
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
        // from the quantity in a row. The new quantity already excludes these units, so they are
        // added to the row.
        let left = state.stock().uncounted();
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
