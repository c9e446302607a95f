//! Copies of the available quantities of volumes that other nodes serve. They find an order's first
//! store without a message.
//!
//! The first search begins a copy, and `KEPT_FOR` without a search ends it. The task of a copy
//! reads the layout and all quantities, then asks the volume's owner for changes, one request at a
//! time. After a new incarnation or generation of the volume's stock it reads everything again.
//! `volume::followers` is the owner's side and defines the maximum age of a copy.
//!
//! **Invariants**
//! - A copy only suggests a store. The owner decides when it reserves.
//! - A copy is used only with the ring that its owner followed. So all copies of one search have
//!   the same epoch, also while stores move.
//! - A copy takes 4 bytes for each cell of the stock (`CELLS_MAX`).

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
/// Longest wait for an answer. The owner answers several times a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Pause after a request without an answer.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The copies of stock that this node has, by volume.
#[derive(Default)]
pub(crate) struct StockCopies(Mutex<BTreeMap<NodeName, Arc<StockCopy>>>);

/// The result of a search in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The first store of the volume that has the units.
    First(Option<u32>),
    /// The copy is missing, too old or of another epoch, so the owner must be asked.
    NotKnown,
}

/// The copy of one volume's stock.
struct StockCopy {
    /// Identifies this copy at the owner.
    follower: u64,
    content: Mutex<Content>,
}

struct Content {
    matrix: StockMatrix,
    position: Option<StockPosition>,
    /// Epoch of the owner's ring at the newest answer.
    epoch: u64,
    /// Time of the request of the newest answer. `None` while the copy is unusable.
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

    /// Searches the first store of a volume that has these units, by the ring of this epoch.
    /// `demands` names each product once. Begins a copy if there is none.
    pub(crate) fn first_store(
        cluster: &Arc<ClusterHandle>,
        volume: &NodeName,
        epoch: u64,
        demands: &[Line],
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
            Found::First(content.matrix.first_store(demands))
        } else {
            Found::NotKnown
        }
    }

    /// Applies the quantities that a refused reservation returned.
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

/// The task of one copy.
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

    /// Asks the owner. Returns `None` without a usable answer.
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

    /// Asks for changes once and applies them.
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

    /// Reads the whole stock. The copy is used only after the changes since `layout.position` are
    /// applied, because the rows are read one after another.
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
        // At least one request is sent: it tells the owner that the former content is not in use.
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

/// Builds a matrix with the rows of the owner. Returns `None` if the quantities do not fit the
/// layout.
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
