//! Copies of the available quantities of volumes that other nodes serve. With a copy, the search
//! for the store with the lowest id that has an order's units usually needs no message.
//!
//! The first search in a volume begins a copy. The copy is dropped after `KEPT_FOR` without a
//! search, or once the volume is no member of the ring. The task of a copy reads the layout (the
//! lists of stores and products) and all quantities. Then it requests changes from the volume's
//! owner, one request at a time. If the incarnation or generation of the volume's stock changes,
//! the task reads everything again. The owner of a volume is the node that serves it. In that node,
//! `volume::followers` answers the requests and defines the maximum age of a copy.
//!
//! **Invariants**
//! - A copy only suggests a store. The owner reserves the units, or this node's volume takes units
//!   that it has borrowed.
//! - A search uses a copy only if the owner followed the ring of the search's epoch at its newest
//!   answer. So all copies in one search have the same epoch, even while stores migrate.
//! - A copy uses about 4 bytes of memory for each cell, which is one product in one store. The
//!   number of stores is rounded up to a multiple of `LANES`. `CELLS_MAX` limits the number of
//!   cells.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::cluster::channel::message::{
    Answer, Cell, FollowStock, Question, ReadStock, Reply, StockLayout, StockPosition,
};
use crate::control::handle::ClusterHandle;
use crate::control::topology::VolumeLocation;
use crate::domain::order::Line;
use crate::domain::stock_matrix::{LANES, Layout, NO_STORE, StockMatrix};
use crate::domain::stock_snapshot::{CELLS_MAX, note};
use crate::runtime;
use crate::volume::followers::COPY_AGE_MAX;

/// Time without a search after which a copy is dropped.
const KEPT_FOR: Duration = Duration::from_secs(5);
/// Timeout of a request to the owner, which normally answers several times a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Pause after a request without a usable answer.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// This node's copies of the stock of other volumes, by volume.
#[derive(Default)]
pub(crate) struct StockCopies(Mutex<BTreeMap<NodeName, Arc<StockCopy>>>);

/// The result of a search in a copy, or in a volume that this process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The volume's store with the lowest id that has the units; `None` if no store has them.
    First(Option<u32>),
    /// The copy is missing, incomplete, too old or of another epoch, so the owner must be asked.
    NotKnown,
}

/// The copy of one volume's stock.
struct StockCopy {
    /// Random number by which the owner recognizes this copy.
    follower: u64,
    content: Mutex<Content>,
}

struct Content {
    matrix: StockMatrix,
    position: Option<StockPosition>,
    /// Epoch of the owner's ring at the newest answer.
    epoch: u64,
    /// Time at which the request was sent that the newest answer belongs to. `None` while the copy
    /// is unusable.
    as_of: Option<Instant>,
    looked_at: Instant,
}

impl StockCopy {
    fn new() -> Arc<StockCopy> {
        let content = Content {
            matrix: StockMatrix::default(),
            position: None,
            epoch: 0,
            as_of: None,
            looked_at: Instant::now(),
        };
        Arc::new(StockCopy {
            follower: runtime::random_u64(),
            content: Mutex::new(content),
        })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock()
    }
}

impl StockCopies {
    fn copies(&self) -> MutexGuard<'_, BTreeMap<NodeName, Arc<StockCopy>>> {
        self.0.lock()
    }

    /// Searches the copy of a volume for the store with the lowest id that has these units, under
    /// the ring of this epoch. `demands` names each product once. The result may lack a store with
    /// the id `below` or higher. Begins a copy if there is none.
    pub(crate) fn first_store(
        cluster: &Arc<ClusterHandle>,
        volume: &NodeName,
        epoch: u64,
        demands: &[Line],
        below: Option<u32>,
    ) -> Found {
        let known = cluster.stock_copies.copies().get(volume).cloned();
        let Some(copy) = known else {
            StockCopies::begin(cluster, volume);
            return Found::NotKnown;
        };
        let now = Instant::now();
        let mut content = copy.content();
        content.looked_at = now;
        let is_current = content.as_of.is_some_and(|as_of| now < as_of + COPY_AGE_MAX);
        if is_current && content.epoch == epoch {
            Found::First(first_below(&content.matrix, demands, below))
        } else {
            Found::NotKnown
        }
    }

    /// Writes the quantities that came with a refused reservation to the volume's copy, if there is
    /// one. `Cell::at` is the id of the product.
    pub(crate) fn correct(&self, volume: &NodeName, store: u32, cells: &[Cell]) {
        let copy = self.copies().get(volume).cloned();
        if let Some(copy) = copy {
            let mut content = copy.content();
            for cell in cells {
                content.matrix.set_available(cell.at, store, cell.available);
            }
        }
    }

    fn begin(cluster: &Arc<ClusterHandle>, volume: &NodeName) {
        let mut copies = cluster.stock_copies.copies();
        if copies.contains_key(volume) {
            return;
        }
        let copy = StockCopy::new();
        copies.insert(volume.clone(), Arc::clone(&copy));
        drop(copies);
        let follow = Following {
            cluster: Arc::downgrade(cluster),
            volume: volume.clone(),
            copy,
        };
        runtime::spawn(follow.follow_while_used());
    }
}

/// The task that keeps one copy up to date.
struct Following {
    cluster: Weak<ClusterHandle>,
    volume: NodeName,
    copy: Arc<StockCopy>,
}

impl Following {
    async fn follow_while_used(self) {
        while let Some(cluster) = self.cluster.upgrade() {
            let is_used = self.copy.content().looked_at.elapsed() < KEPT_FOR;
            if !is_used || cluster.topology().known(&self.volume).is_none() {
                cluster.stock_copies.copies().remove(&self.volume);
                return;
            }
            if self.follow_once(&cluster).await.is_none() {
                drop(cluster);
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    /// Sends a question to the volume's owner. Returns `None` if no answer arrives in time, or if
    /// no other node serves the volume.
    async fn ask(&self, cluster: &Arc<ClusterHandle>, question: Question) -> Option<Answer> {
        let topology = cluster.topology();
        let VolumeLocation::There { address, .. } = topology.locate(&self.volume) else {
            return None;
        };
        let until = Instant::now() + ANSWER_WITHIN;
        let epoch = topology.ring.epoch().0;
        let asked = cluster
            .peers
            .request(address, &self.volume, epoch, question, until)
            .await;
        asked.ok()
    }

    /// Requests changes from the owner once and applies them. If the owner sends its layout
    /// instead, reads the whole stock. Returns `None` after a request without a usable answer.
    async fn follow_once(&self, cluster: &Arc<ClusterHandle>) -> Option<()> {
        let (known, has_content) = {
            let content = self.copy.content();
            (content.position, content.as_of.is_some())
        };
        let asked_at = Instant::now();
        let follow = FollowStock {
            follower: self.copy.follower,
            known,
            waits: has_content,
        };
        let answer = self.ask(cluster, Question::FollowStock(follow)).await?;
        match answer.reply {
            Reply::StockChanges(position, cells) => {
                self.take_changes(position, &cells, answer.epoch, asked_at)
            }
            Reply::StockLayout(layout) => self.read(cluster, layout).await,
            _ => None,
        }
    }

    fn take_changes(
        &self,
        position: StockPosition,
        cells: &[Cell],
        epoch: u64,
        asked_at: Instant,
    ) -> Option<()> {
        let mut content = self.copy.content();
        let fits = |known: StockPosition| {
            (known.incarnation, known.generation) == (position.incarnation, position.generation)
        };
        let has_all = content.position.is_some_and(fits)
            && cells
                .iter()
                .all(|cell| content.matrix.set_available_at(cell.at, cell.available));
        if !has_all {
            content.position = None;
            content.as_of = None;
            return None;
        }
        content.position = Some(position);
        content.epoch = epoch;
        content.as_of = Some(asked_at);
        Some(())
    }

    /// Reads the whole stock. The rows are read at different moments, so the copy is used only
    /// after the changes since `layout.position` are applied too. Returns `None`, and leaves the
    /// copy unusable, if an answer is missing or invalid or the stock is too large.
    async fn read(&self, cluster: &Arc<ClusterHandle>, layout: StockLayout) -> Option<()> {
        {
            let mut content = self.copy.content();
            content.as_of = None;
            content.position = None;
        }
        let StockLayout {
            position,
            stores,
            products,
        } = layout;
        if stores.len().saturating_mul(products.len()) > CELLS_MAX {
            return None;
        }
        let mut quantities = Vec::new();
        let mut first_row = 0;
        // At least one request is sent, even for a stock without cells. The request tells the owner
        // that this node no longer uses the copy's earlier content. So the owner need not wait for
        // this copy before it confirms an uploaded stock.
        loop {
            let read = ReadStock {
                follower: self.copy.follower,
                incarnation: position.incarnation,
                generation: position.generation,
                first_row: first_row as u32,
            };
            let Reply::StockRows(rows) = self.ask(cluster, Question::ReadStock(read)).await?.reply else {
                return None;
            };
            first_row += rows.len() / stores.len().max(1);
            quantities.extend_from_slice(&rows);
            if rows.is_empty() || first_row >= products.len() {
                break;
            }
        }
        let matrix = assemble(stores, &products, &quantities)?;
        let mut content = self.copy.content();
        content.matrix = matrix;
        content.position = Some(position);
        Some(())
    }
}

/// Returns the store with the lowest id that has these units. The stock is not searched if all its
/// stores have the id `below` or a higher one.
fn first_below(matrix: &StockMatrix, demands: &[Line], below: Option<u32>) -> Option<u32> {
    let lowest = *matrix.stores().first()?;
    if below.is_some_and(|below| lowest >= below) {
        return None;
    }
    matrix.first_store(demands)
}

/// Builds a matrix from the quantities that the owner sent. Returns `None` if their number does not
/// fit the layout, the stores are not ascending, or the id of a product is too large.
fn assemble(stores: Vec<u32>, products: &[u32], quantities: &[i32]) -> Option<StockMatrix> {
    if quantities.len() != stores.len() * products.len() || !stores.is_sorted() {
        return None;
    }
    let width = stores.len().next_multiple_of(LANES);
    let mut on_hand = vec![0; products.len() * width];
    let rows = quantities.chunks_exact(stores.len().max(1));
    for (to, from) in on_hand.chunks_exact_mut(width.max(1)).zip(rows) {
        to[..stores.len()].copy_from_slice(from);
        to[stores.len()..].fill(NO_STORE);
    }
    let mut row_of = Vec::new();
    for (row, product) in products.iter().enumerate() {
        if *product > crate::domain::stock_snapshot::PRODUCT_MAX {
            return None;
        }
        note(&mut row_of, *product, row);
    }
    let layout = Layout {
        row_of,
        stores,
        width,
    };
    Some(StockMatrix::new(Arc::new(layout), on_hand))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_finds_each_store_below_its_bound() {
        let demand = |id| [Line { id, quantity: 2 }];
        let matrix = assemble(vec![3, 7], &[1, 2], &[2, 9, 1, 2]).unwrap();
        let found = |id, below| first_below(&matrix, &demand(id), below);
        assert_eq!((found(1, None), found(2, None)), (Some(3), Some(7)));
        assert_eq!((found(1, Some(4)), found(2, Some(8))), (Some(3), Some(7)));
        assert_eq!((found(1, Some(3)), found(2, Some(3))), (None, None));
        let empty = assemble(Vec::new(), &[1], &[]).unwrap();
        assert_eq!(first_below(&empty, &demand(1), None), None);
    }

    #[test]
    fn the_quantities_of_a_refused_reservation_correct_the_copy_of_their_volume_only() {
        let copies = StockCopies::default();
        let names = ["ada", "bob"].map(|name| NodeName::new(name).unwrap());
        for name in &names {
            let copy = StockCopy::new();
            copy.content().matrix = assemble(vec![3, 7], &[10, 20], &[5, 9, 5, 9]).unwrap();
            copies.copies().insert(name.clone(), copy);
        }
        let cells = [Cell { at: 20, available: 1 }, Cell { at: 99, available: 0 }];
        copies.correct(&names[0], 3, &cells);
        let unknown = NodeName::new("cyd").unwrap();
        copies.correct(&unknown, 3, &cells);
        let found = |name: &NodeName, id, quantity| {
            let known = copies.copies();
            let content = known[name].content();
            content.matrix.first_store(&[Line { id, quantity }])
        };
        assert_eq!(found(&names[0], 20, 1), Some(3));
        assert_eq!(found(&names[0], 20, 2), Some(7), "store 3 has one unit only");
        assert_eq!(found(&names[0], 10, 5), Some(3), "another product");
        assert_eq!(found(&names[1], 20, 5), Some(3), "another volume");
        assert_eq!(copies.copies().len(), 2);
    }
}
