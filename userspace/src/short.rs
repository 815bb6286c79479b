//! Short texts that need no place of their own.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A text of at most [`Short::MAX`] bytes: a time, a MAC. Thousands of events in a row then leave no trail of small pieces
/// behind in memory.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Short {
    length: u8,
    bytes: [u8; Self::MAX],
}

impl Short {
    /// What a time takes, RFC 3339 with nanoseconds.
    const MAX: usize = "1970-01-01T00:00:00.000000000Z".len();

    /// This text, up to the last character that fits.
    pub fn new(text: &str) -> Self {
        let mut short = Self::default();
        let length = text.floor_char_boundary(Self::MAX);
        short.bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        short.length = u8::try_from(length).unwrap_or(0);
        short
    }
}

impl Deref for Short {
    type Target = str;

    fn deref(&self) -> &str {
        // Only whole characters get in.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Serialize for Short {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let short = Self::new(&text);
        if *short == *text { Ok(short) } else { Err(D::Error::custom("a text that is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_what_it_was_made_of_and_a_long_one_ends_with_a_whole_character() {
        for text in ["", "02:00:00:00:00:0a", "2026-11-22T22:41:07.000000001Z"] {
            assert_eq!(&*Short::new(text), text);
            let read: Short = serde_json::from_str(&serde_json::to_string(text).unwrap()).unwrap();
            assert_eq!(read, Short::new(text));
        }
        assert_eq!(&*Short::new(&format!("{}é", "x".repeat(29))), "x".repeat(29));
        assert!(serde_json::from_str::<Short>(&format!("\"{}\"", "x".repeat(31))).is_err());
    }
}
