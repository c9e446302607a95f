//! The cluster that a command addresses: the nodes that share a data folder, or those that share an
//! engine.
//!
//! Invariants:
//! - A [`Look`] does not follow later changes. Commands that wait for a change call
//!   [`Cluster::look`] again.
//! - Only [`Cluster::client`] reads the cluster's secret. A command that calls only the other
//!   functions of this module also works for a role of the engine that may not read the secret.

use crate::args;
use crate::error::CliError;
use imt_oms::{EngineUrl, NodeClient, NodeInfo, PeerEncryption};
use imt_ring::{NodeName, Ring};
use imt_sim::Endpoint;
use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;

/// Default address of a node, for commands that get neither an address nor an engine.
const USUAL_NODE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Maximum time to connect to a node that the engine lists.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Arguments that name the cluster.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    /// Data folder that the nodes share
    #[arg(short, long, env = "IMT_DATA", default_value = "data", value_name = "DIR", value_parser = args::folder())]
    data: PathBuf,
    /// Engine that the nodes share in place of a data folder, such as
    /// postgres://imt@db1,db2/shop
    #[arg(long, env = "IMT_ENGINE", value_name = "URL")]
    engine: Option<EngineUrl>,
    /// File with the nodes' secret, if it is not kept in the engine
    #[arg(long, env = "IMT_SECRET_FILE", value_name = "FILE", requires = "engine")]
    secret_file: Option<PathBuf>,
    /// Call nodes on other machines without encryption. Needed if the nodes run with this setting
    #[arg(long, env = "IMT_INSECURE_PLAINTEXT", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    insecure_plaintext: bool,
}

/// Arguments that name the node to ask, by its address or by the engine that lists it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NodeAddress {
    /// Address of a node; any node answers for every order [default: http://127.0.0.1:9090, or a
    /// running node of --engine]
    #[arg(long, env = "IMT_OMS", value_name = "URL")]
    oms: Option<Endpoint>,
    /// Engine that has the addresses of the nodes; used only if no address is given by --oms
    #[arg(long, env = "IMT_ENGINE", value_name = "URL")]
    engine: Option<EngineUrl>,
}

impl NodeAddress {
    /// Returns the cluster of the engine that lists the nodes. Returns `None` if no engine is
    /// given, or if the address of a node is given.
    pub(crate) fn engine(&self) -> Option<Cluster> {
        let engine = self.engine.as_ref().filter(|_| self.oms.is_none());
        engine.map(|url| Cluster::new(Path::new(""), Some(url)))
    }

    /// Returns the address of a node: the given address, else that of a running node of the engine.
    /// If neither an address nor an engine is given, returns [`USUAL_NODE`].
    pub(crate) async fn endpoint(&self) -> Result<Endpoint, CliError> {
        match (&self.oms, self.engine()) {
            (Some(oms), _) => Ok(oms.clone()),
            (None, Some(cluster)) => cluster.look().await?.reachable(&cluster).await,
            (None, None) => Ok(Endpoint::from(USUAL_NODE)),
        }
    }
}

/// A cluster, named by the data folder or by the engine that its nodes share.
#[derive(Clone, Debug)]
pub(crate) enum Cluster {
    Folder(PathBuf),
    Engine {
        url: EngineUrl,
        secret_file: Option<PathBuf>,
        encryption: PeerEncryption,
    },
}

/// State of a cluster, as [`Cluster::look`] has read it.
pub(crate) struct Look {
    /// Descriptions that the nodes have published. A node removes its description during its stop.
    /// So a node that does not run is included only if it has ended in another way, such as a kill.
    pub(crate) cards: Vec<NodeInfo>,
    running: BTreeSet<NodeName>,
    /// The ring of the nodes. `None` if no node has stored a ring yet.
    pub(crate) ring: Option<Ring>,
    /// URL of the cluster's warehouse. `None` if no node has stored one yet.
    pub(crate) warehouse: Option<String>,
}

/// Returns the encryption of calls to nodes, by other nodes and by commands. `is_plaintext` is the
/// flag `--insecure-plaintext`.
pub(crate) fn encryption(is_plaintext: bool) -> PeerEncryption {
    match is_plaintext {
        true => PeerEncryption::Never,
        false => PeerEncryption::BetweenMachines,
    }
}

impl From<ClusterArgs> for Cluster {
    fn from(args: ClusterArgs) -> Self {
        match args.engine {
            Some(url) => Self::Engine {
                url,
                secret_file: args.secret_file,
                encryption: encryption(args.insecure_plaintext),
            },
            None => Self::Folder(args.data),
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(data) => write!(f, "{}", data.display()),
            Self::Engine { url, .. } => write!(f, "{url}"),
        }
    }
}

impl Cluster {
    /// Returns the cluster of the engine, or that of the data folder if `engine` is `None`.
    pub(crate) fn new(data: &Path, engine: Option<&EngineUrl>) -> Self {
        match engine {
            Some(url) => Self::Engine {
                url: url.clone(),
                secret_file: None,
                encryption: PeerEncryption::BetweenMachines,
            },
            None => Self::Folder(data.to_owned()),
        }
    }

    /// Reads the present state of the cluster.
    pub(crate) async fn look(&self) -> Result<Look, CliError> {
        match self {
            Self::Folder(data) => {
                if !data.exists() {
                    return Err(CliError::failed(format!(
                        "there is no folder {self}; name the data folder of the nodes with --data"
                    )));
                }
                let cards = imt_oms::node_infos(data)
                    .map_err(|error| CliError::because(format!("no nodes are known in {self}"), error))?;
                let is_running = |card: &&NodeInfo| imt_oms::is_node_running(data, &card.name);
                let running = cards.iter().filter(is_running).map(|card| card.name.clone());
                Ok(Look {
                    running: running.collect(),
                    ring: imt_oms::read_ring(data).map_err(|error| {
                        CliError::because(format!("the ring in {self} cannot be read"), error)
                    })?,
                    warehouse: imt_oms::read_warehouse(data).map_err(|error| {
                        CliError::because(format!("the warehouse of {self} cannot be read"), error)
                    })?,
                    cards,
                })
            }
            Self::Engine { url, .. } => {
                let view = imt_oms::view_engine(url)
                    .await
                    .map_err(|error| CliError::because(format!("no nodes are known in {self}"), error))?;
                let running = view.nodes.iter().filter(|(_, runs)| *runs);
                Ok(Look {
                    running: running.map(|(card, _)| card.name.clone()).collect(),
                    cards: view.nodes.into_iter().map(|(card, _)| card).collect(),
                    ring: view.ring,
                    warehouse: view.warehouse,
                })
            }
        }
    }

    /// Returns `true` while a process runs the node, also after the node has removed its
    /// description. Returns `None` for an engine, which lists no node without a description.
    pub(crate) fn has_process(&self, node: &NodeName) -> Option<bool> {
        match self {
            Self::Folder(data) => Some(imt_oms::is_node_running(data, node)),
            Self::Engine { .. } => None,
        }
    }

    /// Returns the ring, or `None` if no node has stored one yet. No node has to run.
    pub(crate) async fn ring(&self) -> Result<Option<Ring>, CliError> {
        match self {
            Self::Folder(data) => imt_oms::read_ring(data)
                .map_err(|error| CliError::because(format!("the ring in {self} cannot be read"), error)),
            Self::Engine { .. } => Ok(self.look().await?.ring),
        }
    }

    /// Returns a client for the internal API of the nodes (the paths below `/peer/`). Reads the
    /// cluster's secret, which that API requires.
    pub(crate) async fn client(&self) -> Result<NodeClient, CliError> {
        let encryption = match self {
            // All nodes of a data folder run on this machine, so calls to them need no encryption.
            Self::Folder(_) => PeerEncryption::Never,
            Self::Engine { encryption, .. } => *encryption,
        };
        NodeClient::new(&self.secret().await?, encryption).map_err(|error| {
            CliError::because(
                format!("cannot make a key pair for calls to the nodes of {self}"),
                error,
            )
        })
    }

    /// Returns the cluster's secret, which the nodes require from each caller of their internal
    /// API.
    async fn secret(&self) -> Result<String, CliError> {
        let unread =
            |error| CliError::because(format!("cannot read the secret of the nodes of {self}"), error);
        match self {
            Self::Folder(data) => imt_oms::read_secret(data).map_err(unread),
            Self::Engine {
                secret_file: Some(path),
                ..
            } => imt_oms::read_secret_file(path).map_err(unread),
            Self::Engine { url, .. } => {
                let secret = imt_oms::engine_secret(url).await.map_err(unread)?;
                secret.ok_or_else(|| {
                    CliError::Usage(
                        "the nodes' secret is not kept in the engine; name its file with --secret-file"
                            .to_owned(),
                    )
                })
            }
        }
    }
}

impl Look {
    /// Returns the address of the first running node that accepts a connection.
    pub(crate) async fn reachable(&self, cluster: &Cluster) -> Result<Endpoint, CliError> {
        let mut failed = None;
        for card in self.running() {
            let connecting = TcpStream::connect(card.address);
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
            match connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
                Ok(_) => return Ok(Endpoint::from(card.address)),
                Err(error) => failed = Some((card, error)),
            }
        }
        let Some((card, error)) = failed else {
            return Err(CliError::failed(format!("no node runs on {cluster}")));
        };
        Err(CliError::Unreachable {
            message: format!(
                "cannot connect to any node of {cluster}; the last one tried was '{}' at {}; name the address \
                 of a node that this machine reaches with --oms",
                card.name, card.address
            ),
            source: Box::new(error),
        })
    }

    /// Returns `true` if the node was running and had a description at the time of the look. A node
    /// that is stopping may have none.
    pub(crate) fn runs(&self, node: &NodeName) -> bool {
        self.running.contains(node)
    }

    /// Returns the descriptions of the nodes for which [`Look::runs`] returns `true`.
    pub(crate) fn running(&self) -> impl Iterator<Item = &NodeInfo> {
        self.cards.iter().filter(|card| self.runs(&card.name))
    }
}
