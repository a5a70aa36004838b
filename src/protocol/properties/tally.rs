use std::iter;

use proptest::prelude::*;

use super::SEVERAL;
use crate::protocol::{Tally, VoteResult};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Yes,
    No,
    Missing,
}

/// One answer of each node, and the same answers in another order.
fn answers() -> impl Strategy<Value = (Vec<Answer>, Vec<Answer>)> {
    let answer = prop_oneof![Just(Answer::Yes), Just(Answer::No), Just(Answer::Missing)];
    let answers = prop::collection::vec(answer, 1..=SEVERAL);
    answers.prop_flat_map(|answers| (Just(answers.clone()), Just(answers).prop_shuffle()))
}

/// The tally before the first answer and after each.
fn count(answers: &[Answer]) -> Vec<Tally> {
    let mut tally = Tally::new(answers.len());
    let after = answers.iter().map(|answer| {
        match answer {
            Answer::Yes => tally.yes(),
            Answer::No => tally.no(),
            Answer::Missing => tally.missing(),
        }
        tally
    });
    iter::once(Tally::new(answers.len())).chain(after).collect()
}

proptest! {
    #[test]
    fn a_verdict_is_final_and_the_order_of_answers_does_not_matter((answers, shuffled) in answers()) {
        let (one, other) = (count(&answers), count(&shuffled));
        for verdict in [Tally::verdict, Tally::release_verdict] {
            let verdicts: Vec<VoteResult> = one.iter().map(verdict).collect();
            let is_final = verdicts.windows(2).all(|pair| pair[0] == VoteResult::Pending || pair[0] == pair[1]);
            prop_assert!(is_final, "{verdicts:?}");
            prop_assert_eq!(one.last().map(verdict), other.last().map(verdict));
        }
        prop_assert!(one.iter().skip_while(|tally| !tally.is_free()).all(Tally::is_free));
        prop_assert!(one.iter().skip_while(|tally| !tally.is_refused()).all(Tally::is_refused));
    }

    #[test]
    fn with_all_answers_it_is_won_by_more_than_half_and_otherwise_lost((answers, _) in answers()) {
        let counted = count(&answers);
        let (all, some) = counted.split_last().expect("the count before the first answer");
        let yes = answers.iter().filter(|answer| **answer == Answer::Yes).count();
        prop_assert_eq!(all.verdict(), if 2 * yes > answers.len() { VoteResult::Won } else { VoteResult::Lost });
        prop_assert!(all.is_complete());
        prop_assert!(!some.iter().any(Tally::is_complete));
    }

    #[test]
    fn of_two_rounds_that_share_no_yes_only_one_is_won((answers, _) in answers()) {
        let taken: Vec<Answer> = answers
            .iter()
            .map(|answer| if *answer == Answer::Yes { Answer::No } else { Answer::Yes })
            .collect();
        let won = |answers: &[Answer]| count(answers).iter().any(|tally| tally.verdict() == VoteResult::Won);
        prop_assert!(!(won(&answers) && won(&taken)));
    }
}
