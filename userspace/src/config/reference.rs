//! The reference of the configuration file, made from the table that the parser uses.

use std::fmt::Write as _;

use super::schema::{Change, Kind, SECTIONS};

/// docs/configuration.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# The configuration file\n\n\
         Made by `cargo xtask reference` from the table that parses and checks the file \
         (userspace/src/config/schema.rs); a test compares the two.\n\n\
         TOML, for `arpwarden run --config FILE`. `arpwarden check FILE` names every mistake in it, with its line, and \
         needs neither a daemon nor root. `arpwarden reload`, or SIGHUP to the daemon, applies the difference between the \
         file as it is and as it was applied last, and nothing else; the last column says how a change of each key is \
         applied. A file with a mistake changes nothing.\n",
    );
    for section in SECTIONS {
        // A String takes all that is written to it.
        let _ = write!(text, "\n## `{}`\n\n{}\n\n", section.title(), section.about);
        text += "| key | allowed | default | meaning | a change counts |\n| --- | --- | --- | --- | --- |\n";
        for key in section.keys {
            let allowed = match key.kind {
                Kind::Choice(words) => {
                    let words = words();
                    let words = words.iter().map(|word| format!("`\"{}\"`: {}", word.name, word.about));
                    words.collect::<Vec<_>>().join("<br>")
                }
                Kind::Flag
                | Kind::Seconds { .. }
                | Kind::Milliseconds { .. }
                | Kind::Cidr
                | Kind::Interface
                | Kind::Group
                | Kind::Users
                | Kind::Moves
                | Kind::Macs
                | Kind::Count { .. } => key.kind.allowed(),
            };
            let default = match key.default {
                Some(default) => format!("`{default}`"),
                None if key.required => "must be said".to_owned(),
                None => key.otherwise.to_owned(),
            };
            let change = match key.change {
                Change::AtOnce => "at once",
                Change::NextClaim => "with the next claim",
                Change::Anew => "at once: offline, then claimed anew",
                Change::Restart => "refused: restart the daemon",
                Change::Name => "as another section",
            };
            let _ = writeln!(text, "| `{}` | {allowed} | {default} | {} | {change} |", key.name, key.about);
        }
    }
    text
}
