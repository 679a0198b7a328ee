//! What the file system needs from below: the driver, or a model of a cluster in tests.

use crate::driver::{Copy, Delta, Driver, Run};
use godrive_proto::data::{Applied, Layout};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::time::Timestamp;
use godrive_proto::{Fault, Operation};
use std::time::Duration;

/// See [`Driver`] for what each of these promises.
pub trait Backend: Send + Sync + 'static {
    fn query<O: Operation>(
        &self,
        request: &O::Request,
    ) -> impl Future<Output = Result<O::Reply, Fault>> + Send;
    fn mutate<O: Operation>(
        &self,
        request: &O::Request,
    ) -> impl Future<Output = Result<O::Reply, Fault>> + Send;
    fn admitted(&self) -> impl Future<Output = Result<(), Fault>> + Send;
    fn parameters(&self) -> ClusterParameters;
    fn lease_remaining(&self) -> Option<Duration>;
    fn wall(&self) -> Timestamp;
    fn write(&self, layout: &mut Layout, delta: Delta)
    -> impl Future<Output = Result<Applied, Fault>> + Send;
    fn copy(&self, layout: &mut Layout, copy: Copy) -> impl Future<Output = Result<Applied, Fault>> + Send;
    fn sync(&self, layout: &mut Layout) -> impl Future<Output = Result<Applied, Fault>> + Send;
    fn read(
        &self,
        layout: &mut Layout,
        first_leaf: u32,
        leaves: u32,
    ) -> impl Future<Output = Result<Vec<Run>, Fault>> + Send;
    fn meet(&self, layouts: &[Layout]);
    fn stop(&self) -> impl Future<Output = ()> + Send;
}

impl Backend for Driver {
    async fn query<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        Driver::query::<O>(self, request).await
    }

    async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        Driver::mutate::<O>(self, request).await
    }

    async fn admitted(&self) -> Result<(), Fault> {
        Driver::admitted(self).await
    }

    fn parameters(&self) -> ClusterParameters {
        Driver::parameters(self)
    }

    fn lease_remaining(&self) -> Option<Duration> {
        Driver::lease_remaining(self)
    }

    fn wall(&self) -> Timestamp {
        Driver::wall(self)
    }

    async fn write(&self, layout: &mut Layout, delta: Delta) -> Result<Applied, Fault> {
        Driver::write(self, layout, delta).await
    }

    async fn copy(&self, layout: &mut Layout, copy: Copy) -> Result<Applied, Fault> {
        Driver::copy(self, layout, copy).await
    }

    async fn sync(&self, layout: &mut Layout) -> Result<Applied, Fault> {
        Driver::sync(self, layout).await
    }

    async fn read(&self, layout: &mut Layout, first_leaf: u32, leaves: u32) -> Result<Vec<Run>, Fault> {
        Driver::read(self, layout, first_leaf, leaves).await
    }

    fn meet(&self, layouts: &[Layout]) {
        Driver::meet(self, layouts);
    }

    async fn stop(&self) {
        Driver::stop(self).await;
    }
}
