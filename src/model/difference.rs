//! In what a table that was read back differs from the one that is wanted.
//!
//! Pure. What is compared is the business of `kernel::nft`.

use std::fmt;

/// One way in which what is loaded is not what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The table is not there.
    NoTable,
    /// The table is hooked although it should sleep, or sleeps although it should be hooked.
    Dormant {
        /// What it is.
        is: bool,
    },
    /// A set is missing or is another one.
    Set(String),
    /// A chain is missing, or is hooked elsewhere.
    Chain(String),
    /// A chain is listed, and the kernel has no hook of it: its interface was moved away, and perhaps back.
    Unhooked(String),
    /// The rules of a chain are others.
    Rules(String),
    /// The rules of a chain decide what they should, and hand over other packets to be looked at than they should, or none.
    Reports(String),
    /// There is more in the table than should be.
    Foreign,
    /// It could not be read: somebody changes nf_tables in a loop.
    Restless,
}

impl Difference {
    /// Whether a packet may fare otherwise for it.
    #[must_use]
    pub fn decides(&self) -> bool {
        !matches!(self, Self::Reports(_))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("the table is gone"),
            Self::Dormant { is: true } => f.write_str("the table is dormant"),
            Self::Dormant { is: false } => f.write_str("the table is awake"),
            Self::Set(name) => write!(f, "set {name} is missing or altered"),
            Self::Chain(name) => write!(f, "chain {name} is missing or hooked elsewhere"),
            Self::Unhooked(name) => write!(f, "chain {name} is listed, but hooked nowhere"),
            Self::Rules(name) => write!(f, "the rules of chain {name} are altered"),
            Self::Reports(name) => write!(f, "what chain {name} drops is not reported as it should be"),
            Self::Restless => f.write_str("the table cannot be read: nf_tables changes all the time there"),
            Self::Foreign => f.write_str("there is something in the table that does not belong there"),
        }
    }
}

/// Several in one line.
#[must_use]
pub fn joined<T: fmt::Display>(differences: &[T]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
