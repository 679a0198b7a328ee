//! `godrive token`: one line with which another machine joins.

use crate::admin::Admin;
use crate::cli::{self, TokenRole};
use crate::cluster::layout::Home;
use anyhow::Result;
use godrive_proto::admin::MakeTokenRequest;
use std::time::Duration;

pub async fn run(line: &cli::Token) -> Result<()> {
    let home = Home::new(line.home.path()?);
    let master = home.cluster()?.master()?;
    let admin = Admin::connect(&home, Duration::from_secs(10)).await?;
    let request = MakeTokenRequest {
        role: line.role.role(),
        // At most what the option's parser lets through, which fits.
        valid_for_s: u32::try_from(line.valid_for.as_secs()).unwrap_or(u32::MAX),
        uses: line.uses,
    };
    let token = admin.token(request).await?;
    admin.close().await;
    say!("{token}")?;
    let times = if line.uses == 1 { "once".into() } else { format!("{} times", line.uses) };
    eprintln!("It works {times}, for the next {} s. On the other machine:", line.valid_for.as_secs());
    match line.role {
        TokenRole::Slave => eprintln!("  godrive-slave --join TOKEN --dir /srv/godrive --listen IP:PORT"),
        TokenRole::Client => eprintln!("  godrive-fuse --join TOKEN --dir ~/.godrive --mountpoint PATH"),
    }
    if master.ip().is_loopback() {
        eprintln!(
            "note: this master listens on {master} only, so only this machine can join. A cluster for others is made \
             with `godrive up --address IP`"
        );
    }
    Ok(())
}
