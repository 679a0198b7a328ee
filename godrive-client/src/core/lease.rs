//! What is held of one inode.
//!
//! Grants arrive in replies, recalls as requests of the master, on different streams: a recall can overtake the reply
//! that carries the grant. Lease ids rise with every grant, so the highest recalled id decides: a grant that is not above
//! it is void. In the same way an exclusive grant overtaken by the lowering of its lease is a shared one by now. Whether
//! the session's lease time still runs is asked elsewhere, at every use.

use godrive_proto::LeaseId;
use godrive_proto::lease::{Lease, Mode};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseState {
    held: Option<(LeaseId, Mode)>,
    recalled: LeaseId,
    /// Exclusive grants up to this id were lowered to shared ones.
    lowered: LeaseId,
    /// A commit that lowers the lease is on its way; which grants came before it, its answer will say.
    lowering: bool,
    sole: bool,
    /// How often it was given back, wholly or down to a shared one.
    given_back: u64,
}

impl LeaseState {
    /// As if everything up to this id had been recalled: for an inode that was forgotten and is met again.
    pub fn after(recalled: LeaseId) -> Self {
        Self { recalled, ..Self::default() }
    }

    /// Takes a grant in. An exclusive lease is never lowered by a grant, only by giving it back: a reply that
    /// was made before or beside it may carry a shared one.
    pub fn grant(&mut self, lease: &Lease) {
        if lease.id <= self.recalled {
            return;
        }
        let overtaken = self.lowering || lease.id <= self.lowered;
        let granted = if overtaken { Mode::Shared } else { lease.mode };
        self.held = Some(match self.held {
            None => (lease.id, granted),
            Some((id, mode)) => (id.max(lease.id), mode.max(granted)),
        });
    }

    /// From now on grants up to this id are void. True if the lease held is meant.
    pub fn recall(&mut self, id: LeaseId) -> bool {
        self.recalled = self.recalled.max(id);
        self.held.is_some_and(|(held, _)| held <= id)
    }

    /// The inode was made here under an exclusive lease: until that is given back, no other mount has ever seen it.
    pub fn born(&mut self) {
        self.sole = self.mode() == Some(Mode::Exclusive);
    }

    pub fn is_sole(&self) -> bool {
        self.sole
    }

    /// Gives back down to `keeps`.
    pub fn lower(&mut self, keeps: Option<Mode>) {
        self.given_back += 1;
        self.sole = false;
        self.lowering = false;
        self.held = match (self.held, keeps) {
            (Some((id, mode)), Some(keeps)) => {
                self.lowered = self.lowered.max(id);
                Some((id, mode.min(keeps)))
            }
            _ => None,
        };
    }

    /// A commit that gives the exclusive lease back is sent. Until [`Self::answered`] no grant is taken for more than a
    /// shared one: it may have been made before.
    pub fn begin_lowering(&mut self) {
        self.lower(Some(Mode::Shared));
        self.lowering = true;
    }

    /// The commit was answered, with the lease that is left if it is known: grants up to it came before.
    pub fn answered(&mut self, left: Option<&Lease>) {
        if std::mem::take(&mut self.lowering) {
            self.lowered = self.lowered.max(left.map_or(LeaseId(0), |lease| lease.id));
        }
    }

    /// The master has lowered the lease by itself, to what is left of it: exclusive grants up to that came before.
    pub fn was_lowered(&mut self, left: Option<&Lease>) {
        self.lowered = self.lowered.max(left.map_or(LeaseId(0), |lease| lease.id));
    }

    /// A lease that was being lowered stays exclusive: the master refused.
    pub fn restore(&mut self) {
        self.held = self.held.map(|(id, _)| (id, Mode::Exclusive));
    }

    /// While this stays the same, what is held was held all the time: its id may rise.
    pub fn given_back(&self) -> u64 {
        self.given_back
    }

    pub fn mode(&self) -> Option<Mode> {
        self.held.map(|(_, mode)| mode)
    }

    pub fn id(&self) -> Option<LeaseId> {
        self.held.map(|(id, _)| id)
    }

    pub fn recalled(&self) -> LeaseId {
        self.recalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::Ino;
    use godrive_proto::lease::ByteRange;

    fn lease(id: u64, mode: Mode) -> Lease {
        Lease { ino: Ino(7), id: LeaseId(id), mode, range: ByteRange::WHOLE }
    }

    #[test]
    fn a_recall_overtakes_its_grant() {
        let mut state = LeaseState::default();
        assert!(!state.recall(LeaseId(5)));
        state.grant(&lease(4, Mode::Shared));
        state.grant(&lease(5, Mode::Exclusive));
        assert_eq!(state.mode(), None);
        state.grant(&lease(6, Mode::Shared));
        assert_eq!(state.mode(), Some(Mode::Shared));
    }

    #[test]
    fn a_repeated_recall_does_not_take_a_newer_lease() {
        let mut state = LeaseState::default();
        state.grant(&lease(5, Mode::Shared));
        assert!(state.recall(LeaseId(5)));
        state.lower(None);
        state.grant(&lease(8, Mode::Exclusive));
        assert!(!state.recall(LeaseId(5)));
        assert_eq!(state.mode(), Some(Mode::Exclusive));
    }

    #[test]
    fn a_grant_that_a_lowering_commit_overtook_is_shared() {
        let mut state = LeaseState::default();
        state.grant(&lease(5, Mode::Exclusive));
        state.begin_lowering();
        state.grant(&lease(7, Mode::Exclusive));
        assert_eq!((state.id(), state.mode()), (Some(LeaseId(7)), Some(Mode::Shared)), "before the answer");
        state.answered(Some(&lease(8, Mode::Shared)));
        state.grant(&lease(8, Mode::Exclusive));
        assert_eq!(state.mode(), Some(Mode::Shared), "made before the commit, come after its answer");
        state.grant(&lease(9, Mode::Exclusive));
        assert_eq!(state.mode(), Some(Mode::Exclusive), "asked for anew");
        state.lower(Some(Mode::Shared));
        state.grant(&lease(9, Mode::Exclusive));
        assert_eq!(state.mode(), Some(Mode::Shared), "given back without a commit");
    }

    #[test]
    fn a_commit_that_was_refused_or_is_forgotten_lowers_nothing_more() {
        let mut state = LeaseState::default();
        state.grant(&lease(5, Mode::Exclusive));
        state.begin_lowering();
        state.answered(None);
        state.restore();
        assert_eq!(state.mode(), Some(Mode::Exclusive));
        state.begin_lowering();
        state.lower(None);
        state.grant(&lease(6, Mode::Exclusive));
        assert_eq!(state.mode(), Some(Mode::Exclusive));
    }

    #[test]
    fn a_late_shared_grant_does_not_lower_an_exclusive_one() {
        let mut state = LeaseState::default();
        state.grant(&lease(5, Mode::Exclusive));
        state.grant(&lease(4, Mode::Shared));
        assert_eq!((state.id(), state.mode()), (Some(LeaseId(5)), Some(Mode::Exclusive)));
        state.lower(Some(Mode::Shared));
        assert_eq!(state.mode(), Some(Mode::Shared));
    }
}
