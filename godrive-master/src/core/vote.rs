//! The election where replicas disagree.
//!
//! An acknowledged write lies with *every* member of its epoch. So one member's answer is enough to know it,
//! and the highest version among the members' answers misses none; stale copies of older epochs have no voice.
//! Within that version digests may still differ (bits rotted, a write was cut off differently): the
//! Boyer-Moore vote finds the one candidate that can have a majority, the recount checks that it has it, and
//! the master's record settles a tie. Nothing is elected that contradicts what was promised: below `stable`
//! never; below `held` only when every member that people have not given up as lost answered and all of them have
//! rebooted since, which is what a power loss looks like. Otherwise nothing is overwritten and people are told.

use godrive_proto::Epoch;
use godrive_proto::data::Contents;

/// What a member answered to the seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voice {
    pub epoch: Epoch,
    pub contents: Contents,
    /// Its node has started anew since the record's `held` was committed.
    pub rebooted: bool,
}

/// What the master knows.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub epoch: Epoch,
    pub held: Contents,
    pub stable: Contents,
    /// Members of the epoch, whether they answered, were silent, or were not asked because they were found corrupt.
    pub members: usize,
    /// Of these, silent ones that people have given up: what only they had is lost.
    pub lost: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Elected {
        contents: Contents,
        /// Indexes of the voices that have it.
        winners: Vec<usize>,
        /// Less than what was held, after a power loss.
        regressed: bool,
        /// Of those with a voice none has been up since the last commit: what was acknowledged and not stable may be gone,
        /// also what the record does not know of.
        restarted: bool,
    },
    /// More members must answer.
    Wait(&'static str),
    /// No safe winner although everyone answered.
    Quarantine(&'static str),
}

/// Elects the contents of the next epoch from the members' answers.
pub fn elect(known: &Known, voices: &[Voice]) -> Verdict {
    let current: Vec<&Voice> = voices.iter().filter(|voice| has_voice(known, voice)).collect();
    let all_answered = voices.len() >= known.members;
    let undecided = |why| if all_answered { Verdict::Quarantine(why) } else { Verdict::Wait(why) };
    let Some(version) = current.iter().map(|voice| voice.contents.version).max() else {
        return undecided("no member has a replica of the current epoch");
    };
    let newest: Vec<Contents> =
        current.iter().map(|voice| voice.contents).filter(|contents| contents.version == version).collect();
    let recorded = [known.held, known.stable].into_iter().find(|record| record.version == version);
    let Some(elected) = majority(&newest).or(recorded.filter(|record| newest.contains(record))) else {
        return undecided(
            "the members' digests differ, none has a majority, and the record does not settle it",
        );
    };
    // One voice against the record proves nothing: it may be a self-consistent but wrong replica.
    let support = newest.iter().filter(|contents| **contents == elected).count();
    if support < 2 && recorded.is_some_and(|record| record != elected) {
        return undecided("the only replica's digest contradicts the record");
    }
    if version < known.stable.version {
        return undecided("every answer is older than what was stable");
    }
    let regressed = version < known.held.version;
    if regressed && voices.len() + known.lost < known.members {
        return Verdict::Wait("the answers are older than what was held; a silent member may have it");
    }
    if regressed && !voices.iter().all(|voice| voice.rebooted) {
        return undecided("every answer is older than what was held, and there was no power loss");
    }
    let has_it =
        |(at, voice): (usize, &Voice)| (has_voice(known, voice) && voice.contents == elected).then_some(at);
    Verdict::Elected {
        contents: elected,
        winners: voices.iter().enumerate().filter_map(has_it).collect(),
        regressed,
        restarted: current.iter().all(|voice| voice.rebooted),
    }
}

/// A member that never got the message of its installation is as good as installed if it has exactly what was
/// recorded: nothing can have been acknowledged in an epoch that it did not take part in.
fn has_voice(known: &Known, voice: &Voice) -> bool {
    voice.epoch == known.epoch || (voice.epoch < known.epoch && voice.contents == known.held)
}

/// Boyer and Moore's vote, then the recount: the contents that more than half of the ballots name.
pub fn majority(ballots: &[Contents]) -> Option<Contents> {
    let mut candidate = *ballots.first()?;
    let mut lead = 0usize;
    for ballot in ballots {
        if lead == 0 {
            candidate = *ballot;
        }
        if *ballot == candidate { lead += 1 } else { lead -= 1 }
    }
    let count = ballots.iter().filter(|ballot| **ballot == candidate).count();
    (2 * count > ballots.len()).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::{Digest, Version};

    fn contents(version: u64, digest: char) -> Contents {
        Contents { version: Version(version), digest: Digest(digest as u128) }
    }

    /// Words: `5a` = version 5 digest a in the current epoch (7); `@6` behind it: of epoch 6; `!`: rebooted;
    /// `-`: a member that is silent; `x`: one that people have given up.
    fn outcome(held: &str, stable: &str, answers: &str) -> String {
        let parse = |word: &str| {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            contents(digits.parse().unwrap(), word[digits.len()..].chars().next().unwrap())
        };
        let words: Vec<&str> = answers.split_whitespace().collect();
        let voices: Vec<Voice> = words
            .iter()
            .filter(|word| !matches!(**word, "-" | "x"))
            .map(|word| Voice {
                epoch: word
                    .split_once('@')
                    .map_or(Epoch(7), |(_, e)| Epoch(e.trim_end_matches('!').parse().unwrap())),
                contents: parse(word),
                rebooted: word.ends_with('!'),
            })
            .collect();
        let lost = words.iter().filter(|word| **word == "x").count();
        let (held, stable, members) = (parse(held), parse(stable), words.len());
        let known = Known { epoch: Epoch(7), held, stable, members, lost };
        match elect(&known, &voices) {
            Verdict::Elected { contents, winners, regressed, restarted } => format!(
                "{}{} by {winners:?}{}{}",
                contents.version,
                char::from_u32(contents.digest.0 as u32).unwrap(),
                if regressed { " regressed" } else { "" },
                if restarted { " restarted" } else { "" }
            ),
            Verdict::Wait(_) => "wait".into(),
            Verdict::Quarantine(_) => "quarantine".into(),
        }
    }

    #[test]
    fn the_truth_table() {
        for (held, stable, answers, expected) in [
            // Everyone agrees, and knows more than the master.
            ("5a", "5a", "5a 5a 5a", "5a by [0, 1, 2]"),
            ("5a", "4z", "7c 7c 7c", "7c by [0, 1, 2]"),
            // One answer is enough: an acknowledgement needed all.
            ("5a", "5a", "6b - -", "6b by [0]"),
            ("5a", "5a", "- 5a -", "5a by [1]".replace("[1]", "[0]").as_str()),
            // The highest version wins, not the most frequent one.
            ("5a", "5a", "5a 5a 6b", "6b by [2]"),
            // Within the version: the majority, with the recount.
            ("5a", "5a", "6b 6c 6b", "6b by [0, 2]"),
            ("5a", "5a", "6b 6c 6d", "quarantine"),
            ("5a", "5a", "6b 6c -", "wait"),
            ("5a", "5a", "6b 6c 6b 6c 6b", "6b by [0, 2, 4]"),
            ("5a", "5a", "6b 6c 6c 6b", "quarantine"),
            // A tie is settled by the record, held or stable.
            ("6c", "5a", "6b 6c", "6c by [1]"),
            ("9z", "6b", "6b! 6c!", "6b by [0] regressed restarted"),
            ("6d", "5a", "6b 6c", "quarantine"),
            // A single voice does not overrule the record; two that agree do.
            ("6c", "6c", "6b", "quarantine"),
            ("6c", "6c", "6b -", "wait"),
            ("6c", "5a", "6b 6b 6c", "6b by [0, 1]"),
            // Older epochs have no voice, however many and however new.
            ("5a", "5a", "9z@6 9z@6 5a", "5a by [2]"),
            ("5a", "5a", "9z@6 9z@6 8y@6", "quarantine"),
            ("5a", "5a", "9z@6 - -", "wait"),
            // Except one that missed only the message of its installation.
            ("5a", "5a", "5a@6 - -", "5a by [0]"),
            ("5a", "5a", "5a@6 6b 5a@6", "6b by [1]"),
            // Below held only after everyone answered and rebooted; below stable never.
            ("6b", "5a", "5a! 5a! 5a!", "5a by [0, 1, 2] regressed restarted"),
            ("6b", "5a", "5a! 5a 5a!", "quarantine"),
            ("6b", "5a", "5a! 5a! -", "wait"),
            ("6b", "6b", "5a! 5a! 5a!", "quarantine"),
            ("6b", "6b", "5a! - 5a!", "wait"),
            // What only those had that people have given up is lost; nothing else is decided by giving up.
            ("6b", "5a", "5a! 5a! x", "5a by [0, 1] regressed restarted"),
            ("6b", "5a", "5a! - x", "wait"),
            ("6b", "5a", "5a! 5a x", "wait"),
            ("6b", "6b", "5a! 5a! x", "wait"),
            ("5a", "5a", "6b 6c x", "wait"),
            ("6b", "5a", "x x x", "wait"),
            // Whoever was not up since the last commit cannot tell what was acknowledged since then, and who is silent does not.
            ("5a", "4z", "5a! 5a! 5a!", "5a by [0, 1, 2] restarted"),
            ("5a", "4z", "5a! 5a 5a!", "5a by [0, 1, 2]"),
            ("5a", "4z", "5a! 5a! -", "5a by [0, 1] restarted"),
            ("5a", "4z", "5a! 9z@6 5a!", "5a by [0, 2] restarted"),
            ("5a", "4z", "5a! 5a@6 5a!", "5a by [0, 1, 2]"),
            // Nobody answers.
            ("6b", "6b", "- - -", "wait"),
            // A chunk that was never written.
            ("0e", "0e", "0e - 0e", "0e by [0, 1]"),
        ] {
            assert_eq!(outcome(held, stable, answers), expected, "held {held}, stable {stable}: {answers}");
        }
    }

    #[test]
    fn the_recount_finds_a_majority_or_none() {
        let ballots = |text: &str| text.chars().map(|digest| contents(1, digest)).collect::<Vec<_>>();
        for (text, expected) in [
            ("", None),
            ("a", Some('a')),
            ("ab", None),
            ("aab", Some('a')),
            ("abab", None),
            ("abcaa", Some('a')),
            ("abc", None),
            ("bbaaa", Some('a')),
        ] {
            assert_eq!(majority(&ballots(text)), expected.map(|digest| contents(1, digest)), "{text}");
        }
    }
}
