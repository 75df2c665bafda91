//! What a user is told when the managers have no leader: who is missing, since when, what goes on, and what to type.

use std::time::Duration;

/// A manager with a vote, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its host name, or its address where that is not known.
    pub name: String,
    /// Where it is reached.
    pub addr: String,
    /// How long it has not been heard from; `None` while it is.
    pub missing: Option<Duration>,
}

/// Plain sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// What is wrong, worst first.
    pub problems: Vec<String>,
    /// What to do, one step each.
    pub cures: Vec<String>,
}

const GOES_ON: &str = "containers, their networks and published ports go on; nothing is changed, moved or replaced \
                       meanwhile, and no node can join";

/// On a manager, for which no leader has been there for so long. `voters` are all that vote, this one among them.
pub fn without_leader(voters: &[Voter], leaderless: Duration) -> Words {
    let missing: Vec<&Voter> = voters.iter().filter(|voter| voter.missing.is_some()).collect();
    let (all, here, needed) = (voters.len(), voters.len() - missing.len(), voters.len() / 2 + 1);
    let since = seconds(leaderless);
    if here >= needed {
        let problem = format!(
            "no leader for {since}, though {here} of {all} managers reach each other and {needed} are enough; they \
             should agree on one within seconds"
        );
        return Words { problems: vec![problem, GOES_ON.into()], cures: Vec::new() };
    }
    let mut problems = vec![format!(
        "no leader for {since}: {here} of {all} managers can be reached from here, and more than half, {needed}, must \
         be online and reach each other"
    )];
    problems.extend(missing.iter().map(|voter| {
        let since = seconds(voter.missing.unwrap_or_default());
        format!("manager {} ({}) has not been heard from for {since}", voter.name, voter.addr)
    }));
    problems.push(GOES_ON.into());
    let names: Vec<&str> = missing.iter().map(|voter| voter.name.as_str()).collect();
    let back = needed - here;
    let whom = match (names.as_slice(), back) {
        ([one], _) => (*one).to_owned(),
        (all, back) if back == all.len() => all.join(" and "),
        (all, back) => format!("{back} of {}", all.join(", ")),
    };
    let cures = vec![
        format!(
            "bring back {whom}: start the machine, or its daemon (`systemctl start rswarm`), or mend the network \
             between; the cluster then goes on by itself"
        ),
        "only if they are lost for good: `rswarm init --force-new-cluster` here lets this manager go on alone, with \
         the state it has; whichever comes back after all then types `rswarm rejoin`"
            .into(),
    ];
    Words { problems, cures }
}

/// On a node that runs no manager, which no leader has answered for so long; `None` if none ever did.
pub fn without_contact(managers: &[Voter], silent: Option<Duration>) -> Words {
    let since = silent.map_or("since its daemon started".into(), |silent| format!("for {}", seconds(silent)));
    let mut problems =
        vec![format!("this node has not heard from a leader {since}; its containers go on running")];
    problems.extend(managers.iter().map(|manager| match manager.missing {
        Some(missing) => format!("manager {} has not answered for {}", manager.name, seconds(missing)),
        None => format!("manager {} answers, and has no leader either", manager.name),
    }));
    let all = managers.len();
    let mut cures = vec![format!(
        "bring managers back until more than half of the {all} are online and reach each other; this node then \
         finds the leader by itself, and `rswarm status` on a manager tells more"
    )];
    if managers.iter().any(|manager| manager.missing.is_some()) {
        cures.push(
            "only if more than half of the managers are lost for good: `rswarm init --force-new-cluster` on one that \
             survived"
                .into(),
        );
    }
    Words { problems, cures }
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..120 => format!("{} s", time.as_secs()),
        120..7200 => format!("{} min", time.as_secs() / 60),
        more => format!("{} h", more / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn voters(missing: &[Option<u64>]) -> Vec<Voter> {
        let voter = |(at, missing): (usize, &Option<u64>)| Voter {
            name: format!("n{}", at + 1),
            addr: format!("10.0.0.{}:2377", at + 1),
            missing: missing.map(Duration::from_secs),
        };
        missing.iter().enumerate().map(voter).collect()
    }

    fn check(words: &Words, expected: &Expect) {
        let list = |lines: &[String]| lines.iter().map(|line| format!("- {line}\n")).collect::<String>();
        expected.assert_eq(&format!("{}={}", list(&words.problems), list(&words.cures)));
    }

    #[test]
    fn the_last_of_three_says_who_is_missing_and_both_ways_out() {
        let words = without_leader(&voters(&[None, Some(12), Some(300)]), Duration::from_secs(11));
        check(
            &words,
            &expect![[r"
            - no leader for 11 s: 1 of 3 managers can be reached from here, and more than half, 2, must be online and reach each other
            - manager n2 (10.0.0.2:2377) has not been heard from for 12 s
            - manager n3 (10.0.0.3:2377) has not been heard from for 5 min
            - containers, their networks and published ports go on; nothing is changed, moved or replaced meanwhile, and no node can join
            =- bring back 1 of n2, n3: start the machine, or its daemon (`systemctl start rswarm`), or mend the network between; the cluster then goes on by itself
            - only if they are lost for good: `rswarm init --force-new-cluster` here lets this manager go on alone, with the state it has; whichever comes back after all then types `rswarm rejoin`
        "]],
        );
    }

    #[test]
    fn an_election_is_no_reason_to_type_anything() {
        let words = without_leader(&voters(&[None, None, Some(2)]), Duration::from_secs(2));
        assert!(words.cures.is_empty() && words.problems[0].contains("2 of 3"), "{words:?}");
    }

    #[test]
    fn all_that_are_needed_are_named() {
        let whom = |missing: &[Option<u64>]| {
            let words = without_leader(&voters(missing), Duration::from_secs(9));
            words.cures[0].split(':').next().unwrap_or_default().to_owned()
        };
        assert_eq!(whom(&[None, Some(9)]), "bring back n2");
        assert_eq!(whom(&[None, Some(9), Some(9), Some(9), Some(9)]), "bring back 2 of n2, n3, n4, n5");
        assert_eq!(whom(&[None, Some(9), Some(9), Some(9)]), "bring back 2 of n2, n3, n4");
    }

    #[test]
    fn a_worker_says_which_managers_answer() {
        let words = without_contact(&voters(&[None, Some(7)]), Some(Duration::from_secs(8)));
        check(
            &words,
            &expect![[r"
            - this node has not heard from a leader for 8 s; its containers go on running
            - manager n1 answers, and has no leader either
            - manager n2 has not answered for 7 s
            =- bring managers back until more than half of the 2 are online and reach each other; this node then finds the leader by itself, and `rswarm status` on a manager tells more
            - only if more than half of the managers are lost for good: `rswarm init --force-new-cluster` on one that survived
        "]],
        );
    }
}
