//! Rules as far as they decide: without what only hands packets over.

use super::expression::Expression;

/// The rules without what only reports packets at their ends. There it decides nothing; anywhere else a limit decides what
/// is reached behind it.
pub(super) fn without_reports(rules: &[Vec<Expression>]) -> impl Iterator<Item = &[Expression]> {
    fn decides(rule: &[Expression]) -> &[Expression] {
        match rule {
            [rest @ .., Expression::Limit { .. }, Expression::Log { .. }] | [rest @ .., Expression::Log { .. }] => rest,
            rule => rule,
        }
    }
    rules.iter().map(|rule| decides(rule)).filter(|rule| !rule.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::expression::DROP;
    use super::*;

    #[test]
    fn only_reports_that_decide_nothing_are_passed_over() {
        let (limit, log) = (
            Expression::Limit { per_second: 1, burst: 1 },
            Expression::Log { group: 1, length: 1, prefix: Vec::new() },
        );
        let drop = || vec![Expression::Counter, Expression::Verdict { code: DROP }];
        let wanted = vec![drop()];
        for (rules, is_the_same) in [
            (vec![vec![limit.clone(), log.clone()], drop()], true),
            (vec![vec![log.clone()], drop()], true),
            (vec![drop()], true),
            (vec![[vec![limit.clone()], drop()].concat()], false),
            (vec![[vec![limit.clone(), log.clone()], drop()].concat()], false),
            (vec![vec![limit.clone()], drop()], false),
            (vec![vec![limit, log]], false),
        ] {
            assert_eq!(without_reports(&rules).eq(without_reports(&wanted)), is_the_same, "{rules:?}");
        }
    }
}
