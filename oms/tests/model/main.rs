//! The protocol of ownership and hand-over as a small model, checked breadth-first: every order of
//! every step.
//!
//! The model has nodes, each with a view of the truth that lags behind; the truth (`ring.json`),
//! which only the coordinator replaces; volumes, which one process at a time has open; slots, which
//! are here, sealed or elsewhere for whoever has their volume open; copies of slots on their way;
//! and customers who send the same order twice, with other content too, by any node. Any node, the
//! coordinator too, may crash between any two steps and come back with nothing but its disk.
//!
//! It says nothing about time, sizes or disks: the code itself runs in the simulation
//! (`oms/src/simulation`). Each `Mistake` is one that the protocol must not make, and a test shows
//! that the checker finds it: four of them were in the code once.

#![allow(clippy::unwrap_used, reason = "a test stops at what cannot be")]

mod protocol;

use protocol::{ALWAYS, MISTAKES, Mistake, Protocol};

use stateright::{Checker, HasDiscoveries, Model};

#[test]
fn nothing_acknowledged_is_lost_whoever_crashes_at_whatever_step() {
    // Crashes, orders sent, moves.
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
fn every_mistake_is_found() {
    for mistake in MISTAKES {
        let finish = HasDiscoveries::AnyFailures;
        // Crashes, orders sent, moves: as few as show it.
        let (crashes, sends, moves) = match mistake {
            Mistake::CommitAfterUndo | Mistake::TakeOldCopy => (1, 1, 2),
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
