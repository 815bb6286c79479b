//! Exit codes.

use serde::{Deserialize, Serialize};

/// How a command ended; the discriminants are the exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or refused for what the host is.
    Failed = 1,
    /// Usage, or refused for what the argument says.
    Usage = 2,
    /// Claimed on the wire, or on the interface already.
    Taken = 3,
    /// No daemon.
    NoDaemon = 4,
    /// Not permitted.
    NotPermitted = 5,
}

impl Exit {
    /// Of many, the worst counts: 2, 5, 4, 1, 3, 0.
    pub fn worst(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }

    const fn rank(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Taken => 1,
            Self::Failed => 2,
            Self::NoDaemon => 3,
            Self::NotPermitted => 4,
            Self::Usage => 5,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_the_worst_counts() {
        let worst_first =
            [Exit::Usage, Exit::NotPermitted, Exit::NoDaemon, Exit::Failed, Exit::Taken, Exit::Done];
        for (n, worse) in worst_first.iter().enumerate() {
            for better in &worst_first[n..] {
                assert_eq!(worse.worst(*better), *worse);
                assert_eq!(better.worst(*worse), *worse);
            }
        }
    }
}
