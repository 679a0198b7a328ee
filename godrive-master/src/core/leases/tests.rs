//! Runs the scripts beside this file: commands at the margin, what follows from them indented.
//! `GOLDEN=write` rewrites what follows; read the difference before you keep it.

use super::*;
use crate::core::standstill::Watch;
use godrive_proto::lease::Mode;
use godrive_proto::lease::Release;
use godrive_proto::time::Instant;
use godrive_proto::{LeaseId, Term};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

type Wants = Vec<(Ino, Need)>;

struct Script {
    leases: Leases,
    now: Instant,
    asked: BTreeMap<WaiterId, (SessionId, Wants)>,
    out: String,
}

fn ms(text: &str) -> Instant {
    Instant(text.parse::<u64>().unwrap() * 1_000_000)
}

fn number(text: &str) -> u64 {
    text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

fn session(text: &str) -> SessionId {
    SessionId(number(text))
}

/// `term.counter`
fn lease_id(text: &str) -> LeaseId {
    let (term, counter) = text.split_once('.').unwrap();
    LeaseId((number(term) << 40) | number(counter))
}

fn show_id(id: LeaseId) -> String {
    format!("{}.{}", id.0 >> 40, id.0 & ((1 << 40) - 1))
}

fn want(text: &str) -> (Ino, Need) {
    let (need, ino) = text.split_once(':').unwrap();
    let need = match need {
        "read" => Need::Read,
        "share" => Need::Share,
        "change" => Need::Change,
        "own" => Need::Own,
        other => panic!("no such need: {other}"),
    };
    (Ino(number(ino)), need)
}

fn keeps(text: &str) -> Option<Mode> {
    match text {
        "none" => None,
        "shared" => Some(Mode::Shared),
        "exclusive" => Some(Mode::Exclusive),
        other => panic!("no such mode: {other}"),
    }
}

impl Script {
    fn new(term: u64) -> Self {
        let settings = Settings {
            revoked_after: Duration::from_secs(8),
            held_at_least: Duration::from_millis(10),
            recall_again_after: Duration::from_millis(100),
        };
        Self {
            leases: Leases::new(Term(term), settings),
            now: Instant(0),
            asked: BTreeMap::new(),
            out: String::new(),
        }
    }

    fn say(&mut self, line: std::fmt::Arguments) {
        writeln!(self.out, "    {line}").unwrap();
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut effects = Vec::new();
        match words.as_slice() {
            ["at", time] => {
                self.now = ms(time);
                self.leases.tick(self.now, &mut effects);
            }
            ["stand-still", until] => {
                let mut watch = Watch::default();
                watch.look(self.now);
                self.now = ms(until);
                let standstill = watch.look(self.now).unwrap();
                self.leases.stood_still(&standstill);
                self.leases.tick(self.now, &mut effects);
            }
            ["open", who] => self.leases.opened(self.now, session(who)),
            ["recovering", who] => self.leases.recovering(self.now, session(who)),
            ["renew", who] => assert!(self.leases.renewed(self.now, session(who))),
            ["resume", who, rest @ ..] => {
                let owned: Vec<_> = rest
                    .iter()
                    .filter_map(|word| word.split_once('#'))
                    .map(|(ino, id)| (Ino(number(ino)), lease_id(id)))
                    .collect();
                let open: Vec<_> = rest
                    .iter()
                    .filter_map(|word| word.strip_prefix("open:"))
                    .map(|ino| Ino(number(ino)))
                    .collect();
                let lost = self.leases.resumed(self.now, session(who), &owned, &open, true, &mut effects);
                self.say(format_args!("lost {lost:?}"));
            }
            ["end", who] => self.leases.ended(self.now, session(who), &mut effects),
            ["take-over", who] => self.leases.taken_over(self.now, session(who), &mut effects),
            ["fence", ino] => self.leases.fence(Ino(number(ino))),
            ["removed", ino] => self.leases.removed(self.now, Ino(number(ino)), &mut effects),
            ["unfence", ino] => self.leases.unfence(self.now, Ino(number(ino)), &mut effects),
            ["ask", waiter, who, rest @ ..] => {
                let wants = rest.iter().map(|word| want(word)).collect();
                self.ask(WaiterId(number(waiter)), session(who), wants, &mut effects);
            }
            ["cancel", waiter] => self.leases.done(self.now, WaiterId(number(waiter)), &mut effects),
            ["release", who, lease, kept, rest @ ..] => {
                let (ino, id) = lease.split_once('#').unwrap();
                let release = Release {
                    ino: Ino(number(ino)),
                    id: lease_id(id),
                    keeps: keeps(kept),
                    open: rest.contains(&"open"),
                };
                self.leases.released(self.now, session(who), &release, &mut effects);
            }
            ["fail", who, lease] => {
                let (ino, id) = lease.split_once('#').unwrap();
                self.leases.recall_failed(
                    self.now,
                    session(who),
                    Ino(number(ino)),
                    lease_id(id),
                    &mut effects,
                );
            }
            ["opened-elsewhere", who, ino] => {
                let open = self.leases.open_elsewhere(session(who), Ino(number(ino)));
                self.say(format_args!("{open:?}"));
            }
            ["holds", who, ino] => {
                let mode = self.leases.mode(session(who), Ino(number(ino)));
                self.say(format_args!("{mode:?}"));
            }
            other => panic!("no such command: {other:?}"),
        }
        self.follow(effects);
    }

    fn ask(&mut self, id: WaiterId, who: SessionId, wants: Wants, effects: &mut Vec<Effect>) {
        match self.leases.ask(self.now, id, who, &wants, effects) {
            Turn::Wait => {
                self.say(format_args!("w{} waits", id.0));
                self.asked.insert(id, (who, wants));
            }
            Turn::Go { without_grant } => {
                self.say(format_args!("w{} goes", id.0));
                for (ino, need) in wants {
                    let mode = if need == Need::Own { Mode::Exclusive } else { Mode::Shared };
                    let lease = match without_grant.contains(&ino) {
                        true => None,
                        false => self.leases.grant(self.now, who, ino, mode),
                    };
                    match lease {
                        Some(lease) => {
                            self.say(format_args!("s{who} has i{ino}#{} {:?}", show_id(lease.id), lease.mode))
                        }
                        None => self.say(format_args!("s{who} sees i{ino} once")),
                    }
                }
                self.leases.done(self.now, id, effects);
            }
        }
    }

    fn follow(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            match effects.remove(0) {
                Effect::Ready(id) => {
                    if let Some((who, wants)) = self.asked.remove(&id) {
                        self.ask(id, who, wants, &mut effects);
                    }
                }
                Effect::Recall(who, recall) => self.say(format_args!(
                    "recall i{}#{} from s{who}, may keep {:?}",
                    recall.ino,
                    show_id(recall.id),
                    recall.may_keep
                )),
                Effect::Lapsed(who) => self.say(format_args!("s{who} has lapsed")),
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "rewrites the script on purpose")]
fn run(name: &str, script: &str) {
    let mut state = Script::new(1);
    for line in script.lines().filter(|line| !line.starts_with("    ")) {
        writeln!(state.out, "{line}").unwrap();
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] | ["#", ..] => {}
            ["term", term] => {
                let out = std::mem::take(&mut state.out);
                state = Script::new(number(term));
                state.out = out;
            }
            _ => state.command(line),
        }
    }
    if std::env::var_os("GOLDEN").is_some() {
        let path = format!("{}/src/core/leases/scripts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, &state.out).unwrap();
        return;
    }
    assert!(state.out == script, "script {name} went differently:\n{}", state.out);
}

macro_rules! scripts {
    ($($name:ident),+) => {$(
        #[test]
        fn $name() {
            run(stringify!($name), include_str!(concat!("scripts/", stringify!($name), ".txt")));
        }
    )+};
}

scripts!(sharing, owning, queueing, passing, lapsing, restarting, open_handles, standing_still, taking_over);

#[test]
fn an_inode_that_was_said_to_be_open_and_is_closed_keeps_nothing_open() {
    let mut leases = Script::new(1).leases;
    let (now, holder, other, ino) = (Instant(0), SessionId(1), SessionId(2), Ino(7));
    leases.opened(now, holder);
    leases.opened(now, other);
    let lease = leases.grant(now, holder, ino, Mode::Shared).unwrap();
    leases.released(now, holder, &Release { ino, id: lease.id, keeps: None, open: true }, &mut Vec::new());
    assert_eq!(leases.open_elsewhere(other, ino), [holder]);
    leases.closed(holder, ino);
    assert_eq!(leases.open_elsewhere(other, ino), []);
}
