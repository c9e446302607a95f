//! Copies of the available quantities of volumes that other nodes serve, to find an order's first
//! store without a message.
//!
//! A copy is kept while it is used: the first look for a store begins it, and `KEPT_FOR` without a
//! look ends it. Its task asks the volume's owner for changes, one request at a time (`followers`
//! says how old a copy may be, and what "first store" means then). It begins with the layout and
//! all quantities. Another incarnation or generation of the volume's stock begins it again.
//!
//! Invariants:
//! - A copy only says where to ask: the owner decides when it reserves.
//! - A copy counts only for the ring that its owner followed: when stores move, all copies that are
//!   looked at are of one epoch.
//! - Memory is bounded by the cells of the stock (`sheet::CELLS_MAX`), 4 bytes for each.

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

/// How long a copy is kept that nobody looks at.
const KEPT_FOR: Duration = Duration::from_secs(5);
/// Longest wait for an answer; the owner answers several times a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Pause before an owner that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The copies of one node.
#[derive(Default)]
pub(crate) struct StockCopies(Mutex<BTreeMap<NodeName, Arc<StockCopy>>>);

/// What a copy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The first store of the volume that has the units.
    First(Option<u32>),
    /// The copy is missing, too old or of another epoch: the owner must be asked.
    NotKnown,
}

/// The copy of one volume's stock.
struct StockCopy {
    /// Tells this copy from all others.
    follower: u64,
    content: Mutex<Content>,
}

struct Content {
    matrix: StockMatrix,
    position: Option<StockPosition>,
    /// The ring that the owner followed.
    epoch: u64,
    /// When the newest answer was asked for; `None` while there is nothing to use.
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

    /// Looks for the first store of a volume that has these units, by the ring of this epoch.
    /// `demands` holds each product once. Begins to copy the volume's stock if that is not copied.
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

    /// Takes in quantities that came with a refusal.
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

    /// Asks the owner, wherever it is; `None` if it did not answer as it must.
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

    /// Brings the copy up to date once.
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

    /// Reads the stock as a whole. It is not used before the changes since its position are known.
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
        // At least once: that tells the owner that the former content is not used any more.
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

/// The shelves of a layout, rows as at the owner; `None` if the quantities are not those of the
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
