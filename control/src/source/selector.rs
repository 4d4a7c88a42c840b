//! Label selectors as the Kubernetes API has them (E1.21), and as kubectl prints them.

use std::collections::BTreeMap;
use std::fmt;

/// matchLabels AND matchExpressions; an empty selector selects everything (E1.19). An absent one is an `Option`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// `matchLabels`.
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`.
    pub expressions: Vec<Requirement>,
}

/// One item of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// One or more for In and NotIn, none otherwise.
    pub values: Vec<String>,
}

/// What a requirement asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Operator {
    /// How the API spells it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

impl Selector {
    /// Tells whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.expressions.is_empty()
    }

    /// Tells whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)) && self.expressions.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    /// Tells whether an object with these labels meets it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    /// As kubectl prints selectors: `team=db,env in (a,b),!old`; nothing for the empty one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut comma = |f: &mut fmt::Formatter<'_>| if std::mem::take(&mut first) { Ok(()) } else { f.write_str(",") };
        for (key, value) in &self.match_labels {
            comma(f)?;
            write!(f, "{key}={value}")?;
        }
        for requirement in &self.expressions {
            comma(f)?;
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, operator, values } = self;
        match operator {
            Operator::In => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }
    fn expression(key: &str, operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|v| v.to_string()).collect();
        Selector { match_labels: BTreeMap::new(), expressions: vec![Requirement { key: key.into(), operator, values }] }
    }

    #[test]
    fn not_in_and_does_not_exist_match_objects_without_the_key_e1_21() {
        let (with, other, without) = (labels(&[("a", "1")]), labels(&[("a", "2")]), labels(&[("b", "1")]));
        for (operator, values, expected) in [
            (Operator::In, &["1"][..], [true, false, false]),
            (Operator::NotIn, &["1"], [false, true, true]),
            (Operator::Exists, &[], [true, true, false]),
            (Operator::DoesNotExist, &[], [false, false, true]),
        ] {
            let selector = expression("a", operator, values);
            assert_eq!([&with, &other, &without].map(|l| selector.matches(l)), expected, "{selector}");
        }
    }

    #[test]
    fn labels_and_expressions_must_both_hold_e1_21() {
        let mut selector = expression("env", Operator::In, &["a", "b"]);
        selector.match_labels = labels(&[("team", "db")]);
        assert!(selector.matches(&labels(&[("team", "db"), ("env", "b")])));
        assert!(!selector.matches(&labels(&[("team", "db")])));
        assert!(!selector.matches(&labels(&[("env", "b")])));
        assert_eq!(selector.to_string(), "team=db,env in (a,b)");
        assert!(Selector::default().matches(&labels(&[])));
    }
}
