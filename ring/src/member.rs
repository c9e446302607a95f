//! Members of a ring: a name, a weight, and an optional zone.
//!
//! Names are short and have plain characters only, so they need no quoting in paths, and
//! `NAME:WEIGHT@ZONE` is unambiguous. Cloning a name does not allocate.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::Error;

/// Maximum length of the name of a node or zone in bytes, equal to that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;
/// Maximum weight. It is enough for any useful ratio, and products of weights and slots cannot
/// overflow.
pub const WEIGHT_MAX: u32 = 1_000_000;
/// Maximum number of members of a ring. A plan numbers the members of two rings together in 16
/// bits, so more than 32,767 would not be possible.
pub const MEMBERS_MAX: usize = 16_384;

fn check_name(name: &str) -> Result<Arc<str>, Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !begins_well || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(Error::Name {
            name: name.chars().take(NAME_BYTES_MAX + 1).collect(),
        });
    }
    Ok(name.into())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
        pub struct $type(Arc<str>);

        impl $type {
            /// Creates a name from a text: 1 to 63 ASCII letters, digits, `-`, `_` or `.`,
            /// beginning with a letter or digit.
            ///
            /// # Errors
            /// [`Error::Name`] if the text is not a valid name.
            pub fn new(name: impl AsRef<str>) -> Result<$type, Error> {
                check_name(name.as_ref()).map($type)
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(name: &str) -> Result<$type, Error> {
                $type::new(name)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(name: String) -> Result<$type, Error> {
                $type::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

name_type! {
    /// The name of a node, unique in a ring.
    NodeName
}
name_type! {
    /// The name of a zone. Nodes of one zone may fail together, so the replicas of a slot are
    /// placed in as many zones as possible.
    ZoneName
}

/// A node with its weight and zone.
///
/// The share of a node is its weight divided by the sum of all weights. A node of weight 0 gets
/// slots only by a pin, and the next [`Ring::plan`](crate::Ring::plan) moves its present slots,
/// except for pinned slots, to other nodes. A node without a zone is treated as a zone of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, try_from = "UncheckedMember"))]
pub struct Member {
    name: NodeName,
    weight: u32,
    zone: Option<ZoneName>,
}

#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedMember {
    name: NodeName,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    zone: Option<ZoneName>,
}

#[cfg(feature = "serde")]
fn one() -> u32 {
    1
}

#[cfg(feature = "serde")]
impl TryFrom<UncheckedMember> for Member {
    type Error = Error;
    fn try_from(member: UncheckedMember) -> Result<Member, Error> {
        Member {
            name: member.name,
            weight: 1,
            zone: member.zone,
        }
        .with_weight(member.weight)
    }
}

impl Member {
    /// Creates a member of weight 1 without a zone.
    ///
    /// # Errors
    /// [`Error::Name`] if the name is not valid.
    pub fn new(name: impl AsRef<str>) -> Result<Member, Error> {
        Ok(Member {
            name: NodeName::new(name)?,
            weight: 1,
            zone: None,
        })
    }

    /// Sets the weight, from 0 to [`WEIGHT_MAX`].
    ///
    /// # Errors
    /// [`Error::Weight`] if the weight is above [`WEIGHT_MAX`].
    pub fn with_weight(mut self, weight: u32) -> Result<Member, Error> {
        if weight > WEIGHT_MAX {
            return Err(Error::Weight {
                weight: weight.to_string(),
            });
        }
        self.weight = weight;
        Ok(self)
    }

    /// Sets the zone.
    ///
    /// # Errors
    /// [`Error::Name`] if the name of the zone is not valid.
    pub fn with_zone(mut self, zone: impl AsRef<str>) -> Result<Member, Error> {
        self.zone = Some(ZoneName::new(zone)?);
        Ok(self)
    }

    /// Returns the name.
    #[inline]
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Returns the weight.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns the zone, if the member has one.
    #[must_use]
    pub fn zone(&self) -> Option<&ZoneName> {
        self.zone.as_ref()
    }

    pub(crate) fn from_parts(name: NodeName, weight: u32, zone: Option<ZoneName>) -> Result<Member, Error> {
        Member {
            name,
            weight: 1,
            zone,
        }
        .with_weight(weight)
    }
}

/// Parses `NAME`, `NAME:WEIGHT`, `NAME@ZONE` or `NAME:WEIGHT@ZONE`.
impl FromStr for Member {
    type Err = Error;
    fn from_str(text: &str) -> Result<Member, Error> {
        let (rest, zone) = match text.split_once('@') {
            Some((rest, zone)) => (rest, Some(ZoneName::new(zone)?)),
            None => (text, None),
        };
        let (name, weight) = match rest.split_once(':') {
            Some((name, weight)) => (
                name,
                weight.parse().map_err(|_| Error::Weight {
                    weight: weight.to_owned(),
                })?,
            ),
            None => (rest, 1),
        };
        Member::from_parts(NodeName::new(name)?, weight, zone)
    }
}

/// Writes `NAME:WEIGHT` or `NAME:WEIGHT@ZONE`, which [`FromStr`] parses.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.weight)?;
        match &self.zone {
            Some(zone) => write!(f, "@{zone}"),
            None => Ok(()),
        }
    }
}

/// Sorts members by name, the order on which all code of this crate relies, and checks them.
pub(crate) fn in_order(members: impl IntoIterator<Item = Member>) -> Result<Vec<Member>, Error> {
    let mut members: Vec<Member> = members.into_iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    check_members(&members)?;
    Ok(members)
}

/// Fails if members sorted by name are too many, have a duplicate name, or have only weights of 0.
pub(crate) fn check_members(members: &[Member]) -> Result<(), Error> {
    if members.len() > MEMBERS_MAX {
        return Err(Error::TooManyMembers {
            members: members.len(),
        });
    }
    if let Some(pair) = members.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::DuplicateMember {
            name: pair[0].name.clone(),
        });
    }
    if !members.is_empty() && members.iter().all(|member| member.weight == 0) {
        return Err(Error::NoWeight);
    }
    Ok(())
}
