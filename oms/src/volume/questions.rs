//! Answers the questions and commands to a volume of this process: those of other volumes, and
//! those of nodes that keep a copy of its stock.
//!
//! **Invariant**: if the right to serve the volume was lost while the question was answered, the
//! answer is `Moved`.
//!
//! Deliberately absent: the commands and reads of clients, which the API answers.

use std::sync::Arc;

use imt_ring::Epoch;

use crate::cluster::channel::message::{Question, Reply};
use crate::error::with_causes;
use crate::volume::server::VolumeServer;
use crate::volume::state::OrderError;
use crate::volume::transactor::Ask;

/// A reply of a volume, and the epoch that is sent with it.
#[derive(Debug)]
pub(crate) struct VolumeReply {
    pub(crate) reply: Reply,
    /// The epoch of the ring that the volume followed at the time of the reply. `None` for the
    /// epoch of this node's topology when the question arrived.
    pub(crate) epoch: Option<u64>,
}

impl From<Reply> for VolumeReply {
    fn from(reply: Reply) -> VolumeReply {
        VolumeReply { reply, epoch: None }
    }
}

/// Answers a question of a caller that chose this volume by the ring of epoch `asked_by`.
pub(crate) async fn answer(server: &Arc<VolumeServer>, asked_by: Epoch, question: Question) -> VolumeReply {
    let state = server.app.state();
    let mut epoch = None;
    let reply = match question {
        Question::Command(_) | Question::Read(_) => {
            Reply::Failed("a client's request must be sent to the API of the volume's node".to_owned())
        }
        Question::FindStore { order, lines } => state
            .find_store(&order, &lines, asked_by)
            .map_or_else(Reply::from, Reply::FoundStore),
        Question::Reserve(reserve) => {
            let mut answers = state.reserve_all(vec![reserve]).await;
            let answered = answers.pop().unwrap_or(Err(OrderError::Interrupted));
            answered.unwrap_or_else(Reply::from)
        }
        Question::Confirm(confirm) => {
            state.confirm(&confirm);
            Reply::Kept(true)
        }
        Question::Allot(request) => state.allot(request).await.unwrap_or_else(Reply::from),
        Question::Recall(recall) => {
            state.recall(&recall);
            Reply::Kept(true)
        }
        Question::Settle { order, settlement } => {
            let settled = state.settle(&order, &settlement).await;
            settled.map_or_else(Reply::from, |()| Reply::Settled)
        }
        Question::Keeps { order, store } => match server.app.transactors.ask(&order, Ask::Look).await {
            Ok(outcome) => state
                .keeps(&outcome.order, store)
                .map_or_else(Reply::from, Reply::Kept),
            Err(OrderError::Unknown) => Reply::Kept(false),
            Err(fault) => fault.into(),
        },
        Question::FollowStock(follow) => {
            let followed = state.follow_stock(follow).await;
            epoch = followed.epoch;
            followed.reply
        }
        Question::ReadStock(read) => state.read_stock(read),
        // The caller of this function has already removed the trace context of the question, so
        // this is a second trace context.
        Question::Traced(..) => {
            Reply::Failed("a request has two trace contexts; run the same version on all nodes".to_owned())
        }
    };
    if state.storage.is_ours() {
        VolumeReply { reply, epoch }
    } else {
        Reply::Moved.into()
    }
}

impl From<OrderError> for Reply {
    fn from(fault: OrderError) -> Reply {
        match fault {
            OrderError::Moved => Reply::Moved,
            OrderError::Busy(reason) => Reply::Busy(reason.to_owned()),
            OrderError::Away(reason) => Reply::Busy(reason),
            OrderError::Storage(error) if error.is_full_disk() => {
                Reply::Busy("the disk is full; nothing was changed".to_owned())
            }
            OrderError::Storage(error) => {
                let reasons = with_causes(&error);
                tracing::error!(error = reasons, "request of another node failed at the volume");
                Reply::Failed(reasons)
            }
            fault => Reply::Failed(fault.to_string()),
        }
    }
}
