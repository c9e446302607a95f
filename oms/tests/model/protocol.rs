//! The model itself: its state, the steps that may come next, and what must hold in every state.

use std::collections::BTreeSet;

use stateright::{Model, Property};

pub(crate) const NODES: usize = 2;
/// The slot that moves; others do as it does.
const SLOTS: usize = 1;
/// Orders, one in each slot; each is sent with content 0 and with content 1.
const ORDERS: usize = SLOTS;
/// Calls under way at a time: two customers.
const CALLS: usize = 2;

/// A mistake that the protocol makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// A source goes on taking orders in slots that it copies.
    CopyWithoutSeal,
    /// Whoever opens a volume while slots of it are on their way forgets that they are.
    OpenUnsealedDuringMove,
    /// A seal is taken away by whoever knows of no move, though the move began after what it knows.
    UnsealByOldView,
    /// A volume is brought in line with what was known before it was open.
    SettleByOldView,
    /// The source cleans up before the ring is written.
    CleanBeforeCommit,
    /// A volume is opened although another process has it.
    OpenWithoutLock,
    /// A copy that comes in after its move was undone counts for the next one.
    CommitAfterUndo,
    /// A copy of an earlier move that comes in late takes the place of a newer one.
    TakeOldCopy,
}

/// All of them.
pub(crate) const MISTAKES: [Mistake; 8] = [
    Mistake::CopyWithoutSeal,
    Mistake::OpenUnsealedDuringMove,
    Mistake::UnsealByOldView,
    Mistake::SettleByOldView,
    Mistake::CleanBeforeCommit,
    Mistake::OpenWithoutLock,
    Mistake::CommitAfterUndo,
    Mistake::TakeOldCopy,
];

const ONE_SERVER: &str = "a slot is served by one process at most";
const NOTHING_LOST: &str = "what was acknowledged is there";
const ONE_CONTENT: &str = "no order is acknowledged with two contents";
/// What must hold in every state.
pub(crate) const ALWAYS: [&str; 3] = [ONE_SERVER, NOTHING_LOST, ONE_CONTENT];

/// How much may happen.
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
pub(crate) struct Truth {
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

/// A volume that a process has open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Post {
    ring: [Volume; SLOTS],
    /// The slot that is sealed, and for which move.
    sealed: Option<(Slot, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    is_alive: bool,
    view: Truth,
    posts: [Option<Post>; NODES],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Disk {
    rows: Rows,
    arriving: Option<(u8, Rows)>,
    must_purge: bool,
}

/// Rows of a slot between its source and its target, or the target's word that it has them.
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
    Laid {
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
    truth: Truth,
    /// Who coordinates, and the move whose copy it waits for.
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
    GiveUp(Node, Volume),
    Open(Node, Volume),
    Refurnish(Node, Volume),
    Unseal(Node, Volume),
    /// One that is never taken is a copy that broke off.
    Copy(Copy),
    Send {
        by: Node,
        order: Slot,
        content: u8,
    },
    Answer(Call),
    /// It is carried out, and the answer gets lost.
    AnswerLost(Call),
}

impl World {
    fn post(&self, node: Node, volume: Volume) -> Option<&Post> {
        self.nodes[node as usize].posts[volume as usize].as_ref()
    }

    fn is_open(&self, volume: Volume) -> bool {
        self.nodes
            .iter()
            .any(|node| node.posts[volume as usize].is_some())
    }

    fn coordinator(&self) -> Option<&Process> {
        let node = &self.nodes[self.coordinator? as usize];
        node.is_alive.then_some(node)
    }

    /// True if nothing of an earlier ring lies about, as the coordinator asks before a move.
    fn is_settled(&self) -> bool {
        (0..NODES as Volume).all(|volume| {
            let server = self.truth.serving[volume as usize];
            let post = self.post(server, volume);
            post.is_some_and(|post| post.ring == self.truth.ring) && !self.disks[volume as usize].must_purge
        })
    }

    /// Brings a volume in line with what is known, and says what its server seals.
    fn furnish(&mut self, mistake: Mistake, volume: Volume, known: &Truth) -> Post {
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
        Post {
            ring: known.ring,
            sealed: sealed.filter(|_| mistake != Mistake::OpenUnsealedDuringMove),
        }
    }

    fn serves(&self, node: Node, volume: Volume, slot: Slot) -> bool {
        self.post(node, volume).is_some_and(|post| {
            post.ring[slot as usize] == volume && post.sealed.is_none_or(|(sealed, _)| sealed != slot)
        })
    }

    /// Carries an order out, if its slot is served there; the content that is answered.
    fn place(&mut self, call: &Call) -> Option<u8> {
        if !self.serves(call.node, call.volume, call.order) {
            return None;
        }
        let rows = &mut self.disks[call.volume as usize].rows;
        let known = rows.iter().find(|(order, _)| *order == call.order).copied();
        match known {
            // The same is answered as before; anything else is refused.
            Some((_, content)) => (content == call.content).then_some(content),
            None => {
                rows.insert((call.order, call.content));
                Some(call.content)
            }
        }
    }

    fn replace(&mut self, change: impl FnOnce(&mut Truth)) {
        change(&mut self.truth);
        self.truth.version += 1;
    }

    fn coordinate(&self, steps: &mut Vec<Step>) {
        let Some(_) = self.coordinator() else { return };
        for volume in 0..NODES as Volume {
            let server = self.truth.serving[volume as usize];
            let home = volume as Node;
            for node in 0..NODES as Node {
                let takes_over = !self.nodes[server as usize].is_alive && node != server;
                let comes_back = node == home && server != home;
                if self.nodes[node as usize].is_alive && (takes_over || comes_back) {
                    steps.push(Step::Serve { volume, node });
                }
            }
        }
        match self.truth.moving {
            Some(_) => {
                steps.push(Step::Undo);
                if self.is_copied {
                    steps.push(Step::Commit);
                }
            }
            None if self.moves_left > 0 && self.is_settled() => {
                for slot in 0..SLOTS as Slot {
                    for to in 0..NODES as Volume {
                        if self.truth.ring[slot as usize] != to {
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
        if process.view != self.truth {
            steps.push(Step::Learn(node));
        }
        for volume in 0..NODES as Volume {
            let is_mine = process.view.serving[volume as usize] == node;
            match &process.posts[volume as usize] {
                Some(_) if !is_mine => steps.push(Step::GiveUp(node, volume)),
                Some(post) if post.ring != process.view.ring => steps.push(Step::Refurnish(node, volume)),
                Some(Post { sealed: Some(_), .. }) if process.view.moving.is_none() => {
                    steps.push(Step::Unseal(node, volume));
                }
                None if is_mine => steps.push(Step::Open(node, volume)),
                _ => {}
            }
        }
    }

    /// A step of a copy; nothing if who must do it cannot.
    fn carry(&mut self, mistake: Mistake, copy: &Copy) -> Option<()> {
        self.copies.remove(copy);
        match copy {
            Copy::Wanted { id, slot, from, to } => {
                let server = self.truth.serving[*from as usize];
                let is_under_way = self.truth.moving.is_some_and(|moving| moving.id == *id);
                let post = self.nodes[server as usize].posts[*from as usize].as_mut()?;
                if !is_under_way || post.ring[*slot as usize] != *from {
                    return None;
                }
                if mistake != Mistake::CopyWithoutSeal {
                    post.sealed = Some((*slot, *id));
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
                let server = self.truth.serving[*to as usize];
                self.post(server, *to)?;
                let arriving = &mut self.disks[*to as usize].arriving;
                let is_late = arriving.as_ref().is_some_and(|(newest, _)| newest > id);
                if is_late && mistake != Mistake::TakeOldCopy {
                    return None;
                }
                *arriving = Some((*id, rows.clone()));
                self.copies.insert(Copy::Laid { id: *id });
            }
            Copy::Laid { id } => {
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
        let truth = Truth {
            version: 1,
            ring: [0; SLOTS],
            serving: [0, 1],
            moving: None,
            committed: 0,
        };
        let node = |node: usize| Process {
            is_alive: true,
            view: truth.clone(),
            posts: std::array::from_fn(|volume| {
                (volume == node).then_some(Post {
                    ring: truth.ring,
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
            truth: truth.clone(),
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
                process.posts = Default::default();
                if next.coordinator == Some(node) {
                    (next.coordinator, next.awaited, next.is_copied) = (None, None, false);
                }
            }
            Step::Start(node) => {
                let view = next.truth.clone();
                let process = &mut next.nodes[node as usize];
                (process.is_alive, process.view) = (true, view);
            }
            Step::Elect(node) => next.coordinator = Some(node),
            Step::Serve { volume, node } => {
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|truth| {
                    truth.serving[volume as usize] = node;
                    truth.moving = None;
                });
            }
            Step::Begin { slot, to } => {
                next.moves_left -= 1;
                let (id, from) = (next.truth.version + 1, next.truth.ring[slot as usize]);
                next.replace(|truth| truth.moving = Some(Moving { id, slot, to }));
                (next.awaited, next.is_copied) = (Some(id), false);
                next.copies.insert(Copy::Wanted { id, slot, from, to });
            }
            Step::Undo => {
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|truth| truth.moving = None);
            }
            Step::Commit => {
                let moving = next.truth.moving?;
                (next.awaited, next.is_copied) = (None, false);
                next.replace(|truth| {
                    truth.ring[moving.slot as usize] = moving.to;
                    truth.committed = moving.id;
                    truth.moving = None;
                });
            }
            Step::Learn(node) => next.nodes[node as usize].view = next.truth.clone(),
            Step::GiveUp(node, volume) => next.nodes[node as usize].posts[volume as usize] = None,
            Step::Open(node, volume) => {
                if next.is_open(volume) && self.mistake != Mistake::OpenWithoutLock {
                    return None;
                }
                if self.mistake != Mistake::SettleByOldView {
                    next.nodes[node as usize].view = next.truth.clone();
                }
                let known = next.nodes[node as usize].view.clone();
                if known.serving[volume as usize] != node {
                    return Some(next);
                }
                let post = next.furnish(self.mistake, volume, &known);
                next.nodes[node as usize].posts[volume as usize] = Some(post);
            }
            Step::Refurnish(node, volume) => {
                let known = next.nodes[node as usize].view.clone();
                let post = next.furnish(self.mistake, volume, &known);
                next.nodes[node as usize].posts[volume as usize] = Some(post);
            }
            Step::Unseal(node, volume) => {
                let process = &mut next.nodes[node as usize];
                let post = process.posts[volume as usize].as_mut()?;
                let (_, id) = post.sealed?;
                if process.view.version < id && self.mistake != Mistake::UnsealByOldView {
                    return None;
                }
                post.sealed = None;
            }
            Step::Copy(copy) => {
                // Whoever cannot do its part lets the copy break off.
                let _ = next.carry(self.mistake, &copy);
            }
            Step::Send { by, order, content } => {
                next.sends_left -= 1;
                let view = &next.nodes[by as usize].view;
                let volume = view.ring[order as usize];
                let node = view.serving[volume as usize];
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
                    let disk = &world.disks[world.truth.ring[order] as usize];
                    let arrived = disk
                        .arriving
                        .as_ref()
                        .filter(|(id, _)| *id == world.truth.committed);
                    disk.rows.contains(&row) || arrived.is_some_and(|(_, rows)| rows.contains(&row))
                })
            }),
            Property::always(ONE_CONTENT, |_, world: &World| !world.is_contradicted),
            Property::sometimes("an order that was acknowledged moves", |_, world: &World| {
                world.truth.ring[0] == 1 && world.acknowledged[0].is_some() && world.serves(1, 1, 0)
            }),
            Property::sometimes(
                "a move is undone and the slot is served again",
                |model: &Protocol, world: &World| {
                    world.moves_left < model.moves
                        && world.truth.committed == 0
                        && world.truth.moving.is_none()
                        && world.serves(0, 0, 0)
                },
            ),
            Property::sometimes("a survivor serves the volume of the dead", |_, world: &World| {
                world.truth.ring == [1] && world.serves(0, 1, 0)
            }),
        ]
    }
}
