//! `godrive drain`, `undrain`, `decommission`, `recommission`: what the master should do with a slave or a disk.

use crate::Usage;
use crate::admin::Admin;
use crate::cli;
use crate::cluster::layout::{Home, NodeName};
use anyhow::Result;
use godrive_proto::admin::{IntendRequest, Intention, Status};
use godrive_proto::{DiskId, NodeId};
use std::time::Duration;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Fewer digits of an id are a typing error.
const MIN_DIGITS: usize = 4;

pub async fn run(line: &cli::Target, intention: Intention, wait: bool) -> Result<()> {
    let home = Home::new(line.home.path()?);
    home.cluster()?;
    let admin = Admin::connect(&home, Duration::from_secs(10)).await?;
    let (node, disk) = resolve(&home, &admin.status().await?, &line.target)?;
    let intended = admin.intend(IntendRequest { node, disk, intention }).await?;
    for note in &intended.notes {
        eprintln!("note: {note}");
    }
    say!("{}", outcome(&line.target, disk, intention))?;
    if wait {
        await_empty(&admin, node, disk, intention).await?;
        say!("nothing is left on {}", line.target)?;
    }
    admin.close().await;
    Ok(())
}

fn outcome(name: &str, disk: Option<DiskId>, intention: Intention) -> String {
    let what = if disk.is_some() { "disk " } else { "" };
    match intention {
        Intention::Drain => {
            format!("{what}{name} is drained in the background: `godrive status` shows what is left")
        }
        Intention::Undrain => format!("{what}{name} serves as before"),
        Intention::Decommission => {
            format!(
                "{name} is emptied in the background and then forgotten: `godrive status` shows what is left"
            )
        }
        Intention::Recommission => format!("{name} may serve: start it if it does not run"),
    }
}

async fn await_empty(admin: &Admin, node: NodeId, disk: Option<DiskId>, intention: Intention) -> Result<()> {
    loop {
        let status = admin.status().await?;
        let found = status.nodes.iter().find(|known| known.node == node);
        let left = match (found, disk) {
            // Decommissioned to the end: it is forgotten.
            (None, _) => 0,
            (Some(_), _) if intention == Intention::Decommission => 1,
            (Some(found), None) => found.replicas,
            (Some(found), Some(disk)) => {
                found.places.iter().find(|place| place.disk == disk).map_or(0, |place| place.replicas)
            }
        };
        if left == 0 {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A slave by its name in this folder, or a slave or disk by the beginning of its id.
fn resolve(home: &Home, status: &Status, text: &str) -> Result<(NodeId, Option<DiskId>)> {
    if let Some(name) = NodeName::parse(text) {
        return Ok((crate::admin::load_identity(&home.node(name).join("identity.pem"))?.node, None));
    }
    find(status, text).map_err(|why| Usage(why).into())
}

fn find(status: &Status, text: &str) -> Result<(NodeId, Option<DiskId>), String> {
    let digits = text.to_ascii_lowercase();
    if digits.len() < MIN_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!(
            "`{text}` is neither a slave of this folder (slave-2) nor the beginning of an id ({MIN_DIGITS} hexadecimal \
             digits or more): `godrive status` lists them"
        ));
    }
    let nodes = status.nodes.iter().map(|node| node.node).chain(status.retired.iter().copied());
    let nodes = nodes.filter(|node| node.to_string().starts_with(&digits)).map(|node| (node, None));
    let places = status.nodes.iter().flat_map(|node| node.places.iter().map(|place| (node.node, place.disk)));
    let disks = places.filter(|(_, disk)| disk.to_string().starts_with(&digits));
    let found: Vec<_> = nodes.chain(disks.map(|(node, disk)| (node, Some(disk)))).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("no slave and no disk begins with `{text}`: `godrive status` lists them")),
        several => {
            Err(format!("{} slaves and disks begin with `{text}`: write more of the id", several.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::status;
    use super::*;

    #[test]
    fn an_id_is_found_by_its_beginning() {
        let status = status();
        let node = |number: u128| NodeId(number << 96);
        assert_eq!(find(&status, "00000002").unwrap(), (node(2), None));
        assert_eq!(find(&status, "0000000900000000").unwrap(), (node(9), None), "one that is gone");
        assert_eq!(find(&status, "D15C0003").unwrap(), (node(3), Some(DiskId(0xd15c_0003 << 96))));
        for (text, why) in [
            ("d15c", "3 slaves and disks"),
            ("beef", "no slave and no disk"),
            ("d1", "neither"),
            ("slave", "neither"),
        ] {
            let error = find(&status, text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
