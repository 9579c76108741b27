//! What a client holds, counted byte by byte: by the bench that tells it, and by the test that holds it.

use bytes::Bytes;
use http_body_util::Full;
use mesh::Client;
use mesh_discovery::xds::Variant;

use super::Error;
use super::plane::{Book, Size, World, target};

/// What a client has done with what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    Nothing,
    /// Every destination is ready for requests.
    Routed,
    /// Every endpoint had some, and no connection: nobody listens there.
    Requested,
}

/// By how many bytes the heap grows with each endpoint of this many clusters.
pub(crate) fn per_endpoint(clusters: usize, used: Use) -> Result<f64, Error> {
    let of = |endpoints| held(Size { clusters, endpoints }, used);
    Ok((of(110)? - of(10)?) / (clusters * 100) as f64)
}

/// Heap of a whole table.
pub(crate) fn held(size: Size, used: Use) -> Result<f64, Error> {
    // One of its own: what its tasks hold goes with it and does not show in the next count.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut made = Err("not made".into());
    let counted = allocation_counter::measure(|| made = runtime.block_on(make(size, used)));
    let _world = made?;
    Ok(counted.bytes_current as f64)
}

async fn make(size: Size, used: Use) -> Result<(World, Client), Error> {
    let world = World::load(Variant::Delta, size, Book::of(Variant::Delta, size)?).await?;
    let client = Client::builder(world.client.clone()).max_destinations(size.clusters).build();
    if used >= Use::Routed {
        for n in 0..size.clusters {
            while !routed(&client, n)? {
                tokio::task::yield_now().await;
            }
        }
    }
    if used == Use::Requested {
        // Endpoints that refused a connection come after others: all have had their turn long before.
        for i in 0..10 * size.endpoints * size.clusters {
            let request = request(i % size.clusters)?.map(|()| Full::<Bytes>::default());
            if client.send(request).await.is_ok() {
                return Err("somebody listens where nobody should".into());
            }
        }
        // So have the dials beside them.
        tokio::task::yield_now().await;
        while client.dump().destinations.iter().flat_map(|one| &one.clusters).any(|one| one.open_connections > 0) {
            tokio::task::yield_now().await;
        }
    }
    Ok((world, client))
}

pub(crate) fn request(n: usize) -> Result<http::Request<()>, Error> {
    Ok(http::Request::get(format!("http://{}/", target(n)?.as_str())).body(())?)
}

/// Whether the client has made the destination ready.
pub(crate) fn routed(client: &Client, n: usize) -> Result<bool, Error> {
    Ok(!client.explain(&request(n)?).clusters.is_empty())
}
