//! Changes that a session made under exclusive leases, followed in its order: all of them or none.

use super::unlink::unlink;
use crate::core::record::Taken;
use crate::core::state::Transaction;
use crate::core::state::transaction::{Result, refuse};
use godrive_proto::Code;
use godrive_proto::meta::{Batched, Step};

pub fn batch(transaction: &mut Transaction<'_>, steps: &[Taken]) -> Result<Batched> {
    let now = transaction.now;
    for Taken { step, open_elsewhere } in steps {
        let Step::Unlink { request, ino, at } = step;
        let dentry = transaction.required(request.parent, &request.name)?;
        if dentry.ino != *ino {
            let detail = format!("{:?} leads to inode {}, not to {ino}", request.name, dentry.ino);
            return refuse(Code::Stale, detail);
        }
        // A holder's clock may be wrong; it dates nothing later than the master does.
        transaction.now = (*at).min(now);
        unlink(transaction, request, open_elsewhere)?;
    }
    transaction.now = now;
    let left = transaction.effects.changed.difference(&transaction.effects.removed);
    let views = left.map(|ino| transaction.view_of(*ino)).collect::<Result<_>>()?;
    Ok(Batched { views })
}
