//! Values as people write them in the file: durations (`100ms`), VIPs (`10.77.0.100/24`).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration written as a number with a unit: `10ms`, `1s`, `1.5s`, `2m`, `1h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

impl Span {
    pub const ZERO: Self = Self(Duration::ZERO);

    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for Span {
    fn from(d: Duration) -> Self {
        Self(d)
    }
}

impl From<Span> for Duration {
    fn from(s: Span) -> Self {
        s.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        match us {
            0 => f.write_str("0s"),
            _ if us.is_multiple_of(3_600_000_000) => write!(f, "{}h", us / 3_600_000_000),
            _ if us.is_multiple_of(60_000_000) => write!(f, "{}m", us / 60_000_000),
            _ if us.is_multiple_of(1_000_000) => write!(f, "{}s", us / 1_000_000),
            _ if us.is_multiple_of(1_000) => write!(f, "{}ms", us / 1_000),
            _ => write!(f, "{us}us"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a duration or VIP could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error("{0:?} is not a duration; write a number and a unit, e.g. 100ms, 1s, 2m")]
    Span(String),
    #[error("{0:?} is not a VIP; write an address or address/prefix, e.g. 10.77.0.100/32")]
    Vip(String),
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Span(s.to_string());
        let text = s.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let (number, unit) = text.split_at(split);
        let micros_per_unit: u128 = match unit.trim() {
            "us" | "µs" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || whole.len() > 9 || fraction.len() > 6 {
            return Err(bad());
        }
        let mut micros = whole.parse::<u128>().map_err(|_| bad())? * micros_per_unit;
        if !fraction.is_empty() {
            let digits = fraction.parse::<u128>().map_err(|_| bad())?;
            micros += digits * micros_per_unit / 10u128.pow(fraction.len() as u32);
        }
        let micros = u64::try_from(micros).map_err(|_| bad())?;
        Ok(Self(Duration::from_micros(micros)))
    }
}

/// A virtual address and the prefix length it is added with; without one, /32 or /128.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Vip {
    /// The address with its host prefix (/32 or /128).
    pub fn host(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Vip {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Vip(s.to_string());
        let Some((address, prefix)) = s.split_once('/') else {
            return s.parse().map(Self::host).map_err(|_| bad());
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix == 0 || prefix > Self::host(address).prefix {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}

macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal, $about:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern, "description": $about})
            }
        }
    };
}

as_text!(
    Span,
    "Duration",
    r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h)$",
    "A number with a unit: 100ms, 1s, 2m."
);
as_text!(
    Vip,
    "Vip",
    r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$",
    "An address, or address/prefix length; without one /32 or /128."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_alike() {
        for (text, micros, printed) in [
            ("100ms", 100_000, "100ms"),
            ("1s", 1_000_000, "1s"),
            ("1.5s", 1_500_000, "1500ms"),
            ("40.95s", 40_950_000, "40950ms"),
            ("2m", 120_000_000, "2m"),
            ("0s", 0, "0s"),
            ("1h", 3_600_000_000, "1h"),
            ("7us", 7, "7us"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.get(), Duration::from_micros(micros), "{text}");
            assert_eq!(span.to_string(), printed);
            assert_eq!(printed.parse::<Span>().unwrap(), span);
        }
        for bad in ["", "1", "s", "1 day", "-1s", ".5s", "9999999999h", "1.2.3s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn vips_take_an_optional_prefix() {
        assert_eq!("10.0.0.1".parse::<Vip>().unwrap().to_string(), "10.0.0.1/32");
        assert_eq!("10.0.0.1/24".parse::<Vip>().unwrap().prefix, 24);
        assert_eq!("fd00::1".parse::<Vip>().unwrap().prefix, 128);
        for bad in ["10.0.0.1/33", "fd00::1/129", "x/24", "10.0.0.1/0", ""] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
