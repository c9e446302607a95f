//! The model: its state, the possible steps, and the properties of every state.
//!
//! A step is one atomic action of the protocol: a change of the cluster's state or its coordinator,
//! of one node, of one server, of one copy, or of one call. The checker tries every sequence of
//! steps, up to maximum numbers of crashes, orders and moves.

use std::collections::BTreeSet;

use stateright::{Model, Property};

pub(crate) const NODES: usize = 2;
/// Number of slots. One slot is enough, because slots do not interact.
const SLOTS: usize = 1;
/// Number of orders, one in each slot. An order may be sent with content 0 and with content 1,
/// which stand for different lines.
const ORDERS: usize = SLOTS;
/// Maximum number of calls in progress at the same time.
const CALLS: usize = 2;

/// A deliberate mistake: one rule that the modelled protocol breaks. `None` breaks no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// A source does not seal the slots that it copies, so it still accepts orders in these slots.
    CopyWithoutSeal,
    /// A process that opens a volume does not seal the slots that are moving.
    OpenUnsealedDuringMove,
    /// A node with an old state that names no move removes the seal of a newer move.
    UnsealByOldState,
    /// A server is started with a state that was read before the volume was open.
    StartByOldState,
    /// The source deletes its rows before the ring is replaced.
    CleanBeforeCommit,
    /// A volume is opened although another process has it open.
    OpenWithoutLock,
    /// The copy of a move that was undone completes late, and the coordinator counts it as the copy
    /// of the next move.
    CommitAfterUndo,
    /// A late copy of an earlier move replaces a newer copy.
    AcceptOldCopy,
}

/// All mistakes except `None`.
pub(crate) const MISTAKES: [Mistake; 8] = [
    Mistake::CopyWithoutSeal,
    Mistake::OpenUnsealedDuringMove,
    Mistake::UnsealByOldState,
    Mistake::StartByOldState,
    Mistake::CleanBeforeCommit,
    Mistake::OpenWithoutLock,
    Mistake::CommitAfterUndo,
    Mistake::AcceptOldCopy,
];

const ONE_SERVER: &str = "at most one process serves a slot";
const NOTHING_LOST: &str = "acknowledged orders are stored";
const ONE_CONTENT: &str = "no order is acknowledged with two contents";
/// Names of the properties that every state must have.
pub(crate) const ALWAYS: [&str; 3] = [ONE_SERVER, NOTHING_LOST, ONE_CONTENT];

/// The protocol with at most one mistake, and the maximum numbers of crashes, sent orders and
/// moves.
pub(crate) struct Protocol {
    mistake: Mistake,
    crashes: u8,
    sends: u8,
    moves: u8,
}

impl Protocol {
    pub(crate) fn of(mistake: Mistake, crashes: u8, sends: u8, moves: u8) -> Protocol {
        Protocol {
            mistake,
            crashes,
            sends,
            moves,
        }
    }
}

type Node = u8;
type Volume = u8;
type Slot = u8;
type Rows = BTreeSet<(Slot, u8)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClusterState {
    version: u8,
    ring: [Volume; SLOTS],
    serving: [Node; NODES],
    moving: Option<Moving>,
    committed: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Moving {
    id: u8,
    slot: Slot,
    to: Volume,
}

/// The server of a volume in a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Server {
    ring: [Volume; SLOTS],
    /// The sealed slot and the id of its move.
    sealed: Option<(Slot, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    is_alive: bool,
    known_state: ClusterState,
    servers: [Option<Server>; NODES],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Disk {
    rows: Rows,
    arriving: Option<(u8, Rows)>,
    must_purge: bool,
}

/// The progress of the copy of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Copy {
    Wanted {
        id: u8,
        slot: Slot,
        from: Volume,
        to: Volume,
    },
    Sent {
        id: u8,
        to: Volume,
        rows: Rows,
    },
    Staged {
        id: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    node: Node,
    volume: Volume,
    order: Slot,
    content: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    state: ClusterState,
    /// The node that is the coordinator. `awaited` is the id of the move that this coordinator has
    /// begun, until the move is committed or undone. `is_copied` is `true` once the move's slot is
    /// copied.
    coordinator: Option<Node>,
    awaited: Option<u8>,
    is_copied: bool,
    nodes: [Process; NODES],
    disks: [Disk; NODES],
    copies: BTreeSet<Copy>,
    calls: BTreeSet<Call>,
    acknowledged: [Option<u8>; ORDERS],
    is_contradicted: bool,
    crashes_left: u8,
    sends_left: u8,
    moves_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Crash(Node),
    Start(Node),
    Elect(Node),
    Serve {
        volume: Volume,
        node: Node,
    },
    Begin {
        slot: Slot,
        to: Volume,
    },
    Undo,
    Commit,
    Learn(Node),
    Close(Node, Volume),
    Open(Node, Volume),
    ApplyRing(Node, Volume),
    Unseal(Node, Volume),
    /// Advances a copy. A copy that is never advanced stands for a copy that never completes.
    Copy(Copy),
    Send {
        by: Node,
        order: Slot,
        content: u8,
    },
    Answer(Call),
    /// The call is executed, but the answer is lost.
    AnswerLost(Call),
}

impl World {
    fn server(&self, node: Node, volume: Volume) -> Option<&Server> {
        self.nodes[node as usize].servers[volume as usize].as_ref()
    }

    fn is_open(&self, volume: Volume) -> bool {
        self.nodes
            .iter()
            .any(|node| node.servers[volume as usize].is_some())
    }

    fn coordinator(&self) -> Option<&Process> {
        let node = &self.nodes[self.coordinator? as usize];
        node.is_alive.then_some(node)
    }

    /// Returns `true` if each volume is served under the current ring, and no volume may have rows
    /// of slots that it lost (`must_purge`). The coordinator begins a move only in such a state.
    fn is_settled(&self) -> bool {
        (0..NODES as Volume).all(|volume| {
            let node = self.state.serving[volume as usize];
            let server = self.server(node, volume);
            server.is_some_and(|server| server.ring == self.state.ring)
                && !self.disks[volume as usize].must_purge
        })
    }

    /// Starts the server of a volume: activates or deletes staged rows (or keeps those of the move
    /// under way), deletes rows of slots that the volume lost, and seals the slot that a move takes
    /// from the volume.
    fn start_server(&mut self, mistake: Mistake, volume: Volume, known: &ClusterState) -> Server {
        let disk = &mut self.disks[volume as usize];
        if let Some((id, rows)) = disk.arriving.take() {
            if known.moving.is_some_and(|moving| moving.id == id) {
                disk.arriving = Some((id, rows));
            } else if known.committed == id {
                disk.rows.extend(rows);
            }
        }
        if disk.must_purge {
            disk.rows.retain(|(slot, _)| known.ring[*slot as usize] == volume);
            disk.must_purge = false;
        }
        let goes = known
            .moving
            .filter(|moving| known.ring[moving.slot as usize] == volume);
        let sealed = goes.map(|moving| (moving.slot, moving.id));
        Server {
            ring: known.ring,
            sealed: sealed.filter(|_| mistake != Mistake::OpenUnsealedDuringMove),
        }
    }

    fn serves(&self, node: Node, volume: Volume, slot: Slot) -> bool {
        self.server(node, volume).is_some_and(|server| {
            server.ring[slot as usize] == volume && server.sealed.is_none_or(|(sealed, _)| sealed != slot)
        })
    }

    /// Executes an order if the called node and volume serve its slot. Returns the acknowledged
    /// content. `None` if the order is rejected.
    fn place(&mut self, call: &Call) -> Option<u8> {
        if !self.serves(call.node, call.volume, call.order) {
            return None;
        }
        let rows = &mut self.disks[call.volume as usize].rows;
        let known = rows.iter().find(|(order, _)| *order == call.order).copied();
        match known {
            // An order with equal content gets the same answer. With other content it is rejected.
            Some((_, content)) => (content == call.content).then_some(content),
            None => {
                rows.insert((call.order, call.content));
                Some(call.content)
            }
        }
    }

    fn replace(&mut self, change: impl FnOnce(&mut ClusterState)) {
        change(&mut self.state);
        self.state.version += 1;
    }

    fn coordinate(&self, steps: &mut Vec<Step>) {
        let Some(_) = self.coordinator() else { return };
        for volume in 0..NODES as Volume {
            let server = self.state.serving[volume as usize];
            let home = volume as Node;
            for node in 0..NODES as Node {
                let takes_over = !self.nodes[server as usize].is_alive && node != server;
                let comes_back = node == home && server != home;
                if self.nodes[node as usize].is_alive && (takes_over || comes_back) {
                    steps.push(Step::Serve { volume, node });
                }
            }
        }
        match self.state.moving {
            Some(_) => {
                steps.push(Step::Undo);
                if self.is_copied {
                    steps.push(Step::Commit);
                }
            }
            None if self.moves_left > 0 && self.is_settled() => {
                for slot in 0..SLOTS as Slot {
                    for to in 0..NODES as Volume {
                        if self.state.ring[slot as usize] != to {
                            steps.push(Step::Begin { slot, to });
                        }
                    }
                }
            }
            None => {}
        }
    }

    fn follow(&self, node: Node, steps: &mut Vec<Step>) {
        let process = &self.nodes[node as usize];
        if process.known_state != self.state {
            steps.push(Step::Learn(node));
        }
        for volume in 0..NODES as Volume {
            let is_mine = process.known_state.serving[volume as usize] == node;
            match &process.servers[volume as usize] {
                Some(_) if !is_mine => steps.push(Step::Close(node, volume)),
                Some(server) if server.ring != process.known_state.ring => {
                    steps.push(Step::ApplyRing(node, volume));
                }
                Some(Server { sealed: Some(_), .. }) if process.known_state.moving.is_none() => {
                    steps.push(Step::Unseal(node, volume));
                }
                None if is_mine => steps.push(Step::Open(node, volume)),
                _ => {}
            }
        }
    }

    /// Advances a copy by one step. Returns `None` if the copy ends early, because its source or
    /// target is not served or its move is outdated.
    fn advance_copy(&mut self, mistake: Mistake, copy: &Copy) -> Option<()> {
        self.copies.remove(copy);
        match copy {
            Copy::Wanted { id, slot, from, to } => {
                let node = self.state.serving[*from as usize];
                let is_under_way = self.state.moving.is_some_and(|moving| moving.id == *id);
                let server = self.nodes[node as usize].servers[*from as usize].as_mut()?;
                if !is_under_way || server.ring[*slot as usize] != *from {
                    return None;
                }
                if mistake != Mistake::CopyWithoutSeal {
                    server.sealed = Some((*slot, *id));
                }
                let disk = &mut self.disks[*from as usize];
                disk.must_purge = true;
                let rows: Rows = disk.rows.iter().filter(|row| row.0 == *slot).copied().collect();
                if mistake == Mistake::CleanBeforeCommit {
                    disk.rows.retain(|row| row.0 != *slot);
                }
                self.copies.insert(Copy::Sent {
                    id: *id,
                    to: *to,
                    rows,
                });
            }
            Copy::Sent { id, to, rows } => {
                let node = self.state.serving[*to as usize];
                self.server(node, *to)?;
                let arriving = &mut self.disks[*to as usize].arriving;
                let is_late = arriving.as_ref().is_some_and(|(newest, _)| newest > id);
                if is_late && mistake != Mistake::AcceptOldCopy {
                    return None;
                }
                *arriving = Some((*id, rows.clone()));
                self.copies.insert(Copy::Staged { id: *id });
            }
            Copy::Staged { id } => {
                if self.awaited == Some(*id)
                    || (self.awaited.is_some() && mistake == Mistake::CommitAfterUndo)
                {
                    self.is_copied = true;
                }
            }
        }
        Some(())
    }

    fn acknowledge(&mut self, order: Slot, content: u8) {
        match self.acknowledged[order as usize] {
            None => self.acknowledged[order as usize] = Some(content),
            Some(known) => self.is_contradicted |= known != content,
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let state = ClusterState {
            version: 1,
            ring: [0; SLOTS],
            serving: [0, 1],
            moving: None,
            committed: 0,
        };
        let node = |node: usize| Process {
            is_alive: true,
            known_state: state.clone(),
            servers: std::array::from_fn(|volume| {
                (volume == node).then_some(Server {
                    ring: state.ring,
                    sealed: None,
                })
            }),
        };
        vec![World {
            coordinator: Some(0),
            awaited: None,
            is_copied: false,
            nodes: std::array::from_fn(node),
            disks: Default::default(),
            copies: BTreeSet::new(),
            calls: BTreeSet::new(),
            acknowledged: [None; ORDERS],
            is_contradicted: false,
            crashes_left: self.crashes,
            sends_left: self.sends,
            moves_left: self.moves,
            state: state.clone(),
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.coordinate(steps);
        for node in 0..NODES as Node {
            if !world.nodes[node as usize].is_alive {
                steps.push(Step::Start(node));
                continue;
            }
            world.follow(node, steps);
            if world.crashes_left > 0 {
                steps.push(Step::Crash(node));
            }
            if world.coordinator.is_none() {
                steps.push(Step::Elect(node));
            }
            if world.sends_left > 0 && world.calls.len() < CALLS {
                for order in 0..ORDERS as Slot {
                    steps.extend((0..2).map(|content| Step::Send {
                        by: node,
                        order,
                        content,
                    }));
                }
            }
        }
        for copy in &world.copies {
            steps.push(Step::Copy(copy.clone()));
        }
        for call in &world.calls {
            steps.push(Step::Answer(call.clone()));
            steps.push(Step::AnswerLost(call.clone()));
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Crash(node) => {
                next.crashes_left -= 1;
                let process = &mut next.nodes[node as usize];
                process.is_alive = false;
                process.servers = Default::default();
                if next.coordinator == Some(node) {
                    (next.coordinator, next.awaited, next.is_copied) = (None, None, false);
                }
            }
            Step::Start(node) => {
                let known_state = next.state.clone();
                let process = &mut next.nodes[node as usize];
                (process.is_alive, process.known_state) = (true, known_state);
            }
            Step::Elect(node) => next.coordinator = Some(node),
            Step::Serve { volume, node } => {
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|state| {
                    state.serving[volume as usize] = node;
                    state.moving = None;
                });
            }
            Step::Begin { slot, to } => {
                next.moves_left -= 1;
                let (id, from) = (next.state.version + 1, next.state.ring[slot as usize]);
                next.replace(|state| state.moving = Some(Moving { id, slot, to }));
                (next.awaited, next.is_copied) = (Some(id), false);
                next.copies.insert(Copy::Wanted { id, slot, from, to });
            }
            Step::Undo => {
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|state| state.moving = None);
            }
            Step::Commit => {
                let moving = next.state.moving?;
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|state| {
                    state.ring[moving.slot as usize] = moving.to;
                    state.committed = moving.id;
                    state.moving = None;
                });
            }
            Step::Learn(node) => next.nodes[node as usize].known_state = next.state.clone(),
            Step::Close(node, volume) => next.nodes[node as usize].servers[volume as usize] = None,
            Step::Open(node, volume) => {
                if next.is_open(volume) && self.mistake != Mistake::OpenWithoutLock {
                    return None;
                }
                if self.mistake != Mistake::StartByOldState {
                    next.nodes[node as usize].known_state = next.state.clone();
                }
                let known = next.nodes[node as usize].known_state.clone();
                if known.serving[volume as usize] != node {
                    return Some(next);
                }
                let server = next.start_server(self.mistake, volume, &known);
                next.nodes[node as usize].servers[volume as usize] = Some(server);
            }
            Step::ApplyRing(node, volume) => {
                let known = next.nodes[node as usize].known_state.clone();
                let server = next.start_server(self.mistake, volume, &known);
                next.nodes[node as usize].servers[volume as usize] = Some(server);
            }
            Step::Unseal(node, volume) => {
                let process = &mut next.nodes[node as usize];
                let server = process.servers[volume as usize].as_mut()?;
                let (_, id) = server.sealed?;
                if process.known_state.version < id && self.mistake != Mistake::UnsealByOldState {
                    return None;
                }
                server.sealed = None;
            }
            Step::Copy(copy) => {
                // The end of a copy (`None`) is also a valid step of the model.
                let _ = next.advance_copy(self.mistake, &copy);
            }
            Step::Send { by, order, content } => {
                next.sends_left -= 1;
                let known_state = &next.nodes[by as usize].known_state;
                let volume = known_state.ring[order as usize];
                let node = known_state.serving[volume as usize];
                next.calls.insert(Call {
                    node,
                    volume,
                    order,
                    content,
                });
            }
            Step::Answer(call) => {
                next.calls.remove(&call);
                let content = next.place(&call)?;
                next.acknowledge(call.order, content);
            }
            Step::AnswerLost(call) => {
                next.calls.remove(&call);
                next.place(&call)?;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_SERVER, |_, world: &World| {
                (0..SLOTS as Slot).all(|slot| {
                    let places = (0..NODES as Node)
                        .flat_map(|node| (0..NODES as Volume).map(move |volume| (node, volume)));
                    places
                        .filter(|(node, volume)| world.serves(*node, *volume, slot))
                        .count()
                        <= 1
                })
            }),
            Property::always(NOTHING_LOST, |_, world: &World| {
                (0..ORDERS).all(|order| {
                    let Some(content) = world.acknowledged[order] else {
                        return true;
                    };
                    let row = (order as Slot, content);
                    let disk = &world.disks[world.state.ring[order] as usize];
                    let arrived = disk
                        .arriving
                        .as_ref()
                        .filter(|(id, _)| *id == world.state.committed);
                    disk.rows.contains(&row) || arrived.is_some_and(|(_, rows)| rows.contains(&row))
                })
            }),
            Property::always(ONE_CONTENT, |_, world: &World| !world.is_contradicted),
            Property::sometimes("an order that was acknowledged moves", |_, world: &World| {
                world.state.ring[0] == 1 && world.acknowledged[0].is_some() && world.serves(1, 1, 0)
            }),
            Property::sometimes(
                "a move is undone and the slot is served again",
                |model: &Protocol, world: &World| {
                    world.moves_left < model.moves
                        && world.state.committed == 0
                        && world.state.moving.is_none()
                        && world.serves(0, 0, 0)
                },
            ),
            Property::sometimes(
                "a survivor serves the volume of a dead node",
                |_, world: &World| world.state.ring == [1] && world.serves(0, 1, 0),
            ),
        ]
    }
}
