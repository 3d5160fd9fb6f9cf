//! Settings as text: read from TOML, written as TOML or JSON, or set one by one by name.

use super::Config;
use crate::settings::Group;
use conpet_formats::{Code, Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::path::Path;

const HINT: &str = "conpet-train stream --print-config shows every setting and its default";

impl Config {
    /// Lays a TOML file over these settings; returns the result and the names of the settings in the file.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, has a key that is not a setting, or a value of the wrong type.
    pub fn over(mut self, file: Option<&Path>) -> Result<(Self, Vec<&'static str>)> {
        let Some(path) = file else { return Ok((self, Vec::new())) };
        let text = conpet_formats::fs::read_text(path)?;
        let read = toml::Deserializer::parse(&text).and_then(|toml| Over(&mut self).deserialize(toml));
        let given = read.map_err(|e| bad(e.to_string()).in_file(path))?;
        Ok((self, given))
    }

    /// Reads settings as [`Config::toml`] writes them.
    ///
    /// # Errors
    /// See [`Config::over`].
    pub fn parse(text: &str) -> Result<Self> {
        let mut out = Self::default();
        let read = toml::Deserializer::parse(text).and_then(|toml| Over(&mut out).deserialize(toml));
        read.map_err(|e| bad(e.to_string()))?;
        Ok(out)
    }

    /// All settings, as TOML.
    ///
    /// # Errors
    /// Should not occur: all settings can be written as TOML.
    pub fn toml(&self) -> Result<String> {
        toml::to_string(self).map(|t| t.trim_end().to_owned()).map_err(|e| bad(e.to_string()))
    }

    /// Sets one setting by name; the value is TOML or an unquoted string.
    ///
    /// # Errors
    /// If there is no such setting, or the value has the wrong type.
    pub fn set(mut self, name: &str, value: &str) -> Result<Self> {
        let written = format!("x = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("x"));
        let words = toml::Value::String(value.to_owned());
        let mut read = |value| Over(&mut self).deserialize(toml::Table::from_iter([(name.to_owned(), value)]));
        // A string setting's value may look like a number, as in `params=5000`.
        let first = read(written.unwrap_or_else(|| words.clone()));
        first.or_else(|e| read(words).map_err(|_| e)).map_err(|e| bad(format!("{name}={value}: {}", e.message())))?;
        Ok(self)
    }

    /// A setting's value as it is written in TOML; `None` if there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        toml::Table::try_from(self).ok()?.remove(name).map(|v| v.to_string())
    }
}

fn bad(what: String) -> Error {
    Error::new(Code::Value, what.trim_end().to_owned()).hint(HINT)
}

/// Deserializes a map over existing settings and returns which settings it gives.
struct Over<'c>(&'c mut Config);

impl<'de> DeserializeSeed<'de> for Over<'_> {
    type Value = Vec<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Over<'_> {
    type Value = Vec<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut given = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            if !self.0.read(key, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
            given.push(key);
        }
        Ok(given)
    }
}

/// The name of a setting. It is checked while the key is read, so that the error message shows its line.
struct Key(&'static str);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a setting")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> std::result::Result<Key, E> {
                let known = Config::keys().into_iter().find(|k| *k == name);
                known.map(Key).ok_or_else(|| E::custom(format!("there is no such setting: {name:?}")))
            }
        }
        d.deserialize_identifier(Names)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(Self::keys().len()))?;
        self.write(&mut map)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;
    use crate::settings::automatic::{Memory, Trunk};
    use std::collections::BTreeSet;

    #[test]
    fn toml_and_flags_overlay_and_unknown_keys_are_refused_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let over = |c: Config, text: &str| {
            std::fs::write(&file, text).unwrap();
            c.over(Some(&file))
        };
        let (mut c, given) = over(Config::default(), "rank = 4\nlr = 1\nparams = \"1%\"\n").unwrap();
        assert_eq!(given.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["lr", "params", "rank"]));
        let mut flags = Flags::default();
        flags.services.training.lr = Some(0.25);
        assert_eq!(Config::given(&flags), ["lr"]);
        c.overlay(&flags);
        let s = &c.services;
        assert_eq!((s.lora.rank, s.training.lr, s.training.epochs, s.module.params.get()), (4, 0.25, 3, Some("1%")));
        for (text, says) in [
            ("seed = 3\nrnak = 4", ["rnak", "line 2"]),
            ("seed = 3\nrank = \"four\"", ["four", "line 2"]),
            ("schedule = \"zigzag\"", ["zigzag", "cosine"]),
            ("\ntrunk = -2", ["-2", "line 2"]),
        ] {
            let e = over(Config::default(), text).unwrap_err().to_string();
            assert!(e.contains("c.toml") && e.contains("hint: ") && says.iter().all(|s| e.contains(s)), "{e}");
        }
        // A file changes only what it gives; the rest of the preset stays.
        let (c, _) = over(Config::preset("conpet-paper").unwrap(), "rank = 2\n").unwrap();
        let (lora, adam_eps) = (&c.services.lora, c.services.training.adam_eps);
        assert_eq!((lora.rank, lora.alpha, c.get("selector"), adam_eps), (2, 1.0, Some("\"conpet\"".into()), 1e-4));
        assert!(Config::preset("paper").unwrap_err().to_string().contains("conpet-paper"));
    }

    #[test]
    fn names_are_unique_and_what_is_printed_is_read_back() {
        let keys = Config::keys();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        for c in [Config::default(), Config::preset("conpet-paper").unwrap()] {
            assert_eq!(Config::parse(&c.toml().unwrap()).unwrap(), c);
        }
        let printed = Config::default().toml().unwrap();
        // Automatic values keep their spelling.
        for line in
            ["trunk = -1", "memory = -1", "params = \"\"", "name = \"\"", "select = \"kmeans\"", "ewc_lambda = 1000.0"]
        {
            assert!(printed.lines().any(|l| l == line), "{line} in\n{printed}");
        }
        let c = Config::default().set("memory", "0").unwrap().set("trunk", "3").unwrap().set("params", "5000").unwrap();
        let s = &c.services;
        assert_eq!(
            (s.replay.memory, s.module.trunk, s.module.params.get()),
            (Memory::All, Trunk::Layers(3), Some("5000"))
        );
    }
}
