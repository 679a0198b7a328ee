//! A run from its beginning to its verdict: steps, with the events of the schedule in between, until the clients are done;
//! then a look at what is left.

use crate::audit::{Audit, Tree};
use crate::cluster::{Node, Outcome, Parts, node_id};
use crate::events::Event;
use crate::shared::Done;
use crate::walker;
use godrive_disk::{Disk, SimulatedDisk};
use godrive_proto::admin::Status;
use std::time::Duration;
use turmoil::Sim;

/// After the workload's end: closing and verifying everything must be done within this.
const PATIENCE: Duration = Duration::from_secs(90);
const HEALED_AFTER: Duration = Duration::from_secs(300);
/// Damage that nobody reads is found by the scrub, which pauses for so long between two passes.
const SCRUB_PAUSE: Duration = Duration::from_secs(60);
/// What was found is repaired within this.
const REPAIRED_AFTER: Duration = Duration::from_secs(60);
const REFILL_EVERY: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Clients that come at the end, only to look.
const WALKERS: [u16; 2] = [90, 91];

impl Parts {
    /// Steps until every client has finished, doing what the schedule says on the way.
    pub fn drive(&mut self, sim: &mut Sim<'_>) -> Result<(), String> {
        let schedule = std::mem::take(&mut self.plan.schedule);
        let mut schedule = schedule.into_iter().peekable();
        loop {
            let delayed = self.shared.with(|notes| notes.delayed);
            while let Some((_, event)) = schedule.next_if(|(at, _)| *at + delayed <= sim.elapsed()) {
                tracing::info!(at = ?sim.elapsed(), ?event, "event");
                let waited = match event {
                    Event::Settle => self.put_off(sim, Self::settle),
                    Event::Emptied(node) => self.put_off(sim, |parts, sim| parts.emptied(sim, node)),
                    Event::Balance(spare_bytes) => {
                        self.put_off(sim, |parts, sim| parts.balanced(sim, spare_bytes))
                    }
                    Event::SameMembers => self.same_members(),
                    event => {
                        self.happen(sim, &event);
                        continue;
                    }
                };
                waited?;
                break;
            }
            sim.step().map_err(|error| error.to_string())?;
            let clients = usize::from(self.plan.workload.clients);
            let (finished, delayed) = self.shared.with(|notes| (notes.finished.len(), notes.delayed));
            if finished == clients {
                return Ok(());
            }
            if sim.elapsed() > self.plan.workload.until + delayed + PATIENCE {
                let doing = self.shared.with(|notes| notes.doing.clone());
                return Err(format!("not finished {PATIENCE:?} after the workload's end: {doing:?}"));
            }
        }
    }

    pub fn audit(&self) -> Audit<'_> {
        Audit { disks: &self.disks, cluster: self.cluster, replicas: self.plan.replicas.into() }
    }

    /// Everything that follows is put off until the cluster is as it should be.
    fn put_off<'a>(
        &mut self,
        sim: &mut Sim<'a>,
        wait: impl FnOnce(&mut Self, &mut Sim<'a>) -> Result<(), String>,
    ) -> Result<(), String> {
        let began = sim.elapsed();
        self.shared.with(|notes| notes.settling = true);
        let waited = wait(self, sim);
        tracing::info!(took = ?(sim.elapsed() - began), "waited");
        self.shared.with(|notes| {
            notes.settling = false;
            notes.delayed += sim.elapsed() - began;
        });
        waited
    }

    fn settle(&mut self, sim: &mut Sim<'_>) -> Result<(), String> {
        let limit = self.healed_after(sim);
        self.wait_until(sim, limit, "the cluster did not heal", |audit| audit.incomplete())?;
        self.wounded = false;
        Ok(())
    }

    /// What is damaged on a slave's disk is found in one pass of the scrub and then repaired. How much is left of the time for that, from
    /// the last event on.
    fn healed_after(&self, sim: &Sim<'_>) -> Duration {
        if !self.wounded {
            return HEALED_AFTER;
        }
        let used =
            |disk: &SimulatedDisk| disk.space().map_or(0, |space| space.total_bytes - space.free_bytes);
        let slaves = (1..=self.plan.slaves).map(Node::Slave);
        let most = slaves.map(|slave| self.disks_of(slave).map(used).sum::<u64>()).max().unwrap_or(0);
        let pass = most as f64 / godrive_slave::Config::default().scrub_bytes_per_s as f64;
        let limit = SCRUB_PAUSE + Duration::from_secs_f64(pass) + REPAIRED_AFTER;
        limit.saturating_sub(sim.elapsed() - self.disturbed_at)
    }

    /// Of a drained slave, what left its chunks is still being deleted. One that is forgotten may have been silent for so
    /// long that this was not waited for.
    fn emptied(&mut self, sim: &mut Sim<'_>, slave: Node) -> Result<(), String> {
        let node = node_id(slave);
        let mut forgotten = false;
        self.wait_for_status(sim, "a slave was not emptied", |status| {
            let known = status.nodes.iter().find(|known| known.node == node);
            forgotten = known.is_none();
            known.is_none_or(|known| known.intent == "draining" && known.replicas == 0)
        })?;
        let members: Vec<_> = self.audit().placed()?.into_iter().filter(|(_, m)| m.contains(&node)).collect();
        if !members.is_empty() {
            return Err(format!("{slave} is said to be empty and is a member: {members:?}"));
        }
        if forgotten {
            return Ok(());
        }
        self.wait_until(sim, HEALED_AFTER, "an empty slave still holds something", |audit| {
            audit.held_at(slave)
        })
    }

    /// What the disks give back meanwhile is taken from them again, or they would be as empty as the new one.
    fn balanced(&mut self, sim: &mut Sim<'_>, spare_bytes: u64) -> Result<(), String> {
        let mut next = sim.elapsed();
        let shared = self.shared.clone();
        let began = sim.elapsed();
        loop {
            if sim.elapsed() >= next {
                self.fill(spare_bytes);
                next = sim.elapsed() + REFILL_EVERY;
            }
            let status = shared.with(|notes| notes.desk.status_since(began).cloned());
            if status.as_ref().is_some_and(|status| status.rebalance.done > 0) {
                return Ok(());
            }
            if sim.elapsed() - began > HEALED_AFTER {
                return Err(format!("nothing moved to level disks within {HEALED_AFTER:?}: {status:?}"));
            }
            sim.step().map_err(|error| error.to_string())?;
        }
    }

    /// Of the chunks that were there when the members were noted.
    fn same_members(&self) -> Result<(), String> {
        let now = self.audit().placed()?;
        for (chunk, before) in &self.noted_members {
            if let Some(now) = now.get(chunk).filter(|now| *now != before) {
                return Err(format!("chunk {chunk} had the members {before:?} and has {now:?}"));
            }
        }
        Ok(())
    }

    /// Until the master, asked from now on, says so.
    fn wait_for_status(
        &self,
        sim: &mut Sim<'_>,
        what: &str,
        mut is_so: impl FnMut(&Status) -> bool,
    ) -> Result<(), String> {
        let began = sim.elapsed();
        while !self.shared.with(|notes| notes.desk.status_since(began).is_some_and(&mut is_so)) {
            if sim.elapsed() - began > HEALED_AFTER {
                let last = self.shared.with(|notes| notes.desk.status_since(began).cloned());
                return Err(format!("{what} within {HEALED_AFTER:?}: {last:?}"));
            }
            sim.step().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn wait_until(
        &mut self,
        sim: &mut Sim<'_>,
        limit: Duration,
        what: &str,
        left: impl Fn(Audit<'_>) -> Vec<String>,
    ) -> Result<(), String> {
        let began = sim.elapsed();
        loop {
            let findings = left(self.audit());
            if findings.is_empty() {
                return Ok(());
            }
            if sim.elapsed() - began > limit {
                return Err(format!("{what} within {limit:?}:\n      {}", findings.join("\n      ")));
            }
            tracing::debug!(first = findings[0], count = findings.len(), "not yet");
            let next = sim.elapsed() + LOOK_EVERY;
            while sim.elapsed() < next {
                sim.step().map_err(|error| error.to_string())?;
            }
        }
    }

    /// What the disks hold when everything is done, and whether all clients see the same.
    pub fn look_at_the_end(&mut self, sim: &mut Sim<'_>) -> Result<(), String> {
        if self.plan.workload.may_be_unreadable || self.plan.lying_disks {
            return Ok(());
        }
        let limit = self.healed_after(sim);
        self.wait_until(sim, limit, "the cluster did not come to rest", |audit| audit.wrong_at_rest())?;
        for number in WALKERS {
            self.add_mount(sim, number, 0, move |fs, shared, _| walker::walk(number, fs, shared));
        }
        let until = sim.elapsed() + PATIENCE;
        while self.shared.with(|notes| notes.seen.len()) < WALKERS.len() {
            sim.step().map_err(|error| error.to_string())?;
            if sim.elapsed() > until {
                return Err(format!("who came to look has not seen everything after {PATIENCE:?}"));
            }
        }
        let tree = self.audit().tree().map_err(|fault| fault.to_string())?;
        let seen = self.shared.with(|notes| std::mem::take(&mut notes.seen));
        let mut all = seen.values();
        if let (Some(one), Some(other)) = (all.next(), all.next())
            && one != other
        {
            return Err(format!("two clients see two trees:\n{one:?}\n{other:?}"));
        }
        for one in seen.values() {
            let one: Tree =
                one.iter().map(|(path, (kind, size, _))| (path.clone(), (*kind, *size))).collect();
            if one != tree {
                return Err(format!("a client sees another tree than the master's:\n{one:?}\n{tree:?}"));
            }
        }
        self.wait_until(sim, HEALED_AFTER, "who only looked left something", |audit| audit.wrong_at_rest())?;
        self.audited = true;
        Ok(())
    }

    pub fn outcome(self, sim: &Sim<'_>, ended: Result<(), String>) -> Outcome {
        self.shared.with(|notes| {
            let mut failures = notes.oracle.verdict();
            let (checked, mut wrong) = notes.histories.verdict();
            failures.append(&mut wrong);
            failures.append(&mut notes.problems);
            failures.extend(ended.err());
            let refused = notes.refused.iter().filter(|(node, _)| !self.may_refuse.contains(node));
            failures.extend(refused.map(|(node, why)| format!("{node} does not start: {why}")));
            if notes.acknowledged.len() < self.plan.at_least {
                let (had, least) = (notes.acknowledged.len(), self.plan.at_least);
                failures.push(format!("too little was acknowledged: {had} operations, not {least}"));
            }
            for span in &self.plan.progress {
                let within = |(client, at): &&(u16, Duration)| {
                    *client == span.client && (span.from + notes.delayed..span.to + notes.delayed).contains(at)
                };
                let operations = notes.acknowledged.iter().filter(within).count();
                if operations < span.operations {
                    failures.push(format!(
                        "too little progress: {operations} operations of client {} between {:?} and {:?}, not {}",
                        span.client, span.from, span.to, span.operations
                    ));
                }
            }
            for window in &self.plan.windows {
                let later = |at| at + notes.delayed;
                let within = |done: &&Done| {
                    done.client == window.client
                        && window.kinds.contains(&done.kind)
                        && done.began >= later(window.begun)
                        && (later(window.from)..later(window.to)).contains(&done.ended)
                };
                let operations: Vec<&Done> = notes.done.iter().filter(within).collect();
                if !window.operations.contains(&operations.len()) {
                    let first = operations.first();
                    failures.push(format!("{} operations, which is wrong: {window:?}; {first:?}", operations.len()));
                }
            }
            Outcome {
                trace: self.trace.digest(),
                tally: notes.oracle.tally,
                checked,
                acknowledged: notes.acknowledged.len(),
                virtual_time: sim.elapsed(),
                errors: std::mem::take(&mut notes.errors),
                faults: self.faults.clone(),
                audited: self.audited,
                failures,
            }
        })
    }
}
