//! The exact case of one replica. Each node gives away the slots above its quota and takes the
//! slots that it lacks. No other slot moves, so the number of moves is minimal.
//!
//! A node gives away its highest slots without a pin, and nodes take free slots in the order of
//! their names. So the slots of a node stay together as far as earlier plans permit, and a plan
//! consists of few ranges.

use alloc::vec::Vec;

use super::{Placed, Problem};
use crate::ring::{NONE, Node};

pub(super) fn place(problem: &Problem<'_>) -> Placed {
    let (quotas, _) = problem.primary_quotas();
    let mut cells = problem.rows.to_vec();
    let mut held: Vec<u64> = alloc::vec![0; quotas.len()];
    for cell in &mut cells {
        match problem.stays.get(usize::from(*cell)) {
            Some(true) => held[usize::from(*cell)] += 1,
            _ => *cell = NONE,
        }
    }
    for (cell, pinned) in cells.iter_mut().zip(&problem.pinned).rev() {
        if *cell == NONE || *pinned {
            continue;
        }
        let node = usize::from(*cell);
        if held[node] > quotas[node] {
            held[node] -= 1;
            *cell = NONE;
        }
    }
    let short =
        |node: usize| core::iter::repeat_n(node as Node, quotas[node].saturating_sub(held[node]) as usize);
    let mut takers = (0..quotas.len()).flat_map(short);
    let mut minimum = 0;
    for cell in cells.iter_mut().filter(|cell| **cell == NONE) {
        // Quotas add up to the number of slots, so each free slot finds a node. Only a ring without
        // nodes leaves slots free.
        if let Some(taker) = takers.next() {
            *cell = taker;
            minimum += 1;
        }
    }
    Placed { rows: cells, minimum }
}
