//! A model of the protocol by which volumes change their process and slots change their volume. A
//! checker tries all sequences of its steps, breadth-first.
//!
//! The model has:
//! - the cluster's state (`ring.json`), which only the coordinator replaces, and nodes with older
//!   copies;
//! - volumes, which one process at a time can open, with slots that are owned, sealed or owned by
//!   another volume;
//! - copies of slots during a move;
//! - customers who send an order once or twice, with equal or different lines, to any node;
//! - crashes of any node, the coordinator included, between any two steps. Only the disk survives.
//!
//! Deliberately absent: time, sizes and faults of disks. The simulation (`oms/src/simulation`) runs
//! the real code. Each `Mistake` breaks one rule of the protocol, and a test proves that the
//! checker finds the mistake.

#![allow(clippy::unwrap_used, reason = "a test stops at an impossible state")]

mod protocol;

use protocol::{ALWAYS, MISTAKES, Mistake, Protocol};

use stateright::{Checker, HasDiscoveries, Model};

#[test]
fn acknowledged_orders_survive_crashes_between_any_two_steps() {
    // Maximum numbers of crashes, of sent orders and of moves, for each run of the checker.
    for bounds in [(2, 1, 1), (1, 2, 1), (1, 1, 2)] {
        let (crashes, sends, moves) = bounds;
        let protocol = Protocol::of(Mistake::None, crashes, sends, moves);
        let checker = protocol.checker().threads(2).spawn_bfs().join();
        println!(
            "{bounds:?}: {} states, {} deep",
            checker.unique_state_count(),
            checker.max_depth()
        );
        for name in ALWAYS {
            checker.assert_no_discovery(name);
        }
        if moves == 2 {
            checker.assert_properties();
        }
    }
}

#[test]
fn the_checker_finds_every_mistake() {
    for mistake in MISTAKES {
        let finish = HasDiscoveries::AnyFailures;
        // The model limits the numbers of crashes, sent orders and moves. With these limits the
        // checker finds the mistake.
        let (crashes, sends, moves) = match mistake {
            Mistake::CommitAfterUndo | Mistake::AcceptOldCopy => (1, 1, 2),
            _ => (2, 1, 1),
        };
        let protocol = Protocol::of(mistake, crashes, sends, moves);
        let checker = protocol
            .checker()
            .threads(2)
            .finish_when(finish)
            .spawn_bfs()
            .join();
        let found = ALWAYS
            .iter()
            .find_map(|name| Some((name, checker.discovery(name)?)));
        let states = checker.unique_state_count();
        let (name, path) = found.unwrap_or_else(|| panic!("{mistake:?} was not found in {states} states"));
        println!(
            "{mistake:?} breaks \"{name}\": {} steps, {states} states",
            path.into_actions().len()
        );
    }
}
