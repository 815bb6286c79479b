//! Values of which many in a row are the same.

use std::{borrow::Borrow, sync::Arc};

/// Lets those share one place that come one after the other and are the same: names of interfaces, ways to claim.
#[derive(Debug)]
pub(crate) struct Alike<T: ?Sized> {
    latest: Option<Arc<T>>,
}

// Neither is derived: that would ask the same of the values.
impl<T: ?Sized> Default for Alike<T> {
    fn default() -> Self {
        Self { latest: None }
    }
}

impl<T: ?Sized> Clone for Alike<T> {
    fn clone(&self) -> Self {
        Self { latest: self.latest.clone() }
    }
}

impl<T: PartialEq + ?Sized> Alike<T> {
    /// A place that has this value: the latest one, or a new one.
    pub(crate) fn share(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        match &self.latest {
            Some(latest) if **latest == *value.borrow() => Arc::clone(latest),
            Some(_) | None => Arc::clone(self.latest.insert(value.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_in_a_row_share_a_place_and_others_do_not() {
        let mut names = Alike::<str>::default();
        let [one, same, other, again] = ["eth0", "eth0", "eth1", "eth0"].map(|name| names.share(name));
        assert!(Arc::ptr_eq(&one, &same));
        assert_eq!([&*other, &*again], ["eth1", "eth0"]);
        assert!(!Arc::ptr_eq(&one, &again));
    }
}
