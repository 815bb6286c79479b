//! The states of an address and the one word that carries them to the program.

use crate::net::MacAddr;

/// The state of a managed address. The numbers are part of the map layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// Somebody else's, as far as we are concerned; its owner is recorded.
    Watched = 1,
    /// Being probed for before it is claimed (RFC 5227 §2.1.1).
    Probing = 2,
    /// Ours; the plan of announcements is under way (RFC 5227 §2.3).
    Announcing = 3,
    /// Ours; announced.
    Online = 4,
    /// Ours; challenged beyond the defence budget: answered, not defended.
    Contested = 5,
    /// Being given up: silent already, not yet off the interface.
    Yielding = 6,
    /// Silent for a while: link down or lease past.
    Suspended = 7,
    /// A claim found another owner; nothing is registered.
    Refused = 8,
    /// It was ours and went to another owner.
    Lost = 9,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Watched,
        Self::Probing,
        Self::Announcing,
        Self::Online,
        Self::Contested,
        Self::Yielding,
        Self::Suspended,
        Self::Refused,
        Self::Lost,
    ];

    /// The state with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Watched),
            2 => Some(Self::Probing),
            3 => Some(Self::Announcing),
            4 => Some(Self::Online),
            5 => Some(Self::Contested),
            6 => Some(Self::Yielding),
            7 => Some(Self::Suspended),
            8 => Some(Self::Refused),
            9 => Some(Self::Lost),
            _ => None,
        }
    }

    /// The name used in events, `status` and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Watched => "watched",
            Self::Probing => "probing",
            Self::Announcing => "announcing",
            Self::Online => "online",
            Self::Contested => "contested",
            Self::Yielding => "yielding",
            Self::Suspended => "suspended",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }

    /// Whether this host may answer for the address, its lease (if any) standing.
    pub const fn may_answer(self) -> bool {
        matches!(self, Self::Announcing | Self::Online | Self::Contested)
    }
}

/// What the program itself does about a conflict over an address that may answer (RFC 5227 §2.4). The numbers are part
/// of the map layout.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Policy {
    /// Nothing: that is user space's for now, as in the window in which an `immediate` claim is rolled back.
    #[default]
    Leave = 0,
    /// (a): gives the address up.
    Yield = 1,
    /// (b): defends it; gives it up at the second conflict within DEFEND_INTERVAL.
    Once = 2,
    /// (c): defends it, at most once in DEFEND_INTERVAL.
    Hold = 3,
}

impl Policy {
    /// The flags that say so in a [`StateWord`].
    pub const fn flags(self) -> u8 {
        (self as u8) << StateWord::POLICY_AT
    }
}

/// MAC (bits 0–47), state (48–51), flags (52–55) and generation (56–63) of an address in one aligned word, so
/// that a new MAC and a new state become visible in one store. Only user space writes it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct StateWord(u64);

impl StateWord {
    /// No address in the slot.
    pub const VACANT: Self = Self(0);
    /// Flag: the address is configured in this network namespace, so its kernel would answer for it.
    pub const LOCAL: u8 = 1;
    /// Where the [`Policy`] begins in the flags.
    const POLICY_AT: u32 = 1;

    /// A word of these parts; `flags` must fit four bits, higher bits are dropped.
    pub const fn new(mac: MacAddr, state: State, flags: u8, generation: u8) -> Self {
        Self(mac.bits() | (state as u64) << 48 | ((flags & 0xf) as u64) << 52 | (generation as u64) << 56)
    }

    /// As it stands in the map.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As it stands in the map.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The MAC that this host answers with.
    #[inline(always)]
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_bits(self.0)
    }

    /// The number of the state; 0 for a vacant slot.
    #[inline(always)]
    pub const fn state_number(self) -> u8 {
        ((self.0 >> 48) & 0xf) as u8
    }

    /// The state; `None` for a vacant slot or a number that is none.
    pub const fn state(self) -> Option<State> {
        State::from_number(self.state_number())
    }

    /// Whether the state's number is that of `state`: one compare, where [`StateWord::state`] is a jump table.
    #[inline(always)]
    pub const fn is(self, state: State) -> bool {
        self.state_number() == state as u8
    }

    /// [`State::may_answer`] of the state, without a jump table: the three have adjacent numbers.
    #[inline(always)]
    pub const fn may_answer(self) -> bool {
        self.state_number().wrapping_sub(State::Announcing as u8)
            <= State::Contested as u8 - State::Announcing as u8
    }

    /// [`StateWord::LOCAL`] is set.
    #[inline(always)]
    pub const fn is_local(self) -> bool {
        self.0 & (Self::LOCAL as u64) << 52 != 0
    }

    /// What the program does about a conflict.
    #[inline(always)]
    pub const fn policy(self) -> Policy {
        match (self.0 >> (52 + Self::POLICY_AT)) & 3 {
            0 => Policy::Leave,
            1 => Policy::Yield,
            2 => Policy::Once,
            _ => Policy::Hold,
        }
    }

    /// Whether the first claim takes the address away again, which is up to user space: it is probed for, or was claimed
    /// so lately that the program leaves its defence alone.
    #[inline(always)]
    pub const fn is_provisional(self) -> bool {
        self.is(State::Probing) || (self.may_answer() && matches!(self.policy(), Policy::Leave))
    }

    /// The generation, which every claim of the address raises.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The generation plus 256, as slots name it: there 0 is none.
    #[inline(always)]
    pub const fn mark(self) -> u16 {
        (self.0 >> 56) as u16 | 256
    }
}

impl core::fmt::Debug for StateWord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StateWord")
            .field("mac", &self.mac())
            .field("state", &self.state())
            .field("local", &self.is_local())
            .field("policy", &self.policy())
            .field("generation", &self.generation())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_each_of_its_parts() {
        let mac = MacAddr::new([2, 0x11, 0x22, 0x33, 0x44, 0xff]);
        for state in State::ALL {
            for (flags, policy) in [
                (0, Policy::Leave),
                (StateWord::LOCAL, Policy::Leave),
                (StateWord::LOCAL | Policy::Once.flags(), Policy::Once),
                (Policy::Yield.flags(), Policy::Yield),
                (Policy::Hold.flags(), Policy::Hold),
            ] {
                let word = StateWord::new(mac, state, flags, 0xa5);
                assert_eq!(word.policy(), policy);
                assert_eq!(word.mac(), mac);
                assert_eq!(word.state(), Some(state));
                assert!(word.is(state));
                assert_eq!(word.is_local(), flags & StateWord::LOCAL != 0);
                assert_eq!(word.generation(), 0xa5);
                assert_eq!(word.mark(), 256 + 0xa5);
                assert_eq!(word.may_answer(), state.may_answer());
                let left = state.may_answer() && policy == Policy::Leave;
                assert_eq!(word.is_provisional(), left || state == State::Probing);
                assert_eq!(State::from_number(state as u8), Some(state));
            }
        }
        assert!(!StateWord::VACANT.may_answer());
        assert_eq!(StateWord::VACANT.state(), None);
    }
}
