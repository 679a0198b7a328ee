//! The driver: master and slaves as the file system sees them.
//!
//! It knows connections, sessions, retries, members and proofs, and nothing of names, caches or handles. What it asks
//! of the file system goes through [`Upcalls`]. A write goes `mod → delta → slaves`, a read `mod → reading →
//! slaves`, a namespace operation `mod → master`; `keeper` keeps the session alive beside them.
//!
//! Pure and tested on their own: `retry`, `routes`, `sequence`, `health`. Time comes from the world's clock and tokio's
//! timer, randomness from the world's seed, and nothing iterates over hashes, so that a simulation repeats.

mod config;
mod delta;
mod health;
mod keeper;
mod latency;
mod master;
mod opening;
mod reading;
mod reports;
mod retry;
mod routes;
mod sequence;
mod slaves;
mod stats;
mod timing;
mod tries;
mod upcalls;

pub use config::{Config, Timeouts, World};
pub use delta::{Copy, Delta};
pub use godrive_proto::proof::Run;
pub use keeper::locks_page;
pub use opening::Succession;
pub use stats::{Counts, Stats};
pub use upcalls::{BoxFuture, Declared, Upcalls};

use crate::ledger::{Inheritance, Ledger};
use delta::Writer;
use godrive_proto::data::{Applied, Layout};
use godrive_proto::lease::{CloseSession, ClusterParameters};
use godrive_proto::time::Timestamp;
use godrive_proto::{Fault, Operation, SessionId};
use master::{Gate, Master};
use reading::Reader;
use reports::Reports;
use slaves::Slaves;
use std::sync::Arc;
use std::time::Duration;

/// The longest that [`Driver::stop`] waits for the master.
const FAREWELL: Duration = Duration::from_secs(3);

/// A mount's connections to its cluster.
pub struct Driver {
    master: Arc<Master>,
    slaves: Arc<Slaves>,
    writer: Writer,
    reader: Reader,
}

impl Driver {
    /// Connects and opens the session; tries again until the deadline.
    pub async fn start(config: Config, world: World) -> Result<Arc<Self>, Fault> {
        Ok(Self::start_noted(config, world, None, None).await?.0)
    }

    /// The same for a mount that notes what another daemon needs to go on after it, or that is this other one.
    pub async fn start_noted(
        config: Config,
        world: World,
        ledger: Option<Arc<dyn Ledger>>,
        inherited: Option<&Inheritance>,
    ) -> Result<(Arc<Self>, Succession), Fault> {
        let seed = world.seed;
        let (master, succession) = Master::start(config, world, Arc::default(), ledger, inherited).await?;
        let master = Arc::new(master);
        let slaves = Arc::new(Slaves::new(master.clone()));
        tokio::spawn(slaves.clone().meet_first());
        let reports = Arc::new(Reports::new(master.clone()));
        let writer = Writer::new(master.clone(), slaves.clone(), reports.clone());
        let reader = Reader::new(master.clone(), slaves.clone(), reports, seed);
        Ok((Arc::new(Self { master, slaves, writer, reader }), succession))
    }

    /// Starts renewals, recalls and reconnects. Once.
    pub fn serve(self: &Arc<Self>, up: Arc<dyn Upcalls>) {
        tokio::spawn(keeper::run(self.master.clone(), up));
    }

    /// A request that changes nothing, or that may be executed twice. Asked again while no answer comes and while
    /// the cluster is `Unavailable`, in a new session too: it is answered only from the current session.
    pub async fn query<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.master.query::<O>(request, self.master.patience()).await
    }

    /// A request that is executed at most once, however often it is sent. `SessionLost` if the session ended before
    /// the answer, `Timeout` if the deadline came first: then its outcome is unknown.
    pub async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.master.mutate::<O>(request, self.master.patience()).await
    }

    /// Waits until the session is good for requests, and for what its leases cover.
    pub async fn admitted(&self) -> Result<(), Fault> {
        self.master.admitted(self.master.patience()).await
    }

    pub fn parameters(&self) -> ClusterParameters {
        self.master.session().parameters
    }

    pub fn session(&self) -> SessionId {
        self.master.session().id
    }

    /// How long leases may still be used; None: lapsed. Cheap enough for every cache hit.
    pub fn lease_remaining(&self) -> Option<Duration> {
        self.master.timing.lease_remaining()
    }

    /// The master's clock by offset, never backwards.
    pub fn wall(&self) -> Timestamp {
        self.master.timing.wall()
    }

    /// Applies a delta to `layout.held` at every member. One at a time for each chunk. On success `layout.held` has
    /// advanced; after a failure the layout may have changed too, and the delta may have been applied or not.
    /// `WrongVersion`: acknowledged contents that were not stable were lost in a failure of all members.
    pub fn write<'a>(
        &'a self,
        layout: &'a mut Layout,
        delta: Delta,
    ) -> BoxFuture<'a, Result<Applied, Fault>> {
        Box::pin(self.writer.write(layout, delta))
    }

    /// The same with bytes of another chunk, which go from slave to slave. `NoSource`, `Forbidden`: they do not, and whoever
    /// carries them may write them; what an earlier try may have begun, the next delta finds out.
    pub fn copy<'a>(&'a self, layout: &'a mut Layout, copy: Copy) -> BoxFuture<'a, Result<Applied, Fault>> {
        Box::pin(self.writer.copy(layout, copy))
    }

    /// Makes `layout.held` stable at every member.
    pub fn sync<'a>(&'a self, layout: &'a mut Layout) -> BoxFuture<'a, Result<Applied, Fault>> {
        Box::pin(self.writer.sync(layout))
    }

    /// Whole leaves of one chunk, verified and ascending. `layout` may be newer afterwards.
    pub fn read<'a>(
        &'a self,
        layout: &'a mut Layout,
        first_leaf: u32,
        leaves: u32,
    ) -> BoxFuture<'a, Result<Vec<Run>, Fault>> {
        Box::pin(self.reader.read(layout, first_leaf, leaves))
    }

    /// These chunks may be read or written soon: connects to their members in the background. A connection is slow until
    /// it knows how large the datagrams on its path may be.
    pub fn meet(&self, layouts: &[Layout]) {
        self.slaves.meet(layouts);
    }

    /// What went over the wire so far.
    pub fn counts(&self) -> Counts {
        self.master.stats.counts(*self.master.endpoint.moves().borrow())
    }

    /// Closes the session and all connections. Requests under way fail.
    pub async fn stop(&self) {
        let link = self.master.link.borrow().clone();
        self.master.timing.lapse();
        self.master.link.send_modify(|link| link.gate = Gate::Stopped);
        let header = self.master.header(&link.session, 0);
        if let Err(fault) = self.master.send::<CloseSession>(&link.connection, header, &(), FAREWELL).await {
            tracing::warn!(%fault, session = %link.session.id, "the session was not closed; it will lapse");
        }
        self.master.endpoint.close().await;
    }
}

impl Drop for Driver {
    /// Without [`Driver::stop`] the session lapses; the tasks must not outlive their driver.
    fn drop(&mut self) {
        self.master.timing.lapse();
        self.master.link.send_modify(|link| link.gate = Gate::Stopped);
        self.master.link.borrow().connection.close("the driver was dropped");
    }
}
