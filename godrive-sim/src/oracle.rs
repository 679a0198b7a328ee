//! The contract as a judge: it is told when operations begin and end, and says of every read whether any run of a
//! correct cluster could have answered it.
//!
//! Each block is a register. A write that returned is visible to every later read, so a read may return a write only
//! if no other one lies between the two: begun after that write had ended, and ended before the read began. The same
//! goes for what reads have shown: once a read has returned a write, no later read may return one that ended before
//! that one began. A write whose end is unknown (it failed, or its client died) may have happened or not.
//!
//! What may be lost is what the contract lets go: a client that is cut off past its lease may lose what it wrote and
//! did not `close` or `fsync`; a power loss takes what was not `fsync`ed. [`Oracle::loses`] says so, and the writes that
//! it names no longer prove others to be old, until a flush of them succeeds after all. And a flush in the background may
//! fail, as on a full disk, and its writer learns of it at its next call only: a read that misses a write of which no
//! flush has returned is a suspicion, until its writer is told of the loss, or is told that there is none. Nothing
//! else is ever forgiven.

use crate::stamp::{Found, Stamp};
use std::collections::BTreeMap;

/// A block: the file's number and the block's place in it.
pub type Place = (u32, u64);

/// How safe a write is, by what has returned to its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    /// `write` returned.
    Written,
    /// `close` returned: the members hold it.
    Held,
    /// `fsync` returned.
    Stable,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    stamp: Stamp,
    begun: u64,
    /// None: under way, or its outcome will never be known.
    ended: Option<u64>,
    safety: Safety,
    fate: Fate,
    /// It was not stable in a power loss. Until an fsync returns 0 its writer may be told that it is lost: a `close`
    /// that came before anybody knew says nothing.
    unpowered: bool,
    /// The process that made it is dead. No later one vouches for what is lost of it.
    orphaned: bool,
}

impl Write {
    /// What settles whether it may be missed, if that is open: until then its writer may be told that it is lost.
    fn settled_by(&self) -> Option<(Stamp, Safety)> {
        let by = match (self.unpowered, self.safety) {
            (true, _) => Safety::Stable,
            (false, Safety::Written) => Safety::Held,
            (false, _) => return None,
        };
        (self.fate == Fate::Kept).then_some((self.stamp, by))
    }
}

/// What the contract owes of a finished write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    /// It may be there or not, unless a later flush or fsync of it returns 0.
    InDoubt,
    /// It may be there or not, for good: its writer was told.
    GivenUp,
}

#[derive(Default)]
struct Register {
    /// In the order of their beginnings.
    writes: Vec<Write>,
    shown: Vec<Shown>,
}

/// A finished read has returned a write.
#[derive(Clone, Copy, Debug)]
struct Shown {
    /// The beginning of the write.
    begun: u64,
    /// The end of the read.
    at: u64,
    reader: u16,
}

/// A read that missed a write which may have been lost without anybody having been told yet.
#[derive(Clone, Debug)]
struct Suspicion {
    file: u32,
    missed: Stamp,
    /// What makes it certain, if it returns 0 to the writer.
    settled_by: Safety,
    reason: String,
}

/// Why a read cannot be right; not yet certain if the writer of what was missed may still be told that it is lost.
struct Missed {
    reason: String,
    settled_by: Option<(Stamp, Safety)>,
}

impl Missed {
    fn surely(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), settled_by: None }
    }
}

/// A read that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    place: Place,
    begun: u64,
}

/// What was asked of the cluster and acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub closes: u64,
    pub errors: u64,
    pub lost_writes: u64,
}

#[derive(Default)]
pub struct Oracle {
    /// Counts beginnings and ends: the order in which the one process saw them.
    now: u64,
    registers: BTreeMap<Place, Register>,
    /// Clients that may be past their lease.
    cut: BTreeMap<u16, bool>,
    /// How often something happened after which what was not flushed may be gone.
    pub disturbances: u64,
    pub tally: Tally,
    suspicions: Vec<Suspicion>,
    violations: Vec<String>,
}

impl Oracle {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub fn write_begins(&mut self, place: Place, stamp: Stamp) {
        let begun = self.tick();
        let write = Write {
            stamp,
            begun,
            ended: None,
            safety: Safety::Written,
            fate: Fate::Kept,
            unpowered: false,
            orphaned: false,
        };
        self.registers.entry(place).or_default().writes.push(write);
    }

    pub fn write_ends(&mut self, place: Place, stamp: Stamp) {
        let ended = self.tick();
        let fate = if self.is_cut(stamp.client) { Fate::InDoubt } else { Fate::Kept };
        self.tally.writes += 1;
        tracing::debug!(?place, ?stamp, ended, "written");
        let register = self.registers.entry(place).or_default();
        if let Some(write) = register.writes.iter_mut().find(|write| write.stamp == stamp) {
            write.ended = Some(ended);
            write.fate = fate;
        }
    }

    /// A flush or fsync that was begun when the client's sequence stood at `below` has returned 0.
    pub fn safe(&mut self, client: u16, file: u32, below: u64, safety: Safety) {
        tracing::debug!(client, file, below, ?safety, "safe");
        match safety {
            Safety::Stable => self.tally.syncs += 1,
            _ => self.tally.closes += 1,
        }
        let theirs = |s: &mut Suspicion| {
            let of_theirs = s.file == file && s.missed.client == client && s.missed.sequence < below;
            of_theirs && s.settled_by <= safety
        };
        let certain = self.suspicions.extract_if(.., theirs);
        self.violations.extend(certain.map(|suspicion| suspicion.reason));
        for write in self.of_client(client, file) {
            if write.stamp.sequence < below && write.ended.is_some() {
                write.safety = write.safety.max(safety);
                write.unpowered &= safety < Safety::Stable;
                if write.fate == Fate::InDoubt {
                    write.fate = Fate::Kept;
                }
            }
        }
    }

    /// An operation of the client on the file failed: what it had written and not flushed may be gone, and so may what
    /// is in doubt.
    pub fn failed(&mut self, client: u16, file: u32) {
        self.tally.errors += 1;
        self.suspicions.retain(|suspicion| suspicion.file != file || suspicion.missed.client != client);
        let mut lost = 0;
        for write in self.of_client(client, file) {
            let lossy = write.safety == Safety::Written || write.fate == Fate::InDoubt || write.unpowered;
            if lossy && write.fate != Fate::GivenUp {
                lost += u64::from(write.fate == Fate::Kept);
                write.fate = Fate::GivenUp;
            }
        }
        self.tally.lost_writes += lost;
        // What it has shown itself of them was in its own buffer; what others have seen before a loss of power was
        // known may have been in their caches.
        for (_, register) in self.registers.iter_mut().filter(|((of, _), _)| *of == file) {
            let Register { writes, shown } = register;
            let unseen = |shown: &Shown, write: &Write| {
                let given_up = write.stamp.client == client && write.fate == Fate::GivenUp;
                write.begun == shown.begun && given_up && (shown.reader == client || write.unpowered)
            };
            shown.retain(|shown| !writes.iter().any(|write| unseen(shown, write)));
        }
    }

    /// From now on the client may be past its lease (it is cut off, frozen or dead), or is back.
    pub fn cut(&mut self, client: u16, cut: bool) {
        self.cut.insert(client, cut);
        if cut {
            self.disturbances += 1;
            self.loses(Safety::Held, |write| write.client == client);
        }
    }

    /// The client's process is dead: what it had not flushed may be there or not, and no later process vouches for it.
    pub fn dies(&mut self, client: u16) {
        self.cut(client, true);
        self.suspicions.retain(|suspicion| suspicion.missed.client != client);
        for register in self.registers.values_mut() {
            for write in register.writes.iter_mut().filter(|write| write.stamp.client == client) {
                write.orphaned = true;
                if write.fate == Fate::InDoubt {
                    write.fate = Fate::GivenUp;
                }
            }
        }
    }

    /// Everything that held it lost its power: what was not fsynced may be gone.
    pub fn power_fails(&mut self) {
        self.disturbances += 1;
        self.loses(Safety::Stable, |_| true);
        for write in self.registers.values_mut().flat_map(|register| register.writes.iter_mut()) {
            write.unpowered |= write.safety < Safety::Stable;
        }
    }

    /// The contract lets go of every write below this safety that `which` picks.
    fn loses(&mut self, below: Safety, which: impl Fn(Stamp) -> bool) {
        for register in self.registers.values_mut() {
            for write in &mut register.writes {
                if write.safety < below && write.fate == Fate::Kept && which(write.stamp) {
                    write.fate = if write.orphaned { Fate::GivenUp } else { Fate::InDoubt };
                    self.tally.lost_writes += 1;
                }
            }
            // What reads have shown of those writes may be unseen again.
            let lost: Vec<u64> = register
                .writes
                .iter()
                .filter(|write| write.fate != Fate::Kept)
                .map(|write| write.begun)
                .collect();
            register.shown.retain(|shown| !lost.contains(&shown.begun));
        }
    }

    pub fn read_begins(&mut self, place: Place) -> Reading {
        Reading { place, begun: self.tick() }
    }

    /// Judges what the client's read found.
    pub fn read_ends(&mut self, client: u16, reading: Reading, found: Found) {
        let ended = self.tick();
        self.tally.reads += 1;
        tracing::debug!(client, place = ?reading.place, ?found, ended, "read");
        match self.judge(reading, found) {
            // What a client that is cut off shows itself of its own may yet be lost.
            Ok(begun) if !self.is_cut(client) => {
                let shown = Shown { begun, at: ended, reader: client };
                self.registers.entry(reading.place).or_default().shown.push(shown);
            }
            Ok(_) => {}
            Err(Missed { reason, settled_by }) => {
                let (file, place) = reading.place;
                let reason = format!("client {client} read block {place} of file {file}: {reason}");
                match settled_by {
                    Some((missed, settled_by)) => {
                        self.suspicions.push(Suspicion { file, missed, settled_by, reason });
                    }
                    None => self.violations.push(reason),
                }
            }
        }
    }

    /// When the write that was found had begun, if it may be found at all.
    fn judge(&mut self, reading: Reading, found: Found) -> Result<u64, Missed> {
        let register = self.registers.entry(reading.place).or_default();
        let (begun, was_ended) = match found {
            Found::Torn => return Err(Missed::surely("a mixture that no write has made")),
            Found::Nothing => (0, Some(0)),
            Found::Written(stamp) => {
                let write = register.writes.iter().find(|write| write.stamp == stamp);
                let never = || Missed::surely(format!("{stamp:?}, which was never written there"));
                let write = write.ok_or_else(never)?;
                (write.begun, write.ended)
            }
        };
        if let Some(was_ended) = was_ended {
            let newer = register.writes.iter().filter(|write| {
                write.fate == Fate::Kept
                    && write.begun > was_ended
                    && write.ended.is_some_and(|end| end < reading.begun)
            });
            let newer = newer.map(|write| Missed {
                reason: format!("{found:?}, although {write:?} had ended before the read began"),
                settled_by: write.settled_by(),
            });
            let shown = register.shown.iter().filter(|s| s.begun > was_ended && s.at < reading.begun);
            let shown = shown.map(|shown| {
                let write = register.writes.iter().find(|write| write.begun == shown.begun);
                let open = write.filter(|write| write.unpowered || write.stamp.client == shown.reader);
                let reason = format!(
                    "{found:?}, although an earlier read returned the write begun at {}",
                    shown.begun
                );
                Missed { reason, settled_by: open.and_then(Write::settled_by) }
            });
            // What is certain comes first.
            if let Some(missed) = newer.chain(shown).min_by_key(|missed| missed.settled_by.is_some()) {
                return Err(missed);
            }
        }
        Ok(begun)
    }

    /// What was found, all in all. A suspicion of which nothing came is one.
    pub fn verdict(&mut self) -> Vec<String> {
        let open = std::mem::take(&mut self.suspicions);
        self.violations.extend(open.into_iter().map(|suspicion| suspicion.reason));
        std::mem::take(&mut self.violations)
    }

    fn is_cut(&self, client: u16) -> bool {
        self.cut.get(&client).copied().unwrap_or(false)
    }

    fn of_client(&mut self, client: u16, file: u32) -> impl Iterator<Item = &mut Write> {
        self.registers
            .iter_mut()
            .filter(move |((of, _), _)| *of == file)
            .flat_map(|(_, register)| register.writes.iter_mut())
            .filter(move |write| write.stamp.client == client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (1, 2);

    fn stamp(client: u16, sequence: u64) -> Stamp {
        Stamp { client, sequence }
    }

    fn write(oracle: &mut Oracle, stamp: Stamp) {
        oracle.write_begins(PLACE, stamp);
        oracle.write_ends(PLACE, stamp);
    }

    fn read(oracle: &mut Oracle, found: Found) -> usize {
        let reading = oracle.read_begins(PLACE);
        oracle.read_ends(7, reading, found);
        oracle.violations.len() + oracle.suspicions.len()
    }

    #[test]
    fn a_lost_write_is_forgiven_when_its_writer_is_told_and_no_sooner() {
        for told in [true, false] {
            let mut oracle = Oracle::default();
            write(&mut oracle, stamp(1, 1));
            oracle.safe(1, 1, 2, Safety::Held);
            write(&mut oracle, stamp(1, 2));
            let own = oracle.read_begins(PLACE);
            oracle.read_ends(1, own, Found::Written(stamp(1, 2)));
            // The flush that another client's read asked for has failed.
            assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 1);
            if told {
                oracle.failed(1, 1);
                assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
            } else {
                oracle.safe(1, 1, 3, Safety::Held);
            }
            assert_eq!(oracle.verdict().len(), usize::from(!told));
        }
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
        assert_eq!(oracle.verdict().len(), 1, "nobody has been told anything");
    }

    #[test]
    fn what_a_power_loss_took_is_forgiven_when_its_writer_is_told_though_it_has_closed_since() {
        for shown_to in [None, Some(1), Some(3)] {
            for (told, wrong) in [(Some(true), 0), (Some(false), 1), (None, 1)] {
                let mut oracle = Oracle::default();
                write(&mut oracle, stamp(1, 1));
                oracle.safe(1, 1, 2, Safety::Held);
                oracle.power_fails();
                oracle.safe(1, 1, 2, Safety::Held);
                if let Some(reader) = shown_to {
                    let cached = oracle.read_begins(PLACE);
                    oracle.read_ends(reader, cached, Found::Written(stamp(1, 1)));
                }
                assert_eq!(read(&mut oracle, Found::Nothing), 1);
                // Nobody who closes knows of it yet.
                oracle.safe(1, 1, 2, Safety::Held);
                match told {
                    Some(true) => oracle.failed(1, 1),
                    Some(false) => oracle.safe(1, 1, 2, Safety::Stable),
                    None => {}
                }
                if told == Some(true) {
                    assert_eq!(read(&mut oracle, Found::Nothing), 0);
                }
                assert_eq!(oracle.verdict().len(), wrong, "{told:?} {shown_to:?}");
            }
        }
    }

    #[test]
    fn a_later_process_vouches_only_for_what_was_there_when_it_came() {
        for (power_fails, allowed) in [(true, 0), (false, 1)] {
            let mut oracle = Oracle::default();
            write(&mut oracle, stamp(1, 1));
            oracle.safe(1, 1, 2, Safety::Held);
            oracle.dies(1);
            if power_fails {
                oracle.power_fails();
            }
            oracle.cut(1, false);
            oracle.safe(1, 1, 2, Safety::Stable);
            oracle.power_fails();
            assert_eq!(read(&mut oracle, Found::Nothing), allowed);
        }
    }

    #[test]
    fn what_others_have_seen_was_flushed_and_is_not_forgiven() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        oracle.failed(1, 1);
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
        assert_eq!(oracle.violations.len(), 1);
    }

    #[test]
    fn a_read_must_return_the_last_finished_write() {
        let mut oracle = Oracle::default();
        assert_eq!(read(&mut oracle, Found::Nothing), 0);
        write(&mut oracle, stamp(1, 1));
        write(&mut oracle, stamp(2, 1));
        assert_eq!(read(&mut oracle, Found::Written(stamp(2, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 1);
        assert_eq!(read(&mut oracle, Found::Nothing), 2);
        assert_eq!(read(&mut oracle, Found::Torn), 3);
        assert_eq!(read(&mut oracle, Found::Written(stamp(9, 9))), 4);
    }

    #[test]
    fn overlapping_writes_may_be_seen_in_either_order_but_not_both() {
        let mut oracle = Oracle::default();
        oracle.write_begins(PLACE, stamp(1, 1));
        oracle.write_begins(PLACE, stamp(2, 1));
        oracle.write_ends(PLACE, stamp(1, 1));
        oracle.write_ends(PLACE, stamp(2, 1));
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        write(&mut oracle, stamp(1, 2));
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 1);
    }

    #[test]
    fn what_a_read_has_shown_stays() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        // Never ends: may or may not have happened, until a read shows it.
        oracle.write_begins(PLACE, stamp(2, 1));
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Written(stamp(2, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 1);
    }

    #[test]
    fn a_cut_client_may_lose_what_it_did_not_flush_and_nothing_else() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        oracle.safe(1, 1, 2, Safety::Held);
        write(&mut oracle, stamp(1, 2));
        oracle.cut(1, true);
        write(&mut oracle, stamp(1, 3));
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
    }

    #[test]
    fn a_failed_write_stays_in_doubt_although_a_later_flush_succeeds() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        oracle.safe(1, 1, 2, Safety::Held);
        write(&mut oracle, stamp(1, 2));
        oracle.failed(1, 1);
        oracle.safe(1, 1, 3, Safety::Held);
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
    }

    #[test]
    fn a_power_loss_takes_what_was_not_synced() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        oracle.safe(1, 1, 2, Safety::Stable);
        write(&mut oracle, stamp(1, 2));
        oracle.safe(1, 1, 3, Safety::Held);
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 2))), 0);
        oracle.power_fails();
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
    }

    #[test]
    fn nobody_vouches_for_what_a_dead_process_had_not_flushed() {
        let mut oracle = Oracle::default();
        write(&mut oracle, stamp(1, 1));
        oracle.safe(1, 1, 2, Safety::Held);
        write(&mut oracle, stamp(1, 2));
        oracle.dies(1);
        oracle.cut(1, false);
        oracle.safe(1, 1, 9, Safety::Stable);
        assert_eq!(read(&mut oracle, Found::Written(stamp(1, 1))), 0);
        assert_eq!(read(&mut oracle, Found::Nothing), 1);
    }
}
