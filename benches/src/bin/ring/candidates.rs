//! All measured structures that map a key to a node, behind two small traits.
//!
//! Nodes are numbers, which each structure receives in the form that is cheapest for it. One
//! virtual call looks up at least 64 keys, so the cost of the call itself is negligible.

use std::hint::black_box;

use imt_ring::{KeyHash, Member, Options, Ring};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Name of the baseline of every look-up: only the hash of the key, without a ring.
pub(crate) const HASH_ALONE: &str = "xxh3 of the key alone";

pub(crate) type Key = [u8; 20];

/// A structure that maps keys to nodes, with the functions that build its rings.
pub(crate) trait Candidate {
    /// Returns the name of the structure in the table.
    fn name(&self) -> &str;
    /// Builds a ring of these nodes.
    fn build(&self, nodes: &[u32]) -> Box<dyn Built>;
    /// Returns the ring of `nodes` after `node` has joined it.
    fn join(&self, nodes: &[u32], node: u32) -> Box<dyn Built> {
        self.build(&[nodes, &[node]].concat())
    }
    /// Returns the ring of `nodes` after the node at `index` has left it.
    fn leave(&self, nodes: &[u32], index: u32) -> Box<dyn Built> {
        let mut left = nodes.to_vec();
        left.remove(index as usize);
        self.build(&left)
    }
    /// Returns `true` if look-ups are so slow that a timed call looks up fewer keys.
    fn is_slow(&self) -> bool {
        false
    }
}

/// A ring that a [`Candidate`] has built.
pub(crate) trait Built {
    /// Looks up every key and discards the results.
    fn look_up_all(&self, keys: &[Key]);
    /// Returns the owner of every key.
    fn owners(&self, keys: &[Key]) -> Vec<u32>;
}

/// A structure given by closures. Its `join` and `leave` build a new ring.
struct Simple<B, F, I> {
    name: &'static str,
    slow: bool,
    build: B,
    find: F,
    id: I,
}

struct SimpleBuilt<R, F, I> {
    ring: R,
    find: F,
    id: I,
}

impl<R, T, B, F, I> Candidate for Simple<B, F, I>
where
    R: 'static,
    B: Fn(&[u32]) -> R,
    F: Fn(&R, &Key) -> T + Copy + 'static,
    I: Fn(T) -> u32 + Copy + 'static,
    T: 'static,
{
    fn name(&self) -> &str {
        self.name
    }

    fn build(&self, nodes: &[u32]) -> Box<dyn Built> {
        Box::new(SimpleBuilt {
            ring: (self.build)(nodes),
            find: self.find,
            id: self.id,
        })
    }

    fn is_slow(&self) -> bool {
        self.slow
    }
}

impl<R, T, F: Fn(&R, &Key) -> T, I: Fn(T) -> u32> Built for SimpleBuilt<R, F, I> {
    fn look_up_all(&self, keys: &[Key]) {
        for key in keys {
            black_box((self.find)(&self.ring, black_box(key)));
        }
    }

    fn owners(&self, keys: &[Key]) -> Vec<u32> {
        keys.iter()
            .map(|key| (self.id)((self.find)(&self.ring, key)))
            .collect()
    }
}

fn simple<R: 'static, T: 'static>(
    name: &'static str,
    slow: bool,
    build: impl Fn(&[u32]) -> R + 'static,
    find: impl Fn(&R, &Key) -> T + Copy + 'static,
    id: impl Fn(T) -> u32 + Copy + 'static,
) -> Box<dyn Candidate> {
    Box::new(Simple {
        name,
        slow,
        build,
        find,
        id,
    })
}

/// The ring of this project. Its `join` and `leave` apply a plan to the ring of the earlier nodes.
struct Ours {
    name: &'static str,
    options: Options,
}

fn member(node: u32) -> Member {
    Member::new(format!("node-{node:05}")).expect("digits and letters are a name")
}

impl Ours {
    fn ring(&self, nodes: &[u32]) -> Ring {
        Ring::bootstrap(nodes.iter().map(|&node| member(node)), self.options).expect("the nodes are distinct")
    }
}

impl Candidate for Ours {
    fn name(&self) -> &str {
        self.name
    }

    fn build(&self, nodes: &[u32]) -> Box<dyn Built> {
        Box::new(self.ring(nodes))
    }

    fn join(&self, nodes: &[u32], node: u32) -> Box<dyn Built> {
        let ring = self.ring(nodes);
        let next = ring.plan_join(member(node)).and_then(|plan| ring.apply(&plan));
        Box::new(next.expect("a plan fits its own ring"))
    }

    fn leave(&self, nodes: &[u32], index: u32) -> Box<dyn Built> {
        let ring = self.ring(nodes);
        let name = ring.members()[index as usize].name().clone();
        let next = ring.plan_leave(&name).and_then(|plan| ring.apply(&plan));
        Box::new(next.expect("a plan fits its own ring"))
    }
}

impl Built for Ring {
    fn look_up_all(&self, keys: &[Key]) {
        for key in keys {
            // Only the owner is passed to `black_box`, so that the result stays in registers. The
            // whole location would be written to memory.
            if let Ok(location) = self.locate(black_box(key)) {
                black_box(location.owner);
            }
        }
    }

    fn owners(&self, keys: &[Key]) -> Vec<u32> {
        let owner = |key: &Key| {
            let name = self.locate(key).expect("there are members").owner.as_str();
            name[5..].parse().expect("the name ends in the number")
        };
        keys.iter().map(owner).collect()
    }
}

/// Returns a sorted list of points on the hash circle, with `points` points for each node.
fn sorted_points(nodes: &[u32], points: u64) -> Vec<(u64, u32)> {
    let of_node =
        |&node: &u32| (0..points).map(move |point| (xxh3_64_with_seed(&node.to_le_bytes(), point), node));
    let mut sorted: Vec<(u64, u32)> = nodes.iter().flat_map(of_node).collect();
    sorted.sort_unstable();
    sorted
}

fn next_point(points: &[(u64, u32)], key: &Key) -> u32 {
    let hash = xxh3_64(key);
    let index = points.partition_point(|&(point, _)| point < hash);
    points
        .get(index)
        .or_else(|| points.first())
        .map_or(0, |&(_, node)| node)
}

/// Returns all structures of this build.
pub(crate) fn all() -> Vec<Box<dyn Candidate>> {
    let options = Options::new();
    #[cfg_attr(
        not(feature = "ring-rivals"),
        expect(unused_mut, reason = "the rivals are added to it")
    )]
    let mut all: Vec<Box<dyn Candidate>> = vec![
        Box::new(Ours {
            name: "imt-ring, 2^14 slots",
            options,
        }),
        Box::new(Ours {
            name: "imt-ring, 2^16 slots",
            options: options.slots(65_536),
        }),
        Box::new(Ours {
            name: "imt-ring, 2^16 slots, 3 replicas",
            options: options.slots(65_536).replication(3),
        }),
        Box::new(Ours {
            name: "imt-ring, 2^14 slots, SipHash",
            options: options.key_hash(KeyHash::SipHash13 { key: [7; 16] }),
        }),
        simple(
            "xxh3 of the key alone",
            false,
            |_| (),
            |(), key| xxh3_64(key),
            |hash| (hash % 8) as u32,
        ),
        simple(
            "hash modulo nodes",
            false,
            <[u32]>::to_vec,
            |nodes: &Vec<u32>, key| nodes[(xxh3_64(key) % nodes.len() as u64) as usize],
            |node| node,
        ),
        simple(
            "sorted points, 160 a node",
            false,
            |nodes| sorted_points(nodes, 160),
            |points: &Vec<(u64, u32)>, key| next_point(points, key),
            |node| node,
        ),
        simple(
            "sorted points, 512 a node",
            false,
            |nodes| sorted_points(nodes, 512),
            |points: &Vec<(u64, u32)>, key| next_point(points, key),
            |node| node,
        ),
    ];
    #[cfg(feature = "ring-rivals")]
    all.extend(rivals::all());
    all
}

#[cfg(feature = "ring-rivals")]
mod rivals {
    //! The rival crates, each used as in its documentation. Crates with a configurable number of
    //! points on the hash circle get 160 points per node.

    use anchorhash::AnchorHash;
    use maglev::{ConsistentHasher, Maglev};

    use super::{Built, Candidate, Key, simple};

    const POINTS: u32 = 160;

    #[derive(Clone)]
    struct Named(u32);

    impl conhash::Node for Named {
        fn name(&self) -> String {
            format!("node-{:05}", self.0)
        }
    }

    /// Anchor hashing. Nodes join and leave the existing structure.
    struct Anchor;

    /// A hasher with a fixed key. With random keys, two rings of the same nodes would differ.
    type Fixed = std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>;

    type AnchorRing = AnchorHash<Key, u32, Fixed>;

    impl Anchor {
        fn ring(nodes: &[u32]) -> AnchorRing {
            // Half of the capacity is in use, so that nodes can join.
            let capacity = (nodes.len() * 2) as u16;
            let builder = anchorhash::Builder::with_hasher(Fixed::default());
            builder.with_resources(nodes.iter().copied()).build(capacity)
        }
    }

    impl Built for AnchorRing {
        fn look_up_all(&self, keys: &[Key]) {
            for key in keys {
                std::hint::black_box(self.get_resource(*std::hint::black_box(key)));
            }
        }

        fn owners(&self, keys: &[Key]) -> Vec<u32> {
            keys.iter()
                .map(|key| *self.get_resource(*key).expect("there are resources"))
                .collect()
        }
    }

    impl Candidate for Anchor {
        fn name(&self) -> &str {
            "anchorhash 0.2.2"
        }

        fn build(&self, nodes: &[u32]) -> Box<dyn Built> {
            Box::new(Anchor::ring(nodes))
        }

        fn join(&self, nodes: &[u32], node: u32) -> Box<dyn Built> {
            let mut ring = Anchor::ring(nodes);
            ring.add_resource(node).expect("there is room");
            Box::new(ring)
        }

        fn leave(&self, nodes: &[u32], index: u32) -> Box<dyn Built> {
            let mut ring = Anchor::ring(nodes);
            ring.remove_resource(&nodes[index as usize]).expect("it is there");
            Box::new(ring)
        }
    }

    pub(super) fn all() -> Vec<Box<dyn Candidate>> {
        vec![
            simple(
                "hashring 0.3.6, 160 a node",
                false,
                |nodes| {
                    let mut ring = hashring::HashRing::new();
                    ring.batch_add(
                        nodes
                            .iter()
                            .flat_map(|&node| (0..POINTS).map(move |point| (node, point)))
                            .collect(),
                    );
                    ring
                },
                |ring: &hashring::HashRing<(u32, u32)>, key| ring.get(&&key[..]).map_or(0, |node| node.0),
                |node| node,
            ),
            simple(
                "consistent_hash_ring 0.8.0, 160",
                false,
                |nodes| {
                    consistent_hash_ring::RingBuilder::default()
                        .vnodes(POINTS as usize)
                        .nodes(nodes)
                        .build()
                },
                |ring: &consistent_hash_ring::Ring<u32>, key| *ring.get(&key[..]),
                |node| node,
            ),
            simple(
                "conhash 0.5.1, 160 a node",
                false,
                |nodes| {
                    let mut ring = conhash::ConsistentHash::new();
                    nodes
                        .iter()
                        .for_each(|&node| ring.add(&Named(node), POINTS as usize));
                    ring
                },
                |ring: &conhash::ConsistentHash<Named>, key| ring.get(&key[..]).map_or(0, |node| node.0),
                |node| node,
            ),
            simple(
                "mpchash 2.0.10",
                true,
                |nodes| {
                    let ring = mpchash::HashRing::new();
                    nodes.iter().for_each(|&node| ring.add(node));
                    ring
                },
                |ring: &mpchash::HashRing<u32>, key| ring.node(&&key[..]).map_or(0, |token| *token.node()),
                |node| node,
            ),
            simple(
                "maglev 0.2.1, 65,537 entries",
                false,
                |nodes| Maglev::with_capacity(nodes.to_vec(), 65_537),
                |ring: &Maglev<u32>, key| *ring.get(&key[..]).unwrap_or(&0),
                |node| node,
            ),
            Box::new(Jump),
            Box::new(Anchor),
            simple(
                "hrw-hash 2.0.3",
                true,
                |nodes| hrw_hash::HrwNodes::new(nodes.to_vec()),
                |ring: &hrw_hash::HrwNodes<u32>, key| ring.sorted(&&key[..]).next().copied().unwrap_or(0),
                |node| node,
            ),
        ]
    }

    /// Jump hashing, which only has numbered buckets. The last node takes the bucket of a node that
    /// leaves.
    struct Jump;

    struct JumpBuilt(jumphash::JumpHasher, Vec<u32>);

    impl Built for JumpBuilt {
        fn look_up_all(&self, keys: &[Key]) {
            for key in keys {
                let key = std::hint::black_box(key);
                std::hint::black_box(self.1[self.0.slot(&&key[..], self.1.len() as u32) as usize]);
            }
        }

        fn owners(&self, keys: &[Key]) -> Vec<u32> {
            keys.iter()
                .map(|key| self.1[self.0.slot(&&key[..], self.1.len() as u32) as usize])
                .collect()
        }
    }

    impl Candidate for Jump {
        fn name(&self) -> &str {
            "jumphash 0.1.9"
        }

        fn build(&self, nodes: &[u32]) -> Box<dyn Built> {
            // By default the hasher has random keys. With fixed keys, the owners in two rings can
            // be compared.
            Box::new(JumpBuilt(
                jumphash::JumpHasher::new_with_keys(1, 2),
                nodes.to_vec(),
            ))
        }

        fn leave(&self, nodes: &[u32], index: u32) -> Box<dyn Built> {
            let mut left = nodes.to_vec();
            left.swap_remove(index as usize);
            self.build(&left)
        }
    }
}
