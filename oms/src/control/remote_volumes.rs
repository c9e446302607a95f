//! The other volumes, reached through the gate: see `among` for what is asked of them and why it
//! may be repeated.

use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::Problem;
use crate::api::internal::{Find, Keeps, Reserve, Settle, ask_volume};
use crate::control::handle::Gate;
use crate::control::topology::View;
use crate::domain::order::{Line, OrderId};
use crate::domain::routing_key::Subject;
use crate::domain::settlement::Settlement;
use crate::runtime;
use crate::volume::remote_stock::{Answer, Far};
use crate::volume::state::Fault;

/// How long another volume is waited for; less than the caller waits for the order.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// All volumes but one.
pub(crate) struct OtherVolumes {
    /// Weak, since the gate's view holds the rooms that hold this.
    gate: Weak<Gate>,
    volume: NodeName,
}

impl OtherVolumes {
    /// All volumes but this.
    pub(crate) fn of(gate: &Arc<Gate>, volume: &NodeName) -> Arc<dyn Far> {
        Arc::new(OtherVolumes {
            gate: Arc::downgrade(gate),
            volume: volume.clone(),
        })
    }

    fn gate(&self) -> Result<Arc<Gate>, Fault> {
        self.gate.upgrade().ok_or(Fault::Moved)
    }
}

fn away(problem: Problem) -> Fault {
    if problem.is_moved() {
        return Fault::Moved;
    }
    Fault::Away(problem.detail().to_owned())
}

impl Far for OtherVolumes {
    fn find<'a>(&'a self, lines: &'a [Line], below: Option<u32>) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            // No store comes before the first.
            if below == Some(1) {
                return Ok(None);
            }
            let gate = self.gate()?;
            let others: Vec<NodeName> = gate
                .view()
                .volumes()
                .filter(|volume| **volume != self.volume)
                .cloned()
                .collect();
            let until = Instant::now() + PATIENCE;
            let mut asked = JoinSet::new();
            for volume in others {
                let (gate, lines) = (Arc::clone(&gate), lines.to_vec());
                asked.spawn(runtime::within(async move {
                    let find = Find { lines };
                    let volume = |view: &View| view.known(&volume);
                    ask_volume::<Option<u32>>(&gate, volume, "find", &find, until).await
                }));
            }
            let mut first = None;
            for found in asked.join_all().await {
                let store = found.map_err(away)?;
                first = [first, store].into_iter().flatten().min();
            }
            Ok(first.filter(|store| below.is_none_or(|below| *store < below)))
        })
    }

    fn reserve<'a>(
        &'a self,
        order: &'a OrderId,
        nonce: u64,
        store: u32,
        lines: &'a [Line],
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let gate = self.gate()?;
            let ask = Reserve {
                order: order.to_string(),
                nonce,
                store,
                lines: lines.to_vec(),
            };
            let volume = |view: &View| view.volume_of(&Subject::Store(store));
            let until = Instant::now() + PATIENCE;
            ask_volume(&gate, volume, "reserve", &ask, until)
                .await
                .map_err(away)
        })
    }

    fn settle<'a>(&'a self, order: &'a OrderId, settlement: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async move {
            let gate = self.gate()?;
            let ask = Settle {
                order: order.to_string(),
                settlement: settlement.clone(),
            };
            let volume = |view: &View| view.volume_of(&Subject::Store(settlement.store));
            let until = Instant::now() + PATIENCE;
            let done = ask_volume::<bool>(&gate, volume, "settle", &ask, until).await;
            done.map(drop).map_err(away)
        })
    }

    fn keeps<'a>(&'a self, order: &'a OrderId, store: u32) -> Answer<'a, bool> {
        Box::pin(async move {
            let gate = self.gate()?;
            let ask = Keeps {
                order: order.to_string(),
                store,
            };
            let volume = |view: &View| view.volume_of(&Subject::Order(order.clone()));
            let until = Instant::now() + PATIENCE;
            ask_volume(&gate, volume, "keeps", &ask, until)
                .await
                .map_err(away)
        })
    }
}
