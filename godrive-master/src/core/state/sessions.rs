//! Sessions: their results kept for retries, and what their end leaves behind.

use super::Closing;
use super::keys;
use super::transaction::{Result, Transaction, refuse};
use super::values::Session;
use crate::core::record::{Answer, Origin, Reply};
use godrive_proto::limits::MAX_OUTSTANDING;
use godrive_proto::meta::Batched;
use godrive_proto::{Code, Ino, NodeId, SessionId};

impl Transaction<'_> {
    /// Admits a request of a session: unknown ones are lost, repeated ones get their first answer.
    pub fn enter(&mut self, origin: Origin) -> Result<Option<Answer>> {
        let Origin { session: id, sequence, answered_below } = origin;
        if id.0 == 0 {
            return Ok(None);
        }
        let session = self.session_of(id)?;
        if sequence == 0 {
            return Ok(None);
        }
        if let Some(answer) = self.kept(id, &session, sequence)? {
            return Ok(Some(answer));
        }
        let floor = session.kept_from.max(answered_below);
        if sequence < floor || sequence - floor >= MAX_OUTSTANDING {
            return refuse(
                Code::Malformed,
                format!(
                    "sequence {sequence} of session {id} lies outside of {floor} and the {MAX_OUTSTANDING} that follow"
                ),
            );
        }
        Ok(None)
    }

    /// The answer to a request that was executed before.
    pub fn kept(&self, id: SessionId, session: &Session, sequence: u64) -> Result<Option<Answer>> {
        // Nearly all are new, and need not be looked for.
        if sequence > session.highest { Ok(None) } else { self.value(&keys::kept(id, sequence)) }
    }

    pub fn session_of(&self, id: SessionId) -> Result<Session> {
        match self.value(&keys::session(id))? {
            Some(session) => Ok(session),
            None => refuse(Code::SessionLost, format!("session {id} is unknown or was revoked")),
        }
    }

    /// Keeps the answer and drops those that the session no longer needs.
    /// What was never admitted (no session, a sequence out of bounds) is not kept.
    pub fn keep(&mut self, origin: Origin, answer: &Answer) -> Result<()> {
        let Origin { session: id, sequence, answered_below } = origin;
        if id.0 == 0 || sequence == 0 {
            return Ok(());
        }
        let Some(mut session) = self.value::<Session>(&keys::session(id))? else {
            return Ok(());
        };
        let floor = session.kept_from.max(answered_below);
        if sequence < floor || sequence - floor >= MAX_OUTSTANDING {
            return Ok(());
        }
        for old in session.kept_from..floor.min(session.highest.saturating_add(1)) {
            self.delete(keys::kept(id, old));
        }
        session.kept_from = floor;
        session.highest = session.highest.max(sequence);
        self.put(keys::session(id), &session)?;
        // A batch's views are many, and made anew for a repetition.
        let kept = match answer {
            Ok(Reply::Batched(_)) => &Ok(Reply::Batched(Batched { views: Vec::new() })),
            answer => answer,
        };
        self.put(keys::kept(id, sequence), kept)
    }

    pub fn open_session(&mut self, client: NodeId, label: &str) -> Result<SessionId> {
        if label.len() > 255 {
            return refuse(Code::Malformed, "a session's label has at most 255 bytes");
        }
        self.meta.last_session = self.meta.last_session.next();
        let id = self.meta.last_session;
        let session = Session { client, label: label.to_owned(), opened: self.now, kept_from: 1, highest: 0 };
        self.put(keys::session(id), &session)?;
        self.meta.counts.sessions += 1;
        Ok(id)
    }

    /// Another daemon goes on with it. What the first one wrote and never committed is lost, and none of its mutations
    /// that is still on its way is executed any more.
    pub fn take_over(&mut self, id: SessionId, from: u64) -> Result<()> {
        let mut session = self.session_of(id)?;
        if from <= session.highest || from < session.kept_from {
            return refuse(
                Code::Malformed,
                format!(
                    "session {id} has used sequence {} already, so it cannot go on from {from}",
                    session.highest
                ),
            );
        }
        self.unsettle_chunks(id)?;
        self.forget_answers(id)?;
        session.kept_from = from;
        self.put(keys::session(id), &session)
    }

    /// Its open chunks may hold what it never committed.
    fn unsettle_chunks(&mut self, id: SessionId) -> Result<()> {
        let mut inodes: Vec<Ino> = Vec::new();
        for (key, _) in self.scan(&keys::open_by(id), usize::MAX)? {
            inodes.push(Ino(keys::number_before(&key, 8)));
        }
        inodes.dedup();
        for ino in inodes {
            self.close_chunks(id, ino, Closing::Revoked)?;
        }
        Ok(())
    }

    fn forget_answers(&mut self, id: SessionId) -> Result<()> {
        for (key, _) in self.scan(&keys::kept_of(id), usize::MAX)? {
            self.delete(key);
        }
        Ok(())
    }

    /// Closed or revoked: nothing of it may be left.
    pub fn end_session(&mut self, id: SessionId) -> Result<()> {
        self.session_of(id)?;
        self.unsettle_chunks(id)?;
        let orphans = self.scan(&keys::orphans_of(id), usize::MAX)?;
        let orphans: Vec<Ino> = orphans.iter().map(|(key, _)| Ino(keys::last_number(key))).collect();
        self.close_orphans(id, &orphans)?;
        self.forget_answers(id)?;
        self.delete(keys::session(id));
        self.meta.counts.sessions -= 1;
        Ok(())
    }
}
