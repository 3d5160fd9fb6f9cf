//! Groups of settings, and the macros that declare them.
//!
//! A group is a struct beside the method, selector or service that it belongs to, written with `settings!`:
//! each setting has a name, a type, a default and a range. `join!` joins groups into larger ones, and finally
//! into [`crate::config::Config`]. A setting has the same name as a TOML key and as a flag (`lr_max` is
//! `--lr-max`), unique among all groups.

pub mod automatic;
pub mod range;

use conpet_formats::Result;
use serde::de::MapAccess;
use serde::ser::SerializeMap;
use std::fmt::Debug;

/// A group of settings.
pub trait Group: Debug + Clone + PartialEq + Default {
    /// The same settings as optional flags.
    type Flags: clap::Args + Debug + Clone + Default;

    /// The names of all settings.
    fn keys() -> Vec<&'static str>;

    /// The names of those that have an effect, given the values of the others.
    fn in_effect(&self) -> Vec<&'static str> {
        Self::keys()
    }

    /// Reads the value of a setting from a map; false if the setting belongs to another group.
    ///
    /// # Errors
    /// If the value has the wrong type.
    fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> std::result::Result<bool, A::Error>;

    /// Writes all settings into a map.
    ///
    /// # Errors
    /// If the serializer fails.
    fn write<M: SerializeMap>(&self, map: &mut M) -> std::result::Result<(), M::Error>;

    /// Puts the given flags over these settings.
    fn overlay(&mut self, flags: &Self::Flags);

    /// The names of the flags that are given.
    fn given(flags: &Self::Flags) -> Vec<&'static str>;

    /// Checks each setting's own range.
    ///
    /// # Errors
    /// Names the flag, its value and what is allowed.
    fn check(&self) -> Result<()>;
}

/// Declares a group, `"heading" Settings Flags { /// text  name: type = default, range; .. }`: the struct of
/// its settings and that of its flags, which `--help` shows under the heading.
macro_rules! settings {
    ($heading:literal $settings:ident $flags:ident {
        $($(#[doc = $doc:literal])* $key:ident: $ty:ty = $default:expr, $range:expr;)*
    }) => {
        #[doc = concat!($heading, ": the settings.")]
        #[derive(Debug, Clone, PartialEq)]
        pub struct $settings { $($(#[doc = $doc])* pub $key: $ty,)* }

        #[doc = concat!($heading, ": the settings as flags.")]
        #[derive(Debug, Clone, Default, clap::Args)]
        #[group(skip)]
        #[command(next_help_heading = $heading, allow_negative_numbers = true)]
        pub struct $flags { $($(#[doc = $doc])* #[arg(long)] pub $key: Option<$ty>,)* }

        impl Default for $settings {
            fn default() -> Self { Self { $($key: $default,)* } }
        }

        impl $crate::settings::Group for $settings {
            type Flags = $flags;

            fn keys() -> Vec<&'static str> {
                vec![$(stringify!($key)),*]
            }

            fn read<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> std::result::Result<bool, A::Error> {
                $(if key == stringify!($key) { self.$key = map.next_value()?; return Ok(true); })*
                Ok(false)
            }

            fn write<M: serde::ser::SerializeMap>(&self, map: &mut M) -> std::result::Result<(), M::Error> {
                $(map.serialize_entry(stringify!($key), &self.$key)?;)*
                Ok(())
            }

            fn overlay(&mut self, flags: &Self::Flags) {
                $(if let Some(v) = &flags.$key { self.$key = v.clone(); })*
            }

            fn given(flags: &Self::Flags) -> Vec<&'static str> {
                [$(flags.$key.as_ref().map(|_| stringify!($key))),*].into_iter().flatten().collect()
            }

            fn check(&self) -> conpet_formats::Result<()> {
                $($range.check(stringify!($key), &self.$key)?;)*
                Ok(())
            }
        }
    };
}
pub(crate) use settings;

/// Declares a group of groups: `/// text  Settings Flags { /// text  name: Group, .. }`; a function after
/// `in effect` says which settings have an effect, if not all of them do.
macro_rules! join {
    (@effect $self:ident [$($field:ident)*]) => {{
        let all: Vec<Vec<&'static str>> = vec![$($crate::settings::Group::in_effect(&$self.$field)),*];
        all.concat()
    }};
    (@effect $self:ident [$($field:ident)*] $effect:expr) => { ($effect)($self) };
    ($(#[$about:meta])* $settings:ident $flags:ident {
        $($(#[$doc:meta])* $field:ident: $group:ty,)*
    } $(in effect: $effect:expr)?) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $settings { $($(#[$doc])* pub $field: $group,)* }

        $(#[$about])*
        ///
        /// As flags.
        #[derive(Debug, Clone, Default, clap::Args)]
        #[group(skip)]
        pub struct $flags { $(
            $(#[$doc])*
            #[command(flatten)]
            pub $field: <$group as $crate::settings::Group>::Flags,
        )* }

        #[allow(unused_variables, reason = "a group may be empty")]
        impl $crate::settings::Group for $settings {
            type Flags = $flags;

            fn keys() -> Vec<&'static str> {
                let all: Vec<Vec<&'static str>> = vec![$(<$group as $crate::settings::Group>::keys()),*];
                all.concat()
            }

            fn in_effect(&self) -> Vec<&'static str> {
                $crate::settings::join!(@effect self [$($field)*] $($effect)?)
            }

            fn read<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> std::result::Result<bool, A::Error> {
                Ok(false $(|| $crate::settings::Group::read(&mut self.$field, key, map)?)*)
            }

            fn write<M: serde::ser::SerializeMap>(&self, map: &mut M) -> std::result::Result<(), M::Error> {
                $($crate::settings::Group::write(&self.$field, map)?;)*
                Ok(())
            }

            fn overlay(&mut self, flags: &Self::Flags) {
                $($crate::settings::Group::overlay(&mut self.$field, &flags.$field);)*
            }

            fn given(flags: &Self::Flags) -> Vec<&'static str> {
                let all: Vec<Vec<&'static str>> =
                    vec![$(<$group as $crate::settings::Group>::given(&flags.$field)),*];
                all.concat()
            }

            fn check(&self) -> conpet_formats::Result<()> {
                $($crate::settings::Group::check(&self.$field)?;)*
                Ok(())
            }
        }
    };
}
pub(crate) use join;

join! {
    /// The group for methods and selectors without settings of their own.
    NoSettings NoFlags {}
}
