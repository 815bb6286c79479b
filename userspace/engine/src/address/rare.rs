//! Parts of an address that are as usual most of the time.

use std::ops::{Deref, DerefMut};

/// What a part is where nothing is special about it.
pub(super) trait Usual: Clone + PartialEq + 'static {
    /// That.
    const USUAL: &'static Self;
}

/// A part of an address that takes room only while it is not as usual: whoever changes it makes the room, and
/// [`Rare::tidy`] gives it back.
#[derive(Clone, Debug)]
pub(super) struct Rare<T>(Option<Box<T>>);

impl<T: Usual> Rare<T> {
    pub(super) const fn usual() -> Self {
        Self(None)
    }

    pub(super) const fn is_usual(&self) -> bool {
        self.0.is_none()
    }

    /// Gives the room back, if it is as usual again.
    pub(super) fn tidy(&mut self) {
        if self.0.as_deref().is_some_and(|there| there == T::USUAL) {
            self.0 = None;
        }
    }
}

impl<T: Usual> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::USUAL)
    }
}

impl<T: Usual> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::USUAL.clone()))
    }
}
