//! Applying a record: the session's check, the operation, the kept result.

use super::transaction::Failure;
use super::transaction::{Result as Done, Transaction};
use super::{Closing, Outcome, State};
use crate::core::kv::StoreError;
use crate::core::namespace;
use crate::core::record::{Answer, Body, Mutation, Origin, Record, Reply};
use godrive_proto::{Code, Fault, LogIndex};

impl State {
    /// Applies the record at `index`, which must follow [`State::applied`]. An error is the store's: the master must stop.
    pub fn apply(&mut self, index: LogIndex, record: &Record) -> Result<Outcome, StoreError> {
        if index != self.meta.applied.next() {
            let applied = self.meta.applied;
            return Err(StoreError::Damaged(format!("record {index} does not follow record {applied}")));
        }
        let origin = record.origin;
        let mut transaction = self.begin(index, record.time, origin.session);
        let (answer, repeated) = match run(&mut transaction, record) {
            Ok(Ran::Now(reply)) => (Ok(reply), false),
            Ok(Ran::Before(answer)) => (answer, true),
            Err(Failure::Store(error)) => return Err(error),
            Err(Failure::Refused(fault)) => {
                transaction = self.begin(index, record.time, origin.session);
                (Err(fault), false)
            }
        };
        if !repeated {
            transaction.keep(origin, &answer).map_err(store_only)?;
        }
        let (batch, meta, effects) = transaction.finish().map_err(store_only)?;
        self.kv.write(batch)?;
        self.meta = meta;
        Ok(Outcome { answer, effects, sync_required: record.needs_sync(), repeated })
    }
}

enum Ran {
    Now(Reply),
    Before(Answer),
}

fn run(transaction: &mut Transaction<'_>, record: &Record) -> Done<Ran> {
    if transaction.meta.cluster.is_none() && !matches!(record.body, Body::Bootstrap { .. }) {
        return Err(Fault::new(Code::NotReady, "the cluster was not bootstrapped").into());
    }
    if let Some(answer) = transaction.enter(record.origin)? {
        return Ok(Ran::Before(answer));
    }
    execute(transaction, &record.body, record.origin).map(Ran::Now)
}

fn execute(transaction: &mut Transaction<'_>, body: &Body, origin: Origin) -> Done<Reply> {
    let done = |()| Reply::Done;
    match body {
        Body::Bootstrap { cluster, parameters, feature_level } => {
            transaction.bootstrap(*cluster, *parameters, *feature_level).map(done)
        }
        Body::TermStarted { term } => transaction.start_term(*term).map(done),
        Body::IdsSkipped { count } => transaction.skip_ids(*count).map(done),
        Body::OpenSession { client, label } => transaction.open_session(*client, label).map(Reply::Session),
        Body::CloseSession => transaction.end_session(origin.session).map(done),
        Body::SessionRevoked { session } => transaction.end_session(*session).map(done),
        Body::SessionTakenOver { session, from } => transaction.take_over(*session, *from).map(done),
        Body::Accessed { times } => namespace::accessed(transaction, times).map(done),
        Body::Mutation(mutation) => mutate(transaction, mutation),
        Body::OpenChunks { ino, indexes, placed } => {
            transaction.open_chunks(*ino, indexes, placed).map(Reply::Layouts)
        }
        Body::ChunksClosed { session, ino } => {
            transaction.close_chunks(*session, *ino, Closing::GivenBack).map(done)
        }
        Body::ChunksGivenUp { session, ino } => {
            transaction.close_chunks(*session, *ino, Closing::Revoked).map(done)
        }
        Body::OrphanKept { ino, sessions } => transaction.keep_orphan(*ino, sessions).map(done),
        Body::OrphansClosed { session, inodes } => transaction.close_orphans(*session, inodes).map(done),
        Body::EpochPending { chunk, epoch } => transaction.begin_epoch(*chunk, *epoch).map(done),
        Body::EpochInstalled { chunk, epoch, members, contents, stable, used_bytes } => {
            transaction.install_epoch(*chunk, *epoch, members, *contents, *stable, *used_bytes).map(done)
        }
        Body::ChunksStable { chunks } => transaction.stabilise(chunks).map(done),
        Body::ChunkQuarantined { chunk } => transaction.quarantine(*chunk).map(done),
        Body::ChunksForgotten { chunks } => transaction.forget(chunks).map(done),
        Body::NodeRegistered { node, address, domain, disks, boot } => {
            transaction.register_node(*node, *address, domain, disks, *boot).map(done)
        }
        Body::NodeIntended { node, purpose, disks } => transaction.intend(*node, *purpose, disks).map(done),
        Body::NodeRetired { node } => transaction.retire(*node).map(done),
        Body::TokenMade { role, secret_hash, expires, uses } => {
            transaction.make_token(*role, *secret_hash, *expires, *uses).map(Reply::Token)
        }
        Body::TrashKept { keep_s, min_age_s } => transaction.keep_trash(*keep_s, *min_age_s).map(done),
        Body::TrashDropped { inodes } => transaction.drop_trash(inodes).map(done),
        Body::TokenUsed { token, node: _ } => transaction.use_token(*token).map(done),
    }
}

/// One client operation; also what [`State::check`] rehearses.
pub fn mutate(transaction: &mut Transaction<'_>, mutation: &Mutation) -> Done<Reply> {
    match mutation {
        Mutation::Create { request, members } => {
            namespace::create(transaction, request, members).map(Reply::Created)
        }
        Mutation::MakeNode(request) => namespace::make_node(transaction, request).map(Reply::Linked),
        Mutation::Link(request) => namespace::link(transaction, request).map(Reply::Linked),
        Mutation::Unlink { request, open_elsewhere } => {
            namespace::unlink(transaction, request, open_elsewhere).map(Reply::Unlinked)
        }
        Mutation::Rename { request, open_elsewhere } => {
            namespace::rename(transaction, request, open_elsewhere).map(Reply::Renamed)
        }
        Mutation::SetAttr(request) => namespace::set_attr(transaction, request).map(Reply::View),
        Mutation::Truncate(request) => namespace::truncate(transaction, request).map(Reply::Truncated),
        Mutation::Commit(request) => namespace::commit(transaction, request).map(Reply::Committed),
        Mutation::SetXattr(request) => namespace::set_xattr(transaction, request).map(Reply::View),
        Mutation::RemoveXattr(request) => namespace::remove_xattr(transaction, request).map(Reply::View),
        Mutation::Restore(request) => namespace::restore(transaction, request).map(Reply::Linked),
        Mutation::Batch(steps) => namespace::batch(transaction, steps).map(Reply::Batched),
    }
}

/// Where nothing can be refused any more.
fn store_only(failure: Failure) -> StoreError {
    match failure {
        Failure::Store(error) => error,
        Failure::Refused(fault) => StoreError::Damaged(format!("a result could not be kept: {fault}")),
    }
}
