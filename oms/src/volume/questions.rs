//! Answers the questions of other volumes at a volume that is served here.
//!
//! **Invariant**: no answer is given from a volume that was lost in the meantime.
//!
//! Deliberately absent: the commands and reads of clients, which the API answers.

use std::sync::Arc;

use crate::cluster::channel::message::{Question, Reply};
use crate::error::with_causes;
use crate::volume::server::VolumeServer;
use crate::volume::state::OrderError;
use crate::volume::transactor::Ask;

/// Answers a question. Also returns the epoch of the answer, if that is not the epoch of this
/// node's view.
pub(crate) async fn answer(server: &Arc<VolumeServer>, question: Question) -> (Option<u64>, Reply) {
    let state = server.app.state();
    let mut epoch = None;
    let reply = match question {
        Question::Command(_) | Question::Read(_) => {
            Reply::Failed("this is for the API of the volume's node".to_owned())
        }
        Question::FindStore(lines) => state
            .find_store(&lines)
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
        Question::Recall(store) => {
            state.recall(store);
            Reply::Kept(true)
        }
        Question::Settle { order, settlement } => {
            let settled = state.settle(&order, &settlement).await;
            settled.map_or_else(Reply::from, |()| Reply::Settled)
        }
        Question::Keeps { order, store } => match server.app.transactors.ask(&order, Ask::Look).await {
            Ok(outcome) => Reply::Kept(state.is_kept(&outcome.order, store)),
            Err(OrderError::Unknown) => Reply::Kept(false),
            Err(fault) => fault.into(),
        },
        Question::FollowStock(follow) => {
            let (as_of, reply) = state.follow_stock(follow).await;
            epoch = Some(as_of);
            reply
        }
        Question::ReadStock(read) => state.read_stock(read),
        // The trace was taken off, and a message has one at most.
        Question::Traced(..) => Reply::Failed("a trace within a trace".to_owned()),
    };
    if state.storage.is_ours() {
        (epoch, reply)
    } else {
        (None, Reply::Moved)
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
