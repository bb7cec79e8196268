//! Creation of streams: the rate at which a server creates ten thousand of them.

use std::time::Instant;

use futures::future::try_join_all;

use super::{BASIN, Load, per_second};
use crate::{
    client::Connection,
    targets::{Metric, Reading},
};

/// Measures streams made per second, over several connections that each make one at a time.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let url = load.server.url();
    let (count, width) = (load.sizes.create_streams, load.sizes.create_connections);
    let connections = try_join_all((0..width).map(|number| {
        let url = &url;
        async move {
            let connection = Connection::open(load.client, url, BASIN).await?;
            // The SDK connects with its first request, which is not to be a measured one.
            connection.create_stream(&format!("warm-{number}")).await?;
            anyhow::Ok(connection)
        }
    }))
    .await?;

    let before = Instant::now();
    let makers = connections
        .iter()
        .enumerate()
        .map(|(number, connection)| async move {
            for index in (number..count).step_by(width) {
                connection
                    .create_stream(&format!("created-{index}"))
                    .await?;
            }
            anyhow::Ok(())
        });
    try_join_all(makers).await?;
    let rate = per_second(count as f64, before.elapsed());
    Ok(vec![Reading::new(Metric::CreateRate, rate)])
}
