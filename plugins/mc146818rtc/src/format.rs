//! How register B makes the chip write numbers: BCD or binary, 12 or 24 hours.

/// Data mode: binary.
const BINARY: u8 = 0x04;
/// 24 hours.
const HOURS_24: u8 = 0x02;
/// Of an hour of 12: after noon.
const PM: u8 = 0x80;
/// An alarm byte with both of these bits matches everything.
const ANY: u8 = 0xc0;

/// A way to write numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    binary: bool,
    hours_24: bool,
}

/// What an alarm byte asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Any,
    Only(u8),
}

impl Wanted {
    /// Whether `value` is what is asked for.
    pub(crate) fn matches(self, value: u8) -> bool {
        self == Wanted::Any || self == Wanted::Only(value)
    }
}

impl Format {
    /// What register B says.
    pub(crate) fn of(register_b: u8) -> Self {
        Self {
            binary: register_b & BINARY != 0,
            hours_24: register_b & HOURS_24 != 0,
        }
    }

    /// A number up to 99 as it is in a register.
    pub(crate) fn encode(self, number: u8) -> u8 {
        if self.binary {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }

    /// The number in a register. Digits beyond 9 count on.
    pub(crate) fn decode(self, byte: u8) -> u8 {
        if self.binary {
            byte
        } else {
            (byte >> 4) * 10 + (byte & 0x0f)
        }
    }

    /// An hour of the day as it is in its register.
    pub(crate) fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let of_12 = match hour % 12 {
            0 => 12,
            n => n,
        };
        self.encode(of_12) | if hour >= 12 { PM } else { 0 }
    }

    /// The hour of the day in its register.
    pub(crate) fn decode_hour(self, byte: u8) -> u8 {
        if self.hours_24 {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// What an alarm's seconds or minutes ask for.
    pub(crate) fn wanted(self, byte: u8) -> Wanted {
        if byte & ANY == ANY {
            Wanted::Any
        } else {
            Wanted::Only(self.decode(byte))
        }
    }

    /// What an alarm's hours ask for.
    pub(crate) fn wanted_hour(self, byte: u8) -> Wanted {
        if byte & ANY == ANY {
            Wanted::Any
        } else {
            Wanted::Only(self.decode_hour(byte))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_in_every_format() {
        for register_b in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
            let format = Format::of(register_b);
            for n in 0..100 {
                assert_eq!(format.decode(format.encode(n)), n);
            }
            for hour in 0..24 {
                assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
            }
        }
    }

    #[test]
    fn noon_and_midnight_are_twelve_on_a_12_hour_clock() {
        let hours = [0, 1, 11, 12, 13, 23];
        let bcd = hours.map(|h| Format::of(0).encode_hour(h));
        assert_eq!(bcd, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]);
        let binary = hours.map(|h| Format::of(BINARY).encode_hour(h));
        assert_eq!(binary, [12, 1, 11, 0x8c, 0x81, 0x8b]);
    }

    #[test]
    fn an_alarm_byte_with_both_high_bits_wants_anything() {
        let format = Format::of(HOURS_24);
        assert_eq!(format.wanted(0xc0), Wanted::Any);
        assert_eq!(format.wanted_hour(0xff), Wanted::Any);
        assert_eq!(format.wanted(0x59), Wanted::Only(59));
        assert_eq!(Format::of(0).wanted_hour(0x92), Wanted::Only(12));
    }
}
