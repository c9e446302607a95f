//! Nodes on the simulated engine: their statements on the cluster's tables, their logs, and their
//! local copies of volumes on the simulated disk.
//!
//! The nodes themselves are `EngineCluster`, as on PostgreSQL.
//!
//! Deliberately absent: the connection (`engine_client`) and the rows (`engine_tables`).

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use imt_ring::Member;

use crate::cluster::engine::backend::Backend;
use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::tables::{Answer, ClusterTables, Confirmed, FirstState, Look};
use crate::cluster::engine::{EngineCluster, Joining};
use crate::cluster::{ClusterState, NodeInfo, Soon, VolumeLog};
use crate::error::{NodeError, StorageError};
use crate::simulation::disk::Disk;
use crate::simulation::engine::{SERVERS, SimEngine};
use crate::simulation::engine_client::{OnDone, SimClient};
use crate::simulation::engine_log::SimLog;
use crate::simulation::engine_server::{Server, Statement};
use crate::simulation::engine_tables::{ClusterRow, TableStatement};
use crate::simulation::leases;
use crate::simulation::world::{FURTHER_ENGINE, Node, SECRET, World};
use crate::storage::log::Log;
use crate::storage::log::cache::Cache;

/// URL of the first engine in error messages.
const URL: &str = "postgres://imt@simulated/shop";

/// The tables of the cluster in the simulated engine, over one connection.
struct SimTables {
    client: SimClient,
    /// `true` if the first state names a second engine.
    has_further: bool,
}

fn state_at(server: &Server, known: Option<&Confirmed>) -> Option<Confirmed> {
    let row = server.data.tables.cluster(&server.waiting)?;
    let known = known.filter(|known| known.state.version == row.state.version);
    let state = known.map_or_else(|| (*row.state).clone(), |known| known.state.clone());
    Some(Confirmed {
        state,
        coordinator: row.coordinator.clone(),
    })
}

impl SimTables {
    fn change<'a>(&'a mut self, name: &'a str, statement: TableStatement) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.client.write(name, Statement::Table(statement)).await? > 0) })
    }
}

impl ClusterTables for SimTables {
    fn connections(&self) -> u64 {
        self.client.connections()
    }

    fn host(&self) -> String {
        format!("server {}", self.client.host())
    }

    fn disconnect(&mut self) {
        self.client.next_host();
    }

    fn state<'a>(&'a mut self, known: Option<&'a Confirmed>) -> Answer<'a, Option<Confirmed>> {
        Box::pin(self.client.read(move |server| state_at(server, known)))
    }

    fn look(&mut self) -> Answer<'_, Look> {
        Box::pin(
            self.client
                .read(|server| server.data.tables.look(&server.waiting)),
        )
    }

    fn node<'a>(&'a mut self, name: &'a str) -> Answer<'a, Option<(Beat, Option<NodeInfo>)>> {
        Box::pin(self.client.read(move |server| {
            let row = server.data.tables.node(&server.waiting, name)?;
            Some((row.beat.clone(), row.card.clone()))
        }))
    }

    fn beat<'a>(
        &'a mut self,
        name: &'a str,
        beat: &'a Beat,
        card: Option<&'a NodeInfo>,
    ) -> Answer<'a, Option<u64>> {
        let statement = TableStatement::Beat {
            beat: beat.clone(),
            card: card.cloned(),
        };
        Box::pin(async move {
            // Nodes beat only once a state exists, so the returned version is above zero, and 0
            // means that no row was changed.
            let version = self.client.write(name, Statement::Table(statement)).await?;
            Ok((version > 0).then_some(version))
        })
    }

    fn demand<'a>(&'a mut self, name: &'a str, last: &'a Beat, version: u64) -> Answer<'a, bool> {
        let last = last.clone();
        self.change(name, TableStatement::Demand { last, version })
    }

    fn add_node<'a>(&'a mut self, name: &'a str, incarnation: i64) -> Answer<'a, bool> {
        self.change(name, TableStatement::AddNode { incarnation })
    }

    fn replace_node<'a>(&'a mut self, name: &'a str, former: &'a Beat, incarnation: i64) -> Answer<'a, bool> {
        let former = former.clone();
        self.change(name, TableStatement::ReplaceNode { former, incarnation })
    }

    fn remove_node<'a>(&'a mut self, name: &'a str, last: &'a Beat) -> Answer<'a, ()> {
        let last = last.clone();
        Box::pin(async move {
            let removed = self.change(name, TableStatement::RemoveNode { last });
            removed.await.map(drop)
        })
    }

    fn probe(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.change("", TableStatement::Probe).await.map(drop) })
    }

    fn secret(&mut self) -> Answer<'_, String> {
        Box::pin(self.client.read(|server| {
            let row = server.data.tables.cluster(&server.waiting);
            row.map_or_else(String::new, |row| row.secret.clone())
        }))
    }

    fn write_first<'a>(&'a mut self, first: FirstState<'a>) -> Answer<'a, bool> {
        Box::pin(async move {
            let state = first.state.clone();
            // The first state is written as if an operator had already added the second engine.
            let state = match self.has_further {
                true => state.with_engine("further", FURTHER_ENGINE).unwrap_or(state),
                false => state,
            };
            let row = ClusterRow {
                state: Arc::new(state),
                coordinator: first.coordinator.to_owned(),
                secret: SECRET.to_owned(),
            };
            Ok(self.client.write(first.volume, Statement::First { row }).await? > 0)
        })
    }

    fn replace_state<'a>(
        &'a mut self,
        next: &'a ClusterState,
        coordinator: &'a str,
        former: &'a str,
    ) -> Answer<'a, bool> {
        let statement = TableStatement::NextState {
            state: Arc::new(next.clone()),
            coordinator: coordinator.to_owned(),
            former: former.to_owned(),
        };
        self.change("", statement)
    }
}

/// The engines of the world, and the folder of one process with its local copies.
struct SimBackend {
    /// Weak, because the world holds the handle of each node that listens.
    world: Weak<World>,
    engines: Vec<Arc<SimEngine>>,
    disk: Disk,
    /// Number of the process.
    id: usize,
    folder: PathBuf,
    options: microdb::Options,
}

impl SimBackend {
    fn engine_of(&self, place: &VolumeLog) -> &Arc<SimEngine> {
        &self.engines[usize::from(place.engine.is_some())]
    }

    /// Returns a client that reports takeovers and new states to the world.
    fn client(&self, engine: &Arc<SimEngine>) -> SimClient {
        let (world, id) = (Weak::clone(&self.world), self.id);
        let on_done: OnDone = Arc::new(move |name, statement| {
            let Some(world) = world.upgrade() else { return };
            match statement {
                Statement::Raise { owner, .. } => {
                    world.note(|| format!("{owner} takes {name} over"));
                    leases::check_takeover(&world, name, id);
                }
                Statement::First { .. } | Statement::Table(TableStatement::NextState { .. }) => {
                    world.observe_state();
                }
                _ => {}
            }
        });
        // Processes begin with different servers, as if the URLs of the nodes named the servers in
        // different orders.
        SimClient::watched(Arc::clone(engine), self.id % SERVERS, on_done)
    }
}

impl Backend for SimBackend {
    fn check(&self) -> Soon<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start_tables(&self) -> Box<dyn ClusterTables> {
        self.tables("node")
    }

    fn tables(&self, _purpose: &'static str) -> Box<dyn ClusterTables> {
        Box::new(SimTables {
            client: self.client(&self.engines[0]),
            has_further: self.engines.len() > 1,
        })
    }

    fn is_usable<'a>(&'a self, _place: &'a VolumeLog) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(std::future::ready(true))
    }

    fn log(&self, place: &VolumeLog, volume: &str, purpose: &'static str) -> Result<Box<dyn Log>, NodeError> {
        if place.engine.is_some()
            && purpose == "log"
            && let Some(world) = self.world.upgrade()
        {
            world.count("openings on the further engine");
        }
        Ok(Box::new(SimLog::new(self.client(self.engine_of(place)), volume)))
    }

    fn url_of(&self, place: &VolumeLog) -> String {
        place.engine.clone().unwrap_or_else(|| URL.to_owned())
    }

    fn open_copy(&self, volume: &str) -> Result<Cache, StorageError> {
        Cache::open(self.options.clone(), &self.folder_of_copy(volume))
    }

    fn remove_copy(&self, volume: &str) -> io::Result<()> {
        self.disk.remove_folder(&self.folder_of_copy(volume));
        Ok(())
    }

    fn folder_of_copy(&self, volume: &str) -> PathBuf {
        self.folder.join(volume)
    }
}

impl Node {
    /// Lets this process join the cluster in the engine. Must be called by a task of the process.
    pub(super) async fn join(&self) -> Result<EngineCluster, NodeError> {
        let backend = SimBackend {
            world: Arc::downgrade(&self.world),
            engines: self.world.engines.clone(),
            disk: self.world.disk.clone(),
            id: self.id,
            folder: self.folder(),
            options: self.options(),
        };
        let url = URL.parse().map_err(|_| NodeError::NotAdmitted {
            name: self.name.to_string(),
        })?;
        let member = Member::new(self.name.as_str()).map_err(|error| NodeError::Config {
            setting: "name",
            reason: error.to_string(),
        })?;
        Joining::new(Arc::new(url), Arc::new(backend), member, None)
            .join()
            .await
    }
}
